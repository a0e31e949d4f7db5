/* The plan of one tick: who may have what, who is given memory, from whom it is taken. In this order: what guests need
 * is given before anything is taken for it, from what is free. */
#include "balloon/policy_internal.h"
#include "core/clock.h"

/* While guests starve, others give this much faster than by a step a tick. */
#define URGENT_STEPS 8

/* The part of min_free that is not given to a guest, whatever it is short of: the host's own use moves by that much. */
#define LAST_RESERVE_SHARE 8

/* So much more is freed than what ends the state: dead bands and the host's own use would keep it just short of that. */
#define LEAVE_SHARE 8

/* A guest gets memory before it objects once less than this part of what it is to keep is available. */
#define GROW_SHARE 2

/* How long an objection is remembered, and by what part its guest has to use less for it to be forgotten. */
#define REFUSAL_NS (300 * NSEC_PER_SEC)
#define REFUSAL_SHARE 4

/* While the host is in need, guests keep this part of what they are to keep; still twice what they would object to. */
#define HARD_KEEP_SHARE 2

/* ---- who may have what ---- */

/* What the guest needs, within what it may have. */
static uint64_t need_bytes(const struct balloon_policy *p, const struct vm_snapshot *vm, const struct track *t)
{
	return min_u64(vm_size_for(vm, t->demand_bytes + t->ahead_bytes, &p->limits), vm_limit_bytes(vm));
}

static bool is_contested(const struct balloon_policy *p)
{
	return ladder_rows[p->ladder.state].take_all;
}

/* A guest that objected at some size is left more than that for five minutes, or until it uses a quarter less: else it is
 * squeezed to where it swaps every time that the hold is over. */
static uint64_t borne_bytes(const struct balloon_policy *p, const struct vm_snapshot *vm, const struct track *t)
{
	if (!t->refused_ns || t->stats_ns > t->refused_ns + REFUSAL_NS ||
	    t->used_bytes < t->refused_used_bytes - t->refused_used_bytes / REFUSAL_SHARE)
		return 0;
	return t->refused_bytes + vm->balloon.max_bytes / 100 * p->limits.step_percent;
}

/* What is not taken from the guest, whatever it is entitled to. */
static uint64_t untouched_bytes(const struct balloon_policy *p, const struct vm_snapshot *vm, const struct track *t)
{
	uint64_t least = vm_min_bytes(vm, &p->limits), size = vm_size_for(vm, t->used_bytes, &p->limits), bytes;

	if (t->objection != VETO_NONE)
		bytes = vm_limit_bytes(vm);
	else if (is_contested(p))
		bytes = t->used_bytes + less_u64(size, t->used_bytes) / HARD_KEEP_SHARE;
	else
		bytes = need_bytes(p, vm, t);
	bytes = max_u64(bytes, borne_bytes(p, vm, t));
	return max_u64(min_u64(bytes, vm_limit_bytes(vm)), least);
}

/* What it has and is not taken from it is not there for others: else they would be entitled to what nobody gives. */
static void claim_make(struct balloon_policy *p, const struct vm_snapshot *vm, const struct track *t, struct claim *c)
{
	uint64_t limit = vm_limit_bytes(vm), held = vm_held_bytes(vm), need = need_bytes(p, vm, t);
	/* But for its reservation, nobody is kept room for that it neither holds nor needs. */
	uint64_t most = min_u64(max_u64(held, need), limit);
	uint64_t least = max_u64(min_u64(vm_min_bytes(vm, &p->limits), most), min_u64(untouched_bytes(p, vm, t), held));

	*c = (struct claim){ .min_bytes = max_u64(min_u64(vm->reservation_bytes, limit), least),
			     .active_bytes = need, .shares = vm->shares };
	c->max_bytes = max_u64(most, c->min_bytes);
}

/* What all hold whose balloons move, and what is free beyond what is to stay free, is shared out among them. */
static void share_out(struct balloon_policy *p, const struct host_snapshot *s)
{
	uint64_t held = 0, keep_free = ladder_leave_bytes(HOST_SOFT, p->ladder.min_free_bytes);
	size_t count = 0;

	keep_free += keep_free / LEAVE_SHARE;

	for (size_t i = 0; i < s->vm_count; i++) {
		if (p->vms[i].block != BLOCK_NONE)
			continue;
		claim_make(p, &s->vms[i], &p->tracks[i], &p->claims[count]);
		p->claimants[count++] = i;
		held += vm_held_bytes(&s->vms[i]);
	}
	p->budget_bytes = less_u64(held + p->ladder.free_bytes, keep_free);
	entitle(p->claims, count, p->budget_bytes, p->limits.idle_tax_percent, p->granted);
	for (size_t i = 0; i < count; i++) {
		p->tracks[p->claimants[i]].entitled_bytes = p->granted[i];
		p->vms[p->claimants[i]].entitled_bytes = p->granted[i];
	}
}

/* Over all VMs, whether their balloons move or not. */
static void contradictions_look(struct balloon_policy *p, const struct host_snapshot *s)
{
	uint64_t reserved = 0, least_free = p->ladder.min_free_bytes / 100 * ladder_rows[HOST_LOW].below_percent;

	p->idle_bytes = 0;
	for (size_t i = 0; i < s->vm_count; i++) {
		const struct vm_snapshot *vm = &s->vms[i];
		uint64_t needed = max_u64(need_bytes(p, vm, &p->tracks[i]), vm_min_bytes(vm, &p->limits));

		/* A reservation above the VM's size promises no more than that. */
		reserved += vm->balloon.max_bytes ? min_u64(vm->reservation_bytes, vm_limit_bytes(vm)) :
						    vm->reservation_bytes;
		if (p->vms[i].block == BLOCK_NONE)
			p->idle_bytes += less_u64(vm_held_bytes(vm), needed);
	}
	p->missing_bytes = less_u64(reserved + least_free, s->mem_total_bytes);
}

/* ---- giving ---- */

/* What may be given in this tick. */
struct supply {
	uint64_t urgent;  /* to guests that object */
	uint64_t ordinary; /* to guests that will need it */
	uint64_t spare;	  /* to anybody */
};

static struct supply supply_of(const struct ladder *l)
{
	uint64_t percent = l->min_free_bytes / 100, free_bytes = l->free_bytes;

	return (struct supply){
		.urgent = less_u64(free_bytes, l->min_free_bytes / LAST_RESERVE_SHARE),
		.ordinary = less_u64(free_bytes, percent * ladder_rows[HOST_HARD].below_percent),
		.spare = ladder_rows[l->state].release ?
				 less_u64(free_bytes, percent * ladder_rows[HOST_CLEAR].below_percent) :
				 0,
	};
}

static void supply_take(struct supply *supply, uint64_t bytes)
{
	supply->urgent = less_u64(supply->urgent, bytes);
	supply->ordinary = less_u64(supply->ordinary, bytes);
	supply->spare = less_u64(supply->spare, bytes);
}

static uint64_t step_bytes(const struct balloon_policy *p, const struct vm_snapshot *vm)
{
	return vm->balloon.max_bytes / 100 * p->limits.step_percent;
}

/* In MiB where it can be: limits need not be, and are kept to the byte. */
static void target_set(struct balloon_vm_plan *plan, const struct vm_snapshot *vm, uint64_t bytes, const char *why)
{
	plan->target_bytes = bytes + MIB - 1 - (bytes + MIB - 1) % MIB;
	if (bytes <= vm_limit_bytes(vm))
		plan->target_bytes = min_u64(plan->target_bytes, vm_limit_bytes(vm));
	plan->why = why;
}

/* Memory for the VM; returns how much. */
static uint64_t grow_to(struct balloon_policy *p, size_t i, const struct vm_snapshot *vm, uint64_t bytes, const char *why)
{
	target_set(&p->vms[i], vm, bytes, why);
	return less_u64(p->vms[i].target_bytes, vm->balloon.actual_bytes);
}

/* Ends what was asked for and is not done yet. */
static void hold_at_actual(struct balloon_vm_plan *plan, const char *why)
{
	plan->target_bytes = plan->actual_bytes;
	plan->why = why;
}

/* Also a balloon that stood still, or brought nothing, is let out. */
static bool may_grow(enum balloon_block block)
{
	return block == BLOCK_NONE || block == BLOCK_STALLED || block == BLOCK_NO_EFFECT;
}

/* What a guest that objects could do with, at most. What it has in its swap it may want back; how much it lacks that has
 * next to nothing available is not known, but within a tick it is hardly more than it has; of file pages that are read
 * again nobody counts how many are missing. Without these bounds one guest that looks at a few pages of its swap is given
 * all there is, which others lose in the next ticks. */
static uint64_t wanted_bytes(const struct balloon_policy *p, const struct vm_snapshot *vm, const struct track *t)
{
	uint64_t actual = vm->balloon.actual_bytes, in_swap;

	switch (t->veto) {
	case VETO_SWAP_IN:
		if (vm->balloon.swap_out_bytes == BALLOON_UNTOLD || vm->balloon.swap_in_bytes == BALLOON_UNTOLD)
			return actual + 2 * step_bytes(p, vm);
		in_swap = less_u64(vm->balloon.swap_out_bytes, vm->balloon.swap_in_bytes);
		return max_u64(vm_size_for(vm, t->used_bytes + min_u64(in_swap, vm->balloon.max_bytes), &p->limits),
			       actual + step_bytes(p, vm));
	case VETO_AVAILABLE: return vm_size_for(vm, 2 * t->used_bytes, &p->limits);
	case VETO_FAULTS: return actual + 2 * step_bytes(p, vm);
	default: return UINT64_MAX;
	}
}

/* A guest that objects. What was taken from it since it was last given any comes back whatever the host's state, and a step
 * more if it has less than it is entitled to; beyond that, what there is. What is on its way to the guest already is not
 * called back: it is a matter of seconds, and the target would turn round. */
static uint64_t urgent_bytes(const struct balloon_policy *p, const struct vm_snapshot *vm, const struct track *t,
			     uint64_t part)
{
	uint64_t actual = vm->balloon.actual_bytes, limit = vm_limit_bytes(vm);
	uint64_t lacking = less_u64(wanted_bytes(p, vm, t), actual);
	bool short_of_right = !is_contested(p) || !t->entitled_bytes || actual < t->entitled_bytes;
	uint64_t cut = less_u64(t->cut_from_bytes, actual);
	uint64_t undo = max_u64(min_u64(cut, lacking), short_of_right ? step_bytes(p, vm) : 0);
	uint64_t most = is_contested(p) && t->entitled_bytes ? min_u64(t->entitled_bytes, limit) : limit;
	uint64_t target = max_u64(actual + undo, min_u64(actual + min_u64(part, lacking), most));

	return min_u64(max_u64(target, t->target_bytes), limit);
}

/* Those that object, each its part of what there is by shares; then the rest of it to the next. */
static void grow_urgent(struct balloon_policy *p, const struct host_snapshot *s, struct supply *supply)
{
	uint64_t shares = 0;

	for (size_t i = 0; i < s->vm_count; i++)
		if (may_grow(p->vms[i].block) && p->tracks[i].veto != VETO_NONE)
			shares += s->vms[i].shares;
	for (size_t i = 0; i < s->vm_count; i++) {
		const struct vm_snapshot *vm = &s->vms[i];
		const struct track *t = &p->tracks[i];
		uint64_t target, actual = vm->balloon.actual_bytes;

		if (!may_grow(p->vms[i].block) || t->veto == VETO_NONE)
			continue;
		target = urgent_bytes(p, vm, t,
				      (uint64_t)((double)supply->urgent * (double)vm->shares / (double)shares));
		shares -= vm->shares;
		p->vms[i].why = balloon_veto_name(t->veto);
		if (target > actual)
			supply_take(supply, grow_to(p, i, vm, target, p->vms[i].why));
		else if (t->target_bytes && t->target_bytes < actual)
			hold_at_actual(&p->vms[i], p->vms[i].why);
	}
}

/* Less than half of what it is to keep. */
static bool is_short(const struct vm_snapshot *vm, uint64_t available_bytes, const struct balloon_limits *l)
{
	return available_bytes <= vm_keep_bytes(vm, vm->balloon.actual_bytes, l) / GROW_SHARE;
}

bool balloon_guest_is_short(const struct balloon_limits *limits, uint64_t max_bytes, uint64_t actual_bytes,
			    uint64_t available_bytes)
{
	const struct vm_snapshot vm = { .balloon = { .max_bytes = max_bytes, .actual_bytes = actual_bytes } };

	return is_short(&vm, available_bytes, limits);
}

static void grow_needed(struct balloon_policy *p, const struct host_snapshot *s, struct supply *supply)
{
	for (size_t i = 0; i < s->vm_count; i++) {
		const struct vm_snapshot *vm = &s->vms[i];
		const struct track *t = &p->tracks[i];
		uint64_t actual = vm->balloon.actual_bytes, want = need_bytes(p, vm, t), given;

		if (!may_grow(p->vms[i].block) || p->vms[i].target_bytes || want <= actual ||
		    !is_short(vm, less_u64(actual, t->used_bytes + t->ahead_bytes), &p->limits))
			continue;
		if (ladder_rows[p->ladder.state].take_idle && t->entitled_bytes)
			want = min_u64(want, t->entitled_bytes);
		given = min_u64(less_u64(want, actual), supply->ordinary);
		if (given < vm_dead_band(vm) || actual + given <= t->target_bytes)
			continue;
		supply_take(supply, grow_to(p, i, vm, actual + given, "guest needs it"));
	}
}

static bool is_releasable(enum balloon_block block)
{
	/* Not for the guest's word, and harmless where it is not known. */
	return block == BLOCK_NONE || block == BLOCK_NO_STATS || block == BLOCK_NO_EFFECT;
}

/* A host with room: what was taken is let go, in steps, as far as the host stays so. */
static void grow_spare(struct balloon_policy *p, const struct host_snapshot *s, struct supply *supply)
{
	for (size_t i = 0; i < s->vm_count && supply->spare; i++) {
		const struct vm_snapshot *vm = &s->vms[i];
		uint64_t actual = vm->balloon.actual_bytes, missing = less_u64(vm_limit_bytes(vm), actual), given;

		if (!is_releasable(p->vms[i].block) || p->vms[i].target_bytes || missing < vm_dead_band(vm) ||
		    (p->tracks[i].shrunk_ns && s->taken_ns - p->tracks[i].shrunk_ns < p->limits.hold_ns))
			continue;
		given = min_u64(min_u64(missing, max_u64(step_bytes(p, vm), vm_dead_band(vm))), supply->spare);
		/* Nor is more called back that is on its way. */
		if (given < vm_dead_band(vm) || actual + given <= p->tracks[i].target_bytes)
			continue;
		supply_take(supply, grow_to(p, i, vm, actual + given, "the host has room"));
	}
}

/* Whether a command reaches the balloon, and is no harm to what the VM is about. */
static bool is_reachable(enum balloon_block block)
{
	return block != BLOCK_OFF && block != BLOCK_NO_DRIVER && block != BLOCK_NO_DEVICE && block != BLOCK_MIGRATING;
}

/* A guest boots with the balloon of its last life, and would start in what was left to that. Booting takes little. */
static void grow_reset(struct balloon_policy *p, const struct host_snapshot *s)
{
	for (size_t i = 0; i < s->vm_count; i++) {
		uint64_t actual = s->vms[i].balloon.actual_bytes, limit = vm_limit_bytes(&s->vms[i]);
		struct track *t = &p->tracks[i];

		if (!t->reset || !is_reachable(p->vms[i].block))
			continue;
		t->reset = false;
		t->stalled = false;
		if (actual < limit)
			target_set(&p->vms[i], &s->vms[i], limit, "guest was reset");
		else if (t->target_bytes && t->target_bytes < actual)
			hold_at_actual(&p->vms[i], "guest was reset");
	}
}

/* A reservation that was raised, or that somebody else's command went below. It is the VM's, needed or not. */
static void grow_reserved(struct balloon_policy *p, const struct host_snapshot *s)
{
	for (size_t i = 0; i < s->vm_count; i++) {
		const struct vm_snapshot *vm = &s->vms[i];
		uint64_t actual = vm->balloon.actual_bytes, reserved = min_u64(vm->reservation_bytes, vm_limit_bytes(vm));

		if (is_reachable(p->vms[i].block) && max_u64(p->vms[i].target_bytes, actual) < reserved)
			target_set(&p->vms[i], vm, reserved, "its reservation");
	}
}

/* ---- taking ---- */

/* How far this VM may go down now. Where another guest starves it keeps what it uses now, and room; what it used a while
 * ago counts only while there is enough for all. */
static uint64_t floor_bytes(const struct balloon_policy *p, const struct vm_snapshot *vm, const struct track *t,
			    bool urgent)
{
	uint64_t least = vm_min_bytes(vm, &p->limits), limit = vm_limit_bytes(vm);

	if (!urgent)
		return max_u64(untouched_bytes(p, vm, t), min_u64(t->entitled_bytes, limit));
	if (is_contested(p) || t->objection != VETO_NONE)
		return untouched_bytes(p, vm, t);
	return max_u64(min_u64(max_u64(vm_size_for(vm, t->used_bytes, &p->limits), borne_bytes(p, vm, t)), limit), least);
}

static bool may_shrink(const struct balloon_policy *p, const struct vm_snapshot *vm, size_t i, uint64_t now_ns,
		       bool urgent)
{
	const struct track *t = &p->tracks[i];
	uint64_t actual = vm->balloon.actual_bytes;
	bool plainly_idle;

	if (p->vms[i].block != BLOCK_NONE || p->vms[i].target_bytes || !t->stats_ns)
		return false;
	/* A host in need does not wait for what a guest was given lately and plainly does not use; from when it was first given
	 * any it has been left alone for as long all the same, so that its target does not turn more often. */
	plainly_idle = is_contested(p) && t->used_bytes < actual / 2;
	if (t->grown_ns && now_ns - (plainly_idle ? t->turned_ns : t->grown_ns) < p->limits.hold_ns)
		return false;
	/* Above its limit an objection does not help it. */
	if (t->objection != VETO_NONE && actual <= vm_limit_bytes(vm))
		return false;
	/* Not before the last step was made, and the guest has told how it took that: what it told on the way there, less a
	 * balloon that is there, makes it seem to use less than it does. */
	if (t->target_bytes &&
	    (actual > t->target_bytes + vm_dead_band(vm) || vm->balloon.stats_ns <= t->arrived_ns))
		return false;
	/* A balloon that brings nothing is to cost its guest a step, not all that a balloon may take. */
	if (!is_contested(p) && !urgent && effect_awaited(t, now_ns))
		return false;
	return urgent || is_contested(p) || vm_held_bytes(vm) > t->entitled_bytes || actual > vm_limit_bytes(vm);
}

/* What a guest has never touched it does not miss, and nothing comes back for it: where another starves, or the host is in
 * need, steps count from what it holds. Else a guest that fills its page cache meanwhile is faster than its balloon. */
static uint64_t shrunk_bytes(const struct balloon_policy *p, const struct vm_snapshot *vm, size_t i, bool urgent)
{
	uint64_t step = max_u64(step_bytes(p, vm), vm_dead_band(vm));
	uint64_t from = urgent || is_contested(p) ? vm_held_bytes(vm) : vm->balloon.actual_bytes;
	uint64_t least = less_u64(from, urgent ? URGENT_STEPS * step : step);

	return max_u64(floor_bytes(p, vm, &p->tracks[i], urgent), least);
}

static bool anybody_starves(const struct balloon_policy *p, const struct host_snapshot *s)
{
	for (size_t i = 0; i < s->vm_count; i++)
		if (may_grow(p->vms[i].block) && p->tracks[i].veto != VETO_NONE)
			return true;
	return false;
}

/* What shrink() will take in this tick for guests that starve, as far as it is free in its guest. That can be given away at
 * once: a balloon takes it sooner than the guest that is given it has filled it. What has to be reclaimed first comes later,
 * and a host that gave it away before would swap. */
static uint64_t coming_bytes(const struct balloon_policy *p, const struct host_snapshot *s)
{
	uint64_t sum = 0;

	for (size_t i = 0; i < s->vm_count; i++) {
		const struct vm_snapshot *vm = &s->vms[i];

		if (may_shrink(p, vm, i, s->taken_ns, true))
			sum += min_u64(less_u64(vm_held_bytes(vm), shrunk_bytes(p, vm, i, true)), vm->balloon.free_bytes);
	}
	return sum;
}

static void shrink(struct balloon_policy *p, const struct host_snapshot *s, bool urgent)
{
	for (size_t i = 0; i < s->vm_count; i++) {
		const struct vm_snapshot *vm = &s->vms[i];
		uint64_t actual = vm->balloon.actual_bytes, target;

		if (!may_shrink(p, vm, i, s->taken_ns, urgent))
			continue;
		target = shrunk_bytes(p, vm, i, urgent);
		if (less_u64(actual, target) < vm_dead_band(vm)) {
			p->vms[i].why = "nothing idle";
			continue;
		}
		target_set(&p->vms[i], vm, target, is_contested(p) ? "the host is in need" : "idle memory");
	}
}

/* ---- all of it ---- */

/* A request that the guest does not follow is withdrawn, lest it is followed at an unfit time. */
static void withdraw_stalled(struct balloon_policy *p)
{
	for (size_t i = 0; i < p->effect_count; i++) {
		const struct balloon_effect *e = &p->effects[i];
		const struct track *t = &p->tracks[e->vm];

		if (e->kind == EFFECT_STALLED && t->target_bytes < p->vms[e->vm].actual_bytes)
			hold_at_actual(&p->vms[e->vm], "the balloon does not move");
	}
}

void plan_make(struct balloon_policy *p, const struct host_snapshot *s)
{
	struct supply supply = supply_of(&p->ladder);
	bool taking = ladder_rows[p->ladder.state].take_idle, urgent = taking && anybody_starves(p, s);

	p->budget_bytes = 0;
	contradictions_look(p, s);
	if (taking)
		share_out(p, s);
	withdraw_stalled(p);
	grow_reset(p, s);
	if (urgent)
		supply.urgent += coming_bytes(p, s);
	grow_urgent(p, s, &supply);
	grow_reserved(p, s);
	grow_needed(p, s, &supply);
	grow_spare(p, s, &supply);
	if (taking)
		shrink(p, s, urgent);
}
