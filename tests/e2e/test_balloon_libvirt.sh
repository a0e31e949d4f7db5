#!/bin/bash
# The libvirt driver with a real libvirtd and two real guests: found by list and by event, figures, a balloon that moves;
# then libvirtd is killed and restarted, a VMM is stopped, libvirtd is stopped. A QEMU with a domain's name and uuid stands
# beside it and must get none of its figures.
#
# All of it in a mount namespace, where what libvirt writes is gone at the end: a libvirtd that the host has is not touched.
if [ "$(id -u)" = 0 ] && [ -z "${MEMVIRT_OWN_LIBVIRT:-}" ]; then
	export MEMVIRT_OWN_LIBVIRT=1
	exec unshare --mount --propagation private "$0" "$@"
fi
. "$(dirname "$0")/lib.sh"

virsh=(virsh -q -c qemu:///system)
a=memvirt-a-$$ b=memvirt-b-$$
uuid_a=$(cat /proc/sys/kernel/random/uuid) uuid_b=$(cat /proc/sys/kernel/random/uuid)
told=$work/told log=$work/probe.log
probe_pid='' double_pid=''

libvirt_stop()
{
	local status=$? pid
	set +e
	for pid in $probe_pid $double_pid; do
		kill "$pid" && wait "$pid"
	done
	for pid in $(domain_pids); do kill -CONT "$pid"; done
	[ ! -s "$work/libvirtd.pid" ] || kill -CONT "$(cat "$work/libvirtd.pid")" 2>/dev/null
	for pid in "$a" "$b"; do
		timeout 60 "${virsh[@]}" destroy "$pid" >/dev/null 2>&1
	done
	# Whatever libvirt could not end any more.
	for pid in $(domain_pids); do kill -KILL "$pid"; done
	[ ! -s "$work/libvirtd.pid" ] || kill "$(cat "$work/libvirtd.pid")"
	[ ! -s "$work/virtlogd.pid" ] || kill "$(cat "$work/virtlogd.pid")"
	[ "$status" = 0 ] || cat "$told" "$log" >&2
	(exit "$status")
	clean_up
}

domain_pids()
{
	local name
	for name in "$a" "$b"; do
		pgrep -f "^[^ ]*qemu-system-x86_64 .*guest=$name,debug-threads" || :
	done
}

# Folders of libvirt's that only this script and what it starts see. No networks: they would be the host's.
libvirt_own()
{
	local dir
	cp -a /etc/libvirt "$work/etc"
	rm -rf "$work/etc/qemu/networks" "$work/etc/qemu/autostart"
	mount --bind "$work/etc" /etc/libvirt
	for dir in /run/libvirt /var/lib/libvirt /var/cache/libvirt /var/log/libvirt; do
		mkdir -p "$dir"
		mount -t tmpfs -o mode=755 libvirt-test "$dir"
	done
}

libvirtd_start()
{
	libvirtd -d --pid-file "$work/libvirtd.pid" 9>&-
	wait_for 60 libvirtd "${virsh[@]}" list >/dev/null 2>&1
}

# domain NAME UUID MEMBALLOON-ATTRIBUTES MEMBALLOON-CHILDREN
domain()
{
	cat >"$work/$1.xml" <<END
<domain type='qemu'>
  <name>$1</name>
  <uuid>$2</uuid>
  <description>&lt;devices&gt;&lt;memballoon model='none'/&gt;&lt;/devices&gt;</description>
  <memory unit='MiB'>320</memory>
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>
    <kernel>$work/image/vmlinuz</kernel>
    <initrd>$work/image/initrd</initrd>
    <cmdline>console=ttyS0 quiet panic=-1 workload=idle seed=1 round_s=5</cmdline>
  </os>
  <features><acpi/></features>
  <devices>
    <emulator>$(command -v qemu-system-x86_64)</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw'/>
      <source file='$work/image/root.ext4'/>
      <target dev='vda' bus='virtio'/>
      <readonly/>
      <shareable/>
    </disk>
    <serial type='file'><source path='$work/$1.serial'/></serial>
    <memballoon model='virtio' $3>$4</memballoon>
  </devices>
</domain>
END
	"${virsh[@]}" create "$work/$1.xml" >"$work/create.log" 2>&1 9>&- || { cat "$work/create.log" >&2; die "virsh create $1"; }
}

# line UUID PID; value UUID PID FIELD
line()
{
	grep "^$1 $2 " "$told"
}

value()
{
	line "$1" "$2" | sed -n "s/.* $3=\([-0-9]*\).*/\1/p"
}

# says UUID PID PATTERN
says()
{
	line "$1" "$2" 2>/dev/null | grep -E -- "$3" >/dev/null
}

updated_after()
{
	[ "$(value "$1" "$2" updated)" -gt "$3" ] && says "$1" "$2" 'known=1.* why=\.$'
}

grows()
{
	wait_for 90 "$3" updated_after "$1" "$2" "$(($(value "$1" "$2" updated) + 2))"
}

tell()
{
	echo "$*" >&"$probe_in"
}

logged()
{
	grep -E -- "$1" "$log" >/dev/null
}

needs_root
for program in libvirtd virtlogd virsh; do
	command -v "$program" >/dev/null || skip "$program is not installed (libvirt-daemon-system, libvirt-clients)"
done
[ -x "$build/tests/libvirt-probe" ] || skip "built without libvirt"
needs_qemu
trap libvirt_stop EXIT
libvirt_own

# Where libvirt's user can get at it.
chmod 711 "$work"
install -d -m 755 "$work/image"
cp --reflink=auto "$build/guest/vmlinuz" "$build/guest/initrd" "$build/guest/root.ext4" "$work/image/"
virtlogd -d --pid-file "$work/virtlogd.pid" 9>&-
libvirtd_start
domain "$a" "$uuid_a" "autodeflate='on' freePageReporting='on'" ""

mkfifo "$work/in"
exec {probe_in}<>"$work/in"
"$build/tests/libvirt-probe" qemu:///system "$told" <"$work/in" >"$work/probe.out" 2>"$log" 9>&- &
probe_pid=$!
wait_for 60 "the domain that was there" logged "domain=$a uuid=$uuid_a .*found by=list balloon=virtio reporting=on autodeflate=on period=0s"
domain "$b" "$uuid_b" "" "<stats period='2'/>"
wait_for 60 "the domain that came" logged "domain=$b uuid=$uuid_b .*found by=event balloon=virtio reporting=off autodeflate=off period=2s"
pid_a=$(cat "/run/libvirt/qemu/$a.pid") pid_b=$(cat "/run/libvirt/qemu/$b.pid")
tell watch "$uuid_a" "$pid_a"
tell watch "$uuid_b" "$pid_b"
echo "found by list and by event"

# A driver is there when its guest answers.
wait_for 180 "figures of a" says "$uuid_a" "$pid_a" 'known=1 .*period=1 max_mib=320 actual_mib=320 .*total_mib=[1-9]'
wait_for 180 "figures of b" says "$uuid_b" "$pid_b" 'known=1 .*period=2 max_mib=320 actual_mib=320 .*total_mib=[1-9]'
"${virsh[@]}" dumpxml "$a" | grep "<stats period='1'/>" >/dev/null || die "no period was set"
grows "$uuid_a" "$pid_a" "a's figures"
grows "$uuid_b" "$pid_b" "b's figures"
echo "figures come"

qemu-system-x86_64 -S -nodefaults -no-user-config -display none -machine pc -accel tcg -m 32 \
	-name "guest=$a,debug-threads=on" -uuid "$uuid_a" >"$work/double.log" 2>&1 9>&- &
double_pid=$!
tell watch "$uuid_a" "$double_pid"
wait_for 30 "the double" says "$uuid_a" "$double_pid" "known=0 .*actual_mib=0 .*why=libvirt's domain of this uuid is another process"
says "$uuid_a" "$pid_a" known=1 || die "the double is in the domain's way"
tell set "$uuid_a" "$double_pid" 128
wait_for 30 "an answer" grep "^set $uuid_a 128: ENOENT$" "$work/probe.out" >/dev/null
kill "$double_pid"
wait "$double_pid" || :
double_pid=
echo "no mix-up"

# b's guest tells less memory when it gives some away; with autodeflate, as a has it, it tells the same and less free.
total=$(value "$uuid_b" "$pid_b" total_mib)
balloon_arrived()
{
	says "$uuid_b" "$pid_b" 'actual_mib=240 ' && [ "$(value "$uuid_b" "$pid_b" total_mib)" -le $((total - 70)) ]
}
tell set "$uuid_b" "$pid_b" 240
wait_for 90 "the balloon" balloon_arrived
[ "$("${virsh[@]}" dommemstat "$b" | sed -n 's/^actual //p')" = $((240 * 1024)) ] || die "libvirt says otherwise"
says "$uuid_a" "$pid_a" 'actual_mib=320 ' || die "a's balloon moved"
tell set "$uuid_b" "$pid_b" 320
wait_for 90 "the empty balloon" says "$uuid_b" "$pid_b" "actual_mib=320 .*total_mib=$total "
echo "the balloon moves both ways"

# daemon_says PID EXPRESSION: of "v", what memvirtd tells of the VM
daemon_says()
{
	[ "$(ctl balloon status --json | get "[$2 for v in j['vms'] if v['pid'] == $1]")" = "[True]" ]
}
write_conf <<END
[merge]
engine = off
[balloon]
control = off
END
start_daemon
good="v['driver'] == 'libvirt' and v['stats'] == 'good' and v['max_mib'] == 320"
wait_for 90 "memvirtd's figures of a" daemon_says "$pid_a" "$good"
wait_for 90 "memvirtd's figures of b" daemon_says "$pid_b" "$good"
echo "memvirtd has the figures"

kill -KILL "$(cat "$work/libvirtd.pid")"
wait_for 60 "libvirtd's end to show" says "$uuid_a" "$pid_a" 'known=0 .*why=no connection to libvirt'
kill -0 "$pid_a" "$pid_b" || die "QEMU ended with libvirtd"
libvirtd_start
wait_for 90 "the figures to be back" says "$uuid_a" "$pid_a" 'known=1 .*period=1 .*why=\.$'
grows "$uuid_a" "$pid_a" "a's figures after a restart"
grows "$uuid_b" "$pid_b" "b's figures after a restart"
wait_for 90 "memvirtd's figures" daemon_says "$pid_a" "$good"
echo "libvirtd killed and back"

kill -STOP "$pid_a"
wait_for 90 "the hung VMM to be set aside" says "$uuid_a" "$pid_a" 'known=1 .*why=libvirt gets no answer from its VMM'
grows "$uuid_b" "$pid_b" "b's figures beside a hung VMM"
grows "$uuid_b" "$pid_b" "b's figures, still"
tell set "$uuid_a" "$pid_a" 250
wait_for 30 "an answer" grep "^set $uuid_a 250: EBUSY$" "$work/probe.out" >/dev/null
wait_for 90 "memvirtd to know" daemon_says "$pid_a" "v['driver'] == 'libvirt' and v['stats'] == 'stale'"
daemon_says "$pid_b" "$good" || die "memvirtd lost b"
tell set "$uuid_b" "$pid_b" 300
wait_for 60 "b's balloon" says "$uuid_b" "$pid_b" 'actual_mib=300 '
kill -CONT "$pid_a"
wait_for 90 "the VMM to be back" says "$uuid_a" "$pid_a" 'why=\.$'
grows "$uuid_a" "$pid_a" "a's figures after a hang"
logged 'no answer in 1[0-9] s while asking for figures, going on with another connection' || die "nothing was given up"
echo "a VMM hangs, the other goes on"

kill -STOP "$(cat "$work/libvirtd.pid")"
wait_for 90 "libvirtd's silence to show" says "$uuid_b" "$pid_b" 'known=0 .*why=no connection to libvirt'
logged 'no connection, next try in .*: libvirtd does not answer' || die "not noticed by keepalive"
kill -CONT "$(cat "$work/libvirtd.pid")"
wait_for 90 "libvirtd's answer" says "$uuid_b" "$pid_b" 'known=1 .*why=\.$'
grows "$uuid_b" "$pid_b" "b's figures after the silence"
echo "libvirtd hangs and is back"

wait_for 90 "memvirtd's figures" daemon_says "$pid_b" "$good"
stop_daemon TERM || die "memvirtd ended badly"
"${virsh[@]}" destroy "$b" >/dev/null
wait_for 30 "b to go" says "$uuid_b" "$pid_b" 'known=0 .*why=libvirt knows no such domain'
tell quit
wait "$probe_pid" || die "the driver ended with status $?"
probe_pid=
! "${virsh[@]}" dumpxml "$a" | grep '<stats period' >/dev/null || die "the period was not put back"
kill -0 "$pid_a" || die "the VMM ended"
echo "domains left as they were"
