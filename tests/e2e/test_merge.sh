#!/bin/bash
# Merging through the kernel: starts with a gain, rests when it is in, respects domains and other users of
# KSM, survives SIGKILL, puts the settings back. The guests check their memory all the time.
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"
needs_root
needs_ksm
needs_qemu

# Values that nobody has by default: what is put back is what was found.
echo 0 >"$ksm/run"
echo 123 >"$ksm/pages_to_scan"
echo 45 >"$ksm/sleep_millisecs"
found=$(ksm_knobs)

start_guest a --name a --mem 512 --seed 1 &
start_guest b --name b --mem 512 --seed 2 &
wait
guests=(a b)
wait_round a 1
wait_round b 1

conf_with()
{
	write_conf <<END
[daemon]
tick = 100ms
[vmm]
discover = 200ms
[scan]
cpu_percent = 100%
[merge]
engine = kernel
target = 5s
cpu_percent = 100%
min_gain = 8MiB
backoff = 1h
$1
END
}
status_is()
{
	ctl --json merge status >"$work/merge.json" && get "$1" <"$work/merge.json" | grep -q True
}

# -- two domains: the kernel would merge across them, so it is not started
conf_with '[vm a]
domain = one
[vm b]
domain = two'
start_daemon
wait_for 60 "the first pass" status_is "j['passes'] > 0"
[ "$(cat $ksm/run)" = 0 ] || die "the scanner was started for two domains"
ctl explain a | grep -q 'several domains' || die "explain does not name the domains"

# -- the same two in one domain, by reload
conf_with '[vm *]
domain = both'
ctl reload
wait_for 120 "the gain" status_is "j['saved_mib'] > 8 and j['state'] == 'rest'"
ctl merge status

# -- at rest: the scanner stands still
scanned=$(cat $ksm/pages_scanned)
[ "$(cat $ksm/run)" = 0 ] || die "the scanner runs at rest"
wait_round a 1
wait_round b 1
[ "$(cat $ksm/pages_scanned)" = "$scanned" ] || die "pages_scanned moves at rest"
[ "$(cat $ksm/pages_sharing)" -gt 2000 ] || die "nothing is merged"

# -- an end puts back what was found
stop_daemon TERM || die "memvirtd did not end well"
[ "$(ksm_knobs)" = "$found" ] || die "not what was found: $(ksm_knobs)"
[ ! -e "$work/state/ksm-found" ] || die "ksm-found was left behind"

# -- killed while the scanner runs: the next daemon stops it, and puts back what the first one had found
start_guest c --name c --mem 512 --seed 3
wait_round c 1
start_daemon
wait_for 60 "the scanner to start" grep -q 1 $ksm/run
"$build/memvirtd" --config "$conf" 2>"$work/second.log" && die "a second daemon started"
[ "$(cat $ksm/run)" = 1 ] || die "a second daemon that was refused stopped the scanner"
[ -s "$work/state/ksm-found" ] || die "a second daemon that was refused took what was found"
stop_daemon KILL || :
[ "$(cat $ksm/run)" = 1 ] || die "nothing to carry on with"
[ -s "$work/state/ksm-found" ] || die "what was found is not on disk"
start_daemon
wait_for 20 "the scanner to be stopped" grep -q 'why="left running"' "$work/daemon.log"
wait_for 120 "the gain of the third guest" status_is "j['state'] == 'rest' and j['saved_mib'] > 16"
stop_daemon TERM || die "memvirtd did not end well"
[ "$(ksm_knobs)" = "$found" ] || die "after SIGKILL, not what was found: $(ksm_knobs)"

# -- somebody else sets KSM: noticed, said, left alone, also at the end
start_guest d --name d --mem 512 --seed 4
wait_round d 1
start_daemon
wait_for 60 "the scanner to start" grep -q 1 $ksm/run
echo 777 >$ksm/pages_to_scan
wait_for 20 "the change to be noticed" grep -q 'somebody else set run=1 pages_to_scan=777' "$work/daemon.log"
[ "$(cat $ksm/run)" = 0 ] || die "the scanner that we started runs on, unwatched"
stop_daemon TERM || die "memvirtd did not end well"
[ "$(cat $ksm/pages_to_scan)" = 777 ] || die "somebody else's setting was overwritten"

# -- a dry run changes nothing
ksm_knobs >"$work/knobs"
start_daemon --dry-run
wait_for 60 "the first pass" status_is "j['passes'] > 0"
wait_round a 1
ksm_knobs | cmp - "$work/knobs" || die "a dry run changed KSM"
stop_daemon TERM || die "memvirtd did not end well"
grep -q '"dry run\|dry run: nothing will be changed' "$work/daemon.log" || die "a dry run does not say so"

for g in "${guests[@]}"; do
	wait_round "$g" 1
done
echo "all good"
