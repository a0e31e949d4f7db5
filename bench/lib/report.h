/* bench/lib/report.h - the results of bench/merge for programs, for people and as a picture. */
#ifndef BENCH_REPORT_H
#define BENCH_REPORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

#include "bench/lib/idle.h"
#include "bench/lib/oracle.h"
#include "bench/lib/runner.h"
#include "bench/lib/scan_bench.h"

#define REPEAT_MAX 20u
#define ENGINES_MAX 8u

struct engine_results {
	const struct engine *engine;
	struct run_result run[REPEAT_MAX];
	size_t count;
};

/* Guests in huge pages, and the same guests in small ones. */
enum report_kind { KIND_HUGE, KIND_SMALL, REPORT_KINDS };

struct report {
	struct oracle oracle;
	bool scanned; /* the next two are valid; else scan_why says why not */
	char scan_why[128];
	struct scan_bench scan;
	struct estimate estimate;
	bool measured[REPORT_KINDS];
	struct engine_results engines[REPORT_KINDS][ENGINES_MAX];
	size_t engine_count;
	size_t guests;
	enum report_kind first; /* the kind that scan, estimate, huge_share and picture are about */
	double huge_share;	/* of the replayed memory that is in huge pages */
	bool synthetic;
	bool idle_measured;
	struct idle_report idle;
};

/* The run that stands for the others: the median of the good ones by time to 99 % (or to the end, for those
 * that never got there). NULL when none is good. */
const struct run_result *report_median(const struct engine_results *e);
const struct run_result *report_best(const struct engine_results *e);
/* Whether every byte of every run was right and every run that could run did. */
bool report_is_clean(const struct report *r);

void report_json(const struct report *r, FILE *out);
void report_table(const struct report *r, FILE *out);
/* 0 or -errno. */
int report_svg(const struct report *r, const char *path);

#endif
