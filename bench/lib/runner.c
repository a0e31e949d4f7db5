#include "bench/lib/runner.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "bench/lib/ksm_guard.h"
#include "bench/lib/progress.h"
#include "core/clock.h"
#include "core/snapshot.h"

#define SAMPLE_NS (20 * NSEC_PER_MSEC)
#define PROGRESS_NS (2 * NSEC_PER_SEC)
#define GOAL 0.99
/* Counters and counted frames should agree to this. */
#define COUNTERS_SHARE 0.01
/* Other processes' memory that KSM may look at without a word: nothing beside the guests. */
#define FOREIGN_PAGES_MAX 4096u
#define MIB_PER_PAGE ((double)PAGE_BYTES / (1u << 20))

static int fail(struct run_result *r, int error, const char *what)
{
	if (r->why[0] == '\0')
		snprintf(r->why, sizeof(r->why), "%s: %s", what, strerror(-error));
	return error;
}

static int curve_add(struct run_result *r, double seconds, double mib)
{
	if (r->curve_count == r->curve_cap) {
		size_t cap = r->curve_cap ? r->curve_cap * 2 : 1024;
		struct svg_point *grown = reallocarray(r->curve, cap, sizeof(*grown));

		if (!grown)
			return -ENOMEM;
		r->curve = grown;
		r->curve_cap = cap;
	}
	r->curve[r->curve_count++] = (struct svg_point){ seconds, mib };
	return 0;
}

static int note_sample(const struct runner *runner, const struct meter_sample *s, struct run_result *r)
{
	r->seconds = (double)s->ns / 1e9;
	r->cpu_seconds_total = (double)s->cpu_ns / 1e9;
	r->saved_counters_mib = (double)s->saved_pages * MIB_PER_PAGE;
	if (isnan(r->seconds_to_99)) {
		r->cpu_seconds = r->cpu_seconds_total;
		if (runner->oracle->savable > 0 &&
		    (double)s->saved_pages >= GOAL * (double)runner->oracle->savable)
			r->seconds_to_99 = r->seconds;
	}
	return curve_add(r, r->seconds, r->saved_counters_mib);
}

static void find_own_goal(struct run_result *r)
{
	double goal = GOAL * r->saved_counters_mib;

	for (size_t i = 0; i < r->curve_count && r->saved_counters_mib > 1; i++) {
		if (r->curve[i].y >= goal) {
			r->seconds_to_own_99 = r->curve[i].x;
			return;
		}
	}
}

static void sleep_to(uint64_t ns)
{
	struct timespec until = { .tv_sec = (time_t)(ns / NSEC_PER_SEC), .tv_nsec = (long)(ns % NSEC_PER_SEC) };

	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR)
		;
}

/* Samples and steps until the engine has finished or its time is over. */
static int run_loop(const struct runner *runner, const struct engine *engine, void *e, struct meter *meter,
		    struct run_result *r)
{
	double cap = runner->cap_seconds > 0 && runner->cap_seconds < engine->cap_seconds ? runner->cap_seconds :
											    engine->cap_seconds;
	uint64_t next_ns = clock_mono_ns(), told_ns = next_ns;
	struct meter_sample s = { 0 };
	uint64_t held;
	int result = 0;

	while (result == 0) {
		result = meter_take(meter, &s);
		held = engine->held_pages ? engine->held_pages(e) : 0;
		s.saved_pages = s.saved_pages > held ? s.saved_pages - held : 0;
		if (result == 0)
			result = note_sample(runner, &s, r);
		if (result < 0)
			return fail(r, result, "measuring");
		result = engine->step(e, &s);
		if (result < 0)
			return fail(r, result, "engine");
		if (result == 0 && r->seconds >= cap) {
			r->capped = true;
			break;
		}
		if (clock_mono_ns() - told_ns >= PROGRESS_NS) {
			told_ns = clock_mono_ns();
			progress("  %s: %.0f s, %.0f MiB saved", engine->name, r->seconds, r->saved_counters_mib);
		}
		next_ns = clock_mono_ns() > next_ns + SAMPLE_NS ? clock_mono_ns() : next_ns + SAMPLE_NS;
		sleep_to(next_ns);
	}
	return 0;
}

static void take_figures(const struct engine *engine, const void *e, const struct meter *meter, struct run_result *r)
{
	double cpu_seconds = (double)meter_agents_cpu_ns(meter) / 1e9;

	engine->figures(e, &r->figures);
	r->has_figures = true;
	r->merge_pages_per_s = cpu_seconds > 0 ? (double)r->figures.merged_pages / cpu_seconds : 0;
}

static int run_engine(const struct runner *runner, const struct engine *engine, struct replay_group *group,
		      struct run_result *r)
{
	struct engine_context context = { runner->fs, group, runner->dir, runner->oracle->savable,
					  runner->idle_seconds };
	struct meter meter;
	void *e = NULL;
	int result = replay_group_victims_start(group);

	if (result < 0)
		return fail(r, result, "victims");
	result = meter_start(&meter, runner->fs, group, engine->uses_ksm);
	if (result < 0)
		return fail(r, result, "measuring");
	result = engine->start(&context, &e, r->why);
	if (result < 0)
		return fail(r, result, "engine");
	result = run_loop(runner, engine, e, &meter, r);
	if (result == 0 && engine->why)
		snprintf(r->why, sizeof(r->why), "%s", engine->why(e));
	if (engine->figures)
		take_figures(engine, e, &meter, r);
	if (engine->metadata_bytes)
		r->metadata_bytes = engine->metadata_bytes(e);
	if (engine->uses_ksm)
		r->metadata_bytes += meter_ksm_metadata_bytes(&meter, &r->foreign_pages);
	engine->stop(e);
	find_own_goal(r);
	return result;
}

/* KSM counts a page as merged until it looks at it again, whatever has become of it meanwhile. Frames do
 * not lie, and what did not last is no result. */
static void compare_frames(const struct runner *runner, const struct replay_group *group, uint64_t frames_before,
			   struct run_result *r)
{
	uint64_t frames_after = 0;

	r->saved_mib = r->saved_counters_mib;
	if (frames_before > 0 && meter_frames(runner->fs, group, &frames_after) == 0)
		r->saved_mib = ((double)frames_before - (double)frames_after) * MIB_PER_PAGE;
	/* Frames of a store that no guest has touched since they were merged are in no page table. */
	if (r->saved_mib > r->saved_counters_mib)
		r->saved_mib = r->saved_counters_mib;
	r->undone = r->saved_mib < r->saved_counters_mib - COUNTERS_SHARE * fmax(r->saved_counters_mib, 100);
	if (r->undone) {
		progress("  counters say %.1f MiB, frames say %.1f MiB: merged pages came apart again",
			 r->saved_counters_mib, r->saved_mib);
		r->seconds_to_99 = NAN;
		r->cpu_seconds = r->cpu_seconds_total;
	}
}

/* What is left after the engine: frames, the victims' word, every byte. */
static int inspect(const struct runner *runner, struct replay_group *group, uint64_t frames_before,
		   struct run_result *r)
{
	int result = replay_group_victims_stop(group, &r->victim, &r->lost_writes);
	uint64_t huge_pages;

	if (result < 0)
		return fail(r, result, "victims");
	compare_frames(runner, group, frames_before, r);
	if (r->foreign_pages > FOREIGN_PAGES_MAX)
		progress("  KSM has looked at %.0f MiB of other processes too: times and CPU are too high",
			 (double)r->foreign_pages * MIB_PER_PAGE);
	result = replay_group_check(group, &r->wrong_pages);
	if (result < 0)
		return fail(r, result, "checksums");
	/* The check has read every page, so what can be mapped huge is. */
	if (meter_huge_merged(runner->fs, group, &huge_pages) == 0)
		r->huge_merged_mib = (double)huge_pages * MIB_PER_PAGE;
	return 0;
}

/* Scanner stopped, what it merged before forgotten: each engine starts from there. */
static bool prepare_ksm(const struct runner *runner, const struct engine *engine, struct ksm_settings *found,
			struct run_result *r)
{
	int result = ksm_settings_read(runner->fs, found);

	if (result == 0 && runner->guarded) {
		ksm_drain(runner->fs);
		found->run = 0;
		result = ksm_settings_write(runner->fs, found);
	}
	if (result == 0 || !engine->uses_ksm)
		return result == 0 && runner->guarded;
	snprintf(r->why, sizeof(r->why), "%s",
		 result == -EOPNOTSUPP ? "this kernel has no KSM" :
		 result == -EACCES     ? "needs root" :
					 strerror(-result));
	return false;
}

void runner_measure(const struct runner *runner, const struct engine *engine, struct run_result *ret_result)
{
	struct run_result *r = ret_result;
	struct ksm_settings found = { 0 };
	struct replay_group group;
	uint64_t frames = 0;
	struct replay_options options = runner->options;
	bool prepared;
	int result;

	*r = (struct run_result){ .seconds_to_99 = NAN, .seconds_to_own_99 = NAN, .huge_merged_mib = NAN };
	prepared = prepare_ksm(runner, engine, &found, r);
	if (!prepared && engine->uses_ksm)
		return;
	options.mergeable = prepared && !engine->marks;
	progress("%s: loading %zu guests", engine->name, runner->capture_count);
	result = replay_group_start(runner->fs, runner->replay_program, runner->json_paths, runner->capture_count,
				    &options, &group);
	if (result < 0) {
		fail(r, result, "replay");
		return;
	}
	if (meter_frames(runner->fs, &group, &frames) < 0)
		frames = 0;
	progress("%s: running", engine->name);
	result = run_engine(runner, engine, &group, r);
	if (result == 0)
		result = inspect(runner, &group, frames, r);
	r->ok = result == 0;
	progress("%s: %.2f s, %.2f s of CPU, %.0f MiB saved, %llu wrong pages", engine->name, r->seconds,
		 r->cpu_seconds_total, r->saved_mib, (unsigned long long)(r->wrong_pages + r->lost_writes));
	replay_group_end(&group);
	if (prepared)
		ksm_settings_write(runner->fs, &found);
}

void run_result_free(struct run_result *r)
{
	free(r->curve);
	r->curve = NULL;
	r->curve_count = r->curve_cap = 0;
}
