/* bench/lib/runner.h - measures one engine once, on fresh replay processes. */
#ifndef BENCH_RUNNER_H
#define BENCH_RUNNER_H

#include <stdbool.h>
#include <stdint.h>

#include "bench/lib/engine.h"
#include "bench/lib/hist.h"
#include "bench/lib/oracle.h"
#include "bench/lib/replay_mem.h"
#include "bench/lib/svg.h"

struct runner {
	const struct fsio *fs;
	const char *replay_program; /* path */
	char *const *json_paths;
	size_t capture_count;
	const struct oracle *oracle;
	const char *dir; /* for engines' files */
	struct replay_options options;
	bool guarded; /* KSM may be touched: see ksm_guard.h */
	double cap_seconds; /* at most this per engine, whatever the engine says; 0: what it says */
	double idle_seconds;
};

struct run_result {
	bool ok;
	char why[ENGINE_WHY_MAX]; /* not ok: the reason; ok: the engine's last word, may be empty */
	bool capped;		  /* stopped before it had finished */
	bool undone;		  /* counters and frames differ: pages were merged and came apart again */
	double seconds;		  /* until it had finished or was stopped */
	double seconds_to_99;	  /* until 99 % of the oracle was saved; NAN: never, or undone */
	double seconds_to_own_99; /* until 99 % of what it saved in the end; NAN: nothing saved */
	double cpu_seconds;	  /* until 99 % of the oracle, or to the end when that was never reached */
	double cpu_seconds_total; /* to the end */
	double saved_mib;	  /* counted by frames, or by counters where frames cannot be seen */
	double saved_counters_mib;
	uint64_t metadata_bytes;
	double huge_merged_mib; /* merged memory in 2 MiB mappings, after all was read again; NAN: cannot be told */
	bool has_figures;	/* the engine knows the next two: */
	struct engine_figures figures;
	double merge_pages_per_s; /* merged pages for each CPU second of the threads that exchange them */
	uint64_t foreign_pages; /* of other processes that KSM looked at too: then its times mean little */
	uint64_t wrong_pages, lost_writes; /* must be 0 */
	struct hist victim;
	struct svg_point *curve; /* seconds, MiB */
	size_t curve_count, curve_cap;
};

/* ret_result is filled also on failure (ok false) and ended with run_result_free(). */
void runner_measure(const struct runner *runner, const struct engine *engine, struct run_result *ret_result);
void run_result_free(struct run_result *r);

#endif
