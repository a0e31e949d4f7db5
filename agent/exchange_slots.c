/* What lies round the window: the lock, the slots, the mapping budget, and merged memory made anonymous again. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "agent/exchange_internal.h"
#include "agent/uffd.h"
#include "core/kernel_abi.h"

#ifdef EXCHANGE_HOOKS
struct exchange_hooks exchange_hooks;
#endif

/* ---- the lock (R5, R6) ---- */

static int mutex_init(pthread_mutex_t *m)
{
	pthread_mutexattr_t attr;
	int err = pthread_mutexattr_init(&attr);

	if (err == 0)
		err = pthread_mutexattr_setrobust(&attr, PTHREAD_MUTEX_ROBUST);
	if (err == 0)
		err = pthread_mutex_init(m, &attr);
	return -err;
}

/* Is nothing in staging? -ENOTEMPTY, or -errno. */
static int staging_check_empty(const struct exchange *x, const struct staging *s)
{
	struct page_states st;
	int err = pagemap_read(x->pagemap_fd, s->base, 0, WINDOW_PAGES, &st);

	for (unsigned p = 0; p < WINDOW_PAGES && err == 0; p++) {
		if (st.flags[p] != 0)
			err = -ENOTEMPTY; /* mlockall(MCL_FUTURE) fills new memory (R8) */
	}
	return err;
}

/* Repairs in this process, empties staging, lets merging start again. Lock held. */
static int repair_and_drop(struct exchange *x)
{
	struct exchange_journal *j = x->journal;
	struct staging *s = j->staging == x->huge.base ? &x->huge : &x->small;
	int err = exchange_repair(j, 0, x->uffd, x->freezer ? freezer_fd(x->freezer) : -1);

	if (err == 0 && j->step == STEP_REPAIRED) {
		err = staging_rebuild(s); /* frees what is left there: everything is settled */
		if (err == 0)
			err = staging_check_empty(x, s);
		if (err == 0)
			__atomic_store_n(&j->step, STEP_IDLE, __ATOMIC_RELEASE);
	}
	x->stopped = err;
	return err;
}

/* The holder died (pthread_exit, a bug in a signal handler ..): what it left in staging goes back before
 * anybody else may change mappings or start a window. */
static int lock_recover(struct exchange *x)
{
	int err = x->stopped == -ECHILD ? 0 : repair_and_drop(x);

	if (err < 0)
		x->stopped = err;
	pthread_mutex_consistent(&x->mutex);
	return 0; /* the lock is held; a window that could not be repaired blocks its readers, not the VMM */
}

int exchange_lock(struct exchange *x)
{
	sigset_t all, old;
	int cancel, err;

	/* A handler that runs with the lock held could call an interposed function and wait for itself; in the
	 * window it could end the thread, or touch guest RAM and wait for it for ever. */
	sigfillset(&all);
	err = pthread_sigmask(SIG_SETMASK, &all, &old);
	if (err != 0)
		return -err;
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel);
	err = pthread_mutex_lock(&x->mutex);
	if (err == EOWNERDEAD)
		err = lock_recover(x);
	if (err != 0) {
		pthread_setcancelstate(cancel, NULL);
		pthread_sigmask(SIG_SETMASK, &old, NULL);
		return -err;
	}
	x->saved_mask = old;
	x->saved_cancel = cancel;
	return 0;
}

int exchange_resume(struct exchange *x)
{
	int err = exchange_lock(x);

	if (err < 0)
		return err;
	err = x->stopped == -ECHILD ? -ECHILD : repair_and_drop(x);
	exchange_unlock(x);
	return err;
}

void exchange_unlock(struct exchange *x)
{
	sigset_t old = x->saved_mask;
	int cancel = x->saved_cancel;

	pthread_mutex_unlock(&x->mutex);
	pthread_setcancelstate(cancel, NULL);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
}

/* A fork in the window would give the child zeroes where pages are in staging. */
void exchange_fork_prepare(struct exchange *x)
{
	exchange_lock(x);
}

void exchange_fork_parent(struct exchange *x)
{
	exchange_unlock(x);
}

void exchange_fork_child(struct exchange *x)
{
	sigset_t old = x->saved_mask;
	int cancel = x->saved_cancel;

	/* The child has no staging (DONTFORK; other mappings may come to be there), and the descriptor and the
	 * journal that it inherits are about its parent's memory: never to be used here. */
	x->stopped = -ECHILD;
	x->journal = &x->child_journal;
	x->uffd = -1;
	x->freezer = NULL;
	x->huge.base = 0;
	x->small.base = 0;
	for (unsigned i = 0; i < EXCHANGE_SLOTS_MAX; i++)
		x->slots[i].wp = false;
	mutex_init(&x->mutex);
	pthread_setcancelstate(cancel, NULL);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
}

/* ---- the mapping budget (R4, R8) ---- */

bool budget_allows(struct exchange *x, size_t more, size_t limit)
{
	/* Counting is a walk of all mappings: only when the estimate, which knows our own and never falls, is too
	 * high, or a mapping has failed; and not again before it can have changed. */
	if (x->maps_counted + x->maps_since + more <= limit)
		return true;
	if (x->maps_since * 16 > x->maps_counted) {
		x->maps_counted = mappings_count();
		x->maps_since = 0;
	}
	return x->maps_counted != 0 && x->maps_counted + x->maps_since + more <= limit;
}

void budget_recount(struct exchange *x)
{
	x->maps_counted = x->maps_since = x->map_limit;
}

/* ---- slots ---- */

struct slot *slot_find(struct exchange *x, uint64_t addr)
{
	for (unsigned i = 0; i < EXCHANGE_SLOTS_MAX; i++) {
		if (addr >= x->slots[i].start && addr < x->slots[i].end)
			return &x->slots[i];
	}
	return NULL;
}

void slot_mark(struct slot *s, uint64_t addr, size_t pages, bool merged)
{
	uint64_t first = (addr - s->start) / WINDOW_PAGE_BYTES;

	for (uint64_t p = first; p < first + pages; p++) {
		if (merged)
			s->merged[p / 64] |= UINT64_C(1) << (p % 64);
		else
			s->merged[p / 64] &= ~(UINT64_C(1) << (p % 64));
	}
}

static int slot_add_locked(struct exchange *x, uint64_t start, size_t len, bool wp, const char **ret_why)
{
	struct slot *free_slot = NULL, slot = { .start = start, .end = start + len, .wp = wp };
	int err;

	*ret_why = "not a range of pages";
	if (len == 0 || (start | len) % WINDOW_PAGE_BYTES != 0 || slot.end < start)
		return -EINVAL;
	*ret_why = "overlaps another slot";
	for (unsigned i = 0; i < EXCHANGE_SLOTS_MAX; i++) {
		if (x->slots[i].end == 0)
			free_slot = free_slot ? free_slot : &x->slots[i];
		else if (slot.start < x->slots[i].end && slot.end > x->slots[i].start)
			return -EEXIST;
	}
	*ret_why = "too many slots";
	if (!free_slot)
		return -ENOSPC;
	err = eligible_process(ret_why);
	if (err == 0)
		err = eligible_check(start, len, wp, &slot.attrs, ret_why);
	if (err < 0)
		return err;
	slot.merged_bytes = (len / WINDOW_PAGE_BYTES + 63) / 64 * sizeof(uint64_t);
	*ret_why = "no memory";
	slot.merged = mmap(NULL, slot.merged_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (slot.merged == MAP_FAILED)
		return -errno;
	*free_slot = slot;
	*ret_why = "";
	return 0;
}

int exchange_slot_add(struct exchange *x, void *addr, size_t len, bool wp, const char **ret_why)
{
	int err = exchange_lock(x);

	*ret_why = "the lock";
	if (err < 0)
		return err;
	err = slot_add_locked(x, (uint64_t)(uintptr_t)addr, len, wp, ret_why);
	exchange_unlock(x);
	return err;
}

int exchange_slot_drop(struct exchange *x, const void *addr)
{
	struct slot *s = slot_find(x, (uint64_t)(uintptr_t)addr);

	if (!s)
		return -ENOENT;
	munmap(s->merged, s->merged_bytes);
	memset(s, 0, sizeof(*s));
	return 0;
}

int exchange_slot_remove(struct exchange *x, void *addr)
{
	int err = exchange_lock(x);

	if (err < 0)
		return err;
	err = exchange_slot_drop(x, addr);
	exchange_unlock(x);
	return err;
}

int exchange_slot_track(struct exchange *x, const void *addr, bool on)
{
	struct slot *s = slot_find(x, (uint64_t)(uintptr_t)addr);
	int err;

	if (!s || x->stopped < 0)
		return s ? x->stopped : -ENOENT;
	if (on)
		err = uffd_register(x->uffd, s->start, s->end - s->start, UFFDIO_REGISTER_MODE_WP);
	else
		err = s->wp ? uffd_unregister(x->uffd, s->start, s->end - s->start) : 0;
	if (err == 0)
		s->wp = on;
	return err;
}

int exchange_slot_close(struct exchange *x, const void *addr, bool closed)
{
	struct slot *s = slot_find(x, (uint64_t)(uintptr_t)addr);

	if (!s)
		return -ENOENT;
	s->closed = closed;
	return 0;
}

/* Does the advice change what a new mapping has to be given? */
static bool attrs_advised(struct ram_attrs *a, int advice)
{
	const struct ram_attrs before = *a;

	switch (advice) {
	case MADV_DONTFORK:
	case MADV_DOFORK:
		a->dontfork = advice == MADV_DONTFORK;
		break;
	case MADV_DONTDUMP:
	case MADV_DODUMP:
		a->dontdump = advice == MADV_DONTDUMP;
		break;
	case MADV_MERGEABLE:
	case MADV_UNMERGEABLE:
		a->mergeable = advice == MADV_MERGEABLE;
		break;
	case MADV_HUGEPAGE:
	case MADV_NOHUGEPAGE:
		a->hugepage = advice == MADV_HUGEPAGE;
		a->nohugepage = advice == MADV_NOHUGEPAGE;
		break;
	default:
		break;
	}
	return memcmp(a, &before, sizeof(before)) != 0;
}

int exchange_slot_advise(struct exchange *x, const void *addr, size_t len, int advice)
{
	int err = 0;

	for (unsigned i = 0; i < EXCHANGE_SLOTS_MAX; i++) {
		struct slot *s = &x->slots[i];
		uint64_t start = (uint64_t)(uintptr_t)addr, end = start + len;
		struct ram_attrs attrs = s->attrs;

		if (s->end == 0 || start >= s->end || end <= s->start || !attrs_advised(&attrs, advice))
			continue;
		if (start <= s->start && end >= s->end)
			s->attrs = attrs;
		else
			err = -EOPNOTSUPP;
	}
	return err;
}

/* ---- merged memory made anonymous ---- */

static bool slot_clip(const struct slot *s, uint64_t *addr, uint64_t *end)
{
	*addr = *addr > s->start ? *addr : s->start;
	*end = *end < s->end ? *end : s->end;
	return s->end != 0 && *addr < *end;
}

/* The next stretch of merged pages in [from, end). */
static bool next_merged(const struct slot *s, uint64_t from, uint64_t end, uint64_t *ret_start, uint64_t *ret_end)
{
	while (from < end && !slot_merged(s, from))
		from += WINDOW_PAGE_BYTES;
	*ret_start = from;
	while (from < end && slot_merged(s, from))
		from += WINDOW_PAGE_BYTES;
	*ret_end = from;
	return *ret_start < *ret_end;
}

/* One mmap replaces what is there: whoever reads meanwhile sees the old bytes or zeroes, never the store's in place
 * of a page that the guest had written since. The lock keeps a window from mapping a frame here at the same time.
 * NORESERVE as the slot had it, or the new mapping would never join its neighbours. */
static int piece_map_anonymous(struct exchange *x, struct slot *s, uint64_t start, uint64_t end)
{
	uint64_t len = end - start;
	void *at;

	if (!budget_allows(x, 2, x->map_limit - x->map_limit / 4))
		return -ENOSPC;
	at = mmap((void *)(uintptr_t)start, len, PROT_READ | PROT_WRITE,
		  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | (s->attrs.noreserve ? MAP_NORESERVE : 0), -1, 0);
	if (at == MAP_FAILED) {
		budget_recount(x);
		return -ENOMEM;
	}
	slot_mark(s, start, len / WINDOW_PAGE_BYTES, false);
	x->maps_since += 2;
	x->counters.attributes_lost += ram_attrs_apply(&s->attrs, start, len);
	if (s->wp && uffd_register(x->uffd, start, len, UFFDIO_REGISTER_MODE_WP) < 0)
		x->counters.attributes_lost++;
	return 0;
}

static void piece_make_anonymous(struct exchange *x, struct slot *s, uint64_t start, uint64_t end)
{
	if (piece_map_anonymous(x, s, start, end) == 0)
		return;
	/* No room for a mapping: zeroes through the private mapping are right too, only not free. */
	memset((void *)(uintptr_t)start, 0, end - start);
	x->counters.zeroed_in_place += (end - start) / WINDOW_PAGE_BYTES;
}

/* A window that is stuck or was left by a dead thread: what the application discards now must not be put back. */
static void journal_discard(struct exchange *x, uint64_t start, uint64_t end)
{
	struct exchange_journal *j = x->journal;

	unsigned first = j->first, pages = j->pages; /* once: the daemon shares this memory */

	if (j->step == STEP_IDLE || j->step == STEP_REPAIRED || first >= WINDOW_PAGES || pages > WINDOW_PAGES - first)
		return;
	for (unsigned p = first; p < first + pages; p++) {
		uint64_t at = j->window + p * WINDOW_PAGE_BYTES;

		if (at >= start && at < end)
			bits_set(&j->settled, p, 1);
	}
}

static int make_anonymous(struct exchange *x, void *addr, size_t len, bool whole)
{
	uint64_t first = (uint64_t)(uintptr_t)addr;

	if ((first | len) % WINDOW_PAGE_BYTES != 0 || first + len < first)
		return -EINVAL; /* as the real call would say */
	journal_discard(x, first, first + len);
	for (unsigned i = 0; i < EXCHANGE_SLOTS_MAX; i++) {
		struct slot *s = &x->slots[i];
		uint64_t start = first, end = first + len, from, to;

		if (!slot_clip(s, &start, &end) || !next_merged(s, start, end, &from, &to) ||
		    (whole && piece_map_anonymous(x, s, start, end) == 0))
			continue;
		do {
			piece_make_anonymous(x, s, from, to);
		} while (next_merged(s, to, end, &from, &to));
	}
	return 0;
}

int exchange_make_anonymous(struct exchange *x, void *addr, size_t len)
{
	return make_anonymous(x, addr, len, false);
}

int exchange_discard(struct exchange *x, void *addr, size_t len)
{
	return make_anonymous(x, addr, len, true);
}

void exchange_forget(struct exchange *x, void *addr, size_t len)
{
	for (unsigned i = 0; i < EXCHANGE_SLOTS_MAX; i++) {
		struct slot *s = &x->slots[i];
		uint64_t start = (uint64_t)(uintptr_t)addr, end = start + len;

		if (slot_clip(s, &start, &end))
			slot_mark(s, start, (end - start + WINDOW_PAGE_BYTES - 1) / WINDOW_PAGE_BYTES, false);
	}
}

size_t exchange_merged_pages(const struct exchange *x, const void *addr, size_t len)
{
	size_t pages = 0;

	for (unsigned i = 0; i < EXCHANGE_SLOTS_MAX; i++) {
		const struct slot *s = &x->slots[i];
		uint64_t start = (uint64_t)(uintptr_t)addr, end = start + len;

		if (!slot_clip(s, &start, &end))
			continue;
		for (uint64_t at = start; at < end; at += WINDOW_PAGE_BYTES)
			pages += slot_merged(s, at);
	}
	return pages;
}

/* ---- life ---- */

int exchange_new(int uffd, struct exchange_journal *journal, struct exchange **ret_x)
{
	struct exchange *x = calloc(1, sizeof(*x));
	int err;

	if (!x)
		return -ENOMEM;
	x->uffd = uffd;
	x->journal = journal;
	x->map_limit = mappings_limit();
	memset(journal, 0, sizeof(*journal));
	journal->version = EXCHANGE_JOURNAL_VERSION;
	x->pagemap_fd = pagemap_open(0);
	err = x->pagemap_fd < 0 ? x->pagemap_fd : mutex_init(&x->mutex);
	if (err == 0)
		err = staging_open(&x->huge, uffd);
	if (err == 0)
		err = staging_open(&x->small, uffd);
	if (err == 0)
		err = staging_check_empty(x, &x->huge);
	if (err == 0)
		err = staging_check_empty(x, &x->small);
	if (err < 0) {
		exchange_free(x);
		return err;
	}
	x->maps_counted = mappings_count();
	*ret_x = x;
	return 0;
}

void exchange_unlocked_all(struct exchange *x)
{
	struct staging *both[] = { &x->huge, &x->small };

	/* Settled or not: with a journal that is not idle, staging may hold the last copies. */
	for (size_t i = 0; i < 2 && x->journal->step == STEP_IDLE; i++) {
		if (both[i]->base != 0)
			staging_rebuild(both[i]);
	}
}

struct exchange *exchange_free(struct exchange *x)
{
	if (!x)
		return NULL;
	/* Pages that are stuck live on in staging: whoever repairs the journal needs it. */
	if (x->journal->step == STEP_IDLE || x->journal->step == STEP_REPAIRED) {
		staging_close(&x->huge);
		staging_close(&x->small);
	}
	for (unsigned i = 0; i < EXCHANGE_SLOTS_MAX; i++) {
		if (x->slots[i].merged)
			munmap(x->slots[i].merged, x->slots[i].merged_bytes);
	}
	if (x->pagemap_fd >= 0)
		close(x->pagemap_fd);
	free(x);
	return NULL;
}

int exchange_pagemap_fd(const struct exchange *x)
{
	return x->pagemap_fd;
}

const struct exchange_counters *exchange_counters(const struct exchange *x)
{
	return &x->counters;
}
