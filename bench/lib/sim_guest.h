/* bench/lib/sim_guest.h - one simulated guest: its memory, its balloon, what it costs to be squeezed. All in MiB and
 * seconds; README.md says what is assumed. */
#ifndef BENCH_SIM_GUEST_H
#define BENCH_SIM_GUEST_H

#include <stdbool.h>
#include <stdint.h>

#include "bench/lib/sim_trace.h"

struct sim_guest {
	double size, swap_size;
	double actual, target; /* size less the balloon: is, and should be */
	/* In the guest's memory. */
	double kernel, active, idle, hot, cold;
	/* Wanted and not there: in its swap, or to be read from its files again. */
	double active_out, idle_out, hot_out;
	/* What the host gave it and did not get back, at whatever address. Of it: shared with others by merging, and in
	 * the host's swap. */
	double touched, merged, host_active_out, host_idle_out;
	double touched_before;

	double stall_debt; /* seconds of waiting that are to come yet */
	double stall_host; /* of the last tick: seconds of waiting that the host is to blame for */
	double stalled;	   /* of the last tick: share of it in which the guest stood still */
	double moved;	   /* into and out of the balloon, since the start */
	double swapped;	   /* into and out of its own swap, since the start */
	/* What the guest tells; these counters go on when it is started again. */
	double swap_in_mib, swap_out_mib, major_faults;
	uint64_t ooms, restarts;
	bool started;
};

/* One second. host_short_s: what each MiB of new host memory costs beyond a plain fault, while the host is short. */
void sim_guest_step(struct sim_guest *g, const struct sim_demand *d, double host_short_s);

double sim_guest_used(const struct sim_guest *g);
double sim_guest_free(const struct sim_guest *g);
double sim_guest_available(const struct sim_guest *g); /* as its /proc/meminfo says */

/* What a kill by the host leaves: nothing; the guest boots again. */
void sim_guest_restart(struct sim_guest *g);

#endif
