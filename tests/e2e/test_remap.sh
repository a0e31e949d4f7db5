#!/bin/bash
# Merging by agents inside real QEMU: merged, written, ballooned, reported free, ended, killed; frames are freed, refusals
# are named, and the guests check their memory all the time.
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"
needs_root
needs_qemu
[ -e /dev/userfaultfd ] || skip "the kernel has no /dev/userfaultfd"

balloon()
{
	qmp "$1" balloon "{\"value\":$(($2 << 20))}" >/dev/null
}

balloon_reached() # GUEST MIB
{
	qmp "$1" query-balloon | grep -q "\"actual\": $(($2 << 20))"
}

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

merged() # MIB
{
	status_is "j['rounds'] > 0 and j['saved_mib'] > $1"
}

rounds_of()
{
	get 'j["rounds"]' <"$work/merge.json"
}

# -- guests first, the daemon later: agents wait for it
start_agent_guest a --mem 512 --seed 1 &
start_agent_guest b --mem 512 --seed 2 --mem-merge off &
start_guest plain --name plain --mem 256 --seed 9 &
wait
guests=(a b plain)
wait_rounds 1 a b
for g in a b; do
	[ "$(grep -c memvirt-agent "$work/$g/qemu.log")" -le 1 ] || die "$g: the agent says more than one line"
done
conf_with '[vm *]
domain = both'
start_daemon
wait_for 60 "the first round" merged 64
ctl merge status
status_is "j['debt_state'] == 'ok' and 0.1 < j['debt_mib'] / j['debt_most_mib'] <= 1 and j['debt_most_mib'] > j['saved_mib']" ||
	die "the debt does not count what was merged"
status_is "abs(j['domains'][0]['merged_mib'] - sum(v['merged_mib'] for v in j['vms'] if v['domain'] == 'both')) < 1" ||
	die "the domain's figures are not its VMs'"
ctl explain a | grep -q '^engine *remap' || die "a: not merged by remap"
ctl explain plain >"$work/explain"
grep -q '^engine *none' "$work/explain" || die "plain: merged without an agent"
grep -q 'remap: no agent' "$work/explain" || die "plain: explain does not name the missing agent"
wait_rounds 2 a b

# -- inflate: pages that were merged go, and come back as zeroes
balloon a 200
wait_for 60 "the balloon to inflate" balloon_reached a 200
wait_rounds 2 a b
balloon a 512
wait_for 60 "the balloon to deflate" balloon_reached a 512
wait_rounds 2 a b

# -- one more guest of the same image: it merges with frames that are there
start_agent_guest c --mem 512 --seed 3
wait_round c 1
filled=$(get 'j["frames_mib"]' <"$work/merge.json")
wait_for 60 "the third guest" status_is "any(v['name'] == 'c' and v['mapped_mib'] > 32 for v in j['vms'])"
echo "frames before c: $filled MiB, with c: $(get 'j["frames_mib"]' <"$work/merge.json") MiB"
wait_rounds 2 a b c

# -- the daemon is killed; the guests stay merged, the next daemon finds the agents again
stop_daemon KILL || :
wait_rounds 1 a b c
start_daemon
wait_for 60 "the agents to come back" eval 'ctl explain a | grep -q "^engine *remap"'
wait_for 60 "the store to be taken over" status_is "j['frames_mib'] > 64 and sum(v['mapped_mib'] for v in j['vms']) > 300"
grep 'goes on with the frames' "$work/daemon.log" || die "the new daemon made a new store"
wait_rounds 2 a b c

# -- a setting of one VM, by reload
conf_with '[vm *]
domain = both
[vm c]
engine = off'
ctl reload
wait_for 20 "the setting of c" eval 'ctl explain c | grep -q "engine = off"'

# -- pinned in place: no longer to be merged, and said so
conf_with '[vm *]
domain = both
merge = off'
ctl reload
wait_for 20 "merging to be off" eval 'ctl explain b | grep -q "merge = off"'
status_is True
rounds=$(rounds_of)
wait_rounds 2 a b c
status_is True
[ "$(rounds_of)" = "$rounds" ] || die "a round was made though merging is off"

# -- all end: no frame is left
conf_with '[vm *]
domain = both'
ctl reload
wait_for 60 "a last round" eval 'status_is True && [ "$(rounds_of)" != "$rounds" ]'
wait_rounds 1 a b c
for g in a b c plain; do
	"$guest/stop-guest.sh" "$work/$g"
done
guests=()
wait_for 60 "the frames to be freed" status_is "j['frames_mib'] == 0"
grep -q 'freed=' "$work/daemon.log" || die "no frame was freed"
stop_daemon TERM || die "memvirtd did not end well"
[ ! -e "$work/agent" ] || die "the agents' socket is left behind"
echo "all good"
