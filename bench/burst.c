/* burst - the same captured guests, merged, then all of them write to all of their pages at once: what comes back, how
 * fast, who waits for it, and whether the daemon's copy-on-write debt had foreseen it. */
#include <errno.h>
#include <getopt.h>
#include <jansson.h>
#include <libgen.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "bench/lib/agents.h"
#include "bench/lib/capture_take.h"
#include "bench/lib/host_watch.h"
#include "bench/lib/ksm_guard.h"
#include "bench/lib/progress.h"
#include "core/cleanup.h"
#include "core/clock.h"
#include "core/log.h"
#include "ksmd/debt.h"
#include "ksmd/remap.h"

#define CAPTURES_DEFAULT "build/captures"
#define SYNTHETIC_MEMBERS 4u
#define SYNTHETIC_MIB 256u
#define STORE_FRAMES (1u << 20) /* 4 GiB of room */
#define STEP_NS (20 * NSEC_PER_MSEC)
#define DEBT_PERCENT 20 /* [merge] debt_share as shipped */
#define MIB 1048576.0

struct burst {
	const char *captures;
	bool synthetic, json, thp, ksm;
	struct fsio fs;
	const char *dir; /* temporary */
	char replay_program[PATH_MAX];
	char *json_paths[CAPTURES_MAX];
	size_t capture_count;
};

struct outcome {
	const char *engine;
	char why[ENGINE_WHY_MAX]; /* empty: it was measured */
	struct debt debt;
	uint64_t merged_pages; /* as the daemon counts what may come back */
	uint64_t came_back_pages;
	uint64_t look_ns, mappings; /* of the daemon, at what all guests map; remap only */
	struct replay_rewritten rewritten;
	struct hist victim;
	struct host_watched host;
	uint64_t wrong_pages, lost_writes;
};

static void usage(FILE *out)
{
	fputs("usage: burst [OPTION...]\n"
	      "  --captures DIR  what bench/capture-guests.sh made; default: " CAPTURES_DEFAULT "\n"
	      "  --synthetic     made-up guests instead\n"
	      "  --thp on|off    guests in huge pages, as QEMU has them (default), or in small ones\n"
	      "  --no-ksm        not also after merging by the kernel's scanner\n"
	      "  --json          one JSON object on standard output instead of a table\n"
	      "Needs root. Takes " KSM_LOCK_PATH " unless --no-ksm. Uses at most half of the memory that is available.\n"
	      "Exits with 1 when a byte was changed, somebody was killed for memory, or something failed.\n",
	      out);
}

static int parse_options(int argc, char **argv, struct burst *b)
{
	static const struct option table[] = {
		{ "captures", required_argument, NULL, 'c' }, { "synthetic", no_argument, NULL, 'S' },
		{ "thp", required_argument, NULL, 't' },      { "no-ksm", no_argument, NULL, 'k' },
		{ "json", no_argument, NULL, 'j' },	      { "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	bool good = true;
	int c;

	*b = (struct burst){ .captures = CAPTURES_DEFAULT, .thp = true, .ksm = true };
	while ((c = getopt_long(argc, argv, "h", table, NULL)) != -1) {
		switch (c) {
		case 'c': b->captures = optarg; break;
		case 'S': b->synthetic = true; break;
		case 't':
			b->thp = strcmp(optarg, "on") == 0;
			good &= b->thp || strcmp(optarg, "off") == 0;
			break;
		case 'k': b->ksm = false; break;
		case 'j': b->json = true; break;
		case 'h': usage(stdout); return 1;
		default: good = false;
		}
	}
	if (good && optind == argc)
		return 0;
	usage(stderr);
	return -1;
}

/* ---- merging, and what the daemon makes of it ---- */

static int merge_remap(const struct engine_context *c, struct remap *remap, struct outcome *o)
{
	struct remap_vm vms[CAPTURES_MAX];
	struct remap_result result = { 0 };
	struct frame_user_figures f;
	struct bench_agents agents;
	uint64_t metadata_bytes;
	uint32_t freed;
	bool more;
	int r = bench_agents_attach(c, &agents);

	if (r == 0)
		r = bench_agents_scan(&agents, &metadata_bytes);
	for (size_t i = 0; r == 0 && i < agents.count; i++)
		vms[i] = (struct remap_vm){ agents.peers[i], agents.tables[i] };
	if (r == 0)
		r = remap_round(remap, vms, agents.count, &(struct remap_limits){ 0 }, NULL, &result);
	if (r == 0)
		r = remap_sweep(remap, &freed, &more);
	for (size_t i = 0; i < c->group->count; i++) /* or it would be spared: nothing has happened yet */
		remap_vm_changed(remap, c->group->proc[i].pid);
	o->look_ns = clock_thread_cpu_ns();
	if (r == 0)
		r = remap_look(remap);
	o->look_ns = clock_thread_cpu_ns() - o->look_ns;
	o->merged_pages = result.zero_pages;
	for (size_t i = 0; r == 0 && i < c->group->count; i++) {
		if (!remap_vm_figures(remap, c->group->proc[i].pid, &f))
			continue;
		o->merged_pages += f.mapped_pages - f.broken_pages;
		o->mappings += f.mappings;
	}
	bench_agents_end(&agents); /* merged memory stays merged */
	return r;
}

static int merge_ksm(const struct engine_context *c, struct outcome *o)
{
	const struct engine *engine = &engine_ksm;
	struct meter_sample s = { 0 };
	struct meter meter;
	void *e = NULL;
	int r = meter_start(&meter, c->fs, c->group, true);

	if (r == 0)
		r = engine->start(c, &e, o->why);
	for (int done = 0; r == 0 && !done && (double)s.ns / 1e9 < engine->cap_seconds;) {
		nanosleep(&(struct timespec){ .tv_nsec = STEP_NS }, NULL);
		r = meter_take(&meter, &s);
		done = r == 0 ? engine->step(e, &s) : r;
		r = done < 0 ? done : 0;
	}
	if (e)
		engine->stop(e);
	o->merged_pages = s.saved_pages;
	return r;
}

static int debt_foresee(const struct burst *b, struct outcome *o)
{
	const struct debt_inputs in = { .merged_pages = o->merged_pages, .share_percent = DEBT_PERCENT };
	struct host_snapshot s;
	int r = host_memory(&b->fs, &s);

	if (r == 0)
		debt_decide(&o->debt, &s, &in);
	return r;
}

/* ---- the burst ---- */

/* Memory of the guests' own. Merged by frames of a store it is no anonymous memory; merged by KSM it is, but some frames
 * are there several times. */
static int own_pages(const struct burst *b, struct replay_group *g, bool ksm, uint64_t *ret_pages)
{
	uint64_t pages = 0;
	int r = ksm ? meter_frames(&b->fs, g, &pages) : 0;

	for (size_t i = 0; i < g->count && r == 0 && !ksm; i++) {
		json_t *stats = NULL;

		r = replay_command(&g->proc[i], "stats", &stats);
		pages += (uint64_t)json_integer_value(json_object_get(stats, "rss_anon_kib")) * 1024 / PAGE_BYTES;
		json_decref(stats);
	}
	*ret_pages = pages;
	return r;
}

static int burst_watched(const struct burst *b, struct replay_group *g, struct outcome *o)
{
	struct host_watch *watch;
	int r = host_watch_start(&b->fs, &watch);

	if (r < 0)
		return r;
	r = replay_group_victims_start(g);
	if (r == 0)
		r = replay_group_rewrite(g, &o->rewritten);
	if (r == 0)
		r = replay_group_victims_stop(g, &o->victim, &o->lost_writes);
	host_watch_stop(watch, &o->host);
	return r;
}

static int burst_measure(const struct burst *b, struct replay_group *g, bool ksm, struct outcome *o)
{
	uint64_t before = 0, after = 0;
	int r = debt_foresee(b, o);

	if (r == 0)
		r = own_pages(b, g, ksm, &before);
	if (r == 0)
		r = burst_watched(b, g, o);
	if (r == 0)
		r = own_pages(b, g, ksm, &after);
	o->came_back_pages = after > before ? after - before : 0;
	return r < 0 ? r : replay_group_check(g, &o->wrong_pages);
}

static int measure_merged(const struct burst *b, struct replay_group *g, bool ksm, struct outcome *o)
{
	const struct engine_context c = { .fs = &b->fs, .group = g, .dir = b->dir };
	struct remap *remap = NULL;
	int r = ksm ? 0 : remap_new(&b->fs, "burst", STORE_FRAMES, &remap);

	progress("%s: merging", o->engine);
	if (r == 0)
		r = ksm ? merge_ksm(&c, o) : merge_remap(&c, remap, o);
	progress("%s: %.0f MiB merged; all guests write to everything", o->engine, (double)o->merged_pages * PAGE_BYTES / MIB);
	if (r == 0)
		r = burst_measure(b, g, ksm, o);
	remap_free(remap);
	return r;
}

static void measure(const struct burst *b, bool ksm, struct outcome *o)
{
	const struct replay_options options = { .thp = b->thp, .mergeable = ksm };
	struct replay_group group;
	int r;

	o->engine = ksm ? "ksm" : "remap";
	progress("%s: loading %zu guests", o->engine, b->capture_count);
	r = replay_group_start(&b->fs, b->replay_program, b->json_paths, b->capture_count, &options, &group);
	if (r == 0) {
		r = measure_merged(b, &group, ksm, o);
		replay_group_end(&group);
	}
	if (r < 0 && o->why[0] == '\0')
		snprintf(o->why, sizeof(o->why), "%s", strerror(-r));
	if (r < 0)
		progress("%s: not measured: %s", o->engine, o->why);
}

/* ---- the report ---- */

static double mib(uint64_t pages)
{
	return (double)pages * PAGE_BYTES / MIB;
}

static json_t *outcome_json(const struct outcome *o)
{
	if (o->why[0])
		return json_pack("{s:s, s:s}", "engine", o->engine, "why", o->why);
	return json_pack("{s:s, s:f, s:f, s:f, s:s, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:I, s:I, s:I, s:I}", "engine", o->engine,
			 "debt_most_mib", mib(o->merged_pages), "debt_mib", mib(o->debt.pages), "debt_limit_mib",
			 mib(o->debt.limit_pages), "debt_state", debt_state_name(o->debt.state), "came_back_mib",
			 mib(o->came_back_pages), "seconds", (double)o->rewritten.ns / 1e9, "longest_write_us",
			 (double)o->rewritten.longest_ns / 1e3, "victim_p999_us",
			 (double)hist_quantile_ns(&o->victim, 0.999) / 1e3, "victim_longest_us",
			 (double)o->victim.max_ns / 1e3, "available_before_mib",
			 (double)o->host.available_before_bytes / MIB, "available_lowest_mib",
			 (double)o->host.available_lowest_bytes / MIB, "look_cpu_ms", (double)o->look_ns / 1e6,
			 "mappings", (json_int_t)o->mappings, "oom_kills", (json_int_t)o->host.oom_kills,
			 "wrong_pages", (json_int_t)o->wrong_pages, "lost_writes", (json_int_t)o->lost_writes);
}

static void outcome_print(const struct outcome *o)
{
	if (o->why[0]) {
		printf("%-6s not measured: %s\n", o->engine, o->why);
		return;
	}
	printf("%-6s foreseen %.0f MiB at most, %.0f at once (debt), %.0f would fit: %s\n", o->engine, mib(o->merged_pages),
	       mib(o->debt.pages), mib(o->debt.limit_pages), debt_state_name(o->debt.state));
	if (o->look_ns)
		printf("       a look at their %llu mappings took %.2f ms of CPU time\n", (unsigned long long)o->mappings,
		       (double)o->look_ns / 1e6);
	printf("       came back %.0f MiB in %.2f s; longest write %.0f us; victims: 99.9 %% %.0f us, longest %.0f us\n",
	       mib(o->came_back_pages), (double)o->rewritten.ns / 1e9, (double)o->rewritten.longest_ns / 1e3,
	       (double)hist_quantile_ns(&o->victim, 0.999) / 1e3, (double)o->victim.max_ns / 1e3);
	printf("       available %.0f MiB before, %.0f at the lowest; %llu killed, %llu wrong pages, %llu lost writes\n",
	       (double)o->host.available_before_bytes / MIB, (double)o->host.available_lowest_bytes / MIB,
	       (unsigned long long)o->host.oom_kills, (unsigned long long)o->wrong_pages,
	       (unsigned long long)o->lost_writes);
}

static bool outcome_is_good(const struct outcome *o)
{
	return o->why[0] == '\0' && o->wrong_pages + o->lost_writes + o->host.oom_kills == 0;
}

/* ---- the whole ---- */

static int find_captures(struct burst *b)
{
	struct synth_truth truth;
	int r = b->synthetic ? capture_synthesize(b->dir, SYNTHETIC_MEMBERS, SYNTHETIC_MIB, &truth) : 0;

	if (r == 0)
		r = capture_list(b->synthetic ? b->dir : b->captures, b->json_paths);
	if (r > 0)
		b->capture_count = (size_t)r;
	else
		fprintf(stderr, "burst: no captures in %s: run bench/capture-guests.sh first, or use --synthetic\n",
			b->captures);
	return r > 0 ? 0 : r < 0 ? r : -ENOENT;
}

/* This bench is not to be what kills the host. */
static int check_room(const struct burst *b)
{
	struct host_snapshot s;
	uint64_t pages = 0;
	int r = host_memory(&b->fs, &s);

	for (size_t i = 0; i < b->capture_count && r == 0; i++) {
		struct capture_info info;

		r = capture_info_load(b->json_paths[i], &info);
		if (r < 0)
			break;
		pages += page_runs_pages(&info.present);
		capture_info_free(&info);
	}
	if (r == 0 && pages * PAGE_BYTES > s.mem_available_bytes / 2) {
		fprintf(stderr, "burst: the guests need %.0f MiB, more than half of the %.0f MiB that are available\n",
			mib(pages), (double)s.mem_available_bytes / MIB);
		return -ENOMEM;
	}
	return r;
}

/* In the guarded child. Gives the exit status. */
static int work(void *userdata)
{
	struct burst *b = userdata;
	auto_free struct outcome *o = calloc(2, sizeof(*o));
	json_t *list = json_array();
	bool good = true;

	if (!o || find_captures(b) < 0 || check_room(b) < 0)
		return 1;
	for (size_t i = 0; i < 1u + b->ksm; i++) {
		measure(b, i == 1, &o[i]);
		good &= outcome_is_good(&o[i]);
		if (b->json)
			json_array_append_new(list, outcome_json(&o[i]));
		else
			outcome_print(&o[i]);
	}
	if (b->json) {
		json_dumpf(list, stdout, JSON_INDENT(1) | JSON_REAL_PRECISION(6));
		putchar('\n');
	}
	json_decref(list);
	return !good;
}

/* replay lies beside this program. */
static int find_replay(char *path, size_t cap)
{
	char self[PATH_MAX];
	ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);

	if (n < 0)
		return -errno;
	self[n] = '\0';
	return snprintf(path, cap, "%s/replay", dirname(self)) < (int)cap && access(path, X_OK) == 0 ? 0 : -ENOENT;
}

int main(int argc, char **argv)
{
	char dir[] = "/tmp/memvirt-burst-XXXXXX";
	struct burst b;
	int r = parse_options(argc, argv, &b);

	if (r != 0)
		return r > 0 ? 0 : 2;
	log_set_level(LOG_LEVEL_WARNING);
	if (find_replay(b.replay_program, sizeof(b.replay_program)) < 0 || fsio_open_root("/", false, &b.fs) < 0) {
		fputs("burst: replay must lie beside this program\n", stderr);
		return 2;
	}
	b.dir = dir;
	r = ksm_guard_run(&b.fs, b.ksm, dir, work, &b);
	return r < 0 ? 1 : r;
}
