#!/bin/bash
# What can go wrong with balloons, on real guests: each time the rest goes on, the log or "balloon status" says what is
# wrong, and it ends well. The host's memory is a cgroup's.
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"

needs_root
needs_qemu
needs_memory_cgroup

# guest DIR WORDS: one that stays when it is reset
guest()
{
	MEMVIRT_ACCEL=tcg,thread=multi,tb-size=32 start_guest "$1" --name "$1" --mem 512 --append "$2" -- \
		-qmp "unix:$work/$1/qmp2.sock,server=on,wait=off" -action reboot=reset
}

# bare DIR NAME [QEMU-ARGUMENT...]: a VM in which no guest was ever started
bare()
{
	local dir=$1 name=$2
	shift 2
	mkdir -p "$work/$dir"
	guests+=("$dir")
	(
		echo "$BASHPID" >"$cgroup_dir/cgroup.procs"
		exec setsid qemu-system-x86_64 -name "guest=$name" -machine pc -accel tcg,tb-size=8 -m 64 -nodefaults \
			-display none -qmp "unix:$work/$dir/qmp.sock,server=on,wait=off" -pidfile "$work/$dir/qemu.pid" "$@" 9>&-
	) </dev/null >"$work/$dir/qemu.log" 2>&1 &
	wait_for 20 "$dir" test -s "$work/$dir/qemu.pid"
}

says()
{
	grep -q "$1" "$work/daemon.log"
}

# The line is new since the mark
mark()
{
	marked=$(wc -l <"$work/daemon.log")
}

says_now()
{
	tail -n "+$((marked + 1))" "$work/daemon.log" >"$work/new.log"
	grep -q "$1" "$work/new.log"
}

uuid_of()
{
	cat "$work/$1/uuid"
}

# conf [LINE...]: with these at the end
conf()
{
	{
		cat <<END
[host]
cgroup = $cgroup
min_free = 64MiB
[vmm]
discover = 1s
qmp_timeout = 2s
[balloon]
step = 20%
hold = 2s
[merge]
engine = off
END
		[ $# = 0 ] || printf '%s\n' "$@"
	} | write_conf
}

ticks()
{
	ctl --json status | get "j['ticks']"
}

is_taken()
{
	[ "$(actual_mib "$1")" -lt "${2:-460}" ]
}

is_given()
{
	[ "$(actual_mib "$1")" -ge 500 ]
}

all_is_given()
{
	limit_cgroup 20000
	wait_for 60 "memory to be given back" is_given one
}

why_has() # VM TEXT
{
	balloon_is "'$2' in vm['$1']['why']"
}

# -- VMs whose balloon nobody can move are named, with the reason; also two of one name
check_named()
{
	wait_for 20 "the VMs" balloon_is "set('one two nodriver anonymous nodevice twin'.split()) <= set(vm) and vm['one']['stats'] == 'good'"
	why_has nodevice "no balloon device" || die "$(ctl balloon status)"
	balloon_is "vm['nodriver']['stats'] == 'none' and 'no balloon driver' in vm['nodriver']['why']" || die "$(ctl balloon status)"
	balloon_is "vm['anonymous']['actual_mib'] == 64 and vm['anonymous']['stats'] == 'none'" || die "$(ctl balloon status)"
	balloon_is "len({v['uuid'] for v in j['vms'] if v['name'] == 'twin'}) == 2" || die "$(ctl balloon status)"
	[ "$(ctl balloon status | grep -c '^twin .*no balloon device')" = 2 ] || die "$(ctl balloon status)"
}

# -- one QEMU stands still for 60 s; see check_goes_on
begin_hang()
{
	hung=$(cat "$work/two/qemu.pid")
	hung_at=$SECONDS
	kill -STOP "$hung"
}

check_hang_named()
{
	wait_for 20 "the hang to be noticed" why_has two "no answer to"
	says "name=two .* state ready->hung" || die "no line"
	balloon_is "vm['two']['driver'] == '' and vm['one']['driver'] == 'qmp'" || die "$(ctl balloon status)"
}

# -- a host that is short, with a VM that hangs: memory is taken from the other
check_short()
{
	local before
	before=$(ticks)
	room 50
	wait_for 60 "memory to be taken" is_taken one
	[ "$(ticks)" -gt "$before" ] || die "the daemon stands still"
	mark
	sleep 3
	! says_now "balloon vm=$(uuid_of two)" || die "a VM that hangs was asked for memory"
}

# -- a policy that is broken
check_policy()
{
	local said
	mark
	conf "[balloon]" "keep = many"
	said=$(ctl reload 2>&1) && die "a broken policy was taken"
	[[ $said = *nothing\ was\ changed*memvirt.conf:*keep* ]] || die "reload: $said"
	says_now "error: reload: nothing was changed: .*keep" || die "reload is not in the log"
	mark
	kill -HUP "$daemon_pid"
	wait_for 10 "SIGHUP" says_now "nothing was changed: .*keep"
	balloon_is "vm['one']['stats'] == 'good' and vm['one']['stats_age_seconds'] < 20" || die "$(ctl balloon status)"
	"$build/memvirtd" --config "$conf" --check >"$work/check" 2>&1 && die "--check is content"
	said=$("$build/memvirtd" --config "$conf" 2>&1) && die "it started"
	[[ $said = *memvirt.conf:*keep* ]] || die "at start: $said"
	all_is_given # control goes on, by what was read before
	conf
	said=$(ctl reload) || die "reload: $said"
}

# -- killed with balloons inflated; the next one goes on from there
check_killed()
{
	local before after
	room 50
	wait_for 60 "memory to be taken" is_taken one
	before=$(actual_mib one)
	kill -KILL "$daemon_pid"
	wait "$daemon_pid" 2>/dev/null || :
	daemon_pid=
	[ "$(actual_mib one)" -le $((before + 1)) ] || die "the balloon went with the daemon"
	start_daemon
	wait_for 20 "statistics" balloon_is "vm['one']['stats'] == 'good'"
	sleep 3
	after=$(actual_mib one)
	[ "$after" -lt 480 ] || die "taken up at $after instead of $before MiB"
	limit_cgroup 20000
	wait_for 60 "memory to be given back" is_given one
}

# -- ended as it should be: balloons stay, for what comes next to take them up
check_ended()
{
	local before
	room 50
	wait_for 60 "memory to be taken" is_taken one
	stop_daemon TERM || die "memvirtd did not end well"
	before=$(actual_mib one)
	sleep 2
	[ "$(actual_mib one)" -le $((before + 1)) ] && [ "$before" -lt 500 ] || die "the balloon went with the daemon"
	start_daemon
	wait_for 20 "statistics" balloon_is "vm['one']['stats'] == 'good'"
}

# -- paused, and migrating: left alone, and named
check_paused()
{
	all_is_given
	ask_qmp one stop >/dev/null
	wait_for 10 "the pause" why_has one paused
	room 50
	mark
	sleep 4
	! says_now "balloon vm=$(uuid_of one)" || die "a VM that is paused was asked for memory"
	ask_qmp one cont >/dev/null
	wait_for 60 "memory to be taken" is_taken one
}

check_migrating()
{
	all_is_given
	ask_qmp one migrate-set-parameters '{"max-bandwidth":1048576}' >/dev/null
	ask_qmp one migrate '{"uri":"exec:cat >/dev/null"}' >/dev/null
	wait_for 10 "the migration" why_has one migrating
	mark
	room 50
	sleep 4
	! says_now "balloon vm=$(uuid_of one)" || die "a VM that migrates was asked for memory"
	ask_qmp one migrate_cancel >/dev/null
	wait_for 60 "memory to be taken" is_taken one
}

has_booted() # GUEST TIMES
{
	[ "$(grep -c '^guest ready' "$work/$1/serial.log")" -ge "$2" ]
}

# -- reset while its balloon is large: it boots with all of its memory
check_reset()
{
	wait_for 60 "memory to be taken" is_taken one
	limit_cgroup 20000 # else it is taken from what boots
	mark
	ask_qmp one system_reset >/dev/null
	wait_for 10 "the reset" says_now "balloon vm=$(uuid_of one) .*->512 MiB why=\"guest was reset\""
	wait_for 90 "the guest to boot" has_booted one 2
	is_given one || die "booted with $(actual_mib one) MiB"
	wait_for 30 "statistics" balloon_is "vm['one']['stats'] == 'good' and vm['one']['demand_mib'] > 50"
	! says_now "does not move" || die "$(cat "$work/new.log")"
}

# -- after 60 s the one that hung goes on
check_hang_ends()
{
	local left=$((60 - (SECONDS - hung_at)))
	[ "$left" -le 0 ] || sleep "$left"
	kill -CONT "$hung"
	hung=
	wait_for 90 "the VM that hung" balloon_is "vm['two']['driver'] == 'qmp' and vm['two']['stats'] == 'good'"
	room 50
	wait_for 60 "memory to be taken from it" is_taken two
	"$guest/wait-round.sh" "$work/two" 1 120 >/dev/null
	limit_cgroup 20000
	wait_for 60 "memory to be given back" is_given two
}

mkdir -p "$work"/one "$work"/two
guest one "round_s=5" &
guest two "round_s=5 seed=2" &
wait
guests=(one two)
bare nodriver nodriver -device virtio-balloon-pci,id=balloon0
bare anonymous anonymous -device virtio-balloon-pci
bare twin1 twin
bare twin2 twin
bare nodevice nodevice
wait_rounds 0 one two >/dev/null
conf
start_daemon
run()
{
	local started=$SECONDS
	"check_$1"
	echo "ok $1 ($((SECONDS - started)) s)"
}
run named
begin_hang
for c in hang_named short policy killed ended paused migrating reset hang_ends; do
	run $c
done
stop_daemon TERM || die "memvirtd did not end well"
echo "all good"
