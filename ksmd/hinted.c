/* The conservative engine, as the module does it: after a pass the agents mark what is worth it (one job at a time), and
 * the policy of the kernel's scanner takes it from there, with what the marks are expected to save. */
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "core/log.h"
#include "ksmd/ksmd_internal.h"

/* Of the kernel's limit of mappings, what marking may fill; half of it is the VMM's own. The scanner's VMAs are found
 * one by one: thousands of them are what makes marking slow, long before the limit. */
#define MAPPINGS 16384u

static const struct pass_vm *found_of(const struct pass_result *res, const struct tracked_vm *t)
{
	for (size_t i = 0; res && i < res->vm_count; i++)
		if (res->vms[i].pid == t->pid && res->vms[i].start_ticks == t->start_ticks)
			return &res->vms[i];
	return NULL;
}

void ksmd_marking_take(struct ksmd *k)
{
	struct pollfd ended = { .fd = k->marking ? marking_done_fd(k->marking) : -1, .events = POLLIN };
	const struct marking_result *res;
	const struct marking_vm *vms;
	size_t count;

	if (!k->marking || poll(&ended, 1, 0) != 1)
		return;
	res = marking_wait(k->marking);
	vms = marking_vms(k->marking, &count);
	for (size_t i = 0; i < count; i++)
		agent_return(k->agents, vms[i].peer, res->broken[i]);
	k->cpu_seconds += res->cpu_seconds;
	if (res->error)
		log_warning("hints failed, ignoring: %s", strerror(-res->error));
	else
		log_info("hints vms=%zu marked=%" PRIu64 " MiB stretches=%" PRIu64 " expected=%" PRIu64 " MiB%s%s", count,
			 res->totals.pages >> 8, res->totals.stretches, res->totals.saved >> 8,
			 res->mark_error ? " why=\"not all could be marked\": " : "",
			 res->mark_error ? strerror(-res->mark_error) : "");
	k->hinted = res->totals;
	k->marking = marking_free(k->marking);
}

/* Whether there is enough to gain by marking anew. While the scanner works the marks stay as they are. */
void ksmd_marking_plan(struct ksmd *k)
{
	const struct pass_result *res = k->last ? pass_wait(k->last) : NULL;
	double gain = 0;

	k->marking_planned = false;
	if (k->marking || k->unmerge || k->unmerge_planned || k->round || k->round_planned || k->pass || !k->agents ||
	    !k->unmarked || k->policy.state == KSM_MERGE || k->debt.state == DEBT_STOP)
		return;
	for (size_t i = 0; i < k->vm_count; i++) {
		const struct pass_vm *found = k->vms[i].engine == MERGE_ENGINE_HINTED ? found_of(res, &k->vms[i]) : NULL;

		gain += found ? found->counts.mergeable : 0;
	}
	k->marking_planned = gain > 0 && gain >= (double)(k->config->merge_min_gain_bytes / PAGE_BYTES);
}

void ksmd_marking_begin(struct ksmd *k, bool dry_run)
{
	struct marking_vm *vms = k->marking_planned ? calloc(k->vm_count + 1, sizeof(*vms)) : NULL;
	size_t count = 0;
	int r;

	if (!k->marking_planned)
		return;
	k->marking_planned = k->unmarked = false;
	if (dry_run) {
		log_info("dry run: agents would mark memory for the kernel's scanner");
		free(vms);
		return;
	}
	for (size_t i = 0; vms && i < k->vm_count; i++) {
		struct tracked_vm *t = &k->vms[i];
		struct agent *agent =
			t->engine == MERGE_ENGINE_HINTED && t->table ? agents_find(k->agents, t->pid) : NULL;

		if (agent)
			vms[count++] = (struct marking_vm){ agent_lend(k->agents, agent), t->table, MAPPINGS };
	}
	r = vms ? marking_start(vms, count, &k->marking) : -ENOMEM;
	if (r < 0) {
		log_warning("agents cannot mark memory, ignoring: %s", strerror(-r));
		for (size_t i = 0; i < count; i++)
			agent_return(k->agents, vms[i].peer, false);
	}
	free(vms);
}
