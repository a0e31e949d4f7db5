/* ept/pagestate on real memory: PAGEMAP_SCAN and the fallback for old kernels must tell the same. */
#include "ept/pagestate.h"

#include <sys/ioctl.h>

#include "core/kernel_abi.h"
#include "tests/unit/unit.h"

#define HUGE_BYTES ((size_t)2 << 20)
#define RANGES 4096
#define ALL_BUT_HUGE (PAGE_PRESENT | PAGE_SWAPPED | PAGE_ZERO_MAPPED)

struct state {
	struct page_range ranges[RANGES];
	size_t count;
};

static struct fsio fs;

static bool have_scan(int fd)
{
	struct pm_scan_arg arg = { .size = sizeof(arg), .start = 0, .end = PAGE_BYTES, .return_mask = PAGE_IS_PRESENT,
				   .category_mask = PAGE_IS_PRESENT };

	return ioctl(fd, PAGEMAP_SCAN, &arg) >= 0;
}

/* All ranges of [start, end), cap at a time, neighbours joined, with only the flags in mask. */
static int collect(int fd, uint64_t start, uint64_t end, size_t cap, unsigned mask, struct state *s)
{
	struct page_range some[256];

	s->count = 0;
	for (uint64_t at = start; at < end;) {
		uint64_t before = at;
		ssize_t n = pagestate_ranges(fd, at, end, some, cap, &at);

		if (n < 0)
			return (int)n;
		CU_ASSERT_TRUE(at <= end && (at > before || n > 0) && (size_t)n <= cap);
		for (ssize_t i = 0; i < n; i++) {
			struct page_range *last = s->count ? &s->ranges[s->count - 1] : NULL;
			unsigned flags = some[i].flags & mask;

			CU_ASSERT_TRUE(some[i].start < some[i].end && some[i].start >= before && some[i].end <= at);
			if (last && last->end == some[i].start && last->flags == flags)
				last->end = some[i].end;
			else if (s->count < RANGES)
				s->ranges[s->count++] = (struct page_range){ some[i].start, some[i].end, flags };
		}
	}
	return 0;
}

static bool same(const struct state *a, const struct state *b)
{
	if (a->count != b->count)
		return false;
	for (size_t i = 0; i < a->count; i++)
		if (a->ranges[i].start != b->ranges[i].start || a->ranges[i].end != b->ranges[i].end ||
		    a->ranges[i].flags != b->ranges[i].flags)
			return false;
	return true;
}

/* Looks at own memory both ways, with small and large arrays; all must agree. The result is in *by_scan. */
static void look(int fd, const char *map, size_t bytes, struct state *by_scan)
{
	static const size_t caps[] = { 1, 2, 7, 256 };
	static struct state other;
	uint64_t start = (uintptr_t)map;

	CU_ASSERT_EQUAL(collect(fd, start, start + bytes, 256, ALL_BUT_HUGE, by_scan), 0);
	for (size_t i = 0; i < ARRAY_SIZE(caps); i++) {
		CU_ASSERT_EQUAL(collect(fd, start, start + bytes, caps[i], ALL_BUT_HUGE, &other), 0);
		CU_ASSERT_TRUE(same(by_scan, &other));
		pagestate_force_fallback(true);
		CU_ASSERT_EQUAL(collect(fd, start, start + bytes, caps[i], ~0u, &other), 0);
		CU_ASSERT_TRUE(same(by_scan, &other));
		pagestate_force_fallback(false);
	}
}

static int own_pagemap(void)
{
	int fd = pagestate_open(&fs, getpid());

	unit_must(fd >= 0, "pagemap");
	return fd;
}

static void test_pagestate_small_pages_told_apart(void)
{
	enum { A, Z, P }; /* absent, zero-mapped, present */
	static const char kinds[] = { A, P, P, Z, Z, Z, P, A, A, Z, P, A, Z };
	static const struct {
		size_t first, last;
		unsigned flags;
	} want[] = {
		{ 1, 3, PAGE_PRESENT }, { 3, 6, PAGE_PRESENT | PAGE_ZERO_MAPPED },   { 6, 7, PAGE_PRESENT },
		{ 9, 10, PAGE_PRESENT | PAGE_ZERO_MAPPED }, { 10, 11, PAGE_PRESENT },
		{ 12, 13, PAGE_PRESENT | PAGE_ZERO_MAPPED },
	};
	auto_close int fd = own_pagemap();
	static struct state s;
	char *map;

	if (geteuid() != 0)
		UNIT_SKIP("frame numbers, which the fallback needs to know zero pages, need root");
	if (!have_scan(fd))
		UNIT_SKIP("no PAGEMAP_SCAN (Linux 6.7)");
	map = unit_map(sizeof(kinds));
	for (size_t i = 0; i < sizeof(kinds); i++) {
		volatile char *page = map + i * PAGE_BYTES;

		if (kinds[i] == P)
			*page = 1;
		else if (kinds[i] == Z)
			(void)*page;
	}
	look(fd, map, sizeof(kinds) * PAGE_BYTES, &s);
	CU_ASSERT_EQUAL(s.count, ARRAY_SIZE(want));
	for (size_t i = 0; i < ARRAY_SIZE(want) && i < s.count; i++) {
		CU_ASSERT_EQUAL(s.ranges[i].start, (uintptr_t)map + want[i].first * PAGE_BYTES);
		CU_ASSERT_EQUAL(s.ranges[i].end, (uintptr_t)map + want[i].last * PAGE_BYTES);
		CU_ASSERT_EQUAL(s.ranges[i].flags, want[i].flags);
	}
	munmap(map, sizeof(kinds) * PAGE_BYTES);
}

/* More ranges than one call gives, more pages than one read of the fallback, a hole without a mapping. */
static void test_pagestate_long_stretch_continued(void)
{
	const size_t pages = 10000, hole = 5000, hole_pages = 300;
	auto_close int fd = own_pagemap();
	static struct state s;
	size_t present = 0, seen = 0;
	char *map;

	if (!have_scan(fd))
		UNIT_SKIP("no PAGEMAP_SCAN (Linux 6.7)");
	map = unit_map(pages);
	for (size_t i = 0; i < pages; i++) {
		if (i % 7 == 0 || (i >= 8000 && i < 9999)) {
			map[i * PAGE_BYTES] = 1;
			present += i < hole || i >= hole + hole_pages;
		}
	}
	munmap(map + hole * PAGE_BYTES, hole_pages * PAGE_BYTES);
	look(fd, map, pages * PAGE_BYTES, &s);
	for (size_t i = 0; i < s.count; i++)
		seen += (s.ranges[i].end - s.ranges[i].start) / PAGE_BYTES;
	CU_ASSERT_EQUAL(seen, present);
	CU_ASSERT_TRUE(s.count > 1000);
	munmap(map, pages * PAGE_BYTES);
}

static void test_pagestate_huge_pages_told_apart(void)
{
	const size_t bytes = 5 * HUGE_BYTES;
	auto_close int fd = own_pagemap();
	static struct state s;
	struct page_range ranges[16];
	uint64_t next;
	char *map, *aligned;
	bool huge = false;
	ssize_t n;

	if (!have_scan(fd))
		UNIT_SKIP("no PAGEMAP_SCAN (Linux 6.7)");
	map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	unit_must(map != MAP_FAILED, "mmap");
	aligned = (char *)(((uintptr_t)map + HUGE_BYTES - 1) & ~(HUGE_BYTES - 1));
	madvise(aligned, 4 * HUGE_BYTES, MADV_HUGEPAGE);
	memset(aligned, 1, HUGE_BYTES);
	(void)*(volatile char *)(aligned + 2 * HUGE_BYTES); /* maps the huge zero page, where there is one */
	n = pagestate_ranges(fd, (uintptr_t)aligned, (uintptr_t)aligned + HUGE_BYTES, ranges, 16, &next);
	CU_ASSERT_TRUE(n >= 1);
	for (ssize_t i = 0; i < n; i++)
		huge |= ranges[i].flags == (PAGE_PRESENT | PAGE_HUGE);
	if (geteuid() == 0) {
		look(fd, aligned, 4 * HUGE_BYTES, &s);
		CU_ASSERT_EQUAL(s.count, 2);
		CU_ASSERT_EQUAL(s.ranges[0].flags, PAGE_PRESENT);
		CU_ASSERT_EQUAL(s.ranges[0].end - s.ranges[0].start, HUGE_BYTES);
		CU_ASSERT_EQUAL(s.ranges[1].flags, PAGE_PRESENT | PAGE_ZERO_MAPPED);
		CU_ASSERT_EQUAL(s.ranges[1].start, (uintptr_t)aligned + 2 * HUGE_BYTES);
	}
	munmap(map, bytes);
	if (!huge)
		UNIT_SKIP("the kernel gave no huge page");
}

static void test_pagestate_swapped_told_apart(void)
{
	auto_close int fd = own_pagemap();
	auto_free char *swaps = unit_file_text("/proc", "swaps");
	static struct state s;
	size_t swapped = 0;
	char *map;

	if (!have_scan(fd))
		UNIT_SKIP("no PAGEMAP_SCAN (Linux 6.7)");
	if (!swaps || !strchr(swaps, '/'))
		UNIT_SKIP("no swap");
	map = unit_map(64);
	memset(map, 1, 64 * (size_t)PAGE_BYTES);
	if (madvise(map, 32 * (size_t)PAGE_BYTES, MADV_PAGEOUT) < 0) {
		munmap(map, 64 * (size_t)PAGE_BYTES);
		UNIT_SKIP("no MADV_PAGEOUT");
	}
	look(fd, map, 64 * (size_t)PAGE_BYTES, &s);
	for (size_t i = 0; i < s.count; i++)
		swapped += s.ranges[i].flags == PAGE_SWAPPED;
	munmap(map, 64 * (size_t)PAGE_BYTES);
	if (swapped == 0)
		UNIT_SKIP("the kernel swapped nothing out");
}

static char *nothing_make(void *arg)
{
	(void)arg;
	return memset(unit_map(64), 1, 64 * (size_t)PAGE_BYTES);
}

/* The descriptor stays with the process that ended: no ranges, whatever the pid is now. */
static void test_pagestate_process_gone_gives_nothing(void)
{
	struct unit_child c;
	struct page_range ranges[16];
	uint64_t start, next;
	int fd;

	unit_child_start(&c, nothing_make, NULL);
	start = (uintptr_t)c.map;
	fd = pagestate_open(&fs, c.pid);
	CU_ASSERT_TRUE(fd >= 0);
	CU_ASSERT_TRUE(pagestate_ranges(fd, start, start + 64 * PAGE_BYTES, ranges, 16, &next) > 0);
	unit_child_kill(&c);
	CU_ASSERT_TRUE(pagestate_ranges(fd, start, start + 64 * PAGE_BYTES, ranges, 16, &next) <= 0);
	pagestate_force_fallback(true);
	CU_ASSERT_EQUAL(pagestate_ranges(fd, start, start + 64 * PAGE_BYTES, ranges, 16, &next), -ESRCH);
	pagestate_force_fallback(false);
	close(fd);
	unit_child_stop(&c);
}

static char *first_half_write(void *arg)
{
	for (size_t i = 0; i < 32; i++)
		((volatile char *)arg)[i * PAGE_BYTES] = 2;
	return arg;
}

static void test_pagestate_shared_pages_told_apart(void)
{
	auto_close int fd = own_pagemap();
	char *map = memset(unit_map(64), 1, 64 * (size_t)PAGE_BYTES);
	struct unit_child c;
	uint64_t mask = 77;

	CU_ASSERT_EQUAL(pagestate_shared(fd, (uintptr_t)map, 64, &mask), 0);
	CU_ASSERT_EQUAL(mask, 0);
	unit_child_start(&c, first_half_write, map); /* inherits the pages and writes to some */
	CU_ASSERT_EQUAL(pagestate_shared(fd, (uintptr_t)map, 64, &mask), 0);
	CU_ASSERT_EQUAL(mask, UINT64_C(0xffffffff00000000));
	CU_ASSERT_EQUAL(pagestate_shared(fd, (uintptr_t)map + 31 * PAGE_BYTES, 3, &mask), 0);
	CU_ASSERT_EQUAL(mask, 6);
	unit_child_stop(&c);
	CU_ASSERT_EQUAL(pagestate_shared(fd, (uintptr_t)map, 64, &mask), 0);
	CU_ASSERT_EQUAL(mask, 0);
	CU_ASSERT_EQUAL(pagestate_shared(fd, (uintptr_t)map, 65, &mask), -EINVAL);
	munmap(map, 64 * (size_t)PAGE_BYTES);
}

static void test_pagestate_bad_arguments_refused(void)
{
	auto_close int fd = own_pagemap();
	struct page_range range;
	uint64_t next = 77;

	CU_ASSERT_EQUAL(pagestate_ranges(fd, 8192, 8192, &range, 1, &next), -EINVAL);
	CU_ASSERT_EQUAL(pagestate_ranges(fd, 8192, 4096, &range, 1, &next), -EINVAL);
	CU_ASSERT_EQUAL(pagestate_ranges(fd, 4096, 8192, &range, 0, &next), -EINVAL);
	CU_ASSERT_EQUAL(next, 77);
	CU_ASSERT_EQUAL(pagestate_open(&fs, INT_MAX), -ENOENT);
}

int main(void)
{
	static CU_TestInfo tests[] = {
		{ "small_pages", test_pagestate_small_pages_told_apart },
		{ "long_stretch", test_pagestate_long_stretch_continued },
		{ "huge_pages", test_pagestate_huge_pages_told_apart },
		{ "swapped", test_pagestate_swapped_told_apart },
		{ "shared_pages", test_pagestate_shared_pages_told_apart },
		{ "gone", test_pagestate_process_gone_gives_nothing },
		{ "bad_arguments", test_pagestate_bad_arguments_refused },
		CU_TEST_INFO_NULL,
	};

	unit_must(fsio_open_root("/", false, &fs) == 0, "/");
	return unit_main("pagestate", tests);
}
