#include "bench/lib/page_runs.h"

#include <errno.h>
#include <stdlib.h>

int page_runs_add(struct page_runs *r, uint64_t first, uint64_t count)
{
	struct page_run *last = r->count > 0 ? &r->run[r->count - 1] : NULL;
	struct page_run *grown;

	if (count == 0)
		return 0;
	if (first + count < first || (last && first < last->first + last->count))
		return -EINVAL;
	if (last && first == last->first + last->count) {
		last->count += count;
		return 0;
	}
	if (r->count == r->cap) {
		size_t cap = r->cap ? r->cap * 2 : 64;

		grown = reallocarray(r->run, cap, sizeof(*grown));
		if (!grown)
			return -ENOMEM;
		r->run = grown;
		r->cap = cap;
	}
	r->run[r->count++] = (struct page_run){ first, count };
	return 0;
}

uint64_t page_runs_pages(const struct page_runs *r)
{
	uint64_t pages = 0;

	for (size_t i = 0; i < r->count; i++)
		pages += r->run[i].count;
	return pages;
}

void page_runs_free(struct page_runs *r)
{
	free(r->run);
	*r = (struct page_runs){ 0 };
}
