/* ksmd/remap.h - merges the VMs of one domain through the agents in their VMMs, without the kernel's scanner.
 *
 * A round takes the hashes that a pass has found, plans windows, fills the frames that are new from the window that
 * is the first to use them, and has the agents exchange pages for frames, several windows at a time. Nothing here
 * decides that two pages are equal: the agent compares every byte while nobody can write to the page.
 *
 * Frames are referenced for each run before the window is sent and stay so until the process ends, because only
 * then it is certain that no mapping is left. One thread at a time. */
#ifndef KSMD_REMAP_H
#define KSMD_REMAP_H

#include <stddef.h>
#include <stdint.h>

#include "core/fsio.h"
#include "ksmd/agent_peer.h"

struct page_table;
struct remap;

/* frames: room of the store, rounded up to whole blocks. 0 or -errno. */
int remap_new(const struct fsio *fs, const char *domain, uint32_t frames, struct remap **ret_remap);
struct remap *remap_free(struct remap *r); /* merged memory stays merged; NULL ok; gives NULL */

/* Memory that the shared frames take, in pages. From any thread. */
uint64_t remap_memory_pages(const struct remap *r);

/* Lends the domain's store to an agent, once. 0 or -errno. */
int remap_give_store(struct remap *r, struct agent_peer *peer);

struct remap_vm {
	struct agent_peer *peer;	/* borrowed */
	const struct page_table *table; /* scanned; borrowed, and not to change during the round */
	uint32_t mappings_left;		/* of its budget */
};

struct remap_result {
	uint64_t windows, runs;
	uint64_t merged_pages, zero_pages; /* by frames; left absent */
	uint64_t unequal_runs, busy_runs, skipped_runs, failed_runs;
	uint64_t filled_frames;
	uint64_t stall_us_max;
	double plan_seconds, seconds;
	size_t metadata_bytes; /* store, index and plan, at the highest */
};

/* 0, or -errno when the round could not be made; a peer that fails costs only its own windows. */
int remap_round(struct remap *r, const struct remap_vm *vms, size_t count, struct remap_result *ret_result);

#endif
