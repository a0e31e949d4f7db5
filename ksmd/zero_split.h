/* ksmd/zero_split.h - gives back the zero pages inside huge pages, before the kernel's scanner gets there.
 *
 * When the kernel splits a huge page it maps the zero pages in it to the shared zero page (Linux >= 6.12). KSM
 * splits huge pages too, one after the other as it merges in them, but blocks that are all zero, or nearly, it
 * leaves for many scans: the first zero page it puts into its tree vanishes with its split, and the search for
 * the others ends at the hole for the rest of that scan. A huge page is split from outside by
 * process_madvise(MADV_COLD) on one of its pages, which changes no content; which pages are zero the kernel
 * decides itself, while nobody can write to them. So a guest that writes meanwhile loses nothing.
 *
 * Splitting costs the guest the huge page. It is done only where the kernel's scanner is started, which would
 * split the same blocks, and only where enough zero pages are to be had. */
#ifndef KSMD_ZERO_SPLIT_H
#define KSMD_ZERO_SPLIT_H

#include <stddef.h>
#include <stdint.h>

struct page_table;
struct zero_split;

/* Starts a thread that goes over the huge blocks in which these tables know zero pages; the tables are
 * referenced, and not to be scanned while it works. 0 or -errno. */
int zero_split_start(struct page_table *const *tables, size_t count, struct zero_split **ret_split);
/* Waits until it is through. */
void zero_split_wait(struct zero_split *z);
/* Cancels if it is still at work, and frees. Adds its CPU time and the blocks that it split, if wanted. NULL ok;
 * gives NULL. */
struct zero_split *zero_split_free(struct zero_split *z, double *cpu_seconds, uint64_t *blocks);

#endif
