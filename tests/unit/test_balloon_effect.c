/* balloon/effect: balloons that do not move, and balloons that bring nothing. */
#include "balloon/policy.h"

#include "tests/unit/balloon_world.h"

static const struct balloon_effect *effect(const struct world *w)
{
	return w->plan.effect_count == 1 ? &w->plan.effects[0] : NULL;
}

static bool told(const struct world *w, enum balloon_effect_kind kind)
{
	return effect(w) && effect(w)->kind == kind;
}

/* ---- stalls ---- */

/* Whether or not its memory is in MiB. */
static void test_stalled_balloon_is_set_aside_withdrawn_and_tried_again(void)
{
	for (unsigned int odd = 0; odd < 2; odd++) {
		struct world w;
		uint64_t have = 3500 * MIB + odd * 4096;
		unsigned int asked = 0;

		world_one_guest(&w);
		w.vms[0].balloon.actual_bytes = have;
		world_look(&w, 90);
		CU_ASSERT(world_target(&w, 0) < have);
		for (size_t i = 0; i < 9; i++) {
			world_look(&w, 90);
			CU_ASSERT(w.plan.effect_count == 0 && world_target(&w, 0) == 0);
		}
		world_look(&w, 90);
		CU_ASSERT_FATAL(told(&w, EFFECT_STALLED));
		CU_ASSERT(effect(&w)->vm == 0 && effect(&w)->asked_bytes > WORLD_STEP - MIB);
		CU_ASSERT_EQUAL(world_target(&w, 0), have);
		CU_ASSERT_EQUAL(w.plan.vms[0].block, BLOCK_STALLED);
		for (size_t i = 0; i < 59; i++) {
			world_look(&w, 0);
			CU_ASSERT(w.plan.effect_count == 0 && world_target(&w, 0) == 0);
			CU_ASSERT_EQUAL(w.plan.vms[0].block, BLOCK_STALLED);
		}
		for (size_t i = 0; i < 200; i++) { /* once more, and then every 70 s */
			world_look(&w, 90);
			asked += world_target(&w, 0) != 0 && world_target(&w, 0) < have;
		}
		CU_ASSERT_EQUAL(asked, 3);
		world_done(&w);
	}
}

static void test_stall_is_told_of_whom_it_is(void)
{
	struct world w;

	world_one_guest(&w);
	world_add(&w, WORLD_FULL);
	for (size_t i = 0; i < 11; i++) {
		world_look(&w, 50);
		w.vms[0].balloon.actual_bytes -= 10 * MIB;
	}
	CU_ASSERT_FATAL(told(&w, EFFECT_STALLED));
	CU_ASSERT_EQUAL(effect(&w)->vm, 1);
	CU_ASSERT(world_target(&w, 0) == 0 && world_target(&w, 1) == WORLD_FULL);
	world_done(&w);
}

static void test_slow_balloon_is_not_stalled(void)
{
	struct world w;

	world_one_guest(&w);
	world_look(&w, 90);
	for (size_t i = 0; i < 180; i++) {
		w.vms[0].balloon.actual_bytes -= MIB + 4096;
		world_look(&w, 90);
		CU_ASSERT(w.plan.effect_count == 0 && world_target(&w, 0) == 0);
	}
	world_done(&w);
}

static void test_balloon_that_moves_again_is_told(void)
{
	struct world w;

	world_one_guest(&w);
	for (size_t i = 0; i < 12; i++)
		world_look(&w, 90);
	CU_ASSERT_EQUAL(w.plan.vms[0].block, BLOCK_STALLED);
	w.vms[0].balloon.actual_bytes -= 100 * MIB;
	world_look(&w, 90);
	CU_ASSERT(told(&w, EFFECT_MOVES_AGAIN));
	CU_ASSERT_EQUAL(w.plan.vms[0].block, BLOCK_NONE);
	CU_ASSERT(world_target(&w, 0) != 0 && world_target(&w, 0) < world_actual(&w, 0));
	world_done(&w);
}

/* A guest that stands still moves no balloon. */
static void test_paused_guest_is_not_stalled(void)
{
	struct world w;

	world_one_guest(&w);
	world_look(&w, 90);
	w.vms[0].running = false;
	for (size_t i = 0; i < 100; i++) {
		world_look(&w, 90);
		CU_ASSERT_EQUAL(w.plan.effect_count, 0);
	}
	w.vms[0].running = true;
	for (size_t i = 0; i < 9; i++) {
		world_look(&w, 90);
		CU_ASSERT_EQUAL(w.plan.effect_count, 0);
	}
	world_look(&w, 90);
	CU_ASSERT(told(&w, EFFECT_STALLED));
	world_done(&w);
}

/* A driver that is gone lets nothing go: asked every tick, told once and then once in 70 s. */
static void test_balloon_that_does_not_let_go_is_told(void)
{
	for (unsigned int objects = 0; objects < 2; objects++) {
		struct world w;
		unsigned int stalls = 0;

		world_one_guest(&w);
		w.vms[0].balloon.actual_bytes = w.vms[0].ram_resident_bytes = 2500 * MIB;
		w.guests[0].used = objects ? 2499 * MIB : 100 * MIB;
		for (unsigned int i = 0; i < 200; i++) {
			world_look(&w, 600 + (i % 7) * 10); /* never the same target */
			stalls += told(&w, EFFECT_STALLED);
			CU_ASSERT(w.plan.effect_count == 0 || told(&w, EFFECT_STALLED));
			/* It may still let go: nothing is withdrawn. */
			CU_ASSERT_NOT_EQUAL(world_target(&w, 0), world_actual(&w, 0));
		}
		CU_ASSERT_EQUAL(stalls, 3);
		world_done(&w);
	}
}

static void test_stalled_guest_that_objects_gets_back_what_it_gave(void)
{
	struct world w;

	world_one_guest(&w);
	world_look_and_obey(&w, 50, 4);
	for (size_t i = 0; i < 12; i++)
		world_look(&w, 50);
	CU_ASSERT_EQUAL(w.plan.vms[0].block, BLOCK_STALLED);
	w.guests[0].used = world_actual(&w, 0);
	world_look(&w, 0);
	CU_ASSERT_EQUAL(world_target(&w, 0), WORLD_FULL);
	world_look(&w, 0); /* and has as long as any other to take it */
	CU_ASSERT_EQUAL(w.plan.vms[0].block, BLOCK_NONE);
	world_done(&w);
}

/* ---- nothing freed ---- */

static void test_memory_that_came_back_is_told(void)
{
	struct world w;
	uint64_t asked, freed;

	world_one_guest(&w);
	world_look_and_obey(&w, 90, 1);
	asked = WORLD_FULL - world_actual(&w, 0);
	w.guests[0].mute = true; /* no further step */
	for (size_t i = 0; i < 2; i++) { /* not before what it did can be seen */
		world_look(&w, 90);
		CU_ASSERT_EQUAL(w.plan.effect_count, 0);
	}
	world_look(&w, 90);
	world_look(&w, 90);
	CU_ASSERT_FATAL(told(&w, EFFECT_ARRIVED));
	freed = effect(&w)->freed_bytes;
	CU_ASSERT(effect(&w)->asked_bytes == asked && effect(&w)->expected_bytes == asked && freed == asked);
	for (size_t i = 0; i < 20; i++) {
		world_look(&w, 90);
		CU_ASSERT_EQUAL(w.plan.effect_count, 0);
	}
	/* The next step is judged on its own. */
	w.guests[0].mute = false;
	world_look_and_obey(&w, 90, 1);
	CU_ASSERT(world_target(&w, 0) != 0);
	w.guests[0].mute = true;
	w.vms[0].ram_resident_bytes += asked;
	for (size_t i = 0; i < 3; i++)
		world_look(&w, 90);
	world_look(&w, 90);
	CU_ASSERT(told(&w, EFFECT_NOTHING_FREED));
	CU_ASSERT_EQUAL(w.plan.vms[0].block, BLOCK_NO_EFFECT);
	world_done(&w);
}

/* It costs its guest a step; told once, left alone for ten minutes, and then tried, judged and told again. */
static void test_balloon_that_frees_nothing_is_left_alone(void)
{
	struct world w;

	world_one_guest(&w);
	for (unsigned int try = 0; try < 3; try++) {
		world_look(&w, 90);
		CU_ASSERT_EQUAL(world_target(&w, 0), world_in_mib(world_actual(&w, 0) - WORLD_STEP));
		w.vms[0].balloon.actual_bytes = world_target(&w, 0);
		for (size_t i = 0; i < 3; i++) {
			world_look(&w, 90);
			CU_ASSERT(w.plan.effect_count == 0 && world_target(&w, 0) == 0);
		}
		world_look(&w, 90);
		CU_ASSERT_FATAL(told(&w, EFFECT_NOTHING_FREED));
		CU_ASSERT(effect(&w)->freed_bytes == 0 && effect(&w)->expected_bytes == effect(&w)->asked_bytes);
		CU_ASSERT(effect(&w)->asked_bytes <= WORLD_STEP);
		for (size_t i = 0; i < 599; i++) {
			world_look(&w, 90);
			CU_ASSERT(w.plan.effect_count == 0 && world_target(&w, 0) == 0);
			CU_ASSERT_EQUAL(w.plan.vms[0].block, BLOCK_NO_EFFECT);
		}
	}
	world_done(&w);
}

static void test_next_step_waits_for_the_effect_while_there_is_time(void)
{
	static const struct {
		const char *what;
		unsigned int percent;
		bool uncounted;
		unsigned int seconds; /* from step to step */
	} cases[] = {
		{ "as long as it takes to see", 90, false, 4 },
		{ "no longer than ten, where nobody looks", 90, true, 10 },
		{ "not at all in need", 50, false, 2 },
		{ "nor for what is too little to see", 90, false, 2 },
	};

	for (size_t c = 0; c < ARRAY_SIZE(cases); c++) {
		struct world w;
		unsigned int steps = 0;

		world_one_guest(&w);
		w.guests[0].uncounted = cases[c].uncounted;
		if (c == 3) { /* steps of 20 MiB */
			w.limits.step_percent = 1;
			w.vms[0].balloon.max_bytes = w.vms[0].balloon.actual_bytes = 2000 * MIB;
			w.vms[0].ram_resident_bytes = 2000 * MIB;
			w.guests[0].used = 100 * MIB;
			balloon_policy_set_limits(w.policy, &w.limits);
		}
		for (unsigned int i = 0; i <= 2 * cases[c].seconds; i++) {
			world_look_and_obey(&w, cases[c].percent, 1);
			steps += world_target(&w, 0) != 0;
			UNIT_CASE(cases[c].what, (world_target(&w, 0) != 0) == (i % cases[c].seconds == 0));
		}
		UNIT_CASE(cases[c].what, steps == 3);
		world_done(&w);
	}
}

static void test_effect_is_not_judged_by_what_is_not_known(void)
{
	static const struct {
		const char *what;
		uint64_t resident_mib, after_mib;
		unsigned int effects;
	} cases[] = {
		{ "never counted", 0, 4096, 0 },
		{ "never touched", 3000, 3000, 0 },
		{ "too little above what is left", 3892 + 63, 3892 + 63, 0 },
		{ "enough", 3892 + 65, 3892 + 65, 1 },
		{ "a quarter is something", 4096, 4096 - 52, 1 },
	};

	for (size_t c = 0; c < ARRAY_SIZE(cases); c++) {
		struct world w;
		unsigned int effects = 0, freed = 0;

		world_one_guest(&w);
		w.guests[0].frees_nothing = true;
		w.vms[0].ram_resident_bytes = cases[c].resident_mib * MIB;
		world_look(&w, 50);
		CU_ASSERT(world_target(&w, 0) != 0);
		w.vms[0].balloon.actual_bytes = world_target(&w, 0);
		w.vms[0].ram_resident_bytes = cases[c].after_mib * MIB;
		w.guests[0].mute = true;
		for (size_t i = 0; i < 10; i++) {
			world_look(&w, 50);
			effects += (unsigned int)w.plan.effect_count;
			freed += told(&w, EFFECT_ARRIVED);
		}
		UNIT_CASE(cases[c].what, effects == cases[c].effects);
		UNIT_CASE(cases[c].what, freed == (cases[c].after_mib == 4096 - 52));
		world_done(&w);
	}
}

static void test_cuts_are_judged_once_somebody_counts(void)
{
	struct world w;
	unsigned int tells = 0;

	world_one_guest(&w);
	w.guests[0].uncounted = true;
	w.vms[0].ram_resident_ns = 0;
	w.vms[0].rss_anon_bytes = WORLD_FULL;
	for (size_t i = 0; i < 40; i++) {
		world_look(&w, 50);
		if (world_target(&w, 0))
			w.vms[0].balloon.actual_bytes = world_target(&w, 0);
		w.guests[0].uncounted = i < 1;
		tells += told(&w, EFFECT_NOTHING_FREED);
	}
	CU_ASSERT_EQUAL(tells, 1);
	world_done(&w);
}

/* In need steps follow each other faster than can be seen what they bring: they are judged together. */
static void test_cuts_are_judged_together(void)
{
	struct world w;
	uint64_t asked = 0;

	world_one_guest(&w);
	for (size_t i = 0; i < 40 && !asked; i++) {
		world_look(&w, 50);
		if (world_target(&w, 0))
			w.vms[0].balloon.actual_bytes = world_target(&w, 0);
		asked = told(&w, EFFECT_NOTHING_FREED) ? effect(&w)->asked_bytes : 0;
	}
	CU_ASSERT(asked > 3 * WORLD_STEP);
	CU_ASSERT_EQUAL(asked, WORLD_FULL - world_actual(&w, 0));
	world_done(&w);
}

/* What was given back before it was judged is not judged. */
static void test_cut_that_was_undone_is_forgotten(void)
{
	struct world w;

	world_one_guest(&w);
	world_look_and_obey(&w, 50, 1);
	w.guests[0].used = world_actual(&w, 0);
	world_look_and_obey(&w, 50, 1);
	CU_ASSERT_EQUAL(world_actual(&w, 0), WORLD_FULL);
	w.guests[0].used = 1000 * MIB;
	w.vms[0].ram_resident_bytes = 3000 * MIB; /* of what is cut next, nothing is resident */
	for (size_t i = 0; i < 30; i++) {
		world_look_and_obey(&w, 50, 1);
		w.guests[0].mute = world_actual(&w, 0) < WORLD_FULL;
		CU_ASSERT_EQUAL(w.plan.effect_count, 0);
	}
	CU_ASSERT(w.guests[0].mute);
	world_done(&w);
}

/* What a balloon without effect took is of no use to anybody: a host with room gives it back. */
static void test_no_effect_is_let_go_when_there_is_room(void)
{
	struct world w;

	world_one_guest(&w);
	w.guests[0].mute = true;
	w.vms[0].balloon.stats_ns = w.s.taken_ns;
	world_look(&w, 50);
	CU_ASSERT(world_target(&w, 0) != 0);
	w.vms[0].balloon.actual_bytes = world_target(&w, 0);
	for (size_t i = 0; i < 12; i++)
		world_look(&w, 50);
	CU_ASSERT_EQUAL(w.plan.vms[0].block, BLOCK_NO_EFFECT);
	world_look(&w, 2000);
	CU_ASSERT_EQUAL(world_target(&w, 0), WORLD_FULL);
	world_done(&w);
}

int main(void)
{
	CU_TestInfo tests[] = {
		{ "test_stalled_balloon_is_set_aside_withdrawn_and_tried_again",
		  test_stalled_balloon_is_set_aside_withdrawn_and_tried_again },
		{ "test_stall_is_told_of_whom_it_is", test_stall_is_told_of_whom_it_is },
		{ "test_slow_balloon_is_not_stalled", test_slow_balloon_is_not_stalled },
		{ "test_balloon_that_moves_again_is_told", test_balloon_that_moves_again_is_told },
		{ "test_paused_guest_is_not_stalled", test_paused_guest_is_not_stalled },
		{ "test_balloon_that_does_not_let_go_is_told", test_balloon_that_does_not_let_go_is_told },
		{ "test_stalled_guest_that_objects_gets_back_what_it_gave",
		  test_stalled_guest_that_objects_gets_back_what_it_gave },
		{ "test_memory_that_came_back_is_told", test_memory_that_came_back_is_told },
		{ "test_balloon_that_frees_nothing_is_left_alone", test_balloon_that_frees_nothing_is_left_alone },
		{ "test_next_step_waits_for_the_effect_while_there_is_time",
		  test_next_step_waits_for_the_effect_while_there_is_time },
		{ "test_effect_is_not_judged_by_what_is_not_known", test_effect_is_not_judged_by_what_is_not_known },
		{ "test_cuts_are_judged_once_somebody_counts", test_cuts_are_judged_once_somebody_counts },
		{ "test_cuts_are_judged_together", test_cuts_are_judged_together },
		{ "test_cut_that_was_undone_is_forgotten", test_cut_that_was_undone_is_forgotten },
		{ "test_no_effect_is_let_go_when_there_is_room", test_no_effect_is_let_go_when_there_is_room },
		CU_TEST_INFO_NULL,
	};

	return unit_main("balloon/effect", tests);
}
