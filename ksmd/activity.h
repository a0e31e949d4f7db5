/* ksmd/activity.h - how many pages of a process can have changed, without looking at any: from counters of the kernel.
 *
 * Where memory is protected against writing (scan_track.c), the first write to a page since it was protected is a fault, and
 * so is the first touch of a page that was not there. A fault that brings a huge page brings 512, which shows in what is
 * resident. What neither shows is huge pages that came while as much memory went. */
#ifndef KSMD_ACTIVITY_H
#define KSMD_ACTIVITY_H

#include <stdint.h>

struct activity {
	uint64_t faults, resident_pages; /* of all threads */
};

/* stat_fd: /proc/PID/stat, which belongs to the process that it was opened for. 0; -ESRCH (it has ended); -EBADMSG. */
int activity_read(int stat_fd, struct activity *ret_activity);
int activity_parse(const char *stat, struct activity *ret_activity); /* -EBADMSG */
/* Pages that can have changed from one to the other. */
uint64_t activity_pages(const struct activity *before, const struct activity *after);

#endif
