/* ept/audit_host.h - the audit of this host: all frames that VMs have mapped, from their page tables and mappings.
 *
 * The VMs run meanwhile, so what is found is looked at again: a frame counts as shared only if both VMs have it mapped at one
 * moment. Touches no page. Needs CAP_SYS_ADMIN. */
#ifndef EPT_AUDIT_HOST_H
#define EPT_AUDIT_HOST_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ept/audit.h"

struct ept_target;
struct fsio;

struct audit_target {
	const struct ept_target *target;
	const char *domain;
};

struct audit_place {
	size_t vm; /* index of the target */
	uint64_t hva;
};

struct audit_violation {
	enum audit_why why;
	uint64_t frame; /* 0: not about one */
	struct audit_place place, other;
	bool has_other;
};

/* An audit that another thread watches. Zero it, set what it says, and leave it alone until audit_host_run() is back. */
struct audit_host {
	const struct fsio *fs;		     /* borrowed */
	const struct audit_target *targets; /* borrowed */
	size_t target_count;

	_Atomic bool cancel;			    /* by the watcher */
	_Atomic uint64_t done_pages, total_pages; /* for the watcher */

	struct audit_violation *violations; /* confirmed, in the order in which they came; owned */
	size_t violation_count;
	struct audit_counts counts;
	uint64_t vanished; /* findings that were not true any more */
	uint64_t lost;	   /* VMs that ended meanwhile or could not be looked at */
	size_t bytes;	   /* of memory that it took */
};

/* 0, also with violations; -ECANCELED; -EPERM: frame numbers are hidden from this process; -ENOMEM; -errno. */
int audit_host_run(struct audit_host *h);
void audit_host_end(struct audit_host *h);

#endif
