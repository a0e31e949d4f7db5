/* ksmd/ksmd.h - page merging as a module of the daemon. */
#ifndef KSMD_KSMD_H
#define KSMD_KSMD_H

#include <stdbool.h>
#include <stdint.h>

#include "core/config.h"
#include "core/fsio.h"
#include "core/module.h"
#include "core/snapshot.h"
#include "ksmd/pass.h"
#include "ksmd/policy.h"

struct ksmd;

extern const struct module_ops ksmd_ops; /* takes a struct ksmd */

/* fs and config are borrowed; config may change in place. The kernel without KSM is no error: merging is
 * off, estimates work. 0 or -errno. */
int ksmd_new(const struct fsio *fs, const struct config *config, struct ksmd **ret_ksmd);
/* Cancels passes and restores the kernel's settings. NULL ok; gives NULL. */
struct ksmd *ksmd_free(struct ksmd *k);

/* A descriptor that is readable when a background pass has ended; the next tick takes the result in.
 * -1 while none runs. */
int ksmd_pass_fd(const struct ksmd *k);

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
	uint64_t saved_pages;	    /* saved by the kernel now */
};
/* Saved of one VM by the kernel now: copies merged, and zero pages given back. */
uint64_t ksmd_vm_saved_pages(const struct ksmd *k, const struct vm_snapshot *vm);
void ksmd_status(const struct ksmd *k, struct ksmd_status *ret_status);

/* Why the kernel's scanner may not run at all; NULL when it may. Static string. */
const char *ksmd_host_refusal(const struct ksmd *k, const struct host_snapshot *s);
/* Why it may not merge this VM: the first reason or NULL, or all of them and how many. Static strings. */
#define KSMD_REFUSALS_MAX 5
const char *ksmd_vm_refusal(const struct vm_snapshot *vm);
size_t ksmd_vm_refusals(const struct vm_snapshot *vm, const char *ret_refusals[KSMD_REFUSALS_MAX]);

#endif
