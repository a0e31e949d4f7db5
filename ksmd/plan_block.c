/* Identical 2 MiB blocks: windows whose 512 pages have the same 512 hashes as another window's.
 *
 * They are found before anything else and get a whole aligned extent, even where one of their pages has a
 * frame elsewhere or is zero, so that every VM can map the block with one huge mapping. The price is a frame for each such page,
 * once per distinct block. */
#include <errno.h>
#include <stdlib.h>
#include <urcu.h>
#include <xxhash.h>

#include "ksmd/frame_index.h"
#include "ksmd/page_hash.h"
#include "ksmd/plan_internal.h"

struct block {
	uint64_t hash;
	uint32_t window;
};

static int block_order(const void *a, const void *b)
{
	const struct block *x = a, *y = b;

	if (x->hash != y->hash)
		return x->hash < y->hash ? -1 : 1;
	return x->window < y->window ? -1 : x->window > y->window;
}

/* Whether all of the window can be one block: every page there, none merged, not too many zero pages (they would
 * each need a frame; as many as a huge page is worth are allowed). */
static bool block_possible(const struct plan *p, uint32_t window)
{
	const struct window *w = &p->windows[window];
	uint32_t zero = 0;

	if (w->skip || w->from != 0 || w->to != PLAN_WINDOW_PAGES)
		return false;
	for (uint32_t i = 0; i < PLAN_WINDOW_PAGES; i++) {
		if (w->hashes[i] == PAGE_HASH_NONE || position_merged(p, window * PLAN_WINDOW_PAGES + i))
			return false;
		zero += w->hashes[i] == PAGE_HASH_ZERO;
	}
	return zero <= p->limits.window_min_huge;
}

/* A block that the store has is left to the look-up of its pages. */
static bool block_known(const struct plan *p, const struct window *w)
{
	bool known = false;

	if (!p->index)
		return false;
	rcu_read_lock();
	for (uint32_t i = 0; i < PLAN_WINDOW_PAGES && !known; i += PLAN_WINDOW_PAGES / 8)
		known = frame_index_find_rcu(p->index, w->hashes[i]) != FRAME_NONE;
	rcu_read_unlock();
	return known;
}

static bool same_hashes(const struct window *a, const struct window *b)
{
	for (uint32_t i = 0; i < PLAN_WINDOW_PAGES; i++)
		if (a->hashes[i] != b->hashes[i])
			return false;
	return true;
}

int plan_blocks_find(struct plan *p)
{
	struct block *blocks = malloc((p->window_count + 1) * sizeof(*blocks));
	size_t count = 0;

	if (!blocks)
		return -ENOMEM;
	p->bytes += p->window_count * sizeof(*blocks);
	for (uint32_t i = 0; i < p->window_count; i++) {
		const struct window *w = &p->windows[i];

		if (block_possible(p, i) && !block_known(p, w))
			blocks[count++] = (struct block){ XXH3_64bits(w->hashes, PLAN_WINDOW_PAGES * sizeof(uint64_t)), i };
	}
	qsort(blocks, count, sizeof(*blocks), block_order);
	for (size_t first = 0, i; first < count; first = i) {
		uint32_t leader = blocks[first].window;

		for (i = first + 1; i < count && blocks[i].hash == blocks[first].hash; i++) {
			struct window *w = &p->windows[blocks[i].window];

			if (!same_hashes(w, &p->windows[leader]))
				continue;
			w->block = p->windows[leader].block = leader;
		}
		for (uint32_t k = 0; k < WINDOW_WORDS && p->windows[leader].block == leader; k++)
			p->lead[leader * WINDOW_WORDS + k] = UINT64_MAX;
	}
	free(blocks);
	return 0;
}
