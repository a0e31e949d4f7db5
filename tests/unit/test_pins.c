/* agent/pins: which descriptors count as able to pin memory. */
#include "agent/pins.h"

#include <linux/io_uring.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include "tests/unit/unit.h"

static int direct_open(void)
{
	char path[] = "/var/tmp/fold-XXXXXX";
	int fd = mkstemp(path), direct;

	unit_must(fd >= 0, path);
	direct = open(path, O_RDWR | O_DIRECT | O_CLOEXEC);
	unlink(path);
	close(fd);
	return direct;
}

static int uring_open(bool fixed)
{
	struct io_uring_params params = { 0 };
	struct iovec iov = { .iov_base = unit_map(1), .iov_len = PAGE_BYTES };
	int fd = (int)syscall(SYS_io_uring_setup, 4, &params);

	if (fd >= 0 && fixed && syscall(SYS_io_uring_register, fd, IORING_REGISTER_BUFFERS, &iov, 1) < 0) {
		close(fd);
		return -1;
	}
	return fd;
}

static int open_pipe(void)
{
	int ends[2];

	unit_must(pipe(ends) == 0, "pipe");
	close(ends[1]);
	return ends[0];
}

static int open_event(void)
{
	return eventfd(0, 0);
}

static int open_unix(void)
{
	return socket(AF_UNIX, SOCK_STREAM, 0);
}

static int open_tcp(void)
{
	return socket(AF_INET, SOCK_STREAM, 0);
}

static int open_alg(void)
{
	return socket(AF_ALG, SOCK_SEQPACKET, 0);
}

static int open_null(void)
{
	return open("/dev/null", O_RDWR);
}

static int open_kvm(void)
{
	return open("/dev/kvm", O_RDWR);
}

static int open_fuse(void)
{
	return open("/dev/fuse", O_RDWR);
}

static int open_memory(void)
{
	return memfd_create("x", 0);
}

static int open_proc(void)
{
	return open("/proc/self/status", O_RDONLY);
}

static int open_path(void)
{
	return open("/dev/fuse", O_PATH);
}

static int open_plain_uring(void)
{
	return uring_open(false);
}

static int open_fixed_uring(void)
{
	return uring_open(true);
}


static int open_direct_writer(void)
{
	char path[] = "/var/tmp/fold-XXXXXX";
	int fd = mkstemp(path), direct = open(path, O_WRONLY | O_DIRECT);

	unlink(path);
	close(fd);
	return direct;
}

static void test_pins_each_kind_of_descriptor(void)
{
	static const struct {
		const char *name;
		int (*open)(void);
		bool harmless;
	} cases[] = {
		{ "eventfd", open_event, true },     { "pipe", open_pipe, true },
		{ "unix socket", open_unix, true },  { "tcp socket", open_tcp, true },
		{ "crypto socket", open_alg, false }, { "null", open_null, true },
		{ "kvm", open_kvm, true },	     { "fuse", open_fuse, false },
		{ "memory file", open_memory, true }, { "proc", open_proc, true },
		{ "path", open_path, true },	     { "io_uring", open_plain_uring, true },
		{ "io_uring, fixed", open_fixed_uring, false }, { "direct", direct_open, false },
		{ "direct writer", open_direct_writer, true },
	};
	struct pins_mounts mounts = { 0 };

	pins_mounts_read(&mounts);
	CU_ASSERT_TRUE(mounts.count > 0);
	if (pins_possible(&mounts))
		UNIT_SKIP("this test was given a descriptor that counts as harmful");
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		int fd = cases[i].open();

		if (fd < 0) {
			printf("(no %s) ", cases[i].name);
			continue;
		}
		UNIT_CASE(cases[i].name, (pins_possible(&mounts) == NULL) == cases[i].harmless);
		close(fd);
	}
	CU_ASSERT_PTR_NULL(pins_possible(&mounts));
}

int main(void)
{
	static CU_TestInfo tests[] = {
		{ "kinds", test_pins_each_kind_of_descriptor },
		CU_TEST_INFO_NULL,
	};

	return unit_main("pins", tests);
}
