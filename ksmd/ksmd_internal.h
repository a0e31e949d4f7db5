/* ksmd/ksmd_internal.h - the module's state, shared by ksmd.c, sense.c and apply.c. */
#ifndef KSMD_KSMD_INTERNAL_H
#define KSMD_KSMD_INTERNAL_H

#include <sys/types.h>

#include "ksmd/ksm_kernel.h"
#include "ksmd/ksmd.h"

/* What the module remembers of one VM from tick to tick. */
struct tracked_vm {
	pid_t pid;
	uint64_t start_ticks;
	bool seen; /* in this tick's snapshot */
	struct page_table *table; /* NULL: never passed over */
	uint64_t passed_ns;	  /* when its last scan began; 0: never */
	bool due;		  /* to be scanned by the pass that is planned */
	bool early;		  /* for the first time, and the kernel may merge it */
	bool mergeable;		  /* the kernel may merge it, in this tick's snapshot */
	uint64_t rss_then_pages;  /* resident when the last pass was taken in */
	uint64_t zero_pages;	  /* found by the last pass */
	uint64_t saved_pages;	  /* saved by the kernel now */
};

/* The secret hash seed of one domain. */
struct domain_seed {
	char *domain;
	uint64_t seed;
};

struct ksmd {
	const struct fsio *fs;
	const struct config *config;
	struct ksm_kernel *kernel; /* NULL: this kernel has no KSM */
	struct ksm_policy policy;
	struct ksm_plan plan;
	bool left_running; /* by an earlier daemon that was killed, or because stopping it failed */
	struct stable_index *index;

	struct tracked_vm *vms;
	size_t vm_count;
	struct domain_seed *seeds;
	size_t seed_count;

	struct pass *pass; /* in the background; NULL: none */
	struct pass *last; /* the last one that ended well, for its result */
	bool pass_planned;
	struct zero_split *split; /* at work while the scanner is; NULL: none */
	bool split_done;	  /* in this run of the scanner */
	struct ksm_snapshot seen; /* the kernel's settings in this tick, for the log */
	uint64_t passes;
	uint64_t pass_ended_ns, rest_until_ns;
	double cpu_seconds;

	/* The estimate that merging goes by: */
	uint64_t expected_pages, mergeable_pages;
	uint64_t saved_pages;
	bool pass_taken; /* since saved_pages was last counted */

	char logged_why[160]; /* the last refusal that was logged */
};

struct tracked_vm *ksmd_track(struct ksmd *k, const struct vm_snapshot *vm); /* NULL: unknown */
int ksmd_sense(void *m, struct host_snapshot *s);
int ksmd_apply(void *m, bool dry_run);
/* The seed of a domain, made at its first use. 0 or -errno. */
int ksmd_domain_seed(struct ksmd *k, const char *domain, uint64_t *ret_seed);

#endif
