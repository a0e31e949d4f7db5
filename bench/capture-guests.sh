#!/bin/sh
# capture-guests.sh [OUTDIR] - boot four test guests with different work, let them run, and capture their
# RAM into OUTDIR (default: build/captures) for replay and merge. Does nothing when that is up to date.
# Needs root and about 4 GiB of memory. Whatever happens, the guests are ended.
# environment: MEMVIRT_GUEST_MIB (default 768), MEMVIRT_GUEST_ROUNDS (default 3)
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=$here/..
guest=$root/tests/guest
build=${MEMVIRT_BUILD:-$root/build}
out=${1:-$build/captures}
mib=${MEMVIRT_GUEST_MIB:-768}
rounds=${MEMVIRT_GUEST_ROUNDS:-3}
workloads='idle python tmpfs files'

die()
{
	echo "capture-guests: $*" >&2
	exit 1
}

[ "$(id -u)" -eq 0 ] || die "needs root: other processes' memory is read"
[ -x "$build/bench/capture" ] || die "no $build/bench/capture: run make first"
"$guest/build-image.sh"

# What the captures depend on.
stamp=$(cat "$build/guest/stamp" "$here/capture.c" "$here"/lib/capture_*.c "$guest"/run-guest.sh |
	sha256sum | cut -d ' ' -f 1)" mib=$mib rounds=$rounds"
if [ -e "$out/stamp" ] && [ "$(cat "$out/stamp")" = "$stamp" ]; then
	exit 0
fi

run=$(mktemp -d)
end_guests()
{
	for w in $workloads; do
		[ ! -d "$run/$w" ] || "$guest/stop-guest.sh" "$run/$w" || :
	done
	rm -rf "$run"
}
trap end_guests EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

mkdir -p "$out"
rm -f "$out/stamp" "$out"/*.json "$out"/*.raw
seed=0
for w in $workloads; do
	seed=$((seed + 1))
	echo "capture-guests: booting $w" >&2
	"$guest/run-guest.sh" --dir "$run/$w" --name "bench-$w" --mem "$mib" --workload "$w" --seed "$seed"
done
for w in $workloads; do
	echo "capture-guests: waiting for $rounds rounds of $w" >&2
	"$guest/wait-round.sh" "$run/$w" "$rounds" 300 >&2
done
for w in $workloads; do
	"$build/bench/capture" --pid "$(cat "$run/$w/qemu.pid")" --dir "$out" --name "$w" --freeze
done
echo "$stamp" >"$out/stamp"
