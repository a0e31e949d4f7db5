/* ksmd/unmerge.h - gives the merged memory of one VM back to it as its own, through its agent, on a thread of its own.
 *
 * What is merged is read from the process's mappings when it begins, whatever store it is of: so it works with what an
 * earlier daemon, or an earlier domain, has merged as well. */
#ifndef KSMD_UNMERGE_H
#define KSMD_UNMERGE_H

#include <stdbool.h>
#include <stdint.h>

#include "core/fsio.h"

struct agent_peer;
struct unmerge;

struct unmerge_options {
	/* Only windows of which most was copied on write: they save little and cost mappings. */
	bool worn;
	uint64_t cpu_percent; /* 0: no quota */
};

struct unmerge_result {
	int error; /* 0; -ENOMEM: the host is short of memory; -errno */
	bool broken; /* the connection is of no use any more */
	uint64_t pages, kept; /* given back; still merged where it was tried */
	int kept_error;	      /* why the first of these, see struct exchange_fold; 0: none */
	uint32_t stall_us_max;
	double seconds, cpu_seconds; /* the agent's and the thread's */
};

/* peer is borrowed until unmerge_free(). 0 or -errno. */
int unmerge_start(const struct fsio *fs, struct agent_peer *peer, const struct unmerge_options *options,
		  struct unmerge **ret_unmerge);
int unmerge_done_fd(const struct unmerge *u); /* readable when it has ended */
const struct unmerge_result *unmerge_wait(struct unmerge *u);
const struct agent_peer *unmerge_peer(const struct unmerge *u);
struct unmerge *unmerge_free(struct unmerge *u); /* cancels if still running, waits; NULL ok; gives NULL */

/* Whether the host can give so many bytes and keep its reserve. */
bool unmerge_memory_allows(const struct fsio *fs, uint64_t bytes);
/* Why pages stay merged, for people. Static. */
const char *unmerge_kept_why(int kept_error);

#endif
