#!/bin/bash
# "memvirtctl run": the agent inside a QEMU that knows nothing of it. No daemon, a daemon, -daemonize, a real guest with a
# balloon whose memory is merged all the while, and (where it is installed) libvirt.
. "$(dirname "$0")/lib.sh"

run=("$build/memvirtctl" run)
agents=$work/agents
said="memvirt-agent: memory is not merged by remap: the daemon cannot be reached"
small=(qemu-system-x86_64 -machine q35 -m 64 -accel tcg -nodefaults -display none -S)

# fake_daemon NAME SECONDS [grant]: $work/NAME.out is what the agent told it
fake_daemon()
{
	rm -f "$agents"
	python3 "$top/tests/preload/daemon.py" "$agents" "$2" ${3:+"$3"} >"$work/$1.out" 2>&1 9>&- &
	fake_pid=$!
	wait_for 10 "the fake daemon" grep -q listening "$work/$1.out"
}

end_qemu()
{
	local pid
	pid=$(cat "$1")
	kill "$pid"
	wait_for 10 "the end of QEMU" test ! -e "/proc/$pid/stat" -o -n "$(sed -n '/) Z /p' "/proc/$pid/stat" 2>/dev/null)"
}

check_commands()
{
	local out
	out=$("${run[@]}" -- true 2>&1) && [ -z "$out" ] || die "run -- true: $out"
	out=$("${run[@]}" sh -c 'echo "$LD_PRELOAD $MEMVIRT_AGENT_SOCKET"; exit 3' 2>&1) && die "exit status"
	[ "$out" = "$(realpath "$build/libmemvirt-agent.so") " ] || die "environment: $out"
	out=$(LD_PRELOAD=/nowhere/a.so "${run[@]}" --socket /s -- sh -c 'echo "$LD_PRELOAD $MEMVIRT_AGENT_SOCKET"' 2>/dev/null)
	[ "$out" = "$(realpath "$build/libmemvirt-agent.so"):/nowhere/a.so /s" ] || die "environment: $out"
	out=$("${run[@]}" --agent-library /nowhere -- echo there 2>&1)
	[ "$out" = "memvirtctl: no agent in echo: /nowhere: No such file or directory
there" ] || die "without the library: $out"
	out=$("${run[@]}" -- python3 -c 'import mmap
m = mmap.mmap(-1, 1 << 23); m.madvise(mmap.MADV_HUGEPAGE); print(len(m))' 2>&1)
	[ "$out" = $((1 << 23)) ] || die "a program that is no VMM: $out"
}

check_no_daemon()
{
	"${run[@]}" --socket "$work/nobody" -- "${small[@]}" -pidfile "$work/q0.pid" 2>"$work/q0.err" 9>&- &
	wait_for 10 "the line" grep -q . "$work/q0.err"
	sleep 4 # two more tries
	[ "$(cat "$work/q0.err")" = "$said" ] || die "standard error: $(cat "$work/q0.err")"
	end_qemu "$work/q0.pid"
	wait $! 2>/dev/null || true
}

# As another user: the daemon has to give the userfaultfd. Slots are QEMU's RAM blocks, no more.
check_daemonize_as_nobody()
{
	local as=(setpriv --reuid=65534 --regid=65534 --clear-groups)
	chmod 711 "$work"
	install -d -m 777 "$work/nobody.d"
	fake_daemon daemonize 2 grant
	(cd / && "${as[@]}" "${run[@]}" --socket "$agents" -- "${small[@]}" -vga std -daemonize \
		-pidfile "$work/nobody.d/pid") 2>"$work/q1.err" 9>&-
	wait $fake_pid
	end_qemu "$work/nobody.d/pid"
	[ ! -s "$work/q1.err" ] || die "standard error: $(cat "$work/q1.err")"
	[ "$(grep -c '^asks' "$work/daemonize.out")" = 1 ] || die "$(cat "$work/daemonize.out")"
	[ "$(grep '^slot' "$work/daemonize.out" | sort)" = "slot 16 MiB remap
slot 2 MiB remap
slot 64 MiB remap" ] || die "slots: $(cat "$work/daemonize.out")"
}

qmp()
{
	printf '%s\n' '{"execute":"qmp_capabilities"}' "$1" | socat -t 2 - "UNIX-CONNECT:$work/$2/qmp.sock" >/dev/null
}

# Merged all the while, with a balloon that goes up and down, and a guest that knows what its memory must be.
check_guest()
{
	local merged
	fake_daemon guest 25
	MEMVIRT_QEMU="${run[*]} --socket $agents -- qemu-system-x86_64" start_guest one --mem 512 --workload python
	wait_round one 2
	qmp '{"execute":"balloon","arguments":{"value":268435456}}' one
	wait_round one 4
	qmp '{"execute":"balloon","arguments":{"value":536870912}}' one
	wait $fake_pid
	wait_round one "$(($(grep -c '^round' "$work/one/serial.log") + 2))"
	! grep -q BAD "$work/one/serial.log" || die "$(grep BAD "$work/one/serial.log")"
	tail -n 1 "$work/guest.out"
	merged=$(sed -n 's/^end .*merged=\([0-9]*\).*/\1/p' "$work/guest.out")
	[ "${merged:-0}" -gt 10000 ] || die "merged: $(cat "$work/guest.out")"
	! grep -q memvirt-agent "$work/one/qemu.log" || die "$(cat "$work/one/qemu.log")"
}

check_commands
needs_root
needs_qemu
check_no_daemon
check_daemonize_as_nobody
check_guest
echo "the agent lives in QEMU"
