/* The exchange of one window, in the order of its steps.
 *
 * The argument in short. Between STEP_REGISTER and STEP_WAKE a page of the window is in exactly one place: in the
 * window, in staging, or "settled" (its final mapping, or a verified zero page's hole, is in the window). Who can act:
 *
 * vCPU and VMM threads      the move is atomic per page and flushes their TLBs: they see the page, or they fault on
 *                           a hole that is registered MISSING and wait. Waiting loses nothing.
 * device DMA, pinned I/O    the kernel refuses to move a page with FOLL_PIN (EBUSY) and looks after unmapping it, so a
 *                           pin that races is seen. It stays in the window, the run is cut (R12).
 * short kernel references   a /proc/PID/mem writer holds the mmap lock for reading while it copies: brk(0), which
 *                           takes it for writing, lets him end before we compare (R13).
 * application calls         DONTNEED, mmap, munmap, mprotect .. and fork wait for the lock (R6).
 * PAGEMAP_SCAN (daemon)     may put write-protect markers into holes: UFFDIO_COPY overwrites these (R2).
 * reclaim, KSM, migration   work on staging pages as on any: R3 keeps KSM and khugepaged away, swapped pages still
 *                           count as "in staging", and what cannot move back is copied back.
 * nobody                    writes to staging or to the store, so what was compared is what is mapped.
 * death of this thread      the journal says what is where; see exchange_repair() (R5).
 *
 * In the window, this thread calls only the kernel, the vDSO clock and memcmp/memset, holds no lock but its own and
 * never touches guest RAM: nothing can make it wait for a thread that waits for it. (Link with -z now: no symbol
 * is then looked up there.) R10: it should run at a nice value not above that of the vCPUs. */
#include "agent/exchange.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "agent/exchange_internal.h"
#include "agent/uffd.h"
#include "core/clock.h"
#include "core/kernel_abi.h"

/* Single pages that refuse before the rest of the window is left alone: each costs 3 us while all wait. After a
 * fork every page refuses until it is written to (R12: back off). */
#define MOVE_REFUSALS_MAX 48
#define MOVE_RETRIES_MAX 16 /* transient -EAGAIN or -EINTR at one page; the kernel itself retries without end */

void journal_step(struct exchange *x, uint32_t step)
{
	uint64_t now = clock_mono_ns();

	/* Our own note of the step: the journal is memory that the daemon shares. */
	x->counters.step_ns[x->step] += now - x->step_started_ns;
	x->step = step;
	x->step_started_ns = now;
	/* Release: whoever sees the step sees the fields that were written before. */
	__atomic_store_n(&x->journal->step, step, __ATOMIC_RELEASE);
	hook_step(step);
}

/* ---- STEP_REGISTER ---- */

static int window_register(struct exchange *x, struct window *w)
{
	struct exchange_journal *j = x->journal;
	uint64_t addr = window_at(w, w->lo), len = (w->hi - w->lo) * WINDOW_PAGE_BYTES;
	/* R9: with WP kept on, UNREGISTER clears every write-protect bit, so that no page can look clean later
	 * that was written while it was not watched. */
	uint64_t mode = UFFDIO_REGISTER_MODE_MISSING | (w->slot->wp ? UFFDIO_REGISTER_MODE_WP : 0);
	int err;

	j->window = w->addr;
	j->staging = w->staging->base;
	j->first = w->lo;
	j->pages = w->hi - w->lo;
	j->wp = w->slot->wp;
	j->freezer = 0;
	j->stuck = 0;
	j->tid = (uint32_t)gettid();
	memset(&j->settled, 0, sizeof(j->settled));
	j->started_ns = clock_mono_ns();
	journal_step(x, STEP_REGISTER);
	err = uffd_register(x->uffd, addr, len, mode);
	if (err == 0)
		return 0;
	/* ENOMEM may have left a part registered. The other errors come before anything is changed, and after
	 * EBUSY the registration is somebody else's, which kernels before 6.16 would let us undo. */
	if (err == -ENOMEM && uffd_unregister(x->uffd, addr, len) == 0) {
		uffd_wake(x->uffd, addr, len);
		if (w->slot->wp && uffd_register(x->uffd, addr, len, UFFDIO_REGISTER_MODE_WP) < 0)
			x->counters.attributes_lost++;
	} else if (err == -ENOMEM) {
		return x->stopped = err; /* the journal stays: the daemon may get further */
	}
	journal_step(x, STEP_IDLE);
	return err;
}

/* ---- STEP_MOVE ---- */

/* R1: a failed UFFDIO_MOVE says nothing reliable. Linux 6.18 returns EEXIST with 0 pages after it has moved 256 (a
 * stale -EAGAIN, fixed upstream by "userfaultfd: reset err to be 0 when move_pages_ptes succeeded"). The page tables
 * say where a page is: in staging, and not present in the window, which is registered, so that nothing can appear
 * there. (Both are asked: mlockall by another thread fills the holes of staging with zero pages, which must not
 * be taken for guest pages.)
 * A hole in the window may read as "swapped": that is how a write-protect marker of a PAGEMAP_SCAN shows. Such a
 * page counts as moved, for it may be, but is not merged: if it was a swap entry after all, then what is in staging is
 * not the page, and the copy back says EEXIST. */
static bool page_has_moved(struct window *w, unsigned p, uint8_t in_window, uint8_t in_staging)
{
	if (in_staging == 0 || (in_window & PAGE_IS_PRESENT))
		return false;
	if (in_window != 0)
		bits_clear(&w->wanted, p, 1);
	return true;
}

/* How many pages from `first` on have moved; -errno if that cannot be told. */
static int moved_prefix(struct exchange *x, struct window *w, unsigned first, unsigned n)
{
	struct page_states from, to;
	int err = pagemap_read(x->pagemap_fd, w->addr, first, n, &from);
	unsigned p;

	if (err == 0)
		err = pagemap_read(x->pagemap_fd, w->staging->base, first, n, &to);
	if (err < 0)
		return err;
	for (p = first; p < first + n && page_has_moved(w, p, from.flags[p], to.flags[p]); p++)
		;
	return (int)(p - first);
}

/* Moves a stretch of small pages, going round those that are busy or gone. */
static void move_stretch(struct exchange *x, struct window *w, unsigned first, unsigned n)
{
	unsigned p = first, end = first + n, most = n, retries = 0;

	while (p < end) {
		unsigned len = end - p < most ? end - p : most;
		int done = (int)len, err;

		if (w->refusals >= MOVE_REFUSALS_MAX) {
			w->errs[p++] = -EBUSY;
			continue;
		}
		err = uffd_move(x->uffd, w->staging->base + p * WINDOW_PAGE_BYTES, window_at(w, p),
				len * WINDOW_PAGE_BYTES);
		if (err < 0) {
			x->counters.move_errors++;
					done = moved_prefix(x, w, p, len);
		}
		if (done < 0) {
			w->blind = true;
			bits_set(&w->moved, p, len);
			return;
		}
		bits_set(&w->moved, p, (unsigned)done);
		p += (unsigned)done;
		if (done > 0) {
			most = n;
			retries = 0;
		} else if ((err == -EAGAIN || err == -EINTR) && retries++ < MOVE_RETRIES_MAX) {
			continue;
		} else if (len > 1) { /* the range may span two mappings: halve it until it does not */
			most = len / 2;
		} else {
			w->errs[p++] = (int16_t)err;
			retries = 0;
			w->refusals++;
		}
	}
}

/* Moves a huge page whole, or not at all: splitting it would cost more than it gives (PERF.md). */
static void move_huge(struct exchange *x, struct window *w)
{
	int err = uffd_move(x->uffd, w->staging->base, w->addr, WINDOW_BYTES);
	struct page_states from, to;

	bits_set(&w->moved, 0, WINDOW_PAGES);
	if (err == 0)
		return;
	x->counters.move_errors++;
	/* R1 again. EBUSY leaves all in the window; if the page was split meanwhile, a part may have moved. */
	if (pagemap_read(x->pagemap_fd, w->addr, 0, WINDOW_PAGES, &from) < 0 ||
	    pagemap_read(x->pagemap_fd, w->staging->base, 0, WINDOW_PAGES, &to) < 0) {
		w->blind = true;
		return;
	}
	for (unsigned p = 0; p < WINDOW_PAGES; p++) {
		if (!page_has_moved(w, p, from.flags[p], to.flags[p])) {
			bits_clear(&w->moved, p, 1);
			w->errs[p] = (int16_t)err;
		}
	}
}

static void window_move(struct exchange *x, struct window *w)
{
	w->frozen_ns = clock_mono_ns();
	journal_step(x, STEP_MOVE);
	if (w->huge)
		move_huge(x, w);
	else
		BITS_FOR_STRETCHES(&w->wanted, w->lo, w->hi, first, n)
			move_stretch(x, w, first, n);
	/* R13: /proc/PID/mem writers that got their page before it moved hold the mmap lock for reading
	 * until they have written. brk(0) takes it for writing and changes nothing. */
	syscall(SYS_brk, 0);
}

/* ---- STEP_COMPARE ---- */

/* R3: asks the page tables once more, so that a page is compared or copied only if it is there: reading a
 * hole in staging would make a page of zeroes that nobody wrote. */
static void window_look(struct exchange *x, struct window *w)
{
	struct page_states to;

	if (!w->blind && pagemap_read(x->pagemap_fd, w->staging->base, w->lo, w->hi - w->lo, &to) < 0)
		w->blind = true;
	if (w->blind)
		return;
	w->still_huge = w->huge;
	for (unsigned p = w->lo; p < w->hi; p++) {
		w->still_huge = w->still_huge && (to.flags[p] & PAGE_IS_HUGE);
		if (bits_test(&w->moved, p) && to.flags[p] == 0)
			bits_clear(&w->moved, p, 1); /* it never left the window, or was never in it */
	}
	x->counters.moved_pages += bits_count(&w->moved);
}

static bool page_is_zero(const uint8_t *page)
{
	uint64_t first;

	memcpy(&first, page, sizeof(first));
	return first == 0 && memcmp(page, page + 8, WINDOW_PAGE_BYTES - 8) == 0;
}

static bool page_equal(const struct window *w, const struct exchange_store *store, const struct exchange_run *r,
		       unsigned p)
{
	const uint8_t *page = (const uint8_t *)(uintptr_t)w->staging->base + p * WINDOW_PAGE_BYTES;
	uint64_t frame = r->frame + p - r->first;

	if (!bits_test(&w->wanted, p) || !bits_test(&w->moved, p))
		return false;
	if (r->frame == EXCHANGE_ZERO)
		return page_is_zero(page);
	return memcmp(page, store->map + frame * WINDOW_PAGE_BYTES, WINDOW_PAGE_BYTES) == 0;
}

/* Byte for byte; a hash never decides. Neither side can change: staging is known to nobody else, a pinned page
 * is not in it, and published frames are immutable (R11). Returns how many pages may be merged. */
static unsigned window_compare(struct exchange *x, struct window *w, const struct exchange_store *store,
			       const struct exchange_run *runs, size_t count)
{
	journal_step(x, STEP_COMPARE);
	window_look(x, w);
	if (w->blind)
		return 0;
	for (size_t i = 0; i < count; i++) {
		const struct exchange_run *r = &runs[i];
		unsigned end = (unsigned)r->first + r->pages;

		for (unsigned p = r->first; p < end; p++) {
			if (page_equal(w, store, r, p))
				bits_set(&w->equal, p, 1);
		}
		if (r->frame == EXCHANGE_ZERO)
			continue;
		BITS_FOR_STRETCHES(&w->equal, r->first, end, first, n) {
			if (n < w->opt->min_piece) { /* cut too short: stays where it was */
				bits_clear(&w->equal, first, n);
				bits_set(&w->cut, first, n);
			}
		}
	}
	return bits_count(&w->equal);
}

/* ---- STEP_MAP ---- */

/* mmap(MAP_FIXED) takes the old mapping away and puts the new one in under one mmap write lock: whoever touches
 * the range sees the hole and waits, or sees the frames; never zeroes. Writers get a copy by the kernel itself. */
static int window_map_piece(struct exchange *x, struct window *w, const struct exchange_store *store,
			    uint64_t frame, unsigned first, unsigned n)
{
	uint64_t addr = window_at(w, first), len = n * WINDOW_PAGE_BYTES;
	int rc = hook_before(OP_MMAP, addr, len);

	slot_mark(w->slot, addr, n, true); /* before: a repairer, or our fork, must not take it for anonymous */
	if (rc == 0) {
		void *at = mmap((void *)(uintptr_t)addr, len, PROT_READ | PROT_WRITE,
				MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE, store->fd,
				(off_t)(frame * WINDOW_PAGE_BYTES));

		rc = at == MAP_FAILED ? -errno : 0;
	}
	if (rc < 0) {
		x->counters.map_failures++;
		budget_recount(x);
		if (gap_fill(x, w->slot, x->uffd, addr, len) == 0)
			slot_mark(w->slot, addr, n, false);
		for (unsigned p = first; p < first + n; p++)
			w->errs[p] = (int16_t)rc;
		return rc;
	}
	bits_set(&x->journal->settled, first, n);
	bits_set(&w->merged, first, n);
	x->maps_since += 2;
	x->counters.merged_pages += n;
	if (first < w->mapped_lo)
		w->mapped_lo = first;
	if (first + n > w->mapped_hi)
		w->mapped_hi = first + n;
	return 0;
}

/* A huge page all of zeroes leaves nothing mapped, and the first page that the guest writes would come as a huge page
 * again, of 511 pages of zeroes. With one page mapped to the zero page the window keeps a page table, and what is
 * written comes page by page. If it fails, only memory is lost. */
static void window_keep_small(struct exchange *x, const struct window *w)
{
	if (w->huge && w->mapped_hi == 0 && bits_count(&w->merged) == WINDOW_PAGES)
		uffd_zeropage(x->uffd, w->addr, WINDOW_PAGE_BYTES);
}

static void window_map(struct exchange *x, struct window *w, const struct exchange_store *store,
		       const struct exchange_run *runs, size_t count)
{
	journal_step(x, STEP_MAP);
	for (size_t i = 0; i < count; i++) {
		const struct exchange_run *r = &runs[i];
		unsigned end = (unsigned)r->first + r->pages;

		BITS_FOR_STRETCHES(&w->equal, r->first, end, first, n) {
			if (r->frame == EXCHANGE_ZERO) { /* absent memory reads as zeroes: that is its place */
				bits_set(&x->journal->settled, first, n);
				bits_set(&w->merged, first, n);
				x->counters.zero_pages += n;
			} else {
				/* A failure leaves its pages unsettled: they go back. The next piece may fit. */
				window_map_piece(x, w, store, r->frame + first - r->first, first, n);
			}
		}
	}
	window_keep_small(x, w);
	/* R8: before the wake-up, for the advice on huge pages decides how the first fault maps a frame. For the
	 * leftovers between the pieces it changes nothing. */
	if (w->mapped_hi > 0)
		x->counters.attributes_lost +=
			ram_attrs_apply(&w->slot->attrs, window_at(w, w->mapped_lo),
					(w->mapped_hi - w->mapped_lo) * WINDOW_PAGE_BYTES);
}

/* ---- STEP_UNREGISTER, STEP_WAKE ---- */

/* UNREGISTER fails when the descriptor is gone or for want of memory. The registered holes of zero runs would
 * then block their readers for ever: fill them. */
static int window_stay_registered(struct exchange *x, struct window *w, int err)
{
	BITS_FOR_STRETCHES(&w->merged, w->lo, w->hi, first, n) {
		for (unsigned p = first; p < first + n; p++) /* ENOENT for those that are mapped */
			uffd_zeropage(x->uffd, window_at(w, p), WINDOW_PAGE_BYTES);
	}
	uffd_wake(x->uffd, window_at(w, w->lo), (w->hi - w->lo) * WINDOW_PAGE_BYTES);
	return x->stopped = err;
}

/* Every page is settled: nothing that is still in staging is needed, so a hole may read as zeroes from now on
 * (holes are left only where a zero page was verified, or where there was none before). */
static int window_release(struct exchange *x, struct window *w)
{
	uint64_t addr = window_at(w, w->lo), len = (w->hi - w->lo) * WINDOW_PAGE_BYTES, stall;
	int err;

	journal_step(x, STEP_UNREGISTER);
	err = uffd_unregister(x->uffd, addr, len);
	if (err < 0)
		return window_stay_registered(x, w, err);
	journal_step(x, STEP_WAKE);
	/* UNREGISTER wakes those who wait in anonymous mappings; this one is for the pieces mapped over. */
	err = uffd_wake(x->uffd, addr, len);
	if (err < 0)
		return x->stopped = err; /* the journal says so: another holder of the descriptor can wake */
	stall = clock_mono_ns() - w->frozen_ns;
	x->counters.stall_ns += stall;
	if (stall > x->counters.stall_max_ns)
		x->counters.stall_max_ns = stall;
	/* R9: the new mappings too, or PAGEMAP_SCAN would silently skip them. All pages read as written now. */
	if (w->slot->wp && uffd_register(x->uffd, addr, len, UFFDIO_REGISTER_MODE_WP) < 0)
		x->counters.attributes_lost++;
	return 0;
}

/* ---- STEP_DROP ---- */

static int window_drop(struct exchange *x, struct window *w)
{
	int err;

	journal_step(x, STEP_DROP);
	err = staging_clear(w->staging, x->pagemap_fd, w->lo, w->hi - w->lo);
	/* A page table in the huge staging would make the next whole move split its page. */
	if (err == 0 && w->huge && !w->still_huge)
		err = staging_rebuild(w->staging);
	/* R1: with anything left in staging, a later look at its page tables would lie. mlockall does this. */
	if (err < 0)
		return x->stopped = err;
	journal_step(x, STEP_IDLE);
	return 0;
}

/* ---- the whole ---- */

static int window_exchange(struct exchange *x, struct window *w, const struct exchange_store *store,
			   struct exchange_run *runs, size_t count)
{
	unsigned worth, stuck;
	int err = window_register(x, w);

	if (err < 0) {
		runs_result_all(runs, count, EXCHANGE_FAILED, err);
		return x->stopped;
	}
	x->counters.windows++;
	x->counters.windows_huge += w->huge;
	window_move(x, w);
	worth = window_compare(x, w, store, runs, count);
	if (window_pays(w, worth))
		window_map(x, w, store, runs, count);
	stuck = window_put_back(x, w);
	for (size_t i = 0; i < count; i++)
		run_result(x, w, &runs[i]);
	if (stuck > 0) {
		/* R2: blocked threads, but no wrong byte; the journal stays for whoever can do better. */
		x->journal->stuck = stuck;
		return x->stopped = -EIO;
	}
	err = window_release(x, w);
	return err < 0 ? err : window_drop(x, w);
}

static int merge_locked(struct exchange *x, struct window *w, const struct exchange_store *store,
			struct exchange_run *runs, size_t count)
{
	int err;

	if (x->stopped < 0)
		return x->stopped;
	err = window_check(x, w, store, runs, count);
	if (err < 0)
		return err;
	/* Two for each run, two for the registration; half of the limit is the VMM's own. */
	if (!budget_allows(x, 2 * count + 2, x->map_limit / 2))
		return -ENOSPC;
	err = window_plan(x, w, runs, count);
	if (err < 0)
		return err;
	if (bits_count(&w->wanted) == 0) {
		runs_result_all(runs, count, EXCHANGE_ABSENT, 0);
		return 0;
	}
	if (!window_pays(w, bits_count(&w->wanted))) {
		runs_result_all(runs, count, EXCHANGE_SKIPPED, 0);
		return 0;
	}
	x->step_started_ns = clock_mono_ns();
	return window_exchange(x, w, store, runs, count);
}

int exchange_merge(struct exchange *x, uint64_t window, const struct exchange_store *store,
		   struct exchange_run *runs, size_t count, const struct exchange_options *opt)
{
	struct window w = { .addr = window, .opt = opt };
	int err;

	if (count == 0)
		return -EINVAL;
	err = exchange_lock(x); /* R5, R6: no signal, no cancellation, no interposed call from here on */
	if (err < 0)
		return err;
	err = merge_locked(x, &w, store, runs, count);
	exchange_unlock(x);
	return err;
}
