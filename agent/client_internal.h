/* agent/client_internal.h - what the two halves of the agent share: the VMM's calls, and the thread. */
#ifndef AGENT_CLIENT_INTERNAL_H
#define AGENT_CLIENT_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "agent/exchange.h"
#include "agent/memvirt-agent.h"
#include "agent/packet.h"

#define CLIENT_SEALS (F_SEAL_SHRINK | F_SEAL_GROW)

struct memvirt_agent {
	int sock, uffd, journal_fd;
	struct exchange_journal *journal;
	struct exchange *x;
	pthread_t thread;
	bool thread_runs;
	bool child; /* a fork's: no thread, no daemon, no descriptors */
	_Atomic(const char *) ended;
	struct agent_slot slots[AGENT_SLOTS_MAX]; /* bytes 0: free */
	/* The rest belongs to the thread; here since it must not allocate. */
	struct exchange_store store; /* map NULL: none yet */
	struct exchange_run runs[AGENT_RUNS_MAX];
	struct packet in;
	struct packet out;
};

/* client_serve.c. The thread's function; it ends when the connection does. */
void *client_serve(void *agent);
/* The first reason stays. The daemon sees the end at once; the descriptors live until detach. */
void client_end(struct memvirt_agent *a, const char *why);

#endif
