#include "agent/pagemap.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>

#include "agent/hooks.h"
#include "core/cleanup.h"
#include "core/kernel_abi.h"

int pagemap_open(pid_t pid)
{
	char path[40] = "/proc/self/pagemap";
	int fd;

	if (pid != 0)
		snprintf(path, sizeof(path), "/proc/%d/pagemap", (int)pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

int pagemap_read(int fd, uint64_t base, unsigned first, unsigned n, struct page_states *states)
{
	const uint64_t there = PAGE_IS_PRESENT | PAGE_IS_SWAPPED;
	const uint64_t start = base + first * WINDOW_PAGE_BYTES, end = start + n * WINDOW_PAGE_BYTES;
	struct page_region regions[32]; /* a window of mixed pages takes a few rounds, a huge one takes one */
	struct pm_scan_arg arg = {
		.size = sizeof(arg),
		.start = start,
		.end = end,
		.vec = (uint64_t)(uintptr_t)regions,
		.vec_len = ARRAY_SIZE(regions),
		.category_anyof_mask = there,
		.return_mask = there | PAGE_IS_HUGE | PAGE_IS_FILE | PAGE_IS_PFNZERO,
	};
	int rc = hook_before(OP_SCAN, start, end - start);

	if (rc != 0)
		return rc;
	memset(&states->flags[first], 0, n);
	while (arg.start < end) {
		int found = ioctl(fd, PAGEMAP_SCAN, &arg);

		if (found < 0)
			return -errno;
		for (int i = 0; i < found; i++) {
			uint64_t from = (regions[i].start - base) / WINDOW_PAGE_BYTES;
			uint64_t to = (regions[i].end - base) / WINDOW_PAGE_BYTES;

			memset(&states->flags[from], (int)regions[i].categories, to - from);
		}
		if (arg.walk_end <= arg.start)
			return -EIO; /* no progress: never seen, but never to loop on */
		arg.start = arg.walk_end;
	}
	return 0;
}
