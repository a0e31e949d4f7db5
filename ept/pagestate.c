#include "ept/pagestate.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core/cleanup.h"
#include "core/kernel_abi.h"
#include "core/snapshot.h"

#define ENTRY_PRESENT (UINT64_C(1) << 63)
#define ENTRY_SWAPPED (UINT64_C(1) << 62)
#define ENTRY_FILE (UINT64_C(1) << 61) /* Linux >= 3.5 */
#define ENTRY_EXCLUSIVE (UINT64_C(1) << 56) /* mapped exactly once; Linux >= 4.2 */
#define ENTRY_PFN_MASK ((UINT64_C(1) << 55) - 1)
#define HUGE_BYTES (UINT64_C(2) << 20)
#define HUGE_PAGES 512

/* One read(2) of the fallback: 32 KiB of entries, 16 MiB of address space. */
#define FALLBACK_BATCH 4096

static _Atomic bool scan_unsupported; /* the ioctl is not there, or tests want the fallback */

int pagestate_open(const struct fsio *fs, pid_t pid)
{
	return fsio_open(fs, O_RDONLY, "/proc/%d/pagemap", (int)pid);
}

void pagestate_force_fallback(bool on)
{
	scan_unsupported = on;
}

/* ---- PAGEMAP_SCAN ---- */

#define SCAN_CATEGORIES (PAGE_IS_PRESENT | PAGE_IS_SWAPPED | PAGE_IS_PFNZERO | PAGE_IS_HUGE | PAGE_IS_FILE)
#define SCAN_VEC 128

static unsigned scan_flags(uint64_t categories)
{
	unsigned flags = 0;

	if (categories & PAGE_IS_PRESENT)
		flags |= PAGE_PRESENT;
	if (categories & PAGE_IS_SWAPPED)
		flags |= PAGE_SWAPPED;
	if (categories & PAGE_IS_PFNZERO)
		flags |= PAGE_ZERO_MAPPED;
	if (categories & PAGE_IS_HUGE)
		flags |= PAGE_HUGE;
	if (categories & PAGE_IS_FILE)
		flags |= PAGE_FILE;
	return flags;
}

static ssize_t ranges_by_scan(int fd, uint64_t start, uint64_t end, struct page_range *ranges, size_t cap,
			      uint64_t *ret_next)
{
	struct page_region vec[SCAN_VEC];
	struct pm_scan_arg arg = {
		.size = sizeof(arg),
		.start = start,
		.end = end,
		.vec = (uintptr_t)vec,
		.vec_len = cap < SCAN_VEC ? cap : SCAN_VEC,
		.category_anyof_mask = PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
		.return_mask = SCAN_CATEGORIES,
	};
	int n = ioctl(fd, PAGEMAP_SCAN, &arg);

	if (n < 0)
		return -errno;
	for (int i = 0; i < n; i++)
		ranges[i] = (struct page_range){ vec[i].start, vec[i].end, scan_flags(vec[i].categories) };
	*ret_next = arg.walk_end;
	return n;
}

/* ---- pagemap entries ---- */

struct zero_frames {
	uint64_t small, huge; /* frame numbers; 0: not known */
};

static uint64_t own_frame(int pagemap_fd, const volatile char *page)
{
	uint64_t entry = 0;
	off_t at = (off_t)((uintptr_t)page / PAGE_BYTES * sizeof(entry));

	(void)*page; /* a read fault on untouched anonymous memory maps the zero page */
	if (pread(pagemap_fd, &entry, sizeof(entry), at) != sizeof(entry) || !(entry & ENTRY_PRESENT))
		return 0;
	return entry & ENTRY_PFN_MASK;
}

/* The kernel's zero pages, learnt by mapping them here. Where transparent huge pages are off, the huge one
 * is not found and is not in use either. */
static struct zero_frames zero_frames_find(void)
{
	auto_close int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	const size_t bytes = 2 * HUGE_BYTES;
	struct zero_frames found = { 0, 0 };
	char *map, *aligned;

	if (fd < 0)
		return found;
	map = mmap(NULL, bytes, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (map == MAP_FAILED)
		return found;
	aligned = (char *)(((uintptr_t)map + HUGE_BYTES - 1) & ~(HUGE_BYTES - 1));
	if (madvise(aligned, HUGE_BYTES, MADV_HUGEPAGE) == 0)
		found.huge = own_frame(fd, aligned);
	munmap(map, bytes);

	map = mmap(NULL, PAGE_BYTES, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (map == MAP_FAILED)
		return found;
	found.small = own_frame(fd, map);
	munmap(map, PAGE_BYTES);
	if (found.huge == found.small)
		found.huge = 0;
	return found;
}

static struct zero_frames zero;
static pthread_once_t zero_once = PTHREAD_ONCE_INIT;

static void zero_init(void)
{
	zero = zero_frames_find();
}

static unsigned entry_flags(uint64_t entry)
{
	uint64_t frame = entry & ENTRY_PFN_MASK;

	if (entry & ENTRY_SWAPPED)
		return PAGE_SWAPPED;
	if (!(entry & ENTRY_PRESENT))
		return 0;
	if (frame && (frame == zero.small || (zero.huge && frame >= zero.huge && frame < zero.huge + HUGE_PAGES)))
		return PAGE_PRESENT | PAGE_ZERO_MAPPED;
	return entry & ENTRY_FILE ? PAGE_PRESENT | PAGE_FILE : PAGE_PRESENT;
}

static ssize_t ranges_by_entries(int fd, uint64_t start, uint64_t end, struct page_range *ranges, size_t cap,
				 uint64_t *ret_next)
{
	uint64_t entries[FALLBACK_BATCH];
	size_t want = (size_t)((end - start) / PAGE_BYTES), have, count = 0;
	ssize_t n;

	pthread_once(&zero_once, zero_init);
	if (want > FALLBACK_BATCH)
		want = FALLBACK_BATCH;
	n = pread(fd, entries, want * sizeof(entries[0]), (off_t)(start / PAGE_BYTES * sizeof(entries[0])));
	if (n < 0)
		return -errno;
	if (n == 0) /* the process is gone */
		return -ESRCH;
	have = (size_t)n / sizeof(entries[0]);
	for (size_t i = 0; i < have; i++) {
		uint64_t at = start + i * PAGE_BYTES;
		unsigned flags = entry_flags(entries[i]);

		if (flags == 0)
			continue;
		if (count > 0 && ranges[count - 1].end == at && ranges[count - 1].flags == flags) {
			ranges[count - 1].end += PAGE_BYTES;
			continue;
		}
		if (count == cap) {
			*ret_next = at;
			return (ssize_t)count;
		}
		ranges[count++] = (struct page_range){ at, at + PAGE_BYTES, flags };
	}
	*ret_next = start + have * PAGE_BYTES;
	return (ssize_t)count;
}

ssize_t pagestate_ranges(int pagemap_fd, uint64_t start, uint64_t end, struct page_range *ranges, size_t cap,
			 uint64_t *ret_next)
{
	ssize_t n;

	if (start >= end || cap == 0)
		return -EINVAL;
	if (!scan_unsupported) {
		n = ranges_by_scan(pagemap_fd, start, end, ranges, cap, ret_next);
		if (n != -ENOTTY)
			return n;
		scan_unsupported = true;
	}
	return ranges_by_entries(pagemap_fd, start, end, ranges, cap, ret_next);
}

int pagestate_shared(int pagemap_fd, uint64_t hva, unsigned pages, uint64_t *ret_mask)
{
	uint64_t entries[64], mask = 0;
	ssize_t n;

	if (pages > 64)
		return -EINVAL;
	n = pread(pagemap_fd, entries, pages * sizeof(entries[0]), (off_t)(hva / PAGE_BYTES * sizeof(entries[0])));
	if (n < 0)
		return -errno;
	for (size_t i = 0; i < (size_t)n / sizeof(entries[0]); i++)
		if (!(entries[i] & ENTRY_EXCLUSIVE))
			mask |= UINT64_C(1) << i;
	*ret_mask = mask;
	return 0;
}
