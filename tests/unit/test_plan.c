/* ksmd/plan: plans for made-up and random VMs are applied to a model of their contents. */
#include "ksmd/plan.h"

#include "tests/unit/plan_world.h"

#define MANY_RUNS 65536u
#define LIMITS_NONE ((struct plan_limits){ 1, 1, 1, 1, 0 })

/* ---- random worlds ---- */

static const struct random_case {
	const char *what;
	size_t vms;
	uint64_t pages, pool;
	unsigned stretch_max;
	size_t ranges;
	uint64_t misaligned;
	unsigned merged_percent, skip_percent, huge_percent, known_percent;
} random_cases[] = {
	{ "no pages", 3, 0, 1, 1, 1, 0, 0, 0, 0, 0 },
	{ "one page", 1, 1, 1, 1, 1, 0, 0, 0, 0, 0 },
	{ "one page each", 4, 1, 1, 1, 1, 7, 0, 0, 0, 0 },
	{ "one window", 2, 512, 100, 9, 1, 0, 0, 0, 0, 0 },
	{ "window and a page", 2, 513, 300, 40, 1, 511, 0, 0, 0, 0 },
	{ "single pages", 4, 5000, 3000, 1, 1, 0, 0, 0, 0, 0 },
	{ "long runs", 4, 20000, 15000, 900, 1, 0, 0, 0, 50, 0 },
	{ "ranges, misaligned", 5, 9000, 4000, 300, 3, 13, 0, 0, 20, 0 },
	{ "merged and skipped", 4, 9000, 4000, 300, 2, 1, 20, 10, 20, 0 },
	{ "known frames", 4, 9000, 6000, 300, 2, 0, 5, 5, 0, 40 },
	{ "all known", 3, 5000, 3000, 200, 1, 3, 0, 0, 0, 100 },
	{ "one VM", 1, 30000, 5000, 50, 1, 0, 0, 0, 0, 0 },
	{ "many equal", 8, 3000, 7, 1, 1, 0, 0, 0, 0, 0 },
	{ "large", 6, 50000, 70000, 2000, 2, 5, 1, 1, 90, 5 },
};

static void random_world(struct world *w, const struct random_case *c, uint64_t seed)
{
	uint64_t state = seed;

	world_new(w, c->vms, c->pages);
	w->ranges_per_vm = c->ranges;
	world_fill(w, c->pool, c->stretch_max, seed);
	for (size_t v = 0; v < c->vms; v++) {
		uint64_t windows = c->pages / PLAN_WINDOW_PAGES + 2;

		w->merged[v] = c->merged_percent ? bits_new(c->pages, c->merged_percent, &state) : NULL;
		w->skip[v] = c->skip_percent ? bits_new(windows, c->skip_percent, &state) : NULL;
		w->huge[v] = c->huge_percent ? bits_new(windows, c->huge_percent, &state) : NULL;
	}
	if (c->known_percent == 0)
		return;
	w->known_count = c->pool;
	w->known = calloc(c->pool, sizeof(*w->known));
	unit_must(w->known && frame_index_new((uint32_t)c->pool, &w->index) == 0, "frame_index_new");
	for (uint64_t i = 0; i < c->pool; i++) {
		w->known[i] = ABSENT;
		if (unit_random(&state) % 100 >= c->known_percent)
			continue;
		w->known[i] = i + 1;
		unit_must(frame_index_put(w->index, content_hash(i + 1), (uint32_t)i) == 0, "frame_index_put");
	}
}

static void test_plan_random_worlds_save_all(void)
{
	for (size_t i = 0; i < ARRAY_SIZE(random_cases); i++) {
		const struct random_case *c = &random_cases[i];
		struct world w;
		struct applied a;

		random_world(&w, c, i + 1);
		a = world_plan(&w, LIMITS_NONE, c->misaligned);
		UNIT_CASE(c->what, !a.wrong);
		UNIT_CASE(c->what, a.totals.saved_pages == world_oracle(&w, c->pool));
		world_free(&w);
	}
}

static void test_plan_random_worlds_keep_limits(void)
{
	static const struct plan_limits limits[] = { { 64, 8, 1, 2, 64 }, { 64, 8, 2, 4, 0 }, { 300, 100, 3, 1, 16 } };

	for (size_t i = 0; i < ARRAY_SIZE(random_cases) * ARRAY_SIZE(limits); i++) {
		const struct random_case *c = &random_cases[i / ARRAY_SIZE(limits)];
		uint64_t state = i;
		struct world w;
		struct applied a;

		random_world(&w, c, i + 1);
		for (size_t v = 0; v < c->vms; v++)
			w.limits[v].mappings_left = (uint32_t)(unit_random(&state) % (1 + c->pages / (1 + v * 4)));
		a = world_plan(&w, limits[i % ARRAY_SIZE(limits)], c->misaligned);
		UNIT_CASE(c->what, !a.wrong);
		UNIT_CASE(c->what, a.totals.saved_pages <= world_oracle(&w, c->pool));
		world_free(&w);
	}
}

/* ---- layout ---- */

/* Copies of VM 0's windows in the others, page by page the same. */
static void copy_windows(struct world *w, uint64_t first, uint64_t count, uint64_t to)
{
	for (size_t v = 1; v < w->vms; v++)
		memcpy(w->contents[v] + to * PLAN_WINDOW_PAGES, w->contents[0] + first * PLAN_WINDOW_PAGES,
		       count * PLAN_WINDOW_PAGES * sizeof(uint64_t));
}

static void test_plan_identical_blocks_map_huge(void)
{
	struct world w;
	struct applied a;

	world_new(&w, 3, 20 * PLAN_WINDOW_PAGES);
	for (uint64_t i = 0; i < w.pages; i += 300) /* some zero pages, */
		w.contents[0][i] = 0;
	for (uint64_t i = 1; i < w.pages; i += 512) /* one content in many places, */
		w.contents[0][i] = 77;
	copy_windows(&w, 0, 5, 10); /* and blocks elsewhere in the others */
	for (size_t v = 1; v < w.vms; v++) /* and pages outside that have the block's contents */
		memcpy(w.contents[v], w.contents[0] + 100, 30 * sizeof(uint64_t));
	a = world_plan(&w, PLAN_LIMITS_DEFAULT, 0);
	CU_ASSERT_PTR_NULL(a.wrong);
	CU_ASSERT_EQUAL(a.totals.huge_windows, 15);
	CU_ASSERT_EQUAL(a.need.block_frames, 5 * PLAN_WINDOW_PAGES);
	CU_ASSERT_TRUE(a.totals.saved_pages >= 10 * PLAN_WINDOW_PAGES - 5 * 3);
	a = world_plan(&w, PLAN_LIMITS_DEFAULT, 1); /* the same pages at other places in huge pages: no */
	CU_ASSERT_PTR_NULL(a.wrong);
	CU_ASSERT_EQUAL(a.totals.huge_windows, 0);
	w.limits[1].mappings_left = w.limits[2].mappings_left = 0;
	a = world_plan(&w, LIMITS_NONE, 0); /* two of three may not: nothing but zero pages and number 77 is left */
	CU_ASSERT_PTR_NULL(a.wrong);
	CU_ASSERT_EQUAL(a.totals.huge_windows, 0);
	world_free(&w);
}

/* Each block holds one content `twice + 1` times, and `zero` zero pages. */
static void test_plan_wasteful_blocks_merged_by_page(void)
{
	static const struct {
		const char *what;
		uint64_t twice, zero;
		bool huge;
	} cases[] = {
		{ "just not too many", 1, 1, true },
		{ "one more copy", 2, 1, false },
		{ "one more zero page", 1, 2, false },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		uint64_t spare = cases[i].twice + cases[i].zero;
		struct applied a;
		struct world w;

		world_new(&w, 2, 4 * PLAN_WINDOW_PAGES);
		for (uint64_t k = 0; k <= cases[i].twice; k++)
			w.contents[0][3 + 20 * k] = 77;
		for (uint64_t k = 0; k < cases[i].zero; k++)
			w.contents[0][8 + 20 * k] = 0;
		copy_windows(&w, 0, 1, 2);
		a = world_plan(&w, PLAN_LIMITS_DEFAULT, 0);
		CU_ASSERT_PTR_NULL(a.wrong);
		UNIT_CASE(cases[i].what, a.totals.huge_windows == (cases[i].huge ? 2 : 0));
		UNIT_CASE(cases[i].what,
			  a.totals.saved_pages == PLAN_WINDOW_PAGES + (cases[i].huge ? 0 : spare));
		world_free(&w);
	}
}

static void test_plan_known_blocks_map_huge(void)
{
	struct world w;
	struct applied a;

	world_new(&w, 2, 8 * PLAN_WINDOW_PAGES);
	w.known_count = 3 * PLAN_WINDOW_PAGES;
	w.known = calloc(w.known_count, sizeof(*w.known));
	unit_must(w.known && frame_index_new((uint32_t)w.known_count, &w.index) == 0, "frame_index_new");
	for (uint64_t i = 0; i < w.known_count; i++) {
		w.known[i] = i % 100 == 50 ? 0 : w.contents[0][i]; /* zero pages inside the blocks */
		w.contents[0][i] = w.known[i];
		unit_must(frame_index_put(w.index, content_hash(w.known[i]), (uint32_t)i) == 0, "frame_index_put");
	}
	copy_windows(&w, 0, 3, 4);
	a = world_plan(&w, PLAN_LIMITS_DEFAULT, 0);
	CU_ASSERT_PTR_NULL(a.wrong);
	CU_ASSERT_EQUAL(a.totals.huge_windows, 6);
	CU_ASSERT_EQUAL(a.totals.runs, 6);
	CU_ASSERT_EQUAL(a.totals.filled_frames, 0);
	CU_ASSERT_EQUAL(a.totals.saved_pages, 2 * w.known_count);
	world_free(&w);
}

static void test_plan_zeroes_first_vms_in_turn(void)
{
	uint64_t all = UINT64_MAX;
	struct world w;
	struct applied a;

	for (size_t huge = 0; huge < 2; huge++) {
		world_new(&w, 3, 4 * PLAN_WINDOW_PAGES);
		copy_windows(&w, 0, 2, 0);
		for (size_t v = 0; v < w.vms; v++) {
			memset(w.contents[v] + 2 * PLAN_WINDOW_PAGES, 0, 2 * PLAN_WINDOW_PAGES * sizeof(uint64_t));
			w.huge[v] = calloc(1, sizeof(uint64_t));
			unit_must(w.huge[v], "calloc");
			*w.huge[v] = huge ? all : 0;
		}
		a = world_plan(&w, PLAN_LIMITS_DEFAULT, 0);
		CU_ASSERT_PTR_NULL(a.wrong);
		CU_ASSERT_EQUAL(a.totals.windows, 12);
		for (size_t i = 0; i < 12; i++) {
			CU_ASSERT_EQUAL(a.first[i].vm, i % 3);
			CU_ASSERT_EQUAL(a.first[i].zero, i < 6);
		}
		world_free(&w);
	}
}

static void test_plan_runs_are_long(void)
{
	struct world w;
	struct applied a;

	world_new(&w, 4, 10000);
	for (size_t v = 1; v < w.vms; v++)
		memcpy(w.contents[v] + 1000 * v + 7, w.contents[0] + 300, 5000 * sizeof(uint64_t));
	a = world_plan(&w, PLAN_LIMITS_DEFAULT, 0);
	CU_ASSERT_PTR_NULL(a.wrong);
	CU_ASSERT_EQUAL(a.totals.saved_pages, 15000);
	/* 5000 pages touch at most 11 windows; there is one more border for each window of the first VM, whose full windows
	 * lie in the aligned extent. */
	CU_ASSERT_TRUE(a.totals.runs <= 4 * (11 + 11));
	world_free(&w);
}

static void test_plan_poor_windows_left_alone(void)
{
	uint64_t all = UINT64_MAX, none = 0;
	struct world w;
	struct applied a;

	for (int huge = 0; huge < 2; huge++) {
		world_new(&w, 2, 4 * PLAN_WINDOW_PAGES);
		memcpy(w.contents[1], w.contents[0], 63 * sizeof(uint64_t));
		memcpy(w.contents[1] + 512, w.contents[0] + 512, 64 * sizeof(uint64_t));
		memcpy(w.contents[1] + 1024, w.contents[0] + 1024, 7 * sizeof(uint64_t));
		memset(w.contents[1] + 1536, 0, 64 * sizeof(uint64_t));
		for (size_t v = 0; v < 2; v++) {
			w.huge[v] = calloc(1, sizeof(uint64_t));
			unit_must(w.huge[v], "calloc");
			*w.huge[v] = huge ? all : none;
		}
		a = world_plan(&w, (struct plan_limits){ 64, 8, 1, 2, 16 }, 0);
		CU_ASSERT_PTR_NULL(a.wrong);
		CU_ASSERT_EQUAL(a.totals.saved_pages, huge ? 64 + 64 : 63 + 64 + 64);
		CU_ASSERT_EQUAL(a.totals.windows, huge ? 3 : 5);
		/* By default: hardly any. */
		memcpy(w.contents[1] + 1024, w.contents[0] + 1024, 7 * sizeof(uint64_t));
		memcpy(w.contents[0] + 2000, w.contents[1] + 500, 3 * sizeof(uint64_t));
		a = world_plan(&w, PLAN_LIMITS_DEFAULT, 0);
		CU_ASSERT_PTR_NULL(a.wrong);
		CU_ASSERT_EQUAL(a.totals.saved_pages, 63 + 64 + 7 + 64 + (huge ? 0 : 3));
		CU_ASSERT_EQUAL(a.totals.windows, huge ? 7 : 8);
		world_free(&w);
	}
}

static void test_plan_tight_budget_prefers_long_runs(void)
{
	struct world w;
	struct applied a;

	world_new(&w, 2, 40 * PLAN_WINDOW_PAGES);
	for (uint64_t i = 0; i < 20 * PLAN_WINDOW_PAGES; i++) /* every second page: 5120 runs of one page, */
		if (i % 2)
			w.contents[1][i] = w.contents[0][i];
	copy_windows(&w, 20, 20, 20); /* and 20 of a window */
	w.limits[1].mappings_left = 100;
	a = world_plan(&w, PLAN_LIMITS_DEFAULT, 0);
	CU_ASSERT_PTR_NULL(a.wrong);
	CU_ASSERT_EQUAL(a.totals.saved_pages, 20 * PLAN_WINDOW_PAGES);
	CU_ASSERT_EQUAL(a.mappings[1], 40);
	CU_ASSERT_EQUAL(a.mappings[0], 40); /* nothing is planned for one side only */
	w.limits[1].mappings_left = 20;
	a = world_plan(&w, PLAN_LIMITS_DEFAULT, 0);
	CU_ASSERT_PTR_NULL(a.wrong);
	CU_ASSERT_EQUAL(a.totals.saved_pages, 10 * PLAN_WINDOW_PAGES);
	CU_ASSERT_EQUAL(a.totals.merged_pages, 20 * PLAN_WINDOW_PAGES); /* again both sides */
	w.limits[1].mappings_left = PLAN_MAPPINGS_UNLIMITED;
	a = world_plan(&w, PLAN_LIMITS_DEFAULT, 0);
	CU_ASSERT_EQUAL(a.totals.saved_pages, 30 * PLAN_WINDOW_PAGES);
	for (uint64_t i = 0; i < 20 * PLAN_WINDOW_PAGES; i++) /* half of each window in one run as well */
		if (i % PLAN_WINDOW_PAGES < 256)
			w.contents[1][i] = w.contents[0][i];
	w.limits[1].mappings_left = 100;
	a = world_plan(&w, PLAN_LIMITS_DEFAULT, 0);
	CU_ASSERT_PTR_NULL(a.wrong);
	CU_ASSERT_EQUAL(a.totals.saved_pages, 30 * PLAN_WINDOW_PAGES);
	CU_ASSERT_EQUAL(a.totals.merged_pages, 60 * PLAN_WINDOW_PAGES);
	CU_ASSERT_EQUAL(a.mappings[1], 80);
	world_free(&w);
}

/* Every second page of the first VM is shared, so that it has 65,536 runs; the other has the same pages in a row. */
static void test_plan_many_runs_in_one_vm(void)
{
	static const struct many_case {
		const char *what;
		uint32_t mappings, run_min_tight;
		uint64_t want_runs; /* of the first VM */
	} cases[] = {
		{ "no limit", PLAN_MAPPINGS_UNLIMITED, 2, MANY_RUNS },
		{ "just enough", 2 * MANY_RUNS, 2, MANY_RUNS },
		{ "half", MANY_RUNS, 1, MANY_RUNS / 2 },
		{ "half, long runs only", MANY_RUNS, 2, 0 },
	};
	struct world w;

	world_new(&w, 2, 2 * MANY_RUNS);
	for (uint64_t i = 0; i < MANY_RUNS; i++)
		w.contents[0][2 * i] = w.contents[1][i] = 1 + i;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		const struct many_case *c = &cases[i];
		struct applied a;

		w.limits[0].mappings_left = c->mappings;
		a = world_plan(&w, (struct plan_limits){ 1, 1, 1, c->run_min_tight, 0 }, 0);
		UNIT_CASE(c->what, !a.wrong);
		UNIT_CASE(c->what, a.mappings[0] == 2 * c->want_runs);
		UNIT_CASE(c->what, a.totals.saved_pages == c->want_runs);
		UNIT_CASE(c->what, a.totals.filled_frames == c->want_runs);
	}
	world_free(&w);
}

static void test_plan_bad_input_refused(void)
{
	static const uint64_t hashes[4];
	static const struct plan_vm vms[2];
	static const struct bad_case {
		const char *what;
		struct plan_range ranges[2];
		uint32_t run_min;
		int want;
	} cases[] = {
		{ "no pages", { { 0, 0, 0, 0, hashes, 0, 0, 0 }, { 1, 0, 0, 4, hashes, 0, 0, 0 } }, 1, -EINVAL },
		{ "VM order", { { 1, 0, 0, 4, hashes, 0, 0, 0 }, { 0, 0, 0, 4, hashes, 0, 0, 0 } }, 1, -EINVAL },
		{ "VM unknown", { { 0, 0, 0, 4, hashes, 0, 0, 0 }, { 2, 0, 0, 4, hashes, 0, 0, 0 } }, 1, -EINVAL },
		{ "overlap", { { 0, 0, 0, 4, hashes, 0, 0, 0 }, { 0, 3, 0, 4, hashes, 0, 0, 0 } }, 1, -EINVAL },
		{ "misaligned", { { 0, 0, 7, 4, hashes, 0, 0, 0 }, { 1, 0, 0, 4, hashes, 0, 0, 0 } }, 1, -EINVAL },
		{ "page overflow", { { 0, UINT64_MAX - 2, 0, 4, hashes, 0, 0, 0 }, { 1, 0, 0, 4, hashes, 0, 0, 0 } }, 1,
		  -EINVAL },
		{ "no run length", { { 0, 0, 0, 4, hashes, 0, 0, 0 }, { 1, 0, 0, 4, hashes, 0, 0, 0 } }, 0, -EINVAL },
		{ "too many", { { 0, 0, 0, UINT32_MAX, hashes, 0, 0, 0 }, { 1, 0, 0, 4, hashes, 0, 0, 0 } }, 1, -E2BIG },
		{ "fine", { { 0, 0, 0, 4, hashes, 0, 0, 0 }, { 1, 0, 0, 4, hashes, 0, 0, 0 } }, 1, 0 },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct plan_input in = { cases[i].ranges, 2, vms, 2, { 1, 1, cases[i].run_min, 1, 0 }, NULL };
		struct join_ref strange[2] = { { 7, 1 }, { 0, 4 } }; /* pages of nobody */
		struct plan *p = NULL;
		struct plan_need need;

		UNIT_CASE(cases[i].what, plan_new(&in, &p) == cases[i].want);
		if (!p)
			continue;
		plan_group(content_hash(1), strange, 2, p);
		UNIT_CASE(cases[i].what, plan_build(p, &need) == 0 && need.frames == 0 && need.block_frames == 0);
		UNIT_CASE(cases[i].what, plan_page_hash(p, 1, 4) == PAGE_HASH_NONE);
		plan_free(p);
	}
	CU_ASSERT_PTR_NULL(plan_free(NULL));
}

static void test_plan_memory_bounded(void)
{
	struct world w;
	struct applied a;
	uint64_t scanned = 2 * 300000;

	world_new(&w, 2, 300000); /* the worst: every content just twice, and nothing in its place */
	for (uint64_t i = 0; i < w.pages; i++) {
		w.contents[0][i] = 1 + i;
		w.contents[1][i] = 1 + (i * 7919) % w.pages;
	}
	a = world_plan(&w, LIMITS_NONE, 0);
	CU_ASSERT_PTR_NULL(a.wrong);
	CU_ASSERT_EQUAL(a.totals.saved_pages, w.pages);
	CU_ASSERT_TRUE((sizeof(uint64_t) * scanned + a.bytes) <= 12 * scanned);
	CU_ASSERT_TRUE((sizeof(uint64_t) * scanned + scanned * 5 / 8 + a.join_bytes) <= 12 * scanned);
	world_free(&w);
}

int main(void)
{
	static CU_TestInfo tests[] = {
		{ "random_all", test_plan_random_worlds_save_all },
		{ "random_limits", test_plan_random_worlds_keep_limits },
		{ "blocks", test_plan_identical_blocks_map_huge },
		{ "wasteful_blocks", test_plan_wasteful_blocks_merged_by_page },
		{ "known_blocks", test_plan_known_blocks_map_huge },
		{ "order", test_plan_zeroes_first_vms_in_turn },
		{ "runs", test_plan_runs_are_long },
		{ "poor_windows", test_plan_poor_windows_left_alone },
		{ "tight", test_plan_tight_budget_prefers_long_runs },
		{ "many_runs", test_plan_many_runs_in_one_vm },
		{ "bad", test_plan_bad_input_refused },
		{ "memory", test_plan_memory_bounded },
		CU_TEST_INFO_NULL,
	};
	int r;

	rcu_register_thread();
	r = unit_main("plan", tests);
	rcu_unregister_thread();
	return r;
}
