/* ksmd/pass_internal.h - the page table that page_table.c owns and pass.c works on. */
#ifndef KSMD_PASS_INTERNAL_H
#define KSMD_PASS_INTERNAL_H

#include <stdatomic.h>

#include "ksmd/pass.h"

struct page_table {
	_Atomic unsigned refs;
	char *name, *uuid, *domain;
	pid_t pid;
	int pidfd, pagemap_fd, mem_fd; /* own */
	uint64_t start_ticks, seed;
	bool merge_allowed; /* by configuration */
	bool anonymous;	    /* all of it private anonymous: can be merged */
	struct scan_target *targets; /* one per region */
	size_t target_count;
};

#endif
