/* ksmd/pass.h - one look at guest memory: scan, join, and what merging would give, on threads of its own.
 *
 * A pass works on page tables (8 bytes for each page of a VM, kept between passes). Tables marked for a
 * rescan are hashed anew; the others take part with what was seen last. */
#ifndef KSMD_PASS_H
#define KSMD_PASS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/fsio.h"
#include "core/snapshot.h"
#include "ksmd/scan.h"

/* ---- page tables ---- */

struct page_table; /* what is remembered of one VM; reference-counted, references from any thread */

/* Takes copies of all it needs from vm. seed: see page_hash(). 0, -ENOMEM, -ESRCH (process is gone), -errno. */
int page_table_new(const struct fsio *fs, const struct vm_snapshot *vm, uint64_t seed,
		   struct page_table **ret_table);
struct page_table *page_table_ref(struct page_table *t);
struct page_table *page_table_unref(struct page_table *t); /* NULL ok; gives NULL */
/* Its VM's agent has exchanged, given back or registered memory: what was protected against writing may not be, so that its
 * faults do not tell what was written. From any thread. */
void page_table_disturb(struct page_table *t);
bool page_table_is_for(const struct page_table *t, const struct vm_snapshot *vm); /* same process, same RAM */

/* ---- results ---- */

/* Pages; "saved" counts every copy beyond the first. */
struct pass_counts {
	uint64_t present;	/* backed by a frame of their own */
	uint64_t zero;		/* of these: all zero */
	double dup_within;	/* saved inside VMs, zero pages apart */
	double dup_between;	/* saved beyond that if all VMs were one domain, split evenly among the sharers */
	double mergeable;	/* saved with the domains as they are: zero + within + between inside a domain */
	uint64_t zero_mapped, swapped, huge;
};

struct pass_vm {
	char *name, *uuid, *domain;
	pid_t pid;
	uint64_t start_ticks;
	bool gone; /* ended meanwhile; counts are 0 */
	double seconds, cpu_seconds; /* of its last scan; VMs are scanned side by side */
	struct pass_counts counts;
};

struct pass_result {
	int error; /* 0 or -errno: then only this is valid */
	struct pass_vm *vms;
	size_t vm_count;
	struct pass_counts total;
	uint64_t *sharing_pages; /* vm_count x vm_count, only when asked: distinct contents that both hold;
				    diagonal: saved inside the VM. Zero pages apart. */
	uint64_t scanned_pages;	 /* hashed in this pass */
	bool joined;		 /* else what the last join had found still holds, see join_least_pages */
	size_t metadata_bytes;	 /* tables and join, at the highest */
	double seconds, scan_seconds, cpu_seconds;
};

/* ---- running ---- */

struct pass_options {
	struct scan_limits limits;
	bool across_domains; /* estimate: one seed for all, compare everything; else domain by domain */
	bool sharing;	     /* fill sharing_pages */
	/* Fewer pages than this have come to rest since the last join of the same VMs: it is not made again, as each of
	 * them can add one page at most to what merging would give. 0: always. */
	uint64_t join_least_pages;
	struct stable_index *index; /* counted against while scanning and refreshed; may be NULL */
};

struct pass_input {
	struct page_table *table; /* the pass takes a reference of its own */
	bool rescan;
	bool unmergeable; /* counted, but nothing of it can be merged: its VMM did not give its memory to KSM */
	bool early; /* new and mergeable: what it shares with known contents counts in pass_early_pages() */
	/* Its agent, to hash where memory is (scan.h); the pass's alone until pass_wait(). NULL: none. */
	struct agent_peer *peer;
	bool peer_broken; /* set by the pass: the connection is of no use any more */
};

struct pass;

/* Starts a thread; inputs are borrowed for the call. done_fd is an eventfd owned by the pass: readable when
 * it is finished. 0 or -errno. */
int pass_start(const struct pass_input *inputs, size_t count, const struct pass_options *options,
	       struct pass **ret_pass);
int pass_done_fd(const struct pass *p);
/* Pages looked at so far and in all. */
void pass_progress(const struct pass *p, uint64_t *ret_done, uint64_t *ret_total);
/* How many pages of the inputs marked early hold contents that the index knows, estimated from its sample: a
 * gain that is known before the pass has ended. */
uint64_t pass_early_pages(const struct pass *p);
/* Waits for the end if need be; the result is p's. */
const struct pass_result *pass_wait(struct pass *p);
/* As they were given. */
const struct pass_input *pass_inputs(const struct pass *p, size_t *ret_count);
/* Ends it soon, with -ECANCELED as its error. */
void pass_cancel(struct pass *p);
/* Cancels if still running, waits, frees. NULL ok; gives NULL. */
struct pass *pass_free(struct pass *p);

#endif
