/* agent/pagemap.h - where the pages of this process (or a peer) are, from its page tables and without touching them. */
#ifndef AGENT_PAGEMAP_H
#define AGENT_PAGEMAP_H

#include <stdint.h>
#include <sys/types.h>

#include "agent/pagebits.h"

/* What the page table holds for each page of a window; PAGE_IS_PRESENT, _SWAPPED, _HUGE, _FILE, _PFNZERO. */
struct page_states {
	uint8_t flags[WINDOW_PAGES];
};

/* /proc/PID/pagemap (pid 0: this process); the caller closes it. Descriptor or -errno. */
int pagemap_open(pid_t pid);
/* Fills states->flags[first .. first+n) from the page tables at base + page * 4096, the rest is left as it
 * was; a page that is neither present nor swapped gets 0. 0 or -errno. May be used inside the window. */
int pagemap_read(int fd, uint64_t base, unsigned first, unsigned n, struct page_states *states);

#endif
