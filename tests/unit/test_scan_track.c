/* ksmd/scan_track: looks at memory of which the kernel tells what was written. The memory is this process's own. */
#include <pthread.h>
#include <sys/mman.h>

#include "agent/uffd.h"
#include "core/kernel_abi.h"
#include "tests/unit/scan_child.h"

#define BLOCK 512
#define BLOCK_BYTES (BLOCK * PAGE_BYTES)
#define PAGES (3 * BLOCK)

static int uffd = -1;

struct world {
	char *map;
	uint64_t contents[PAGES]; /* UNIT_ABSENT: none */
	struct scan_target t;
	uint64_t hashed; /* in the last look */
};

static void page_write(struct world *w, unsigned p, uint64_t content)
{
	unit_page_fill(w->map + p * PAGE_BYTES, content);
	w->contents[p] = content;
}

static void page_drop(struct world *w, unsigned p)
{
	unit_must(madvise(w->map + p * PAGE_BYTES, PAGE_BYTES, MADV_DONTNEED) == 0, "MADV_DONTNEED");
	w->contents[p] = UNIT_ABSENT;
}

/* Pages [0, present) hold p + 1. */
static void world_new(struct world *w, bool huge, bool registered, unsigned present)
{
	const struct unit_child self = { .pid = getpid(), .pidfd = (int)syscall(SYS_pidfd_open, getpid(), 0) };
	size_t bytes = PAGES * PAGE_BYTES;
	char *area = mmap(NULL, bytes + BLOCK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	unit_must(area != MAP_FAILED && self.pidfd >= 0, "memory");
	w->map = area + (-(uintptr_t)area & (BLOCK_BYTES - 1));
	unit_must(madvise(w->map, bytes, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE) == 0, "advice");
	for (unsigned p = 0; p < PAGES; p++)
		w->contents[p] = UNIT_ABSENT;
	for (unsigned p = 0; p < present; p++)
		page_write(w, p, p + 1);
	if (registered)
		unit_must(uffd_register(uffd, (uintptr_t)w->map, bytes, UFFDIO_REGISTER_MODE_WP) == 0, "register");
	target_open(&w->t, &self, PAGES);
	w->t.hva = (uintptr_t)w->map;
	w->t.anonymous = w->t.tracked = true;
	w->t.track = scan_track_new(PAGES);
	w->t.changed = calloc(SCAN_CHUNK_WORDS, sizeof(*w->t.changed));
	unit_must(w->t.track && w->t.changed, "target");
}

static void world_free(struct world *w)
{
	close(w->t.pidfd);
	free(w->t.changed);
	scan_track_free(w->t.track);
	target_close(&w->t);
	munmap(w->map, PAGES * PAGE_BYTES);
}

static void look(struct world *w)
{
	const struct scan_limits limits = { .workers = 1 };
	struct scan_progress progress = { 0 };
	uint64_t cpu_ns = 0;

	CU_ASSERT_EQUAL(scan_run(&w->t, 1, &limits, NULL, &progress, &cpu_ns), 0);
	w->hashed = w->t.hashed_pages;
}

static bool unsettled(const struct world *w, unsigned p)
{
	return w->t.changed[p / 64] >> p % 64 & 1;
}

/* How many pages have no hash though they are there; a wrong hash is counted in *ret_wrong. */
static unsigned without_hash(const struct world *w, unsigned *ret_wrong)
{
	unsigned none = 0;

	*ret_wrong = 0;
	for (unsigned p = 0; p < PAGES; p++) {
		uint64_t want = hash_of(w->contents[p]);

		if (w->t.hashes[p] != want)
			*(w->t.hashes[p] == PAGE_HASH_NONE ? &none : ret_wrong) += 1;
	}
	return none;
}

static bool all_right(const struct world *w)
{
	unsigned wrong;

	return without_hash(w, &wrong) == 0 && wrong == 0;
}

static bool is_huge(const struct world *w, unsigned block)
{
	uint64_t at = (uintptr_t)w->map + block * BLOCK_BYTES, next;
	struct page_range range;

	return pagestate_ranges(w->t.pagemap_fd, at, at + BLOCK_BYTES, &range, 1, &next) == 1 &&
	       (range.flags & PAGE_HUGE) && range.end - range.start == BLOCK_BYTES;
}

static void test_track_quiet_memory_is_hashed_once(void)
{
	struct world w;

	world_new(&w, false, true, PAGES);
	look(&w);
	CU_ASSERT_EQUAL(w.hashed, PAGES);
	CU_ASSERT_TRUE(all_right(&w));
	for (unsigned i = 0; i < 3; i++) {
		look(&w);
		CU_ASSERT_EQUAL(w.hashed, 0);
		CU_ASSERT_EQUAL(w.t.present_pages, PAGES);
	}
	CU_ASSERT_TRUE(all_right(&w));
	CU_ASSERT_EQUAL(w.t.settled_pages, PAGES);
	world_free(&w);
}

static void test_track_written_page_is_hashed_when_it_has_settled(void)
{
	struct world w;
	unsigned wrong;

	world_new(&w, false, true, BLOCK);
	look(&w);
	look(&w);
	page_write(&w, 7, 0);
	page_write(&w, 9, 900);
	look(&w);
	CU_ASSERT_EQUAL(w.hashed, 0);
	CU_ASSERT_TRUE(unsettled(&w, 7) && unsettled(&w, 9) && !unsettled(&w, 8));
	CU_ASSERT_EQUAL(without_hash(&w, &wrong), 2);
	page_write(&w, 9, 901); /* once more */
	look(&w);
	CU_ASSERT_EQUAL(w.hashed, 1);
	CU_ASSERT_EQUAL(w.t.hashes[7], PAGE_HASH_ZERO);
	CU_ASSERT_EQUAL(w.t.zero_pages, 1);
	CU_ASSERT_TRUE(!unsettled(&w, 7) && unsettled(&w, 9));
	look(&w);
	CU_ASSERT_EQUAL(w.hashed, 1);
	CU_ASSERT_TRUE(all_right(&w));
	world_free(&w);
}

static void test_track_pages_come_and_go(void)
{
	struct world w;

	world_new(&w, false, true, BLOCK);
	look(&w);
	page_drop(&w, 3);
	page_write(&w, BLOCK + 5, 55);
	look(&w);
	CU_ASSERT_EQUAL(w.t.hashes[3], PAGE_HASH_NONE);
	CU_ASSERT_EQUAL(w.t.present_pages, BLOCK);
	page_drop(&w, BLOCK + 5); /* before it has settled */
	page_write(&w, 3, 33);
	look(&w);
	CU_ASSERT_FALSE(unsettled(&w, BLOCK + 5));
	look(&w);
	CU_ASSERT_TRUE(all_right(&w));
	world_free(&w);
}

static void test_track_page_that_goes_is_noticed_though_nothing_is_written(void)
{
	unsigned looks = 0;
	struct world w;

	world_new(&w, false, true, PAGES);
	look(&w);
	look(&w);
	page_drop(&w, 3);
	while (w.t.hashes[3] != PAGE_HASH_NONE && ++looks < 100)
		look(&w);
	CU_ASSERT_TRUE(looks <= 17);
	CU_ASSERT_EQUAL(w.t.present_pages, PAGES - 1);
	CU_ASSERT_TRUE(all_right(&w));
	world_free(&w);
}

static void test_track_busy_block_is_left_alone_and_taken_up_again(void)
{
	struct world w;
	unsigned wrong, rested = 0, looks = 0;

	world_new(&w, false, true, PAGES);
	look(&w);
	for (unsigned i = 0; i < 40; i++) {
		for (unsigned p = 0; p < 100; p++)
			page_write(&w, p, 10000 + i);
		look(&w);
		rested += without_hash(&w, &wrong) == BLOCK; /* and no other */
		CU_ASSERT_EQUAL(wrong, 0);
		CU_ASSERT_TRUE(i < 1 || w.hashed < 2 * BLOCK);
	}
	CU_ASSERT_TRUE(rested > 20);
	do {
		look(&w);
	} while (!all_right(&w) && ++looks < 200);
	CU_ASSERT_TRUE(looks < 140); /* 2 x 64, and a few */
	world_free(&w);
}

static void test_track_huge_page_is_protected_only_when_quiet(void)
{
	struct world w;

	world_new(&w, true, true, 2 * BLOCK);
	if (!is_huge(&w, 0) || !is_huge(&w, 1)) {
		world_free(&w);
		UNIT_SKIP("no huge pages to be had");
	}
	look(&w);
	CU_ASSERT_EQUAL(w.hashed, 2 * BLOCK);
	CU_ASSERT_TRUE(all_right(&w));
	for (unsigned i = 0; i < 8; i++) { /* block 0 is written all over, block 1 not at all */
		for (unsigned p = 0; p < BLOCK; p++)
			page_write(&w, p, 20000 + i);
		look(&w);
		CU_ASSERT_TRUE(is_huge(&w, 0) && is_huge(&w, 1));
		CU_ASSERT_EQUAL(w.t.huge_pages, 2 * BLOCK);
	}
	CU_ASSERT_TRUE(w.t.hashes[0] == PAGE_HASH_NONE);
	CU_ASSERT_TRUE(w.t.hashes[BLOCK] == hash_of(BLOCK + 1));
	page_write(&w, BLOCK, 1); /* the first write to what is protected */
	CU_ASSERT_FALSE(is_huge(&w, 1));
	look(&w);
	CU_ASSERT_TRUE(w.t.hashes[BLOCK] == PAGE_HASH_NONE && w.t.hashes[BLOCK + 1] == hash_of(BLOCK + 2));
	for (unsigned i = 0; i < 140 && !all_right(&w); i++)
		look(&w);
	CU_ASSERT_TRUE(all_right(&w));
	world_free(&w);
}

static void test_track_unregistered_memory_is_hashed_at_each_look(void)
{
	struct world w;

	world_new(&w, false, false, BLOCK);
	for (unsigned i = 0; i < 3; i++) {
		page_write(&w, 4, 100 + i);
		look(&w);
		CU_ASSERT_EQUAL(w.hashed, BLOCK);
		CU_ASSERT_TRUE(all_right(&w));
	}
	world_free(&w);
}

/* Registered, then not, then again: as when the VMM has watched its memory itself for a while. */
static void test_track_goes_on_after_a_gap(void)
{
	struct world w;

	world_new(&w, false, true, PAGES);
	look(&w);
	unit_must(uffd_unregister(uffd, (uintptr_t)w.map, PAGES * PAGE_BYTES) == 0, "unregister");
	w.t.tracked = false;
	page_write(&w, 1, 77);
	look(&w);
	CU_ASSERT_TRUE(all_right(&w));
	page_write(&w, 2, 78);
	unit_must(uffd_register(uffd, (uintptr_t)w.map, PAGES * PAGE_BYTES, UFFDIO_REGISTER_MODE_WP) == 0, "register");
	w.t.tracked = true;
	look(&w);
	CU_ASSERT_TRUE(all_right(&w));
	page_write(&w, 3, 79);
	look(&w);
	look(&w);
	CU_ASSERT_TRUE(all_right(&w));
	world_free(&w);
}

/* Whatever happens: a page of small memory never keeps a hash that it does not have, and gets one when it rests. */
static void test_track_random_writes_no_hash_is_stale(void)
{
	unsigned seed = 1, wrong, looks = 0;
	struct world w;

	world_new(&w, false, true, 2 * BLOCK);
	for (unsigned i = 0; i < 300; i++) {
		for (unsigned n = (unsigned)rand_r(&seed) % 60; n > 0; n--) {
			unsigned p = (unsigned)rand_r(&seed) % PAGES;

			if (rand_r(&seed) % 8 == 0)
				page_drop(&w, p);
			else
				page_write(&w, p, (uint64_t)rand_r(&seed) % 50);
		}
		look(&w);
		without_hash(&w, &wrong);
		CU_ASSERT_EQUAL(wrong, 0);
	}
	do {
		look(&w);
	} while (!all_right(&w) && ++looks < 200);
	CU_ASSERT_TRUE(looks < 140);
	world_free(&w);
}

struct writer {
	struct world *w;
	_Atomic bool stop;
	pthread_t thread;
};

static void *write_on(void *arg)
{
	struct writer *r = arg;
	unsigned seed = 3;

	while (!r->stop) {
		unsigned p = (unsigned)rand_r(&seed) % PAGES;

		if (rand_r(&seed) % 4 == 0)
			page_drop(r->w, p);
		else
			page_write(r->w, p, (uint64_t)rand_r(&seed));
	}
	return NULL;
}

/* A page that is written, or comes, while it is looked at is seen by the next look, for it was protected before. */
static void test_track_writes_while_it_looks_are_seen(void)
{
	struct world w;
	struct writer writer = { .w = &w };
	unsigned looks = 0;

	world_new(&w, false, true, PAGES);
	unit_must(pthread_create(&writer.thread, NULL, write_on, &writer) == 0, "thread");
	for (unsigned i = 0; i < 300; i++)
		look(&w);
	writer.stop = true;
	pthread_join(writer.thread, NULL);
	do {
		look(&w);
	} while (!all_right(&w) && ++looks < 200);
	CU_ASSERT_TRUE(looks < 140);
	world_free(&w);
}

int main(void)
{
	static CU_TestInfo tests[] = {
		{ "quiet", test_track_quiet_memory_is_hashed_once },
		{ "settles", test_track_written_page_is_hashed_when_it_has_settled },
		{ "come_and_go", test_track_pages_come_and_go },
		{ "gone", test_track_page_that_goes_is_noticed_though_nothing_is_written },
		{ "busy", test_track_busy_block_is_left_alone_and_taken_up_again },
		{ "huge", test_track_huge_page_is_protected_only_when_quiet },
		{ "unregistered", test_track_unregistered_memory_is_hashed_at_each_look },
		{ "gap", test_track_goes_on_after_a_gap },
		{ "random", test_track_random_writes_no_hash_is_stale },
		{ "racing", test_track_writes_while_it_looks_are_seen },
		CU_TEST_INFO_NULL,
	};

	unit_must(fsio_open_root("/", false, &fs) == 0, "/");
	uffd = uffd_open();
	if (uffd < 0) {
		printf("skip: no userfaultfd with WP_ASYNC: %s\n", strerror(-uffd));
		return 77;
	}
	return unit_main("scan_track", tests);
}
