/* ksmd/demote.h - a VM whose merges keep breaking is not merged for a while. Pure: no I/O, clock or globals. */
#ifndef KSMD_DEMOTE_H
#define KSMD_DEMOTE_H

#include <stdbool.h>
#include <stdint.h>

struct demotion {
	bool demoted;
	unsigned looks;	   /* in a row that speak for a change: bad ones, or calm ones while it is demoted */
	uint64_t judged_ns; /* the last look that was judged; 0: none */
	uint64_t whole_then, breaks_then; /* pages that were not broken then, and breaks until then */
	uint64_t since_ns, hold_ns; /* of the last demotion: when, and for how long at least */
	uint64_t kept_ns;  /* for how long merges have kept since the last promotion */
	char why[128];	    /* of the last change */
};

enum demote_event { DEMOTE_KEEP, DEMOTE_DOWN, DEMOTE_UP };

/* Takes a look at the VM in: pages that are merged and not broken, and how many broke so far in all. */
enum demote_event demote_look(struct demotion *d, uint64_t whole_pages, uint64_t breaks, uint64_t now_ns);

#endif
