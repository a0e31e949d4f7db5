/* bench/lib/idle.h - what looking on costs after everything is merged, and how soon something new is noticed. */
#ifndef BENCH_IDLE_H
#define BENCH_IDLE_H

#include <stdbool.h>

#include "bench/lib/engine.h"
#include "core/fsio.h"

/* Both look so often that new memory can be noticed within this time: it has to be seen twice. */
#define IDLE_DELAY_SECONDS 4.0
#define IDLE_INJECT_MIB 64u /* the same new contents in two guests */
#define IDLE_LOADS 2u	    /* memory dirtied, in percent per second: 1, 10 */

struct idle_result {
	bool ok;
	char why[ENGINE_WHY_MAX]; /* if not */
	double cpu_percent;	  /* of one core, nothing happening */
	double notice_seconds;	  /* until nine tenths of the injected duplicate are saved; NAN: never */
	double dirty_cpu_percent[IDLE_LOADS];
	uint64_t wrong_pages;
};

struct idle_report {
	struct idle_result ksm, remap;
};

struct idle_setup {
	const struct fsio *fs;
	const char *replay_program, *dir;
	char *const *json_paths;
	size_t count;
	uint64_t savable_pages;
};

/* Guests in huge pages, one rival after the other; about a minute each. */
void idle_measure(const struct idle_setup *s, struct idle_report *ret_report);

#endif
