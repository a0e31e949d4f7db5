/* Looking at a chunk of which the kernel tells what was written (ept/dirty.h): only what has come to rest is hashed.
 *
 * A page that was written since the last look is *unsettled*: it has no hash, and takes part in nothing. If it was not
 * written again until the next look it is hashed then. It was protected before it was hashed, so a write that comes
 * meanwhile is seen by the look after: no hash stays that a page does not have (R9), for longer than a look.
 *
 * Protecting has a price for the guest: a fault for the first write to a page, and the end of a huge mapping. So it goes
 * by blocks of 2 MiB, and each block is in one of these states:
 *
 *   NEW      hashed as a whole, as in a scan of everything. Small pages are protected first: ARMED. Huge: WATCHED
 *   WATCHED  a huge page that is not protected. A few of its pages are hashed at each look. When they have stayed the
 *            same for QUIET_LOOKS the block is protected and hashed once more: ARMED. Else: RESTING
 *   ARMED    the kernel tells what was written. If that is much, look after look: RESTING
 *   RESTING  busy: nothing is looked at and nothing of it merged for 2^level looks, more each time
 *
 * So a block that is written all the time costs one fault for each page in 2^level looks, or none if it is huge.
 *
 * Who else acts meanwhile: vCPUs, DMA and the VMM write on (a device that writes to pages it has pinned leaves no mark, and
 * a hash that is out of date for it, which costs a comparison); discards and forks take pages and marks away, which reads as
 * written; no window is open and nothing is folded, since a pass runs neither beside a round nor on a VM whose agent is lent.
 * No byte of the guest depends on any of it.
 *
 * A look asks what was written, and only where something was, what is there: a page that went away is noticed within
 * PRESENCE_LOOKS, and a hash that it leaves for so long costs a window that finds it absent. A block of which every page is
 * mapped to a frame is not even asked: what is written there is a copy, which is not merged again in place (R12). */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "agent/page_hash.h"
#include "core/clock.h"
#include "core/snapshot.h"
#include "ept/dirty.h"
#include "ept/pagestate.h"
#include "ksmd/scan_internal.h"

#define QUIET_LOOKS 2
#define SAMPLE_PAGES 8 /* of 512: a block of which a quarter is rewritten is noticed in 9 of 10 cases */
/* From here on a block counts as busy. A kernel's counters and stacks dirty fewer pages of a block, and their faults cost
 * nothing to speak of. */
#define BUSY_PAGES 32
#define BUSY_LOOKS 3
#define LEVEL_MAX 6
#define CALM_LOOKS 8 /* without being busy, for one level down */
#define PRESENCE_LOOKS 16
#define ASK_LEAST_PAGES 32 /* a message to the agent costs as much as reading some 20 pages from outside */
#define RANGES_MAX 128

enum block_state { BLOCK_NEW, BLOCK_WATCHED, BLOCK_ARMED, BLOCK_RESTING };

struct track_block {
	uint8_t state;
	uint8_t streak; /* looks in a row: WATCHED the same, ARMED busy */
	uint8_t wait;	/* looks: RESTING to go, ARMED without being busy */
	uint8_t level;
};

struct track_chunk {
	uint64_t here_hash; /* of the map of pages that are there */
	/* Pages, as last looked at: */
	uint16_t present, zero, zero_mapped, swapped, huge;
	uint16_t merged;    /* a bit per block: every page is a frame */
	uint8_t looks;	    /* since all was looked at */
	uint16_t unsettled; /* but in blocks that rest */
};

struct scan_track {
	struct track_chunk *chunks;
	struct track_block *blocks; /* SCAN_CHUNK_BLOCKS for each chunk */
	size_t chunk_count;
};

struct scan_track *scan_track_new(uint64_t pages)
{
	struct scan_track *track = calloc(1, sizeof(*track));

	if (!track)
		return NULL;
	track->chunk_count = (size_t)((pages + SCAN_CHUNK_PAGES - 1) / SCAN_CHUNK_PAGES);
	track->chunks = calloc(track->chunk_count + 1, sizeof(*track->chunks));
	track->blocks = calloc(track->chunk_count + 1, SCAN_CHUNK_BLOCKS * sizeof(*track->blocks));
	if (!track->chunks || !track->blocks)
		return scan_track_free(track);
	return track;
}

struct scan_track *scan_track_free(struct scan_track *track)
{
	if (!track)
		return NULL;
	free(track->chunks);
	free(track->blocks);
	free(track);
	return NULL;
}

void scan_track_forget(struct scan_track *track, size_t chunk)
{
	memset(&track->chunks[chunk], 0, sizeof(track->chunks[chunk]));
	memset(&track->blocks[chunk * SCAN_CHUNK_BLOCKS], 0, SCAN_CHUNK_BLOCKS * sizeof(*track->blocks));
}

/* ---- maps of a bit per page of the chunk ---- */

static void map_set(uint64_t *map, uint64_t first, uint64_t end)
{
	for (uint64_t p = first; p < end; p++)
		map[p / 64] |= UINT64_C(1) << p % 64;
}

static bool map_test(const uint64_t *map, uint64_t p)
{
	return map[p / 64] >> p % 64 & 1;
}

static unsigned words_count(const uint64_t *words, unsigned n)
{
	unsigned count = 0;

	for (unsigned i = 0; i < n; i++)
		count += (unsigned)__builtin_popcountll(words[i]);
	return count;
}

static uint64_t *changed_of(const struct worker *w, const struct scan_target *t)
{
	return t->changed + w->first / 64; /* a chunk is a whole number of words */
}

/* ---- what is there ---- */

static int look_take(struct worker *w, struct scan_target *t, uint64_t pages)
{
	uint64_t base = t->hva + w->first * PAGE_BYTES, at = base, end = base + pages * PAGE_BYTES;
	struct track_look *look = &w->look;
	struct page_range ranges[RANGES_MAX];

	while (at < end) {
		ssize_t n = pagestate_ranges(t->pagemap_fd, at, end, ranges, RANGES_MAX, &at);

		if (n < 0)
			return (int)n;
		for (ssize_t i = 0; i < n; i++) {
			uint64_t first = (ranges[i].start - base) / PAGE_BYTES, last = (ranges[i].end - base) / PAGE_BYTES;

			if (ranges[i].flags & PAGE_SWAPPED) {
				w->swapped += last - first;
			} else if (ranges[i].flags & PAGE_ZERO_MAPPED) {
				w->zero_mapped += last - first;
			} else if (ranges[i].flags & PAGE_FILE) {
				map_set(look->frames, first, last);
			} else {
				map_set(look->here, first, last);
				if (!(ranges[i].flags & PAGE_HUGE))
					continue;
				w->huge += last - first;
				for (uint64_t b = first / SCAN_BLOCK_PAGES; b <= (last - 1) / SCAN_BLOCK_PAGES; b++)
					look->huge |= 1u << b;
			}
		}
	}
	return 0;
}

/* Pages that are not there (any more) have no hash. */
static void absent_drop(struct worker *w, struct scan_target *t, struct track_chunk *c, uint64_t pages)
{
	uint64_t here_hash = XXH3_64bits(w->look.here, sizeof(w->look.here)), *changed = changed_of(w, t);

	if (here_hash == c->here_hash)
		return;
	c->here_hash = here_hash;
	for (unsigned i = 0; i < SCAN_CHUNK_WORDS; i++)
		changed[i] &= w->look.here[i];
	for (uint64_t p = 0; p < pages; p++)
		if (!map_test(w->look.here, p) && t->hashes[w->first + p] != PAGE_HASH_NONE)
			t->hashes[w->first + p] = PAGE_HASH_NONE;
}

/* ---- hashes ---- */

void scan_track_take(struct worker *w, struct scan_target *t, uint64_t page, uint64_t hash)
{
	uint64_t old = t->hashes[page], p = page - w->first;

	if (w->look.sampling) {
		if (old != PAGE_HASH_NONE && old != hash)
			w->look.hot |= 1u << p / SCAN_BLOCK_PAGES;
		return;
	}
	if (old == hash)
		return;
	/* Known and another one: it was written without anybody looking, and may be again. */
	if (old != PAGE_HASH_NONE)
		map_set(changed_of(w, t), p, p + 1);
	t->hashes[page] = hash;
	t->settled_pages++;
	w->look.any = true;
}

/* Stretches of the map; short ones are read from outside. */
static void map_hash(struct worker *w, struct scan_target *t, const uint64_t *map, uint64_t pages, bool agent)
{
	for (uint64_t p = 0, end; p < pages && !t->gone; p = end) {
		struct scan_stretch s = { w->first + p, 0 };

		end = p + 1;
		if (!map_test(map, p)) {
			end = map[p / 64] == 0 ? (p / 64 + 1) * 64 : end;
			continue;
		}
		while (end < pages && map_test(map, end))
			end++;
		s.pages = end - p;
		w->hashed += s.pages;
		if (agent && s.pages >= ASK_LEAST_PAGES && t->peer && !t->peer_failed) {
			t->peer_failed = scan_ask(w, t, &s, 1) < 0;
			if (!t->peer_failed)
				continue;
		}
		scan_pages_read(w, t, s.first, s.pages);
	}
	scan_read_flush(w, t);
}

static void blocks_sample(struct worker *w, struct scan_target *t, const struct track_block *blocks, uint64_t pages)
{
	uint64_t map[SCAN_CHUNK_WORDS] = { 0 };
	/* Others at each look. */
	unsigned turn = (unsigned)(w->scan->started_ns / NSEC_PER_MSEC);

	for (unsigned b = 0; b < SCAN_CHUNK_BLOCKS; b++) {
		for (unsigned i = 0; blocks[b].state == BLOCK_WATCHED && i < SAMPLE_PAGES; i++) {
			unsigned step = SCAN_BLOCK_PAGES / SAMPLE_PAGES;
			uint64_t p = b * SCAN_BLOCK_PAGES + i * step + (turn * 7 + i * 11) % step;

			if (p < pages && map_test(w->look.here, p))
				map_set(map, p, p + 1);
		}
	}
	w->look.sampling = true;
	map_hash(w, t, map, pages, false);
	w->look.sampling = false;
}

/* ---- blocks ---- */

/* Whether what the kernel knows of the block is to be taken, and its pages protected (again). */
static bool block_arms(const struct worker *w, const struct track_block *k, unsigned b)
{
	bool huge = w->look.huge >> b & 1, hot = w->look.hot >> b & 1;

	switch (k->state) {
	case BLOCK_NEW:
		return !huge;
	case BLOCK_WATCHED:
		return !huge || (!hot && k->streak + 1 >= QUIET_LOOKS);
	case BLOCK_RESTING:
		return !huge && k->wait <= 1;
	default:
		return true;
	}
}

/* Blocks [from, to). What cannot be told counts as written, and its blocks begin anew. */
static void blocks_arm(struct worker *w, struct scan_target *t, unsigned from, unsigned to, uint64_t pages)
{
	uint64_t base = t->hva + w->first * PAGE_BYTES, first = from * SCAN_BLOCK_PAGES, last = to * SCAN_BLOCK_PAGES;
	uint64_t at = base + first * PAGE_BYTES, end = base + (last < pages ? last : pages) * PAGE_BYTES;
	struct dirty_range ranges[RANGES_MAX];

	while (at < end) {
		ssize_t n = dirty_take(t->pagemap_fd, at, end, ranges, RANGES_MAX, &at);

		for (ssize_t i = 0; i < n; i++)
			map_set(w->look.written, (ranges[i].start - base) / PAGE_BYTES, (ranges[i].end - base) / PAGE_BYTES);
		if (n < 0 && to - from == 1)
			w->look.failed |= 1u << from;
		for (unsigned b = from; n < 0 && to - from > 1 && b < to; b++) /* perhaps only a part of it */
			blocks_arm(w, t, b, b + 1, pages);
		if (n < 0)
			return;
	}
}

/* Nothing of it takes part until it is looked at again. */
static void block_rest(struct worker *w, struct scan_target *t, struct track_block *k, unsigned b, uint64_t pages)
{
	uint64_t first = b * SCAN_BLOCK_PAGES, end = first + SCAN_BLOCK_PAGES < pages ? first + SCAN_BLOCK_PAGES : pages;

	*k = (struct track_block){ BLOCK_RESTING, 0, (uint8_t)(1u << k->level), k->level };
	if (k->level < LEVEL_MAX)
		k->level++;
	map_set(changed_of(w, t), first, end);
	for (uint64_t p = w->first + first; p < w->first + end; p++)
		if (t->hashes[p] != PAGE_HASH_NONE)
			t->hashes[p] = PAGE_HASH_NONE;
	w->look.any = true;
}

static void armed_calm(struct track_block *k)
{
	k->streak = 0;
	if (k->level > 0 && ++k->wait >= CALM_LOOKS) {
		k->wait = 0;
		k->level--;
	}
}

static void armed_settle(struct worker *w, struct scan_target *t, struct track_block *k, unsigned b, uint64_t pages)
{
	const unsigned words = SCAN_BLOCK_PAGES / 64, at = b * words;
	uint64_t *changed = changed_of(w, t) + at, *here = w->look.here + at, *written = w->look.written + at;
	unsigned count = words_count(written, words);

	for (unsigned i = 0; i < words; i++) {
		w->look.todo[at + i] = changed[i] & here[i] & ~written[i];
		changed[i] = written[i]; /* also what came after it was looked for: it is hashed next time */
	}
	for (uint64_t p = b * SCAN_BLOCK_PAGES, end = p + SCAN_BLOCK_PAGES; count > 0 && p < end && p < pages; p++)
		if (map_test(w->look.written, p))
			t->hashes[w->first + p] = PAGE_HASH_NONE;
	w->look.any |= count > 0;
	if (count < BUSY_PAGES) {
		armed_calm(k);
	} else if (++k->streak >= BUSY_LOOKS) {
		memset(w->look.todo + at, 0, words * sizeof(uint64_t));
		block_rest(w, t, k, b, pages);
	}
}

static void block_settle(struct worker *w, struct scan_target *t, struct track_block *k, unsigned b, uint64_t pages)
{
	const unsigned words = SCAN_BLOCK_PAGES / 64, at = b * words;
	uint64_t *here = w->look.here + at, *changed = changed_of(w, t) + at;
	bool arms = block_arms(w, k, b), failed = w->look.failed >> b & 1, rested = k->state == BLOCK_RESTING;

	if (k->state == BLOCK_ARMED && !failed) {
		armed_settle(w, t, k, b, pages);
		return;
	}
	if (rested && k->wait > 1) {
		k->wait--;
		return;
	}
	if (k->state == BLOCK_WATCHED && !arms) {
		k->streak++;
		if (w->look.hot >> b & 1)
			block_rest(w, t, k, b, pages);
		return;
	}
	*k = (struct track_block){ arms ? failed ? BLOCK_NEW : BLOCK_ARMED : BLOCK_WATCHED, 0, 0, k->level };
	/* What is armed after a rest is written or not when it is looked at next; until then it is unsettled. */
	if (rested && k->state == BLOCK_ARMED) {
		for (unsigned i = 0; i < words; i++)
			changed[i] = here[i] | w->look.written[at + i]; /* that came since it was looked for, too */
		return;
	}
	/* What came since it was looked for, and is protected now, would not be seen again. */
	for (unsigned i = 0; i < words && !rested; i++)
		changed[i] = w->look.written[at + i] & ~here[i];
	memcpy(w->look.todo + at, here, words * sizeof(*here));
}

/* ---- a chunk ---- */

static uint16_t zeroes_count(const uint64_t *hashes, uint64_t pages)
{
	uint16_t zero = 0;

	for (uint64_t p = 0; p < pages; p++)
		zero = (uint16_t)(zero + (hashes[p] == PAGE_HASH_ZERO));
	return zero;
}

/* Blocks that are to be armed, in stretches. */
static void chunk_arm(struct worker *w, struct scan_target *t, unsigned mask, unsigned count, uint64_t pages)
{
	mask &= ~w->look.taken;
	w->look.taken |= mask;
	for (unsigned b = 0, end; b < count; b = end) {
		end = b + 1;
		if (!(mask >> b & 1))
			continue;
		while (end < count && mask >> end & 1)
			end++;
		blocks_arm(w, t, b, end, pages);
	}
}

/* Whether there is nothing but blocks of which the kernel tells, or which rest; *ret_mask: those. */
static bool chunk_is_armed(const struct track_chunk *c, const struct track_block *blocks, unsigned count, unsigned *ret_mask)
{
	*ret_mask = 0;
	for (unsigned b = 0; b < count; b++) {
		if (blocks[b].state == BLOCK_ARMED)
			*ret_mask |= 1u << b & ~(unsigned)c->merged;
		else if (blocks[b].state != BLOCK_RESTING || blocks[b].wait <= 1)
			return false;
	}
	return true;
}

static void counts_recall(struct worker *w, const struct track_chunk *c)
{
	w->present = c->present;
	w->zero = c->zero;
	w->zero_mapped = c->zero_mapped;
	w->swapped = c->swapped;
	w->huge = c->huge;
}

static void counts_keep(const struct worker *w, struct track_chunk *c, const struct track_block *blocks,
			const uint64_t *changed)
{
	const unsigned words = SCAN_BLOCK_PAGES / 64;

	*c = (struct track_chunk){ .here_hash = c->here_hash,
				   .present = (uint16_t)w->present,
				   .zero = (uint16_t)w->zero,
				   .zero_mapped = (uint16_t)w->zero_mapped,
				   .swapped = (uint16_t)w->swapped,
				   .huge = (uint16_t)w->huge };
	for (unsigned b = 0; b < SCAN_CHUNK_BLOCKS; b++) {
		if (words_count(w->look.frames + b * words, words) == SCAN_BLOCK_PAGES)
			c->merged |= (uint16_t)(1u << b);
		if (blocks[b].state != BLOCK_RESTING)
			c->unsettled = (uint16_t)(c->unsettled + words_count(changed + b * words, words));
	}
}

/* Nothing was written since the last look, and nothing is waiting to settle: true. */
static bool chunk_is_quiet(struct worker *w, struct scan_target *t, struct track_chunk *c, struct track_block *blocks,
			   unsigned count, uint64_t pages)
{
	unsigned mask;

	if (c->unsettled || c->looks >= PRESENCE_LOOKS || !chunk_is_armed(c, blocks, count, &mask))
		return false;
	chunk_arm(w, t, mask, count, pages);
	if (w->look.failed || words_count(w->look.written, SCAN_CHUNK_WORDS) > 0)
		return false;
	c->looks++;
	for (unsigned b = 0; b < count; b++) {
		if (blocks[b].state == BLOCK_RESTING)
			blocks[b].wait--;
		else
			armed_calm(&blocks[b]);
	}
	counts_recall(w, c);
	return true;
}

int scan_chunk_track(struct worker *w, struct scan_target *t, uint64_t first, uint64_t pages)
{
	struct track_block *blocks = t->track->blocks + first / SCAN_BLOCK_PAGES;
	struct track_chunk *c = &t->track->chunks[first / SCAN_CHUNK_PAGES];
	unsigned count = (unsigned)((pages + SCAN_BLOCK_PAGES - 1) / SCAN_BLOCK_PAGES), mask = 0;
	int r;

	w->first = first;
	memset(&w->look, 0, sizeof(w->look));
	if (chunk_is_quiet(w, t, c, blocks, count, pages))
		return 0;
	r = look_take(w, t, pages);
	if (r < 0)
		return r;
	absent_drop(w, t, c, pages);
	blocks_sample(w, t, blocks, pages);
	for (unsigned b = 0; b < count; b++)
		mask |= (unsigned)block_arms(w, &blocks[b], b) << b;
	chunk_arm(w, t, mask, count, pages);
	for (unsigned i = 0; i < SCAN_CHUNK_WORDS; i++) /* a write would have made them the process's own */
		w->look.written[i] &= ~w->look.frames[i];
	for (unsigned b = 0; b < count; b++)
		block_settle(w, t, &blocks[b], b, pages);
	map_hash(w, t, w->look.todo, pages, true);
	w->present = words_count(w->look.here, SCAN_CHUNK_WORDS);
	w->zero = w->look.any ? zeroes_count(t->hashes + first, pages) : c->zero;
	counts_keep(w, c, blocks, changed_of(w, t));
	w->unsettled = c->unsettled;
	w->watched = false;
	for (unsigned b = 0; b < count; b++)
		w->watched |= blocks[b].state == BLOCK_WATCHED || blocks[b].state == BLOCK_NEW;
	return 0;
}
