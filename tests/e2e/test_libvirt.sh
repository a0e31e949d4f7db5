#!/bin/bash
# A domain of libvirt whose <emulator> is a script with "memvirtctl run": QEMU runs as libvirt's own user, which may not
# open a userfaultfd, so the daemon (a small one, played by a script) gives it. Skipped where libvirt is not installed.
. "$(dirname "$0")/lib.sh"

virsh=(virsh -q -c qemu:///system)
name=memvirt-test-$$
agents=$work/agents

libvirt_stop()
{
	local status=$?
	set +e
	"${virsh[@]}" destroy "$name" >/dev/null 2>&1
	rm -f "/var/log/libvirt/qemu/$name.log" # which its end was written to as well
	[ ! -s "$work/libvirtd.pid" ] || kill "$(cat "$work/libvirtd.pid")"
	[ ! -s "$work/virtlogd.pid" ] || kill "$(cat "$work/virtlogd.pid")"
	(exit "$status")
	clean_up
}

needs_root
needs_qemu
for program in libvirtd virtlogd virsh; do
	command -v "$program" >/dev/null || skip "$program is not installed (libvirt-daemon-system, libvirt-clients)"
done
trap libvirt_stop EXIT

if ! "${virsh[@]}" list >/dev/null 2>&1; then
	virtlogd -d --pid-file "$work/virtlogd.pid" 9>&-
	libvirtd -d --pid-file "$work/libvirtd.pid" 9>&-
	wait_for 30 libvirtd "${virsh[@]}" list >/dev/null 2>&1
fi

# Where libvirt's user can get at it; the library is found beside the program.
chmod 711 "$work"
install -d -m 755 "$work/bin"
install -m 755 "$build/memvirtctl" "$build/libmemvirt-agent.so" "$work/bin/"
cat >"$work/bin/emulator" <<END
#!/bin/sh
exec $work/bin/memvirtctl run --socket $agents -- $(command -v qemu-system-x86_64) "\$@"
END
chmod 755 "$work/bin/emulator"
cat >"$work/domain.xml" <<END
<domain type='qemu'>
  <name>$name</name>
  <memory unit='MiB'>128</memory>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <devices>
    <emulator>$work/bin/emulator</emulator>
    <memballoon model='virtio'/>
  </devices>
</domain>
END

python3 "$top/tests/preload/daemon.py" "$agents" 3 grant >"$work/agent.out" 2>&1 9>&- &
agent_pid=$!
wait_for 10 "the fake daemon" grep -q listening "$work/agent.out"
"${virsh[@]}" create "$work/domain.xml" >"$work/create.log" 2>&1 9>&- || { cat "$work/create.log" >&2; die "virsh create"; }
qemu=$(pgrep -f "guest=$name,")
[ "$(stat -c %u "/proc/$qemu")" != 0 ] || echo "libvirt runs QEMU as root here"
wait $agent_pid
cat "$work/agent.out"
grep -q '^hello remap$' "$work/agent.out" || die "no exchange"
grep -q '^slot 128 MiB remap$' "$work/agent.out" || die "no slot"
[ "$(stat -c %u "/proc/$qemu")" = 0 ] || grep -q '^asks$' "$work/agent.out" || die "did not ask"
[ "$("${virsh[@]}" domstate "$name")" = running ] || die "the domain does not run"
! grep memvirt "/var/log/libvirt/qemu/$name.log" | grep -v emulator | grep -q 'memvirt-agent:' || die "complaints"
echo "libvirt's QEMU has the agent"
