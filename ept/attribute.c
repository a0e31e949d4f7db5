#include "ept/attribute.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/snapshot.h"

#define HUGE_PAGES 512u
#define WORD_BITS 64u

struct attribute {
	const struct attribute_pages *pages;
	attribute_locate_fn locate;
	void *userdata;
	size_t words;
	uint64_t *seen;	    /* a bit per page: in the address space at hand */
	uint64_t *together; /* in any address space that was asked for */

	/* Of the address space at hand: */
	struct attribute_usage usage;
	uint64_t *budget;
};

int attribute_new(const struct attribute_pages *pages, attribute_locate_fn locate, void *userdata,
		  struct attribute **ret_attribute)
{
	struct attribute *a = calloc(1, sizeof(*a));

	if (!a)
		return -ENOMEM;
	a->pages = pages;
	a->locate = locate;
	a->userdata = userdata;
	a->words = pages->count / WORD_BITS + 1;
	a->seen = calloc(a->words, sizeof(*a->seen));
	a->together = calloc(a->words, sizeof(*a->together));
	if (!a->seen || !a->together) {
		attribute_free(a);
		return -ENOMEM;
	}
	*ret_attribute = a;
	return 0;
}

struct attribute *attribute_free(struct attribute *a)
{
	if (!a)
		return NULL;
	free(a->seen);
	free(a->together);
	free(a);
	return NULL;
}

static void page_count(const struct attribute_pages *pages, uint64_t index, struct attribute_usage *u)
{
	uint64_t page = pages->pages[index];
	int node = (int)(page >> ATTRIBUTE_NODE_SHIFT) - 1;

	u->mapped++;
	u->merged += (page & ATTRIBUTE_MERGED) != 0;
	u->swapped += (page & ATTRIBUTE_SWAPPED) != 0;
	if (!(page & ATTRIBUTE_PRESENT) || (page & ATTRIBUTE_ZERO))
		return;
	u->resident++;
	u->huge += (page & ATTRIBUTE_HUGE) != 0;
	u->remote += node >= 0 && pages->home >= 0 && node != pages->home;
}

/* Counts the pages of a set. */
static void set_count(const struct attribute *a, const uint64_t *set, struct attribute_usage *u)
{
	for (size_t i = 0; i < a->words; i++)
		for (uint64_t word = set[i]; word; word &= word - 1)
			page_count(a->pages, i * WORD_BITS + (unsigned)__builtin_ctzll(word), u);
}

/* Sets count bits from index on. */
static void seen_add(struct attribute *a, uint64_t index, uint64_t count)
{
	while (count > 0) {
		unsigned bit = index % WORD_BITS;
		uint64_t n = count < WORD_BITS - bit ? count : WORD_BITS - bit;

		a->seen[index / WORD_BITS] |= (n == WORD_BITS ? ~UINT64_C(0) : (UINT64_C(1) << n) - 1) << bit;
		index += n;
		count -= n;
	}
}

/* Whether a 2 MiB entry can map the run: the host's page is as large, and begins where the guest's does. */
static bool lies_alike(const struct attribute_pages *pages, uint64_t index, uint64_t count)
{
	uint64_t page = pages->pages[index];

	return count >= HUGE_PAGES && (page & ATTRIBUTE_HUGE) && (page & ATTRIBUTE_FRAME) % HUGE_PAGES == 0;
}

/* The entries that a composite map has for pages of the guest that lie in a row in a page of its own of this size. */
static void entries_count(struct attribute *a, uint64_t gpa, uint64_t index, uint64_t count, uint64_t leaf_bytes)
{
	while (count > 0) {
		uint64_t n = 1;

		if (leaf_bytes >= HUGE_PAGES * PAGE_BYTES && gpa / PAGE_BYTES % HUGE_PAGES == 0 &&
		    lies_alike(a->pages, index, count)) {
			a->usage.entries_2m++;
			n = HUGE_PAGES;
		} else {
			a->usage.entries_4k += (a->pages->pages[index] & ATTRIBUTE_PRESENT) != 0;
		}
		gpa += n * PAGE_BYTES;
		index += n;
		count -= n;
	}
}

static int leaf_take(void *userdata, const struct composite_leaf *leaf)
{
	struct attribute *a = userdata;
	uint64_t pages = leaf->bytes / PAGE_BYTES, n;

	for (uint64_t at = 0; at < pages; at += n) {
		uint64_t gpa = leaf->gpa + at * PAGE_BYTES, index;
		int r = a->locate(a->userdata, gpa, &index, &n);

		if (n > pages - at)
			n = pages - at;
		if (r < 0) {
			a->usage.outside += n;
			continue;
		}
		if (*a->budget < n) {
			*a->budget = 0;
			return -EOVERFLOW;
		}
		*a->budget -= n;
		seen_add(a, index, n);
		entries_count(a, gpa, index, n, leaf->bytes);
	}
	return 0;
}

static void space_take(struct attribute *a, const struct composite *c, uint64_t cr3, enum composite_part part,
		       uint64_t *budget)
{
	memset(a->seen, 0, a->words * sizeof(*a->seen));
	a->usage = (struct attribute_usage){ 0 };
	a->budget = budget;
	a->usage.incomplete = composite_each(c, cr3, part, budget, leaf_take, a) < 0;
}

void attribute_user(struct attribute *a, const struct composite *c, uint64_t cr3, uint64_t *budget,
		    struct attribute_usage *ret_usage)
{
	space_take(a, c, cr3, COMPOSITE_USER, budget);
	set_count(a, a->seen, &a->usage);
	for (size_t i = 0; i < a->words; i++)
		a->together[i] |= a->seen[i];
	*ret_usage = a->usage;
}

void attribute_together(const struct attribute *a, struct attribute_usage *ret_usage)
{
	*ret_usage = (struct attribute_usage){ 0 };
	set_count(a, a->together, ret_usage);
}

void attribute_kernel(struct attribute *a, const struct composite *c, uint64_t cr3, uint64_t *budget,
		      struct attribute_usage *ret_usage)
{
	space_take(a, c, cr3, COMPOSITE_KERNEL, budget);
	for (size_t i = 0; i < a->words; i++)
		a->seen[i] &= ~a->together[i];
	set_count(a, a->seen, &a->usage);
	*ret_usage = a->usage;
}
