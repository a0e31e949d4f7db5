#include "ept/search.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "core/cleanup.h"
#include "ept/frame.h"
#include "ept/target.h"

/* One read(2): 128 KiB of entries, 64 MiB of address space. Where no page table is, the kernel fills in zeroes. */
#define BATCH_PAGES 16384u

static void hit_add(struct search *s, size_t target, uint64_t hva)
{
	if (s->found < s->cap)
		s->hits[s->found] = (struct search_hit){ target, hva };
	s->found++;
}

/* Returns whether a page was present whose frame number is hidden, or -errno. */
static int region_search(struct search *s, size_t target, const struct mem_region *region, uint64_t *entries)
{
	uint64_t number = s->hpa / PAGE_BYTES, pages = region->bytes / PAGE_BYTES;
	int hidden = 0;

	for (uint64_t at = 0; at < pages;) {
		uint64_t want = pages - at < BATCH_PAGES ? pages - at : BATCH_PAGES, page = region->hva / PAGE_BYTES + at;
		ssize_t n = pread(s->targets[target]->pagemap_fd, entries, want * sizeof(*entries),
				  (off_t)(page * sizeof(*entries)));

		if (s->cancel)
			return -ECANCELED;
		if (n < 0)
			return -errno;
		if (n < (ssize_t)sizeof(*entries))
			return -ESRCH;
		n /= (ssize_t)sizeof(*entries);
		for (uint64_t i = 0; i < (uint64_t)n; i++) {
			uint64_t frame = entries[i] & FRAME_ENTRY_NUMBER;

			if (!(entries[i] & FRAME_ENTRY_PRESENT))
				continue;
			hidden |= frame == 0;
			if (frame != 0 && frame == number)
				hit_add(s, target, (page + i) * PAGE_BYTES + s->hpa % PAGE_BYTES);
		}
		at += (uint64_t)n;
		s->done_pages += (uint64_t)n;
	}
	return hidden;
}

static uint64_t target_pages(const struct ept_target *t)
{
	uint64_t pages = 0;

	for (size_t i = 0; i < t->region_count; i++)
		pages += t->regions[i].bytes / PAGE_BYTES;
	return pages;
}

/* 0 or -ECANCELED; *hidden is set where a frame number was. */
static int target_search(struct search *s, size_t target, uint64_t *entries, bool *hidden)
{
	const struct ept_target *t = s->targets[target];
	uint64_t before = s->done_pages;
	int r = 0;

	for (size_t i = 0; i < t->region_count && r >= 0; i++) {
		r = region_search(s, target, &t->regions[i], entries);
		*hidden |= r > 0;
	}
	s->lost += r < 0 && r != -ECANCELED;
	s->done_pages = before + target_pages(t);
	return r == -ECANCELED ? r : 0;
}

int search_run(struct search *s)
{
	auto_free uint64_t *entries = calloc(BATCH_PAGES, sizeof(*entries));
	bool hidden = false;
	uint64_t total = 0;
	int r = entries ? 0 : -ENOMEM;

	for (size_t i = 0; i < s->target_count; i++)
		total += target_pages(s->targets[i]);
	s->total_pages = total;
	for (size_t i = 0; i < s->target_count && r == 0; i++)
		r = target_search(s, i, entries, &hidden);
	return r == 0 && hidden ? -EPERM : r;
}
