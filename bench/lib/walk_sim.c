#include "bench/lib/walk_sim.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "ept/table_format.h"

#define LEVELS 4u

/* ---- a cache with least-recently-used replacement ---- */

struct cache {
	uint64_t *keys, *used; /* 0: empty */
	unsigned sets, ways;
};

static int cache_init(struct cache *c, unsigned entries, unsigned ways)
{
	*c = (struct cache){ .sets = entries / ways, .ways = ways };
	c->keys = calloc(entries, sizeof(*c->keys));
	c->used = calloc(entries, sizeof(*c->used));
	return c->keys && c->used ? 0 : -ENOMEM;
}

static void cache_end(struct cache *c)
{
	free(c->keys);
	free(c->used);
}

static bool cache_has(struct cache *c, uint64_t index, uint64_t key, uint64_t now)
{
	size_t first = index % c->sets * c->ways;

	for (size_t i = first; i < first + c->ways; i++) {
		if (c->keys[i] == key) {
			c->used[i] = now;
			return true;
		}
	}
	return false;
}

static void cache_put(struct cache *c, uint64_t index, uint64_t key, uint64_t now)
{
	size_t first = index % c->sets * c->ways, oldest = first;

	for (size_t i = first; i < first + c->ways; i++)
		if (c->used[i] < c->used[oldest])
			oldest = i;
	c->keys[oldest] = key;
	c->used[oldest] = now;
}

/* ---- a set of numbers that only grows ---- */

struct seen {
	uint64_t *keys;
	size_t cap, count;
};

/* 1: it is new; 0; -ENOMEM. */
static int seen_add(struct seen *s, uint64_t key)
{
	size_t at;

	if (s->count * 2 >= s->cap) {
		struct seen bigger = { .cap = s->cap ? s->cap * 2 : 4096 };

		bigger.keys = calloc(bigger.cap, sizeof(*bigger.keys));
		if (!bigger.keys)
			return -ENOMEM;
		for (size_t i = 0; i < s->cap; i++)
			if (s->keys[i])
				seen_add(&bigger, s->keys[i]);
		free(s->keys);
		*s = bigger;
	}
	for (at = key * UINT64_C(0x9e3779b97f4a7c15) >> 20 & (s->cap - 1); s->keys[at]; at = (at + 1) & (s->cap - 1))
		if (s->keys[at] == key)
			return 0;
	s->keys[at] = key;
	s->count++;
	return 1;
}

/* ---- the simulation ---- */

struct walk_sim {
	struct walk_sim_options options;
	walk_read_fn read;
	walk_sim_host_level host_level;
	void *userdata;
	struct walk_regs regs;
	unsigned space;
	uint64_t now;
	struct cache tlb, walk_cache[LEVELS + 1], nested_tlb, nested_cache[LEVELS + 1];
	struct seen guest_pages, host_pages, composite, written;
	struct walk_sim_counts counts;
};

/* Never 0: the level is in it. Guest-virtual addresses have 48 bits, of which 36 are left; spaces are below 4096. */
static uint64_t key_of(unsigned space, uint64_t address, unsigned level)
{
	return (uint64_t)space << 40 | address >> table_level_shift(level) << 3 | level;
}

int walk_sim_new(const struct walk_sim_options *options, walk_read_fn read, walk_sim_host_level host_level, void *userdata,
		 struct walk_sim **ret_sim)
{
	struct walk_sim *s = calloc(1, sizeof(*s));
	int r = 0;

	if (!s)
		return -ENOMEM;
	*s = (struct walk_sim){ .options = *options, .read = read, .host_level = host_level, .userdata = userdata };
	if (options->caches) {
		r = cache_init(&s->tlb, options->tlb_entries, options->tlb_ways);
		if (r == 0)
			r = cache_init(&s->nested_tlb, options->nested_tlb_entries, options->nested_tlb_entries);
		for (unsigned level = 2; level <= LEVELS && r == 0; level++) {
			r = cache_init(&s->walk_cache[level], options->walk_cache[level], options->walk_cache[level]);
			if (r == 0)
				r = cache_init(&s->nested_cache[level], options->walk_cache[level], options->walk_cache[level]);
		}
	}
	if (r < 0)
		walk_sim_free(s);
	else
		*ret_sim = s;
	return r;
}

struct walk_sim *walk_sim_free(struct walk_sim *s)
{
	if (!s)
		return NULL;
	cache_end(&s->tlb);
	cache_end(&s->nested_tlb);
	for (unsigned level = 2; level <= LEVELS; level++) {
		cache_end(&s->walk_cache[level]);
		cache_end(&s->nested_cache[level]);
	}
	free(s->guest_pages.keys);
	free(s->host_pages.keys);
	free(s->composite.keys);
	free(s->written.keys);
	free(s);
	return NULL;
}

const struct walk_sim_counts *walk_sim_counts(const struct walk_sim *s)
{
	return &s->counts;
}

void walk_sim_switch(struct walk_sim *s, unsigned space, const struct walk_regs *regs)
{
	if (space == s->space && regs->cr3 == s->regs.cr3)
		return;
	s->space = space;
	s->regs = *regs;
	s->counts.switches += s->options.scheme == SIM_SHADOW;
}

/* The level of the first entry that has to be read, on the way down to leaf: the one below the lowest that is cached. */
static unsigned walk_start(struct walk_sim *s, struct cache *caches, unsigned space, uint64_t address, unsigned leaf)
{
	for (unsigned level = leaf + 1; s->options.caches && level <= LEVELS; level++)
		if (cache_has(&caches[level], address >> table_level_shift(level), key_of(space, address, level), s->now))
			return level - 1;
	return LEVELS;
}

static void walk_remember(struct walk_sim *s, struct cache *caches, unsigned space, uint64_t address, unsigned start,
			  unsigned leaf)
{
	for (unsigned level = start; s->options.caches && level > leaf; level--)
		cache_put(&caches[level], address >> table_level_shift(level), key_of(space, address, level), s->now);
}

/* Guest-physical to host-physical: entries of the second stage that are read. */
static unsigned nested_walk(struct walk_sim *s, uint64_t gpa)
{
	unsigned leaf = s->host_level(s->userdata, gpa), start;
	uint64_t key = key_of(0, gpa, leaf);

	if (s->options.caches && cache_has(&s->nested_tlb, 0, key, s->now))
		return 0;
	start = walk_start(s, s->nested_cache, 0, gpa, leaf);
	walk_remember(s, s->nested_cache, 0, gpa, start, leaf);
	if (s->options.caches)
		cache_put(&s->nested_tlb, 0, key, s->now);
	return start - leaf + 1;
}

static unsigned two_dimensional_walk(struct walk_sim *s, uint64_t gva, const struct walk *w, unsigned guest_leaf)
{
	unsigned start = walk_start(s, s->walk_cache, s->space, gva, guest_leaf), references = 0;

	for (unsigned level = start; level >= guest_leaf; level--) {
		const struct walk_step *step = &w->steps[LEVELS - level];

		/* Where the table of the first entry lies on the host is what the cache has; CR3 holds a guest's address. */
		if (level != start || start == LEVELS)
			references += nested_walk(s, step->table + (uint64_t)step->index * step->entry_bytes);
		references++;
	}
	walk_remember(s, s->walk_cache, s->space, gva, start, guest_leaf);
	return references + nested_walk(s, w->gpa);
}

static unsigned one_dimensional_walk(struct walk_sim *s, uint64_t gva, unsigned leaf)
{
	unsigned start = walk_start(s, s->walk_cache, s->space, gva, leaf);

	walk_remember(s, s->walk_cache, s->space, gva, start, leaf);
	return start - leaf + 1;
}

/* What the hypervisor is called for. 0 or -ENOMEM. */
static int exits_count(struct walk_sim *s, uint64_t gva, uint64_t gpa, unsigned guest_leaf, unsigned host_leaf, bool write)
{
	unsigned leaf = guest_leaf < host_leaf ? guest_leaf : host_leaf;
	int new_guest, r;

	if (s->options.scheme == SIM_NATIVE)
		return 0;
	if (s->options.scheme == SIM_TWO_DIMENSIONAL) {
		r = seen_add(&s->host_pages, key_of(0, gpa, host_leaf));
		s->counts.violations += r > 0;
		return r < 0 ? r : 0;
	}
	/* The guest maps the page when it is touched first: it takes a fault and writes an entry. Both come to the
	 * hypervisor, which fills in the composite with the second. */
	new_guest = seen_add(&s->guest_pages, key_of(s->space, gva, guest_leaf));
	r = new_guest < 0 ? new_guest : seen_add(&s->composite, key_of(s->space, gva, leaf));
	if (r < 0)
		return r;
	s->counts.guest_faults += (unsigned)new_guest;
	s->counts.table_writes += (unsigned)new_guest;
	s->counts.hidden_faults += r && !new_guest;
	/* Its first write has to set the guest's dirty flag, so until then the composite is read-only. */
	if (write) {
		r = seen_add(&s->written, key_of(s->space, gva, leaf));
		s->counts.hidden_faults += r > 0 && !new_guest;
	}
	return r < 0 ? r : 0;
}

int walk_sim_access(struct walk_sim *s, uint64_t gva, bool write)
{
	unsigned guest_leaf, host_leaf, leaf;
	struct walk w;
	uint64_t key;
	int r = walk_gva(&s->regs, s->read, s->userdata, gva, &w);

	if (r < 0)
		return r;
	guest_leaf = LEVELS - w.step_count + 1;
	host_leaf = s->options.scheme == SIM_NATIVE ? guest_leaf : s->host_level(s->userdata, w.gpa);
	leaf = guest_leaf < host_leaf ? guest_leaf : host_leaf;
	s->now++;
	s->counts.accesses++;
	r = exits_count(s, gva, w.gpa, guest_leaf, host_leaf, write);
	if (r < 0)
		return r;
	key = key_of(s->space, gva, leaf);
	if (s->options.caches && cache_has(&s->tlb, gva >> table_level_shift(leaf), key, s->now))
		return 0;
	s->counts.tlb_misses++;
	s->counts.references += s->options.scheme == SIM_TWO_DIMENSIONAL ? two_dimensional_walk(s, gva, &w, guest_leaf) :
									      one_dimensional_walk(s, gva, leaf);
	if (s->options.caches)
		cache_put(&s->tlb, gva >> table_level_shift(leaf), key, s->now);
	return 0;
}
