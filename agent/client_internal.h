/* agent/client_internal.h - what the parts of the agent share.
 *
 * client.c          the calls of memvirt-agent.h, fork, the guard
 * client_ram.c      which memory is guest RAM, what the daemon has been told of it, what was discarded
 * client_touched.c  the same ranges, for those who must not wait
 * client_connect.c  the agent's thread: connects, says hello, serves, pauses, connects again
 * client_serve.c    what the daemon asks for
 * client_hash.c     of this: hashes of guest RAM
 *
 * Three parties meet here: the VMM's threads, the agent's thread, and fork(). There are two locks. The guard covers
 * everything in struct memvirt_agent that is not said to be the thread's own; who touches guest RAM's mappings holds
 * it as well. The exchange's lock (R6) comes after it, never before. The thread merges with the exchange's lock only,
 * and no socket is ever used with the guard held (but in attach, before there is a thread): only the thread sends and
 * receives, so no vCPU waits for a daemon that does not read. */
#ifndef AGENT_CLIENT_INTERNAL_H
#define AGENT_CLIENT_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "agent/exchange.h"
#include "agent/freezer.h"
#include "agent/memvirt-agent.h"
#include "agent/packet.h"

#define CLIENT_SEALS (F_SEAL_SHRINK | F_SEAL_GROW)
#define CLIENT_RELEASES_MAX 64u

struct span {
	uint64_t start, end; /* end 0: nothing */
};

enum ram_state {
	RAM_FREE,
	RAM_CANDIDATE, /* the VMM has hinted at it; to be looked at when the VMM has done with it */
	RAM_NEW,       /* known, and the daemon is to be told */
	RAM_TOLD,
};

struct ram {
	enum ram_state state;
	bool exchanged; /* it is a slot of the exchange, open or closed */
	bool tracked;	/* PAGEMAP_SCAN knows what is written to it */
	bool foreign;	/* the VMM has registered it with a userfaultfd of its own */
	bool released;	/* something was discarded, and there was no room to say what */
	uint64_t start, end;
	uint64_t due_ns;	/* look at it (again) at this time; 0: no need */
	const char *refused;	/* it was, by the exchange, for this */
	const char *told;	/* RAM_TOLD: client_ram_why() as the daemon knows it */
	const char *broken;	/* for good: it is not in one piece any more, or not alike */
	struct span locked;	/* mlock: the whole that may be locked, holes included */
	struct span protected;	/* mprotect, likewise */
	int prot;		/* of protected; -1: not the same everywhere */
};

struct memvirt_agent {
	char *path;
	pthread_t thread;
	bool thread_runs;
	bool child; /* a fork's: no thread, no daemon, no descriptors */
	bool own;    /* the preload's: nobody else knows of it */
	bool prints; /* one line, once, when memory is not merged */
	atomic_bool stop;
	_Atomic(const char *) ended;
	int wake;     /* eventfd: the thread has something to look at */
	int sock;     /* -1: none; changed by the thread, with the guard held */
	int uffd, journal_fd;
	struct exchange_journal *journal;
	struct exchange *x; /* set once, with the guard held */
	const char *no_x;   /* why there is none, or it may not be used; NULL: all is well */
	struct freezer *freezer; /* likewise */
	const char *no_freezer;  /* why there is none: merged memory stays merged */
	struct ram ram[AGENT_SLOTS_MAX];
	struct agent_range gone[AGENT_SLOTS_MAX]; /* UNSLOTs to send */
	struct agent_range released[CLIENT_RELEASES_MAX];
	unsigned gone_count, released_count;
	bool resync; /* more has changed than can be told: connect anew and tell all */
	/* The rest belongs to the thread; here since it must not allocate in the window. */
	uint64_t checked_ns; /* when it was last asked whether the process is fit (R13) */
	int unfit;
	struct exchange_store store; /* map NULL: none yet */
	struct exchange_run runs[AGENT_RUNS_MAX];
	struct packet in;
	struct packet out;
};

/* client.c. All signals and cancellation are held off by the guard. */
void client_guard_lock(void);
void client_guard_unlock(void);
struct memvirt_agent *client_agent(void); /* of this process; NULL: none. The guard is held. */
/* The guard and, if there is an exchange, its lock. NULL: this process has no agent; the guard is held all the same. */
struct memvirt_agent *client_ram_lock(void);
void client_ram_unlock(struct memvirt_agent *a);
/* An agent that starts by itself, for the preload: its thread makes the connection. The guard is held. -errno; -EBUSY:
 * there is one, or a forked child has inherited one with memory that may be merged. */
int client_start(const char *path, struct memvirt_agent **ret_agent);
void client_wake(struct memvirt_agent *a);

/* client_connect.c */
extern const char client_unfinished[];
/* No window was left open. */
bool client_settled(const struct memvirt_agent *a);
void *client_thread(void *agent);
/* From the socket to the hello. Not with a connection open. guarded: the guard is held already, and the VMM waits.
 * *ret_why: why not, or if without the exchange, why that, or "". */
int client_connect(struct memvirt_agent *a, bool guarded, const char **ret_why);
/* Sleeps until there is something to read from fd (-1: none), or a wake-up. Returns whether fd can be read. */
bool client_wait(struct memvirt_agent *a, int fd, int timeout_ms);

/* client_serve.c. NULL: go on; else why the connection has to end. */
const char *client_serve_one(struct memvirt_agent *a);
void client_store_drop(struct memvirt_agent *a);

/* client_fold.c. _freezer: takes fd (or -errno: why there is none) for a->freezer, or says why not in a->no_freezer.
 * _unmerge: the answer, in a->out. _all: gives back what is merged, as far as a second and the host's memory allow. */
void client_fold_freezer(struct memvirt_agent *a, int fd);
struct agent_unmerged *client_fold_unmerge(struct memvirt_agent *a, const struct agent_unmerge *m, int unfit);
void client_fold_all(struct memvirt_agent *a);

/* client_hash.c. The answer, in a->out. */
struct agent_hashed *client_hash(struct memvirt_agent *a, const struct agent_hash *h);

/* client_touched.c. Without a lock, and wait-free: does [addr, addr+len) touch guest RAM? */
bool client_ram_touched(uint64_t addr, uint64_t len);
/* With the guard held: entry i of the agent's is now this; end 0: none. _clear: no agent any more. */
void client_touched_set(unsigned i, uint64_t start, uint64_t end);
void client_touched_clear(void);

/* client_ram.c. With the guard held. -EEXIST, -ENOSPC, -EINVAL. */
int client_ram_add(struct memvirt_agent *a, uint64_t addr, uint64_t len, uint64_t due_ns, struct ram **ret_ram,
		   const char **ret_why);
/* Looks at a candidate: into the exchange if every rule allows it, else to be marked for the kernel's scanner at
 * least, and *ret_why says why not more. -errno: not even that, and it is forgotten. */
int client_ram_judge(struct memvirt_agent *a, struct ram *r, const char **ret_why);
const char *client_ram_why(const struct memvirt_agent *a, const struct ram *r); /* not merged; NULL: it may be */
struct ram *client_ram_at(struct memvirt_agent *a, uint64_t addr);
/* Judges what is due. Returns when the next is, 0: never. */
uint64_t client_ram_due(struct memvirt_agent *a);
/* The next packet that the daemon must get, in *ret_packet. Returns its length, 0: none. */
size_t client_ram_next(struct memvirt_agent *a, struct packet *ret_packet);
/* A new connection: nothing was told. */
void client_ram_untold(struct memvirt_agent *a);
/* In a forked child: forgets RAM that is not there (MADV_DONTFORK). Returns whether any is left. */
bool client_ram_inherited(struct memvirt_agent *a);

/* With both locks held; after the real call. */
void client_ram_remove(struct memvirt_agent *a, struct ram *r);
void client_ram_replaced(struct memvirt_agent *a, uint64_t addr, uint64_t len, const char *why);
void client_ram_broken(struct memvirt_agent *a, uint64_t addr, uint64_t len, const char *why);
void client_ram_advised(struct memvirt_agent *a, uint64_t addr, uint64_t len, int advice);
void client_ram_protected(struct memvirt_agent *a, uint64_t addr, uint64_t len, int prot);
void client_ram_mlocked(struct memvirt_agent *a, uint64_t addr, uint64_t len, bool locked);
/* Before the VMM registers it with a userfaultfd of its own: memory has one at most. Merging rests until that is over. */
void client_ram_foreign(struct memvirt_agent *a, uint64_t addr, uint64_t len);
/* mlockall: what is mapped later is locked, too. Needs no agent; for any time. */
void client_ram_mlocked_future(struct memvirt_agent *a, bool locked);
/* The real call, and before it what R6 wants. MADV_DONTNEED, MADV_DONTNEED_LOCKED or MADV_FREE. 0 or -errno. */
int client_ram_discard(struct memvirt_agent *a, uint64_t addr, uint64_t len, int advice);

#endif
