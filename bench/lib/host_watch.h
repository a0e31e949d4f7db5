/* bench/lib/host_watch.h - the host's free memory while something happens: how low it went, and whether anybody was
 * killed for it. */
#ifndef BENCH_HOST_WATCH_H
#define BENCH_HOST_WATCH_H

#include <stdint.h>

#include "core/fsio.h"
#include "core/snapshot.h"

struct host_watch; /* a thread that looks every other millisecond */

struct host_watched {
	uint64_t available_before_bytes, available_lowest_bytes;
	uint64_t oom_kills; /* on the whole host */
};

/* Memory and swap as they are now, for whoever decides by them. 0 or -errno. */
int host_memory(const struct fsio *fs, struct host_snapshot *ret_snapshot);

int host_watch_start(const struct fsio *fs, struct host_watch **ret_watch);
/* Ends and frees it. */
void host_watch_stop(struct host_watch *w, struct host_watched *ret_watched);

#endif
