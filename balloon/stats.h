/* balloon/stats.h - which of a guest's statistics are fit to act on. Pure: no I/O, clock or globals. */
#ifndef BALLOON_STATS_H
#define BALLOON_STATS_H

#include "balloon/port.h"
#include "core/snapshot.h"

/* What was told last time; all zero: nothing. */
struct stats_age {
	struct balloon_told told;
	uint64_t changed_ns; /* when it was first told, CLOCK_MONOTONIC; 0: never */
	bool doubtful; /* how old it is is not known */
};

/* Fills the guest's part of ret_balloon, stats and why (a static string) included. now_s is CLOCK_REALTIME: only the first
 * statistics of all are aged by it. Later ones are aged by when they changed, so that a clock that is set does not matter. */
void stats_take(struct stats_age *a, const struct balloon_told *told, uint64_t now_ns, int64_t now_s,
		struct vm_balloon *ret_balloon);

#endif
