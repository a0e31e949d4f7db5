#!/bin/bash
# Merged memory given back: at an operator's word, when a VM changes its domain, when it migrates; the guests check their
# memory all the time.
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"
needs_root
needs_qemu
[ -e /dev/userfaultfd ] || skip "the kernel has no /dev/userfaultfd"

conf_with()
{
	write_conf <<END
[daemon]
tick = 100ms
[vmm]
discover = 200ms
[scan]
cpu_percent = 100%
interval = 2s
rest_permille = 1000
[merge]
engine = remap
min_gain = 4MiB
$1
END
}

status_is()
{
	ctl --json merge status >"$work/merge.json" && get "$1" <"$work/merge.json" | grep -q True
}

mapped() # GUEST CONDITION
{
	status_is "any(v['name'] == '$1' and v['mapped_mib'] $2 for v in j['vms'])"
}

maps_of() # GUEST: mappings, and those of a store
{
	local pid
	pid=$(cat "$work/$1/qemu.pid")
	echo "$(wc -l <"/proc/$pid/maps") $(grep -c memvirt-store "/proc/$pid/maps")"
}

rss_anon_mib()
{
	awk '/^RssAnon:/ { print int($2 / 1024) }' "/proc/$(cat "$work/$1/qemu.pid")/status"
}

start_agent_guest a --mem 512 --seed 1 &
start_agent_guest b --mem 512 --seed 2 &
start_guest plain --name plain --mem 256 --seed 9 &
wait
guests=(a b plain)
wait_rounds 1 a b
before=$(maps_of a)
conf_with '[vm *]
domain = both'
start_daemon
wait_for 60 "both to be merged" eval 'mapped a "> 100" && mapped b "> 100"'
sleep 5 # rounds go on
merged=$(maps_of a) rss=$(rss_anon_mib a)

# -- errors are told
! ctl unmerge nobody 2>"$work/err" || die "a VM that is not there was un-merged"
grep -q 'no VM "nobody"' "$work/err" || die "unmerge does not say that there is no such VM"
! ctl unmerge plain 2>"$work/err" || die "a VM without an agent was un-merged"
grep -q 'no agent' "$work/err" || die "unmerge does not say that there is no agent"
! ctl unmerge --undo a 2>"$work/err" || die "what was not un-merged was undone"

# -- an operator asks
ctl unmerge a || die "a was not un-merged, or not all of it"
after=$(maps_of a)
echo "a: mappings (of the store) before $before, merged $merged, un-merged $after; RssAnon $rss -> $(rss_anon_mib a) MiB"
[ "$(rss_anon_mib a)" -gt $((rss + 80)) ] || die "a has not got its memory back"
[ "${after% *}" -lt $((${before% *} + 40)) ] || die "a is left in pieces"
wait_rounds 2 a b
wait_for 20 "the figures of a" mapped a "== 0"
ctl explain a | grep -q 'refused *it was un-merged' || die "explain does not say that a was un-merged"
status_is True
sleep 6
mapped a "== 0" || die "a was merged again"
wait_rounds 1 a b

# -- only a's own is left when b goes
"$guest/stop-guest.sh" "$work/b"
guests=(a plain)
wait_for 60 "the frames to be freed" status_is "j['frames_mib'] == 0"

# -- merged again when it is undone
ctl unmerge --undo a
start_agent_guest c --mem 512 --seed 3
wait_round c 1
wait_for 60 "a and c to be merged" eval 'mapped a "> 100" && mapped c "> 100"'
wait_rounds 1 a c

# -- while it migrates
qmp c migrate-set-parameters '{"max-bandwidth":1048576}' >/dev/null
qmp c migrate '{"uri":"exec:cat >/dev/null"}' >/dev/null
wait_for 30 "c to be un-merged for its migration" grep -q 'unmerge .*why="it is migrating"' "$work/daemon.log"
ctl explain c | grep -q 'remap: it is migrating' || die "c is merged while it migrates"
wait_rounds 1 a c
qmp c migrate_cancel >/dev/null
wait_for 60 "c to be merged again" mapped c "> 100"

# -- another domain
conf_with '[vm *]
domain = both
[vm c]
domain = other'
ctl reload
wait_for 60 "c to leave its domain" grep -q 'unmerge .*why="it is in another domain now"' "$work/daemon.log"
wait_for 60 "c to hold nothing of it" eval '[ "$(grep -c memvirt-store:both "/proc/$(cat "$work/c/qemu.pid")/maps")" -le 1 ]'
wait_rounds 2 a c
grep "unmerge vm" "$work/daemon.log"
echo "longest stalls of merges, us: $(sed -n "s/.*remap domain=.*longest_stall=\([0-9]*\).*/\1/p" "$work/daemon.log" | sort -n | xargs)"
stop_daemon TERM || die "memvirtd did not end well"
echo "all good"
