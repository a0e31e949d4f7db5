/* ksmd/hints on made-up page tables, against a naive model: which pages are to be merged, which stretches are best. */
#include "ksmd/hints.h"

#include "agent/page_hash.h"
#include "ksmd/pass_internal.h"
#include "ksmd/scan.h"
#include "tests/unit/unit.h"

#define VMS_MAX 5
#define TARGETS_MAX 3
#define UNLIMITED UINT32_MAX
#define LIMITS_PLAIN ((struct hints_limits){ 16, 0 })

/* ---- worlds ---- */

struct world {
	size_t vms;
	struct page_table tables[VMS_MAX];
	struct scan_target targets[VMS_MAX][TARGETS_MAX];
	struct hints_vm inputs[VMS_MAX];
};

static void world_vm(struct world *w, size_t targets, const uint64_t *pages)
{
	size_t v = w->vms++;

	w->tables[v].targets = w->targets[v];
	w->tables[v].target_count = targets;
	for (size_t k = 0; k < targets; k++) {
		struct scan_target *t = &w->targets[v][k];

		t->hva = ((v * TARGETS_MAX + (k ^ 1)) << 40) + k * 7 * PAGE_BYTES; /* in no order of addresses */
		t->pages = pages[k];
		t->hashes = scan_hashes_new(pages[k] ? pages[k] : 1);
		t->used = calloc(pages[k] / SCAN_CHUNK_PAGES + 1, 1);
		unit_must(t->hashes && t->used, "calloc");
	}
	w->inputs[v] = (struct hints_vm){ &w->tables[v], UNLIMITED };
}

static void world_free(struct world *w)
{
	for (size_t v = 0; v < w->vms; v++) {
		for (size_t k = 0; k < w->tables[v].target_count; k++) {
			scan_hashes_free(w->targets[v][k].hashes, w->targets[v][k].pages ? w->targets[v][k].pages : 1);
			free(w->targets[v][k].used);
		}
	}
	memset(w, 0, sizeof(*w));
}

static void put_page(struct world *w, size_t v, size_t k, uint64_t page, uint64_t hash)
{
	w->targets[v][k].hashes[page] = hash;
	if (hash != PAGE_HASH_NONE)
		w->targets[v][k].used[page / SCAN_CHUNK_PAGES] = 1;
}

static uint64_t content_hash(uint64_t content)
{
	uint64_t state = content;

	return unit_random(&state) | 2;
}

/* Stretches of contents from a pool, of unique ones, zeroes and holes. */
static void world_fill(struct world *w, uint64_t pool, unsigned stretch_max, uint64_t seed)
{
	uint64_t state = seed, unique = UINT64_C(1) << 40;

	for (size_t v = 0; v < w->vms; v++) {
		for (size_t k = 0; k < w->tables[v].target_count; k++) {
			uint64_t pages = w->targets[v][k].pages;

			for (uint64_t page = 0; page < pages;) {
				uint64_t n = 1 + unit_random(&state) % stretch_max, from = unit_random(&state) % pool;
				unsigned kind = unit_random(&state) % 8;

				if (kind >= 6) /* gaps are short mostly */
					n = 1 + n / 8;
				for (; n > 0 && page < pages; n--, page++, from++) {
					uint64_t hash = kind < 4  ? content_hash(from % pool) :
							kind == 4 ? PAGE_HASH_NONE :
							kind == 5 ? PAGE_HASH_ZERO :
								    content_hash(unique++);

					put_page(w, v, k, page, hash);
				}
			}
		}
	}
}

/* ---- the model ---- */

static int hash_order(const void *a, const void *b)
{
	const uint64_t *x = a, *y = b;

	return *x < *y ? -1 : *x > *y;
}

/* All hashes of pages with data, sorted. NULL for none. */
static uint64_t *all_hashes(const struct world *w, size_t *ret_count)
{
	uint64_t *all, pages = 0;
	size_t n = 0;

	for (size_t v = 0; v < w->vms; v++)
		for (size_t k = 0; k < w->tables[v].target_count; k++)
			pages += w->targets[v][k].pages;
	all = calloc(pages + 1, sizeof(*all));
	unit_must(all, "calloc");
	for (size_t v = 0; v < w->vms; v++)
		for (size_t k = 0; k < w->tables[v].target_count; k++)
			for (uint64_t i = 0; i < w->targets[v][k].pages; i++)
				if (w->targets[v][k].hashes[i] > PAGE_HASH_ZERO)
					all[n++] = w->targets[v][k].hashes[i];
	qsort(all, n, sizeof(*all), hash_order);
	*ret_count = n;
	return all;
}

static bool is_copy(const uint64_t *all, size_t count, uint64_t hash)
{
	const uint64_t *at;

	if (hash <= PAGE_HASH_ZERO)
		return hash == PAGE_HASH_ZERO;
	at = bsearch(&hash, all, count, sizeof(*all), hash_order);
	return (at > all && at[-1] == hash) || (at + 1 < all + count && at[1] == hash);
}

/* What a page gives to a stretch that it is in, in 1/64 pages; as README says. */
static int64_t page_worth(const uint64_t *all, size_t count, uint64_t hash)
{
	return is_copy(all, count, hash) ? 64 : hash == PAGE_HASH_NONE ? -1 : -128;
}

/* The most that exactly n stretches in a VM can give, price apart; INT64_MIN / 2 when there is no room for n. */
static int64_t best_of_count(const struct world *w, size_t v, const uint64_t *all, size_t all_count, size_t n)
{
	const int64_t never = INT64_MIN / 2;
	int64_t *in = calloc(n + 1, sizeof(*in)), *out = calloc(n + 1, sizeof(*out)), best;

	unit_must(in && out, "calloc");
	for (size_t j = 0; j <= n; j++) {
		in[j] = never;
		out[j] = j == 0 ? 0 : never;
	}
	for (size_t k = 0; k < w->tables[v].target_count; k++) {
		const struct scan_target *t = &w->targets[v][k];

		for (uint64_t i = 0; i < t->pages; i++) {
			int64_t worth = page_worth(all, all_count, t->hashes[i]);

			for (size_t j = n; j > 0; j--) { /* a page in the j-th stretch: it goes on or begins here */
				int64_t before = in[j] > out[j - 1] ? in[j] : out[j - 1];

				in[j] = before == never ? never : before + worth;
				out[j] = in[j] > out[j] ? in[j] : out[j];
			}
		}
		for (size_t j = 0; j <= n; j++)
			in[j] = never;
	}
	best = out[n];
	free(in);
	free(out);
	return best;
}

/* The most that any number of stretches can give, each less the price. */
static int64_t best_of_all(const struct world *w, size_t v, const uint64_t *all, size_t all_count, int64_t price)
{
	int64_t out = 0;

	for (size_t k = 0; k < w->tables[v].target_count; k++) {
		const struct scan_target *t = &w->targets[v][k];
		int64_t in = INT64_MIN / 2;

		for (uint64_t i = 0; i < t->pages; i++) {
			int64_t before = in > out - price ? in : out - price;

			in = before + page_worth(all, all_count, t->hashes[i]);
			out = in > out ? in : out;
		}
	}
	return out;
}

static const struct scan_target *target_of(const struct world *w, size_t v, const struct agent_hint *hint)
{
	for (size_t k = 0; k < w->tables[v].target_count; k++) {
		const struct scan_target *t = &w->targets[v][k];

		if (hint->hva >= t->hva && hint->hva - t->hva < t->pages * PAGE_BYTES &&
		    hint->pages <= t->pages - (hint->hva - t->hva) / PAGE_BYTES)
			return t;
	}
	return NULL;
}

/* What a VM's stretches give, price apart; adds to totals. INT64_MIN: they are not as promised. */
static int64_t given(const struct world *w, size_t v, const struct hints *h, const uint64_t *all, size_t all_count,
		     struct hints_totals *totals, uint64_t *marked, size_t *marked_count)
{
	size_t count;
	const struct agent_hint *hints = hints_of(h, v, &count);
	int64_t worth = 0;

	for (size_t i = 0; i < count; i++) {
		const struct scan_target *t = target_of(w, v, &hints[i]);
		uint64_t first;

		if (!t || hints[i].pages == 0 || hints[i].hva % PAGE_BYTES || hints[i].reserved != 0)
			return INT64_MIN;
		if (i > 0 && target_of(w, v, &hints[i - 1]) == t &&
		    hints[i].hva <= hints[i - 1].hva + hints[i - 1].pages * (uint64_t)PAGE_BYTES)
			return INT64_MIN;
		first = (hints[i].hva - t->hva) / PAGE_BYTES;
		for (uint64_t p = first; p < first + hints[i].pages; p++) {
			worth += page_worth(all, all_count, t->hashes[p]);
			totals->copies += is_copy(all, all_count, t->hashes[p]);
			totals->saved_zero += t->hashes[p] == PAGE_HASH_ZERO;
			if (t->hashes[p] > PAGE_HASH_ZERO)
				marked[(*marked_count)++] = t->hashes[p];
		}
		totals->pages += hints[i].pages;
	}
	totals->stretches += count;
	return worth;
}

/* Whether the figures are those of the stretches. */
static bool totals_right(const struct hints *h, struct hints_totals want, uint64_t *marked, size_t count,
			 uint64_t copies_in_all)
{
	struct hints_totals got;

	hints_count(h, &got);
	qsort(marked, count, sizeof(*marked), hash_order);
	want.saved = want.saved_zero;
	for (size_t i = 1; i < count; i++)
		want.saved += marked[i] == marked[i - 1];
	want.left = copies_in_all - want.copies;
	return memcmp(&got, &want, sizeof(got)) == 0;
}

static uint64_t copies_in(const struct world *w, const uint64_t *all, size_t all_count)
{
	uint64_t copies = 0;

	for (size_t v = 0; v < w->vms; v++)
		for (size_t k = 0; k < w->tables[v].target_count; k++)
			for (uint64_t i = 0; i < w->targets[v][k].pages; i++)
				copies += is_copy(all, all_count, w->targets[v][k].hashes[i]);
	return copies;
}

/* Plans and checks everything. NULL, or what is wrong. */
static const char *world_check(struct world *w, const struct hints_limits *limits)
{
	struct hints_totals want = { 0 };
	size_t all_count, marked_count = 0;
	uint64_t *all = all_hashes(w, &all_count), *marked = calloc(all_count + 1, sizeof(*marked));
	const char *wrong = NULL;
	struct hints *h = NULL;

	unit_must(marked, "calloc");
	if (hints_plan(w->inputs, w->vms, limits, &h) != 0)
		wrong = "refused";
	for (size_t v = 0; v < w->vms && !wrong; v++) {
		int64_t price = (int64_t)limits->stretch_min * 64;
		int64_t worth = given(w, v, h, all, all_count, &want, marked, &marked_count);
		size_t count;

		hints_of(h, v, &count);
		if (worth == INT64_MIN)
			wrong = "malformed";
		else if (count > w->inputs[v].mappings_left / 2)
			wrong = "over the budget";
		else if (w->inputs[v].mappings_left == UNLIMITED &&
			 worth - (int64_t)count * price != best_of_all(w, v, all, all_count, price))
			wrong = "not the best";
		else if (count > 0 && worth != best_of_count(w, v, all, all_count, count))
			wrong = "not the best of so many";
	}
	if (!wrong && !totals_right(h, want, marked, marked_count, copies_in(w, all, all_count)))
		wrong = "figures";
	hints_free(h);
	free(all);
	free(marked);
	return wrong;
}

/* ---- tests ---- */

static const struct random_case {
	const char *what;
	size_t vms;
	uint64_t pages[TARGETS_MAX];
	uint64_t pool;
	unsigned stretch_max;
} random_cases[] = {
	{ "nothing", 1, { 0, 0, 0 }, 1, 1 },
	{ "one page", 2, { 1, 0, 0 }, 1, 1 },
	{ "single pages", 3, { 700, 0, 130 }, 500, 1 },
	{ "short", 3, { 700, 64, 130 }, 500, 12 },
	{ "middle", 4, { 900, 65, 1 }, 2000, 40 },
	{ "long", 5, { 2000, 300, 800 }, 3000, 300 },
	{ "all equal", 3, { 600, 100, 0 }, 1, 90 },
	{ "one VM", 1, { 3000, 0, 0 }, 900, 60 },
	{ "over a chunk", 1, { SCAN_CHUNK_PAGES + 100, 0, 0 }, 9000, 3000 },
};

static void test_hints_random_worlds_best_stretches(void)
{
	static const uint32_t prices[] = { 16, 1, 4, 5, 100 };

	for (size_t i = 0; i < ARRAY_SIZE(random_cases) * ARRAY_SIZE(prices) * 4; i++) {
		const struct random_case *c = &random_cases[i % ARRAY_SIZE(random_cases)];
		struct hints_limits limits = { prices[i / 4 % ARRAY_SIZE(prices)], 0 };
		struct world w = { 0 };
		const char *wrong;

		for (size_t v = 0; v < c->vms; v++)
			world_vm(&w, TARGETS_MAX, c->pages);
		world_fill(&w, c->pool, c->stretch_max, i);
		wrong = world_check(&w, &limits);
		if (wrong)
			printf("\n    world %zu: %s\n", i, wrong);
		UNIT_CASE(c->what, !wrong);
		world_free(&w);
	}
}

static void test_hints_budget_kept_and_well_spent(void)
{
	for (size_t i = 0; i < ARRAY_SIZE(random_cases) * 20; i++) {
		const struct random_case *c = &random_cases[i % ARRAY_SIZE(random_cases)];
		uint64_t state = i;
		struct world w = { 0 };
		const char *wrong;

		for (size_t v = 0; v < c->vms; v++)
			world_vm(&w, TARGETS_MAX, c->pages);
		world_fill(&w, c->pool, c->stretch_max, i);
		for (size_t v = 0; v < c->vms; v++)
			w.inputs[v].mappings_left = (uint32_t)(unit_random(&state) % 24);
		wrong = world_check(&w, &(struct hints_limits){ 4, 0 });
		if (wrong)
			printf("\n    world %zu: %s\n", i, wrong);
		UNIT_CASE(c->what, !wrong);
		world_free(&w);
	}
}

/* Two VMs of one region with the same contents in pages [from, from + n) of each. */
static void put_equal(struct world *w, uint64_t from, uint64_t n)
{
	for (uint64_t i = from; i < from + n; i++)
		for (size_t v = 0; v < 2; v++)
			put_page(w, v, 0, i, content_hash(i));
}

static void test_hints_gaps_table_gives_expected(void)
{
	static const struct {
		const char *what;
		uint64_t first, gap, second;
		bool present;
		size_t stretches;
	} cases[] = {
		{ "enough", 16, 0, 0, false, 1 },
		{ "too few", 15, 0, 0, false, 0 },
		{ "small gap", 40, 7, 40, true, 1 },
		{ "large gap", 40, 9, 40, true, 2 },
		{ "absent gap", 40, 1000, 40, false, 1 },
		{ "wide absent gap", 40, 1100, 40, false, 2 },
		{ "not worth its gap", 40, 8, 12, true, 1 },
		{ "two too few", 10, 2, 10, true, 1 },
		{ "two much too few", 10, 3, 10, true, 0 },
	};
	const uint64_t pages = 4000;

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct world w = { 0 };
		struct hints *h = NULL;
		const struct agent_hint *hint;
		size_t count;

		world_vm(&w, 1, &pages);
		world_vm(&w, 1, &pages);
		put_equal(&w, 100, cases[i].first);
		put_equal(&w, 100 + cases[i].first + cases[i].gap, cases[i].second);
		for (uint64_t p = 100 + cases[i].first; cases[i].present && p < 100 + cases[i].first + cases[i].gap; p++) {
			put_page(&w, 0, 0, p, content_hash(p + 5000));
			put_page(&w, 1, 0, p, content_hash(p + 10000));
		}
		unit_must(hints_plan(w.inputs, 2, &LIMITS_PLAIN, &h) == 0, "hints_plan");
		hint = hints_of(h, 1, &count);
		UNIT_CASE(cases[i].what, count == cases[i].stretches);
		if (count > 0)
			UNIT_CASE(cases[i].what, hint[0].hva == w.targets[1][0].hva + UINT64_C(100) * PAGE_BYTES);
		hints_free(h);
		world_free(&w);
	}
}

static void test_hints_poor_huge_blocks_left(void)
{
	const uint64_t pages = 4 * 512;

	for (int huge = 0; huge < 2; huge++) {
		struct world w = { 0 };
		struct hints_totals totals;
		struct hints *h = NULL;

		world_vm(&w, 1, &pages);
		world_vm(&w, 1, &pages);
		put_equal(&w, 0, 63);	     /* a poor block */
		put_equal(&w, 512, 64);	     /* a good one */
		put_equal(&w, 2 * 512 - 30, 100); /* over a border: poor on one side, but with the 64 in all */
		w.targets[0][0].huge_pages = huge ? 512 : 0;
		unit_must(hints_plan(w.inputs, 2, NULL, &h) == 0, "hints_plan");
		hints_count(h, &totals);
		CU_ASSERT_EQUAL(totals.copies, 2 * (63 + 64 + 100) - (huge ? 63 : 0));
		CU_ASSERT_EQUAL(totals.left, huge ? 63 : 0);
		CU_ASSERT_EQUAL(totals.saved, 64 + 100 + (huge ? 0 : 63)); /* one copy alone saves nothing */
		hints_free(h);
		world_free(&w);
	}
}

static void test_hints_gone_and_unlimited_tables_taken(void)
{
	const uint64_t pages = 100;
	struct world w = { 0 };
	struct hints *h = NULL;
	size_t count = 77;

	CU_ASSERT_EQUAL(hints_plan(w.inputs, 0, NULL, &h), 0); /* no VM at all */
	h = hints_free(h);
	CU_ASSERT_PTR_NULL(h);
	world_vm(&w, 1, &pages);
	world_vm(&w, 0, NULL);
	world_vm(&w, 1, &pages);
	for (uint64_t i = 0; i < 50; i++)
		put_page(&w, 0, 0, i, PAGE_HASH_ZERO);
	w.targets[2][0].pages = 0; /* as a pass leaves the table of a VM that ended */
	CU_ASSERT_EQUAL(hints_plan(w.inputs, 3, NULL, &h), 0);
	hints_of(h, 0, &count);
	CU_ASSERT_EQUAL(count, 1);
	hints_of(h, 1, &count);
	CU_ASSERT_EQUAL(count, 0);
	hints_of(h, 2, &count);
	CU_ASSERT_EQUAL(count, 0);
	hints_free(h);
	w.targets[2][0].pages = (uint64_t)UINT32_MAX + 1;
	h = NULL;
	CU_ASSERT_EQUAL(hints_plan(w.inputs, 3, NULL, &h), -E2BIG);
	CU_ASSERT_PTR_NULL(h);
	w.targets[2][0].pages = pages;
	world_free(&w);
}

static void test_hints_large_world_memory_bounded(void)
{
	const uint64_t pages = 1 << 20;
	struct world w = { 0 };
	struct hints_totals totals;
	struct hints *h = NULL;

	for (size_t v = 0; v < 4; v++)
		world_vm(&w, 1, &pages);
	world_fill(&w, 2 << 20, 500, 7);
	CU_ASSERT_EQUAL(hints_plan(w.inputs, 4, NULL, &h), 0);
	hints_count(h, &totals);
	CU_ASSERT_TRUE(totals.copies > pages && totals.stretches > 100);
	/* A bit and the join for each page, 48 bytes (a hint and an input of the second join) for each stretch. */
	CU_ASSERT_TRUE(hints_bytes(h) <= 4 * pages / 8 + 2 * 4 * pages + 64 * totals.stretches);
	hints_free(h);
	world_free(&w);
}

int main(void)
{
	static CU_TestInfo tests[] = {
		{ "random", test_hints_random_worlds_best_stretches },
		{ "budget", test_hints_budget_kept_and_well_spent },
		{ "gaps", test_hints_gaps_table_gives_expected },
		{ "blocks", test_hints_poor_huge_blocks_left },
		{ "gone", test_hints_gone_and_unlimited_tables_taken },
		{ "memory", test_hints_large_world_memory_bounded },
		CU_TEST_INFO_NULL,
	};

	return unit_main("hints", tests);
}
