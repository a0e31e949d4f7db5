/* Before and after the window: are the runs well formed, is the window worth it, and what became of each run. */
#include <errno.h>

#include "agent/exchange_internal.h"
#include "core/kernel_abi.h"

/* ---- before the window: is it well formed, is it worth it ---- */

/* Runs come from a daemon that is not to be trusted with more than its own store: they must lie in the slot, ascend,
 * not overlap, and name frames that exist. */
static int runs_check(const struct window *w, const struct exchange_store *store,
		      const struct exchange_run *runs, size_t count)
{
	unsigned next = w->lo;

	for (size_t i = 0; i < count; i++) {
		const struct exchange_run *r = &runs[i];

		if (r->pages == 0 || r->first < next || r->first >= w->hi || r->pages > w->hi - r->first)
			return -EINVAL;
		if (r->frame != EXCHANGE_ZERO &&
		    (r->frame >= store->frames || r->pages > store->frames - r->frame))
			return -EINVAL;
		next = (unsigned)r->first + r->pages;
	}
	return count > 0 ? 0 : -EINVAL;
}

/* The slot of the first run, which must hold them all, and its part of the window. */
int window_check(struct exchange *x, struct window *w, const struct exchange_store *store,
		 const struct exchange_run *runs, size_t count)
{
	if (w->addr % WINDOW_BYTES != 0 || runs[0].first >= WINDOW_PAGES)
		return -EINVAL;
	w->slot = slot_find(x, window_at(w, runs[0].first));
	if (!w->slot || w->slot->closed)
		return -EINVAL;
	w->lo = w->slot->start > w->addr ? (unsigned)((w->slot->start - w->addr) / WINDOW_PAGE_BYTES) : 0;
	w->hi = w->slot->end < w->addr + WINDOW_BYTES ?
			(unsigned)((w->slot->end - w->addr) / WINDOW_PAGE_BYTES) :
			WINDOW_PAGES;
	w->mapped_lo = WINDOW_PAGES;
	return runs_check(w, store, runs, count);
}

/* Looks at the page tables before anything is frozen. What it finds may be out of date at once; it decides only
 * what is tried. */
int window_plan(struct exchange *x, struct window *w, const struct exchange_run *runs, size_t count)
{
	struct page_states now;
	int err = pagemap_read(x->pagemap_fd, w->addr, w->lo, w->hi - w->lo, &now);

	if (err < 0)
		return err;
	for (size_t i = 0; i < count; i++) {
		for (unsigned p = runs[i].first; p < (unsigned)runs[i].first + runs[i].pages; p++) {
			uint8_t f = now.flags[p];

			/* A swapped page would have to be read in, a zero-page mapping costs nothing as it is, and a
			 * merged page that was written to is not in anonymous memory: no pin check, no move (R12). */
			if ((f & PAGE_IS_PRESENT) && !(f & (PAGE_IS_FILE | PAGE_IS_PFNZERO)) &&
			    !slot_merged(w->slot, window_at(w, p)))
				bits_set(&w->wanted, p, 1);
		}
	}
	w->huge = w->lo == 0 && w->hi == WINDOW_PAGES;
	for (unsigned p = w->lo; p < w->hi && w->huge; p++)
		w->huge = (now.flags[p] & PAGE_IS_HUGE) && !(now.flags[p] & (PAGE_IS_FILE | PAGE_IS_PFNZERO));
	w->staging = w->huge ? &x->huge : &x->small;
	if (!w->huge) { /* freeze no more than the runs need */
		unsigned end = w->hi;

		w->lo = bits_next(&w->wanted, w->lo, end, true);
		while (end > w->lo && !bits_test(&w->wanted, end - 1))
			end--;
		w->hi = end;
	}
	return 0;
}

bool window_pays(const struct window *w, unsigned pages)
{
	return pages > 0 && pages >= (w->huge ? w->opt->min_pages_huge : w->opt->min_pages);
}

/* ---- results ---- */

void run_result(struct exchange *x, const struct window *w, struct exchange_run *r)
{
	unsigned busy = 0, absent = 0, unequal = 0, failed = 0, merged = 0;

	r->err = 0;
	for (unsigned p = r->first; p < (unsigned)r->first + r->pages; p++) {
		int err = w->errs[p];

		if (bits_test(&w->merged, p))
			merged++;
		else if (err == -EBUSY)
			busy++;
		else if (err != 0 && err != -ENOENT)
			failed++;
		else if (!bits_test(&w->wanted, p) || !bits_test(&w->moved, p))
			absent++;
		else if (!bits_test(&w->equal, p) && !bits_test(&w->cut, p))
			unequal++;
		if (r->err == 0)
			r->err = err;
	}
	r->merged = (uint16_t)merged;
	if (failed > 0)
		r->outcome = EXCHANGE_FAILED;
	else if (busy > 0)
		r->outcome = EXCHANGE_BUSY;
	else if (unequal > 0)
		r->outcome = EXCHANGE_UNEQUAL;
	else if (absent > 0)
		r->outcome = EXCHANGE_ABSENT;
	else
		r->outcome = merged == r->pages ? EXCHANGE_MERGED : EXCHANGE_SKIPPED;
	x->counters.busy_pages += busy;
	x->counters.unequal_pages += unequal;
}

void runs_result_all(struct exchange_run *runs, size_t count, uint8_t outcome, int err)
{
	for (size_t i = 0; i < count; i++) {
		runs[i].merged = 0;
		runs[i].outcome = outcome;
		runs[i].err = err;
	}
}
