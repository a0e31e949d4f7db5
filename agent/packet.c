#include "agent/packet.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define PAGE UINT64_C(4096)
#define ERRNO_MAX 4095 /* of the kernel */

/* The layout is the contract: no padding, the same for every compiler. */
_Static_assert(sizeof(struct agent_header) == 8, "wire");
_Static_assert(sizeof(struct agent_hello) == 112 && sizeof(struct agent_uffd) == 16, "wire");
_Static_assert(sizeof(struct agent_slot) == 128 && sizeof(struct agent_range) == 24, "wire");
_Static_assert(sizeof(struct agent_store) == 16, "wire");
_Static_assert(sizeof(struct agent_hint) == 16 && sizeof(struct agent_hints) == 8, "wire");
_Static_assert(sizeof(struct agent_hinted) == 16, "wire");
_Static_assert(sizeof(struct agent_hints) + AGENT_HINTS_MAX * sizeof(struct agent_hint) <= AGENT_PACKET_MAX, "wire");
_Static_assert(sizeof(struct agent_run) == 8 && sizeof(struct agent_merge) == 24, "wire");
_Static_assert(sizeof(struct agent_result) == 8 && sizeof(struct agent_merged) == 32, "wire");
_Static_assert(sizeof(struct agent_merge) + AGENT_RUNS_MAX * sizeof(struct agent_run) <= AGENT_PACKET_MAX, "wire");
_Static_assert(sizeof(struct agent_unmerge) == 24 && sizeof(struct agent_unmerged) == 40, "wire");
_Static_assert(sizeof(struct agent_hash) == 32 && sizeof(struct agent_hashed) == 32, "wire");
_Static_assert(sizeof(struct agent_hashed) + AGENT_HASH_PAGES_MAX * sizeof(uint64_t) <= AGENT_PACKET_MAX, "wire");
_Static_assert(sizeof(struct agent_merged) + AGENT_RUNS_MAX * sizeof(struct agent_result) <= AGENT_PACKET_MAX,
	       "wire");

/* ---- is it well formed ---- */

/* The fixed part, and the size of each of the things that header.count counts, and how many these may be. */
static const struct kind {
	uint16_t fixed, each, most;
	bool numbered; /* header.sequence is used */
} kinds[] = {
	[AGENT_HELLO] = { .fixed = sizeof(struct agent_hello) },
	[AGENT_SLOT] = { .fixed = sizeof(struct agent_slot) },
	[AGENT_UNSLOT] = { .fixed = sizeof(struct agent_range) },
	[AGENT_STORE] = { .fixed = sizeof(struct agent_store) },
	[AGENT_MERGE] = { sizeof(struct agent_merge), sizeof(struct agent_run), AGENT_RUNS_MAX, true },
	[AGENT_MERGED] = { sizeof(struct agent_merged), sizeof(struct agent_result), AGENT_RUNS_MAX, true },
	[AGENT_RELEASED] = { .fixed = sizeof(struct agent_range) },
	[AGENT_UFFD_ASK] = { .fixed = sizeof(struct agent_header) },
	[AGENT_UFFD] = { .fixed = sizeof(struct agent_uffd) },
	[AGENT_HINT] = { sizeof(struct agent_hints), sizeof(struct agent_hint), AGENT_HINTS_MAX, true },
	[AGENT_HINTED] = { .fixed = sizeof(struct agent_hinted), .numbered = true },
	[AGENT_HASH] = { .fixed = sizeof(struct agent_hash), .numbered = true },
	[AGENT_HASHED] = { sizeof(struct agent_hashed), sizeof(uint64_t), AGENT_HASH_PAGES_MAX, true },
	[AGENT_UNMERGE] = { .fixed = sizeof(struct agent_unmerge), .numbered = true },
	[AGENT_UNMERGED] = { .fixed = sizeof(struct agent_unmerged), .numbered = true },
};

/* How many descriptors a packet of known length has to bring. */
static unsigned fds_expected(const struct packet *p)
{
	switch (p->header.type) {
	case AGENT_HELLO:
		return p->hello.flags & AGENT_CAN_UNMERGE ? 3 : p->hello.flags & AGENT_CAN_REMAP ? 2 : 0;
	case AGENT_STORE:
		return 1;
	case AGENT_UFFD:
		return p->uffd.granted;
	default:
		return 0;
	}
}

/* Can be printed as it is. */
static bool text_fits(const char why[AGENT_WHY_BYTES])
{
	size_t len = strnlen(why, AGENT_WHY_BYTES);

	for (size_t i = 0; i < AGENT_WHY_BYTES; i++)
		if (i < len ? why[i] < ' ' || why[i] > '~' : why[i] != '\0')
			return false;
	return len < AGENT_WHY_BYTES;
}

/* A reason is there exactly when the exchange is not. */
static bool why_fits(uint32_t flags, const char why[AGENT_WHY_BYTES])
{
	return text_fits(why) && flags == (why[0] ? 0 : AGENT_CAN_REMAP);
}

/* Since version 3 there are two things that it may be unable to do, and one reason for the first that it is. */
static bool hello_fits(const struct agent_hello *h)
{
	const uint32_t all = AGENT_CAN_REMAP | AGENT_CAN_UNMERGE;

	if (h->version < 3 || (h->flags & AGENT_CAN_REMAP) == 0)
		return why_fits(h->flags, h->why);
	return text_fits(h->why) && (h->flags & ~all) == 0 && (h->flags == all) == (h->why[0] == '\0');
}

static bool range_fits(uint64_t hva, uint64_t bytes)
{
	return bytes > 0 && (hva | bytes) % PAGE == 0 && hva + bytes > hva;
}

static bool slot_fits(const struct agent_slot *s)
{
	uint32_t known = s->flags & AGENT_CAN_REMAP ? AGENT_CAN_REMAP | AGENT_TRACKED : 0;

	return range_fits(s->hva, s->bytes) && s->reserved == 0 && (s->flags & ~known) == 0 &&
	       why_fits(s->flags & AGENT_CAN_REMAP, s->why);
}

static bool errno_fits(int32_t err)
{
	return err <= 0 && err >= -ERRNO_MAX;
}

static bool window_fits(uint64_t window)
{
	const uint64_t bytes = AGENT_WINDOW_PAGES * PAGE;

	return window % bytes == 0 && window + bytes > window;
}

static bool merge_fits(const struct agent_merge *m)
{
	unsigned next = 0;

	for (unsigned i = 0; i < m->header.count; i++) {
		const struct agent_run *r = &m->runs[i];

		if (r->pages == 0 || r->first < next || r->first >= AGENT_WINDOW_PAGES ||
		    r->pages > AGENT_WINDOW_PAGES - r->first)
			return false;
		if (r->frame != AGENT_ZERO && r->pages > AGENT_ZERO - r->frame)
			return false;
		next = (unsigned)r->first + r->pages;
	}
	return m->header.count > 0 && window_fits(m->window);
}

static bool merged_fits(const struct agent_merged *m)
{
	for (unsigned i = 0; i < m->header.count; i++) {
		const struct agent_result *r = &m->results[i];

		if (r->merged > AGENT_WINDOW_PAGES || r->outcome > AGENT_RUN_FAILED || r->reserved != 0 ||
		    !errno_fits(r->error))
			return false;
	}
	return (m->header.count > 0 || m->error != 0) && errno_fits(m->error) && window_fits(m->window) &&
	       m->reserved == 0;
}

static bool hints_fit(const struct agent_hints *h)
{
	for (unsigned i = 0; i < h->header.count; i++)
		if (!range_fits(h->hints[i].hva, h->hints[i].pages * PAGE) || h->hints[i].reserved != 0)
			return false;
	return h->header.count > 0;
}

static bool hash_fits(const struct agent_hash *h)
{
	return h->pages <= AGENT_HASH_PAGES_MAX && range_fits(h->hva, h->pages * PAGE) && h->reserved == 0;
}

static bool hashed_fits(const struct agent_hashed *h)
{
	return errno_fits(h->error) && (h->error == 0 || h->header.count == 0) && h->reserved == 0 &&
	       h->zero_mapped <= AGENT_HASH_PAGES_MAX && h->swapped <= AGENT_HASH_PAGES_MAX &&
	       h->huge <= AGENT_HASH_PAGES_MAX;
}

static bool unmerged_fits(const struct agent_unmerged *u)
{
	return errno_fits(u->error) && errno_fits(u->kept_error) && window_fits(u->window) &&
	       u->folded <= AGENT_WINDOW_PAGES && u->kept <= AGENT_WINDOW_PAGES;
}

static bool fields_fit(struct packet *p)
{
	switch ((enum agent_message)p->header.type) {
	case AGENT_HELLO:
		return hello_fits(&p->hello);
	case AGENT_SLOT:
		return slot_fits(&p->slot);
	case AGENT_UNSLOT:
	case AGENT_RELEASED:
		return range_fits(p->range.hva, p->range.bytes);
	case AGENT_STORE:
		return p->store.frames > 0 && p->store.reserved == 0;
	case AGENT_MERGE:
		return merge_fits(packet_merge(p));
	case AGENT_MERGED:
		return merged_fits(packet_merged(p));
	case AGENT_UFFD_ASK:
		return true;
	case AGENT_UFFD:
		return p->uffd.granted <= 1 && p->uffd.reserved == 0;
	case AGENT_HINT:
		return hints_fit(packet_hints(p));
	case AGENT_HINTED:
		return errno_fits(p->hinted.error);
	case AGENT_HASH:
		return hash_fits(&p->hash);
	case AGENT_HASHED:
		return hashed_fits(packet_hashed(p));
	case AGENT_UNMERGE:
		return window_fits(p->unmerge.window) && (p->unmerge.flags & ~AGENT_UNMERGE_SPLIT) == 0 &&
		       p->unmerge.reserved == 0;
	case AGENT_UNMERGED:
		return unmerged_fits(&p->unmerged);
	}
	return false;
}

int packet_check(struct packet *p, unsigned fd_count)
{
	const struct agent_header *h = &p->header;
	const struct kind *k;

	if (p->len < sizeof(*h) || h->type < AGENT_HELLO || h->type > AGENT_UNMERGED)
		return -EPROTO;
	k = &kinds[h->type];
	if (h->type == AGENT_HELLO && p->len >= offsetof(struct agent_hello, flags) &&
	    (p->hello.version < AGENT_PROTOCOL_OLDEST || p->hello.version > AGENT_PROTOCOL_VERSION))
		return -EPROTONOSUPPORT; /* whatever else that version says there */
	if (h->count > k->most || p->len != k->fixed + (size_t)k->each * h->count || fd_count != fds_expected(p) ||
	    (h->sequence != 0 && !k->numbered))
		return -EPROTO;
	return fields_fit(p) ? 0 : -EPROTO;
}

/* ---- receiving ---- */

union control {
	struct cmsghdr header; /* for its alignment */
	char bytes[CMSG_SPACE(PACKET_FDS_MAX * sizeof(int))];
};

/* The kernel has put every descriptor that it names here into our table: each is kept or closed. A sender may
 * split them over several messages; the kernel gives them as one, but nothing here depends on that. */
static int fds_take(struct msghdr *msg, struct packet *p, unsigned *ret_count)
{
	unsigned count = 0;
	int err = 0;

	for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
		size_t n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) {
			err = -EPROTO;
			continue;
		}
		for (size_t i = 0; i < n; i++) {
			int fd;

			memcpy(&fd, CMSG_DATA(c) + i * sizeof(fd), sizeof(fd));
			if (count < PACKET_FDS_MAX) {
				p->fds[count++] = fd;
			} else {
				close(fd);
				err = -ETOOMANYREFS;
			}
		}
	}
	*ret_count = count;
	return err;
}

int packet_receive(int sock, struct packet *p, int flags)
{
	union control control;
	struct iovec iov = { .iov_base = p->bytes, .iov_len = sizeof(p->bytes) };
	struct msghdr msg = {
		.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)
	};
	unsigned fd_count;
	ssize_t n;
	int err;

	p->len = 0;
	for (unsigned i = 0; i < PACKET_FDS_MAX; i++)
		p->fds[i] = -1;
	do {
		n = recvmsg(sock, &msg, flags | MSG_CMSG_CLOEXEC);
	} while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	/* Before anything is judged: an empty packet may carry descriptors as well, and a truncated list leaves
	 * those that did fit with us. */
	err = fds_take(&msg, p, &fd_count);
	p->len = (size_t)n;
	if (msg.msg_flags & MSG_CTRUNC)
		err = -ETOOMANYREFS;
	else if (msg.msg_flags & MSG_TRUNC)
		err = -EMSGSIZE;
	else if (err == 0)
		err = n == 0 ? -ECONNRESET : packet_check(p, fd_count);
	if (err < 0)
		packet_close(p);
	return err;
}

void packet_close(struct packet *p)
{
	for (unsigned i = 0; i < PACKET_FDS_MAX; i++) {
		if (p->fds[i] >= 0)
			close(p->fds[i]);
		p->fds[i] = -1;
	}
}

/* ---- sending ---- */

int packet_send(int sock, const void *bytes, size_t len, const int *fds, unsigned fd_count)
{
	union control control;
	struct iovec iov = { .iov_len = len };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
	ssize_t n;

	if (len == 0 || len > AGENT_PACKET_MAX || fd_count > PACKET_FDS_MAX)
		return -EINVAL;
	memcpy(&iov.iov_base, &bytes, sizeof(bytes)); /* sendmsg() only reads */
	if (fd_count > 0) {
		memset(&control, 0, sizeof(control));
		control.header.cmsg_level = SOL_SOCKET;
		control.header.cmsg_type = SCM_RIGHTS;
		control.header.cmsg_len = CMSG_LEN(fd_count * sizeof(int));
		memcpy(CMSG_DATA(&control.header), fds, fd_count * sizeof(int));
		msg.msg_control = &control;
		msg.msg_controllen = CMSG_SPACE(fd_count * sizeof(int));
	}
	do {
		n = sendmsg(sock, &msg, MSG_NOSIGNAL);
	} while (n < 0 && errno == EINTR);
	return n < 0 ? -errno : 0;
}
