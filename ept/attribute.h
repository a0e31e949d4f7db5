/* ept/attribute.h - whose memory it is: what the address spaces of a guest map, put together with the host's side of each
 * page. Both together are what a shadow page table would hold. Pure. */
#ifndef EPT_ATTRIBUTE_H
#define EPT_ATTRIBUTE_H

#include <stddef.h>
#include <stdint.h>

#include "ept/composite.h"

/* A page of guest RAM on the host: the frame's number in the low bits, flags, and the node + 1 (0: not known) above. */
#define ATTRIBUTE_FRAME ((UINT64_C(1) << 40) - 1)
#define ATTRIBUTE_PRESENT (UINT64_C(1) << 40)
#define ATTRIBUTE_ZERO (UINT64_C(1) << 41)    /* with PRESENT: the kernel's zero page */
#define ATTRIBUTE_HUGE (UINT64_C(1) << 42)    /* with PRESENT: mapped by 2 MiB or more */
#define ATTRIBUTE_MERGED (UINT64_C(1) << 43)  /* its content is in a frame of KSM or of a store, mapped in or not */
#define ATTRIBUTE_SWAPPED (UINT64_C(1) << 44)
#define ATTRIBUTE_NODE_SHIFT 48

struct attribute_pages {
	uint64_t *pages; /* each page of guest RAM once */
	size_t count;
	int home; /* node; -1: not known */
};

/* Where a guest-physical address is in pages: the index, and how many pages follow in a row from there on, at least 1. -ENXIO:
 * nowhere, and neither are as many pages from there on. */
typedef int (*attribute_locate_fn)(void *userdata, uint64_t gpa, uint64_t *ret_index, uint64_t *ret_pages);

/* In pages of 4 KiB, each page of guest RAM counted once however often it is mapped. */
struct attribute_usage {
	uint64_t mapped;   /* by the guest */
	uint64_t resident; /* of these on the host in a frame that is not the zero page */
	uint64_t merged, huge, swapped;
	uint64_t remote;     /* resident on another node than home */
	uint64_t outside;    /* mapped by the guest, and not RAM: devices; counted as often as mapped */
	uint64_t entries_4k; /* of a composite map: present pages, each place counted */
	uint64_t entries_2m; /* where the guest's and the host's page are both at least so large, and lie alike */
	bool incomplete;     /* the budget was used up: the figures are too low */
};

struct attribute;

/* Both are borrowed. 0 or -ENOMEM. */
int attribute_new(const struct attribute_pages *pages, attribute_locate_fn locate, void *userdata,
		  struct attribute **ret_attribute);
struct attribute *attribute_free(struct attribute *a); /* NULL ok; gives NULL */

/* What user mode has in one address space. *budget as of composite_each(); each page of RAM that is mapped costs 1 more. */
void attribute_user(struct attribute *a, const struct composite *c, uint64_t cr3, uint64_t *budget,
		    struct attribute_usage *ret_usage);
/* All that were asked for up to now, each page once; without entries. */
void attribute_together(const struct attribute *a, struct attribute_usage *ret_usage);
/* What only the kernel's part of this address space has, and none that was asked for. */
void attribute_kernel(struct attribute *a, const struct composite *c, uint64_t cr3, uint64_t *budget,
		      struct attribute_usage *ret_usage);

#endif
