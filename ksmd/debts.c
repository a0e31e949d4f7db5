/* What the debt and the demotion of VMs are told, and what follows from them. */
#include <inttypes.h>

#include "core/log.h"
#include "ksmd/ksmd_internal.h"

/* Broken between two looks, that is reported: a quarter of what was merged, and 16 MiB, a guest's restart of a service. */
#define BURST_SHARE 4
#define BURST_PAGES_MIN 4096

static uint64_t whole_pages(const struct frame_user_figures *f)
{
	return f->mapped_pages > f->broken_pages ? f->mapped_pages - f->broken_pages : 0;
}

static void burst_report(const struct tracked_vm *t, const char *uuid, uint64_t broke, uint64_t then_ns, uint64_t now_ns)
{
	uint64_t whole = whole_pages(&t->figures);

	if (broke >= BURST_PAGES_MIN && broke > whole / BURST_SHARE)
		log_warning("burst vm=%s broke=%" PRIu64 " MiB why=\"of %" PRIu64 " MiB merged, in %" PRIu64 " s\"", uuid,
			    broke >> 8, whole >> 8, (now_ns - then_ns) / NSEC_PER_SEC);
}

static void look_take(struct tracked_vm *t, const struct vm_snapshot *vm, const struct frame_user_figures *f,
		      uint64_t now_ns)
{
	uint64_t then_ns = t->rate.at_ns, broke = break_rate_take(&t->rate, f->breaks, now_ns);
	enum demote_event event = demote_look(&t->demotion, whole_pages(f), f->breaks, now_ns);

	burst_report(t, vm->uuid, broke, then_ns, now_ns);
	t->figures = *f;
	if (event != DEMOTE_KEEP)
		log_info("%s vm=%s why=\"%s\"", event == DEMOTE_DOWN ? "demote" : "promote", vm->uuid, t->demotion.why);
}

void ksmd_looks_take(struct ksmd *k, struct domain *d, const struct host_snapshot *s, const struct round_result *res)
{
	uint64_t rest_ns = res->look_cpu_ns * LOOK_REST;

	if (res->look)
		log_debug("remap look domain=%s cpu=%.1f ms", d->name, (double)res->look_cpu_ns / 1e6);
	d->look_ns = 0;
	for (size_t i = 0; i < s->vm_count; i++) {
		struct tracked_vm *t = ksmd_track(k, &s->vms[i]);
		struct frame_user_figures f;

		if (!t || t->domain != d || !remap_vm_figures(d->remap, t->pid, &f))
			continue;
		if (f.looks != t->figures.looks)
			look_take(t, &s->vms[i], &f, s->taken_ns);
		/* A rate has to be seen to fall, and a demoted VM to be calm. */
		if (f.mapped_pages > 0 || t->rate.per_s >= 1 || t->demotion.demoted)
			d->look_ns = s->taken_ns + (rest_ns > LOOK_NS ? rest_ns : LOOK_NS);
	}
}

/* What the kernel has merged, whoever had it do so, and zero pages that a split of huge pages freed. It notices a copy, or
 * that a process has ended, only when it scans: rather too much than too little. But where it says that no VM has merged
 * pages, what it still counts is not theirs. */
static uint64_t kernel_pages(const struct ksmd *k, const struct host_snapshot *s)
{
	uint64_t pages = s->ksm.pages_sharing + s->ksm.zero_pages, of_vms = 0;

	for (size_t i = 0; i < s->vm_count; i++)
		of_vms += s->vms[i].ksm_merging_pages;
	if (of_vms == 0 && k->kernel && ksm_kernel_tells_merging(k->kernel))
		pages = s->ksm.zero_pages;
	return pages > k->saved_pages ? pages : k->saved_pages;
}

static struct debt_inputs inputs_of(struct ksmd *k, const struct host_snapshot *s)
{
	struct debt_inputs in = {
		.merged_pages = kernel_pages(k, s) + (k->round ? round_merged_pages(k->round) : 0),
		.share_percent = k->config->merge_debt_percent,
	};

	if (s->ksm.cow_pages)
		break_rate_take(&k->kernel_rate, s->ksm.cow_pages, s->taken_ns);
	else
		k->kernel_rate = (struct break_rate){ 0 };
	in.breaks_per_s = k->kernel_rate.per_s;
	for (size_t i = 0; i < k->vm_count; i++) {
		in.merged_pages += whole_pages(&k->vms[i].figures) + k->vms[i].dropped_pages;
		in.breaks_per_s += k->vms[i].rate.per_s;
	}
	return in;
}

void ksmd_debt_update(struct ksmd *k, const struct host_snapshot *s)
{
	const struct debt_inputs in = inputs_of(k, s);
	bool changed = debt_decide(&k->debt, s, &in), stop = k->debt.state == DEBT_STOP;

	k->merged_pages = in.merged_pages;
	k->breaks_per_s = in.breaks_per_s;
	if (changed && stop)
		log_warning("debt stop why=\"%s\"", k->debt.why);
	else if (changed)
		log_info("debt ok why=\"%s\"", k->debt.why);
	/* What the last pass found is still there to be had; the next may find nothing new. */
	for (size_t i = 0; changed && !stop && i < k->domain_count; i++)
		k->domains[i]->passed = true;
	if (stop && k->round)
		round_stop(k->round);
}

/* ---- for people ---- */

bool ksmd_vm_breaks(const struct ksmd *k, const struct vm_snapshot *vm, struct ksmd_breaks *ret_breaks)
{
	const struct tracked_vm *t = ksmd_track((struct ksmd *)(uintptr_t)k, vm);

	if (!t)
		return false;
	*ret_breaks = (struct ksmd_breaks){ t->figures, t->rate.per_s, t->demotion.demoted };
	return true;
}

bool ksmd_domain_breaks(const struct ksmd *k, size_t i, struct ksmd_domain_breaks *ret_breaks)
{
	struct ksmd_domain_breaks b = { 0 };

	if (i >= k->domain_count)
		return false;
	b.name = k->domains[i]->name;
	b.frames = k->domains[i]->remap ? remap_memory_pages(k->domains[i]->remap) : 0;
	for (size_t v = 0; v < k->vm_count; v++) {
		const struct tracked_vm *t = &k->vms[v];

		if (t->domain != k->domains[i])
			continue;
		b.merged_pages += whole_pages(&t->figures);
		b.per_s += t->rate.per_s;
	}
	*ret_breaks = b;
	return true;
}
