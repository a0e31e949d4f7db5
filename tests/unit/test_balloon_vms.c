/* balloon/policy: what is known of a VM over the ticks; VMs that are reset, come, go, change places or share a name. */
#include "balloon/policy.h"

#include <math.h>

#include "tests/unit/balloon_world.h"

/* ---- demand ---- */

static void test_demand_rises_at_once_and_falls_by_half_in_twenty_seconds(void)
{
	struct world w;

	world_one_guest(&w);
	w.guests[0].used = 3200 * MIB;
	world_look(&w, 600);
	CU_ASSERT_EQUAL(w.plan.vms[0].demand_bytes, 3200 * MIB);
	w.guests[0].used = 100 * MIB;
	for (size_t i = 0; i < 20; i++)
		world_look(&w, 600);
	CU_ASSERT(w.plan.vms[0].demand_bytes > 1599 * MIB && w.plan.vms[0].demand_bytes < 1601 * MIB);
	w.guests[0].mute = true;
	w.vms[0].balloon.stats_ns -= 5 * NSEC_PER_SEC; /* a clock set back is no time */
	w.vms[0].balloon.available_bytes = WORLD_FULL - 100 * MIB;
	world_look(&w, 600);
	CU_ASSERT(w.plan.vms[0].demand_bytes > 1599 * MIB);
	w.guests[0].mute = false;
	for (size_t i = 0; i < 200; i++)
		world_look(&w, 600);
	CU_ASSERT_EQUAL(w.plan.vms[0].demand_bytes, 100 * MIB);
	world_done(&w);
}

static void test_guest_cannot_use_less_than_nothing(void)
{
	struct world w;

	world_one_guest(&w);
	w.guests[0].mute = true;
	w.vms[0].balloon.stats_ns = w.s.taken_ns;
	w.vms[0].balloon.available_bytes = UINT64_MAX;
	world_look(&w, 600);
	CU_ASSERT_EQUAL(w.plan.vms[0].demand_bytes, 0);
	world_done(&w);
}

/* ---- resets ---- */

static void test_reset_guest_boots_with_all_of_its_memory(void)
{
	struct world w;

	world_one_guest(&w);
	world_look_and_obey(&w, 50, 6);
	w.vms[0].balloon.resets = 1; /* statistics are still those of before */
	w.guests[0].mute = true;
	world_look(&w, 0);
	CU_ASSERT_EQUAL(world_target(&w, 0), WORLD_FULL);
	CU_ASSERT_STRING_EQUAL(w.plan.vms[0].why, "guest was reset");
	CU_ASSERT_EQUAL(w.plan.vms[0].demand_bytes, 0);
	world_obey(&w);
	for (size_t i = 0; i < 40; i++) {
		world_look(&w, 0);
		CU_ASSERT_EQUAL(world_target(&w, 0), 0); /* nothing is known of it */
	}
	w.guests[0].mute = false;
	world_look(&w, 0);
	CU_ASSERT(world_target(&w, 0) != 0 && world_target(&w, 0) < WORLD_FULL);
	world_done(&w);
}

/* Nothing is known of it, whole or not; and what was asked and not done yet is withdrawn. */
static void test_reset_guest_is_not_taken_from_before_it_tells(void)
{
	struct world w;

	world_one_guest(&w);
	world_look(&w, 200);
	w.guests[0].mute = true;
	w.vms[0].balloon.resets = 1;
	for (size_t i = 0; i < 5; i++) {
		world_look(&w, 50);
		CU_ASSERT_EQUAL(world_target(&w, 0), 0);
	}
	w.guests[0].mute = false;
	world_look(&w, 50);
	CU_ASSERT(world_target(&w, 0) != 0 && world_target(&w, 0) < WORLD_FULL);
	w.vms[0].balloon.resets = 2;
	world_look(&w, 50);
	CU_ASSERT_EQUAL(world_target(&w, 0), WORLD_FULL);
	world_done(&w);
}

static void test_reset_waits_for_who_can_be_reached(void)
{
	struct world w;

	world_one_guest(&w);
	world_look_and_obey(&w, 50, 6);
	w.vms[0].migrating = true;
	w.vms[0].balloon.resets = 3;
	world_look_and_obey(&w, 0, 5);
	CU_ASSERT_EQUAL(world_target(&w, 0), 0);
	w.vms[0].migrating = false;
	world_look(&w, 0);
	CU_ASSERT_EQUAL(world_target(&w, 0), WORLD_FULL);
	/* Also one that the daemon found with a full balloon. */
	world_done(&w);
	world_one_guest(&w);
	w.vms[0].balloon.actual_bytes = 2500 * MIB;
	w.vms[0].balloon.resets = 5;
	world_look(&w, 200);
	CU_ASSERT_EQUAL(world_target(&w, 0), 0);
	w.vms[0].balloon.resets = 6;
	world_look(&w, 200);
	CU_ASSERT_EQUAL(world_target(&w, 0), WORLD_FULL);
	world_done(&w);
}

/* ---- what was not carried out ---- */

/* Nothing is waited for: the next tick decides as this one did. */
static void test_target_that_was_not_carried_out_is_forgotten(void)
{
	struct world w;

	world_one_guest(&w);
	for (size_t i = 0; i < 30; i++) {
		world_look(&w, 50);
		CU_ASSERT_EQUAL(world_target(&w, 0), world_in_mib(WORLD_FULL - WORLD_STEP));
		CU_ASSERT(w.plan.effect_count == 0 && !w.plan.vms[0].not_done);
		balloon_policy_not_done(w.policy, 0);
		CU_ASSERT(w.plan.vms[0].not_done);
	}
	balloon_policy_not_done(w.policy, 1); /* no such VM */
	balloon_policy_not_done(w.policy, SIZE_MAX);
	world_done(&w);
}

/* ---- who is who ---- */

static uint64_t demand(const struct world *w, size_t i)
{
	return w->plan.vms[i].demand_bytes;
}

static void test_vms_that_come_go_and_change_places_keep_what_is_theirs(void)
{
	struct world w;

	world_new(&w, 64 * GIB);
	for (uint64_t i = 0; i < 20; i++) {
		world_add(&w, WORLD_FULL);
		w.guests[i].used = (i + 1) * 100 * MIB;
	}
	for (unsigned int round = 0; round < 500; round++) {
		world_look(&w, 600);
		for (size_t i = 0; i < w.s.vm_count; i++) {
			double fallen = (double)w.guests[i].cache * exp2(-1 / 20.0), is = (double)demand(&w, i);
			double used = (double)w.guests[i].used, expected = used > fallen ? used : fallen;

			CU_ASSERT(is > expected - 4096 && is < expected + 4096);
			w.guests[i].cache = demand(&w, i); /* what the policy remembers of it */
			w.guests[i].used = (1 + world_random(&w, 20)) * 100 * MIB;
		}
		for (size_t i = world_random(&w, 3); i > 0 && w.s.vm_count > 0; i--)
			world_remove(&w, world_random(&w, w.s.vm_count));
		for (size_t i = world_random(&w, 3); i > 0 && w.s.vm_count < WORLD_VMS; i--)
			w.guests[world_add(&w, WORLD_FULL)].used = (1 + world_random(&w, 20)) * 100 * MIB;
		for (size_t i = world_random(&w, 4); i > 0 && w.s.vm_count > 0; i--)
			world_swap(&w, world_random(&w, w.s.vm_count), world_random(&w, w.s.vm_count));
	}
	w.s.vm_count = 0;
	world_look(&w, 600);
	CU_ASSERT_EQUAL(w.plan.vm_count, 0);
	world_done(&w);
}

static void test_pid_used_again_is_another_vm(void)
{
	struct world w;

	world_one_guest(&w);
	w.guests[0].used = 3000 * MIB;
	world_look(&w, 600);
	w.vms[0].start_ticks++;
	w.guests[0].used = 100 * MIB;
	world_look(&w, 600);
	CU_ASSERT_EQUAL(demand(&w, 0), 100 * MIB);
	world_done(&w);
}

/* The name is for people. */
static void test_two_vms_of_one_name_are_two(void)
{
	struct world w;

	world_one_guest(&w);
	world_add(&w, WORLD_FULL);
	w.guests[1].used = 4000 * MIB;
	world_look_and_obey(&w, 50, 10);
	CU_ASSERT(world_actual(&w, 0) < 3500 * MIB);
	CU_ASSERT_EQUAL(world_actual(&w, 1), WORLD_FULL);
	world_done(&w);
}

int main(void)
{
	CU_TestInfo tests[] = {
		{ "test_demand_rises_at_once_and_falls_by_half_in_twenty_seconds",
		  test_demand_rises_at_once_and_falls_by_half_in_twenty_seconds },
		{ "test_guest_cannot_use_less_than_nothing", test_guest_cannot_use_less_than_nothing },
		{ "test_reset_guest_boots_with_all_of_its_memory", test_reset_guest_boots_with_all_of_its_memory },
		{ "test_reset_guest_is_not_taken_from_before_it_tells",
		  test_reset_guest_is_not_taken_from_before_it_tells },
		{ "test_reset_waits_for_who_can_be_reached", test_reset_waits_for_who_can_be_reached },
		{ "test_target_that_was_not_carried_out_is_forgotten",
		  test_target_that_was_not_carried_out_is_forgotten },
		{ "test_vms_that_come_go_and_change_places_keep_what_is_theirs",
		  test_vms_that_come_go_and_change_places_keep_what_is_theirs },
		{ "test_pid_used_again_is_another_vm", test_pid_used_again_is_another_vm },
		{ "test_two_vms_of_one_name_are_two", test_two_vms_of_one_name_are_two },
		CU_TEST_INFO_NULL,
	};

	return unit_main("balloon/vms", tests);
}
