#include "ksmd/zero_split.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "agent/page_hash.h"
#include "core/clock.h"
#include "core/log.h"
#include "ept/pagestate.h"
#include "ksmd/pass_internal.h"

#define BLOCK_PAGES 512
#define BLOCK_BYTES ((uint64_t)BLOCK_PAGES * PAGE_BYTES)

/* A split is worth 256 KiB: below 64 pages of a block, a huge page is worth more than what it hides (measured on
 * real guests: 0.3 % of what can be saved lies in such blocks). */
#define ZERO_PAGES_MIN 64

struct zero_split {
	struct page_table **tables;
	size_t count;
	pthread_t thread;
	bool started;
	_Atomic bool cancel;
	uint64_t blocks; /* split */
	double cpu_seconds;
};

static size_t zero_pages(const uint64_t *hashes)
{
	size_t zero = 0;

	for (size_t i = 0; i < BLOCK_PAGES; i++)
		zero += hashes[i] == PAGE_HASH_ZERO;
	return zero;
}

static bool block_is_huge(const struct scan_target *t, uint64_t hva)
{
	struct page_range range;
	uint64_t next;
	ssize_t n = pagestate_ranges(t->pagemap_fd, hva, hva + BLOCK_BYTES, &range, 1, &next);

	return n == 1 && range.start == hva && range.end == hva + BLOCK_BYTES && (range.flags & PAGE_HUGE) &&
	       !(range.flags & PAGE_ZERO_MAPPED);
}

/* 0, or -errno when there is no point in going on with this target. */
static int block_split(struct zero_split *z, const struct scan_target *t, uint64_t hva)
{
	/* The last page: it counts as cold afterwards, which a block's first page deserves least. */
	struct iovec one = { (void *)(uintptr_t)(hva + BLOCK_BYTES - PAGE_BYTES), PAGE_BYTES };

	if (syscall(SYS_process_madvise, t->pidfd, &one, 1, MADV_COLD, 0) < 0)
		return errno == EAGAIN || errno == EINTR ? 0 : -errno;
	z->blocks += !block_is_huge(t, hva); /* the call does not say whether the split failed */
	return 0;
}

static void target_split(struct zero_split *z, const struct scan_target *t)
{
	uint64_t first = (BLOCK_PAGES - t->hva / PAGE_BYTES % BLOCK_PAGES) % BLOCK_PAGES;

	for (uint64_t page = first; page + BLOCK_PAGES <= t->pages && !z->cancel; page += BLOCK_PAGES) {
		uint64_t hva = t->hva + page * PAGE_BYTES;
		int r;

		if (!t->used[page / SCAN_CHUNK_PAGES] || zero_pages(t->hashes + page) < ZERO_PAGES_MIN ||
		    !block_is_huge(t, hva))
			continue;
		r = block_split(z, t, hva);
		if (r < 0) {
			if (r != -ESRCH)
				log_warning("cannot split huge pages of pid %d, ignoring: %s", (int)t->pid,
					    strerror(-r));
			return;
		}
	}
}

static void *split_main(void *arg)
{
	struct zero_split *z = arg;

	pthread_setname_np(pthread_self(), "zero-split");
	for (size_t i = 0; i < z->count; i++)
		for (size_t k = 0; k < z->tables[i]->target_count && !z->cancel; k++)
			target_split(z, &z->tables[i]->targets[k]);
	z->cpu_seconds = (double)clock_thread_cpu_ns() / (double)NSEC_PER_SEC;
	return NULL;
}

int zero_split_start(struct page_table *const *tables, size_t count, struct zero_split **ret_split)
{
	struct zero_split *z = calloc(1, sizeof(*z));
	int r;

	if (!z)
		return -ENOMEM;
	z->tables = calloc(count + 1, sizeof(*z->tables));
	if (!z->tables) {
		free(z);
		return -ENOMEM;
	}
	for (; z->count < count; z->count++)
		z->tables[z->count] = page_table_ref(tables[z->count]);
	r = -pthread_create(&z->thread, NULL, split_main, z);
	if (r < 0) {
		zero_split_free(z, NULL, NULL);
		return r;
	}
	z->started = true;
	*ret_split = z;
	return 0;
}

void zero_split_wait(struct zero_split *z)
{
	if (z->started)
		pthread_join(z->thread, NULL);
	z->started = false;
}

struct zero_split *zero_split_free(struct zero_split *z, double *cpu_seconds, uint64_t *blocks)
{
	if (!z)
		return NULL;
	z->cancel = true;
	zero_split_wait(z);
	if (cpu_seconds)
		*cpu_seconds += z->cpu_seconds;
	if (blocks)
		*blocks += z->blocks;
	for (size_t i = 0; i < z->count; i++)
		page_table_unref(z->tables[i]);
	free(z->tables);
	free(z);
	return NULL;
}
