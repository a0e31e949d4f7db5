/* agent/page_hash.h - the 8 bytes that are remembered of a page. The daemon and the agents must compute the same. */
#ifndef AGENT_PAGE_HASH_H
#define AGENT_PAGE_HASH_H

#include <stdbool.h>
#include <stdint.h>

/* Values that are no hash of any content; page_hash() never gives them for a page with data. */
#define PAGE_HASH_NONE UINT64_C(0) /* absent, swapped, zero page mapped, or not read */
#define PAGE_HASH_ZERO UINT64_C(1) /* present and all zero */

/* XXH3-64 of one 4 KiB page under a secret seed; PAGE_HASH_ZERO for a page of zeroes. A hint: two pages
 * of one hash are candidates, only a byte-wise comparison may merge them. */
uint64_t page_hash(const void *page, uint64_t seed);

/* The same function by SSE2, which every x86-64 has, and by AVX2: chosen by page_hash(). */
uint64_t page_xxh3_sse2(const void *page, uint64_t seed);
uint64_t page_xxh3_avx2(const void *page, uint64_t seed);

#endif
