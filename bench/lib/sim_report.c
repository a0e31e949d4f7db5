#include "bench/lib/sim_report.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>

#include "core/cleanup.h"

/* ---- table ---- */

static void row(const struct sim_cell *c, const char *trace, const char *policy, FILE *out)
{
	const struct sim_result *b = &c->best;
	char react[16] = "-";

	if (b->react_ticks_max >= 0)
		snprintf(react, sizeof(react), "%d", b->react_ticks_max);
	fprintf(out, "%-13s %-16s %5zu %6.2f %5" PRIu64 " %9.0f %9.0f %5.0f %6.0f %5d %6s", trace, policy, b->vms,
		100 * b->stall_share, b->host_ooms + b->guest_ooms, b->moved_mib / 1024, b->swapped_mib / 1024,
		100 * b->used_share, 100 * b->guest_mib_share, b->direction_changes_max, react);
	if (c->crowded_known)
		fprintf(out, " %8.2f %8" PRIu64 " %8" PRIu64, 100 * c->crowded.stall_share, c->crowded.host_ooms,
			c->crowded.guest_ooms);
	fputc('\n', out);
}

void sim_report_table(const struct sim_report *r, FILE *out)
{
	const struct sim_options *o = &r->options;

	fprintf(out,
		"Host of %.0f GiB, swap %.0f GiB; no VM below %.0f %% of its size; seed %" PRIu64
		". Most VMs with nobody killed and guests\nstanding still for at most %g %% of the time; then what comes of "
		"as many VMs as memvirt has.\n\n",
		o->host_mib / 1024, o->host_swap_mib / 1024, 100 * o->floor, o->seed, 100 * o->stall_limit);
	fprintf(out, "%-13s %-16s %5s %6s %5s %9s %9s %5s %6s %5s %6s %8s %8s %8s\n", "trace", "policy", "VMs", "stall",
		"kills", "moved", "swapped", "used", "given", "turns", "react", "stall", "host", "guest");
	fprintf(out, "%-13s %-16s %5s %6s %5s %9s %9s %5s %6s %5s %6s %8s %8s %8s\n", "", "", "", "%", "", "GiB", "GiB", "%",
		"%", "", "s", "%", "kills", "kills");
	for (int t = 0; t < TRACES; t++)
		for (size_t p = 0; p < sim_policy_count; p++)
			if (r->cells[t][p].wanted)
				row(&r->cells[t][p], sim_traces[t].name, sim_policies[p].name, out);
}

/* ---- JSON ---- */

static json_t *cell_json(const struct sim_cell *c)
{
	const struct sim_result *b = &c->best;
	json_t *cell = json_pack("{si, sf, sI, sI, sf, sf, sf, sf, si, so}", "vms", (int)b->vms, "stall_share",
				 b->stall_share, "ooms", (json_int_t)b->host_ooms, "guest_ooms",
				 (json_int_t)b->guest_ooms, "moved_mib", b->moved_mib, "swapped_mib", b->swapped_mib,
				 "used_share", b->used_share, "given_share", b->guest_mib_share,
				 "direction_changes_max", b->direction_changes_max, "react_ticks_max",
				 b->react_ticks_max < 0 ? json_null() : json_integer(b->react_ticks_max));

	if (cell && c->crowded_known)
		json_object_set_new(cell, "with_memvirts_vms",
				    json_pack("{si, sf, sI, sI}", "vms", (int)c->crowded.vms, "stall_share",
					      c->crowded.stall_share, "ooms", (json_int_t)c->crowded.host_ooms,
					      "guest_ooms", (json_int_t)c->crowded.guest_ooms));
	return cell;
}

int sim_report_json(const struct sim_report *r, FILE *out)
{
	json_t *traces = json_object(), *root;
	const struct sim_options *o = &r->options;

	for (int t = 0; t < TRACES; t++) {
		json_t *trace = json_object();

		for (size_t p = 0; p < sim_policy_count; p++)
			if (r->cells[t][p].wanted)
				json_object_set_new(trace, sim_policies[p].name, cell_json(&r->cells[t][p]));
		if (json_object_size(trace) > 0)
			json_object_set(traces, sim_traces[t].name, trace);
		json_decref(trace);
	}
	root = json_pack("{sf, sf, sf, sf, sf, sI, si, so}", "host_mib", o->host_mib, "host_swap_mib", o->host_swap_mib,
			 "floor_share", o->floor, "guest_swap_share", o->guest_swap, "stall_limit", o->stall_limit,
			 "seed", (json_int_t)o->seed, "tick_ms", 1000, "traces", traces);
	if (!root)
		return -ENOMEM;
	json_dumpf(root, out, JSON_INDENT(2) | JSON_REAL_PRECISION(6));
	fputc('\n', out);
	json_decref(root);
	return 0;
}
