#include "agent/staging.h"

#include <errno.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "agent/pagemap.h"
#include "agent/uffd.h"
#include "core/kernel_abi.h"

/* R3. Each attribute keeps one party away from pages that are here for some microseconds:
 * DONTFORK     a fork by a thread that goes round pthread_atfork would share the pages, and they could not move back;
 * UNMERGEABLE  process-wide KSM (PR_SET_MEMORY_MERGE) would make them KSM pages, with the same effect;
 * NOHUGEPAGE   khugepaged must not collapse around them, and a huge page that comes in whole needs no advice;
 * WP, not MISSING: UFFDIO_MOVE wants a registered destination, and any registration will do. With MISSING whoever
 *              touches a hole (mlockall populates all memory) would wait for an answer that nobody gives. */
static int staging_prepare(struct staging *s)
{
	if (syscall(SYS_madvise, s->base, WINDOW_BYTES, MADV_DONTFORK) < 0 ||
	    syscall(SYS_madvise, s->base, WINDOW_BYTES, MADV_NOHUGEPAGE) < 0)
		return -errno;
	/* EINVAL: a kernel without KSM, which cannot merge either. */
	if (syscall(SYS_madvise, s->base, WINDOW_BYTES, MADV_UNMERGEABLE) < 0 && errno != EINVAL)
		return -errno;
	return uffd_register(s->uffd, s->base, WINDOW_BYTES, UFFDIO_REGISTER_MODE_WP);
}

int staging_rebuild(struct staging *s)
{
	void *at = mmap((void *)(uintptr_t)s->base, WINDOW_BYTES, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);

	return at == MAP_FAILED ? -errno : staging_prepare(s);
}

int staging_open(struct staging *s, int uffd)
{
	uint64_t reserve_len = 3 * WINDOW_BYTES;
	void *reserve = mmap(NULL, reserve_len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	int err;

	if (reserve == MAP_FAILED)
		return -errno;
	s->uffd = uffd;
	s->reserve = reserve;
	s->reserve_len = reserve_len;
	/* At least a page of the reserve stays on either side. */
	s->base = ((uint64_t)(uintptr_t)reserve + WINDOW_BYTES) & ~(WINDOW_BYTES - 1);
	err = staging_rebuild(s);
	if (err < 0)
		staging_close(s);
	return err;
}

void staging_close(struct staging *s)
{
	if (s->base != 0)
		munmap(s->reserve, s->reserve_len);
	s->base = 0;
}

int staging_drop(struct staging *s, unsigned first, unsigned n)
{
	uint64_t at = s->base + first * WINDOW_PAGE_BYTES;

	return syscall(SYS_madvise, at, n * WINDOW_PAGE_BYTES, MADV_DONTNEED) < 0 ? -errno : 0;
}

int staging_clear(struct staging *s, int pagemap_fd, unsigned first, unsigned n)
{
	struct page_states left;
	int err = staging_drop(s, first, n);

	if (err == 0)
		err = pagemap_read(pagemap_fd, s->base, first, n, &left);
	for (unsigned p = first; err == 0 && p < first + n; p++) {
		if (left.flags[p] != 0)
			err = -ENOTEMPTY;
	}
	return err;
}
