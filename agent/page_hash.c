#include "agent/page_hash.h"

#include <string.h>

/* All of it inline: an agent shall bring no library into its VMM. */
#define XXH_INLINE_ALL
#include <xxhash.h>

#define PAGE_BYTES 4096u

/* A page with data mostly shows it at its very beginning. Not more is looked at than one word: a check of the whole first
 * cache line was measured to make hashing of memory that is not in the cache half as slow again. */
static bool page_is_zero(const char *page)
{
	uint64_t head;

	memcpy(&head, page, sizeof(head));
	return head == 0 && memcmp(page, page + sizeof(head), PAGE_BYTES - sizeof(head)) == 0;
}

uint64_t page_xxh3_sse2(const void *page, uint64_t seed)
{
	return XXH3_64bits_withSeed(page, PAGE_BYTES, seed);
}

uint64_t page_hash(const void *page, uint64_t seed)
{
	uint64_t hash;

	if (page_is_zero(page))
		return PAGE_HASH_ZERO;
	hash = __builtin_cpu_supports("avx2") ? page_xxh3_avx2(page, seed) : page_xxh3_sse2(page, seed);
	/* The two reserved values move to another one: two contents in 2^64 share it with a third. */
	return hash > PAGE_HASH_ZERO ? hash : hash + 2;
}
