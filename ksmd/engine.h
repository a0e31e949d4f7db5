/* ksmd/engine.h - which engine merges a VM, and why not another. Pure: no I/O, clock or globals.
 *
 * remap: the agent exchanges pages for frames; hinted: the agent marks what is worth it and the kernel's scanner merges
 * just that; kernel: the kernel's scanner over all that the VMM gave it. auto takes the first that nothing speaks
 * against. */
#ifndef KSMD_ENGINE_H
#define KSMD_ENGINE_H

#include <stdbool.h>
#include <stddef.h>

#include "core/config.h"
#include "core/snapshot.h"
#include "ksmd/hazards.h"

/* What is known of one VM beside its snapshot. Texts are borrowed. */
struct engine_facts {
	enum merge_engine host_engine; /* [merge] engine */
	bool has_agent;
	const char *agent_why; /* why its agent cannot exchange any memory; NULL: it can */
	const char *demoted_why; /* why it is not merged for a while, whoever would; NULL: it may be */
	const char *slot_why;  /* why its agent cannot exchange this VM's RAM; NULL: it can, at least in part */
	const char *const *hazards;
	size_t hazard_count;
	const char *ksm_why; /* why the kernel's scanner may not run; NULL: it may */
	bool ksm_present;
	bool apart; /* un-merged by an operator */
};

struct engine_refusal {
	enum merge_engine engine; /* that it rules out; AUTO: all of them */
	const char *why;	  /* a static string, or one of the facts */
};
#define ENGINE_REFUSALS_MAX (HAZARDS_MAX + 16)

/* The engine that is to merge this VM, MERGE_ENGINE_OFF: none; with every reason against others, and how many. */
enum merge_engine engine_choose(const struct vm_snapshot *vm, const struct engine_facts *f,
				struct engine_refusal ret_refusals[ENGINE_REFUSALS_MAX], size_t *ret_count);

#endif
