/* bench/lib/policy_report.h - what came of a replay of policies, as text and as JSON. */
#ifndef BENCH_POLICY_REPORT_H
#define BENCH_POLICY_REPORT_H

#include <jansson.h>
#include <stdio.h>

#include "bench/lib/policy_run.h"

/* The tick that was run last, one line: time, and of each run its state and new targets. */
void policy_report_tick(FILE *out, const struct policy_replay *r, uint64_t first_ns);
json_t *policy_report_tick_json(const struct policy_replay *r, uint64_t first_ns);

/* All of it, side by side. */
void policy_report(FILE *out, const struct policy_replay *r);
json_t *policy_report_json(const struct policy_replay *r);

#endif
