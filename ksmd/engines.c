/* Which engine merges each VM: what ksmd/engine.c is told, and the rule of one domain, which needs all VMs. */
#include <string.h>

#include "core/log.h"
#include "ksmd/ksmd_internal.h"

/* Why the kernel's scanner cannot be used on this host at all. */
static const char *kernel_refusal(const struct ksmd *k)
{
	if (!k->kernel)
		return "this kernel has no KSM";
	return k->config->merge_engine == MERGE_ENGINE_OFF ? "merging is off (engine = off)" : NULL;
}

static struct engine_facts facts_of(const struct ksmd *k, const struct tracked_vm *t, const char *ksm_why)
{
	return (struct engine_facts){
		.host_engine = (enum merge_engine)k->config->merge_engine,
		.has_agent = t->has_agent,
		.agent_why = t->agent_why[0] ? t->agent_why : NULL,
		.demoted_why = t->demotion.demoted ? t->demotion.why : NULL,
		.slot_why = t->slot_why[0] ? t->slot_why : NULL,
		.hazards = t->hazards,
		.hazard_count = t->hazard_count,
		.ksm_why = ksm_why,
		.ksm_present = k->kernel != NULL,
		.apart = t->apart,
	};
}

static enum merge_engine choose(const struct ksmd *k, const struct tracked_vm *t, const struct vm_snapshot *vm,
				const char *ksm_why, struct engine_refusal *refusals, size_t *count)
{
	const struct engine_facts facts = facts_of(k, t, ksm_why);

	return engine_choose(vm, &facts, refusals, count);
}

/* The kernel merges all that it may scan with all else, so every VM that gave it memory, or whose agent would, must be
 * of one domain, merging or not. */
static const char *domains_refusal(const struct ksmd *k, const struct host_snapshot *s)
{
	struct engine_refusal refusals[ENGINE_REFUSALS_MAX];
	const char *domain = NULL;
	size_t count;

	for (size_t i = 0; i < s->vm_count; i++) {
		const struct vm_snapshot *vm = &s->vms[i];
		const struct tracked_vm *t = ksmd_track((struct ksmd *)(uintptr_t)k, vm);

		if (!vm->ksm_mergeable &&
		    !(t && choose(k, t, vm, kernel_refusal(k), refusals, &count) == MERGE_ENGINE_HINTED))
			continue;
		if (!vm->merge_allowed)
			return "a VM with merge = off gave its memory to KSM; start it with mem-merge=off";
		if (domain && strcmp(domain, vm->domain) != 0)
			return "the VMs that gave memory to KSM are in several domains, and the kernel merges across "
			       "all of them";
		domain = vm->domain;
	}
	return domain ? NULL : "no VM gave its memory to KSM";
}

const char *ksmd_host_refusal(const struct ksmd *k, const struct host_snapshot *s)
{
	const char *why = kernel_refusal(k);

	return why ? why : domains_refusal(k, s);
}

enum merge_engine ksmd_vm_engine(const struct ksmd *k, const struct host_snapshot *s, const struct vm_snapshot *vm,
				 struct engine_refusal ret_refusals[ENGINE_REFUSALS_MAX], size_t *ret_count)
{
	const struct tracked_vm *t = ksmd_track((struct ksmd *)(uintptr_t)k, vm);

	*ret_count = 0;
	return t ? choose(k, t, vm, ksmd_host_refusal(k, s), ret_refusals, ret_count) : MERGE_ENGINE_OFF;
}

/* That could merge it if the configuration, its past and the other VMs let it: for what there would be to gain. */
static enum merge_engine engine_possible(const struct ksmd *k, const struct tracked_vm *t, const struct vm_snapshot *vm)
{
	struct engine_facts facts = facts_of(k, t, NULL);
	struct engine_refusal refusals[ENGINE_REFUSALS_MAX];
	struct vm_snapshot free_vm = *vm;
	size_t count;

	facts.host_engine = MERGE_ENGINE_AUTO;
	facts.demoted_why = NULL;
	free_vm.engine = MERGE_ENGINE_AUTO;
	return engine_choose(&free_vm, &facts, refusals, &count);
}

void ksmd_engines_decide(struct ksmd *k, const struct host_snapshot *s, const char *ksm_why)
{
	struct engine_refusal refusals[ENGINE_REFUSALS_MAX];
	size_t count;

	for (size_t i = 0; i < s->vm_count; i++) {
		const struct vm_snapshot *vm = &s->vms[i];
		struct tracked_vm *t = ksmd_track(k, vm);
		enum merge_engine before;

		if (!t)
			continue;
		before = t->engine;
		t->engine = choose(k, t, vm, ksm_why, refusals, &count);
		/* It came too late for the last round, and a pass may find nothing new. */
		if (t->engine != before && t->engine == MERGE_ENGINE_REMAP && t->domain)
			t->domain->passed = true;
		t->possible = t->engine == MERGE_ENGINE_OFF ? engine_possible(k, t, vm) : t->engine;
		if (t->engine != before)
			log_info("merge vm=%s engine=%s%s%s%s", vm->uuid, config_engine_name(t->engine),
				 count && t->engine == MERGE_ENGINE_OFF ? " why=\"" : "",
				 count && t->engine == MERGE_ENGINE_OFF ? refusals[0].why : "",
				 count && t->engine == MERGE_ENGINE_OFF ? "\"" : "");
	}
}
