/* ept - the second stage in figures: building and asking a VM's table, and what translating addresses costs natively, in two
 * dimensions and by a shadow of both stages, over address spaces found in captured guests. */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "bench/lib/capture_file.h"
#include "bench/lib/ept_speed.h"
#include "bench/lib/guest_made_up.h"
#include "bench/lib/guest_space.h"
#include "bench/lib/progress.h"
#include "bench/lib/svg.h"
#include "bench/lib/walk_trace.h"
#include "core/cleanup.h"

/* A process of fewer pages is one that ends or begins. */
#define SPACE_PAGES_MIN 64
#define ACCESSES_DEFAULT 400000
#define ACCESSES_MAX 1000000000L

struct guest {
	char name[CAPTURE_NAME_MAX];
	struct capture_info info; /* of a capture */
	struct guest_made_up made_up;
	bool captured;
	uint8_t *mapped;
	struct guest_ram ram;
	struct guest_space spaces[GUEST_SPACES_MAX];
	size_t space_count, pages;
};

/* The schemes that are compared. */
enum { NATIVE, TWO_DIMENSIONAL, SHADOW, TWO_DIMENSIONAL_SMALL, SHADOW_SMALL, COLUMNS };

static const struct {
	const char *key, *name;
	enum walk_scheme scheme;
	enum trace_host host;
} columns[COLUMNS] = {
	[NATIVE] = { "native", "native", SIM_NATIVE, TRACE_HOST_CAPTURED },
	[TWO_DIMENSIONAL] = { "two_dimensional", "two-dimensional", SIM_TWO_DIMENSIONAL, TRACE_HOST_CAPTURED },
	[SHADOW] = { "shadow", "shadow", SIM_SHADOW, TRACE_HOST_CAPTURED },
	[TWO_DIMENSIONAL_SMALL] = { "two_dimensional_small", "two-dimensional, host in 4 KiB", SIM_TWO_DIMENSIONAL,
				    TRACE_HOST_SMALL },
	[SHADOW_SMALL] = { "shadow_small", "shadow, host in 4 KiB", SIM_SHADOW, TRACE_HOST_SMALL },
};

/* For the picture. */
static const unsigned tlb_sizes[] = { 96, 192, 384, 768, 1536, 3072, 6144 };

struct results {
	struct ept_speed small, huge;
	int speed_error;
	struct walk_sim_counts total[COLUMNS], by_order[TRACE_ORDERS][COLUMNS], uncached[COLUMNS];
	struct svg_point by_tlb[COLUMNS][ARRAY_SIZE(tlb_sizes)];
	size_t guests, spaces, pages;
	bool captured;
};

struct options {
	const char *captures, *svg;
	bool json;
	uint64_t accesses;
};

/* ---- guests ---- */

static int guest_load(const char *path, struct guest *g)
{
	int fd, r = capture_info_load(path, &g->info);

	if (r < 0)
		return r;
	g->captured = true;
	fd = capture_open_raw(path, &g->info, O_RDONLY);
	if (fd < 0)
		return fd;
	g->mapped = mmap(NULL, g->info.bytes, PROT_READ, MAP_PRIVATE, fd, 0);
	r = g->mapped == MAP_FAILED ? -errno : 0;
	close(fd);
	g->ram = (struct guest_ram){ g->mapped, g->info.bytes, &g->info.present, &g->info.huge };
	memcpy(g->name, g->info.name, sizeof(g->name));
	return r;
}

static int guest_make_up(struct guest *g)
{
	int r = guest_made_up(512u << 20, 4, 16384, 16, &g->made_up);

	g->ram = (struct guest_ram){ g->made_up.bytes, g->made_up.size, &g->made_up.present, &g->made_up.present };
	strcpy(g->name, "made-up");
	return r;
}

static void guest_end(struct guest *g)
{
	for (size_t i = 0; i < g->space_count; i++)
		guest_space_end(&g->spaces[i]);
	if (g->mapped && g->mapped != MAP_FAILED)
		munmap(g->mapped, g->info.bytes);
	if (g->captured)
		capture_info_free(&g->info);
	else if (g->made_up.bytes)
		guest_made_up_end(&g->made_up);
}

static int spaces_find(struct guest *g)
{
	int n = guest_spaces_find(&g->ram, SPACE_PAGES_MIN, g->spaces);

	if (n < 0)
		return n;
	g->space_count = (size_t)n;
	for (size_t i = 0; i < g->space_count; i++)
		g->pages += g->spaces[i].page_count;
	return 0;
}

/* ---- running ---- */

static int column_run(const struct guest *g, const struct options *o, enum trace_order order, unsigned column,
		      const struct walk_sim_options *sim, struct walk_sim_counts *counts)
{
	struct trace_run run = { &g->ram, g->spaces, g->space_count, order, columns[column].host, o->accesses, *sim };

	run.options.scheme = columns[column].scheme;
	return trace_run(&run, counts);
}

static int order_run(const struct guest *g, const struct options *o, enum trace_order order, struct results *res)
{
	struct walk_sim_options usual, none = { .caches = false };
	int r = 0;

	trace_options_usual(&usual);
	for (unsigned c = 0; c < COLUMNS && r == 0; c++) {
		r = column_run(g, o, order, c, &usual, &res->by_order[order][c]);
		if (r == 0)
			r = column_run(g, o, order, c, &none, &res->uncached[c]);
	}
	return r;
}

/* How it goes with the size of the TLB, for the skewed order. */
static int tlb_sizes_run(const struct guest *g, const struct options *o, struct results *res)
{
	int r = 0;

	for (size_t i = 0; i < ARRAY_SIZE(tlb_sizes); i++) {
		struct walk_sim_options sim;

		trace_options_usual(&sim);
		sim.tlb_entries = tlb_sizes[i];
		for (unsigned c = 0; c < COLUMNS && r == 0; c++) {
			struct walk_sim_counts counts = { 0 };

			r = column_run(g, o, TRACE_SKEWED, c, &sim, &counts);
			res->by_tlb[c][i].x = tlb_sizes[i];
			res->by_tlb[c][i].y += (double)counts.references * 1000 / (double)counts.accesses;
		}
	}
	return r;
}

static int guest_run(struct guest *g, const struct options *o, struct results *res)
{
	int r = spaces_find(g);

	if (r < 0)
		return r;
	if (g->space_count == 0) {
		progress("%s: no address space found in it, left out", g->name);
		return 0;
	}
	progress("%s: %zu address spaces of %zu pages", g->name, g->space_count, g->pages);
	for (unsigned order = 0; order < TRACE_ORDERS && r == 0; order++)
		r = order_run(g, o, order, res);
	if (r == 0)
		r = tlb_sizes_run(g, o, res);
	res->guests++;
	res->spaces += g->space_count;
	res->pages += g->pages;
	return r;
}

static int guests_run(const struct options *o, struct results *res)
{
	char *paths[CAPTURES_MAX];
	int n = capture_list(o->captures, paths), r = 0;

	for (int i = 0; i < n; i++) {
		auto_free struct guest *g = calloc(1, sizeof(*g));
		int loaded = g ? guest_load(paths[i], g) : -ENOMEM;

		if (loaded == 0 && r == 0)
			r = guest_run(g, o, res);
		else if (r == 0)
			progress("%s: %s, left out", paths[i], strerror(-loaded));
		if (g)
			guest_end(g);
		free(paths[i]);
	}
	res->captured = res->guests > 0;
	if (r == 0 && res->guests == 0) {
		auto_free struct guest *g = calloc(1, sizeof(*g));

		progress("no captures in %s: a made-up guest instead", o->captures);
		r = g ? guest_make_up(g) : -ENOMEM;
		if (r == 0)
			r = guest_run(g, o, res);
		if (g)
			guest_end(g);
	}
	return r;
}

static void totals(struct results *res)
{
	for (unsigned c = 0; c < COLUMNS; c++) {
		uint64_t *to = (uint64_t *)(void *)&res->total[c];

		for (unsigned order = 0; order < TRACE_ORDERS; order++) {
			const uint64_t *from = (const uint64_t *)(const void *)&res->by_order[order][c];

			for (size_t i = 0; i < sizeof(res->total[c]) / sizeof(*to); i++)
				to[i] += from[i];
		}
		for (size_t i = 0; i < ARRAY_SIZE(tlb_sizes) && res->guests > 0; i++)
			res->by_tlb[c][i].y /= (double)res->guests;
	}
}

/* ---- telling ---- */

static double rounded(double value)
{
	return round(value * 1000) / 1000;
}

static double share(uint64_t part, uint64_t whole)
{
	return whole ? (double)part / (double)whole : 0;
}

static uint64_t exits(const struct walk_sim_counts *c)
{
	return c->violations + c->guest_faults + c->table_writes + c->hidden_faults + c->switches;
}

/* All per million accesses but the first. */
static json_t *counts_json(const struct walk_sim_counts *c)
{
	const double million = 1e6 / (double)(c->accesses ? c->accesses : 1);

	return json_pack("{s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f}", "references_per_miss",
			 rounded(share(c->references, c->tlb_misses)), "tlb_misses",
			 rounded((double)c->tlb_misses * million), "references", rounded((double)c->references * million),
			 "violations", rounded((double)c->violations * million), "guest_faults",
			 rounded((double)c->guest_faults * million), "table_writes",
			 rounded((double)c->table_writes * million), "hidden_faults",
			 rounded((double)c->hidden_faults * million), "switches", rounded((double)c->switches * million));
}

static json_t *columns_json(const struct walk_sim_counts counts[COLUMNS])
{
	json_t *object = json_object();

	for (unsigned c = 0; c < COLUMNS; c++)
		json_object_set_new(object, columns[c].key, counts_json(&counts[c]));
	return object;
}

static json_t *references_json(const struct walk_sim_counts counts[COLUMNS])
{
	json_t *object = json_object();

	for (unsigned c = 0; c < COLUMNS; c++)
		json_object_set_new(object, columns[c].key,
				    json_real(rounded(share(counts[c].references, counts[c].tlb_misses))));
	return object;
}

static json_t *speed_json(const struct ept_speed *s)
{
	return json_pack("{s:f, s:f, s:f, s:f, s:f}", "build_ms_per_gib", rounded(s->build_ms_per_gib), "update_ms_per_gib",
			 rounded(s->update_ms_per_gib), "lookups_per_s", round(s->lookups_per_s), "memory_share",
			 s->memory_share, "audit_gib_s", rounded(s->audit_gib_s));
}

static json_t *results_json(const struct results *res)
{
	json_t *root = res->speed_error ? json_pack("{s:n, s:n, s:n, s:n, s:n, s:s}", "build_ms_per_gib", "update_ms_per_gib",
						    "lookups_per_s", "memory_share", "audit_gib_s", "why", strerror(-res->speed_error)) :
					  speed_json(&res->small);
	json_t *orders = json_object();

	json_object_set_new(root, "walk_references", references_json(res->total));
	json_object_set_new(root, "walk_references_uncached", references_json(res->uncached));
	for (unsigned order = 0; order < TRACE_ORDERS; order++)
		json_object_set_new(orders, trace_order_names[order], columns_json(res->by_order[order]));
	json_object_set_new(root, "per_million_accesses", orders);
	if (!res->speed_error)
		json_object_set_new(root, "huge_pages", speed_json(&res->huge));
	json_object_set_new(root, "traces", json_pack("{s:s, s:I, s:I, s:I}", "guests_are",
						      res->captured ? "captured" : "made up", "guests",
						      (json_int_t)res->guests, "spaces", (json_int_t)res->spaces, "pages",
						      (json_int_t)res->pages));
	return root;
}

static void speed_show(const char *pages, const struct ept_speed *s)
{
	printf("%s: built in %.1f ms per GiB, looked through again in %.1f ms; %.1f million lookups/s; %.3f %% of the VM's memory; "
	       "audit %.1f GiB/s\n",
	       pages, s->build_ms_per_gib, s->update_ms_per_gib, s->lookups_per_s / 1e6, s->memory_share * 100,
	       s->audit_gib_s);
}

static void results_show(const struct results *res)
{
	if (res->speed_error) {
		printf("building and lookups were not measured: %s\n", strerror(-res->speed_error));
	} else {
		speed_show("4 KiB", &res->small);
		speed_show("2 MiB", &res->huge);
	}
	printf("\n%zu %s guests, %zu address spaces, %zu pages of the guests'. Per million accesses:\n", res->guests,
	       res->captured ? "captured" : "made-up", res->spaces, res->pages);
	printf("%-8s %-32s %10s %10s %9s | %9s %9s %9s %9s %9s\n", "order", "scheme", "misses", "refs", "refs/miss", "violation",
	       "fault", "pt write", "hidden", "switch");
	for (unsigned order = 0; order < TRACE_ORDERS; order++) {
		for (unsigned c = 0; c < COLUMNS; c++) {
			const struct walk_sim_counts *n = &res->by_order[order][c];
			double million = 1e6 / (double)(n->accesses ? n->accesses : 1);

			printf("%-8s %-32s %10.0f %10.0f %9.2f | %9.0f %9.0f %9.0f %9.0f %9.0f\n", trace_order_names[order],
			       columns[c].name, (double)n->tlb_misses * million, (double)n->references * million,
			       share(n->references, n->tlb_misses), (double)n->violations * million,
			       (double)n->guest_faults * million, (double)n->table_writes * million,
			       (double)n->hidden_faults * million, (double)n->switches * million);
		}
	}
	printf("\nreferences of a walk, all orders:\n%-32s %10s %10s %16s\n", "scheme", "caches", "no caches",
	       "exits/1M acc.");
	for (unsigned c = 0; c < COLUMNS; c++)
		printf("%-32s %10.2f %10.2f %16.0f\n", columns[c].name, share(res->total[c].references, res->total[c].tlb_misses),
		       share(res->uncached[c].references, res->uncached[c].tlb_misses),
		       share(exits(&res->total[c]) * 1000000, res->total[c].accesses));
}

static int picture(const char *path, const struct results *res)
{
	auto_fclose FILE *out = fopen(path, "we");
	struct svg_line lines[COLUMNS];
	char notes[COLUMNS][64];
	const struct svg_chart chart = {
		.title = "What translating addresses costs, by the size of the TLB",
		.subtitle = "skewed accesses to the address spaces of captured guests; a model, see bench/README.md",
		.x_label = "TLB entries", .y_label = "page-table entries read per 1000 accesses",
		.lines = lines, .line_count = COLUMNS, .limit_y = NAN,
	};

	if (!out)
		return -errno;
	for (unsigned c = 0; c < COLUMNS; c++) {
		snprintf(notes[c], sizeof(notes[c]), "%.0f exits per million accesses",
			 share(exits(&res->by_order[TRACE_SKEWED][c]) * 1000000, res->by_order[TRACE_SKEWED][c].accesses));
		lines[c] = (struct svg_line){ columns[c].name, notes[c], res->by_tlb[c], ARRAY_SIZE(tlb_sizes), NAN };
	}
	svg_draw(out, &chart);
	return ferror(out) ? -EIO : 0;
}

/* ---- the program ---- */

static void usage(FILE *out)
{
	fputs("usage: ept [OPTION...]\n"
	      "  --captures DIR   guests captured by capture-guests.sh; default: build/captures. None: a made-up guest\n"
	      "  --accesses N     of each trace; default: 400000\n"
	      "  --svg FILE       draws references by the size of the TLB\n"
	      "  --json           an object on standard output instead of tables\n"
	      "Builds the second-stage table of a VM of 1 GiB, looks up addresses in it and audits it (root); then runs traces over address\n"
	      "spaces of real guests through a model of TLB and paging-structure caches.\n",
	      out);
}

/* 0; 1 to end well (--help); -1 for bad usage. */
static int parse_options(int argc, char **argv, struct options *o)
{
	static const struct option table[] = {
		{ "captures", required_argument, NULL, 'c' }, { "accesses", required_argument, NULL, 'a' },
		{ "svg", required_argument, NULL, 's' },      { "json", no_argument, NULL, 'j' },
		{ "help", no_argument, NULL, 'h' },	      { NULL, 0, NULL, 0 },
	};
	bool good = true;
	char *rest;
	long n;
	int c;

	while ((c = getopt_long(argc, argv, "h", table, NULL)) != -1) {
		switch (c) {
		case 'c': o->captures = optarg; break;
		case 's': o->svg = optarg; break;
		case 'j': o->json = true; break;
		case 'a':
			n = strtol(optarg, &rest, 10);
			good &= *rest == '\0' && n >= 1 && n <= ACCESSES_MAX;
			o->accesses = (uint64_t)n;
			break;
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

int main(int argc, char **argv)
{
	struct options o = { .captures = "build/captures", .accesses = ACCESSES_DEFAULT };
	auto_free struct results *res = calloc(1, sizeof(*res));
	int r = parse_options(argc, argv, &o);

	if (r != 0)
		return r < 0 ? 2 : 0;
	if (!res)
		return 1;
	res->speed_error = ept_speed_measure(false, &res->small);
	if (res->speed_error == 0)
		res->speed_error = ept_speed_measure(true, &res->huge);
	r = guests_run(&o, res);
	totals(res);
	if (r == 0 && o.json) {
		json_t *root = results_json(res);

		json_dumpf(root, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(12));
		putchar('\n');
		json_decref(root);
	} else if (r == 0) {
		results_show(res);
	}
	if (r == 0 && o.svg)
		r = picture(o.svg, res);
	if (r < 0)
		fprintf(stderr, "ept: %s\n", strerror(-r));
	return r < 0 || ferror(stdout);
}
