#include "ept/walk_cost.h"

#include <math.h>

#include "tests/unit/unit.h"

static void test_references_are_the_known_ones(void)
{
	CU_ASSERT_EQUAL(walk_cost_references(4, 4), 24); /* 4 KiB on 4 KiB */
	CU_ASSERT_EQUAL(walk_cost_references(3, 3), 15); /* 2 MiB on 2 MiB */
	CU_ASSERT_EQUAL(walk_cost_references(4, 3), 19);
	CU_ASSERT_EQUAL(walk_cost_references(2, 2), 8);
	CU_ASSERT_EQUAL(walk_cost_references(5, 5), 35);
	CU_ASSERT_EQUAL(walk_cost_references(4, 0), 4); /* no second stage */
}

static void test_cost_of_mixes(void)
{
	static const struct {
		const char *what;
		uint64_t leaves[3];
		unsigned levels, guest_level;
		double references;
		uint64_t tlb_entries, reach_pages;
	} cases[] = {
		{ "nothing", { 0, 0, 0 }, 4, 1, 0, 0, 0 },
		{ "all small", { 1000, 0, 0 }, 4, 1, 24, 1000, 1000 },
		{ "all small, guest large", { 1000, 0, 0 }, 4, 2, 19, 1000, 1000 },
		{ "more than the TLB", { 100000, 0, 0 }, 4, 1, 24, 100000, 1536 },
		{ "all huge, guest small", { 0, 10, 0 }, 4, 1, 19, 5120, 1536 },
		{ "all huge, guest huge", { 0, 10, 0 }, 4, 2, 15, 10, 5120 },
		{ "half of each", { 512, 1, 0 }, 4, 2, 4 * (3.5 + 1) - 1, 513, 1024 },
		{ "large ones first", { 5000, 1000, 0 }, 4, 2, 4 * ((5000 * 4 + 512000 * 3) / 517000.0 + 1) - 1, 6000,
		  512000 + 536 },
		{ "1 GiB throughout", { 0, 0, 20 }, 4, 3, 8, 20, 16 * 262144 },
		{ "1 GiB, guest of 2 MiB", { 0, 0, 20 }, 4, 2, 4 * 3 - 1, 10240, 1536 * 512 },
		{ "five levels", { 7, 0, 0 }, 5, 1, 5 * 6 - 1, 7, 7 },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct walk_cost c;

		walk_cost_of(cases[i].leaves, cases[i].levels, cases[i].guest_level, &c);
		UNIT_CASE(cases[i].what, fabs(c.references - cases[i].references) < 1e-9);
		UNIT_CASE(cases[i].what, c.tlb_entries == cases[i].tlb_entries);
		UNIT_CASE(cases[i].what, c.tlb_reach_pages == cases[i].reach_pages);
		UNIT_CASE(cases[i].what, c.guest_levels == 5 - cases[i].guest_level);
		UNIT_CASE(cases[i].what, c.uniform[0] == c.uniform[1] + c.guest_levels + 1);
	}
}

int main(void)
{
	CU_TestInfo tests[] = {
		{ "references_are_the_known_ones", test_references_are_the_known_ones },
		{ "cost_of_mixes", test_cost_of_mixes },
		CU_TEST_INFO_NULL,
	};

	return unit_main("walk_cost", tests);
}
