/* balloon/policy: what guests are given before they object, and what a host with room lets go. */
#include "balloon/policy.h"

#include "tests/unit/balloon_world.h"

/* By how fast its use rises. */
static void test_need_is_met_ahead(void)
{
	static const struct {
		const char *what;
		uint64_t seconds, target;
	} cases[] = { { "200 MiB in a second: 600 more", 1, 2875 * MIB }, { "in ten: 60", 10, 0 } };

	for (size_t c = 0; c < ARRAY_SIZE(cases); c++) {
		struct world w;

		world_one_guest(&w);
		w.vms[0].ram_resident_bytes = w.vms[0].balloon.actual_bytes = 2000 * MIB;
		w.guests[0].used = 1500 * MIB;
		world_look(&w, 300);
		CU_ASSERT_EQUAL(world_target(&w, 0), 0);
		w.guests[0].used = 1700 * MIB;
		w.s.taken_ns += (cases[c].seconds - 1) * NSEC_PER_SEC;
		world_look(&w, 300);
		UNIT_CASE(cases[c].what, world_target(&w, 0) == cases[c].target);
		world_done(&w);
	}
}

static void test_what_is_given_to_one_is_not_there_for_the_next(void)
{
	struct world w;

	world_one_guest(&w);
	world_add(&w, WORLD_FULL);
	for (size_t i = 0; i < 2; i++) {
		w.vms[i].ram_resident_bytes = w.vms[i].balloon.actual_bytes = 2000 * MIB;
		w.guests[i].used = 1810 * MIB;
	}
	world_look(&w, 110);
	CU_ASSERT_EQUAL(world_target(&w, 0), 2263 * MIB);
	CU_ASSERT_EQUAL(world_target(&w, 1), 2000 * MIB + (1100 - 640 - 263) * MIB);
	world_done(&w);
	world_one_guest(&w);
	world_add(&w, WORLD_FULL);
	for (size_t i = 0; i < 2; i++) {
		w.vms[i].balloon.actual_bytes = 3000 * MIB;
		w.guests[i].used = 100 * MIB;
	}
	world_look(&w, 430);
	CU_ASSERT_EQUAL(world_target(&w, 0), 3205 * MIB);
	CU_ASSERT_EQUAL(world_target(&w, 1), 3095 * MIB);
	world_done(&w);
}

/* Those who work with what they have do not give it to one that has a smaller right. */
static void test_need_is_met_up_to_what_is_entitled(void)
{
	struct world w;

	world_one_guest(&w);
	world_add(&w, WORLD_FULL);
	w.vms[0].ram_resident_bytes = w.vms[0].balloon.actual_bytes = 2000 * MIB;
	w.vms[0].shares = 1;
	w.guests[0].used = 1810 * MIB;
	w.guests[1].used = 3000 * MIB;
	world_look(&w, 90);
	CU_ASSERT_EQUAL(w.plan.vms[0].entitled_bytes, 2000 * MIB);
	CU_ASSERT_EQUAL(world_target(&w, 0), 0);
	world_done(&w);
}

static void test_need_is_met_before_it_hurts(void)
{
	struct world w;

	world_one_guest(&w);
	w.vms[0].ram_resident_bytes = w.vms[0].balloon.actual_bytes = 2000 * MIB;
	w.guests[0].used = 1790 * MIB; /* more than half of its fifth is left */
	world_look(&w, 200);
	CU_ASSERT_EQUAL(world_target(&w, 0), 0);
	w.guests[0].used = 1810 * MIB;
	world_look(&w, 200);
	CU_ASSERT_EQUAL(w.plan.vms[0].veto, VETO_NONE);
	/* What it rose by in this second counts for three more. */
	CU_ASSERT_EQUAL(world_target(&w, 0), world_in_mib((1810 + 3 * 20) * MIB / 80 * 100));
	CU_ASSERT_STRING_EQUAL(w.plan.vms[0].why, "guest needs it");
	world_done(&w);
}

/* Not below where the host gets hard, and not where it is; not above a limit. */
static void test_need_is_met_from_what_there_is(void)
{
	static const struct {
		const char *what;
		unsigned int percent;
		uint64_t limit, target;
	} cases[] = {
		{ "all of it", 600, 0, 2263 * MIB },
		{ "what there is", 74, 0, 2100 * MIB },
		{ "too little to be worth it", 65, 0, 0 },
		{ "none of a hard host's", 60, 0, 0 },
		{ "none of a low host's", 0, 0, 0 },
		{ "up to its limit", 200, 2150 * MIB + 4096, 2150 * MIB + 4096 },
	};

	for (size_t c = 0; c < ARRAY_SIZE(cases); c++) {
		struct world w;

		world_one_guest(&w);
		w.vms[0].ram_resident_bytes = w.vms[0].balloon.actual_bytes = 2000 * MIB;
		w.vms[0].limit_bytes = cases[c].limit;
		w.guests[0].used = 1810 * MIB;
		world_add(&w, 8 * WORLD_FULL); /* idle: the first is entitled to what it needs */
		w.guests[1].used = 0;
		world_look(&w, cases[c].percent);
		UNIT_CASE(cases[c].what, world_target(&w, 0) == cases[c].target);
		world_done(&w);
	}
}

static void test_high_gives_back_in_steps_and_stays_high(void)
{
	static const struct {
		const char *what;
		unsigned int percent;
		uint64_t limit, target;
	} cases[] = {
		{ "a step", 2000, 0, 3205 * MIB },
		{ "400 % stay", 410, 0, 3100 * MIB },
		{ "too little", 401, 0, 0 },
		{ "a host that is clear", 300, 0, 0 },
		{ "up to a limit", 2000, 3050 * MIB, 3050 * MIB },
	};

	for (size_t c = 0; c < ARRAY_SIZE(cases); c++) {
		struct world w;

		world_one_guest(&w);
		w.vms[0].ram_resident_bytes = w.vms[0].balloon.actual_bytes = 3000 * MIB;
		w.vms[0].limit_bytes = cases[c].limit;
		world_look(&w, cases[c].percent);
		UNIT_CASE(cases[c].what, world_target(&w, 0) == cases[c].target);
		CU_ASSERT_STRING_EQUAL(w.plan.vms[0].why, cases[c].target ? "the host has room" : "");
		world_done(&w);
	}
}

/* While its balloon is on its way, and whatever is free by then. */
static void test_given_memory_is_not_taken_back_on_its_way(void)
{
	struct world w;

	world_one_guest(&w);
	w.vms[0].ram_resident_bytes = w.vms[0].balloon.actual_bytes = 2000 * MIB;
	w.guests[0].used = 1990 * MIB;
	world_look(&w, 150);
	CU_ASSERT_EQUAL(world_target(&w, 0), 3375 * MIB);
	w.vms[0].balloon.actual_bytes = 2100 * MIB;
	w.guests[0].used = 2090 * MIB;
	world_look(&w, 100);
	CU_ASSERT_EQUAL(world_target(&w, 0), 3375 * MIB);
	w.vms[0].limit_bytes = 3000 * MIB; /* but for a limit */
	world_look(&w, 100);
	CU_ASSERT(world_target(&w, 0) <= 3000 * MIB);
	world_done(&w);
	/* Nor that of a guest that needs it, nor of a host that had room. */
	for (unsigned int room = 0; room < 2; room++) {
		world_one_guest(&w);
		w.vms[0].ram_resident_bytes = w.vms[0].balloon.actual_bytes = 2000 * MIB;
		w.guests[0].used = room ? 100 * MIB : 1810 * MIB;
		world_look(&w, room ? 2000 : 300);
		CU_ASSERT(world_target(&w, 0) > 2200 * MIB);
		world_look(&w, room ? 410 : 74); /* as much less is there */
		CU_ASSERT_EQUAL(world_target(&w, 0), 0);
		world_done(&w);
	}
}

int main(void)
{
	CU_TestInfo tests[] = {
		{ "test_need_is_met_ahead", test_need_is_met_ahead },
		{ "test_what_is_given_to_one_is_not_there_for_the_next",
		  test_what_is_given_to_one_is_not_there_for_the_next },
		{ "test_need_is_met_up_to_what_is_entitled", test_need_is_met_up_to_what_is_entitled },
		{ "test_need_is_met_before_it_hurts", test_need_is_met_before_it_hurts },
		{ "test_need_is_met_from_what_there_is", test_need_is_met_from_what_there_is },
		{ "test_high_gives_back_in_steps_and_stays_high", test_high_gives_back_in_steps_and_stays_high },
		{ "test_given_memory_is_not_taken_back_on_its_way", test_given_memory_is_not_taken_back_on_its_way },
		CU_TEST_INFO_NULL,
	};

	return unit_main("balloon/need", tests);
}
