/* ksmd/ksm_kernel.h - the kernel's own scanner (KSM): read its state, set it, and put back what was found.
 *
 * /sys/kernel/mm/ksm/run = 2 (unmerge everything on the host) is never written. The settings found at the
 * first change are kept in state_dir, so that a daemon that was killed still restores them later. */
#ifndef KSMD_KSM_KERNEL_H
#define KSMD_KSM_KERNEL_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "core/fsio.h"
#include "core/snapshot.h"

struct ksm_kernel;

/* state_dir is copied. 0; -EOPNOTSUPP when the kernel has no KSM; -ENOMEM; -errno. */
int ksm_kernel_new(const struct fsio *fs, const char *state_dir, struct ksm_kernel **ret_ksm);
struct ksm_kernel *ksm_kernel_free(struct ksm_kernel *k); /* NULL ok; gives NULL; restores nothing */

/* 0 or -errno; *ret_snapshot only on 0. */
int ksm_kernel_read(struct ksm_kernel *k, struct ksm_snapshot *ret_snapshot);
/* Whether a process gave memory to KSM (MADV_MERGEABLE or process-wide); kernels before 6.17 do not say. */
enum ksm_marked { KSM_MARKED_UNKNOWN, KSM_MARKED_NO, KSM_MARKED_YES };

/* Per process: cheap. 0, -ESRCH when it is gone, -errno. */
int ksm_kernel_read_vm(struct ksm_kernel *k, pid_t pid, enum ksm_marked *ret_marked, uint64_t *ret_merging_pages);
/* Whether this kernel says how much of a process is merged, as far as was asked; kernels before 5.19 do not, and 0 pages
 * then mean nothing. */
bool ksm_kernel_tells_merging(const struct ksm_kernel *k);
/* Sets run, pages_to_scan and sleep; the first call also saves what was found. 0 or -errno. */
int ksm_kernel_set(struct ksm_kernel *k, bool run, uint64_t pages_to_scan, uint64_t sleep_ms);
/* Whether run, pages_to_scan and sleep in s differ from what ksm_kernel_set() last wrote. */
bool ksm_kernel_was_changed(const struct ksm_kernel *k, const struct ksm_snapshot *s);
/* Whether settings were changed by us, now or by an earlier daemon that was killed, and are to be put back. */
bool ksm_kernel_is_controlled(const struct ksm_kernel *k);
/* Gives up control: somebody else has it. Settings that are still as we wrote them are put back. */
void ksm_kernel_yield(struct ksm_kernel *k);
/* Puts back what was found, unless control was yielded. 0 or -errno. */
int ksm_kernel_restore(struct ksm_kernel *k);

#endif
