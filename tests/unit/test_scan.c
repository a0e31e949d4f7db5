/* ksmd/scan over children whose memory is known page by page. */
#include "ksmd/scan.h"

#include "tests/unit/scan_child.h"

static int scan(struct scan_target *t, size_t count, struct scan_limits limits)
{
	struct scan_progress progress = { .cancel = false };
	uint64_t cpu_ns = 0, pages = 0;
	int r = scan_run(t, count, &limits, NULL, &progress, &cpu_ns);

	for (size_t i = 0; i < count; i++)
		pages += t[i].pages;
	CU_ASSERT_EQUAL(progress.total_pages, pages);
	CU_ASSERT_EQUAL(progress.done_pages, pages);
	for (size_t i = 0; i < count; i++) {
		CU_ASSERT_TRUE(t[i].cpu_ns <= cpu_ns);
		CU_ASSERT_TRUE(t[i].started_ns > 0 && t[i].started_ns <= t[i].ended_ns);
	}
	return r;
}

/* ---- contents ---- */

static void test_scan_known_contents_hashed_by_any_workers(void)
{
	static const unsigned workers[] = { 1, 2, 5, 0 };
	const size_t pages = 2 * CHUNK + 1000;
	auto_free uint64_t *contents = contents_new(pages);
	struct expected want = expected_of(contents, pages);
	struct unit_pages layout = { contents, pages };
	struct unit_child c;
	struct scan_target t;

	if (geteuid() != 0)
		UNIT_SKIP("reading another process needs root");
	unit_child_start(&c, unit_pages_make, &layout);
	target_open(&t, &c, pages);
	for (size_t i = 0; i < ARRAY_SIZE(workers) * 2; i++) {
		pagestate_force_fallback(i >= ARRAY_SIZE(workers));
		CU_ASSERT_EQUAL(scan(&t, 1, (struct scan_limits){ .workers = workers[i % ARRAY_SIZE(workers)] }), 0);
		CU_ASSERT_EQUAL(wrong_hashes(&t, contents), 0);
		CU_ASSERT_EQUAL(t.present_pages, want.present);
		CU_ASSERT_EQUAL(t.zero_pages, want.zero);
		CU_ASSERT_EQUAL(t.zero_mapped_pages, want.zero_mapped);
		CU_ASSERT_EQUAL(t.swapped_pages, 0);
		CU_ASSERT_EQUAL(t.huge_pages, 0);
		CU_ASSERT_FALSE(t.gone);
	}
	pagestate_force_fallback(false);
	target_close(&t);
	unit_child_stop(&c);
}

static void test_scan_old_hashes_replaced(void)
{
	static const uint64_t contents[] = { UNIT_ABSENT, 3, UNIT_ZERO_MAPPED, 0, 4 };
	struct unit_pages layout = { contents, ARRAY_SIZE(contents) };
	struct unit_child c;
	struct scan_target t;

	if (geteuid() != 0)
		UNIT_SKIP("reading another process needs root");
	unit_child_start(&c, unit_pages_make, &layout);
	target_open(&t, &c, ARRAY_SIZE(contents));
	for (size_t i = 0; i < t.pages; i++)
		t.hashes[i] = 1234 + i; /* of an earlier scan */
	CU_ASSERT_EQUAL(scan(&t, 1, (struct scan_limits){ .workers = 1 }), 0);
	CU_ASSERT_EQUAL(wrong_hashes(&t, contents), 0);
	target_close(&t);
	unit_child_stop(&c);
}

static void test_scan_changed_since_the_scan_before_is_noted(void)
{
	static const uint64_t contents[] = { 3, 4, 5, 0, 6, UNIT_ABSENT };
	struct unit_pages layout = { contents, ARRAY_SIZE(contents) };
	uint64_t changed[SCAN_CHUNK_WORDS] = { 1u << 5 | 1u << 1 }; /* of earlier scans: nobody's business */
	uint8_t used[2] = { 1 };
	struct unit_child c;
	struct scan_target t;

	if (geteuid() != 0)
		UNIT_SKIP("reading another process needs root");
	unit_child_start(&c, unit_pages_make, &layout);
	target_open(&t, &c, ARRAY_SIZE(contents));
	t.changed = changed;
	t.used = used;
	t.hashes[0] = 1234;	  /* another content then */
	t.hashes[1] = hash_of(4); /* the same */
	t.hashes[3] = hash_of(7); /* zero now */
	t.hashes[5] = hash_of(8); /* was there then: page 2 and 4 were not */
	CU_ASSERT_EQUAL(scan(&t, 1, (struct scan_limits){ .workers = 1 }), 0);
	CU_ASSERT_EQUAL(changed[0], 1u << 0 | 1u << 3);
	CU_ASSERT_EQUAL(scan(&t, 1, (struct scan_limits){ .workers = 1 }), 0);
	CU_ASSERT_EQUAL(changed[0], 0); /* settled */
	used[0] = 0;
	t.hashes[0] = 1234; /* of nothing: the chunk was empty */
	CU_ASSERT_EQUAL(scan(&t, 1, (struct scan_limits){ .workers = 1 }), 0);
	CU_ASSERT_EQUAL(changed[0], 0);
	target_close(&t);
	unit_child_stop(&c);
}

static void test_scan_several_targets_kept_apart(void)
{
	enum { TARGETS = 5 };
	static const size_t pages[TARGETS] = { 1, CHUNK, 3, CHUNK + 1, 64 };
	struct unit_child c[TARGETS];
	struct scan_target t[TARGETS];
	uint64_t *contents[TARGETS];

	if (geteuid() != 0)
		UNIT_SKIP("reading another process needs root");
	for (size_t i = 0; i < TARGETS; i++) {
		contents[i] = calloc(pages[i], sizeof(uint64_t));
		for (size_t k = 0; k < pages[i]; k++)
			contents[i][k] = k % 16 ? UNIT_ABSENT : 1000 * i + k % 37;
		unit_child_start(&c[i], unit_pages_make, &(struct unit_pages){ contents[i], pages[i] });
		target_open(&t[i], &c[i], pages[i]);
	}
	CU_ASSERT_EQUAL(scan(t, TARGETS, (struct scan_limits){ .workers = 3 }), 0);
	for (size_t i = 0; i < TARGETS; i++) {
		CU_ASSERT_EQUAL(wrong_hashes(&t[i], contents[i]), 0);
		CU_ASSERT_EQUAL(t[i].present_pages, (pages[i] + 15) / 16);
		target_close(&t[i]);
		unit_child_stop(&c[i]);
		free(contents[i]);
	}
}

static void test_scan_no_targets_succeeds(void)
{
	struct scan_progress progress = { .cancel = false };
	struct scan_limits limits = { .workers = 2 };
	uint64_t cpu_ns = 5;

	CU_ASSERT_EQUAL(scan_run(NULL, 0, &limits, NULL, &progress, &cpu_ns), 0);
	CU_ASSERT_EQUAL(cpu_ns, 5);
	CU_ASSERT_PTR_NULL(scan_hashes_new(0));
	CU_ASSERT_PTR_NULL(scan_hashes_new(UINT64_MAX));
	CU_ASSERT_PTR_NULL(scan_hashes_free(NULL, 5));
}

/* ---- what a scan must not do ---- */

/* The child's resident memory from both places where the kernel tells it. */
static uint64_t resident_pages(pid_t pid)
{
	char path[64];
	auto_free char *rollup = NULL, *statm = NULL;
	uint64_t rss_kib = 0, statm_pages = 0, size;

	snprintf(path, sizeof(path), "/proc/%d", (int)pid);
	rollup = unit_file_text(path, "smaps_rollup");
	statm = unit_file_text(path, "statm");
	unit_must(rollup && statm && fsio_field_u64(rollup, "Rss", &rss_kib) == 0, "smaps_rollup");
	unit_must(sscanf(statm, "%lu %lu", &size, &statm_pages) == 2, "statm");
	return rss_kib / 4 * 1000000 + statm_pages;
}

static size_t states(const struct scan_target *t, struct page_range *ranges, size_t cap)
{
	size_t count = 0;

	for (uint64_t at = t->hva, end = t->hva + t->pages * PAGE_BYTES; at < end && count < cap;) {
		ssize_t n = pagestate_ranges(t->pagemap_fd, at, end, ranges + count, cap - count, &at);

		if (n < 0)
			break;
		count += (size_t)n;
	}
	return count;
}

static void test_scan_absent_and_zero_mapped_not_faulted_in(void)
{
	enum { RANGES = 3 * CHUNK };
	const size_t pages = 2 * CHUNK;
	auto_free uint64_t *contents = contents_new(pages);
	auto_free struct page_range *before = calloc(RANGES, sizeof(*before)), *after = calloc(RANGES, sizeof(*after));
	struct unit_pages layout = { contents, pages };
	struct unit_child c;
	struct scan_target t;

	if (geteuid() != 0)
		UNIT_SKIP("reading another process needs root");
	unit_child_start(&c, unit_pages_make, &layout);
	kill(c.pid, SIGSTOP); /* so that it faults nothing in itself */
	unit_must(waitpid(c.pid, NULL, WUNTRACED) == c.pid, "waitpid");
	target_open(&t, &c, pages);
	for (int fallback = 0; fallback < 2; fallback++) {
		uint64_t resident = resident_pages(c.pid);
		size_t count;

		pagestate_force_fallback(fallback);
		count = states(&t, before, RANGES);
		CU_ASSERT_TRUE(count > 1000);
		CU_ASSERT_EQUAL(scan(&t, 1, (struct scan_limits){ .workers = 2 }), 0);
		CU_ASSERT_TRUE(t.present_pages > 1000 && t.zero_mapped_pages > 1000);
		CU_ASSERT_EQUAL(resident_pages(c.pid), resident);
		CU_ASSERT_EQUAL(states(&t, after, RANGES), count);
		CU_ASSERT_EQUAL(memcmp(before, after, count * sizeof(*before)), 0);
	}
	pagestate_force_fallback(false);
	target_close(&t);
	unit_child_stop(&c);
}

static char *inherited_make(void *arg)
{
	char *map = arg;

	for (size_t i = 0; i < 200; i += 3)
		((volatile char *)map)[i * PAGE_BYTES] = map[i * PAGE_BYTES]; /* has a copy of its own; the others stay shared */
	return map;
}

static size_t count_shared(const struct scan_target *t)
{
	size_t count = 0;

	for (uint64_t i = 0; i < t->pages; i += 50) {
		uint64_t mask = 0;

		CU_ASSERT_EQUAL(pagestate_shared(t->pagemap_fd, t->hva + i * PAGE_BYTES, 50, &mask), 0);
		count += (size_t)__builtin_popcountll(mask);
	}
	return count;
}

/* Pages that two processes share, as KSM pages are: read right, and still shared afterwards. */
static void test_scan_shared_pages_stay_shared(void)
{
	const size_t pages = 200;
	uint64_t contents[200];
	struct unit_child c;
	struct scan_target t;
	size_t shared;
	char *map;

	if (geteuid() != 0)
		UNIT_SKIP("reading another process needs root");
	for (size_t i = 0; i < pages; i++)
		contents[i] = 1 + i;
	map = unit_pages_make(&(struct unit_pages){ contents, pages });
	unit_child_start(&c, inherited_make, map);
	target_open(&t, &c, pages);
	shared = count_shared(&t);
	CU_ASSERT_EQUAL(shared, pages - (pages + 2) / 3);
	for (int i = 0; i < 2; i++) {
		CU_ASSERT_EQUAL(scan(&t, 1, (struct scan_limits){ .workers = 1 }), 0);
		CU_ASSERT_EQUAL(wrong_hashes(&t, contents), 0);
		CU_ASSERT_EQUAL(t.present_pages, pages);
		CU_ASSERT_EQUAL(count_shared(&t), shared);
	}
	target_close(&t);
	unit_child_stop(&c);
	munmap(map, pages * PAGE_BYTES);
}

/* ---- pages that go away ---- */

#define HOLE_PAGES 300

static bool in_hole(size_t i)
{
	return i == 0 || (i >= 60 && i < 70) || i == 100 || i == 102 || (i >= 128 && i < 192) || i == HOLE_PAGES - 1;
}

/* Present pages that nobody may read: to the scan as if unmapped between the look and the read. */
static char *unreadable_make(void *arg)
{
	char *map = unit_pages_make(arg);

	for (size_t i = 0; i < HOLE_PAGES; i++)
		if (in_hole(i))
			mprotect(map + i * PAGE_BYTES, PAGE_BYTES, PROT_NONE);
	return map;
}

static char *unmapped_make(void *arg)
{
	char *map = unit_pages_make(arg);

	for (size_t i = 0; i < HOLE_PAGES; i++)
		if (in_hole(i))
			munmap(map + i * PAGE_BYTES, PAGE_BYTES);
	return map;
}

static void test_scan_unreadable_pages_left_out(void)
{
	char *(*const makes[])(void *) = { unreadable_make, unmapped_make };
	uint64_t contents[HOLE_PAGES], present = 0;
	struct unit_pages layout = { contents, HOLE_PAGES };

	if (geteuid() != 0)
		UNIT_SKIP("reading another process needs root");
	for (size_t m = 0; m < ARRAY_SIZE(makes); m++) {
		struct unit_child c;
		struct scan_target t;

		for (size_t i = 0; i < HOLE_PAGES; i++)
			contents[i] = 1 + i;
		unit_child_start(&c, makes[m], &layout);
		target_open(&t, &c, HOLE_PAGES);
		CU_ASSERT_EQUAL(scan(&t, 1, (struct scan_limits){ .workers = 1 }), 0);
		for (size_t i = present = 0; i < HOLE_PAGES; i++) {
			contents[i] = in_hole(i) ? UNIT_ABSENT : contents[i];
			present += !in_hole(i);
		}
		CU_ASSERT_EQUAL(wrong_hashes(&t, contents), 0);
		CU_ASSERT_EQUAL(t.present_pages, present);
		CU_ASSERT_FALSE(t.gone);
		target_close(&t);
		unit_child_stop(&c);
	}
}

static void test_scan_process_dead_before_is_gone(void)
{
	uint64_t contents[] = { 1, 2, 3 };
	struct unit_child dead, alive;
	struct scan_target t[2];

	if (geteuid() != 0)
		UNIT_SKIP("reading another process needs root");
	unit_child_start(&dead, unit_pages_make, &(struct unit_pages){ contents, 3 });
	unit_child_start(&alive, unit_pages_make, &(struct unit_pages){ contents, 3 });
	target_open(&t[0], &dead, 3);
	target_open(&t[1], &alive, 3);
	t[0].hashes[1] = 1234;
	unit_child_kill(&dead);
	for (int fallback = 0; fallback < 2; fallback++) {
		pagestate_force_fallback(fallback);
		CU_ASSERT_EQUAL(scan(t, 2, (struct scan_limits){ .workers = 2 }), 0);
		CU_ASSERT_TRUE(t[0].gone);
		CU_ASSERT_EQUAL(t[0].hashes[1], PAGE_HASH_NONE);
		CU_ASSERT_FALSE(t[1].gone);
		CU_ASSERT_EQUAL(wrong_hashes(&t[1], contents), 0);
	}
	pagestate_force_fallback(false);
	for (int i = 0; i < 2; i++)
		target_close(&t[i]);
	unit_child_stop(&dead);
	unit_child_stop(&alive);
}

int main(void)
{
	static CU_TestInfo tests[] = {
		{ "known_contents", test_scan_known_contents_hashed_by_any_workers },
		{ "old_hashes", test_scan_old_hashes_replaced },
		{ "changed", test_scan_changed_since_the_scan_before_is_noted },
		{ "several_targets", test_scan_several_targets_kept_apart },
		{ "no_targets", test_scan_no_targets_succeeds },
		{ "nothing_faulted_in", test_scan_absent_and_zero_mapped_not_faulted_in },
		{ "shared_pages", test_scan_shared_pages_stay_shared },
		{ "unreadable", test_scan_unreadable_pages_left_out },
		{ "dead_before", test_scan_process_dead_before_is_gone },
		CU_TEST_INFO_NULL,
	};

	unit_must(fsio_open_root("/", false, &fs) == 0, "/");
	return unit_main("scan", tests);
}
