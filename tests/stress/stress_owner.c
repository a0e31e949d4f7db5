/* What owners of pages do to them, by themselves. */
#include "tests/stress/stress.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

struct stress s;

uint64_t rnd(uint64_t *state)
{
	uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);

	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return z ^ (z >> 31);
}

unsigned below(uint64_t *state, unsigned n)
{
	return (unsigned)(rnd(state) % n);
}

void must(bool ok, const char *what)
{
	if (!ok) {
		perror(what);
		exit(2);
	}
}

uint8_t *page_at(unsigned p)
{
	return s.ram[p / (SLOT_WINDOWS * WINDOW_PAGES)] + (size_t)(p % (SLOT_WINDOWS * WINDOW_PAGES)) * PAGE;
}

bool page_is(const uint8_t *page, const struct model *m)
{
	const uint8_t *want = s.contents + (size_t)m->content * PAGE;
	size_t at = m->word * 8;

	if (m->value == 0)
		return memcmp(page, want, PAGE) == 0;
	return memcmp(page, want, at) == 0 && memcmp(page + at, &m->value, 8) == 0 &&
	       memcmp(page + at + 8, want + at + 8, PAGE - at - 8) == 0;
}

void report(unsigned p, const struct model *m, const char *who)
{
	const uint8_t *page = page_at(p), *want = s.contents + (size_t)m->content * PAGE;
	unsigned at = 0;

	while (at < PAGE && page[at] == want[at])
		at++;
	if (s.bad++ < 10)
		printf("BAD page %u (%s): content %u word %u value %lx: differs from %u on: %02x want %02x\n", p, who,
		       m->content, m->word, m->value, at, page[at % PAGE], want[at % PAGE]);
}

void wrong(const char *what, long value)
{
	if (s.bad++ < 10)
		printf("BAD %s: %ld\n", what, value);
}

/* By the owner. */
void page_check(unsigned p, const char *who)
{
	s.checks++;
	if (!page_is(page_at(p), &s.model[p]))
		report(p, &s.model[p], who);
}

void change_begin(unsigned first, unsigned n)
{
	for (unsigned p = first; p < first + n; p++)
		atomic_fetch_add(&s.model[p].seq, 1);
}

void change_end(unsigned first, unsigned n)
{
	for (unsigned p = first; p < first + n; p++)
		atomic_fetch_add(&s.model[p].seq, 1);
}

void model_set(unsigned p, uint32_t content)
{
	s.model[p].content = content;
	s.model[p].value = 0;
}

/* ---- what an owner does ---- */

static void do_write_word(unsigned p, uint64_t *r)
{
	struct model *m = &s.model[p];
	volatile uint64_t *words = (volatile uint64_t *)(void *)page_at(p);

	change_begin(p, 1);
	if (m->value != 0)
		memcpy((void *)(uintptr_t)&words[m->word], s.contents + (size_t)m->content * PAGE + m->word * 8, 8);
	m->word = below(r, PAGE / 8);
	m->value = rnd(r) | 1;
	if (m->value % 4 == 1) /* as a guest's locked instructions do it */
		__atomic_exchange_n(&words[m->word], m->value, __ATOMIC_SEQ_CST);
	else
		words[m->word] = m->value;
	change_end(p, 1);
	s.writes++;
}

/* One store that changes the end of a page and the start of the next: two faults in one instruction. */
static void do_write_across(unsigned p, uint64_t *r)
{
	uint64_t value = rnd(r) | 1 | UINT64_C(1) << 32, last, first;
	uint8_t *at = page_at(p + 1);

	do_write_word(p, r);
	do_write_word(p + 1, r);
	change_begin(p, 2);
	for (unsigned i = p; i < p + 2; i++)
		memcpy(page_at(i) + s.model[i].word * 8, s.contents + (size_t)s.model[i].content * PAGE +
		       s.model[i].word * 8, 8);
	memcpy(&last, at - 8, 8);
	memcpy(&first, at, 8);
	__asm__ volatile("movq %1, (%0)" : : "r"(at - 4), "r"(value) : "memory");
	s.model[p].word = PAGE / 8 - 1;
	s.model[p].value = (last & UINT32_MAX) | value << 32;
	s.model[p + 1].word = 0;
	s.model[p + 1].value = (first & ~(uint64_t)UINT32_MAX) | value >> 32;
	change_end(p, 2);
	s.writes++;
}

/* Consecutive contents, so that runs come long. */
void do_fill(unsigned first, unsigned n, uint64_t *r)
{
	uint32_t content = below(r, 4) == 0 ? 0 : 1 + below(r, CONTENTS - n);

	change_begin(first, n);
	for (unsigned p = first; p < first + n; p++) {
		memcpy(page_at(p), s.contents + (size_t)content * PAGE, PAGE);
		model_set(p, content);
		content += content != 0;
	}
	change_end(first, n);
	s.writes += n;
}

/* As the interposed madvise() does it. */
void do_discard(unsigned first, unsigned n)
{
	must(exchange_lock(s.x) == 0, "exchange_lock");
	change_begin(first, n);
	if (exchange_discard(s.x, page_at(first), n * PAGE) != 0 ||
	    madvise(page_at(first), n * PAGE, MADV_DONTNEED) != 0)
		must(false, "discard");
	for (unsigned p = first; p < first + n; p++)
		model_set(p, 0);
	change_end(first, n);
	exchange_unlock(s.x);
	s.discards += n;
}

static __attribute__((noinline)) void do_zero(unsigned first, unsigned n)
{
	for (unsigned p = first; p < first + n; p++) {
		memset(page_at(p), 0, PAGE);
		model_set(p, 0);
	}
}

/* A guest that frees its memory lazily: until it is written again it holds the old bytes or zeroes. */
static void do_free(unsigned first, unsigned n, uint64_t *r)
{
	must(exchange_lock(s.x) == 0, "exchange_lock");
	change_begin(first, n);
	if (exchange_make_anonymous(s.x, page_at(first), n * PAGE) != 0 ||
	    madvise(page_at(first), n * PAGE, MADV_FREE) != 0)
		must(false, "MADV_FREE");
	exchange_unlock(s.x);
	do_zero(first, n);
	change_end(first, n);
	do_fill(first, n, r);
}

void owner_act(unsigned block, uint64_t *r)
{
	unsigned first = block * BLOCK, n = 1 + below(r, BLOCK), p = first + below(r, BLOCK);

	switch (below(r, 32)) {
	case 0:
	case 1:
		do_fill(first, BLOCK, r);
		break;
	case 2:
	case 3:
		do_discard(first, below(r, 2) ? BLOCK : n);
		break;
	case 4:
	case 5:
		do_direct(first, n, r);
		break;
	case 6:
	case 7:
		do_uring(first, n, r);
		break;
	case 8:
		do_free(first, n, r);
		break;
	case 9:
		do_write_across(first + below(r, BLOCK - 1), r);
		break;
	case 10:
		do_kernel_write(p, r);
		break;
	case 11:
		do_kernel_read(p, r);
		break;
	case 12:
	case 13:
	case 14:
	case 15:
		do_write_word(p, r);
		break;
	default:
		page_check(p, "owner");
	}
}
