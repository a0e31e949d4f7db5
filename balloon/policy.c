#include "balloon/policy.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "balloon/policy_internal.h"
#include "core/cleanup.h"
#include "core/clock.h"

/* ---- life ---- */

int balloon_policy_new(const struct balloon_limits *limits, struct balloon_policy **ret_policy)
{
	struct balloon_policy *p = calloc(1, sizeof(*p));

	if (!p)
		return -ENOMEM;
	p->limits = *limits;
	*ret_policy = p;
	return 0;
}

struct balloon_policy *balloon_policy_free(struct balloon_policy *p)
{
	if (!p)
		return NULL;
	free(p->tracks);
	free(p->vms);
	free(p->before);
	free(p->effects);
	free(p->claims);
	free(p->granted);
	free(p->claimants);
	free(p);
	return NULL;
}

void balloon_policy_set_limits(struct balloon_policy *p, const struct balloon_limits *limits)
{
	p->limits = *limits;
}

static int grow_array(void *array, size_t count, size_t size)
{
	void *bigger = reallocarray(*(void **)array, count, size);

	if (!bigger)
		return -ENOMEM;
	*(void **)array = bigger;
	return 0;
}

static int room_make(struct balloon_policy *p, size_t count)
{
	size_t cap = count + count / 2 + 16;

	if (count <= p->vm_cap)
		return 0;
	if (grow_array(&p->vms, cap, sizeof(*p->vms)) < 0 || grow_array(&p->before, cap, sizeof(*p->before)) < 0 ||
	    grow_array(&p->effects, cap, sizeof(*p->effects)) < 0 ||
	    grow_array(&p->claims, cap, sizeof(*p->claims)) < 0 || grow_array(&p->granted, cap, sizeof(*p->granted)) < 0 ||
	    grow_array(&p->claimants, cap, sizeof(*p->claimants)) < 0)
		return -ENOMEM;
	p->vm_cap = cap;
	return 0;
}

/* ---- VMs over the ticks ---- */

static size_t track_find(const struct balloon_policy *p, const struct vm_snapshot *vm, size_t from)
{
	for (size_t i = from; i < p->track_count; i++)
		if (p->tracks[i].pid == vm->pid && p->tracks[i].start_ticks == vm->start_ticks)
			return i;
	return p->track_count;
}

/* Puts the tracks into the order of the snapshot, new ones where VMs are new, and drops the rest. VMs come at the end and
 * go from anywhere, so that what is looked for is nearly always next. */
static int tracks_match(struct balloon_policy *p, const struct host_snapshot *s)
{
	if (p->track_cap < p->track_count + s->vm_count) {
		size_t cap = p->track_count + 2 * s->vm_count;

		if (grow_array(&p->tracks, cap, sizeof(*p->tracks)) < 0)
			return -ENOMEM;
		p->track_cap = cap;
	}
	for (size_t i = 0; i < s->vm_count; i++) {
		const struct vm_snapshot *vm = &s->vms[i];
		size_t at = track_find(p, vm, i);
		struct track t = { .pid = vm->pid, .start_ticks = vm->start_ticks, .resets = vm->balloon.resets };

		if (at == p->track_count)
			p->track_count++;
		else
			t = p->tracks[at];
		p->tracks[at] = p->tracks[i];
		p->tracks[i] = t;
	}
	p->track_count = s->vm_count;
	return 0;
}

static void vms_look(struct balloon_policy *p, const struct host_snapshot *s)
{
	p->effect_count = 0;
	for (size_t i = 0; i < s->vm_count; i++) {
		const struct vm_snapshot *vm = &s->vms[i];
		struct track *t = &p->tracks[i];
		struct balloon_effect effect;

		track_guest(t, vm, &p->limits);
		if (effect_look(t, vm, &p->limits, s->taken_ns, &effect)) {
			effect.vm = i;
			p->effects[p->effect_count++] = effect;
		}
		p->vms[i] = (struct balloon_vm_plan){ .actual_bytes = vm->balloon.actual_bytes,
						      .block = track_block(t, vm), .veto = t->veto,
						      .demand_bytes = t->demand_bytes,
						      .entitled_bytes = t->entitled_bytes };
		p->vms[i].why = balloon_block_name(p->vms[i].block);
	}
}

/* ---- the decision ---- */

int balloon_policy_decide(struct balloon_policy *p, const struct host_snapshot *s, struct balloon_plan *ret_plan)
{
	bool changed;

	if (room_make(p, s->vm_count) < 0 || tracks_match(p, s) < 0)
		return -ENOMEM;
	changed = ladder_look(&p->ladder, s, p->limits.min_free_bytes);
	vms_look(p, s);
	plan_make(p, s);
	if (s->vm_count > 0) /* else there is no array */
		memcpy(p->before, p->tracks, s->vm_count * sizeof(*p->before));
	for (size_t i = 0; i < s->vm_count; i++)
		if (p->vms[i].target_bytes)
			track_asked(&p->tracks[i], &s->vms[i], p->vms[i].target_bytes, s->taken_ns);
	*ret_plan = (struct balloon_plan){ .state_changed = changed,
					   .ladder = &p->ladder,
					   .budget_bytes = p->budget_bytes,
					   .missing_bytes = p->missing_bytes,
					   .vms = p->vms,
					   .vm_count = s->vm_count,
					   .effects = p->effects,
					   .effect_count = p->effect_count };
	return 0;
}

void balloon_policy_not_done(struct balloon_policy *p, size_t i)
{
	if (i >= p->track_count)
		return;
	p->tracks[i] = p->before[i];
	p->vms[i].not_done = true;
}

uint64_t balloon_policy_idle_bytes(const struct balloon_policy *p)
{
	return p->idle_bytes;
}

const char *balloon_block_name(enum balloon_block block)
{
	static const char *const names[] = {
		[BLOCK_NONE] = "",
		[BLOCK_OFF] = "off by configuration",
		[BLOCK_NO_DRIVER] = "nobody reaches its balloon",
		[BLOCK_NO_DEVICE] = "no balloon device",
		[BLOCK_NO_STATS] = "no good statistics",
		[BLOCK_MIGRATING] = "migrating",
		[BLOCK_PAUSED] = "paused",
		[BLOCK_STALLED] = "its balloon does not move",
		[BLOCK_NO_EFFECT] = "its balloon frees nothing",
	};

	return names[block];
}

const char *balloon_veto_name(enum balloon_veto veto)
{
	static const char *const names[] = {
		[VETO_NONE] = "",
		[VETO_AVAILABLE] = "guest has little available",
		[VETO_SWAP_IN] = "guest swaps in",
		[VETO_FAULTS] = "guest has major faults",
		[VETO_OOM] = "guest killed for memory",
	};

	return names[veto];
}
