/* R5: the window outlives its executor. The journal and the page tables say everything that is needed.
 *
 * The executor is dead, or gave up with pages stuck: nobody else moves pages now. A page that is in staging and
 * not settled is copied to its place. What the journal may be behind by is one call:
 * - a move out or back: the page is in one place or in the other, and the page tables say in which;
 * - a copy back:  EEXIST, and the window has the page;
 * - a mapping over the run: ENOENT, for the mapping at that place is not registered any more. It holds equal bytes.
 * - a zero page that was verified but not noted is copied back: right as well.
 * Folding (exchange_fold.c) is finished in the same way, by the freezer. Before STEP_FOLD_PLACE nothing has been taken
 * away. From then on staging has every byte of the stretch, and it does not matter whether its mapping was replaced:
 * - it was: a page that is not there yet is copied to its place;
 * - it was not: the page is there (EEXIST), or the copy puts in what the frame would have shown.
 * Only when nothing is left is the window unregistered and woken. Run twice, it does nothing the second time. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#include "agent/exchange_internal.h"
#include "agent/uffd.h"
#include "core/cleanup.h"
#include "core/kernel_abi.h"

#define REPAIR_RETRIES_MAX 64

/* Whose memory it is about. */
struct owner {
	int pagemap_fd;
	int mem_fd; /* -1: this process's */
};

/* By /proc/PID/mem, which fails where a fault would have to wait: what a hostile VMM calls its staging may be memory that
 * it has registered with a userfaultfd, and never fills. */
static int staging_read(const struct owner *o, uint64_t addr, uint8_t *page)
{
	struct iovec here = { .iov_base = page, .iov_len = WINDOW_PAGE_BYTES };
	struct iovec there = { .iov_base = (void *)(uintptr_t)addr, .iov_len = WINDOW_PAGE_BYTES };
	ssize_t n = o->mem_fd < 0 ? process_vm_readv(getpid(), &here, 1, &there, 1, 0) :
				    pread(o->mem_fd, page, WINDOW_PAGE_BYTES, (off_t)addr);

	if (n < 0)
		return -errno;
	return n == (ssize_t)WINDOW_PAGE_BYTES ? 0 : -EIO;
}

static int page_restore(const struct exchange_journal *j, const struct owner *o, int uffd, unsigned p)
{
	uint64_t to = j->window + p * WINDOW_PAGE_BYTES, done = 0;
	_Alignas(WINDOW_PAGE_BYTES) uint8_t page[WINDOW_PAGE_BYTES];
	struct page_states st;
	int err = staging_read(o, j->staging + p * WINDOW_PAGE_BYTES, page);

	if (err < 0)
		return err;
	for (unsigned tries = 0; tries < REPAIR_RETRIES_MAX; tries++) {
		err = uffd_copy(uffd, to, (uint64_t)(uintptr_t)page, WINDOW_PAGE_BYTES, &done);
		if (err != -EAGAIN && err != -EINTR)
			break;
	}
	if (err == -ENOENT)
		return 0;
	if (err == -EEXIST) {
		err = pagemap_read(o->pagemap_fd, j->window, p, 1, &st);
		return err < 0 ? err : st.flags[p] != 0 ? 0 : -EEXIST;
	}
	return err;
}

static int mem_open(pid_t pid)
{
	char path[40];
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/mem", (int)pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

static int window_restore(struct exchange_journal *j, pid_t pid, int uffd)
{
	auto_close int pagemap_fd = pagemap_open(pid);
	auto_close int mem_fd = pid == 0 ? -1 : mem_open(pid);
	const struct owner o = { pagemap_fd, mem_fd };
	struct page_states st;
	int err = pagemap_fd < 0 ? pagemap_fd : pid != 0 && mem_fd < 0 ? mem_fd : 0;

	if (err == 0)
		err = pagemap_read(pagemap_fd, j->staging, j->first, j->pages, &st);
	for (unsigned p = j->first; p < j->first + j->pages && err == 0; p++) {
		if (bits_test(&j->settled, p))
			continue;
		if (st.flags[p] == 0 && j->freezer)
			return -EIO; /* lost: blocked is better than zeroes */
		if (st.flags[p] == 0)
			continue;
		err = page_restore(j, &o, uffd, p);
		if (err == 0)
			bits_set(&j->settled, p, 1);
	}
	return err;
}

/* Steps in which something may be registered that must not stay so. */
static bool is_registered(uint32_t step)
{
	return step < STEP_WAKE || exchange_step_is_open(step);
}

/* Before the first of these, nothing was taken from its place. */
static bool is_moved(uint32_t step)
{
	return exchange_step_is_open(step) && step != STEP_FOLD_FREEZE;
}

/* The journal is the VMM's: do not index with what a hostile one may hold. */
static bool journal_fits(const struct exchange_journal *j, uint32_t step)
{
	return j->version == EXCHANGE_JOURNAL_VERSION && step < EXCHANGE_STEPS && j->first <= WINDOW_PAGES &&
	       j->pages <= WINDOW_PAGES - j->first && j->pages > 0 && (step < STEP_FOLD_FREEZE || j->freezer != 0);
}

int exchange_repair(struct exchange_journal *j, pid_t pid, int uffd, int freezer)
{
	uint32_t step = __atomic_load_n(&j->step, __ATOMIC_ACQUIRE);
	int err = 0, fd = j->freezer ? freezer : uffd;
	uint64_t addr, len;

	if (step == STEP_IDLE || step == STEP_REPAIRED)
		return 0;
	if (!journal_fits(j, step))
		return -EBADMSG;
	addr = j->freezer ? j->held : j->window + j->first * WINDOW_PAGE_BYTES;
	len = j->freezer ? j->held_bytes : j->pages * WINDOW_PAGE_BYTES;
	if (is_moved(step))
		err = window_restore(j, pid, fd);
	if (err == 0 && is_registered(step))
		err = uffd_unregister(fd, addr, len);
	if (err == 0)
		err = uffd_wake(fd, addr, len);
	if (err < 0)
		return err;
	if (j->wp) /* refused: the daemon's scan sees that it is skipped, and takes it for dirty (R9) */
		(void)uffd_register(uffd, addr, len, UFFDIO_REGISTER_MODE_WP);
	if (j->freezer && j->spare) /* what mlockall() would wait at for ever; nothing, if it was moved to its place */
		(void)uffd_unregister(freezer, j->spare, j->pages * WINDOW_PAGE_BYTES);
	j->stuck = 0;
	__atomic_store_n(&j->step, STEP_REPAIRED, __ATOMIC_RELEASE);
	return 0;
}
