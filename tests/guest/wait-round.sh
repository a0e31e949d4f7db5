#!/bin/sh
# wait-round.sh RUNDIR N [TIMEOUT] - wait until the guest has done N more rounds; with N=0, until it is ready.
# Fails when any round so far was BAD, when the guest complains or is gone, or after TIMEOUT seconds (default 120).
# Prints the last round.
set -eu

[ $# -ge 2 ] || { echo "usage: wait-round.sh RUNDIR N [TIMEOUT]" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
dir=$1
log=$dir/serial.log

die()
{
	echo "wait-round: $dir: $*" >&2
	tail -n 5 "$log" >&2 || :
	exit 1
}

# Only whole lines count, and a line of a round is whole when it has its sum.
rounds()
{
	grep -c '^round .* sum=[0-9a-f]\{16\}' "$log" || :
}

[ -r "$log" ] || die "no serial.log"
goal=$(($(rounds) + $2))
deadline=$(($(date +%s) + ${3:-120}))
while :; do
	# Asked before the log is read: what a guest wrote last must be seen even if it ended since.
	alive=yes
	"$here/stop-guest.sh" --running "$dir" || alive=no
	! grep -q '=BAD' "$log" || die "wrong memory: $(grep -m 1 '=BAD' "$log")"
	! grep -qE 'guest failed|Kernel panic|BUG:|Oops:|Out of memory|rcu: INFO' "$log" || die "the guest complains"
	grep -q '^guest ready' "$log" && [ "$(rounds)" -ge "$goal" ] && break
	[ "$alive" = yes ] || die "the guest is gone"
	[ "$(date +%s)" -lt "$deadline" ] || die "no round in time: $(rounds) of $goal"
	sleep 0.1
done
grep '^round ' "$log" | tail -n 1
