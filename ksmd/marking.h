/* ksmd/marking.h - gives to the kernel's scanner what is worth its time (ksmd/hints.h), through the agents of the VMs of
 * one domain, on a thread of its own. */
#ifndef KSMD_MARKING_H
#define KSMD_MARKING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ksmd/agent_peer.h"
#include "ksmd/hints.h"

struct page_table;
struct marking;

struct marking_vm {
	struct agent_peer *peer;  /* borrowed until marking_free() */
	struct page_table *table; /* referenced; no scan of it may be under way */
	uint32_t mappings_left;	  /* of its budget */
};

struct marking_result {
	int error;    /* of the plan: 0 or -errno, then nothing was marked */
	bool *broken; /* per VM: its connection is of no use any more */
	int mark_error; /* of the first stretch that could not be marked; the others are */
	struct hints_totals totals;
	double cpu_seconds; /* of splitting and planning */
};

/* 0 or -errno. */
int marking_start(const struct marking_vm *vms, size_t count, struct marking **ret_marking);
int marking_done_fd(const struct marking *m); /* readable when it has ended */
const struct marking_result *marking_wait(struct marking *m);
const struct marking_vm *marking_vms(const struct marking *m, size_t *ret_count);
struct marking *marking_free(struct marking *m); /* cancels if still running, waits; NULL ok; gives NULL */

#endif
