/* Carries the plan out: commands to VMMs, and a line for each decision. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "balloon/balloon_internal.h"
#include "core/clock.h"
#include "core/log.h"

/* A balloon takes many ticks to its target: each change of direction is told, and then how far it is every so often. */
#define LOG_NS (10 * NSEC_PER_SEC)

#define MIB (UINT64_C(1) << 20)

static void target_log(struct balloon_vm *v, const struct vm *vm, const struct balloon_vm_plan *plan, uint64_t now_ns)
{
	bool grow = plan->target_bytes > plan->actual_bytes;
	bool loud = !v->logged_ns || grow != v->logged_grow || now_ns - v->logged_ns >= LOG_NS;

	if (loud) {
		v->logged_ns = now_ns;
		v->logged_grow = grow;
	}
	log_line(loud ? LOG_LEVEL_INFO : LOG_LEVEL_DEBUG, "balloon vm=%s %" PRIu64 "->%" PRIu64 " MiB why=\"%s\"",
		 vm->uuid, plan->actual_bytes >> 20, plan->target_bytes >> 20, plan->why);
}

static void count_moved(struct balloon *b, const struct balloon_vm_plan *plan)
{
	if (plan->target_bytes > plan->actual_bytes)
		b->given_bytes += plan->target_bytes - plan->actual_bytes;
	else
		b->taken_bytes += plan->actual_bytes - plan->target_bytes;
}

static void effect_log(const struct vm *vm, const struct balloon_effect *e)
{
	switch (e->kind) {
	case EFFECT_ARRIVED:
		log_info("balloon vm=%s has taken %" PRIu64 " MiB, of which %" PRIu64 " MiB came back to the host (expected %" PRIu64
			 ")",
			 vm->uuid, e->asked_bytes >> 20, e->freed_bytes >> 20, e->expected_bytes >> 20);
		break;
	case EFFECT_NOTHING_FREED:
		log_warning("balloon vm=%s has taken %" PRIu64 " MiB and only %" PRIu64 " MiB came back to the host (expected %" PRIu64
			    "): left alone for a while; is its memory locked, assigned to a device, or of a huge page pool?",
			    vm->uuid, e->asked_bytes >> 20, e->freed_bytes >> 20, e->expected_bytes >> 20);
		break;
	case EFFECT_STALLED:
		log_warning("balloon vm=%s does not move, with %" PRIu64 " MiB to go: set aside", vm->uuid,
			    e->asked_bytes >> 20);
		break;
	case EFFECT_MOVES_AGAIN:
		log_info("balloon vm=%s moves again", vm->uuid);
		break;
	}
}

static int set(struct balloon *b, const struct vm *vm, const struct balloon_vm *v, uint64_t bytes)
{
	if (!balloon_by_libvirt(vm))
		return port_qmp_set(v->qmp, bytes);
	return b->libvirt ? port_libvirt_set(b->libvirt, vm->uuid, vm->pid, bytes) : -ENOTCONN;
}

/* A driver that finds nothing to do when its guest starts does not say so, and the VMM goes on telling how large the
 * balloon was in the guest's last life. Left a MiB, less than is worth a command otherwise, it speaks. */
static uint64_t to_ask_for(struct balloon_vm *v, const struct vm *vm, const struct balloon_vm_plan *plan)
{
	const struct balloon_told *told = balloon_vm_told(vm);
	uint64_t resets = vm->resets + told->resets;

	if (v->resets == resets || plan->target_bytes < told->max_bytes)
		return plan->target_bytes;
	v->resets = resets;
	return plan->target_bytes - MIB;
}

static void carry_out(struct balloon *b, const struct vm *vm, size_t i, bool dry_run)
{
	const struct balloon_vm_plan *plan = &b->plan.vms[i];
	struct balloon_vm *v = vm->balloon;
	int r = dry_run ? 0 : set(b, vm, v, to_ask_for(v, vm, plan));

	target_log(v, vm, plan, b->decided_ns);
	if (r < 0 && r != -EBUSY) /* then the command before is still on its way */
		log_warning("balloon vm=%s cannot be set, ignoring: %s", vm->uuid, strerror(-r));
	if (r < 0 || dry_run)
		balloon_policy_not_done(b->policy, i);
	else
		count_moved(b, plan);
}

int balloon_apply(void *m, bool dry_run)
{
	struct balloon *b = m;
	size_t i = 0;

	if (!b->plan_is_new)
		return 0;
	b->plan_is_new = false;
	for (struct vm *vm = vmm_registry_first(b->registry); vm && i < b->plan.vm_count; vm = vm->next, i++) {
		for (size_t e = 0; e < b->plan.effect_count; e++)
			if (b->plan.effects[e].vm == i)
				effect_log(vm, &b->plan.effects[e]);
		if (b->plan.vms[i].target_bytes && vm->balloon)
			carry_out(b, vm, i, dry_run);
	}
	balloon_ask_later(b);
	return 0;
}
