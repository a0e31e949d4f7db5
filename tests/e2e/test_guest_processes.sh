#!/bin/bash
# The address spaces of live Linux guests: those of processes whose memory is known are found, with as much as they hold, by a
# daemon and without; what is merged, swapped out or in huge pages is told as such.
# The memory of the guest's program is known up to what else it maps (a file of 8 MiB in tmpfs, its code, libraries, files it
# checks): SLACK MiB. The difference of two guests is known up to DIFFERENCE MiB.
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"
needs_root
needs_qemu

slack=20 difference=2
ctl1()
{
	"$build/memvirtctl" --config /dev/null "$@"
}

# start NAME KERNEL-WORDS [run-guest.sh OPTION...]
start()
{
	local name=$1 words=$2
	shift 2
	start_guest "$name" --name "$name" --mem 384 --append "$words" "$@" -- \
		-qmp "unix:$work/$name/qmp2.sock,server=on,wait=off" "${qemu_arguments[@]}"
}

# The first with the kernel's tables apart from what user mode sees.
qemu_arguments=()
start small "round_s=0 pattern_mib=32 pti=on" --thp off &
starting=$!
qemu_arguments=(-cpu "max,la57=on" -smp 2)
start large "round_s=1 pattern_mib=96" --workload python &
wait "$starting" $!
guests=(small large)
wait_round small 1
wait_round large 1

# processes NAME: the answer in NAME.json
processes()
{
	ctl1 --json guest-processes "$1" >"$work/$1.json"
}
# is NAME PYTHON: of the answer
is()
{
	[ "$(get "$2" <"$work/$1.json")" = True ] || die "$1: not $2: $(cat "$work/$1.json")"
}

# -- as much as is known to be held
qmp small stop >/dev/null
qmp large stop >/dev/null
processes small
processes large
is small "j['mode'] == '4-level' and j['searched'] and not j['more'] and j['cpus'] == 1"
is large "j['mode'] == '5-level' and j['searched'] and not j['more'] and j['cpus'] == 2"
is small "32 <= j['spaces'][0]['mapped_mib'] <= 32 + $slack"
is large "96 <= j['spaces'][0]['mapped_mib'] <= 96 + $slack"
is small "32 <= j['spaces'][0]['resident_mib'] <= 32 + $slack"
held=$(get "j['spaces'][0]['mapped_mib']" <"$work/small.json")
is large "abs(j['spaces'][0]['mapped_mib'] - $held - 64) <= $difference"
# Pairs of top tables begin at 8 KiB, and the kernel's is the first.
is small "all(int(s['root'], 16) % 8192 == 0 for s in j['spaces'])"
# The shell that started it, and Python with a heap of 35 MiB.
is small "len(j['spaces']) >= 2"
is large "len([s for s in j['spaces'] if s['mapped_mib'] > 20]) >= 2"
for g in small large; do
	is $g "all(s['resident_mib'] <= s['mapped_mib'] and not s['incomplete'] for s in j['spaces'])"
	is $g "max(s['mapped_mib'] for s in j['spaces']) <= j['together']['mapped_mib'] <= sum(s['mapped_mib'] + .01 for s in j['spaces'])"
	# What the kernel alone has and what processes have is all of RAM, but for what is mapped nowhere (a few MiB).
	is $g "384 - 16 <= j['together']['mapped_mib'] + j['kernel']['mapped_mib'] <= 384"
	is $g "j['tables']['changed'] == 0 and j['tables']['unreadable'] == 0"
done
# All together is resident as the host's kernel says: RAM is one mapping.
rss=$(awk '/^[0-9a-f]+-[0-9a-f]+ /{ram = 0} /^Size: *393216 kB/{ram = 1} ram && /^Rss:/{sum += $2} END{print sum}' \
	"/proc/$(cat "$work/small/qemu.pid")/smaps")
[ "${rss:-0}" = 0 ] || is small "abs(j['together']['resident_mib'] + j['kernel']['resident_mib'] - $rss / 1024) <= 16"
# Without huge pages on the host there are none; the table of the page at the top leads to the process's own pages.
is small "j['together']['huge_mib'] == 0 and j['spaces'][0]['entries_2m'] == 0"
root=$(get "j['spaces'][0]['root']" <"$work/small.json")
ctl1 --json translate small --gpa "$root" | get "j['fault']" | grep -qx None || die "the top table $root is not in RAM"
is small "j['spaces'][0]['entries_4k'] * 4096 >= 32 << 20"

# -- the same twice, while the guest stands still; and as a table
cp "$work/small.json" "$work/before.json"
processes small
cmp "$work/before.json" "$work/small.json" || die "asked twice it is another answer"
ctl1 guest-processes small >"$work/out"
grep -q "^ADDRESS SPACE" "$work/out" && grep -q "^$root " "$work/out" && grep -q "^together" "$work/out" ||
	die "the table: $(cat "$work/out")"

# -- merged by the host's kernel, as the process sees it: an eighth of its memory is zero, an eighth repeats
if [ -w "$ksm/run" ]; then
	ksm_knobs >"$work/ksm-before"
	echo 20000 >"$ksm/pages_to_scan"
	echo 0 >"$ksm/sleep_millisecs"
	echo 1 >"$ksm/run"
	merged()
	{
		processes small && [ "$(get "j['spaces'][0]['merged_mib'] >= 32 / 8" <"$work/small.json")" = True ]
	}
	wait_for 120 "KSM to merge" merged
	echo 0 >"$ksm/run"
	is small "j['spaces'][0]['merged_mib'] <= j['spaces'][0]['mapped_mib']"
	is small "abs(j['spaces'][0]['mapped_mib'] - $held) < 0.01"
fi

# -- by a daemon, of guests that run; what it refuses
qmp small cont >/dev/null
qmp large cont >/dev/null
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
	[ "$(ctl --json vms | get "sorted(v['name'] for v in j if v['slots_from'] == 'qmp')")" = "['large', 'small']" ]
}
wait_for 30 "the guests to be known" known
for _ in 1 2 3; do
	ctl --json guest-processes large >"$work/large.json"
	is large "96 <= j['spaces'][0]['mapped_mib'] <= 96 + $slack + 8 and j['samples'] == 10"
done
# The CPU has the user's top table, which is the second of a pair, most of the time.
users_table()
{
	local cr3
	cr3=$(qmp small human-monitor-command '{"command-line":"info registers"}' | sed -n 's/.*CR3=\([0-9a-f]*\).*/0x\1/p')
	[ $((cr3 & 0x1000)) != 0 ]
}
wait_for 60 "tables of user mode" users_table
# Where a process always runs, a CPU is seen with it, in user mode or not.
seen()
{
	ctl --json guest-processes small >"$work/small.json"
	is small "all(int(s['root'], 16) % 8192 == 0 for s in j['spaces']) and 32 <= j['spaces'][0]['mapped_mib'] <= 32 + $slack"
	[ "$(get "j['spaces'][0]['seen'] > 0" <"$work/small.json")" = True ]
}
wait_for 60 "a process on a CPU" seen
ctl guest-processes nobody >/dev/null 2>"$work/err" && die "address spaces of nobody"
grep -q 'no VM "nobody"' "$work/err" || die "nobody: $(cat "$work/err")"
# A VM that goes away while it is asked, and a client that does.
ctl guest-processes large >/dev/null 2>&1 &
waiter=$!
sleep 0.1
kill "$waiter"
wait "$waiter" || :
kill -STOP "$(cat "$work/large/qemu.pid")"
ctl guest-processes large >/dev/null 2>"$work/err" &
asker=$!
sleep 0.2
kill -KILL "$(cat "$work/large/qemu.pid")"
wait "$asker" && die "address spaces of a VM that was killed"
grep -qE "is gone|ended|QMP" "$work/err" || die "a VM that was killed: $(cat "$work/err")"
ctl --json guest-processes small >"$work/small.json"
is small "j['spaces'][0]['mapped_mib'] >= 32"
stop_daemon TERM || die "memvirtd did not end well"
wait_round small 1
echo "all good"
