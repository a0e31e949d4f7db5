/* What became of what was asked: whether the balloon moves, and whether memory came back to the host. */
#include "balloon/policy_internal.h"
#include "core/clock.h"

/* A balloon that stood still is tried again after so many times the wait: a guest that was out of free pages may have some
 * by then. */
#define STALL_REST 6

/* Less than this expected to come back is too little to judge by. */
#define JUDGE_BYTES_MIN (64 * MIB)
#define JUDGE_SHARE 4 /* less than a quarter of what was expected is nothing */

/* How long a balloon without effect is left alone: its VM's memory does not change its nature (huge pages of a pool, locked,
 * given to a device) while it runs, and one try in ten minutes tells when it does. */
#define NO_EFFECT_NS (600 * NSEC_PER_SEC)

static uint64_t distance(uint64_t a, uint64_t b)
{
	return a > b ? a - b : b - a;
}

/* No more can be resident than the balloon leaves: what is above that must go, but for what was above it before. Memory
 * that the guest never touched is cut first, as a rule, and brings nothing. */
static uint64_t expected_bytes(const struct track *t)
{
	return less_u64(min_u64(t->judge_resident_bytes, t->judge_from_bytes), t->target_bytes);
}

/* The VMM is told page by page, and may be behind. */
#define SETTLE_NS (2 * NSEC_PER_SEC)

/* Resident memory may be counted seldom. */
#define AWAIT_NS (10 * NSEC_PER_SEC)

bool effect_awaited(const struct track *t, uint64_t now_ns)
{
	return t->judge_from_bytes && expected_bytes(t) >= JUDGE_BYTES_MIN && now_ns - t->shrunk_ns < AWAIT_NS;
}

static bool cut_judge(struct track *t, const struct vm_snapshot *vm, uint64_t now_ns, struct balloon_effect *e)
{
	uint64_t resident = vm->ram_resident_bytes;

	*e = (struct balloon_effect){ .kind = EFFECT_ARRIVED,
				      .asked_bytes = less_u64(t->judge_from_bytes, t->target_bytes),
				      .expected_bytes = expected_bytes(t),
				      .freed_bytes = less_u64(t->judge_resident_bytes, resident) };
	if (e->expected_bytes < JUDGE_BYTES_MIN)
		return false;
	t->judge_from_bytes = 0;
	if (e->freed_bytes < e->expected_bytes / JUDGE_SHARE) {
		e->kind = EFFECT_NOTHING_FREED;
		t->no_effect_until_ns = now_ns + NO_EFFECT_NS;
	}
	return true;
}

bool effect_look(struct track *t, const struct vm_snapshot *vm, const struct balloon_limits *l, uint64_t now_ns,
		 struct balloon_effect *ret_effect)
{
	uint64_t actual = vm->balloon.actual_bytes;

	if (t->no_effect_until_ns && now_ns >= t->no_effect_until_ns)
		t->no_effect_until_ns = 0;
	/* A guest that stands still moves no balloon. */
	if (!t->target_bytes || !actual || !vm->running) {
		t->moved_ns = now_ns;
		return false;
	}
	if (t->stalled) {
		bool moved = distance(actual, t->moved_bytes) > MIB;

		if (!moved && now_ns < t->aside_until_ns)
			return false;
		t->stalled = false;
		t->target_bytes = 0;
		*ret_effect = (struct balloon_effect){ .kind = EFFECT_MOVES_AGAIN };
		return moved;
	}
	if (distance(actual, t->target_bytes) <= vm_dead_band(vm)) {
		t->moved_ns = now_ns;
		if (!t->arrived_ns)
			t->arrived_ns = now_ns;
		return t->judge_from_bytes && vm->ram_resident_ns > t->shrunk_ns + SETTLE_NS &&
		       cut_judge(t, vm, now_ns, ret_effect);
	}
	if (distance(actual, t->target_bytes) + MIB <= distance(t->moved_bytes, t->target_bytes)) {
		t->moved_bytes = actual;
		t->moved_ns = now_ns;
	}
	if (now_ns - t->moved_ns < l->stall_ns)
		return false;
	*ret_effect = (struct balloon_effect){ .kind = EFFECT_STALLED,
					       .asked_bytes = distance(t->target_bytes, actual) };
	t->stalled = true;
	t->aside_until_ns = now_ns + STALL_REST * l->stall_ns;
	t->moved_bytes = actual;
	return true;
}
