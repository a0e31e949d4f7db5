#include "ksmd/agent_peer.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "agent/packet.h"
#include "core/cleanup.h"
#include "core/clock.h"
#include "ksmd/agent_journal.h"
#include "ksmd/store.h"

#ifndef SO_PEERPIDFD /* Linux 6.5 */
#define SO_PEERPIDFD 77
#endif

/* Without an answer, oldest first. */
struct command {
	uint32_t sequence;
	uint16_t type, count; /* count: runs, or pages */
	uint64_t window;
};

struct agent_peer {
	int fd;
	pid_t pid;
	int pidfd;
	bool ready, wants_uffd, released;
	uint64_t store_inode; /* of the store that it was given; 0: none */
	uint32_t version, can; /* as it said hello */
	char why[AGENT_WHY_BYTES];
	int uffd, freezer; /* -1: no exchange; it cannot un-merge */
	struct exchange_journal *journal;
	struct agent_slot_view slots[AGENT_SLOTS_MAX];
	size_t slot_count;
	struct command sent[AGENT_PEER_OUTSTANDING];
	unsigned outstanding;
	uint32_t sequence;
};

/* ---- what the agent says ---- */

static struct agent_slot_view *slot_find(struct agent_peer *p, uint64_t hva, uint64_t bytes)
{
	for (size_t i = 0; i < p->slot_count; i++)
		if (p->slots[i].hva < hva + bytes && hva < p->slots[i].hva + p->slots[i].bytes)
			return &p->slots[i];
	return NULL;
}

/* A slot that is there already is said again when it became unfit for the exchange, or fit. */
static int slot_take(struct agent_peer *p, const struct agent_slot *m)
{
	struct agent_slot_view *s = slot_find(p, m->hva, m->bytes);

	if (s && (s->hva != m->hva || s->bytes != m->bytes))
		return -EPROTO;
	if (!s && p->slot_count == AGENT_SLOTS_MAX)
		return -EPROTO;
	if (!s)
		s = &p->slots[p->slot_count++];
	*s = (struct agent_slot_view){ m->hva, m->bytes, m->flags & AGENT_CAN_REMAP, m->flags & AGENT_TRACKED, "" };
	memcpy(s->why, m->why, sizeof(s->why));
	return 0;
}

static int slot_drop(struct agent_peer *p, const struct agent_range *m)
{
	struct agent_slot_view *s = slot_find(p, m->hva, m->bytes);

	if (!s || s->hva != m->hva || s->bytes != m->bytes)
		return -EPROTO;
	*s = p->slots[--p->slot_count];
	p->released = true;
	return 0;
}

/* Answers come in the order of the questions, one for each. */
static int answer_begin(struct agent_peer *p, const struct agent_header *h, uint16_t type, struct command *ret)
{
	if (p->outstanding == 0 || p->sent[0].type != type || h->sequence != p->sent[0].sequence)
		return -EPROTO;
	*ret = p->sent[0];
	memmove(&p->sent[0], &p->sent[1], --p->outstanding * sizeof(p->sent[0]));
	return 0;
}

static int merged_take(struct agent_peer *p, const struct agent_merged *m, struct agent_answer *ret)
{
	struct command c;
	int r = answer_begin(p, &m->header, AGENT_MERGE, &c);

	if (r < 0 || m->window != c.window || (m->error == 0 && m->header.count != c.count))
		return -EPROTO;
	ret->type = AGENT_MERGED;
	ret->window = m->window;
	ret->error = m->error;
	ret->stall_us = m->stall_us;
	ret->cpu_us = m->cpu_us;
	ret->count = m->error == 0 ? m->header.count : 0;
	memcpy(ret->results, m->results, ret->count * sizeof(m->results[0]));
	return 1;
}

static int hinted_take(struct agent_peer *p, const struct agent_hinted *m, struct agent_answer *ret)
{
	struct command c;
	int r = answer_begin(p, &m->header, AGENT_HINT, &c);

	ret->type = AGENT_HINTED;
	ret->error = m->error;
	ret->count = 0;
	return r < 0 ? r : 1;
}

static int hashed_take(struct agent_peer *p, const struct agent_hashed *m, struct agent_answer *ret)
{
	struct command c;
	int r = answer_begin(p, &m->header, AGENT_HASH, &c);

	if (r < 0 || (m->header.count > 0 && m->header.count != c.count))
		return -EPROTO;
	ret->type = AGENT_HASHED;
	ret->error = m->error;
	ret->count = m->header.count;
	ret->cpu_us = m->cpu_us;
	ret->zero_mapped = m->zero_mapped;
	ret->swapped = m->swapped;
	ret->huge = m->huge;
	memcpy(ret->hashes, m->hashes, ret->count * sizeof(m->hashes[0]));
	return 1;
}

static int unmerged_take(struct agent_peer *p, const struct agent_unmerged *m, struct agent_answer *ret)
{
	struct command c;
	int r = answer_begin(p, &m->header, AGENT_UNMERGE, &c);

	if (r < 0 || m->window != c.window)
		return -EPROTO;
	ret->type = AGENT_UNMERGED;
	ret->error = m->error;
	ret->cpu_us = m->cpu_us;
	ret->count = 0;
	ret->unmerged = *m;
	return 1;
}

static int hello_take(struct agent_peer *p, struct packet *packet)
{
	int r = 0;

	if (packet->hello.flags & AGENT_CAN_REMAP) {
		r = agent_journal_map(packet->fds[1], &p->journal);
		if (r == 0)
			r = agent_journal_check_uffd(packet->fds[0]);
		if (r == 0)
			p->uffd = take_fd(packet->fds[0]);
		if (r == 0 && packet->hello.flags & AGENT_CAN_UNMERGE)
			r = agent_journal_check_uffd(packet->fds[2]);
		if (r == 0)
			p->freezer = take_fd(packet->fds[2]); /* -1: none came */
	}
	p->version = packet->hello.version;
	p->can = packet->hello.flags;
	memcpy(p->why, packet->hello.why, sizeof(p->why));
	p->ready = r == 0;
	p->wants_uffd = false;
	return r;
}

static int packet_take(struct agent_peer *p, struct packet *packet, struct agent_answer *ret_answer)
{
	uint16_t type = packet->header.type;

	if (!p->ready) {
		if (type == AGENT_HELLO)
			return hello_take(p, packet);
		p->wants_uffd = type == AGENT_UFFD_ASK;
		return p->wants_uffd ? 0 : -EPROTO;
	}
	switch (type) {
	case AGENT_SLOT:
		return slot_take(p, &packet->slot);
	case AGENT_UNSLOT:
		return slot_drop(p, &packet->range);
	case AGENT_RELEASED:
		p->released = true;
		return 0;
	case AGENT_MERGED:
		return merged_take(p, packet_merged(packet), ret_answer);
	case AGENT_HINTED:
		return hinted_take(p, &packet->hinted, ret_answer);
	case AGENT_HASHED:
		return hashed_take(p, packet_hashed(packet), ret_answer);
	case AGENT_UNMERGED:
		return unmerged_take(p, &packet->unmerged, ret_answer);
	default:
		return -EPROTO;
	}
}

int agent_peer_take(struct agent_peer *p, int timeout_ms, struct agent_answer *ret_answer)
{
	struct pollfd ready = { .fd = p->fd, .events = POLLIN };
	struct packet packet;
	int r = poll(&ready, 1, timeout_ms);

	if (r == 0)
		return -ETIMEDOUT;
	if (r < 0)
		return errno == EINTR ? 0 : -errno;
	r = packet_receive(p->fd, &packet, MSG_DONTWAIT);
	if (r == -ETOOMANYREFS || r == -EMSGSIZE)
		return -EPROTO;
	if (r < 0)
		return r == -EAGAIN ? 0 : r;
	r = packet_take(p, &packet, ret_answer);
	packet_close(&packet);
	return r;
}

int agent_peer_answer(struct agent_peer *p, int timeout_ms, struct agent_answer *ret_answer)
{
	uint64_t end = clock_mono_ns() + (uint64_t)timeout_ms * NSEC_PER_MSEC, now;
	int r = 0;

	while (r == 0) {
		now = clock_mono_ns();
		if (now >= end)
			return -ETIMEDOUT;
		r = agent_peer_take(p, (int)((end - now) / NSEC_PER_MSEC) + 1, ret_answer);
	}
	return r < 0 ? r : 0;
}

/* ---- life ---- */

static int peer_identify(struct agent_peer *p)
{
	struct ucred who;
	socklen_t len = sizeof(who);

	if (getsockopt(p->fd, SOL_SOCKET, SO_PEERCRED, &who, &len) < 0)
		return -errno;
	p->pid = who.pid;
	len = sizeof(p->pidfd);
	if (getsockopt(p->fd, SOL_SOCKET, SO_PEERPIDFD, &p->pidfd, &len) == 0)
		return 0;
	/* Before 6.5 the pid may be another process's already; its memory would then not hold what it says. */
	p->pidfd = (int)syscall(SYS_pidfd_open, who.pid, 0);
	return p->pidfd < 0 ? -errno : 0;
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
	p->pidfd = p->uffd = p->freezer = -1;
	r = peer_identify(p);
	if (r < 0) {
		agent_peer_free(p);
		return r;
	}
	*ret_peer = p;
	return 0;
}

struct agent_peer *agent_peer_free(struct agent_peer *p)
{
	if (!p)
		return NULL;
	agent_journal_unmap(p->journal);
	close(p->fd);
	if (p->pidfd >= 0)
		close(p->pidfd);
	if (p->uffd >= 0)
		close(p->uffd);
	if (p->freezer >= 0)
		close(p->freezer);
	free(p);
	return NULL;
}

int agent_peer_fd(const struct agent_peer *p)
{
	return p->fd;
}

pid_t agent_peer_pid(const struct agent_peer *p)
{
	return p->pid;
}

int agent_peer_pidfd(const struct agent_peer *p)
{
	return p->pidfd;
}

bool agent_peer_ready(const struct agent_peer *p)
{
	return p->ready;
}

const char *agent_peer_refusal(const struct agent_peer *p)
{
	return p->can & AGENT_CAN_REMAP ? NULL : p->why;
}

const char *agent_peer_unmerge_refusal(const struct agent_peer *p)
{
	if (p->version < 3)
		return "its agent is of an earlier version (restart the VM)";
	return p->can & AGENT_CAN_UNMERGE ? NULL : p->why;
}

size_t agent_peer_slots(const struct agent_peer *p, const struct agent_slot_view **ret_slots)
{
	*ret_slots = p->slots;
	return p->slot_count;
}

bool agent_peer_wants_uffd(const struct agent_peer *p)
{
	return p->wants_uffd;
}

bool agent_peer_released(struct agent_peer *p)
{
	bool released = p->released;

	p->released = false;
	return released;
}

unsigned agent_peer_outstanding(const struct agent_peer *p)
{
	return p->outstanding;
}

/* ---- what the daemon says ---- */

/* Never waits for an agent that does not read. */
static int tell(const struct agent_peer *p, const void *packet, size_t len, int fd)
{
	struct pollfd ready = { .fd = p->fd, .events = POLLOUT };

	if (poll(&ready, 1, 0) != 1)
		return -EAGAIN;
	return packet_send(p->fd, packet, len, &fd, fd >= 0 ? 1 : 0);
}

/* Who has connected may have ended and left the connection to another process; its pid may be a VM's by now. While it
 * lives, the pid is its own. */
static bool has_ended(const struct agent_peer *p)
{
	struct pollfd ended = { .fd = p->pidfd, .events = POLLIN };

	return poll(&ended, 1, 0) == 1;
}

int agent_peer_give_uffd(struct agent_peer *p, int fd)
{
	const struct agent_uffd m = { .header.type = AGENT_UFFD, .granted = fd >= 0 };

	p->wants_uffd = false;
	return has_ended(p) ? -ESRCH : tell(p, &m, sizeof(m), fd);
}

int agent_peer_give_store(struct agent_peer *p, const struct store *s)
{
	struct agent_store m = { .header.type = AGENT_STORE, .frames = store_frames(s) };
	auto_close int fd = -1;
	int r;

	if (p->store_inode != 0)
		return p->store_inode == store_inode(s) ? 0 : -EXDEV;
	if (has_ended(p))
		return -ESRCH;
	fd = store_client_fd(s);
	if (fd < 0)
		return fd;
	r = tell(p, &m, sizeof(m), fd);
	p->store_inode = r == 0 ? store_inode(s) : 0;
	return r;
}

static int command_send(struct agent_peer *p, const void *packet, size_t len, const struct command *c)
{
	int r = tell(p, packet, len, -1);

	if (r == 0)
		p->sent[p->outstanding++] = *c;
	return r;
}

int agent_peer_merge(struct agent_peer *p, uint64_t window, const struct agent_run *runs, size_t count,
		     uint16_t min_pages_huge, uint16_t min_pages)
{
	union {
		struct agent_merge m;
		char bytes[sizeof(struct agent_merge) + AGENT_RUNS_MAX * sizeof(struct agent_run)];
	} packet;

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
	return command_send(p, &packet, sizeof(packet.m) + count * sizeof(*runs),
			    &(struct command){ p->sequence, AGENT_MERGE, (uint16_t)count, window });
}

int agent_peer_hint(struct agent_peer *p, const struct agent_hint *hints, size_t count)
{
	union {
		struct agent_hints m;
		char bytes[sizeof(struct agent_hints) + AGENT_HINTS_MAX * sizeof(struct agent_hint)];
	} packet;

	if (count == 0 || count > AGENT_HINTS_MAX)
		return -EINVAL;
	if (p->outstanding == AGENT_PEER_OUTSTANDING)
		return -EBUSY;
	packet.m.header = (struct agent_header){ .type = AGENT_HINT, .count = (uint16_t)count,
						 .sequence = ++p->sequence };
	memcpy(packet.m.hints, hints, count * sizeof(*hints));
	return command_send(p, &packet, sizeof(packet.m) + count * sizeof(*hints),
			    &(struct command){ p->sequence, AGENT_HINT, 0, 0 });
}

int agent_peer_hash(struct agent_peer *p, uint64_t hva, uint32_t pages, uint64_t seed)
{
	const struct agent_hash m = {
		.header = { .type = AGENT_HASH, .sequence = p->sequence + 1 },
		.hva = hva,
		.seed = seed,
		.pages = pages,
	};

	if (pages == 0 || pages > AGENT_HASH_PAGES_MAX)
		return -EINVAL;
	if (p->outstanding == AGENT_PEER_OUTSTANDING)
		return -EBUSY;
	p->sequence++;
	return command_send(p, &m, sizeof(m), &(struct command){ p->sequence, AGENT_HASH, (uint16_t)pages, hva });
}

int agent_peer_unmerge(struct agent_peer *p, uint64_t window, bool split)
{
	const struct agent_unmerge m = {
		.header = { .type = AGENT_UNMERGE, .sequence = p->sequence + 1 },
		.window = window,
		.flags = split ? AGENT_UNMERGE_SPLIT : 0,
	};

	if (agent_peer_unmerge_refusal(p))
		return -EOPNOTSUPP;
	if (p->outstanding == AGENT_PEER_OUTSTANDING)
		return -EBUSY;
	p->sequence++;
	return command_send(p, &m, sizeof(m), &(struct command){ p->sequence, AGENT_UNMERGE, 0, window });
}

int agent_peer_hint_all(struct agent_peer *p, const struct agent_hint *hints, size_t count, int timeout_ms,
			int *ret_error)
{
	struct agent_answer answer;
	int r = 0;

	*ret_error = 0;
	for (size_t n; count > 0; hints += n, count -= n) {
		n = count < AGENT_HINTS_MAX ? count : AGENT_HINTS_MAX;
		r = agent_peer_hint(p, hints, n);
		while (r == 0 && p->outstanding > 0)
			r = agent_peer_answer(p, timeout_ms, &answer);
		if (r < 0)
			return r;
		if (*ret_error == 0)
			*ret_error = answer.error;
	}
	return 0;
}

int agent_peer_repair(struct agent_peer *p)
{
	return p->journal ? agent_journal_repair(p->journal, p->pid, p->pidfd, p->uffd, p->freezer) : 0;
}

void agent_peer_nudge(const struct agent_peer *p)
{
	agent_journal_drain(p->freezer);
}
