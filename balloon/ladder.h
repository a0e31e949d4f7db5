/* balloon/ladder.h - how short of memory the host is, in five states, and what each allows. Pure: no I/O, clock or
 * globals. */
#ifndef BALLOON_LADDER_H
#define BALLOON_LADDER_H

#include <stdbool.h>
#include <stdint.h>

#include "core/snapshot.h"

/* In order: each allows what the one before does, and more. */
enum host_state { HOST_HIGH, HOST_CLEAR, HOST_SOFT, HOST_HARD, HOST_LOW, HOST_STATES };

/* One row for each state; the table is in ladder.c. */
struct ladder_row {
	const char *name;
	/* Percent of min_free: the state begins when less is free, and ends when more than the second is. */
	unsigned int below_percent, above_percent;
	/* ... or when tasks stood still for memory for this share of the time since the last tick, in permille. */
	unsigned int some_permille, full_permille;
	bool release;	  /* memory is given back to guests beyond what they need */
	bool take_idle;	  /* memory that guests do not use is taken */
	bool take_all;	  /* ... and half of what they are to keep, down to their entitlement */
	bool admit;	  /* new VMs may start */
};

extern const struct ladder_row ladder_rows[HOST_STATES];

/* All zero: nothing was seen yet. */
struct ladder {
	enum host_state state;
	uint64_t free_bytes, min_free_bytes; /* as decided on */
	unsigned int some_permille, full_permille;
	struct pressure pressure; /* at the last look */
	uint64_t looked_ns, entered_ns;
	char why[160]; /* of the last change of state */
};

/* What ought to be free on a host of this size. VMware ESX, Mem.MinFreePct: 899 MiB of the first 28 GiB and 1 % of the
 * rest; smaller hosts get their part of it. */
uint64_t ladder_min_free(uint64_t total_bytes);

/* What is free for good: available, less what merged memory may come back, less what was promised to VMs to come. */
uint64_t ladder_free(const struct host_snapshot *s);

/* Takes in the picture; min_free_bytes 0: by formula. True when the state has changed. */
bool ladder_look(struct ladder *l, const struct host_snapshot *s, uint64_t min_free_bytes);

/* Bytes that must be free for the state to end for the better (HOST_HIGH: to begin). */
uint64_t ladder_leave_bytes(enum host_state state, uint64_t min_free_bytes);

const char *host_state_name(enum host_state state);

#endif
