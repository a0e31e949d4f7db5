/* A guest without an operating system that fills page tables at random, turns paging on and halts: 32-bit paging with small
 * and 4 MiB pages, or with -DPAE small and 2 MiB ones. A multiboot program; tells "ready" on the debug port (0xe9).
 * RAM: 64 MiB. Code and stack in the first 4 MiB, which are mapped to themselves; tables from 4 MiB on. */
#include <stdint.h>

#define RAM_BYTES (64u << 20)
#define TABLES (4u << 20)
#define POOL 64u /* page tables, from TABLES + 64 KiB on */
#define PAGE 4096u

/* The multiboot header has to be early in the file. */
__asm__(".text\n"
	".align 4\n"
	".long 0x1badb002, 0, -0x1badb002\n"
	".globl _start\n"
	"_start: mov $0x200000, %esp\n"
	"call guest_main\n");

static uint32_t seed = SEED;

static uint32_t next(void)
{
	seed ^= seed << 13;
	seed ^= seed >> 17;
	seed ^= seed << 5;
	return seed;
}

static void say(const char *text)
{
	for (; *text; text++)
		__asm__ volatile("outb %0, $0xe9" : : "a"(*text));
}

static uint32_t pool_table(void)
{
	return TABLES + 0x10000 + next() % POOL * PAGE;
}

#ifdef PAE
typedef uint64_t entry_t;
#define COUNT 512u
#define NX_MAYBE (next() % 3 == 0 ? (uint64_t)1 << 63 : 0)
#define LARGE_SHIFT 21

static void mode_enter(void)
{
	uint64_t *pointers = (uint64_t *)(TABLES + 0x20); /* not at the start of its page */

	for (uint32_t i = 0; i < 4; i++)
		pointers[i] = (TABLES + (1 + i) * PAGE) | (i == 2 ? 0 : 1);
	__asm__ volatile("wrmsr" : : "c"(0xc0000080), "a"(0x800), "d"(0)); /* NXE */
	__asm__ volatile("mov %0, %%cr4" : : "r"(0x20));
	__asm__ volatile("mov %0, %%cr3" : : "r"(pointers));
}
#define DIRECTORIES 4u
#else
typedef uint32_t entry_t;
#define COUNT 1024u
#define NX_MAYBE 0
#define LARGE_SHIFT 22

static void mode_enter(void)
{
	__asm__ volatile("mov %0, %%cr4" : : "r"(0x10));
	__asm__ volatile("mov %0, %%cr3" : : "r"(TABLES + PAGE));
}
#define DIRECTORIES 1u
#endif

/* Rights and marks as they come; mostly present. */
static entry_t marks(void)
{
	return (next() & 0x17e) | (next() % 8 != 0) | NX_MAYBE;
}

static void tables_fill(void)
{
	for (uint32_t t = 0; t < POOL; t++) {
		entry_t *table = (entry_t *)(TABLES + 0x10000 + t * PAGE);

		for (uint32_t i = 0; i < COUNT; i++)
			table[i] = (next() % RAM_BYTES & ~(PAGE - 1)) | marks() | (next() & 0x80);
	}
	for (uint32_t d = 0; d < DIRECTORIES; d++) {
		entry_t *directory = (entry_t *)(TABLES + (1 + d) * PAGE);

		for (uint32_t i = 0; i < COUNT; i++) {
			if (next() % 4 == 0)
				directory[i] = (next() % RAM_BYTES >> LARGE_SHIFT << LARGE_SHIFT) | marks() | 0x80;
			else
				directory[i] = pool_table() | marks();
		}
	}
	/* Itself. */
	for (uint32_t i = 0; i < (4u << 20) >> LARGE_SHIFT; i++)
		((entry_t *)(TABLES + PAGE))[i] = i << LARGE_SHIFT | 0xe3;
}

__attribute__((noreturn, used)) void guest_main(void)
{
	uint32_t cr0;

	for (uint32_t page = (8u << 20) / PAGE; page < RAM_BYTES / PAGE; page++)
		if (page % 3)
			*(volatile uint32_t *)(page * PAGE + next() % PAGE / 4 * 4) = next();
	tables_fill();
	mode_enter();
	__asm__ volatile("mov %%cr0, %0" : "=r"(cr0));
	__asm__ volatile("mov %0, %%cr0" : : "r"(cr0 | 0x80000000));
	say("ready\n");
	for (;;)
		__asm__ volatile("cli; hlt");
}
