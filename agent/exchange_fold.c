/* Folding: a stretch of merged pages becomes the guest's own anonymous memory again, with every byte.
 *
 * A merged stretch is a private mapping of the store. Its pages are frames, or copies that the kernel made when the guest
 * wrote to one. The argument in short, between STEP_FOLD_FREEZE and STEP_WAKE:
 *
 * vCPU and VMM threads      may read and not write, and the frozen mapping is replaced in one step (mremap, under the
 *                           mmap lock) by one that is empty and registered: who touches it waits. So what is copied to
 *                           staging is what the guest has, until it is there again. Kernel-mode faults wait likewise.
 * device DMA, pinned I/O    may write to a page that it had pinned for writing before the freeze. Afterwards it cannot
 *                           pin: that asks for a fault on write, and waits. A page that is still a frame has no such
 *                           pin, for the kernel would have had to break it first. A copy may have one, and the kernel
 *                           has no check for that: copies are taken only if, after the freeze, nothing is open in this
 *                           process that could pin (agent/pins.h, with what that cannot see).
 * copies made while frozen  (of a page that was absent, or for a long-term pin for reading) have the frame's bytes.
 * short kernel references   to a page: a /proc/PID/mem writer has ended after brk(0) (R13). process_vm_writev() of
 *                           another process, which pins for the time of its copy, is not seen: nobody is known to use
 *                           it on a guest, and a debugger rules merging out.
 * balloon discard, fork,    wait for the lock (R6). What is discarded while a dead executor's stretch is open is
 * munmap, mprotect ..       settled with it.
 * PAGEMAP_SCAN (daemon)     does not arm memory of this descriptor, which is not WP_ASYNC: the range is skipped, and
 *                           so taken for written (R9), until it is registered as it was.
 * KSM, reclaim, swap        change where a page is, not its bytes. A copy that is in swap is read in first: by its page
 *                           table alone it could not be told from a frame that nobody has touched.
 * postcopy of the VMM       has its own userfaultfd there: EBUSY, and the stretch stays.
 * death of this thread      R5: until STEP_FOLD_PLACE nothing was taken away; from then on staging has every byte, and
 *                           the journal says so: exchange_repair(), by the next to lock or by the daemon.
 * death of the daemon       nothing here waits for it.
 *
 * One stretch of 128 pages at most at a time, with the lock dropped between: who writes waits no longer than for a merge
 * (measured 230 us; 512 pages at once take 900, a merge of a window 250), nor does who needs the lock. */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "agent/exchange_internal.h"
#include "agent/uffd.h"
#include "core/clock.h"
#include "core/kernel_abi.h"

#define COPY_RETRIES_MAX 64
#define STRETCH_PAGES_MAX 128u
#define MAPS_NEEDED 8 /* at most, while it goes on: the spare, and splits at both ends of what is held */

struct fold {
	struct slot *slot;
	uint64_t window;
	unsigned first, n;	/* the stretch, in pages of the window */
	uint64_t held, held_end; /* what is registered: the stretch and a neighbour */
	uint64_t spare;		/* the new mapping, before it is in place; 0: none */
	uint64_t frozen_ns, stall_ns;
};

static uint64_t fold_at(const struct fold *f)
{
	return f->window + f->first * WINDOW_PAGE_BYTES;
}

static uint64_t fold_len(const struct fold *f)
{
	return f->n * WINDOW_PAGE_BYTES;
}

/* ---- what is there ---- */

/* Everything present: what is absent or in swap cannot be told apart by its page table. Without touching it: a VMM may
 * have taken the memory away past the C library, and this thread must not get its SIGSEGV. */
static int stretch_read(struct exchange *x, const struct fold *f, struct page_bits *ret_copies)
{
	struct page_states st;
	int err = syscall(SYS_madvise, fold_at(f), fold_len(f), MADV_POPULATE_READ) < 0 ? -errno : 0;

	memset(ret_copies, 0, sizeof(*ret_copies));
	if (err == 0)
		err = pagemap_read(x->pagemap_fd, f->window, f->first, f->n, &st);
	for (unsigned p = f->first; p < f->first + f->n && err == 0; p++)
		if (!(st.flags[p] & PAGE_IS_FILE) || !(st.flags[p] & PAGE_IS_PRESENT))
			bits_set(ret_copies, p, 1);
	return err;
}

/* 0: all of the stretch may be taken. It is looked for pins only if there is something to pin, and not again when some
 * were seen: *pins. */
static int stretch_check(struct exchange *x, const struct fold *f, struct page_bits *ret_copies, bool *pins)
{
	int err = stretch_read(x, f, ret_copies);

	if (err < 0 || bits_count(ret_copies) == 0)
		return err;
	*pins = *pins || pins_possible(&x->mounts);
	return *pins ? -EBUSY : 0;
}

/* A page of anonymous memory beside the stretch, within the slot; all of a huge page, which would be split otherwise.
 * Registered as the stretch is, it looks like the same mapping to the first fault, which then takes over its anon_vma:
 * without this the two could never be one mapping again. */
static void neighbour_hold(struct exchange *x, struct fold *f)
{
	const uint64_t sides[] = { f->held - WINDOW_PAGE_BYTES, f->held_end };

	for (unsigned i = 0; i < 2; i++) {
		uint64_t at = sides[i], start = at & ~(WINDOW_BYTES - 1), end = at + WINDOW_PAGE_BYTES;
		unsigned page = (unsigned)((at - start) / WINDOW_PAGE_BYTES);
		struct page_states st;

		if (at < f->slot->start || at >= f->slot->end || slot_merged(f->slot, at) ||
		    pagemap_read(x->pagemap_fd, start, page, 1, &st) < 0)
			continue;
		if (st.flags[page] & PAGE_IS_HUGE) {
			at = start;
			end = start + WINDOW_BYTES;
		}
		if (at < f->slot->start || end > f->slot->end)
			continue;
		f->held = i == 0 ? at : f->held;
		f->held_end = i == 0 ? f->held_end : end;
		return;
	}
}

/* ---- STEP_FOLD_FREEZE ---- */

static void journal_begin(struct exchange *x, const struct fold *f)
{
	struct exchange_journal *j = x->journal;

	j->window = f->window;
	j->staging = x->small.base;
	j->first = f->first;
	j->pages = f->n;
	j->wp = f->slot->wp;
	j->freezer = 1;
	j->stuck = 0;
	j->tid = (uint32_t)gettid();
	j->held = f->held;
	j->held_bytes = f->held_end - f->held;
	j->spare = 0;
	memset(&j->settled, 0, sizeof(j->settled));
	j->started_ns = clock_mono_ns();
	x->step_started_ns = clock_mono_ns();
	journal_step(x, STEP_FOLD_FREEZE);
}

/* R9: as after a merge. */
static void watch_again(struct exchange *x, const struct fold *f)
{
	if (f->slot->wp && uffd_register(x->uffd, f->held, f->held_end - f->held, UFFDIO_REGISTER_MODE_WP) < 0)
		x->counters.attributes_lost++;
}

/* A mapping belongs to one userfaultfd: it is taken off the exchange's first, before the journal says anything. If this
 * thread dies right after, a scan skips the range and takes it for written. */
static int freeze(struct exchange *x, struct fold *f)
{
	int err = f->slot->wp ? uffd_unregister(x->uffd, f->held, f->held_end - f->held) : 0;

	if (err < 0)
		return err;
	journal_begin(x, f);
	f->frozen_ns = clock_mono_ns();
	err = freezer_hold(x->freezer, fold_at(f), fold_len(f));
	if (err < 0) {
		journal_step(x, STEP_IDLE);
		watch_again(x, f);
	}
	return err;
}

/* ---- STEP_FOLD_PLACE, STEP_FOLD_FILL ---- */

/* R4: a move that failed may have unmapped its destination. Memory that waits takes its place, and is filled. 0: the new
 * mapping is there; else the old one is, or x->stopped says that there is none. */
static int place(struct exchange *x, struct fold *f)
{
	unsigned char core[WINDOW_PAGES];
	int err;

	x->journal->spare = f->spare;
	journal_step(x, STEP_FOLD_PLACE);
	err = freezer_place(x->freezer, f->spare, fold_len(f), fold_at(f));
	if (err == 0) {
		f->spare = x->journal->spare = 0;
		return 0;
	}
	x->counters.map_failures++;
	budget_recount(x);
	if (syscall(SYS_mincore, fold_at(f), fold_len(f), core) == 0 || errno != ENOMEM)
		return err; /* the store's mapping is there as before */
	err = gap_fill(x, f->slot, freezer_fd(x->freezer), fold_at(f), fold_len(f));
	return err < 0 ? x->stopped = err : 0;
}

/* R2: a page that cannot be copied stays in staging, and whoever touches it waits: x->stopped. */
static int fill(struct exchange *x, struct fold *f)
{
	struct exchange_journal *j = x->journal;
	unsigned p = f->first, end = f->first + f->n, retries = 0;

	journal_step(x, STEP_FOLD_FILL);
	/* Before the first page comes. If it fails, mappings stay apart. */
	if (f->held != fold_at(f) || f->held_end != fold_at(f) + fold_len(f))
		(void)uffd_register(freezer_fd(x->freezer), f->held, f->held_end - f->held,
				    UFFDIO_REGISTER_MODE_MISSING);
	while (p < end) {
		uint64_t done;
		int err = uffd_copy(freezer_fd(x->freezer), f->window + p * WINDOW_PAGE_BYTES,
				    x->small.base + p * WINDOW_PAGE_BYTES, (end - p) * WINDOW_PAGE_BYTES, &done);

		bits_set(&j->settled, p, (unsigned)(done / WINDOW_PAGE_BYTES));
		p += (unsigned)(done / WINDOW_PAGE_BYTES);
		retries = done > 0 ? 0 : retries + 1;
		if (err < 0 && ((err != -EAGAIN && err != -EINTR) || retries > COPY_RETRIES_MAX)) {
			j->stuck = end - p;
			return x->stopped = err;
		}
	}
	return 0;
}

/* ---- the end ---- */

/* Every byte is in its place, the old one or the new. */
static int release(struct exchange *x, struct fold *f)
{
	int fd = freezer_fd(x->freezer), err;

	journal_step(x, STEP_UNREGISTER);
	err = uffd_unregister(fd, f->held, f->held_end - f->held);
	/* Refused: whoever waits for a page finds it, and whoever waits to write may. */
	if (err < 0)
		(void)uffd_writeprotect(fd, fold_at(f), fold_len(f), false);
	else
		journal_step(x, STEP_WAKE);
	if (err == 0)
		err = uffd_wake(fd, f->held, f->held_end - f->held);
	else
		(void)uffd_wake(fd, f->held, f->held_end - f->held);
	if (err < 0)
		return x->stopped = err; /* the journal says so: another holder of the descriptor can do better */
	f->stall_ns = clock_mono_ns() - f->frozen_ns;
	x->counters.fold_stall_ns += f->stall_ns;
	if (f->stall_ns > x->counters.fold_stall_max_ns)
		x->counters.fold_stall_max_ns = f->stall_ns;
	watch_again(x, f);
	journal_step(x, STEP_DROP);
	if (f->spare != 0)
		munmap((void *)(uintptr_t)f->spare, fold_len(f));
	err = staging_clear(&x->small, x->pagemap_fd, f->first, f->n);
	if (err < 0)
		return x->stopped = err;
	journal_step(x, STEP_IDLE);
	return 0;
}

/* With writers held. 0: it was replaced; else it is as it was, or x->stopped says that bytes are in staging only. */
static int frozen_replace(struct exchange *x, struct fold *f)
{
	struct page_bits copies;
	unsigned lost = 0;
	bool pins = false;
	int err = stretch_check(x, f, &copies, &pins);

	if (err == 0)
		err = freezer_copy(x->small.base + f->first * WINDOW_PAGE_BYTES, fold_at(f), fold_len(f));
	if (err == 0)
		err = freezer_make(x->freezer, fold_len(f), &f->slot->attrs, &f->spare, &lost);
	x->counters.attributes_lost += lost;
	if (err == 0)
		err = place(x, f);
	return err < 0 ? err : fill(x, f);
}

/* Returns what the exchange has stopped with, or 0; *ret_err: why the stretch stays, or 0. */
static int stretch_fold(struct exchange *x, struct fold *f, int *ret_err)
{
	int err = 0;

	f->held = fold_at(f);
	f->held_end = f->held + fold_len(f);
	neighbour_hold(x, f);
	*ret_err = freeze(x, f);
	if (*ret_err < 0)
		return 0;
	*ret_err = frozen_replace(x, f);
	err = x->stopped < 0 ? x->stopped : release(x, f); /* stopped: the journal stays for whoever can do better */
	if (err < 0 || *ret_err < 0)
		return err;
	slot_mark(f->slot, fold_at(f), f->n, false);
	x->maps_since += 2;
	x->counters.folds++;
	x->counters.folded_pages += f->n;
	return 0;
}

/* ---- what to take ---- */

/* Pages [lo, hi) of the window are left to do. A stretch can be one mapping with what is beside it only if there is a page
 * of anonymous memory beside it when its turn comes: from the beginning, unless there is none before that. */
struct walk {
	unsigned lo, hi;
	bool started, backward;
	bool pins; /* something open may have copies pinned */
};

/* The slot of a merged page; NULL: it is none. */
static struct slot *merged_slot(struct exchange *x, const struct fold *f, unsigned page)
{
	uint64_t at = f->window + page * WINDOW_PAGE_BYTES;
	struct slot *s = slot_find(x, at);

	return s && slot_merged(s, at) ? s : NULL;
}

static void walk_start(struct exchange *x, struct walk *w, const struct fold *f)
{
	uint64_t before;

	w->started = true;
	while (w->lo < w->hi && !merged_slot(x, f, w->lo))
		w->lo++;
	before = f->window + w->lo * WINDOW_PAGE_BYTES - WINDOW_PAGE_BYTES;
	w->backward = !slot_find(x, before) || slot_merged(slot_find(x, before), before);
}

/* The next merged stretch, in one slot. Returns whether there is one. */
static bool walk_next(struct exchange *x, struct walk *w, struct fold *f)
{
	unsigned lo = w->lo, hi = w->hi;

	if (w->backward) {
		while (lo < hi && !merged_slot(x, f, hi - 1))
			hi--;
		f->slot = lo < hi ? merged_slot(x, f, hi - 1) : NULL;
		for (lo = hi; lo > w->lo && hi - lo < STRETCH_PAGES_MAX && merged_slot(x, f, lo - 1) == f->slot; lo--)
			;
		w->hi = lo;
	} else {
		while (lo < hi && !merged_slot(x, f, lo))
			lo++;
		f->slot = lo < hi ? merged_slot(x, f, lo) : NULL;
		for (hi = lo; hi < w->hi && hi - lo < STRETCH_PAGES_MAX && merged_slot(x, f, hi) == f->slot; hi++)
			;
		w->lo = hi;
	}
	f->first = lo;
	f->n = hi - lo;
	return f->n > 0;
}

/* Copies have to stay. Without split, so does the whole stretch; with it, the next pages of it that may go are taken. */
static unsigned stretch_cut(struct walk *w, struct fold *f, const struct page_bits *copies, bool split)
{
	unsigned first = f->first, end = f->first + f->n, from, to, skipped;

	if (!split) {
		f->n = 0;
		return end - first;
	}
	if (w->backward) {
		for (to = end; to > first && bits_test(copies, to - 1); to--)
			;
		for (from = to; from > first && !bits_test(copies, from - 1); from--)
			;
		skipped = end - to;
		w->hi = from;
	} else {
		from = bits_next(copies, first, end, false);
		to = bits_next(copies, from, end, true);
		skipped = from - first;
		w->lo = to;
	}
	f->first = from;
	f->n = to - from;
	return skipped;
}

static void keep(struct exchange_fold *ret, unsigned pages, int err)
{
	ret->kept += pages;
	ret->err = ret->err < 0 || pages == 0 ? ret->err : err;
}

/* One stretch, or a part of it. Returns what the exchange has stopped with, 0, or 1: there is nothing left. */
static int fold_locked(struct exchange *x, uint64_t window, struct walk *w, bool split, struct exchange_fold *ret)
{
	struct fold f = { .window = window };
	size_t limit = x->map_limit - x->map_limit / 4;
	struct page_bits copies;
	int err = 0, why;

	if (x->stopped < 0 || !x->freezer)
		return x->stopped < 0 ? x->stopped : -EOPNOTSUPP;
	if (!w->started)
		walk_start(x, w, &f);
	if (!walk_next(x, w, &f))
		return 1;
	why = f.slot->closed ? -EPERM : stretch_check(x, &f, &copies, &w->pins);
	if (why == -EBUSY) {
		keep(ret, stretch_cut(w, &f, &copies, split), why);
		limit = x->map_limit / 2; /* pieces cost mappings that stay */
		why = 0;
	}
	if (why == 0 && !budget_allows(x, MAPS_NEEDED, limit))
		why = -ENOSPC;
	if (why == 0 && f.n > 0)
		err = stretch_fold(x, &f, &why);
	if (f.stall_ns > ret->stall_max_ns)
		ret->stall_max_ns = f.stall_ns;
	if (why < 0 || err < 0)
		keep(ret, f.n, why < 0 ? why : err);
	else
		ret->folded += f.n;
	return err;
}

void exchange_use_freezer(struct exchange *x, struct freezer *f)
{
	x->freezer = f;
}

int exchange_fold(struct exchange *x, uint64_t window, bool split, struct exchange_fold *ret_fold)
{
	struct walk w = { .hi = WINDOW_PAGES };
	int err = window % WINDOW_BYTES != 0 ? -EINVAL : 0;

	*ret_fold = (struct exchange_fold){ 0 };
	pins_mounts_read(&x->mounts);
	while (err == 0) {
		err = exchange_lock(x);
		if (err < 0)
			return err;
		err = fold_locked(x, window, &w, split, ret_fold);
		exchange_unlock(x);
	}
	return err < 0 ? err : 0;
}
