/* agent/packet.h - sends and receives the packets of agent/protocol.h with their descriptors; for both sides.
 *
 * What was received is a copy of our own that the sender can no longer change, and is handed out only if it is
 * well formed: see packet_check(). No allocation, no lock. All functions return 0 or -errno. */
#ifndef AGENT_PACKET_H
#define AGENT_PACKET_H

#include <stddef.h>
#include <stdint.h>

#include "agent/protocol.h"

#define PACKET_FDS_MAX 3u

struct packet {
	union {
		struct agent_header header;
		struct agent_hello hello;
		struct agent_uffd uffd;
		struct agent_slot slot;
		struct agent_range range; /* AGENT_UNSLOT, AGENT_RELEASED */
		struct agent_store store;
		struct agent_hinted hinted;
		struct agent_hash hash;
		struct agent_unmerge unmerge;
		struct agent_unmerged unmerged;
		uint8_t bytes[AGENT_PACKET_MAX];
	};
	size_t len;
	int fds[PACKET_FDS_MAX]; /* owned; -1: none, or taken */
};

/* Those that end in an array; a union that is not last in its struct cannot hold them. */
static inline struct agent_merge *packet_merge(struct packet *p)
{
	return (void *)p->bytes;
}

static inline struct agent_merged *packet_merged(struct packet *p)
{
	return (void *)p->bytes;
}

static inline struct agent_hints *packet_hints(struct packet *p)
{
	return (void *)p->bytes;
}

static inline struct agent_hashed *packet_hashed(struct packet *p)
{
	return (void *)p->bytes;
}

/* Does the packet fit its type: its length, the number of its descriptors, and every field as far as that can be
 * said without knowing slots, the store or what was asked before? 0, -EPROTO, or -EPROTONOSUPPORT: HELLO of a
 * version that is not served. Which types may come from the other side is for the caller to say. Pure. p->len is at most
 * AGENT_PACKET_MAX. */
int packet_check(struct packet *p, unsigned fd_count);

/* Waits for a packet. -ECONNRESET: the other side has closed (or sent an empty packet); -EPROTO .. as above;
 * -EMSGSIZE: too long; -ETOOMANYREFS: more descriptors than any packet has. On an error no descriptor stays open.
 * flags: MSG_DONTWAIT or 0. */
int packet_receive(int sock, struct packet *p, int flags);

/* len bytes as one packet with copies of fd_count descriptors (borrowed). Never raises SIGPIPE. */
int packet_send(int sock, const void *bytes, size_t len, const int *fds, unsigned fd_count);

void packet_close(struct packet *p); /* the descriptors that were not taken */

#endif
