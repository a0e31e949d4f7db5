/* ksmd/remap.h - merges the VMs of one domain through the agents in their VMMs, without the kernel's scanner.
 *
 * A round takes the hashes that a pass has found, plans windows, fills the frames that are new from the window that
 * is the first to use them, and has the agents exchange pages for frames, several windows at a time. Nothing here
 * decides that two pages are equal: the agent compares every byte while nobody can write to the page. Nothing that an
 * agent answers decides when a frame is free: see ksmd/frame_users.h.
 *
 * One thread at a time, unless said otherwise. */
#ifndef KSMD_REMAP_H
#define KSMD_REMAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/fsio.h"
#include "ksmd/agent_peer.h"
#include "ksmd/frame_users.h"

struct page_table;
struct remap;

/* frames: room of the store, rounded up to whole blocks. 0 or -errno. */
int remap_new(const struct fsio *fs, const char *domain, uint32_t frames, struct remap **ret_remap);
/* Goes on with the store of an earlier daemon; fd is borrowed. 0, -EPERM (it is none), -EBUSY (another daemon has
 * it), -errno. */
int remap_adopt(const struct fsio *fs, const char *domain, int fd, struct remap **ret_remap);
struct remap *remap_free(struct remap *r); /* merged memory stays merged; NULL ok; gives NULL */

/* Memory that the shared frames take, in pages. From any thread. */
uint64_t remap_memory_pages(const struct remap *r);

struct remap_vm {
	struct agent_peer *peer;	/* borrowed */
	struct page_table *table; /* scanned; borrowed, and not to change during the round */
};

struct remap_result {
	uint64_t windows, runs;
	uint64_t merged_pages, zero_pages; /* as the agents said: by frames; left absent */
	uint64_t unequal_runs, busy_runs, skipped_runs, failed_runs;
	uint64_t filled_frames;
	uint64_t exchanged_pages; /* named in commands, merged or not */
	uint64_t planned_pages; /* what the plan would have saved; below the least gain nothing was done */
	uint64_t stall_us_max;
	double plan_seconds, exchange_seconds, seconds;
	double cpu_seconds; /* of this thread and, as they said, of the agents */
	size_t metadata_bytes; /* store, index and plan, at the highest */
};

/* What the quotas are about, as measured. */
struct remap_rates {
	double windows_per_s, mib_per_s; /* from the first window to the last answer */
	double cpu_percent;		 /* of one core, in the whole round */
};
struct remap_rates remap_rates(const struct remap_result *result);

struct remap_limits {
	uint64_t min_gain_pages; /* nothing is done unless the plan saves so much */
	uint64_t cpu_percent;	 /* of one core, that agents and this thread may use together; 0: no limit */
	uint64_t bytes_per_s, windows_per_s; /* that are exchanged; 0: no limit */
	const _Atomic bool *cancel; /* set by another thread: the round ends soon, without waiting for answers; or NULL */
	const _Atomic bool *stop;   /* the same: no window is begun any more, answers are waited for */
	_Atomic uint64_t *merged_pages; /* counted up while the round goes on, for other threads; or NULL */
};

struct remap_vm_result {
	bool broken; /* its connection is of no use any more */
	uint64_t merged_pages, zero_pages;
};

/* ret_vms: room for count, or NULL. 0, or -errno when the
 * round could not be made; a peer that fails costs only its own windows. */
int remap_round(struct remap *r, const struct remap_vm *vms, size_t count, const struct remap_limits *limits,
		struct remap_vm_result *ret_vms, struct remap_result *ret_result);

/* Looks which frames are in use and frees those that were in use neither now nor at the sweep before. Not while
 * commands are under way. 0 and how many were freed, and whether another sweep may free more; -errno. */
int remap_sweep(struct remap *r, uint32_t *ret_freed, bool *ret_more);
/* Looks at the clients' mappings alone, for their figures. 0 or -errno. */
int remap_look(struct remap *r);
/* The pages of this VM's process are to be looked at in the next sweep. */
void remap_vm_changed(struct remap *r, pid_t pid);
/* Of the last look, sweep or round; false: this process is no client. */
bool remap_vm_figures(const struct remap *r, pid_t pid, struct frame_user_figures *ret_figures);
/* Its agent said hello (again): no command of before will be carried out any more. */
void remap_vm_hello(struct remap *r, pid_t pid);
#endif
