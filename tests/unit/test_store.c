/* ksmd/store: the life of frames, and the allocator against a model. */
#include "ksmd/store.h"

#include "tests/unit/store_help.h"

static off_t next_data(int fd, uint32_t frame)
{
	return lseek(fd, (off_t)frame * PAGE_BYTES, SEEK_DATA) / PAGE_BYTES;
}

/* ---- life of a frame ---- */

/* Retires all frames but [first, first + n); how many. */
static uint32_t retire_unused(struct store *s, uint32_t first, uint32_t n)
{
	uint64_t used[FRAMES / 64] = { 0 };
	uint32_t at = 0, len, sum = 0;

	for (uint32_t f = first; f < first + n; f++)
		used[f / 64] |= UINT64_C(1) << f % 64;
	for (; store_next_unused(s, used, &at, &len); sum += len)
		CU_ASSERT_EQUAL(store_retire(s, at, len), 0);
	return sum;
}

static void test_store_frame_life(void)
{
	struct store *s = new_store(FRAMES);
	auto_close int fd = store_client_fd(s);
	uint32_t first;

	CU_ASSERT_EQUAL(store_frames(s), FRAMES);
	CU_ASSERT_EQUAL(count(s).bytes, 0);
	CU_ASSERT_EQUAL(store_alloc(s, 10, 1, &first), 0);
	CU_ASSERT_EQUAL(count(s).frames_filling, 10);
	CU_ASSERT_EQUAL(store_retire(s, first, 10), -EINVAL); /* not published */
	put(s, first, 10, 100);
	CU_ASSERT_TRUE(store_is_published(s, first, 10));
	CU_ASSERT_FALSE(store_is_published(s, first, 11));
	CU_ASSERT_EQUAL(store_publish(s, first, 10), -EINVAL);
	CU_ASSERT_EQUAL(count(s).frames_filling, 0);
	CU_ASSERT_EQUAL(count(s).bytes, 10 * PAGE_BYTES);
	CU_ASSERT_EQUAL(store_release(s, first, 10), 0); /* published ones stay */
	CU_ASSERT_EQUAL(retire_unused(s, first + 2, 3), 7);
	CU_ASSERT_EQUAL(count(s).frames_used, 3);
	CU_ASSERT_EQUAL(count(s).bytes, 3 * PAGE_BYTES);
	CU_ASSERT_EQUAL(next_data(fd, 0), first + 2);
	CU_ASSERT_TRUE(frame_is(s, first + 2, 102) && frame_is(s, first + 4, 104));
	CU_ASSERT_EQUAL(store_retire(s, first, 10), -EINVAL); /* all or nothing */
	CU_ASSERT_EQUAL(store_retire(s, first + 2, 3), 0);
	CU_ASSERT_EQUAL(count(s).frames_used, 0);
	CU_ASSERT_EQUAL(count(s).bytes, 0);
	CU_ASSERT_PTR_NULL(store_free(s));
	CU_ASSERT_PTR_NULL(store_free(NULL));
}

static void test_store_published_frames_immutable(void)
{
	struct store *s = new_store(FRAMES);
	char *map = unit_map(4);
	auto_close int pidfd = self_pidfd();
	const struct store_source self = { getpid(), pidfd, 0 };
	uint64_t hashes[4];
	uint32_t first;
	size_t done = 7;

	CU_ASSERT_EQUAL(store_alloc(s, 4, 1, &first), 0);
	put(s, first, 3, 5); /* one is left */
	for (uint32_t i = 0; i < 4; i++) {
		struct store_piece pieces[2] = { { first + 3, 1, (uintptr_t)map }, { first + i, 1, (uintptr_t)map } };

		CU_ASSERT_EQUAL(store_fill(s, &self, pieces, 2, hashes, &done), i < 3 ? -EBUSY : 0);
		CU_ASSERT_EQUAL(done, i < 3 ? 0 : 2);
	}
	for (uint32_t i = 0; i < 3; i++)
		CU_ASSERT_TRUE(frame_is(s, first + i, 5 + i));
	for (uint32_t i = 0; i < 2; i++) { /* free frames are not to be written either, nor what is no frame */
		struct store_piece piece = { i ? first + 4 : FRAMES - 1, 2, (uintptr_t)map };

		CU_ASSERT_EQUAL(store_fill(s, &self, &piece, 1, hashes, &done), -EBUSY);
	}
	munmap(map, 4 * PAGE_BYTES);
	store_free(s);
}

static void test_store_fill_failures_reported(void)
{
	static const uint64_t contents[] = { 1, 2, 3, 4 };
	struct unit_pages pages = { contents, ARRAY_SIZE(contents) };
	struct store *s = new_store(FRAMES);
	struct store_piece pieces[3];
	struct store_source child, other;
	struct unit_child c;
	uint64_t hashes[3];
	uint32_t first;
	size_t done;

	unit_child_start(&c, unit_pages_make, &pages);
	child = (struct store_source){ c.pid, c.pidfd, 0 };
	other = (struct store_source){ getpid(), c.pidfd, 0 };
	CU_ASSERT_EQUAL(store_alloc(s, 3, 1, &first), 0);
	for (uint32_t i = 0; i < 3; i++)
		pieces[i] = (struct store_piece){ first + i, 1, (uintptr_t)c.map + (3 - i) * PAGE_BYTES };
	pieces[1].hva = PAGE_BYTES; /* nothing there */
	CU_ASSERT_EQUAL(store_fill(s, &child, pieces, 3, hashes, &done), -EFAULT);
	CU_ASSERT_EQUAL(done, 1);
	CU_ASSERT_EQUAL(store_fill(s, &child, pieces + 2, 1, hashes, &done), 0);
	CU_ASSERT_TRUE(frame_is(s, first, 4) && frame_is(s, first + 2, 2));
	unit_child_kill(&c);
	CU_ASSERT_EQUAL(store_fill(s, &other, pieces, 0, hashes, &done), -ESRCH);
	CU_ASSERT_EQUAL(store_fill(s, &other, pieces, 1, hashes, &done), -ESRCH); /* pid of another */
	CU_ASSERT_EQUAL(done, 0);
	unit_child_stop(&c);
	store_free(s);
}

/* Small frames by way of a buffer, huge ones directly, in one fill; pieces longer than the buffer, in no order. */
static void test_store_fill_pieces_land_where_they_belong(void)
{
	enum { PIECES = 400, PAGES = 4 * STORE_BLOCK_FRAMES };
	struct store *s = new_store(FRAMES);
	char *map = unit_map(PAGES);
	auto_close int pidfd = self_pidfd();
	const struct store_source self = { getpid(), pidfd, FILL_SEED };
	struct store_piece pieces[PIECES];
	static uint64_t hashes[PAGES];
	uint32_t small, huge, pages = 0, bad = 0;
	size_t count = 0, done, at = 0;

	CU_ASSERT_EQUAL(store_alloc(s, 3 * STORE_BLOCK_FRAMES, 1, &small), 0);
	CU_ASSERT_EQUAL(store_alloc(s, STORE_BLOCK_FRAMES, STORE_BLOCK_FRAMES, &huge), 0);
	for (uint32_t i = 0; i < PAGES; i++)
		unit_page_fill(map + (size_t)i * PAGE_BYTES, 9000 + i);
	/* From the end of the frames to their beginning, from the beginning of the memory on. */
	for (uint32_t left = 3 * STORE_BLOCK_FRAMES, n; left > 0; left -= n, pages += n) {
		n = count % 7 == 3 ? 150 : (uint32_t)count % 3 + 1;
		n = n < left ? n : left;
		pieces[count++] = (struct store_piece){ small + left - n, n, (uintptr_t)map + pages * (uint64_t)PAGE_BYTES };
		if (count == 5) { /* in the middle: the huge block */
			pieces[count++] = (struct store_piece){ huge, STORE_BLOCK_FRAMES,
								(uintptr_t)map + (PAGES - STORE_BLOCK_FRAMES) * (uint64_t)PAGE_BYTES };
		}
	}
	unit_must(count <= PIECES, "room for the pieces");
	CU_ASSERT_EQUAL(store_fill(s, &self, pieces, count, hashes, &done), 0);
	CU_ASSERT_EQUAL(done, count);
	for (size_t i = 0; i < count; i++) {
		for (uint32_t k = 0; k < pieces[i].pages; k++, at++) {
			uint64_t page = (pieces[i].hva - (uintptr_t)map) / PAGE_BYTES + k;

			bad += !frame_is(s, pieces[i].frame + k, 9000 + page) ||
			       hashes[at] != page_hash(map + page * PAGE_BYTES, FILL_SEED);
		}
	}
	CU_ASSERT_EQUAL(at, PAGES);
	CU_ASSERT_EQUAL(bad, 0);
	munmap(map, PAGES * PAGE_BYTES);
	store_free(s);
}

static void test_store_bad_arguments_refused(void)
{
	static const uint32_t sizes[] = { 0, 1, 513, STORE_FRAMES_MAX + STORE_BLOCK_FRAMES };
	struct store *s = NULL;
	uint32_t first;

	for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
		struct store_options options = { "bad", sizes[i], -1 };

		CU_ASSERT_EQUAL(store_new(&fs, &options, &s), -EINVAL);
	}
	s = new_store(2 * STORE_BLOCK_FRAMES);
	CU_ASSERT_EQUAL(store_alloc(s, 0, 1, &first), -EINVAL);
	CU_ASSERT_EQUAL(store_alloc(s, 1, 2, &first), -EINVAL);
	CU_ASSERT_EQUAL(store_alloc(s, UINT32_MAX, 1, &first), -ENOSPC);
	CU_ASSERT_EQUAL(store_alloc(s, 1025, 1, &first), -ENOSPC);
	CU_ASSERT_EQUAL(store_alloc(s, 1024, 1, &first), 0);
	CU_ASSERT_EQUAL(store_alloc(s, 1, 1, &first), -ENOSPC);
	CU_ASSERT_EQUAL(store_release(s, 1, 1024), -EINVAL);
	CU_ASSERT_EQUAL(store_release(s, UINT32_MAX, 2), -EINVAL);
	CU_ASSERT_EQUAL(store_retire(s, 1023, UINT32_MAX), -EINVAL);
	CU_ASSERT_PTR_NULL(store_frame(s, 1024));
	store_free(s);
}

/* ---- allocation ---- */

#define EXTENTS 400

struct extent {
	uint32_t first, n;
	bool published;
};

static bool model_take(unsigned char *model, const struct extent *e, uint32_t align)
{
	bool ok = e->first % align == 0 && e->first + e->n <= FRAMES;

	for (uint32_t i = 0; ok && i < e->n; i++)
		ok = model[e->first + i]++ == 0;
	return ok;
}

static void test_store_random_extents_as_model(void)
{
	static const uint32_t sizes[] = { 1, 1, 2, 7, 30, 100, 511, 512, 513, 1500, 2048 };
	struct store *s = new_store(FRAMES);
	unsigned char *model = calloc(FRAMES, 1);
	struct extent extents[EXTENTS] = { 0 };
	uint64_t state = 11, used = 0;
	bool ok = true;

	unit_must(model, "calloc");
	for (int step = 0; step < 20000 && ok; step++) {
		struct extent *e = &extents[unit_random(&state) % EXTENTS];
		uint32_t align = unit_random(&state) % 4 ? 1 : STORE_BLOCK_FRAMES;

		if (e->n > 0) {
			ok = (e->published ? store_retire(s, e->first, e->n) : store_release(s, e->first, e->n)) == 0;
			memset(model + e->first, 0, e->n);
			used -= e->n;
			e->n = 0;
			continue;
		}
		e->n = sizes[unit_random(&state) % ARRAY_SIZE(sizes)] * (align == 1 ? 1 : STORE_BLOCK_FRAMES);
		if (e->n > 4 * STORE_BLOCK_FRAMES || store_alloc(s, e->n, align, &e->first) < 0) {
			e->n = 0;
			continue;
		}
		ok = model_take(model, e, align);
		used += e->n;
		e->published = unit_random(&state) % 2;
		ok = ok && (!e->published || store_publish(s, e->first, e->n) == 0) && count(s).frames_used == used;
	}
	CU_ASSERT_TRUE(ok);
	for (struct extent *e = extents; e < extents + EXTENTS; e++)
		if (e->n > 0)
			CU_ASSERT_EQUAL(e->published ? store_retire(s, e->first, e->n) :
						       store_release(s, e->first, e->n), 0);
	CU_ASSERT_EQUAL(count(s).frames_used, 0);
	CU_ASSERT_EQUAL(count(s).frames_filling, 0);
	CU_ASSERT_EQUAL(store_alloc(s, FRAMES, STORE_BLOCK_FRAMES, &extents[0].first), 0); /* all in one piece again */
	CU_ASSERT_TRUE(count(s).metadata_bytes <= 4 * FRAMES);
	free(model);
	store_free(s);
}

static void test_store_small_extents_fill_gaps_first(void)
{
	struct store *s = new_store(FRAMES);
	uint32_t large, small[3], whole;

	CU_ASSERT_EQUAL(store_alloc(s, 1000, 1, &large), 0);
	CU_ASSERT_EQUAL(store_alloc(s, 20, 1, &small[0]), 0);
	CU_ASSERT_EQUAL(small[0], large + 1000);
	CU_ASSERT_EQUAL(store_alloc(s, 5, 1, &small[1]), 0); /* 4 are left behind */
	CU_ASSERT_EQUAL(store_alloc(s, 512, STORE_BLOCK_FRAMES, &whole), 0);
	CU_ASSERT_EQUAL(whole % STORE_BLOCK_FRAMES, 0);
	CU_ASSERT_EQUAL(store_alloc(s, 4, 1, &small[2]), 0);
	CU_ASSERT_EQUAL(small[2], large + 1020);
	CU_ASSERT_EQUAL(store_release(s, large + 600, 40), 0);
	CU_ASSERT_EQUAL(store_alloc(s, 40, 1, &small[2]), 0);
	CU_ASSERT_EQUAL(small[2], large + 600);
	CU_ASSERT_EQUAL(store_release(s, 0, 512), 0);
	CU_ASSERT_EQUAL(store_alloc(s, 512, STORE_BLOCK_FRAMES, &whole), 0);
	CU_ASSERT_EQUAL(whole, 0); /* a block that is free again */
	store_free(s);
}

static void test_store_gaps_found_after_a_miss(void)
{
	struct store *s = new_store(2 * STORE_BLOCK_FRAMES);
	uint32_t first;

	CU_ASSERT_EQUAL(store_alloc(s, 2 * STORE_BLOCK_FRAMES, 1, &first), 0);
	CU_ASSERT_EQUAL(store_release(s, 100, 40), 0);
	CU_ASSERT_EQUAL(store_release(s, 300, 39), 0);
	CU_ASSERT_EQUAL(store_alloc(s, 41, 1, &first), -ENOSPC);
	CU_ASSERT_EQUAL(store_alloc(s, 40, 1, &first), 0);
	CU_ASSERT_EQUAL(first, 100);
	CU_ASSERT_EQUAL(store_alloc(s, 40, 1, &first), -ENOSPC);
	CU_ASSERT_EQUAL(store_alloc(s, 39, 1, &first), 0);
	CU_ASSERT_EQUAL(first, 300);
	store_free(s);
}

static void test_store_large_costs_nothing(void)
{
	struct store_options options = { "large", UINT32_C(1) << 28, 0 }; /* 1 TiB, on node 0 */
	struct store *s;
	uint32_t first;

	unit_must(store_new(&fs, &options, &s) == 0, "store_new");
	CU_ASSERT_EQUAL(store_alloc(s, 1, 1, &first), 0);
	put(s, first, 1, 3);
	CU_ASSERT_EQUAL(count(s).bytes, PAGE_BYTES);
	CU_ASSERT_TRUE(count(s).metadata_bytes < 4096);
	store_free(s);
}

static void test_store_whole_blocks_huge(void)
{
	struct store *s = new_store(FRAMES);
	struct store_counts c;
	uint32_t first;

	CU_ASSERT_EQUAL(store_alloc(s, 2 * STORE_BLOCK_FRAMES, 1, &first), 0); /* not aligned on purpose: small */
	put(s, first, 2 * STORE_BLOCK_FRAMES, 1000);
	CU_ASSERT_EQUAL(count(s).huge_blocks, 0);
	CU_ASSERT_EQUAL(store_retire(s, first, 2 * STORE_BLOCK_FRAMES), 0);
	CU_ASSERT_EQUAL(store_alloc(s, 2 * STORE_BLOCK_FRAMES + 10, STORE_BLOCK_FRAMES, &first), 0);
	CU_ASSERT_EQUAL(first % STORE_BLOCK_FRAMES, 0);
	put(s, first, 2 * STORE_BLOCK_FRAMES + 10, 1000);
	for (uint32_t i = 0; i < 2 * STORE_BLOCK_FRAMES + 10; i += 101)
		CU_ASSERT_TRUE(frame_is(s, first + i, 1000 + i));
	c = count(s);
	CU_ASSERT_EQUAL(c.bytes, (2 * STORE_BLOCK_FRAMES + 10) * PAGE_BYTES); /* the rest is not rounded up */
	CU_ASSERT_EQUAL(store_retire(s, first + 700, 1), 0);
	CU_ASSERT_TRUE(frame_is(s, first + 699, 1699) && frame_is(s, first + 701, 1701));
	CU_ASSERT_EQUAL(count(s).huge_blocks, c.huge_blocks ? c.huge_blocks - 1 : 0);
	CU_ASSERT_EQUAL(count(s).bytes, c.bytes - PAGE_BYTES);
	store_free(s);
	if (c.huge_blocks == 0)
		UNIT_SKIP("the kernel gives no huge pages for shared memory");
	CU_ASSERT_EQUAL(c.huge_blocks, 2);
}

int main(void)
{
	static CU_TestInfo tests[] = {
		{ "life", test_store_frame_life },
		{ "immutable", test_store_published_frames_immutable },
		{ "fill_failures", test_store_fill_failures_reported },
		{ "fill_pieces", test_store_fill_pieces_land_where_they_belong },
		{ "bad", test_store_bad_arguments_refused },
		{ "random", test_store_random_extents_as_model },
		{ "gaps", test_store_small_extents_fill_gaps_first },
		{ "gaps_missed", test_store_gaps_found_after_a_miss },
		{ "large", test_store_large_costs_nothing },
		{ "huge", test_store_whole_blocks_huge },
		CU_TEST_INFO_NULL,
	};
	int r;

	unit_must(fsio_open_root("/", false, &fs) == 0, "fsio_open_root");
	r = unit_main("store", tests);
	fsio_close(&fs);
	return r;
}
