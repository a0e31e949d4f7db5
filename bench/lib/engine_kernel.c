/* This project's kernel executor: struct ksmd driven as the daemon drives it, tick by tick, on a snapshot of
 * the replay processes, all in one domain. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench/lib/engine.h"
#include "core/clock.h"
#include "core/config.h"
#include "ksmd/ksmd.h"

#define TICK_NS (100 * NSEC_PER_MSEC)
#define CALM_NS NSEC_PER_SEC		/* resting this long after a merge: it has finished */
#define NOTHING_NS (20 * NSEC_PER_SEC) /* never started within this time: it will not */
#define KIB 1024u

struct kernel_engine {
	const struct fsio *fs;
	struct config config;
	struct ksmd *ksmd;
	struct host_snapshot host;
	struct vm_snapshot vms[CAPTURES_MAX];
	struct mem_region regions[CAPTURES_MAX];
	char uuids[CAPTURES_MAX][48];
	uint64_t next_tick_ns, rest_since_ns;
	bool merged;
	uint64_t metadata_bytes;
	char why[ENGINE_WHY_MAX];
};

/* As fast as it can be told to go, which is what the flat-out scanner is compared with. */
static void config_fast(struct config *c)
{
	c->scan_workers = 0;
	c->scan_cpu_percent = 100 * (uint64_t)sysconf(_SC_NPROCESSORS_ONLN);
	c->scan_bytes_per_s = 0;
	c->scan_interval_ms = 1000;
	c->scan_rest_permille = 1000;
	c->merge_engine = MERGE_ENGINE_KERNEL;
	c->merge_target_ms = 1000;
	c->merge_cpu_percent = 100;
}

static void describe_vms(struct kernel_engine *e, const struct replay_group *group)
{
	for (size_t i = 0; i < group->count; i++) {
		const struct replay_proc *p = &group->proc[i];

		e->regions[i] = (struct mem_region){ .hva = p->hva, .bytes = p->bytes, .backing = MEM_ANON };
		snprintf(e->uuids[i], sizeof(e->uuids[i]), "00000000-0000-4000-8000-%012zu", i);
		e->vms[i] = (struct vm_snapshot){
			.name = p->name,
			.uuid = e->uuids[i],
			.domain = "bench",
			.pid = p->pid,
			.pidfd = p->pidfd,
			.start_ticks = p->start_ticks,
			.regions = &e->regions[i],
			.region_count = 1,
			.merge_allowed = true,
		};
	}
	e->host.vms = e->vms;
	e->host.vm_count = group->count;
}

static void kernel_stop(void *userdata)
{
	struct kernel_engine *e = userdata;

	ksmd_free(e->ksmd);
	config_free(&e->config);
	free(e);
}

static int kernel_start(const struct engine_context *c, bool fast, void **ret_e, char *ret_why)
{
	struct kernel_engine *e = calloc(1, sizeof(*e));
	int r;

	if (!e)
		return -ENOMEM;
	e->fs = c->fs;
	config_init(&e->config);
	if (fast)
		config_fast(&e->config);
	snprintf(e->config.state_dir, sizeof(e->config.state_dir), "%s", c->dir);
	describe_vms(e, c->group);
	r = ksmd_new(c->fs, &e->config, &e->ksmd);
	if (r < 0) {
		snprintf(ret_why, ENGINE_WHY_MAX, "ksmd cannot start: %s", strerror(-r));
		kernel_stop(e);
		return r;
	}
	*ret_e = e;
	return 0;
}

static int kernel_fast_start(const struct engine_context *c, void **ret_e, char *ret_why)
{
	return kernel_start(c, true, ret_e, ret_why);
}

static int kernel_default_start(const struct engine_context *c, void **ret_e, char *ret_why)
{
	return kernel_start(c, false, ret_e, ret_why);
}

/* The part of the snapshot that is the daemon's. */
static int sense_host(struct kernel_engine *e)
{
	uint64_t total = 0, available = 0, swap_free = 0;
	char meminfo[8192];
	ssize_t n = fsio_read(e->fs, meminfo, sizeof(meminfo), "proc/meminfo");

	if (n < 0)
		return (int)n;
	fsio_field_u64(meminfo, "MemTotal", &total);
	fsio_field_u64(meminfo, "MemAvailable", &available);
	fsio_field_u64(meminfo, "SwapFree", &swap_free);
	e->host.taken_ns = clock_mono_ns();
	e->host.mem_total_bytes = total * KIB;
	e->host.mem_available_bytes = available * KIB;
	e->host.swap_free_bytes = swap_free * KIB;
	return 0;
}

static int tick(struct kernel_engine *e)
{
	int r = sense_host(e);

	if (r == 0)
		r = ksmd_ops.sense(e->ksmd, &e->host);
	if (r >= 0)
		r = ksmd_ops.decide(e->ksmd, &e->host);
	if (r >= 0)
		r = ksmd_ops.apply(e->ksmd, false);
	return r < 0 ? r : 0;
}

static int kernel_step(void *userdata, const struct meter_sample *s)
{
	struct kernel_engine *e = userdata;
	struct ksmd_status status;
	int r;

	if (s->ns < e->next_tick_ns)
		return 0;
	e->next_tick_ns = s->ns - s->ns % TICK_NS + TICK_NS;
	r = tick(e);
	if (r < 0)
		return r;
	ksmd_status(e->ksmd, &status);
	if (status.last && status.last->metadata_bytes > e->metadata_bytes)
		e->metadata_bytes = status.last->metadata_bytes;
	snprintf(e->why, sizeof(e->why), "%s", status.why ? status.why : "");
	if (status.state == KSM_MERGE) {
		e->merged = true;
		e->rest_since_ns = 0;
	} else if (e->rest_since_ns == 0) {
		e->rest_since_ns = s->ns + 1;
	}
	if (e->rest_since_ns == 0)
		return 0;
	return s->ns - e->rest_since_ns + 1 >= (e->merged ? CALM_NS : NOTHING_NS);
}

static uint64_t kernel_metadata_bytes(const void *userdata)
{
	return ((const struct kernel_engine *)userdata)->metadata_bytes;
}

static const char *kernel_why(const void *userdata)
{
	return ((const struct kernel_engine *)userdata)->why;
}

const struct engine engine_kernel = {
	.name = "kernel",
	.help = "memvirtd's kernel executor, told to merge within a second at any CPU share",
	.uses_ksm = true,
	.cap_seconds = 120,
	.start = kernel_fast_start,
	.step = kernel_step,
	.metadata_bytes = kernel_metadata_bytes,
	.why = kernel_why,
	.stop = kernel_stop,
};

const struct engine engine_kernel_default = {
	.name = "kernel-default",
	.help = "the same with the configuration as shipped (not run unless named)",
	.uses_ksm = true,
	.cap_seconds = 240,
	.start = kernel_default_start,
	.step = kernel_step,
	.metadata_bytes = kernel_metadata_bytes,
	.why = kernel_why,
	.stop = kernel_stop,
};
