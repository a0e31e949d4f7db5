/* agent/exchange.h - merges guest pages of this process with the frames of a sealed, read-only store.
 *
 * One call handles one 2 MiB window of guest RAM. agent/README.md tells the steps and the rules R1-R14 that they
 * keep; the argument for each stands where the code keeps it. All functions return 0 or -errno.
 *
 * Threads: exchange_merge() by one thread at a time (it takes the lock); interposed calls that touch guest RAM
 * hold exchange_lock() around the real call. Nothing here may be called from a signal handler. */
#ifndef AGENT_EXCHANGE_H
#define AGENT_EXCHANGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "agent/pagebits.h"

#define EXCHANGE_SLOTS_MAX 64u
#define EXCHANGE_ZERO UINT64_MAX /* as a frame: the pages are all zero and are left absent */

/* The canonical pages of one domain and node. fd: a memfd opened read-only, sealed against shrink and grow, whose
 * published frames never change; map: the same, mapped read-only by the caller, outside every slot. Borrowed. */
struct exchange_store {
	int fd;
	const uint8_t *map;
	uint64_t frames;
};

enum exchange_outcome {
	EXCHANGE_MERGED,  /* all pages of the run */
	EXCHANGE_UNEQUAL, /* some pages differ from their frame; the others may be merged */
	EXCHANGE_BUSY,	  /* some are pinned for I/O or shared by a fork: back off */
	EXCHANGE_ABSENT,  /* some are not present, or merged already */
	EXCHANGE_SKIPPED, /* too little to gain in this window, which stays as it is */
	EXCHANGE_FAILED,  /* see err */
};

/* Pages [first, first+pages) of the window with frames [frame, frame+pages), or with zeroes. */
struct exchange_run {
	uint16_t first, pages;
	uint64_t frame;
	/* results */
	uint16_t merged;
	uint8_t outcome; /* enum exchange_outcome, the gravest of its pages */
	int32_t err;	 /* the first errno of a page, negative; 0 if none */
};

struct exchange_options {
	unsigned min_pages_huge; /* a huge page is given up for at least so many merged pages */
	unsigned min_pages;	 /* other windows are worth it from here on */
	unsigned min_piece;	 /* shorter pieces of a run are not mapped: each costs two VMAs */
};

/* ---- the journal ---- */

/* What the executor is about to do. Written before each step, in memory that the daemon shares, so that whoever
 * is left can finish the exchange when the executor is gone (R5). */
enum exchange_step {
	STEP_IDLE,	 /* no window: nothing is in staging, nothing registered for missing faults */
	STEP_REGISTER,
	STEP_MOVE,
	STEP_COMPARE,
	STEP_MAP,
	STEP_BACK,
	STEP_UNREGISTER, /* from here every page is settled */
	STEP_WAKE,
	STEP_DROP,	 /* nobody waits any more; staging is being emptied */
	STEP_REPAIRED,	 /* by exchange_repair(); staging may hold pages that nobody needs */
	/* Folding (exchange_fold.c), with the freezer in place of the userfaultfd; then UNREGISTER, WAKE and DROP. Last,
	 * for the daemon reads the journals of agents that know nothing of it, too. */
	STEP_FOLD_FREEZE, /* writers wait; the store is mapped as before */
	STEP_FOLD_PLACE,  /* staging has every byte; the new mapping is being put over the store's, or is */
	STEP_FOLD_FILL,	  /* it is, and who touches what is not there yet waits */
	EXCHANGE_STEPS,
};

#define EXCHANGE_JOURNAL_VERSION 1u

struct exchange_journal {
	uint32_t version;
	uint32_t step;	     /* enum exchange_step; stored last, with release order */
	uint64_t window;     /* address of page 0; the fields below are valid while step is not STEP_IDLE */
	uint64_t staging;    /* page i of the window is at staging + i * 4096 if it is in staging */
	uint64_t started_ns; /* CLOCK_MONOTONIC; for a time-out */
	uint32_t first, pages; /* the part of the window that is registered */
	uint32_t wp;	     /* the slot is registered for write protection when no exchange is going on */
	uint32_t stuck;	     /* pages that could not be settled: still in staging, their readers blocked */
	uint32_t tid;	     /* of the executor: while that thread lives nobody else may finish the window */
	uint32_t freezer;    /* 0, or the window is one of folding: what is below settled counts */
	struct page_bits settled; /* pages whose place in the window is right, whatever staging holds */
	uint64_t held, held_bytes; /* what is registered with the freezer: the pages, and a neighbour */
	uint64_t spare; /* where the new mapping was made */
};

/* Between these somebody may wait, and bytes may be in staging only. */
static inline bool exchange_step_is_open(uint32_t step)
{
	return (step > STEP_IDLE && step < STEP_UNREGISTER) || (step >= STEP_FOLD_FREEZE && step <= STEP_FOLD_FILL);
}

/* Finishes the exchange of an executor that is surely dead or given up: puts back what is in staging, unregisters,
 * wakes. pid 0: the caller's own process; else the VMM's, uffd and freezer (-1: it has none) being duplicates of its
 * descriptors (works from the daemon: /proc/PID/mem and UFFDIO_COPY; waits for nothing that the VMM has a hand in).
 * 0: every page is settled; else -errno, threads stay blocked, no byte is
 * lost, and it may be called again. */
int exchange_repair(struct exchange_journal *journal, pid_t pid, int uffd, int freezer);

/* ---- the exchange ---- */

struct exchange_counters {
	uint64_t windows, windows_huge;
	uint64_t merged_pages, zero_pages;  /* by store frames; left absent */
	uint64_t moved_pages;		    /* out to staging */
	uint64_t copied_back, moved_back;   /* leftovers, in pages */
	uint64_t remapped_back;		    /* by the last resort, mremap */
	uint64_t huge_kept;		    /* windows that moved out and back as one huge page */
	uint64_t unequal_pages, busy_pages;
	uint64_t map_failures, move_errors; /* calls that failed and were recovered from */
	uint64_t attributes_lost;	    /* advice or registration that the kernel refused on a new VMA */
	uint64_t zeroed_in_place;	    /* discarded pages that got zeroes written, for want of VMAs */
	uint64_t stall_ns, stall_max_ns;    /* from the first move to the wake-up */
	uint64_t folds, folded_pages;	    /* stretches, and their pages */
	uint64_t fold_stall_ns, fold_stall_max_ns; /* from the freeze to the wake-up */
	uint64_t step_ns[EXCHANGE_STEPS];
};

struct exchange;

/* uffd: passed uffd_probe(); journal: shared memory of the caller. Both borrowed until exchange_free(). */
int exchange_new(int uffd, struct exchange_journal *journal, struct exchange **ret_x);
struct exchange *exchange_free(struct exchange *x); /* NULL ok; gives NULL; merged memory stays merged */

/* Takes [addr, addr+len) as guest RAM if every rule allows it (R8); else -errno and the reason (static string).
 * wp: the caller registered it for asynchronous write protection on the same userfaultfd. Not for the window. */
int exchange_slot_add(struct exchange *x, void *addr, size_t len, bool wp, const char **ret_why);
int exchange_slot_remove(struct exchange *x, void *addr);
/* With the lock held. _drop: as exchange_slot_remove(). _close: no page of the slot at addr is merged from now on;
 * what is merged stays so, and is known for discards. _advise: the caller has just given [addr, addr+len) this MADV_
 * advice, which new mappings must get as well; -EOPNOTSUPP: its slot does not have the same advice everywhere now. */
int exchange_slot_drop(struct exchange *x, const void *addr);
/* With the lock held: registers the slot at addr for asynchronous write protection, so that PAGEMAP_SCAN can tell what
 * was written since it last armed a page, or ends that. -EBUSY: it is registered by somebody else's userfaultfd. */
int exchange_slot_track(struct exchange *x, const void *addr, bool on);
int exchange_slot_close(struct exchange *x, const void *addr, bool closed);
int exchange_slot_advise(struct exchange *x, const void *addr, size_t len, int advice);

/* Merges runs, ascending and without overlap, within the window at `window` (2 MiB aligned, clipped to its slot).
 * 0: every run has its result. -EINVAL: runs, window or store do not fit. -ENOSPC: the mapping budget is used up.
 * Other: the exchange has stopped for good (staging is not empty, or a page is stuck); the journal says where. */
int exchange_merge(struct exchange *x, uint64_t window, const struct exchange_store *store,
		   struct exchange_run *runs, size_t count, const struct exchange_options *opt);

/* ---- folding: merged memory becomes the guest's own again ---- */

struct freezer;

/* With which it is done (borrowed until exchange_free()); NULL: not at all. Not while a fold may be going on. */
void exchange_use_freezer(struct exchange *x, struct freezer *f);

struct exchange_fold {
	unsigned folded; /* pages that are anonymous memory again */
	unsigned kept;	 /* merged pages that stay as they are */
	int err;	 /* why the first of these: -EBUSY: something may write to it past the page tables; -ENOSPC: the
			    mapping budget; -EPERM: the slot is closed; or what the kernel said */
	uint64_t stall_max_ns; /* the longest that a stretch was frozen */
};

/* Gives the merged pages of the window at `window` (2 MiB aligned) their own anonymous memory, with every byte, while
 * guests run: who writes to a stretch of them waits for as long as that stretch takes, and so does who reads it at
 * its end. split: where some pages of a stretch have to stay, the others are done all the same, for more mappings;
 * else the whole stretch stays.
 * 0: *ret_fold tells. -EOPNOTSUPP: there is no freezer. -EINVAL. Other: as of exchange_merge(), for good. */
int exchange_fold(struct exchange *x, uint64_t window, bool split, struct exchange_fold *ret_fold);

/* R6: the one lock. Holds all signals and cancellation off until exchange_unlock(). If the thread that held it is
 * dead, the window that it left is repaired first. An error: not locked. */
int exchange_lock(struct exchange *x);
void exchange_unlock(struct exchange *x);
/* For pthread_atfork(). The child keeps its merged memory and can make it anonymous, but not merge. */
void exchange_fork_prepare(struct exchange *x);
void exchange_fork_parent(struct exchange *x);
void exchange_fork_child(struct exchange *x);

/* With the lock held: merged pages in [addr, addr+len) become fresh anonymous memory, all zero, with the advice of
 * the slot; others are left alone. */
int exchange_make_anonymous(struct exchange *x, void *addr, size_t len);
/* The same for a range of which nothing is needed any more: what MADV_DONTNEED, MADV_FREE and MADV_REMOVE on guest
 * RAM need before the real call (which for MADV_FREE on a merged page would be EINVAL, for MADV_DONTNEED would show
 * the store's bytes). If any page is merged all of it becomes one new mapping, so that mappings do not stay in pieces
 * and huge pages can come again; if none is, nothing is done, and the real call does it all. */
int exchange_discard(struct exchange *x, void *addr, size_t len);
/* With the lock held: [addr, addr+len) was mapped over, unmapped or moved by the application. */
void exchange_forget(struct exchange *x, void *addr, size_t len);
/* With the lock held. */
size_t exchange_merged_pages(const struct exchange *x, const void *addr, size_t len);

/* With the lock held, after munlockall(): drops the zero pages that mlockall() has filled staging with. */
void exchange_unlocked_all(struct exchange *x);

/* After the exchange has stopped, or was repaired from outside: settles what is open and lets merging start again.
 * 0, or why it cannot. */
int exchange_resume(struct exchange *x);

/* /proc/self/pagemap, for pagemap_read(). Borrowed. */
int exchange_pagemap_fd(const struct exchange *x);
const struct exchange_counters *exchange_counters(const struct exchange *x);

#endif
