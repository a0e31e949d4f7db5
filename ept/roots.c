#include "ept/roots.h"

#include "ept/walk.h"

#define HALF (ROOTS_ENTRIES / 2)

/* The processor sets these in one table and not in the other. */
#define IGNORED (WALK_ACCESSED | WALK_DIRTY)

unsigned roots_kernel_entries(const uint64_t *table)
{
	unsigned count = 0;

	for (unsigned i = HALF; i < ROOTS_ENTRIES; i++)
		count += (table[i] & WALK_PRESENT) != 0;
	return count;
}

bool roots_same_kernel(const uint64_t *reference, const uint64_t *table)
{
	unsigned different = 0;

	/* From the top down: the kernel's own code is there, and most pages fail at the first looks. */
	for (unsigned i = ROOTS_ENTRIES; i-- > HALF;) {
		different += ((reference[i] ^ table[i]) & ~IGNORED) != 0;
		if (different > ROOTS_DIFFERENT_MAX)
			return false;
	}
	return roots_kernel_entries(reference) >= ROOTS_KERNEL_MIN;
}

bool roots_has_user(const uint64_t *table)
{
	for (unsigned i = 0; i < HALF; i++)
		if ((table[i] & (WALK_PRESENT | WALK_USER)) == (WALK_PRESENT | WALK_USER))
			return true;
	return false;
}

bool roots_pair(const uint64_t *kernel, const uint64_t *user)
{
	for (unsigned i = 0; i < HALF; i++)
		if ((kernel[i] ^ user[i]) & ~(IGNORED | WALK_NO_EXECUTE))
			return false;
	return roots_has_user(kernel);
}
