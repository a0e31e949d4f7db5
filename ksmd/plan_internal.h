/* ksmd/plan_internal.h - the planner's windows and contents; see README, "Layout" and "Plan".
 *
 * A position is a page's place in all windows of all ranges: window * 512 + place in the window. A content that
 * gets a new frame is known by the position of its leader, the first page that has it. */
#ifndef KSMD_PLAN_INTERNAL_H
#define KSMD_PLAN_INTERNAL_H

#include "ksmd/plan.h"

#define POSITION_NONE UINT32_MAX
#define WINDOW_NONE UINT32_MAX
#define WINDOW_WORDS (PLAN_WINDOW_PAGES / 64)

struct plan_vm_state {
	uint32_t mappings_left;
	uint32_t run_min;
	uint64_t mappings_wanted;
	uint32_t first_range, end_range;
};

struct plan_span { /* a range, as positions */
	struct plan_range range;
	uint32_t first_window, end_window;
	uint32_t shift; /* place of its first page in its first window */
};

struct window {
	const uint64_t *hashes; /* of its page "from" */
	uint32_t span;
	uint16_t from, to;   /* its pages that are memory */
	uint32_t block;	     /* the window that leads its identical block; WINDOW_NONE: no such */
	uint32_t base;	     /* number of the first frame led here, in its extent */
	uint16_t gain, runs; /* pages merged, mappings */
	uint16_t gain_long, runs_long; /* the same without runs below run_min_tight */
	bool keep, skip, huge;
	bool aligned;	/* leads 512 frames, numbered in the aligned extent */
	bool maps_huge; /* one run of 512 onto an aligned frame */
};

struct ranked {
	uint32_t score, window;
	uint32_t turn; /* its number in the VM */
};

struct plan {
	struct plan_span *spans;
	size_t span_count;
	struct plan_vm_state *vms;
	size_t vm_count;
	struct plan_limits limits;
	const struct frame_index *index;

	struct window *windows;
	uint32_t window_count;

	/* A bit for each position: */
	uint64_t *candidate; /* shares its content; not in identical blocks */
	uint64_t *known;     /* candidate whose content has a frame already; NULL without an index */
	uint64_t *lead;	     /* leads a content */
	uint64_t *seen;	     /* leader: has one page in kept windows; before plan_build(): is looked up; later: filled */
	uint64_t *alive;     /* leader: has two, so that a frame pays */

	uint32_t *slots; /* open addressing by hash: position and, above, bits of the hash */
	uint64_t slot_count;
	unsigned position_bits;

	struct plan_need need;
	uint32_t first_block_frame, first_frame;
	struct ranked *order;
	size_t order_count, next;
	struct plan_totals totals;
	size_t bytes;
};

/* ---- bits ---- */

static inline bool bit_get(const uint64_t *bits, uint64_t i)
{
	return bits[i / 64] >> (i % 64) & 1;
}

static inline void bit_set(uint64_t *bits, uint64_t i)
{
	bits[i / 64] |= UINT64_C(1) << (i % 64);
}

static inline void bit_clear(uint64_t *bits, uint64_t i)
{
	bits[i / 64] &= ~(UINT64_C(1) << (i % 64));
}

/* ---- positions ---- */

static inline uint64_t position_hash(const struct plan *p, uint32_t position)
{
	const struct window *w = &p->windows[position / PLAN_WINDOW_PAGES];

	return w->hashes[position % PLAN_WINDOW_PAGES - w->from];
}

/* Its index in the range. */
static inline uint64_t position_index(const struct plan *p, uint32_t position)
{
	const struct plan_span *s = &p->spans[p->windows[position / PLAN_WINDOW_PAGES].span];

	return position - (uint64_t)s->first_window * PLAN_WINDOW_PAGES - s->shift;
}

static inline bool position_left_out(const struct plan *p, uint32_t position)
{
	const struct plan_span *s = &p->spans[p->windows[position / PLAN_WINDOW_PAGES].span];

	return s->range.left_out && bit_get(s->range.left_out, position_index(p, position));
}

/* POSITION_NONE when no range has the page. */
uint32_t plan_position(const struct plan *p, uint32_t vm, uint64_t page);

/* ---- plan_block.c: identical 2 MiB blocks ---- */

int plan_blocks_find(struct plan *p);

/* ---- plan_walk.c: from pages to runs ---- */

int plan_table_build(struct plan *p);

/* Pages of one window onto consecutive frames. Keys of new frames are numbers in their extent. */
#define KEY_NONE UINT64_MAX
#define KEY_ZERO (UINT64_MAX - 1)
#define KEY_ALIGNED (UINT64_C(1) << 32) /* + number in the aligned extent */
#define KEY_PACKED (UINT64_C(2) << 32)	/* + number in the other */
					/* below: a known frame */
struct piece {
	uint16_t from, pages; /* in the window */
	uint64_t key;	      /* of the first page */
};

struct walk {
	size_t count;
	struct piece pieces[PLAN_WINDOW_PAGES];
	uint32_t leaders[PLAN_WINDOW_PAGES]; /* per page: its content's, for pages in pieces of new frames */
};

void plan_walk(const struct plan *p, uint32_t window, struct walk *ret_walk);
/* Counts who still has two pages in kept windows. */
void plan_census(struct plan *p);
/* Numbers the frames of live contents. 0 or -E2BIG. */
int plan_number(struct plan *p);

#endif
