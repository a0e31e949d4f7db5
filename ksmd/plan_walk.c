/* From pages to contents to frames to runs. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <urcu.h>

#include "agent/page_hash.h"
#include "ksmd/frame_index.h"
#include "ksmd/plan_internal.h"

#define SLOT_EMPTY UINT32_MAX
/* At most 7 of 10 slots are taken: 5.7 bytes for each content. Bits of the hash in the slot spare nearly all
 * looks at positions that are not the right one. */
#define LOAD_NUM 7
#define LOAD_DEN 10

/* ---- contents by hash ---- */

static uint32_t slot_value(const struct plan *p, uint64_t hash, uint32_t position)
{
	/* The tag is above the position; bits of the hash that slot_first() does not depend on. */
	return p->position_bits < 32 ? (uint32_t)(hash >> 32) << p->position_bits | position : position;
}

static uint64_t slot_first(const struct plan *p, uint64_t hash)
{
	return ((hash & UINT32_MAX) * p->slot_count) >> 32;
}

static uint32_t leader_find(const struct plan *p, uint64_t hash, uint64_t *ret_slot)
{
	uint32_t mask = p->position_bits < 32 ? (UINT32_C(1) << p->position_bits) - 1 : UINT32_MAX;
	uint64_t slot = slot_first(p, hash);

	for (;; slot = slot + 1 < p->slot_count ? slot + 1 : 0) {
		uint32_t value = p->slots[slot], position = value & mask;

		if (value == SLOT_EMPTY)
			break;
		if (value == slot_value(p, hash, position) && position_hash(p, position) == hash)
			return position;
	}
	*ret_slot = slot;
	return POSITION_NONE;
}

/* Fills the table with the leaders that plan_group() marked, and clears the marks. */
int plan_table_build(struct plan *p)
{
	uint64_t words = (uint64_t)p->window_count * WINDOW_WORDS, leaders = 0, slot;

	for (uint64_t i = 0; i < words; i++)
		leaders += (unsigned)__builtin_popcountll(p->seen[i]);
	p->slot_count = leaders * LOAD_DEN / LOAD_NUM + 2;
	if (p->slot_count > UINT32_MAX)
		return -E2BIG;
	p->slots = malloc(p->slot_count * sizeof(*p->slots));
	if (!p->slots)
		return -ENOMEM;
	p->bytes += p->slot_count * sizeof(*p->slots);
	memset(p->slots, 0xff, p->slot_count * sizeof(*p->slots)); /* SLOT_EMPTY */
	for (uint64_t i = 0; i < words; i++) {
		for (uint64_t bits = p->seen[i]; bits; bits &= bits - 1) {
			uint32_t position = (uint32_t)(i * 64) + (uint32_t)__builtin_ctzll(bits);
			uint64_t hash = position_hash(p, position);

			if (leader_find(p, hash, &slot) == POSITION_NONE)
				p->slots[slot] = slot_value(p, hash, position);
		}
		p->seen[i] = 0;
	}
	return 0;
}

/* The leader of a candidate without a known frame. Runs make the leader behind the last one the likely one. */
static uint32_t leader_of(const struct plan *p, uint32_t position, uint32_t last)
{
	uint64_t hash, slot;

	if (bit_get(p->lead, position))
		return position;
	hash = position_hash(p, position);
	if (last < p->window_count * (uint64_t)PLAN_WINDOW_PAGES - 1 && bit_get(p->lead, last + 1) &&
	    position_hash(p, last + 1) == hash)
		return last + 1;
	return leader_find(p, hash, &slot);
}

/* ---- live contents and their frames ---- */

static void census_block(struct plan *p, uint32_t leader_window)
{
	for (uint32_t i = leader_window * WINDOW_WORDS; i < (leader_window + 1) * WINDOW_WORDS; i++) {
		p->alive[i] |= p->seen[i];
		p->seen[i] = UINT64_MAX;
	}
}

static void census_window(struct plan *p, uint32_t window)
{
	uint32_t last = POSITION_NONE;

	for (uint32_t i = window * WINDOW_WORDS; i < (window + 1) * WINDOW_WORDS; i++) {
		for (uint64_t bits = p->candidate[i]; bits; bits &= bits - 1) {
			uint32_t position = i * 64 + (uint32_t)__builtin_ctzll(bits);

			if (p->known && bit_get(p->known, position))
				continue;
			last = leader_of(p, position, last);
			if (last == POSITION_NONE)
				continue;
			if (bit_get(p->seen, last))
				bit_set(p->alive, last);
			else
				bit_set(p->seen, last);
		}
	}
}

void plan_census(struct plan *p)
{
	size_t bytes = (size_t)p->window_count * WINDOW_WORDS * sizeof(uint64_t);

	memset(p->seen, 0, bytes);
	memset(p->alive, 0, bytes);
	for (uint32_t i = 0; i < p->window_count; i++) {
		const struct window *w = &p->windows[i];

		if (w->keep && w->block != WINDOW_NONE)
			census_block(p, w->block);
		else if (w->keep)
			census_window(p, i);
	}
}

/* In the order of pages: the first VM's come first, so what is consecutive there is consecutive in the store. */
int plan_number(struct plan *p)
{
	uint64_t packed = 0, aligned = 0;

	for (uint32_t i = 0; i < p->window_count; i++) {
		const uint64_t *alive = &p->alive[i * WINDOW_WORDS];
		struct window *w = &p->windows[i];
		uint32_t count = 0;

		for (uint32_t k = 0; k < WINDOW_WORDS; k++)
			count += (uint32_t)__builtin_popcountll(alive[k]);
		w->aligned = count == PLAN_WINDOW_PAGES;
		w->base = (uint32_t)(w->aligned ? aligned : packed);
		if (w->aligned)
			aligned += count;
		else
			packed += count;
	}
	if (aligned > UINT32_MAX || packed > UINT32_MAX)
		return -E2BIG;
	p->need = (struct plan_need){ .block_frames = (uint32_t)aligned, .frames = (uint32_t)packed };
	return 0;
}

static uint64_t leader_key(const struct plan *p, uint32_t leader)
{
	const struct window *w = &p->windows[leader / PLAN_WINDOW_PAGES];
	uint32_t word = leader / 64, first = leader / PLAN_WINDOW_PAGES * WINDOW_WORDS, number = w->base;

	if (w->aligned)
		return KEY_ALIGNED + number + leader % PLAN_WINDOW_PAGES;
	for (uint32_t i = first; i < word; i++)
		number += (uint32_t)__builtin_popcountll(p->alive[i]);
	number += (uint32_t)__builtin_popcountll(p->alive[word] & ((UINT64_C(1) << leader % 64) - 1));
	return KEY_PACKED + number;
}

/* ---- runs ---- */

/* What the walk remembers of the page before. */
struct before {
	uint32_t leader;
	uint64_t key; /* of the leader if alive, or of a known frame; else KEY_NONE */
};

static uint64_t key_of_leader(const struct plan *p, uint32_t leader, struct before *b)
{
	bool next = leader == b->leader + 1 && leader % PLAN_WINDOW_PAGES && b->key != KEY_NONE;

	b->leader = leader;
	if (leader == POSITION_NONE || !bit_get(p->alive, leader))
		b->key = KEY_NONE;
	else
		b->key = next ? b->key + 1 : leader_key(p, leader);
	return b->key;
}

static uint64_t key_of_known(const struct plan *p, uint64_t hash, struct before *b)
{
	uint32_t frame = FRAME_NONE;

	if (b->key < KEY_ALIGNED && frame_index_is(p->index, (uint32_t)b->key + 1, hash))
		frame = (uint32_t)b->key + 1;
	else if (hash != PAGE_HASH_ZERO)
		frame = frame_index_find_rcu(p->index, hash);
	b->leader = POSITION_NONE;
	b->key = frame == FRAME_NONE ? KEY_NONE : frame;
	return b->key;
}

static uint64_t key_of(const struct plan *p, uint32_t position, struct before *b)
{
	uint64_t hash = position_hash(p, position), key = KEY_NONE;

	if (hash == PAGE_HASH_NONE)
		goto none;
	if (hash == PAGE_HASH_ZERO) {
		if (position_left_out(p, position))
			goto none;
		/* In the middle of a known run that has a frame of zeroes, one mapping serves both sides. */
		if (p->index)
			key = key_of_known(p, hash, b);
		if (key != KEY_NONE)
			return key;
		b->leader = POSITION_NONE;
		b->key = KEY_NONE;
		return KEY_ZERO;
	}
	if (bit_get(p->candidate, position)) {
		if (p->known && bit_get(p->known, position))
			return key_of_known(p, hash, b);
		return key_of_leader(p, leader_of(p, position, b->leader), b);
	}
none:
	b->leader = POSITION_NONE;
	b->key = KEY_NONE;
	return KEY_NONE;
}

static void walk_add(struct walk *walk, uint32_t at, uint64_t key)
{
	struct piece *last = walk->count > 0 ? &walk->pieces[walk->count - 1] : NULL;

	if (last && last->from + last->pages == at &&
	    (key == KEY_ZERO ? last->key == KEY_ZERO : last->key < KEY_ZERO && last->key + last->pages == key)) {
		last->pages++;
		return;
	}
	walk->pieces[walk->count++] = (struct piece){ (uint16_t)at, 1, key };
}

void plan_walk(const struct plan *p, uint32_t window, struct walk *ret_walk)
{
	struct before b = { POSITION_NONE, KEY_NONE };
	const struct window *w = &p->windows[window];

	ret_walk->count = 0;
	if (p->index)
		rcu_read_lock();
	for (uint32_t at = w->from; at < w->to; at++) {
		uint64_t key;

		if (w->block != WINDOW_NONE) {
			key = key_of_leader(p, w->block * PLAN_WINDOW_PAGES + at, &b);
			if (key == KEY_NONE && w->hashes[at] == PAGE_HASH_ZERO)
				key = KEY_ZERO;
		} else {
			key = key_of(p, window * PLAN_WINDOW_PAGES + at, &b);
		}
		ret_walk->leaders[at] = b.leader;
		if (key != KEY_NONE)
			walk_add(ret_walk, at, key);
	}
	if (p->index)
		rcu_read_unlock();
}
