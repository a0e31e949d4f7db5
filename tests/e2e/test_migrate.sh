#!/bin/bash
# Live migration of real QEMU with merging before, during and after: precopy, postcopy (QEMU's own userfaultfd on the
# destination) and a background snapshot (QEMU's own on merged memory). The guests check their memory all the time.
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"
needs_root
needs_qemu
[ -e /dev/userfaultfd ] || skip "the kernel has no /dev/userfaultfd"

# guest DIR [OPTION...]
guest()
{
	local dir=$1
	shift
	start_agent_guest "$dir" --mem 384 --append round_s=2 "$@"
}

capability()
{
	qmp "$1" migrate-set-capabilities "{\"capabilities\":[{\"capability\":\"$2\",\"state\":true}]}" >"$work/answer"
	[ "$(grep -c '"return": {}' "$work/answer")" = 2 ] || die "$1: no capability $2: $(cat "$work/answer")"
}

# The last answer's field of query-migrate; empty: none.
migration()
{
	qmp "$1" query-migrate | tail -n 1 | get "j['return'].get('$2', '')"
}

migration_is()
{
	[ "$(migration "$1" status)" = "$2" ]
}

vm_is() # NAME PYTHON-EXPRESSION of "v"
{
	ctl --json merge status >"$work/merge.json" &&
		get "any(v['name'] == '$1' and ($2) for v in j['vms'])" <"$work/merge.json" | grep -q True
}

explained() # NAME TEXT
{
	ctl explain "$1" | grep -q "$2"
}

has_rounds() # GUEST N
{
	[ "$(grep -c '^round .* sum=' "$work/$1/serial.log")" -ge "$2" ]
}

# N more rounds of each guest, with the memory that they should have. A guest that arrived has not said that it is ready.
more_rounds() # N GUEST...
{
	local n=$1 g have
	shift
	for g in "$@"; do
		have=$(grep -c '^round .* sum=' "$work/$g/serial.log" || :)
		wait_for 90 "$g to go on" has_rounds "$g" $((have + n))
		! grep -qE '=BAD|guest failed|Kernel panic|BUG:|Oops:' "$work/$g/serial.log" || die "$g: wrong memory"
		echo "$g: $(grep '^round .* sum=' "$work/$g/serial.log" | tail -n 1)"
	done
}

migrate() # FROM TO
{
	qmp "$1" migrate "{\"uri\":\"unix:$work/$2.sock\"}" >"$work/answer"
	[ "$(grep -c '"return": {}' "$work/answer")" = 2 ] || die "$1: $(cat "$work/answer")"
}

arrived() # FROM TO
{
	wait_for 120 "$1 to arrive as $2" migration_is "$1" completed
	echo "$1 to $2: $(migration "$1" downtime) ms of downtime${3:+, $3}"
	"$top/tests/guest/stop-guest.sh" "$work/$1" >/dev/null
	more_rounds 2 "$2"
}

slowly() # GUEST: so that there is something to see
{
	qmp "$1" migrate-set-parameters '{"max-bandwidth":33554432,"downtime-limit":300}' >/dev/null
}

guest a --seed 1 &
guest b --seed 2 &
guest c --seed 3 &
wait
guests=(a b c)
wait_rounds 1 a b c
write_conf <<END
[daemon]
tick = 100ms
[vmm]
discover = 200ms
[scan]
cpu_percent = 100%
interval = 1s
rest_permille = 1000
[merge]
engine = remap
min_gain = 2MiB
[vm *]
domain = all
END

# -- without merging, for comparison
incoming=unix:$work/c2.sock guest c2 --seed 3
slowly c
migrate c c2
arrived c c2 "without merging"

# -- precopy of a merged guest, into one that is merged afterwards
start_daemon
wait_for 90 "merging" vm_is a "v['merged_mib'] > 50"
wait_for 90 "merging" vm_is b "v['merged_mib'] > 50"
incoming=unix:$work/a2.sock guest a2 --seed 1
slowly a
migrate a a2
wait_for 20 "merging to pause" explained a migrat
arrived a a2 "merged"
wait_for 90 "the guest that arrived to be merged" vm_is a2 "v['merged_mib'] > 50"
more_rounds 2 a2 b

# -- postcopy: QEMU registers the destination's memory with its own userfaultfd
incoming=defer guest b2 --seed 2
capability b postcopy-ram
capability b2 postcopy-ram
sleep 2 # its agent has registered memory by now, or this shows nothing
qmp b2 migrate-incoming "{\"uri\":\"unix:$work/b2.sock\"}" >/dev/null
slowly b
migrate b b2
wait_for 20 "precopy" migration_is b active
qmp b migrate-start-postcopy >/dev/null
arrived b b2 "postcopy, merged"
wait_for 120 "the guest of the postcopy to be merged" vm_is b2 "v['merged_mib'] > 50"
more_rounds 2 a2 b2

# -- a background snapshot: QEMU protects merged memory with its own userfaultfd
capability a2 background-snapshot
qmp a2 migrate "{\"uri\":\"exec:cat >$work/snapshot\"}" >/dev/null
wait_for 120 "the snapshot" migration_is a2 completed
[ "$(stat -c %s "$work/snapshot")" -gt $((100 << 20)) ] || die "the snapshot is too small"
more_rounds 2 a2 b2
vm_is a2 "v['merged_mib'] > 50" || die "a2 is not merged any more"
stop_daemon TERM || die "memvirtd did not end well"
echo "all good"
