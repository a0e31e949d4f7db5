/* merge - the same captured guests, merged by each engine in turn: time, CPU, memory, and what a victim felt. */
#include <errno.h>
#include <getopt.h>
#include <libgen.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench/lib/capture_take.h"
#include "bench/lib/ksm_guard.h"
#include "bench/lib/progress.h"
#include "bench/lib/report.h"
#include "core/cleanup.h"
#include "core/log.h"

#define CAPTURES_DEFAULT "build/captures"
#define ENGINES_DEFAULT "ksm,ksmtuned,kernel,remap,null"
#define ENGINES_QUICK "ksm,kernel,remap,null"
#define SYNTHETIC_MEMBERS 4u
#define SYNTHETIC_MIB 256u
#define SCAN_ROUNDS 7u
#define SCAN_ROUNDS_QUICK 5u
#define CAP_QUICK_SECONDS 30.0
/* For the null engine when nothing else ran. */
#define IDLE_SECONDS 3.0
#define IDLE_SECONDS_MAX 10.0

struct options {
	const char *captures, *engines, *svg;
	bool json, quick, synthetic, idle;
	bool kinds[REPORT_KINDS];
	uint64_t repeat, cap_seconds;
};

struct bench {
	struct options options;
	struct fsio fs;
	const char *dir; /* temporary */
	char replay_program[PATH_MAX];
	char *json_paths[CAPTURES_MAX];
	size_t capture_count;
	bool uses_ksm; /* some engine does */
	struct report *report;
};

static void usage(FILE *out)
{
	fputs("usage: merge [OPTION...]\n"
	      "  --captures DIR    what bench/capture-guests.sh made; default: " CAPTURES_DEFAULT "\n"
	      "  --synthetic       made-up guests instead; what --quick takes when there are no captures\n"
	      "  --engines LIST    default: " ENGINES_DEFAULT "\n"
	      "  --thp on|off      only guests in huge pages, as QEMU has them, or only the same in small pages;\n"
	      "                    default: both, one after the other\n"
	      "  --repeat N        each engine so often, in alternating order; default: 1\n"
	      "  --cap SECONDS     stop an engine that has not finished then\n"
	      "  --idle            also with --quick: what looking on costs when all is merged (three minutes)\n"
	      "  --quick           under a minute: " ENGINES_QUICK "; guests in huge pages\n"
	      "  --json            one JSON object on standard output instead of a table\n"
	      "  --svg FILE        a picture of memory saved over time\n"
	      "Needs root. Takes " KSM_LOCK_PATH " while it uses KSM, and puts KSM's settings back.\n"
	      "Exits with 1 when an engine changed a byte or something failed.\n"
	      "engines:\n",
	      out);
	for (const struct engine *const *e = engine_list(); *e; e++)
		fprintf(out, "  %-15s %s\n", (*e)->name, (*e)->help);
}

static bool parse_count(const char *text, uint64_t max, uint64_t *value)
{
	char *rest;

	errno = 0;
	*value = strtoull(text, &rest, 10);
	return errno == 0 && rest != text && *rest == '\0' && *text != '-' && *value > 0 && *value <= max;
}

/* 0; 1 to end well (--help); -1 for bad usage. */
static int parse_options(int argc, char **argv, struct options *o)
{
	static const struct option table[] = {
		{ "captures", required_argument, NULL, 'c' }, { "engines", required_argument, NULL, 'e' },
		{ "engine", required_argument, NULL, 'e' },   { "thp", required_argument, NULL, 't' },
		{ "repeat", required_argument, NULL, 'r' },   { "cap", required_argument, NULL, 'C' },
		{ "svg", required_argument, NULL, 's' },      { "json", no_argument, NULL, 'j' },
		{ "quick", no_argument, NULL, 'q' },	      { "synthetic", no_argument, NULL, 'S' },
		{ "help", no_argument, NULL, 'h' },	      { "idle", no_argument, NULL, 'i' },
		{ NULL, 0, NULL, 0 },
	};
	bool good = true;
	int c;

	*o = (struct options){ .captures = CAPTURES_DEFAULT, .repeat = 1 };
	while ((c = getopt_long(argc, argv, "h", table, NULL)) != -1) {
		switch (c) {
		case 'c': o->captures = optarg; break;
		case 'e': o->engines = optarg; break;
		case 't':
			o->kinds[KIND_HUGE] = strcmp(optarg, "on") == 0;
			o->kinds[KIND_SMALL] = strcmp(optarg, "off") == 0;
			good &= o->kinds[KIND_HUGE] || o->kinds[KIND_SMALL];
			break;
		case 'r': good &= parse_count(optarg, REPEAT_MAX, &o->repeat); break;
		case 'C': good &= parse_count(optarg, 86400, &o->cap_seconds); break;
		case 's': o->svg = optarg; break;
		case 'j': o->json = true; break;
		case 'q': o->quick = true; break;
		case 'S': o->synthetic = true; break;
		case 'i': o->idle = true; break;
		case 'h': usage(stdout); return 1;
		default: good = false;
		}
	}
	if (!o->engines)
		o->engines = o->quick ? ENGINES_QUICK : ENGINES_DEFAULT;
	if (!o->kinds[KIND_HUGE] && !o->kinds[KIND_SMALL]) {
		o->kinds[KIND_HUGE] = true;
		o->kinds[KIND_SMALL] = !o->quick;
	}
	if (!good || optind != argc) {
		usage(stderr);
		return -1;
	}
	return 0;
}

/* Fills report->engines from the list of names. */
static int parse_engines(const char *list, struct report *report)
{
	auto_free char *copy = strdup(list);
	char *rest = copy;
	const char *name;

	while (copy && (name = strsep(&rest, ","))) {
		const struct engine *engine = engine_find(name);

		if (!engine || report->engine_count == ENGINES_MAX) {
			fprintf(stderr, "merge: --engines: no engine \"%s\"; see --help\n", name);
			return -EINVAL;
		}
		for (int kind = 0; kind < REPORT_KINDS; kind++)
			report->engines[kind][report->engine_count].engine = engine;
		report->engine_count++;
	}
	return copy ? 0 : -ENOMEM;
}

/* ---- the parts ---- */

static int find_captures(struct bench *b)
{
	const char *dir = b->options.captures;
	struct synth_truth truth;
	int r = b->options.synthetic ? 0 : capture_list(dir, b->json_paths);

	if (r <= 0 && b->options.quick && !b->options.synthetic)
		progress("no captures in %s, so made-up guests are used", dir);
	if (r <= 0 && (b->options.quick || b->options.synthetic)) {
		b->report->synthetic = true;
		progress("making up %u guests of %u MiB", SYNTHETIC_MEMBERS, SYNTHETIC_MIB);
		r = capture_synthesize(b->dir, SYNTHETIC_MEMBERS, SYNTHETIC_MIB, &truth);
		if (r == 0)
			r = capture_list(b->dir, b->json_paths);
	} else if (r == 0 || r == -ENOENT) {
		fprintf(stderr, "merge: no captures in %s: run bench/capture-guests.sh first, or use --synthetic\n",
			dir);
		return -ENOENT;
	}
	if (r < 0) {
		fprintf(stderr, "merge: captures: %s\n", strerror(-r));
		return r;
	}
	b->capture_count = b->report->guests = (size_t)r;
	return 0;
}

static int measure_oracle(struct bench *b)
{
	int r;

	progress("oracle: comparing %zu guests", b->capture_count);
	r = oracle_run(b->json_paths, b->capture_count, &b->report->oracle);
	if (r < 0)
		fprintf(stderr, "merge: oracle: %s\n", strerror(-r));
	return r;
}

static void measure_scan(struct bench *b)
{
	struct replay_options options = { .thp = b->report->first == KIND_HUGE };
	struct report *report = b->report;
	struct replay_group group;
	uint64_t huge_kib = 0;
	int r;

	progress("scan: loading %zu guests", b->capture_count);
	r = replay_group_start(&b->fs, b->replay_program, b->json_paths, b->capture_count, &options, &group);
	if (r == 0) {
		for (size_t i = 0; i < group.count; i++)
			huge_kib += group.proc[i].huge_kib;
		report->huge_share = (double)huge_kib / 4 / (double)replay_group_pages(&group);
		progress("scan: bare loop, one worker, two workers");
		r = scan_bench_run(&b->fs, &group, b->json_paths, b->options.quick ? SCAN_ROUNDS_QUICK : SCAN_ROUNDS,
				   &report->scan);
		if (r == 0)
			r = estimate_run(&b->fs, &group, &report->estimate);
		replay_group_end(&group);
	}
	report->scanned = r == 0;
	if (r < 0)
		snprintf(report->scan_why, sizeof(report->scan_why), "%s", strerror(-r));
}

static void measure_engine(struct engine_results *e, struct runner *runner)
{
	struct run_result *result = &e->run[e->count++];

	runner_measure(runner, e->engine, result);
	if (result->ok && result->seconds > runner->idle_seconds)
		runner->idle_seconds = result->seconds < IDLE_SECONDS_MAX ? result->seconds : IDLE_SECONDS_MAX;
	if (!result->ok)
		progress("%s: not measured: %s", e->engine->name, result->why);
}

/* Every other round runs backwards, so that a machine that gets slower or faster favours nobody. */
static void measure_engines(struct bench *b, enum report_kind kind)
{
	struct report *report = b->report;
	struct runner runner = {
		.fs = &b->fs,
		.replay_program = b->replay_program,
		.json_paths = b->json_paths,
		.capture_count = b->capture_count,
		.oracle = &report->oracle,
		.dir = b->dir,
		.options = { .thp = kind == KIND_HUGE },
		.guarded = b->uses_ksm,
		.cap_seconds = b->options.cap_seconds > 0 ? (double)b->options.cap_seconds :
			       b->options.quick		  ? CAP_QUICK_SECONDS :
							    0,
		.idle_seconds = IDLE_SECONDS,
	};

	for (uint64_t round = 0; round < b->options.repeat; round++) {
		for (size_t i = 0; i < report->engine_count; i++) {
			size_t at = round % 2 == 0 ? i : report->engine_count - 1 - i;

			measure_engine(&report->engines[kind][at], &runner);
		}
	}
	report->measured[kind] = true;
}

static void measure_idle(struct bench *b)
{
	const struct idle_setup setup = { &b->fs,	 b->replay_program, b->dir,
					  b->json_paths, b->capture_count,  b->report->oracle.savable };

	idle_measure(&setup, &b->report->idle);
	b->report->idle_measured = true;
}

/* In the guarded child. Gives the exit status. */
static int work(void *userdata)
{
	struct bench *b = userdata;
	int r = find_captures(b);

	if (r == 0)
		r = measure_oracle(b);
	if (r < 0)
		return 1;
	measure_scan(b);
	for (int kind = 0; kind < REPORT_KINDS; kind++) {
		if (!b->options.kinds[kind])
			continue;
		progress("guests in %s pages", kind == KIND_HUGE ? "huge" : "4 KiB");
		measure_engines(b, (enum report_kind)kind);
	}
	if (!b->options.quick || b->options.idle)
		measure_idle(b);
	if (b->options.json)
		report_json(b->report, stdout);
	else
		report_table(b->report, stdout);
	if (b->options.svg) {
		r = report_svg(b->report, b->options.svg);
		if (r < 0)
			fprintf(stderr, "merge: %s: %s\n", b->options.svg, strerror(-r));
	}
	return r < 0 || !report_is_clean(b->report);
}

/* replay lies beside this program. */
static int find_replay(char *path, size_t cap)
{
	char self[PATH_MAX];
	ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);

	if (n < 0)
		return -errno;
	self[n] = '\0';
	if (snprintf(path, cap, "%s/replay", dirname(self)) >= (int)cap)
		return -ENAMETOOLONG;
	return access(path, X_OK) < 0 ? -errno : 0;
}

static int prepare(struct bench *b, char *dir)
{
	int r = find_replay(b->replay_program, sizeof(b->replay_program));

	if (r < 0) {
		fprintf(stderr, "merge: replay must lie beside this program: %s\n", strerror(-r));
		return r;
	}
	b->report = calloc(1, sizeof(*b->report));
	if (!b->report)
		return -ENOMEM;
	b->report->first = b->options.kinds[KIND_HUGE] ? KIND_HUGE : KIND_SMALL;
	r = parse_engines(b->options.engines, b->report);
	if (r == 0)
		r = fsio_open_root("/", false, &b->fs);
	b->dir = dir;
	return r;
}

int main(int argc, char **argv)
{
	char dir[] = "/tmp/memvirt-bench-XXXXXX";
	struct bench b = { 0 };
	int r = parse_options(argc, argv, &b.options);

	if (r != 0)
		return r > 0 ? 0 : 2;
	/* The engines' own log lines are theirs; what matters here is in the report. */
	log_set_level(LOG_LEVEL_WARNING);
	if (prepare(&b, dir) < 0)
		return 2;
	for (size_t i = 0; i < b.report->engine_count; i++)
		b.uses_ksm |= b.report->engines[KIND_HUGE][i].engine->uses_ksm;
	b.uses_ksm |= !b.options.quick || b.options.idle;
	r = ksm_guard_run(&b.fs, b.uses_ksm, dir, work, &b);
	free(b.report);
	return r < 0 ? 1 : r;
}
