/* ksmd/plan.h - which pages of one domain to merge, into which frames, in which order. Pure: no I/O, clock or
 * globals.
 *
 * The planner is told the pages (hash arrays), groups of equal hash (join_run()) and the frames that exist already
 * (frame_index). It gives back 2 MiB windows, the best first, each with its runs: consecutive guest pages onto
 * consecutive frames, or zero pages, which need no frame. Frames that a window is the first to use come with it, to
 * be filled from pages of that very window. See README, "Layout" and "Plan".
 *
 *	plan_new -> plan_group for every group (or plan_join) -> plan_build -> allocate frames -> plan_place
 *	-> plan_next until 0 -> plan_free
 *
 * Memory: 5 bits for each page while groups come in, and 5.7 bytes for each content that needs a new frame
 * after that; nothing for a run. One thread at a time, registered with RCU when there is an index. */
#ifndef KSMD_PLAN_H
#define KSMD_PLAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ksmd/join.h"

struct frame_index;
struct plan;

#define PLAN_WINDOW_PAGES 512u
#define PLAN_ZERO UINT32_MAX /* in place of a frame: leave the pages absent */

/* One stretch of a VM's memory; everything is borrowed until plan_free(), and must not change. */
struct plan_range {
	uint32_t vm;	     /* below vm_count; ranges ascending by vm, then first_page */
	uint64_t first_page; /* its number in the VM */
	uint64_t hva;	     /* page-aligned: windows are aligned to 2 MiB here */
	uint64_t pages;
	const uint64_t *hashes;
	/* A bit for each page; NULL: none. */
	const uint64_t *left_out; /* is not to be merged now: mapped to a frame already, changing all the time */
	/* A bit for each window, the first being the one that holds hva; NULL: none. */
	const uint64_t *huge; /* is mapped by a huge page */
	const uint64_t *skip; /* not to be touched: pinned, breaking too often, just written */
};

#define PLAN_MAPPINGS_UNLIMITED UINT32_MAX
struct plan_vm {
	uint32_t mappings_left; /* of its budget; a run is counted as two, the most it can cost */
};

struct plan_limits {
	uint32_t window_min_huge;  /* merges that are worth losing a huge page */
	uint32_t window_min_small; /* merges that are worth one exchange */
	uint32_t run_min;	   /* shortest run; zero pages apart */
	uint32_t run_min_tight;	   /* the same for a VM whose mappings_left is not enough for all */
	uint32_t block_spare_max;  /* frames that an identical block may take beyond what its contents need */
};
/* Measured on guests in huge pages: 99.97 % of what can be saved is in windows of 4 merges or more; for 3 pages a
 * guest shall not lose a huge page. (With 64 it were 99.0 %, and 35 more huge pages of 589 were kept.) Runs of one
 * page are 8 % of the pages and 79 % of the mappings. Blocks with up to 16 spare frames would cost 0.13 % of the
 * savings, with any number of equal pages 0.11 %. */
#define PLAN_LIMITS_DEFAULT ((struct plan_limits){ 4, 1, 1, 2, 2 })

struct plan_input {
	const struct plan_range *ranges;
	size_t range_count;
	const struct plan_vm *vms; /* copied */
	size_t vm_count;
	struct plan_limits limits;
	const struct frame_index *index; /* frames of the domain's store that may be used; may be NULL */
};

/* 0, -EINVAL (ranges out of order or misaligned), -E2BIG (more than 16 TiB), -ENOMEM. */
int plan_new(const struct plan_input *input, struct plan **ret_plan);
struct plan *plan_free(struct plan *p); /* NULL ok; gives NULL */

/* ---- groups ---- */

/* A join_group_fn; userdata is the plan, join_ref.owner the VM, join_ref.page its page number. A group is
 * complete and comes once. */
void plan_group(uint64_t hash, const struct join_ref *refs, size_t count, void *userdata);
/* All groups of the plan's own ranges. 0 or -ENOMEM. */
int plan_join(struct plan *p, size_t *ret_peak_bytes);

/* ---- layout ---- */

struct plan_need {
	uint32_t block_frames; /* for whole windows: a multiple of 512, to be aligned to 512 */
	uint32_t frames;       /* others, in one extent */
	uint64_t gain_pages;   /* pages in runs less these frames: what all windows together would save at most */
};
/* Chooses windows, orders them and numbers the new frames. 0 or -ENOMEM, -E2BIG. */
int plan_build(struct plan *p, struct plan_need *ret_need);
/* Where the two extents are; one that is not needed may be anywhere. Not all of their frames need come to be
 * used: those that no window brought a fill for are for the caller to release. -EINVAL when misaligned. */
int plan_place(struct plan *p, uint32_t first_block_frame, uint32_t first_frame);

/* ---- windows ---- */

struct plan_run {
	uint64_t page; /* of the VM */
	uint32_t pages;
	uint32_t frame; /* the first of as many, or PLAN_ZERO */
};

struct plan_window {
	uint32_t vm;
	uint64_t page, pages; /* all of the window that is the VM's memory */
	bool huge;	      /* as it was told */
	uint32_t score;	      /* never higher than the one before: saved bytes in 1/16 of cost bytes */
	uint32_t merged;      /* pages in runs, zero pages included */
	uint32_t run_count, fill_count;
	struct plan_run runs[PLAN_WINDOW_PAGES];  /* ascending by page */
	struct plan_run fills[PLAN_WINDOW_PAGES]; /* frames to fill from pages of this window before runs are mapped */
};

/* 1 and the next window (all fields), or 0 at the end. */
int plan_next(struct plan *p, struct plan_window *ret_window);

/* What is remembered of a page, for frame_index_put() after a fill. The page must be in a range. */
uint64_t plan_page_hash(const struct plan *p, uint32_t vm, uint64_t page);

/* ---- figures ---- */

struct plan_totals { /* of the windows that plan_next() gave so far */
	uint64_t windows, runs; /* zero runs apart */
	uint64_t merged_pages, zero_pages;
	uint64_t filled_frames;
	uint64_t saved_pages; /* merged and zero less filled: what is really gained */
	uint64_t huge_windows; /* one run of 512 pages from an aligned frame: mapped huge */
};
void plan_count(const struct plan *p, struct plan_totals *ret_totals);
size_t plan_bytes(const struct plan *p); /* memory at its highest, the join apart */

#endif
