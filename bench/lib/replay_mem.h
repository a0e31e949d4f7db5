/* bench/lib/replay_mem.h - a capture in anonymous memory, as QEMU would hold it, and whether it still is
 * what it was. */
#ifndef BENCH_REPLAY_MEM_H
#define BENCH_REPLAY_MEM_H

#include <stdbool.h>
#include <stdint.h>

#include "bench/lib/capture_file.h"
#include "core/fsio.h"

struct replay_options {
	bool thp;	/* fully present 2 MiB blocks become huge pages; else none does */
	bool mergeable; /* give it to the kernel's scanner, as QEMU does by default */
};

struct replay_mem {
	struct capture_info info;
	char *base; /* aligned to 2 MiB */
	uint32_t *pages; /* numbers of the present pages, ascending; the others are never touched */
	uint64_t page_count;
	uint64_t *sums; /* a hash of each present page as it was loaded */
};

/* 0; -EINVAL (the kernel has no KSM, or no huge pages); -EBADMSG; -errno. Ended with replay_mem_free(). */
int replay_mem_load(const char *json_path, const struct replay_options *options, struct replay_mem *ret_mem);
void replay_mem_free(struct replay_mem *m);

/* Fills the first so many absent pages with pseudo-random contents, the same for every guest; 0: discards all that were
 * absent. 0; -ENOSPC (not so many are absent); -errno of discard. */
int replay_mem_inject(const struct replay_mem *m, uint64_t pages, int (*discard)(void *userdata, void *at, size_t bytes),
		      void *userdata);

struct replay_check {
	uint64_t sum;		  /* over all pages, in order */
	uint64_t wrong_pages;	  /* not what was loaded */
	uint64_t first_wrong;	  /* page number; only when wrong_pages > 0 */
};

/* Compares every present page with what was loaded, and every page that was absent with zeroes as far as
 * it is present now. 0 or -errno. */
int replay_mem_check(const struct fsio *fs, const struct replay_mem *m, struct replay_check *ret_check);

#endif
