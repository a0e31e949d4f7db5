/* R2: the way back, which must not fail. A page that cannot be moved back is copied, one that cannot be copied is
 * brought back with its mapping; and as long as none of it worked it stays in staging, its readers wait, and
 * nothing is unregistered, woken or dropped. */
#include <errno.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "agent/exchange_internal.h"
#include "agent/uffd.h"
#include "core/kernel_abi.h"

#define BACK_RETRIES_MAX 64

static uint64_t staging_at(const struct window *w, unsigned page)
{
	return w->staging->base + page * WINDOW_PAGE_BYTES;
}

/* How many pages from `first` on are back, by the page tables (R1): gone from staging, and something is in the window. */
static unsigned back_prefix(struct exchange *x, const struct window *w, unsigned first, unsigned n)
{
	struct page_states in, out;
	unsigned p;

	if (pagemap_read(x->pagemap_fd, w->addr, first, n, &in) < 0 ||
	    pagemap_read(x->pagemap_fd, w->staging->base, first, n, &out) < 0)
		return 0;
	for (p = first; p < first + n && in.flags[p] != 0 && out.flags[p] == 0; p++)
		;
	return p - first;
}

/* Each way back returns how many pages from `first` on it has settled, and sets *ret_err if not all. */
typedef unsigned (*back_fn)(struct exchange *x, struct window *w, unsigned first, unsigned n, int *ret_err);

static unsigned back_by_move(struct exchange *x, struct window *w, unsigned first, unsigned n, int *ret_err)
{
	unsigned done = n;

	*ret_err = uffd_move(x->uffd, window_at(w, first), staging_at(w, first), n * WINDOW_PAGE_BYTES);
	if (*ret_err < 0) {
		x->counters.move_errors++;
		/* Blind: whether the page ever was in staging is not known. ENOENT says that it was not. */
		done = w->blind ? (n == 1 && *ret_err == -ENOENT) : back_prefix(x, w, first, n);
	}
	x->counters.moved_back += done;
	return done;
}

/* Reads staging, which the page tables say is there. Works where a move does not: over the write-protect markers
 * that a PAGEMAP_SCAN left (EEXIST), for pages shared by a fork, merged by KSM or pinned meanwhile (EBUSY), after an
 * mprotect (EINVAL). Those who hold a pin on the staging page lose nothing: they got it through staging's
 * address, so not for the guest. */
static unsigned back_by_copy(struct exchange *x, struct window *w, unsigned first, unsigned n, int *ret_err)
{
	struct page_states in;
	uint64_t bytes;

	*ret_err = uffd_copy(x->uffd, window_at(w, first), staging_at(w, first), n * WINDOW_PAGE_BYTES, &bytes);
	if (*ret_err == -EEXIST && bytes == 0 && pagemap_read(x->pagemap_fd, w->addr, first, 1, &in) == 0 &&
	    in.flags[first] != 0)
		return 1; /* somebody else holding the descriptor was quicker, with the same bytes */
	x->counters.copied_back += bytes / WINDOW_PAGE_BYTES;
	return (unsigned)(bytes / WINDOW_PAGE_BYTES);
}

/* The last resort needs no descriptor and no memory for pages, but mappings: close to the limit the kernel unmaps
 * the destination and then fails, so it is not tried there (R4). DONTUNMAP keeps staging mapped. The pages
 * come with staging's attributes, which are set right, and with an offset that never joins its neighbours again. */
static unsigned back_by_remap(struct exchange *x, struct window *w, unsigned first, unsigned n, int *ret_err)
{
	uint64_t to = window_at(w, first), len = n * WINDOW_PAGE_BYTES;
	void *at;

	*ret_err = hook_before(OP_MREMAP, to, len);
	if (*ret_err < 0)
		return 0;
	*ret_err = -ENOSPC;
	if (!budget_allows(x, 8, x->map_limit - x->map_limit / 4))
		return 0;
	at = mremap((void *)(uintptr_t)staging_at(w, first), len, len,
		    MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, (void *)(uintptr_t)to);
	if (at == MAP_FAILED) {
		*ret_err = -errno;
		return 0;
	}
	*ret_err = 0;
	x->maps_since += 4;
	if ((!w->slot->attrs.dontfork && madvise(at, len, MADV_DOFORK) < 0) ||
	    (w->slot->attrs.hugepage && madvise(at, len, MADV_HUGEPAGE) < 0))
		x->counters.attributes_lost++;
	x->counters.attributes_lost += ram_attrs_apply(&w->slot->attrs, to, len);
	w->still_huge = false; /* staging is to be made afresh */
	x->counters.remapped_back += n;
	return n;
}

/* Takes the ways in turn: a stretch by the first, in halves when it fails, and single pages by the others. */
static unsigned back_stretch(struct exchange *x, struct window *w, const back_fn *ways, size_t way_count,
			     unsigned first, unsigned n)
{
	unsigned p = first, end = first + n, most = w->blind ? 1 : n, stuck = 0, retries = 0;
	size_t way = 0;

	while (p < end) {
		unsigned len = end - p < most ? end - p : most;
		int err;
		unsigned done = ways[way](x, w, p, len, &err);

		if (done > 0) {
			bits_set(&x->journal->settled, p, done);
			p += done;
			most = w->blind ? 1 : n;
			retries = 0;
			way = 0;
		} else if ((err == -EAGAIN || err == -EINTR) && retries < BACK_RETRIES_MAX) {
			retries++;
		} else if (len > 1) {
			most = len / 2;
		} else if (way + 1 < way_count && !w->blind) {
			way++; /* blind: only a move can tell whether the page is there at all */
			retries = 0;
		} else {
			stuck++;
			p++;
			way = 0;
			retries = 0;
		}
	}
	return stuck;
}

unsigned window_put_back(struct exchange *x, struct window *w)
{
	/* Small pages move back for a tenth of what a copy costs. A huge page would be split by that: copies. */
	static const back_fn ways_small[] = { back_by_move, back_by_copy, back_by_remap };
	static const back_fn ways_huge[] = { back_by_copy, back_by_move, back_by_remap };
	bool copy_first = w->still_huge && !w->blind;
	struct page_bits left = w->moved;
	unsigned stuck = 0;
	int err;

	journal_step(x, STEP_BACK);
	bits_minus(&left, &x->journal->settled);
	if (w->still_huge && !w->blind && bits_count(&left) == WINDOW_PAGES) {
		/* Nothing merged: the huge page goes back as it came, whole. */
		unsigned done = back_by_move(x, w, 0, WINDOW_PAGES, &err);

		bits_set(&x->journal->settled, 0, done);
		bits_clear(&left, 0, done);
		x->counters.huge_kept += done == WINDOW_PAGES;
	}
	BITS_FOR_STRETCHES(&left, w->lo, w->hi, first, n)
		stuck += back_stretch(x, w, copy_first ? ways_huge : ways_small, 3, first, n);
	return stuck;
}

int gap_fill(struct exchange *x, const struct slot *s, int uffd, uint64_t addr, uint64_t len)
{
	unsigned char core[WINDOW_PAGES];
	void *at;

	if (syscall(SYS_mincore, addr, len, core) == 0 || errno != ENOMEM)
		return 0;
	at = mmap((void *)(uintptr_t)addr, len, PROT_READ | PROT_WRITE,
		  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | (s->attrs.noreserve ? MAP_NORESERVE : 0), -1, 0);
	if (at == MAP_FAILED)
		return -errno;
	x->counters.attributes_lost += ram_attrs_apply(&s->attrs, addr, len);
	return uffd_register(uffd, addr, len, UFFDIO_REGISTER_MODE_MISSING);
}
