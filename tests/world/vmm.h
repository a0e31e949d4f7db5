/* tests/world/vmm.h - what a VMM of the chaos test and the world that starts it agree upon.
 *
 * Both map one page of a memfd, which the VMM inherits as CHAOS_FD: orders go down, answers and counters come up. */
#ifndef TESTS_WORLD_VMM_H
#define TESTS_WORLD_VMM_H

#include <stdatomic.h>
#include <stdint.h>

#define CHAOS_FD 3
#define CHAOS_RAM_MIB 32u
#define CHAOS_THREADS 3u

enum chaos_order {
	CHAOS_RUN,     /* the load */
	CHAOS_PAUSE,   /* no thread touches RAM any more */
	CHAOS_CHECK,   /* every byte; paused */
	CHAOS_DISCARD, /* all RAM, which is zeroes then; paused */
	CHAOS_END,
};

/* Counters only grow. */
struct chaos_page {
	_Atomic uint32_t order; /* number of the order << 8 | enum chaos_order */
	_Atomic uint32_t done;	/* the last order that was carried out; 0: still starting */
	_Atomic uint32_t epoch; /* which contents are shared now */
	_Atomic uint32_t fds_first, maps_first; /* of the process, before its agent came */
	_Atomic uint64_t ram;	/* address; the size is CHAOS_RAM_MIB */
	_Atomic uint64_t writes, checks, reads, discards, refills, copies, bad;
	_Atomic uint32_t beats[CHAOS_THREADS];
};

#endif
