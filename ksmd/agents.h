/* ksmd/agents.h - the agents that are connected: one for each VMM, accepted on one socket. Loop thread only, apart from
 * a peer that is lent.
 *
 * Whoever may connect can speak: an agent counts only for the process that the kernel names (SO_PEERCRED), and only if
 * that is a VM known otherwise. Who is none, or says nothing, is turned away after a while. */
#ifndef KSMD_AGENTS_H
#define KSMD_AGENTS_H

#include <stdbool.h>
#include <sys/types.h>

#include "ksmd/agent_peer.h"

struct agents;

struct agent {
	struct agent_peer *peer;
	bool lent;	 /* another thread has it: only the fields here may be looked at */
	bool said_hello; /* since somebody set it to false */
	bool released;	 /* likewise: pages became anonymous, or slots went */
};

/* Listens; group as in usock_listen(). 0 or -errno. */
int agents_new(const char *path, const char *group, struct agents **ret_agents);
struct agents *agents_free(struct agents *a); /* nothing may be lent; NULL ok; gives NULL */

/* Readable when agents_dispatch() has something to do. */
int agents_fd(const struct agents *a);
void agents_dispatch(struct agents *a);
/* After VMs were looked for: answers the agents of VMs, turns others away. True: one waits to be known as a VM. */
bool agents_review(struct agents *a, bool (*is_vm)(pid_t pid, void *userdata), void *userdata);

/* The agent of this process, if it has said hello; NULL: none. Good until the next dispatch or review. */
struct agent *agents_find(const struct agents *a, pid_t pid);
/* Ends the connection of this process, which is not lent and makes a new one by itself. */
void agents_drop(struct agents *a, pid_t pid);
/* Gives the peer to another thread, and takes it back; broken: its connection is of no use any more. */
struct agent_peer *agent_lend(struct agents *a, struct agent *agent);
void agent_return(struct agents *a, struct agent_peer *peer, bool broken);

#endif
