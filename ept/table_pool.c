#include "ept/table_pool.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

/* 256 KiB, the tables of 128 MiB; from there it grows by a quarter. */
#define FIRST_PAGES 64u
#define PAGES_MAX (UINT32_C(1) << 28) /* tables of 512 TiB */

static struct table_page *pages_map(uint32_t cap)
{
	struct table_page *pages = mmap(NULL, cap * sizeof(*pages), PROT_READ | PROT_WRITE,
					MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return pages == MAP_FAILED ? NULL : pages;
}

int table_pool_init(struct table_pool *p)
{
	*p = (struct table_pool){ .count = 1, .cap = FIRST_PAGES };
	p->info = calloc(p->cap, sizeof(*p->info));
	p->pages = p->info ? pages_map(p->cap) : NULL;
	if (!p->pages) {
		free(p->info);
		return -ENOMEM;
	}
	/* A huge page would take memory for 512 tables where one is wanted. */
	madvise(p->pages, p->cap * sizeof(*p->pages), MADV_NOHUGEPAGE);
	return 0;
}

void table_pool_end(struct table_pool *p)
{
	if (p->pages)
		munmap(p->pages, p->cap * sizeof(*p->pages));
	free(p->info);
}

int table_pool_reserve(struct table_pool *p, uint32_t n)
{
	uint32_t room = p->free_count + (p->cap - p->count), cap = p->cap;
	struct table_page_info *info;
	struct table_page *pages;

	if (room >= n)
		return 0;
	cap += n > cap / 4 ? n : cap / 4;
	if (cap > PAGES_MAX)
		return -ENOMEM;
	info = realloc(p->info, cap * sizeof(*info));
	if (!info)
		return -ENOMEM;
	p->info = info;
	pages = mremap(p->pages, p->cap * sizeof(*pages), cap * sizeof(*pages), MREMAP_MAYMOVE);
	if (pages == MAP_FAILED)
		return -ENOMEM;
	p->pages = pages;
	p->cap = cap;
	return 0;
}

uint32_t table_pool_take(struct table_pool *p)
{
	uint32_t page = p->free_first;

	if (page) {
		p->free_first = p->info[page].next_free;
		p->free_count--;
	} else {
		assert(p->count < p->cap);
		page = p->count++;
	}
	p->info[page] = (struct table_page_info){ 0 };
	return page;
}

void table_pool_give(struct table_pool *p, uint32_t page)
{
	/* Private anonymous memory comes back as zeroes; where the system refuses (it is locked), by hand. */
	if (madvise(&p->pages[page], sizeof(*p->pages), MADV_DONTNEED) < 0)
		p->pages[page] = (struct table_page){ { 0 } };
	p->info[page] = (struct table_page_info){ .next_free = p->free_first };
	p->free_first = page;
	p->free_count++;
}

size_t table_pool_bytes(const struct table_pool *p)
{
	return (p->count - 1 - p->free_count) * sizeof(*p->pages) + p->cap * sizeof(*p->info);
}
