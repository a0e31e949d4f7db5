/* bench/lib/sim_trace.h - what the guests of the simulator need, second by second. README.md has them in words. */
#ifndef BENCH_SIM_TRACE_H
#define BENCH_SIM_TRACE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum sim_trace { TRACE_DIURNAL, TRACE_BURST, TRACE_LEAK, TRACE_BOOT_STORM, TRACE_IDLE_SANDBOX, TRACE_MIXED, TRACES };

struct sim_trace_info {
	const char *name;
	int ticks;	/* of one second, after the warm-up */
	double vm_mib;	/* configured size; of TRACE_MIXED the middle one */
};

extern const struct sim_trace_info sim_traces[TRACES];

/* The host fills up during this: one VM after the other, each with what it needs at the trace's start. */
#define SIM_WARM_TICKS 900

/* What a guest wants to have, in MiB. */
struct sim_demand {
	double kernel;	 /* cannot be reclaimed */
	double active;	 /* anonymous, used every second */
	double idle;	 /* anonymous, looked at twice an hour */
	double hot;	 /* page cache, used every ten seconds */
	double cold_mib_s; /* read from disk and never again; remains in memory as long as there is room */
};

/* One guest's part of a trace. */
struct sim_load {
	enum sim_trace kind; /* never TRACE_MIXED */
	uint64_t random;
	double size_mib;
	bool swaps; /* has swap of its own */
	int start_tick; /* relative to the trace's start; in the warm-up: negative */
	double kernel, active, idle, hot, cold_mib_s; /* at rest */
	double peak, phase;
	/* of a burst, a leak, a boot: begins, is over */
	int from_tick, to_tick, next_common;
	double height, leaked, leak_mib_s;
};

/* The guest with this number is the same in every run with this seed, however many guests there are, except for when
 * it is started in the warm-up. */
void sim_load_init(struct sim_load *l, enum sim_trace trace, uint64_t seed, size_t number, size_t count);

/* To be called once for each tick from start_tick on. */
void sim_load_demand(struct sim_load *l, int tick, struct sim_demand *ret_demand);

#endif
