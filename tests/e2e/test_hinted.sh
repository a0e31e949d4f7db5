#!/bin/bash
# The conservative engine on real QEMU: agents mark what is worth it, the kernel's scanner merges just that and stops.
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"
needs_root
needs_ksm
needs_qemu
echo 0 >"$ksm/run"
found=$(ksm_knobs)

status_is()
{
	ctl --json merge status >"$work/merge.json" && get "$1" <"$work/merge.json" | grep -q True
}

write_conf <<END
[daemon]
tick = 100ms
[vmm]
discover = 200ms
[scan]
cpu_percent = 100%
interval = 5s
rest_permille = 1000
[merge]
engine = hinted
target = 5s
cpu_percent = 100%
min_gain = 8MiB
[vm *]
domain = both
END
start_agent_guest a --mem 512 --mem-merge off --seed 1 &
start_agent_guest b --mem 512 --mem-merge off --seed 2 &
wait
guests=(a b)
start_daemon
wait_rounds 1 a b
wait_for 120 "the gain" status_is "j['saved_mib'] > 32 and j['state'] == 'rest'"
ctl merge status
ctl explain a >"$work/explain"
grep -q '^engine *hinted' "$work/explain" || die "a is not merged by hints"
grep -q 'refused  remap: another engine is configured' "$work/explain" || die "why not remap is not said"
marked=$(grep -c '^VmFlags:.* mg' "/proc/$(cat "$work/a/qemu.pid")/smaps")
[ "$marked" -gt 0 ] || die "nothing of a is marked"
part=$(awk '/^[0-9a-f]+-/ { size = 0 } /^Size:/ { size = $2 } /^VmFlags:.* mg/ { sum += size } END { print int(sum / 1024) }' \
	"/proc/$(cat "$work/a/qemu.pid")/smaps")
echo "a: $part MiB of 512 in $marked mappings are marked"
[ "$part" -lt 400 ] || die "all of a is marked"
wait_rounds 2 a b
stop_daemon TERM || die "memvirtd did not end well"
[ "$(ksm_knobs)" = "$found" ] || die "not what was found: $(ksm_knobs)"
echo "all good"
