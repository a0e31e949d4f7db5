#!/bin/bash
# The exchange under attack in one process, every byte checked: writers, readers, discards, O_DIRECT, io_uring, copies by
# the kernel, fork, signals and pins while windows are merged at full speed. Then the same with the kernel's scanner
# merging all memory of the process as well, and with swap. SECONDS_STRESS: how long the first takes.
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"
needs_root

zram=/sys/block/zram0 swap_is_ours=
swap_on()
{
	[ "$(wc -l </proc/swaps)" -le 1 ] || return 0
	[ -w "$zram/disksize" ] && [ "$(cat "$zram/disksize")" = 0 ] && [ -b /dev/zram0 ] || return 1
	swap_is_ours=1
	echo 512M >"$zram/disksize" && mkswap /dev/zram0 >/dev/null && swapon /dev/zram0
}

swap_off()
{
	[ -n "$swap_is_ours" ] || return 0
	swapoff /dev/zram0
	echo 1 >"$zram/reset"
}
trap 'status=$?; swap_off || true; (exit $status); clean_up' EXIT

"$build/tests/stress-remap" "${SECONDS_STRESS:-12}"

if [ -w "$ksm/run" ]; then
	needs_ksm
	[ ! -e "$ksm/advisor_mode" ] || echo none >"$ksm/advisor_mode"
	echo 2000 >"$ksm/pages_to_scan"
	echo 1 >"$ksm/sleep_millisecs"
	echo 1 >"$ksm/run"
	STRESS_KSM=1 "$build/tests/stress-remap" 5
	ksm_put_back
else
	echo "skip: test_stress: this kernel has no KSM, not run with it"
fi

if swap_on; then
	"$build/tests/stress-remap" 5
	"$build/tests/test_exchange"
	"$build/tests/test_exchange_more"
else
	echo "skip: test_stress: no swap and no zram device to make some, not run with it"
fi
