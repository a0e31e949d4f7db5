#define _LGPL_SOURCE /* inline RCU read side */
#include "ksmd/frame_index.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <urcu.h>

#include "agent/page_hash.h"

/* No frame has a number with all bits of frame_mask, or all but the lowest: see frame_index_new(). */
#define SLOT_EMPTY UINT32_MAX
#define SLOT_DROPPED (UINT32_MAX - 1)
#define SLOTS_MIN 1024
/* At most 4 of 5 slots are taken, and a new table has room for half as many again: 5 to 7.5 bytes a frame. */
#define LOAD_NUM 4
#define LOAD_DEN 5

#define TAG_NONE UINT64_C(0)
#define TAG_ZERO UINT64_C(1)

struct table {
	struct rcu_head rcu;
	uint64_t size;
	_Atomic uint32_t slots[];
};

struct frame_index {
	struct table *table; /* RCU */
	uint32_t frames;
	uint32_t frame_mask; /* of a slot: the frame; above it, bits of the tag, as many as there is room for */
	_Atomic uint32_t *tag_high; /* per frame */
	_Atomic uint16_t *tag_low;
	size_t count, taken; /* slots with a frame; slots not empty. Writer only, as is: */
	uint32_t frames_high; /* no frame above was ever put */
};

static void *array_new(uint32_t count, size_t item)
{
	void *map = mmap(NULL, count * item, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
			 -1, 0);

	return map == MAP_FAILED ? NULL : map;
}

static struct table *table_new(uint64_t size)
{
	struct table *t = malloc(sizeof(*t) + size * sizeof(t->slots[0]));

	if (!t)
		return NULL;
	t->size = size;
	for (uint64_t i = 0; i < size; i++)
		atomic_init(&t->slots[i], SLOT_EMPTY);
	return t;
}

static void table_free_rcu(struct rcu_head *head)
{
	free(caa_container_of(head, struct table, rcu));
}

int frame_index_new(uint32_t frames, struct frame_index **ret_index)
{
	struct frame_index *x;

	if (frames == 0 || frames >= SLOT_DROPPED)
		return -EINVAL;
	x = calloc(1, sizeof(*x));
	if (!x)
		return -ENOMEM;
	x->frames = frames;
	while (x->frame_mask < frames + 1) /* the last frame is two below the mask at most */
		x->frame_mask = x->frame_mask << 1 | 1;
	x->table = table_new(SLOTS_MIN);
	x->tag_high = array_new(frames, sizeof(*x->tag_high));
	x->tag_low = array_new(frames, sizeof(*x->tag_low));
	if (!x->table || !x->tag_high || !x->tag_low) {
		frame_index_free(x);
		return -ENOMEM;
	}
	*ret_index = x;
	return 0;
}

struct frame_index *frame_index_free(struct frame_index *x)
{
	if (!x)
		return NULL;
	if (x->tag_high)
		munmap((void *)x->tag_high, x->frames * sizeof(*x->tag_high));
	if (x->tag_low)
		munmap((void *)x->tag_low, x->frames * sizeof(*x->tag_low));
	free(x->table);
	free(x);
	return NULL;
}

/* ---- tags ---- */

static uint64_t tag_of(uint64_t hash)
{
	uint64_t tag = hash >> 16;

	if (hash == PAGE_HASH_ZERO)
		return TAG_ZERO;
	return tag > TAG_ZERO ? tag : TAG_NONE; /* two tags in 2^48 cannot be kept */
}

static uint64_t tag_get(const struct frame_index *x, uint32_t frame)
{
	uint64_t high = atomic_load_explicit(&x->tag_high[frame], memory_order_relaxed);

	return high << 16 | atomic_load_explicit(&x->tag_low[frame], memory_order_relaxed);
}

static void tag_set(struct frame_index *x, uint32_t frame, uint64_t tag)
{
	atomic_store_explicit(&x->tag_high[frame], (uint32_t)(tag >> 16), memory_order_relaxed);
	atomic_store_explicit(&x->tag_low[frame], (uint16_t)tag, memory_order_relaxed);
}

bool frame_index_is(const struct frame_index *x, uint32_t frame, uint64_t hash)
{
	uint64_t tag = tag_of(hash);

	return frame < x->frames && tag != TAG_NONE && tag_get(x, frame) == tag;
}

/* ---- table ---- */

static uint64_t slot_first(const struct table *t, uint64_t tag)
{
	return ((tag & UINT32_MAX) * t->size) >> 32;
}

static uint32_t slot_get(const struct table *t, uint64_t slot)
{
	return atomic_load_explicit(&t->slots[slot], memory_order_acquire);
}

/* The tag's bits in a slot: those that slot_first() does not depend on. A look that finds nothing passes about 13 slots
 * where 4 of 5 are taken, and each frame's own tag lies elsewhere in memory. */
static uint32_t slot_tag(const struct frame_index *x, uint64_t tag)
{
	return (uint32_t)((tag >> 32) * ((uint64_t)x->frame_mask + 1));
}

static uint32_t tag_find(const struct frame_index *x, const struct table *t, uint64_t tag)
{
	uint32_t want = slot_tag(x, tag);

	for (uint64_t slot = slot_first(t, tag);; slot = slot + 1 < t->size ? slot + 1 : 0) {
		uint32_t value = slot_get(t, slot), frame = value & x->frame_mask;

		if (value == SLOT_EMPTY)
			return FRAME_NONE;
		if (value != SLOT_DROPPED && (value & ~x->frame_mask) == want && tag_get(x, frame) == tag)
			return frame;
	}
}

uint32_t frame_index_find_rcu(const struct frame_index *x, uint64_t hash)
{
	uint64_t tag = tag_of(hash);

	return tag <= TAG_ZERO ? FRAME_NONE : tag_find(x, rcu_dereference(x->table), tag);
}

/* Only for a table with an empty slot. */
static void slot_put(const struct frame_index *x, struct table *t, uint64_t tag, uint32_t frame)
{
	uint64_t slot = slot_first(t, tag);

	while (slot_get(t, slot) != SLOT_EMPTY)
		slot = slot + 1 < t->size ? slot + 1 : 0;
	atomic_store_explicit(&t->slots[slot], slot_tag(x, tag) | frame, memory_order_release);
}

/* Makes room for one more; drops the marks of dropped frames on the way. */
static int table_reserve(struct frame_index *x)
{
	struct table *old = x->table, *t;
	uint64_t size;

	if ((x->taken + 1) * LOAD_DEN <= old->size * LOAD_NUM)
		return 0;
	size = (x->count + x->count / 2) * LOAD_DEN / LOAD_NUM;
	t = table_new(size > SLOTS_MIN ? size : SLOTS_MIN);
	if (!t)
		return -ENOMEM;
	for (uint64_t slot = 0; slot < old->size; slot++) {
		uint32_t value = slot_get(old, slot), frame = value & x->frame_mask;

		if (value < SLOT_DROPPED)
			slot_put(x, t, tag_get(x, frame), frame);
	}
	x->taken = x->count;
	rcu_assign_pointer(x->table, t);
	call_rcu(&old->rcu, table_free_rcu);
	return 0;
}

int frame_index_put(struct frame_index *x, uint64_t hash, uint32_t frame)
{
	uint64_t tag = tag_of(hash);
	int r;

	if (frame >= x->frames || hash == PAGE_HASH_NONE)
		return -EINVAL;
	frame_index_drop(x, frame);
	r = table_reserve(x);
	if (r < 0)
		return r;
	if (frame >= x->frames_high)
		x->frames_high = frame + 1;
	if (tag > TAG_ZERO && tag_find(x, x->table, tag) == FRAME_NONE) {
		tag_set(x, frame, tag);
		slot_put(x, x->table, tag, frame);
		x->count++;
		x->taken++;
	}
	tag_set(x, frame, tag);
	return 0;
}

void frame_index_drop(struct frame_index *x, uint32_t frame)
{
	uint64_t tag = frame < x->frames ? tag_get(x, frame) : TAG_NONE;
	struct table *t = x->table;

	if (tag == TAG_NONE)
		return;
	tag_set(x, frame, TAG_NONE);
	for (uint64_t slot = slot_first(t, tag); tag != TAG_ZERO; slot = slot + 1 < t->size ? slot + 1 : 0) {
		uint32_t found = slot_get(t, slot);

		if (found == SLOT_EMPTY)
			return; /* another frame of this content was there first */
		if (found == SLOT_DROPPED || (found & x->frame_mask) != frame)
			continue;
		atomic_store_explicit(&t->slots[slot], SLOT_DROPPED, memory_order_release);
		x->count--;
		return;
	}
}

size_t frame_index_count(const struct frame_index *x)
{
	return x->count;
}

size_t frame_index_bytes(const struct frame_index *x)
{
	return sizeof(*x) + sizeof(*x->table) + x->table->size * sizeof(x->table->slots[0]) +
	       x->frames_high * (sizeof(*x->tag_high) + sizeof(*x->tag_low));
}
