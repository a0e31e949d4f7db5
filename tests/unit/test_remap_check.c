/* Frames of a store against their hashes: a broken one is found wherever it is, and named once. */
#include "ksmd/remap.h"

#include "agent/page_hash.h"
#include "ksmd/frame_index.h"
#include "ksmd/remap_internal.h"
#include "ksmd/store.h"
#include "tests/unit/unit.h"

#define SEED 99
#define FRAMES 512u
#define USED 300u

static struct fsio fs;

static struct remap *remap_filled(void)
{
	char *map = unit_map(USED);
	struct store_source from = { .pid = getpid(), .pidfd = (int)syscall(SYS_pidfd_open, getpid(), 0), .seed = SEED };
	struct store_piece piece = { .pages = USED, .hva = (uintptr_t)map };
	uint64_t hashes[USED];
	struct remap *r;
	size_t done;

	for (uint32_t i = 0; i < USED; i++)
		unit_page_fill(map + i * PAGE_BYTES, i + 1);
	unit_must(remap_new(&fs, "check", FRAMES, &r) == 0, "remap");
	unit_must(store_alloc(r->store, USED, 1, &piece.frame) == 0, "alloc");
	unit_must(store_fill(r->store, &from, &piece, 1, hashes, &done) == 0 && done == 1, "fill");
	for (uint32_t i = 0; i < USED; i++)
		unit_must(frame_index_put(r->index, hashes[i], piece.frame + i) == 0, "put");
	unit_must(store_publish(r->store, piece.frame, USED) == 0, "publish");
	close(from.pidfd);
	munmap(map, USED * PAGE_BYTES);
	return r;
}

/* The nth used frame, writable: what no code of the daemon's does. */
static char *frame_at(struct remap *r, uint32_t nth, uint32_t *ret_frame)
{
	for (uint32_t f = 0; f < store_frames_high(r->store); f++) {
		if (store_is_published(r->store, f, 1) && nth-- == 0) {
			*ret_frame = f;
			return (char *)(uintptr_t)store_frame(r->store, f);
		}
	}
	return NULL;
}

static void test_sound_frames_are_counted(void)
{
	struct remap_frames_check c = { 0 };
	struct remap *r = remap_filled();

	remap_check_frames(r, SEED, 10000, &c); /* no more than once round at a time */
	CU_ASSERT(c.checked == USED && c.broken_count == 0);
	for (unsigned i = 0; i < 64; i++)
		remap_check_frames(r, SEED, 16, &c);
	CU_ASSERT(c.checked > 2 * USED && c.broken_count == 0);
	remap_free(r);
}

static void test_a_broken_frame_is_found_every_time(void)
{
	static const uint32_t frames[] = { 0, 1, 150, USED - 1 };
	static const size_t bytes[] = { 0, 2048, PAGE_BYTES - 1 };

	for (size_t i = 0; i < ARRAY_SIZE(frames); i++) {
		for (size_t k = 0; k < ARRAY_SIZE(bytes); k++) {
			struct remap_frames_check c = { 0 };
			struct remap *r = remap_filled();
			uint32_t frame = FRAMES;
			char *page = frame_at(r, frames[i], &frame);

			page[bytes[k]] ^= 1;
			for (unsigned turn = 0; turn < 3 * FRAMES / 50 + 1; turn++)
				remap_check_frames(r, SEED, 50, &c);
			CU_ASSERT(c.broken_count == 1 && c.broken[0] == frame);
			remap_free(r);
		}
	}
}

static void test_frames_without_a_hash_are_left_out(void)
{
	struct remap_frames_check c = { 0 };
	struct remap *r = remap_filled();

	r->unindexed = true; /* as after an earlier daemon */
	remap_check_frames(r, SEED, FRAMES, &c);
	CU_ASSERT(c.checked == 0 && c.broken_count == 0);
	remap_free(r);
}

int main(void)
{
	CU_TestInfo tests[] = {
		{ "sound_frames_are_counted", test_sound_frames_are_counted },
		{ "a_broken_frame_is_found_every_time", test_a_broken_frame_is_found_every_time },
		{ "frames_without_a_hash_are_left_out", test_frames_without_a_hash_are_left_out },
		CU_TEST_INFO_NULL,
	};
	int status;

	unit_must(fsio_open_root("/", false, &fs) == 0, "/");
	status = unit_main("remap_check", tests);
	fsio_close(&fs);
	return status;
}
