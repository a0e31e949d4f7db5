/* ksmd/pass_internal.h - the page table that page_table.c owns, and pass*.c, hints.c and remap*.c work on; and the pass
 * itself, as pass.c (its thread, its scan) and pass_join.c (what the pages have in common) share it. */
#ifndef KSMD_PASS_INTERNAL_H
#define KSMD_PASS_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "ksmd/activity.h"
#include "ksmd/join.h"
#include "ksmd/pass.h"

struct page_table {
	_Atomic unsigned refs;
	char *name, *uuid, *domain;
	pid_t pid;
	int pidfd, pagemap_fd, mem_fd, stat_fd; /* own */
	uint64_t start_ticks, seed;
	bool merge_allowed; /* by configuration */
	bool anonymous;	    /* all of it private anonymous: can be merged */
	struct scan_target *targets; /* one per region */
	size_t target_count;
	/* Of the last join that it took part in; 0: none. Its counts are valid as long as the same tables take part. */
	uint64_t join;
	size_t join_tables;
	bool join_unmergeable;
	struct activity active; /* when it was last looked at */
	unsigned spared;	/* looks since */
	_Atomic bool disturbed; /* the next look is not spared */
	struct pass_counts joined; /* dup_within, dup_between, and mergeable without zero pages */
};

/* The stretches of a table in which hashes are set, as input of a join; pages are numbered through its targets. joins
 * NULL: only counts. Returns how many. */
size_t page_table_joins(const struct page_table *t, uint32_t owner, struct join_input *joins);

#define PASS_NO_DOMAIN UINT32_MAX /* nothing of this VM may be merged */

struct pass {
	struct pass_options options;
	struct pass_input *inputs; /* tables referenced */
	size_t count;
	uint32_t *domains; /* per input: number of its domain, PASS_NO_DOMAIN */
	uint32_t *owners;  /* of one group: scratch of group_sharing() */
	uint32_t *sharers; /* per domain: scratch of group_mergeable(), zero between calls */
	struct scan_progress progress;
	struct pass_result result;
	int error; /* of the index while groups come in */
	pthread_t thread;
	bool joined;
	int done_fd;
};

void pass_domains_number(struct pass *p);
/* Counts into the result. 0 or -errno. */
int pass_join(struct pass *p);

#endif
