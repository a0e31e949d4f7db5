#!/bin/bash
# What works on a host without KSM and without guests; and that the guests' own check can fail at all.
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"
needs_root

# -- no KSM: an empty file system over its folder, in a mount namespace of our own
write_conf </dev/null
if [ -d $ksm ] && unshare -m true 2>/dev/null; then
	# shellcheck disable=SC2016 # expanded inside
	unshare -m bash -c 'mount -t tmpfs none "$1" && exec "$2" --config "$3"' - $ksm "$build/memvirtd" "$conf" \
		2>"$work/daemon.log" &
	daemon_pid=$!
	wait_for 10 "the daemon" ctl status
	ctl --json merge status | get "j['ksm_present']" | grep -q False || die "KSM was found where there is none"
	ctl --json estimate >/dev/null || die "no estimate without KSM"
	grep -q 'this kernel has no KSM' "$work/daemon.log" || die "the missing KSM was not named"
	stop_daemon TERM || die "memvirtd did not end well"
else
	echo "no mount namespaces: the case without KSM was left out"
fi

# -- a second daemon on the same socket is refused, and does no harm
start_daemon
"$build/memvirtd" --config "$conf" 2>"$work/second.log" && die "a second daemon started"
grep -q 'another memvirtd is running' "$work/second.log" || die "second daemon: $(cat "$work/second.log")"
ctl status >/dev/null || die "the first daemon is not reachable any more"

# -- hostile requests: an error or a closed connection, never the end of the daemon
for request in 'garbage' '{}' '[]' '{"command":1}' '{"command":"vms","arguments":[]}' '{"command":"no such"}' \
	'{"command":"explain"}' '{"command":"explain","arguments":{"vm":5}}' '{"command":"\u0000"}'; do
	printf '%s\n' "$request" | timeout 5 socat -t 2 - "UNIX-CONNECT:$sock" >"$work/answer" || :
	grep -q '"error"' "$work/answer" || die "$request was answered with: $(cat "$work/answer")"
done
head -c 10000000 /dev/zero | tr '\0' x | timeout 10 socat -t 2 -u - "UNIX-CONNECT:$sock" 2>/dev/null || :
head -c 100000 /dev/urandom | timeout 10 socat -t 2 -u - "UNIX-CONNECT:$sock" 2>/dev/null || :
ctl status >/dev/null || die "the daemon did not survive hostile requests"
stop_daemon TERM || die "memvirtd did not end well"

# -- a guest whose memory goes wrong is seen
needs_qemu
start_guest bad --name bad --mem 256 --seed 9 --append "round_s=1 corrupt_round=2"
if wait_round bad 3 2>"$work/err"; then
	die "a flipped byte was not seen"
fi
grep -q 'wrong memory' "$work/err" || die "the guest failed otherwise: $(cat "$work/err")"
echo "all good"
