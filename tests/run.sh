#!/bin/bash
# Runs every test: the unit-test programs in $BUILD/tests and the scripts tests/e2e/test_*.sh, or those named
# as arguments (test_ksmd, test_merge ...). Exit 0 only if none failed; a test that exits 77 was skipped and has said why.
set -u

top=$(cd "$(dirname "$0")/.." && pwd)
BUILD=${BUILD:-$top/build}
export BUILD
passed=0 failed=0 skipped=0
log=$BUILD/tests/log
mkdir -p "$log"

run()
{
	local name=$1 start status
	shift
	start=$(date +%s)
	"$@" >"$log/$name" 2>&1 </dev/null
	status=$?
	grep -h '^skip:' "$log/$name"
	case $status in
	0)
		passed=$((passed + 1))
		echo "ok    $name ($(($(date +%s) - start)) s)"
		;;
	77)
		skipped=$((skipped + 1))
		echo "skip  $name"
		;;
	*)
		failed=$((failed + 1))
		echo "FAIL  $name (exit $status); the end of $log/$name:"
		tail -n 40 "$log/$name"
		;;
	esac
}

wanted()
{
	local name=$1 w
	shift
	[ $# -gt 0 ] || return 0
	for w in "$@"; do
		[ "$w" != "$name" ] || return 0
	done
	return 1
}

for t in "$BUILD"/tests/test_*; do
	[ -x "$t" ] && [ -f "$t" ] && compgen -G "$top/tests/*/${t##*/}.c" >/dev/null || continue
	! wanted "${t##*/}" "$@" || run "${t##*/}" "$t"
done
for t in "$top"/tests/e2e/test_*.sh; do
	name=${t##*/}
	name=${name%.sh}
	! wanted "$name" "$@" || run "e2e_$name" "$t"
done
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ] && [ $((passed + skipped)) -gt 0 ]
