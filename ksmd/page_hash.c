#include "ksmd/page_hash.h"

#include <string.h>
#include <xxhash.h>

#include "core/snapshot.h"

static bool page_is_zero(const char *page)
{
	uint64_t head[8];

	/* Nearly every page with data shows it in the first cache line; the rest is left to memcmp(). */
	memcpy(head, page, sizeof(head));
	if (head[0] | head[1] | head[2] | head[3] | head[4] | head[5] | head[6] | head[7])
		return false;
	return memcmp(page, page + sizeof(head), PAGE_BYTES - sizeof(head)) == 0;
}

uint64_t page_hash(const void *page, uint64_t seed)
{
	uint64_t hash;

	if (page_is_zero(page))
		return PAGE_HASH_ZERO;
	hash = XXH3_64bits_withSeed(page, PAGE_BYTES, seed);
	/* The two reserved values move to another one: two contents in 2^64 share it with a third. */
	return hash > PAGE_HASH_ZERO ? hash : hash + 2;
}
