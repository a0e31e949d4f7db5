#!/bin/sh
# stop-guest.sh RUNDIR - end the guest of run-guest.sh and wait until it is gone.
# stop-guest.sh --running RUNDIR - only tell, by the exit status, whether it runs.
# A guest that is gone already is no error. MEMVIRT_GRACE: seconds before it is killed (default 5).
set -eu

query=no
if [ "${1:-}" = --running ]; then
	query=yes
	shift
fi
[ $# -eq 1 ] || { echo "usage: stop-guest.sh [--running] RUNDIR" >&2; exit 2; }

# A number in a file may long mean another process: ours has the run directory on its command line. A
# zombie has no command line, so one that nobody reaps counts as gone.
is_running()
{
	[ -n "$pid" ] && tr '\0' '\n' 2>/dev/null <"/proc/$pid/cmdline" | grep -qxF -- "$dir/qemu.pid"
}

# Its memory is free only when its last thread is gone, later than its command line and its first thread.
is_gone()
{
	set -- /proc/"$pid"/task/*
	[ $# -le 1 ] && ! grep -q '^State:[[:space:]]*[^ZX]' "/proc/$pid/status" 2>/dev/null
}

wait_gone()
{
	tries=$1
	until is_gone; do
		[ "$tries" -gt 0 ] || return 1
		tries=$((tries - 1))
		sleep 0.1
	done
}

pid=''
dir=$(cd "$1" 2>/dev/null && pwd) || dir=''
[ -z "$dir" ] || pid=$(cat "$dir/qemu.pid" 2>/dev/null) || pid=''
if [ "$query" = yes ]; then
	is_running
	exit
fi
is_running || exit 0
kill "$pid" 2>/dev/null || :
if ! wait_gone $((${MEMVIRT_GRACE:-5} * 10)); then
	kill -KILL "$pid" 2>/dev/null || :
	wait_gone 100 || { echo "stop-guest: process $pid does not die" >&2; exit 1; }
fi
rm -f "$dir/qemu.pid" "$dir/qmp.sock"
