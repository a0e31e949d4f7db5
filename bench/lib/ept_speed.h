/* bench/lib/ept_speed.h - how fast a VM's second-stage table is built and looked up in, and what it takes. */
#ifndef BENCH_EPT_SPEED_H
#define BENCH_EPT_SPEED_H

#include <stdbool.h>

struct ept_speed {
	double build_ms_per_gib;  /* from nothing; median */
	double update_ms_per_gib; /* nothing has changed; median */
	double audit_gib_s;	  /* of mapped memory, nothing hashed; median */
	double lookups_per_s;	  /* at random addresses, one core; median */
	double memory_share;	  /* of the VM's memory: the table and all that the build needs, as the kernel counts it */
};

/* On a VM of one GiB that is this process's own memory, all of it present; huge: in huge pages, if they are to be had. 0 or
 * -errno; -EPERM: needs root. */
int ept_speed_measure(bool huge, struct ept_speed *ret_speed);

#endif
