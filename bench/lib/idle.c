#include "bench/lib/idle.h"

#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "bench/lib/agents.h"
#include "bench/lib/ksm_guard.h"
#include "bench/lib/progress.h"
#include "core/clock.h"
#include "core/snapshot.h"
#include "ksmd/remap.h"

#define STORE_FRAMES (1u << 20)
#define MIN_GAIN_PAGES 8192u /* 32 MiB; the daemon's default is 64, just what is injected */
#define JOIN_LEAST_PAGES (MIN_GAIN_PAGES / 4)
#define SETTLE_SECONDS 60.0
#define SETTLED_SHARE 0.97
#define IDLE_SECONDS 12.0
#define LOAD_SECONDS 12.0
#define NOTICE_SECONDS_MAX 30.0
#define NOTICE_SHARE 0.9
#define POLL_NS (20 * NSEC_PER_MSEC)
#define KSM_SLEEP_MS 20u
#define KSM_FLAT_OUT_PAGES 100000u
#define INJECT_PAGES (IDLE_INJECT_MIB * 256u)

static const unsigned loads[IDLE_LOADS] = { 1, 10 }; /* percent per second */

/* One that looks on. */
struct rival {
	const struct idle_setup *setup;
	struct replay_group *group;
	struct meter meter;
	bool by_kernel;

	/* Not the kernel: */
	struct engine_context context;
	struct bench_agents agents;
	struct remap *remap;
	pthread_t thread;
	bool started;
	_Atomic bool stop;
	_Atomic int error;
};

static void pause_ns(uint64_t ns)
{
	struct timespec t = { .tv_sec = (time_t)(ns / NSEC_PER_SEC), .tv_nsec = (long)(ns % NSEC_PER_SEC) };

	clock_nanosleep(CLOCK_MONOTONIC, 0, &t, NULL);
}

/* ---- this program's own: what the daemon does with VMs that have agents ---- */

static int look_once(struct rival *r)
{
	struct remap_vm vms[CAPTURES_MAX];
	struct remap_limits limits = { .min_gain_pages = MIN_GAIN_PAGES };
	struct remap_result result;
	bool joined = false;
	int error = bench_agents_look(&r->agents, JOIN_LEAST_PAGES, &joined);

	if (error < 0 || !joined)
		return error;
	for (size_t i = 0; i < r->agents.count; i++)
		vms[i] = (struct remap_vm){ r->agents.peers[i], r->agents.tables[i] };
	error = remap_round(r->remap, vms, r->agents.count, &limits, NULL, &result);
	for (size_t i = 0; i < r->agents.count; i++)
		page_table_disturb(r->agents.tables[i]);
	return error;
}

static void *look_main(void *arg)
{
	struct rival *r = arg;
	const uint64_t interval_ns = (uint64_t)(IDLE_DELAY_SECONDS / 2 * (double)NSEC_PER_SEC);

	for (uint64_t next = clock_mono_ns(); !r->stop && r->error == 0; next += interval_ns) {
		uint64_t now;

		r->error = look_once(r);
		now = clock_mono_ns();
		if (!r->stop && now < next + interval_ns) /* in one go: waking up would be what it is seen to cost */
			pause_ns(next + interval_ns - now);
	}
	return NULL;
}

static int looking_start(struct rival *r)
{
	int error = remap_new(r->setup->fs, "bench", STORE_FRAMES, &r->remap);

	r->context = (struct engine_context){ .fs = r->setup->fs, .group = r->group, .dir = r->setup->dir };
	if (error == 0)
		error = bench_agents_attach(&r->context, &r->agents);
	if (error == 0)
		error = -pthread_create(&r->thread, NULL, look_main, r);
	r->started = error == 0;
	return error;
}

static void looking_end(struct rival *r)
{
	r->stop = true;
	if (r->started)
		pthread_join(r->thread, NULL);
	bench_agents_end(&r->agents);
	remap_free(r->remap);
}

/* ---- either ---- */

static int sample_take(struct rival *r, struct meter_sample *ret_sample)
{
	uint64_t held = r->remap ? remap_memory_pages(r->remap) : 0;
	int error = meter_take(&r->meter, ret_sample);

	ret_sample->saved_pages -= held < ret_sample->saved_pages ? held : ret_sample->saved_pages;
	return error < 0 ? error : r->error;
}

/* Waits until so much is saved. 0; -ETIME; -errno. */
static int saved_wait(struct rival *r, uint64_t pages, double seconds_max, double *ret_seconds)
{
	uint64_t start = clock_mono_ns();
	struct meter_sample s;
	int error;

	do {
		error = sample_take(r, &s);
		*ret_seconds = (double)(clock_mono_ns() - start) / 1e9;
		if (error < 0 || s.saved_pages >= pages)
			return error;
		pause_ns(POLL_NS);
	} while (*ret_seconds < seconds_max);
	return -ETIME;
}

static int cpu_measure(struct rival *r, double seconds, double *ret_percent)
{
	struct meter_sample before, after;
	int error = sample_take(r, &before);

	pause_ns((uint64_t)(seconds * (double)NSEC_PER_SEC));
	if (error == 0)
		error = sample_take(r, &after);
	if (error == 0)
		*ret_percent = (double)(after.cpu_ns - before.cpu_ns) / (double)(after.ns - before.ns) * 100;
	return error;
}

static int command_all(struct rival *r, size_t count, const char *command)
{
	int error = 0;

	for (size_t i = 0; i < count && error == 0; i++) {
		json_t *answer = NULL;

		error = replay_command(&r->group->proc[i], command, &answer);
		json_decref(answer);
	}
	return error;
}

/* Two full scans in the delay, as cheaply as the scanner can: each wake-up looks at what is due. */
static int ksm_slow_down(struct rival *r)
{
	struct ksm_settings settings = { .run = 1, .sleep_ms = KSM_SLEEP_MS };
	double rate = (double)replay_group_pages(r->group) * 2 / IDLE_DELAY_SECONDS, pages, scans;
	struct meter_sample before, after;
	int error;

	/* Measured at a rate that is too high, since how long the scanner works is not known before. */
	settings.pages_to_scan = (uint64_t)(rate * KSM_SLEEP_MS / 1000);
	error = ksm_settings_write(r->setup->fs, &settings);
	if (error == 0)
		error = sample_take(r, &before);
	pause_ns((uint64_t)(3 * IDLE_DELAY_SECONDS * (double)NSEC_PER_SEC));
	if (error == 0)
		error = sample_take(r, &after);
	if (error < 0)
		return error;
	scans = (double)(after.ksm_full_scans - before.ksm_full_scans);
	pages = (double)settings.pages_to_scan * 6 / (scans > 1 ? scans : 1); /* six were meant */
	settings.pages_to_scan = (uint64_t)pages;
	return ksm_settings_write(r->setup->fs, &settings);
}

static int rival_start(struct rival *r)
{
	const struct ksm_settings flat_out = { .run = 1, .pages_to_scan = KSM_FLAT_OUT_PAGES };

	return r->by_kernel ? ksm_settings_write(r->setup->fs, &flat_out) : looking_start(r);
}

static int notice_measure(struct rival *r, double *ret_seconds)
{
	struct meter_sample s;
	char command[64];
	int error;

	snprintf(command, sizeof(command), "inject %u", INJECT_PAGES);
	error = command_all(r, 2, command);
	if (error == 0)
		error = sample_take(r, &s);
	if (error == 0)
		error = saved_wait(r, s.saved_pages + (uint64_t)(INJECT_PAGES * NOTICE_SHARE), NOTICE_SECONDS_MAX, ret_seconds);
	if (error == -ETIME)
		*ret_seconds = NAN;
	return error == -ETIME ? 0 : error;
}

static int loads_measure(struct rival *r, double *ret_percent)
{
	int error = 0;

	for (unsigned i = 0; i < IDLE_LOADS && error == 0; i++) {
		char command[64];
		uint64_t pages = replay_group_pages(r->group) / r->group->count;

		snprintf(command, sizeof(command), "dirty %llu", (unsigned long long)(pages * loads[i] / 100));
		error = command_all(r, r->group->count, command);
		if (error == 0)
			error = cpu_measure(r, LOAD_SECONDS, &ret_percent[i]);
		if (error == 0)
			error = command_all(r, r->group->count, "dirty off");
		progress("  %u %%/s of memory dirtied: %.2f %% of a core", loads[i], ret_percent[i]);
	}
	return error;
}

static int rival_run(struct rival *r, struct idle_result *res)
{
	double seconds;
	int error = meter_start(&r->meter, r->setup->fs, r->group, r->by_kernel);

	if (error == 0)
		error = rival_start(r);
	if (error == 0)
		error = saved_wait(r, (uint64_t)((double)r->setup->savable_pages * SETTLED_SHARE), SETTLE_SECONDS, &seconds);
	if (error == -ETIME) /* as good as it gets */
		error = 0;
	if (error == 0 && r->by_kernel)
		error = ksm_slow_down(r);
	else if (error == 0) /* looks until all of it is protected */
		pause_ns((uint64_t)(3 * IDLE_DELAY_SECONDS * (double)NSEC_PER_SEC));
	if (error == 0)
		error = cpu_measure(r, IDLE_SECONDS, &res->cpu_percent);
	progress("  idle: %.3f %% of a core", res->cpu_percent);
	if (error == 0)
		error = notice_measure(r, &res->notice_seconds);
	progress("  %u MiB noticed after %.1f s", IDLE_INJECT_MIB, res->notice_seconds);
	if (error == 0)
		error = command_all(r, 2, "inject 0");
	return error == 0 ? loads_measure(r, res->dirty_cpu_percent) : error;
}

static void rival_measure(const struct idle_setup *s, bool by_kernel, struct idle_result *res)
{
	const struct replay_options options = { .thp = true, .mergeable = by_kernel };
	struct replay_group group;
	struct rival r = { .setup = s, .group = &group, .by_kernel = by_kernel };
	int error;

	*res = (struct idle_result){ .notice_seconds = NAN };
	progress("idle: %s", by_kernel ? "ksm" : "remap");
	error = replay_group_start(s->fs, s->replay_program, s->json_paths, s->count, &options, &group);
	if (error == 0) {
		error = rival_run(&r, res);
		if (by_kernel)
			ksm_run(s->fs, false);
		else
			looking_end(&r);
		if (error == 0)
			error = replay_group_check(&group, &res->wrong_pages);
		replay_group_end(&group);
	}
	res->ok = error == 0;
	if (error < 0)
		snprintf(res->why, sizeof(res->why), "%s", strerror(-error));
}

void idle_measure(const struct idle_setup *s, struct idle_report *ret_report)
{
	struct ksm_settings found;

	memset(ret_report, 0, sizeof(*ret_report));
	if (ksm_settings_read(s->fs, &found) == 0) {
		ksm_drain(s->fs);
		rival_measure(s, true, &ret_report->ksm);
		ksm_settings_write(s->fs, &found);
	} else {
		snprintf(ret_report->ksm.why, sizeof(ret_report->ksm.why), "KSM cannot be set here");
	}
	rival_measure(s, false, &ret_report->remap);
}
