/* agent/pagebits.h - one bit for each 4 KiB page of a 2 MiB window. */
#ifndef AGENT_PAGEBITS_H
#define AGENT_PAGEBITS_H

#include <stdbool.h>
#include <stdint.h>

#define WINDOW_PAGES 512u
#define WINDOW_PAGE_BYTES UINT64_C(4096)
#define WINDOW_BYTES (WINDOW_PAGES * WINDOW_PAGE_BYTES)

struct page_bits {
	uint64_t word[WINDOW_PAGES / 64];
};

static inline bool bits_test(const struct page_bits *b, unsigned i)
{
	return b->word[i / 64] >> (i % 64) & 1;
}

static inline void bits_set(struct page_bits *b, unsigned first, unsigned n)
{
	for (unsigned i = first; i < first + n; i++)
		b->word[i / 64] |= UINT64_C(1) << (i % 64);
}

static inline void bits_clear(struct page_bits *b, unsigned first, unsigned n)
{
	for (unsigned i = first; i < first + n; i++)
		b->word[i / 64] &= ~(UINT64_C(1) << (i % 64));
}

static inline unsigned bits_count(const struct page_bits *b)
{
	unsigned n = 0;

	for (unsigned i = 0; i < WINDOW_PAGES / 64; i++)
		n += (unsigned)__builtin_popcountll(b->word[i]);
	return n;
}

static inline void bits_minus(struct page_bits *b, const struct page_bits *without)
{
	for (unsigned i = 0; i < WINDOW_PAGES / 64; i++)
		b->word[i] &= ~without->word[i];
}

/* The first page in [from, end) whose bit is `want`, or end. */
static inline unsigned bits_next(const struct page_bits *b, unsigned from, unsigned end, bool want)
{
	while (from < end && bits_test(b, from) != want)
		from++;
	return from;
}

/* Walks the stretches of set bits within [lo, hi): for each, first and n. */
#define BITS_FOR_STRETCHES(b, lo, hi, first, n)                                                       \
	for (unsigned first = bits_next((b), (lo), (hi), true),                                       \
		      n = bits_next((b), first, (hi), false) - first;                                 \
	     first < (hi); first = bits_next((b), first + n, (hi), true),                             \
		      n = bits_next((b), first, (hi), false) - first)

#endif
