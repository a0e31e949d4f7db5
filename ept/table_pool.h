/* ept/table_pool.h - the pages that the tables of one second stage lie in, named by 32-bit numbers. */
#ifndef EPT_TABLE_POOL_H
#define EPT_TABLE_POOL_H

#include <stddef.h>
#include <stdint.h>

#include "ept/table_format.h"

struct table_page {
	uint64_t entries[TABLE_ENTRIES];
};

struct table_page_info {
	uint32_t next_free; /* of a free page */
	uint16_t used;	    /* entries that are present */
};

/* Page 0 is never given out: an entry that names it is wrong. */
struct table_pool {
	struct table_page *pages; /* one mapping, which moves when it grows */
	struct table_page_info *info;
	uint32_t count, cap; /* pages that were ever given out; room */
	uint32_t free_first, free_count;
};

int table_pool_init(struct table_pool *p); /* 0 or -ENOMEM */
void table_pool_end(struct table_pool *p);
/* Makes sure that the next n pages can be had. 0 or -ENOMEM. May move all pages. */
int table_pool_reserve(struct table_pool *p, uint32_t n);
/* A page of zeroes, out of those that were reserved. */
uint32_t table_pool_take(struct table_pool *p);
/* Gives a page back, and its memory to the system. */
void table_pool_give(struct table_pool *p, uint32_t page);
size_t table_pool_bytes(const struct table_pool *p);

#endif
