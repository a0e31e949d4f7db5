/* balloon/admit.h - memory promised to VMs that are about to start. Pure: no I/O, clock or globals. */
#ifndef BALLOON_ADMIT_H
#define BALLOON_ADMIT_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "balloon/ladder.h"
#include "core/snapshot.h"

#define ADMIT_GRANTS_MAX 256

struct grant {
	uint64_t bytes;
	int node; /* -1: any */
	uint64_t asked_ns, until_ns; /* it ends then */
	bool granted; /* false: refused for now; room is being made */
	pid_t pid; /* of the VM that showed up for it; 0: none yet */
	uint64_t start_ticks;
};

struct admit {
	struct grant grants[ADMIT_GRANTS_MAX];
	size_t count;
};

struct admit_question {
	uint64_t bytes;
	int node; /* -1: any */
	uint64_t node_free_bytes; /* with a node: what can be had of it now */
	uint64_t idle_bytes; /* what VMs could give without having less than they use */
	uint64_t timeout_ns;
};

struct admit_answer {
	bool granted;
	bool later; /* not granted, but will be: room is being made, and kept for a while */
	uint64_t short_bytes;
	char why[200];
};

/* Ends grants whose time has come, and gives each VM that is new since the grant the one that fits it best: what it does
 * not hold yet stays promised to it until the grant's end. Call once per tick; returns what is promised now. */
uint64_t admit_tick(struct admit *a, const struct host_snapshot *s);

/* Asks for a VM of that size. s is of the last tick, l has looked at it. A question that was refused with "later" and is
 * asked again takes the place of its first time. */
void admit_ask(struct admit *a, const struct host_snapshot *s, const struct ladder *l, const struct admit_question *q,
	       struct admit_answer *ret_answer);

#endif
