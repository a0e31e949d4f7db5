#include "ept/table.h"

#include <errno.h>
#include <stdlib.h>

#include "ept/table_pool.h"

struct ept_table {
	struct table_options options;
	struct table_pool pool;
	uint32_t root;
	/* From the format, for this table: */
	uint64_t reserved_table[TABLE_LEVELS_MAX + 1], reserved_leaf[TABLE_LEAF_LEVELS + 1];
	uint8_t low_disallowed, type_disallowed;
};

/* What an operation on one range can need of new tables: two splits of 1 GiB pages at each end, or a way of its own. */
#define TABLES_NEEDED_MAX 4u

/* ---- life ---- */

static void masks_make(struct ept_table *t)
{
	const struct table_format *f = t->options.format;
	uint64_t high = t->options.phys_bits < 52 ? table_bits(t->options.phys_bits, 51) : 0;

	for (unsigned level = 1; level <= TABLE_LEVELS_MAX; level++)
		t->reserved_table[level] = high | (level > 1 ? f->reserved(&t->options, level, false) : 0);
	for (unsigned level = 1; level <= TABLE_LEAF_LEVELS; level++)
		t->reserved_leaf[level] = high | f->reserved(&t->options, level, true);
	f->disallowed(&t->options, &t->low_disallowed, &t->type_disallowed);
}

int ept_table_new(const struct table_options *options, struct ept_table **ret_table)
{
	struct ept_table *t;
	int r;

	if (options->levels < 4 || options->levels > TABLE_LEVELS_MAX || options->phys_bits < 36 || options->phys_bits > 52)
		return -EINVAL;
	t = calloc(1, sizeof(*t));
	if (!t)
		return -ENOMEM;
	t->options = *options;
	r = table_pool_init(&t->pool);
	if (r < 0) {
		free(t);
		return r;
	}
	t->root = table_pool_take(&t->pool);
	masks_make(t);
	*ret_table = t;
	return 0;
}

struct ept_table *ept_table_free(struct ept_table *t)
{
	if (t)
		table_pool_end(&t->pool);
	free(t);
	return NULL;
}

/* ---- entries ---- */

static unsigned index_at(uint64_t gpa, unsigned level)
{
	return (unsigned)(gpa >> table_level_shift(level)) % TABLE_ENTRIES;
}

static bool is_present(const struct ept_table *t, uint64_t entry)
{
	return entry & t->options.format->present;
}

static bool is_leaf(const struct ept_table *t, uint64_t entry, unsigned level)
{
	return level == 1 || (level <= TABLE_LEAF_LEVELS && entry & t->options.format->large);
}

static uint64_t *entry_of(const struct ept_table *t, uint32_t page, unsigned index)
{
	return &t->pool.pages[page].entries[index];
}

/* 0: the entry names no table of the pool. */
static uint32_t child_of(const struct ept_table *t, uint64_t entry)
{
	uint64_t page = (entry & TABLE_ADDRESS_MASK) >> 12;

	return page < t->pool.count ? (uint32_t)page : 0;
}

static void tree_give(struct ept_table *t, uint32_t page, unsigned level)
{
	for (unsigned i = 0; level > 1 && i < TABLE_ENTRIES; i++) {
		uint64_t entry = *entry_of(t, page, i);

		if (is_present(t, entry) && !is_leaf(t, entry, level))
			tree_give(t, child_of(t, entry), level - 1);
	}
	table_pool_give(&t->pool, page);
}

/* Puts an entry in place of the one that is there, with all that hangs on that. 0: none. */
static void entry_put(struct ept_table *t, uint32_t page, unsigned index, unsigned level, uint64_t entry)
{
	uint64_t *at = entry_of(t, page, index), old = *at;

	*at = entry;
	t->pool.info[page].used = (uint16_t)(t->pool.info[page].used + is_present(t, entry) - is_present(t, old));
	if (is_present(t, old) && !is_leaf(t, old, level))
		tree_give(t, child_of(t, old), level - 1);
}

static uint32_t table_put(struct ept_table *t, uint32_t page, unsigned index, unsigned level)
{
	uint32_t child = table_pool_take(&t->pool);

	entry_put(t, page, index, level, t->options.format->table_entry | (uint64_t)child << 12);
	return child;
}

/* The page of the entry becomes 512 smaller ones. A table was reserved. */
static uint32_t leaf_split(struct ept_table *t, uint32_t page, unsigned index, unsigned level)
{
	const struct table_format *f = t->options.format;
	struct table_leaf leaf;
	uint64_t entry;
	uint32_t child;

	f->decode(level, *entry_of(t, page, index), &leaf);
	child = table_put(t, page, index, level);
	entry = f->encode(level - 1, &leaf);
	for (unsigned i = 0; i < TABLE_ENTRIES; i++)
		*entry_of(t, child, i) = entry + i * table_level_bytes(level - 1);
	t->pool.info[child].used = TABLE_ENTRIES;
	return child;
}

/* ---- changing ---- */

static bool range_good(const struct ept_table *t, uint64_t gpa, uint64_t bytes)
{
	uint64_t limit = ept_table_limit(t);

	return (gpa | bytes) % table_level_bytes(1) == 0 && gpa <= limit && bytes <= limit - gpa;
}

static bool perms_good(const struct ept_table *t, unsigned perms)
{
	if (perms == 0 || perms > (TABLE_READ | TABLE_WRITE | TABLE_EXECUTE))
		return false;
	return t->options.format->readable_always ? perms & TABLE_READ : !(t->low_disallowed >> perms & 1);
}

static bool leaf_good(const struct ept_table *t, unsigned level, const struct table_leaf *leaf)
{
	static const uint8_t types = 1u << TABLE_UC | 1u << TABLE_WC | 1u << TABLE_WT | 1u << TABLE_WP | 1u << TABLE_WB;

	return leaf->address % table_level_bytes(level) == 0 && !(leaf->address >> t->options.phys_bits) &&
	       perms_good(t, leaf->perms) && leaf->memory_type < 8 && types >> leaf->memory_type & 1 &&
	       (t->options.format->has_ignore_pat || !leaf->ignore_pat) && leaf->tag <= TABLE_TAG_MAX;
}

int ept_table_map(struct ept_table *t, uint64_t gpa, unsigned level, const struct table_leaf *leaf)
{
	uint32_t page = t->root;
	int r;

	if (level < 1 || level > TABLE_LEAF_LEVELS || (level == 3 && !t->options.gib_pages))
		return -EINVAL;
	if (!range_good(t, gpa, table_level_bytes(level)) || gpa % table_level_bytes(level) != 0 || !leaf_good(t, level, leaf))
		return -EINVAL;
	r = table_pool_reserve(&t->pool, TABLES_NEEDED_MAX);
	if (r < 0)
		return r;
	for (unsigned at = t->options.levels; at > level; at--) {
		unsigned index = index_at(gpa, at);
		uint64_t entry = *entry_of(t, page, index);

		page = !is_present(t, entry)	? table_put(t, page, index, at) :
		       is_leaf(t, entry, at) ? leaf_split(t, page, index, at) :
						  child_of(t, entry);
	}
	entry_put(t, page, index_at(gpa, level), level, t->options.format->encode(level, leaf));
	return 0;
}

struct change {
	uint64_t start, end;
	bool unmap;
	unsigned perms;
};

static void leaf_change(struct ept_table *t, uint32_t page, unsigned index, unsigned level, const struct change *c)
{
	const struct table_format *f = t->options.format;
	struct table_leaf leaf;

	if (c->unmap) {
		entry_put(t, page, index, level, 0);
		return;
	}
	f->decode(level, *entry_of(t, page, index), &leaf);
	leaf.perms = (uint8_t)c->perms;
	entry_put(t, page, index, level, f->encode(level, &leaf));
}

/* base: the first address of this table. */
static void tree_change(struct ept_table *t, uint32_t page, unsigned level, uint64_t base, const struct change *c)
{
	uint64_t bytes = table_level_bytes(level);
	unsigned i = c->start > base ? (unsigned)((c->start - base) / bytes) : 0;

	for (; i < TABLE_ENTRIES && base + i * bytes < c->end; i++) {
		uint64_t first = base + i * bytes, entry = *entry_of(t, page, i);
		uint32_t child;

		if (!is_present(t, entry))
			continue;
		if (is_leaf(t, entry, level) && first >= c->start && first + bytes <= c->end) {
			leaf_change(t, page, i, level, c);
			continue;
		}
		child = is_leaf(t, entry, level) ? leaf_split(t, page, i, level) : child_of(t, entry);
		tree_change(t, child, level - 1, first, c);
		if (t->pool.info[child].used == 0)
			entry_put(t, page, i, level, 0);
	}
}

static int range_change(struct ept_table *t, const struct change *c)
{
	int r = table_pool_reserve(&t->pool, TABLES_NEEDED_MAX);

	if (r == 0 && c->start < c->end)
		tree_change(t, t->root, t->options.levels, 0, c);
	return r;
}

int ept_table_unmap(struct ept_table *t, uint64_t gpa, uint64_t bytes)
{
	if (!range_good(t, gpa, bytes))
		return -EINVAL;
	return range_change(t, &(struct change){ gpa, gpa + bytes, .unmap = true });
}

int ept_table_protect(struct ept_table *t, uint64_t gpa, uint64_t bytes, unsigned perms)
{
	if (!range_good(t, gpa, bytes) || !perms_good(t, perms))
		return -EINVAL;
	return range_change(t, &(struct change){ gpa, gpa + bytes, .perms = perms });
}

/* The lowest entry that there is on the way to gpa: its page, its index, *level. */
static uint32_t entry_find(const struct ept_table *t, uint64_t gpa, unsigned lowest, unsigned *ret_level)
{
	uint32_t page = t->root;
	unsigned level = t->options.levels;

	for (; level > lowest; level--) {
		uint64_t entry = *entry_of(t, page, index_at(gpa, level));

		if (!is_present(t, entry) || is_leaf(t, entry, level) || !child_of(t, entry))
			break;
		page = child_of(t, entry);
	}
	*ret_level = level;
	return page;
}

int ept_table_split(struct ept_table *t, uint64_t gpa)
{
	unsigned level;
	uint32_t page;
	int r;

	if (gpa >= ept_table_limit(t))
		return -ENOENT;
	page = entry_find(t, gpa, 1, &level);
	if (level == 1 || !is_present(t, *entry_of(t, page, index_at(gpa, level))))
		return -ENOENT;
	r = table_pool_reserve(&t->pool, 1);
	if (r == 0)
		leaf_split(t, page, index_at(gpa, level), level);
	return r;
}

int ept_table_collapse(struct ept_table *t, uint64_t gpa, unsigned level)
{
	const struct table_format *f = t->options.format;
	uint64_t flags = f->accessed | f->dirty, first, seen = 0, entry;
	struct table_leaf leaf;
	unsigned at;
	uint32_t page, child;

	if (gpa >= ept_table_limit(t) || level < 2 || level > TABLE_LEAF_LEVELS || (level == 3 && !t->options.gib_pages))
		return -EINVAL;
	page = entry_find(t, gpa, level, &at);
	entry = *entry_of(t, page, index_at(gpa, level));
	if (at != level || !is_present(t, entry) || is_leaf(t, entry, level))
		return 0;
	child = child_of(t, entry);
	first = *entry_of(t, child, 0);
	for (unsigned i = 0; i < TABLE_ENTRIES; i++) {
		entry = *entry_of(t, child, i);
		seen |= entry & flags;
		if (!is_present(t, entry) || !is_leaf(t, entry, level - 1) ||
		    (entry & ~flags) != (first & ~flags) + i * table_level_bytes(level - 1))
			return 0;
	}
	f->decode(level - 1, first | seen, &leaf);
	if (leaf.address % table_level_bytes(level) != 0)
		return 0;
	entry_put(t, page, index_at(gpa, level), level, f->encode(level, &leaf));
	return 1;
}

/* ---- looking ---- */

/* path, if given: the page of each level's entry. Everything is in locals until the end: the speed of lookups hangs on it. */
static inline enum table_outcome walk(const struct ept_table *t, uint64_t gpa, unsigned access, struct table_walk *w,
				      uint32_t path[TABLE_LEVELS_MAX + 1])
{
	const struct table_format *f = t->options.format;
	const struct table_page *pages = t->pool.pages;
	const uint64_t present = f->present, inverted = f->inverted, large = f->large;
	uint64_t granted = ~UINT64_C(0), entry = 0, reserved, address = 0;
	enum table_outcome outcome = TABLE_VIOLATION;
	unsigned level = t->options.levels, shift = table_level_shift(level), perms = 0;
	uint32_t page = t->root;
	bool leaf;

	if (gpa >> (shift + 9) != 0) {
		*w = (struct table_walk){ .outcome = outcome, .access = access, .level = level };
		return outcome;
	}
	for (;; level--, shift -= 9) {
		entry = pages[page].entries[gpa >> shift & (TABLE_ENTRIES - 1)];
		if (path)
			path[level] = page;
		reserved = 0;
		if (!(entry & present))
			break;
		leaf = level == 1 || (level <= TABLE_LEAF_LEVELS && entry & large);
		reserved = entry & (leaf ? t->reserved_leaf[level] : t->reserved_table[level]);
		if (!reserved && t->low_disallowed >> (entry & 7) & 1)
			reserved = 7;
		if (!reserved && leaf && t->type_disallowed >> (entry >> 3 & 7) & 1)
			reserved = table_bits(3, 5);
		granted &= entry ^ inverted;
		if (leaf || reserved)
			break;
		page = child_of(t, entry);
		if (!page) {
			reserved = TABLE_ADDRESS_MASK;
			break;
		}
	}
	if (reserved) {
		outcome = TABLE_MISCONFIGURED;
	} else if (entry & present) {
		uint64_t within = (UINT64_C(1) << shift) - 1;

		address = (entry & TABLE_ADDRESS_MASK & ~within) | (gpa & within);
		perms = f->perms(granted);
		if ((granted & f->need[access & 7]) == f->need[access & 7])
			outcome = TABLE_MAPPED;
	}
	*w = (struct table_walk){ outcome, access, level, t->options.levels - level + 1, entry, reserved, perms, address };
	return outcome;
}

enum table_outcome ept_table_lookup(const struct ept_table *t, uint64_t gpa, unsigned access, struct table_walk *ret_walk)
{
	return walk(t, gpa, access, ret_walk, NULL);
}

enum table_outcome ept_table_touch(struct ept_table *t, uint64_t gpa, unsigned access, struct table_walk *ret_walk)
{
	const struct table_format *f = t->options.format;
	uint32_t path[TABLE_LEVELS_MAX + 1];

	if (walk(t, gpa, access, ret_walk, path) != TABLE_MAPPED || (f == &table_format_ept && !t->options.accessed_dirty))
		return ret_walk->outcome;
	for (unsigned level = t->options.levels; level >= ret_walk->level; level--)
		*entry_of(t, path[level], index_at(gpa, level)) |= f->accessed;
	if (access & TABLE_WRITE)
		*entry_of(t, path[ret_walk->level], index_at(gpa, ret_walk->level)) |= f->dirty;
	ret_walk->entry = *entry_of(t, path[ret_walk->level], index_at(gpa, ret_walk->level));
	return ret_walk->outcome;
}

struct each {
	uint64_t start, end;
	table_leaf_fn fn;
	void *userdata;
};

static int tree_each(const struct ept_table *t, uint32_t page, unsigned level, uint64_t base, const struct each *e)
{
	uint64_t bytes = table_level_bytes(level);
	unsigned i = e->start > base ? (unsigned)((e->start - base) / bytes) : 0;
	int r = 0;

	for (; i < TABLE_ENTRIES && base + i * bytes < e->end && r == 0; i++) {
		uint64_t first = base + i * bytes, entry = *entry_of(t, page, i);
		struct table_walk w;

		if (!is_present(t, entry))
			continue;
		if (is_leaf(t, entry, level)) {
			struct table_leaf leaf;

			if (ept_table_lookup(t, first, 0, &w) != TABLE_MAPPED)
				return -EBADMSG;
			t->options.format->decode(level, entry, &leaf);
			r = e->fn(e->userdata, first, level, &leaf);
		} else {
			r = child_of(t, entry) ? tree_each(t, child_of(t, entry), level - 1, first, e) : -EBADMSG;
		}
	}
	return r;
}

int ept_table_each(const struct ept_table *t, uint64_t start, uint64_t end, table_leaf_fn fn, void *userdata)
{
	if (start > end || end > ept_table_limit(t))
		return -EINVAL;
	return tree_each(t, t->root, t->options.levels, 0, &(struct each){ start, end, fn, userdata });
}

uint64_t *ept_table_entry(struct ept_table *t, uint64_t gpa, unsigned level)
{
	unsigned at;
	uint32_t page;

	if (gpa >= ept_table_limit(t) || level < 1 || level > t->options.levels)
		return NULL;
	page = entry_find(t, gpa, level, &at);
	return at == level ? entry_of(t, page, index_at(gpa, level)) : NULL;
}

/* ---- figures ---- */

const struct table_options *ept_table_options(const struct ept_table *t)
{
	return &t->options;
}

uint64_t ept_table_root(const struct ept_table *t)
{
	return t->options.format->root(&t->options, (uint64_t)t->root << 12);
}

size_t ept_table_count(const struct ept_table *t)
{
	return t->pool.count - 1 - t->pool.free_count;
}

size_t ept_table_bytes(const struct ept_table *t)
{
	return sizeof(*t) + table_pool_bytes(&t->pool);
}

uint64_t ept_table_limit(const struct ept_table *t)
{
	return UINT64_C(1) << (12 + 9 * t->options.levels);
}
