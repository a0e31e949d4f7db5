/* bench/lib/policy_run.h - runs the balloon's policy over a record, with the settings of the record and of any number of
 * policy files at once, and counts what came of each.
 *
 * A record is what happened, and cannot tell what would have happened. Where a policy wants other sizes than were recorded,
 * the difference is estimated: the guest has that much more or less, at once; giving costs the host all of it, taking
 * brings back only what the guest then cannot keep resident. Pressure, swapping and faults stay as they were recorded.
 * While nothing differs the picture is the recorded one, so that the same settings give the same decisions. */
#ifndef BENCH_POLICY_RUN_H
#define BENCH_POLICY_RUN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "balloon/policy.h"
#include "core/config.h"
#include "core/record.h"

#define POLICY_RUNS_MAX 16

/* What one VM was given by one policy. */
struct run_vm {
	uint64_t wanted_bytes; /* last target, or the size when it was seen first; 0: not seen, or no balloon */
	uint64_t least_bytes, most_bytes; /* of wanted_bytes */
	double sum_bytes;		  /* over the ticks */
	uint64_t ticks, targets, vetoes;
};

struct policy_run {
	const char *name;
	enum policy_run_kind {
		RUN_RECORDED, /* what was decided then */
		RUN_SETTINGS, /* with the settings of the record */
		RUN_FILE,
	} kind;
	struct config config; /* owned */
	struct balloon_policy *policy; /* NULL of RUN_RECORDED */

	uint64_t state_ticks[HOST_STATES], targets, vetoes;
	uint64_t taken_bytes, given_bytes;
	uint64_t available_least_bytes; /* the host's, as estimated */
	unsigned int differs_line;	/* first line on which it did not decide what was recorded; 0: none */
	char differs[256];
	struct run_vm *vms; /* as many as the replay has */

	/* Of the tick that was run last: one for each VM of its snapshot. */
	enum host_state state;
	struct balloon_vm_plan *plan;
};

struct replay_vm {
	char name[256];
	pid_t pid;
	uint64_t start_ticks;
};

struct policy_replay {
	struct policy_run runs[POLICY_RUNS_MAX]; /* the first is RUN_RECORDED, the second RUN_SETTINGS */
	size_t run_count;
	struct replay_vm *vms; /* all that were ever seen */
	size_t vm_count, vm_cap;
	uint64_t ticks, undecided, span_ns;
	char version[32];

	/* Of the line that was run last. */
	uint64_t taken_ns; /* 0: none since the last header */
	size_t *index;	   /* vms[] of each VM of the snapshot */
	size_t index_cap;
	size_t tick_vms; /* in it */
};

int policy_replay_new(struct policy_replay **ret_replay); /* 0 or -ENOMEM */
struct policy_replay *policy_replay_free(struct policy_replay *r); /* NULL ok; gives NULL */

/* Before the first line. The configuration is taken, name is borrowed. 0; -E2BIG: too many. */
int policy_replay_add(struct policy_replay *r, const char *name, struct config *config);

/* Runs all policies over the next line of a record. 0; -EBADMSG with the reason in ret_why; -ENOMEM. */
int policy_replay_line(struct policy_replay *r, const struct record_line *line, unsigned int number, char *ret_why,
		       size_t cap);

#endif
