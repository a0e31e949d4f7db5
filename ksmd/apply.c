/* What ksmd does in a tick: starts the pass that was planned, and sets the kernel's scanner. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "core/log.h"
#include "ksmd/ksmd_internal.h"
#include "ksmd/stable_index.h"
#include "ksmd/zero_split.h"

/* Of the gain that starts merging: what may have come to rest before it is looked for. */
#define JOIN_SHARE 4

/* The agent that can hash this VM's memory where it is; for the pass alone until it is taken in. */
static struct agent_peer *peer_lend(struct ksmd *k, const struct tracked_vm *t)
{
	struct agent *agent = k->agents && t->due && t->engine == MERGE_ENGINE_REMAP ? agents_find(k->agents, t->pid) :
										       NULL;

	return agent && !agent->lent ? agent_lend(k->agents, agent) : NULL;
}

static int pass_begin(struct ksmd *k)
{
	const struct pass_options options = {
		.limits = {
			.workers = (unsigned)k->config->scan_workers,
			.cpu_percent = k->config->scan_cpu_percent,
			.bytes_per_s = k->config->scan_bytes_per_s,
		},
		.index = k->index,
		.join_least_pages = k->config->merge_min_gain_bytes / PAGE_BYTES / JOIN_SHARE,
	};
	struct pass_input *inputs = calloc(k->vm_count + 1, sizeof(*inputs));
	size_t count = 0;
	int r;

	if (!inputs)
		return -ENOMEM;
	for (size_t i = 0; i < k->vm_count; i++)
		if (k->vms[i].table)
			inputs[count++] = (struct pass_input){
				.table = k->vms[i].table,
				.rescan = k->vms[i].due,
				/* Without KSM the pass still says what there would be to gain. */
				.unmergeable = k->kernel && k->vms[i].possible == MERGE_ENGINE_OFF,
				.early = k->vms[i].early,
				.peer = peer_lend(k, &k->vms[i]),
			};
	r = pass_start(inputs, count, &options, &k->pass);
	if (r == 0)
		log_debug("pass start vms=%zu", count);
	else
		ksmd_peers_return(k, inputs, count);
	free(inputs);
	return r;
}

/* The scanner's start: huge blocks with zero pages are split for it. Done by the time it stops. */
static void zero_split_begin(struct ksmd *k)
{
	struct page_table **tables = calloc(k->vm_count + 1, sizeof(*tables));
	size_t count = 0;
	int r = -ENOMEM;

	k->split_done = true;
	for (size_t i = 0; tables && i < k->vm_count; i++)
		if (k->vms[i].table && k->vms[i].engine == MERGE_ENGINE_KERNEL)
			tables[count++] = k->vms[i].table;
	if (tables)
		r = zero_split_start(tables, count, &k->split);
	if (r < 0)
		log_warning("ksm: no thread to split huge pages, ignoring: %s", strerror(-r));
	free(tables);
}

static void zero_split_end(struct ksmd *k)
{
	uint64_t blocks = 0;

	k->split_done = false;
	if (!k->split)
		return;
	k->split = zero_split_free(k->split, &k->cpu_seconds, &blocks);
	if (blocks)
		log_info("ksm split %" PRIu64 " huge pages why=\"zero pages inside\"", blocks);
}

/* The scanner is only switched on, off or over here. */
static int scanner_set(struct ksmd *k)
{
	const struct ksm_plan *plan = &k->plan;
	static const char *const action[] = { "", "start", "rate", "stop", "yield" };

	if (plan->action == KSM_KEEP)
		return 0;
	log_info("ksm %s run=%" PRIu64 "->%d pages_to_scan=%" PRIu64 "->%" PRIu64 " sleep_ms=%" PRIu64 "->%" PRIu64
		 " why=\"%s\"",
		 action[plan->action], k->seen.run, plan->action == KSM_START || plan->action == KSM_RATE,
		 k->seen.pages_to_scan, plan->pages_to_scan, k->seen.sleep_ms, plan->sleep_ms, plan->why);
	if (plan->action == KSM_YIELD) {
		ksm_kernel_yield(k->kernel);
		return 0;
	}
	return ksm_kernel_set(k->kernel, plan->action != KSM_STOP, plan->pages_to_scan, plan->sleep_ms);
}

int ksmd_apply(void *m, bool dry_run)
{
	struct ksmd *k = m;
	int r = 0;

	/* Before a pass may start: it writes the tables that the split reads. */
	if (k->policy.state != KSM_MERGE)
		zero_split_end(k);
	ksmd_unmerge_begin(k, dry_run); /* before a pass takes the agents */
	if (k->pass_planned) {
		k->pass_planned = false;
		r = pass_begin(k);
		if (r < 0)
			log_warning("cannot start a pass, ignoring: %s", strerror(-r));
	}
	ksmd_round_begin(k, dry_run);
	ksmd_marking_begin(k, dry_run);
	if (k->kernel)
		r = scanner_set(k);
	if (k->policy.state == KSM_MERGE && !k->split_done && !k->pass && !dry_run)
		zero_split_begin(k);
	if (r < 0 && k->plan.action == KSM_STOP)
		k->left_running = true; /* stop it again in the next tick */
	/* fsio held the writes back, so nothing will be gained: as if the scanner had run and got nothing. */
	if ((dry_run || r < 0) && k->policy.state == KSM_MERGE)
		ksm_policy_give_up(&k->policy, k->expected_pages);
	return r;
}
