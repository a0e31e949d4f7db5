#include "agent/freezer.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "agent/hooks.h"
#include "agent/pagebits.h"
#include "agent/pagemap.h"
#include "agent/uffd.h"
#include "core/cleanup.h"
#include "core/kernel_abi.h"

#define PAGE WINDOW_PAGE_BYTES
#define STACK_BYTES (64u * 1024)
#define COPY_RETRIES_MAX 64

struct freezer {
	int fd, stop_fd, pagemap_fd;
	pthread_t reader;
	bool reads;
};

/* ---- the thread ---- */

/* The VMM may have closed it and have something of its own under its number, which must not be read from. */
static bool is_userfaultfd(int fd)
{
	static const char want[] = "anon_inode:[userfaultfd]";
	char path[32], link[sizeof(want)];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	return readlink(path, link, sizeof(link)) == sizeof(want) - 1 && memcmp(link, want, sizeof(want) - 1) == 0;
}

/* Faults are messages, too, and left unread they would keep poll() from sleeping. Nothing is done about either. */
static void *reader_main(void *arg)
{
	const struct freezer *f = arg;
	struct pollfd fds[] = { { .fd = f->stop_fd, .events = POLLIN }, { .fd = f->fd, .events = POLLIN } };
	struct uffd_msg message;

	prctl(PR_SET_NAME, "memvirt-freezer");
	while (fds[0].revents == 0) {
		if (poll(fds, ARRAY_SIZE(fds), -1) <= 0 || fds[1].revents == 0)
			continue;
		if (!is_userfaultfd(f->fd))
			fds[1].fd = -1; /* for good: who waits for a reader is helped by the daemon, which has a copy */
		else if (read(f->fd, &message, sizeof(message)) < 0 && errno != EAGAIN)
			poll(NULL, 0, 1000);
	}
	return NULL;
}

static int reader_start(struct freezer *f)
{
	sigset_t all, old;
	pthread_attr_t attr;
	int err = pthread_attr_init(&attr);

	if (err != 0)
		return -err;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	err = pthread_attr_setstacksize(&attr, STACK_BYTES);
	if (err == 0)
		err = pthread_create(&f->reader, &attr, reader_main, f);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	pthread_attr_destroy(&attr);
	f->reads = err == 0;
	return -err;
}

/* ---- life ---- */

int freezer_new(int fd, struct freezer **ret_freezer)
{
	struct freezer *f = malloc(sizeof(*f));
	int err;

	if (!f) {
		close(fd);
		return -ENOMEM;
	}
	*f = (struct freezer){ .fd = fd, .stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK),
			       .pagemap_fd = pagemap_open(0) };
	err = f->stop_fd < 0 ? -errno : f->pagemap_fd < 0 ? f->pagemap_fd : reader_start(f);
	if (err < 0) {
		freezer_free(f);
		return err;
	}
	*ret_freezer = f;
	return 0;
}

struct freezer *freezer_free(struct freezer *f)
{
	const uint64_t one = 1;

	if (!f)
		return NULL;
	if (f->reads && write(f->stop_fd, &one, sizeof(one)) == sizeof(one))
		pthread_join(f->reader, NULL);
	cleanup_close(&f->pagemap_fd);
	cleanup_close(&f->stop_fd);
	cleanup_close(&f->fd);
	free(f);
	return NULL;
}

struct freezer *freezer_forget(struct freezer *f)
{
	if (f)
		f->reads = false;
	return freezer_free(f);
}

int freezer_fd(const struct freezer *f)
{
	return f->fd;
}

/* ---- in the window ---- */

int freezer_hold(const struct freezer *f, uint64_t addr, uint64_t len)
{
	int err = uffd_register(f->fd, addr, len, UFFDIO_REGISTER_MODE_WP);

	/* EBUSY comes before anything is changed; the registration is somebody else's (postcopy). */
	if (err == -EBUSY)
		return err;
	if (err == 0)
		err = uffd_writeprotect(f->fd, addr, len, true);
	if (err < 0) {
		uffd_unregister(f->fd, addr, len);
		uffd_wake(f->fd, addr, len);
		return err;
	}
	/* Who writes through /proc/PID/mem holds the mmap lock for reading until he has; brk(0) takes it for writing. */
	syscall(SYS_brk, 0);
	return 0;
}

int freezer_copy(uint64_t to, uint64_t addr, uint64_t len)
{
	struct iovec here = { .iov_base = (void *)(uintptr_t)to, .iov_len = len };
	struct iovec there = { .iov_base = (void *)(uintptr_t)addr, .iov_len = len };
	ssize_t n = process_vm_readv(getpid(), &here, 1, &there, 1, 0);

	if (n < 0)
		return -errno;
	return (uint64_t)n == len ? 0 : -EFAULT;
}

/* Memory that is all absent. With mlockall(MCL_FUTURE) it comes filled, and the copy into it would fail. */
static int made_check(const struct freezer *f, uint64_t at, uint64_t len)
{
	struct page_states st;
	unsigned n = (unsigned)(len / PAGE);
	int err = pagemap_read(f->pagemap_fd, at, 0, n, &st);

	for (unsigned p = 0; p < n && err == 0; p++)
		if (st.flags[p] != 0)
			err = -EPERM;
	return err;
}

int freezer_make(const struct freezer *f, uint64_t len, const struct ram_attrs *attrs, uint64_t *ret_at,
		 unsigned *ret_attributes_lost)
{
	/* Alone between two pages that are nobody's: if it joined a neighbour it would have its anon_vma, and with it
	 * the offset of where it was made, so that it could never be one mapping with the RAM around it. */
	void *room = mmap(NULL, len + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	uint64_t at = (uint64_t)(uintptr_t)room + PAGE;
	int err;

	if (room == MAP_FAILED)
		return -errno;
	err = mmap((void *)(uintptr_t)at, len, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | (attrs->noreserve ? MAP_NORESERVE : 0), -1, 0) ==
			      MAP_FAILED ? -errno : 0;
	munmap(room, PAGE);
	munmap((char *)room + PAGE + len, PAGE);
	if (err == 0) {
		*ret_attributes_lost += ram_attrs_apply(attrs, at, len);
		err = uffd_register(f->fd, at, len, UFFDIO_REGISTER_MODE_MISSING);
	}
	if (err == 0)
		err = made_check(f, at, len);
	if (err < 0) {
		munmap((void *)(uintptr_t)at, len);
		return err;
	}
	*ret_at = at;
	return 0;
}

int freezer_place(const struct freezer *f, uint64_t made, uint64_t len, uint64_t addr)
{
	int rc = hook_before(OP_MREMAP, addr, len);

	(void)f;
	if (rc != 0)
		return rc;
	rc = mremap((void *)(uintptr_t)made, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, (void *)(uintptr_t)addr) ==
			     MAP_FAILED ? -errno : 0;
	return hook_after(OP_MREMAP, addr, len, rc);
}

/* ---- the probe ---- */

static int probe_copy(const struct freezer *f, uint64_t page, const void *from)
{
	uint64_t done;
	int err = -EAGAIN;

	for (unsigned i = 0; i < COPY_RETRIES_MAX && err == -EAGAIN; i++)
		err = uffd_copy(f->fd, page, (uint64_t)(uintptr_t)from, PAGE, &done);
	return err;
}

/* As exchange_fold.c does it, with one page that was written to. */
static int probe_fold(struct freezer *f, uint8_t *page, const char **ret_why)
{
	const struct ram_attrs plain = { .noreserve = true };
	uint64_t at = (uint64_t)(uintptr_t)page, made;
	_Alignas(PAGE) uint8_t copy[PAGE];
	unsigned lost = 0;
	int err;

	*ret_why = "writes to a mapped memory file cannot be held (Linux 5.19 is needed)";
	memset(page, 0x5a, PAGE);
	err = freezer_hold(f, at, PAGE);
	if (err < 0)
		return err;
	*ret_why = "memory of this process cannot be read by process_vm_readv()";
	err = freezer_copy((uint64_t)(uintptr_t)copy, at, PAGE);
	if (err < 0)
		return err;
	*ret_why = "a mapping that is held cannot be moved";
	err = freezer_make(f, PAGE, &plain, &made, &lost);
	if (err < 0)
		return err;
	err = freezer_place(f, made, PAGE, at);
	if (err == 0)
		err = probe_copy(f, at, copy);
	if (err == 0)
		err = uffd_unregister(f->fd, at, PAGE);
	if (err == 0 && memcmp(page, copy, PAGE) != 0)
		err = -EIO;
	return err;
}

int freezer_probe(struct freezer *f, const char **ret_why)
{
	auto_close int file = memfd_create("memvirt-probe", MFD_CLOEXEC);
	void *page;
	int err;

	*ret_why = "no memory for the probe";
	if (file < 0 || ftruncate(file, (off_t)PAGE) < 0)
		return -errno;
	page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, file, 0);
	if (page == MAP_FAILED)
		return -errno;
	err = probe_fold(f, page, ret_why);
	munmap(page, PAGE);
	return err;
}
