/* bench/lib/scan_bench.h - how fast the project reads guest memory, against a bare loop, and how right its
 * estimate is. Nothing is merged. */
#ifndef BENCH_SCAN_BENCH_H
#define BENCH_SCAN_BENCH_H

#include <stdint.h>

#include "bench/lib/replay_proc.h"
#include "core/fsio.h"

/* Rates of one variant over all rounds, in GB (10^9 bytes) of present pages per second. */
struct rate {
	double best, median; /* by wall time */
	double cpu_best;     /* best by CPU time: what a core does when nobody disturbs it */
};

struct scan_bench {
	struct rate bare;	/* one thread: process_vm_readv of 256 KiB, XXH3 of each page */
	struct rate bare_mem;	/* the same through /proc/PID/mem, which leaves merged pages merged */
	struct rate project[2]; /* scan_run() with one and with two workers */
};

/* Runs the variants in turn, rounds times. 0 or -errno. */
int scan_bench_run(const struct fsio *fs, const struct replay_group *group, char *const *json_paths, unsigned rounds,
		   struct scan_bench *ret_bench);

/* Pages; as in the oracle. */
struct estimate {
	double present, zero, within, between, mergeable;
	uint64_t metadata_bytes;
	double seconds, cpu_seconds;
};

/* One pass over all guests as one domain. 0 or -errno. */
int estimate_run(const struct fsio *fs, const struct replay_group *group, struct estimate *ret_estimate);

#endif
