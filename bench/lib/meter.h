/* bench/lib/meter.h - what an engine has saved and what it has cost so far, the same for every engine.
 *
 * Saved: page frames that the replayed guests needed at the start and do not need now. While an engine runs
 * it is told from cheap counters: the drop of the processes' RssAnon (pages that went to the zero page or
 * became holes) plus their mappings of KSM frames beyond the first of each frame, which still count in
 * RssAnon. KSM counts first mappings (pages_shared) for the whole machine only; if it merges memory of other
 * processes too, the share of the guests in its mappings is taken to be their share in its frames. At the
 * end frames are counted: distinct frame numbers in the page tables.
 *
 * CPU: that of the calling process (an engine works inside it) less what measuring itself took, plus that of
 * the kernel's scanner thread. */
#ifndef BENCH_METER_H
#define BENCH_METER_H

#include <stdbool.h>
#include <stdint.h>

#include "bench/lib/replay_proc.h"
#include "core/fsio.h"

struct meter {
	const struct fsio *fs;		   /* borrowed */
	const struct replay_group *group; /* borrowed */
	pid_t ksmd_pid;			   /* of the kernel's scanner; 0: none, or not used */
	uint64_t start_ns, start_anon_pages, start_cpu_ns;
	uint64_t measuring_ns; /* CPU time spent in here */
};

struct meter_sample {
	uint64_t ns; /* since the start */
	uint64_t saved_pages;
	uint64_t cpu_ns;
	uint64_t ksm_full_scans;
};

/* uses_ksm: the kernel's scanner works for the engine, and so counts. 0 or -errno (a process is gone). */
int meter_start(struct meter *m, const struct fsio *fs, const struct replay_group *group, bool uses_ksm);
int meter_take(struct meter *m, struct meter_sample *ret_sample);

/* Frames that the guests' RAM is mapped to, each counted once, the zero page not at all. 0; -EACCES when
 * the kernel hides frame numbers (not root); -errno. */
int meter_frames(const struct fsio *fs, const struct replay_group *group, uint64_t *ret_frames);

/* CPU time so far of the agents' threads in the guests' processes. */
uint64_t meter_agents_cpu_ns(const struct meter *m);

/* Merged guest memory that is mapped by 2 MiB entries: pages of a file under guest RAM. 0; -ENOTTY before Linux
 * 6.7; -errno. */
int meter_huge_merged(const struct fsio *fs, const struct replay_group *group, uint64_t *ret_pages);

/* What the kernel's scanner remembers of the guests: 64 bytes per page it has looked at and per shared
 * frame. *ret_foreign_pages: pages of other processes that it has looked at as well. */
uint64_t meter_ksm_metadata_bytes(const struct meter *m, uint64_t *ret_foreign_pages);

#endif
