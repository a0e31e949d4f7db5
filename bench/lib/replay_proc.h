/* bench/lib/replay_proc.h - a replay process as its driver sees it. It ends with the driver, however that ends. */
#ifndef BENCH_REPLAY_PROC_H
#define BENCH_REPLAY_PROC_H

#include <jansson.h>
#include <stdint.h>
#include <sys/types.h>

#include "bench/lib/capture_file.h"
#include "bench/lib/hist.h"
#include "bench/lib/replay_mem.h"
#include "core/fsio.h"

struct replay_proc {
	char name[CAPTURE_NAME_MAX];
	pid_t pid;
	int pidfd, socket_fd;
	uint64_t start_ticks; /* with the pid, the process's identity */
	uint64_t hva, bytes, present_pages, huge_kib;
};

struct replay_group {
	struct replay_proc proc[CAPTURES_MAX];
	size_t count;
};

/* Starts PROGRAM for each capture, all at once, and waits until all are ready. 0 or -errno; then what was
 * started has been ended. */
int replay_group_start(const struct fsio *fs, const char *program, char *const *json_paths, size_t count,
		       const struct replay_options *options, struct replay_group *ret_group);
/* Ends all and waits until their memory is free. */
void replay_group_end(struct replay_group *g);

/* Sends a command line and gives the answer, which the caller frees. -EPROTO: the answer is not "ok" (its
 * reason goes to the progress lines); -EPIPE: the process is gone; -ETIMEDOUT; -errno. */
int replay_command(struct replay_proc *p, const char *command, json_t **ret_answer);

int replay_group_victims_start(struct replay_group *g);
/* Adds up what all saw. 0 or -errno. */
int replay_group_victims_stop(struct replay_group *g, struct hist *hist, uint64_t *ret_lost_writes);
/* All guests write to all of their pages at the same time: until the last was through, and the longest single write. */
struct replay_rewritten {
	uint64_t pages, ns, longest_ns;
};
int replay_group_rewrite(struct replay_group *g, struct replay_rewritten *ret_rewritten);
/* Pages that are not what was loaded, in all. 0 or -errno. */
int replay_group_check(struct replay_group *g, uint64_t *ret_wrong_pages);

uint64_t replay_group_pages(const struct replay_group *g);

#endif
