#include "balloon/resident.h"

#include "core/cleanup.h"
#include "ept/pagestate.h"

#define WINDOW_BYTES (UINT64_C(4) << 20)
#define WINDOWS 64
#define RANGES 256

static bool counts(const struct mem_region *region, unsigned flags)
{
	/* In private memory a file's page is a frame that others may map as well. */
	unsigned not_its_own = PAGE_ZERO_MAPPED | (region->backing == MEM_ANON ? (unsigned)PAGE_FILE : 0);

	return (flags & PAGE_PRESENT) && !(flags & not_its_own);
}

static int window_count(int pagemap_fd, const struct mem_region *region, uint64_t start, uint64_t end, uint64_t *bytes)
{
	struct page_range ranges[RANGES];

	while (start < end) {
		uint64_t next;
		ssize_t n = pagestate_ranges(pagemap_fd, start, end, ranges, RANGES, &next);

		if (n < 0)
			return (int)n;
		for (ssize_t i = 0; i < n; i++)
			if (counts(region, ranges[i].flags))
				*bytes += ranges[i].end - ranges[i].start;
		start = next;
	}
	return 0;
}

static uint64_t min_u64(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

/* The regions are taken for one, of which every so-manieth window is looked at, for all to be at most WINDOWS: a VMM may
 * have any number of small ones. */
static uint64_t stride_bytes(const struct mem_region *regions, size_t count)
{
	uint64_t all = 0, windows;

	for (size_t i = 0; i < count; i++)
		all += regions[i].bytes;
	windows = (all + WINDOW_BYTES - 1) / WINDOW_BYTES;
	return (windows + WINDOWS - 1) / WINDOWS * WINDOW_BYTES;
}

int resident_estimate(const struct fsio *fs, pid_t pid, const struct mem_region *regions, size_t count,
		      uint64_t *ret_bytes)
{
	auto_close int fd = pagestate_open(fs, pid);
	uint64_t stride = stride_bytes(regions, count), seen = 0, all = 0, bytes = 0;

	if (fd < 0)
		return fd;
	for (size_t i = 0; i < count; i++) {
		const struct mem_region *region = &regions[i];
		uint64_t at = 0;

		while (at < region->bytes) {
			uint64_t in_stride = (all + at) % stride, left = region->bytes - at, size;
			int r;

			if (in_stride >= WINDOW_BYTES) {
				at += min_u64(stride - in_stride, left);
				continue;
			}
			size = min_u64(WINDOW_BYTES - in_stride, left);
			r = window_count(fd, region, region->hva + at, region->hva + at + size, &bytes);
			if (r < 0)
				return r;
			seen += size;
			at += size;
		}
		all += region->bytes;
	}
	*ret_bytes = seen ? (uint64_t)((double)bytes * (double)all / (double)seen) : 0;
	return 0;
}
