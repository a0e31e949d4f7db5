/* The daemon's own policy, from balloon/, with the daemon's default configuration: gives it pictures of the simulated
 * host, and takes targets from its plans. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>

#include "balloon/policy.h"
#include "bench/lib/sim_policy.h"
#include "core/clock.h"
#include "core/config.h"

#define MIB 1048576.0

/* As balloon/sense.c does: a VM's resident memory is counted in turn with others', a few in a tick, and a guest with an
 * empty balloon is asked only now and then while the host has room. */
#define RESIDENT_PER_TICK 4
#define CALM_TICKS 10

/* What is known of a VM, and since which tick; 0: nothing. */
struct known {
	struct sim_vm_view guest;
	int guest_tick;
	double resident;
	int resident_tick;
};

struct memvirt {
	struct balloon_policy *policy;
	struct vm_snapshot *vms;
	struct known *known;
	size_t resident_next; /* in the snapshot */
	enum host_state state;
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
	m->known = calloc(vms, sizeof(*m->known));
	if (m->vms && m->known) {
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
	free(m->known);
	free(m);
}

static uint64_t bytes(double mib)
{
	return mib > 0 ? (uint64_t)(mib * MIB) : 0;
}

/* A picture is made a second after what it shows. */
static uint64_t tick_ns(int tick)
{
	return (uint64_t)tick * NSEC_PER_SEC;
}

/* What the guest told last, beside what its VMM tells now. */
static void snapshot_vm(const struct sim_vm_view *v, const struct known *k, int tick, struct vm_snapshot *vm)
{
	const struct sim_vm_view *g = &k->guest;

	*vm = (struct vm_snapshot){
		.name = "simulated", .uuid = "", .domain = "=", .pid = (pid_t)v->number + 1,
		.pidfd = -1, .start_ticks = 1, .merge_allowed = true, .mem_merge = true, .running = true,
		.balloon_allowed = true, .reservation_bytes = bytes(v->floor), .shares = (uint64_t)v->shares,
		.rss_anon_bytes = bytes(v->rss), .ram_resident_bytes = bytes(k->resident),
		.ram_resident_ns = tick_ns(k->resident_tick),
		.balloon = {
			.driver = "qmp", .why = "", .device = BALLOON_DEVICE_PRESENT, .max_bytes = bytes(v->size),
			.actual_bytes = bytes(v->actual), .told_ns = tick_ns(tick), .resets = v->restarts,
			.stats = GUEST_STATS_GOOD, .stats_ns = tick_ns(k->guest_tick),
			.total_bytes = bytes(g->actual), .free_bytes = bytes(g->free),
			.available_bytes = bytes(g->available), .cache_bytes = bytes(g->cache),
			.swap_in_bytes = bytes(g->swap_in), .swap_out_bytes = bytes(g->swap_out),
			.major_faults = g->major_faults, .oom_kills = g->ooms,
		},
	};
}

static void look(struct memvirt *m, const struct sim_view *v)
{
	bool pressed = m->state >= HOST_SOFT;
	size_t counted = 0;

	for (size_t i = 0; i < v->vm_count; i++) {
		const struct sim_vm_view *vm = &v->vms[i];
		struct known *k = &m->known[vm->number];
		bool ballooned = vm->actual < vm->size - 1;

		if (pressed || ballooned || k->guest_tick == 0 || v->tick - k->guest_tick >= CALM_TICKS) {
			k->guest = *vm;
			k->guest_tick = v->tick;
		}
		if (i >= m->resident_next && counted < RESIDENT_PER_TICK && (pressed || ballooned)) {
			k->resident = vm->rss;
			k->resident_tick = v->tick;
			m->resident_next = i + 1;
			counted++;
		}
		snapshot_vm(vm, k, v->tick, &m->vms[i]);
	}
	if (counted < RESIDENT_PER_TICK)
		m->resident_next = 0;
}

/* Memory is shared out once: the entitlements fit the budget, or else what all have and are never left without. */
static bool plan_is_sound(const struct memvirt *m, const struct sim_view *v, const struct balloon_plan *plan)
{
	uint64_t entitled = 0, had = 0;

	for (size_t i = 0; plan->budget_bytes > 0 && i < plan->vm_count; i++) {
		const struct vm_snapshot *vm = &m->vms[i];

		if (plan->vms[i].block != BLOCK_NONE)
			continue;
		entitled += plan->vms[i].entitled_bytes;
		had += bytes(fmax(v->vms[i].floor, v->vms[i].actual));
		if (plan->vms[i].entitled_bytes > vm->balloon.max_bytes)
			return false;
	}
	return entitled <= plan->budget_bytes || entitled <= had + plan->vm_count;
}

int sim_memvirt_decide(void *state, const struct sim_view *v, double *targets)
{
	struct memvirt *m = state;
	struct host_snapshot s = {
		.taken_ns = tick_ns(v->tick + 1), .mem_total_bytes = bytes(v->total), .mem_available_bytes = bytes(v->available),
		.swap_total_bytes = bytes(v->swap_total), .swap_free_bytes = bytes(v->swap_free),
		.pressure = { true, (uint64_t)(v->stall_some_s * 1e6), (uint64_t)(v->stall_full_s * 1e6) },
		.cow_debt_bytes = bytes(v->merged * m->debt_share), .vms = m->vms, .vm_count = v->vm_count,
	};
	struct balloon_plan plan;
	int r;

	look(m, v);
	r = balloon_policy_decide(m->policy, &s, &plan);
	if (r < 0)
		return r;
	m->state = plan.ladder->state;
	if (!plan_is_sound(m, v, &plan))
		return -EPROTO;
	for (size_t i = 0; i < v->vm_count; i++)
		targets[i] = (double)plan.vms[i].target_bytes / MIB;
	return 0;
}
