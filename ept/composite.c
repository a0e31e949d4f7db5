#include "ept/composite.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/snapshot.h"

#define INDEX_MIN 64u /* places of the first index; a power of two */

/* A page that holds tables. It may serve at several levels. */
struct table {
	uint64_t gpa;
	uint64_t generation; /* of the sync that met it last */
	uint8_t levels;	     /* bit n: looked through as a table of level n in that sync */
	uint8_t content[PAGE_BYTES];
};

struct composite {
	struct walk_regs regs;
	enum walk_mode mode;
	size_t tables_max;
	uint64_t *roots;
	size_t root_count, root_cap;

	struct table **places; /* by GPA, open addressing */
	size_t place_count, table_count;
	uint64_t generation;
};

/* Tables that wait to be looked through: each once for a level, so there are never more than copies times levels. */
struct todo {
	struct {
		const struct table *table;
		uint64_t gpa; /* of PAE's first table: within its page */
		unsigned level;
	} *items;
	size_t count, cap;
};

/* ---- the copies ---- */

static size_t place_of(const struct composite *c, uint64_t page)
{
	size_t i = (size_t)(page / PAGE_BYTES * UINT64_C(0x9e3779b97f4a7c15) >> 20) & (c->place_count - 1);

	while (c->places[i] && c->places[i]->gpa != page)
		i = (i + 1) & (c->place_count - 1);
	return i;
}

static int places_resize(struct composite *c, size_t count)
{
	struct table **old = c->places, **places = calloc(count, sizeof(*places));
	size_t old_count = c->place_count;

	if (!places)
		return -ENOMEM;
	c->places = places;
	c->place_count = count;
	for (size_t i = 0; i < old_count; i++)
		if (old[i])
			places[place_of(c, old[i]->gpa)] = old[i];
	free(old);
	return 0;
}

int composite_new(const struct walk_regs *regs, size_t tables_max, struct composite **ret_composite)
{
	struct composite *c;
	enum walk_mode mode;
	int r = walk_mode_of(regs, &mode);

	if (r < 0)
		return r;
	if (mode == WALK_FLAT)
		return -EOPNOTSUPP;
	c = calloc(1, sizeof(*c));
	if (!c)
		return -ENOMEM;
	c->regs = *regs;
	c->mode = mode;
	c->tables_max = tables_max;
	if (places_resize(c, INDEX_MIN) < 0) {
		composite_free(c);
		return -ENOMEM;
	}
	*ret_composite = c;
	return 0;
}

struct composite *composite_free(struct composite *c)
{
	if (!c)
		return NULL;
	for (size_t i = 0; i < c->place_count; i++)
		free(c->places[i]);
	free(c->places);
	free(c->roots);
	free(c);
	return NULL;
}

static uint64_t root_of(const struct composite *c, uint64_t cr3)
{
	struct walk_regs regs = c->regs;

	regs.cr3 = cr3;
	return walk_root(&regs, c->mode);
}

int composite_root_add(struct composite *c, uint64_t cr3)
{
	uint64_t root = root_of(c, cr3);

	for (size_t i = 0; i < c->root_count; i++)
		if (c->roots[i] == root)
			return 0;
	if (c->root_count == c->root_cap) {
		size_t cap = c->root_cap ? 2 * c->root_cap : 16;
		uint64_t *roots = reallocarray(c->roots, cap, sizeof(*roots));

		if (!roots)
			return -ENOMEM;
		c->roots = roots;
		c->root_cap = cap;
	}
	c->roots[c->root_count++] = root;
	return 0;
}

/* Little-endian, as the processor of both sides is. */
static uint64_t entry_of(const struct composite *c, const struct table *t, uint64_t table, unsigned index)
{
	unsigned bytes = walk_entry_bytes(c->mode);
	uint64_t value = 0;

	memcpy(&value, t->content + table % PAGE_BYTES + (size_t)index * bytes, bytes);
	return value;
}

/* ---- in step ---- */

static int table_add(struct composite *c, uint64_t page, const uint8_t *content, struct table **ret_table)
{
	struct table *t;

	if (c->table_count >= c->tables_max)
		return -EOVERFLOW;
	if (2 * (c->table_count + 1) > c->place_count && places_resize(c, 2 * c->place_count) < 0)
		return -ENOMEM;
	t = malloc(sizeof(*t));
	if (!t)
		return -ENOMEM;
	t->gpa = page;
	memcpy(t->content, content, PAGE_BYTES);
	c->places[place_of(c, page)] = t;
	c->table_count++;
	*ret_table = t;
	return 0;
}

static int todo_add(struct todo *todo, const struct table *t, uint64_t gpa, unsigned level)
{
	if (todo->count == todo->cap) {
		size_t cap = todo->cap ? 2 * todo->cap : 256;
		void *items = reallocarray(todo->items, cap, sizeof(*todo->items));

		if (!items)
			return -ENOMEM;
		todo->items = items;
		todo->cap = cap;
	}
	todo->items[todo->count].table = t;
	todo->items[todo->count].gpa = gpa;
	todo->items[todo->count++].level = level;
	return 0;
}

struct syncing {
	struct composite *c;
	walk_read_fn read;
	void *userdata;
	struct todo todo;
	struct composite_sync *sync;
};

/* The page with the content that it has in this sync. 0; *ret_table NULL: it cannot be read; -errno. */
static int table_fetch(struct syncing *s, uint64_t page, struct table **ret_table)
{
	struct composite *c = s->c;
	struct table *t = c->places[place_of(c, page)];
	uint8_t content[PAGE_BYTES];
	int r;

	*ret_table = t;
	if (t && t->generation == c->generation)
		return 0;
	r = s->read(s->userdata, page, content, sizeof(content));
	if (r < 0) {
		s->sync->outside += r == -ENXIO;
		s->sync->unreadable += r != -ENXIO;
		*ret_table = NULL; /* an older copy is dropped with those that nobody met */
		return s->sync->outside + s->sync->unreadable > c->tables_max ? -EOVERFLOW : 0;
	}
	if (!t) {
		r = table_add(c, page, content, ret_table);
		if (r < 0)
			return r;
		t = *ret_table;
		s->sync->added++;
	} else if (memcmp(t->content, content, PAGE_BYTES) != 0) {
		memcpy(t->content, content, PAGE_BYTES);
		s->sync->changed++;
	}
	t->generation = c->generation;
	t->levels = 0;
	return 0;
}

/* An entry leads to a table of this level. */
static int table_meet(struct syncing *s, uint64_t gpa, unsigned level)
{
	/* Of PAE's first tables several may share a page. They are met as roots only, each once. */
	bool part = s->c->mode == WALK_PAE && level == 3;
	struct table *t;
	int r = table_fetch(s, gpa & ~(uint64_t)(PAGE_BYTES - 1), &t);

	if (r < 0 || !t || (!part && t->levels & 1u << level))
		return r;
	if (!part)
		t->levels |= (uint8_t)(1u << level);
	return level > 1 ? todo_add(&s->todo, t, gpa, level) : 0;
}

static int table_look(struct syncing *s, const struct table *t, uint64_t gpa, unsigned level)
{
	const struct composite *c = s->c;
	int r = 0;

	for (unsigned i = 0; i < walk_entry_count(c->mode, level) && r == 0; i++) {
		uint64_t below;

		if (walk_entry(&c->regs, c->mode, level, entry_of(c, t, gpa, i), &below) == WALK_ENTRY_TABLE)
			r = table_meet(s, below, level - 1);
	}
	return r;
}

/* Copies that this sync did not meet go. Open addressing wants a new index then. */
static int tables_drop(struct composite *c, struct composite_sync *s)
{
	for (size_t i = 0; i < c->place_count; i++) {
		if (!c->places[i] || c->places[i]->generation == c->generation)
			continue;
		free(c->places[i]);
		c->places[i] = NULL;
		c->table_count--;
		s->dropped++;
	}
	return s->dropped ? places_resize(c, c->place_count) : 0;
}

int composite_sync(struct composite *c, walk_read_fn read, void *userdata, const _Atomic bool *cancel,
		   struct composite_sync *ret_sync)
{
	struct syncing s = { .c = c, .read = read, .userdata = userdata, .sync = ret_sync };
	int r = 0;

	*ret_sync = (struct composite_sync){ 0 };
	c->generation++;
	for (size_t i = 0; i < c->root_count && r == 0; i++)
		r = table_meet(&s, c->roots[i], walk_levels(c->mode));
	while (r == 0 && s.todo.count > 0) {
		size_t last = --s.todo.count;

		if (cancel && *cancel)
			r = -ECANCELED;
		else
			r = table_look(&s, s.todo.items[last].table, s.todo.items[last].gpa, s.todo.items[last].level);
	}
	free(s.todo.items);
	if (r == 0)
		r = tables_drop(c, ret_sync);
	ret_sync->tables = c->table_count;
	return r;
}

/* ---- going through ---- */

struct going {
	const struct composite *c;
	enum composite_part part;
	uint64_t *budget;
	composite_leaf_fn fn;
	void *userdata;
};

struct rights {
	bool user, writable, executable;
};

static bool spend(struct going *g, uint64_t cost)
{
	if (*g->budget < cost) {
		*g->budget = 0;
		return false;
	}
	*g->budget -= cost;
	return true;
}

static struct rights rights_with(const struct going *g, unsigned level, unsigned index, uint64_t entry, struct rights above)
{
	/* The upper half is the kernel's, also what user mode may read there: Linux's page of old system calls. */
	if (level == walk_levels(g->c->mode) && walk_address_bits(g->c->mode) > 32)
		above.user &= index < walk_entry_count(g->c->mode, level) / 2;
	if (g->c->mode == WALK_PAE && level == 3) /* has none */
		return above;
	above.user &= (entry & WALK_USER) != 0;
	above.writable &= (entry & WALK_WRITABLE) != 0;
	/* With NX off the bit is reserved, and no such entry comes here. */
	above.executable &= !(walk_entry_bytes(g->c->mode) == 8 && (entry & WALK_NO_EXECUTE));
	return above;
}

static int leaf_give(struct going *g, uint64_t gva, uint64_t gpa, uint64_t bytes, struct rights rights)
{
	struct composite_leaf leaf = { gva, gpa, bytes, rights.writable, rights.executable };
	unsigned n = walk_address_bits(g->c->mode);

	if (rights.user != (g->part == COMPOSITE_USER))
		return 0;
	if (n > 32 && gva >> (n - 1))
		leaf.gva |= ~UINT64_C(0) << n;
	return g->fn(g->userdata, &leaf);
}

/* As deep as there are levels. */
static int table_go(struct going *g, uint64_t gpa, unsigned level, uint64_t gva, struct rights above)
{
	const struct composite *c = g->c;
	const struct table *t = c->places[place_of(c, gpa & ~(uint64_t)(PAGE_BYTES - 1))];
	uint64_t bytes = walk_level_bytes(c->mode, level);

	if (!t)
		return 0;
	if (!spend(g, COMPOSITE_COST_TABLE))
		return -EOVERFLOW;
	for (unsigned i = 0; i < walk_entry_count(c->mode, level); i++, gva += bytes) {
		uint64_t entry = entry_of(c, t, gpa, i), next;
		enum walk_entry_kind kind = walk_entry(&c->regs, c->mode, level, entry, &next);
		struct rights rights;
		int r = 0;

		if (kind != WALK_ENTRY_TABLE && kind != WALK_ENTRY_PAGE)
			continue;
		if (!spend(g, COMPOSITE_COST_ENTRY))
			return -EOVERFLOW;
		rights = rights_with(g, level, i, entry, above);
		if (kind == WALK_ENTRY_PAGE)
			r = leaf_give(g, gva, next, bytes, rights);
		else if (rights.user || g->part == COMPOSITE_KERNEL) /* below the kernel's nothing is the user's */
			r = table_go(g, next, level - 1, gva, rights);
		if (r != 0)
			return r;
	}
	return 0;
}

int composite_each(const struct composite *c, uint64_t cr3, enum composite_part part, uint64_t *budget, composite_leaf_fn fn,
		   void *userdata)
{
	struct going g = { c, part, budget, fn, userdata };

	return table_go(&g, root_of(c, cr3), walk_levels(c->mode), 0, (struct rights){ true, true, true });
}
