#!/bin/bash
# A record of real balloons gives the same decisions again, over a reload and a restart; and what doctor says of real VMs.
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"
needs_root
needs_qemu

start_guest good --name good --mem 384 --workload idle --seed 1 -- -global virtio-balloon-pci.deflate-on-oom=on &
start_guest poor --name poor --mem 384 --workload idle --seed 2 --reporting off &
wait
guests=(good poor)
wait_rounds 1 good poor
# A VM without a balloon and with locked memory, that need not run for it.
mkdir "$work/bare"
qemu-system-x86_64 -name bare -S -m 64 -nodefaults -display none -overcommit mem-lock=on -pidfile "$work/bare/qemu.pid" \
	-qmp "unix:$work/bare/qmp.sock,server=on,wait=off" -daemonize 9>&-
guests=(good poor bare)

# -- doctor, on its own: what it finds of options and devices it finds without a daemon
write_conf </dev/null
"$build/memvirtctl" --config "$conf" doctor >"$work/doctor" && die "doctor found nothing: $(cat "$work/doctor")"
[ "$?" = 1 ] || die "doctor failed: $(cat "$work/doctor")"
for words in 'free page reporting is off' 'fix: QEMU: -device virtio-balloon-pci,free-page-reporting=on' \
	'no balloon device' 'its memory is locked'; do
	grep -q -- "$words" "$work/doctor" || die "doctor does not say \"$words\": $(cat "$work/doctor")"
done

# -- a host that is short of memory by configuration takes from both guests, and gives back after a reload
total=$(awk '/^MemTotal:/ { print int($2 / 1024) }' /proc/meminfo)
short()
{
	write_conf <<END
[daemon]
tick = 500ms
[vmm]
discover = 500ms
[host]
min_free = $1MiB
[balloon]
hold = 2s
[merge]
engine = off
END
}
# actual MiB of guest $1 is $2 (an operator) $3
size_is()
{
	ctl --json balloon status |
		get "[v['actual_mib'] and v['actual_mib'] $2 $3 for v in j['vms'] if v['name'] == '$1']" | grep -q True
}
short "$total"
start_daemon --record "$work/record"
for g in good poor; do
	wait_for 60 "the balloon of $g to take" size_is "$g" '<' 340
done

# -- doctor with a daemon: the guests have answered
findings()
{
	ctl --json doctor 2>"$work/err" | get "[f['what'] for v in j['vms'] if v['name'] == '$1' for f in v['findings']]"
}
[ "$(findings good)" = '[]' ] || die "doctor finds something in a good guest: $(findings good)"
[ "$(findings poor)" = "['free page reporting is off', 'deflate-on-oom is off']" ] || die "doctor: $(findings poor)"
[ "$(findings bare)" = "['no balloon device', 'its memory is locked']" ] || die "doctor: $(findings bare)"
ctl doctor >/dev/null && die "something is missing, and doctor says 0"

short 64
ctl reload
for g in good poor; do
	wait_for 60 "the balloon of $g to give back" size_is "$g" '>' 380
done
stop_daemon TERM || die "memvirtd did not end well"
short "$total"
start_daemon --dry-run --record "$work/record"
sleep 3 # some ticks in which nothing is carried out
stop_daemon TERM || die "memvirtd did not end well"

# -- the record
[ "$(stat -c %a "$work/record")" = 600 ] || die "the record is open to others"
[ "$(grep -c '^{"memvirt_record"' "$work/record")" = 2 ] || die "not one header for each start"
grep -q '^{"settings"' "$work/record" || die "the reload is not in the record"
"$build/bench/replay-policy" --json "$work/record" >"$work/replay.json" || die "the record does not give the same again"
get "all(r['targets'] >= 8 and r['taken_bytes'] >= 80 << 20 and r['given_bytes'] >= 80 << 20 for r in j['runs']) \
	and 'differs' not in j['runs'][1]" <"$work/replay.json" | grep -q True || die "the replay: $(cat "$work/replay.json")"
"$build/bench/replay-policy" --ticks "$work/record"
awk '/^{"host"/ { n++; bytes += length } END { printf "%d ticks of %d bytes\n", n, bytes / n }' "$work/record"

# -- other policies decide otherwise, and as they are told
printf '[host]\nmin_free = %sMiB\n[vm good]\nballoon = off\n' "$total" >"$work/spare.conf"
"$build/bench/replay-policy" --json "$work/record" "$work/spare.conf" >"$work/replay.json"
get "[(v['name'], v['targets']) for v in j['runs'][2]['vms'] if v['name'] == 'good']" <"$work/replay.json" |
	grep -q "('good', 0)" || die "a policy that spares a guest: $(cat "$work/replay.json")"
get "'differs' in j['runs'][2]" <"$work/replay.json" | grep -q True || die "another policy decides the same"
"$build/bench/replay-policy" "$work/record" "$work/spare.conf"

# -- what is broken is named
echo 'step = 5%' >"$work/bad.conf"
"$build/bench/replay-policy" "$work/record" "$work/bad.conf" 2>"$work/err" && die "a bad policy was taken"
grep -q 'bad.conf:1: a key before the first' "$work/err" || die "bad policy: $(cat "$work/err")"
head -c 20000 "$work/record" >"$work/cut"
"$build/bench/replay-policy" "$work/cut" >/dev/null 2>"$work/err" || die "half a record: $(cat "$work/err")"
grep -q 'using the .* ticks before it' "$work/err" || die "half a record: $(cat "$work/err")"
"$build/memvirtd" --config "$conf" --record /etc/passwd 2>"$work/err" && die "/etc/passwd was recorded to"
grep -q 'the file is not empty and no record' "$work/err" || die "a record that is none: $(cat "$work/err")"

wait_rounds 1 good poor
echo "all good"
