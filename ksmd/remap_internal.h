/* ksmd/remap_internal.h - one round at work, shared by remap.c (stores, rounds, sweeps), remap_input.c (what the planner is
 * told) and remap_windows.c (fills, commands and answers). */
#ifndef KSMD_REMAP_INTERNAL_H
#define KSMD_REMAP_INTERNAL_H

#include "ksmd/plan.h"
#include "ksmd/remap.h"

#define HUGE_BYTES ((uint64_t)PLAN_WINDOW_PAGES * PAGE_BYTES)

struct remap {
	const struct fsio *fs;
	struct store *store;
	struct frame_index *index;
	struct frame_users *users;
	uint64_t *used_before; /* frames in use at the last sweep, or named in a command since */
	bool swept;	       /* used_before is of use */
	bool unindexed;	       /* adopted, and its frames are not in the index yet */
};

/* A window on its way: what its answer needs. */
struct sent {
	uint64_t window;
	uint16_t count;
	struct agent_run runs[AGENT_RUNS_MAX];
};

struct lane { /* of one VM */
	const struct remap_vm *vm;
	struct frame_user *user;
	struct remap_vm_result result;
	uint32_t mappings_left;
	size_t first_range, end_range; /* its part of the work's ranges */
	struct sent sent[AGENT_PEER_OUTSTANDING];
	unsigned first, count;
	uint64_t answers, waited_ns; /* for these */
};

struct remap_work {
	struct remap *r;
	struct lane *lanes;
	size_t count;
	struct plan_range *ranges;
	size_t range_count;
	uint64_t **huge, **left_out; /* per range */
	const struct remap_limits *limits;
	uint64_t start_ns, exchange_ns; /* when the round, and its first window, began */
	uint64_t cpu_ns;	/* of this thread when the round began */
	uint64_t agents_cpu_us; /* as they said */
	struct remap_result result;
};

/* Fills work's ranges, which remap.c frees: what both sides call guest RAM. 0 or -ENOMEM. */
int remap_ranges_make(struct remap_work *o);
/* The address of page number "page" of VM number vm. */
uint64_t remap_page_hva(const struct remap_work *o, uint32_t vm, uint64_t page);

/* Fills the frames of a window and sends it to its agent, after waiting for answers if too many are out. */
void remap_window_send(struct remap_work *o, const struct plan_window *w);
/* Takes answers until at most "left" windows are without one. */
void remap_answers_take(struct remap_work *o, struct lane *lane, unsigned left);
/* Whether the whole round is to end soon. */
bool remap_is_cancelled(const struct remap_work *o);
/* The same, or that no further window is to be begun. */
bool remap_is_ending(const struct remap_work *o);

#endif
