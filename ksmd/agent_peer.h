/* ksmd/agent_peer.h - the daemon's end of a connection to the agent in a VMM (agent/protocol.h).
 *
 * The agent is not trusted: packets are checked for length, type and bounds, and who it is comes from the kernel
 * (SO_PEERCRED), not from what it says. One thread at a time; which one may change. */
#ifndef KSMD_AGENT_PEER_H
#define KSMD_AGENT_PEER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "agent/protocol.h"

struct agent_peer;
struct store;

/* Takes fd, a connected SOCK_SEQPACKET socket. Waits for nothing. 0; -ESRCH (it has ended already); -errno. */
int agent_peer_new(int fd, struct agent_peer **ret_peer);
struct agent_peer *agent_peer_free(struct agent_peer *p); /* NULL ok; gives NULL */

int agent_peer_fd(const struct agent_peer *p); /* borrowed; readable: agent_peer_take() */
pid_t agent_peer_pid(const struct agent_peer *p);
int agent_peer_pidfd(const struct agent_peer *p); /* borrowed */

/* ---- what it said ---- */

bool agent_peer_ready(const struct agent_peer *p); /* HELLO has come */
/* Why no memory of its VMM can be exchanged, in its words (printable, at most AGENT_WHY_BYTES); NULL: some can. */
const char *agent_peer_refusal(const struct agent_peer *p);
/* Why its VM's merged memory cannot be given back to it as its own. Likewise. */
const char *agent_peer_unmerge_refusal(const struct agent_peer *p);

struct agent_slot_view {
	uint64_t hva, bytes;
	bool can_remap;
	bool tracked; /* what is written to it can be told by PAGEMAP_SCAN */
	char why[AGENT_WHY_BYTES]; /* why not; printable */
};
size_t agent_peer_slots(const struct agent_peer *p, const struct agent_slot_view **ret_slots);
/* Whether it asks for the descriptor of /dev/userfaultfd. */
bool agent_peer_wants_uffd(const struct agent_peer *p);
/* True once after merged pages became anonymous again, or slots went. */
bool agent_peer_released(struct agent_peer *p);

/* What came back for the oldest window or hints that were sent. */
struct agent_answer {
	enum agent_message type; /* AGENT_MERGED; AGENT_HASHED; AGENT_UNMERGED; AGENT_HINTED, with error only */
	int error;
	uint32_t cpu_us; /* of the agent's thread */
	size_t count;	 /* results, or hashes */
	union {
		struct { /* AGENT_MERGED */
			uint64_t window;
			uint32_t stall_us;
			struct agent_result results[AGENT_RUNS_MAX];
		};
		struct { /* AGENT_HASHED */
			uint32_t zero_mapped, swapped, huge;
			uint64_t hashes[AGENT_HASH_PAGES_MAX];
		};
		struct agent_unmerged unmerged; /* AGENT_UNMERGED */
	};
};

/* Takes in one packet, waiting at most timeout_ms. 1 and an answer; 0: something else came; -ETIMEDOUT; -EPROTO
 * (nonsense); -EPROTONOSUPPORT (an agent of another version); -ECONNRESET. After an error only free() is of use. */
int agent_peer_take(struct agent_peer *p, int timeout_ms, struct agent_answer *ret_answer);
/* The same until an answer has come. What comes beside it does not make the time longer. 0; -errno as above. */
int agent_peer_answer(struct agent_peer *p, int timeout_ms, struct agent_answer *ret_answer);

/* ---- what it is told; 0, -EBUSY, or -errno: the connection is over ---- */

/* A descriptor of /dev/userfaultfd (borrowed), or -1: it gets none. */
int agent_peer_give_uffd(struct agent_peer *p, int fd);
/* The store's read-only descriptor; once, later calls do nothing. -EXDEV: it has another store (its VM has changed its
 * domain); it can get this one on a new connection only, for what it is told from now on would be about the other. */
int agent_peer_give_store(struct agent_peer *p, const struct store *s);

/* Sends a window; runs as in agent/protocol.h. At most AGENT_PEER_OUTSTANDING commands may be without an answer,
 * which keeps both socket buffers from filling up. */
#define AGENT_PEER_OUTSTANDING 8
int agent_peer_merge(struct agent_peer *p, uint64_t window, const struct agent_run *runs, size_t count,
		     uint16_t min_pages_huge, uint16_t min_pages);
/* Marks at most AGENT_HINTS_MAX ranges for the kernel's scanner. */
int agent_peer_hint(struct agent_peer *p, const struct agent_hint *hints, size_t count);
/* Asks for the hashes of at most AGENT_HASH_PAGES_MAX pages; what comes back is the agent's word, and a hint at best. */
int agent_peer_hash(struct agent_peer *p, uint64_t hva, uint32_t pages, uint64_t seed);
/* Gives the merged pages of a window their own memory back; split: see exchange_fold(). -EOPNOTSUPP: it cannot. */
int agent_peer_unmerge(struct agent_peer *p, uint64_t window, bool split);
/* agent_peer_hint() for any number of ranges, one packet after the other, waiting timeout_ms for each answer; nothing else may be
 * without one. A range that could not be marked is no error of the connection: *ret_error is the first such, or 0. */
int agent_peer_hint_all(struct agent_peer *p, const struct agent_hint *hints, size_t count, int timeout_ms,
			int *ret_error);
unsigned agent_peer_outstanding(const struct agent_peer *p);

/* ---- when it is silent (SAFETY.md, R5) ---- */

/* Finishes the window that a dead executor left open: 1 done; 0 nothing is open, or its executor lives; -errno: what is
 * open stays so, its readers wait, nothing is lost. */
int agent_peer_repair(struct agent_peer *p);
/* An answer to unmerge is late: reads what its freezer waits to be read, should the agent's own reader have lost it. */
void agent_peer_nudge(const struct agent_peer *p);

#endif
