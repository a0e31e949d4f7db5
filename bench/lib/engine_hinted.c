/* The hinted engine: one pass, huge pages full of zeroes split, agents mark what is worth scanning, and the kernel's
 * scanner goes over just that. */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/lib/agents.h"
#include "bench/lib/ksm_guard.h"
#include "core/clock.h"
#include "ksmd/hints.h"
#include "ksmd/zero_split.h"

#define MAPPINGS 30000u /* under half of the kernel's default limit for a process */
#define HINTED_TIMEOUT_MS 60000
#define FLAT_OUT_PAGES 100000u
/* As ksmd/policy.c: finished when all but 1/200 of what is expected is in, or a full scan brought 1/100 of it or
 * less. The first scan only notes checksums. */
#define LEFT_SHARE 200u
#define STILL_SHARE 100u
#define SCANS_MIN 3u

struct hinted_engine {
	const struct engine_context *c;
	struct bench_agents agents;
	pthread_t thread;
	bool started;
	_Atomic bool scanning; /* the thread is through */
	int error;
	double scan_s, split_s, plan_s, mark_s;
	struct hints_totals totals;
	uint64_t metadata_bytes;
	bool watching;
	uint64_t first_scans, scans_seen, saved_at_scan;
	char why[ENGINE_WHY_MAX];
};

static double seconds_since(uint64_t *ns)
{
	uint64_t start = *ns;

	*ns = clock_mono_ns();
	return (double)(*ns - start) / (double)NSEC_PER_SEC;
}

static int plan(struct hinted_engine *e, struct hints **ret_hints)
{
	struct hints_vm vms[CAPTURES_MAX];
	int r;

	for (size_t i = 0; i < e->agents.count; i++)
		vms[i] = (struct hints_vm){ e->agents.tables[i], MAPPINGS };
	r = hints_plan(vms, e->agents.count, NULL, ret_hints);
	if (r == 0) {
		hints_count(*ret_hints, &e->totals);
		e->metadata_bytes += hints_bytes(*ret_hints);
	}
	return r;
}

/* Splitting is done before marking: a stretch that begins inside a huge page takes its huge mapping apart, but not
 * the page, and its zero pages would stay. */
static int mark_all(struct hinted_engine *e)
{
	uint64_t ns = clock_mono_ns();
	struct zero_split *split = NULL;
	struct hints *hints = NULL;
	int error = 0, r = bench_agents_scan(&e->agents, &e->metadata_bytes);

	e->scan_s = seconds_since(&ns);
	if (r == 0)
		r = zero_split_start(e->agents.tables, e->agents.count, &split);
	if (r == 0)
		r = plan(e, &hints);
	e->plan_s = seconds_since(&ns);
	if (split)
		zero_split_wait(split);
	zero_split_free(split, NULL, NULL);
	e->split_s = seconds_since(&ns);
	for (size_t i = 0; i < e->agents.count && r == 0; i++) {
		size_t count;
		const struct agent_hint *list = hints_of(hints, i, &count);

		r = agent_peer_hint_all(e->agents.peers[i], list, count, HINTED_TIMEOUT_MS, &error);
		if (r == 0)
			r = error;
	}
	e->mark_s = seconds_since(&ns);
	hints_free(hints);
	return r;
}

static void *engine_main(void *arg)
{
	struct hinted_engine *e = arg;

	e->error = mark_all(e);
	if (e->error == 0)
		e->error = ksm_settings_write(
			e->c->fs, &(struct ksm_settings){ .run = 1, .pages_to_scan = FLAT_OUT_PAGES });
	e->scanning = true;
	return NULL;
}

static void hinted_stop(void *userdata)
{
	struct hinted_engine *e = userdata;

	if (e->started)
		pthread_join(e->thread, NULL);
	ksm_run(e->c->fs, false);
	bench_agents_end(&e->agents);
	free(e);
}

static int hinted_start(const struct engine_context *c, void **ret_e, char *ret_why)
{
	struct hinted_engine *e = calloc(1, sizeof(*e));
	int r;

	if (!e)
		return -ENOMEM;
	e->c = c;
	r = bench_agents_attach(c, &e->agents);
	if (r == 0)
		r = -pthread_create(&e->thread, NULL, engine_main, e);
	if (r < 0) {
		snprintf(ret_why, ENGINE_WHY_MAX, "no agent: %s", strerror(-r));
		hinted_stop(e);
		return r;
	}
	e->started = true;
	*ret_e = e;
	return 0;
}

static int hinted_step(void *userdata, const struct meter_sample *s)
{
	struct hinted_engine *e = userdata;
	uint64_t gain;

	if (!e->scanning || e->error < 0)
		return e->scanning ? e->error : 0;
	if (!e->watching) {
		e->watching = true;
		e->first_scans = e->scans_seen = s->ksm_full_scans;
	}
	snprintf(e->why, sizeof(e->why),
		 "%llu stretches, %llu pages, %llu to merge (%llu left out), %llu expected, %llu saved in %llu scans; "
		 "scan %.3f plan %.3f split %.3f mark %.3f s",
		 (unsigned long long)e->totals.stretches, (unsigned long long)e->totals.pages,
		 (unsigned long long)e->totals.copies, (unsigned long long)e->totals.left,
		 (unsigned long long)e->totals.saved, (unsigned long long)s->saved_pages,
		 (unsigned long long)(s->ksm_full_scans - e->first_scans), e->scan_s, e->plan_s, e->split_s, e->mark_s);
	if (s->saved_pages + e->totals.saved / LEFT_SHARE >= e->totals.saved)
		return 1;
	if (s->ksm_full_scans == e->scans_seen)
		return 0;
	e->scans_seen = s->ksm_full_scans;
	gain = s->saved_pages > e->saved_at_scan ? s->saved_pages - e->saved_at_scan : 0;
	e->saved_at_scan = s->saved_pages;
	return e->scans_seen >= e->first_scans + SCANS_MIN && gain <= e->totals.saved / STILL_SHARE;
}

static uint64_t hinted_metadata_bytes(const void *userdata)
{
	return ((const struct hinted_engine *)userdata)->metadata_bytes;
}

static const char *hinted_why(const void *userdata)
{
	return ((const struct hinted_engine *)userdata)->why;
}

const struct engine engine_hinted = {
	.name = "hinted",
	.help = "agents mark what one pass found worth merging; the kernel's scanner goes over just that",
	.uses_ksm = true,
	.marks = true,
	.cap_seconds = 120,
	.start = hinted_start,
	.step = hinted_step,
	.metadata_bytes = hinted_metadata_bytes,
	.why = hinted_why,
	.stop = hinted_stop,
};
