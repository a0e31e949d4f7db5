/* ept/composite: hand-built tables for each mode, random ones against a model, changes against a
 * rebuild, hostile ones. */
#include "ept/composite.h"

#include "tests/unit/walk_model.h"

#define PG (UINT64_C(1) << 31 | 1)
#define PSE 0x10u
#define PAE 0x20u
#define LA57 0x1000u
#define LME 0x500u /* and LMA */
#define NXE 0x800u
#define NX (UINT64_C(1) << 63)
#define WORLD_PAGES 16u
#define WORLD_BYTES (WORLD_PAGES * PAGE_BYTES)
#define MIB (UINT64_C(1) << 20)
#define GIB (UINT64_C(1) << 30)
#define BUDGET (UINT64_C(1) << 40)
#define LEAVES_MAX 60000u

static struct world world_new(void)
{
	struct world w = { .bytes = calloc(1, WORLD_BYTES), .size = WORLD_BYTES };

	unit_must(w.bytes, "calloc");
	return w;
}

static struct walk_regs regs_of(enum walk_mode mode)
{
	struct walk_regs r = { .cr0 = PG, .cr3 = 0x1000, .efer = NXE, .phys_bits = 46, .pse36 = true, .gib_pages = true };

	r.cr4 = mode == WALK_32 ? PSE : mode == WALK_5LEVEL ? PAE | LA57 : PAE;
	r.efer |= mode >= WALK_4LEVEL ? LME : 0;
	return r;
}

static unsigned entry_size(enum walk_mode mode)
{
	return mode == WALK_32 ? 4 : 8;
}

struct leaves {
	struct composite_leaf *all;
	size_t count;
};

static int leaf_keep(void *userdata, const struct composite_leaf *leaf)
{
	struct leaves *l = userdata;

	if (l->count == LEAVES_MAX)
		return -ENOSPC;
	l->all[l->count++] = *leaf;
	return 0;
}

static struct leaves leaves_of(const struct composite *c, uint64_t cr3, enum composite_part part, int *ret_r)
{
	struct leaves l = { .all = calloc(LEAVES_MAX, sizeof(*l.all)) };
	uint64_t budget = BUDGET;

	unit_must(l.all, "calloc");
	*ret_r = composite_each(c, cr3, part, &budget, leaf_keep, &l);
	return l;
}

static const struct composite_leaf *leaf_at(const struct leaves *l, uint64_t gva)
{
	for (size_t i = 0; i < l->count; i++)
		if (gva - l->all[i].gva < l->all[i].bytes)
			return &l->all[i];
	return NULL;
}

/* ---- one thing at a time ---- */

struct put {
	uint64_t at, entry;
};

static const struct composite_case {
	const char *what;
	enum walk_mode mode;
	struct put puts[6];
	enum composite_part part;
	struct composite_leaf leaf;
	uint64_t tables;
} composite_cases[] = {
	{ "32-bit 4K", WALK_32, { { 0x1004, 0x2007 }, { 0x200c, 0x5067 } }, COMPOSITE_USER, { 0x403000, 0x5000, 4096, true, true }, 2 },
	{ "32-bit 4M kernel", WALK_32, { { 0x1ffc, 0x00c000e3 } }, COMPOSITE_KERNEL, { 0xffc00000, 0xc00000, 4 * MIB, true, true }, 1 },
	{ "PAE 4K", WALK_PAE, { { 0x1018, 0x2001 }, { 0x2008, 0x3007 }, { 0x3008, NX | 0x5005 } }, COMPOSITE_USER,
	  { 0xc0201000, 0x5000, 4096, false, false }, 3 },
	{ "PAE 2M kernel", WALK_PAE, { { 0x1000, 0x2001 }, { 0x2008, 0x400083 } }, COMPOSITE_KERNEL,
	  { 0x200000, 0x400000, 2 * MIB, true, true }, 2 },
	{ "4-level 4K", WALK_4LEVEL, { { 0x17f8, 0x2007 }, { 0x2ff8, 0x3007 }, { 0x3ff0, 0x4007 }, { 0x4008, 0x5005 } },
	  COMPOSITE_USER, { UINT64_C(0x7fffffc01000), 0x5000, 4096, false, true }, 4 },
	{ "4-level 1G kernel", WALK_4LEVEL, { { 0x1888, 0x2003 }, { 0x2008, 0x1400000e3 } }, COMPOSITE_KERNEL,
	  { UINT64_C(0xffff888040000000), UINT64_C(0x140000000), GIB, true, true }, 2 },
	{ "4-level user bit above, not below", WALK_4LEVEL,
	  { { 0x1000, 0x2007 }, { 0x2000, 0x3007 }, { 0x3000, 0x4007 }, { 0x4008, 0x5003 } }, COMPOSITE_KERNEL,
	  { 0x1000, 0x5000, 4096, true, true }, 4 },
	{ "4-level user bit in the upper half", WALK_4LEVEL,
	  { { 0x1ff8, 0x2007 }, { 0x2ff8, 0x3007 }, { 0x3ff8, NX | 0x400085 } }, COMPOSITE_KERNEL,
	  { UINT64_C(0xffffffffffe00000), 0x400000, 2 * MIB, false, false }, 3 },
	{ "5-level 4K", WALK_5LEVEL,
	  { { 0x1008, 0x2007 }, { 0x2000, 0x3007 }, { 0x3000, 0x4007 }, { 0x4000, 0x5007 }, { 0x5000, 0x6007 } },
	  COMPOSITE_USER, { UINT64_C(1) << 48, 0x6000, 4096, true, true }, 5 },
};

static bool same_leaf(const struct composite_leaf *a, const struct composite_leaf *b)
{
	return a->gva == b->gva && a->gpa == b->gpa && a->bytes == b->bytes && a->writable == b->writable &&
	       a->executable == b->executable;
}

static void test_composite_hand_built_gives_leaf(void)
{
	for (size_t i = 0; i < ARRAY_SIZE(composite_cases); i++) {
		const struct composite_case *t = &composite_cases[i];
		struct walk_regs regs = regs_of(t->mode);
		struct world w = world_new();
		struct composite_sync s;
		struct composite *c;
		struct leaves l;
		int r;

		for (size_t k = 0; k < ARRAY_SIZE(t->puts); k++)
			if (t->puts[k].at)
				world_put(&w, t->puts[k].at, t->puts[k].entry, entry_size(t->mode));
		unit_must(composite_new(&regs, 100, &c) == 0 && composite_root_add(c, 0x1000) == 0 &&
				  composite_root_add(c, 0x1000) == 0,
			  "composite");
		UNIT_CASE(t->what, composite_sync(c, world_read, &w, NULL, &s) == 0);
		UNIT_CASE(t->what, s.tables == t->tables && s.added == t->tables && w.reads == t->tables);
		l = leaves_of(c, 0x1000, t->part, &r);
		UNIT_CASE(t->what, r == 0 && l.count == 1 && same_leaf(&l.all[0], &t->leaf));
		free(l.all);
		l = leaves_of(c, 0x1000, t->part == COMPOSITE_USER ? COMPOSITE_KERNEL : COMPOSITE_USER, &r);
		UNIT_CASE(t->what, r == 0 && l.count == 0);
		free(l.all);
		composite_free(c);
		free(w.bytes);
	}
}

static void test_composite_new_refuses_no_paging(void)
{
	struct walk_regs regs = regs_of(WALK_32);
	struct composite *c = NULL;

	regs.cr0 = 1;
	CU_ASSERT_EQUAL(composite_new(&regs, 10, &c), -EOPNOTSUPP);
	regs = regs_of(WALK_4LEVEL);
	regs.cr4 = 0;
	CU_ASSERT_EQUAL(composite_new(&regs, 10, &c), -EINVAL);
	CU_ASSERT_PTR_NULL(c);
}

/* ---- random ones ---- */

/* Sparse, or five levels of them are too many pages: of 24 entries one is there. */
static uint64_t random_entry(uint64_t *state, enum walk_mode mode, unsigned sparse)
{
	uint64_t r = unit_random(state), e = r >> 8 & 0x67; /* P W U A D */

	if (unit_random(state) % sparse != 0)
		return r & ~UINT64_C(1);
	e |= 1 | (r >> 20 & 1 ? 4 : 0) | (r >> 24) % (WORLD_PAGES + 1) * PAGE_BYTES;
	e |= unit_random(state) % 8 == 0 ? 0x80 : 0;
	e |= mode != WALK_32 && unit_random(state) % 4 == 0 ? NX : 0;
	if (unit_random(state) % 16 == 0) /* far, often reserved */
		e |= (unit_random(state) & 0xffff) << 30;
	return mode == WALK_32 ? e & UINT32_MAX : e;
}

static void world_fill(struct world *w, uint64_t *state, enum walk_mode mode)
{
	static const unsigned sparse[] = { [WALK_32] = 16, [WALK_PAE] = 24, [WALK_4LEVEL] = 64, [WALK_5LEVEL] = 96 };

	for (uint64_t at = 0; at < w->size; at += entry_size(mode))
		world_put(w, at, random_entry(state, mode, sparse[mode]), entry_size(mode));
	if (mode == WALK_PAE) /* its first table refuses most bits */
		for (unsigned i = 0; i < 4; i++)
			world_put(w, 0x1000 + 8 * i, (unit_random(state) % WORLD_PAGES) * PAGE_BYTES | 1, 8);
}

static uint64_t random_gva(uint64_t *state, enum walk_mode mode)
{
	uint64_t gva = unit_random(state);

	if (mode < WALK_4LEVEL)
		return gva & UINT32_MAX;
	return (uint64_t)((int64_t)gva >> (mode == WALK_4LEVEL ? 16 : 7));
}

/* An address whose way leads through entries that are there, as far as some are found: sparse tables have few others. */
static uint64_t mapped_gva(uint64_t *state, enum walk_mode mode, const struct world *w, uint64_t table)
{
	static const unsigned levels[] = { [WALK_32] = 2, [WALK_PAE] = 3, [WALK_4LEVEL] = 4, [WALK_5LEVEL] = 5 };
	unsigned bits = mode == WALK_32 ? 10 : 9, width = mode == WALK_4LEVEL ? 48 : 57;
	uint64_t gva = 0;

	for (unsigned level = levels[mode]; level > 0; level--) {
		uint64_t entry = 0, index = 0;

		for (unsigned tries = 0; tries < 2000 && !(entry & 1); tries++) {
			index = unit_random(state) % (mode == WALK_PAE && level == 3 ? 4 : 1u << bits);
			memcpy(&entry, w->bytes + (table + index * entry_size(mode)) % WORLD_BYTES, entry_size(mode));
		}
		gva |= index << (12 + (level - 1) * bits);
		table = entry & UINT64_C(0x000ffffffffff000);
	}
	return mode < WALK_4LEVEL ? gva : (uint64_t)((int64_t)(gva << (64 - width)) >> (64 - width));
}

static bool in_part(const struct model *m, enum walk_mode mode, uint64_t gva, enum composite_part part)
{
	bool user = m->user && !(mode >= WALK_4LEVEL && gva >> 63);

	return user == (part == COMPOSITE_USER);
}

/* What is listed the model has, page by page; what the model has is listed. */
static unsigned leaves_check(const struct leaves *l, struct world *w, const struct walk_regs *regs, enum walk_mode mode,
			     enum composite_part part, uint64_t *state)
{
	unsigned met = 0;

	for (size_t i = 0; i < l->count; i++) {
		const struct composite_leaf *leaf = &l->all[i];
		uint64_t at = unit_random(state) % leaf->bytes;
		struct model m = model_walk(regs, w, leaf->gva + at);

		if (m.fault != WALK_MAPPED || m.gpa != leaf->gpa + at || m.page_bytes != leaf->bytes ||
		    m.writable != leaf->writable || m.executable != leaf->executable ||
		    !in_part(&m, mode, leaf->gva, part) || (i > 0 && leaf->gva < l->all[i - 1].gva + l->all[i - 1].bytes)) {
			CU_FAIL("listed, and the model does not have it");
			return 0;
		}
	}
	for (unsigned i = 0; i < 300; i++) {
		uint64_t gva = i % 2 ? random_gva(state, mode) : mapped_gva(state, mode, w, regs->cr3);
		struct model m = model_walk(regs, w, gva);
		bool has = m.fault == WALK_MAPPED && in_part(&m, mode, gva, part);

		if (has != (leaf_at(l, gva) != NULL))
			CU_FAIL("listed and not in the model, or in it and not listed");
		met += has;
	}
	return met;
}

static void test_composite_random_equals_model(void)
{
	unsigned met[5][2] = { { 0 } };
	uint64_t state = 20;

	for (unsigned round = 0; round < 240; round++) {
		enum walk_mode mode = WALK_32 + round % 4;
		struct walk_regs regs = regs_of(mode);
		struct world w = world_new();
		struct composite_sync s;
		struct composite *c;

		regs.gib_pages = round / 4 % 2;
		world_fill(&w, &state, mode);
		unit_must(composite_new(&regs, 100, &c) == 0 && composite_root_add(c, regs.cr3) == 0, "composite");
		CU_ASSERT_EQUAL(composite_sync(c, world_read, &w, NULL, &s), 0);
		CU_ASSERT_TRUE(s.tables <= WORLD_PAGES);
		for (enum composite_part part = COMPOSITE_USER; part <= COMPOSITE_KERNEL; part++) {
			int r;
			struct leaves l = leaves_of(c, regs.cr3, part, &r);

			CU_ASSERT_EQUAL(r, 0);
			met[mode][part] += leaves_check(&l, &w, &regs, mode, part, &state);
			free(l.all);
		}
		composite_free(c);
		free(w.bytes);
	}
	for (enum walk_mode mode = WALK_32; mode <= WALK_5LEVEL; mode++) /* each came, or nothing is proved about it */
		if (met[mode][COMPOSITE_USER] < 100 || met[mode][COMPOSITE_KERNEL] < 100)
			CU_FAIL("few addresses of this mode were mapped");
}

static bool same_leaves(const struct leaves *a, const struct leaves *b)
{
	if (a->count != b->count)
		return false;
	for (size_t i = 0; i < a->count; i++)
		if (!same_leaf(&a->all[i], &b->all[i]))
			return false;
	return true;
}

static struct composite *rebuilt(const struct walk_regs *regs, struct world *w, uint64_t *ret_tables)
{
	struct composite_sync s;
	struct composite *c;

	unit_must(composite_new(regs, 100, &c) == 0, "composite");
	for (unsigned root = 1; root <= 3; root++)
		unit_must(composite_root_add(c, root * PAGE_BYTES) == 0, "root");
	unit_must(composite_sync(c, world_read, w, NULL, &s) == 0, "sync");
	*ret_tables = s.tables;
	return c;
}

/* One that is kept in step is as one that is made anew, after each of many changes. */
static void test_composite_in_step_equals_rebuild(void)
{
	uint64_t state = 30, changed = 0, same = 0, dropped = 0, tables;

	for (unsigned round = 0; round < 8; round++) {
		enum walk_mode mode = WALK_32 + round % 4;
		struct walk_regs regs = regs_of(mode);
		struct world w = world_new();
		struct composite *kept;

		world_fill(&w, &state, mode);
		kept = rebuilt(&regs, &w, &tables);
		for (unsigned step = 0; step < 60; step++) {
			struct composite *anew;
			struct composite_sync s;
			uint8_t before[WORLD_BYTES];
			unsigned pages = 0;

			memcpy(before, w.bytes, WORLD_BYTES);
			for (unsigned n = (unsigned)(unit_random(&state) % 4); n > 0; n--)
				world_put(&w, unit_random(&state) % (WORLD_BYTES / 8) * 8, random_entry(&state, mode, 3),
					  entry_size(mode));
			if (step % 5 == 0)
				memset(w.bytes + (unit_random(&state) % WORLD_PAGES) * PAGE_BYTES, 0, PAGE_BYTES);
			for (unsigned i = 0; i < WORLD_PAGES; i++)
				pages += memcmp(before + i * PAGE_BYTES, w.bytes + i * PAGE_BYTES, PAGE_BYTES) != 0;
			w.reads = 0;
			CU_ASSERT_EQUAL(composite_sync(kept, world_read, &w, NULL, &s), 0);
			CU_ASSERT_TRUE(s.changed <= pages);
			CU_ASSERT_TRUE(w.reads <= s.tables + s.outside + s.unreadable);
			anew = rebuilt(&regs, &w, &tables);
			CU_ASSERT_EQUAL(s.tables, tables);
			for (unsigned root = 1; root <= 3; root++) {
				for (enum composite_part part = COMPOSITE_USER; part <= COMPOSITE_KERNEL; part++) {
					int r;
					struct leaves a = leaves_of(kept, root * PAGE_BYTES, part, &r);
					struct leaves b = leaves_of(anew, root * PAGE_BYTES, part, &r);

					CU_ASSERT_TRUE(same_leaves(&a, &b));
					free(a.all);
					free(b.all);
				}
			}
			changed += s.changed;
			same += s.tables - s.changed - s.added;
			dropped += s.dropped;
			composite_free(anew);
		}
		composite_free(kept);
		free(w.bytes);
	}
	CU_ASSERT_TRUE(changed > 100);
	CU_ASSERT_TRUE(same > 1000);
	CU_ASSERT_TRUE(dropped > 10);
}

/* ---- hostile ones ---- */

static int leaf_count(void *userdata, const struct composite_leaf *leaf)
{
	(void)leaf;
	++*(uint64_t *)userdata;
	return 0;
}

/* One page that is its own table 512 times at each level: 2^36 pages of one frame. */
static void test_composite_own_table_ends_at_budget(void)
{
	struct walk_regs regs = regs_of(WALK_4LEVEL);
	struct world w = world_new();
	uint64_t budget = 1000000, count = 0;
	struct composite_sync s;
	struct composite *c;

	for (unsigned i = 0; i < 512; i++)
		world_put(&w, 0x1000 + 8 * i, 0x1007, 8);
	unit_must(composite_new(&regs, 100, &c) == 0 && composite_root_add(c, 0x1000) == 0, "composite");
	CU_ASSERT_EQUAL(composite_sync(c, world_read, &w, NULL, &s), 0);
	CU_ASSERT_EQUAL(s.tables, 1);
	CU_ASSERT_EQUAL(w.reads, 1);
	CU_ASSERT_EQUAL(composite_each(c, 0x1000, COMPOSITE_USER, &budget, leaf_count, &count), -EOVERFLOW);
	CU_ASSERT_TRUE(count > 100000 && count < 1000000);
	CU_ASSERT_EQUAL(budget, 0);
	composite_free(c);
	free(w.bytes);
}

/* Memory that is tables everywhere, each entry another. */
static int read_tables(void *userdata, uint64_t gpa, void *buf, size_t n)
{
	uint64_t *entries = buf, *reads = userdata;

	++*reads;
	for (size_t i = 0; i < n / 8; i++)
		entries[i] = ((gpa / PAGE_BYTES * 512 + i + 1) * PAGE_BYTES & UINT64_C(0x3ffffffff000)) | 7;
	return 0;
}

static int read_nothing(void *userdata, uint64_t gpa, void *buf, size_t n)
{
	return gpa == 0x1000 ? read_tables(userdata, gpa, buf, n) : -ENXIO;
}

static void test_composite_too_many_tables_refused(void)
{
	struct walk_regs regs = regs_of(WALK_5LEVEL);
	struct composite_sync s;
	uint64_t reads = 0;
	struct composite *c;

	unit_must(composite_new(&regs, 1000, &c) == 0 && composite_root_add(c, 0x1000) == 0, "composite");
	CU_ASSERT_EQUAL(composite_sync(c, read_tables, &reads, NULL, &s), -EOVERFLOW);
	CU_ASSERT_EQUAL(s.tables, 1000);
	CU_ASSERT_EQUAL(reads, 1001);
	composite_free(c);
	/* And entries that lead out of memory do not keep anybody longer. */
	unit_must(composite_new(&regs, 100, &c) == 0 && composite_root_add(c, 0x1000) == 0, "composite");
	CU_ASSERT_EQUAL(composite_sync(c, read_nothing, &reads, NULL, &s), -EOVERFLOW);
	CU_ASSERT_EQUAL(s.outside, 101);
	composite_free(c);
}

static void test_composite_cancelled_ends(void)
{
	struct walk_regs regs = regs_of(WALK_4LEVEL);
	_Atomic bool cancel = true;
	struct composite_sync s;
	uint64_t reads = 0;
	struct composite *c;

	unit_must(composite_new(&regs, 1000000, &c) == 0 && composite_root_add(c, 0x1000) == 0, "composite");
	CU_ASSERT_EQUAL(composite_sync(c, read_tables, &reads, &cancel, &s), -ECANCELED);
	composite_free(c);
}

/* A top table with so many entries, each of which leads to an empty table somewhere else. */
static int read_some(void *userdata, uint64_t gpa, void *buf, size_t n)
{
	const unsigned *some = userdata;
	uint64_t *entries = buf, state = 9;

	memset(buf, 0, n);
	for (unsigned i = 0; gpa == 0x1000 && i < 512; i++) {
		uint64_t below = unit_random(&state) & UINT64_C(0x3ffffffff000);

		if (i % *some == 0)
			entries[i] = below | 7;
	}
	return 0;
}

/* Those that go do not take others with them. */
static void test_composite_dropped_tables_leave_others(void)
{
	static const unsigned some[] = { 1, 2, 2, 1, 5, 5, 2, 3, 3 };
	struct walk_regs regs = regs_of(WALK_4LEVEL);
	unsigned before = 0;
	struct composite *c;

	unit_must(composite_new(&regs, 1000, &c) == 0 && composite_root_add(c, 0x1000) == 0, "composite");
	for (size_t i = 0; i < ARRAY_SIZE(some); i++) {
		unsigned want = 1 + (511 / some[i] + 1), added = 0, dropped = 0, now = some[i];
		struct composite_sync s;

		for (unsigned k = 0; k < 512; k++) {
			added += k % now == 0 && (before == 0 || k % before != 0);
			dropped += before != 0 && k % before == 0 && k % now != 0;
		}
		CU_ASSERT_EQUAL(composite_sync(c, read_some, &now, NULL, &s), 0);
		CU_ASSERT_EQUAL(s.tables, want);
		CU_ASSERT_EQUAL(s.added, added + (before == 0));
		CU_ASSERT_EQUAL(s.dropped, dropped);
		CU_ASSERT_EQUAL(s.changed, before != 0 && now != before);
		before = now;
	}
	composite_free(c);
}

/* Tables that are something else at every look. */
static int read_noise(void *userdata, uint64_t gpa, void *buf, size_t n)
{
	uint64_t *state = userdata, *words = buf;

	(void)gpa;
	for (size_t i = 0; i < n / 8; i++)
		words[i] = random_entry(state, WALK_4LEVEL, 40) & UINT64_C(0xfffffffffffff87f);
	return 0;
}

static void test_composite_changing_tables_end(void)
{
	struct walk_regs regs = regs_of(WALK_4LEVEL);
	uint64_t state = 5, count = 0;
	struct composite_sync s;
	struct composite *c;

	unit_must(composite_new(&regs, 5000, &c) == 0 && composite_root_add(c, 0x1000) == 0, "composite");
	for (unsigned i = 0; i < 200; i++) {
		uint64_t budget = 100000;
		int r = composite_sync(c, read_noise, &state, NULL, &s);

		CU_ASSERT_TRUE(r == 0 && s.tables <= 5000);
		composite_each(c, 0x1000, COMPOSITE_USER, &budget, leaf_count, &count);
	}
	composite_free(c);
}

int main(void)
{
	static CU_TestInfo tests[] = {
		{ "hand-built tables", test_composite_hand_built_gives_leaf },
		{ "no paging", test_composite_new_refuses_no_paging },
		{ "random tables", test_composite_random_equals_model },
		{ "in step", test_composite_in_step_equals_rebuild },
		{ "its own table", test_composite_own_table_ends_at_budget },
		{ "too many tables", test_composite_too_many_tables_refused },
		{ "cancelled", test_composite_cancelled_ends },
		{ "dropped tables", test_composite_dropped_tables_leave_others },
		{ "changing tables", test_composite_changing_tables_end },
		CU_TEST_INFO_NULL,
	};

	return unit_main("composite", tests);
}
