/* ksmd/hints.h - which stretches of the VMs of one domain to give to the kernel's scanner (MADV_MERGEABLE). Pure: no
 * I/O, clock or globals.
 *
 * For VMs whose pages the daemon may not exchange itself. The scanner need not look at all of their memory, twice, to
 * find out what the last pass knows: only pages whose content occurs more than once in the domain, and zero pages,
 * are worth its time. See README, "Hints".
 *
 * Memory while planning: a bit for each page of the VMs, and two joins (join.h), one after the other. What is left is 16
 * bytes for each stretch. Nothing is remembered from plan to plan: marking what is marked already costs an agent one
 * look at its mappings. */
#ifndef KSMD_HINTS_H
#define KSMD_HINTS_H

#include <stddef.h>
#include <stdint.h>

#include "agent/protocol.h"

struct page_table; /* ksmd/pass.h */
struct hints;

struct hints_vm {
	const struct page_table *table; /* borrowed for the call; no scan of it may be under way */
	uint32_t mappings_left;		/* of its budget; a stretch is counted as two, the most it can cost */
};

struct hints_limits {
	uint32_t stretch_min; /* pages to merge that are worth a stretch; also what makes it worth to pass over a gap */
	uint32_t block_min;   /* pages to merge that are worth losing a huge page */
};
/* Measured, see README. */
#define HINTS_LIMITS_DEFAULT ((struct hints_limits){ 4, 64 })

/* All VMs are of one domain. limits NULL: the defaults. 0, -ENOMEM, -EINVAL (too many VMs), -E2BIG (a region of 16
 * TiB or more); *ret_hints is written only on 0. */
int hints_plan(const struct hints_vm *vms, size_t count, const struct hints_limits *limits, struct hints **ret_hints);
struct hints *hints_free(struct hints *h); /* NULL ok; gives NULL */

/* The stretches of one VM, by its index: in the order of its regions and ascending in each, apart, none across the
 * border of two regions. */
const struct agent_hint *hints_of(const struct hints *h, size_t vm, size_t *ret_count);

struct hints_totals {
	uint64_t stretches, pages; /* pages: all of the stretches, gaps included */
	uint64_t copies;	   /* of these: pages to merge */
	uint64_t left;		   /* pages to merge that are in no stretch */
	/* Page frames that merging saves when the scanner is through, what is merged already included; zero pages count
	 * whole. Of these by zero pages: */
	uint64_t saved, saved_zero;
};
void hints_count(const struct hints *h, struct hints_totals *ret_totals);
size_t hints_bytes(const struct hints *h); /* memory of planning at its highest */

#endif
