#!/bin/bash
# Balloons of real guests: a host that is short of memory takes what is idle, a guest that objects gets it back, and a
# guest that is reset boots with all of its memory. The host's memory is a cgroup's.
. "$(dirname "$0")/lib.sh"

needs_root
needs_qemu
needs_memory_cgroup

for g in one two three; do
	MEMVIRT_ACCEL=tcg,thread=multi,tb-size=32 start_guest $g --name $g --mem 512 --workload tmpfs \
		--append "round_s=5 pattern_mib=32" -- -overcommit mem-lock=off
done
wait_rounds 0 one two three >/dev/null
write_conf <<END
[host]
cgroup = $cgroup
min_free = 128MiB
[merge]
engine = off
END
start_daemon
ctl balloon status
limit_cgroup $(($(cgroup_usage) + 100))
sleep 3
ctl balloon status
sleep 10
ctl balloon status
cat "$work/daemon.log"
