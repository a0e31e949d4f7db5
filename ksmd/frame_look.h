/* ksmd/frame_look.h - what one process maps of a store, from /proc/PID/maps and its page tables. */
#ifndef KSMD_FRAME_LOOK_H
#define KSMD_FRAME_LOOK_H

#include "ksmd/frame_users.h"

/* A bit for each frame would cost every client memory and time for all that the store has room for, of which it maps
 * little: two times 32 MiB for each VM of a host of 1 TiB. */
struct frame_list {
	struct frame_stretch {
		uint32_t first, n;
	} *stretches;
	size_t count, cap;
};

/* Owned stretches; free() them. 0 or -ENOMEM. */
int frame_list_add(struct frame_list *f, uint32_t first, uint32_t n);

struct frame_look {
	/* Of the store that it is about; inode UINT64_MAX: none. */
	const struct fsio *fs;
	uint64_t inode;
	uint32_t frame_count;
	int pagemap_fd;	  /* -1: copies are not counted */
	bool keep_ranges;

	/* Found; the caller frees frames.stretches and ranges: */
	struct frame_list frames;
	bool views; /* has mappings of the store to compare with */
	struct hva_range *ranges;
	size_t range_count, range_cap;
	struct frame_user_figures figures;
};

/* Adds what this process, or thread, maps. 0 or -errno. */
int frame_look_process(struct frame_look *l, pid_t pid);
/* Of a process whose first thread has ended nothing is listed, but others may live on in its memory: looks through them. */
int frame_look_threads(struct frame_look *l, pid_t pid);

/* Where a process maps frames, of any store; ascending, apart. The caller frees the list. 0 or -errno. */
int frame_look_ranges(const struct fsio *fs, pid_t pid, struct hva_range **ret_ranges, size_t *ret_count);

/* A descriptor of the store that this process maps and whose memfd has this name, which the caller closes; -ENOENT: it maps
 * none. What it is worth is for store_adopt() to say. */
int frame_look_find_store(const struct fsio *fs, pid_t pid, const char *name);

#endif
