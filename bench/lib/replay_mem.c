#include "bench/lib/replay_mem.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <xxhash.h>

#include "core/cleanup.h"
#include "core/snapshot.h"
#include "ept/pagestate.h"

#define HUGE_BYTES (HUGE_PAGES * PAGE_BYTES)
#define RANGES_AT_ONCE 256u

/* A mapping of its own, 2 MiB-aligned, with inaccessible space around it: it must not grow together with
 * others, whose pages would then be scanned as well. */
static int map_aligned(uint64_t bytes, char **ret_base)
{
	uint64_t span = bytes + 2 * HUGE_BYTES;
	char *reserve = mmap(NULL, span, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	char *base;

	if (reserve == MAP_FAILED)
		return -errno;
	base = reserve + HUGE_BYTES - (uintptr_t)reserve % HUGE_BYTES;
	base = mmap(base, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1,
		    0);
	if (base == MAP_FAILED)
		return -errno;
	*ret_base = base;
	return 0;
}

static int read_pages(int fd, char *base, uint64_t first, uint64_t count)
{
	uint64_t at = first * PAGE_BYTES, end = (first + count) * PAGE_BYTES;

	while (at < end) {
		ssize_t n = pread(fd, base + at, end - at, (off_t)at);

		if (n < 0)
			return -errno;
		if (n == 0)
			return -EBADMSG;
		at += (uint64_t)n;
	}
	return 0;
}

/* Loads the part of each stretch that lies in 2 MiB blocks that are present as a whole, or the rest. */
static int fill(const struct replay_mem *m, int fd, bool whole_blocks)
{
	int r = 0;

	for (size_t i = 0; i < m->info.present.count && r == 0; i++) {
		uint64_t first = m->info.present.run[i].first, end = first + m->info.present.run[i].count;
		uint64_t block = (first + HUGE_PAGES - 1) / HUGE_PAGES * HUGE_PAGES;
		uint64_t block_end = end / HUGE_PAGES * HUGE_PAGES;

		if (block > block_end)
			block = block_end = end;
		if (whole_blocks) {
			r = read_pages(fd, m->base, block, block_end - block);
			continue;
		}
		r = read_pages(fd, m->base, first, block - first);
		if (r == 0)
			r = read_pages(fd, m->base, block_end, end - block_end);
	}
	return r;
}

/* Blocks with holes are filled while huge pages are off: a huge page would close the holes. */
static int map_and_fill(struct replay_mem *m, int fd, const struct replay_options *o)
{
	int r = map_aligned(m->info.bytes, &m->base);

	if (r < 0)
		return r;
	/* A kernel without huge pages has neither advice; there "off" is no error. */
	if (madvise(m->base, m->info.bytes, MADV_NOHUGEPAGE) < 0 && o->thp)
		return -errno;
	if (o->mergeable && madvise(m->base, m->info.bytes, MADV_MERGEABLE) < 0)
		return -errno;
	r = fill(m, fd, false);
	if (r == 0 && o->thp && madvise(m->base, m->info.bytes, MADV_HUGEPAGE) < 0)
		return -errno;
	return r < 0 ? r : fill(m, fd, true);
}

static int note_pages(struct replay_mem *m)
{
	uint64_t at = 0;

	m->page_count = page_runs_pages(&m->info.present);
	if (m->page_count == 0)
		return -EBADMSG;
	m->pages = calloc(m->page_count, sizeof(*m->pages));
	m->sums = calloc(m->page_count, sizeof(*m->sums));
	if (!m->pages || !m->sums)
		return -ENOMEM;
	for (size_t i = 0; i < m->info.present.count; i++) {
		for (uint64_t j = 0; j < m->info.present.run[i].count; j++)
			m->pages[at++] = (uint32_t)(m->info.present.run[i].first + j);
	}
	for (uint64_t i = 0; i < m->page_count; i++)
		m->sums[i] = XXH3_64bits(m->base + (uint64_t)m->pages[i] * PAGE_BYTES, PAGE_BYTES);
	return 0;
}

int replay_mem_load(const char *json_path, const struct replay_options *options, struct replay_mem *ret_mem)
{
	struct replay_mem m = { 0 };
	auto_close int fd = -1;
	int r = capture_info_load(json_path, &m.info);

	if (r < 0)
		return r;
	fd = capture_open_raw(json_path, &m.info, O_RDONLY);
	r = fd < 0 ? fd : map_and_fill(&m, fd, options);
	if (r == 0)
		r = note_pages(&m);
	if (r < 0) {
		replay_mem_free(&m);
		return r;
	}
	*ret_mem = m;
	return 0;
}

void replay_mem_free(struct replay_mem *m)
{
	if (m->base)
		munmap(m->base, m->info.bytes);
	free(m->pages);
	free(m->sums);
	capture_info_free(&m->info);
	*m = (struct replay_mem){ 0 };
}

/* The same for every guest. */
static void injected_fill(uint64_t *page, uint64_t number)
{
	uint64_t state = (number + 1) * UINT64_C(0x9e3779b97f4a7c15);

	for (size_t i = 0; i < PAGE_BYTES / sizeof(*page); i++) {
		state ^= state >> 12; /* xorshift64* */
		state ^= state << 25;
		state ^= state >> 27;
		page[i] = state * UINT64_C(2685821657736338717);
	}
}

int replay_mem_inject(const struct replay_mem *m, uint64_t pages, int (*discard)(void *userdata, void *at, size_t bytes),
		      void *userdata)
{
	uint64_t done = 0, at = 0;
	int r = 0;

	for (uint64_t i = 0; i <= m->page_count && r == 0; i++) { /* the hole before each present page, and the last */
		uint64_t end = i < m->page_count ? m->pages[i] : m->info.bytes / PAGE_BYTES;

		if (pages == 0 && at < end)
			r = discard(userdata, m->base + at * PAGE_BYTES, (end - at) * PAGE_BYTES);
		for (; at < end && done < pages; at++)
			injected_fill((uint64_t *)(void *)(m->base + at * PAGE_BYTES), done++);
		at = end + 1;
	}
	return r < 0 ? r : done < pages ? -ENOSPC : 0;
}

static void note_wrong(struct replay_check *check, uint64_t page)
{
	if (check->wrong_pages++ == 0)
		check->first_wrong = page;
}

/* Pages of [first, end) that are no part of the capture must be absent or full of zeroes. */
static void check_foreign(const struct replay_mem *m, uint64_t first, uint64_t end, size_t *run_at,
			  struct replay_check *check)
{
	const struct page_runs *present = &m->info.present;

	for (uint64_t page = first; page < end; page++) {
		const char *data = m->base + page * PAGE_BYTES;

		while (*run_at < present->count &&
		       page >= present->run[*run_at].first + present->run[*run_at].count)
			(*run_at)++;
		if (*run_at < present->count && page >= present->run[*run_at].first)
			continue;
		if (data[0] != 0 || memcmp(data, data + 1, PAGE_BYTES - 1) != 0)
			note_wrong(check, page);
	}
}

static int check_holes(const struct fsio *fs, const struct replay_mem *m, struct replay_check *check)
{
	auto_free struct page_range *ranges = calloc(RANGES_AT_ONCE, sizeof(*ranges));
	auto_close int pagemap = pagestate_open(fs, getpid());
	uint64_t start = (uintptr_t)m->base, end = start + m->info.bytes;
	size_t run_at = 0;

	if (!ranges)
		return -ENOMEM;
	if (pagemap < 0)
		return pagemap;
	for (uint64_t at = start, next = start; at < end; at = next) {
		ssize_t n = pagestate_ranges(pagemap, at, end, ranges, RANGES_AT_ONCE, &next);

		if (n < 0 || next <= at)
			return n < 0 ? (int)n : -EIO;
		for (ssize_t i = 0; i < n; i++) {
			if (!(ranges[i].flags & PAGE_ZERO_MAPPED))
				check_foreign(m, (ranges[i].start - start) / PAGE_BYTES,
					      (ranges[i].end - start) / PAGE_BYTES, &run_at, check);
		}
	}
	return 0;
}

int replay_mem_check(const struct fsio *fs, const struct replay_mem *m, struct replay_check *ret_check)
{
	struct replay_check check = { 0 };
	int r = check_holes(fs, m, &check);

	if (r < 0)
		return r;
	for (uint64_t i = 0; i < m->page_count; i++) {
		uint64_t sum = XXH3_64bits(m->base + (uint64_t)m->pages[i] * PAGE_BYTES, PAGE_BYTES);

		if (sum != m->sums[i])
			note_wrong(&check, m->pages[i]);
		check.sum = (check.sum ^ sum) * UINT64_C(0x9e3779b97f4a7c15);
	}
	*ret_check = check;
	return 0;
}
