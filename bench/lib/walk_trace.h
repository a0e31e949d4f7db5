/* bench/lib/walk_trace.h - traces of accesses over a guest's address spaces, run through the model. */
#ifndef BENCH_WALK_TRACE_H
#define BENCH_WALK_TRACE_H

#include "bench/lib/guest_space.h"
#include "bench/lib/walk_sim.h"

/* How the pages of a space are gone through. */
enum trace_order {
	TRACE_SWEEP,  /* one after the other, 16 accesses to each */
	TRACE_SKEWED, /* four of five accesses go to a fifth of the pages; of these, four of five to a fifth; and so on */
	TRACE_RANDOM, /* any page, each as likely */
};
#define TRACE_ORDERS 3
extern const char *const trace_order_names[TRACE_ORDERS];

/* Host pages: as they were when the guest was captured, or all small. */
enum trace_host { TRACE_HOST_CAPTURED, TRACE_HOST_SMALL };

struct trace_run {
	const struct guest_ram *ram;
	const struct guest_space *spaces;
	size_t space_count;
	enum trace_order order;
	enum trace_host host;
	uint64_t accesses;
	struct walk_sim_options options;
};

/* What is assumed of a processor; see bench/README.md. */
void trace_options_usual(struct walk_sim_options *ret_options);

/* The same accesses for the same order and spaces, whatever the options. Adds to *counts. 0 or -errno. */
int trace_run(const struct trace_run *t, struct walk_sim_counts *counts);

#endif
