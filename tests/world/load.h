/* tests/world/load.h - guest RAM of one VMM, what it should hold, and what is done to it.
 *
 * Each window of 2 MiB has one owner, a writer. It changes pages and model under the page's sequence number; the reader
 * takes both and compares if the number stood still. What a page should hold follows from numbers alone, so every byte
 * is checked without a second copy of memory. */
#ifndef TESTS_WORLD_LOAD_H
#define TESTS_WORLD_LOAD_H

#include <stdbool.h>
#include <stdint.h>

#include "tests/world/vmm.h"

#define PAGE 4096u
#define WINDOW_PAGES 512u
#define RAM_BYTES ((uint64_t)CHAOS_RAM_MIB << 20)
#define PAGES (RAM_BYTES / PAGE)
#define WINDOWS (PAGES / WINDOW_PAGES)
#define WRITERS (CHAOS_THREADS - 1)
#define POOL (WINDOW_PAGES * 8u) /* shared contents of an epoch */

struct load {
	uint8_t *ram;
	uint32_t vm;	/* its number: what makes contents private */
	int pipe[WRITERS][2];
	struct chaos_page *page;
};
extern struct load load;

/* Small or huge pages; then the agent is told that this is guest RAM. 0 or -errno. */
int load_open(uint32_t vm, struct chaos_page *page);
void load_name_ram(void);

/* One step of a writer or of the reader; *r: state of its random numbers. */
void load_write(unsigned writer, uint64_t *r);
void load_read(uint64_t *r);

/* With no other thread at work. */
void load_fill_all(void);
void load_check_all(const char *who);
void load_discard_all(void);

#endif
