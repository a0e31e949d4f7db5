/* What the daemon asks for: merging, giving back, marking for the kernel's scanner, and hashes.
 *
 * What a daemon sends cannot reach memory that is not guest RAM, nor make it hold other bytes than before:
 *
 * packet_check()     lengths, counts and fields of a packet, before anybody looks at it;
 * store_refuse()     the store is memory that cannot shrink under the mapping (no SIGBUS) and that this process
 *                    cannot write;
 * hint_mark()        stretches within one slot that the daemon was told of; marking changes no byte;
 * exchange_fold()    whatever the window: pages that are merged, and every byte stays what it is;
 * client_hash()      stretches within one slot that may be merged; nothing is written, and nothing but hashes told;
 * exchange_merge()   window_check() and runs_check() in exchange_plan.c: the window's pages must lie in one slot that
 *                    the VMM itself has added, and the frames in the store. No address but the window comes from
 *                    the daemon, and the store goes to an address that the kernel chooses.
 *
 * A packet that fails one of these ends the connection. Only a window outside of the slots does not, since the VMM may
 * have removed its slot when the packet was under way; it is answered with -EINVAL.
 *
 * What a daemon holds is another matter: with the userfaultfd and the journal, which R5 gives it so that it can finish
 * an exchange, its owner could move and fill any page of this process. Hence peer_check(), before they are sent. */
#include "agent/client_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include "agent/eligible.h"
#include "core/cleanup.h"
#include "core/clock.h"

/* The wire's outcomes are the exchange's. */
_Static_assert((int)AGENT_RUN_MERGED == (int)EXCHANGE_MERGED && (int)AGENT_RUN_UNEQUAL == (int)EXCHANGE_UNEQUAL &&
		       (int)AGENT_RUN_BUSY == (int)EXCHANGE_BUSY && (int)AGENT_RUN_ABSENT == (int)EXCHANGE_ABSENT &&
		       (int)AGENT_RUN_SKIPPED == (int)EXCHANGE_SKIPPED && (int)AGENT_RUN_FAILED == (int)EXCHANGE_FAILED,
	       "enum agent_outcome");

#define PAGE WINDOW_PAGE_BYTES
#define CHECK_NS NSEC_PER_SEC

/* Why not this store; NULL if it will do. Seals first: only memfds answer, and no other file system is asked anything
 * that it could take its time for. Huge pages of hugetlbfs cannot be mapped in pieces. Writable would be R11's loss:
 * one wrong mapping of it and every VM sees what this one wrote. */
static const char *store_refuse(int fd, uint32_t frames)
{
	int seals = fcntl(fd, F_GET_SEALS), flags = fcntl(fd, F_GETFL);
	struct statfs fs;
	struct stat st;

	if (seals < 0 || (seals & CLIENT_SEALS) != CLIENT_SEALS)
		return "the daemon's store is not a sealed memfd";
	if (flags < 0 || (flags & O_ACCMODE) != O_RDONLY)
		return "the daemon's store is writable";
	if (fstatfs(fd, &fs) < 0 || fs.f_type != TMPFS_MAGIC)
		return "the daemon's store is not plain memory";
	if (fstat(fd, &st) < 0 || st.st_size < 0 || (uint64_t)st.st_size / PAGE < frames)
		return "the daemon's store is too small";
	return NULL;
}

/* At a multiple of 2 MiB, so that what the store holds in huge pages is mapped so. NULL if it cannot be mapped. */
static uint8_t *store_map(int fd, size_t len)
{
	uint8_t *room = mmap(NULL, len + WINDOW_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	size_t head;

	if (room == MAP_FAILED)
		return NULL;
	head = (size_t)(-(uintptr_t)room & (WINDOW_BYTES - 1));
	if (mmap(room + head, len, PROT_READ, MAP_SHARED | MAP_FIXED | MAP_NORESERVE, fd, 0) == MAP_FAILED) {
		munmap(room, len + WINDOW_BYTES);
		return NULL;
	}
	if (head > 0)
		munmap(room, head);
	munmap(room + head + len, WINDOW_BYTES - head);
	/* For speed and small core files only. */
	madvise(room + head, len, MADV_HUGEPAGE);
	madvise(room + head, len, MADV_DONTDUMP);
	madvise(room + head, len, MADV_DONTFORK);
	return room + head;
}

static const char *store_take(struct memvirt_agent *a, struct packet *p)
{
	const char *why = store_refuse(p->fds[0], p->store.frames);
	uint8_t *map;

	if (a->store.map)
		return "the daemon sent a second store";
	if (why)
		return why;
	map = store_map(p->fds[0], p->store.frames * PAGE);
	if (!map)
		return "the daemon's store cannot be mapped";
	a->store.map = map;
	a->store.frames = p->store.frames;
	a->store.fd = take_fd(p->fds[0]);
	return NULL;
}

void client_store_drop(struct memvirt_agent *a)
{
	if (a->store.map)
		munmap((void *)(uintptr_t)a->store.map, a->store.frames * PAGE);
	cleanup_close(&a->store.fd);
	a->store = (struct exchange_store){ .fd = -1 };
}

static uint32_t us_of(uint64_t ns)
{
	return ns / 1000 < UINT32_MAX ? (uint32_t)(ns / 1000) : UINT32_MAX;
}

static int answer(struct memvirt_agent *a, const struct agent_merge *m, int err, uint64_t stall_ns, uint64_t cpu_ns)
{
	struct agent_merged *reply = packet_merged(&a->out);
	unsigned count = err == 0 ? m->header.count : 0;

	reply->header = (struct agent_header){ .type = AGENT_MERGED,
					       .count = (uint16_t)count,
					       .sequence = m->header.sequence };
	reply->error = err;
	reply->stall_us = us_of(stall_ns);
	reply->window = m->window;
	reply->cpu_us = us_of(cpu_ns);
	reply->reserved = 0;
	for (unsigned i = 0; i < count; i++) {
		const struct exchange_run *r = &a->runs[i];

		reply->results[i] = (struct agent_result){ .merged = r->merged, .outcome = r->outcome, .error = r->err };
	}
	return packet_send(a->sock, reply, sizeof(*reply) + count * sizeof(reply->results[0]), NULL, 0);
}

/* R13: not while a debugger looks. Once a second, for it reads a file. */
static int process_check(struct memvirt_agent *a)
{
	const char *why;

	if (a->checked_ns == 0 || clock_mono_ns() - a->checked_ns > CHECK_NS) {
		a->unfit = eligible_process(&why);
		a->checked_ns = clock_mono_ns();
	}
	return a->unfit;
}

static const char *merge(struct memvirt_agent *a, const struct agent_merge *m)
{
	const struct exchange_options opt = { .min_pages_huge = m->min_pages_huge,
					      .min_pages = m->min_pages,
					      .min_piece = m->min_piece };
	const struct exchange_counters *counters = a->x ? exchange_counters(a->x) : NULL;
	uint64_t stall_ns = counters ? counters->stall_ns : 0, cpu_ns = clock_thread_cpu_ns();
	int err;

	if (a->no_x)
		return "the daemon asked for merging, which was ruled out";
	if (!a->store.map)
		return "the daemon asked for merging before it sent its store";
	for (unsigned i = 0; i < m->header.count; i++) {
		const struct agent_run *r = &m->runs[i];
		bool zero = r->frame == AGENT_ZERO;

		/* Runs that ascend and stay in the window: packet_check(). */
		if (!zero && (r->frame >= a->store.frames || r->pages > a->store.frames - r->frame))
			return "the daemon named frames outside of its store";
		a->runs[i] = (struct exchange_run){ .first = r->first,
						    .pages = r->pages,
						    .frame = zero ? EXCHANGE_ZERO : r->frame };
	}
	err = process_check(a);
	if (err == 0)
		err = exchange_merge(a->x, m->window, &a->store, a->runs, m->header.count, &opt);
	if (answer(a, m, err, counters->stall_ns - stall_ns, clock_thread_cpu_ns() - cpu_ns) < 0)
		return "the daemon is gone";
	/* It has stopped, and threads of the VMM may wait for what it left. A new connection begins with finishing it. */
	if (err < 0 && !client_settled(a))
		return client_unfinished;
	return NULL;
}

/* ---- hints ---- */

/* Marks [at, end) but for what the exchange has merged: that is a mapping of the store, with nothing left to gain. With
 * both locks held, so that the VMM cannot put other memory there. Adds to *pages. */
static int stretch_mark(struct memvirt_agent *a, uint64_t at, uint64_t end, uint32_t *pages)
{
	bool some = a->x && exchange_merged_pages(a->x, (void *)(uintptr_t)at, end - at) > 0;
	int err = 0;

	while (at < end) {
		uint64_t to = some ? at : end;

		while (to < end && exchange_merged_pages(a->x, (void *)(uintptr_t)to, PAGE) == 0)
			to += PAGE;
		if (to > at && madvise((void *)(uintptr_t)at, to - at, MADV_MERGEABLE) < 0)
			err = err < 0 ? err : -errno;
		else
			*pages += (uint32_t)((to - at) / PAGE);
		at = to;
		while (some && at < end && exchange_merged_pages(a->x, (void *)(uintptr_t)at, PAGE) > 0)
			at += PAGE;
	}
	return err;
}

static int hint_mark(struct memvirt_agent *a, const struct agent_hint *h, uint32_t *pages)
{
	uint64_t end = h->hva + h->pages * PAGE;
	const struct ram *r;
	int err = -EINVAL;

	/* Anew for each: marking may be slow, and the VMM's own calls wait for it. */
	client_ram_lock();
	r = client_ram_at(a, h->hva);
	if (r && end <= r->end && r->state == RAM_TOLD)
		err = stretch_mark(a, h->hva, end, pages);
	client_ram_unlock(a);
	return err;
}

static const char *hints_mark(struct memvirt_agent *a, const struct agent_hints *h)
{
	struct agent_hinted reply = {
		.header = { .type = AGENT_HINTED, .sequence = h->header.sequence },
	};

	for (unsigned i = 0; i < h->header.count; i++) {
		int err = hint_mark(a, &h->hints[i], &reply.pages);

		reply.error = reply.error < 0 ? reply.error : err;
	}
	return packet_send(a->sock, &reply, sizeof(reply), NULL, 0) < 0 ? "the daemon is gone" : NULL;
}

/* ---- hashes ---- */

static const char *hash(struct memvirt_agent *a, const struct agent_hash *h)
{
	const struct agent_hashed *reply = client_hash(a, h);
	size_t len = sizeof(*reply) + reply->header.count * sizeof(reply->hashes[0]);

	return packet_send(a->sock, reply, len, NULL, 0) < 0 ? "the daemon is gone" : NULL;
}

/* ---- giving back ---- */

static const char *unmerge(struct memvirt_agent *a, const struct agent_unmerge *m)
{
	const struct agent_unmerged *reply;

	if (a->no_x || !a->freezer)
		return "the daemon asked for un-merging, which was ruled out";
	reply = client_fold_unmerge(a, m, process_check(a));
	if (packet_send(a->sock, reply, sizeof(*reply), NULL, 0) < 0)
		return "the daemon is gone";
	return reply->error < 0 && !client_settled(a) ? client_unfinished : NULL;
}

/* ---- one packet ---- */

static const char *receive_why(int err)
{
	switch (err) {
	case -EPROTO:
	case -EPROTONOSUPPORT:
	case -EMSGSIZE:
	case -ETOOMANYREFS:
		return "the daemon sent a packet that is not well formed";
	default:
		return "the daemon is gone";
	}
}

const char *client_serve_one(struct memvirt_agent *a)
{
	const char *why = "the daemon sent what only agents send";
	int err = packet_receive(a->sock, &a->in, MSG_DONTWAIT);

	if (err == -EAGAIN)
		return NULL;
	if (err < 0)
		return receive_why(err);
	if (a->in.header.type == AGENT_STORE)
		why = store_take(a, &a->in);
	else if (a->in.header.type == AGENT_MERGE)
		why = merge(a, packet_merge(&a->in));
	else if (a->in.header.type == AGENT_HINT)
		why = hints_mark(a, packet_hints(&a->in));
	else if (a->in.header.type == AGENT_HASH)
		why = hash(a, &a->in.hash);
	else if (a->in.header.type == AGENT_UNMERGE)
		why = unmerge(a, &a->in.unmerge);
	packet_close(&a->in);
	return why;
}
