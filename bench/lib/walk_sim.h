/* bench/lib/walk_sim.h - what accesses of a guest cost under three ways of translating its addresses: memory references of
 * page walks, and exits to the hypervisor. A model; bench/README.md states what it takes for granted. */
#ifndef BENCH_WALK_SIM_H
#define BENCH_WALK_SIM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ept/walk.h"

enum walk_scheme {
	SIM_NATIVE, /* no second stage: the guest's tables are the processor's */
	SIM_TWO_DIMENSIONAL, /* EPT, NPT */
	SIM_SHADOW, /* the processor walks the composite of both stages, which the hypervisor keeps in step */
};

struct walk_sim_options {
	enum walk_scheme scheme;
	unsigned tlb_entries, tlb_ways;
	/* Paging-structure caches, by the level of the entries they hold, 2 to 4, fully associative; [0], [1] unused. The
	 * second stage has its own of the same size. */
	unsigned walk_cache[5];
	unsigned nested_tlb_entries; /* guest-physical translations, fully associative */
	bool caches;		     /* false: none of these at all */
};

struct walk_sim_counts {
	uint64_t accesses, tlb_misses;
	uint64_t references; /* table entries read from memory */
	/* Exits: */
	uint64_t violations;   /* two-dimensional: the second stage had not mapped the page yet; a shadow's fill covers that */
	uint64_t guest_faults; /* of the guest's own, which shadowing has to see */
	uint64_t table_writes; /* of the guest to its tables, which shadowing has to follow */
	uint64_t hidden_faults; /* the guest's table has it, the composite not yet */
	uint64_t switches;     /* of address spaces */
};

struct walk_sim;

/* Where an address leads on the host: 1, 2 or 3, the level that maps this guest-physical address in the second stage. */
typedef unsigned (*walk_sim_host_level)(void *userdata, uint64_t gpa);

/* 0 or -ENOMEM. read is how guest memory is read, both with the same userdata. */
int walk_sim_new(const struct walk_sim_options *options, walk_read_fn read, walk_sim_host_level host_level, void *userdata,
		 struct walk_sim **ret_sim);
struct walk_sim *walk_sim_free(struct walk_sim *s);

/* The guest goes on in another address space. */
void walk_sim_switch(struct walk_sim *s, unsigned space, const struct walk_regs *regs);
/* One access in it. 0; -EFAULT: the guest has nothing there, and nothing was counted; -ENOMEM. */
int walk_sim_access(struct walk_sim *s, uint64_t gva, bool write);
const struct walk_sim_counts *walk_sim_counts(const struct walk_sim *s);

#endif
