/* vmm/entry.h - the private side of a struct vm, shared by registry.c (which VMs there are) and link.c (how
 * one is reached). Private to vmm/. */
#ifndef VMM_ENTRY_H
#define VMM_ENTRY_H

#include "vmm/registry.h"

struct vmm_sweep; /* vmm/discover.h */

struct vmm_registry {
	sd_event *loop;
	const struct fsio *fs;
	const struct config *config;
	const struct vmm_registry_ops *ops;
	void *userdata;
	struct vmm_sweep *sweep;
	struct vm *first, *last;
	int count;
	bool full_logged;
};

struct vm_entry {
	struct vm vm; /* first: the list is of struct vm */
	struct vmm_registry *registry;
	sd_event_source *ended; /* watches the pidfd */

	/* link.c's */
	struct qmp *link;	/* from connect to the end; vm.qmp is the same while VM_READY */
	sd_event_source *retry; /* set while waiting to connect again */
	uint64_t ready_us;	/* when the link became ready; 0: it has not */
	uint64_t delay_s;	/* waited before the last try; 0: no try has failed */
	bool identified;	/* was ready once: name and uuid stay */
	bool polling;		/* asked by link_poll(), not answered yet */
	bool incoming;		/* waits for, or is receiving, a migration */
	bool outgoing;		/* query-migrate or MIGRATION says one is under way */
};

static inline struct vm_entry *vm_entry(struct vm *vm)
{
	return (struct vm_entry *)vm;
}

/* Sets state and why, logs a change of state and tells ops. */
void entry_set_state(struct vm_entry *e, enum vm_state state, const char *why);
/* Sets the flags and tells ops when they changed and the VM is ready (before, ready() tells). */
void entry_set_flags(struct vm_entry *e, bool running, bool migrating);
/* Names the VM anew and looks its settings up. */
void entry_set_name(struct vm_entry *e, const char *name);

#endif
