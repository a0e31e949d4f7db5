/* ksmd/debt: rates from looks, and decisions by host memory. Time and memory come in with the snapshot. */
#include "ksmd/debt.h"

#include <math.h>

#include "core/clock.h"
#include "tests/unit/unit.h"

#define MIB_PAGES 256
#define MIB UINT64_C(1048576)

/* ---- break rates ---- */

static void test_rate_first_look_tells_nothing(void)
{
	struct break_rate r = { 0 };

	CU_ASSERT_EQUAL(break_rate_take(&r, 5000, 10 * NSEC_PER_SEC), 0);
	CU_ASSERT_EQUAL(r.per_s, 0);
	CU_ASSERT_EQUAL(break_rate_take(&r, 8000, 10 * NSEC_PER_SEC), 0); /* no time has passed */
	CU_ASSERT_EQUAL(break_rate_take(&r, 8000, 20 * NSEC_PER_SEC), 3000);
}

/* A step shows as half after the half-life, however often it is looked at meanwhile. */
static void test_rate_step_shows_by_half_after_half_life(void)
{
	static const unsigned looks[] = { 1, 2, 3, 30 };

	for (size_t i = 0; i < ARRAY_SIZE(looks); i++) {
		struct break_rate r = { 0 };
		uint64_t now = NSEC_PER_SEC, breaks = 7;

		break_rate_take(&r, breaks, now);
		for (unsigned n = 0; n < looks[i]; n++)
			break_rate_take(&r, breaks += 3000 / looks[i], now += 30 * NSEC_PER_SEC / looks[i]);
		CU_ASSERT_DOUBLE_EQUAL(r.per_s, 50, 0.5);
		for (unsigned n = 0; n < looks[i]; n++)
			break_rate_take(&r, breaks, now += 30 * NSEC_PER_SEC / looks[i]);
		CU_ASSERT_DOUBLE_EQUAL(r.per_s, 25, 0.5);
	}
}

static void test_rate_count_that_went_back_begins_anew(void)
{
	struct break_rate r = { 0 };

	break_rate_take(&r, 1000, 10 * NSEC_PER_SEC);
	break_rate_take(&r, 4000, 40 * NSEC_PER_SEC);
	CU_ASSERT_EQUAL(break_rate_take(&r, 10, 50 * NSEC_PER_SEC), 0);
	CU_ASSERT_DOUBLE_EQUAL(r.per_s, 50, 0.5); /* what was known of it still holds */
	CU_ASSERT_EQUAL(break_rate_take(&r, 15, 60 * NSEC_PER_SEC), 5);
}

/* ---- the debt ---- */

static struct host_snapshot host(uint64_t available_mib, uint64_t swap_mib)
{
	return (struct host_snapshot){ .mem_total_bytes = 6400 * MIB, /* of which 100 are the reserve */
				       .mem_available_bytes = available_mib * MIB,
				       .swap_free_bytes = swap_mib * MIB };
}

static const struct {
	const char *what;
	uint64_t merged_mib;
	double breaks_mib_s;
	uint64_t share, available_mib, swap_mib, debt_mib, limit_mib;
	enum debt_state state; /* from ok */
} cases[] = {
	{ "nothing merged on a host that is full", 0, 0, 20, 50, 0, 0, 0, DEBT_OK },
	{ "the share counts without a break", 1000, 0, 20, 1100, 0, 200, 1000, DEBT_OK },
	{ "all of it at 100 %", 1000, 0, 100, 2100, 0, 1000, 2000, DEBT_OK },
	{ "none of it at 0 %", 1000, 0, 0, 100, 0, 0, 0, DEBT_OK },
	{ "the rate counts, twice, for a minute", 1000, 5, 20, 2100, 0, 600, 2000, DEBT_OK },
	{ "a rate below the share does not", 1000, 1, 20, 2100, 0, 200, 2000, DEBT_OK },
	{ "never more than there is", 1000, 500, 20, 2100, 0, 1000, 2000, DEBT_OK },
	{ "just fits", 1000, 0, 20, 300, 0, 200, 200, DEBT_OK },
	{ "just does not", 1000, 0, 20, 299, 0, 200, 199, DEBT_STOP },
	{ "swap counts", 1000, 0, 20, 100, 200, 200, 200, DEBT_OK },
	{ "less than the reserve is none", 1000, 0, 20, 60, 20, 200, 0, DEBT_STOP },
	{ "huge", UINT64_C(1) << 30, 1e9, 25600, 1100, 0, UINT64_C(1) << 30, 1000, DEBT_STOP },
};

static void test_debt_is_the_worse_of_share_and_rate(void)
{
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct host_snapshot s = host(cases[i].available_mib, cases[i].swap_mib);
		struct debt_inputs in = { cases[i].merged_mib * MIB_PAGES, cases[i].breaks_mib_s * MIB_PAGES,
					  cases[i].share };
		struct debt d = { 0 };

		UNIT_CASE(cases[i].what, debt_decide(&d, &s, &in) == (cases[i].state == DEBT_STOP));
		UNIT_CASE(cases[i].what, d.state == cases[i].state);
		UNIT_CASE(cases[i].what, d.pages == cases[i].debt_mib * MIB_PAGES);
		UNIT_CASE(cases[i].what, d.limit_pages == cases[i].limit_mib * MIB_PAGES);
	}
}

static void test_debt_change_told_once_with_numbers(void)
{
	struct debt_inputs in = { 1000 * MIB_PAGES, 4 * MIB_PAGES, 20 };
	struct host_snapshot s = host(300, 0);
	struct debt d = { 0 };

	CU_ASSERT_TRUE(debt_decide(&d, &s, &in));
	CU_ASSERT_STRING_EQUAL(d.why, "480 of 1000 MiB merged may come back at once, 4.0 MiB/s do, and 200 MiB would fit");
	s = host(310, 0);
	CU_ASSERT_FALSE(debt_decide(&d, &s, &in));
	CU_ASSERT_PTR_NOT_NULL(strstr(d.why, "200 MiB would fit")); /* as it was when it changed */
	CU_ASSERT_EQUAL(d.limit_pages, 210 * MIB_PAGES);
}

/* Free memory goes up and down by 5 % around the limit: one change, and one back when there is room. */
static void test_debt_does_not_oscillate(void)
{
	struct debt_inputs in = { 1000 * MIB_PAGES, 0, 50 };
	struct debt d = { 0 };
	unsigned changes = 0;

	for (unsigned i = 0; i < 1000; i++) {
		struct host_snapshot s = host(100 + 500 + (i % 2 ? 25 : (uint64_t)-25), 0);

		changes += debt_decide(&d, &s, &in);
	}
	CU_ASSERT_EQUAL(changes, 1);
	CU_ASSERT_EQUAL(d.state, DEBT_STOP);
	for (unsigned i = 0; i < 1000; i++) {
		struct host_snapshot s = host(100 + 600 + (i % 2 ? 25 : (uint64_t)-25), 0);

		changes += debt_decide(&d, &s, &in);
	}
	CU_ASSERT_EQUAL(changes, 2);
	CU_ASSERT_EQUAL(d.state, DEBT_OK);
}

int main(void)
{
	static CU_TestInfo tests[] = {
		{ "rate_first", test_rate_first_look_tells_nothing },
		{ "rate_step", test_rate_step_shows_by_half_after_half_life },
		{ "rate_back", test_rate_count_that_went_back_begins_anew },
		{ "debt", test_debt_is_the_worse_of_share_and_rate },
		{ "once", test_debt_change_told_once_with_numbers },
		{ "steady", test_debt_does_not_oscillate },
		CU_TEST_INFO_NULL,
	};

	return unit_main("debt", tests);
}
