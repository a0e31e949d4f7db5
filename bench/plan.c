/* bench/plan.c - what joining and planning cost: CPU nanoseconds and bytes for each page, on made-up VMs. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <urcu.h>

#include "bench/lib/made_up.h"
#include "core/cleanup.h"
#include "core/clock.h"
#include "ksmd/frame_index.h"
#include "ksmd/join.h"
#include "ksmd/plan.h"

#define PAGES_PER_GIB UINT64_C(262144)
#define VMS_MAX 64
#define ROUNDS 3 /* the best is shown */

struct world {
	size_t vms;
	uint64_t pages; /* of each */
	uint64_t *hashes;
	struct plan_range ranges[VMS_MAX];
	struct plan_vm limits[VMS_MAX];
};

struct result {
	double join_ns, build_ns, next_ns; /* per page */
	double bytes;			   /* per page, at the highest: hash arrays, join, plan, frame index */
	double index_bytes;		   /* of these: the frame index, as it is afterwards */
	struct plan_totals totals;
};

static bool world_new(struct world *w, uint64_t gib, size_t vms)
{
	w->vms = vms;
	w->pages = gib * PAGES_PER_GIB / vms;
	w->hashes = malloc(w->pages * vms * sizeof(*w->hashes));
	if (!w->hashes)
		return false;
	for (size_t v = 0; v < vms; v++) {
		made_up_vm(w->hashes + v * w->pages, w->pages, v, 0);
		w->ranges[v] = (struct plan_range){ .vm = (uint32_t)v, .pages = w->pages, .hva = (v + 1) << 40,
						    .hashes = w->hashes + v * w->pages };
		w->limits[v].mappings_left = PLAN_MAPPINGS_UNLIMITED;
	}
	return true;
}

/* ---- measuring ---- */

static int plan_all(struct plan *p, struct frame_index *put)
{
	static struct plan_window window;
	int r = 0;

	while (plan_next(p, &window) == 1) {
		for (uint32_t i = 0; put && i < window.fill_count; i++)
			for (uint32_t k = 0; k < window.fills[i].pages && r == 0; k++)
				r = frame_index_put(put, plan_page_hash(p, window.vm, window.fills[i].page + k),
						    window.fills[i].frame + k);
	}
	return r;
}

/* One plan, with the frames of index, or filling it with the new ones. */
static int measure(const struct world *w, struct frame_index *index, bool known, struct result *best)
{
	struct plan_input in = { w->ranges, w->vms, w->limits, w->vms, PLAN_LIMITS_DEFAULT, known ? index : NULL };
	double pages = (double)(w->pages * w->vms), bytes, join_bytes;
	uint64_t start = clock_thread_cpu_ns(), joined, built, done;
	struct plan_need need;
	size_t peak = 0;
	struct plan *p;
	int r;

	r = plan_new(&in, &p);
	if (r < 0)
		return r;
	bytes = (double)plan_bytes(p);
	r = plan_join(p, &peak);
	joined = clock_thread_cpu_ns();
	if (r == 0)
		r = plan_build(p, &need);
	built = clock_thread_cpu_ns();
	if (r == 0)
		r = plan_place(p, 0, need.block_frames);
	if (r == 0)
		r = plan_all(p, known ? NULL : index);
	done = clock_thread_cpu_ns();
	join_bytes = bytes + (double)peak;
	bytes = (double)plan_bytes(p) > join_bytes ? (double)plan_bytes(p) : join_bytes;
	best->bytes = sizeof(uint64_t) + (bytes + (double)frame_index_bytes(index)) / pages;
	best->index_bytes = (double)frame_index_bytes(index) / pages;
	plan_count(p, &best->totals);
	plan_free(p);
	if (best->join_ns > 0 &&
	    (double)(done - start) / pages > best->join_ns + best->build_ns + best->next_ns)
		return r;
	best->join_ns = (double)(joined - start) / pages;
	best->build_ns = (double)(built - joined) / pages;
	best->next_ns = (double)(done - built) / pages;
	return r;
}

static void show(uint64_t gib, const struct world *w, bool known, const struct result *r, bool json, bool first)
{
	if (json) {
		printf("%s\n  {\"gib\": %llu, \"vms\": %zu, \"known\": %s, \"join_ns\": %.1f, \"build_ns\": %.1f, "
		       "\"next_ns\": %.1f, \"bytes_per_page\": %.2f, \"index_bytes_per_page\": %.2f, \"saved_pages\": %llu, "
		       "\"runs\": %llu, \"frames\": %llu, \"huge_windows\": %llu}",
		       first ? "" : ",", (unsigned long long)gib, w->vms, known ? "true" : "false", r->join_ns, r->build_ns,
		       r->next_ns, r->bytes, r->index_bytes, (unsigned long long)r->totals.saved_pages,
		       (unsigned long long)r->totals.runs, (unsigned long long)r->totals.filled_frames,
		       (unsigned long long)r->totals.huge_windows);
		return;
	}
	if (first)
		printf("%4s %4s %6s %8s %8s %8s %8s %8s %10s %8s %9s %6s\n", "GiB", "VMs", "frames", "join", "build", "next",
		       "sum ns", "B/page", "saved", "runs", "new", "huge");
	printf("%4llu %4zu %6s %8.1f %8.1f %8.1f %8.1f %8.2f %10llu %8llu %9llu %6llu\n", (unsigned long long)gib, w->vms,
	       known ? "known" : "none", r->join_ns, r->build_ns, r->next_ns, r->join_ns + r->build_ns + r->next_ns,
	       r->bytes, (unsigned long long)r->totals.saved_pages, (unsigned long long)r->totals.runs,
	       (unsigned long long)r->totals.filled_frames, (unsigned long long)r->totals.huge_windows);
}

static int bench(uint64_t gib, size_t vms, bool json, bool first)
{
	struct world w = { .hashes = NULL };
	struct frame_index *index = NULL;
	struct result fresh = { 0 }, known = { 0 };
	int r = -1;

	if (!world_new(&w, gib, vms) || frame_index_new((uint32_t)(w.pages * vms), &index) < 0)
		goto out;
	r = 0;
	for (int round = 0; round < ROUNDS && r == 0; round++) {
		frame_index_free(index);
		r = frame_index_new((uint32_t)(w.pages * vms), &index);
		if (r == 0)
			r = measure(&w, index, false, &fresh);
	}
	for (int round = 0; round < ROUNDS && r == 0; round++)
		r = measure(&w, index, true, &known);
	if (r < 0)
		goto out;
	show(gib, &w, false, &fresh, json, first);
	show(gib, &w, true, &known, json, false);
out:
	free(w.hashes);
	frame_index_free(index);
	return r;
}

int main(int argc, char **argv)
{
	static const struct {
		uint64_t gib;
		size_t vms;
	} sizes[] = { { 1, 4 }, { 4, 4 }, { 4, 16 }, { 16, 16 }, { 16, 64 } };
	bool json = argc == 2 && strcmp(argv[1], "--json") == 0;
	int r = 0;

	if (argc > 1 && !json) {
		fprintf(stderr, "usage: plan [--json]\nTimes joining and planning on made-up VMs; ns and bytes per page.\n");
		return 2;
	}
	rcu_register_thread();
	if (json)
		printf("[");
	for (size_t i = 0; i < ARRAY_SIZE(sizes) && r == 0; i++)
		r = bench(sizes[i].gib, sizes[i].vms, json, i == 0);
	if (json)
		printf("\n]\n");
	rcu_unregister_thread();
	if (r < 0)
		fprintf(stderr, "plan: %s\n", strerror(-r));
	return r < 0;
}
