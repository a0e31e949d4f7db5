/* ksmd/hazards.h - what rules the exchange (agent/) out for one VMM process, by looking at it from outside.
 *
 * The exchange moves pages while nobody can touch them. The kernel guards this against whoever pins a page
 * (FOLL_PIN), but not against those who hold a plain reference and write through it: their write goes to a page that
 * the guest does not have any more. Most of them leave a trace among the process's descriptors. See README,
 * "Hazards", for what is looked for and what cannot be seen.
 *
 * Nothing of the VMM's files is opened, asked for its status or waited for: links and texts of /proc only, so a hung
 * file system does not stop the caller. What is found holds for this moment: a VM may get a device or a debugger
 * a moment later. Ask before each round, and the pidfd afterwards whether this was the same process. */
#ifndef KSMD_HAZARDS_H
#define KSMD_HAZARDS_H

#include <stddef.h>
#include <sys/types.h>

#include "core/fsio.h"

#define HAZARDS_MAX 18

/* Descriptors beyond these are not looked at, and that is a hazard of its own. Measured on a busy host: 12 us for
 * one with a file behind it, so 50 ms at most; a VMM has a hundred. */
#define HAZARDS_FDS_MAX 4096

/* Puts a reason (a static string in plain words) into ret_why[0 .. result) for each hazard. A process that is gone
 * has none; what may not be looked at counts as a hazard. */
size_t hazards_find(const struct fsio *fs, pid_t pid, const char *ret_why[HAZARDS_MAX]);

#endif
