#include "balloon/balloon.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "balloon/balloon_internal.h"
#include "core/clock.h"
#include "core/hostmem.h"
#include "core/log.h"

/* Who only looks waits so long for a libvirt that does not answer. */
#define LIBVIRT_PATIENCE_NS (3 * NSEC_PER_SEC)

struct balloon_limits balloon_limits_of(const struct config *c)
{
	return (struct balloon_limits){
		.min_free_bytes = c->host_min_free_bytes,
		.idle_tax_percent = (unsigned int)c->balloon_idle_tax_percent,
		.max_percent = (unsigned int)c->balloon_max_percent,
		.step_percent = (unsigned int)c->balloon_step_percent,
		.keep_percent = (unsigned int)c->balloon_keep_percent,
		.hold_ns = c->balloon_hold_ms * NSEC_PER_MSEC,
		.stall_ns = c->balloon_stall_ms * NSEC_PER_MSEC,
	};
}

/* The next tick looks by itself: figures are asked for just before it. */
static void on_libvirt_changed(void *userdata)
{
	(void)userdata;
}

static const struct port_libvirt_ops libvirt_ops = { .changed = on_libvirt_changed };

int balloon_new(sd_event *loop, const struct fsio *fs, const struct config *config, struct vmm_registry *registry,
		struct balloon **ret_balloon)
{
	const struct balloon_limits limits = balloon_limits_of(config);
	struct balloon *b = calloc(1, sizeof(*b));
	int r;

	if (!b)
		return -ENOMEM;
	b->fs = fs;
	b->config = config;
	b->registry = registry;
	b->loop = sd_event_ref(loop);
	b->started_ns = clock_mono_ns();
	r = balloon_policy_new(&limits, &b->policy);
	if (r == 0 && *config->libvirt_uri)
		r = port_libvirt_new(loop, config->libvirt_uri, fs, &libvirt_ops, b, &b->libvirt);
	if (r < 0 && r != -EOPNOTSUPP) {
		balloon_free(b);
		return r;
	}
	*ret_balloon = b;
	return 0;
}

struct balloon *balloon_free(struct balloon *b)
{
	if (!b)
		return NULL;
	for (struct vm *vm = vmm_registry_first(b->registry); vm; vm = vm->next)
		balloon_vm_gone(b, vm);
	sd_event_source_disable_unref(b->ask_timer);
	port_libvirt_free(b->libvirt);
	balloon_policy_free(b->policy);
	sd_event_unref(b->loop);
	free(b);
	return NULL;
}

/* ---- VMs come and go ---- */

struct balloon_vm *balloon_vm_of(struct balloon *b, struct vm *vm)
{
	struct balloon_vm *v = vm->balloon;

	if (v)
		return v;
	v = calloc(1, sizeof(*v));
	if (!v)
		return NULL;
	if (port_qmp_new(vm, &v->qmp) < 0) {
		free(v);
		return NULL;
	}
	port_qmp_on_stats(v->qmp, balloon_told, b);
	vm->balloon = v;
	return v;
}

void balloon_vm_ready(struct balloon *b, struct vm *vm)
{
	struct balloon_vm *v = balloon_vm_of(b, vm);

	if (v)
		port_qmp_connected(v->qmp);
}

void balloon_vm_gone(struct balloon *b, struct vm *vm)
{
	struct balloon_vm *v = vm->balloon;

	/* The plan has an entry for each VM of its snapshot. */
	b->plan_is_new = false;
	if (!v)
		return;
	port_qmp_free(v->qmp);
	free(v);
	vm->balloon = NULL;
}

static bool is_settled(struct balloon *b, struct vm *vm)
{
	struct balloon_vm *v = balloon_vm_of(b, vm);
	const struct balloon_told *told;

	if (!v || (!vm->qmp && !balloon_by_libvirt(vm)))
		return true;
	told = balloon_told_now(b, vm, v);
	if (vm->qmp && !told->stats_told_ns)
		port_qmp_ask(v->qmp);
	return told->device == BALLOON_DEVICE_ABSENT || told->stats_told_ns ||
	       (!vm->qmp && clock_mono_ns() - b->started_ns > LIBVIRT_PATIENCE_NS);
}

bool balloon_settled(struct balloon *b)
{
	bool settled = true;

	for (struct vm *vm = vmm_registry_first(b->registry); vm; vm = vm->next)
		settled = is_settled(b, vm) && settled;
	if (!settled && b->libvirt)
		port_libvirt_ask(b->libvirt);
	return settled;
}

/* ---- the decision ---- */

/* A tick comes early when other work ends; steps and hold-offs are made for one a tick. For a guest that runs short there is
 * one more. */
static bool is_early(const struct balloon *b, uint64_t now_ns)
{
	return b->decided_ns && !b->urgent && now_ns - b->decided_ns < b->config->tick_ms * NSEC_PER_MSEC * 3 / 4;
}

static void plans_keep(struct balloon *b)
{
	size_t i = 0;

	for (struct vm *vm = vmm_registry_first(b->registry); vm && i < b->plan.vm_count; vm = vm->next, i++) {
		struct balloon_vm *v = vm->balloon;

		if (!v)
			continue;
		b->vetoes += b->plan.vms[i].veto != VETO_NONE && v->plan.veto == VETO_NONE;
		v->plan = b->plan.vms[i];
		v->planned = true;
	}
}

static void host_log(struct balloon *b, enum host_state before)
{
	const struct ladder *l = b->plan.ladder;
	uint64_t missing = b->plan.missing_bytes;

	if (b->plan.state_changed)
		log_info("host state %s->%s why=\"%s\"", host_state_name(before), host_state_name(l->state), l->why);
	if ((missing != 0) != (b->missing_bytes != 0)) {
		if (missing)
			log_error("reservations of the VMs exceed the host's memory by %" PRIu64
				  " MiB: they cannot all be kept",
				  missing >> 20);
		else
			log_info("reservations of the VMs fit the host's memory again");
	}
	b->missing_bytes = missing;
}

static int decide(void *m, const struct host_snapshot *s)
{
	struct balloon *b = m;
	const struct balloon_limits limits = balloon_limits_of(b->config);
	enum host_state before = b->plan.ladder ? b->plan.ladder->state : HOST_HIGH;
	int r;

	b->plan_is_new = false;
	if (is_early(b, s->taken_ns))
		return 0;
	balloon_policy_set_limits(b->policy, &limits);
	r = balloon_policy_decide(b->policy, s, &b->plan);
	if (r < 0)
		return r;
	b->plan_is_new = true;
	b->decided_ns = s->taken_ns;
	b->was_urgent = b->urgent;
	b->urgent = false;
	host_log(b, before);
	plans_keep(b);
	return 0;
}

const struct module_ops balloon_ops = {
	.name = "balloon",
	.sense = balloon_sense,
	.decide = decide,
	.apply = balloon_apply,
};

const struct balloon_plan *balloon_plan_of(const struct balloon *b, uint64_t taken_ns)
{
	return b->decided_ns == taken_ns ? &b->plan : NULL;
}

/* ---- for people ---- */

void balloon_status(const struct balloon *b, struct balloon_status *ret_status)
{
	*ret_status = (struct balloon_status){
		.ladder = b->plan.ladder,
		.idle_bytes = balloon_policy_idle_bytes(b->policy),
		.budget_bytes = b->plan.budget_bytes,
		.missing_bytes = b->missing_bytes,
		.promised_bytes = b->promised_bytes,
		.taken_bytes = b->taken_bytes,
		.given_bytes = b->given_bytes,
		.vetoes = b->vetoes,
	};
}

const struct balloon_vm_plan *balloon_vm_plan(const struct vm *vm)
{
	const struct balloon_vm *v = vm->balloon;

	return v && v->planned ? &v->plan : NULL;
}

const struct balloon_told *balloon_vm_told(const struct vm *vm)
{
	const struct balloon_vm *v = vm->balloon;

	if (!v)
		return NULL;
	return balloon_by_libvirt(vm) ? &v->libvirt : port_qmp_told(v->qmp);
}

int balloon_admit(struct balloon *b, const struct host_snapshot *s, uint64_t bytes, int node,
		  struct admit_answer *ret_answer)
{
	struct admit_question q = { .bytes = bytes, .node = node, .timeout_ns = b->config->balloon_admit_ms * NSEC_PER_MSEC };

	if (!b->plan.ladder)
		return -EAGAIN;
	if (node >= 0) {
		int r = hostmem_node_free(b->fs, node, &q.node_free_bytes);

		if (r < 0)
			return r;
	}
	/* What one VM is promised of what is idle cannot be promised to another as well; it counts from the next tick on. */
	q.idle_bytes = balloon_policy_idle_bytes(b->policy);
	admit_ask(&b->admit, s, b->plan.ladder, &q, ret_answer);
	log_info("admit %" PRIu64 " MiB: %s why=\"%s\"", bytes >> 20,
		 ret_answer->granted ? "yes" : ret_answer->later ? "not yet" : "no", ret_answer->why);
	return 0;
}
