#include "agent/uffd.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "agent/hooks.h"
#include "agent/pagebits.h"
#include "core/cleanup.h"
#include "core/kernel_abi.h"

/* ---- the calls ---- */

int uffd_register(int fd, uint64_t addr, uint64_t len, uint64_t mode)
{
	struct uffdio_register arg = { .range = { .start = addr, .len = len }, .mode = mode };
	int rc = hook_before(OP_REGISTER, addr, len);

	if (rc != 0)
		return rc;
	rc = ioctl(fd, UFFDIO_REGISTER, &arg) < 0 ? -errno : 0;
	return hook_after(OP_REGISTER, addr, len, rc);
}

int uffd_unregister(int fd, uint64_t addr, uint64_t len)
{
	struct uffdio_range arg = { .start = addr, .len = len };
	int rc = hook_before(OP_UNREGISTER, addr, len);

	if (rc != 0)
		return rc;
	rc = ioctl(fd, UFFDIO_UNREGISTER, &arg) < 0 ? -errno : 0;
	return hook_after(OP_UNREGISTER, addr, len, rc);
}

int uffd_wake(int fd, uint64_t addr, uint64_t len)
{
	struct uffdio_range arg = { .start = addr, .len = len };
	int rc = hook_before(OP_WAKE, addr, len);

	if (rc != 0)
		return rc;
	rc = ioctl(fd, UFFDIO_WAKE, &arg) < 0 ? -errno : 0;
	return hook_after(OP_WAKE, addr, len, rc);
}

int uffd_move(int fd, uint64_t dst, uint64_t src, uint64_t len)
{
	/* No ALLOW_SRC_HOLES: with it a kernel that keeps a stale -EAGAIN loops for ever (R1). */
	struct uffdio_move arg = { .dst = dst, .src = src, .len = len, .mode = UFFDIO_MOVE_MODE_DONTWAKE };
	int rc = hook_before(OP_MOVE, src, len);

	if (rc != 0)
		return rc;
	rc = ioctl(fd, UFFDIO_MOVE, &arg) < 0 ? -errno : 0;
	return hook_after(OP_MOVE, src, len, rc);
}

int uffd_copy(int fd, uint64_t dst, uint64_t src, uint64_t len, uint64_t *ret_done)
{
	struct uffdio_copy arg = { .dst = dst, .src = src, .len = len, .mode = UFFDIO_COPY_MODE_DONTWAKE };
	int rc = hook_before(OP_COPY, dst, len);

	*ret_done = 0;
	if (rc != 0)
		return rc;
	rc = ioctl(fd, UFFDIO_COPY, &arg) < 0 ? -errno : 0;
	if (arg.copy > 0)
		*ret_done = (uint64_t)arg.copy;
	return hook_after(OP_COPY, dst, len, rc);
}

int uffd_writeprotect(int fd, uint64_t addr, uint64_t len, bool on)
{
	struct uffdio_writeprotect arg = { .range = { .start = addr, .len = len },
					   .mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0 };
	int rc = hook_before(OP_WP, addr, len);

	if (rc != 0)
		return rc;
	rc = ioctl(fd, UFFDIO_WRITEPROTECT, &arg) < 0 ? -errno : 0;
	return hook_after(OP_WP, addr, len, rc);
}

int uffd_zeropage(int fd, uint64_t addr, uint64_t len)
{
	struct uffdio_zeropage arg = { .range = { .start = addr, .len = len } };

	return ioctl(fd, UFFDIO_ZEROPAGE, &arg) < 0 ? -errno : 0;
}

/* ---- a descriptor that will do ---- */

static int setup(int fd, uint64_t features)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };
	const uint64_t need = UINT64_C(1) << _UFFDIO_REGISTER | UINT64_C(1) << _UFFDIO_UNREGISTER;

	/* poll() needs a descriptor that does not block; faulting threads wait all the same. */
	if (fcntl(fd, F_SETFL, O_NONBLOCK) < 0 || ioctl(fd, UFFDIO_API, &api) < 0)
		return -errno;
	return (api.ioctls & need) == need ? 0 : -EOPNOTSUPP;
}

int uffd_setup(int fd)
{
	return setup(fd, UFFD_FEATURE_MOVE | UFFD_FEATURE_WP_ASYNC);
}

int uffd_setup_freezer(int fd)
{
	return setup(fd, UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM);
}

static int open_with(int (*set_up)(int fd))
{
	auto_close int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	auto_close int fd = -1;
	int err;

	if (device >= 0)
		fd = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
	if (fd < 0)
		fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (fd < 0)
		return -errno;
	err = set_up(fd);
	return err < 0 ? err : take_fd(fd);
}

int uffd_open(void)
{
	return open_with(uffd_setup);
}

int uffd_open_freezer(void)
{
	return open_with(uffd_setup_freezer);
}

struct probe {
	int fd;
	uint64_t page;
};

/* Fills the missing page when somebody waits for it, or after a second if nobody ever does. */
static void *probe_fill(void *arg)
{
	const struct probe *p = arg;
	struct pollfd pfd = { .fd = p->fd, .events = POLLIN };

	poll(&pfd, 1, 1000);
	uffd_zeropage(p->fd, p->page, WINDOW_PAGE_BYTES);
	return NULL;
}

/* The kernel writes to a missing page. Waits for the fill with a full descriptor, -EFAULT without. */
static int probe_kernel_fault(int fd, uint64_t page)
{
	struct probe p = { .fd = fd, .page = page };
	pthread_t filler;
	int ends[2], rc = 0;

	if (pipe2(ends, O_CLOEXEC) < 0)
		return -errno;
	if (write(ends[1], "x", 1) != 1 || pthread_create(&filler, NULL, probe_fill, &p) != 0) {
		rc = -EAGAIN;
	} else {
		/* A number, not a pointer that the compiler or a sanitizer may want to look behind. */
		if (syscall(SYS_read, ends[0], page, 1) < 0)
			rc = -errno;
		pthread_join(filler, NULL);
	}
	close(ends[0]);
	close(ends[1]);
	return rc;
}

static int probe_at(int fd, uint64_t at, const char **ret_why)
{
	int err;

	*ret_why = "a range cannot be registered";
	err = uffd_register(fd, at, WINDOW_PAGE_BYTES, UFFDIO_REGISTER_MODE_MISSING);
	if (err == 0)
		err = uffd_register(fd, at + 2 * WINDOW_PAGE_BYTES, WINDOW_PAGE_BYTES, UFFDIO_REGISTER_MODE_WP);
	if (err < 0)
		return err;
	*ret_why = "faults of the kernel and of KVM are not seen (UFFD_USER_MODE_ONLY)";
	err = probe_kernel_fault(fd, at);
	if (err < 0)
		return err;
	*ret_why = "pages cannot be moved (Linux 6.8 is needed)";
	return uffd_move(fd, at + 2 * WINDOW_PAGE_BYTES, at, WINDOW_PAGE_BYTES);
}

int uffd_probe(int fd, const char **ret_why)
{
	const size_t len = 3 * WINDOW_PAGE_BYTES;
	void *map = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int err;

	*ret_why = "no memory for the probe";
	if (map == MAP_FAILED)
		return -errno;
	err = probe_at(fd, (uint64_t)(uintptr_t)map, ret_why);
	munmap(map, len);
	return err;
}
