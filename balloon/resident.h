/* balloon/resident.h - how much of a guest's RAM is resident: the VMM's own memory, of which an emulator has hundreds of
 * MiB, must not be taken for the guest's. */
#ifndef BALLOON_RESIDENT_H
#define BALLOON_RESIDENT_H

#include <stdint.h>
#include <sys/types.h>

#include "core/fsio.h"
#include "core/snapshot.h"

/* Counts resident pages of the regions, zero pages and frames shared with other VMs left out, in at most 64 windows of 4 MiB
 * that are always the same; of larger regions the rest is taken to be like these. About 1 ms. 0 or -errno. */
int resident_estimate(const struct fsio *fs, pid_t pid, const struct mem_region *regions, size_t count,
		      uint64_t *ret_bytes);

#endif
