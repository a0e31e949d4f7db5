#include "bench/lib/host_watch.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <time.h>

#include "core/cleanup.h"
#include "core/clock.h"

#define LOOK_EVERY_NS (2 * NSEC_PER_MSEC)

struct host_watch {
	const struct fsio *fs;
	pthread_t thread;
	_Atomic bool stop;
	uint64_t kills_before;
	struct host_watched watched;
};

int host_memory(const struct fsio *fs, struct host_snapshot *ret_snapshot)
{
	struct host_snapshot s = { .taken_ns = clock_mono_ns() };
	const struct {
		const char *key;
		uint64_t *bytes;
	} fields[] = { { "MemTotal", &s.mem_total_bytes },
		       { "MemAvailable", &s.mem_available_bytes },
		       { "SwapFree", &s.swap_free_bytes } };
	char text[8192];
	ssize_t n = fsio_read(fs, text, sizeof(text), "/proc/meminfo");

	if (n < 0)
		return (int)n;
	for (size_t i = 0; i < ARRAY_SIZE(fields); i++) {
		uint64_t kib;
		int r = fsio_field_u64(text, fields[i].key, &kib);

		if (r < 0)
			return r;
		*fields[i].bytes = kib * 1024;
	}
	*ret_snapshot = s;
	return 0;
}

static uint64_t oom_kills(const struct fsio *fs)
{
	uint64_t kills = 0;
	char text[16384];

	if (fsio_read(fs, text, sizeof(text), "/proc/vmstat") > 0)
		fsio_field_u64(text, "oom_kill", &kills);
	return kills;
}

static void *watch_main(void *userdata)
{
	struct host_watch *w = userdata;

	while (!w->stop) {
		struct host_snapshot s;

		if (host_memory(w->fs, &s) == 0 && s.mem_available_bytes < w->watched.available_lowest_bytes)
			w->watched.available_lowest_bytes = s.mem_available_bytes;
		nanosleep(&(struct timespec){ .tv_nsec = LOOK_EVERY_NS }, NULL);
	}
	return NULL;
}

int host_watch_start(const struct fsio *fs, struct host_watch **ret_watch)
{
	struct host_watch *w = calloc(1, sizeof(*w));
	struct host_snapshot s;
	int r;

	if (!w)
		return -ENOMEM;
	w->fs = fs;
	w->kills_before = oom_kills(fs);
	r = host_memory(fs, &s);
	w->watched.available_before_bytes = w->watched.available_lowest_bytes = s.mem_available_bytes;
	if (r == 0)
		r = -pthread_create(&w->thread, NULL, watch_main, w);
	if (r < 0) {
		free(w);
		return r;
	}
	*ret_watch = w;
	return 0;
}

void host_watch_stop(struct host_watch *w, struct host_watched *ret_watched)
{
	w->stop = true;
	pthread_join(w->thread, NULL);
	w->watched.oom_kills = oom_kills(w->fs) - w->kills_before;
	*ret_watched = w->watched;
	free(w);
}
