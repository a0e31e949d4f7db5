/* ept/mtree.h - guest RAM ranges out of QEMU's "info mtree -f". Pure. */
#ifndef EPT_MTREE_H
#define EPT_MTREE_H

#include <stddef.h>
#include <stdint.h>

#define MTREE_RANGES_MAX 1024
#define MTREE_BLOCK_NAME_MAX 64

struct mtree_range {
	uint64_t gpa, bytes;
	char block[MTREE_BLOCK_NAME_MAX]; /* QEMU's name of the RAM block, for people; cut when longer */
};

/* Fills ranges with the writable RAM of the address space "memory", in ascending order, page-aligned pieces
 * of at least a page. ROM and device memory are left out. Returns how many; -ENOENT when the text has no
 * such address space or it has no RAM; -EBADMSG for text of another shape or overlapping ranges; -E2BIG
 * when cap is too small. */
int mtree_parse(const char *text, struct mtree_range *ranges, size_t cap);

/* The address out of the answer to "gpa2hva ADDR" ("Host virtual address for 0x0 (pc.ram) is 0x7f..").
 * 0 or -EBADMSG. */
int mtree_parse_hva(const char *text, uint64_t *ret_hva);

#endif
