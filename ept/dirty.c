#include "ept/dirty.h"

#include <errno.h>

#include "core/kernel_abi.h"

#define VEC 512

ssize_t dirty_take(int pagemap_fd, uint64_t start, uint64_t end, struct dirty_range *ranges, size_t cap,
		   uint64_t *ret_next)
{
	struct page_region vec[VEC];
	struct pm_scan_arg arg = {
		.size = sizeof(arg),
		/* Without the check a mapping that is not registered would be left out in silence, as if it were clean. */
		.flags = PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC,
		.start = start,
		.end = end,
		.vec = (uintptr_t)vec,
		.vec_len = cap < VEC ? cap : VEC,
		/* Not PAGE_IS_FILE: for that the kernel looks at each page's descriptor, which makes it three times as slow. */
		.category_mask = PAGE_IS_WRITTEN | PAGE_IS_PRESENT,
		.return_mask = PAGE_IS_WRITTEN,
	};
	int n = ioctl(pagemap_fd, PAGEMAP_SCAN, &arg);

	if (n < 0)
		return -errno;
	for (int i = 0; i < n; i++)
		ranges[i] = (struct dirty_range){ vec[i].start, vec[i].end };
	*ret_next = arg.walk_end;
	return n;
}
