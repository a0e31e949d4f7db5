/* tests/unit/store_help.h - what the tests of a frame store share. */
#ifndef TESTS_STORE_HELP_H
#define TESTS_STORE_HELP_H

#include "agent/page_hash.h"
#include "ksmd/store.h"
#include "tests/unit/unit.h"

#define FRAMES (64 * STORE_BLOCK_FRAMES)

static struct fsio fs;

static inline struct store *new_store(uint32_t frames)
{
	struct store_options options = { "test", frames, -1 };
	struct store *s;

	unit_must(store_new(&fs, &options, &s) == 0, "store_new");
	return s;
}

static inline struct store_counts count(const struct store *s)
{
	struct store_counts c;

	store_count(s, &c);
	return c;
}

static inline int self_pidfd(void)
{
	int fd = (int)syscall(SYS_pidfd_open, getpid(), 0);

	unit_must(fd >= 0, "pidfd_open");
	return fd;
}

#define FILL_SEED 77

/* Fills and publishes frames with contents first_content, first_content + 1, ... */
static inline void put(struct store *s, uint32_t first, uint32_t n, uint64_t first_content)
{
	char *map = unit_map(n);
	struct store_piece piece = { first, n, (uintptr_t)map };
	auto_close int pidfd = self_pidfd();
	const struct store_source self = { getpid(), pidfd, FILL_SEED };
	auto_free uint64_t *hashes = calloc(n, sizeof(*hashes));
	size_t done;

	unit_must(hashes != NULL, "memory");
	for (uint32_t i = 0; i < n; i++)
		unit_page_fill(map + (size_t)i * PAGE_BYTES, first_content + i);
	CU_ASSERT_EQUAL(store_fill(s, &self, &piece, 1, hashes, &done), 0);
	CU_ASSERT_EQUAL(done, 1);
	for (uint32_t i = 0; i < n; i++)
		CU_ASSERT_EQUAL(hashes[i], page_hash(map + (size_t)i * PAGE_BYTES, FILL_SEED));
	CU_ASSERT_EQUAL(store_publish(s, first, n), 0);
	munmap(map, (size_t)n * PAGE_BYTES);
}

static inline bool page_is(const void *page, uint64_t content)
{
	char want[PAGE_BYTES];

	unit_page_fill(want, content);
	return memcmp(page, want, PAGE_BYTES) == 0;
}

static inline bool frame_is(const struct store *s, uint32_t frame, uint64_t content)
{
	return page_is(store_frame(s, frame), content);
}

#endif
