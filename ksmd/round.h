/* ksmd/round.h - one round of remap over the VMs of a domain, and the sweep after it, on a thread of its own. */
#ifndef KSMD_ROUND_H
#define KSMD_ROUND_H

#include <stdbool.h>
#include <stddef.h>

#include "ksmd/remap.h"

struct round;

struct round_result {
	int error;	    /* of the round or look: 0 or -errno */
	struct remap_vm_result *vms;
	struct remap_result merged;
	int sweep_error;
	uint32_t freed_frames;
	bool sweep_more; /* another sweep may free more */
	bool look;	 /* it was one, and nothing else */
	bool stopped;	 /* before its end */
	uint64_t look_cpu_ns;
};

/* count 0: only the sweep. limits is copied, but for what it points to, which is the round's own. Peers are borrowed until
 * round_free(); tables are referenced; nobody else uses remap till then. 0 or -errno. */
int round_start(struct remap *remap, const struct remap_vm *vms, size_t count, const struct remap_limits *limits,
		struct round **ret_round);
/* Only a look at what the VMs map; the same otherwise. */
int round_look(struct remap *remap, struct round **ret_round);
/* No window is begun any more; it ends when those under way have been answered. */
void round_stop(struct round *r);
/* Merged so far by a round that is at work. */
uint64_t round_merged_pages(const struct round *r);
/* Readable when it has ended. */
int round_done_fd(const struct round *r);
/* Waits for the end if need be. */
const struct round_result *round_wait(struct round *r);
const struct remap_vm *round_vms(const struct round *r, size_t *ret_count);
struct round *round_free(struct round *r); /* cancels if still running, waits; NULL ok; gives NULL */

#endif
