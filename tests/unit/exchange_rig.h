/* tests/unit/exchange_rig.h - guest RAM with a model, a store and an exchange over them, with hooks. */
#ifndef TESTS_UNIT_EXCHANGE_RIG_H
#define TESTS_UNIT_EXCHANGE_RIG_H

#include <pthread.h>
#include <sys/ioctl.h>

#include "agent/exchange.h"
#include "agent/hooks.h"
#include "agent/pagemap.h"
#include "agent/uffd.h"
#include "core/kernel_abi.h"
#include "tests/unit/unit.h"

#define RIG_WINDOWS 2u
#define RIG_PAGES (RIG_WINDOWS * WINDOW_PAGES)
#define RIG_FRAMES 1024u

struct rig {
	int uffd, pagemap_fd;
	struct exchange_journal *journal;
	struct exchange *x;
	struct exchange_store store;
	uint8_t *ram;		   /* 2 MiB aligned, RIG_PAGES */
	uint64_t model[RIG_PAGES]; /* content number of each page: see unit_page_fill() */
	struct exchange_run runs[WINDOW_PAGES];
	size_t count;
	struct exchange_options opt;
};

struct rig_how {
	bool huge, wp, dontfork, dontdump;
};

static inline uint8_t *rig_page(const struct rig *r, size_t page)
{
	return r->ram + page * PAGE_BYTES;
}

/* Frame f holds content f + 1. */
static inline void rig_store_new(struct exchange_store *s)
{
	auto_close int fd = memfd_create("store", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	char page[PAGE_BYTES], path[64];

	unit_must(fd >= 0 && ftruncate(fd, (off_t)RIG_FRAMES * PAGE_BYTES) == 0, "memfd");
	for (uint64_t f = 0; f < RIG_FRAMES; f++) {
		unit_page_fill(page, f + 1);
		unit_must(pwrite(fd, page, PAGE_BYTES, (off_t)(f * PAGE_BYTES)) == PAGE_BYTES, "pwrite");
	}
	unit_must(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0, "seal");
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	s->fd = open(path, O_RDONLY | O_CLOEXEC);
	unit_must(s->fd >= 0, path);
	s->frames = RIG_FRAMES;
	s->map = mmap(NULL, RIG_FRAMES * PAGE_BYTES, PROT_READ, MAP_SHARED, s->fd, 0);
	unit_must(s->map != MAP_FAILED, "store");
}

static inline void rig_fill(struct rig *r, size_t page, uint64_t content)
{
	unit_page_fill((char *)rig_page(r, page), content);
	r->model[page] = content;
}

/* Page i holds content i + 1, so that frame i is its twin (window 0), or nothing's twin (window 1). */
static inline void rig_new(struct rig *r, struct rig_how how)
{
	const char *why;
	uint8_t *area = mmap(NULL, (RIG_WINDOWS + 2) * WINDOW_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint64_t at = ((uint64_t)(uintptr_t)area + 2 * WINDOW_BYTES - 1) & ~(WINDOW_BYTES - 1);

	memset(r, 0, sizeof(*r));
	memset(&exchange_hooks, 0, sizeof(exchange_hooks));
	unit_must(area != MAP_FAILED, "mmap");
	r->ram = mmap((void *)at, RIG_WINDOWS * WINDOW_BYTES, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	unit_must(r->ram == (uint8_t *)at, "mmap");
	madvise(r->ram, RIG_WINDOWS * WINDOW_BYTES, how.huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
	if (how.dontfork)
		madvise(r->ram, RIG_WINDOWS * WINDOW_BYTES, MADV_DONTFORK);
	if (how.dontdump)
		madvise(r->ram, RIG_WINDOWS * WINDOW_BYTES, MADV_DONTDUMP);
	for (size_t p = 0; p < RIG_PAGES; p++)
		rig_fill(r, p, p < WINDOW_PAGES ? p + 1 : p + 100000);
	rig_store_new(&r->store);
	r->journal = mmap(NULL, sizeof(*r->journal), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	r->uffd = uffd_open();
	r->pagemap_fd = pagemap_open(0);
	unit_must(r->journal != MAP_FAILED && r->uffd >= 0 && r->pagemap_fd >= 0, "rig");
	if (how.wp)
		unit_must(uffd_register(r->uffd, at, RIG_WINDOWS * WINDOW_BYTES, UFFDIO_REGISTER_MODE_WP) == 0, "wp");
	errno = -exchange_new(r->uffd, r->journal, &r->x);
	unit_must(r->x, "exchange_new");
	errno = -exchange_slot_add(r->x, r->ram, RIG_WINDOWS * WINDOW_BYTES, how.wp, &why);
	unit_must(errno == 0, why);
	r->opt = (struct exchange_options){ .min_pages_huge = 64, .min_pages = 1, .min_piece = 1 };
}

static inline void rig_run(struct rig *r, unsigned first, unsigned pages, uint64_t frame)
{
	r->runs[r->count++] =
		(struct exchange_run){ .first = (uint16_t)first, .pages = (uint16_t)pages, .frame = frame };
}

static inline int rig_merge(struct rig *r, unsigned window)
{
	return exchange_merge(r->x, (uint64_t)(uintptr_t)r->ram + window * WINDOW_BYTES, &r->store, r->runs, r->count,
			      &r->opt);
}

/* How many pages do not hold what the model says. */
static inline unsigned rig_wrong(const struct rig *r)
{
	char want[PAGE_BYTES];
	unsigned wrong = 0;

	for (size_t p = 0; p < RIG_PAGES; p++) {
		unit_page_fill(want, r->model[p]);
		wrong += memcmp(want, rig_page(r, p), PAGE_BYTES) != 0;
	}
	return wrong;
}

static inline unsigned rig_flagged(const struct rig *r, uint64_t base, uint8_t flag)
{
	struct page_states st;
	unsigned n = 0;

	unit_must(pagemap_read(r->pagemap_fd, base, 0, WINDOW_PAGES, &st) == 0, "pagemap");
	for (unsigned p = 0; p < WINDOW_PAGES; p++)
		n += (st.flags[p] & flag) != 0;
	return n;
}

static inline unsigned rig_huge(const struct rig *r, unsigned window)
{
	return rig_flagged(r, (uint64_t)(uintptr_t)r->ram + window * WINDOW_BYTES, PAGE_IS_HUGE) / WINDOW_PAGES;
}

/* Pages in the staging that was used last. */
static inline unsigned rig_staged(const struct rig *r)
{
	return rig_flagged(r, r->journal->staging, PAGE_IS_PRESENT | PAGE_IS_SWAPPED);
}

/* Right bytes, and the exchange is at rest with nothing left over. */
#define RIG_CHECK(r)                                              \
	do {                                                      \
		CU_ASSERT_EQUAL(rig_wrong(r), 0);                 \
		CU_ASSERT_EQUAL((r)->journal->step, STEP_IDLE);   \
		CU_ASSERT_EQUAL(rig_staged(r), 0);                \
		CU_ASSERT_EQUAL(exchange_counters((r)->x)->attributes_lost, 0); \
	} while (0)

static inline void rig_free(struct rig *r)
{
	memset(&exchange_hooks, 0, sizeof(exchange_hooks));
	exchange_free(r->x);
	munmap(r->ram, RIG_WINDOWS * WINDOW_BYTES);
	munmap((void *)(uintptr_t)r->store.map, RIG_FRAMES * PAGE_BYTES);
	munmap(r->journal, sizeof(*r->journal));
	close(r->store.fd);
	close(r->pagemap_fd);
	close(r->uffd);
}

/* VmFlags of the mapping at addr; "" if there is none. */
static inline void rig_flags(uint64_t addr, char flags[256])
{
	auto_fclose FILE *f = fopen("/proc/self/smaps", "re");
	char line[256];
	uint64_t start, end = 0;
	bool here = false;

	flags[0] = '\0';
	while (f && fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
			here = addr >= start && addr < end;
		else if (here && strncmp(line, "VmFlags:", 8) == 0)
			snprintf(flags, 256, "%s", line);
	}
}

/* The code that must not disturb this process (limits, mlockall ..) runs in a child: true if it ends with 0. */
static inline bool rig_in_child(int (*fn)(void))
{
	int status;
	pid_t pid = fork();

	unit_must(pid >= 0, "fork");
	if (pid == 0) {
		alarm(60);
		_exit(fn());
	}
	unit_must(waitpid(pid, &status, 0) == pid, "waitpid");
	if (status != 0)
		printf("\n    child: status %#x\n", (unsigned)status);
	return status == 0;
}

/* ---- a thread that touches a page, and may have to wait ---- */

struct toucher {
	pthread_t thread;
	volatile uint8_t *at;
	bool write;
	uint8_t got;
	_Atomic int done;
};

static inline void *toucher_main(void *arg)
{
	struct toucher *t = arg;

	if (t->write)
		*t->at = t->got;
	else
		t->got = *t->at;
	t->done = 1;
	return NULL;
}

static inline void toucher_start(struct toucher *t, uint8_t *at, bool write, uint8_t value)
{
	*t = (struct toucher){ .at = at, .write = write, .got = value };
	unit_must(pthread_create(&t->thread, NULL, toucher_main, t) == 0, "pthread_create");
}

#endif
