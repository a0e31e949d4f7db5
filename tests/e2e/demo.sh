#!/bin/bash
# The demo: four real guests, what merging would save, the merge, and guests that never notice.
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"

say()
{
	printf '\n== %s\n' "$*"
}

[ "$(id -u)" = 0 ] || { echo "make demo must run as root: it reads guest memory" >&2; exit 1; }
needs_ksm
needs_qemu

say "starting four guests of 768 MiB by memvirtctl run: idle, a Python program, a tmpfs half full of zeroes, file reading"
export MEMVIRT_QEMU="$build/memvirtctl run --socket $work/agent -- qemu-system-x86_64"
seed=0
for w in idle python tmpfs files; do
	seed=$((seed + 1))
	start_guest "$w" --name "demo $w" --workload "$w" --seed $seed &
	guests+=("$w") # the subshell's own addition is lost
done
wait
wait_rounds 2 "${guests[@]}"

say "starting memvirtd; all VMs may share with each other (domain = demo)"
write_conf <<END
[scan]
cpu_percent = 200%
[merge]
engine = off
[vm demo *]
domain = demo
END
start_daemon
ctl vms

say "what merging would save (nothing is merged for this)"
ctl estimate
echo
ctl sharing

say "merging: agents inside the VMMs exchange equal pages for shared frames"
sed -i -e 's/^engine = off/min_gain = 16MiB/' "$conf"
agents_called()
{
	[ "$(grep -c ' agent pid=' "$work/daemon.log")" -ge ${#guests[@]} ]
}
wait_for 20 "the agents" agents_called
before=$(charged_kib)
ctl reload
gain_is_in()
{
	ctl --json merge status >"$work/merge.json"
	get 'j["rounds"] > 0 and not j["merging"] and j["saved_mib"] > 0' <"$work/merge.json" | grep -q True
}
wait_for 120 "the merge" gain_is_in
after=$(charged_kib)
ctl merge status
grep ' remap ' "$work/daemon.log" || :
ctl explain "demo idle"

say "the guests go on and check their memory"
wait_rounds 3 "${guests[@]}" || :
intact=0
for w in "${guests[@]}"; do
	[ ! -s "$work/$w/last" ] || intact=$((intact + 1))
done
stop_daemon TERM || die "memvirtd did not end well"
ksm_knobs | cmp -s - "$work/ksm-before" || die "the KSM settings were not put back"

# By the kernel's own account of the guests' memory and of the frames that they share, before and after.
awk -v before="$before" -v after="$after" -v intact="$intact" -v guests="${#guests[@]}" 'BEGIN {
	printf "\ndemo: saved %d MiB of %d MiB resident (%d %%), guests intact %d/%d\n",
		(before - after) / 1024, before / 1024, (before - after) * 100 / before, intact, guests
	exit intact != guests || after >= before
}'
