#!/bin/bash
# The exchange under attack in one process, every byte checked: writers, readers, discards, O_DIRECT, io_uring,
# fork and pins while windows are merged at full speed. SECONDS_STRESS: how long.
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"
needs_root
"$build/tests/stress-remap" "${SECONDS_STRESS:-20}"
