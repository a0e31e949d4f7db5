/* Which memory is guest RAM, what the daemon has been told of it, and what was discarded.
 *
 * Every range has one entry from the moment the VMM hints at it until it is unmapped. What the exchange has taken stays
 * a slot of it as long as the entry lives, also when merging there is over ("closed"): its map of merged pages is what
 * makes a later MADV_DONTNEED right.
 *
 * The guard is held throughout. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "agent/client_internal.h"
#include "core/cleanup.h"
#include "core/clock.h"

#ifndef MADV_DONTNEED_LOCKED /* Linux 5.18 */
#define MADV_DONTNEED_LOCKED 24
#endif

#define PAGE WINDOW_PAGE_BYTES
#define AGAIN_NS (30 * NSEC_PER_SEC) /* until what was busy is looked at again */

static const char why_locked[] = "memory is locked (mlock)";
static const char why_protected[] = "memory is not private, readable and writable only";
static const char why_foreign[] = "memory is registered by a userfaultfd of the VMM (postcopy, snapshot)";
static const char why_uneven[] = "memory has not the same attributes everywhere";

static atomic_bool locked_future; /* mlockall(MCL_FUTURE), maybe before there was an agent */

/* ---- entries ---- */

static bool span_clip(struct span *s, uint64_t start, uint64_t end)
{
	s->start = s->start > start ? s->start : start;
	s->end = s->end < end ? s->end : end;
	return s->start < s->end;
}

/* The part of the entry that [addr, addr+len) touches. */
static bool ram_clip(const struct ram *r, uint64_t addr, uint64_t len, struct span *ret)
{
	*ret = (struct span){ .start = addr, .end = addr + len < addr ? UINT64_MAX : addr + len };
	return r->state != RAM_FREE && span_clip(ret, r->start, r->end);
}

#define RAM_FOR_EACH(a, r) for (struct ram *r = (a)->ram; r < (a)->ram + AGENT_SLOTS_MAX; r++)
#define RAM_FOR_TOUCHED(a, addr, len, r, clip)                    \
	RAM_FOR_EACH(a, r)                                        \
		for (struct span clip = { 0, 0 };                 \
		     clip.end == 0 && ram_clip(r, addr, len, &clip);)

struct ram *client_ram_at(struct memvirt_agent *a, uint64_t addr)
{
	RAM_FOR_EACH(a, r)
		if (r->state != RAM_FREE && addr >= r->start && addr < r->end)
			return r;
	return NULL;
}

int client_ram_add(struct memvirt_agent *a, uint64_t addr, uint64_t len, uint64_t due_ns, struct ram **ret_ram,
		   const char **ret_why)
{
	struct ram *room = NULL;
	struct span clip;

	*ret_why = "not a range of pages";
	if (len == 0 || (addr | len) % PAGE != 0 || addr + len < addr)
		return -EINVAL;
	*ret_why = "overlaps another slot";
	RAM_FOR_EACH(a, r) {
		if (r->state == RAM_FREE)
			room = room ? room : r;
		else if (ram_clip(r, addr, len, &clip))
			return -EEXIST;
	}
	*ret_why = "too many slots";
	if (!room)
		return -ENOSPC;
	*ret_why = "";
	*room = (struct ram){ .state = RAM_CANDIDATE, .start = addr, .end = addr + len, .due_ns = due_ns };
	client_touched_set((unsigned)(room - a->ram), room->start, room->end);
	*ret_ram = room;
	return 0;
}

const char *client_ram_why(const struct memvirt_agent *a, const struct ram *r)
{
	if (r->broken)
		return r->broken;
	if (r->locked.end != 0 || atomic_load(&locked_future))
		return why_locked;
	if (r->protected.end != 0)
		return why_protected;
	if (r->foreign)
		return why_foreign;
	return a->no_x ? a->no_x : r->refused;
}

/* ---- what the daemon is to be told ---- */

static void gone_push(struct memvirt_agent *a, const struct ram *r)
{
	if (r->state != RAM_TOLD)
		return;
	if (a->gone_count < AGENT_SLOTS_MAX)
		a->gone[a->gone_count++] = (struct agent_range){ .header.type = AGENT_UNSLOT,
								 .hva = r->start,
								 .bytes = r->end - r->start };
	else
		a->resync = true;
	client_wake(a);
}

/* After any change: closes or opens the slot, and tells the daemon if it knows otherwise. */
static void ram_changed(struct memvirt_agent *a, struct ram *r)
{
	const char *why = client_ram_why(a, r);

	if (r->exchanged)
		exchange_slot_close(a->x, (void *)(uintptr_t)r->start, why != NULL);
	if (r->state != RAM_TOLD || why == r->told)
		return;
	gone_push(a, r);
	r->state = RAM_NEW;
}

void client_ram_remove(struct memvirt_agent *a, struct ram *r)
{
	if (r->exchanged)
		exchange_slot_drop(a->x, (void *)(uintptr_t)r->start);
	gone_push(a, r);
	client_touched_set((unsigned)(r - a->ram), 0, 0);
	memset(r, 0, sizeof(*r));
}

bool client_ram_inherited(struct memvirt_agent *a)
{
	unsigned char present;
	bool any = false;

	RAM_FOR_EACH(a, r) {
		if (r->state == RAM_FREE)
			continue;
		if (syscall(SYS_mincore, r->start, PAGE, &present) < 0 && errno == ENOMEM)
			client_ram_remove(a, r);
		else
			any = true;
	}
	return any;
}

void client_ram_untold(struct memvirt_agent *a)
{
	a->gone_count = a->released_count = 0;
	a->resync = false;
	RAM_FOR_EACH(a, r) {
		r->released = false;
		if (r->state == RAM_TOLD)
			r->state = RAM_NEW;
		if (r->state == RAM_NEW && !r->exchanged) { /* what was missing may be there now */
			r->state = RAM_CANDIDATE;
			r->due_ns = 1;
		}
	}
}

/* Only for entries that the daemon knows, and it hears of it before it hears that they are gone. */
static void released_push(struct memvirt_agent *a, struct ram *r, struct span s)
{
	struct agent_range *last = a->released_count > 0 ? &a->released[a->released_count - 1] : NULL;

	if (r->state != RAM_TOLD)
		return;
	if (last && last->hva >= r->start && last->hva < r->end && s.start <= last->hva + last->bytes &&
	    s.end >= last->hva) { /* balloons give page by page, up or down */
		uint64_t end = last->hva + last->bytes;

		last->hva = s.start < last->hva ? s.start : last->hva;
		last->bytes = (s.end > end ? s.end : end) - last->hva;
	} else if (a->released_count < CLIENT_RELEASES_MAX) {
		a->released[a->released_count++] = (struct agent_range){ .header.type = AGENT_RELEASED,
									 .hva = s.start,
									 .bytes = s.end - s.start };
	} else {
		r->released = true;
	}
	client_wake(a);
}

static size_t slot_packet(const struct memvirt_agent *a, struct ram *r, struct packet *p)
{
	r->state = RAM_TOLD;
	r->told = client_ram_why(a, r);
	p->slot = (struct agent_slot){ .header.type = AGENT_SLOT,
				       .hva = r->start,
				       .bytes = r->end - r->start };
	if (!r->told)
		p->slot.flags = AGENT_CAN_REMAP | (r->tracked ? AGENT_TRACKED : 0);
	else
		snprintf(p->slot.why, sizeof(p->slot.why), "%s", r->told);
	return sizeof(p->slot);
}

size_t client_ram_next(struct memvirt_agent *a, struct packet *p)
{
	struct agent_range *queue = a->released_count > 0 ? a->released : a->gone;
	unsigned *count = a->released_count > 0 ? &a->released_count : &a->gone_count;

	if (a->released_count == 0) {
		RAM_FOR_EACH(a, r) {
			if (!r->released)
				continue;
			r->released = false;
			p->range = (struct agent_range){ .header.type = AGENT_RELEASED,
							 .hva = r->start,
							 .bytes = r->end - r->start };
			return sizeof(p->range);
		}
	}
	if (*count > 0) {
		p->range = queue[0];
		memmove(&queue[0], &queue[1], --*count * sizeof(queue[0]));
		return sizeof(p->range);
	}
	RAM_FOR_EACH(a, r)
		if (r->state == RAM_NEW)
			return slot_packet(a, r, p);
	return 0;
}

/* ---- judging ---- */

/* What the kernel's scanner could take at all. */
static bool private_anonymous(uint64_t addr, uint64_t end)
{
	auto_fclose FILE *f = fopen("/proc/self/maps", "re");
	auto_free char *line = NULL;
	size_t cap = 0;

	while (f && addr < end && getline(&line, &cap, f) > 0) {
		uint64_t from, to, inode;
		char perms[5];

		if (sscanf(line, "%lx-%lx %4s %*x %*s %lu", &from, &to, perms, &inode) != 4 || to <= addr)
			continue;
		if (from > addr || perms[3] != 'p' || inode != 0)
			return false;
		addr = to;
	}
	return f && addr >= end;
}

/* Without an exchange there is nothing to refuse it, and its lock is not needed either. */
static int ram_exchange(struct memvirt_agent *a, struct ram *r, const char **ret_why)
{
	*ret_why = a->no_x;
	if (!a->x)
		return -EOPNOTSUPP;
	return exchange_slot_add(a->x, (void *)(uintptr_t)r->start, r->end - r->start, false, ret_why);
}

/* With the exchange's lock held. What somebody else has registered is asked for again until it is free. */
static void ram_track(struct memvirt_agent *a, struct ram *r)
{
	int err = exchange_slot_track(a->x, (void *)(uintptr_t)r->start, true);

	r->tracked = err == 0;
	if (err == 0)
		r->foreign = false;
	else if (r->foreign)
		r->due_ns = clock_mono_ns() + AGAIN_NS;
}

int client_ram_judge(struct memvirt_agent *a, struct ram *r, const char **ret_why)
{
	int err = r->exchanged ? 0 : ram_exchange(a, r, ret_why);
	bool locked;

	r->exchanged = err == 0;
	r->refused = err == 0 ? NULL : *ret_why;
	r->due_ns = err == -EBUSY ? clock_mono_ns() + AGAIN_NS : 0;
	if (!r->exchanged && !private_anonymous(r->start, r->end)) {
		client_ram_remove(a, r);
		return err;
	}
	if (r->state == RAM_CANDIDATE)
		r->state = RAM_NEW;
	locked = a->x && exchange_lock(a->x) == 0;
	if (locked && r->exchanged && !r->tracked)
		ram_track(a, r);
	ram_changed(a, r);
	if (locked)
		exchange_unlock(a->x);
	*ret_why = client_ram_why(a, r);
	*ret_why = *ret_why ? *ret_why : "";
	return 0;
}

uint64_t client_ram_due(struct memvirt_agent *a)
{
	uint64_t now = clock_mono_ns(), next = 0;
	const char *why;

	RAM_FOR_EACH(a, r) {
		if (r->state == RAM_FREE || r->due_ns == 0)
			continue;
		if (r->due_ns <= now && client_ram_judge(a, r, &why) < 0)
			continue;
		if (r->due_ns != 0 && (next == 0 || r->due_ns < next))
			next = r->due_ns;
	}
	return next;
}

/* ---- what the VMM has done to its mappings ---- */

static void ram_break(struct memvirt_agent *a, struct ram *r, const char *why)
{
	r->broken = r->broken ? r->broken : why; /* the first reason is the cause of the others */
	ram_changed(a, r);
}

void client_ram_replaced(struct memvirt_agent *a, uint64_t addr, uint64_t len, const char *why)
{
	if (a->x)
		exchange_forget(a->x, (void *)(uintptr_t)addr, len);
	RAM_FOR_TOUCHED(a, addr, len, r, s) {
		if (s.start == r->start && s.end == r->end) {
			client_ram_remove(a, r);
		} else {
			ram_break(a, r, why);
		}
	}
}

void client_ram_broken(struct memvirt_agent *a, uint64_t addr, uint64_t len, const char *why)
{
	RAM_FOR_TOUCHED(a, addr, len, r, s)
		ram_break(a, r, why);
}

void client_ram_advised(struct memvirt_agent *a, uint64_t addr, uint64_t len, int advice)
{
	RAM_FOR_TOUCHED(a, addr, len, r, s) {
		if (r->exchanged && exchange_slot_advise(a->x, (void *)(uintptr_t)s.start, s.end - s.start, advice) < 0)
			ram_break(a, r, why_uneven);
	}
}

/* The span is the whole that may be concerned; a part that is given back in the middle stays within it. */
static void span_join(struct span *all, struct span s)
{
	if (all->end == 0) {
		*all = s;
		return;
	}
	all->start = s.start < all->start ? s.start : all->start;
	all->end = s.end > all->end ? s.end : all->end;
}

/* Unfit memory is fit again: the exchange may take it now. */
static void ram_eased(struct memvirt_agent *a, struct ram *r)
{
	if (!r->exchanged && r->state != RAM_CANDIDATE)
		r->due_ns = 1;
	client_wake(a);
	ram_changed(a, r);
}

static bool span_covers(struct span s, struct span of)
{
	return s.start <= of.start && s.end >= of.end;
}

void client_ram_protected(struct memvirt_agent *a, uint64_t addr, uint64_t len, int prot)
{
	RAM_FOR_TOUCHED(a, addr, len, r, s) {
		struct span *p = &r->protected;
		bool all = p->end == 0 || span_covers(s, *p);
		bool joins = p->end != 0 && r->prot == prot && s.start <= p->end && s.end >= p->start;

		if (prot == (PROT_READ | PROT_WRITE)) {
			if (all)
				*p = (struct span){ 0 };
			else
				r->prot = -1;
			ram_eased(a, r);
		} else {
			r->prot = all || joins ? prot : -1;
			span_join(p, s);
			ram_changed(a, r);
		}
	}
}

void client_ram_mlocked(struct memvirt_agent *a, uint64_t addr, uint64_t len, bool locked)
{
	RAM_FOR_TOUCHED(a, addr, len, r, s) {
		if (locked)
			span_join(&r->locked, s);
		else if (span_covers(s, r->locked))
			r->locked = (struct span){ 0 };
		if (locked)
			ram_changed(a, r);
		else
			ram_eased(a, r);
	}
}

/* The registration of ours would make theirs fail. If theirs fails for another reason, the next look takes it back. */
void client_ram_foreign(struct memvirt_agent *a, uint64_t addr, uint64_t len)
{
	RAM_FOR_TOUCHED(a, addr, len, r, s) {
		if (!r->exchanged)
			continue;
		exchange_slot_track(a->x, (void *)(uintptr_t)r->start, false);
		r->tracked = false;
		r->foreign = true;
		r->due_ns = clock_mono_ns() + AGAIN_NS;
		ram_changed(a, r);
		client_wake(a);
	}
}

void client_ram_mlocked_future(struct memvirt_agent *a, bool locked)
{
	atomic_store(&locked_future, locked);
	if (!a)
		return;
	if (!locked && a->x)
		exchange_unlocked_all(a->x);
	RAM_FOR_EACH(a, r) {
		if (r->state != RAM_FREE && locked)
			ram_changed(a, r);
		else if (r->state != RAM_FREE)
			ram_eased(a, r);
	}
}

/* ---- discarding ---- */

/* Merged pages of s become anonymous. What the VMM did to the mapping meanwhile is respected: locked memory refuses to be
 * discarded, as it does when nothing is merged; protected memory is protected again, and foreign mappings inside a
 * slot that is broken are not touched. */
static int part_discard(struct memvirt_agent *a, const struct ram *r, struct span s, int advice)
{
	void *at = (void *)(uintptr_t)s.start;
	struct span locked = s, shut = s;
	bool is_locked = span_clip(&locked, r->locked.start, r->locked.end);
	bool is_shut = span_clip(&shut, r->protected.start, r->protected.end);

	if (exchange_merged_pages(a->x, at, s.end - s.start) == 0) /* pages left in staging must not come back either */
		return exchange_discard(a->x, at, s.end - s.start);
	if (r->foreign) /* new memory would not be registered with the VMM's userfaultfd, and it would miss its faults */
		return -EBUSY;
	if (is_locked && advice != MADV_DONTNEED_LOCKED)
		return -EINVAL;
	if (is_shut && (r->prot < 0 || syscall(SYS_mprotect, shut.start, shut.end - shut.start,
					       PROT_READ | PROT_WRITE) < 0))
		return -ENOMEM;
	if (r->broken)
		exchange_make_anonymous(a->x, at, s.end - s.start);
	else
		exchange_discard(a->x, at, s.end - s.start);
	if (is_shut && syscall(SYS_mprotect, shut.start, shut.end - shut.start, r->prot) < 0)
		return -ENOMEM;
	if (is_locked && syscall(SYS_mlock2, locked.start, locked.end - locked.start, MLOCK_ONFAULT) < 0)
		return -ENOMEM;
	return 0;
}

/* The real call under the same lock: in a window it would discard nothing, and the old bytes come back. */
int client_ram_discard(struct memvirt_agent *a, uint64_t addr, uint64_t len, int advice)
{
	uint64_t bytes = (len + PAGE - 1) & ~(PAGE - 1);
	bool ours = a && a->x && addr % PAGE == 0 && bytes >= len && addr + bytes >= addr;
	size_t merged = ours ? exchange_merged_pages(a->x, (void *)(uintptr_t)addr, bytes) : 0;
	int err = 0;

	if (merged > 0) {
		RAM_FOR_TOUCHED(a, addr, bytes, r, s) {
			int one = r->exchanged ? part_discard(a, r, s, advice) : 0;

			err = err < 0 ? err : one;
		}
	} else if (ours) {
		/* For pages that a dead executor left in staging: they must not be put back. */
		exchange_discard(a->x, (void *)(uintptr_t)addr, bytes);
	}
	if (err == 0 && syscall(SYS_madvise, addr, len, advice) < 0)
		err = -errno;
	if (merged > 0) {
		RAM_FOR_TOUCHED(a, addr, bytes, r, s)
			released_push(a, r, s);
	}
	return err;
}
