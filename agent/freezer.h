/* agent/freezer.h - a userfaultfd with which memory is held still while the mapping under it is replaced.
 *
 * The exchange's own descriptor cannot do that: with WP_ASYNC writers do not wait. A registered mapping of this one
 * stays registered when it is moved, so that there is no moment at which a new mapping would show zeroes; the kernel
 * wants every such move noticed by a reader before mremap() returns, so there is a thread that reads. It sleeps
 * otherwise. It cannot die alone: all signals are blocked, nobody has its handle, and it calls poll() and read(). If
 * the VMM closes the descriptor under it, mremap() waits until somebody else reads: the daemon, which has a
 * duplicate, does when an answer is late. */
#ifndef AGENT_FREEZER_H
#define AGENT_FREEZER_H

#include <stdint.h>

#include "agent/eligible.h"

struct freezer;

/* Takes fd, from uffd_open_freezer() or uffd_setup_freezer(), also on failure. 0 or -errno. */
int freezer_new(int fd, struct freezer **ret_freezer);
struct freezer *freezer_free(struct freezer *f); /* NULL ok; gives NULL */
/* In a forked child, where its thread does not live. */
struct freezer *freezer_forget(struct freezer *f);
int freezer_fd(const struct freezer *f); /* borrowed */

/* Folds a page of its own. 0, or -errno and a reason (static string). Not for the window. */
int freezer_probe(struct freezer *f, const char **ret_why);

/* The rest may be used in the window; each returns 0 or -errno. */

/* From now on whoever writes to [addr, addr+len) waits, and /proc/PID/mem writers who had a page already have ended
 * (R13). On an error nobody waits. */
int freezer_hold(const struct freezer *f, uint64_t addr, uint64_t len);
/* Its bytes to `to`. The kernel reads for us: a page that was poisoned is an error and no signal. */
int freezer_copy(uint64_t to, uint64_t addr, uint64_t len);
/* New anonymous memory for it, nowhere yet: empty, registered. *ret_at is written only on 0. */
int freezer_make(const struct freezer *f, uint64_t len, const struct ram_attrs *attrs, uint64_t *ret_at,
		 unsigned *ret_attributes_lost);
/* Puts that over [addr, addr+len), in one step: whoever touches it then waits. On an error what was made is still
 * where it was, and the old mapping is there or, at worst, nothing (R4). */
int freezer_place(const struct freezer *f, uint64_t made, uint64_t len, uint64_t addr);

#endif
