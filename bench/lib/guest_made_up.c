#include "bench/lib/guest_made_up.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "bench/lib/sim_random.h"
#include "core/snapshot.h"

#define TABLE_FLAGS (WALK_PRESENT | WALK_WRITABLE | WALK_USER | WALK_ACCESSED | WALK_DIRTY)
#define SMALL_GVA UINT64_C(0x7f0000000000)
#define LARGE_GVA UINT64_C(0x7f8000000000)
#define KERNEL_FIRST 256u
#define KERNEL_ENTRIES 8u

struct maker {
	uint8_t *bytes;
	uint64_t next, end; /* of tables, which grow upwards from the first page */
	uint64_t random;
};

static uint64_t *table_at(const struct maker *m, uint64_t gpa)
{
	return (uint64_t *)(void *)(m->bytes + gpa);
}

static uint64_t table_new(struct maker *m)
{
	uint64_t gpa = m->next;

	m->next += PAGE_BYTES;
	return gpa;
}

static void page_put(struct maker *m, uint64_t top, uint64_t gva, unsigned leaf, uint64_t entry)
{
	uint64_t table = top;

	for (unsigned level = 4; level > leaf; level--) {
		uint64_t *at = &table_at(m, table)[gva >> (12 + 9 * (level - 1)) & 511];

		if (*at == 0)
			*at = table_new(m) | TABLE_FLAGS;
		table = *at & ~UINT64_C(0xfff);
	}
	table_at(m, table)[gva >> (12 + 9 * (leaf - 1)) & 511] = entry;
}

static void space_make(struct maker *m, uint64_t kernel, unsigned small_pages, unsigned large_pages, uint64_t size)
{
	uint64_t top = table_new(m), small_room = (size - m->end) / PAGE_BYTES, large_room = (size - m->end) / (2u << 20);

	for (unsigned i = 0; i < KERNEL_ENTRIES; i++)
		table_at(m, top)[KERNEL_FIRST + i] = (kernel + i * PAGE_BYTES) | TABLE_FLAGS;
	for (unsigned i = 0; i < small_pages; i++) {
		uint64_t gpa = m->end + sim_random(&m->random) % small_room * PAGE_BYTES;

		page_put(m, top, SMALL_GVA + i * (uint64_t)PAGE_BYTES, 1,
			 gpa | (TABLE_FLAGS & ~(i % 2 ? WALK_DIRTY : 0)));
	}
	for (unsigned i = 0; i < large_pages; i++) {
		uint64_t gpa = m->end + sim_random(&m->random) % large_room * (2u << 20);

		page_put(m, top, LARGE_GVA + i * (UINT64_C(2) << 20), 2, gpa | TABLE_FLAGS | WALK_LARGE);
	}
}

int guest_made_up(uint64_t size, unsigned spaces, unsigned small_pages, unsigned large_pages, struct guest_made_up *ret_guest)
{
	struct guest_made_up g = { .size = size };
	struct maker m = { .next = PAGE_BYTES, .random = 1 };
	uint64_t tables = (uint64_t)spaces * (small_pages / 512 + large_pages / 512 + 8) + KERNEL_ENTRIES + 1, kernel;
	int r;

	m.end = (tables * PAGE_BYTES | ((2u << 20) - 1)) + 1;
	if (size % PAGE_BYTES != 0 || m.end + (2u << 20) > size || small_pages > 512u * 512u || large_pages > 512u * 512u)
		return -EINVAL;
	m.bytes = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (m.bytes == MAP_FAILED)
		return -ENOMEM;
	kernel = m.next;
	m.next += KERNEL_ENTRIES * PAGE_BYTES;
	for (unsigned i = 0; i < spaces; i++)
		space_make(&m, kernel, small_pages, large_pages, size);
	g.bytes = m.bytes;
	r = page_runs_add(&g.present, 0, size / PAGE_BYTES);
	if (r < 0)
		guest_made_up_end(&g);
	else
		*ret_guest = g;
	return r;
}

void guest_made_up_end(struct guest_made_up *g)
{
	munmap(g->bytes, g->size);
	page_runs_free(&g->present);
	page_runs_free(&g->huge);
}
