#include "daemon/commands.h"

#include <errno.h>
#include <math.h>
#include <string.h>
#include <unistd.h>

#include "core/clock.h"
#include "daemon/daemon.h"
#include "ept/slots.h"

/* Two decimals are enough of a MiB, and keep the text short. */
static double mib(double pages)
{
	return round(pages * PAGE_BYTES / 1048576 * 100) / 100;
}

static double rounded(double seconds)
{
	return round(seconds * 10000) / 10000;
}

static json_t *render_counts(const struct pass_counts *c, double seconds, double cpu_seconds)
{
	return json_pack("{s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f}", "present_mib", mib((double)c->present),
			 "zero_mib", mib((double)c->zero), "dup_within_mib", mib(c->dup_within), "dup_between_mib",
			 mib(c->dup_between), "mergeable_mib", mib(c->mergeable), "huge_mib", mib((double)c->huge),
			 "zero_mapped_mib", mib((double)c->zero_mapped), "swapped_mib", mib((double)c->swapped),
			 "seconds", rounded(seconds), "cpu_seconds", rounded(cpu_seconds));
}

/* A domain of one is shown as none. */
static const char *shown_domain(const char *domain)
{
	return domain[0] == '=' ? "" : domain;
}

static json_t *render_vm_identity(const struct pass_vm *vm)
{
	return json_pack("{s:s, s:s, s:i, s:s}", "name", vm->name, "uuid", vm->uuid, "pid", (int)vm->pid, "domain",
			 shown_domain(vm->domain));
}

/* json_object_update_new() that also fails on a part that could not be made. */
static json_t *with(json_t *object, json_t *part)
{
	if (!object || !part || json_object_update(object, part) < 0) {
		json_decref(object);
		object = NULL;
	}
	json_decref(part);
	return object;
}

json_t *render_estimate(const struct pass_result *result)
{
	json_t *vms = json_array();

	for (size_t i = 0; vms && i < result->vm_count; i++) {
		const struct pass_vm *vm = &result->vms[i];

		if (vm->gone)
			continue;
		json_array_append_new(vms, with(render_vm_identity(vm),
						render_counts(&vm->counts, vm->seconds, vm->cpu_seconds)));
	}
	return json_pack("{s:o, s:o, s:I}", "vms", vms, "total",
			 render_counts(&result->total, result->seconds, result->cpu_seconds), "metadata_bytes",
			 (json_int_t)result->metadata_bytes);
}

json_t *render_sharing(const struct pass_result *result)
{
	json_t *vms = json_array(), *rows = json_array();
	size_t n = result->vm_count;

	for (size_t i = 0; vms && rows && i < n; i++) {
		json_t *row;

		if (result->vms[i].gone)
			continue;
		row = json_array();
		for (size_t k = 0; row && k < n; k++)
			if (!result->vms[k].gone)
				json_array_append_new(row,
						      json_real(mib((double)result->sharing_pages[i * n + k])));
		json_array_append_new(vms, render_vm_identity(&result->vms[i]));
		json_array_append_new(rows, row);
	}
	return json_pack("{s:o, s:o, s:f, s:f}", "vms", vms, "shared_mib", rows, "seconds",
			 rounded(result->seconds), "cpu_seconds", rounded(result->cpu_seconds));
}

/* ---- the daemon's state ---- */

const struct vm_snapshot *render_snapshot_of(const struct daemon *d, const struct vm *vm)
{
	for (size_t i = 0; i < d->snapshot.vm_count; i++)
		if (d->snapshot.vms[i].pid == vm->pid && d->snapshot.vms[i].start_ticks == vm->start_ticks)
			return &d->snapshot.vms[i];
	return NULL;
}

static const char *source_name(const struct ept_view *view)
{
	static const char *const names[] = { "unknown", "qmp", "maps" };

	return names[view ? view->source : EPT_NOT_KNOWN];
}

static json_t *render_vm(struct daemon *d, const struct vm *vm)
{
	const struct vm_snapshot *s = render_snapshot_of(d, vm);

	return json_pack("{s:s, s:s, s:i, s:s, s:s, s:s, s:s, s:f, s:f, s:f, s:s, s:b, s:b, s:b}", "name", vm->name,
			 "uuid", vm->uuid, "pid", (int)vm->pid, "machine", vm->machine, "state",
			 vm_state_name(vm->state), "why", vm->why, "domain", vm->settings.domain, "memory_mib",
			 mib((double)(vm->ram_bytes / PAGE_BYTES)), "resident_mib",
			 mib(s ? (double)(s->rss_anon_bytes / PAGE_BYTES) : 0), "ksm_merging_mib",
			 mib(s ? (double)s->ksm_merging_pages : 0), "slots_from", source_name(vm->ept), "running",
			 vm->running, "migrating", vm->migrating, "mem_lock", vm->cmdline.mem_lock);
}

json_t *render_vms(struct daemon *d)
{
	json_t *vms = json_array();

	for (struct vm *vm = vmm_registry_first(d->registry); vms && vm; vm = vm->next)
		json_array_append_new(vms, render_vm(d, vm));
	return vms;
}

json_t *render_status(struct daemon *d)
{
	const struct host_snapshot *s = &d->snapshot;
	struct ksmd_status ksmd;

	ksmd_status(d->ksmd, &ksmd);
	return json_pack("{s:i, s:f, s:I, s:b, s:i, s:f, s:f, s:s, s:s, s:f, s:s, s:f}", "pid", (int)getpid(),
			 "uptime_seconds", rounded((double)(clock_mono_ns() - d->started_ns) / (double)NSEC_PER_SEC),
			 "ticks", (json_int_t)d->ticks, "dry_run", d->options.dry_run, "vms", (int)s->vm_count,
			 "memory_total_mib", mib((double)(s->mem_total_bytes / PAGE_BYTES)), "memory_available_mib",
			 mib((double)(s->mem_available_bytes / PAGE_BYTES)), "merge_engine",
			 config_engine_name(d->config.merge_engine), "ksm_state", ksm_state_name(ksmd.state),
			 "saved_mib", mib((double)ksmd.saved_pages), "why", ksmd.why, "cpu_seconds",
			 rounded((double)clock_ns(CLOCK_PROCESS_CPUTIME_ID) / (double)NSEC_PER_SEC));
}

/* Of a VM, as opposed to a setting: merging that is off is none. */
static const char *engine_name(enum merge_engine engine)
{
	return engine == MERGE_ENGINE_OFF ? "none" : config_engine_name(engine);
}

static json_t *render_pass(const struct ksmd_status *st)
{
	if (!st->last)
		return json_null();
	return with(render_counts(&st->last->total, st->last->seconds, st->last->cpu_seconds),
		    json_pack("{s:f, s:I}", "scanned_mib", mib((double)st->last->scanned_pages), "metadata_bytes",
			      (json_int_t)st->last->metadata_bytes));
}

/* What the last pass found of this VM; NULL if it took no part. */
static const struct pass_vm *pass_of(const struct ksmd_status *st, const struct vm_snapshot *vm)
{
	for (size_t i = 0; st->last && i < st->last->vm_count; i++)
		if (st->last->vms[i].pid == vm->pid && st->last->vms[i].start_ticks == vm->start_ticks)
			return &st->last->vms[i];
	return NULL;
}

static json_t *render_merge_vm(struct daemon *d, const struct ksmd_status *st, const struct vm_snapshot *vm)
{
	const struct pass_vm *found = pass_of(st, vm);
	struct engine_refusal refusals[ENGINE_REFUSALS_MAX];
	struct ksmd_breaks b = { 0 };
	const struct frame_user_figures *f = &b.figures;
	size_t count;
	enum merge_engine engine = ksmd_vm_engine(d->ksmd, &d->snapshot, vm, refusals, &count);
	bool none = engine == MERGE_ENGINE_OFF && count > 0;

	ksmd_vm_breaks(d->ksmd, vm, &b);
	return json_pack("{s:s, s:s, s:s, s:s, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:b, s:I, s:f, s:s}", "name",
			 vm->name, "uuid", vm->uuid, "domain", shown_domain(vm->domain), "engine", engine_name(engine),
			 "mergeable_mib", mib(found ? found->counts.mergeable : 0), "saved_mib",
			 mib((double)ksmd_vm_saved_pages(d->ksmd, vm)), "merging_mib",
			 mib((double)vm->ksm_merging_pages), "mapped_mib", mib((double)f->mapped_pages), "merged_mib",
			 mib((double)f->mapped_pages - (double)f->broken_pages), "broken_mib",
			 mib((double)f->broken_pages), "breaks_per_s", rounded(b.per_s), "demoted", b.demoted,
			 "mappings", (json_int_t)f->mappings, "resident_mib",
			 mib((double)(vm->rss_anon_bytes / PAGE_BYTES)), "refusal", none ? refusals[0].why : "");
}

/* Of the domains in which agents have merged. */
static json_t *render_domains(struct daemon *d)
{
	json_t *domains = json_array();
	struct ksmd_domain_breaks b;

	for (size_t i = 0; domains && ksmd_domain_breaks(d->ksmd, i, &b); i++)
		if (b.frames > 0)
			json_array_append_new(domains,
					      json_pack("{s:s, s:f, s:f, s:f}", "domain", shown_domain(b.name),
							"frames_mib", mib((double)b.frames), "merged_mib",
							mib((double)b.merged_pages), "breaks_per_s", rounded(b.per_s)));
	return domains;
}

static json_t *render_debt(struct daemon *d, const struct ksmd_status *st)
{
	return json_pack("{s:f, s:f, s:s, s:s, s:f, s:f, s:o}", "debt_mib", mib((double)st->debt->pages),
			 "debt_limit_mib", mib((double)st->debt->limit_pages), "debt_state",
			 debt_state_name(st->debt->state), "debt_why", st->debt->why, "debt_most_mib",
			 mib((double)st->merged_pages), "breaks_per_s", rounded(st->breaks_per_s), "domains",
			 render_domains(d));
}

/* What the quotas are about, and the quotas of now. */
static json_t *render_rates(const struct config *c, const struct remap_result *m)
{
	const struct remap_rates rates = remap_rates(m);

	return json_pack("{s:f, s:f, s:f, s:I, s:f, s:I}", "windows_per_s", rounded(rates.windows_per_s),
			 "exchanged_mib_per_s", rounded(rates.mib_per_s), "cpu_percent", rounded(rates.cpu_percent),
			 "windows_per_s_limit", (json_int_t)c->merge_windows_per_s, "exchanged_mib_per_s_limit",
			 mib((double)(c->merge_bytes_per_s / PAGE_BYTES)), "cpu_percent_limit",
			 (json_int_t)c->merge_cpu_percent);
}

static json_t *render_round(const struct daemon *d, const struct ksmd_status *st)
{
	const struct remap_result *m = st->last_round;
	json_t *counts;

	if (!m)
		return json_null();
	counts = json_pack("{s:f, s:f, s:f, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:f}", "merged_mib",
			 mib((double)m->merged_pages), "zero_mib", mib((double)m->zero_pages), "filled_mib",
			 mib((double)m->filled_frames), "windows", (json_int_t)m->windows, "runs",
			 (json_int_t)m->runs, "unequal_runs", (json_int_t)m->unequal_runs, "busy_runs",
			 (json_int_t)m->busy_runs, "failed_runs", (json_int_t)m->failed_runs, "longest_stall_us",
			 (json_int_t)m->stall_us_max, "seconds", rounded(m->seconds), "cpu_seconds",
			 rounded(m->cpu_seconds));
	return with(counts, render_rates(&d->config, m));
}

static json_t *render_ksm(const struct ksm_snapshot *ksm)
{
	return json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:f}", "run", (json_int_t)ksm->run,
			 "pages_to_scan", (json_int_t)ksm->pages_to_scan, "sleep_millisecs", (json_int_t)ksm->sleep_ms,
			 "pages_shared", (json_int_t)ksm->pages_shared, "pages_sharing",
			 (json_int_t)ksm->pages_sharing, "zero_pages", (json_int_t)ksm->zero_pages, "pages_scanned",
			 (json_int_t)ksm->pages_scanned, "full_scans", (json_int_t)ksm->full_scans, "cpu_seconds",
			 rounded((double)ksm->cpu_ns / (double)NSEC_PER_SEC));
}

json_t *render_merge_status(struct daemon *d)
{
	const struct host_snapshot *s = &d->snapshot;
	struct ksmd_status st;
	json_t *vms = json_array(), *merging;

	ksmd_status(d->ksmd, &st);
	for (size_t i = 0; vms && i < s->vm_count; i++)
		json_array_append_new(vms, render_merge_vm(d, &st, &s->vms[i]));
	merging = json_pack("{s:b, s:s, s:s, s:f, s:f, s:f, s:b, s:b, s:I, s:I, s:I, s:f, s:I, s:o, s:o, s:o, s:o}",
			 "ksm_present", st.ksm_present, "state", ksm_state_name(st.state), "why", st.why,
			 "expected_mib", mib((double)st.expected_pages), "saved_mib", mib((double)st.saved_pages),
			 "frames_mib", mib((double)st.frames), "passing", st.passing, "merging", st.merging,
			 "pass_done_pages", (json_int_t)st.pass_done_pages, "pass_total_pages",
			 (json_int_t)st.pass_total_pages, "passes", (json_int_t)st.passes, "passes_cpu_seconds",
			 rounded(st.cpu_seconds), "rounds", (json_int_t)st.rounds, "last_pass", render_pass(&st),
			 "last_round", render_round(d, &st), "ksm", render_ksm(&s->ksm), "vms", vms);
	return with(merging, render_debt(d, &st));
}

/* "remap: no agent in its VMM"; what speaks against all engines stands alone. */
static json_t *render_refusal(const struct engine_refusal *r)
{
	if (r->engine == MERGE_ENGINE_AUTO)
		return json_string(r->why);
	return json_sprintf("%s: %s", config_engine_name(r->engine), r->why);
}

json_t *render_explain(struct daemon *d, const struct vm *vm)
{
	const struct vm_snapshot *s = render_snapshot_of(d, vm);
	const struct ept_view *view = vm->ept;
	struct engine_refusal refused[ENGINE_REFUSALS_MAX];
	enum merge_engine engine = MERGE_ENGINE_OFF;
	const char *unmerge_why = s ? ksmd_unmerge_refusal(d->ksmd, s) : "";
	json_t *refusals = json_array();
	size_t count = 0;

	if (s)
		engine = ksmd_vm_engine(d->ksmd, &d->snapshot, s, refused, &count);
	else
		json_array_append_new(refusals, json_string("it was found just now; ask again after the next tick"));
	for (size_t i = 0; i < count; i++)
		json_array_append_new(refusals, render_refusal(&refused[i]));
	return with(render_vm(d, vm), json_pack("{s:s, s:o, s:s, s:s}", "engine", engine_name(engine), "refusals",
						refusals, "slots_why", view ? view->why : "", "unmerge_why",
						unmerge_why ? unmerge_why : ""));
}

json_t *render_unmerge(struct daemon *d, const struct vm_snapshot *vm)
{
	bool busy;
	const struct unmerge_result *res = ksmd_unmerge_result(d->ksmd, vm, &busy);

	if (!res)
		return json_pack("{s:s, s:s, s:b, s:n}", "name", vm->name, "uuid", vm->uuid, "busy", busy, "last");
	return json_pack("{s:s, s:s, s:b, s:{s:f, s:f, s:s, s:s, s:I, s:f, s:f}}", "name", vm->name, "uuid", vm->uuid,
			 "busy", busy, "last", "given_back_mib", mib((double)res->pages), "kept_mib",
			 mib((double)res->kept), "kept_why", unmerge_kept_why(res->kept_error), "error",
			 res->error == -ENOMEM	? "the host is short of memory" :
			 res->error < 0		? strerror(-res->error) :
						  "",
			 "longest_stall_us", (json_int_t)res->stall_us_max, "seconds", rounded(res->seconds),
			 "cpu_seconds", rounded(res->cpu_seconds));
}
