/* ksmd/agent_peer.h - the daemon's end of a connection to the agent in a VMM (agent/protocol.h).
 *
 * The agent is not trusted: packets are checked for length, type and bounds, and who it is comes from the kernel
 * (SO_PEERCRED), not from what it says. One thread at a time. */
#ifndef KSMD_AGENT_PEER_H
#define KSMD_AGENT_PEER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "agent/protocol.h"

struct agent_peer;
struct store;

struct agent_slot_view {
	uint64_t hva, bytes;
};

/* Takes fd, a connected SOCK_SEQPACKET socket, and waits for the HELLO. 0; -EPROTO (nonsense, or another version);
 * -ETIMEDOUT; -ESRCH; -errno. */
int agent_peer_new(int fd, struct agent_peer **ret_peer);
struct agent_peer *agent_peer_free(struct agent_peer *p); /* NULL ok; gives NULL */

pid_t agent_peer_pid(const struct agent_peer *p);
int agent_peer_pidfd(const struct agent_peer *p); /* borrowed */
size_t agent_peer_slots(const struct agent_peer *p, const struct agent_slot_view **ret_slots);

/* Sends the store's read-only descriptor, once. 0 or -errno. */
int agent_peer_give_store(struct agent_peer *p, const struct store *s);

/* Sends a window; runs as in agent/protocol.h. At most AGENT_PEER_OUTSTANDING may be without an answer, which
 * keeps both socket buffers from filling up. 0, -EBUSY, -errno (the connection is over). */
#define AGENT_PEER_OUTSTANDING 8
int agent_peer_merge(struct agent_peer *p, uint64_t window, const struct agent_run *runs, size_t count,
		     uint16_t min_pages_huge, uint16_t min_pages);
unsigned agent_peer_outstanding(const struct agent_peer *p);

/* What came back for the oldest window that was sent. */
struct agent_answer {
	uint64_t window;
	int error;
	uint32_t stall_us;
	size_t count; /* results */
	struct agent_result results[AGENT_RUNS_MAX];
};

/* Takes in one packet, waiting at most timeout_ms. 1 and an answer; 0: something else came (slots, releases);
 * -ETIMEDOUT; -EPROTO; -ECONNRESET. */
int agent_peer_take(struct agent_peer *p, int timeout_ms, struct agent_answer *ret_answer);

#endif
