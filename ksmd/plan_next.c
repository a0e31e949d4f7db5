/* The plan's windows, one by one: runs with real frame numbers, and the frames to fill for them. */
#include <errno.h>
#include <string.h>

#include "ksmd/plan_internal.h"

int plan_place(struct plan *p, uint32_t first_block_frame, uint32_t first_frame)
{
	if (p->need.block_frames > 0 && (first_block_frame % PLAN_WINDOW_PAGES ||
					 first_block_frame > PLAN_ZERO - p->need.block_frames))
		return -EINVAL;
	if (p->need.frames > 0 && first_frame > PLAN_ZERO - p->need.frames)
		return -EINVAL;
	p->first_block_frame = first_block_frame;
	p->first_frame = first_frame;
	/* From now on: leaders whose frame was given out to be filled. */
	memset(p->seen, 0, (size_t)p->window_count * WINDOW_WORDS * sizeof(uint64_t));
	return 0;
}

static uint32_t key_frame(const struct plan *p, uint64_t key)
{
	if (key == KEY_ZERO)
		return PLAN_ZERO;
	if (key >= KEY_PACKED)
		return p->first_frame + (uint32_t)(key - KEY_PACKED);
	if (key >= KEY_ALIGNED)
		return p->first_block_frame + (uint32_t)(key - KEY_ALIGNED);
	return (uint32_t)key;
}

/* Drops what is too short or beyond the budget: contents lost since the windows were chosen may have cut a run in
 * two. Returns the pages that are left. */
static uint32_t pieces_filter(struct walk *walk, const struct plan_vm_state *vm, uint32_t *ret_mappings)
{
	uint32_t pages = 0, mappings = 0;
	size_t kept = 0;

	for (size_t i = 0; i < walk->count; i++) {
		const struct piece *piece = &walk->pieces[i];

		if (piece->key != KEY_ZERO) {
			if (piece->pages < vm->run_min)
				continue;
			if (vm->mappings_left != PLAN_MAPPINGS_UNLIMITED && mappings + 2 > vm->mappings_left)
				continue;
			mappings += 2;
		}
		pages += piece->pages;
		walk->pieces[kept++] = *piece;
	}
	walk->count = kept;
	*ret_mappings = mappings;
	return pages;
}

static void fill_add(struct plan_window *out, uint64_t page, uint32_t frame)
{
	struct plan_run *last = out->fill_count > 0 ? &out->fills[out->fill_count - 1] : NULL;

	if (last && last->page + last->pages == page && last->frame + last->pages == frame)
		last->pages++;
	else
		out->fills[out->fill_count++] = (struct plan_run){ page, 1, frame };
}

static void piece_emit(struct plan *p, const struct walk *walk, const struct piece *piece, uint64_t first_page,
		       struct plan_window *out)
{
	struct plan_run run = { first_page + piece->from, piece->pages, key_frame(p, piece->key) };

	out->runs[out->run_count++] = run;
	if (piece->key == KEY_ZERO) {
		p->totals.zero_pages += piece->pages;
		return;
	}
	p->totals.runs++;
	p->totals.merged_pages += piece->pages;
	if (piece->pages == PLAN_WINDOW_PAGES && run.frame % PLAN_WINDOW_PAGES == 0)
		p->totals.huge_windows++;
	if (piece->key < KEY_ALIGNED)
		return;
	for (uint32_t i = 0; i < piece->pages; i++) {
		uint32_t leader = walk->leaders[piece->from + i];

		if (bit_get(p->seen, leader))
			continue;
		bit_set(p->seen, leader);
		fill_add(out, run.page + i, run.frame + i);
		p->totals.filled_frames++;
	}
}

int plan_next(struct plan *p, struct plan_window *ret_window)
{
	struct walk walk;

	while (p->next < p->order_count) {
		const struct ranked *rank = &p->order[p->next++];
		const struct window *w = &p->windows[rank->window];
		const struct plan_span *span = &p->spans[w->span];
		struct plan_vm_state *vm = &p->vms[span->range.vm];
		/* Of place 0 of the window; below the range's first page, and below zero, where it starts later. */
		uint64_t first_page = span->range.first_page - span->shift +
				      (uint64_t)(rank->window - span->first_window) * PLAN_WINDOW_PAGES;
		uint32_t pages, mappings;

		plan_walk(p, rank->window, &walk);
		pages = pieces_filter(&walk, vm, &mappings);
		if (pages < (w->huge ? p->limits.window_min_huge : p->limits.window_min_small) || pages == 0)
			continue;
		ret_window->vm = span->range.vm;
		ret_window->page = first_page + w->from;
		ret_window->pages = (uint64_t)w->to - w->from;
		ret_window->huge = w->huge;
		ret_window->score = rank->score;
		ret_window->merged = pages;
		ret_window->run_count = ret_window->fill_count = 0;
		for (size_t i = 0; i < walk.count; i++)
			piece_emit(p, &walk, &walk.pieces[i], first_page, ret_window);
		if (vm->mappings_left != PLAN_MAPPINGS_UNLIMITED)
			vm->mappings_left -= mappings;
		p->totals.windows++;
		return 1;
	}
	return 0;
}
