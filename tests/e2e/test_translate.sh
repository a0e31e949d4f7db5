#!/bin/bash
# Translation equals QEMU's own, address by address: Linux guests with 4-level and 5-level paging, hand-built guests with 32-bit
# and PAE paging. And the command that shows it, with and without a daemon, with what it refuses.
# ADDRESSES: how many are compared in each guest.
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"
needs_root
needs_qemu

addresses=${ADDRESSES:-2000}
check=$build/tests/translate-check
ctl1()
{
	"$build/memvirtctl" --config /dev/null "$@"
}

# start_linux NAME THP [QEMU-ARGUMENT...]
start_linux()
{
	local name=$1 thp=$2
	shift 2
	start_guest "$name" --name "$name" --mem 384 --thp "$thp" --append "round_s=0" -- -qmp "unix:$work/$name/qmp2.sock,server=on,wait=off" "$@"
}

# start_built NAME [COMPILER-ARGUMENT...]: not Linux; the same folder of files
start_built()
{
	local name=$1 dir=$work/$1
	shift
	mkdir "$dir"
	gcc -m32 -std=gnu11 -O1 -ffreestanding -fno-pic -no-pie -fno-stack-protector -fcf-protection=none \
		-fno-asynchronous-unwind-tables -nostdlib -static -Wl,-N,-Ttext=0x100000,-z,noexecstack,--build-id=none \
		-DSEED=20260731 "$@" -o "$dir/image" "$top/tests/translate/paging_guest.c" 2>"$dir/gcc.log" ||
		die "no 32-bit program can be made: $(cat "$dir/gcc.log")"
	guests+=("$name")
	setsid qemu-system-x86_64 -name "$name" -accel tcg -m 64 -nodefaults -no-user-config -display none -kernel "$dir/image" \
		-debugcon "file:$dir/serial.log" -qmp "unix:$dir/qmp.sock,server=on,wait=off" \
		-qmp "unix:$dir/qmp2.sock,server=on,wait=off" -pidfile "$dir/qemu.pid" </dev/null >"$dir/qemu.log" 2>&1 9>&- &
}

compare()
{
	"$check" "$work/$1/qmp2.sock" "$(cat "$work/$1/qemu.pid")" "$addresses" "$2" "$3" "${4:-1}" || die "$1: translation differs"
}

start_built bits32
start_built pae -DPAE
for g in bits32 pae; do
	wait_for 30 "$g" grep -q ready "$work/$g/serial.log"
done
compare bits32 1 32-bit
compare pae 2 PAE

start_linux four on &
starting=$!
start_linux five off -cpu max,la57=on -smp 2
wait "$starting"
guests=(bits32 pae four five)
wait_round four 1
wait_round five 1
qmp five stop >/dev/null # what runs beside it takes the time of the one that is compared
compare four 3 4-level
qmp five cont >/dev/null
qmp four stop >/dev/null
compare five 4 5-level 2

# -- the command, by a private daemon
translate()
{
	ctl1 --json translate "$@" >"$work/answer.json"
}
fails()
{
	local want=$1
	shift
	ctl1 translate "$@" >"$work/out" 2>"$work/err" && die "translate $* succeeded"
	grep -qF -- "$want" "$work/err" || die "translate $*: $(cat "$work/err")"
}
pid=$(cat "$work/four/qemu.pid")
# The page where the kernel's first table is, by its address in the direct map, which QEMU knows as well.
cr3=$(qmp four human-monitor-command '{"command-line":"info registers"}' | sed -n 's/.*CR3=\([0-9a-f]*\).*/0x\1/p')
page=$(printf '0x%x' $((cr3 & ~0xfff)))
translate four --gpa "$page"
hpa=$(get "j['hpa']" <"$work/answer.json")
hva=$(get "j['hva']" <"$work/answer.json")
qmp four human-monitor-command "{\"command-line\":\"gpa2hpa $page\"}" | grep -qF "is $hpa" || die "hpa of $page: $hpa"
[ "$(get "j['gpa'], j['gva'], j['steps'], j['references'] in (2, 3, 4), j['fault']" <"$work/answer.json")" = \
	"('$page', None, [], True, None)" ] || die "--gpa: $(cat "$work/answer.json")"
translate "$pid" --hva "$hva"
[ "$(get "j['gpa'], j['hpa']" <"$work/answer.json")" = "('$page', '$hpa')" ] || die "--hva: $(cat "$work/answer.json")"
translate --hpa "$hpa"
[ "$(get "[(m['name'], m['pid'], m['gpa'], m['hva']) for m in j['mappings']]" <"$work/answer.json")" = \
	"[('four', $pid, '$page', '$hva')]" ] || die "--hpa: $(cat "$work/answer.json")"

# A way whose end QEMU tells: the code that the CPU stands at. It is the same by its own CR3 given by hand.
rip=$(qmp four human-monitor-command '{"command-line":"info registers"}' | sed -n 's/.*RIP=\([0-9a-f]*\).*/0x\1/p')
gpa=$(qmp four human-monitor-command "{\"command-line\":\"gva2gpa $rip\"}" | sed -n 's/.*gpa: \(0x[0-9a-f]*\).*/\1/p')
translate four --gva "$rip"
[ "$(get "j['gpa'], j['mode'], len(j['steps']) in (3, 4), j['guest']['executable']" <"$work/answer.json")" = \
	"('$gpa', '4-level', True, True)" ] || die "--gva: $(cat "$work/answer.json")"
cost="{4096: 4, 2 << 20: 3, 1 << 30: 2}"
get "j['references'] == sum($cost[p['host']['stage2_page_bytes']] for p in j['steps'] + [j]) + len(j['steps'])" <"$work/answer.json" |
	grep -q True || die "references: $(cat "$work/answer.json")"
cp "$work/answer.json" "$work/by-cpu.json"
translate four --gva "$rip" --cr3 "$cr3"
cmp "$work/answer.json" "$work/by-cpu.json" || die "by CR3 it is another way"
ctl1 translate four --gva "$rip" >"$work/out"
grep -q "^LEVEL  *ENTRY" "$work/out" && grep -q "memory references" "$work/out" || die "the table: $(cat "$work/out")"
translate five --gva 0xff11000000000000 --cpu 1 || : # where the direct map is without randomness
[ "$(get "j['mode'], j['cpu']" <"$work/answer.json")" = "('5-level', 1)" ] || die "--cpu: $(cat "$work/answer.json")"

# -- what it refuses, and why
fails 'no VM "nobody"' nobody --gva 1
fails 'is no number' four --gva 12z
fails 'is no number' four --gva 0x10000000000000000
fails 'is no number' four --gva=-1
fails 'there is no CPU 7; the VM has 1' four --gva 0 --cpu 7
fails '--hpa goes alone' --gva 1 --hpa 1
fails 'no argument with --hpa' four --hpa 1
fails 'one of gva, gpa and hva' four
fails 'one of gva, gpa and hva' four --gva 1 --hva 1
fails 'for guest-virtual addresses only' four --gpa 1 --cpu 0
fails 'more than 48 bits' four --gva 0x8000000000000000
fails "level 4: the table at 0x3fffffff000 is outside of guest RAM" four --gva 0 --cr3 0x3fffffff000
fails 'is not in guest RAM' four --gpa 0xfee00000
fails "not an address of this VM's guest RAM" four --hva 0x1000
ctl1 vms --gva 1 >/dev/null 2>"$work/err" && die "vms takes an address"
grep -q 'for translate only' "$work/err" || die "vms --gva: $(cat "$work/err")"
status=0
translate four --gva 0 --cr3 0x3fffffff000 || status=$?
[ $status = 1 ] || die "an address that leads nowhere: exit status $status"
[ "$(get "j['fault']['level'], j['gpa'], j['hpa']" <"$work/answer.json")" = "(4, None, None)" ] ||
	die "fault: $(cat "$work/answer.json")"

# -- without QMP: neither registers nor guest-physical addresses, but frames
mkdir "$work/mute"
guests+=(mute)
setsid qemu-system-x86_64 -name mute -accel tcg -m 72 -nodefaults -no-user-config -display none -kernel "$work/pae/image" \
	-debugcon "file:$work/mute/serial.log" -pidfile "$work/mute/qemu.pid" </dev/null >"$work/mute/qemu.log" 2>&1 9>&- &
wait_for 30 mute grep -q ready "$work/mute/serial.log"
fails 'guest-physical addresses unknown' mute --gva 0x100000
fails 'guest-physical addresses unknown' mute --gpa 0x100000
ram=$(while read -r range rights _; do
	[ "$rights" != rw-p ] || [ $((0x${range#*-} - 0x${range%-*})) != $((72 << 20)) ] || printf '0x%s\n' "${range%-*}"
done <"/proc/$(cat "$work/mute/qemu.pid")/maps")
translate mute --hva $((ram + 0x100000))
[ "$(get "j['gpa'], j['hpa'] is not None, j['host']['state'], j['fault']" <"$work/answer.json")" = "(None, True, 'present', None)" ] ||
	die "--hva without QMP: $(cat "$work/answer.json")"

# -- by a daemon; a VMM that hangs keeps nobody waiting but who asked
write_conf <<END
[daemon]
tick = 200ms
[vmm]
discover = 500ms
qmp_timeout = 3s
[merge]
engine = off
END
start_daemon --dry-run
known()
{
	[ "$(ctl --json vms | get "sorted(v['name'] for v in j if v['state'] == 'ready' and v['slots_from'] == 'qmp')")" = \
		"['bits32', 'five', 'four', 'pae']" ]
}
wait_for 30 "the guests to be known" known
ctl --json translate four --gva "$rip" >"$work/answer.json"
[ "$(get "j['gpa'], j['fault']" <"$work/answer.json")" = "('$gpa', None)" ] || die "by the daemon: $(cat "$work/answer.json")"
ctl --json translate bits32 --gva 0x100000 | get "j['mode'], j['gpa'], j['guest']['page_bytes'], len(j['steps'])" |
	grep -qF "('32-bit', '0x100000', 4194304, 1)" || die "32-bit by the daemon"
ctl --json translate pae --gva 0x100000 | get "j['mode'], j['gpa'], j['guest']['page_bytes'], len(j['steps'])" |
	grep -qF "('PAE', '0x100000', 2097152, 2)" || die "PAE by the daemon"
kill -STOP "$(cat "$work/pae/qemu.pid")"
ctl translate pae --gva 0x100000 >/dev/null 2>"$work/err" &
waiter=$!
for i in $(seq 20); do
	ctl translate four --gva "$rip" >/dev/null || die "a VMM that hangs keeps others waiting"
done
wait "$waiter" && die "registers of a VMM that hangs"
grep -q "QMP" "$work/err" || die "a VMM that hangs: $(cat "$work/err")"
# A client that goes away before its answer leaves nothing behind, nor does a VM.
kill -CONT "$(cat "$work/pae/qemu.pid")"
wait_for 30 "the guests to be known" known
kill -STOP "$(cat "$work/pae/qemu.pid")" "$(cat "$work/bits32/qemu.pid")"
ctl translate pae --gva 0x100000 >/dev/null 2>&1 &
waiter=$!
ctl translate bits32 --gva 0x100000 >/dev/null 2>"$work/err" &
asker=$!
sleep 0.2
kill "$waiter"
wait "$waiter" || :
kill -KILL "$(cat "$work/bits32/qemu.pid")"
wait "$asker" && die "a translation in a VM that was killed"
grep -qE "is gone|ended|QMP" "$work/err" || die "a VM that was killed: $(cat "$work/err")"
kill -CONT "$(cat "$work/pae/qemu.pid")"
ctl status >/dev/null || die "the daemon ended"
stop_daemon TERM || die "memvirtd did not end well"

qmp four cont >/dev/null
wait_round four 1
wait_round five 1
echo "all good"
