/* balloon/policy: the rules, one at a time, over pictures made by hand. Long runs are in test_balloon_worlds.c. */
#include "balloon/policy.h"

#include "tests/unit/balloon_world.h"

/* ---- taking ---- */

static void test_states_take_what_their_row_says(void)
{
	static const bool takes[HOST_STATES] = { false, false, true, true, true };

	for (int state = HOST_HIGH; state < HOST_STATES; state++) {
		struct world w;

		world_one_guest(&w);
		world_look(&w, world_percent[state]);
		CU_ASSERT_EQUAL(w.plan.ladder->state, (enum host_state)state);
		CU_ASSERT_EQUAL(world_target(&w, 0), takes[state] ? world_in_mib(WORLD_FULL - WORLD_STEP) : 0);
		CU_ASSERT_EQUAL(w.plan.budget_bytes != 0, takes[state]);
		CU_ASSERT_EQUAL(w.plan.vms[0].entitled_bytes != 0, takes[state]);
		world_look(&w, 600);
		CU_ASSERT_EQUAL(w.plan.budget_bytes, 0);
		world_done(&w);
	}
}

static void test_soft_takes_idle_memory_down_to_what_is_entitled(void)
{
	struct world w;
	uint64_t held = WORLD_FULL, before;

	world_one_guest(&w);
	for (size_t i = 0; i < 48; i++) {
		world_look(&w, 90);
		/* What it has and what is free, less what is to be free: 150 % of min_free and an eighth. */
		CU_ASSERT_EQUAL(w.plan.budget_bytes, held + 900 * MIB - 1500 * MIB - 1500 * MIB / 8);
		CU_ASSERT(w.plan.vms[0].entitled_bytes + 1 >= w.plan.budget_bytes ||
			  w.plan.vms[0].entitled_bytes == 2048 * MIB);
		before = world_actual(&w, 0);
		world_obey(&w);
		held = world_actual(&w, 0);
		CU_ASSERT(before - held <= WORLD_STEP);
	}
	/* In spite of what is missing still: what it uses, and the fifth that it keeps. */
	CU_ASSERT(held >= 2560 * MIB - MIB && held <= 2560 * MIB + 16 * MIB);
	CU_ASSERT_EQUAL(world_target(&w, 0), 0);
	CU_ASSERT_STRING_EQUAL(w.plan.vms[0].why, "nothing idle");
	world_done(&w);
}

static void test_hard_takes_half_of_what_guests_keep(void)
{
	struct world w;

	world_one_guest(&w);
	world_look_and_obey(&w, 50, 24);
	CU_ASSERT(world_actual(&w, 0) >= 2304 * MIB - MIB && world_actual(&w, 0) <= 2304 * MIB + 16 * MIB);
	world_done(&w);
}

static void test_soft_leaves_what_is_only_promised(void)
{
	struct world w;

	world_one_guest(&w);
	w.vms[0].ram_resident_bytes = 1000 * MIB; /* less than it needs: nothing comes of a balloon */
	world_look(&w, 90);
	CU_ASSERT_EQUAL(world_target(&w, 0), 0);
	world_look(&w, 50); /* now it is kept from having more */
	CU_ASSERT_EQUAL(world_target(&w, 0), world_in_mib(WORLD_FULL - WORLD_STEP));
	world_done(&w);
}

/* ... unless that is above a limit. */
static void test_soft_brings_down_to_a_limit(void)
{
	struct world w;

	world_one_guest(&w);
	w.vms[0].ram_resident_bytes = 1000 * MIB;
	w.vms[0].limit_bytes = 4000 * MIB;
	world_look(&w, 90);
	CU_ASSERT(world_target(&w, 0) != 0 && world_target(&w, 0) <= 4000 * MIB);
	world_obey(&w);
	for (size_t i = 0; i < 20; i++) {
		world_look(&w, 90);
		CU_ASSERT_EQUAL(world_target(&w, 0), 0);
	}
	world_done(&w);
}

/* What a guest used lately may be used again. */
static void test_soft_believes_a_smaller_working_set_slowly(void)
{
	struct world w;

	world_one_guest(&w);
	w.guests[0].used = 3400 * MIB;
	world_look(&w, 600);
	w.guests[0].used = 100 * MIB;
	world_look(&w, 90);
	CU_ASSERT_EQUAL(world_target(&w, 0), 0);
	for (size_t i = 0; i < 10; i++)
		world_look(&w, 90);
	CU_ASSERT(world_actual(&w, 0) == WORLD_FULL && w.plan.vms[0].block == BLOCK_NONE);
	world_done(&w);
}

static void test_bounds_of_taking(void)
{
	static const struct {
		const char *what;
		unsigned int max_percent;
		uint64_t used, reservation, limit, floor;
	} cases[] = {
		{ "the most that a balloon may take", 30, 0, 0, 0, WORLD_FULL / 100 * 70 },
		{ "and by default", 65, 0, 0, 0, WORLD_FULL / 100 * 35 },
		{ "a reservation", 65, 0, 3000 * MIB + 1, 0, 3000 * MIB + 1 },
		{ "all of it reserved", 65, 0, WORLD_FULL, 0, WORLD_FULL },
		{ "more than all of it", 65, 0, 2 * WORLD_FULL, 0, WORLD_FULL },
		{ "a limit below what is used", 65, 3600 * MIB, 0, 3000 * MIB, 3000 * MIB },
		{ "a limit below what a balloon may take", 65, 0, 0, 800 * MIB + 4096, 800 * MIB + 4096 },
		{ "a limit below the reservation", 65, 0, 3000 * MIB, 2500 * MIB, 2500 * MIB },
		{ "what is used", 95, 3000 * MIB, 0, 0, 3375 * MIB },
		{ "a little", 95, 0, 0, 0, WORLD_FULL / 100 * 5 },
	};

	for (size_t c = 0; c < ARRAY_SIZE(cases); c++) {
		struct world w;

		world_one_guest(&w);
		w.limits.max_percent = cases[c].max_percent;
		balloon_policy_set_limits(w.policy, &w.limits);
		w.guests[0].used = cases[c].used;
		w.vms[0].reservation_bytes = cases[c].reservation;
		w.vms[0].limit_bytes = cases[c].limit;
		world_look_and_obey(&w, 0, 60);
		UNIT_CASE(cases[c].what, world_actual(&w, 0) >= cases[c].floor);
		UNIT_CASE(cases[c].what, world_actual(&w, 0) < cases[c].floor + 17 * MIB);
		world_done(&w);
	}
}

static void test_next_step_waits_for_balloon_and_guest(void)
{
	struct world w;

	world_one_guest(&w);
	world_look(&w, 90);
	CU_ASSERT(world_target(&w, 0) != 0);
	world_look(&w, 90); /* the balloon is on its way */
	CU_ASSERT_EQUAL(world_target(&w, 0), 0);
	w.vms[0].balloon.actual_bytes = world_in_mib(WORLD_FULL - WORLD_STEP) + 17 * MIB;
	world_look(&w, 90);
	CU_ASSERT_EQUAL(world_target(&w, 0), 0);
	w.vms[0].balloon.actual_bytes = w.vms[0].ram_resident_bytes = world_in_mib(WORLD_FULL - WORLD_STEP);
	world_look(&w, 90); /* there; what the guest says is from before that was known */
	CU_ASSERT_EQUAL(world_target(&w, 0), 0);
	w.guests[0].mute = true;
	world_look(&w, 90);
	CU_ASSERT_EQUAL(world_target(&w, 0), 0);
	w.guests[0].mute = false;
	world_look(&w, 90);
	CU_ASSERT_EQUAL(world_target(&w, 0), world_in_mib(world_in_mib(WORLD_FULL - WORLD_STEP) - WORLD_STEP));
	world_done(&w);
}

/* Statistics of a full guest, seen together with a balloon that has arrived. */
static void test_statistics_of_before_do_not_deepen_the_next_step(void)
{
	struct world w;
	uint64_t used = 3400 * MIB;

	world_one_guest(&w);
	w.guests[0].used = used;
	world_look(&w, 50);
	CU_ASSERT(world_target(&w, 0) != 0);
	world_obey(&w);
	w.guests[0].mute = true;
	w.vms[0].balloon.stats_ns = w.s.taken_ns + 1;
	w.vms[0].balloon.available_bytes = WORLD_FULL - used;
	world_decide(&w);
	CU_ASSERT_EQUAL(world_target(&w, 0), 0);
	w.guests[0].mute = false;
	world_look_and_obey(&w, 50, 10);
	CU_ASSERT(world_actual(&w, 0) >= used + (used / 4) / 2 - MIB);
	world_done(&w);
}

static void test_dead_band_is_not_worth_a_command(void)
{
	struct world w;
	uint64_t floor = 2560 * MIB;

	for (int64_t off = -8; off <= 8; off += 8) {
		world_one_guest(&w);
		w.vms[0].balloon.actual_bytes = w.vms[0].ram_resident_bytes =
			(uint64_t)((int64_t)(floor + 16 * MIB) + off * (int64_t)MIB);
		world_look(&w, 70);
		CU_ASSERT_EQUAL(world_target(&w, 0) != 0, off >= 0);
		world_done(&w);
	}
}

static void test_others_give_faster_while_a_guest_starves(void)
{
	struct world w;
	size_t rich;

	world_one_guest(&w);
	rich = world_add(&w, WORLD_FULL);
	w.vms[0].balloon.actual_bytes = 2200 * MIB;
	w.guests[0].used = 2199 * MIB;
	w.guests[rich].used = 100 * MIB;
	world_look(&w, 90);
	CU_ASSERT_EQUAL(w.plan.vms[0].veto, VETO_AVAILABLE);
	CU_ASSERT_EQUAL(world_target(&w, rich), world_in_mib(WORLD_FULL - 8 * WORLD_STEP));
	world_done(&w);
}

static void test_idle_guests_give_and_busy_ones_do_not(void)
{
	struct world w;
	size_t busy;

	world_one_guest(&w);
	w.guests[0].used = 500 * MIB;
	busy = world_add(&w, WORLD_FULL);
	w.guests[busy].used = 3400 * MIB;
	world_look_and_obey(&w, 70, 12);
	CU_ASSERT(world_actual(&w, 0) < WORLD_FULL - 2 * WORLD_STEP);
	CU_ASSERT_EQUAL(world_actual(&w, busy), WORLD_FULL);
	world_done(&w);
}

static void test_shares_decide_among_equals(void)
{
	struct world w;
	size_t other;

	world_one_guest(&w);
	other = world_add(&w, WORLD_FULL);
	w.vms[other].shares = 2000;
	w.limits.max_percent = 95;
	balloon_policy_set_limits(w.policy, &w.limits);
	for (size_t i = 0; i < 2; i++) {
		w.guests[i].used = 0;
		w.vms[i].ram_resident_bytes = 3000 * MIB;
	}
	world_look(&w, 0);
	/* 6000 MiB less what is to be free. 64 MiB of each are kept and pay no tax: 48 + w / 4 and 48 + w / 2. */
	CU_ASSERT_EQUAL(w.plan.budget_bytes, 6000 * MIB - 1500 * MIB - 1500 * MIB / 8);
	CU_ASSERT_EQUAL(world_in_mib(w.plan.vms[0].entitled_bytes), 1454 * MIB);
	CU_ASSERT_EQUAL(world_in_mib(w.plan.vms[other].entitled_bytes), 2859 * MIB);
	world_done(&w);
}

/* Nobody is kept room for what it neither has nor needs, but for its reservation. */
static void test_entitled_to_what_is_held_needed_or_reserved(void)
{
	struct world w;

	world_one_guest(&w);
	world_add(&w, WORLD_FULL);
	w.guests[0].used = 500 * MIB;
	w.guests[1].used = 0;
	w.vms[0].ram_resident_bytes = 1500 * MIB;
	w.vms[0].shares = 100000;
	world_look(&w, 90);
	CU_ASSERT_EQUAL(w.plan.vms[0].entitled_bytes, 1500 * MIB);
	w.guests[0].used = 1600 * MIB;
	world_look(&w, 90);
	world_look(&w, 90); /* its use rises no more */
	CU_ASSERT_EQUAL(world_in_mib(w.plan.vms[0].entitled_bytes), 2000 * MIB);
	w.vms[0].shares = 1;
	w.vms[0].reservation_bytes = 3000 * MIB;
	world_look(&w, 0);
	CU_ASSERT_EQUAL(w.plan.vms[0].entitled_bytes, 3000 * MIB);
	world_done(&w);
}

/* ---- what is not moved ---- */

static void block_off(struct vm_snapshot *vm) { vm->balloon_allowed = false; }
static void block_driver(struct vm_snapshot *vm) { vm->balloon.driver = NULL; }
static void block_device(struct vm_snapshot *vm) { vm->balloon.device = BALLOON_DEVICE_ABSENT; }
static void block_unknown(struct vm_snapshot *vm) { vm->balloon.device = BALLOON_DEVICE_UNKNOWN; }
static void block_size(struct vm_snapshot *vm) { vm->balloon.max_bytes = 0; }
static void block_actual(struct vm_snapshot *vm) { vm->balloon.actual_bytes = 0; }
static void block_none(struct vm_snapshot *vm) { vm->balloon.stats = GUEST_STATS_NONE; }
static void block_stale(struct vm_snapshot *vm) { vm->balloon.stats = GUEST_STATS_STALE; }
static void block_absurd(struct vm_snapshot *vm) { vm->balloon.stats = GUEST_STATS_ABSURD; }
static void block_migrating(struct vm_snapshot *vm) { vm->migrating = true; }
static void block_paused(struct vm_snapshot *vm) { vm->running = false; }

static const struct blocked {
	void (*make)(struct vm_snapshot *vm);
	enum balloon_block block;
	const char *why;
} blocked[] = {
	{ block_off, BLOCK_OFF, "off by configuration" },
	{ block_driver, BLOCK_NO_DRIVER, "nobody reaches its balloon" },
	{ block_device, BLOCK_NO_DEVICE, "no balloon device" },
	{ block_unknown, BLOCK_NO_DEVICE, "no balloon device" },
	{ block_size, BLOCK_NO_DEVICE, "no balloon device" },
	{ block_actual, BLOCK_NO_DEVICE, "no balloon device" },
	{ block_none, BLOCK_NO_STATS, "no good statistics" },
	{ block_stale, BLOCK_NO_STATS, "no good statistics" },
	{ block_absurd, BLOCK_NO_STATS, "no good statistics" },
	{ block_migrating, BLOCK_MIGRATING, "migrating" },
	{ block_paused, BLOCK_PAUSED, "paused" },
};

/* From the start, and after a step. The VM beside it gives what it can. */
static void test_blocked_vms_are_left_alone_and_said(void)
{
	for (size_t c = 0; c < ARRAY_SIZE(blocked) * 2; c++) {
		const struct blocked *b = &blocked[c / 2];
		struct world w;
		size_t beside;

		world_one_guest(&w);
		beside = world_add(&w, WORLD_FULL);
		world_look_and_obey(&w, c % 2 ? 50 : 200, 1);
		b->make(&w.vms[0]);
		for (size_t i = 0; i < 30; i++) {
			world_look_and_obey(&w, 0, 1);
			UNIT_CASE(b->why, world_target(&w, 0) == 0 && w.plan.vms[0].block == b->block);
			UNIT_CASE(b->why, strcmp(w.plan.vms[0].why, b->why) == 0);
			UNIT_CASE(b->why, strcmp(balloon_block_name(b->block), b->why) == 0);
		}
		CU_ASSERT(world_actual(&w, beside) < WORLD_FULL - 4 * WORLD_STEP);
		CU_ASSERT(balloon_policy_idle_bytes(w.policy) < 64 * MIB);
		world_done(&w);
	}
}

static void test_block_ends_with_its_reason(void)
{
	struct world w;

	world_one_guest(&w);
	w.vms[0].running = false;
	world_look_and_obey(&w, 50, 20);
	w.vms[0].running = true;
	world_look(&w, 50);
	CU_ASSERT_EQUAL(w.plan.vms[0].block, BLOCK_NONE);
	CU_ASSERT_EQUAL(world_target(&w, 0), world_in_mib(WORLD_FULL - WORLD_STEP));
	world_done(&w);
}

/* What a guest that tells nothing was left without is given back as the host gets room. */
static void test_high_gives_back_to_the_silent(void)
{
	struct world w;

	world_one_guest(&w);
	world_look_and_obey(&w, 50, 6);
	CU_ASSERT(world_actual(&w, 0) < WORLD_FULL - 2 * WORLD_STEP);
	w.vms[0].balloon.stats = GUEST_STATS_NONE;
	world_look_and_obey(&w, 2000, 1);
	CU_ASSERT_EQUAL(world_target(&w, 0), 0); /* held off */
	world_look_and_obey(&w, 2000, 40);
	CU_ASSERT_EQUAL(world_actual(&w, 0), WORLD_FULL);
	CU_ASSERT_EQUAL(world_target(&w, 0), 0);
	world_done(&w);
}

/* ---- sums ---- */

static void test_missing_reservations_are_told(void)
{
	struct world w;
	uint64_t least_free = 320 * MIB;

	world_new(&w, 8 * GIB);
	world_add(&w, WORLD_FULL);
	world_add(&w, WORLD_FULL);
	w.vms[0].reservation_bytes = WORLD_FULL;
	w.vms[1].reservation_bytes = WORLD_FULL - least_free;
	world_look(&w, 200);
	CU_ASSERT_EQUAL(w.plan.missing_bytes, 0);
	w.vms[1].reservation_bytes += 1;
	world_look(&w, 200);
	CU_ASSERT_EQUAL(w.plan.missing_bytes, 1);
	w.vms[1].reservation_bytes = 100 * WORLD_FULL; /* no more than it can have */
	world_look(&w, 200);
	CU_ASSERT_EQUAL(w.plan.missing_bytes, least_free);
	w.vms[1].balloon.driver = NULL; /* reachable or not */
	world_look(&w, 200);
	CU_ASSERT_EQUAL(w.plan.missing_bytes, least_free);
	w.vms[1].balloon.max_bytes = 0; /* of which nobody knows how much that is */
	w.vms[1].reservation_bytes = WORLD_FULL + MIB;
	world_look(&w, 200);
	CU_ASSERT_EQUAL(w.plan.missing_bytes, least_free + MIB);
	world_done(&w);
}

static void test_idle_bytes_are_what_soft_would_take(void)
{
	struct world w;
	uint64_t idle;

	world_one_guest(&w);
	world_look(&w, 600);
	idle = balloon_policy_idle_bytes(w.policy);
	CU_ASSERT(idle > 1535 * MIB && idle < 1537 * MIB);
	w.vms[0].ram_resident_bytes = 2000 * MIB;
	world_look(&w, 600);
	CU_ASSERT_EQUAL(balloon_policy_idle_bytes(w.policy), 0);
	w.vms[0].ram_resident_bytes = WORLD_FULL;
	w.vms[0].reservation_bytes = WORLD_FULL - MIB;
	world_look(&w, 600);
	CU_ASSERT_EQUAL(balloon_policy_idle_bytes(w.policy), MIB);
	world_done(&w);
}

/* rss is what there is until RAM was looked at. */
static void test_resident_memory_by_rss_until_it_was_counted(void)
{
	struct world w;

	world_one_guest(&w);
	w.guests[0].used = 100 * MIB;
	world_look(&w, 600);
	w.vms[0].ram_resident_bytes = 0;
	w.vms[0].rss_anon_bytes = 1500 * MIB;
	w.vms[0].rss_shmem_bytes = 500 * MIB;
	world_look(&w, 600);
	CU_ASSERT_EQUAL(balloon_policy_idle_bytes(w.policy), 0);
	w.vms[0].ram_resident_ns = 0;
	w.s.mem_available_bytes = 6000 * MIB;
	world_decide(&w);
	CU_ASSERT_EQUAL(balloon_policy_idle_bytes(w.policy), 2000 * MIB - WORLD_FULL / 100 * 35);
	world_done(&w);
}

int main(void)
{
	CU_TestInfo tests[] = {
		{ "test_states_take_what_their_row_says", test_states_take_what_their_row_says },
		{ "test_soft_takes_idle_memory_down_to_what_is_entitled",
		  test_soft_takes_idle_memory_down_to_what_is_entitled },
		{ "test_hard_takes_half_of_what_guests_keep", test_hard_takes_half_of_what_guests_keep },
		{ "test_soft_leaves_what_is_only_promised", test_soft_leaves_what_is_only_promised },
		{ "test_soft_brings_down_to_a_limit", test_soft_brings_down_to_a_limit },
		{ "test_soft_believes_a_smaller_working_set_slowly", test_soft_believes_a_smaller_working_set_slowly },
		{ "test_entitled_to_what_is_held_needed_or_reserved", test_entitled_to_what_is_held_needed_or_reserved },
		{ "test_bounds_of_taking", test_bounds_of_taking },
		{ "test_next_step_waits_for_balloon_and_guest", test_next_step_waits_for_balloon_and_guest },
		{ "test_statistics_of_before_do_not_deepen_the_next_step",
		  test_statistics_of_before_do_not_deepen_the_next_step },
		{ "test_dead_band_is_not_worth_a_command", test_dead_band_is_not_worth_a_command },
		{ "test_others_give_faster_while_a_guest_starves", test_others_give_faster_while_a_guest_starves },
		{ "test_idle_guests_give_and_busy_ones_do_not", test_idle_guests_give_and_busy_ones_do_not },
		{ "test_shares_decide_among_equals", test_shares_decide_among_equals },
		{ "test_blocked_vms_are_left_alone_and_said", test_blocked_vms_are_left_alone_and_said },
		{ "test_block_ends_with_its_reason", test_block_ends_with_its_reason },
		{ "test_high_gives_back_to_the_silent", test_high_gives_back_to_the_silent },
		{ "test_missing_reservations_are_told", test_missing_reservations_are_told },
		{ "test_idle_bytes_are_what_soft_would_take", test_idle_bytes_are_what_soft_would_take },
		{ "test_resident_memory_by_rss_until_it_was_counted", test_resident_memory_by_rss_until_it_was_counted },
		CU_TEST_INFO_NULL,
	};

	return unit_main("balloon/policy", tests);
}
