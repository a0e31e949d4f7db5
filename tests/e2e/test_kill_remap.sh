#!/bin/bash
# The daemon is killed with SIGKILL at random moments, again and again, while agents merge busy guests, and one guest is
# killed, too. Every new daemon goes on with the frames of the one before, the guests never notice, and in the end no frame
# is left. KILLS: how often.
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"
needs_root
needs_qemu
[ -e /dev/userfaultfd ] || skip "the kernel has no /dev/userfaultfd"

kills=${KILLS:-15}
export MEMVIRT_QEMU="$build/memvirtctl run --socket $work/agent -- qemu-system-x86_64"
start_guest a --name a --mem 384 --seed 1 --workload python --append "round_s=1" &
start_guest b --name b --mem 384 --seed 2 --workload files --append "round_s=1" &
start_guest c --name c --mem 384 --seed 3 --append "round_s=1" &
wait
guests=(a b c)
wait_rounds 1 a b c
write_conf <<END
[daemon]
tick = 100ms
[vmm]
discover = 100ms
[scan]
cpu_percent = 100%
interval = 1s
rest_permille = 1000
[merge]
engine = remap
cpu_percent = 100%
min_gain = 64KiB
[vm *]
domain = both
END
RANDOM=1
for ((i = 0; i < kills; i++)); do
	"$build/memvirtd" --config "$conf" 9>&- 2>>"$work/daemon.log" &
	pid=$!
	sleep "$((RANDOM % 3 + 1)).$((RANDOM % 90 + 10))" # the moment is the test
	kill -KILL "$pid" 2>/dev/null || die "the daemon ended by itself"
	wait "$pid" 2>/dev/null || :
	if [ "$i" = $((kills / 2)) ]; then
		kill -KILL "$(cat "$work/c/qemu.pid")" # its frames are the others', too
		guests=(a b)
	fi
done
wait_rounds 1 a b
rounds=$(grep -c ' remap domain=both merged' "$work/daemon.log" || :)
adopted=$(grep -c 'goes on with the frames' "$work/daemon.log" || :)
[ "$rounds" -gt 0 ] || die "nothing was merged between kills"
[ "$adopted" -gt 0 ] || die "no daemon went on with what was there"
start_daemon
merged()
{
	ctl --json merge status >"$work/merge.json" &&
		get "j['rounds'] > 1 and sum(v['mapped_mib'] for v in j['vms']) > 64" <"$work/merge.json" | grep -q True
}
wait_for 120 "merging to go on" merged
wait_rounds 2 a b
for g in a b; do
	"$guest/stop-guest.sh" "$work/$g"
done
guests=()
no_frames()
{
	ctl --json merge status >"$work/merge.json" && get "j['frames_mib'] == 0" <"$work/merge.json" | grep -q True
}
wait_for 60 "the frames to be freed" no_frames
stop_daemon TERM || die "memvirtd did not end well"
echo "all good after $kills kills, $rounds rounds of merging between them, $adopted stores taken over"
