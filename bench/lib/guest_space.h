/* bench/lib/guest_space.h - the address spaces of a guest, found in its captured RAM by what its top-level tables look like.
 *
 * Linux copies the kernel's half of its own top-level table into that of every process. So: pages whose entries all are
 * entries for tables, with a user's half that is not empty, alike in the kernel's half; the largest such group. */
#ifndef BENCH_GUEST_SPACE_H
#define BENCH_GUEST_SPACE_H

#include <stddef.h>
#include <stdint.h>

#include "bench/lib/page_runs.h"
#include "ept/walk.h"

#define GUEST_SPACES_MAX 64

struct guest_ram {
	const uint8_t *bytes; /* borrowed; guest-physical address 0 on */
	uint64_t size;
	const struct page_runs *present, *huge; /* borrowed; on the host, in pages */
};

struct guest_page {
	uint64_t gva;	/* of the first byte */
	uint8_t level;	/* 1: 4 KiB, 2: 2 MiB, 3: 1 GiB */
	uint8_t dirty; /* by the guest's own flag */
};

struct guest_space {
	struct walk_regs regs; /* to walk it with */
	struct guest_page *pages; /* of its user half, ascending */
	size_t page_count;
};

/* Spaces with at least min_pages; those with most pages first. The caller ends each. Returns how many, or -ENOMEM. */
int guest_spaces_find(const struct guest_ram *ram, size_t min_pages, struct guest_space spaces[GUEST_SPACES_MAX]);
void guest_space_end(struct guest_space *s);

/* A walk_read_fn; ram is a struct guest_ram. */
int guest_ram_read(void *ram, uint64_t gpa, void *buf, size_t n);

#endif
