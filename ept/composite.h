/* ept/composite.h - the page tables of a guest's address spaces, copied, and all that they map. Pure.
 *
 * The first half of what a shadow page table holds; ept/attribute.h puts the second to it. Address spaces share the copies, as
 * they share tables. A later sync reads the tables again and keeps the copies of those that are as before. The guest is not
 * trusted: no table is looked through twice at one level, the copies are bounded, and going through an address space has
 * a budget, whatever its tables say. Not for two threads at once. */
#ifndef EPT_COMPOSITE_H
#define EPT_COMPOSITE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ept/walk.h"

struct composite;

/* What one sync came to, in tables. */
struct composite_sync {
	uint64_t tables;     /* that there are now */
	uint64_t added;	     /* not there before */
	uint64_t changed;    /* there before, with another content */
	uint64_t dropped;    /* no entry leads to them any more */
	uint64_t outside;    /* entries that lead to a table where the guest has no memory */
	uint64_t unreadable; /* entries whose table could not be read; no fault of the guest's */
};

/* One page of the guest. */
struct composite_leaf {
	uint64_t gva, gpa, bytes;
	bool writable, executable; /* of all levels together */
};

/* What user mode may reach, with 64-bit addresses in their lower half; and the rest. */
enum composite_part { COMPOSITE_USER, COMPOSITE_KERNEL };

/* Paging as regs say (cr3 is not looked at). tables_max: how many tables are copied at most. 0; -EINVAL: impossible registers;
 * -EOPNOTSUPP: without paging there are no tables; -ENOMEM. */
int composite_new(const struct walk_regs *regs, size_t tables_max, struct composite **ret_composite);
struct composite *composite_free(struct composite *c); /* NULL ok; gives NULL */

/* One more address space, whose tables the next sync reads; cr3 as a processor has it. Twice is once. 0 or -ENOMEM. */
int composite_root_add(struct composite *c, uint64_t cr3);

/* Brings the copies in step with the guest. read is asked for whole pages, each once. *ret_sync is filled in any case. 0;
 * -EOVERFLOW: more than tables_max; -ENOMEM; -ECANCELED: by *cancel (NULL ok). After a failure only freeing is left. */
int composite_sync(struct composite *c, walk_read_fn read, void *userdata, const _Atomic bool *cancel,
		   struct composite_sync *ret_sync);

/* Other than 0 ends it. */
typedef int (*composite_leaf_fn)(void *userdata, const struct composite_leaf *leaf);

/* What an entry costs of a budget, and a table besides. */
#define COMPOSITE_COST_ENTRY 1u
#define COMPOSITE_COST_TABLE 64u

/* The pages of one address space, by ascending index of tables: addresses with the sign bit come last. *budget is counted
 * down. 0; -EOVERFLOW: the budget is used up; what fn gave. */
int composite_each(const struct composite *c, uint64_t cr3, enum composite_part part, uint64_t *budget, composite_leaf_fn fn,
		   void *userdata);

#endif
