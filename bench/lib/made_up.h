/* bench/lib/made_up.h - hashes of VMs that nobody has, with the structure that captured guests had.
 *
 * Of four captured guests: zero pages, pages of its own, and stretches of a common image, most of the pages in long ones
 * and most of the stretches short. All pages are there. */
#ifndef BENCH_MADE_UP_H
#define BENCH_MADE_UP_H

#include <stddef.h>
#include <stdint.h>

/* Fills the hashes of VM number "vm"; the same numbers give the same hashes. Images have half as many pages as a VM.
 * family: so many VMs in a row have an image of their own and take every fourth stretch from one that all have; 0: there is
 * only that one. */
void made_up_vm(uint64_t *hashes, uint64_t pages, size_t vm, size_t family);

#endif
