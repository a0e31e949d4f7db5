/* ksmd/store.h - the frames that merged pages of one domain (on one NUMA node) share.
 *
 * A store is a memfd, large and sparse, owned and written by the daemon alone. Agents map it read-only and
 * privately over merged pages. A frame's life:
 *
 *	free -> store_alloc() -> store_fill() -> store_publish() -> mapped by clients -> store_retire() -> free
 *
 * From store_publish() on a frame is immutable: nothing here writes it (store_fill() refuses). Who maps it is not
 * counted here: only the kernel's list of a process's mappings is sure to tell (ksmd/frame_use.h). A frame that no
 * process maps and no command on its way names is retired: punched out of the file, and used for other contents. That
 * all pages of a mapping were copied on write is no reason to do so: the mapping is still there.
 *
 * Not thread-safe: one thread at a time. */
#ifndef KSMD_STORE_H
#define KSMD_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "core/fsio.h"

#define STORE_BLOCK_FRAMES 512u /* 2 MiB: what one huge mapping covers */
#define STORE_NAME_PREFIX "memvirt-store:" /* of the memfd's name; ept/maps.c knows it, too */
#define STORE_NAME_USED 64
#define STORE_FRAMES_MAX (UINT32_C(1) << 31)
struct store;

struct store_options {
	const char *name; /* shown in /proc/PID/maps of the clients; copied, at most STORE_NAME_USED bytes are used */
	uint32_t frames;  /* room, a multiple of STORE_BLOCK_FRAMES; costs nothing until used. store_adopt(): ignored */
	int node;	  /* memory is taken here if it can be; -1: anywhere */
};

/* ---- the whole ---- */

/* Says once at info level why frames will not be huge, if so. 0 or -errno. */
int store_new(const struct fsio *fs, const struct store_options *options, struct store **ret_store);
/* The store of an earlier daemon from the descriptor that a client hands back. It is taken only if it can be
 * nothing else: a memfd of our own user, not writable by others, with exactly the seals of a store; else -EPERM.
 * -EBUSY: another process works with it. fd is borrowed. Frames that have memory count as published; store_retire() those that nobody maps. */
int store_adopt(const struct fsio *fs, int fd, const struct store_options *options, struct store **ret_store);
/* The memory lives as long as a client maps it. NULL ok; gives NULL. */
struct store *store_free(struct store *s);

/* A descriptor for an agent, read-only: the caller sends and closes it. -errno. */
int store_client_fd(const struct store *s);
/* Whether fd is a descriptor of this store. */
bool store_is(const struct store *s, int fd);
/* The file's number: in /proc/PID/maps it tells the store's mappings from all others. 0: unknown. */
uint64_t store_inode(const struct store *s);
uint32_t store_frames(const struct store *s); /* room, used or not */
uint32_t store_frames_high(const struct store *s); /* no frame from this one on was ever used; a multiple of 512 */

/* ---- frames; all ranges [first, first + n) ---- */

/* n consecutive frames. align STORE_BLOCK_FRAMES: from the beginning of a block on, and whole blocks get huge memory
 * when they are filled; 1: in small pages. Of the latter, extents below a block fill the gaps of blocks in use first,
 * so that whole blocks stay whole. 0, -EINVAL, -ENOSPC. */
int store_alloc(struct store *s, uint32_t n, uint32_t align, uint32_t *ret_first);

struct store_piece {
	uint32_t frame, pages;
	uint64_t hva; /* where the content is now */
};
struct store_source {
	pid_t pid;
	int pidfd;     /* borrowed; proves that pid was still the same process */
	uint64_t seed; /* of page_hash() */
};
/* Copies pages of a process into frames that are allocated and not published. hashes: room for one of each page; what
 * the frames hold now, which need not be what anybody expected. *ret_done: pieces that are whole, and their hashes are
 * valid; on an error the one behind them failed. 0, -EBUSY (a frame is not ours to write), -ESRCH, -EFAULT, -errno. */
int store_fill(struct store *s, const struct store_source *from, const struct store_piece *pieces, size_t count,
	       uint64_t *hashes, size_t *ret_done);
/* Filled or not, they are immutable now. 0 or -EINVAL (all or nothing). */
int store_publish(struct store *s, uint32_t first, uint32_t n);
/* Gives allocated frames back that were not published; others in the range stay. -EINVAL when out of range. */
int store_release(struct store *s, uint32_t first, uint32_t n);

bool store_is_published(const struct store *s, uint32_t first, uint32_t n);
/* The next stretch, at or behind *first, of published frames whose bit in used (one for each frame of the store) is
 * not set. False: there is none. */
bool store_next_unused(const struct store *s, const uint64_t *used, uint32_t *first, uint32_t *ret_n);
/* Published frames become free: nobody maps them or is about to. 0 or -EINVAL (all or nothing). */
int store_retire(struct store *s, uint32_t first, uint32_t n);

/* Read-only. Reading a frame that is free would fill the hole: look at allocated ones only. */
const void *store_frame(const struct store *s, uint32_t frame);

/* ---- figures ---- */

/* Memory of the file, frames that nobody uses included. From any thread. */
uint64_t store_memory_bytes(const struct store *s);

struct store_counts {
	uint64_t frames_used;	 /* allocated or published */
	uint64_t frames_filling; /* of these: not published */
	uint64_t huge_blocks;	 /* wholly used and made of one huge page by this process */
	uint64_t bytes;		 /* memory of the file (its st_blocks) */
	uint64_t metadata_bytes; /* of the daemon */
};
void store_count(const struct store *s, struct store_counts *ret_counts);

#endif
