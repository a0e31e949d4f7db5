/* bench/simulate.c - how many VMs a host can have, by policy and kind of load, on hosts that are not at hand. */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/lib/sim.h"
#include "bench/lib/sim_report.h"
#include "core/cleanup.h"

#define THREADS 2
#define HOST_MIB_MAX (64.0 * 1024 * 1024)

struct bench {
	struct sim_report report;
	bool json;
	const char *svg;
	bool crowding; /* the second phase: all policies with as many VMs as ours */
	atomic_size_t next;
	atomic_int error;
};

static const char usage[] =
	"usage: simulate [options]\n"
	"Finds by search how many VMs a simulated host can have under each policy and trace, and tells how it did it.\n"
	"  --json             for programs\n"
	"  --svg FILE         a picture as well\n"
	"  --trace NAME       only this one\n"
	"  --policy NAME      only this one\n"
	"  --host-mib N       memory of the host; default 524288\n"
	"  --stall PERCENT    how long guests may stand still; default 1\n"
	"  --floor PERCENT    of its size is left to every VM, by all policies; default 35\n"
	"  --guest-swap PERCENT  swap of a guest, of its size; default 25 (sandboxes have none)\n"
	"  --seed N           other guests; default 1\n";

/* ---- options ---- */

static bool take_number(const char *text, double min, double max, double *ret)
{
	char *end;
	double value;

	errno = 0;
	value = strtod(text, &end);
	if (errno != 0 || end == text || *end != '\0' || !(value >= min && value <= max)) {
		fprintf(stderr, "simulate: %s: expected a number from %g to %g\n", text, min, max);
		return false;
	}
	*ret = value;
	return true;
}

static bool take_percent(const char *text, double *ret_share)
{
	double percent;

	if (!take_number(text, 0, 100, &percent))
		return false;
	*ret_share = percent / 100;
	return true;
}

static bool want_trace(struct bench *b, const char *name)
{
	bool found = false;

	for (int t = 0; t < TRACES; t++) {
		bool same = strcmp(name, sim_traces[t].name) == 0;

		found |= same;
		for (size_t p = 0; p < sim_policy_count; p++)
			b->report.cells[t][p].wanted &= same;
	}
	if (!found)
		fprintf(stderr, "simulate: no trace %s\n", name);
	return found;
}

static bool want_policy(struct bench *b, const char *name)
{
	bool found = false;

	for (size_t p = 0; p < sim_policy_count; p++) {
		bool same = strcmp(name, sim_policies[p].name) == 0;

		found |= same;
		for (int t = 0; t < TRACES; t++)
			b->report.cells[t][p].wanted &= same;
	}
	if (!found)
		fprintf(stderr, "simulate: no policy %s\n", name);
	return found;
}

static bool take_seed(const char *text, uint64_t *ret_seed)
{
	double seed;

	if (!take_number(text, 0, 4294967295.0, &seed))
		return false;
	*ret_seed = (uint64_t)seed;
	return true;
}

static bool take_option(struct bench *b, int option)
{
	struct sim_options *o = &b->report.options;

	switch (option) {
	case 'j': return b->json = true;
	case 's': b->svg = optarg; return true;
	case 't': return want_trace(b, optarg);
	case 'p': return want_policy(b, optarg);
	/* The host itself needs 2 GiB and its part. */
	case 'm': return take_number(optarg, 4096, HOST_MIB_MAX, &o->host_mib);
	case 'l': return take_percent(optarg, &o->stall_limit);
	case 'f': return take_percent(optarg, &o->floor);
	case 'g': return take_percent(optarg, &o->guest_swap);
	case 'e': return take_seed(optarg, &o->seed);
	default: fputs(usage, stderr); return false;
	}
}

/* 0: go on; 1: all was said; negative: no. */
static int parse_options(struct bench *b, int argc, char **argv)
{
	static const struct option options[] = {
		{ "json", no_argument, NULL, 'j' },	   { "svg", required_argument, NULL, 's' },
		{ "trace", required_argument, NULL, 't' }, { "policy", required_argument, NULL, 'p' },
		{ "host-mib", required_argument, NULL, 'm' }, { "stall", required_argument, NULL, 'l' },
		{ "floor", required_argument, NULL, 'f' }, { "guest-swap", required_argument, NULL, 'g' },
		{ "seed", required_argument, NULL, 'e' },  { "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	int option;

	b->report.options = SIM_OPTIONS_DEFAULT;
	for (int t = 0; t < TRACES; t++)
		for (size_t p = 0; p < sim_policy_count; p++)
			b->report.cells[t][p].wanted = true;
	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (option == 'h') {
			fputs(usage, stdout);
			return 1;
		}
		if (!take_option(b, option))
			return -EINVAL;
	}
	if (optind < argc) {
		fputs(usage, stderr);
		return -EINVAL;
	}
	return 0;
}

/* ---- work ---- */

static int search(struct bench *b, int t, size_t p)
{
	struct sim_cell *c = &b->report.cells[t][p];

	return c->wanted ? sim_search(&b->report.options, (enum sim_trace)t, &sim_policies[p], &c->best) : 0;
}

static int crowd(struct bench *b, int t, size_t p)
{
	const struct sim_cell *ours = &b->report.cells[t][sim_policy_ours - sim_policies];
	struct sim_cell *c = &b->report.cells[t][p];
	int r;

	if (!c->wanted || !ours->wanted)
		return 0;
	r = sim_run(&b->report.options, (enum sim_trace)t, &sim_policies[p], ours->best.vms, false, &c->crowded);
	c->crowded_known = r == 0;
	return r;
}

static void *worker(void *userdata)
{
	struct bench *b = userdata;

	for (;;) {
		size_t i = atomic_fetch_add(&b->next, 1);
		int t = (int)(i / sim_policy_count), r;

		if (t >= TRACES)
			return NULL;
		r = b->crowding ? crowd(b, t, i % sim_policy_count) : search(b, t, i % sim_policy_count);
		if (r < 0)
			atomic_store(&b->error, r);
	}
}

/* Each cell is computed by itself: the result does not depend on the threads. */
static int phase(struct bench *b, bool crowding)
{
	pthread_t threads[THREADS - 1];
	size_t started = 0;

	b->crowding = crowding;
	atomic_store(&b->next, 0);
	while (started < THREADS - 1 && pthread_create(&threads[started], NULL, worker, b) == 0)
		started++;
	worker(b);
	while (started > 0)
		pthread_join(threads[--started], NULL);
	return atomic_load(&b->error);
}

static int write_svg(const struct sim_report *r, const char *path)
{
	auto_fclose FILE *out = fopen(path, "we");

	if (!out)
		return -errno;
	sim_report_svg(r, out);
	return fflush(out) != 0 || ferror(out) ? -EIO : 0;
}

int main(int argc, char **argv)
{
	static struct bench b;
	int r = parse_options(&b, argc, argv);

	if (r != 0)
		return r > 0 ? 0 : 2;
	r = phase(&b, false);
	if (r == 0)
		r = phase(&b, true);
	if (r == 0 && b.json)
		r = sim_report_json(&b.report, stdout);
	else if (r == 0)
		sim_report_table(&b.report, stdout);
	if (r < 0) {
		fprintf(stderr, "simulate: %s\n", strerror(-r));
		return 1;
	}
	r = b.svg ? write_svg(&b.report, b.svg) : 0;
	if (r < 0)
		fprintf(stderr, "simulate: %s: %s\n", b.svg, strerror(-r));
	return r < 0;
}
