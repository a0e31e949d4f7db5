#include "ksmd/page_hash.h"

#include <string.h>
#include <xxhash.h>

#include "core/snapshot.h"

/* In the library where it was built with run-time dispatch (as in Debian and Ubuntu): the same hash, by AVX2 or AVX-512
 * if the CPU has them, in place of SSE2. Weak, so that without it we only hash more slowly. */
XXH64_hash_t XXH3_64bits_withSeed_dispatch(const void *input, size_t len, XXH64_hash_t seed) __attribute__((weak));

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
	hash = XXH3_64bits_withSeed_dispatch ? XXH3_64bits_withSeed_dispatch(page, PAGE_BYTES, seed) :
					       XXH3_64bits_withSeed(page, PAGE_BYTES, seed);
	/* The two reserved values move to another one: two contents in 2^64 share it with a third. */
	return hash > PAGE_HASH_ZERO ? hash : hash + 2;
}
