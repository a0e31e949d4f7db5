/* ksmd/policy.h - when and how fast the kernel's scanner runs. Pure: no I/O, clock or globals. */
#ifndef KSMD_POLICY_H
#define KSMD_POLICY_H

#include <stdbool.h>
#include <stdint.h>

#include "core/snapshot.h"

enum ksm_state {
	KSM_REST,    /* scanner stopped, or not ours */
	KSM_MERGE,   /* scanner running at our rate */
	KSM_BACKOFF, /* somebody else changed the settings; hands off until backoff_until_ns */
};

/* From the configuration; see memvirt.conf(5). */
struct ksm_limits {
	uint64_t min_gain_pages;
	uint64_t target_ns;
	uint64_t backoff_ns;
	uint64_t cpu_percent;
};

/* What the policy needs beside the snapshot. */
struct ksm_inputs {
	const char *refusal;	  /* NULL, or why the kernel's scanner may not be used now; static string */
	bool foreign_change;	  /* the settings differ from what we wrote last */
	bool left_running;	  /* an earlier daemon was killed while its scanner ran */
	uint64_t expected_pages;  /* saved once everything that the last pass found is merged */
	uint64_t saved_pages;	  /* saved by the kernel so far, of these VMs */
	uint64_t mergeable_pages; /* present pages that the scanner has to look at */
};

struct ksm_policy {
	struct ksm_limits limits; /* may be replaced between decisions */
	enum ksm_state state;
	uint64_t backoff_until_ns;

	/* Of the current or last run of the scanner: */
	uint64_t started_ns, stopped_ns;
	uint64_t start_scans, seen_scans; /* full_scans at the start, and when progress was last looked at */
	uint64_t seen_saved;		  /* saved_pages then */
	uint64_t start_scanned, start_cpu_ns;
	uint64_t residual_pages; /* expected but not got when it stopped */

	double page_cost_ns; /* CPU time of the kernel's scanner per page, measured */
	double sleep_factor; /* how much of the planned sleep is kept; below 1 on a busy host */
	uint64_t looked_ns, looked_scanned, looked_cpu_ns; /* when the pace was last measured */
	uint64_t pages_to_scan, sleep_ms; /* as planned last */
};

enum ksm_action { KSM_KEEP, KSM_START, KSM_RATE, KSM_STOP, KSM_YIELD };

struct ksm_plan {
	enum ksm_action action;
	uint64_t pages_to_scan, sleep_ms; /* for START, RATE and STOP */
	char why[160];
};

void ksm_policy_init(struct ksm_policy *p, const struct ksm_limits *limits);
/* One decision; p goes on as if the plan were carried out. */
void ksm_policy_decide(struct ksm_policy *p, const struct host_snapshot *s, const struct ksm_inputs *in,
		       struct ksm_plan *ret_plan);
/* Back to rest: the start that was planned could not be carried out, or is not to be (dry run). It is planned
 * again only when more than these pages can be gained. */
void ksm_policy_give_up(struct ksm_policy *p, uint64_t residual_pages);
const char *ksm_state_name(enum ksm_state state);

#endif
