/* Identical 2 MiB blocks: windows whose 512 pages have the same 512 hashes as another window's.
 *
 * They are found before anything else and get a whole aligned extent, even where one of their pages has a
 * frame elsewhere, is zero or is in the block twice, so that every VM can map the block with one huge mapping. The price
 * is a frame for each such page, once per distinct block; above block_spare_max it is not paid. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <urcu.h>
#include <xxhash.h>

#include "agent/page_hash.h"
#include "ksmd/frame_index.h"
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

/* Whether all of the window can be one block: every page there, none merged, not too many zero pages. */
static bool block_possible(const struct plan *p, uint32_t window)
{
	const struct window *w = &p->windows[window];
	uint32_t zero = 0;

	if (w->skip || w->from != 0 || w->to != PLAN_WINDOW_PAGES)
		return false;
	for (uint32_t i = 0; i < PLAN_WINDOW_PAGES; i++) {
		if (w->hashes[i] == PAGE_HASH_NONE || position_left_out(p, window * PLAN_WINDOW_PAGES + i))
			return false;
		zero += w->hashes[i] == PAGE_HASH_ZERO;
	}
	return zero <= p->limits.block_spare_max;
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

static int hash_order(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

/* Frames that would be spared if the block were merged page by page: for zero pages, and for contents that it holds
 * more than once. */
static uint32_t block_spare(const struct window *w)
{
	uint64_t hashes[PLAN_WINDOW_PAGES];
	uint32_t spare = 0;

	memcpy(hashes, w->hashes, sizeof(hashes));
	qsort(hashes, PLAN_WINDOW_PAGES, sizeof(*hashes), hash_order);
	for (uint32_t i = 0; i < PLAN_WINDOW_PAGES; i++)
		spare += hashes[i] == PAGE_HASH_ZERO || (i > 0 && hashes[i] == hashes[i - 1]);
	return spare;
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
		bool pays = first + 1 < count && blocks[first + 1].hash == blocks[first].hash &&
			    block_spare(&p->windows[leader]) <= p->limits.block_spare_max;

		for (i = first + 1; i < count && blocks[i].hash == blocks[first].hash; i++) {
			struct window *w = &p->windows[blocks[i].window];

			if (!pays || !same_hashes(w, &p->windows[leader]))
				continue;
			w->block = p->windows[leader].block = leader;
		}
		for (uint32_t k = 0; k < WINDOW_WORDS && p->windows[leader].block == leader; k++)
			p->lead[leader * WINDOW_WORDS + k] = UINT64_MAX;
	}
	free(blocks);
	return 0;
}
