/* agent/exchange_internal.h - what the files of the exchange share. */
#ifndef AGENT_EXCHANGE_INTERNAL_H
#define AGENT_EXCHANGE_INTERNAL_H

#include <pthread.h>
#include <signal.h>

#include "agent/eligible.h"
#include "agent/exchange.h"
#include "agent/freezer.h"
#include "agent/hooks.h"
#include "agent/pagemap.h"
#include "agent/pins.h"
#include "agent/staging.h"

struct slot {
	uint64_t start, end; /* end 0: free */
	bool wp;
	bool closed; /* nothing is merged in it; what is merged stays, and can be discarded */
	struct ram_attrs attrs;
	/* A bit per page: a mapping of a store is, or may be, over it. Set before the mapping is made and cleared
	 * after it is gone: a page that is wrongly set costs a merge, one wrongly clear would show store bytes
	 * after MADV_DONTNEED. */
	uint64_t *merged;
	size_t merged_bytes;
};

struct exchange {
	pthread_mutex_t mutex; /* robust: a dead owner is noticed and its window repaired */
	sigset_t saved_mask;   /* of the thread that holds it */
	int saved_cancel;
	int uffd, pagemap_fd;
	struct freezer *freezer; /* NULL: nothing can be folded */
	struct pins_mounts mounts; /* of the files that it may have open while it folds */
	int stopped; /* 0, or why nothing is merged any more */
	struct exchange_journal *journal, child_journal; /* a forked child must not write to its parent's */
	struct staging huge, small; /* one keeps a bare 2 MiB entry, the other a page table (PERF.md) */
	struct slot slots[EXCHANGE_SLOTS_MAX];
	size_t map_limit, maps_counted, maps_since;
	uint32_t step; /* enum exchange_step, as in the journal */
	uint64_t step_started_ns;
	struct exchange_counters counters;
};

/* One call of exchange_merge(). */
struct window {
	uint64_t addr;
	unsigned lo, hi; /* pages of the slot within the window */
	struct slot *slot;
	struct staging *staging;
	const struct exchange_options *opt;
	struct page_bits wanted; /* present pages of runs */
	struct page_bits moved;	 /* tried, and by the page tables really in staging */
	struct page_bits equal;	 /* compared with their frame, or with zeroes: may be merged */
	struct page_bits cut;	 /* equal, but in pieces below min_piece */
	struct page_bits merged; /* mapped to their frame, or left absent */
	int16_t errs[WINDOW_PAGES]; /* why a page was not moved or not mapped */
	bool huge;	/* one huge page, moved out whole */
	bool still_huge; /* and it is one in staging */
	bool blind;	/* the page tables could not be read: what is in staging is not known */
	unsigned refusals; /* single pages that would not move */
	unsigned mapped_lo, mapped_hi; /* span of new mappings */
	uint64_t frozen_ns;
};

static inline uint64_t window_at(const struct window *w, unsigned page)
{
	return w->addr + page * WINDOW_PAGE_BYTES;
}

void journal_step(struct exchange *x, uint32_t step);

/* exchange_plan.c. window_check: finds the slot, refuses runs that do not fit. window_plan: what is worth trying.
 * window_pays: is the window worth so many merged pages? */
int window_check(struct exchange *x, struct window *w, const struct exchange_store *store,
		 const struct exchange_run *runs, size_t count);
int window_plan(struct exchange *x, struct window *w, const struct exchange_run *runs, size_t count);
bool window_pays(const struct window *w, unsigned pages);
void run_result(struct exchange *x, const struct window *w, struct exchange_run *r);
void runs_result_all(struct exchange_run *runs, size_t count, uint8_t outcome, int err);

/* Room in the mapping budget for `more` mappings? Counts again when its estimate is near the limit. */
bool budget_allows(struct exchange *x, size_t more, size_t limit);
void budget_recount(struct exchange *x); /* before the next answer: a mapping has failed */
struct slot *slot_find(struct exchange *x, uint64_t addr);
void slot_mark(struct slot *s, uint64_t addr, size_t pages, bool merged);
static inline bool slot_merged(const struct slot *s, uint64_t addr)
{
	uint64_t page = (addr - s->start) / WINDOW_PAGE_BYTES;

	return s->merged[page / 64] >> (page % 64) & 1;
}

/* exchange_back.c. Brings every page that is in staging and not settled back to the window. Returns how many are stuck. */
unsigned window_put_back(struct exchange *x, struct window *w);

/* R4: a mapping that fails after the kernel has cleared the range leaves a hole in the address space, where nothing
 * could be copied back to. Makes it anonymous memory that waits, as it was. 0: there is memory, a hole or not. */
int gap_fill(struct exchange *x, const struct slot *s, int uffd, uint64_t addr, uint64_t len);

#endif
