/* ept/dirty.h - which pages of a VMM were written since they were last asked for, from outside (Linux >= 6.7).
 *
 * The memory has to be registered for asynchronous write protection (userfaultfd, WP_ASYNC) by the VMM's agent. One call
 * tells which pages are not protected, that is written, and protects them again: no write between two calls is missed.
 * The first write to a page costs the guest a fault without any waiting (0.7-1 us measured), and splits a huge mapping. */
#ifndef EPT_DIRTY_H
#define EPT_DIRTY_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct dirty_range {
	uint64_t start, end; /* HVA, page-aligned */
};

/* Takes the written pages of [start, end) that are present: never a hole, where protection would leave a marker. Frames
 * that the process was merged with count as well (a huge mapping of them does not survive it). Fills at most cap ranges,
 * in address order; *ret_next is where to go on. Returns how many; -EPERM: some of it is not registered; -ENOTTY: this
 * kernel cannot tell; -ESRCH; -errno. */
ssize_t dirty_take(int pagemap_fd, uint64_t start, uint64_t end, struct dirty_range *ranges, size_t cap,
		   uint64_t *ret_next);

#endif
