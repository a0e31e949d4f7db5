# tests/e2e/lib.sh - sourced by the demo and the end-to-end tests: guests, a daemon, and cleaning up.
#
# Sets $top, $build, $work (a temporary folder) and $sock. Whatever was started is ended when the script
# ends, also by Ctrl-C, and the KSM settings are put back if a daemon could not do it itself.
# shellcheck shell=bash
set -euo pipefail

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
build=${BUILD:-$top/build}
guest=$top/tests/guest
ksm=/sys/kernel/mm/ksm
work=$(mktemp -d "${TMPDIR:-/tmp}/memvirt.XXXXXX")
sock=$work/control
conf=$work/memvirt.conf
guests=()
daemon_pid=

skip()
{
	echo "skip: ${0##*/}: $*"
	exit 77
}

die()
{
	echo "${0##*/}: $*" >&2
	[ ! -s "$work/daemon.log" ] || { echo "--- daemon.log" >&2; tail -n 20 "$work/daemon.log" >&2; }
	exit 1
}

ksm_knobs()
{
	local f
	for f in run pages_to_scan sleep_millisecs advisor_mode smart_scan; do
		[ ! -e "$ksm/$f" ] || printf '%s %s\n' "$f" "$(sed 's/.*\[\(.*\)\].*/\1/' "$ksm/$f")"
	done
}

# run=2 unmerges everything on the host, so it is never written back.
ksm_put_back()
{
	local f value
	while read -r f value; do
		[ "$f $value" != "run 2" ] || value=0
		[ "$(ksm_knobs | sed -n "s/^$f //p")" = "$value" ] || echo "$value" >"$ksm/$f"
	done <"$work/ksm-before"
}

clean_up()
{
	local status=$? g
	trap '' INT TERM
	set +e
	stop_daemon TERM
	for g in "${guests[@]}"; do
		"$guest/stop-guest.sh" "$work/$g" >/dev/null 2>&1 &
	done
	wait
	[ ! -s "$work/ksm-before" ] || ksm_put_back
	[ -z "${cgroup_dir:-}" ] || [ ! -d "$cgroup_dir" ] || rmdir "$cgroup_dir"
	[ "${KEEP:-0}" = 1 ] || rm -rf "$work"
	exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

needs_root()
{
	[ "$(id -u)" = 0 ] || skip "needs root"
}

# KSM belongs to the whole host, and every daemon on it finds every guest: tests and benches take turns.
take_turns()
{
	[ ! -e /proc/$$/fd/9 ] || return 0
	exec 9>/tmp/memvirt-ksm.lock
	flock 9
}

needs_ksm()
{
	[ -w "$ksm/run" ] || skip "this kernel has no KSM"
	take_turns
	ksm_knobs >"$work/ksm-before"
}

needs_qemu()
{
	command -v qemu-system-x86_64 >/dev/null || skip "qemu-system-x86_64 is not installed"
	take_turns
	"$guest/build-image.sh" "$build/guest" 9>&-
	export MEMVIRT_GUEST_IMAGE=$build/guest
}

# start_guest DIR [run-guest.sh OPTION...]
start_guest()
{
	local dir=$1
	shift
	guests+=("$dir")
	# The lock must not outlive this script in a guest.
	(
		[ -z "${cgroup_dir:-}" ] || echo "$BASHPID" >"$cgroup_dir/cgroup.procs"
		exec "$guest/run-guest.sh" --dir "$work/$dir" "$@" 9>&-
	)
}

# start_agent_guest DIR [run-guest.sh OPTION...]: QEMU with the agent, and a second monitor for the test. Where it is to
# wait for a migration: incoming=URI.
start_agent_guest()
{
	local dir=$1
	shift
	MEMVIRT_QEMU="$build/memvirtctl run --socket $work/agent -- qemu-system-x86_64" \
		start_guest "$dir" --name "$dir" "$@" -- -qmp "unix:$work/$dir/qmp2.sock,server=on,wait=off" \
		${incoming:+-incoming "$incoming"}
}

# qmp GUEST COMMAND [ARGUMENTS]: through the second monitor
qmp()
{
	local run='{"execute":"qmp_capabilities"}{"execute":"'$2'"'${3:+,'"arguments":'$3}'}'
	echo "$run" | socat -t 2 - "UNIX-CONNECT:$work/$1/qmp2.sock"
}

# ask_qmp GUEST COMMAND [ARGUMENTS]: what it returns, as JSON; fails when it is refused
ask_qmp()
{
	python3 - "$work/$1/qmp2.sock" "$2" "${3:-{\}}" <<'END'
import json, socket, sys
s = socket.socket(socket.AF_UNIX)
s.settimeout(20)
s.connect(sys.argv[1])
f = s.makefile("rw")
def ask(command, arguments):
    f.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
    f.flush()
    while True:
        answer = json.loads(f.readline())
        if "return" in answer:
            return answer["return"]
        if "error" in answer:
            sys.exit(f"{command}: {answer['error']['desc']}")
f.readline()
ask("qmp_capabilities", {})
print(json.dumps(ask(sys.argv[2], json.loads(sys.argv[3]))))
END
}

# A cgroup of its own for the guests started from now on: $cgroup, as in /proc/PID/cgroup.
needs_memory_cgroup()
{
	local top
	cgroup=/memvirt-test-$$
	for top in /sys/fs/cgroup/memory /sys/fs/cgroup /sys/fs/cgroup/unified; do
		cgroup_dir=$top$cgroup
		[ -w "$top/memory.limit_in_bytes" ] || grep -qs memory "$top/cgroup.subtree_control" || continue
		mkdir "$cgroup_dir" && return 0
	done
	skip "no memory cgroup can be made here"
}

cgroup_usage()
{
	local bytes
	bytes=$(cat "$cgroup_dir/memory.usage_in_bytes" 2>/dev/null || cat "$cgroup_dir/memory.current")
	echo $((bytes >> 20))
}

# limit_cgroup MIB
limit_cgroup()
{
	local file=$cgroup_dir/memory.max
	[ -e "$file" ] || file=$cgroup_dir/memory.limit_in_bytes
	echo $(($1 << 20)) >"$file"
}

# room MIB: the limit that leaves so much available. Page cache of the guests' images counts as available, too.
room()
{
	local cache prefix=''
	! grep -q '^total_cache' "$cgroup_dir/memory.stat" || prefix=total_
	cache=$(awk -v p="$prefix" '$1 == p "active_file" || $1 == p "inactive_file" { sum += $2 }
		END { print int(sum / 1048576) }' "$cgroup_dir/memory.stat")
	limit_cgroup $(($(cgroup_usage) - cache + $1))
}

wait_round()
{
	"$guest/wait-round.sh" "$work/$1" "$2" "${3:-180}"
}

# wait_rounds N GUEST...: side by side; prints each guest's last round, fails when one of them did
wait_rounds()
{
	local n=$1 g status=0 pids=()
	shift
	for g in "$@"; do
		wait_round "$g" "$n" >"$work/$g/last" &
		pids+=($!)
	done
	for g in "${pids[@]}"; do
		wait "$g" || status=1
	done
	for g in "$@"; do
		[ ! -s "$work/$g/last" ] || echo "$g: $(cat "$work/$g/last")"
	done
	return $status
}

# Configuration from standard input, behind what every test needs.
write_conf()
{
	{
		printf '[daemon]\ncontrol_socket = %s\nagent_socket = %s/agent\nstate_dir = %s/state\n' "$sock" "$work" "$work"
		cat
	} >"$conf"
}

start_daemon()
{
	"$build/memvirtd" --config "$conf" "$@" 9>&- 2>>"$work/daemon.log" &
	daemon_pid=$!
	until "$build/memvirtctl" -s "$sock" status >/dev/null 2>&1; do
		kill -0 "$daemon_pid" 2>/dev/null || { daemon_pid=; die "memvirtd did not start"; }
		sleep 0.1
	done
}

# stop_daemon SIGNAL: true when it ended well
stop_daemon()
{
	local pid=$daemon_pid
	[ -n "$pid" ] || return 0
	daemon_pid=
	kill -"$1" "$pid" 2>/dev/null || return 0
	wait "$pid"
}

ctl()
{
	"$build/memvirtctl" -s "$sock" "$@"
}

# get PYTHON-EXPRESSION: of "j", the JSON on standard input
get()
{
	python3 -c 'import json, sys; j = json.load(sys.stdin); print(eval(sys.argv[1]))' "$1"
}

# wait_for SECONDS WHAT COMMAND...: until the command is true
wait_for()
{
	local deadline=$(($(date +%s) + $1)) what=$2
	shift 2
	until "$@"; do
		[ "$(date +%s)" -lt "$deadline" ] || die "waited too long for $what"
		sleep 0.2
	done
}

# balloon_is PYTHON-EXPRESSION: of the answer of "balloon status", "host", and "vm", its VMs by name
balloon_is()
{
	ctl --json balloon status >"$work/balloon.json" &&
		python3 -c 'import json, sys
j = json.load(open(sys.argv[1]))
host, vm = j["host"], {v["name"]: v for v in j["vms"]}
sys.exit(not eval(sys.argv[2]))' "$work/balloon.json" "$1" 2>/dev/null
}

# balloon_get PYTHON-EXPRESSION: of the same
balloon_get()
{
	ctl --json balloon status | python3 -c 'import json, sys
j = json.load(sys.stdin)
host, vm = j["host"], {v["name"]: v for v in j["vms"]}
print(eval(sys.argv[1]))' "$1"
}

# What the VMM says that a guest has, in MiB
actual_mib()
{
	ask_qmp "$1" query-balloon | get "j['actual'] >> 20"
}

# What the guests' memory takes, in KiB, as the kernel charges it: of an anonymous page that n mappings share (KSM), each
# counts 1/n; and the frames of the daemon's stores.
charged_kib()
{
	local g sum=0 kib fd
	for g in "${guests[@]}"; do
		kib=$(awk '/^Pss_Anon:/ { print $2 }' "/proc/$(cat "$work/$g/qemu.pid")/smaps_rollup")
		sum=$((sum + kib))
	done
	for fd in ${daemon_pid:+/proc/"$daemon_pid"/fd/*}; do
		case $(readlink "$fd") in
		/memfd:memvirt-store:*) sum=$((sum + $(stat -L -c %b "$fd") / 2)) ;;
		esac
	done
	echo "$sum"
}
