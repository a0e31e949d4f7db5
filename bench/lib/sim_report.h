/* bench/lib/sim_report.h - what the simulator found: table, JSON, picture. */
#ifndef BENCH_SIM_REPORT_H
#define BENCH_SIM_REPORT_H

#include <stdio.h>

#include "bench/lib/sim.h"

#define SIM_POLICIES_MAX 16

struct sim_cell {
	bool wanted;
	struct sim_result best; /* at the largest number of VMs within the limits */
	bool crowded_known;
	struct sim_result crowded; /* with as many VMs as our policy hosts */
};

struct sim_report {
	struct sim_options options;
	struct sim_cell cells[TRACES][SIM_POLICIES_MAX]; /* second: as in sim_policies */
};

void sim_report_table(const struct sim_report *r, FILE *out);
int sim_report_json(const struct sim_report *r, FILE *out); /* 0 or -ENOMEM */
void sim_report_svg(const struct sim_report *r, FILE *out); /* errors show in ferror(out) */

#endif
