#!/bin/bash
# Looking without touching: finding guests, estimates with and without a daemon, hung and dying VMMs.
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"
needs_root
needs_qemu

name="guest ä (1)
two"
start_guest a --name "$name" --mem 512 --workload idle --seed 1 &
start_guest b --name plain --mem 512 --workload idle --seed 2 &
wait
guests=(a b)
wait_round a 1
wait_round b 1
pid_a=$(cat "$work/a/qemu.pid")
pid_b=$(cat "$work/b/qemu.pid")
mine="[v for v in j if v['pid'] in ($pid_a, $pid_b)]"
both="[v for v in j['vms'] if v['pid'] in ($pid_a, $pid_b)]"

# -- a scan faults nothing in: the page counts of a stopped guest are the same before and after
mapped()
{
	awk '/^(Rss|Anonymous|Swap|AnonHugePages):/ { print $1, $2 }' "/proc/$pid_a/smaps_rollup"
}
kill -STOP "$pid_a"
mapped >"$work/before"
"$build/memvirtctl" --config /dev/null --json estimate >"$work/estimate.json" # its QMP cannot answer now
mapped >"$work/after"
kill -CONT "$pid_a"
cmp "$work/before" "$work/after" || die "an estimate changed what is resident"
[ "$(get "len($both)" <"$work/estimate.json")" = 2 ] || die "the estimate without a daemon does not know both guests"
get "[v[k] for v in j['vms'] + [j['total']] for k in ('present_mib', 'zero_mib', 'dup_within_mib',
	'dup_between_mib', 'mergeable_mib', 'seconds', 'cpu_seconds')] and 'ok'" <"$work/estimate.json" | grep -q ok

# -- with a daemon
write_conf <<END
[daemon]
tick = 200ms
[vmm]
discover = 500ms
qmp_timeout = 3s
[merge]
engine = off
END
start_daemon --dry-run
state_is()
{
	[ "$(ctl --json vms | get "[v['state'] for v in j if v['pid'] == $1]")" = "$2" ]
}
wait_for 20 "both guests to be ready" state_is "$pid_a" "['ready']"
wait_for 20 "both guests to be ready" state_is "$pid_b" "['ready']"
[ "$(ctl --json vms | get "[v['name'] for v in $mine if v['pid'] == $pid_a][0]")" = "$name" ] ||
	die "a name with blanks, a newline and UTF-8 did not come through"
[ "$(ctl --json vms | get "[v['slots_from'] for v in $mine]")" = "['qmp', 'qmp']" ] || die "slots are not from QMP"
[ "$(ctl --json explain plain | get "j['pid']")" = "$pid_b" ] || die "explain by name"
[ "$(ctl --json explain "$pid_a" | get "j['name']")" = "$name" ] || die "explain by pid"
ctl explain nobody 2>"$work/err" && die "explain of a VM that is not there succeeded"
grep -q 'no VM "nobody"' "$work/err" || die "explain of a VM that is not there: $(cat "$work/err")"

# Two guests of one image share their kernel and programs: at least 50 MiB.
ctl --json sharing >"$work/sharing.json"
get "all(j['shared_mib'][i][k] == j['shared_mib'][k][i] for i in range(len(j['vms'])) for k in range(len(j['vms'])))" \
	<"$work/sharing.json" | grep -q True || die "the sharing table is not symmetric"
ctl --json estimate >"$work/estimate.json"
get "min(v['dup_between_mib'] for v in $both) > 25" <"$work/estimate.json" | grep -q True ||
	die "the guests share nothing: $(cat "$work/estimate.json")"

# -- a VMM that hangs costs its own VM a state, nobody else anything; it comes back
kill -STOP "$pid_b"
wait_for 30 "the hang to be noticed" state_is "$pid_b" "['hung']"
state_is "$pid_a" "['ready']" || die "a hung VMM cost another VM its state"
ctl --json estimate >"$work/estimate.json"
[ "$(get "len($both)" <"$work/estimate.json")" = 2 ] || die "a hung VMM is missing in the estimate"
kill -CONT "$pid_b"
wait_for 30 "the guest to come back" state_is "$pid_b" "['ready']"

# -- a VMM that dies is forgotten at once
kill -KILL "$pid_b"
gone()
{
	[ "$(ctl --json vms | get "len([v for v in j if v['pid'] == $pid_b])")" = 0 ]
}
wait_for 10 "the dead guest to be forgotten" gone
guests=(a)

# -- a bad file changes nothing at reload, and stops a start
echo 'nonsense = 1' >>"$conf"
ctl reload 2>"$work/err" && die "a bad file was accepted"
grep -q "memvirt.conf:[0-9]*: unknown key \"nonsense\"" "$work/err" || die "reload: $(cat "$work/err")"
ctl status >/dev/null || die "the daemon ended over a bad file"
"$build/memvirtd" --check --config "$conf" 2>/dev/null && die "--check accepted a bad file"
stop_daemon TERM || die "memvirtd did not end well"
[ ! -e "$sock" ] || die "the control socket was left behind"

# -- wrong words
for words in "frobnicate" "explain" "vms now" "--frob" "merge" "unmerge" "--undo vms"; do
	# shellcheck disable=SC2086 # several words on purpose
	ctl $words >/dev/null 2>"$work/err" && die "memvirtctl $words succeeded"
	[ -s "$work/err" ] || die "memvirtctl $words failed without a word"
done
"$build/memvirtd" --frob 2>/dev/null && die "memvirtd --frob succeeded"

wait_round a 1
echo "all good"
