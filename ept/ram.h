/* ept/ram.h - every page of a VM's RAM on the host, at one go: frame, kind, size, node. Without touching a page. */
#ifndef EPT_RAM_H
#define EPT_RAM_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "ept/attribute.h"

struct ept_target;

/* Who watches sets cancel, and may read done_pages. */
struct ram_watch {
	_Atomic bool cancel;
	_Atomic uint64_t done_pages;
};

/* Pages in the order of the target's regions; *ret_pages is ended by free() of its pages. Eight bytes a page. 0; -ECANCELED;
 * -EPERM: frame numbers are hidden from this process; -ESRCH; -errno. */
int ram_load(const struct ept_target *t, struct ram_watch *watch, struct attribute_pages *ret_pages);

/* An attribute_locate_fn; t is a struct ept_target. */
int ram_locate(void *t, uint64_t gpa, uint64_t *ret_index, uint64_t *ret_pages);
uint64_t ram_pages(const struct ept_target *t);

#endif
