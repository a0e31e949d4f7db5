/* agent/memvirt-agent.h - for a VMM that lets memvirtd merge the RAM of its guest: link the agent, attach, name the RAM.
 *
 *	struct memvirt_agent *agent = NULL;
 *	const char *why;
 *
 *	if (memvirt_agent_attach("/run/memvirt/agent", &agent, &why) < 0)
 *		fprintf(stderr, "memory is not merged: %s\n", why);
 *	else if (memvirt_agent_add_slot(agent, ram, ram_bytes, &why) < 0)
 *		fprintf(stderr, "this memory is not merged: %s\n", why);
 *	...
 *	agent = memvirt_agent_detach(agent);
 *
 * Nothing here ends or signals the VMM: whatever is missing, it runs on with the memory it has. All functions return
 * 0 or -errno; *ret_why is a static text that says what is missing, or "". Not for signal handlers. One agent
 * per process.
 *
 * What the VMM must know:
 * - The agent has a thread, with all signals blocked (and one more that only sleeps, see agent/freezer.h). It moves
 *   guest pages out for some 100 us, compares them with the daemon's frames and maps these copy-on-write. Who touches
 *   such a page meanwhile waits, and reads and writes as ever afterwards.
 * - Where that is ruled out (an old kernel, no userfaultfd to be had, locked memory) the agent can still mark memory for
 *   the kernel's own scanner when the daemon asks for it. attach() and add_slot() then return 0 with a reason.
 * - Merged memory is a private mapping of a file. MADV_DONTNEED on it would bring the file's bytes back, not zeroes,
 *   and MADV_FREE fails: a VMM with a balloon or free page reporting calls memvirt_agent_discard() instead. Before
 *   munmap, mmap, mremap, mprotect, mlock or a userfaultfd registration on RAM its slot must be removed.
 * - Memory stays merged when its slot is removed and when the daemon is gone: then, too, every byte is right. detach()
 *   makes it the VMM's own again, as far as a second and the host's memory allow; the rest stays merged. To discard it
 *   after that, map fresh memory over it.
 * - fork() is safe once attached. In the child merging is over; the child may discard and detach.
 * - When the connection ends (the daemon stopped, or sent what it must not), nothing is merged until the agent has
 *   connected again. It tries by itself, after 1 s and then less and less often, up to every 5 s. Slots may be added
 *   and removed meanwhile.
 * - The daemon must run as root or as the VMM's own user; another's socket is refused. It gets the means to finish an
 *   exchange when the VMM's thread dies, which are means to change the VMM's memory, and it owns the frames: it is
 *   trusted as a debugger is. What it sends is checked all the same. */
#ifndef AGENT_MEMVIRT_AGENT_H
#define AGENT_MEMVIRT_AGENT_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

struct memvirt_agent;

/* Connects to the daemon's socket and says hello; this first time while the VMM waits, 1 s at most if the daemon does not
 * answer. *ret_agent is written only on 0. -EBUSY: this process has an agent. */
int memvirt_agent_attach(const char *socket_path, struct memvirt_agent **ret_agent, const char **ret_why);

/* Offers [addr, addr+len), page-aligned, as guest RAM: private anonymous memory, readable and writable, not locked, not
 * overlapping another slot. Private anonymous memory that is unfit otherwise is offered for marking: 0 and a reason.
 * -EINVAL, -EEXIST, -ENOSPC, -EOPNOTSUPP ..: not even that. -ENOTCONN: in a forked child. */
int memvirt_agent_add_slot(struct memvirt_agent *agent, void *addr, size_t len, const char **ret_why);
/* When it returns, nothing in the slot that starts at addr is or will be moved. -ENOENT: there is none. */
int memvirt_agent_remove_slot(struct memvirt_agent *agent, void *addr);

/* MADV_DONTNEED for memory that may be merged: all zero afterwards, and its memory free. */
int memvirt_agent_discard(struct memvirt_agent *agent, void *addr, size_t len);

/* NULL while the daemon is connected, else why it is not (static text). */
const char *memvirt_agent_ended(const struct memvirt_agent *agent);

/* Stops the thread, after the window it may be in, gives back what is merged, and frees the agent. No other call may be
 * going on or follow. NULL ok; gives NULL. */
struct memvirt_agent *memvirt_agent_detach(struct memvirt_agent *agent);

#ifdef __cplusplus
}
#endif

#endif
