/* stress-remap SECONDS - merging at full speed over memory that is written, read, discarded, read into by devices,
 * forked, pinned, scanned and collapsed at the same time, with every byte checked against a model.
 *
 * Each page has one owner at a time: a writer (blocks of 16 pages), or who holds its window's lock for writing.
 * Owners change page and model under the page's sequence number; readers take both and compare if the number
 * stood still. Exit 0 only if every byte was right, staging is empty and no mapping is left over. */
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "agent/eligible.h"
#include "agent/exchange.h"
#include "agent/pagemap.h"
#include "agent/uffd.h"
#include "core/cleanup.h"
#include "core/clock.h"
#include "core/kernel_abi.h"
#include "tests/lib/sanitized.h"

#define SLOTS 2u /* one with huge pages, one small with write protection */
#define SLOT_WINDOWS 8u
#define WINDOWS (SLOTS * SLOT_WINDOWS)
#define PAGES (WINDOWS * WINDOW_PAGES)
#define BLOCK 16u
#define CONTENTS 4096u /* 1 .. CONTENTS: of frames 0 .. CONTENTS-1; 0: zeroes */
#define WRITERS 3u
#define PAGE 4096u

struct model {
	_Atomic uint32_t seq; /* odd: being changed */
	uint32_t content;
	uint32_t word; /* this 8-byte word of it is replaced .. */
	uint64_t value; /* .. if this is not 0 */
};

static struct {
	uint8_t *ram[SLOTS];
	struct model model[PAGES];
	pthread_rwlock_t window_lock[WINDOWS];
	uint8_t *contents; /* CONTENTS + 1 pages */
	struct exchange_store store;
	struct exchange_journal *journal;
	struct exchange *x;
	int uffd, pagemap_fd, file;
	atomic_bool stop;
	bool swap;
	_Atomic uint64_t bad, writes, checks, reads, discards, direct_reads, uring_reads, forks, pins, scans, merges,
		recycles, collapses, pageouts;
} s;

static uint64_t rnd(uint64_t *state)
{
	uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);

	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return z ^ (z >> 31);
}

static unsigned below(uint64_t *state, unsigned n)
{
	return (unsigned)(rnd(state) % n);
}

static void must(bool ok, const char *what)
{
	if (!ok) {
		perror(what);
		exit(2);
	}
}

static uint8_t *page_at(unsigned p)
{
	return s.ram[p / (SLOT_WINDOWS * WINDOW_PAGES)] + (size_t)(p % (SLOT_WINDOWS * WINDOW_PAGES)) * PAGE;
}

static bool page_is(const uint8_t *page, const struct model *m)
{
	const uint8_t *want = s.contents + (size_t)m->content * PAGE;
	size_t at = m->word * 8;

	if (m->value == 0)
		return memcmp(page, want, PAGE) == 0;
	return memcmp(page, want, at) == 0 && memcmp(page + at, &m->value, 8) == 0 &&
	       memcmp(page + at + 8, want + at + 8, PAGE - at - 8) == 0;
}

static void report(unsigned p, const struct model *m, const char *who)
{
	const uint8_t *page = page_at(p), *want = s.contents + (size_t)m->content * PAGE;
	unsigned at = 0;

	while (at < PAGE && page[at] == want[at])
		at++;
	if (s.bad++ < 10)
		printf("BAD page %u (%s): content %u word %u value %lx: differs from %u on: %02x want %02x\n", p, who,
		       m->content, m->word, m->value, at, page[at % PAGE], want[at % PAGE]);
}

/* By the owner. */
static void page_check(unsigned p, const char *who)
{
	s.checks++;
	if (!page_is(page_at(p), &s.model[p]))
		report(p, &s.model[p], who);
}

static void change_begin(unsigned first, unsigned n)
{
	for (unsigned p = first; p < first + n; p++)
		atomic_fetch_add(&s.model[p].seq, 1);
}

static void change_end(unsigned first, unsigned n)
{
	for (unsigned p = first; p < first + n; p++)
		atomic_fetch_add(&s.model[p].seq, 1);
}

static void model_set(unsigned p, uint32_t content)
{
	s.model[p].content = content;
	s.model[p].value = 0;
}

/* ---- what an owner does ---- */

static void do_write_word(unsigned p, uint64_t *r)
{
	struct model *m = &s.model[p];
	volatile uint64_t *words = (volatile uint64_t *)(void *)page_at(p);

	change_begin(p, 1);
	if (m->value != 0)
		memcpy((void *)(uintptr_t)&words[m->word], s.contents + (size_t)m->content * PAGE + m->word * 8, 8);
	m->word = below(r, PAGE / 8);
	m->value = rnd(r) | 1;
	words[m->word] = m->value;
	change_end(p, 1);
	s.writes++;
}

/* Consecutive contents, so that runs come long. */
static void do_fill(unsigned first, unsigned n, uint64_t *r)
{
	uint32_t content = below(r, 4) == 0 ? 0 : 1 + below(r, CONTENTS - n);

	change_begin(first, n);
	for (unsigned p = first; p < first + n; p++) {
		memcpy(page_at(p), s.contents + (size_t)content * PAGE, PAGE);
		model_set(p, content);
		content += content != 0;
	}
	change_end(first, n);
	s.writes += n;
}

/* As the interposed madvise() does it. */
static void do_discard(unsigned first, unsigned n)
{
	must(exchange_lock(s.x) == 0, "exchange_lock");
	change_begin(first, n);
	if (exchange_discard(s.x, page_at(first), n * PAGE) != 0 ||
	    madvise(page_at(first), n * PAGE, MADV_DONTNEED) != 0)
		must(false, "discard");
	for (unsigned p = first; p < first + n; p++)
		model_set(p, 0);
	change_end(first, n);
	exchange_unlock(s.x);
	s.discards += n;
}

/* A device writes into guest memory. */
static void do_direct(unsigned first, unsigned n, uint64_t *r)
{
	uint32_t content = 1 + below(r, CONTENTS - n);

	change_begin(first, n);
	if (pread(s.file, page_at(first), n * PAGE, (off_t)content * PAGE) != (ssize_t)(n * PAGE)) {
		printf("BAD pread: %s\n", strerror(errno));
		s.bad++;
	}
	for (unsigned p = first; p < first + n; p++)
		model_set(p, content++);
	change_end(first, n);
	s.direct_reads += n;
}

static void owner_act(unsigned block, uint64_t *r, void (*uring)(unsigned, unsigned, uint64_t *))
{
	unsigned p = block * BLOCK + below(r, BLOCK);

	switch (below(r, 16)) {
	case 0:
		do_fill(block * BLOCK, BLOCK, r);
		break;
	case 1:
		do_discard(block * BLOCK, below(r, 2) ? BLOCK : 1 + below(r, BLOCK));
		break;
	case 2:
		do_direct(block * BLOCK, 1 + below(r, BLOCK), r);
		break;
	case 3:
		uring(block * BLOCK, 1 + below(r, BLOCK), r);
		break;
	case 4:
	case 5:
		do_write_word(p, r);
		break;
	default:
		page_check(p, "owner");
	}
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

static uint32_t *ring_u32(uint8_t *base, uint32_t off)
{
	return (uint32_t *)(void *)(base + off);
}

/* One read, from submission to completion; the pages are pinned while it is in flight. */
static int ring_read(int file, void *to, unsigned len, uint64_t off)
{
	uint32_t *tail = ring_u32(ring.sq, ring.params.sq_off.tail);
	uint32_t *cq_head = ring_u32(ring.cq, ring.params.cq_off.head);
	uint32_t at = *tail & (ring.params.sq_entries - 1);
	struct io_uring_cqe *cqe;

	ring.sqes[at] = (struct io_uring_sqe){ .opcode = IORING_OP_READ, .fd = file, .off = off,
					       .addr = (uint64_t)(uintptr_t)to, .len = len };
	ring_u32(ring.sq, ring.params.sq_off.array)[at] = at;
	__atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
	while (syscall(SYS_io_uring_enter, ring.fd, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) < 0) {
		if (errno != EINTR)
			return -errno;
	}
	cqe = (struct io_uring_cqe *)(void *)(ring.cq + ring.params.cq_off.cqes) +
	      (*cq_head & (ring.params.cq_entries - 1));
	__atomic_store_n(cq_head, *cq_head + 1, __ATOMIC_RELEASE);
	return cqe->res;
}

static void do_uring(unsigned first, unsigned n, uint64_t *r)
{
	uint32_t content = 1 + below(r, CONTENTS - n);
	int got;

	if (ring.fd == -2 || (ring.fd == -1 && !ring_open())) {
		ring.fd = -2;
		return;
	}
	change_begin(first, n);
	got = ring_read(s.file, page_at(first), n * PAGE, (uint64_t)content * PAGE);
	if (got != (int)(n * PAGE)) {
		printf("BAD io_uring read: %d\n", got);
		s.bad++;
	}
	for (unsigned p = first; p < first + n; p++)
		model_set(p, content++);
	change_end(first, n);
	s.uring_reads += n;
}

/* ---- threads ---- */

static void *writer(void *arg)
{
	unsigned me = (unsigned)(uintptr_t)arg;
	uint64_t r = me + 1;

	while (!s.stop) {
		unsigned block = below(&r, PAGES / BLOCK / WRITERS) * WRITERS + me;
		pthread_rwlock_t *lock = &s.window_lock[block * BLOCK / WINDOW_PAGES];

		pthread_rwlock_rdlock(lock);
		for (int i = 0; i < 8; i++)
			owner_act(block, &r, do_uring);
		pthread_rwlock_unlock(lock);
	}
	return NULL;
}

/* Never waits for an owner, so that it reads in every moment of an exchange. */
static void *reader(void *arg)
{
	uint64_t r = 1000 + (uint64_t)(uintptr_t)arg;
	uint8_t copy[PAGE];

	while (!s.stop) {
		unsigned p = below(&r, PAGES);
		uint32_t seq = atomic_load(&s.model[p].seq);
		struct model m = { .content = s.model[p].content, .word = s.model[p].word, .value = s.model[p].value };

		memcpy(copy, page_at(p), PAGE);
		atomic_thread_fence(memory_order_seq_cst);
		s.reads++;
		if (seq % 2 == 0 && m.content <= CONTENTS && !page_is(copy, &m) &&
		    atomic_load(&s.model[p].seq) == seq)
			report(p, &m, "reader");
	}
	return NULL;
}

static unsigned runs_choose(struct exchange_run *runs, unsigned w, uint64_t *r)
{
	unsigned count = 0, skip = below(r, 4);
	uint64_t next = 0;

	for (unsigned i = 0; i < WINDOW_PAGES; i++) {
		uint32_t content = s.model[w * WINDOW_PAGES + i].content; /* a hint, as hashes are */
		uint64_t frame = content == 0 || content > CONTENTS ? EXCHANGE_ZERO : content - 1;
		struct exchange_run *last = count > 0 ? &runs[count - 1] : NULL;

		if (below(r, 8) < skip)
			continue;
		if (below(r, 64) == 0)
			frame = below(r, CONTENTS); /* wrong */
		if (last && last->first + last->pages == i && frame == (last->frame == EXCHANGE_ZERO ? last->frame : next)) {
			last->pages++;
		} else {
			runs[count++] = (struct exchange_run){ .first = (uint16_t)i, .pages = 1, .frame = frame };
			next = frame;
		}
		next++;
	}
	return count;
}

static void merge_window(unsigned w, uint64_t *r)
{
	struct exchange_run runs[WINDOW_PAGES];
	struct exchange_options opt = { .min_pages_huge = below(r, 2) ? 64 : 1, .min_pages = 1,
					.min_piece = 1 + below(r, 3) };
	unsigned count = runs_choose(runs, w, r);
	int err = 0;

	if (count > 0)
		err = exchange_merge(s.x, (uint64_t)(uintptr_t)page_at(w * WINDOW_PAGES), &s.store, runs, count, &opt);
	if (err < 0 && err != -ENOSPC) {
		printf("BAD exchange_merge: %s\n", strerror(-err));
		s.bad++;
		s.stop = true;
	}
	s.merges++;
}

static void *merger(void *arg)
{
	uint64_t r = 3000 + (uint64_t)(uintptr_t)arg;

	while (!s.stop)
		merge_window(below(&r, WINDOWS), &r);
	return NULL;
}

/* Gives whole windows back and fills them anew: huge pages come again, and merging never runs dry. */
static void *recycler(void *arg)
{
	uint64_t r = 2000;

	while (!s.stop) {
		unsigned w = below(&r, WINDOWS), first = w * WINDOW_PAGES;
		unsigned step = below(&r, 2) ? WINDOW_PAGES : BLOCK;

		pthread_rwlock_wrlock(&s.window_lock[w]);
		for (unsigned p = first; p < first + WINDOW_PAGES; p++)
			page_check(p, "recycler");
		do_discard(first, WINDOW_PAGES);
		for (unsigned p = first; p < first + WINDOW_PAGES; p += step)
			do_fill(p, step, &r);
		pthread_rwlock_unlock(&s.window_lock[w]);
		s.recycles++;
		merge_window(w, &r); /* at once, while it is still huge */
		usleep(2000);
	}
	return arg;
}

/* A child sees a window that nobody changes while it is copied. */
static void *forker(void *arg)
{
	uint64_t r = 4000;

	while (!s.stop) {
		unsigned w = below(&r, WINDOWS);
		int status = 0;
		pid_t pid;

		pthread_rwlock_wrlock(&s.window_lock[w]);
		pid = fork();
		if (pid == 0) {
			for (unsigned p = w * WINDOW_PAGES; p < (w + 1) * WINDOW_PAGES; p++) {
				if (!page_is(page_at(p), &s.model[p]))
					_exit(1);
			}
			_exit(0);
		}
		pthread_rwlock_unlock(&s.window_lock[w]);
		if (pid < 0 || waitpid(pid, &status, 0) != pid || status != 0) {
			printf("BAD fork child: status %#x\n", (unsigned)status);
			s.bad++;
		}
		s.forks++;
		usleep(200000); /* each makes all memory busy until it is written to */
	}
	return arg;
}

/* Pins some pages for a while, as a device with fixed buffers would. */
static void *pinner(void *arg)
{
	struct io_uring_params params = { 0 };
	int fd = (int)syscall(SYS_io_uring_setup, 4, &params);
	uint64_t r = 5000;

	while (!s.stop && fd >= 0) {
		struct iovec iov = { .iov_base = page_at(below(&r, PAGES / BLOCK) * BLOCK), .iov_len = PAGE * 2 };

		if (syscall(SYS_io_uring_register, fd, IORING_REGISTER_BUFFERS, &iov, 1) == 0) {
			usleep(500);
			syscall(SYS_io_uring_register, fd, IORING_UNREGISTER_BUFFERS, NULL, 0);
			s.pins++;
		}
		usleep(500);
	}
	if (fd >= 0)
		close(fd);
	return arg;
}

/* The daemon's part: arms memory without asking anybody; and other unasked changes of the page tables. */
static void *scanner(void *arg)
{
	static struct page_region regions[PAGES];
	uint64_t r = 6000;

	while (!s.stop) {
		unsigned w = below(&r, WINDOWS);
		uint64_t at = (uint64_t)(uintptr_t)s.ram[1];
		struct pm_scan_arg scan = { .size = sizeof(scan), .flags = PM_SCAN_WP_MATCHING, .start = at,
					    .end = at + SLOT_WINDOWS * WINDOW_BYTES,
					    .vec = (uint64_t)(uintptr_t)regions, .vec_len = PAGES,
					    .category_mask = PAGE_IS_WRITTEN, .return_mask = PAGE_IS_WRITTEN };

		s.scans += ioctl(s.pagemap_fd, PAGEMAP_SCAN, &scan) >= 0;
		if (below(&r, 4) == 0)
			s.collapses += madvise(page_at(below(&r, SLOT_WINDOWS) * WINDOW_PAGES), WINDOW_BYTES,
					       MADV_COLLAPSE) == 0;
		if (s.swap)
			s.pageouts += madvise(page_at(w * WINDOW_PAGES), WINDOW_BYTES, MADV_PAGEOUT) == 0;
		usleep(1000);
	}
	return arg;
}

/* ---- set up, and the account ---- */

static void fork_prepare(void)
{
	exchange_fork_prepare(s.x);
}

static void fork_parent(void)
{
	exchange_fork_parent(s.x);
}

static void fork_child(void)
{
	exchange_fork_child(s.x);
}

static uint8_t *ram_new(int advice)
{
	uint64_t len = SLOT_WINDOWS * WINDOW_BYTES;
	uint8_t *area = mmap(NULL, len + 2 * WINDOW_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint64_t at = ((uint64_t)(uintptr_t)area + 2 * WINDOW_BYTES - 1) & ~(WINDOW_BYTES - 1);

	must(area != MAP_FAILED && mmap((void *)at, len, PROT_READ | PROT_WRITE,
					MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == (void *)at &&
		     madvise((void *)at, len, advice) == 0,
	     "guest memory");
	return (uint8_t *)at;
}

static void contents_new(void)
{
	auto_close int fd = memfd_create("store", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	char path[] = "/var/tmp/stress-remap-XXXXXX", self[64];
	uint64_t r = 42;
	int file = mkstemp(path);
	size_t len = (size_t)(CONTENTS + 1) * PAGE;

	s.contents = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	must(s.contents != MAP_FAILED && file >= 0 && fd >= 0, "contents");
	for (size_t i = PAGE; i < len; i += 8) {
		uint64_t word = rnd(&r);

		memcpy(s.contents + i, &word, 8);
	}
	must(write(file, s.contents, len) == (ssize_t)len && fsync(file) == 0, path);
	s.file = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
	unlink(path);
	close(file);
	must(s.file >= 0, "O_DIRECT");
	must(write(fd, s.contents + PAGE, len - PAGE) == (ssize_t)(len - PAGE) &&
		     fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0,
	     "store");
	snprintf(self, sizeof(self), "/proc/self/fd/%d", fd);
	s.store.fd = open(self, O_RDONLY | O_CLOEXEC);
	s.store.map = mmap(NULL, len - PAGE, PROT_READ, MAP_SHARED, s.store.fd, 0);
	s.store.frames = CONTENTS;
	must(s.store.map != MAP_FAILED, "store");
}

static bool swap_is_on(void)
{
	char buf[4096] = "";
	auto_close int fd = open("/proc/swaps", O_RDONLY | O_CLOEXEC);

	return fd >= 0 && read(fd, buf, sizeof(buf) - 1) > 0 && strchr(buf, '\n') && strchr(buf, '\n')[1] != '\0';
}

static void set_up(void)
{
	const char *why = "userfaultfd";
	size_t slot_len = SLOT_WINDOWS * WINDOW_BYTES;

	s.uffd = uffd_open();
	if (s.uffd < 0 || uffd_probe(s.uffd, &why) < 0) {
		printf("skip: stress-remap: %s\n", why);
		exit(77);
	}
	s.swap = swap_is_on();
	s.ram[0] = ram_new(MADV_HUGEPAGE);
	s.ram[1] = ram_new(MADV_NOHUGEPAGE);
	contents_new();
	s.pagemap_fd = pagemap_open(0);
	s.journal = mmap(NULL, sizeof(*s.journal), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	must(exchange_new(s.uffd, s.journal, &s.x) == 0, "exchange_new");
	must(uffd_register(s.uffd, (uint64_t)(uintptr_t)s.ram[1], slot_len, UFFDIO_REGISTER_MODE_WP) == 0, "WP");
	for (unsigned i = 0; i < SLOTS; i++)
		must(exchange_slot_add(s.x, s.ram[i], slot_len, i == 1, &why) == 0, why);
	for (unsigned w = 0; w < WINDOWS; w++)
		pthread_rwlock_init(&s.window_lock[w], NULL);
	pthread_atfork(fork_prepare, fork_parent, fork_child);
}

/* Mappings within guest RAM. */
static unsigned ram_mappings(void)
{
	auto_fclose FILE *f = fopen("/proc/self/maps", "re");
	char line[512];
	uint64_t start, end;
	unsigned n = 0;

	while (f && fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%lx-%lx", &start, &end) != 2)
			continue;
		for (unsigned i = 0; i < SLOTS; i++)
			n += start < (uint64_t)(uintptr_t)s.ram[i] + SLOT_WINDOWS * WINDOW_BYTES &&
			     end > (uint64_t)(uintptr_t)s.ram[i];
	}
	return n;
}

static void print_counts(const struct exchange_counters *c)
{
	static const char *const names[EXCHANGE_STEPS] = { "", "register", "move", "compare", "map", "back",
							   "unregister", "wake", "drop", "" };

	printf("writes %lu checks %lu reads %lu discarded %lu O_DIRECT %lu io_uring %lu forks %lu pins %lu scans %lu "
	       "recycled %lu collapsed %lu paged out %lu\n",
	       s.writes, s.checks, s.reads, s.discards, s.direct_reads, s.uring_reads, s.forks, s.pins, s.scans,
	       s.recycles, s.collapses, s.pageouts);
	printf("calls %lu windows %lu huge %lu merged %lu zero %lu moved %lu moved-back %lu copied-back %lu "
	       "remapped-back %lu huge-kept %lu unequal %lu busy %lu\n",
	       s.merges, c->windows, c->windows_huge, c->merged_pages, c->zero_pages, c->moved_pages, c->moved_back,
	       c->copied_back, c->remapped_back, c->huge_kept, c->unequal_pages, c->busy_pages);
	printf("move-errors %lu map-failures %lu attributes-lost %lu zeroed-in-place %lu stall mean %.1f us max %.1f us\n",
	       c->move_errors, c->map_failures, c->attributes_lost, c->zeroed_in_place,
	       c->windows ? (double)c->stall_ns / 1e3 / (double)c->windows : 0, (double)c->stall_max_ns / 1e3);
	for (unsigned i = STEP_REGISTER; i <= STEP_DROP; i++)
		printf("%s %.2f ", names[i], c->windows ? (double)c->step_ns[i] / 1e3 / (double)c->windows : 0);
	printf("us a window\n");
}

static void final_checks(size_t mappings_before)
{
	struct page_states st = { 0 };
	unsigned in_staging = 0, left;

	for (unsigned p = 0; p < PAGES; p++)
		page_check(p, "end");
	if (memcmp(s.store.map, s.contents + PAGE, (size_t)CONTENTS * PAGE) != 0) {
		printf("BAD store: changed\n");
		s.bad++;
	}
	if (s.journal->staging != 0)
		must(pagemap_read(s.pagemap_fd, s.journal->staging, 0, WINDOW_PAGES, &st) == 0, "pagemap");
	for (unsigned p = 0; p < WINDOW_PAGES; p++)
		in_staging += st.flags[p] != 0;
	if (s.journal->step != STEP_IDLE || in_staging > 0) {
		printf("BAD end: step %u, %u pages in staging\n", s.journal->step, in_staging);
		s.bad++;
	}
	printf("mappings of guest memory: %u merged", ram_mappings());
	for (unsigned i = 0; i < SLOTS; i++)
		do_discard(i * SLOT_WINDOWS * WINDOW_PAGES, SLOT_WINDOWS * WINDOW_PAGES);
	for (unsigned p = 0; p < PAGES; p++)
		page_check(p, "discarded");
	printf(", %u discarded\n", ram_mappings());
	if (ram_mappings() != SLOTS) {
		printf("BAD end: guest memory is in pieces\n");
		s.bad++;
	}
	print_counts(exchange_counters(s.x));
	if (exchange_counters(s.x)->attributes_lost > 0 && exchange_counters(s.x)->map_failures == 0)
		s.bad++;
	s.x = exchange_free(s.x);
	for (unsigned i = 0; i < SLOTS; i++) /* one mapping again, as a VMM's own mmap would */
		must(mmap(s.ram[i], SLOT_WINDOWS * WINDOW_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1,
			  0) != MAP_FAILED,
		     "mmap");
	left = (unsigned)mappings_count();
	if (left > mappings_before && !SANITIZED) {
		printf("BAD end: %u mappings, %zu at the start\n", left, mappings_before);
		s.bad++;
	}
}

int main(int argc, char **argv)
{
	void *(*const actors[])(void *) = { writer, writer, writer, reader, reader, recycler, merger, merger,
					    forker, pinner, scanner };
	pthread_t threads[ARRAY_SIZE(actors)];
	unsigned seconds = argc == 2 ? (unsigned)strtoul(argv[1], NULL, 10) : 0;
	size_t before;
	uint64_t r = 7;

	if (seconds == 0) {
		fprintf(stderr, "usage: stress-remap SECONDS\n");
		return 2;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	set_up();
	for (unsigned p = 0; p < PAGES; p += BLOCK)
		do_fill(p, BLOCK, &r);
	before = mappings_count() + ARRAY_SIZE(actors) * 4; /* stacks, arenas and rings stay */
	for (size_t i = 0; i < ARRAY_SIZE(actors); i++)
		must(pthread_create(&threads[i], NULL, actors[i], (void *)i) == 0, "pthread_create");
	for (unsigned i = 0; i < seconds * 10 && !s.stop; i++)
		usleep(100000);
	s.stop = true;
	for (size_t i = 0; i < ARRAY_SIZE(actors); i++)
		pthread_join(threads[i], NULL);
	final_checks(before);
	printf("%s: %lu wrong\n", s.bad == 0 ? "ok" : "FAIL", s.bad);
	return s.bad == 0 ? 0 : 1;
}
