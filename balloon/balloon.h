/* balloon/balloon.h - driving the balloons of VMs as a module of the daemon. */
#ifndef BALLOON_BALLOON_H
#define BALLOON_BALLOON_H

#include <stdbool.h>
#include <stdint.h>
#include <systemd/sd-event.h>

#include "balloon/admit.h"
#include "balloon/policy.h"
#include "balloon/port.h"
#include "core/config.h"
#include "core/fsio.h"
#include "core/module.h"
#include "core/snapshot.h"
#include "vmm/registry.h"

struct balloon;

extern const struct module_ops balloon_ops; /* takes a struct balloon */

/* All but loop (referenced) are borrowed; config may change in place. 0 or -errno. */
int balloon_new(sd_event *loop, const struct fsio *fs, const struct config *config, struct vmm_registry *registry,
		struct balloon **ret_balloon);
/* Balloons stay as they are: whoever ends the daemon may start it anew, and a host that is short of memory must not get
 * it all back at once. NULL ok; gives NULL. */
struct balloon *balloon_free(struct balloon *b);

/* "urgent" asks for a tick at once: a guest runs short. From the loop; at most once between two ticks. */
void balloon_on_urgent(struct balloon *b, void (*urgent)(void *userdata), void *userdata);

/* From the registry's callbacks. */
void balloon_vm_ready(struct balloon *b, struct vm *vm);
void balloon_vm_gone(struct balloon *b, struct vm *vm);
/* True once every VM that is reached has told of its balloon. For those who look once: asks. */
bool balloon_settled(struct balloon *b);

/* The decision about the picture taken at that time; NULL: none was made. Borrowed until the loop goes on. */
const struct balloon_plan *balloon_plan_of(const struct balloon *b, uint64_t taken_ns);

/* What the policy is told of a configuration. */
struct balloon_limits balloon_limits_of(const struct config *c);

/* ---- for people ---- */

struct balloon_status {
	const struct ladder *ladder; /* borrowed */
	uint64_t idle_bytes, budget_bytes, missing_bytes;
	uint64_t promised_bytes; /* by admit */
	uint64_t taken_bytes, given_bytes; /* moved by our commands since the start */
	uint64_t vetoes;
};
void balloon_status(const struct balloon *b, struct balloon_status *ret_status);

/* The last decision about a VM; NULL: there was none. Borrowed until the next tick. */
const struct balloon_vm_plan *balloon_vm_plan(const struct vm *vm);
/* What was told of its balloon; NULL: nobody reaches it. */
const struct balloon_told *balloon_vm_told(const struct vm *vm);

/* May a VM of that size start? node -1: any. With a node its memory is read: -errno; else 0. s: of the last tick. */
int balloon_admit(struct balloon *b, const struct host_snapshot *s, uint64_t bytes, int node,
		  struct admit_answer *ret_answer);

#endif
