#include "bench/lib/policy_report.h"

#include <inttypes.h>
#include <string.h>

#include "core/clock.h"

#define NAME_WIDTH 24
#define WIDTH 14
#define TICK_WIDTH 32

static double mean_bytes(const struct run_vm *vm)
{
	return vm->ticks ? vm->sum_bytes / (double)vm->ticks : 0;
}

static double seconds_since(const struct policy_replay *r, uint64_t first_ns)
{
	return r->taken_ns >= first_ns ? (double)(r->taken_ns - first_ns) / (double)NSEC_PER_SEC : 0;
}

/* The last part of a path: columns are narrow. */
static const char *short_name(const struct policy_run *run)
{
	const char *slash = strrchr(run->name, '/');

	return slash ? slash + 1 : run->name;
}

/* ---- one tick ---- */

void policy_report_tick(FILE *out, const struct policy_replay *r, uint64_t first_ns)
{
	fprintf(out, "%9.1f", seconds_since(r, first_ns));
	for (size_t k = 0; k < r->run_count; k++) {
		const struct policy_run *run = &r->runs[k];
		int width = fprintf(out, "  | %-5s", host_state_name(run->state));

		for (size_t i = 0; i < r->tick_vms; i++)
			if (run->plan[i].target_bytes)
				width += fprintf(out, " %s=%" PRIu64, r->vms[r->index[i]].name,
						 run->plan[i].target_bytes >> 20);
		if (k + 1 < r->run_count && width < TICK_WIDTH)
			fprintf(out, "%*s", TICK_WIDTH - width, "");
	}
	fputc('\n', out);
}

json_t *policy_report_tick_json(const struct policy_replay *r, uint64_t first_ns)
{
	json_t *runs = json_array();

	for (size_t k = 0; k < r->run_count; k++) {
		const struct policy_run *run = &r->runs[k];
		json_t *targets = json_array();

		for (size_t i = 0; i < r->tick_vms; i++)
			if (run->plan[i].target_bytes)
				json_array_append_new(targets,
						      json_pack("{s:s, s:i, s:I}", "vm", r->vms[r->index[i]].name, "pid",
								(int)r->vms[r->index[i]].pid, "target_bytes",
								(json_int_t)run->plan[i].target_bytes));
		json_array_append_new(runs, json_pack("{s:s, s:o}", "state", host_state_name(run->state), "targets",
						      targets));
	}
	return json_pack("{s:f, s:o}", "seconds", seconds_since(r, first_ns), "runs", runs);
}

/* ---- all of it ---- */

static void print_row(FILE *out, const struct policy_replay *r, const char *name,
		      uint64_t (*value)(const struct policy_run *, size_t), size_t which)
{
	fprintf(out, "%-*.*s", NAME_WIDTH, NAME_WIDTH - 1, name);
	for (size_t k = 0; k < r->run_count; k++)
		fprintf(out, " %*" PRIu64, WIDTH, value(&r->runs[k], which));
	fputc('\n', out);
}

static uint64_t of_state(const struct policy_run *run, size_t state)
{
	return run->state_ticks[state];
}

enum row { ROW_TARGETS, ROW_TAKEN, ROW_GIVEN, ROW_VETOES, ROW_AVAILABLE };

static uint64_t of_row(const struct policy_run *run, size_t row)
{
	switch ((enum row)row) {
	case ROW_TARGETS:
		return run->targets;
	case ROW_TAKEN:
		return run->taken_bytes >> 20;
	case ROW_GIVEN:
		return run->given_bytes >> 20;
	case ROW_VETOES:
		return run->vetoes;
	case ROW_AVAILABLE:
		return run->available_least_bytes == UINT64_MAX ? 0 : run->available_least_bytes >> 20;
	}
	return 0;
}

static void print_vm(FILE *out, const struct policy_replay *r, size_t at)
{
	fprintf(out, "%-*.*s", NAME_WIDTH, NAME_WIDTH - 1, r->vms[at].name);
	for (size_t k = 0; k < r->run_count; k++) {
		const struct run_vm *vm = &r->runs[k].vms[at];
		char text[64] = "-";

		if (vm->ticks)
			snprintf(text, sizeof(text), "%" PRIu64 "/%.0f/%" PRIu64, vm->least_bytes >> 20,
				 mean_bytes(vm) / 1048576, vm->most_bytes >> 20);
		fprintf(out, " %*s", WIDTH, text);
	}
	fputc('\n', out);
}

static void print_differences(FILE *out, const struct policy_replay *r)
{
	for (size_t k = 1; k < r->run_count; k++) {
		const struct policy_run *run = &r->runs[k];

		if (run->differs_line)
			fprintf(out, "%s: differs first on line %u: %s\n", run->name, run->differs_line, run->differs);
		else
			fprintf(out, "%s: all of %" PRIu64 " ticks decided as recorded\n", run->name,
				r->ticks - r->undecided);
	}
}

void policy_report(FILE *out, const struct policy_replay *r)
{
	static const char *const rows[] = { "targets", "taken MiB", "given MiB", "vetoes (VM ticks)",
					    "least available MiB" };

	fprintf(out, "%" PRIu64 " ticks, %" PRIu64 " s, %zu VMs; recorded by memvirtd %s", r->ticks,
		r->span_ns / NSEC_PER_SEC, r->vm_count, r->version);
	if (r->undecided)
		fprintf(out, "; nothing was decided in %" PRIu64 " of them", r->undecided);
	fprintf(out, "\n\n%-*s", NAME_WIDTH, "");
	for (size_t k = 0; k < r->run_count; k++)
		fprintf(out, " %*.*s", WIDTH, WIDTH, short_name(&r->runs[k]));
	fputc('\n', out);
	for (size_t state = 0; state < HOST_STATES; state++) {
		char name[32];

		snprintf(name, sizeof(name), "ticks %s", host_state_name((enum host_state)state));
		print_row(out, r, name, of_state, state);
	}
	for (size_t row = 0; row < sizeof(rows) / sizeof(rows[0]); row++)
		print_row(out, r, rows[row], of_row, row);
	fputs("\nMemory wanted for each VM, MiB: least/mean/most\n", out);
	for (size_t i = 0; i < r->vm_count; i++)
		print_vm(out, r, i);
	fputc('\n', out);
	print_differences(out, r);
	if (r->run_count > 2)
		fputs("\nWhere a policy differs from the record the rest is an estimate: guests follow at once, what is given\n"
		      "is used up, what is taken frees only what they can no longer hold; pressure, swapping and faults are\n"
		      "as recorded.\n",
		      out);
}

static json_t *run_json(const struct policy_replay *r, const struct policy_run *run)
{
	json_t *states = json_object(), *vms = json_array(), *root;

	for (size_t state = 0; state < HOST_STATES; state++)
		json_object_set_new(states, host_state_name((enum host_state)state),
				    json_integer((json_int_t)run->state_ticks[state]));
	for (size_t i = 0; i < r->vm_count; i++) {
		const struct run_vm *vm = &run->vms[i];
		json_t *one = json_pack("{s:s, s:i, s:I, s:I}", "name", r->vms[i].name, "pid", (int)r->vms[i].pid, "targets",
					(json_int_t)vm->targets, "vetoes", (json_int_t)vm->vetoes);

		if (vm->ticks) {
			json_object_set_new(one, "wanted_least_bytes", json_integer((json_int_t)vm->least_bytes));
			json_object_set_new(one, "wanted_mean_bytes", json_real(mean_bytes(vm)));
			json_object_set_new(one, "wanted_most_bytes", json_integer((json_int_t)vm->most_bytes));
		}
		json_array_append_new(vms, one);
	}
	root = json_pack("{s:s, s:o, s:I, s:I, s:I, s:I, s:I, s:o}", "name", run->name, "state_ticks", states, "targets",
			 (json_int_t)run->targets, "taken_bytes", (json_int_t)run->taken_bytes, "given_bytes",
			 (json_int_t)run->given_bytes, "vetoes", (json_int_t)run->vetoes, "available_least_bytes",
			 (json_int_t)(run->available_least_bytes == UINT64_MAX ? 0 : run->available_least_bytes), "vms",
			 vms);
	if (run->differs_line) {
		json_object_set_new(root, "differs_line", json_integer(run->differs_line));
		json_object_set_new(root, "differs", json_string(run->differs));
	}
	return root;
}

json_t *policy_report_json(const struct policy_replay *r)
{
	json_t *runs = json_array();

	for (size_t k = 0; k < r->run_count; k++)
		json_array_append_new(runs, run_json(r, &r->runs[k]));
	return json_pack("{s:I, s:I, s:f, s:s, s:o}", "ticks", (json_int_t)r->ticks, "undecided", (json_int_t)r->undecided,
			 "seconds", (double)r->span_ns / (double)NSEC_PER_SEC, "version", r->version, "runs", runs);
}
