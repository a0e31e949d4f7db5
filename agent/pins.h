/* agent/pins.h - could anything write to memory of this process past its page tables, from before it was held still?
 *
 * A device that reads from a disk into a page, or whatever else holds it pinned, does not ask page tables. The kernel
 * refuses to move a pinned page of anonymous memory (R12), but has no such check for the copies that were made on write
 * in a mapping of the store. So it is asked whether this process has anything open that pins pages: files with
 * O_DIRECT, assigned devices, io_uring with fixed buffers ... Named are the kinds that do no harm; what is not known
 * counts as harmful: that costs a fold, not a guest's memory. The daemon's ksmd/hazards.c is stricter in other
 * things (it looks for those who hold no pin and write all the same), and goes first.
 *
 * What cannot be seen: an O_DIRECT read that is under way on a descriptor that was closed since; process_vm_writev()
 * of another process in the microseconds in which it holds its page. */
#ifndef AGENT_PINS_H
#define AGENT_PINS_H

#include <stdbool.h>
#include <stdint.h>

#define PINS_MOUNTS_MAX 256u

/* Mounts whose files are read through the page cache, unless O_DIRECT is set. */
struct pins_mounts {
	uint64_t read_ns; /* CLOCK_MONOTONIC; 0: never */
	uint64_t ids[PINS_MOUNTS_MAX];
	unsigned count;
};

/* Reads them anew, unless that was a moment ago. Allocates; not for the window. */
void pins_mounts_read(struct pins_mounts *m);
/* Could be: why (static string); NULL: no. For the window: no allocation, nothing waits for a file system. It costs
 * 1-2 us for each descriptor. */
const char *pins_possible(const struct pins_mounts *m);

#endif
