/* Which windows are worth it, in which order, within which budget. */
#include <errno.h>
#include <stdlib.h>
#include <urcu.h>

#include "agent/page_hash.h"
#include "core/snapshot.h"
#include "ksmd/frame_index.h"
#include "ksmd/plan_internal.h"

/* A run costs two VMAs of 192 bytes and its share of an anon_vma and of the VMA tree: 615 bytes measured, 172
 * more after a write. Rounded up: it also uses up two of the mappings that a VM may have. */
#define RUN_COST_BYTES 1024u
/* What else a window costs, for its rank only. A huge page is worth 64 small ones; an exchange takes about 25 us, in
 * which KSM merges 3 pages. */
#define HUGE_COST_BYTES (64 * PAGE_BYTES)
#define EXCHANGE_COST_BYTES (8 * PAGE_BYTES)
/* Score: saved bytes in sixteenths of the cost, so that it keeps four bits below one. */
#define SCORE_UNIT 16u

/* ---- candidates ---- */

/* Pages that share with nobody may still share with a frame. */
static void window_match_known(struct plan *p, uint32_t window)
{
	const struct window *w = &p->windows[window];
	uint32_t last = FRAME_NONE;

	rcu_read_lock();
	for (uint32_t at = w->from; at < w->to; at++) {
		uint32_t position = window * PLAN_WINDOW_PAGES + at, frame;
		uint64_t hash = w->hashes[at - w->from];

		if (hash <= PAGE_HASH_ZERO || bit_get(p->candidate, position) || position_left_out(p, position)) {
			last = last == FRAME_NONE ? last : last + 1;
			continue;
		}
		frame = last != FRAME_NONE && frame_index_is(p->index, last + 1, hash) ?
				last + 1 :
				frame_index_find_rcu(p->index, hash);
		last = frame;
		if (frame == FRAME_NONE)
			continue;
		bit_set(p->candidate, position);
		bit_set(p->known, position);
	}
	rcu_read_unlock();
}

/* No more than this can be merged in the window. */
static uint32_t window_bound(const struct plan *p, uint32_t window)
{
	const struct window *w = &p->windows[window];
	uint32_t count = 0;

	if (w->block != WINDOW_NONE)
		return PLAN_WINDOW_PAGES;
	for (uint32_t i = window * WINDOW_WORDS; i < (window + 1) * WINDOW_WORDS; i++)
		count += (uint32_t)__builtin_popcountll(p->candidate[i]);
	for (uint32_t at = w->from; at < w->to; at++)
		count += w->hashes[at - w->from] == PAGE_HASH_ZERO;
	return count;
}

static uint32_t window_min(const struct plan *p, const struct window *w)
{
	return w->huge ? p->limits.window_min_huge : p->limits.window_min_small;
}

static bool window_pays(const struct plan *p, const struct window *w, uint32_t gain)
{
	return gain > 0 && gain >= window_min(p, w);
}

static void windows_begin(struct plan *p)
{
	for (uint32_t i = 0; i < p->window_count; i++) {
		struct window *w = &p->windows[i];

		if (w->skip)
			continue;
		if (p->index && w->block == WINDOW_NONE)
			window_match_known(p, i);
		w->keep = window_pays(p, w, window_bound(p, i));
	}
}

/* ---- gains ---- */

static struct plan_vm_state *window_vm(const struct plan *p, const struct window *w)
{
	return &p->vms[p->spans[w->span].range.vm];
}

static void window_measure(struct plan *p, uint32_t window, struct walk *walk)
{
	struct window *w = &p->windows[window];

	plan_walk(p, window, walk);
	w->gain = w->runs = w->gain_long = w->runs_long = 0;
	w->maps_huge = false;
	for (size_t i = 0; i < walk->count; i++) {
		const struct piece *piece = &walk->pieces[i];
		bool zero = piece->key == KEY_ZERO, is_long = zero || piece->pages >= p->limits.run_min_tight;

		if (!zero && piece->pages < p->limits.run_min)
			continue;
		w->gain = (uint16_t)(w->gain + piece->pages);
		w->runs = (uint16_t)(w->runs + !zero);
		w->gain_long = (uint16_t)(w->gain_long + (is_long ? piece->pages : 0));
		w->runs_long = (uint16_t)(w->runs_long + (is_long && !zero));
		w->maps_huge = !zero && piece->pages == PLAN_WINDOW_PAGES && piece->key < KEY_PACKED &&
			       piece->key % PLAN_WINDOW_PAGES == 0;
	}
	window_vm(p, w)->mappings_wanted += 2u * w->runs;
}

static void window_use_long_runs(struct plan *p, uint32_t window, struct walk *walk)
{
	struct window *w = &p->windows[window];

	w->gain = w->gain_long;
	w->runs = w->runs_long;
	if (w->block != WINDOW_NONE)
		return;
	plan_walk(p, window, walk);
	for (size_t i = 0; i < walk->count; i++) {
		const struct piece *piece = &walk->pieces[i];

		for (uint32_t k = 0; piece->key != KEY_ZERO && piece->pages < p->limits.run_min_tight && k < piece->pages;
		     k++)
			bit_clear(p->candidate, window * PLAN_WINDOW_PAGES + piece->from + k);
	}
}

static void windows_measure(struct plan *p, struct walk *walk)
{
	for (uint32_t i = 0; i < p->window_count; i++)
		if (p->windows[i].keep)
			window_measure(p, i, walk);
	for (size_t i = 0; i < p->vm_count; i++)
		if (p->vms[i].mappings_wanted > p->vms[i].mappings_left && p->limits.run_min_tight > p->vms[i].run_min)
			p->vms[i].run_min = p->limits.run_min_tight;
	for (uint32_t i = 0; i < p->window_count; i++) {
		struct window *w = &p->windows[i];

		if (!w->keep)
			continue;
		if (window_vm(p, w)->run_min > p->limits.run_min)
			window_use_long_runs(p, i, walk);
		w->keep = window_pays(p, w, w->gain);
	}
}

/* ---- order ---- */

static uint32_t window_score(const struct window *w)
{
	uint64_t cost = EXCHANGE_COST_BYTES + (uint64_t)w->runs * RUN_COST_BYTES;

	/* What is all zero is best of all: no frame, no mapping, and the memory that it frees is at hand for frames. */
	if (w->huge && !w->maps_huge && w->runs > 0)
		cost += HUGE_COST_BYTES;
	return (uint32_t)((uint64_t)w->gain * PAGE_BYTES * SCORE_UNIT / cost);
}

static int ranked_order(const void *a, const void *b)
{
	const struct ranked *x = a, *y = b;

	if (x->score != y->score)
		return x->score > y->score ? -1 : 1;
	/* VM by VM in turn, so that all agents have work at the same time, and copies of a block meet while its
	 * frames are in the cache. */
	if (x->turn != y->turn)
		return x->turn < y->turn ? -1 : 1;
	return x->window < y->window ? -1 : x->window > y->window;
}

static uint32_t window_turn(const struct plan *p, uint32_t window)
{
	const struct plan_vm_state *vm = window_vm(p, &p->windows[window]);

	return window - p->spans[vm->first_range].first_window;
}

static int windows_rank(struct plan *p)
{
	size_t count = 0;

	for (uint32_t i = 0; i < p->window_count; i++)
		count += p->windows[i].keep;
	p->order = malloc((count + 1) * sizeof(*p->order));
	if (!p->order)
		return -ENOMEM;
	p->bytes += count * sizeof(*p->order);
	for (uint32_t i = 0; i < p->window_count; i++)
		if (p->windows[i].keep)
			p->order[p->order_count++] =
				(struct ranked){ window_score(&p->windows[i]), i, window_turn(p, i) };
	qsort(p->order, p->order_count, sizeof(*p->order), ranked_order);
	return 0;
}

/* The best windows first while the VM's mappings last; one that does not fit leaves its place to smaller ones. */
static void windows_fit_budget(struct plan *p)
{
	size_t kept = 0;

	for (size_t i = 0; i < p->vm_count; i++)
		p->vms[i].mappings_wanted = 0;
	for (size_t i = 0; i < p->order_count; i++) {
		struct window *w = &p->windows[p->order[i].window];
		struct plan_vm_state *vm = window_vm(p, w);

		w->keep = vm->mappings_left == PLAN_MAPPINGS_UNLIMITED ||
			  vm->mappings_wanted + 2u * w->runs <= vm->mappings_left;
		if (!w->keep)
			continue;
		vm->mappings_wanted += 2u * w->runs;
		p->order[kept++] = p->order[i];
	}
	p->order_count = kept;
}

static uint64_t plan_gain(const struct plan *p)
{
	uint64_t gain = 0, frames = (uint64_t)p->need.frames + p->need.block_frames;

	for (size_t i = 0; i < p->order_count; i++)
		gain += p->windows[p->order[i].window].gain;
	return gain > frames ? gain - frames : 0;
}

int plan_build(struct plan *p, struct plan_need *ret_need)
{
	struct walk *walk = malloc(sizeof(*walk));
	int r;

	if (!walk)
		return -ENOMEM;
	r = plan_table_build(p);
	if (r < 0)
		goto out;
	windows_begin(p);
	plan_census(p);
	r = plan_number(p);
	if (r < 0)
		goto out;
	windows_measure(p, walk);
	r = windows_rank(p);
	if (r < 0)
		goto out;
	windows_fit_budget(p);
	/* With windows and runs gone some contents have one page left, which saves nothing. */
	plan_census(p);
	r = plan_number(p);
	if (r == 0) {
		*ret_need = p->need;
		ret_need->gain_pages = plan_gain(p);
	}
out:
	free(walk);
	return r;
}
