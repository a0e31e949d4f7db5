/* Built with -mavx2, and called only where the CPU has it: half the time of SSE2. */
#include "agent/page_hash.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

uint64_t page_xxh3_avx2(const void *page, uint64_t seed)
{
	return XXH3_64bits_withSeed(page, 4096, seed);
}
