#!/bin/sh
# run-guest.sh - start one test guest in the background; see usage() and README.md.
# The guest is up when this returns; `guest ready` on its console and the rounds come later (wait-round.sh).
set -eu

usage()
{
	cat <<'END'
usage: run-guest.sh --dir RUNDIR [OPTION...] [-- QEMU-ARGUMENT...]
  --dir RUNDIR          where qmp.sock, serial.log, qemu.log, qemu.pid and uuid go; made if missing
  --name NAME           default: guest
  --uuid UUID           default: made from the name, the same each time
  --mem MIB             default: 768
  --workload W          idle, python, tmpfs, files or shift (needs disks, see README.md); default: idle
  --seed N              default: 1
  --append WORDS        more for the kernel command line, e.g. "round_s=5 pattern_mib=64"
  --thp on|off          huge pages for guest memory; default: on, if the host allows them
  --mem-merge on|off    whether QEMU marks guest memory for the kernel's KSM; default: on
  --reporting on|off    whether the guest reports its free pages; default: on
environment:
  MEMVIRT_GUEST_IMAGE   what build-image.sh made; default: build/guest
  MEMVIRT_ACCEL         default: tcg,thread=multi
  MEMVIRT_QEMU          program to run, with words to go before it; default: qemu-system-x86_64
END
}

die()
{
	echo "run-guest: $*" >&2
	exit 1
}

on_off()
{
	case $2 in
	on | off) ;;
	*) die "$1 $2: want on or off" ;;
	esac
}

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
image=${MEMVIRT_GUEST_IMAGE:-$root/build/guest}
dir='' name=guest uuid='' mem=768 workload=idle seed=1 append='' thp=on merge=on reporting=on

while [ $# -gt 0 ]; do
	case $1 in
	--help | -h) usage; exit 0 ;;
	--) shift; break ;;
	esac
	[ $# -ge 2 ] || { usage >&2; exit 2; }
	case $1 in
	--dir) dir=$2 ;;
	--name) name=$2 ;;
	--uuid) uuid=$2 ;;
	--mem) mem=$2 ;;
	--workload) workload=$2 ;;
	--seed) seed=$2 ;;
	--append) append=$2 ;;
	--thp) on_off "$1" "$2"; thp=$2 ;;
	--mem-merge) on_off "$1" "$2"; merge=$2 ;;
	--reporting) on_off "$1" "$2"; reporting=$2 ;;
	*) usage >&2; exit 2 ;;
	esac
	shift 2
done
[ -n "$dir" ] || { usage >&2; exit 2; }
case $workload in
idle | python | tmpfs | files | shift) ;;
*) die "--workload $workload: want idle, python, tmpfs, files or shift" ;;
esac
command -v socat >/dev/null || die "socat is not installed"
[ -e "$image/stamp" ] || die "no guest image in $image: run build-image.sh"

mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
case $dir in
*,*) die "--dir $dir: QEMU cannot take a comma there" ;;
esac
# QEMU locks its pid file, but only after it has truncated the logs of the guest that holds it.
if "$here/stop-guest.sh" --running "$dir"; then
	die "a guest runs in $dir already"
fi
rm -f "$dir/qmp.sock" "$dir/qemu.pid"
: >"$dir/serial.log"

if [ -z "$uuid" ]; then
	uuid=$(printf %s "$name" | sha256sum |
		sed 's/^\(.\{8\}\)\(.\{4\}\).\(.\{3\}\).\(.\{3\}\)\(.\{12\}\).*/\1-\2-5\3-8\4-\5/')
fi
echo "$uuid" >"$dir/uuid"

wrap=''
[ "$thp" = on ] || wrap="$image/no-thp"
set -- -name "guest=$name,process=qemu:$name,debug-threads=on" -uuid "$uuid" \
	-machine "pc,mem-merge=$merge" -accel "${MEMVIRT_ACCEL:-tcg,thread=multi}" -smp 1 -m "$mem" \
	-nodefaults -no-user-config -no-reboot -display none \
	-kernel "$image/vmlinuz" -initrd "$image/initrd" \
	-append "console=ttyS0 quiet panic=-1 workload=$workload seed=$seed $append" \
	-chardev "file,id=serial0,path=$dir/serial.log" -serial chardev:serial0 \
	-drive "if=none,id=root,format=raw,readonly=on,file=$image/root.ext4" -device virtio-blk-pci,drive=root \
	-device "virtio-balloon-pci,id=balloon0,guest-stats-polling-interval=2,free-page-reporting=$reporting" \
	-qmp "unix:$dir/qmp.sock,server=on,wait=off" -pidfile "$dir/qemu.pid" "$@"

# Not -daemonize: it forks after a preloaded library has started, and a userfaultfd does not follow a fork.
# A session of its own keeps the terminal's signals away.
# shellcheck disable=SC2086	# both are lists of words
setsid ${wrap:+"$wrap"} ${MEMVIRT_QEMU:-qemu-system-x86_64} "$@" </dev/null >"$dir/qemu.log" 2>&1 &
child=$!

# QEMU answers from its main loop, so only when every device and option has been accepted.
answers()
{
	[ -S "$dir/qmp.sock" ] && [ -s "$dir/qemu.pid" ] &&
		printf '%s\n' '{"execute":"qmp_capabilities"}' '{"execute":"query-status"}' |
		socat -t 5 - "UNIX-CONNECT:$dir/qmp.sock" 2>/dev/null | grep -q '"status"'
}

tries=300
until answers; do
	tries=$((tries - 1))
	if ! kill -0 "$child" 2>/dev/null || [ "$tries" -eq 0 ]; then
		kill "$child" 2>/dev/null || :
		cat "$dir/qemu.log" >&2
		die "QEMU did not start"
	fi
	sleep 0.1
done
