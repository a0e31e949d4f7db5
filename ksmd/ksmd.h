/* ksmd/ksmd.h - page merging as a module of the daemon. */
#ifndef KSMD_KSMD_H
#define KSMD_KSMD_H

#include <stdbool.h>
#include <stdint.h>

#include "core/config.h"
#include "core/fsio.h"
#include "core/module.h"
#include "core/snapshot.h"
#include "ksmd/debt.h"
#include "ksmd/engine.h"
#include "ksmd/pass.h"
#include "ksmd/policy.h"
#include "ksmd/remap.h"
#include "ksmd/unmerge.h"

struct ksmd;

extern const struct module_ops ksmd_ops; /* takes a struct ksmd */

/* fs and config are borrowed; config may change in place. The kernel without KSM is no error: merging is
 * off, estimates work. 0 or -errno. */
int ksmd_new(const struct fsio *fs, const struct config *config, struct ksmd **ret_ksmd);
/* Cancels passes and restores the kernel's settings. NULL ok; gives NULL. */
struct ksmd *ksmd_free(struct ksmd *k);

/* Listens for agents. 0 or -errno: merging goes on without them. */
int ksmd_listen(struct ksmd *k);
/* A descriptor that is readable when agents have something to say: ksmd_agents_dispatch(), which is true when one of
 * them waits for its VM to be found. -1: nobody listens. */
int ksmd_agents_fd(const struct ksmd *k);
bool ksmd_agents_dispatch(struct ksmd *k);

/* Descriptors that are readable when a background pass, or a round of merging, has ended; the next tick takes the
 * result in. -1 while none runs. */
int ksmd_pass_fd(const struct ksmd *k);
int ksmd_round_fd(const struct ksmd *k); /* or marking for the kernel's scanner, or giving memory back */

/* What the module is doing, for people and tests. Pointers are borrowed until the next tick. */
struct ksmd_status {
	bool ksm_present;
	enum ksm_state state;
	const char *why; /* of the last decision */
	bool passing;
	uint64_t pass_done_pages, pass_total_pages;
	uint64_t passes;	    /* background passes that ended */
	double cpu_seconds;	    /* of all of them */
	const struct pass_result *last; /* NULL before the first one ended */
	uint64_t expected_pages;    /* saved once all that the last pass found is merged by the kernel */
	uint64_t saved_pages;	    /* saved now, by all engines; frames are taken off */
	uint64_t frames;	    /* pages of the stores of all domains */
	uint64_t rounds;	    /* of merging by agents */
	const struct remap_result *last_round; /* NULL before the first one */
	bool merging;		    /* a round is at work */
	const struct debt *debt;
	uint64_t merged_pages;	    /* that would need memory again if all of them were written */
	double breaks_per_s;	    /* of them, by all engines */
};
/* Saved of one VM now: copies merged, and zero pages given back. */
uint64_t ksmd_vm_saved_pages(const struct ksmd *k, const struct vm_snapshot *vm);
void ksmd_status(const struct ksmd *k, struct ksmd_status *ret_status);

/* Why the kernel's scanner may not run at all; NULL when it may. Static string. */
const char *ksmd_host_refusal(const struct ksmd *k, const struct host_snapshot *s);
/* How a VM is merged (MERGE_ENGINE_OFF: not), and every reason against the engines that do not. */
enum merge_engine ksmd_vm_engine(const struct ksmd *k, const struct host_snapshot *s, const struct vm_snapshot *vm,
				 struct engine_refusal ret_refusals[ENGINE_REFUSALS_MAX], size_t *ret_count);

/* What a VM's memory is mapped to, as it was looked at last: zeroes if nothing was ever merged by its agent. */
struct ksmd_breaks {
	struct frame_user_figures figures;
	double per_s;
	bool demoted;
};
bool ksmd_vm_breaks(const struct ksmd *k, const struct vm_snapshot *vm, struct ksmd_breaks *ret_breaks);

/* The same of domain number i, from 0 until there is none (false). */
struct ksmd_domain_breaks {
	const char *name; /* borrowed */
	uint64_t merged_pages, frames;
	double per_s;
};
bool ksmd_domain_breaks(const struct ksmd *k, size_t i, struct ksmd_domain_breaks *ret_breaks);

/* Gives the merged memory of a VM back to it, in the background, and keeps it from being merged until _undo(), or until
 * the VM or the daemon ends. 0; -EOPNOTSUPP: see _refusal(). Again: what is merged still is tried again. */
int ksmd_unmerge(struct ksmd *k, const struct vm_snapshot *vm);
/* Why that cannot be done; NULL: it can. Borrowed until the next tick. */
const char *ksmd_unmerge_refusal(const struct ksmd *k, const struct vm_snapshot *vm);
bool ksmd_unmerge_undo(struct ksmd *k, const struct vm_snapshot *vm); /* false: it was not un-merged */
/* What came of the last time, for whatever reason; NULL: there was none, or it is not over (*ret_busy). */
const struct unmerge_result *ksmd_unmerge_result(const struct ksmd *k, const struct vm_snapshot *vm, bool *ret_busy);

#endif
