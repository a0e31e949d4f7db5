#!/bin/bash
# Translation of merged memory: frames of the kernel's KSM and of the daemon's stores are told as such, and the way back from
# them leads to every VM that has them.
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"
needs_root
needs_ksm
needs_qemu
[ -e /dev/userfaultfd ] || skip "the kernel has no /dev/userfaultfd"

# conf_with ENGINE
conf_with()
{
	write_conf <<END
[daemon]
tick = 100ms
[vmm]
discover = 200ms
[scan]
cpu_percent = 100%
interval = 2s
rest_permille = 1000
[merge]
engine = $1
min_gain = 4MiB
[vm *]
domain = both
END
}

known()
{
	[ "$(ctl --json vms | get "sorted(v['name'] for v in j if v['slots_from'] == 'qmp')")" = "['a', 'b']" ]
}

# find_frame KIND PYTHON: looks at pages of guest a until the frame of one is of this kind and the way back from it is as the
# expression says. Leaves way.json and back.json.
find_frame()
{
	local gpa kind
	: >"$work/kinds"
	for gpa in $(seq $((0x1000000)) $((641 * 4096)) $((0x1f000000))); do
		ctl --json translate a --gpa "$gpa" >"$work/way.json"
		kind=$(get "j['host']['kind'] if j['hpa'] else j['host']['state']" <"$work/way.json")
		echo "$kind" >>"$work/kinds"
		[ "$kind" = "$1" ] || continue
		ctl --json translate --hpa "$(get "j['hpa']" <"$work/way.json")" >"$work/back.json"
		[ "$(get "$2" <"$work/back.json")" != True ] || return 0
	done
	sort "$work/kinds" | uniq -c >&2
	[ ! -s "$work/back.json" ] || head -c 2000 "$work/back.json" >&2
	die "no such frame of kind $1"
}

# Every place on the list leads to the frame again, if nobody wrote there meanwhile.
places_lead_back()
{
	local hpa name gpa
	hpa=$(get "j['hpa']" <"$work/back.json")
	get "'\n'.join(m['name'] + ' ' + m['gpa'] for m in j['mappings'][:8])" <"$work/back.json" >"$work/places"
	while read -r name gpa; do
		[ "$(ctl --json translate "$name" --gpa "$gpa" | get "j['hpa']")" = "$hpa" ] ||
			die "$name $gpa does not lead to $hpa"
	done <"$work/places"
}

# The check's own monitor stops and continues them; for the way back they stand still.
both()
{
	qmp a "$1" >/dev/null
	qmp b "$1" >/dev/null
}

start_agent_guest a --mem 512 --seed 1 &
start_agent_guest b --mem 512 --seed 2 &
wait
guests=(a b)
wait_rounds 1 a b

# -- the kernel's
echo 20000 >"$ksm/pages_to_scan"
echo 0 >"$ksm/sleep_millisecs"
echo 1 >"$ksm/run"
# Of these guests: the host's counters keep what ended processes had until the scanner comes by.
ksm_merged()
{
	local g
	for g in a b; do
		[ "$(cat "/proc/$(cat "$work/$g/qemu.pid")/ksm_merging_pages")" -gt 10000 ] || return 1
	done
}
wait_for 120 "KSM to merge" ksm_merged
echo 0 >"$ksm/run"
both stop
conf_with off
start_daemon --dry-run
wait_for 30 "the guests to be known" known
find_frame ksm "j['host']['kind'] == 'ksm' and not j['host']['exclusive'] and set(m['name'] for m in j['mappings']) == {'a', 'b'}"
places_lead_back
stop_daemon TERM
both cont
echo 2 >"$ksm/run"
echo 0 >"$ksm/run"

# -- the daemon's
conf_with remap
start_daemon
merged()
{
	ctl --json merge status | get "j['rounds'] > 0 and j['saved_mib'] > 64" | grep -q True
}
wait_for 120 "the first round" merged
wait_rounds 2 a b # merged memory is mapped in when the guest reads it
both stop
find_frame store "j['host']['kind'] == 'store' and set(m['name'] for m in j['mappings']) == {'a', 'b'}"
places_lead_back
both cont
# Also where frames are written to, QEMU and the kernel say the same.
"$build/tests/translate-check" "$work/a/qmp2.sock" "$(cat "$work/a/qemu.pid")" 1000 5 4-level || die "translation differs"
wait_rounds 1 a b
stop_daemon TERM || die "memvirtd did not end well"
echo "all good"
