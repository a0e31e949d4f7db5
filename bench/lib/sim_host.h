/* bench/lib/sim_host.h - the simulated host: who holds how much of its memory, merging, swap, kills. MiB and seconds. */
#ifndef BENCH_SIM_HOST_H
#define BENCH_SIM_HOST_H

#include "bench/lib/sim_guest.h"
#include "bench/lib/sim_policy.h"

/* The host's own programs and kernel, and the kernel's share of the memory (struct page: 1.6 %). */
#define SIM_HOST_MIB 2048.0
#define SIM_HOST_SHARE 0.016
/* What a VMM has beside guest memory: QEMU's heap, page tables of the second stage. */
#define SIM_VMM_MIB 64.0

struct sim_host {
	double total, swap_total;
	struct sim_guest *guests; /* borrowed */
	size_t count;
	enum sim_merger merger;
	int merger_period;
	uint64_t random;

	double scan_mib_s, pages_to_scan; /* of the kernel's scanner */
	double available, swapped, merged;
	double short_s; /* per MiB that is allocated: the host is reclaiming */
	double stall_some_s, stall_full_s; /* since the start */
	double swap_moved;
	uint64_t ooms;
};

/* After all guests had their second: adds up, merges, swaps, kills. */
void sim_host_step(struct sim_host *h, int tick);

#endif
