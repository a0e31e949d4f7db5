#!/bin/bash
# The daemon is killed at random instants, and VMMs with it, while agents merge memory that is written, read and
# discarded: every byte, frame, mapping and descriptor is accounted for. KILLS_CHAOS: how often (1000 take half an hour);
# HOURS_SOAK: how long the gentle world of restarts, reloads and VMs that come and go runs after it (0).
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"
needs_root
[ -e /dev/userfaultfd ] || skip "the kernel has no /dev/userfaultfd"

# Both take their turn on this host by themselves.
"$build/tests/chaos" "${KILLS_CHAOS:-12}"
[ "${HOURS_SOAK:-0}" = 0 ] || "$build/tests/soak" "$HOURS_SOAK"
