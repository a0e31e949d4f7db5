/* bench/lib/sim.h - runs a trace on a simulated host under one policy, and finds how many VMs that host can have. */
#ifndef BENCH_SIM_H
#define BENCH_SIM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "bench/lib/sim_policy.h"
#include "bench/lib/sim_trace.h"

struct sim_options {
	double host_mib, host_swap_mib;
	double floor;	    /* share of its size that is never taken from a VM, by any policy */
	double guest_swap;  /* share of its size that a guest has for swap, unless it is a sandbox, which has none */
	double stall_limit; /* share of the guests' time that they may stand still */
	uint64_t seed;
	int ticks_max; /* cut traces short; 0: no */
};

/* A quarter for swap is what installers propose for VMs of this size. */
#define SIM_OPTIONS_DEFAULT                                                                                     \
	((struct sim_options){ .host_mib = 512 * 1024, .host_swap_mib = 8192, .floor = 0.35, .guest_swap = 0.25, \
			       .stall_limit = 0.01, .seed = 1 })

struct sim_result {
	size_t vms;
	double stall_share;
	uint64_t host_ooms, guest_ooms;
	double moved_mib;      /* into and out of balloons */
	double swapped_mib;    /* into and out of the guests' swap and the host's */
	double used_share;     /* of the host's memory, on average */
	double guest_mib_share; /* what guests were given, of the host's memory, on average: over 1 is overcommitment */
	/* In how many of ten decisions in a row a target turned round, at most. */
	int direction_changes_max;
	/* Seconds from when a guest began to stand still for more than a tenth of the time until it was given memory,
	 * at most; -1: the policy gives none. */
	int react_ticks_max;
	uint64_t floor_violations;  /* targets below what must not be taken */
	uint64_t absurd_targets;    /* ... that are above the VM's size, or no number */
	bool stopped;		   /* before the end: the limits were exceeded */
};

/* stop_early: as soon as it is clear that the limits will be exceeded. 0 or -ENOMEM. */
int sim_run(const struct sim_options *o, enum sim_trace trace, const struct sim_policy *p, size_t vms, bool stop_early,
	    struct sim_result *ret_result);

/* Whether nobody was killed and the guests' stall is within the limit. */
bool sim_result_is_good(const struct sim_options *o, const struct sim_result *r);

/* The largest number of VMs with a good result, to within half a percent, and that result; no VMs if there is none.
 * 0 or -ENOMEM. */
int sim_search(const struct sim_options *o, enum sim_trace trace, const struct sim_policy *p,
	       struct sim_result *ret_result);

#endif
