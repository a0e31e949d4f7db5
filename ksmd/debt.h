/* ksmd/debt.h - copy-on-write debt: how much merged memory may come back before anything can be done about it, and
 * whether the host could take it. Pure: no I/O, clock or globals. */
#ifndef KSMD_DEBT_H
#define KSMD_DEBT_H

#include <stdbool.h>
#include <stdint.h>

#include "core/snapshot.h"

/* How fast merges of one VM, or of the kernel's scanner, break: older observations count for less and less. */
struct break_rate {
	uint64_t breaks, at_ns; /* as observed last; at_ns 0: never */
	double per_s;
};

/* breaks: in all so far, at that moment. Gives how many are new; a count that went back begins anew. */
uint64_t break_rate_take(struct break_rate *r, uint64_t breaks, uint64_t at_ns);

enum debt_state {
	DEBT_OK,
	DEBT_STOP, /* nothing is to be merged */
};

struct debt_inputs {
	uint64_t merged_pages;	/* that would need memory again if all of them were written */
	double breaks_per_s;	/* of all VMs */
	uint64_t share_percent; /* of merged_pages, that come back at once whatever was observed */
};

struct debt {
	enum debt_state state;
	uint64_t pages;	      /* the debt */
	uint64_t limit_pages; /* what the host could take */
	char why[160];	      /* of the last change of state; empty: there was none */
};

/* Decides by the host's memory in s. True when the state has changed. */
bool debt_decide(struct debt *d, const struct host_snapshot *s, const struct debt_inputs *in);
const char *debt_state_name(enum debt_state state);

#endif
