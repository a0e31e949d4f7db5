#include "ksmd/debt.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>

#include "core/clock.h"

/* Two looks at the VMs (LOOK_NS): after less, one burst would pass for the rule; after more, a VM whose guest has changed
 * its ways would be believed too late. */
#define HALF_LIFE_S 30.0

/* From the first write of a burst until its memory is no debt any more: it shows at the next look (15 s), the one after
 * confirms it (15 s), and a round that is at work meanwhile ends (5 s at most, the time-out of an agent). Rounded up for the
 * looks' own time and for that of whoever then makes room. */
#define HORIZON_S 60.0

/* A rate that jumps shows as half of itself after one half-life. */
#define RATE_SAFETY 2.0

/* Kept apart: MemAvailable is an estimate that counts on page cache and slab being given back, and a guest that needs a
 * copy waits for no reclaim that is slow. 1/64 is 1.6 %: 256 MiB of a host of 16 GiB. */
#define RESERVE_SHARE 64

/* Merging goes on when the debt is below the limit by this share of it: free memory of a busy host goes up and down by a
 * few hundredths from tick to tick. */
#define RESUME_SHARE 8

#define MIB_PAGES (1048576 / PAGE_BYTES)

uint64_t break_rate_take(struct break_rate *r, uint64_t breaks, uint64_t at_ns)
{
	double seconds = (double)(at_ns - r->at_ns) / (double)NSEC_PER_SEC;
	bool begins = r->at_ns == 0 || breaks < r->breaks;
	uint64_t fresh = begins ? 0 : breaks - r->breaks;

	if (!begins && at_ns <= r->at_ns) /* nothing can be told of no time */
		return 0;
	if (!begins)
		r->per_s += ((double)fresh / seconds - r->per_s) * (1 - exp2(-seconds / HALF_LIFE_S));
	r->breaks = breaks;
	r->at_ns = at_ns;
	return fresh;
}

static uint64_t limit_pages(const struct host_snapshot *s)
{
	uint64_t free_bytes = s->mem_available_bytes + s->swap_free_bytes, reserve = s->mem_total_bytes / RESERVE_SHARE;

	return free_bytes > reserve ? (free_bytes - reserve) / PAGE_BYTES : 0;
}

/* The worse of what was observed and what a tenant can do unobserved; never more than there is. */
static uint64_t debt_pages(const struct debt_inputs *in)
{
	double merged = (double)in->merged_pages;
	double observed = in->breaks_per_s * HORIZON_S * RATE_SAFETY, floored = merged * (double)in->share_percent / 100;
	double worst = observed > floored ? observed : floored;

	return worst < merged ? (uint64_t)worst : in->merged_pages;
}

bool debt_decide(struct debt *d, const struct host_snapshot *s, const struct debt_inputs *in)
{
	enum debt_state before = d->state;

	d->pages = debt_pages(in);
	d->limit_pages = limit_pages(s);
	if (d->pages > d->limit_pages)
		d->state = DEBT_STOP;
	else if (d->pages <= d->limit_pages - d->limit_pages / RESUME_SHARE)
		d->state = DEBT_OK;
	if (d->state == before)
		return false;
	snprintf(d->why, sizeof(d->why),
		 "%" PRIu64 " of %" PRIu64 " MiB merged may come back at once, %.1f MiB/s do, and %" PRIu64 " MiB would fit",
		 d->pages / MIB_PAGES, in->merged_pages / MIB_PAGES, in->breaks_per_s / MIB_PAGES,
		 d->limit_pages / MIB_PAGES);
	return true;
}

const char *debt_state_name(enum debt_state state)
{
	return state == DEBT_STOP ? "stop" : "ok";
}
