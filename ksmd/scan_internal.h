/* ksmd/scan_internal.h - what the files of the scan share.
 *
 * scan.c        workers, quotas, which chunk is next
 * scan_read.c   a chunk read from outside
 * scan_ask.c    a chunk hashed by the VM's agent
 * scan_track.c  a chunk of which the kernel tells what was written
 */
#ifndef KSMD_SCAN_INTERNAL_H
#define KSMD_SCAN_INTERNAL_H

#include <pthread.h>

#include "ksmd/agent_peer.h"
#include "ksmd/scan.h"

/* One process_vm_readv: 256 KiB stays in the core's L2 between copy and hash (measured best: 64-256 pages). */
#define SCAN_BATCH_PAGES 64

#define SCAN_BLOCK_PAGES 512 /* 2 MiB: what a huge page is, or may become */
#define SCAN_CHUNK_BLOCKS (SCAN_CHUNK_PAGES / SCAN_BLOCK_PAGES)

struct scan {
	struct scan_target *targets;
	size_t target_count;
	uint64_t *first_chunk; /* per target; [target_count]: all chunks */
	const struct scan_limits *limits;
	unsigned workers;
	bool many_nodes;
	struct stable_index *index;
	struct scan_progress *progress;
	uint64_t started_ns;
	_Atomic size_t next_group;
	_Atomic uint64_t next_chunk, read_bytes, cpu_ns;
};

struct batch {
	uint64_t pages[SCAN_BATCH_PAGES]; /* index in the target */
	size_t count;
};

/* What scan_track.c knows of the chunk that it is at. A bit per page: */
struct track_look {
	uint64_t here[SCAN_CHUNK_WORDS];    /* present, and the process's own */
	uint64_t frames[SCAN_CHUNK_WORDS];  /* present, and a frame that it was merged with */
	uint64_t written[SCAN_CHUNK_WORDS]; /* since the last look */
	uint64_t todo[SCAN_CHUNK_WORDS];    /* to be hashed */
	/* A bit per block: a huge page; samples differ; the kernel was asked; but could not tell. */
	unsigned huge, hot, taken, failed;
	bool sampling;
	bool any; /* a hash came or went */
};

/* Pages of a target. */
struct scan_stretch {
	uint64_t first, pages;
};

struct worker {
	struct scan *scan;
	pthread_t thread;
	char *buffer;		    /* SCAN_BATCH_PAGES pages */
	struct batch alone, shared; /* pages to read, by how often they are mapped: see scan.h */
	int node; /* where it runs; -1: anywhere */
	uint64_t first;		    /* page of the target that the chunk begins with */
	uint64_t old[SCAN_CHUNK_PAGES]; /* hashes of the scan before */
	uint64_t agents_cpu_ns; /* spent by agents for it */
	bool tracking;		/* scan_track.c takes the hashes */
	struct track_look look;
	/* Counts of one chunk: */
	uint64_t present, zero, zero_mapped, swapped, huge, index_hits, hashed, unsettled;
	bool watched; /* a block of it has to be looked at the next time */
	struct agent_answer answer; /* scratch */
};

/* scan_read.c. Keeps the chunk's hashes of the scan before, to compare with. */
void scan_old_keep(struct worker *w, const struct scan_target *t, uint64_t first, uint64_t pages);
/* What a page of the chunk holds now. */
void scan_hash_take(struct worker *w, struct scan_target *t, uint64_t page, uint64_t hash);
void scan_chunk_read(struct worker *w, struct scan_target *t, uint64_t first, uint64_t pages);
/* Pages that are present; they are hashed by the time of the flush at the latest. */
void scan_pages_read(struct worker *w, struct scan_target *t, uint64_t first, uint64_t pages);
void scan_read_flush(struct worker *w, struct scan_target *t);

/* scan_ask.c. 0 or -errno: to be read from outside. */
int scan_ask(struct worker *w, struct scan_target *t, const struct scan_stretch *stretches, size_t count);

/* scan_track.c. 0 or -errno: the process is gone. */
int scan_chunk_track(struct worker *w, struct scan_target *t, uint64_t first, uint64_t pages);
void scan_track_take(struct worker *w, struct scan_target *t, uint64_t page, uint64_t hash);
/* The chunk was looked at without it: it begins anew. */
void scan_track_forget(struct scan_track *track, size_t chunk);

#endif
