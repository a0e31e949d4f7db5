/* ept/walk_cost.h - what the sizes of a VM's pages cost its processor: references of the two-dimensional walk, and reach
 * of the TLB. Pure.
 *
 * How large the guest's own pages are is not looked at here, so each figure is given for guests of 4 KiB, 2 MiB and 1 GiB
 * pages. The host's part is what was counted, each 4 KiB of present memory weighing the same, as if the guest used all of
 * it alike; its page tables are taken to lie in pages of the same mix. No cache of any kind is assumed. */
#ifndef EPT_WALK_COST_H
#define EPT_WALK_COST_H

#include <stdint.h>

#include "ept/table_format.h"

/* Entries of the TLB's last level: for 4 KiB and 2 MiB together, and for 1 GiB. Intel, Skylake to Cascade Lake servers
 * (Optimization Reference Manual, "Shared second-level TLB"); newer ones and AMD's have up to twice as many. */
#define WALK_COST_TLB_ENTRIES 1536u
#define WALK_COST_TLB_GIB_ENTRIES 16u

struct walk_cost {
	unsigned guest_levels;		     /* of tables that are read */
	unsigned uniform[TABLE_LEAF_LEVELS]; /* references, if all of the host's pages were of one size */
	double references;		     /* on average, with the host's pages as they are */
	/* A TLB entry holds the smaller of guest's and host's page. */
	uint64_t tlb_entries;	    /* that hold all present memory */
	uint64_t tlb_reach_pages;   /* what a TLB of the size above holds at most, in pages of 4 KiB */
};

/* leaves: second-stage entries by size; levels: of the second stage; guest_level: 1 to 3, the guest's pages are of 4 KiB,
 * 2 MiB or 1 GiB, in four levels. */
void walk_cost_of(const uint64_t leaves[TABLE_LEAF_LEVELS], unsigned levels, unsigned guest_level, struct walk_cost *ret_cost);

/* (g + 1) * (h + 1) - 1: each of g guest tables, and then the page, takes h references to be found; and the tables are
 * read. */
unsigned walk_cost_references(unsigned guest_levels, unsigned host_levels);

#endif
