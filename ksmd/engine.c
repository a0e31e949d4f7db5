#include "ksmd/engine.h"

static bool has_backing(const struct vm_snapshot *vm, bool hugetlb)
{
	for (size_t i = 0; i < vm->region_count; i++)
		if (vm->regions[i].backing != MEM_ANON && (vm->regions[i].backing == MEM_HUGETLB) == hugetlb)
			return true;
	return false;
}

struct refusals {
	struct engine_refusal *list;
	size_t count;
};

static void refuse(struct refusals *r, enum merge_engine engine, const char *why)
{
	if (why && r->count < ENGINE_REFUSALS_MAX)
		r->list[r->count++] = (struct engine_refusal){ engine, why };
}

static void refuse_if(struct refusals *r, bool holds, enum merge_engine engine, const char *why)
{
	refuse(r, engine, holds ? why : NULL);
}

/* The VM's own setting goes before the host's; what is not asked for is refused like all else. */
static void refuse_unwanted(struct refusals *r, enum merge_engine host, enum merge_engine vm)
{
	enum merge_engine wanted = vm == MERGE_ENGINE_AUTO ? host : vm;

	if (wanted == MERGE_ENGINE_AUTO)
		return;
	if (wanted == MERGE_ENGINE_OFF) {
		refuse(r, MERGE_ENGINE_AUTO, "merging is off (engine = off)");
		return;
	}
	for (enum merge_engine e = MERGE_ENGINE_REMAP; e < MERGE_ENGINE_OFF; e++)
		refuse_if(r, e != wanted, e, "another engine is configured (engine = ...)");
}

static void refuse_all(struct refusals *r, const struct vm_snapshot *vm)
{
	refuse_if(r, !vm->merge_allowed, MERGE_ENGINE_AUTO, "merging is off for this VM (merge = off)");
	refuse_if(r, vm->region_count == 0, MERGE_ENGINE_AUTO, "where its memory lies is not known");
	refuse_if(r, has_backing(vm, true), MERGE_ENGINE_AUTO, "its memory is hugetlb, which cannot be merged");
	refuse_if(r, has_backing(vm, false), MERGE_ENGINE_AUTO,
		  "its memory is shared or file-backed, which cannot be merged");
	refuse_if(r, vm->mem_lock, MERGE_ENGINE_REMAP, "its memory is locked (-overcommit mem-lock=on)");
}

static void refuse_agents(struct refusals *r, const struct vm_snapshot *vm, const struct engine_facts *f)
{
	static const char no_agent[] = "no agent in its VMM (start it with memvirtctl run)";

	refuse_if(r, !f->has_agent, MERGE_ENGINE_REMAP, no_agent);
	refuse_if(r, !f->has_agent, MERGE_ENGINE_HINTED, no_agent);
	if (f->has_agent) {
		refuse(r, MERGE_ENGINE_REMAP, f->agent_why);
		refuse_if(r, !f->agent_why, MERGE_ENGINE_REMAP, f->slot_why);
	}
	for (size_t i = 0; i < f->hazard_count; i++)
		refuse(r, MERGE_ENGINE_REMAP, f->hazards[i]);
	/* What the guest's memory is at the moment is not what will arrive. The kernel's scanner copes. */
	refuse_if(r, vm->migrating, MERGE_ENGINE_REMAP, "it is migrating");
}

static void refuse_kernel(struct refusals *r, const struct vm_snapshot *vm, const struct engine_facts *f)
{
	refuse(r, MERGE_ENGINE_HINTED, f->ksm_why);
	refuse(r, MERGE_ENGINE_KERNEL, f->ksm_why);
	/* What is marked as a whole cannot be narrowed: taking the mark away would undo what was merged. */
	refuse_if(r, vm->mem_merge, MERGE_ENGINE_HINTED,
		  "its VMM gives all of its memory to KSM (QEMU: start it with -machine mem-merge=off)");
	refuse_if(r, f->ksm_present && !vm->ksm_mergeable, MERGE_ENGINE_KERNEL,
		  "its VMM did not give its memory to KSM (QEMU: -machine mem-merge=on)");
}

static bool is_refused(const struct refusals *r, enum merge_engine engine)
{
	for (size_t i = 0; i < r->count; i++)
		if (r->list[i].engine == engine || r->list[i].engine == MERGE_ENGINE_AUTO)
			return true;
	return false;
}

enum merge_engine engine_choose(const struct vm_snapshot *vm, const struct engine_facts *f,
				struct engine_refusal ret_refusals[ENGINE_REFUSALS_MAX], size_t *ret_count)
{
	struct refusals r = { ret_refusals, 0 };
	enum merge_engine engine = MERGE_ENGINE_REMAP;

	refuse_unwanted(&r, f->host_engine, vm->engine);
	refuse_all(&r, vm);
	refuse(&r, MERGE_ENGINE_AUTO, f->demoted_why);
	refuse_if(&r, f->apart, MERGE_ENGINE_AUTO,
		  "it was un-merged (memvirtctl unmerge --undo lets it be merged again)");
	refuse_agents(&r, vm, f);
	refuse_kernel(&r, vm, f);
	while (engine < MERGE_ENGINE_OFF && is_refused(&r, engine))
		engine++;
	*ret_count = r.count;
	return engine;
}
