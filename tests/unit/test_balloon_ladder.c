/* balloon/ladder: states by memory and by pressure, and the way between them. Time comes in with the snapshot. */
#include "balloon/ladder.h"

#include "core/clock.h"
#include "tests/unit/unit.h"

#define MIB (UINT64_C(1) << 20)
#define GIB (UINT64_C(1) << 30)
#define MIN_FREE (1000 * MIB) /* 1 % is 10 MiB */

static struct host_snapshot picture(uint64_t seconds, uint64_t available_bytes)
{
	return (struct host_snapshot){ .taken_ns = seconds * NSEC_PER_SEC, .mem_total_bytes = 64 * GIB,
				       .mem_available_bytes = available_bytes };
}

static enum host_state state_after(struct ladder *l, unsigned int percent)
{
	struct host_snapshot s = picture(l->looked_ns / NSEC_PER_SEC + 1, percent * (MIN_FREE / 100));

	ladder_look(l, &s, MIN_FREE);
	return l->state;
}

/* ---- what ought to be free ---- */

static void test_min_free_is_that_of_esx(void)
{
	static const struct {
		const char *what;
		uint64_t total, min_free;
	} cases[] = {
		{ "nothing", 0, 0 },
		{ "28 GiB", 28 * GIB, 899 * MIB },
		{ "14 GiB, half of it", 14 * GIB, 899 * MIB / 2 },
		{ "100 GiB more, 1 % of it more", 128 * GIB, 899 * MIB + GIB },
		{ "12 TiB", 12288 * GIB, 899 * MIB + 12260 * GIB / 100 },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		uint64_t is = ladder_min_free(cases[i].total);

		UNIT_CASE(cases[i].what, is <= cases[i].min_free && is + 4096 >= cases[i].min_free);
	}
	CU_ASSERT_EQUAL(ladder_min_free(28 * GIB), 899 * MIB);
	/* A page more of memory is never less to keep, nor a jump. */
	for (uint64_t total = 27 * GIB; total < 29 * GIB; total += 16 * MIB) {
		uint64_t step = ladder_min_free(total + 16 * MIB) - ladder_min_free(total);

		CU_ASSERT(step <= MIB);
	}
}

static void test_free_is_what_nobody_has_a_claim_to(void)
{
	struct host_snapshot s = picture(1, 1000);

	s.cow_debt_bytes = 300;
	s.admitted_bytes = 200;
	CU_ASSERT_EQUAL(ladder_free(&s), 500);
	s.admitted_bytes = 700;
	CU_ASSERT_EQUAL(ladder_free(&s), 0);
	s.admitted_bytes = 9000;
	CU_ASSERT_EQUAL(ladder_free(&s), 0);
}

static void test_min_free_of_configuration_goes_before_the_formula(void)
{
	struct ladder l = { 0 };
	struct host_snapshot s = picture(1, 64 * GIB);

	ladder_look(&l, &s, 0);
	CU_ASSERT_EQUAL(l.min_free_bytes, ladder_min_free(64 * GIB));
	ladder_look(&l, &s, 5 * GIB);
	CU_ASSERT_EQUAL(l.min_free_bytes, 5 * GIB);
}

/* ---- what is allowed ---- */

static void test_rows_allow_more_and_more(void)
{
	for (int i = HOST_HIGH; i < HOST_STATES; i++) {
		const struct ladder_row *row = &ladder_rows[i];

		CU_ASSERT(row->release == (i == HOST_HIGH));
		CU_ASSERT(row->take_idle == (i >= HOST_SOFT));
		CU_ASSERT(row->take_all == (i >= HOST_HARD));
		CU_ASSERT(row->admit == (i < HOST_LOW));
		CU_ASSERT_STRING_EQUAL(host_state_name((enum host_state)i), row->name);
		if (i >= HOST_CLEAR)
			CU_ASSERT(row->above_percent > row->below_percent);
		if (i >= HOST_SOFT) {
			/* A state ends before the one before it does. */
			CU_ASSERT(row->above_percent < ladder_rows[i - 1].above_percent);
			CU_ASSERT(row->below_percent < ladder_rows[i - 1].below_percent);
		}
	}
}

/* ---- by memory ---- */

static void test_states_begin_and_end(void)
{
	static const struct {
		const char *what;
		unsigned int percent[8];
		enum host_state states[8];
		size_t count;
	} cases[] = {
		{ "down, a step at a time",
		  { 400, 399, 100, 99, 64, 63, 32, 31 },
		  { HOST_HIGH, HOST_CLEAR, HOST_CLEAR, HOST_SOFT, HOST_SOFT, HOST_HARD, HOST_HARD, HOST_LOW },
		  8 },
		{ "up, not before the second threshold",
		  { 10, 40, 41, 80, 81, 150, 151, 500 },
		  { HOST_LOW, HOST_LOW, HOST_HARD, HOST_HARD, HOST_SOFT, HOST_SOFT, HOST_CLEAR, HOST_CLEAR },
		  8 },
		{ "high again", { 300, 500, 501, 400, 399 }, { HOST_CLEAR, HOST_CLEAR, HOST_HIGH, HOST_HIGH, HOST_CLEAR }, 5 },
		{ "to the worst and back at once", { 600, 0, 600, 0 }, { HOST_HIGH, HOST_LOW, HOST_HIGH, HOST_LOW }, 4 },
		{ "from low to soft in between", { 0, 120, 90, 151 }, { HOST_LOW, HOST_SOFT, HOST_SOFT, HOST_CLEAR }, 4 },
		{ "begins high without having been there", { 450, 450 }, { HOST_HIGH, HOST_HIGH }, 2 },
		{ "around a threshold",
		  { 99, 101, 99, 110, 98, 149, 90, 70 },
		  { HOST_SOFT, HOST_SOFT, HOST_SOFT, HOST_SOFT, HOST_SOFT, HOST_SOFT, HOST_SOFT, HOST_SOFT },
		  8 },
	};

	for (size_t c = 0; c < ARRAY_SIZE(cases); c++) {
		struct ladder l = { 0 };

		for (size_t i = 0; i < cases[c].count; i++)
			UNIT_CASE(cases[c].what, state_after(&l, cases[c].percent[i]) == cases[c].states[i]);
	}
}

/* From every state, with every amount of free memory. */
static void test_every_transition_is_by_the_table(void)
{
	for (int from = HOST_HIGH; from < HOST_STATES; from++) {
		for (unsigned int percent = 0; percent < 600; percent++) {
			struct ladder l = { .state = (enum host_state)from };
			int state = (int)state_after(&l, percent);
			const struct ladder_row *next = state < HOST_LOW ? &ladder_rows[state + 1] : NULL;

			/* Nothing worse began, and what it is in began or has not ended yet. */
			CU_ASSERT(!next || percent >= next->below_percent);
			CU_ASSERT(state == HOST_HIGH || percent < ladder_rows[state].below_percent ||
				  (state <= from && percent <= ladder_rows[state].above_percent));
			CU_ASSERT(!next || state >= from || percent > next->above_percent);
		}
	}
}

static void test_leaving_a_state_takes_what_is_said(void)
{
	for (int i = HOST_CLEAR; i < HOST_STATES; i++) {
		uint64_t leave = ladder_leave_bytes((enum host_state)i, MIN_FREE);
		struct ladder l = { .state = (enum host_state)i };
		struct host_snapshot s = picture(1, leave);

		ladder_look(&l, &s, MIN_FREE);
		CU_ASSERT_EQUAL(l.state, (enum host_state)i);
		s = picture(2, leave + 1);
		ladder_look(&l, &s, MIN_FREE);
		CU_ASSERT(l.state < (enum host_state)i);
	}
	CU_ASSERT_EQUAL(ladder_leave_bytes(HOST_HIGH, MIN_FREE), ladder_leave_bytes(HOST_CLEAR, MIN_FREE));
}

static void test_changes_are_told_once_with_their_numbers(void)
{
	struct ladder l = { 0 };
	struct host_snapshot s = picture(5, 900 * MIB);

	s.cow_debt_bytes = 100 * MIB;
	s.admitted_bytes = 50 * MIB;
	CU_ASSERT_TRUE(ladder_look(&l, &s, MIN_FREE));
	CU_ASSERT_EQUAL(l.state, HOST_SOFT);
	CU_ASSERT_EQUAL(l.entered_ns, 5 * NSEC_PER_SEC);
	CU_ASSERT_STRING_EQUAL(l.why, "750 MiB free (900 available, 100 debt, 50 promised), 75 % of 1000; stalled some 0.0 %, "
				      "full 0.0 %");
	s.taken_ns += NSEC_PER_SEC;
	s.mem_available_bytes = 950 * MIB;
	CU_ASSERT_FALSE(ladder_look(&l, &s, MIN_FREE));
	CU_ASSERT_EQUAL(l.entered_ns, 5 * NSEC_PER_SEC);
	CU_ASSERT_EQUAL(strncmp(l.why, "750 MiB", 7), 0);
}

static void test_a_host_that_tells_nothing_stays_as_it_is(void)
{
	struct host_snapshot s = { .taken_ns = NSEC_PER_SEC };

	for (int i = HOST_HIGH; i < HOST_STATES; i++) {
		struct ladder l = { .state = (enum host_state)i };

		CU_ASSERT_FALSE(ladder_look(&l, &s, 0));
		CU_ASSERT_EQUAL(l.state, (enum host_state)i);
	}
}

/* ---- by pressure ---- */

struct stall {
	unsigned int ms;		    /* since the look before */
	int64_t some_ms, full_ms; /* of them; below 0: the counter went back */
	bool unknown;
	enum host_state state;
};

static const struct stalls {
	const char *what;
	unsigned int percent; /* of min_free that is free, all the time */
	struct stall looks[7];
} stalls[] = {
	{ "a tenth makes clear soft, half of it keeps it", 200,
	  { { 1000, 99, 0, false, HOST_CLEAR }, { 1000, 100, 0, false, HOST_SOFT }, { 1000, 50, 0, false, HOST_SOFT },
	    { 1000, 49, 0, false, HOST_CLEAR }, { 1000, 50, 0, false, HOST_CLEAR } } },
	{ "all of them make it hard", 200,
	  { { 1000, 100, 100, false, HOST_HARD }, { 1000, 50, 50, false, HOST_HARD }, { 1000, 50, 49, false, HOST_SOFT },
	    { 1000, 10, 10, false, HOST_CLEAR } } },
	{ "never low", 200, { { 1000, 1000, 1000, false, HOST_HARD } } },
	{ "nor better than by memory", 10, { { 1000, 1000, 1000, false, HOST_LOW }, { 1000, 0, 0, false, HOST_LOW } } },
	{ "a host with room", 600, { { 1000, 1000, 1000, false, HOST_HIGH } } },
	{ "unknown is none", 200, { { 1000, 500, 0, false, HOST_SOFT }, { 1000, 500, 0, true, HOST_CLEAR },
				    /* and what came meanwhile is not of the second that follows */
				    { 1000, 500, 0, false, HOST_CLEAR }, { 1000, 500, 0, false, HOST_SOFT } } },
	{ "a counter that goes back", 200,
	  { { 1000, 200, 0, false, HOST_SOFT }, { 1000, -150, 0, false, HOST_CLEAR }, { 1000, 100, 0, false, HOST_SOFT } } },
	{ "a clock that jumps", 200,
	  { { 1000, 100, 0, false, HOST_SOFT }, { 3600000, 1000, 0, false, HOST_CLEAR }, { 1000, 100, 0, false, HOST_SOFT } } },
	{ "looks too close to tell", 200,
	  { { 1000, 0, 0, false, HOST_CLEAR }, { 10, 10, 10, false, HOST_CLEAR }, { 489, 40, 0, false, HOST_CLEAR },
	    { 1, 0, 0, false, HOST_SOFT } } },
	{ "a time that cannot be", 200, { { 1000, 1000000, 1000000, false, HOST_HARD } } },
	{ "no time at all", 200, { { 0, 5000, 5000, false, HOST_CLEAR } } },
};

static void test_pressure_makes_worse_what_is_scarce(void)
{
	for (size_t c = 0; c < ARRAY_SIZE(stalls); c++) {
		struct ladder l = { 0 };
		struct host_snapshot s = picture(1000, stalls[c].percent * (MIN_FREE / 100));

		s.pressure = (struct pressure){ .known = true, .some_us = 5000000, .full_us = 3000000 };
		ladder_look(&l, &s, MIN_FREE);
		for (const struct stall *k = stalls[c].looks; k->ms || k->some_ms; k++) {
			s.taken_ns += k->ms * NSEC_PER_MSEC;
			s.pressure.known = !k->unknown;
			s.pressure.some_us += (uint64_t)(k->some_ms * 1000);
			s.pressure.full_us += (uint64_t)(k->full_ms * 1000);
			ladder_look(&l, &s, MIN_FREE);
			UNIT_CASE(stalls[c].what, l.state == k->state);
		}
	}
}

static void test_pressure_of_a_clock_set_back_is_none(void)
{
	struct ladder l = { 0 };
	struct host_snapshot s = picture(1000, 2 * MIN_FREE);

	s.pressure.known = true;
	ladder_look(&l, &s, MIN_FREE);
	s.taken_ns -= 500 * NSEC_PER_SEC;
	s.pressure.some_us += 400000000;
	ladder_look(&l, &s, MIN_FREE);
	CU_ASSERT_EQUAL(l.state, HOST_CLEAR);
	s.taken_ns += NSEC_PER_SEC;
	s.pressure.some_us += 200000;
	ladder_look(&l, &s, MIN_FREE);
	CU_ASSERT_EQUAL(l.state, HOST_SOFT);
	CU_ASSERT_EQUAL(l.some_permille, 200);
}

/* Whatever is told: a state that is by the table, and shares of time that can be. */
static void test_garbage_gives_a_state(void)
{
	struct ladder l = { 0 };
	uint64_t random = 1;

	for (size_t i = 0; i < 100000; i++) {
		unsigned int shift = (unsigned int)(unit_random(&random) % 20);
		struct host_snapshot s = { .taken_ns = unit_random(&random), .mem_total_bytes = unit_random(&random) >> shift,
					   .mem_available_bytes = unit_random(&random) >> (shift + 8),
					   .cow_debt_bytes = unit_random(&random) >> 24,
					   .admitted_bytes = unit_random(&random) >> 24 };

		s.pressure = (struct pressure){ unit_random(&random) & 1, unit_random(&random), unit_random(&random) };
		ladder_look(&l, &s, unit_random(&random) & 1 ? unit_random(&random) >> (shift + 8) : 0);
		CU_ASSERT_FATAL(l.state < HOST_STATES && l.some_permille <= 1000 && l.full_permille <= 1000);
	}
}

int main(void)
{
	CU_TestInfo tests[] = {
		{ "test_min_free_is_that_of_esx", test_min_free_is_that_of_esx },
		{ "test_free_is_what_nobody_has_a_claim_to", test_free_is_what_nobody_has_a_claim_to },
		{ "test_min_free_of_configuration_goes_before_the_formula",
		  test_min_free_of_configuration_goes_before_the_formula },
		{ "test_rows_allow_more_and_more", test_rows_allow_more_and_more },
		{ "test_states_begin_and_end", test_states_begin_and_end },
		{ "test_every_transition_is_by_the_table", test_every_transition_is_by_the_table },
		{ "test_leaving_a_state_takes_what_is_said", test_leaving_a_state_takes_what_is_said },
		{ "test_changes_are_told_once_with_their_numbers", test_changes_are_told_once_with_their_numbers },
		{ "test_a_host_that_tells_nothing_stays_as_it_is", test_a_host_that_tells_nothing_stays_as_it_is },
		{ "test_pressure_makes_worse_what_is_scarce", test_pressure_makes_worse_what_is_scarce },
		{ "test_pressure_of_a_clock_set_back_is_none", test_pressure_of_a_clock_set_back_is_none },
		{ "test_garbage_gives_a_state", test_garbage_gives_a_state },
		CU_TEST_INFO_NULL,
	};

	return unit_main("balloon/ladder", tests);
}
