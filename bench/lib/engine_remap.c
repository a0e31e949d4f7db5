/* The remap engine: agents in the replay processes, a store and the planner here. One pass, one round, end. */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/lib/agents.h"
#include "ksmd/remap.h"

#define STORE_FRAMES (1u << 20) /* 4 GiB of room */

struct remap_engine {
	struct remap *remap;
	struct bench_agents agents;
	pthread_t thread;
	bool started;
	_Atomic bool done;
	int error;
	struct remap_result result;
	uint64_t metadata_bytes;
	char why[ENGINE_WHY_MAX];
};

static void remap_stop(void *userdata)
{
	struct remap_engine *e = userdata;

	if (e->started)
		pthread_join(e->thread, NULL);
	bench_agents_end(&e->agents);
	remap_free(e->remap);
	free(e);
}

static void *engine_main(void *arg)
{
	struct remap_engine *e = arg;
	struct remap_vm vms[CAPTURES_MAX];

	e->error = bench_agents_scan(&e->agents, &e->metadata_bytes);
	for (size_t i = 0; i < e->agents.count; i++)
		vms[i] = (struct remap_vm){ e->agents.peers[i], e->agents.tables[i] };
	if (e->error == 0)
		e->error = remap_round(e->remap, vms, e->agents.count, &(struct remap_limits){ 0 }, NULL, &e->result);
	snprintf(e->why, sizeof(e->why),
		 "%llu windows, %llu runs, %llu + %llu zero pages, %llu frames; unequal %llu busy %llu skipped %llu "
		 "failed %llu; plan %.3f of %.3f s; longest stall %llu us",
		 (unsigned long long)e->result.windows, (unsigned long long)e->result.runs,
		 (unsigned long long)e->result.merged_pages, (unsigned long long)e->result.zero_pages,
		 (unsigned long long)e->result.filled_frames, (unsigned long long)e->result.unequal_runs,
		 (unsigned long long)e->result.busy_runs, (unsigned long long)e->result.skipped_runs,
		 (unsigned long long)e->result.failed_runs, e->result.plan_seconds, e->result.seconds,
		 (unsigned long long)e->result.stall_us_max);
	e->metadata_bytes += e->result.metadata_bytes;
	e->done = true;
	return NULL;
}

static int remap_start(const struct engine_context *c, void **ret_e, char *ret_why)
{
	struct remap_engine *e = calloc(1, sizeof(*e));
	int r;

	if (!e)
		return -ENOMEM;
	r = remap_new(c->fs, "bench", STORE_FRAMES, &e->remap);
	if (r == 0)
		r = bench_agents_attach(c, &e->agents);
	if (r == 0)
		r = -pthread_create(&e->thread, NULL, engine_main, e);
	if (r < 0) {
		snprintf(ret_why, ENGINE_WHY_MAX, "no agent: %s", strerror(-r));
		remap_stop(e);
		return r;
	}
	e->started = true;
	*ret_e = e;
	return 0;
}

static int remap_step(void *userdata, const struct meter_sample *s)
{
	const struct remap_engine *e = userdata;

	(void)s;
	if (!e->done)
		return 0;
	return e->error < 0 ? e->error : 1;
}

static uint64_t remap_metadata_bytes(const void *userdata)
{
	return ((const struct remap_engine *)userdata)->metadata_bytes;
}

static uint64_t remap_held_pages(const void *userdata)
{
	return remap_memory_pages(((const struct remap_engine *)userdata)->remap);
}

static void remap_figures(const void *userdata, struct engine_figures *ret_figures)
{
	const struct remap_result *result = &((const struct remap_engine *)userdata)->result;

	*ret_figures = (struct engine_figures){ .runs = result->runs,
						.merged_pages = result->merged_pages + result->zero_pages,
						.longest_stall_us = result->stall_us_max };
}

static const char *remap_why(const void *userdata)
{
	return ((const struct remap_engine *)userdata)->why;
}

const struct engine engine_remap = {
	.name = "remap",
	.help = "memvirtd's own merging, by agents in the processes; no kernel scanner",
	.uses_ksm = false,
	.cap_seconds = 120,
	.start = remap_start,
	.step = remap_step,
	.metadata_bytes = remap_metadata_bytes,
	.held_pages = remap_held_pages,
	.figures = remap_figures,
	.why = remap_why,
	.stop = remap_stop,
};
