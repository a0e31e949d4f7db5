/* What the planner of a round is told of each VM: guest RAM, what is huge, and what is to be left out. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/snapshot.h"
#include "ept/pagestate.h"
#include "ksmd/pass_internal.h"
#include "ksmd/remap_internal.h"

/* A bit for each window that is one huge page. */
static uint64_t *huge_windows(int pagemap_fd, uint64_t at, uint64_t end)
{
	uint64_t base = at / HUGE_BYTES;
	size_t windows = (size_t)((end - 1) / HUGE_BYTES - base + 1);
	uint64_t *bits = calloc((windows + 63) / 64, sizeof(*bits));
	struct page_range ranges[64];

	while (bits && at < end) {
		ssize_t n = pagestate_ranges(pagemap_fd, at, end, ranges, 64, &at);

		for (ssize_t i = 0; i < n; i++) {
			if (!(ranges[i].flags & PAGE_HUGE))
				continue;
			for (uint64_t w = (ranges[i].start + HUGE_BYTES - 1) / HUGE_BYTES;
			     (w + 1) * HUGE_BYTES <= ranges[i].end; w++)
				bits[(w - base) / 64] |= UINT64_C(1) << ((w - base) % 64);
		}
		if (n < 0)
			break;
	}
	return bits;
}

static void bits_set(uint64_t *bits, uint64_t from, uint64_t to)
{
	for (uint64_t p = from; p < to; p++)
		bits[p / 64] |= UINT64_C(1) << p % 64;
}

/* A bit for each page of [start, end) that is not to be merged now: it is mapped to a frame already, written since or not;
 * or the guest has written to it between the last two passes, and would soon again: a merge costs it a fault and a copy.
 * first: the target's page at start. NULL: no memory. */
static uint64_t *pages_left_out(const struct frame_user *user, const struct scan_target *t, uint64_t first,
				uint64_t start, uint64_t end)
{
	size_t count;
	const struct hva_range *ranges = frame_user_ranges(user, &count);
	uint64_t pages = (end - start) / PAGE_BYTES, *bits = calloc(pages / 64 + 1, sizeof(*bits));

	for (size_t i = 0; bits && i < count; i++) {
		uint64_t from = ranges[i].start > start ? ranges[i].start : start;
		uint64_t to = ranges[i].end < end ? ranges[i].end : end;

		if (from < to)
			bits_set(bits, (from - start) / PAGE_BYTES, (to - start) / PAGE_BYTES);
	}
	for (uint64_t p = 0; bits && p < pages; p++)
		if (t->changed[(first + p) / 64] >> (first + p) % 64 & 1)
			bits_set(bits, p, p + 1);
	return bits;
}

/* The part of a target that lies in a slot; page: the target's first. */
static int range_add(struct remap_work *o, uint32_t vm, const struct scan_target *t, uint64_t page,
		     const struct agent_slot_view *slot)
{
	uint64_t start = t->hva > slot->hva ? t->hva : slot->hva, end = t->hva + t->pages * PAGE_BYTES;
	uint64_t skip;

	if (end > slot->hva + slot->bytes)
		end = slot->hva + slot->bytes;
	if (!slot->can_remap || start >= end)
		return 0;
	skip = (start - t->hva) / PAGE_BYTES;
	/* A huge page that came since the scan is planned for like small ones; the agent looks for itself. */
	if (t->huge_pages > 0) {
		o->huge[o->range_count] = huge_windows(t->pagemap_fd, start, end);
		if (!o->huge[o->range_count])
			return -ENOMEM;
	}
	o->left_out[o->range_count] = pages_left_out(o->lanes[vm].user, t, skip, start, end);
	if (!o->left_out[o->range_count])
		return -ENOMEM;
	o->ranges[o->range_count] = (struct plan_range){
		.vm = vm,
		.first_page = page + skip,
		.hva = start,
		.pages = (end - start) / PAGE_BYTES,
		.hashes = t->hashes + skip,
		.left_out = o->left_out[o->range_count],
		.huge = o->huge[o->range_count],
	};
	o->range_count++;
	return 0;
}

static int slot_compare(const void *a, const void *b)
{
	const struct agent_slot_view *x = a, *y = b;

	return x->hva < y->hva ? -1 : x->hva > y->hva;
}

/* What both sides call guest RAM: the daemon by what the VMM's monitor says, the agent by what the VMM did with it. */
static int vm_ranges_make(struct remap_work *o, uint32_t vm)
{
	const struct page_table *table = o->lanes[vm].vm->table;
	struct agent_slot_view slots[AGENT_SLOTS_MAX];
	const struct agent_slot_view *said;
	size_t count = agent_peer_slots(o->lanes[vm].vm->peer, &said);
	uint64_t page = 0;

	memcpy(slots, said, count * sizeof(*slots));
	qsort(slots, count, sizeof(*slots), slot_compare);
	for (size_t k = 0; k < table->target_count; k++) {
		for (size_t i = 0; i < count; i++) {
			int r = range_add(o, vm, &table->targets[k], page, &slots[i]);

			if (r < 0)
				return r;
		}
		page += table->targets[k].pages;
	}
	return 0;
}

int remap_ranges_make(struct remap_work *o)
{
	size_t total = 0;
	int r = 0;

	/* Slots do not overlap, targets neither: each pair has one part at most, each end of one ends one. */
	for (size_t i = 0; i < o->count; i++)
		total += o->lanes[i].vm->table->target_count + AGENT_SLOTS_MAX;
	o->ranges = calloc(total + 1, sizeof(*o->ranges));
	o->huge = calloc(total + 1, sizeof(*o->huge));
	o->left_out = calloc(total + 1, sizeof(*o->left_out));
	if (!o->ranges || !o->huge || !o->left_out)
		return -ENOMEM;
	for (size_t i = 0; i < o->count && r == 0; i++) {
		o->lanes[i].first_range = o->range_count;
		r = o->lanes[i].result.broken ? 0 : vm_ranges_make(o, (uint32_t)i);
		o->lanes[i].end_range = o->range_count;
	}
	return r;
}

uint64_t remap_page_hva(const struct remap_work *o, uint32_t vm, uint64_t page)
{
	for (size_t i = o->lanes[vm].first_range; i < o->lanes[vm].end_range; i++) {
		const struct plan_range *g = &o->ranges[i];

		if (page >= g->first_page && page - g->first_page < g->pages)
			return g->hva + (page - g->first_page) * PAGE_BYTES;
	}
	return 0;
}
