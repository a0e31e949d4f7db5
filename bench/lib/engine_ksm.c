/* The engines that need no daemon: nothing at all, and the kernel's scanner with fixed settings. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/lib/engine.h"
#include "bench/lib/ksm_guard.h"

/* Flat out: no sleep, and batches so large that their ends do not matter. */
#define FLAT_OUT_PAGES 100000u
/* The most that ksmtuned.conf ever asks for: KSM_NPAGES_MAX and KSM_SLEEP_MSEC as shipped. */
#define KSMTUNED_PAGES 1250u
#define KSMTUNED_SLEEP_MS 10u
/* It has converged when it has reached the goal and two full scans together brought less than a thousandth.
 * Short of the goal it gets ten: the scanner may need that many for huge pages full of zeroes, and with
 * smart_scan it passes over pages that it failed to merge before. */
#define STILL_SCANS 2u
#define STILL_SCANS_SHORT 10u
#define STILL_SHARE 1000u
#define GOAL_PERCENT 99u

const struct engine *const *engine_list(void)
{
	static const struct engine *const list[] = { &engine_null,   &engine_ksm,	     &engine_ksmtuned,
						     &engine_kernel, &engine_kernel_default,
						     &engine_hinted, &engine_remap,   NULL };

	return list;
}

const struct engine *engine_find(const char *name)
{
	for (const struct engine *const *e = engine_list(); *e; e++) {
		if (strcmp((*e)->name, name) == 0)
			return *e;
	}
	return NULL;
}

/* ---- null ---- */

struct null_engine {
	double seconds;
};

static int null_start(const struct engine_context *c, void **ret_e, char *ret_why)
{
	struct null_engine *e = calloc(1, sizeof(*e));

	(void)ret_why;
	if (!e)
		return -ENOMEM;
	e->seconds = c->idle_seconds;
	*ret_e = e;
	return 0;
}

static int null_step(void *userdata, const struct meter_sample *s)
{
	const struct null_engine *e = userdata;

	return (double)s->ns / 1e9 >= e->seconds;
}

const struct engine engine_null = {
	.name = "null",
	.help = "nothing, for as long as the others took: what the victim sees without merging",
	.cap_seconds = 60,
	.start = null_start,
	.step = null_step,
	.stop = free,
};

/* ---- the kernel's scanner ---- */

struct ksm_engine {
	const struct fsio *fs;
	uint64_t savable_pages;
	uint64_t scans_seen, first_scans;
	bool started;
	uint64_t saved_at_scan[STILL_SCANS_SHORT + 1]; /* the newest first */
};

static int ksm_start(const struct engine_context *c, const struct ksm_settings *settings, void **ret_e,
		     char *ret_why)
{
	struct ksm_engine *e = calloc(1, sizeof(*e));
	int r;

	if (!e)
		return -ENOMEM;
	e->fs = c->fs;
	e->savable_pages = c->savable_pages;
	r = ksm_settings_write(c->fs, settings);
	if (r < 0) {
		snprintf(ret_why, ENGINE_WHY_MAX, "KSM cannot be set: %s", strerror(-r));
		free(e);
		return r;
	}
	*ret_e = e;
	return 0;
}

static int flat_out_start(const struct engine_context *c, void **ret_e, char *ret_why)
{
	return ksm_start(c, &(struct ksm_settings){ .run = 1, .pages_to_scan = FLAT_OUT_PAGES }, ret_e, ret_why);
}

static int ksmtuned_start(const struct engine_context *c, void **ret_e, char *ret_why)
{
	return ksm_start(c,
			 &(struct ksm_settings){
				 .run = 1, .pages_to_scan = KSMTUNED_PAGES, .sleep_ms = KSMTUNED_SLEEP_MS },
			 ret_e, ret_why);
}

static int ksm_step(void *userdata, const struct meter_sample *s)
{
	struct ksm_engine *e = userdata;
	uint64_t *saved = e->saved_at_scan;
	unsigned still;

	if (!e->started) {
		e->started = true;
		e->first_scans = e->scans_seen = s->ksm_full_scans;
	}
	if (s->ksm_full_scans == e->scans_seen)
		return 0;
	e->scans_seen = s->ksm_full_scans;
	memmove(saved + 1, saved, STILL_SCANS_SHORT * sizeof(*saved));
	saved[0] = s->saved_pages;
	still = saved[0] >= e->savable_pages / 100 * GOAL_PERCENT ? STILL_SCANS : STILL_SCANS_SHORT;
	/* The first scan only notes checksums; and one may have been under way when this started. */
	return e->scans_seen > e->first_scans + still + 1 && saved[0] < saved[still] + e->savable_pages / STILL_SHARE + 1;
}

static void ksm_stop(void *userdata)
{
	struct ksm_engine *e = userdata;

	ksm_run(e->fs, false);
	free(e);
}

const struct engine engine_ksm = {
	.name = "ksm",
	.help = "the kernel's scanner flat out (sleep 0) until full scans bring nothing more",
	.uses_ksm = true,
	.cap_seconds = 120,
	.start = flat_out_start,
	.step = ksm_step,
	.stop = ksm_stop,
};

const struct engine engine_ksmtuned = {
	.name = "ksmtuned",
	.help = "the kernel's scanner at ksmtuned's highest setting (1250 pages, sleep 10 ms)",
	.uses_ksm = true,
	.cap_seconds = 180,
	.start = ksmtuned_start,
	.step = ksm_step,
	.stop = ksm_stop,
};
