/* ept/processes.h - the address spaces of a guest, and how much memory each has on the host.
 *
 * Those that a CPU was seen with; and, of a kernel in the upper half of 64-bit addresses, all others, found by their top tables
 * in the guest's memory (ept/roots.h). The guest runs meanwhile. Not for the loop thread. */
#ifndef EPT_PROCESSES_H
#define EPT_PROCESSES_H

#include "ept/attribute.h"
#include "ept/ram.h"
#include "ept/walk.h"

struct ept_target;

#define PROCESSES_MAX 4096u /* address spaces that are looked at */

struct processes_space {
	uint64_t root; /* GPA of its top table */
	unsigned seen; /* how many times a CPU had it */
	struct attribute_usage usage;
};

/* Zero it, set what it says, and leave it alone but for watch until processes_run() is back. */
struct processes {
	const struct ept_target *target; /* borrowed */
	struct walk_regs regs;		 /* of any CPU */
	uint64_t *seen;			 /* CR3 of CPUs, each as often as it was there; the caller's */
	size_t seen_count;

	struct ram_watch watch;
	/* What came out; spaces is the caller's to free. */
	struct processes_space *spaces; /* those that map something for user mode; largest resident memory first */
	size_t space_count;
	bool searched, more; /* memory was searched for others; there are more than are looked at */
	struct attribute_usage together, kernel;
	int home; /* node; -1: not known */
	struct composite_sync first, second; /* of the tables; the second some time later */
};

/* How far watch.done_pages goes. */
uint64_t processes_work(const struct ept_target *t);
/* 0; -EINVAL and -EOPNOTSUPP: registers, as composite_new(); -EOVERFLOW: more page tables than are looked at; -ECANCELED; -EPERM:
 * frame numbers are hidden; -ESRCH; -errno. */
int processes_run(struct processes *p);
/* How many page tables are looked at. */
size_t processes_tables_max(const struct ept_target *t);

#endif
