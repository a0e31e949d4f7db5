/* tests/unit/scan_child.h - children whose memory is known page by page, as targets of a scan. */
#ifndef TESTS_SCAN_CHILD_H
#define TESTS_SCAN_CHILD_H

#include "agent/page_hash.h"
#include "ept/pagestate.h"
#include "ksmd/scan.h"
#include "tests/unit/unit.h"

#define SEED 42
#define CHUNK 8192 /* pages that scan.c hands out at once */

static struct fsio fs; /* the host; main() opens it */

static inline void target_open(struct scan_target *t, const struct unit_child *c, size_t pages)
{
	*t = (struct scan_target){ .pid = c->pid, .pidfd = c->pidfd, .hva = (uintptr_t)c->map, .pages = pages,
				   .seed = SEED };
	t->pagemap_fd = pagestate_open(&fs, c->pid);
	t->mem_fd = fsio_open(&fs, O_RDONLY, "/proc/%d/mem", (int)c->pid);
	t->hashes = scan_hashes_new(pages);
	unit_must(t->pagemap_fd >= 0 && t->mem_fd >= 0 && t->hashes, "target");
}

static inline void target_close(struct scan_target *t)
{
	close(t->pagemap_fd);
	close(t->mem_fd);
	t->hashes = scan_hashes_free(t->hashes, t->pages);
}

static inline uint64_t hash_of(uint64_t content)
{
	char page[PAGE_BYTES];

	if (content == UNIT_ABSENT || content == UNIT_ZERO_MAPPED)
		return PAGE_HASH_NONE;
	unit_page_fill(page, content);
	return page_hash(page, SEED);
}

/* Contents for a few chunks: absent, zero-mapped, zero, repeated and single pages. */
static inline uint64_t *contents_new(size_t pages)
{
	uint64_t *contents = calloc(pages, sizeof(*contents)), state = 7;

	unit_must(contents, "calloc");
	for (size_t i = 0; i < pages; i++) {
		uint64_t r = unit_random(&state);

		if (r % 10 < 5)
			contents[i] = UNIT_ABSENT;
		else if (r % 10 == 5)
			contents[i] = UNIT_ZERO_MAPPED;
		else if (r % 10 > 6)
			contents[i] = 1 + (r >> 8) % (pages / 4);
	}
	return contents;
}

struct expected {
	uint64_t present, zero, zero_mapped;
};

static inline struct expected expected_of(const uint64_t *contents, size_t pages)
{
	struct expected e = { 0 };

	for (size_t i = 0; i < pages; i++) {
		e.zero_mapped += contents[i] == UNIT_ZERO_MAPPED;
		e.present += contents[i] < UNIT_ZERO_MAPPED;
		e.zero += contents[i] == 0;
	}
	return e;
}

static inline size_t wrong_hashes(const struct scan_target *t, const uint64_t *contents)
{
	size_t wrong = 0;

	for (size_t i = 0; i < t->pages; i++)
		wrong += t->hashes[i] != hash_of(contents[i]);
	return wrong;
}

#endif
