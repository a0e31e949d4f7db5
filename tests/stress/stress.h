/* tests/stress/stress.h - what the files of the stress test share: guest RAM, its model, and what an owner does.
 *
 * Each page has one owner at a time: a writer (blocks of 16 pages), or who holds its window's lock for writing.
 * Owners change page and model under the page's sequence number; readers take both and compare if the number
 * stood still. */
#ifndef TESTS_STRESS_STRESS_H
#define TESTS_STRESS_STRESS_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "agent/exchange.h"

#define SLOTS 2u /* one with huge pages, one small with write protection */
#define SLOT_WINDOWS 8u
#define WINDOWS (SLOTS * SLOT_WINDOWS)
#define PAGES (WINDOWS * WINDOW_PAGES)
#define BLOCK 16u
#define CONTENTS 4096u /* 1 .. CONTENTS: of frames 0 .. CONTENTS-1; 0: zeroes */
#define WRITERS 3u
#define PAGE 4096u

struct model {
	_Atomic uint32_t seq; /* odd: being changed */
	uint32_t content;
	uint32_t word; /* this 8-byte word of it is replaced .. */
	uint64_t value; /* .. if this is not 0 */
};

struct stress {
	uint8_t *ram[SLOTS];
	struct model model[PAGES];
	pthread_rwlock_t window_lock[WINDOWS];
	uint8_t *contents; /* CONTENTS + 1 pages */
	struct exchange_store store;
	struct exchange_journal *journal;
	struct exchange *x;
	int uffd, pagemap_fd, file, mem_fd; /* file: all contents, opened O_DIRECT */
	atomic_bool stop;
	bool swap;
	bool no_pins; /* nothing holds pages pinned: what was copied on write is folded, too */
	_Atomic uint64_t bad, writes, checks, reads, discards, direct_reads, uring_reads, kernel_writes, kernel_reads,
		refused, forks, pins, scans, merges, recycles, collapses, pageouts, signals, folds, folded, kept;
};
extern struct stress s;

uint64_t rnd(uint64_t *state);
unsigned below(uint64_t *state, unsigned n);
void must(bool ok, const char *what);

uint8_t *page_at(unsigned p);
bool page_is(const uint8_t *page, const struct model *m);
void report(unsigned p, const struct model *m, const char *who);
void wrong(const char *what, long value); /* something else than a page */

/* ---- by the owner ---- */

void page_check(unsigned p, const char *who);
void change_begin(unsigned first, unsigned n);
void change_end(unsigned first, unsigned n);
void model_set(unsigned p, uint32_t content);
void do_fill(unsigned first, unsigned n, uint64_t *r);
void do_discard(unsigned first, unsigned n);
/* Something to a block that the caller owns. */
void owner_act(unsigned block, uint64_t *r);

/* stress_io.c: the kernel and devices read and write guest memory. */
void do_direct(unsigned first, unsigned n, uint64_t *r);
void do_uring(unsigned first, unsigned n, uint64_t *r);
void do_kernel_write(unsigned p, uint64_t *r);
void do_kernel_read(unsigned p, uint64_t *r);
/* A device reads into pages that it holds pinned, after `meanwhile` was called with the pages pinned. */
void do_pinned(unsigned first, unsigned n, uint64_t *r, void (*meanwhile)(unsigned window, uint64_t *r));

#endif
