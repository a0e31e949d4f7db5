#!/bin/bash
# bench/idle.sh [SECONDS] [kernel|remap] - what the daemon, the agents and the kernel's scanner cost once the gain is in:
# four idle guests, default settings but for the domain. Prints one JSON object. Needs root, KSM and QEMU.
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/../tests/e2e/lib.sh"
needs_root
needs_ksm
needs_qemu >&2

seconds=${1:-120}
engine=${2:-kernel}
case $engine in
kernel) ;;
remap) export MEMVIRT_QEMU="$build/memvirtctl run --socket $work/agent -- qemu-system-x86_64" ;;
*) echo "usage: bench/idle.sh [SECONDS] [kernel|remap]" >&2; exit 2 ;;
esac
for g in 1 2 3 4; do
	start_guest "idle$g" --name "idle$g" --workload idle --seed "$g" --append round_s=5 >&2 &
	guests+=("idle$g")
done
wait
for g in 1 2 3 4; do
	wait_round "idle$g" 1 >&2
done
write_conf <<END
[merge]
engine = $engine
[vm *]
domain = idle
END
start_daemon
at_rest()
{
	ctl --json merge status >"$work/merge.json"
	get 'j["passes"] > 0 and j["saved_mib"] > 0 and j["state"] == "rest" and not j["merging"]' <"$work/merge.json" |
		grep -q True
}
wait_for 300 "the gain" at_rest

cpu_ms()
{
	ctl --json status | get 'int(j["cpu_seconds"] * 1000)'
}
agents_ms()
{
	local t sum=0
	for t in /proc/[0-9]*/task/[0-9]*; do
		[ "$(cat "$t/comm" 2>/dev/null)" != memvirt-agent ] || sum=$((sum + $(cut -d' ' -f1 "$t/schedstat") / 1000000))
	done
	echo "$sum"
}
cpu=$(cpu_ms)
agents=$(agents_ms)
scanned=$(cat $ksm/pages_scanned)
passes=$(ctl --json merge status | get 'j["passes"]')
echo "measuring for $seconds s" >&2
sleep "$seconds"
cpu=$(($(cpu_ms) - cpu))
agents=$(($(agents_ms) - agents))
scanned=$(($(cat $ksm/pages_scanned) - scanned))
passes=$(($(ctl --json merge status | get 'j["passes"]') - passes))
saved=$(ctl --json merge status | get 'j["saved_mib"]')
awk -v engine="$engine" -v cpu=$cpu -v agents=$agents -v s="$seconds" -v scanned=$scanned -v passes=$passes -v saved="$saved" 'BEGIN {
	printf "{\"engine\": \"%s\", \"seconds\": %d, \"daemon_cpu_percent\": %.3f, \"agents_cpu_percent\": %.3f, \"passes\": %d, \"ksm_pages_scanned\": %d, \"saved_mib\": %s}\n",
		engine, s, cpu / s / 10, agents / s / 10, passes, scanned, saved }'
