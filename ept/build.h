/* ept/build.h - the second-stage table of a VM as its processor would have it: from its slots, and the host's page tables.
 *
 * What the host maps large is large here too where guest and host address lie alike and the slot holds all of it. A page
 * is writable if a write would not have to be copied first: not the zero page, not one of KSM or a store, not one that a
 * forked child shares. Everything may be executed; memory is write-back and the guest's PAT ignored, as KVM has it for a
 * VM without assigned devices. Accessed and dirty cannot be seen from outside and stay zero.
 *
 * Looks from outside and touches no page; the VM runs meanwhile, so each entry was true when it was looked at. Needs
 * CAP_SYS_ADMIN. Before Linux 6.7 transparent huge pages cannot be told, and count as small. */
#ifndef EPT_BUILD_H
#define EPT_BUILD_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "ept/frame.h"
#include "ept/table.h"

struct ept_target;

#define EPT_FRAME_KINDS (FRAME_FILE + 1)

/* Counts of 4 KiB pages, unless said otherwise. [0] to [2]: by size, 4 KiB, 2 MiB, 1 GiB. */
struct ept_census {
	uint64_t pages; /* of all slots; what is neither present nor swapped is absent */
	uint64_t present, swapped;
	uint64_t kinds[EPT_FRAME_KINDS]; /* of the present ones, by enum frame_kind */
	uint64_t host[TABLE_LEAF_LEVELS]; /* of the present ones, by the host's mapping */
	uint64_t leaves[TABLE_LEAF_LEVELS]; /* entries that map a page, each counted once */

	/* By the VMM's mappings that hold RAM, as /proc/PID/smaps counts them; they may be larger than the slots. */
	uint64_t rss, anon_huge, mapping_swapped; /* Rss, AnonHugePages, Swap */
};

/* A table and what is known of it. One thread works on it, another may watch. */
struct ept_build {
	const struct ept_target *target; /* borrowed */
	struct ept_table *table;
	struct ept_census census; /* of the last update */
	uint64_t changed_pages;	  /* by the last update: 4 KiB pages whose entry is another */
	uint64_t changed_ranges;  /* stretches of them */

	_Atomic bool cancel;			    /* by the watcher */
	_Atomic uint64_t done_pages, total_pages; /* for the watcher */

	uint64_t changed_end; /* end of the last stretch */
};

/* What this host's processor uses: EPT or nested paging, its address width and page sizes. */
void ept_build_host_options(struct table_options *ret_options);

/* An empty table. 0; -ENODATA: the guest-physical addresses of this VM are not known; -EINVAL; -ENOMEM. */
int ept_build_init(struct ept_build *b, const struct ept_target *target, const struct table_options *options);
void ept_build_end(struct ept_build *b);

/* Looks at all of the VM and changes the entries that are not true any more. 0; -ECANCELED; -EPERM: frame numbers are hidden
 * from this process; -ESRCH: the VM ended; -errno. On failure the table is what was done until then. */
int ept_build_update(struct ept_build *b);

#endif
