/* balloon/policy over thousands of ticks: random hosts and guests, guests that lie, garbage. Every tick is looked at by
 * world_watch(): no target that may not be, and none that turns more than twice in ten ticks. */
#include "balloon/policy.h"

#include "tests/unit/balloon_world.h"

/* ---- random hosts ---- */

static void world_random_new(struct world *w, uint64_t seed)
{
	uint64_t random = seed * 7919, sizes = 0;

	world_new(w, GIB); /* replaced below */
	w->random = random;
	w->limits.min_free_bytes = 0;
	balloon_policy_set_limits(w->policy, &w->limits);
	for (size_t i = 2 + world_random(w, 7); i > 0; i--) {
		uint64_t size = (256 + world_random(w, 4000)) * MIB;
		size_t vm = world_add(w, size);

		sizes += size;
		w->vms[vm].shares = world_random(w, 2) ? 1000 : 1 + world_random(w, 10000);
		w->vms[vm].reservation_bytes = world_random(w, 3) ? 0 : world_random(w, size / 2);
		w->vms[vm].limit_bytes = world_random(w, 5) ? 0 : size / 2 + world_random(w, size);
		w->guests[vm].speed = (32 + world_random(w, 1000)) * MIB;
		w->guests[vm].period = 1 + (unsigned int)world_random(w, 5);
		w->guests[vm].used = world_random(w, size);
		w->vms[vm].ram_resident_bytes = w->guests[vm].used;
	}
	w->s.mem_total_bytes = sizes / 100 * (60 + world_random(w, 60)) + GIB;
	w->other_bytes = world_random(w, GIB);
	w->s.pressure.known = world_random(w, 2);
}

/* Programs start and end, grow, and read files. */
static void guest_live(struct world *w, size_t i)
{
	struct world_guest *g = &w->guests[i];
	uint64_t max = w->vms[i].balloon.max_bytes;

	switch (world_random(w, 60)) {
	case 0:
		g->used = world_random(w, max);
		break;
	case 1:
		g->used = world_random(w, max / 4);
		break;
	case 2:
		g->cache = world_random(w, max);
		break;
	case 3: case 4: case 5:
		g->used += world_random(w, max / 16);
		break;
	case 6: case 7:
		g->used -= world_random(w, g->used / 8 + 1);
		break;
	default: /* nothing rests quite still */
		g->used += world_random(w, 8 * MIB);
		g->used -= world_random(w, g->used < 8 * MIB ? g->used + 1 : 8 * MIB);
	}
	if (g->used > max)
		g->used = max;
}

static void host_live(struct world *w)
{
	if (world_random(w, 100) == 0)
		w->other_bytes = world_random(w, 2 * GIB);
	w->s.cow_debt_bytes = world_random(w, 100) ? w->s.cow_debt_bytes : world_random(w, GIB);
	w->s.admitted_bytes = world_random(w, 100) ? w->s.admitted_bytes : world_random(w, GIB) * world_random(w, 2);
	w->s.pressure.some_us += world_random(w, 4) ? world_random(w, 20000) : world_random(w, 1000000);
	w->s.pressure.full_us += world_random(w, 8) ? 0 : world_random(w, 500000);
}

/* What happens to VMs beside what their guests do. */
static void vm_live(struct world *w, size_t i)
{
	struct vm_snapshot *vm = &w->vms[i];

	switch (world_random(w, 2000)) {
	case 0:
		vm->running = !vm->running;
		break;
	case 1:
		vm->migrating = !vm->migrating;
		break;
	case 2:
		vm->balloon.resets++;
		break;
	case 3:
		vm->balloon.stats = vm->balloon.stats == GUEST_STATS_GOOD ? GUEST_STATS_STALE : GUEST_STATS_GOOD;
		break;
	case 4:
		w->guests[i].speed = w->guests[i].speed ? 0 : 512 * MIB;
		break;
	case 5:
		w->guests[i].frees_nothing = !w->guests[i].frees_nothing;
		break;
	default:
		break;
	}
}

static void test_random_worlds_do_not_oscillate(void)
{
	for (uint64_t seed = 1; seed <= 60; seed++) {
		struct world w;

		world_random_new(&w, seed);
		for (size_t tick = 0; tick < 2000; tick++) {
			for (size_t i = 0; i < w.s.vm_count; i++) {
				guest_live(&w, i);
				if (seed % 2)
					vm_live(&w, i);
			}
			host_live(&w);
			world_tick(&w);
		}
		if (w.broken || w.turned_too_often)
			printf("\n    world %d: %u broken, %u turned too often\n", (int)seed, w.broken, w.turned_too_often);
		world_done(&w);
	}
}

/* ---- rest ---- */

static uint64_t need_of_all(const struct world *w)
{
	uint64_t sum = 0;

	for (size_t i = 0; i < w->s.vm_count; i++) {
		uint64_t need = w->guests[i].used / 80 * 100 + 64 * MIB, least = w->vms[i].balloon.max_bytes / 100 * 35;

		if (least < w->vms[i].reservation_bytes)
			least = w->vms[i].reservation_bytes;
		sum += need > least ? need : least;
	}
	return sum;
}

/* Whatever was before: where there is room for what all need, all have that in the end, and nothing moves any more. */
static void test_worlds_that_rest_come_to_rest_with_enough_for_all(void)
{
	unsigned int took = 0;

	for (uint64_t seed = 100; seed < 160; seed++) {
		struct world w;
		unsigned int moved = 0;

		world_random_new(&w, seed);
		for (size_t i = 0; i < w.s.vm_count; i++) {
			w.vms[i].limit_bytes = 0;
			w.guests[i].cache = w.vms[i].balloon.max_bytes; /* and all touched once */
		}
		for (size_t tick = 0; tick < 500; tick++) {
			for (size_t i = 0; i < w.s.vm_count; i++)
				guest_live(&w, i);
			world_tick(&w);
		}
		for (size_t i = 0; i < w.s.vm_count; i++)
			w.guests[i].used = world_random(&w, w.vms[i].balloon.max_bytes / 4 * 3);
		w.s.mem_total_bytes = (need_of_all(&w) + w.other_bytes + GIB) / 90 * 100;
		for (size_t tick = 0; tick < 600; tick++) {
			world_tick(&w);
			for (size_t i = 0; i < w.s.vm_count && tick >= 550; i++)
				moved += w.plan.vms[i].target_bytes != 0;
		}
		CU_ASSERT_EQUAL(moved, 0);
		CU_ASSERT(w.plan.ladder->state <= HOST_CLEAR);
		for (size_t i = 0; i < w.s.vm_count; i++) {
			CU_ASSERT(world_actual(&w, i) >= w.guests[i].used);
			took += world_actual(&w, i) < w.vms[i].balloon.max_bytes;
		}
		world_done(&w);
	}
	CU_ASSERT(took > 60); /* balloons had to do with it */
}

/* ---- guests that lie ---- */

static void lie_poor(struct world *w, struct vm_balloon *b) { (void)w; b->available_bytes = 0; }
static void lie_rich(struct world *w, struct vm_balloon *b) { (void)w; b->available_bytes = UINT64_MAX; }
static void lie_oom(struct world *w, struct vm_balloon *b) { (void)w; b->oom_kills++; }
static void lie_jumps(struct world *w, struct vm_balloon *b) { (void)w; b->major_faults += UINT64_C(1) << 63; }
static void lie_back(struct world *w, struct vm_balloon *b) { (void)w; b->swap_in_bytes -= 3 * GIB; }
static void lie_turns(struct world *w, struct vm_balloon *b) { b->available_bytes = w->tick % 6 < 3 ? 0 : b->actual_bytes; }
static void lie_reset(struct world *w, struct vm_balloon *b) { b->resets += w->tick % 7 == 0; }
static void lie_times(struct world *w, struct vm_balloon *b) { b->stats_ns = unit_random(&w->random); }

static void lie_randomly(struct world *w, struct vm_balloon *b)
{
	b->available_bytes = unit_random(&w->random);
	b->swap_in_bytes = unit_random(&w->random);
	b->major_faults = unit_random(&w->random);
	b->oom_kills = unit_random(&w->random);
	b->total_bytes = unit_random(&w->random);
	b->stats_ns = w->s.taken_ns + NSEC_PER_SEC / 2 - unit_random(&w->random) % NSEC_PER_SEC;
}

static void (*const lies[])(struct world *w, struct vm_balloon *b) = {
	lie_poor, lie_rich, lie_oom, lie_jumps, lie_back, lie_turns, lie_reset, lie_times, lie_randomly,
};

/* The first guest lies; it has a limit, the others reservations, and there is not enough for all. */
static void test_liar_gains_no_more_than_its_limit_and_costs_nobody_its_reservation(void)
{
	for (size_t c = 0; c < ARRAY_SIZE(lies) * 2; c++) {
		struct world w;

		world_new(&w, 9 * GIB);
		w.random = c + 1;
		for (size_t i = 0; i < 4; i++) {
			world_add(&w, WORLD_FULL);
			w.vms[i].reservation_bytes = i ? 2000 * MIB : 0;
			w.vms[i].ram_resident_bytes = 2048 * MIB;
		}
		w.vms[0].limit_bytes = c % 2 ? 3000 * MIB : 0;
		for (size_t tick = 0; tick < 3000; tick++) {
			for (size_t i = 1; i < 4; i++)
				guest_live(&w, i);
			w.guests[0].used = WORLD_FULL; /* it takes what it gets */
			w.guests[0].mute = true;
			w.vms[0].balloon.stats_ns = w.s.taken_ns + NSEC_PER_SEC / 2;
			w.vms[0].balloon.available_bytes = 0;
			lies[c / 2](&w, &w.vms[0].balloon);
			world_tick(&w);
			for (size_t i = 1; i < 4; i++)
				CU_ASSERT(world_actual(&w, i) >= 2000 * MIB);
			CU_ASSERT(tick < 200 || world_actual(&w, 0) <= world_in_mib(world_limit(&w.vms[0])) + 16 * MIB);
		}
		world_done(&w);
	}
}

/* ---- garbage ---- */

static void vm_garbage(struct world *w, struct vm_snapshot *vm)
{
	struct vm_balloon *b = &vm->balloon;
	unsigned int shift = 14 + (unsigned int)world_random(w, 40);

	b->max_bytes = world_random(w, 8) ? unit_random(&w->random) >> shift : 0;
	b->actual_bytes = world_random(w, 4) ? world_random(w, b->max_bytes + 1) : unit_random(&w->random) >> shift;
	b->stats_ns = world_random(w, 4) ? w->s.taken_ns : world_random(w, 2) ? b->stats_ns + 1 : unit_random(&w->random);
	b->available_bytes = unit_random(&w->random) >> world_random(w, 64);
	b->swap_in_bytes = unit_random(&w->random);
	b->major_faults = unit_random(&w->random);
	b->oom_kills = unit_random(&w->random);
	b->resets += world_random(w, 10) == 0;
	b->stats = (enum guest_stats)world_random(w, 4);
	b->stats = world_random(w, 2) ? GUEST_STATS_GOOD : b->stats;
	b->device = world_random(w, 8) ? BALLOON_DEVICE_PRESENT : BALLOON_DEVICE_UNKNOWN;
	vm->running = world_random(w, 8);
	vm->migrating = !world_random(w, 8);
	vm->ram_resident_bytes = unit_random(&w->random) >> shift;
	vm->ram_resident_ns = world_random(w, 4) ? w->s.taken_ns : 0;
	vm->rss_anon_bytes = unit_random(&w->random) >> 14;
	vm->reservation_bytes = world_random(w, 2) ? 0 : unit_random(&w->random) >> shift;
	vm->limit_bytes = world_random(w, 2) ? 0 : unit_random(&w->random) >> shift;
	vm->shares = 1 + world_random(w, 1000000);
}

static void limits_garbage(struct world *w)
{
	w->limits = (struct balloon_limits){
		.min_free_bytes = world_random(w, 2) ? 0 : unit_random(&w->random) >> (14 + world_random(w, 40)),
		.idle_tax_percent = (unsigned int)world_random(w, 100),
		.max_percent = (unsigned int)world_random(w, 96),
		.step_percent = 1 + (unsigned int)world_random(w, 100),
		.keep_percent = 1 + (unsigned int)world_random(w, 90),
		.hold_ns = NSEC_PER_SEC + world_random(w, 1000 * NSEC_PER_SEC),
		.stall_ns = NSEC_PER_SEC + world_random(w, 1000 * NSEC_PER_SEC),
	};
	balloon_policy_set_limits(w->policy, &w->limits);
}

/* No sense is to be expected of that: targets within bounds, and none for those that cannot be reached. */
static void test_garbage_moves_nothing_out_of_bounds(void)
{
	struct world w;

	world_new(&w, 64 * GIB);
	for (size_t i = 0; i < 12; i++)
		world_add(&w, WORLD_FULL);
	for (size_t tick = 0; tick < 20000; tick++) {
		for (size_t i = 0; i < w.s.vm_count; i++)
			vm_garbage(&w, &w.vms[i]);
		if (world_random(&w, 20) == 0)
			limits_garbage(&w);
		if (world_random(&w, 20) == 0) {
			world_remove(&w, world_random(&w, w.s.vm_count));
			world_add(&w, WORLD_FULL);
		}
		w.s.mem_total_bytes = unit_random(&w.random) >> 20;
		w.s.mem_available_bytes = unit_random(&w.random) >> (20 + world_random(&w, 40));
		world_decide(&w);
	}
	w.turned_too_often = 0; /* the guests' sizes do */
	world_done(&w);
}

int main(void)
{
	CU_TestInfo tests[] = {
		{ "test_random_worlds_do_not_oscillate", test_random_worlds_do_not_oscillate },
		{ "test_worlds_that_rest_come_to_rest_with_enough_for_all",
		  test_worlds_that_rest_come_to_rest_with_enough_for_all },
		{ "test_liar_gains_no_more_than_its_limit_and_costs_nobody_its_reservation",
		  test_liar_gains_no_more_than_its_limit_and_costs_nobody_its_reservation },
		{ "test_garbage_moves_nothing_out_of_bounds", test_garbage_moves_nothing_out_of_bounds },
		CU_TEST_INFO_NULL,
	};

	return unit_main("balloon/worlds", tests);
}
