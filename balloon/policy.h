/* balloon/policy.h - decides how large each VM's balloon is to be. Pure: no I/O, clock or globals; what it remembers
 * of earlier ticks is in the policy. The daemon, the replay of a record and the simulator run this very code. */
#ifndef BALLOON_POLICY_H
#define BALLOON_POLICY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "balloon/ladder.h"
#include "core/snapshot.h"

/* From the configuration; see memvirt.conf(5). */
struct balloon_limits {
	uint64_t min_free_bytes; /* 0: by formula */
	unsigned int idle_tax_percent, max_percent, step_percent, keep_percent;
	uint64_t hold_ns, stall_ns;
};

/* Why a guest must get memory back, worst first; NONE: it need not. */
enum balloon_veto { VETO_NONE, VETO_AVAILABLE, VETO_SWAP_IN, VETO_FAULTS, VETO_OOM };

/* Why a VM's balloon is not moved at all; NONE: it may be. */
enum balloon_block {
	BLOCK_NONE,
	BLOCK_OFF,	    /* configuration */
	BLOCK_NO_DRIVER,    /* nobody reaches it */
	BLOCK_NO_DEVICE,
	BLOCK_NO_STATS,	    /* the guest does not tell how it is doing, or tells nonsense */
	BLOCK_MIGRATING,
	BLOCK_PAUSED,
	BLOCK_STALLED,	    /* does not move; tried again later */
	BLOCK_NO_EFFECT,    /* moves, and nothing comes back to the host */
};

struct balloon_vm_plan {
	uint64_t target_bytes; /* wanted memory of the guest; 0: leave the balloon as it is */
	uint64_t actual_bytes; /* before */
	uint64_t demand_bytes; /* what the guest uses, smoothed; 0: unknown */
	uint64_t entitled_bytes; /* of the last time that memory was shared out; 0: never */
	enum balloon_block block;
	enum balloon_veto veto;
	const char *why; /* of the target, or of none; static string */
	bool not_done;	 /* balloon_policy_not_done() was called for it */
};

/* What came of taking memory, told once: when the balloon has arrived, stalled, or was given up. */
struct balloon_effect {
	size_t vm; /* index into the snapshot */
	enum balloon_effect_kind { EFFECT_ARRIVED, EFFECT_STALLED, EFFECT_NOTHING_FREED, EFFECT_MOVES_AGAIN } kind;
	uint64_t asked_bytes;	 /* taken from the guest */
	uint64_t expected_bytes; /* of it, at least to be seen in resident memory */
	uint64_t freed_bytes;	 /* resident memory that went */
};

/* Borrowed from the policy until its next decision. */
struct balloon_plan {
	bool state_changed;
	const struct ladder *ladder;
	uint64_t budget_bytes; /* shared out among the VMs whose balloons move; 0: nothing was shared out */
	uint64_t missing_bytes; /* reservations exceed the memory that is there by this much; 0: they do not */
	const struct balloon_vm_plan *vms; /* one for each of the snapshot, in its order */
	size_t vm_count;
	const struct balloon_effect *effects;
	size_t effect_count;
};

struct balloon_policy;

int balloon_policy_new(const struct balloon_limits *limits, struct balloon_policy **ret_policy); /* 0 or -ENOMEM */
struct balloon_policy *balloon_policy_free(struct balloon_policy *p); /* NULL ok; gives NULL */
void balloon_policy_set_limits(struct balloon_policy *p, const struct balloon_limits *limits);

/* One decision, once per tick; p goes on as if the plan were carried out. 0 or -ENOMEM. */
int balloon_policy_decide(struct balloon_policy *p, const struct host_snapshot *s, struct balloon_plan *ret_plan);

/* A guest with so little available is given memory at the next decision, if it can have any. */
bool balloon_guest_is_short(const struct balloon_limits *limits, uint64_t max_bytes, uint64_t actual_bytes,
			    uint64_t available_bytes);

/* The target of VM number i of the last decision was not carried out (dry run, no connection): nothing was asked of it. */
void balloon_policy_not_done(struct balloon_policy *p, size_t i);

/* Memory that could be taken from VMs by the rules of HOST_SOFT, without anybody having less than it uses; of the last
 * decision. */
uint64_t balloon_policy_idle_bytes(const struct balloon_policy *p);

const char *balloon_block_name(enum balloon_block block); /* for people: "no statistics" */
const char *balloon_veto_name(enum balloon_veto veto);

#endif
