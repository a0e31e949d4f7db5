#!/bin/bash
# The daemon is killed with SIGKILL at random moments, again and again, while it looks and merges; every new
# one carries on, guests never notice, and in the end the KSM settings are as they were. KILLS: how often.
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"
needs_root
needs_ksm
needs_qemu

kills=${KILLS:-25}
start_guest a --name a --mem 512 --seed 1 --workload python &
start_guest b --name b --mem 512 --seed 2 --workload files &
wait
guests=(a b)
wait_round a 1
wait_round b 1
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
engine = kernel
target = 5s
cpu_percent = 100%
min_gain = 1MiB
[vm *]
domain = both
END
RANDOM=1
for ((i = 0; i < kills; i++)); do
	"$build/memvirtd" --config "$conf" 9>&- 2>>"$work/daemon.log" &
	pid=$!
	sleep "0.$((RANDOM % 90 + 10))" # the moment is the test
	kill -KILL "$pid" 2>/dev/null || die "the daemon ended by itself"
	wait "$pid" 2>/dev/null || :
	[ "$(cat $ksm/run)" != 2 ] || die "run=2"
done
start_daemon
merged()
{
	ctl --json merge status >"$work/merge.json" && get "j['saved_mib'] > 8" <"$work/merge.json" | grep -q True
}
wait_for 120 "merging to go on" merged
stop_daemon TERM || die "memvirtd did not end well"
ksm_knobs | cmp - "$work/ksm-before" || die "the KSM settings are not as they were"
wait_round a 2
wait_round b 2
echo "all good after $kills kills"
