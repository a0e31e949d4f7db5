#!/bin/bash
# bench/idle.sh [SECONDS] - what the daemon and the kernel's scanner cost once the gain is in: four idle guests,
# default settings but for the domain. Prints one JSON object. Needs root, KSM and QEMU.
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/../tests/e2e/lib.sh"
needs_root
needs_ksm
needs_qemu >&2

seconds=${1:-120}
for g in 1 2 3 4; do
	start_guest "idle$g" --name "idle$g" --workload idle --seed "$g" --append round_s=5 >&2 &
	guests+=("idle$g")
done
wait
for g in 1 2 3 4; do
	wait_round "idle$g" 1 >&2
done
write_conf <<END
[vm *]
domain = idle
END
start_daemon
at_rest()
{
	ctl --json merge status >"$work/merge.json"
	get 'j["passes"] > 0 and j["saved_mib"] > 0 and j["state"] == "rest"' <"$work/merge.json" | grep -q True
}
wait_for 300 "the gain" at_rest

cpu_ms()
{
	ctl --json status | get 'int(j["cpu_seconds"] * 1000)'
}
cpu=$(cpu_ms)
scanned=$(cat $ksm/pages_scanned)
passes=$(ctl --json merge status | get 'j["passes"]')
echo "measuring for $seconds s" >&2
sleep "$seconds"
cpu=$(($(cpu_ms) - cpu))
scanned=$(($(cat $ksm/pages_scanned) - scanned))
passes=$(($(ctl --json merge status | get 'j["passes"]') - passes))
saved=$(ctl --json merge status | get 'j["saved_mib"]')
awk -v cpu=$cpu -v s="$seconds" -v scanned=$scanned -v passes=$passes -v saved="$saved" 'BEGIN {
	printf "{\"seconds\": %d, \"daemon_cpu_percent\": %.3f, \"passes\": %d, \"ksm_pages_scanned\": %d, \"saved_mib\": %s}\n",
		s, cpu / s / 10, passes, scanned, saved }'
