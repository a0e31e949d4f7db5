/* ept/pagestate.h - which pages of a VMM's memory are present, from outside, without touching them.
 *
 * Linux >= 6.7: the PAGEMAP_SCAN ioctl, which walks page tables and returns ranges. Before: entries of
 * /proc/PID/pagemap, in which the zero page is told by its frame number (needs CAP_SYS_ADMIN). */
#ifndef EPT_PAGESTATE_H
#define EPT_PAGESTATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "core/fsio.h"

/* What a page is; a range has one set of flags. */
enum page_flag {
	PAGE_PRESENT = 1,    /* mapped to a frame */
	PAGE_SWAPPED = 2,
	PAGE_ZERO_MAPPED = 4, /* with PRESENT: the frame is the kernel's shared zero page */
	PAGE_HUGE = 8,	     /* with PRESENT: mapped by a 2 MiB entry (not known before Linux 6.7) */
	PAGE_FILE = 16,	     /* a file's page, not the process's own; in private memory: a frame it was merged with */
};

struct page_range {
	uint64_t start, end; /* HVA, page-aligned */
	unsigned flags;
};

/* A descriptor of /proc/PID/pagemap. It belongs to the process it was opened on: when that is gone, reads
 * give nothing, even if the pid is used again. -errno. */
int pagestate_open(const struct fsio *fs, pid_t pid);

/* Fills ranges, in address order, with the pages of [start, end) that are present or swapped; absent pages
 * are left out. Returns how many ranges; *ret_next is where to go on (end when all was covered).
 * -ESRCH when the process is gone, else -errno. */
ssize_t pagestate_ranges(int pagemap_fd, uint64_t start, uint64_t end, struct page_range *ranges, size_t cap,
			 uint64_t *ret_next);

/* Of the pages (at most 64) from hva on, bit i is set when page i is mapped somewhere else too: by KSM, or by a
 * forked child. 0 or -errno. */
int pagestate_shared(int pagemap_fd, uint64_t hva, unsigned pages, uint64_t *ret_mask);

/* Makes this process use the fallback for old kernels (tests), or choose by itself again. */
void pagestate_force_fallback(bool on);

#endif
