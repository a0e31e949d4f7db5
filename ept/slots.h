/* ept/slots.h - where a VM's guest-physical memory lies in its VMM: slots GPA -> HVA.
 *
 * From QMP ("info mtree -f", "gpa2hva" for both ends of each range), every answer checked against the
 * process's mappings. Without QMP (libvirt owns the monitor, or none is configured) the RAM is found as the
 * one anonymous mapping of the configured size; guest-physical addresses are then not known. Loop thread. */
#ifndef EPT_SLOTS_H
#define EPT_SLOTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/fsio.h"
#include "core/snapshot.h"
#include "ept/maps.h"
#include "ept/mtree.h"

struct qmp;
struct vm;

#define EPT_GPA_UNKNOWN UINT64_MAX

struct ept_slot {
	uint64_t gpa; /* or EPT_GPA_UNKNOWN */
	uint64_t hva, bytes;
	enum mem_backing backing;
	char block[MTREE_BLOCK_NAME_MAX];
};

enum ept_source { EPT_NOT_KNOWN, EPT_FROM_QMP, EPT_FROM_MAPS };

/* A VM's second stage as far as it is known. */
struct ept_view {
	const struct fsio *fs; /* borrowed */
	struct vm *vm;	       /* borrowed; the view is freed before the VM */
	enum ept_source source;
	struct ept_slot *slots; /* ascending by GPA; owned */
	size_t slot_count;
	struct mem_region *regions; /* the same memory ascending by HVA, neighbours joined; owned */
	size_t region_count;
	char why[160]; /* why source is EPT_NOT_KNOWN or EPT_FROM_MAPS */

	/* While QMP is being asked: */
	struct qmp *asked_of; /* only compared: a new connection means the old answers never come */
	struct mtree_range *ranges;
	size_t range_count, asked; /* two questions per range */
	uint64_t *answers;
};

/* 0 or -ENOMEM. */
int ept_view_new(const struct fsio *fs, struct vm *vm, struct ept_view **ret_view);
struct ept_view *ept_view_free(struct ept_view *v); /* NULL ok; gives NULL. Not while QMP replies are due. */

/* (Re)builds the view: asks QMP if the VM has it, else looks at the mappings. Returns at once; an older view
 * stays until a new one is complete. Failures are logged, kept in why and leave source as it was. */
void ept_view_refresh(struct ept_view *v);

/* The VM's QMP connection is gone: answers that were waited for will not come. */
void ept_view_abandon(struct ept_view *v);

/* The mappings of a process, as maps_parse() gives them. 0; -ESRCH; -EFBIG; -errno. */
int ept_maps_read(const struct fsio *fs, pid_t pid, struct vma **ret_vmas, size_t *ret_count);

/* GPA -> HVA. 0, or -ENXIO outside RAM. */
int ept_view_hva(const struct ept_view *v, uint64_t gpa, uint64_t *ret_hva);

#endif
