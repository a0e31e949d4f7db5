/* bench/lib/engine.h - one way to merge the replayed guests' memory, as the bench sees it.
 *
 * An engine works inside the bench process, by short steps on its one loop (threads of its own are fine), so
 * that its CPU time can be told. Add a row to engine_list() and it is measured like the others. */
#ifndef BENCH_ENGINE_H
#define BENCH_ENGINE_H

#include <stdbool.h>
#include <stdint.h>

#include "bench/lib/meter.h"
#include "bench/lib/replay_proc.h"
#include "core/fsio.h"

#define ENGINE_WHY_MAX 240

/* Borrowed by the engine until stop(). */
struct engine_context {
	const struct fsio *fs;
	const struct replay_group *group;
	const char *dir;	/* for files of its own; removed with them after the bench */
	uint64_t savable_pages; /* the oracle's */
	double idle_seconds;	/* how long "null" does nothing */
};

/* Of an engine that merges runs of pages by threads in the guests' processes. */
struct engine_figures {
	uint64_t runs;	       /* mappings made; zero pages apart */
	uint64_t merged_pages; /* zero pages included */
	uint64_t longest_stall_us; /* of a window, from the first page taken away to the wake-up */
};

struct engine {
	const char *name, *help;
	bool uses_ksm;
	bool marks; /* gives memory to the kernel's scanner itself: none is given to it beforehand */
	double cap_seconds; /* stopped then, if it has not finished by itself */
	/* 0 or -errno with the reason in ret_why (ENGINE_WHY_MAX bytes). */
	int (*start)(const struct engine_context *c, void **ret_e, char *ret_why);
	/* Called after each sample, about every 20 ms: 1 when it has finished, 0, or -errno. */
	int (*step)(void *e, const struct meter_sample *s);
	/* Of its own, the kernel scanner's apart; at the highest so far. NULL: none. */
	uint64_t (*metadata_bytes)(const void *e);
	/* Pages of its own that hold what the guests share: not saved. From any thread. NULL: none. */
	uint64_t (*held_pages)(const void *e);
	/* When it has finished. NULL: none. */
	void (*figures)(const void *e, struct engine_figures *ret_figures);
	/* Its last decision in words, for people; borrowed until stop(). NULL: none. */
	const char *(*why)(const void *e);
	/* Leaves merged memory merged. Frees e. */
	void (*stop)(void *e);
};

extern const struct engine engine_null;		 /* engine_ksm.c */
extern const struct engine engine_ksm;
extern const struct engine engine_ksmtuned;
extern const struct engine engine_kernel;	 /* engine_kernel.c */
extern const struct engine engine_kernel_default;
extern const struct engine engine_hinted;	 /* engine_hinted.c */
extern const struct engine engine_remap;	 /* engine_remap.c */

/* All engines, NULL-terminated, in the order in which they are run. */
const struct engine *const *engine_list(void);
const struct engine *engine_find(const char *name); /* NULL: no such engine */

#endif
