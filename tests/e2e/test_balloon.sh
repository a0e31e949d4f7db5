#!/bin/bash
# Balloons of real guests. The host's memory is a cgroup's, whose limit this sets: a host with room is left alone; one that
# is short takes what is idle, and its memory comes back; a guest that grows is given memory; room is made for a VM
# that is to start. Guests check what they hold all the while.
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"

needs_root
needs_qemu
needs_memory_cgroup
command -v mkswap >/dev/null || skip "mkswap is not installed"

# guest DIR MIB WORKLOAD WORDS [QEMU-ARGUMENT...]. Without huge pages: of one that a balloon takes a part of, the kernel frees
# nothing before it is short of memory itself, and no figure of the host says so.
guest()
{
	local dir=$1 mem=$2 workload=$3 words=$4
	shift 4
	MEMVIRT_ACCEL=tcg,thread=multi,tb-size=32 start_guest "$dir" --name "$dir" --mem "$mem" --workload "$workload" \
		--thp off --append "$words" -- -qmp "unix:$work/$dir/qmp2.sock,server=on,wait=off" "$@"
}

# One whose need for memory grows when it is told to, and not before.
grower()
{
	"$build/guest/guest-shift" disk "$work/data" 16
	head -c 128M /dev/zero >"$work/swap"
	chmod 600 "$work/swap"
	mkswap "$work/swap" >/dev/null
	guest grow 512 shift "hot_mib=200 cool_mib=24 stream_mib_s=1 run_s=120 phase_s=120" \
		-drive "if=none,id=data,format=raw,readonly=on,file=$work/data" -device virtio-blk-pci,drive=data \
		-drive "if=none,id=swap,format=raw,file=$work/swap" -device virtio-blk-pci,drive=swap \
		-device virtio-serial-pci -chardev "socket,id=go,path=$work/grow/go.sock,server=on,wait=off" \
		-device virtserialport,chardev=go,name=go
}

says()
{
	grep -q "$1" "$work/daemon.log"
}

# The configuration; further lines from standard input
balloon_conf()
{
	write_conf <<END
[vmm]
discover = 1s
[host]
cgroup = $cgroup
min_free = 64MiB
[balloon]
step = 20%
hold = 5s
admit_timeout = 12s
[merge]
engine = off
END
}

# -- a dry run of a host that is short says what it would do, and does nothing
check_dry_run()
{
	room 50
	start_daemon --dry-run
	wait_for 30 "the plan" says 'balloon vm=.* 512->[0-9]* MiB why="'
	says "host state high->" || die "no state"
	sleep 2
	[ "$(actual_mib one) $(actual_mib two)" = "512 512" ] || die "a dry run moved a balloon"
	[ "$(ask_qmp one qom-get "$polling")" = 2 ] || die "a dry run set how often a guest is asked"
	balloon_is "vm['one']['actual_mib'] == 512 and host['taken_mib'] == 0" || die "$(ctl balloon status)"
	stop_daemon TERM || die "the dry run did not end well"
	mv "$work/daemon.log" "$work/dry.log"
	limit_cgroup 20000
}

# -- a host with room
check_high()
{
	start_daemon
	wait_for 20 "statistics" balloon_is "all(vm[v]['stats'] == 'good' for v in vm) and len(vm) == 3"
	balloon_is "host['state'] == 'high' and host['total_mib'] == 20000" || die "$(ctl balloon status)"
	balloon_is "all(v['stats_age_seconds'] < 13 and v['driver'] == 'qmp' for v in j['vms'])" || die "$(ctl balloon status)"
	sleep 3
	! says "balloon vm=" || die "balloons were moved on a host with room"
	[ "$(actual_mib one) $(actual_mib two)" = "512 512" ] || die "balloons were moved on a host with room"
	[ "$(ask_qmp one qom-get "$polling")" = 10 ] || die "on a host with room guests are asked too often"
}

has_less_than()
{
	[ "$(cgroup_usage)" -lt "$1" ]
}

# -- a host that is short
check_short()
{
	local before
	before=$(cgroup_usage)
	room 52
	wait_for 10 "the host's state" says "host state high->soft"
	wait_for 30 "balloons to be moved" balloon_is "all(vm[v]['actual_mib'] < 450 for v in ('one', 'two'))"
	says 'balloon vm=.* why="idle memory"' || die "no reason"
	wait_for 60 "memory to come back to the host ($before MiB before)" has_less_than $((before - 35))
	wait_for 30 "the host's state" says "host state .*->clear"
	echo "short: $before MiB before, $(cgroup_usage) MiB after; $(balloon_get "{n: round(v['actual_mib']) for n, v in vm.items()}")"
	balloon_is "host['taken_mib'] > 100" || die "$(ctl balloon status)"
	# None has less than it uses and a margin.
	wait_for 20 "guests to be well" balloon_is "all(v['available_mib'] > 32 and v['actual_mib'] > v['demand_mib'] for v in j['vms'])"
}

# -- memory for a VM that is to start
admit()
{
	local status=0
	ctl "$@" >"$work/answer" 2>&1 || status=$?
	echo "$status $(cat "$work/answer")"
}

admits()
{
	ctl admit "$1" >"$work/answer" 2>&1
}

check_admit()
{
	local said
	said=$(admit admit 12x)
	[[ $said = "2 "*12x* ]] || die "a size that is none: $said"
	said=$(admit admit 1MiB --node 4000)
	[[ $said = "2 "* ]] || die "a node that is none: $said"
	said=$(sock=$work/nobody admit admit 1MiB)
	[[ $said = "2 "* ]] || die "without a daemon: $said"
	said=$(admit admit 100GiB)
	[[ $said = "1 no: "*idle* ]] || die "too much: $said"
	said=$(admit --json admit 100GiB)
	[ "${said%% *} $(get "j['granted'], j['later'], j['short_mib'] > 70000" <<<"${said#* }")" = "1 (False, False, True)" ] ||
		die "too much: $said"

	# Yes, for a while
	room 300
	wait_for 20 "the host's room" balloon_is "host['free_mib'] > 200"
	said=$(admit admit 100MiB)
	[[ $said = "0 yes: "* ]] || die "room: $said"
	wait_for 10 "the promise" balloon_is "host['promised_mib'] == 100"
	wait_for 30 "the end of the promise" balloon_is "host['promised_mib'] == 0"
}

# -- not yet, then yes, and the VM takes what it was promised
check_admit_later()
{
	local said want
	room 400 # above 500 % of min_free, whatever guests have been given meanwhile
	wait_for 60 "balloons to be let go" balloon_is "host['state'] == 'high' or host['idle_mib'] > 100"
	room 150
	wait_for 10 "the picture" balloon_is "host['free_mib'] < 160"
	want=$(balloon_get "int(host['free_mib'] - 64 + min(host['idle_mib'], 120) / 2)")
	said=$(admit admit "${want}MiB")
	[[ $said = "1 not yet: short of "* ]] || die "$want MiB: $said; $(ctl balloon status)"
	wait_for 90 "room for $want MiB" admits "${want}MiB"
	[[ $(cat "$work/answer") = "yes: "* ]] || die "$(cat "$work/answer")"
	MEMVIRT_ACCEL=tcg,tb-size=8 guest late "$want" idle "" -S
	wait_for 20 "the VM" balloon_is "'late' in vm"
	balloon_is "0 < host['promised_mib'] <= $want" || die "not promised any more: $(ctl balloon status)"
	# Without it, at the latest with the time that it had
	"$guest/stop-guest.sh" "$work/late"
	wait_for 5 "its end" balloon_is "host['promised_mib'] == 0"
}

# -- a guest that needs more than it was left
check_grow()
{
	local before
	wait_for 60 "the grower's balloon" balloon_is "vm['grow']['actual_mib'] < 400"
	before=$(actual_mib grow)
	room 330
	echo go | socat -t 1 - "UNIX-CONNECT:$work/grow/go.sock"
	wait_for 60 "what it touches" grep -q '^touch ' "$work/grow/serial.log"
	wait_for 20 "memory" balloon_is "vm['grow']['actual_mib'] > $before + 50 and vm['grow']['demand_mib'] > 200"
	grep -E "balloon vm=$(cat "$work/grow/uuid") .* why=\"(guest has little available|guest needs it|guest swaps in|guest has major faults)\"" \
		"$work/daemon.log" | tail -n 1
	says "balloon vm=$(cat "$work/grow/uuid") .* why=\"guest" || die "given for another reason"
	sed -n 's/^\(touch .*\)/\1/p; $p' "$work/grow/serial.log"
	! grep -q 'wrong=[1-9]' "$work/grow/serial.log" || die "wrong memory"
}

polling='{"path":"/machine/peripheral/balloon0","property":"guest-stats-polling-interval"}'
mkdir -p "$work"/one "$work"/two "$work"/grow "$work"/late
# They read files in each round, and object when these were dropped: not all the time.
guest one 512 idle "round_s=30" &
guest two 512 tmpfs "round_s=30" &
grower &
wait
guests=(one two grow)
wait_rounds 0 one two grow >/dev/null
balloon_conf
if [ $# -gt 0 ]; then # only these, for who works on them
	start_daemon
	for c in "$@"; do
		"check_$c"
	done
	exit 0
fi
for c in dry_run high short admit admit_later grow; do
	started=$SECONDS
	"check_$c"
	echo "ok $c ($((SECONDS - started)) s)"
done
wait_rounds 1 one two
stop_daemon TERM || die "memvirtd did not end well"
echo "all good"
