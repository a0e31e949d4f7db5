/* ept/roots.h - which pages of a guest are the top tables of its address spaces, told by their content. Pure.
 *
 * A kernel in the upper half of 64-bit addresses, as Linux is, has its own memory mapped by the same tables in each address
 * space: the upper halves of all top tables are alike. One of them is known from a CPU, so the others are found. */
#ifndef EPT_ROOTS_H
#define EPT_ROOTS_H

#include <stdbool.h>
#include <stdint.h>

#define ROOTS_ENTRIES 512u

/* Entries of the kernel that must be there at least: less than that says too little. */
#define ROOTS_KERNEL_MIN 3u
/* Entries that may differ: Linux puts the LDT of a process that has one into a slot of its own. */
#define ROOTS_DIFFERENT_MAX 1u

/* How many entries are present in the upper half. */
unsigned roots_kernel_entries(const uint64_t *table);
/* Whether the upper halves are alike; reference has at least ROOTS_KERNEL_MIN entries there, or nothing is. */
bool roots_same_kernel(const uint64_t *reference, const uint64_t *table);
/* Whether user mode has anything in the lower half. Tables that were freed have not: Linux empties them before. */
bool roots_has_user(const uint64_t *table);
/* Where the kernel's tables are kept apart from what user mode sees (KPTI) an address space has two top tables, side by side;
 * the user's has the same lower half, and in Linux the kernel's sets no-execute there. */
bool roots_pair(const uint64_t *kernel, const uint64_t *user);

#endif
