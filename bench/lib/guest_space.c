#include "bench/lib/guest_space.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "core/snapshot.h"

#define ENTRIES 512u
#define HALF 256u
/* Of a process of Linux: kernel text, direct map, vmemmap, vmalloc. */
#define KERNEL_ENTRIES_MIN 4u
#define CANDIDATES_MAX 4096u
#define PAGES_MAX (1u << 20)

static const struct walk_regs long_mode = { .cr0 = 0x80000011, .cr4 = 0x20, .efer = 0xd00, .phys_bits = 46, .pse36 = true,
					    .gib_pages = true };

int guest_ram_read(void *userdata, uint64_t gpa, void *buf, size_t n)
{
	const struct guest_ram *ram = userdata;

	if (gpa > ram->size || n > ram->size - gpa)
		return -ENXIO;
	memcpy(buf, ram->bytes + gpa, n);
	return 0;
}

static const uint64_t *table_at(const struct guest_ram *ram, uint64_t gpa)
{
	return gpa % PAGE_BYTES == 0 && gpa < ram->size ? (const uint64_t *)(const void *)(ram->bytes + gpa) : NULL;
}

static bool is_top_table(const struct guest_ram *ram, uint64_t page)
{
	const uint64_t *table = table_at(ram, page * PAGE_BYTES);
	unsigned user = 0, kernel = 0;
	uint64_t gpa;

	for (unsigned i = 0; i < ENTRIES; i++) {
		if (table[i] == 0)
			continue;
		if (walk_entry(&long_mode, WALK_4LEVEL, 4, table[i], &gpa) != WALK_ENTRY_TABLE || gpa >= ram->size)
			return false;
		user += i < HALF;
		kernel += i >= HALF;
	}
	return user > 0 && kernel >= KERNEL_ENTRIES_MIN;
}

static size_t candidates_find(const struct guest_ram *ram, uint64_t *candidates)
{
	size_t count = 0;

	for (size_t i = 0; i < ram->present->count; i++)
		for (uint64_t k = 0; k < ram->present->run[i].count && count < CANDIDATES_MAX; k++)
			if (is_top_table(ram, ram->present->run[i].first + k))
				candidates[count++] = ram->present->run[i].first + k;
	return count;
}

static bool alike(const struct guest_ram *ram, uint64_t a, uint64_t b)
{
	return memcmp(table_at(ram, a * PAGE_BYTES) + HALF, table_at(ram, b * PAGE_BYTES) + HALF, HALF * sizeof(uint64_t)) == 0;
}

/* Leaves only the members of the largest group. */
static size_t largest_group(const struct guest_ram *ram, uint64_t *candidates, size_t count)
{
	size_t best = 0, best_count = 0, kept = 0;
	uint64_t leader;

	for (size_t i = 0; i < count; i++) {
		size_t members = 0;

		for (size_t k = 0; k < count; k++)
			members += alike(ram, candidates[i], candidates[k]);
		if (members > best_count) {
			best = i;
			best_count = members;
		}
	}
	if (count == 0)
		return 0;
	leader = candidates[best];
	for (size_t i = 0; i < count; i++)
		if (alike(ram, leader, candidates[i]))
			candidates[kept++] = candidates[i];
	return kept;
}

/* Adds the pages below a table. 0 or -ENOMEM. What makes no sense is left out. */
static int pages_add(const struct guest_ram *ram, struct guest_space *s, uint64_t table_gpa, unsigned level, uint64_t gva)
{
	const uint64_t *table = table_at(ram, table_gpa);
	int r = 0;

	for (unsigned i = 0; table && i < (level == 4 ? HALF : ENTRIES) && r == 0 && s->page_count < PAGES_MAX; i++) {
		uint64_t at = gva + i * walk_level_bytes(WALK_4LEVEL, level), gpa;
		enum walk_entry_kind kind = walk_entry(&s->regs, WALK_4LEVEL, level, table[i], &gpa);

		if (kind == WALK_ENTRY_TABLE)
			r = pages_add(ram, s, gpa, level - 1, at);
		if (kind != WALK_ENTRY_PAGE || gpa >= ram->size || !(table[i] & WALK_USER))
			continue;
		if ((s->page_count & (s->page_count - 1)) == 0) { /* a power of two: full */
			size_t cap = s->page_count ? s->page_count * 2 : 1;
			struct guest_page *bigger = realloc(s->pages, cap * sizeof(*bigger));

			if (!bigger)
				return -ENOMEM;
			s->pages = bigger;
		}
		s->pages[s->page_count++] = (struct guest_page){ at, (uint8_t)level, !!(table[i] & WALK_DIRTY) };
	}
	return r;
}

static int more_pages(const void *a, const void *b)
{
	const struct guest_space *x = a, *y = b;

	return (x->page_count < y->page_count) - (x->page_count > y->page_count);
}

int guest_spaces_find(const struct guest_ram *ram, size_t min_pages, struct guest_space spaces[GUEST_SPACES_MAX])
{
	uint64_t *candidates = calloc(CANDIDATES_MAX, sizeof(*candidates));
	size_t count, found = 0;
	int r = candidates ? 0 : -ENOMEM;

	count = candidates ? candidates_find(ram, candidates) : 0;
	count = largest_group(ram, candidates, count);
	for (size_t i = 0; i < count && r == 0 && found < GUEST_SPACES_MAX; i++) {
		struct guest_space *s = &spaces[found];

		*s = (struct guest_space){ .regs = long_mode };
		s->regs.cr3 = candidates[i] * PAGE_BYTES;
		r = pages_add(ram, s, s->regs.cr3, 4, 0);
		if (r < 0 || s->page_count < min_pages)
			guest_space_end(s);
		else
			found++;
	}
	free(candidates);
	if (r < 0) {
		while (found > 0)
			guest_space_end(&spaces[--found]);
		return r;
	}
	qsort(spaces, found, sizeof(*spaces), more_pages);
	return (int)found;
}

void guest_space_end(struct guest_space *s)
{
	free(s->pages);
	*s = (struct guest_space){ 0 };
}
