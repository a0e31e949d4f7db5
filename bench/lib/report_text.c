#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "bench/lib/report.h"
#include "bench/lib/svg.h"
#include "core/cleanup.h"
#include "core/snapshot.h"

#define MIB_PER_PAGE ((double)PAGE_BYTES / (1u << 20))
/* A curve goes on this much longer than it took to its goal, then it is flat. */
#define TAIL 1.15

static double pages_mib(uint64_t pages)
{
	return (double)pages * MIB_PER_PAGE;
}

/* ---- table ---- */

static const char *seconds_text(char *text, size_t cap, double seconds)
{
	if (isnan(seconds))
		return "-";
	snprintf(text, cap, "%.2f", seconds);
	return text;
}

static void print_scan(const struct report *r, FILE *out)
{
	const struct scan_bench *s = &r->scan;
	const struct estimate *e = &r->estimate;
	double savable = (double)r->oracle.savable;

	if (!r->scanned) {
		fprintf(out, "\nscan: not measured: %s\n", r->scan_why);
		return;
	}
	fprintf(out, "\nscan, GB/s               best  median\n");
	fprintf(out, "  bare loop, 1 thread  %6.2f  %6.2f\n", s->bare.best, s->bare.median);
	fprintf(out, "  same, /proc/PID/mem  %6.2f  %6.2f\n", s->bare_mem.best, s->bare_mem.median);
	fprintf(out, "  project, 1 worker    %6.2f  %6.2f   %.0f %% of bare (%.0f %% by CPU time)\n", s->project[0].best,
		s->project[0].median, s->project[0].best / s->bare.best * 100,
		s->project[0].cpu_best / s->bare.cpu_best * 100);
	fprintf(out, "  project, 2 workers   %6.2f  %6.2f   %.2f x one\n", s->project[1].best, s->project[1].median,
		s->project[1].best / s->project[0].best);
	fprintf(out, "estimate: %.1f MiB, %+.2f %% off the oracle; %.2f s, %.2f s of CPU; metadata %.2f bytes a page\n",
		e->mergeable * MIB_PER_PAGE, savable > 0 ? (e->mergeable - savable) / savable * 100 : 0, e->seconds,
		e->cpu_seconds, (double)e->metadata_bytes / (double)r->oracle.present);
}

static void print_engine(const struct engine_results *e, FILE *out)
{
	const struct run_result *m = report_median(e), *best = report_best(e);
	char to_99[32], best_99[32], own[32];

	if (!m) {
		fprintf(out, "%-14s not run: %s\n", e->engine->name, e->count ? e->run[0].why : "");
		return;
	}
	fprintf(out, "%-14s %9.1f %8s %8s %8s %8.2f %8.2f %9.1f %8.2f %8.2f %9.1f%s\n", e->engine->name, m->saved_mib,
		seconds_text(to_99, sizeof(to_99), m->seconds_to_99),
		seconds_text(best_99, sizeof(best_99), best->seconds_to_99),
		seconds_text(own, sizeof(own), m->seconds_to_own_99), m->cpu_seconds, m->cpu_seconds_total,
		(double)m->metadata_bytes / 1024, (double)hist_quantile_ns(&m->victim, 0.5) / 1e3,
		(double)hist_quantile_ns(&m->victim, 0.99) / 1e3, (double)hist_quantile_ns(&m->victim, 0.999) / 1e3,
		m->capped ? "  stopped early" : "");
}

/* What is remembered may be 12 bytes for each page and 1 KB for each run. */
static void print_figures(const struct report *r, const struct engine_results *e, FILE *out)
{
	const struct run_result *m = report_median(e);
	double limit;

	if (!m || !m->has_figures)
		return;
	limit = (double)r->oracle.present * 12 + (double)m->figures.runs * 1000;
	fprintf(out,
		"%s: %llu runs, %.2f million pages/s a core, longest stall %.1f ms, %.1f MiB merged in huge mappings,\n"
		"  metadata %.0f %% of 12 bytes a page and 1 KB a run\n",
		e->engine->name, (unsigned long long)m->figures.runs, m->merge_pages_per_s / 1e6,
		(double)m->figures.longest_stall_us / 1e3, m->huge_merged_mib, (double)m->metadata_bytes / limit * 100);
}

static void print_remarks(const struct report *r, enum report_kind kind, FILE *out)
{
	for (size_t i = 0; i < r->engine_count; i++) {
		const struct engine_results *e = &r->engines[kind][i];

		print_figures(r, e, out);

		for (size_t j = 0; j < e->count; j++) {
			if (e->run[j].foreign_pages > 0)
				fprintf(out, "%s: KSM also looked at %.0f MiB of other processes\n", e->engine->name,
					pages_mib(e->run[j].foreign_pages));
			if (e->run[j].undone)
				fprintf(out, "%s: merged %.1f MiB, but only %.1f MiB stayed merged\n", e->engine->name,
					e->run[j].saved_counters_mib, e->run[j].saved_mib);
			if (e->run[j].wrong_pages > 0 || e->run[j].lost_writes > 0)
				fprintf(out, "WRONG: %s changed %llu pages and lost %llu writes\n", e->engine->name,
					(unsigned long long)e->run[j].wrong_pages,
					(unsigned long long)e->run[j].lost_writes);
		}
	}
}

static void print_engines(const struct report *r, enum report_kind kind, FILE *out)
{
	fprintf(out, "\n%-14s %9s %8s %8s %8s %8s %8s %9s %8s %8s %9s\n",
		kind == KIND_HUGE ? "huge pages" : "4 KiB pages", "saved", "s to 99%", "best", "own 99%", "CPU s",
		"in all", "metadata", "victim", "p99", "p99.9");
	fprintf(out, "%-14s %9s %8s %8s %8s %8s %8s %9s %8s %8s %9s\n", "engine", "MiB", "", "", "", "", "", "KiB",
		"p50 us", "us", "us");
	for (size_t i = 0; i < r->engine_count; i++)
		print_engine(&r->engines[kind][i], out);
	print_remarks(r, kind, out);
}

static void print_rival(const char *name, const struct idle_result *i, FILE *out)
{
	if (!i->ok)
		fprintf(out, "%-14s not measured: %s\n", name, i->why);
	else
		fprintf(out, "%-14s %9.3f %8.1f %8.2f %8.2f\n", name, i->cpu_percent, i->notice_seconds,
			i->dirty_cpu_percent[0], i->dirty_cpu_percent[1]);
}

static void print_idle(const struct idle_report *i, FILE *out)
{
	fprintf(out, "\n%-14s %9s %8s %8s %8s\n", "looking on", "idle", "notice", "1 %/s", "10 %/s");
	fprintf(out, "%-14s %9s %8s %8s %8s\n", "", "% CPU", "s", "% CPU", "% CPU");
	print_rival("ksm", &i->ksm, out);
	print_rival("remap", &i->remap, out);
}

void report_table(const struct report *r, FILE *out)
{
	const struct oracle *o = &r->oracle;

	fprintf(out, "%zu %s guests, %.0f MiB present, %.0f %% of it in huge pages\n", r->guests,
		r->synthetic ? "synthetic" : "captured", pages_mib(o->present), r->huge_share * 100);
	fprintf(out, "oracle: %.1f MiB can be saved: %.1f zero, %.1f within guests, %.1f between guests\n",
		pages_mib(o->savable), pages_mib(o->zero), pages_mib(o->within), pages_mib(o->between));
	print_scan(r, out);
	for (int kind = 0; kind < REPORT_KINDS; kind++) {
		if (r->measured[kind])
			print_engines(r, (enum report_kind)kind, out);
	}
	if (r->idle_measured)
		print_idle(&r->idle, out);
}

/* ---- picture ---- */

/* The picture shows the way to the goal; waiting for nothing more to come is cut off. */
static size_t shown_points(const struct run_result *r)
{
	double until = (isnan(r->seconds_to_99) ? r->seconds_to_own_99 : r->seconds_to_99) * TAIL;
	size_t count = 0;

	while (count < r->curve_count && !(r->curve[count].x > until))
		count++;
	return count;
}

static void describe_run(char *text, size_t cap, const struct run_result *m)
{
	if (m->undone)
		snprintf(text, cap, "%.0f MiB merged, of which %.0f stayed merged", m->saved_counters_mib, m->saved_mib);
	else if (isnan(m->seconds_to_99))
		snprintf(text, cap, "%.0f MiB, %.2f s of CPU, 99 %% not reached", m->saved_mib, m->cpu_seconds);
	else
		snprintf(text, cap, "%.0f MiB, 99 %% in %.2f s with %.2f s of CPU", m->saved_mib, m->seconds_to_99,
			 m->cpu_seconds);
}

int report_svg(const struct report *r, const char *path)
{
	char notes[ENGINES_MAX][160], subtitle[200], limit[64];
	struct svg_line lines[ENGINES_MAX];
	auto_fclose FILE *out = fopen(path, "we");
	struct svg_chart chart = { .title = "Memory saved over time", .x_label = "seconds", .y_label = "MiB saved" };

	if (!out)
		return -errno;
	for (size_t i = 0; i < r->engine_count; i++) {
		const struct run_result *m = report_median(&r->engines[r->first][i]);

		if (!m || r->engines[r->first][i].engine == &engine_null)
			continue;
		describe_run(notes[chart.line_count], sizeof(notes[0]), m);
		lines[chart.line_count] = (struct svg_line){ .name = r->engines[r->first][i].engine->name,
							     .note = notes[chart.line_count],
							     .points = m->curve,
							     .count = shown_points(m),
							     .mark_x = m->seconds_to_99 };
		chart.line_count++;
	}
	snprintf(subtitle, sizeof(subtitle),
		 "%zu %s guests, %.0f MiB present, %.0f %% in huge pages; dots: 99 %% of the oracle", r->guests,
		 r->synthetic ? "synthetic" : "captured", pages_mib(r->oracle.present), r->huge_share * 100);
	snprintf(limit, sizeof(limit), "oracle: %.0f MiB", pages_mib(r->oracle.savable));
	chart.subtitle = subtitle;
	chart.lines = lines;
	chart.limit_y = pages_mib(r->oracle.savable);
	chart.limit_name = limit;
	svg_draw(out, &chart);
	return ferror(out) ? -EIO : 0;
}
