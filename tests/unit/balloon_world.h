/* tests/unit/balloon_world.h - a small host with guests that balloon/policy drives: memory that is used and resident,
 * and a balloon that follows what it is asked. A tick is a second. */
#ifndef TESTS_UNIT_BALLOON_WORLD_H
#define TESTS_UNIT_BALLOON_WORLD_H

#include "balloon/policy.h"
#include "core/clock.h"
#include "tests/unit/unit.h"

#define MIB (UINT64_C(1) << 20)
#define GIB (UINT64_C(1) << 30)
#define WORLD_VMS 32
#define WORLD_TICKS 10 /* targets that are remembered */

/* As memvirt.conf has it by default, with a min_free that is easy to reckon with: 1 % is 10 MiB. */
static const struct balloon_limits world_limits = {
	.min_free_bytes = 1000 * MIB,
	.idle_tax_percent = 75,
	.max_percent = 65,
	.step_percent = 5,
	.keep_percent = 20,
	.hold_ns = 10 * NSEC_PER_SEC,
	.stall_ns = 10 * NSEC_PER_SEC,
};

struct world_guest {
	uint64_t used, cache; /* what its programs want */
	uint64_t asked;	      /* of its balloon; 0: nothing yet */
	uint64_t speed;	      /* its balloon moves by so much a tick */
	unsigned int period;  /* of its statistics, in ticks */
	bool frees_nothing;   /* what its balloon takes stays with the VMM */
	bool mute;	      /* its statistics are the test's */
	bool uncounted;	      /* what is resident is not counted again */

	/* of the targets so far, for those that watch */
	uint64_t last_target;
	int direction;
	unsigned int turns[WORLD_TICKS]; /* 1: the target of that tick turned */
};

struct world {
	struct balloon_policy *policy;
	struct balloon_limits limits;
	struct host_snapshot s;
	struct vm_snapshot vms[WORLD_VMS];
	struct world_guest guests[WORLD_VMS];
	struct balloon_plan plan;
	uint64_t other_bytes; /* used on the host beside guests */
	uint64_t random;
	pid_t last_pid;
	unsigned int tick;
	unsigned int turned_too_often, broken; /* what no tick may do */
};

static inline uint64_t world_random(struct world *w, uint64_t n)
{
	return n ? unit_random(&w->random) % n : 0;
}

static inline void world_new(struct world *w, uint64_t total_bytes)
{
	memset(w, 0, sizeof(*w));
	w->limits = world_limits;
	unit_must(balloon_policy_new(&w->limits, &w->policy) == 0, "balloon_policy_new");
	w->s = (struct host_snapshot){ .taken_ns = 1000 * NSEC_PER_SEC, .mem_total_bytes = total_bytes,
				       .mem_available_bytes = total_bytes, .vms = w->vms };
}

static inline void world_free(struct world *w)
{
	w->policy = balloon_policy_free(w->policy);
}

/* A guest that is as large as it can be, and uses half of it; all of that is resident. */
static inline size_t world_add(struct world *w, uint64_t max_bytes)
{
	size_t i = w->s.vm_count++;

	unit_must(i < WORLD_VMS, "WORLD_VMS");
	w->guests[i] = (struct world_guest){ .used = max_bytes / 2, .speed = 1024 * MIB, .period = 1 };
	w->vms[i] = (struct vm_snapshot){
		.name = "guest", .uuid = "", .domain = "=", .pid = ++w->last_pid, .start_ticks = 1000,
		.balloon_allowed = true, .running = true, .shares = 1000,
		.ram_resident_bytes = max_bytes, .ram_resident_ns = w->s.taken_ns,
		.balloon = { .driver = "qmp", .why = "", .device = BALLOON_DEVICE_PRESENT, .max_bytes = max_bytes,
			     .actual_bytes = max_bytes, .stats = GUEST_STATS_GOOD, .total_bytes = max_bytes,
			     .available_bytes = max_bytes / 2 },
	};
	return i;
}

static inline void world_remove(struct world *w, size_t i)
{
	size_t after = --w->s.vm_count - i;

	memmove(&w->vms[i], &w->vms[i + 1], after * sizeof(*w->vms));
	memmove(&w->guests[i], &w->guests[i + 1], after * sizeof(*w->guests));
}

static inline void world_swap(struct world *w, size_t a, size_t b)
{
	struct vm_snapshot vm = w->vms[a];
	struct world_guest guest = w->guests[a];

	w->vms[a] = w->vms[b];
	w->guests[a] = w->guests[b];
	w->vms[b] = vm;
	w->guests[b] = guest;
}

/* ---- what no decision may do ---- */

static inline uint64_t world_limit(const struct vm_snapshot *vm)
{
	uint64_t max = vm->balloon.max_bytes;

	return vm->limit_bytes && vm->limit_bytes < max ? vm->limit_bytes : max;
}

static inline bool world_target_is_sane(const struct world *w, size_t i)
{
	const struct vm_snapshot *vm = &w->vms[i];
	uint64_t target = w->plan.vms[i].target_bytes, actual = vm->balloon.actual_bytes, limit = world_limit(vm);
	uint64_t floor = vm->balloon.max_bytes / 100 * (100 - w->limits.max_percent);
	uint64_t step = vm->balloon.max_bytes / 100 * w->limits.step_percent * 8;
	uint64_t held = vm->ram_resident_ns ? vm->ram_resident_bytes : vm->rss_anon_bytes + vm->rss_shmem_bytes;
	uint64_t least = w->plan.vms[i].entitled_bytes, used;
	bool starving = false;

	if (!target || target == actual)
		return true;
	if ((target > limit && target > actual) || !vm->balloon_allowed || !vm->balloon.driver || vm->migrating)
		return false;
	if (target > actual)
		return true;
	if (step < 32 * MIB)
		step = 32 * MIB;
	for (size_t k = 0; k < w->s.vm_count; k++)
		starving |= w->plan.vms[k].veto != VETO_NONE;
	/* What it is entitled to, and has, is not taken either, but for guests that starve: then what it says it uses stays. */
	used = actual > vm->balloon.available_bytes ? actual - vm->balloon.available_bytes : 0;
	if (starving && used < least)
		least = used;
	if (held > actual)
		held = actual;
	return target >= (least < limit ? least : limit) &&
	       target >= (vm->reservation_bytes < limit ? vm->reservation_bytes : limit) &&
	       target >= (floor < limit ? floor : limit) && (target >= held || held - target <= step) && vm->running &&
	       vm->balloon.stats == GUEST_STATS_GOOD && w->plan.ladder->state >= HOST_SOFT;
}

static inline void world_watch(struct world *w)
{
	for (size_t i = 0; i < w->s.vm_count; i++) {
		struct world_guest *g = &w->guests[i];
		uint64_t target = w->plan.vms[i].target_bytes;
		unsigned int turns = 0, turned = 0;

		w->broken += !world_target_is_sane(w, i);
		if (target && target != g->last_target) {
			int direction = target > g->last_target ? 1 : -1;

			turned = g->last_target && g->direction && direction != g->direction;
			g->direction = direction;
			g->last_target = target;
		}
		g->turns[w->tick % WORLD_TICKS] = turned;
		for (size_t t = 0; t < WORLD_TICKS; t++)
			turns += g->turns[t];
		w->turned_too_often += turns > 2;
	}
}

/* ---- a tick ---- */

/* The pictures are the test's own; a second after the one before. */
static inline void world_decide(struct world *w)
{
	w->s.taken_ns += NSEC_PER_SEC;
	w->tick++;
	unit_must(balloon_policy_decide(w->policy, &w->s, &w->plan) == 0, "balloon_policy_decide");
	unit_must(w->plan.vm_count == w->s.vm_count, "vm_count");
	world_watch(w);
}

static inline void world_guest_run(struct world *w, size_t i)
{
	struct world_guest *g = &w->guests[i];
	struct vm_snapshot *vm = &w->vms[i];
	struct vm_balloon *b = &vm->balloon;
	uint64_t want = g->used + g->cache, touched = want < b->actual_bytes ? want : b->actual_bytes;

	if (g->asked > b->actual_bytes)
		b->actual_bytes += g->asked - b->actual_bytes < g->speed ? g->asked - b->actual_bytes : g->speed;
	else if (g->asked && g->asked < b->actual_bytes)
		b->actual_bytes -= b->actual_bytes - g->asked < g->speed ? b->actual_bytes - g->asked : g->speed;
	if (vm->ram_resident_bytes < touched)
		vm->ram_resident_bytes = touched;
	if (vm->ram_resident_bytes > b->actual_bytes && !g->frees_nothing)
		vm->ram_resident_bytes = b->actual_bytes;
	if (g->used > b->actual_bytes) {
		b->swap_in_bytes += 4 * MIB;
		b->major_faults += 1000;
	}
	if (g->mute || w->tick % g->period)
		return;
	b->stats_ns = w->s.taken_ns;
	b->total_bytes = b->actual_bytes;
	b->available_bytes = b->actual_bytes > g->used ? b->actual_bytes - g->used : 0;
}

static inline void world_tick(struct world *w)
{
	uint64_t held = w->other_bytes;

	w->s.taken_ns += NSEC_PER_SEC / 2; /* statistics are made between pictures */
	for (size_t i = 0; i < w->s.vm_count; i++) {
		if (w->vms[i].running)
			world_guest_run(w, i);
		held += w->vms[i].ram_resident_bytes;
	}
	w->s.mem_available_bytes = held < w->s.mem_total_bytes ? w->s.mem_total_bytes - held : 0;
	w->s.taken_ns -= NSEC_PER_SEC / 2;
	for (size_t i = 0; i < w->s.vm_count; i++)
		w->vms[i].ram_resident_ns = w->s.taken_ns;
	world_decide(w);
	for (size_t i = 0; i < w->s.vm_count; i++)
		if (w->plan.vms[i].target_bytes)
			w->guests[i].asked = w->plan.vms[i].target_bytes;
}

/* ---- pictures by hand ---- */

/* Free memory, in percent of min_free, for each state. */
static const unsigned int world_percent[HOST_STATES] = { 600, 200, 90, 50, 0 };

#define WORLD_FULL (4096 * MIB)
#define WORLD_STEP (WORLD_FULL / 100 * 5)

/* A picture a second later: guests have told how they are. */
static inline void world_look(struct world *w, unsigned int percent)
{
	for (size_t i = 0; i < w->s.vm_count; i++) {
		struct vm_balloon *b = &w->vms[i].balloon;

		if (!w->guests[i].uncounted)
			w->vms[i].ram_resident_ns = w->s.taken_ns;
		if (w->guests[i].mute)
			continue;
		b->stats_ns = w->s.taken_ns + NSEC_PER_SEC / 2;
		b->available_bytes = b->actual_bytes > w->guests[i].used ? b->actual_bytes - w->guests[i].used : 0;
	}
	w->s.mem_available_bytes = percent * 10 * MIB;
	world_decide(w);
}

/* The balloons do as they were told. */
static inline void world_obey(struct world *w)
{
	for (size_t i = 0; i < w->s.vm_count; i++) {
		struct vm_snapshot *vm = &w->vms[i];

		if (w->plan.vms[i].target_bytes)
			vm->balloon.actual_bytes = w->plan.vms[i].target_bytes;
		if (vm->ram_resident_bytes > vm->balloon.actual_bytes)
			vm->ram_resident_bytes = vm->balloon.actual_bytes;
	}
}

static inline void world_look_and_obey(struct world *w, unsigned int percent, unsigned int times)
{
	while (times-- > 0) {
		world_look(w, percent);
		world_obey(w);
	}
}

static inline uint64_t world_target(const struct world *w, size_t i)
{
	return w->plan.vms[i].target_bytes;
}

static inline uint64_t world_actual(const struct world *w, size_t i)
{
	return w->vms[i].balloon.actual_bytes;
}

static inline uint64_t world_in_mib(uint64_t bytes)
{
	return (bytes + MIB - 1) / MIB * MIB;
}

/* A host with one guest of 4 GiB, half of it used. */
static inline void world_one_guest(struct world *w)
{
	world_new(w, 64 * GIB);
	world_add(w, WORLD_FULL);
}

static inline void world_done(struct world *w)
{
	CU_ASSERT_EQUAL(w->broken, 0);
	CU_ASSERT_EQUAL(w->turned_too_often, 0);
	world_free(w);
}

#endif
