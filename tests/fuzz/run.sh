#!/bin/bash
# Runs each fuzzer in DIR/bin for FUZZ_SECONDS, from the seeds in tests/fuzz/seeds/NAME and what earlier runs
# found (DIR/corpus/NAME). A crash leaves its input in DIR/crash-NAME-* and ends the run.
set -eu

dir=$1
seconds=${FUZZ_SECONDS:-30}
here=$(cd "$(dirname "$0")" && pwd)
for f in "$dir"/bin/fuzz_*; do
	name=${f##*/fuzz_}
	mkdir -p "$dir/corpus/$name"
	seeds=()
	[ ! -d "$here/seeds/$name" ] || seeds=("$here/seeds/$name")
	echo "fuzz $name for $seconds s"
	"$f" -max_total_time="$seconds" -max_len=65536 -timeout=10 -artifact_prefix="$dir/crash-$name-" -verbosity=0 \
		-print_final_stats=1 "$dir/corpus/$name" "${seeds[@]}" >"$dir/$name.log" 2>&1 || {
		tail -n 40 "$dir/$name.log"
		echo "FAIL fuzz $name"
		exit 1
	}
	sed -n 's/^stat::number_of_executed_units: */  inputs tried: /p' "$dir/$name.log"
done
