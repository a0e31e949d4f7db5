#include "ksmd/agent_peer.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "core/cleanup.h"
#include "core/snapshot.h"
#include "ksmd/store.h"

#define HELLO_TIMEOUT_MS 2000
#define FDS_MAX 2

struct agent_peer {
	int fd;
	pid_t pid;
	int pidfd;
	int uffd, journal_fd; /* for the repair of a window whose executor died */
	bool store_given;
	struct agent_slot_view slots[AGENT_SLOTS_MAX];
	size_t slot_count;
	/* Windows without an answer, oldest first. */
	struct {
		uint32_t sequence;
		uint16_t runs;
		uint64_t window;
	} sent[AGENT_PEER_OUTSTANDING];
	unsigned outstanding;
	uint32_t sequence;
};

union packet {
	struct agent_header header;
	struct agent_hello hello;
	struct agent_slot slot;
	struct agent_merged merged;
	struct agent_range range; /* AGENT_UNSLOT, AGENT_RELEASED */
	char bytes[AGENT_PACKET_MAX];
};

/* ---- packets ---- */

static void fds_close(int *fds)
{
	for (size_t i = 0; i < FDS_MAX; i++) {
		if (fds[i] >= 0)
			close(fds[i]);
		fds[i] = -1;
	}
}

/* Descriptors that came with the packet go to fds (-1: none); the caller closes them. */
static void fds_collect(struct msghdr *msg, int fds[FDS_MAX])
{
	for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
		size_t bytes = c->cmsg_len - CMSG_LEN(0);

		if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS)
			memcpy(fds, CMSG_DATA(c), bytes < FDS_MAX * sizeof(int) ? bytes : FDS_MAX * sizeof(int));
	}
}

/* One packet; its length or -errno. */
static ssize_t packet_receive(const struct agent_peer *p, int timeout_ms, union packet *packet, int fds[FDS_MAX])
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(FDS_MAX * sizeof(int))];
	} control;
	struct iovec iov = { packet, sizeof(*packet) };
	struct msghdr msg = {
		.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)
	};
	struct pollfd ready = { .fd = p->fd, .events = POLLIN };
	ssize_t n;
	int r;

	for (size_t i = 0; i < FDS_MAX; i++)
		fds[i] = -1;
	r = poll(&ready, 1, timeout_ms);
	if (r == 0)
		return -ETIMEDOUT;
	if (r < 0)
		return -errno;
	n = recvmsg(p->fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	if (n < 0)
		return -errno;
	fds_collect(&msg, fds);
	if (n == 0 || (msg.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) || (size_t)n < sizeof(struct agent_header)) {
		fds_close(fds);
		return n == 0 ? -ECONNRESET : -EPROTO;
	}
	return n;
}

static int packet_send(const struct agent_peer *p, const void *data, size_t len, int fd)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control = { 0 };
	struct iovec iov = { (void *)(uintptr_t)data, len };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };

	if (fd >= 0) {
		msg.msg_control = &control;
		msg.msg_controllen = sizeof(control);
		control.align = (struct cmsghdr){ .cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET,
						  .cmsg_type = SCM_RIGHTS };
		memcpy(CMSG_DATA(&control.align), &fd, sizeof(fd));
	}
	if (sendmsg(p->fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
		return -errno;
	return 0;
}

/* ---- what the agent says ---- */

static int slot_take(struct agent_peer *p, const struct agent_slot *m)
{
	if (m->hva % PAGE_BYTES || m->bytes % PAGE_BYTES || m->bytes == 0 || m->hva + m->bytes < m->hva ||
	    p->slot_count >= AGENT_SLOTS_MAX)
		return -EPROTO;
	p->slots[p->slot_count++] = (struct agent_slot_view){ m->hva, m->bytes };
	return 0;
}

static int slot_drop(struct agent_peer *p, const struct agent_range *m)
{
	for (size_t i = 0; i < p->slot_count; i++) {
		if (p->slots[i].hva != m->hva)
			continue;
		p->slots[i] = p->slots[--p->slot_count];
		return 0;
	}
	return -EPROTO;
}

/* Answers come in the order of the questions, one for each, with as many results. */
static int answer_take(struct agent_peer *p, const struct agent_merged *m, size_t len, struct agent_answer *ret)
{
	size_t count = m->header.count;

	if (p->outstanding == 0 || len != sizeof(*m) + count * sizeof(m->results[0]) ||
	    m->header.sequence != p->sent[0].sequence || m->window != p->sent[0].window ||
	    (m->error == 0 && count != p->sent[0].runs) || count > AGENT_RUNS_MAX || m->error > 0)
		return -EPROTO;
	memmove(&p->sent[0], &p->sent[1], --p->outstanding * sizeof(p->sent[0]));
	ret->window = m->window;
	ret->error = m->error;
	ret->stall_us = m->stall_us;
	ret->count = count;
	memcpy(ret->results, m->results, count * sizeof(m->results[0]));
	return 1;
}

int agent_peer_take(struct agent_peer *p, int timeout_ms, struct agent_answer *ret_answer)
{
	union packet packet;
	int fds[FDS_MAX];
	ssize_t n = packet_receive(p, timeout_ms, &packet, fds);

	if (n < 0)
		return (int)n;
	fds_close(fds); /* none belongs to these messages */
	switch (packet.header.type) {
	case AGENT_SLOT:
		return n == sizeof(packet.slot) ? slot_take(p, &packet.slot) : -EPROTO;
	case AGENT_UNSLOT:
		return n == sizeof(packet.range) ? slot_drop(p, &packet.range) : -EPROTO;
	case AGENT_MERGED:
		if ((size_t)n < sizeof(packet.merged))
			return -EPROTO;
		return answer_take(p, &packet.merged, (size_t)n, ret_answer);
	case AGENT_RELEASED: /* frames stay referenced until the run is gone; see remap.h */
		return n == sizeof(packet.range) ? 0 : -EPROTO;
	default:
		return -EPROTO;
	}
}

/* ---- life ---- */

static int peer_identify(struct agent_peer *p)
{
	struct ucred who;
	socklen_t len = sizeof(who);

	if (getsockopt(p->fd, SOL_SOCKET, SO_PEERCRED, &who, &len) < 0)
		return -errno;
	p->pid = who.pid;
	p->pidfd = (int)syscall(SYS_pidfd_open, who.pid, 0);
	return p->pidfd < 0 ? -errno : 0;
}

static int hello_take(struct agent_peer *p)
{
	union packet packet;
	int fds[FDS_MAX];
	ssize_t n = packet_receive(p, HELLO_TIMEOUT_MS, &packet, fds);

	if (n < 0)
		return (int)n;
	if (n != sizeof(packet.hello) || packet.header.type != AGENT_HELLO ||
	    packet.hello.version != AGENT_PROTOCOL_VERSION || fds[0] < 0 || fds[1] < 0) {
		fds_close(fds);
		return -EPROTO;
	}
	p->uffd = fds[0];
	p->journal_fd = fds[1];
	return 0;
}

int agent_peer_new(int fd, struct agent_peer **ret_peer)
{
	struct agent_peer *p = calloc(1, sizeof(*p));
	int r;

	if (!p) {
		close(fd);
		return -ENOMEM;
	}
	p->fd = fd;
	p->pidfd = p->uffd = p->journal_fd = -1;
	r = peer_identify(p);
	if (r == 0)
		r = hello_take(p);
	if (r < 0) {
		agent_peer_free(p);
		return r;
	}
	*ret_peer = p;
	return 0;
}

struct agent_peer *agent_peer_free(struct agent_peer *p)
{
	const int fds[] = { p ? p->fd : -1, p ? p->pidfd : -1, p ? p->uffd : -1, p ? p->journal_fd : -1 };

	for (size_t i = 0; i < ARRAY_SIZE(fds); i++)
		if (fds[i] >= 0)
			close(fds[i]);
	free(p);
	return NULL;
}

pid_t agent_peer_pid(const struct agent_peer *p)
{
	return p->pid;
}

int agent_peer_pidfd(const struct agent_peer *p)
{
	return p->pidfd;
}

size_t agent_peer_slots(const struct agent_peer *p, const struct agent_slot_view **ret_slots)
{
	*ret_slots = p->slots;
	return p->slot_count;
}

unsigned agent_peer_outstanding(const struct agent_peer *p)
{
	return p->outstanding;
}

/* ---- what the daemon says ---- */

int agent_peer_give_store(struct agent_peer *p, const struct store *s)
{
	struct agent_store m = { .header.type = AGENT_STORE, .frames = store_frames(s) };
	auto_close int fd = -1;
	int r;

	if (p->store_given)
		return -EEXIST;
	fd = store_client_fd(s);
	if (fd < 0)
		return fd;
	r = packet_send(p, &m, sizeof(m), fd);
	p->store_given = r == 0;
	return r;
}

int agent_peer_merge(struct agent_peer *p, uint64_t window, const struct agent_run *runs, size_t count,
		     uint16_t min_pages_huge, uint16_t min_pages)
{
	union {
		struct agent_merge m;
		char bytes[sizeof(struct agent_merge) + AGENT_RUNS_MAX * sizeof(struct agent_run)];
	} packet;
	int r;

	if (count == 0 || count > AGENT_RUNS_MAX)
		return -EINVAL;
	if (p->outstanding == AGENT_PEER_OUTSTANDING)
		return -EBUSY;
	packet.m = (struct agent_merge){
		.header = { .type = AGENT_MERGE, .count = (uint16_t)count, .sequence = ++p->sequence },
		.window = window,
		.min_pages_huge = min_pages_huge,
		.min_pages = min_pages,
		.min_piece = 1,
	};
	memcpy(packet.m.runs, runs, count * sizeof(*runs));
	r = packet_send(p, &packet, sizeof(packet.m) + count * sizeof(*runs), -1);
	if (r < 0)
		return r;
	p->sent[p->outstanding].sequence = p->sequence;
	p->sent[p->outstanding].runs = (uint16_t)count;
	p->sent[p->outstanding].window = window;
	p->outstanding++;
	return 0;
}
