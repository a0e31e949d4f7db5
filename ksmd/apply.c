/* What ksmd does in a tick: starts the pass that was planned, and sets the kernel's scanner. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "core/log.h"
#include "ksmd/ksmd_internal.h"
#include "ksmd/stable_index.h"

static int pass_begin(struct ksmd *k)
{
	const struct pass_options options = {
		.limits = {
			.workers = (unsigned)k->config->scan_workers,
			.cpu_percent = k->config->scan_cpu_percent,
			.bytes_per_s = k->config->scan_bytes_per_s,
		},
		.index = k->index,
	};
	struct pass_input *inputs = calloc(k->vm_count + 1, sizeof(*inputs));
	size_t count = 0;
	int r;

	if (!inputs)
		return -ENOMEM;
	for (size_t i = 0; i < k->vm_count; i++)
		if (k->vms[i].table)
			inputs[count++] = (struct pass_input){ k->vms[i].table, k->vms[i].due, k->vms[i].early };
	r = pass_start(inputs, count, &options, &k->pass);
	free(inputs);
	return r;
}

/* The scanner is only switched on, off or over here. */
static int scanner_set(struct ksmd *k)
{
	const struct ksm_plan *plan = &k->plan;
	static const char *const action[] = { "", "start", "rate", "stop", "yield" };

	if (plan->action == KSM_KEEP)
		return 0;
	log_info("ksm %s pages_to_scan=%" PRIu64 " sleep_ms=%" PRIu64 " why=\"%s\"", action[plan->action],
		 plan->pages_to_scan, plan->sleep_ms, plan->why);
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

	if (k->pass_planned) {
		k->pass_planned = false;
		r = pass_begin(k);
		if (r < 0)
			log_warning("cannot start a pass, ignoring: %s", strerror(-r));
	}
	if (k->kernel)
		r = scanner_set(k);
	/* fsio held the writes back, so nothing will be gained: as if the scanner had run and got nothing. */
	if ((dry_run || r < 0) && k->policy.state == KSM_MERGE)
		ksm_policy_give_up(&k->policy, k->expected_pages);
	return r;
}
