/* The daemon's own policy, from balloon/, with the daemon's default configuration: gives it pictures of the simulated
 * host, and takes targets from its plans. */
#include <errno.h>
#include <stdlib.h>

#include "balloon/policy.h"
#include "bench/lib/sim_policy.h"
#include "core/clock.h"
#include "core/config.h"

#define MIB 1048576.0

struct memvirt {
	struct balloon_policy *policy;
	struct vm_snapshot *vms;
	double debt_share; /* of what is merged */
};

static int start(size_t vms, bool merges, void **ret_state)
{
	struct memvirt *m = calloc(1, sizeof(*m));
	struct config c;
	int r = -ENOMEM;

	if (!m)
		return r;
	config_init(&c);
	m->debt_share = merges ? (double)c.merge_debt_percent / 100 : 0;
	m->vms = calloc(vms, sizeof(*m->vms));
	if (m->vms) {
		struct balloon_limits limits = {
			.min_free_bytes = c.host_min_free_bytes,
			.idle_tax_percent = (unsigned int)c.balloon_idle_tax_percent,
			.max_percent = (unsigned int)c.balloon_max_percent,
			.step_percent = (unsigned int)c.balloon_step_percent,
			.keep_percent = (unsigned int)c.balloon_keep_percent,
			.hold_ns = c.balloon_hold_ms * NSEC_PER_MSEC,
			.stall_ns = c.balloon_stall_ms * NSEC_PER_MSEC,
		};

		r = balloon_policy_new(&limits, &m->policy);
	}
	config_free(&c);
	if (r < 0) {
		sim_memvirt_stop(m);
		return r;
	}
	*ret_state = m;
	return 0;
}

int sim_memvirt_start(size_t vms, void **ret_state)
{
	return start(vms, true, ret_state);
}

int sim_memvirt_start_unmerged(size_t vms, void **ret_state)
{
	return start(vms, false, ret_state);
}

void sim_memvirt_stop(void *state)
{
	struct memvirt *m = state;

	if (!m)
		return;
	balloon_policy_free(m->policy);
	free(m->vms);
	free(m);
}

static uint64_t bytes(double mib)
{
	return mib > 0 ? (uint64_t)(mib * MIB) : 0;
}

static void snapshot_vm(const struct sim_vm_view *v, uint64_t then_ns, struct vm_snapshot *vm)
{
	*vm = (struct vm_snapshot){
		.name = "simulated", .uuid = "", .domain = "=", .pid = (pid_t)v->number + 1,
		.pidfd = -1, .start_ticks = 1, .merge_allowed = true, .mem_merge = true, .running = true,
		.balloon_allowed = true, .reservation_bytes = bytes(v->floor), .shares = 1000,
		.rss_anon_bytes = bytes(v->rss), .ram_resident_bytes = bytes(v->resident), .ram_resident_ns = then_ns,
		.balloon = {
			.driver = "qmp", .why = "", .device = BALLOON_DEVICE_PRESENT, .max_bytes = bytes(v->size),
			.actual_bytes = bytes(v->actual), .told_ns = then_ns, .resets = v->restarts,
			.stats = GUEST_STATS_GOOD, .stats_ns = then_ns, .total_bytes = bytes(v->actual),
			.free_bytes = bytes(v->free), .available_bytes = bytes(v->available),
			.cache_bytes = bytes(v->cache), .swap_in_bytes = bytes(v->swap_in),
			.swap_out_bytes = bytes(v->swap_out), .major_faults = v->major_faults,
			.oom_kills = v->ooms,
		},
	};
}

int sim_memvirt_decide(void *state, const struct sim_view *v, double *targets)
{
	struct memvirt *m = state;
	uint64_t now_ns = (uint64_t)(v->tick + 1) * NSEC_PER_SEC;
	struct host_snapshot s = {
		.taken_ns = now_ns, .mem_total_bytes = bytes(v->total), .mem_available_bytes = bytes(v->available),
		.swap_total_bytes = bytes(v->swap_total), .swap_free_bytes = bytes(v->swap_free),
		.pressure = { true, (uint64_t)(v->stall_some_s * 1e6), (uint64_t)(v->stall_full_s * 1e6) },
		.cow_debt_bytes = bytes(v->merged * m->debt_share), .vms = m->vms, .vm_count = v->vm_count,
	};
	struct balloon_plan plan;
	int r;

	for (size_t i = 0; i < v->vm_count; i++)
		snapshot_vm(&v->vms[i], now_ns - NSEC_PER_SEC, &m->vms[i]);
	r = balloon_policy_decide(m->policy, &s, &plan);
	for (size_t i = 0; r == 0 && i < v->vm_count; i++)
		targets[i] = (double)plan.vms[i].target_bytes / MIB;
	return r;
}
