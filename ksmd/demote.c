#include "ksmd/demote.h"

#include <inttypes.h>
#include <stdio.h>

#include "core/clock.h"
#include "core/snapshot.h"

/* Looks that come sooner after one another are judged together: a few pages more or less would decide. As long as the
 * daemon lets pass between two looks of its own. */
#define JUDGE_NS (15 * NSEC_PER_SEC)

/* Of the merged pages, in a minute, the shortest time between two passes. At a fifth, each pass finds a fifth of the last
 * one's gain again: the same pages are exchanged, and copied by the guest, every five minutes. Below a twentieth, which is
 * every twenty minutes, hashing them costs more than that. Working test guests broke a twentieth a minute in the worst look
 * after they were merged, and next to nothing a minute later. */
#define BAD_PERCENT 20
#define CALM_PERCENT 5

/* So many in a row: one guest that boots a program or two is no reason. */
#define LOOKS_NEEDED 3

/* Below 4 MiB there is nothing to lose by merging, and some pages are a large share. */
#define PAGES_MIN 1024

/* Ten passes at least; and in the end six trials a day, each of three looks: a guest that never stops costs a quarter of a
 * percent of its time. */
#define HOLD_MIN_NS (10 * 60 * NSEC_PER_SEC)
#define HOLD_MAX_NS (4 * 3600 * NSEC_PER_SEC)

#define MIB_PAGES (1048576 / PAGE_BYTES)

/* Twice as long as before, unless its merges kept for as long as it was held. */
static uint64_t hold_next(const struct demotion *d)
{
	if (d->hold_ns == 0 || d->kept_ns >= d->hold_ns)
		return HOLD_MIN_NS;
	return d->hold_ns < HOLD_MAX_NS / 2 ? d->hold_ns * 2 : HOLD_MAX_NS;
}

static enum demote_event demote(struct demotion *d, uint64_t percent, uint64_t pages, uint64_t now_ns)
{
	d->hold_ns = hold_next(d);
	d->since_ns = now_ns;
	d->demoted = true;
	d->looks = 0;
	snprintf(d->why, sizeof(d->why),
		 "its merges keep breaking (%" PRIu64 " %% of %" PRIu64 " MiB a minute): not merged for %" PRIu64 " min",
		 percent, pages / MIB_PAGES, d->hold_ns / NSEC_PER_SEC / 60);
	return DEMOTE_DOWN;
}

static enum demote_event promote(struct demotion *d, uint64_t now_ns)
{
	snprintf(d->why, sizeof(d->why), "its merges have kept for the last %d looks, after %" PRIu64 " min",
		 LOOKS_NEEDED, (now_ns - d->since_ns) / NSEC_PER_SEC / 60);
	d->demoted = false;
	d->looks = 0;
	d->kept_ns = 0;
	return DEMOTE_UP;
}

enum demote_event demote_look(struct demotion *d, uint64_t whole_pages, uint64_t breaks, uint64_t now_ns)
{
	uint64_t elapsed = now_ns - d->judged_ns, fresh, exposed, percent;
	bool first = d->judged_ns == 0 || breaks < d->breaks_then;

	if (!first && elapsed < JUDGE_NS)
		return DEMOTE_KEEP;
	/* What was merged since the last look could break as well. */
	fresh = first ? 0 : breaks - d->breaks_then;
	exposed = whole_pages + fresh > d->whole_then ? whole_pages + fresh : d->whole_then;
	percent = exposed >= PAGES_MIN ? (uint64_t)((double)fresh / (double)exposed * 100 * 60 /
						    ((double)elapsed / (double)NSEC_PER_SEC)) : 0;
	d->judged_ns = now_ns;
	d->whole_then = whole_pages;
	d->breaks_then = breaks;
	if (first)
		return DEMOTE_KEEP;
	if (exposed >= PAGES_MIN && percent < BAD_PERCENT)
		d->kept_ns += elapsed;
	d->looks = (d->demoted ? percent <= CALM_PERCENT : percent >= BAD_PERCENT) ? d->looks + 1 : 0;
	if (d->looks < LOOKS_NEEDED)
		return DEMOTE_KEEP;
	if (!d->demoted)
		return demote(d, percent, exposed, now_ns);
	return now_ns - d->since_ns >= d->hold_ns ? promote(d, now_ns) : DEMOTE_KEEP;
}
