#!/bin/sh
# run.sh [BUILD [MERGE-OPTION...]] - what `make bench` does: captures guests if that has not been done, compares
# the engines on them, draws BUILD/merge.svg. Without guests (no root, no QEMU, no packages) made-up ones serve.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
build=${1:-$here/../build}
[ $# -eq 0 ] || shift

if MEMVIRT_BUILD=$build "$here/capture-guests.sh"; then
	set -- --captures "$build/captures" "$@"
else
	echo "bench: no captures of real guests, going on with made-up ones" >&2
	set -- --synthetic "$@"
fi
"$build/bench/merge" --svg "$build/merge.svg" "$@"
echo "picture: $build/merge.svg" >&2
