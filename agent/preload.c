/* libmemvirt-agent.so: the agent for a VMM that knows nothing of it.
 *
 * Guest RAM is what the VMM gives MADV_DONTFORK or MADV_MERGEABLE, in pieces of 2 MiB and more: QEMU does so with each
 * block of its RAM, and nearly no other program ever does. The first such call starts the agent. Until then, and in
 * processes that never make one (helpers that inherit LD_PRELOAD, shells on the way to QEMU), nothing happens at
 * all: no thread, no descriptor, no word. (MADV_HUGEPAGE alone is no sign of guest RAM: allocators use it for heaps,
 * from inside malloc, where no thread could be started and no lock be taken.)
 *
 * Each function first asks whether the call touches guest RAM, without a lock, and if not makes the real call and
 * nothing else. Otherwise (R6) it holds the guard and the exchange's lock round the real call: then no window is open
 * anywhere, none of the pages is in staging, and what the call changes is noted before the next window.
 *
 * Not seen: calls by syscall(2), and io_uring's madvise. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "agent/client_internal.h"
#include "core/clock.h"
#include "core/kernel_abi.h"

#undef mmap
#undef munmap
#undef mremap
#undef madvise
#undef mprotect
#undef ioctl

#ifndef MADV_DONTNEED_LOCKED /* Linux 5.18 */
#define MADV_DONTNEED_LOCKED 24
#endif
#ifndef MADV_GUARD_INSTALL /* Linux 6.13 */
#define MADV_GUARD_INSTALL 102
#endif

#define SOCKET_DEFAULT "/run/memvirt/agent"
#define RAM_LEAST_BYTES WINDOW_BYTES
/* The VMM goes on with advice and NUMA policy for the block it has just named; the exchange reads them once. */
#define SETTLE_NS NSEC_PER_SEC

/* What the kernel makes of a length. */
static uint64_t pages_up(uint64_t len)
{
	return len > UINT64_MAX - (WINDOW_PAGE_BYTES - 1) ? UINT64_MAX & ~(WINDOW_PAGE_BYTES - 1) :
							    (len + WINDOW_PAGE_BYTES - 1) & ~(WINDOW_PAGE_BYTES - 1);
}

static uint64_t number(const void *addr)
{
	return (uint64_t)(uintptr_t)addr;
}

/* ---- what is guest RAM ---- */

/* With the guard held. NULL: there is none, and none can be. A forked child has its parent's, for discards only, unless
 * it has none of its parent's RAM: then it may be a VMM, too. */
static struct memvirt_agent *agent_here(struct memvirt_agent *a)
{
	static bool failed;
	const char *path = secure_getenv("MEMVIRT_AGENT_SOCKET");
	int err;

	if (a && !a->child)
		return a;
	if (failed)
		return NULL;
	err = client_start(path && *path ? path : SOCKET_DEFAULT, &a);
	if (err == 0)
		return a;
	if (err != -EBUSY)
		dprintf(STDERR_FILENO, "memvirt-agent: memory is not merged by remap: no thread can be started\n");
	failed = true;
	return NULL;
}

/* Not from inside an allocator, see above: this may allocate. */
static void ram_learn(const void *addr, size_t len)
{
	struct memvirt_agent *a;
	int saved = errno;
	const char *why;
	struct ram *r;

	client_guard_lock();
	a = agent_here(client_agent());
	if (a && client_ram_add(a, number(addr), pages_up(len), clock_mono_ns() + SETTLE_NS, &r, &why) == 0)
		client_wake(a);
	client_guard_unlock();
	errno = saved;
}

/* ---- advice ---- */

/* With both locks held. 0 or -errno. */
static int advise_locked(struct memvirt_agent *a, void *addr, size_t len, int advice)
{
	uint64_t at = number(addr), bytes = pages_up(len);

	if (advice == MADV_DONTNEED || advice == MADV_DONTNEED_LOCKED || advice == MADV_FREE)
		return client_ram_discard(a, at, len, advice);
	if (real_madvise(addr, len, advice) < 0) {
		/* Anonymous memory has no file to take pages from, and the VMM does not know of ours. */
		return advice == MADV_REMOVE && errno == EACCES ? -EINVAL : -errno;
	}
	if (!a)
		return 0;
	if (advice == MADV_WIPEONFORK || advice == MADV_GUARD_INSTALL)
		client_ram_broken(a, at, bytes, "memory is wiped on fork, or has guard pages");
	else
		client_ram_advised(a, at, bytes, advice);
	return 0;
}

/* Others change neither what the memory holds nor how it is mapped, may take long (MADV_POPULATE_WRITE of all RAM, by
 * many threads at once), and wait for a window by themselves, page by page. */
static bool advice_needs_lock(int advice)
{
	switch (advice) {
	case MADV_NORMAL:
	case MADV_RANDOM:
	case MADV_SEQUENTIAL:
	case MADV_WILLNEED:
	case MADV_COLD:
	case MADV_PAGEOUT:
	case 22: /* MADV_POPULATE_READ, Linux 5.14 */
	case 23: /* MADV_POPULATE_WRITE */
	case 25: /* MADV_COLLAPSE, Linux 6.1 */
		return false;
	default:
		return true;
	}
}

int madvise(void *addr, size_t len, int advice)
{
	struct memvirt_agent *a;
	int err;

	if (!client_ram_touched(number(addr), len)) {
		int rc = real_madvise(addr, len, advice);

		if (rc == 0 && len >= RAM_LEAST_BYTES && (advice == MADV_DONTFORK || advice == MADV_MERGEABLE))
			ram_learn(addr, len);
		return rc;
	}
	if (!advice_needs_lock(advice))
		return real_madvise(addr, len, advice);
	a = client_ram_lock();
	err = advise_locked(a, addr, len, advice);
	client_ram_unlock(a);
	if (err == 0)
		return 0;
	errno = -err;
	return -1;
}

int posix_madvise(void *addr, size_t len, int advice)
{
	int saved = errno, err;

	if (advice == POSIX_MADV_DONTNEED) /* the C library does nothing then: POSIX does not let it lose data */
		return 0;
	err = real_madvise(addr, len, advice) < 0 ? errno : 0;
	errno = saved;
	return err;
}

/* ---- mappings ---- */

/* Without MAP_FIXED the kernel takes room that is free, so never RAM. */
void *mmap(void *addr, size_t len, int prot, int flags, int fd, off_t offset)
{
	struct memvirt_agent *a;
	void *at;
	int err;

	if (!(flags & MAP_FIXED) || !client_ram_touched(number(addr), len))
		return real_mmap(addr, len, prot, flags, fd, offset);
	a = client_ram_lock();
	at = real_mmap(addr, len, prot, flags, fd, offset);
	err = errno;
	if (at != MAP_FAILED && a)
		client_ram_replaced(a, number(addr), pages_up(len), "a part of the memory was mapped over");
	client_ram_unlock(a);
	errno = err;
	return at;
}

void *mmap64(void *addr, size_t len, int prot, int flags, int fd, off_t offset) __attribute__((alias("mmap")));

int munmap(void *addr, size_t len)
{
	struct memvirt_agent *a;
	int rc, err;

	if (!client_ram_touched(number(addr), len))
		return real_munmap(addr, len);
	a = client_ram_lock();
	rc = real_munmap(addr, len);
	err = errno;
	if (rc == 0 && a)
		client_ram_replaced(a, number(addr), pages_up(len), "a part of the memory was unmapped");
	client_ram_unlock(a);
	errno = err;
	return rc;
}

/* With both locks held. Merged memory cannot be made anonymous with its bytes while guests write to it, and as a mapping
 * of a file it cannot be moved unnoticed: the call fails as for want of memory, and everything is as before. (QEMU does
 * not move RAM.) */
static void *remap_locked(struct memvirt_agent *a, void *addr, size_t len, size_t new_len, int flags, void *new_addr)
{
	static const char why[] = "a part of the memory was moved";
	uint64_t from = number(addr), old = pages_up(len), new = pages_up(new_len);
	void *at;

	if (a && a->x && exchange_merged_pages(a->x, addr, old) > 0) {
		errno = ENOMEM;
		return MAP_FAILED;
	}
	at = real_mremap(addr, len, new_len, flags, new_addr);
	if (at == MAP_FAILED || !a)
		return at;
	if (number(at) != from)
		client_ram_replaced(a, from, old, why);
	else if (new < old)
		client_ram_replaced(a, from + new, old - new, why);
	if (flags & MREMAP_FIXED)
		client_ram_replaced(a, number(at), new, why);
	return at;
}

void *mremap(void *addr, size_t len, size_t new_len, int flags, ...)
{
	struct memvirt_agent *a;
	void *new_addr, *at;
	va_list more;
	int err;

	va_start(more, flags);
	new_addr = va_arg(more, void *); /* read even when it is not there, as the C library does */
	va_end(more);
	if (!client_ram_touched(number(addr), len) &&
	    !((flags & MREMAP_FIXED) && client_ram_touched(number(new_addr), new_len)))
		return real_mremap(addr, len, new_len, flags, new_addr);
	a = client_ram_lock();
	at = remap_locked(a, addr, len, new_len, flags, new_addr);
	err = errno;
	client_ram_unlock(a);
	errno = err;
	return at;
}

/* ---- protection ---- */

/* A private mapping keeps its bytes under any protection, merged or not; but pages that cannot be written do not move
 * (UFFDIO_MOVE wants equal protection), and a new mapping would be writable. */
static int protect(void *addr, size_t len, int prot, int pkey)
{
	struct memvirt_agent *a = client_ram_lock();
	/* Not by the newer call in any case: a kernel without keys does not have it, and a sandbox may not allow it. */
	int rc = pkey < 0 ? real_mprotect(addr, len, prot) : (int)syscall(SYS_pkey_mprotect, addr, len, prot, pkey);
	int err = errno;

	if (rc == 0 && a)
		client_ram_protected(a, number(addr), pages_up(len), prot);
	if (rc == 0 && a && pkey > 0)
		client_ram_broken(a, number(addr), pages_up(len), "memory has a protection key");
	client_ram_unlock(a);
	errno = err;
	return rc;
}

int mprotect(void *addr, size_t len, int prot)
{
	if (!client_ram_touched(number(addr), len))
		return real_mprotect(addr, len, prot);
	return protect(addr, len, prot, -1);
}

int pkey_mprotect(void *addr, size_t len, int prot, int pkey)
{
	if (pkey < 0) /* as in the C library */
		return mprotect(addr, len, prot);
	if (!client_ram_touched(number(addr), len))
		return (int)syscall(SYS_pkey_mprotect, addr, len, prot, pkey);
	return protect(addr, len, prot, pkey);
}

/* ---- locked memory ---- */

/* Locked is also what could not be populated: the kernel marks first and fails afterwards. */
static void range_locked(struct memvirt_agent *a, const void *addr, size_t len, bool locked, int rc, int err)
{
	uint64_t start = number(addr) & ~(WINDOW_PAGE_BYTES - 1), end = pages_up(number(addr) + len);

	if (a && (rc == 0 || (locked && err != EPERM && err != EINVAL)))
		client_ram_mlocked(a, start, end - start, locked);
}

static int range_lock(const void *addr, size_t len, long number_of_call, unsigned flags, bool locked)
{
	struct memvirt_agent *a;
	int rc, err;

	if (!client_ram_touched(number(addr), len))
		return (int)syscall(number_of_call, addr, len, flags);
	a = client_ram_lock();
	rc = (int)syscall(number_of_call, addr, len, flags);
	err = errno;
	range_locked(a, addr, len, locked, rc, err);
	client_ram_unlock(a);
	errno = err;
	return rc;
}

int mlock(const void *addr, size_t len)
{
	return range_lock(addr, len, SYS_mlock, 0, true);
}

int mlock2(const void *addr, size_t len, unsigned flags)
{
	return range_lock(addr, len, SYS_mlock2, flags, true);
}

int munlock(const void *addr, size_t len)
{
	return range_lock(addr, len, SYS_munlock, 0, false);
}

/* Also when there is no agent yet, and in a VMM that locks its memory before it has any. */
int mlockall(int flags)
{
	struct memvirt_agent *a = client_ram_lock();
	int rc = (int)syscall(SYS_mlockall, flags), err = errno;

	if (a && (flags & MCL_CURRENT))
		range_locked(a, NULL, SIZE_MAX & ~(WINDOW_PAGE_BYTES - 1), true, rc, err);
	if (rc == 0)
		client_ram_mlocked_future(a, flags & MCL_FUTURE);
	client_ram_unlock(a);
	errno = err;
	return rc;
}

int munlockall(void)
{
	struct memvirt_agent *a = client_ram_lock();
	int rc = (int)syscall(SYS_munlockall), err = errno;

	if (rc == 0)
		client_ram_mlocked_future(a, false);
	range_locked(a, NULL, SIZE_MAX & ~(WINDOW_PAGE_BYTES - 1), false, rc, err);
	client_ram_unlock(a);
	errno = err;
	return rc;
}

/* ---- userfaultfd of the VMM ---- */

/* Memory belongs to one userfaultfd at most. The VMM's (incoming postcopy, background snapshot) goes before ours: merging
 * rests until it is gone. What is merged stays so; a private mapping of a file in memory can be registered as anonymous
 * memory can, and its pages can be protected. Zero pages that were merged are absent, and missing for it: a VMM that gets
 * its memory by postcopy must not be merged before, which its daemon sees to (an incoming migration is a reason against
 * each engine). Merged memory cannot be discarded meanwhile: EBUSY. */
static int foreign_register(int fd, unsigned long request, const struct uffdio_register *arg)
{
	struct memvirt_agent *a = client_ram_lock();
	int rc, err;

	if (a)
		client_ram_foreign(a, arg->range.start, arg->range.len);
	rc = real_ioctl(fd, request, (uintptr_t)arg);
	err = errno;
	client_ram_unlock(a);
	errno = err;
	return rc;
}

int ioctl(int fd, unsigned long request, ...)
{
	const struct uffdio_register *registers;
	uintptr_t arg;
	va_list more;

	va_start(more, request);
	arg = va_arg(more, uintptr_t); /* read even when it is not there, as the C library does */
	va_end(more);
	registers = (unsigned)request == UFFDIO_REGISTER ? /* of which the kernel takes 32 bits */ (const struct uffdio_register *)arg : NULL;
	if (registers && client_ram_touched(registers->range.start, registers->range.len))
		return foreign_register(fd, request, registers);
	return real_ioctl(fd, request, arg);
}
