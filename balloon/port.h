/* balloon/port.h - what the ways to a VM's balloon (QMP, libvirt) have in common. Nothing here blocks; loop thread
 * only. */
#ifndef BALLOON_PORT_H
#define BALLOON_PORT_H

#include <stdbool.h>
#include <stdint.h>

#include "core/snapshot.h"

/* What was told last. Not checked: a guest or a VMM may say anything. What it did not say is BALLOON_UNTOLD. */
struct balloon_told {
	enum balloon_device device;
	char why[160];	       /* nobody answers, or there is no device: the reason; else empty */
	uint64_t max_bytes;    /* 0: unknown */
	uint64_t actual_bytes; /* 0: unknown */
	uint64_t told_ns;      /* of actual_bytes; 0: never */
	uint64_t resets;       /* of the guest, seen so far */
	/* The device's options; for people. */
	bool options_known, reporting, deflate_on_oom;
	uint64_t period_s; /* in which the VMM asks the guest; 0: it does not */

	int64_t last_update_s; /* CLOCK_REALTIME of the VMM when the guest answered; 0 or less: it never did */
	uint64_t stats_told_ns; /* when these were told, CLOCK_MONOTONIC; 0: never */
	uint64_t total_bytes, free_bytes, available_bytes, cache_bytes;
	uint64_t swap_in_bytes, swap_out_bytes, major_faults, oom_kills;
};

#endif
