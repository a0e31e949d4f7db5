/* ksmd/store_internal.h - between store.c (frames) and store_file.c (the memfd and its mappings). */
#ifndef KSMD_STORE_INTERNAL_H
#define KSMD_STORE_INTERNAL_H

#include "ksmd/store.h"

/* 256 KiB: stays in the core's L2 between reading, hashing and writing. */
#define STORE_BUFFER_PAGES 64u

enum frame_state { FRAME_FREE, FRAME_FILLING, FRAME_PUBLISHED };

struct store_block {
	uint16_t used;	/* frames that are not free */
	uint16_t fit;	/* no stretch of free frames is longer than this */
	bool whole;	/* to get huge memory */
	bool prepared;	/* has been asked to */
	bool huge;	/* and did */
};

struct store {
	int fd;		/* read-write */
	char *map;	/* all of it, aligned to 2 MiB, without advice */
	char *map_huge; /* the same with MADV_HUGEPAGE: whole blocks are first touched here */
	char *buffer;	/* STORE_BUFFER_PAGES pages on their way into small frames */
	uint32_t frames, block_count;
	uint8_t *states;	    /* enum frame_state; address space, memory only where used */
	struct store_block *blocks; /* the same */
	uint32_t blocks_high;	    /* no block above was ever used */
	uint32_t block_free;	    /* no block below is free */
	uint32_t block_next;	    /* where the search for a gap goes on */
	uint64_t used, filling, huge;
};

/* Arrays and mappings for s->fd and s->frames. 0 or -errno. */
int store_map(struct store *s, int node);
/* Every frame that has memory becomes published: of an adopted store it is not known which were. 0 or -errno. */
int store_publish_existing(struct store *s);
/* Makes the memory of a block huge if the kernel has any; its content is zeroes or as before. */
bool store_block_make_huge(struct store *s, uint32_t block);
void store_punch(struct store *s, uint32_t first, uint32_t n);

#endif
