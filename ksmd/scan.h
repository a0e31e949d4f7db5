/* ksmd/scan.h - hashes guest memory from outside, with worker threads, or has the VM's agent hash it.
 *
 * Reads only pages that are present and not the zero page (ept/pagestate.h), so a scan faults nothing in.
 * The race that is left: a page dropped or swapped out between the look and the read is faulted in again
 * by the read, as by any other reader of the VMM's memory; nothing but its residency changes.
 *
 * A page that is mapped more than once (merged by KSM, or shared with a forked child) must not be read with
 * process_vm_readv: that pins pages, and before the kernel pins a shared anonymous page, also for reading only,
 * it gives the process a copy of its own, so that reading would undo the merging (measured: 28,892 merged pages,
 * none of them left after one pass; KSM's counters do not notice). Such pages are read through /proc/PID/mem,
 * which takes a plain reference. What is merged between the look and the read, a fraction of a millisecond, is
 * unmerged by it and merged again by the kernel's next scan.
 *
 * Memory of which the kernel tells what was written (`tracked`, see scan_track.c) costs only what has changed.
 *
 * An agent reads the memory where it is, at half the cost. What it says is its word: a wrong hash costs exchanges that
 * find bytes unequal, and no more. If it fails, what is left is read from outside. */
#ifndef KSMD_SCAN_H
#define KSMD_SCAN_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "core/fsio.h"

struct agent_peer;
struct scan_track; /* ksmd/scan_track.c */
struct stable_index;

/* Work is handed out in chunks of address space: 32 MiB, about 4 ms of work, is the grain of quotas, progress and
 * cancelling. Its hashes are a whole number of pages, so they can be dropped as such. */
#define SCAN_CHUNK_PAGES 8192
#define SCAN_CHUNK_WORDS (SCAN_CHUNK_PAGES / 64)

/* One stretch of a VMM's address space and what is known of its pages. */
struct scan_target {
	pid_t pid;
	int pidfd;	  /* borrowed; proves after a read that pid was still the same process */
	int pagemap_fd;	  /* /proc/PID/pagemap, borrowed */
	int mem_fd;	  /* /proc/PID/mem, borrowed */
	uint64_t hva;	  /* page-aligned */
	uint64_t pages;
	uint64_t seed;	  /* of page_hash() */
	bool early;	  /* its index hits count in scan_progress */
	bool anonymous;	  /* private memory: a file's page in it is a frame that it was merged with, and left out */
	uint64_t *hashes; /* from scan_hashes_new(pages), may hold an earlier scan; borrowed */

	/* Of the agent to ask, borrowed; NULL: from outside. Targets of one agent follow each other, and each lies in one
	 * slot that can be remapped. */
	struct agent_peer *peer;

	/* What is known of each block from look to look; borrowed; NULL if it is never tracked. tracked: the memory is
	 * registered for asynchronous write protection, so only what was written and has settled is hashed. */
	struct scan_track *track;
	bool tracked;

	uint8_t *used;	  /* one per SCAN_CHUNK_PAGES pages: whether any hash in it is set; borrowed; may be NULL */
	uint64_t *changed; /* a bit per page, 64 * SCAN_CHUNK_WORDS for each chunk: it had another hash in the scan before,
			      or, if tracked, was written since the last look; borrowed; may be NULL unless tracked */

	/* Filled by the scan: */
	_Atomic uint64_t present_pages; /* backed by a frame of their own */
	_Atomic uint64_t zero_pages;	/* of these: full of zeroes */
	_Atomic uint64_t zero_mapped_pages, swapped_pages, huge_pages;
	_Atomic uint64_t hashed_pages;	/* in this scan */
	_Atomic uint64_t unsettled_pages; /* tracked: that will be hashed if they are not written until the next scan */
	_Atomic bool watched;		/* tracked: part of it is judged by samples, and needs a scan each time */
	_Atomic uint64_t settled_pages; /* that have got a hash or another one; the caller sets it to 0 */
	_Atomic uint64_t index_hits;	/* pages whose hash the stable index knows (its sample only) */
	_Atomic uint64_t cpu_ns;	/* spent on it by all workers */
	_Atomic uint64_t started_ns, ended_ns; /* CLOCK_MONOTONIC of its first and last chunk */
	_Atomic bool gone;		/* the process ended */
	bool peer_failed;		/* the agent did not hash all of it */
	bool peer_broken;		/* and its connection is of no use any more */
};

/* Whether the agent can be asked about all of the target; and whether the kernel tells what is written to it. */
bool scan_peer_covers(const struct agent_peer *peer, const struct scan_target *t, bool *ret_tracked);

/* For so many pages. NULL: no memory. */
struct scan_track *scan_track_new(uint64_t pages);
struct scan_track *scan_track_free(struct scan_track *track); /* NULL ok; gives NULL */

/* Room for the hashes of this many pages, all PAGE_HASH_NONE; costs memory only where pages are found.
 * NULL when there is none. */
uint64_t *scan_hashes_new(uint64_t pages);
uint64_t *scan_hashes_free(uint64_t *hashes, uint64_t pages); /* NULL ok; gives NULL */

struct scan_limits {
	unsigned workers;     /* 0: one per CPU, at most SCAN_WORKERS_DEFAULT_MAX */
	uint64_t cpu_percent; /* of one core, all workers together; 0: no limit */
	uint64_t bytes_per_s; /* 0: no limit */
};
#define SCAN_WORKERS_DEFAULT_MAX 8

/* Shared with other threads while scan_run() works. */
struct scan_progress {
	_Atomic uint64_t done_pages;  /* address space looked at, present or not */
	_Atomic uint64_t total_pages;
	_Atomic uint64_t early_hits;  /* index hits of the targets marked early, so far */
	_Atomic bool cancel;	      /* set by another thread: scan_run() ends soon with -ECANCELED */
};

/* Scans all targets; blocks until done. index may be NULL. Adds the workers' CPU time to *ret_cpu_ns.
 * 0, -ECANCELED, -ENOMEM or -EAGAIN (no thread could be started). */
int scan_run(struct scan_target *targets, size_t count, const struct scan_limits *limits,
	     struct stable_index *index, struct scan_progress *progress, uint64_t *ret_cpu_ns);

#endif
