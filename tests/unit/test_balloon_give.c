/* balloon/policy: what guests that object get back, and what a reservation gives. */
#include "balloon/policy.h"

#include "tests/unit/balloon_world.h"

/* ---- objections ---- */

static void object_available(struct vm_balloon *b) { b->available_bytes = b->actual_bytes / 25; }
static void object_swap(struct vm_balloon *b)
{
	b->swap_in_bytes += 65 * PAGE_BYTES;
	b->swap_out_bytes += 4096 * MIB; /* there is more to come */
}

static void object_faults(struct vm_balloon *b) { b->major_faults += 65; }
static void object_oom(struct vm_balloon *b) { b->oom_kills++; }

static const struct objection {
	void (*make)(struct vm_balloon *b);
	enum balloon_veto veto;
	const char *why;
} objections[] = {
	{ object_available, VETO_AVAILABLE, "guest has little available" },
	{ object_swap, VETO_SWAP_IN, "guest swaps in" },
	{ object_faults, VETO_FAULTS, "guest has major faults" },
	{ object_oom, VETO_OOM, "guest killed for memory" },
};

/* The guest tells how it is, and that it is not well. */
static void look_objecting(struct world *w, size_t i, const struct objection *o, unsigned int percent)
{
	struct vm_balloon *b = &w->vms[i].balloon;

	b->stats_ns = w->s.taken_ns + NSEC_PER_SEC / 2;
	b->available_bytes = b->actual_bytes > w->guests[i].used ? b->actual_bytes - w->guests[i].used : 0;
	o->make(b);
	w->guests[i].mute = true;
	world_look(w, percent);
	w->guests[i].mute = false;
}

/* All that was taken comes back in the tick of the objection, in whatever state the host is; and nothing is taken after. */
static void test_objection_brings_back_what_was_taken_at_once(void)
{
	for (size_t c = 0; c < ARRAY_SIZE(objections) * HOST_STATES; c++) {
		const struct objection *o = &objections[c / HOST_STATES];
		enum host_state state = (enum host_state)(c % HOST_STATES);
		struct world w;
		uint64_t taken;

		world_one_guest(&w);
		world_look_and_obey(&w, 50, 4);
		taken = WORLD_FULL - world_actual(&w, 0);
		CU_ASSERT(taken >= WORLD_STEP);
		look_objecting(&w, 0, o, world_percent[state]);
		UNIT_CASE(o->why, w.plan.ladder->state == state && w.plan.vms[0].veto == o->veto);
		UNIT_CASE(o->why, world_target(&w, 0) == WORLD_FULL && strcmp(w.plan.vms[0].why, o->why) == 0);
		UNIT_CASE(o->why, strcmp(balloon_veto_name(o->veto), o->why) == 0);
		world_obey(&w);
		for (size_t i = 0; i < 9; i++) {
			world_look(&w, 0);
			UNIT_CASE(o->why, world_target(&w, 0) == 0);
		}
		world_look(&w, 0); /* ten seconds later */
		UNIT_CASE(o->why, world_target(&w, 0) != 0 && world_target(&w, 0) < WORLD_FULL);
		world_done(&w);
	}
}

/* While the balloon is on its way, what it has not taken yet is not given on top of what it has. Not the first objection: a
 * guest that has little available is entitled to more. */
static void test_objection_on_the_way_stops_and_gives_no_more(void)
{
	for (size_t c = 1; c < ARRAY_SIZE(objections); c++) {
		struct world w;
		uint64_t first;

		world_one_guest(&w);
		w.guests[0].used = 1000 * MIB;
		world_look(&w, 50);
		CU_ASSERT(world_target(&w, 0) != 0);
		look_objecting(&w, 0, &objections[c], 0); /* before it has moved */
		UNIT_CASE(objections[c].why, world_target(&w, 0) == WORLD_FULL);
		world_done(&w);

		world_one_guest(&w);
		world_add(&w, WORLD_FULL); /* so that the first is entitled to no more than it has */
		w.guests[0].used = w.guests[1].used = 1000 * MIB;
		w.vms[0].ram_resident_bytes = w.vms[0].balloon.actual_bytes = 3000 * MIB;
		world_look(&w, 0);
		first = world_target(&w, 0);
		CU_ASSERT(first != 0 && first < 3000 * MIB);
		w.vms[0].balloon.actual_bytes = 2950 * MIB;
		look_objecting(&w, 0, &objections[c], 0);
		UNIT_CASE(objections[c].why, world_target(&w, 0) == 3000 * MIB);
		world_done(&w);
	}
}

/* No memory at all, nothing was taken, and it has what it is entitled to: it is left alone, and not taken from. */
static void test_objection_that_cannot_be_helped_is_still_heard(void)
{
	for (size_t c = 1; c < ARRAY_SIZE(objections); c++) {
		struct world w;

		world_one_guest(&w);
		world_add(&w, WORLD_FULL);
		w.guests[0].used = w.guests[1].used = 100 * MIB;
		w.vms[0].ram_resident_bytes = w.vms[0].balloon.actual_bytes = 3500 * MIB - 4096;
		world_look(&w, 200); /* counters are rates only from the second look on */
		for (unsigned int i = 0; i < 6; i++) {
			look_objecting(&w, 0, &objections[c], i % 2 * 50);
			UNIT_CASE(objections[c].why, world_target(&w, 0) == 0 && w.plan.vms[0].veto == objections[c].veto);
			UNIT_CASE(objections[c].why, strcmp(w.plan.vms[0].why, objections[c].why) == 0);
			/* What is not taken from it is not promised to others. */
			UNIT_CASE(objections[c].why, w.plan.vms[0].entitled_bytes == 3500 * MIB - 4096);
		}
		world_done(&w);
	}
}

static void test_whole_guest_that_objects_is_not_taken_from(void)
{
	for (size_t c = 0; c < ARRAY_SIZE(objections); c++) {
		struct world w;

		world_one_guest(&w);
		w.guests[0].used = 100 * MIB;
		world_look(&w, 200);
		for (size_t i = 0; i < 5; i++) {
			look_objecting(&w, 0, &objections[c], 0);
			UNIT_CASE(objections[c].why, world_target(&w, 0) == 0);
			/* There is nothing to give it, and so nobody else gets less for it. */
			UNIT_CASE(objections[c].why, w.plan.vms[0].veto == VETO_NONE);
		}
		world_look(&w, 0);
		UNIT_CASE(objections[c].why, world_target(&w, 0) != 0);
		world_done(&w);
	}
}

static void test_objection_does_not_help_above_a_limit(void)
{
	struct world w;

	world_one_guest(&w);
	world_look(&w, 200);
	w.vms[0].limit_bytes = 3000 * MIB + 4096;
	for (size_t i = 0; i < 30; i++) {
		look_objecting(&w, 0, &objections[i % ARRAY_SIZE(objections)], 0);
		world_obey(&w);
	}
	CU_ASSERT(world_actual(&w, 0) >= 3000 * MIB + 4096 && world_actual(&w, 0) < 3020 * MIB);
	world_done(&w);
}

static void test_counters_that_tell_nothing_are_no_objection(void)
{
	static const struct {
		const char *what;
		uint64_t then, now;
		uint64_t seconds;
		bool objects;
	} cases[] = {
		{ "not told, then told", BALLOON_UNTOLD, 1000000, 1, false },
		{ "told, then not", 0, BALLOON_UNTOLD, 1, false },
		{ "never told", BALLOON_UNTOLD, BALLOON_UNTOLD, 1, false },
		{ "gone back", 1000000, 500, 1, false },
		{ "jumped by half of all", 0, UINT64_C(1) << 63, 1, true },
		{ "as before", 1000, 1000, 1, false },
		{ "a few in a second", 1000, 1000 + 16, 1, false },
		{ "one more than that", 1000, 1000 + 17, 1, true },
		{ "a hundred in ten seconds", 1000, 1000 + 100, 10, false },
		{ "of another time", 1000, 9000, 0, false },
	};

	for (size_t c = 0; c < ARRAY_SIZE(cases); c++) {
		struct world w;
		struct vm_balloon *b = &w.vms[0].balloon;

		world_one_guest(&w);
		world_look_and_obey(&w, 50, 2);
		w.guests[0].mute = true;
		b->major_faults = cases[c].then;
		b->stats_ns = w.s.taken_ns + NSEC_PER_SEC / 2;
		world_look(&w, 50);
		b->major_faults = cases[c].now;
		b->stats_ns += cases[c].seconds ? cases[c].seconds * NSEC_PER_SEC : -NSEC_PER_SEC;
		w.s.taken_ns += cases[c].seconds * NSEC_PER_SEC;
		world_look(&w, 50);
		UNIT_CASE(cases[c].what, w.plan.vms[0].veto == (cases[c].objects ? VETO_FAULTS : VETO_NONE));
		world_done(&w);
	}
}

static void test_objections_have_an_order_and_end(void)
{
	struct world w;

	world_one_guest(&w);
	world_look_and_obey(&w, 50, 6);
	for (size_t i = 0; i < ARRAY_SIZE(objections); i++)
		objections[i].make(&w.vms[0].balloon);
	w.vms[0].balloon.stats_ns = w.s.taken_ns + NSEC_PER_SEC / 2;
	w.guests[0].mute = true;
	world_look(&w, 50);
	CU_ASSERT_EQUAL(w.plan.vms[0].veto, VETO_OOM);
	world_look(&w, 50); /* until the guest tells something else */
	CU_ASSERT_EQUAL(w.plan.vms[0].veto, VETO_OOM);
	w.vms[0].balloon.stats = GUEST_STATS_STALE;
	world_look(&w, 50);
	CU_ASSERT_EQUAL(w.plan.vms[0].veto, VETO_NONE);
	CU_ASSERT_EQUAL(world_target(&w, 0), 0);
	world_done(&w);
}

/* What is left is shared by those in need, by shares; an eighth of min_free stays. */
static void test_needy_guests_share_what_is_left(void)
{
	struct world w;
	uint64_t given[2];

	world_one_guest(&w);
	world_add(&w, WORLD_FULL);
	for (size_t i = 0; i < 2; i++) {
		w.vms[i].ram_resident_bytes = w.vms[i].balloon.actual_bytes = 2000 * MIB;
		w.guests[i].used = 1990 * MIB;
	}
	w.vms[1].shares = 3000;
	world_look(&w, 150);
	for (size_t i = 0; i < 2; i++)
		given[i] = world_target(&w, i) - 2000 * MIB;
	CU_ASSERT(given[0] >= 343 * MIB && given[0] <= 345 * MIB); /* a quarter of 1500 - 125 */
	CU_ASSERT(given[1] >= 1030 * MIB && given[1] <= 1032 * MIB);
	world_done(&w);
}

/* Faults may be of a program that starts: they bring no more than two steps. */
static void test_faults_bring_less_than_swapping(void)
{
	for (size_t c = 1; c < 3; c++) {
		struct world w;

		world_one_guest(&w);
		w.vms[0].ram_resident_bytes = w.vms[0].balloon.actual_bytes = 2000 * MIB;
		w.guests[0].used = 500 * MIB;
		world_look(&w, 150);
		look_objecting(&w, 0, &objections[c], 150);
		CU_ASSERT_EQUAL(world_target(&w, 0), c == 1 ? 3375 * MIB : world_in_mib(2000 * MIB + 2 * WORLD_STEP));
		world_done(&w);
	}
}

/* Nothing is free, nothing was taken from it; it is given what others give in the same tick. */
static void test_guest_with_less_than_its_right_gets_what_others_give(void)
{
	struct world w;

	world_one_guest(&w);
	world_add(&w, WORLD_FULL);
	w.vms[0].ram_resident_bytes = w.vms[0].balloon.actual_bytes = 2000 * MIB;
	w.guests[0].used = 1990 * MIB;
	w.guests[1].used = 100 * MIB;
	world_look(&w, 0);
	CU_ASSERT(w.plan.vms[0].entitled_bytes > 2000 * MIB + WORLD_STEP);
	CU_ASSERT_EQUAL(world_target(&w, 1), world_in_mib(WORLD_FULL - 8 * WORLD_STEP));
	CU_ASSERT(world_target(&w, 0) > 2000 * MIB + WORLD_STEP);
	CU_ASSERT(world_target(&w, 0) - 2000 * MIB <= WORLD_FULL - world_target(&w, 1) + MIB);
	world_done(&w);
}

/* What it was given since ends that. */
static void test_only_what_was_taken_last_comes_back(void)
{
	struct world w;

	world_one_guest(&w);
	world_add(&w, WORLD_FULL);
	w.guests[0].used = w.guests[1].used = 100 * MIB;
	world_look_and_obey(&w, 50, 8);
	CU_ASSERT(world_actual(&w, 0) < WORLD_FULL - 3 * WORLD_STEP);
	for (size_t i = 0; i < 20 && world_target(&w, 0) <= world_actual(&w, 0); i++)
		world_look(&w, 2000);
	CU_ASSERT(world_target(&w, 0) > world_actual(&w, 0));
	world_obey(&w);
	look_objecting(&w, 0, &objections[1], 0);
	CU_ASSERT_EQUAL(w.plan.vms[0].veto, VETO_SWAP_IN);
	CU_ASSERT_EQUAL(world_target(&w, 0), 0);
	world_done(&w);
}

/* A guest that looks at a few pages of its swap is not given all there is, nor all that was ever taken from it. */
static void test_objection_brings_no_more_than_it_could_use(void)
{
	static const struct {
		const char *what;
		uint64_t used_mib, in_swap_mib, target_mib;
		size_t objection;
	} cases[] = {
		{ "twice what it uses", 400, 0, 1000, 0 },
		{ "what it has in swap, and its part to keep", 1500, 700, 2750, 1 },
		{ "at least a step", 1000, 8, 2205, 1 },
	};

	for (size_t c = 0; c < ARRAY_SIZE(cases); c++) {
		struct world w;
		struct vm_balloon *b = &w.vms[0].balloon;

		world_one_guest(&w);
		b->actual_bytes = w.vms[0].ram_resident_bytes = (cases[c].used_mib < 1000 ? 400 : 2000) * MIB;
		w.guests[0].used = cases[c].used_mib * MIB;
		world_look(&w, 300);
		world_look(&w, 300);
		b->actual_bytes = (cases[c].used_mib < 1000 ? 400 : 2000) * MIB;
		w.guests[0].mute = true;
		b->stats_ns = w.s.taken_ns + NSEC_PER_SEC / 2;
		if (cases[c].objection == 1) {
			b->swap_in_bytes += MIB;
			b->swap_out_bytes = b->swap_in_bytes + cases[c].in_swap_mib * MIB;
		}
		world_look(&w, 300);
		UNIT_CASE(cases[c].what, w.plan.vms[0].veto == objections[cases[c].objection].veto);
		UNIT_CASE(cases[c].what, world_target(&w, 0) == cases[c].target_mib * MIB);
		world_done(&w);
	}
}

/* Not all that was ever taken, for a few pages that it looks at. */
static void test_objection_undoes_no_more_than_it_could_use(void)
{
	struct world w;
	struct vm_balloon *b = &w.vms[0].balloon;
	uint64_t had;

	world_one_guest(&w);
	w.guests[0].used = 1000 * MIB;
	world_look_and_obey(&w, 50, 12);
	had = world_actual(&w, 0);
	CU_ASSERT(had < WORLD_FULL - 4 * WORLD_STEP);
	w.guests[0].mute = true;
	b->stats_ns = w.s.taken_ns + NSEC_PER_SEC / 2;
	b->swap_in_bytes += MIB;
	b->swap_out_bytes = b->swap_in_bytes + 8 * MIB;
	world_look(&w, 0);
	CU_ASSERT_EQUAL(w.plan.vms[0].veto, VETO_SWAP_IN);
	CU_ASSERT_EQUAL(world_target(&w, 0), world_in_mib(had + WORLD_STEP));
	world_done(&w);
}

static void test_guest_with_much_free_is_not_short_of_it(void)
{
	static const struct {
		uint64_t free_bytes;
		bool objects;
	} cases[] = { { 2000 * MIB, false }, { 100 * MIB, true }, { BALLOON_UNTOLD, true } };

	for (size_t c = 0; c < ARRAY_SIZE(cases); c++) {
		struct world w;

		world_one_guest(&w);
		world_look_and_obey(&w, 50, 4);
		w.vms[0].balloon.free_bytes = cases[c].free_bytes;
		look_objecting(&w, 0, &objections[2], 50);
		CU_ASSERT_EQUAL(w.plan.vms[0].veto, cases[c].objects ? VETO_FAULTS : VETO_NONE);
		look_objecting(&w, 0, &objections[3], 50); /* but it does not kill for nothing */
		CU_ASSERT_EQUAL(w.plan.vms[0].veto, VETO_OOM);
		world_done(&w);
	}
}

/* ---- reservations ---- */

static void test_raised_reservation_is_given(void)
{
	struct world w;

	world_one_guest(&w);
	world_look_and_obey(&w, 50, 24);
	CU_ASSERT(world_actual(&w, 0) < 2400 * MIB);
	w.vms[0].reservation_bytes = 3000 * MIB + 4096;
	world_look(&w, 0);
	CU_ASSERT_EQUAL(world_target(&w, 0), 3001 * MIB);
	CU_ASSERT_STRING_EQUAL(w.plan.vms[0].why, "its reservation");
	world_obey(&w);
	for (size_t i = 0; i < 30; i++) {
		world_look_and_obey(&w, 0, 1);
		CU_ASSERT(world_actual(&w, 0) > 3000 * MIB);
	}
	/* An objection brings no less, and the reservation no less than an objection. */
	w.vms[0].reservation_bytes = 4000 * MIB;
	look_objecting(&w, 0, &objections[0], 0);
	CU_ASSERT(world_target(&w, 0) >= 4000 * MIB);
	w.vms[0].reservation_bytes = 3010 * MIB;
	look_objecting(&w, 0, &objections[0], 600);
	CU_ASSERT_EQUAL(world_target(&w, 0), WORLD_FULL);
	world_done(&w);
}

int main(void)
{
	CU_TestInfo tests[] = {
		{ "test_objection_brings_back_what_was_taken_at_once",
		  test_objection_brings_back_what_was_taken_at_once },
		{ "test_objection_on_the_way_stops_and_gives_no_more",
		  test_objection_on_the_way_stops_and_gives_no_more },
		{ "test_objection_that_cannot_be_helped_is_still_heard",
		  test_objection_that_cannot_be_helped_is_still_heard },
		{ "test_whole_guest_that_objects_is_not_taken_from", test_whole_guest_that_objects_is_not_taken_from },
		{ "test_objection_does_not_help_above_a_limit", test_objection_does_not_help_above_a_limit },
		{ "test_counters_that_tell_nothing_are_no_objection",
		  test_counters_that_tell_nothing_are_no_objection },
		{ "test_objections_have_an_order_and_end", test_objections_have_an_order_and_end },
		{ "test_needy_guests_share_what_is_left", test_needy_guests_share_what_is_left },
		{ "test_faults_bring_less_than_swapping", test_faults_bring_less_than_swapping },
		{ "test_guest_with_less_than_its_right_gets_what_others_give",
		  test_guest_with_less_than_its_right_gets_what_others_give },
		{ "test_only_what_was_taken_last_comes_back", test_only_what_was_taken_last_comes_back },
		{ "test_objection_brings_no_more_than_it_could_use", test_objection_brings_no_more_than_it_could_use },
		{ "test_objection_undoes_no_more_than_it_could_use", test_objection_undoes_no_more_than_it_could_use },
		{ "test_guest_with_much_free_is_not_short_of_it", test_guest_with_much_free_is_not_short_of_it },
		{ "test_raised_reservation_is_given", test_raised_reservation_is_given },
		CU_TEST_INFO_NULL,
	};

	return unit_main("balloon/give", tests);
}
