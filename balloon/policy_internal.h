/* balloon/policy_internal.h - what policy.c, vm_track.c and effect.c share. Private to them. */
#ifndef BALLOON_POLICY_INTERNAL_H
#define BALLOON_POLICY_INTERNAL_H

#include <sys/types.h>

#include "balloon/entitle.h"
#include "balloon/policy.h"

#define MIB (UINT64_C(1) << 20)

static inline uint64_t min_u64(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static inline uint64_t max_u64(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

static inline uint64_t less_u64(uint64_t a, uint64_t b)
{
	return a > b ? a - b : 0;
}

/* A VM over the ticks. */
struct track {
	pid_t pid;
	uint64_t start_ticks;

	/* The guest, as of the statistics of stats_ns; 0: none were good yet */
	uint64_t stats_ns;
	uint64_t stats_void_ns; /* until then made by what ran before the reset */
	uint64_t swap_in_bytes, swap_out_bytes, major_faults, oom_kills, resets;
	uint64_t used_bytes; /* now */
	uint64_t demand_bytes; /* what it used lately: rises at once, falls slowly */
	uint64_t ahead_bytes; /* what it will use more by the time that memory given now has arrived */
	enum balloon_veto objection; /* what is wrong in the guest, whether or not its balloon can help */
	enum balloon_veto veto;
	/* The size at which it objected last, what it used then, and when; 0 ns: it never did */
	uint64_t refused_bytes, refused_used_bytes, refused_ns;
	bool reset; /* started anew, and not given its memory back yet */
	uint64_t entitled_bytes; /* 0: never shared out */

	/* What was asked of the balloon */
	uint64_t target_bytes; /* last; 0: nothing */
	uint64_t turned_ns; /* when it was given memory after memory had been taken from it, or for the first time */
	uint64_t grown_ns, shrunk_ns; /* when; 0: never */
	uint64_t cut_from_bytes; /* actual before the cuts since memory was last given back; 0: none */

	/* Where it got to; effect.c's */
	uint64_t moved_ns, moved_bytes; /* last time that actual came nearer to target, and what it was */
	uint64_t arrived_ns; /* when it was first seen where it was asked to be; 0: not yet */
	/* The cuts whose effect is not told yet; 0: none */
	uint64_t judge_from_bytes;     /* actual before them */
	uint64_t judge_resident_bytes; /* resident then; 0: not known, nothing is expected */
	bool stalled; /* until it is retried */
	uint64_t aside_until_ns; /* stalled: when it is */
	uint64_t no_effect_until_ns;
};

struct balloon_policy {
	struct balloon_limits limits; /* a copy */
	struct ladder ladder;
	struct track *tracks; /* in the order of the snapshot, once it was looked at */
	size_t track_count, track_cap;

	/* The plan; arrays of vm_cap each, and what they are made with. */
	struct balloon_vm_plan *vms;
	struct track *before; /* of each VM, from before it was asked */
	struct balloon_effect *effects;
	struct claim *claims;
	uint64_t *granted;
	size_t *claimants; /* index of the VM behind each claim */
	size_t vm_cap, effect_count;
	uint64_t idle_bytes, budget_bytes, missing_bytes;
};

/* Memory of the host that the guest holds, as far as it is known: at most what the balloon leaves it. */
uint64_t vm_held_bytes(const struct vm_snapshot *vm);
/* Least and most that the VM's balloon may leave it. */
uint64_t vm_min_bytes(const struct vm_snapshot *vm, const struct balloon_limits *l);
uint64_t vm_limit_bytes(const struct vm_snapshot *vm);
/* What a guest of this size is to keep available. */
uint64_t vm_keep_bytes(const struct vm_snapshot *vm, uint64_t size_bytes, const struct balloon_limits *l);
/* A size at which a guest that uses this much keeps what it is to keep. */
uint64_t vm_size_for(const struct vm_snapshot *vm, uint64_t used_bytes, const struct balloon_limits *l);
/* A change that is not worth a command. */
uint64_t vm_dead_band(const struct vm_snapshot *vm);

/* Takes the guest's figures in: use, demand, veto, resets. */
void track_guest(struct track *t, const struct vm_snapshot *vm, const struct balloon_limits *l);
enum balloon_block track_block(const struct track *t, const struct vm_snapshot *vm);
/* What was asked of the balloon at now_ns. */
void track_asked(struct track *t, const struct vm_snapshot *vm, uint64_t target_bytes, uint64_t now_ns);

/* Looks at how far the balloon has come. True when there is something to tell: *ret_effect but for "vm". */
bool effect_look(struct track *t, const struct vm_snapshot *vm, const struct balloon_limits *l, uint64_t now_ns,
		 struct balloon_effect *ret_effect);
/* Whether it will soon be seen what came of taking memory. */
bool effect_awaited(const struct track *t, uint64_t now_ns);

/* Fills vms[].target_bytes, .entitled_bytes and .why of a policy that has looked at all VMs. policy_plan.c */
void plan_make(struct balloon_policy *p, const struct host_snapshot *s);

#endif
