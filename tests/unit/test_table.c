/* Second-stage tables: entries as the manuals have them; faults; random operations against an independent model. */
#include "ept/table.h"

#include "tests/unit/table_model.h"
#include "tests/unit/unit.h"

#define STEPS 6000
#define STEPS_BETWEEN_CHECKS 500
#define LEAF(a, p, t, ...) { .address = (a), .perms = (p), .memory_type = (t), ##__VA_ARGS__ }

static const struct table_options ept4 = { &table_format_ept, 4, 46, .gib_pages = true, .accessed_dirty = true };
static const struct table_options npt4 = { &table_format_npt, 4, 48, .gib_pages = true };

static uint64_t xorshift(void *userdata)
{
	uint64_t *x = userdata;

	*x ^= *x << 13;
	*x ^= *x >> 7;
	*x ^= *x << 17;
	return *x >> 8;
}

/* ---- entries ---- */

static void test_format_entry_is_the_manuals(void)
{
	static const struct {
		const char *what;
		const struct table_format *format;
		unsigned level;
		struct table_leaf leaf;
		uint64_t entry;
	} cases[] = {
		{ "ept 4K rwx wb", &table_format_ept, 1, LEAF(0x12345000, 7, TABLE_WB), 0x12345037 },
		{ "ept 2M r-x wb ipat", &table_format_ept, 2, LEAF(0x40000000, 5, TABLE_WB, .ignore_pat = true), 0x400000f5 },
		{ "ept 1G r uc ad", &table_format_ept, 3, LEAF(UINT64_C(1) << 40, 1, TABLE_UC, .accessed = true, .dirty = true),
		  0x10000000381 },
		{ "ept 4K x tag 5", &table_format_ept, 1, LEAF(0x1000, 4, TABLE_WP, .tag = 5), 0x5000000000102c },
		{ "npt 4K rwx wb", &table_format_npt, 1, LEAF(0x12345000, 7, TABLE_WB), 0x12345007 },
		{ "npt 4K rw- wb", &table_format_npt, 1, LEAF(0x12345000, 3, TABLE_WB), 0x8000000012345007 },
		{ "npt 4K r-x wt ad", &table_format_npt, 1, LEAF(0x1000, 5, TABLE_WT, .accessed = true, .dirty = true), 0x10fd },
		{ "npt 2M rwx wp", &table_format_npt, 2, LEAF(0x40000000, 7, TABLE_WP), 0x4000108f },
		{ "npt 1G r-- uc tag 15", &table_format_npt, 3, LEAF(0x40000000, 1, TABLE_UC, .tag = 15), 0x80f000004000009d },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct table_leaf back;

		UNIT_CASE(cases[i].what, cases[i].format->encode(cases[i].level, &cases[i].leaf) == cases[i].entry);
		cases[i].format->decode(cases[i].level, cases[i].entry, &back);
		UNIT_CASE(cases[i].what, back.address == cases[i].leaf.address && back.perms == cases[i].leaf.perms &&
						 back.memory_type == cases[i].leaf.memory_type &&
						 back.ignore_pat == cases[i].leaf.ignore_pat && back.tag == cases[i].leaf.tag &&
						 back.accessed == cases[i].leaf.accessed && back.dirty == cases[i].leaf.dirty);
	}
}

static void test_root_is_the_manuals(void)
{
	struct table_options five = ept4;
	struct ept_table *t;

	five.levels = 5;
	five.accessed_dirty = false;
	CU_ASSERT_EQUAL_FATAL(ept_table_new(&ept4, &t), 0);
	CU_ASSERT_EQUAL(ept_table_root(t), 0x105e);
	ept_table_free(t);
	CU_ASSERT_EQUAL_FATAL(ept_table_new(&five, &t), 0);
	CU_ASSERT_EQUAL(ept_table_root(t), 0x1026);
	ept_table_free(t);
	CU_ASSERT_EQUAL_FATAL(ept_table_new(&npt4, &t), 0);
	CU_ASSERT_EQUAL(ept_table_root(t), 0x1000);
	ept_table_free(t);
}

/* ---- faults ---- */

static void test_lookup_violation_is_qualified(void)
{
	static const struct {
		const char *what;
		const struct table_options *options;
		uint64_t gpa;
		unsigned access;
		enum table_outcome outcome;
		unsigned level, perms;
		uint64_t code;
	} cases[] = {
		{ "ept read", &ept4, 0x5123, TABLE_READ, TABLE_MAPPED, 1, 5, 0 },
		{ "ept write", &ept4, 0x5123, TABLE_WRITE, TABLE_VIOLATION, 1, 5, 2 | 5 << 3 },
		{ "ept fetch", &ept4, 0x5123, TABLE_EXECUTE, TABLE_MAPPED, 1, 5, 0 },
		{ "ept absent page", &ept4, 0x6000, TABLE_READ, TABLE_VIOLATION, 1, 0, 1 },
		{ "ept absent table", &ept4, 0x200000, TABLE_WRITE, TABLE_VIOLATION, 2, 0, 2 },
		{ "ept absent top", &ept4, UINT64_C(1) << 40, TABLE_EXECUTE, TABLE_VIOLATION, 4, 0, 4 },
		{ "ept too far up", &ept4, UINT64_C(1) << 48, TABLE_READ, TABLE_VIOLATION, 4, 0, 1 },
		{ "npt read", &npt4, 0x5123, TABLE_READ, TABLE_MAPPED, 1, 5, 0 },
		{ "npt write", &npt4, 0x5123, TABLE_WRITE, TABLE_VIOLATION, 1, 5, 1 | 2 | 4 },
		{ "npt absent page", &npt4, 0x6000, TABLE_EXECUTE, TABLE_VIOLATION, 1, 0, 4 | 16 },
		{ "npt absent top", &npt4, UINT64_C(1) << 40, TABLE_READ, TABLE_VIOLATION, 4, 0, 4 },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		const struct table_leaf leaf = LEAF(0x7000, TABLE_READ | TABLE_EXECUTE, TABLE_WB);
		struct ept_table *t;
		struct table_walk w;

		CU_ASSERT_EQUAL_FATAL(ept_table_new(cases[i].options, &t), 0);
		CU_ASSERT_EQUAL(ept_table_map(t, 0x5000, 1, &leaf), 0);
		UNIT_CASE(cases[i].what, ept_table_lookup(t, cases[i].gpa, cases[i].access, &w) == cases[i].outcome);
		UNIT_CASE(cases[i].what, w.level == cases[i].level && w.perms == cases[i].perms);
		if (cases[i].outcome == TABLE_VIOLATION)
			UNIT_CASE(cases[i].what, cases[i].options->format->fault_code(&w) == cases[i].code);
		else
			UNIT_CASE(cases[i].what, w.address == 0x7123);
		ept_table_free(t);
	}
}

/* An entry spoilt in each way that the manuals name. The page is one of the level where the entry is, or of 4 KiB. */
static void test_lookup_misconfigured_entry_is_told(void)
{
	static const struct {
		const char *what;
		const struct table_options *options;
		unsigned level;	 /* of the entry */
		bool leaf;
		uint64_t clear, set;
		uint64_t reserved; /* 0: not misconfigured */
	} cases[] = {
		{ "ept write-only", &ept4, 1, true, 7, 2, 7 },
		{ "ept write and execute", &ept4, 1, true, 7, 6, 7 },
		{ "ept execute-only", &ept4, 1, true, 7, 4, 7 },
		{ "ept write-only table", &ept4, 3, false, 7, 2, 7 },
		{ "ept type 2", &ept4, 1, true, 0x38, 2 << 3, 0x38 },
		{ "ept type 3", &ept4, 2, true, 0x38, 3 << 3, 0x38 },
		{ "ept type 7", &ept4, 3, true, 0x38, 7 << 3, 0x38 },
		{ "ept high address bit", &ept4, 1, true, 0, UINT64_C(1) << 46, UINT64_C(1) << 46 },
		{ "ept highest address bit", &ept4, 1, true, 0, UINT64_C(1) << 51, UINT64_C(1) << 51 },
		{ "ept high bit of a table", &ept4, 4, false, 0, UINT64_C(1) << 47, UINT64_C(1) << 47 },
		{ "ept 2M low address", &ept4, 2, true, 0, 1 << 20, 1 << 20 },
		{ "ept 1G low address", &ept4, 3, true, 0, 1 << 29, 1 << 29 },
		{ "ept type in a table", &ept4, 2, false, 0, 1 << 4, 1 << 4 },
		{ "ept bit 6 of a table", &ept4, 3, false, 0, 1 << 6, 1 << 6 },
		{ "ept large at level 4", &ept4, 4, false, 0, 1 << 7, 1 << 7 },
		{ "ept table that is none", &ept4, 2, false, 0, UINT64_C(1) << 45, TABLE_ADDRESS_MASK },
		{ "ept ignored bits", &ept4, 1, true, 0, UINT64_C(0x7ff0000000000c80), 0 },
		{ "npt high address bit", &npt4, 1, true, 0, UINT64_C(1) << 48, UINT64_C(1) << 48 },
		{ "npt 2M low address", &npt4, 2, true, 0, 1 << 13, 1 << 13 },
		{ "npt 2M PAT", &npt4, 2, true, 0, 1 << 12, 0 },
		{ "npt 1G low address", &npt4, 3, true, 0, 1 << 29, 1 << 29 },
		{ "npt large at level 4", &npt4, 4, false, 0, 1 << 7, 1 << 7 },
		{ "npt bit 8 at level 4", &npt4, 4, false, 0, 1 << 8, 1 << 8 },
		{ "npt bit 8 at level 3", &npt4, 3, false, 0, 1 << 8, 1 << 8 },
		{ "npt bit 8 at level 2", &npt4, 2, false, 0, 1 << 8, 0 },
		{ "npt ignored bits", &npt4, 1, true, 0, UINT64_C(0x7ff0000000000f00), 0 },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		const struct table_leaf leaf = LEAF(UINT64_C(1) << 30, 7, TABLE_WB);
		struct ept_table *t;
		struct table_walk w;
		uint64_t *entry;

		CU_ASSERT_EQUAL_FATAL(ept_table_new(cases[i].options, &t), 0);
		CU_ASSERT_EQUAL(ept_table_map(t, 0, cases[i].leaf ? cases[i].level : 1, &leaf), 0);
		entry = ept_table_entry(t, 0, cases[i].level);
		CU_ASSERT_PTR_NOT_NULL_FATAL(entry);
		*entry = (*entry & ~cases[i].clear) | cases[i].set;
		ept_table_lookup(t, 0x10, TABLE_READ, &w);
		if (cases[i].reserved == 0) {
			UNIT_CASE(cases[i].what, w.outcome == TABLE_MAPPED && w.address % (UINT64_C(1) << 30) == 0x10);
		} else {
			UNIT_CASE(cases[i].what, w.outcome == TABLE_MISCONFIGURED && w.level == cases[i].level);
			UNIT_CASE(cases[i].what, w.reserved == cases[i].reserved);
			UNIT_CASE(cases[i].what, cases[i].options->format->fault_code(&w) ==
							 (cases[i].options == &npt4 ? 1u | 4u | 8u : 0u));
			UNIT_CASE(cases[i].what, ept_table_each(t, 0, 4096, model_each_one, NULL) == -EBADMSG);
		}
		ept_table_free(t);
	}
}

static void test_lookup_permissions_are_of_all_levels(void)
{
	const struct table_leaf leaf = LEAF(0x7000, 7, TABLE_WB);
	struct ept_table *t;
	struct table_walk w;

	CU_ASSERT_EQUAL_FATAL(ept_table_new(&ept4, &t), 0);
	ept_table_map(t, 0, 1, &leaf);
	*ept_table_entry(t, 0, 3) &= ~UINT64_C(2);
	*ept_table_entry(t, 0, 2) &= ~UINT64_C(4);
	CU_ASSERT_EQUAL(ept_table_lookup(t, 0, TABLE_READ, &w), TABLE_MAPPED);
	CU_ASSERT_EQUAL(ept_table_lookup(t, 0, TABLE_WRITE, &w), TABLE_VIOLATION);
	CU_ASSERT_EQUAL(w.perms, TABLE_READ);
	ept_table_free(t);
	CU_ASSERT_EQUAL_FATAL(ept_table_new(&npt4, &t), 0);
	ept_table_map(t, 0, 1, &leaf);
	*ept_table_entry(t, 0, 4) |= UINT64_C(1) << 63;
	CU_ASSERT_EQUAL(ept_table_lookup(t, 0, TABLE_EXECUTE, &w), TABLE_VIOLATION);
	CU_ASSERT_EQUAL(w.perms, TABLE_READ | TABLE_WRITE);
	*ept_table_entry(t, 0, 2) &= ~UINT64_C(4); /* the hypervisor's alone: no guest gets at it */
	CU_ASSERT_EQUAL(ept_table_lookup(t, 0, TABLE_READ, &w), TABLE_VIOLATION);
	ept_table_free(t);
}

static void test_map_refuses_what_no_entry_can_say(void)
{
	static const struct {
		const char *what;
		const struct table_options *options;
		uint64_t gpa;
		unsigned level;
		struct table_leaf leaf;
	} cases[] = {
		{ "gpa within a page", &ept4, 0x800, 1, LEAF(0, 7, TABLE_WB) },
		{ "gpa within 2M", &ept4, 0x1000, 2, LEAF(0, 7, TABLE_WB) },
		{ "hpa within 2M", &ept4, 0, 2, LEAF(0x1000, 7, TABLE_WB) },
		{ "hpa too far up", &ept4, 0, 1, LEAF(UINT64_C(1) << 46, 7, TABLE_WB) },
		{ "gpa too far up", &ept4, UINT64_C(1) << 48, 1, LEAF(0, 7, TABLE_WB) },
		{ "gpa wraps", &ept4, UINT64_MAX & ~UINT64_C(0xfff), 1, LEAF(0, 7, TABLE_WB) },
		{ "level 0", &ept4, 0, 0, LEAF(0, 7, TABLE_WB) },
		{ "level 4", &ept4, 0, 4, LEAF(0, 7, TABLE_WB) },
		{ "no permission", &ept4, 0, 1, LEAF(0, 0, TABLE_WB) },
		{ "write-only", &ept4, 0, 1, LEAF(0, 2, TABLE_WB) },
		{ "execute-only", &ept4, 0, 1, LEAF(0, 4, TABLE_WB) },
		{ "permission 8", &ept4, 0, 1, LEAF(0, 9, TABLE_WB) },
		{ "type 2", &ept4, 0, 1, LEAF(0, 7, 2) },
		{ "type 8", &ept4, 0, 1, LEAF(0, 7, 8) },
		{ "tag 16", &ept4, 0, 1, LEAF(0, 7, TABLE_WB, .tag = 16) },
		{ "npt write-only", &npt4, 0, 1, LEAF(0, 2, TABLE_WB) },
		{ "npt unreadable", &npt4, 0, 1, LEAF(0, 4, TABLE_WB) },
		{ "npt ignore-PAT", &npt4, 0, 1, LEAF(0, 7, TABLE_WB, .ignore_pat = true) },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct ept_table *t;

		CU_ASSERT_EQUAL_FATAL(ept_table_new(cases[i].options, &t), 0);
		UNIT_CASE(cases[i].what, ept_table_map(t, cases[i].gpa, cases[i].level, &cases[i].leaf) == -EINVAL);
		UNIT_CASE(cases[i].what, ept_table_count(t) == 1);
		ept_table_free(t);
	}
}

static void test_new_refuses_impossible_processors(void)
{
	struct table_options o = ept4;
	struct ept_table *t;

	o.levels = 3;
	CU_ASSERT_EQUAL(ept_table_new(&o, &t), -EINVAL);
	o.levels = 6;
	CU_ASSERT_EQUAL(ept_table_new(&o, &t), -EINVAL);
	o.levels = 4;
	o.phys_bits = 53;
	CU_ASSERT_EQUAL(ept_table_new(&o, &t), -EINVAL);
	o.phys_bits = 35;
	CU_ASSERT_EQUAL(ept_table_new(&o, &t), -EINVAL);
}

/* ---- against the model ---- */

static void random_run(const struct table_options *options, uint64_t seed)
{
	struct model m;
	char name[80];

	snprintf(name, sizeof(name), "%s, %u levels, seed %llu", options->format->name, options->levels,
		 (unsigned long long)seed);
	unit_must(model_init(&m, options, xorshift, &seed) == 0, "model");
	for (unsigned i = 0; i < STEPS && !m.wrong; i++) {
		model_step(&m);
		if (i % STEPS_BETWEEN_CHECKS == 0)
			model_check_all(&m);
	}
	model_check_all(&m);
	if (m.wrong)
		printf("\n    %s: %s at 0x%llx\n", name, m.wrong, (unsigned long long)m.wrong_gpa);
	UNIT_CASE(name, !m.wrong);
	UNIT_CASE(name, ept_table_unmap(m.table, 0, ept_table_limit(m.table)) == 0 && ept_table_count(m.table) == 1);
	model_end(&m);
}

static void test_random_operations_equal_the_model(void)
{
	for (unsigned i = 0; i < 16; i++) {
		const struct table_options o = {
			.format = i & 1 ? &table_format_npt : &table_format_ept,
			.levels = i & 2 ? 5 : 4,
			.phys_bits = i & 1 ? 52 : 46,
			.gib_pages = i % 8 != 4,
			.execute_only = i & 4,
			.accessed_dirty = i & 8,
		};

		random_run(&o, 0x9e3779b97f4a7c15 + i);
	}
}

/* Small pages throughout: 4 KiB for each 2 MiB, and next to nothing else. */
static void test_memory_is_under_three_thousandths(void)
{
	struct table_leaf leaf = LEAF(0, 7, TABLE_WB);
	struct ept_table *t;

	CU_ASSERT_EQUAL_FATAL(ept_table_new(&ept4, &t), 0);
	for (uint64_t gpa = 0; gpa < MODEL_GIB; gpa += MODEL_PAGE) {
		leaf.address = gpa * 2;
		if (ept_table_map(t, gpa, 1, &leaf) != 0)
			CU_FAIL("map");
	}
	CU_ASSERT_EQUAL(ept_table_count(t), 512 + 3);
	CU_ASSERT(ept_table_bytes(t) < MODEL_GIB / 1000 * 2);
	/* One large page gives all of it back. */
	leaf.address = MODEL_GIB;
	CU_ASSERT_EQUAL(ept_table_map(t, 0, 3, &leaf), 0);
	CU_ASSERT_EQUAL(ept_table_count(t), 2);
	CU_ASSERT(ept_table_bytes(t) < 65536);
	ept_table_free(t);
}

int main(void)
{
	CU_TestInfo tests[] = {
		{ "format_entry_is_the_manuals", test_format_entry_is_the_manuals },
		{ "root_is_the_manuals", test_root_is_the_manuals },
		{ "lookup_violation_is_qualified", test_lookup_violation_is_qualified },
		{ "lookup_misconfigured_entry_is_told", test_lookup_misconfigured_entry_is_told },
		{ "lookup_permissions_are_of_all_levels", test_lookup_permissions_are_of_all_levels },
		{ "map_refuses_what_no_entry_can_say", test_map_refuses_what_no_entry_can_say },
		{ "new_refuses_impossible_processors", test_new_refuses_impossible_processors },
		{ "random_operations_equal_the_model", test_random_operations_equal_the_model },
		{ "memory_is_under_three_thousandths", test_memory_is_under_three_thousandths },
		CU_TEST_INFO_NULL,
	};

	return unit_main("table", tests);
}
