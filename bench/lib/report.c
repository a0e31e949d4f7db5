#include "bench/lib/report.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>

#include "core/snapshot.h"

#define MIB_PER_PAGE ((double)PAGE_BYTES / (1u << 20))

/* ---- which run counts ---- */

/* Runs that reached the goal come before those that did not. */
static int run_order(const void *a, const void *b)
{
	const struct run_result *x = *(const struct run_result *const *)a, *y = *(const struct run_result *const *)b;
	double x_s, y_s;

	if (isnan(x->seconds_to_99) != isnan(y->seconds_to_99))
		return isnan(x->seconds_to_99) ? 1 : -1;
	x_s = isnan(x->seconds_to_99) ? x->seconds : x->seconds_to_99;
	y_s = isnan(y->seconds_to_99) ? y->seconds : y->seconds_to_99;
	return (x_s > y_s) - (x_s < y_s);
}

static size_t good_runs(const struct engine_results *e, const struct run_result *sorted[REPEAT_MAX])
{
	size_t count = 0;

	for (size_t i = 0; i < e->count; i++) {
		if (e->run[i].ok)
			sorted[count++] = &e->run[i];
	}
	qsort(sorted, count, sizeof(*sorted), run_order);
	return count;
}

const struct run_result *report_median(const struct engine_results *e)
{
	const struct run_result *sorted[REPEAT_MAX];
	size_t count = good_runs(e, sorted);

	return count > 0 ? sorted[(count - 1) / 2] : NULL;
}

const struct run_result *report_best(const struct engine_results *e)
{
	const struct run_result *sorted[REPEAT_MAX];

	return good_runs(e, sorted) > 0 ? sorted[0] : NULL;
}

bool report_is_clean(const struct report *r)
{
	for (size_t i = 0; i < REPORT_KINDS * ENGINES_MAX; i++) {
		const struct engine_results *e = &r->engines[i / ENGINES_MAX][i % ENGINES_MAX];

		for (size_t j = 0; j < e->count; j++) {
			if (e->run[j].wrong_pages > 0 || e->run[j].lost_writes > 0)
				return false;
		}
	}
	return r->idle.ksm.wrong_pages == 0 && r->idle.remap.wrong_pages == 0;
}

/* ---- JSON ---- */

/* Six significant digits: the noise is far above that. */
static json_t *number(double value)
{
	double unit;

	if (!isfinite(value))
		return json_null();
	if (fabs(value) < 1e-9)
		return json_real(0);
	unit = pow(10, floor(log10(fabs(value))) - 5);
	/* Dividing by a power of ten, not multiplying by its inverse, keeps the decimal short. */
	return json_real(unit < 1 ? round(value / unit) / round(1 / unit) : round(value / unit) * unit);
}

static json_t *mib(double pages)
{
	return number(pages * MIB_PER_PAGE);
}

static json_t *run_json(const struct run_result *r)
{
	json_t *out = json_object();

	json_object_set_new(out, "seconds_to_99", number(r->seconds_to_99));
	json_object_set_new(out, "seconds_to_own_99", number(r->seconds_to_own_99));
	json_object_set_new(out, "seconds_total", number(r->seconds));
	json_object_set_new(out, "cpu_seconds", number(r->cpu_seconds));
	json_object_set_new(out, "cpu_seconds_total", number(r->cpu_seconds_total));
	json_object_set_new(out, "saved_mib", number(r->saved_mib));
	json_object_set_new(out, "saved_by_counters_mib", number(r->saved_counters_mib));
	json_object_set_new(out, "metadata_bytes", json_integer((json_int_t)r->metadata_bytes));
	json_object_set_new(out, "huge_merged_mib", number(r->huge_merged_mib));
	if (r->has_figures) {
		json_object_set_new(out, "runs", json_integer((json_int_t)r->figures.runs));
		json_object_set_new(out, "merge_pages_per_s", number(r->merge_pages_per_s));
		json_object_set_new(out, "longest_stall_us", json_integer((json_int_t)r->figures.longest_stall_us));
	}
	json_object_set_new(out, "foreign_pages", json_integer((json_int_t)r->foreign_pages));
	json_object_set_new(out, "victim_p50_us", number((double)hist_quantile_ns(&r->victim, 0.5) / 1e3));
	json_object_set_new(out, "victim_p99_us", number((double)hist_quantile_ns(&r->victim, 0.99) / 1e3));
	json_object_set_new(out, "victim_p999_us", number((double)hist_quantile_ns(&r->victim, 0.999) / 1e3));
	json_object_set_new(out, "victim_max_us", number((double)r->victim.max_ns / 1e3));
	json_object_set_new(out, "wrong_pages", json_integer((json_int_t)r->wrong_pages));
	json_object_set_new(out, "lost_writes", json_integer((json_int_t)r->lost_writes));
	if (r->capped)
		json_object_set_new(out, "capped", json_true());
	if (r->undone)
		json_object_set_new(out, "undone", json_true());
	if (r->why[0])
		json_object_set_new(out, "why", json_string(r->why));
	return out;
}

/* Only the times differ between runs by more than noise in the rest. */
static json_t *best_json(const struct engine_results *e)
{
	const struct run_result *best = report_best(e);
	double cpu = INFINITY;

	for (size_t i = 0; i < e->count; i++) {
		if (e->run[i].ok)
			cpu = fmin(cpu, e->run[i].cpu_seconds);
	}
	return json_pack("{s:o, s:o}", "seconds_to_99", number(best->seconds_to_99), "cpu_seconds", number(cpu));
}

static const char *failure_of(const struct engine_results *e)
{
	return e->count > 0 && e->run[0].why[0] ? e->run[0].why : "unknown";
}

static json_t *engines_json(const struct report *r, enum report_kind kind, json_t *why)
{
	json_t *out = json_object();

	for (size_t i = 0; i < r->engine_count; i++) {
		const struct engine_results *e = &r->engines[kind][i];
		const struct run_result *median = report_median(e);
		json_t *row = median ? run_json(median) : json_null();

		if (!median) {
			json_object_set_new(why, e->engine->name, json_string(failure_of(e)));
		} else if (e->count > 1) {
			json_object_set_new(row, "repeats", json_integer((json_int_t)e->count));
			json_object_set_new(row, "best", best_json(e));
		}
		json_object_set_new(out, e->engine->name, row);
	}
	return out;
}

static json_t *scan_json(const struct report *r)
{
	const struct scan_bench *s = &r->scan;
	json_t *out = json_object();

	json_object_set_new(out, "bare_gb_s", number(s->bare.best));
	json_object_set_new(out, "bare_proc_mem_gb_s", number(s->bare_mem.best));
	json_object_set_new(out, "project_gb_s", number(s->project[0].best));
	json_object_set_new(out, "project_2_workers_gb_s", number(s->project[1].best));
	json_object_set_new(out, "bare_median_gb_s", number(s->bare.median));
	json_object_set_new(out, "project_median_gb_s", number(s->project[0].median));
	json_object_set_new(out, "project_2_workers_median_gb_s", number(s->project[1].median));
	json_object_set_new(out, "project_to_bare", number(s->project[0].best / s->bare.best));
	json_object_set_new(out, "project_to_bare_by_cpu", number(s->project[0].cpu_best / s->bare.cpu_best));
	json_object_set_new(out, "two_workers_to_one", number(s->project[1].best / s->project[0].best));
	json_object_set_new(out, "metadata_bytes_per_page",
			    number((double)r->estimate.metadata_bytes / (double)r->oracle.present));
	json_object_set_new(out, "metadata_bytes_per_guest_page",
			    number((double)r->estimate.metadata_bytes / (double)r->oracle.guest_pages));
	return out;
}

static double percent_off(double value, double truth)
{
	return truth > 0 ? (value - truth) / truth * 100 : 0;
}

static json_t *estimate_json(const struct report *r)
{
	const struct estimate *e = &r->estimate;
	json_t *out = json_object();

	json_object_set_new(out, "present_mib", mib(e->present));
	json_object_set_new(out, "zero_mib", mib(e->zero));
	json_object_set_new(out, "dup_within_mib", mib(e->within));
	json_object_set_new(out, "dup_between_mib", mib(e->between));
	json_object_set_new(out, "mergeable_mib", mib(e->mergeable));
	json_object_set_new(out, "off_oracle_percent",
			    number(percent_off(e->mergeable, (double)r->oracle.savable)));
	json_object_set_new(out, "seconds", number(e->seconds));
	json_object_set_new(out, "cpu_seconds", number(e->cpu_seconds));
	return out;
}

static json_t *oracle_json(const struct report *r)
{
	const struct oracle *o = &r->oracle;

	return json_pack("{s:o, s:o, s:o, s:o, s:o, s:o}", "guest_mib", mib((double)o->guest_pages), "present_mib",
			 mib((double)o->present), "zero_mib", mib((double)o->zero), "dup_within_mib",
			 mib((double)o->within), "dup_between_mib", mib((double)o->between), "seconds",
			 number(o->seconds));
}

static json_t *rival_json(const struct idle_result *i)
{
	if (!i->ok)
		return json_null();
	return json_pack("{s:o, s:o, s:o, s:o, s:I}", "cpu_percent", number(i->cpu_percent), "notice_seconds",
			 number(i->notice_seconds), "dirty_1_cpu_percent", number(i->dirty_cpu_percent[0]),
			 "dirty_10_cpu_percent", number(i->dirty_cpu_percent[1]), "wrong_pages",
			 (json_int_t)i->wrong_pages);
}

static json_t *idle_json(const struct report *r, json_t *why)
{
	const struct idle_report *i = &r->idle;

	if (!r->idle_measured)
		return json_null();
	if (!i->ksm.ok)
		json_object_set_new(why, "idle ksm", json_string(i->ksm.why));
	if (!i->remap.ok)
		json_object_set_new(why, "idle remap", json_string(i->remap.why));
	return json_pack("{s:o, s:o}", "ksm", rival_json(&i->ksm), "remap", rival_json(&i->remap));
}

void report_json(const struct report *r, FILE *out)
{
	json_t *root = json_object(), *why = json_object(), *why_4k = json_object();

	json_object_set_new(root, "oracle_mib", mib((double)r->oracle.savable));
	json_object_set_new(root, "oracle", oracle_json(r));
	json_object_set_new(root, "guests", json_integer((json_int_t)r->guests));
	json_object_set_new(root, "captures", json_string(r->synthetic ? "synthetic" : "guests"));
	json_object_set_new(root, "thp", json_string(r->first == KIND_HUGE ? "on" : "off"));
	json_object_set_new(root, "huge_share", number(r->huge_share));
	json_object_set_new(root, "scan", r->scanned ? scan_json(r) : json_null());
	json_object_set_new(root, "estimate", r->scanned ? estimate_json(r) : json_null());
	if (!r->scanned)
		json_object_set_new(why, "scan", json_string(r->scan_why));
	json_object_set_new(root, "engines", engines_json(r, r->first, why));
	json_object_set_new(root, "engines_4k",
			    r->measured[KIND_SMALL] ? engines_json(r, KIND_SMALL, why_4k) : json_null());
	json_object_set_new(root, "idle", idle_json(r, why));
	json_object_set_new(root, "why", why);
	json_object_set_new(root, "why_4k", why_4k);
	json_dumpf(root, out, JSON_INDENT(2) | JSON_REAL_PRECISION(6));
	fputc('\n', out);
	json_decref(root);
}
