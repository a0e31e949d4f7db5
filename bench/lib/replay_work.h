/* bench/lib/replay_work.h - what a replayed guest does: a victim that notices stalls, and a thread that
 * dirties pages. Both leave the memory as they found it when they are stopped, and notice when one of their
 * writes was lost. */
#ifndef BENCH_REPLAY_WORK_H
#define BENCH_REPLAY_WORK_H

#include <stdint.h>

#include "bench/lib/hist.h"
#include "bench/lib/replay_mem.h"

#define VICTIM_RATE_DEFAULT 20000u /* accesses per second: enough for a p99.9 within a second, 1 % of a core */

struct victim;

struct victim_result {
	struct hist hist; /* of single accesses */
	uint64_t reads, writes;
	uint64_t lost_writes; /* a changed byte that was not there any more a millisecond later */
};

/* Touches rate random pages per second. One access in 16 writes, and only to every 1024th page, so that
 * writes cannot undo more than a thousandth of what an engine merges. 0 or -errno. */
#define VICTIM_WRITE_STRIDE 1024u
#define VICTIM_WRITE_PAGES_MAX 256u
int victim_start(const struct replay_mem *m, uint64_t rate, struct victim **ret_victim);
/* Stops, restores, frees. */
void victim_stop(struct victim *v, struct victim_result *ret_result);

/* Writes to every page at once, as fast as one thread can, and puts all back in a second turn: a write that was lost is
 * found by the checksum. */
struct rewrite_result {
	uint64_t pages, ns, longest_ns; /* of the first turn; of one write */
};
void rewrite_all(const struct replay_mem *m, struct rewrite_result *ret_result);

struct dirtier;

/* Changes rate random pages per second. Needs 16 bytes of memory per page. 0 or -errno. */
int dirtier_start(const struct replay_mem *m, uint64_t rate, struct dirtier **ret_dirtier);
/* Stops, restores, frees; *ret_lost: pages that did not hold what was written last. */
void dirtier_stop(struct dirtier *d, uint64_t *ret_writes, uint64_t *ret_lost);

#endif
