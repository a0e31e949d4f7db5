/* agent/staging.h - where pages are while they are compared: 2 MiB of own memory, empty between exchanges. */
#ifndef AGENT_STAGING_H
#define AGENT_STAGING_H

#include <stdbool.h>
#include <stdint.h>

#include "agent/pagebits.h"

struct staging {
	int uffd;	 /* borrowed */
	uint64_t base;	 /* 2 MiB aligned; 0: not open */
	void *reserve;	 /* address space around it, so that no neighbour ever joins its VMA */
	uint64_t reserve_len;
};

int staging_open(struct staging *s, int uffd);
void staging_close(struct staging *s);
/* Gives an empty staging its page table back to the kernel, so that a huge page can move in whole again. */
int staging_rebuild(struct staging *s);
/* Frees pages [first, first+n). Only when each has been settled: these may be the last copies (R2). */
int staging_drop(struct staging *s, unsigned first, unsigned n);
/* And looks, by this process's pagemap, that nothing is left: -ENOTEMPTY (R1). */
int staging_clear(struct staging *s, int pagemap_fd, unsigned first, unsigned n);

#endif
