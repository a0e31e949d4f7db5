/* bench/lib/page_runs.h - sets of page numbers as ascending stretches. */
#ifndef BENCH_PAGE_RUNS_H
#define BENCH_PAGE_RUNS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define HUGE_PAGES UINT64_C(512) /* 4 KiB pages in a 2 MiB page */

struct page_run {
	uint64_t first, count;
};

struct page_runs { /* zero-initialised: empty; ended with page_runs_free() */
	struct page_run *run;
	size_t count, cap;
};

/* Appends; joins with the last stretch when it follows on. 0, -EINVAL (not ascending) or -ENOMEM. */
int page_runs_add(struct page_runs *r, uint64_t first, uint64_t count);
uint64_t page_runs_pages(const struct page_runs *r);
void page_runs_free(struct page_runs *r);

#endif
