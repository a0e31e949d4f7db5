/* ksmd/round.h - one round of remap over the VMs of a domain, and the sweep after it, on a thread of its own. */
#ifndef KSMD_ROUND_H
#define KSMD_ROUND_H

#include <stdbool.h>
#include <stddef.h>

#include "ksmd/remap.h"

struct round;

struct round_result {
	int error;	    /* of the round: 0 or -errno */
	struct remap_vm_result *vms;
	struct remap_result merged;
	int sweep_error;
	uint32_t freed_frames;
	bool sweep_more; /* another sweep may free more */
};

/* count 0: only the sweep. limits is copied, but for cancel, which is the round's own. Peers are borrowed until
 * round_free(); tables are referenced; nobody else uses remap till then. 0 or -errno. */
int round_start(struct remap *remap, const struct remap_vm *vms, size_t count, const struct remap_limits *limits,
		struct round **ret_round);
/* Readable when it has ended. */
int round_done_fd(const struct round *r);
/* Waits for the end if need be. */
const struct round_result *round_wait(struct round *r);
const struct remap_vm *round_vms(const struct round *r, size_t *ret_count);
struct round *round_free(struct round *r); /* cancels if still running, waits; NULL ok; gives NULL */

#endif
