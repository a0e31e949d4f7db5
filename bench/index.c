/* index - what a pass and a plan take on a host that is not at hand: time and memory for a row of sizes, up to 1 TiB in
 * 1000 VMs.
 *
 * There is no guest memory, only what is remembered of it: hashes of made-up VMs, all in one domain, so that everything
 * is compared with everything. The code is the daemon's: pass (without the scan), stable index, planner, frame index. */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <urcu.h>

#include "bench/lib/made_up.h"
#include "bench/lib/progress.h"
#include "core/cleanup.h"
#include "core/clock.h"
#include "core/fsio.h"
#include "core/snapshot.h"
#include "ksmd/frame_index.h"
#include "ksmd/pass_internal.h"
#include "ksmd/plan.h"
#include "ksmd/stable_index.h"

#define TIB_PAGES (UINT64_C(1) << 28)
#define TIB_VMS 1000u
/* VMs with an image of their own: as many as were captured together. */
#define FAMILY_VMS 4u
/* What a size may take, and what is left to others: a machine at its end measures nothing. */
#define NEED_BYTES_PER_PAGE 16u
#define LEFT_BYTES (UINT64_C(2) << 30)

static const double sizes[] = { 1.0 / 64, 1.0 / 16, 1.0 / 4, 1.0 };

struct row {
	double tib;
	size_t vms;
	uint64_t pages;
	double pass_seconds, plan_seconds, again_seconds;
	double bytes_per_page;	 /* at the highest, as the kernel counts it */
	double counted_per_page; /* as the code counts itself */
	struct plan_totals totals;
};

struct world {
	uint64_t resident_kib; /* before anything was there */
	size_t vms;
	uint64_t pages; /* of each */
	struct page_table **tables;
	uint64_t **left_out;
	struct plan_range *ranges;
	struct plan_vm *limits;
	struct stable_index *stable;
	struct frame_index *frames;
};

/* ---- memory ---- */

static uint64_t kib_of(const struct fsio *fs, const char *path, const char *key)
{
	uint64_t kib = 0;
	char text[16384];

	if (fsio_read(fs, text, sizeof(text), "%s", path) < 0 || fsio_field_u64(text, key, &kib) < 0)
		return 0;
	return kib;
}

/* From here on VmHWM is the highest since now. */
static int peak_reset(void)
{
	auto_fclose FILE *f = fopen("/proc/self/clear_refs", "we");

	return f && fputs("5", f) >= 0 && fflush(f) == 0 ? 0 : -errno;
}

/* ---- VMs ---- */

static struct page_table *table_new(const struct world *w, size_t vm)
{
	struct page_table *t = calloc(1, sizeof(*t));
	size_t chunks = (size_t)(w->pages / SCAN_CHUNK_PAGES + 1);
	struct scan_target *target;

	if (!t)
		return NULL;
	t->refs = 1;
	t->pidfd = t->pagemap_fd = t->mem_fd = -1;
	t->merge_allowed = t->anonymous = true;
	t->name = strdup("vm");
	t->uuid = strdup("vm");
	t->domain = strdup("domain");
	t->targets = target = calloc(1, sizeof(*target));
	if (!t->name || !t->uuid || !t->domain || !target)
		return page_table_unref(t);
	t->target_count = 1;
	target->pages = w->pages;
	target->present_pages = w->pages;
	target->hashes = scan_hashes_new(w->pages);
	target->used = malloc(chunks);
	target->changed = malloc(chunks * SCAN_CHUNK_WORDS * sizeof(*target->changed));
	if (!target->hashes || !target->used || !target->changed)
		return page_table_unref(t);
	memset(target->used, 1, chunks);
	memset(target->changed, 0, chunks * SCAN_CHUNK_WORDS * sizeof(*target->changed)); /* takes its memory */
	made_up_vm(target->hashes, w->pages, vm, FAMILY_VMS);
	return t;
}

static int vm_new(struct world *w, size_t vm)
{
	size_t left_out_bytes = (size_t)(w->pages / 64 + 1) * sizeof(uint64_t);

	w->tables[vm] = table_new(w, vm);
	w->left_out[vm] = malloc(left_out_bytes);
	if (!w->tables[vm] || !w->left_out[vm])
		return -ENOMEM;
	memset(w->left_out[vm], 0, left_out_bytes);
	w->ranges[vm] = (struct plan_range){
		.vm = (uint32_t)vm, .pages = w->pages, .hva = (uint64_t)(vm + 1) << 40,
		.hashes = w->tables[vm]->targets[0].hashes, .left_out = w->left_out[vm],
	};
	w->limits[vm].mappings_left = PLAN_MAPPINGS_UNLIMITED;
	return 0;
}

static int world_new(struct world *w, double tib, const struct fsio *fs)
{
	int r;

	*w = (struct world){ .vms = (size_t)(tib * TIB_VMS + 0.5) };
	w->resident_kib = kib_of(fs, "/proc/self/status", "VmRSS");
	w->pages = ((uint64_t)(tib * (double)TIB_PAGES) + w->vms - 1) / w->vms;
	w->tables = calloc(w->vms, sizeof(struct page_table *));
	w->left_out = calloc(w->vms, sizeof(uint64_t *));
	w->ranges = calloc(w->vms, sizeof(*w->ranges));
	w->limits = calloc(w->vms, sizeof(*w->limits));
	if (!w->tables || !w->left_out || !w->ranges || !w->limits)
		return -ENOMEM;
	for (size_t i = 0; i < w->vms; i++) {
		r = vm_new(w, i);
		if (r < 0)
			return r;
	}
	return peak_reset();
}

static void world_free(struct world *w)
{
	for (size_t i = 0; i < w->vms && w->tables && w->left_out; i++) {
		page_table_unref(w->tables[i]);
		free(w->left_out[i]);
	}
	free(w->tables);
	free(w->left_out);
	free(w->ranges);
	free(w->limits);
	stable_index_free(w->stable);
	frame_index_free(w->frames);
}

/* ---- measuring ---- */

/* All that a pass does, but for looking at memory: no table is due. */
static int pass_measure(struct world *w, double *ret_seconds, size_t *ret_bytes)
{
	const struct pass_options options = { .index = w->stable };
	struct pass_input *inputs = calloc(w->vms, sizeof(*inputs));
	const struct pass_result *res;
	struct pass *pass;
	int r;

	if (!inputs)
		return -ENOMEM;
	for (size_t i = 0; i < w->vms; i++)
		inputs[i].table = w->tables[i];
	r = pass_start(inputs, w->vms, &options, &pass);
	free(inputs);
	if (r < 0)
		return r;
	res = pass_wait(pass);
	r = res->error;
	*ret_seconds = res->cpu_seconds;
	*ret_bytes = res->metadata_bytes;
	pass_free(pass);
	return r;
}

/* Takes all windows; new frames go into the index, as when they are filled. */
static int windows_take(const struct world *w, struct plan *p)
{
	auto_free struct plan_window *window = malloc(sizeof(*window));
	int r = window ? 0 : -ENOMEM;

	while (r == 0 && plan_next(p, window) == 1)
		for (uint32_t i = 0; i < window->fill_count; i++)
			for (uint32_t k = 0; k < window->fills[i].pages && r == 0; k++)
				r = frame_index_put(w->frames, plan_page_hash(p, window->vm, window->fills[i].page + k),
						    window->fills[i].frame + k);
	return r;
}

static int plan_measure(const struct world *w, double *ret_seconds, size_t *ret_bytes, struct plan_totals *ret_totals)
{
	const struct plan_input in = { w->ranges, w->vms, w->limits, w->vms, PLAN_LIMITS_DEFAULT, w->frames };
	uint64_t start = clock_thread_cpu_ns();
	size_t joining, peak = 0;
	struct plan_need need;
	struct plan *p;
	int r;

	rcu_register_thread();
	r = plan_new(&in, &p);
	if (r < 0)
		goto out;
	joining = plan_bytes(p);
	r = plan_join(p, &peak);
	joining += peak;
	if (r == 0)
		r = plan_build(p, &need);
	if (r == 0)
		r = plan_place(p, 0, need.block_frames);
	if (r == 0)
		r = windows_take(w, p);
	*ret_seconds = (double)(clock_thread_cpu_ns() - start) / (double)NSEC_PER_SEC;
	*ret_bytes = joining > plan_bytes(p) ? joining : plan_bytes(p);
	plan_count(p, ret_totals);
	plan_free(p);
out:
	rcu_unregister_thread();
	return r;
}

/* A pass, a plan for memory in which nothing is merged, and one that finds all frames there already. */
static int world_measure(struct world *w, struct row *row)
{
	const double pages = (double)row->pages, bits = 2.0 / 8; /* changed, left out */
	size_t pass_bytes = 0, plan_bytes = 0;
	struct plan_totals totals;
	int r = stable_index_new(&w->stable);

	if (r == 0)
		r = frame_index_new((uint32_t)row->pages, &w->frames);
	if (r == 0)
		r = pass_measure(w, &row->pass_seconds, &pass_bytes);
	if (r == 0)
		r = plan_measure(w, &row->plan_seconds, &plan_bytes, &row->totals);
	if (r < 0)
		return r;
	plan_bytes += row->pages * sizeof(uint64_t) + frame_index_bytes(w->frames) + stable_index_bytes(w->stable);
	row->counted_per_page = (double)(pass_bytes > plan_bytes ? pass_bytes : plan_bytes) / pages + bits;
	return plan_measure(w, &row->again_seconds, &(size_t){ 0 }, &totals);
}

static int row_measure(double tib, const struct fsio *fs, struct row *row)
{
	uint64_t peak_kib;
	struct world w;
	int r;

	progress("%g TiB: making up its VMs", tib);
	r = world_new(&w, tib, fs);
	*row = (struct row){ .tib = tib, .vms = w.vms, .pages = w.vms * w.pages };
	progress("%g TiB, %zu VMs: a pass and two plans", tib, w.vms);
	if (r == 0)
		r = world_measure(&w, row);
	peak_kib = kib_of(fs, "/proc/self/status", "VmHWM");
	row->bytes_per_page = (double)(peak_kib - w.resident_kib) * 1024 / (double)row->pages;
	world_free(&w);
	return r;
}

/* ---- showing ---- */

static void row_show(const struct row *row, const struct row *before, bool json)
{
	double pages = (double)row->pages;

	if (json) {
		printf("%s\n  {\"tib\": %g, \"vms\": %zu, \"metadata_bytes_per_page\": %.2f, \"pass_seconds\": %.3f, "
		       "\"plan_seconds\": %.3f}", before ? "," : "", row->tib, row->vms, row->bytes_per_page,
		       row->pass_seconds, row->plan_seconds);
		return;
	}
	if (!before)
		printf("%8s %5s %9s %8s %8s %8s %7s %7s %10s   growth: %6s %6s %6s %6s\n", "TiB", "VMs", "pages M", "pass s",
		       "plan s", "again s", "B/page", "counted", "runs", "pages", "pass", "plan", "again");
	printf("%8g %5zu %9.1f %8.3f %8.3f %8.3f %7.2f %7.2f %10llu", row->tib, row->vms, pages / 1e6, row->pass_seconds,
	       row->plan_seconds, row->again_seconds, row->bytes_per_page, row->counted_per_page,
	       (unsigned long long)row->totals.runs);
	if (before)
		printf("           %6.2f %6.2f %6.2f %6.2f", pages / (double)before->pages,
		       row->pass_seconds / before->pass_seconds, row->plan_seconds / before->plan_seconds,
		       row->again_seconds / before->again_seconds);
	printf("\n");
	fflush(stdout);
}

static void usage(FILE *out)
{
	fputs("usage: index [OPTION...]\n"
	      "  --max TIB   no size above this; default: 1\n"
	      "  --json      a list of objects on standard output instead of a table\n"
	      "CPU time and memory of a pass without its scan and of a plan, on made-up hashes: 16 bytes of memory for each\n"
	      "page, 4 GiB for 1 TiB. Sizes for which there is no room now are left out. Needs no root.\n",
	      out);
}

/* 0; 1 to end well (--help); -1 for bad usage. */
static int parse_options(int argc, char **argv, double *max, bool *json)
{
	static const struct option table[] = {
		{ "max", required_argument, NULL, 'm' }, { "json", no_argument, NULL, 'j' },
		{ "help", no_argument, NULL, 'h' },	 { NULL, 0, NULL, 0 },
	};
	bool good = true;
	char *rest;
	int c;

	while ((c = getopt_long(argc, argv, "h", table, NULL)) != -1) {
		switch (c) {
		case 'm':
			*max = strtod(optarg, &rest);
			good &= *rest == '\0' && *max >= sizes[0];
			break;
		case 'j': *json = true; break;
		case 'h': usage(stdout); return 1;
		default: good = false;
		}
	}
	if (!good || optind != argc) {
		usage(stderr);
		return -1;
	}
	return 0;
}

static bool fits(const struct fsio *fs, double tib)
{
	double need = tib * (double)TIB_PAGES * NEED_BYTES_PER_PAGE + (double)LEFT_BYTES;
	double have = (double)kib_of(fs, "/proc/meminfo", "MemAvailable") * 1024;

	if (need > have)
		progress("%g TiB and more left out: needs %.1f GiB of memory, %.1f are available", tib, need / (1u << 30),
			 have / (1u << 30));
	return need <= have;
}

int main(int argc, char **argv)
{
	struct row rows[ARRAY_SIZE(sizes)];
	double max = sizes[ARRAY_SIZE(sizes) - 1];
	struct fsio fs;
	bool json = false;
	size_t done = 0;
	int r = parse_options(argc, argv, &max, &json);

	if (r != 0)
		return r < 0 ? 2 : 0;
	r = fsio_open_root("/", false, &fs);
	if (r < 0)
		goto out;
	if (json)
		printf("[");
	for (size_t i = 0; r == 0 && i < ARRAY_SIZE(sizes) && sizes[i] <= max && fits(&fs, sizes[i]); i++) {
		r = row_measure(sizes[i], &fs, &rows[done]);
		if (r == 0)
			row_show(&rows[done], done ? &rows[done - 1] : NULL, json);
		done += r == 0;
	}
	if (json)
		printf("\n]\n");
	fsio_close(&fs);
out:
	if (r < 0)
		fprintf(stderr, "index: %s\n", strerror(-r));
	return r < 0;
}
