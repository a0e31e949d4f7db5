#!/bin/bash
# The second stage of real guests: the census of stopped guests equals what the kernel tells, page by page, with memory that
# agents merged, that KSM merged, and that is its own; and running guests can be looked at.
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"
needs_root
needs_ksm
needs_qemu
echo 0 >"$ksm/run"

status_is()
{
	ctl --json merge status >"$work/merge.json" && get "$1" <"$work/merge.json" | grep -q True
}

# census GUEST: of a guest that stands still. The host does not: khugepaged may make a huge page between the two looks.
census()
{
	local try
	for try in 1 2 3; do
		"$build/memvirtctl" --config /dev/null --json ept "$1" >"$work/$1.json"
		! "$top/tests/e2e/ept_census.py" "$(cat "$work/$1/qemu.pid")" "$work/$1/qmp2.sock" "$work/$1.json" || return 0
		echo "$1: look $try differs"
	done
	die "$1: the census is not what the kernel tells"
}

start_agent_guest a --mem 384 --mem-merge off --seed 1 &
start_agent_guest b --mem 384 --mem-merge off --seed 2 &
start_guest k --name k --mem 384 --seed 3 -- -qmp "unix:$work/k/qmp2.sock,server=on,wait=off" &
wait
guests=(a b k)
wait_rounds 1 a b k
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
engine = remap
min_gain = 4MiB
[vm *]
domain = both
END
start_daemon
if [ -e /dev/userfaultfd ]; then
	wait_for 120 "the first round" status_is "j['rounds'] > 0 and j['saved_mib'] > 32"
fi

# -- while they run, with a daemon
for g in a b k; do
	ctl --json ept "$g" >"$work/$g.json" || die "$g: no census of a running guest"
	get "j['name'] == '$g' and 0 < j['pages']['present'] < j['pages']['total'] in range(98176, 114688)" \
		<"$work/$g.json" | grep -q True ||
		die "$g: $(cat "$work/$g.json")"
done
ctl ept a
ctl ept nobody 2>"$work/err" && die "ept of a VM that is not there succeeded"
grep -q 'no VM "nobody"' "$work/err" || die "ept of a VM that is not there: $(cat "$work/err")"
ctl ept 2>"$work/err" && die "ept without a VM succeeded"

# -- merged within one domain: nothing that must not be; the same memory in two domains: named
ctl audit || die "the audit of one domain failed"
ctl --json audit >"$work/audit.json" || die "the audit of one domain failed: $(cat "$work/audit.json")"
get "j['clean'] and j['vms'] == 3 and not j['violations'] and j['pages'] > 3 * 4096" <"$work/audit.json" | grep -q True ||
	die "the audit does not say what it looked at: $(cat "$work/audit.json")"
if [ -e /dev/userfaultfd ]; then
	get "j['shared_store'] > 0" <"$work/audit.json" | grep -q True || die "the audit saw no shared frame of a store"
	status=0
	"$build/memvirtctl" --config /dev/null --json audit >"$work/audit.json" || status=$?
	[ "$status" = 1 ] || die "one store in two domains: exit $status: $(cat "$work/audit.json")"
	get "{v['name'] for x in j['violations'] for v in x['vms']} == {'a', 'b'}" <"$work/audit.json" | grep -q True ||
		die "the audit names others than a and b: $(cat "$work/audit.json")"
fi
ctl audit now 2>"$work/err" && die "audit with an argument succeeded"
stop_daemon TERM || die "memvirtd did not end well"
status=0
ctl audit 2>"$work/err" || status=$?
[ "$status" = 2 ] || die "audit without a daemon on its socket: exit $status"

# -- the kernel's scanner merges in k, for the census to tell
echo 5000 >"$ksm/pages_to_scan"
echo 1 >"$ksm/run"
ksm_pages()
{
	[ "$(cat "/proc/$(cat "$work/k/qemu.pid")/ksm_merging_pages")" -gt 500 ]
}
wait_for 120 "KSM to merge" ksm_pages
echo 0 >"$ksm/run"

# -- stopped: exactly
for g in a b k; do
	qmp "$g" stop >/dev/null
done
for g in a b k; do
	census "$g"
done
get "j['pages']['ksm'] > 500" <"$work/k.json" | grep -q True || die "no page of KSM was counted"
if [ -e /dev/userfaultfd ]; then
	get "j['pages']['store'] > 100" <"$work/a.json" | grep -q True || die "no frame of a store was counted"
fi
get "sum(j['leaves'][s] for s in ('2m',)) > 0" <"$work/k.json" | grep -q True || echo "note: no huge page in k"
for g in a b k; do
	qmp "$g" cont >/dev/null
done
wait_rounds 1 a b k
echo "all good"
