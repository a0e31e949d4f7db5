/* Guest memory as others see it: devices that read into it, the kernel that copies from and to it. */
#include "tests/stress/stress.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "core/kernel_abi.h"

/* A device writes into guest memory. */
void do_direct(unsigned first, unsigned n, uint64_t *r)
{
	uint32_t content = 1 + below(r, CONTENTS - n);

	change_begin(first, n);
	if (pread(s.file, page_at(first), n * PAGE, (off_t)content * PAGE) != (ssize_t)(n * PAGE))
		wrong("pread", errno);
	for (unsigned p = first; p < first + n; p++)
		model_set(p, content++);
	change_end(first, n);
	s.direct_reads += n;
}

/* ---- io_uring, without its library ---- */

struct ring {
	int fd;
	struct io_uring_params params;
	uint8_t *sq, *cq;
	struct io_uring_sqe *sqes;
};

static _Thread_local struct ring ring = { .fd = -1 };

static bool ring_open(void)
{
	size_t sq_len, cq_len;

	ring.fd = (int)syscall(SYS_io_uring_setup, 4, &ring.params);
	if (ring.fd < 0)
		return false;
	sq_len = ring.params.sq_off.array + ring.params.sq_entries * sizeof(uint32_t);
	cq_len = ring.params.cq_off.cqes + ring.params.cq_entries * sizeof(struct io_uring_cqe);
	ring.sq = mmap(NULL, sq_len, PROT_READ | PROT_WRITE, MAP_SHARED, ring.fd, IORING_OFF_SQ_RING);
	ring.cq = mmap(NULL, cq_len, PROT_READ | PROT_WRITE, MAP_SHARED, ring.fd, IORING_OFF_CQ_RING);
	ring.sqes = mmap(NULL, ring.params.sq_entries * sizeof(*ring.sqes), PROT_READ | PROT_WRITE, MAP_SHARED, ring.fd,
			 IORING_OFF_SQES);
	return ring.sq != MAP_FAILED && ring.cq != MAP_FAILED && (void *)ring.sqes != MAP_FAILED;
}

static bool ring_there(void)
{
	if (ring.fd == -1 && !ring_open())
		ring.fd = -2; /* this kernel has none */
	return ring.fd >= 0;
}

static uint32_t *ring_u32(uint8_t *base, uint32_t off)
{
	return (uint32_t *)(void *)(base + off);
}

/* One read, from submission to completion; the pages are pinned while it is in flight. */
static int ring_read(uint8_t opcode, uint8_t flags, void *to, unsigned len, uint64_t off)
{
	uint32_t *tail = ring_u32(ring.sq, ring.params.sq_off.tail);
	uint32_t *cq_head = ring_u32(ring.cq, ring.params.cq_off.head);
	uint32_t at = *tail & (ring.params.sq_entries - 1);
	struct io_uring_cqe *cqe;

	ring.sqes[at] = (struct io_uring_sqe){ .opcode = opcode, .flags = flags, .fd = s.file, .off = off,
					       .addr = (uint64_t)(uintptr_t)to, .len = len };
	ring_u32(ring.sq, ring.params.sq_off.array)[at] = at;
	__atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
	/* A signal ends the wait, not the read. */
	while (__atomic_load_n(ring_u32(ring.cq, ring.params.cq_off.tail), __ATOMIC_ACQUIRE) == *cq_head) {
		if (syscall(SYS_io_uring_enter, ring.fd, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) < 0 && errno != EINTR)
			return -errno;
	}
	cqe = (struct io_uring_cqe *)(void *)(ring.cq + ring.params.cq_off.cqes) +
	      (*cq_head & (ring.params.cq_entries - 1));
	__atomic_store_n(cq_head, *cq_head + 1, __ATOMIC_RELEASE);
	return cqe->res;
}

void do_uring(unsigned first, unsigned n, uint64_t *r)
{
	uint32_t content = 1 + below(r, CONTENTS - n);
	int got;

	if (!ring_there())
		return;
	change_begin(first, n);
	got = ring_read(IORING_OP_READ, below(r, 2) ? IOSQE_ASYNC : 0, page_at(first), n * PAGE,
			(uint64_t)content * PAGE);
	if (got != (int)(n * PAGE))
		wrong("io_uring read", got);
	for (unsigned p = first; p < first + n; p++)
		model_set(p, content++);
	change_end(first, n);
	s.uring_reads += n;
}

/* R12: the device goes on writing to the page that it has pinned. Had the page been merged meanwhile, the guest would
 * never see it. */
void do_pinned(unsigned first, unsigned n, uint64_t *r, void (*meanwhile)(unsigned window, uint64_t *r))
{
	struct iovec iov = { .iov_base = page_at(first), .iov_len = n * PAGE };
	uint32_t content = 1 + below(r, CONTENTS - n);
	int got;

	if (!ring_there() || syscall(SYS_io_uring_register, ring.fd, IORING_REGISTER_BUFFERS, &iov, 1) < 0)
		return;
	meanwhile(first / WINDOW_PAGES, r);
	change_begin(first, n);
	got = ring_read(IORING_OP_READ_FIXED, 0, page_at(first), n * PAGE, (uint64_t)content * PAGE);
	if (got != (int)(n * PAGE))
		wrong("io_uring fixed read", got);
	for (unsigned p = first; p < first + n; p++)
		model_set(p, content++);
	change_end(first, n);
	for (unsigned p = first; p < first + n; p++)
		page_check(p, "pinned");
	syscall(SYS_io_uring_register, ring.fd, IORING_UNREGISTER_BUFFERS, NULL, 0);
	s.pins++;
}

/* ---- copies by the kernel ---- */

static _Thread_local int pipe_fds[2], socket_fds[2];

static void channels_open(void)
{
	if (pipe_fds[1] == 0)
		must(pipe2(pipe_fds, O_CLOEXEC) == 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, socket_fds) == 0, "pipe");
}

/* A page is replaced by the kernel on our behalf, or left as it is: *ret_refused. */
static ssize_t kernel_copy(unsigned how, uint8_t *to, const uint8_t *from, bool *ret_refused)
{
	struct iovec here = { .iov_base = (void *)(uintptr_t)from, .iov_len = PAGE };
	struct iovec there = { .iov_base = to, .iov_len = PAGE };
	ssize_t n;

	switch (how) {
	case 0:
		must(write(pipe_fds[1], from, PAGE) == PAGE, "write");
		return read(pipe_fds[0], to, PAGE);
	case 1:
		must(send(socket_fds[1], from, PAGE, 0) == PAGE, "send");
		return recv(socket_fds[0], to, PAGE, MSG_WAITALL);
	case 2:
		return process_vm_writev(getpid(), &here, 1, &there, 1, 0);
	default: /* as a debugger writes: refused with EIO while the page is out (R13), never half done */
		n = pwrite(s.mem_fd, from, PAGE, (off_t)(uintptr_t)to);
		*ret_refused = n < 0 && errno == EIO;
		return n;
	}
}

void do_kernel_write(unsigned p, uint64_t *r)
{
	uint32_t content = 1 + below(r, CONTENTS);
	bool refused = false;
	unsigned how = below(r, 4);
	ssize_t n;

	if (how == 2 && s.no_pins) /* process_vm_writev() holds the page pinned */
		how = 3;
	channels_open();
	change_begin(p, 1);
	n = kernel_copy(how, page_at(p), s.contents + (size_t)content * PAGE, &refused);
	if (!refused && n != PAGE)
		wrong("copy by the kernel", n);
	if (!refused)
		model_set(p, content);
	change_end(p, 1);
	page_check(p, "kernel");
	s.kernel_writes++;
	s.refused += refused;
}

void do_kernel_read(unsigned p, uint64_t *r)
{
	struct iovec iov = { .iov_base = page_at(p), .iov_len = PAGE };
	uint8_t copy[PAGE];
	ssize_t n;

	channels_open();
	/* vmsplice: the pipe holds the page itself, as a plain reference, while merging goes on. */
	n = below(r, 2) ? vmsplice(pipe_fds[1], &iov, 1, 0) : write(pipe_fds[1], page_at(p), PAGE);
	if (n != PAGE || read(pipe_fds[0], copy, PAGE) != PAGE)
		wrong("pipe", n);
	if (!page_is(copy, &s.model[p]))
		report(p, &s.model[p], "pipe");
	s.kernel_reads++;
}
