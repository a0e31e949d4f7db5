#include "ksmd/plan.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <urcu.h>

#include "agent/page_hash.h"
#include "core/cleanup.h"
#include "core/snapshot.h"
#include "ksmd/frame_index.h"
#include "ksmd/plan_internal.h"

/* Positions are 32 bits, and the highest values say "none". */
#define WINDOWS_MAX (UINT32_MAX / PLAN_WINDOW_PAGES)

/* More pages of one content than a frame may have references make no difference to what is gained. */
#define GROUP_REFS_MAX 32768u

/* ---- windows of the ranges ---- */

static bool ranges_valid(const struct plan_input *in)
{
	for (size_t i = 0; i < in->range_count; i++) {
		const struct plan_range *r = &in->ranges[i], *before = &in->ranges[i ? i - 1 : 0];

		if (r->vm >= in->vm_count || r->pages == 0 || r->hva % PAGE_BYTES || r->pages > UINT32_MAX ||
		    r->first_page > UINT64_MAX - r->pages)
			return false;
		if (i > 0 && (r->vm < before->vm ||
			      (r->vm == before->vm && r->first_page < before->first_page + before->pages)))
			return false;
	}
	return in->vm_count < JOIN_OWNERS_MAX && in->range_count < WINDOW_NONE && in->limits.run_min > 0;
}

static void spans_number(struct plan *p, const struct plan_input *in, uint64_t *ret_windows)
{
	uint64_t windows = 0;

	for (size_t i = 0; i < in->range_count; i++) {
		const struct plan_range *r = &in->ranges[i];
		uint32_t shift = (uint32_t)(r->hva / PAGE_BYTES % PLAN_WINDOW_PAGES);
		uint64_t count = (shift + r->pages + PLAN_WINDOW_PAGES - 1) / PLAN_WINDOW_PAGES;

		p->spans[i] = (struct plan_span){ *r, (uint32_t)windows, (uint32_t)(windows + count), shift };
		windows += count;
		if (windows >= WINDOWS_MAX)
			break;
	}
	*ret_windows = windows;
}

static void span_windows(struct plan *p, uint32_t span)
{
	const struct plan_span *s = &p->spans[span];

	for (uint32_t i = s->first_window; i < s->end_window; i++) {
		uint64_t number = i - s->first_window, start = number * PLAN_WINDOW_PAGES;
		uint64_t end = s->shift + s->range.pages - start;
		struct window *w = &p->windows[i];

		w->span = span;
		w->from = (uint16_t)(number == 0 ? s->shift : 0);
		w->to = (uint16_t)(end < PLAN_WINDOW_PAGES ? end : PLAN_WINDOW_PAGES);
		w->hashes = s->range.hashes + (start + w->from - s->shift);
		w->block = WINDOW_NONE;
		w->huge = s->range.huge && bit_get(s->range.huge, number);
		w->skip = s->range.skip && bit_get(s->range.skip, number);
	}
}

static void vms_copy(struct plan *p, const struct plan_input *in)
{
	for (size_t i = 0; i < in->vm_count; i++)
		p->vms[i] = (struct plan_vm_state){ .mappings_left = in->vms[i].mappings_left,
						    .run_min = in->limits.run_min };
	for (uint32_t i = 0; i < in->range_count; i++) {
		struct plan_vm_state *vm = &p->vms[in->ranges[i].vm];

		if (vm->end_range == 0)
			vm->first_range = i;
		vm->end_range = i + 1;
	}
}

/* calloc() of at least one; large ones cost memory only where they are written. */
static void *array_new(struct plan *p, size_t count, size_t item)
{
	p->bytes += count * item;
	return calloc(count + 1, item);
}

static int plan_fill_in(struct plan *p, const struct plan_input *in)
{
	uint64_t windows;
	size_t words;

	p->spans = array_new(p, in->range_count, sizeof(*p->spans));
	p->vms = array_new(p, in->vm_count, sizeof(*p->vms));
	if (!p->spans || !p->vms)
		return -ENOMEM;
	vms_copy(p, in);
	spans_number(p, in, &windows);
	if (windows >= WINDOWS_MAX)
		return -E2BIG;
	p->window_count = (uint32_t)windows;
	words = windows * WINDOW_WORDS;
	p->windows = array_new(p, windows, sizeof(*p->windows));
	p->candidate = array_new(p, words, sizeof(uint64_t));
	p->lead = array_new(p, words, sizeof(uint64_t));
	p->seen = array_new(p, words, sizeof(uint64_t));
	p->alive = array_new(p, words, sizeof(uint64_t));
	p->known = p->index ? array_new(p, words, sizeof(uint64_t)) : NULL;
	if (!p->windows || !p->candidate || !p->lead || !p->seen || !p->alive || (p->index && !p->known))
		return -ENOMEM;
	for (uint32_t i = 0; i < p->span_count; i++)
		span_windows(p, i);
	while (p->position_bits < 32 && (windows * PLAN_WINDOW_PAGES) >> p->position_bits)
		p->position_bits++;
	return plan_blocks_find(p);
}

int plan_new(const struct plan_input *input, struct plan **ret_plan)
{
	struct plan *p;
	int r;

	if (!ranges_valid(input))
		return -EINVAL;
	p = calloc(1, sizeof(*p));
	if (!p)
		return -ENOMEM;
	p->span_count = input->range_count;
	p->vm_count = input->vm_count;
	p->limits = input->limits;
	p->index = input->index && frame_index_count(input->index) > 0 ? input->index : NULL;
	p->bytes = sizeof(*p);
	r = plan_fill_in(p, input);
	if (r < 0)
		plan_free(p);
	else
		*ret_plan = p;
	return r;
}

struct plan *plan_free(struct plan *p)
{
	if (!p)
		return NULL;
	free(p->spans);
	free(p->vms);
	free(p->windows);
	free(p->candidate);
	free(p->known);
	free(p->lead);
	free(p->seen);
	free(p->alive);
	free(p->slots);
	free(p->order);
	free(p);
	return NULL;
}

/* ---- pages and positions ---- */

uint32_t plan_position(const struct plan *p, uint32_t vm, uint64_t page)
{
	uint32_t low, high;

	if (vm >= p->vm_count)
		return POSITION_NONE;
	low = p->vms[vm].first_range;
	high = p->vms[vm].end_range;
	while (high > low + 1) { /* the last range that starts at or below the page */
		uint32_t middle = low + (high - low) / 2;

		if (p->spans[middle].range.first_page <= page)
			low = middle;
		else
			high = middle;
	}
	if (low >= high || page < p->spans[low].range.first_page ||
	    page - p->spans[low].range.first_page >= p->spans[low].range.pages)
		return POSITION_NONE;
	return (uint32_t)(p->spans[low].first_window * (uint64_t)PLAN_WINDOW_PAGES + p->spans[low].shift + page -
			  p->spans[low].range.first_page);
}

uint64_t plan_page_hash(const struct plan *p, uint32_t vm, uint64_t page)
{
	uint32_t position = plan_position(p, vm, page);

	return position == POSITION_NONE ? PAGE_HASH_NONE : position_hash(p, position);
}

/* ---- groups ---- */

/* The position of a page that may be merged now. */
static uint32_t ref_position(const struct plan *p, const struct join_ref *ref)
{
	uint32_t position = plan_position(p, ref->owner, ref->page);

	if (position == POSITION_NONE || p->windows[position / PLAN_WINDOW_PAGES].skip ||
	    position_left_out(p, position))
		return POSITION_NONE;
	return position;
}

static bool index_knows(const struct plan *p, uint64_t hash)
{
	bool known;

	if (!p->index)
		return false;
	rcu_read_lock();
	known = frame_index_find_rcu(p->index, hash) != FRAME_NONE;
	rcu_read_unlock();
	return known;
}

static void group_mark(struct plan *p, const struct join_ref *refs, size_t count, bool known)
{
	for (size_t i = 0; i < count; i++) {
		uint32_t position = ref_position(p, &refs[i]);

		if (position == POSITION_NONE || p->windows[position / PLAN_WINDOW_PAGES].block != WINDOW_NONE)
			continue;
		bit_set(p->candidate, position);
		if (known)
			bit_set(p->known, position);
	}
}

void plan_group(uint64_t hash, const struct join_ref *refs, size_t count, void *userdata)
{
	uint32_t leader = POSITION_NONE, in_block = POSITION_NONE;
	struct plan *p = userdata;
	size_t outside = 0;

	if (count > GROUP_REFS_MAX)
		count = GROUP_REFS_MAX;
	if (index_knows(p, hash)) {
		group_mark(p, refs, count, true);
		return;
	}
	for (size_t i = 0; i < count; i++) {
		uint32_t position = ref_position(p, &refs[i]), window = position / PLAN_WINDOW_PAGES;

		if (position == POSITION_NONE)
			continue;
		if (p->windows[window].block == WINDOW_NONE) {
			outside++;
			leader = leader == POSITION_NONE ? position : leader;
		} else if (p->windows[window].block == window && in_block == POSITION_NONE) {
			in_block = position;
		}
	}
	/* The frame of an identical block serves the pages outside as well. */
	if (outside == 0 || (outside == 1 && in_block == POSITION_NONE))
		return;
	if (in_block != POSITION_NONE)
		leader = in_block;
	bit_set(p->lead, leader);
	bit_set(p->seen, leader);
	group_mark(p, refs, count, false);
}

int plan_join(struct plan *p, size_t *ret_peak_bytes)
{
	auto_free struct join_input *inputs = calloc(p->span_count + 1, sizeof(*inputs));

	if (!inputs)
		return -ENOMEM;
	for (size_t i = 0; i < p->span_count; i++) {
		const struct plan_range *r = &p->spans[i].range;

		inputs[i] = (struct join_input){ r->vm, r->hashes, r->pages, r->first_page };
	}
	return join_run(inputs, p->span_count, plan_group, p, ret_peak_bytes);
}

/* ---- figures ---- */

void plan_count(const struct plan *p, struct plan_totals *ret_totals)
{
	*ret_totals = p->totals;
	ret_totals->saved_pages = p->totals.merged_pages + p->totals.zero_pages - p->totals.filled_frames;
}

size_t plan_bytes(const struct plan *p)
{
	return p->bytes;
}
