/* bench/lib/guest_made_up.h - a guest's RAM with page tables as Linux has them, where none was captured. */
#ifndef BENCH_GUEST_MADE_UP_H
#define BENCH_GUEST_MADE_UP_H

#include <stddef.h>
#include <stdint.h>

#include "bench/lib/guest_space.h"

struct guest_made_up {
	uint8_t *bytes;
	uint64_t size;
	struct page_runs present, huge;
};

/* spaces processes of small_pages 4 KiB pages, anywhere in RAM, and large_pages of 2 MiB. Every second 4 KiB page is dirty.
 * 0; -EINVAL: does not fit in size; -ENOMEM. */
int guest_made_up(uint64_t size, unsigned spaces, unsigned small_pages, unsigned large_pages, struct guest_made_up *ret_guest);
void guest_made_up_end(struct guest_made_up *g);

#endif
