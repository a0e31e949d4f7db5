/* tests/preload/vmm.h - what the test VMM and the test that plays its daemon agree upon. */
#ifndef TESTS_PRELOAD_VMM_H
#define TESTS_PRELOAD_VMM_H

#include "agent/pagebits.h"

#define VMM_PAGE WINDOW_PAGE_BYTES
#define VMM_RAM_PAGES (2 * WINDOW_PAGES) /* of each piece of RAM; page p holds content p + 1 but for the zero pages */
#define VMM_RAM_BYTES (2 * WINDOW_BYTES)
#define VMM_MERGED 100u /* pages [0, 100) are merged before each scenario, and these zeroes */
#define VMM_ZERO_FIRST 200u
#define VMM_ZERO_END 210u
#define VMM_TO_FD 3 /* the VMM reads: the number of a scenario */
#define VMM_FROM_FD 4 /* the VMM writes: the addresses of its RAM, then an int for each scenario: 0, or the line that failed */

/* One piece of RAM for each. */
enum vmm_scenario {
	VMM_DONTNEED,
	VMM_FREE,
	VMM_REMOVE,
	VMM_UNMAP,
	VMM_UNMAP_PART,
	VMM_MAP_OVER,
	VMM_PROTECT,	/* and discards, protected */
	VMM_UNPROTECT,
	VMM_LOCK,
	VMM_UNLOCK,
	VMM_MOVE,
	VMM_ADVISE,	/* all of it */
	VMM_ADVISE_PART,
	VMM_WATCH,	/* by a userfaultfd of its own, as background snapshots do */
	VMM_FORK,
	VMM_RACE,	/* with merging, for as long as the test wants */
	VMM_LOCK_ALL,
	VMM_UNLOCK_ALL,
	VMM_SCENARIOS,
};

/* Which piece of RAM it is about. */
static inline int vmm_ram_of(int scenario)
{
	switch (scenario) {
	case VMM_UNPROTECT:
		return VMM_PROTECT;
	case VMM_UNLOCK:
		return VMM_LOCK;
	case VMM_UNLOCK_ALL:
		return VMM_LOCK_ALL;
	default:
		return scenario;
	}
}

#endif
