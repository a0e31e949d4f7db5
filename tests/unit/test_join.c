/* ksmd/page_hash, ksmd/join (against a model by sorting) and ksmd/stable_index (with readers in threads). */
#include "ksmd/join.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <urcu.h>
#include <xxhash.h>

#include "agent/page_hash.h"
#include "ksmd/scan.h"
#include "ksmd/stable_index.h"
#include "tests/unit/unit.h"

/* ---- page_hash ---- */

static void test_page_hash_zero_page_known(void)
{
	char page[PAGE_BYTES] = { 0 };

	CU_ASSERT_EQUAL(page_hash(page, 0), PAGE_HASH_ZERO);
	CU_ASSERT_EQUAL(page_hash(page, UINT64_MAX), PAGE_HASH_ZERO);
	for (size_t i = 0; i < sizeof(page); i++) { /* one bit anywhere is data */
		page[i] = (char)(1 << i % 8);
		CU_ASSERT_TRUE(page_hash(page, 7) > PAGE_HASH_ZERO);
		page[i] = 0;
	}
}

static void test_page_hash_contents_and_seeds_differ(void)
{
	enum { N = 3000 };
	static char page[PAGE_BYTES];
	uint64_t one = 0, two = 0;

	for (uint64_t i = 1; i < N; i++) {
		uint64_t hash;

		unit_page_fill(page, i);
		hash = page_hash(page, 7);
		CU_ASSERT_TRUE(hash != PAGE_HASH_NONE && hash != PAGE_HASH_ZERO);
		CU_ASSERT_EQUAL(hash, page_hash(page, 7));
		CU_ASSERT_EQUAL(hash, XXH3_64bits_withSeed(page, PAGE_BYTES, 7)); /* whatever the vectors */
		CU_ASSERT_NOT_EQUAL(hash, page_hash(page, 8));
		page[i % PAGE_BYTES] = (char)(page[i % PAGE_BYTES] ^ 0x10);
		CU_ASSERT_NOT_EQUAL(hash, page_hash(page, 7));
		one ^= hash;
		two += stable_index_samples(hash);
	}
	CU_ASSERT_NOT_EQUAL(one, 0);
	CU_ASSERT_TRUE(two > N / 32 && two < N / 8); /* a sixteenth is sampled */
}

/* ---- join ---- */

struct entry {
	uint64_t hash;
	struct join_ref ref;
};

struct got {
	struct entry *entries;
	size_t count, cap, groups;
	bool bad; /* a group was not as promised */
};

static int entry_order(const void *a, const void *b)
{
	const struct entry *x = a, *y = b;

	if (x->hash != y->hash)
		return x->hash < y->hash ? -1 : 1;
	if (x->ref.owner != y->ref.owner)
		return x->ref.owner < y->ref.owner ? -1 : 1;
	return x->ref.page < y->ref.page ? -1 : x->ref.page > y->ref.page;
}

static void take_group(uint64_t hash, const struct join_ref *refs, size_t count, void *userdata)
{
	struct got *g = userdata;

	g->groups++;
	g->bad |= count < 2 || hash <= PAGE_HASH_ZERO || g->count + count > g->cap;
	for (size_t i = 0; i < count && g->count < g->cap; i++) {
		struct entry e = { hash, refs[i] }, before = { hash, refs[i ? i - 1 : 0] };

		g->bad |= i > 0 && entry_order(&before, &e) >= 0; /* strictly ascending */
		g->entries[g->count++] = e;
	}
}

/* The same by sorting everything: entries of hashes that occur twice; returns how many groups. */
static size_t model(const struct join_input *inputs, size_t count, struct entry *entries, size_t *ret_count)
{
	size_t all = 0, kept = 0, groups = 0;

	for (size_t i = 0; i < count; i++)
		for (uint64_t p = 0; p < inputs[i].pages; p++)
			if (inputs[i].hashes[p] != PAGE_HASH_NONE && inputs[i].hashes[p] != PAGE_HASH_ZERO)
				entries[all++] = (struct entry){ inputs[i].hashes[p],
								 { inputs[i].owner, inputs[i].first_page + p } };
	qsort(entries, all, sizeof(*entries), entry_order);
	for (size_t i = 0, end; i < all; i = end) {
		for (end = i; end < all && entries[end].hash == entries[i].hash;)
			end++;
		if (end - i < 2)
			continue;
		memmove(entries + kept, entries + i, (end - i) * sizeof(*entries));
		kept += end - i;
		groups++;
	}
	*ret_count = kept;
	return groups;
}

static bool join_as_model(const struct join_input *inputs, size_t count, uint64_t pages)
{
	struct got got = { .cap = pages };
	struct entry *want = calloc(pages + 1, sizeof(*want));
	size_t want_count, want_groups, peak = 77;
	bool ok;

	got.entries = calloc(pages + 1, sizeof(*got.entries));
	unit_must(want && got.entries, "calloc");
	want_groups = model(inputs, count, want, &want_count);
	ok = join_run(inputs, count, take_group, &got, &peak) == 0 && !got.bad && got.groups == want_groups &&
	     got.count == want_count && peak != 77;
	qsort(got.entries, got.count, sizeof(*got.entries), entry_order);
	for (size_t i = 0; i < want_count && ok; i++)
		ok = entry_order(&got.entries[i], &want[i]) == 0;
	free(want);
	free(got.entries);
	return ok;
}

static const struct join_case {
	const char *what;
	uint64_t pages;	   /* in all */
	uint64_t distinct; /* contents to choose from; 0: all different */
	uint64_t mask;	   /* bits of the hash that are left; the low two are always */
	unsigned inputs, owners;
	unsigned empty_percent; /* absent or zero */
} join_cases[] = {
	{ "nothing", 0, 1, UINT64_MAX, 0, 1, 0 },
	{ "empty input", 0, 1, UINT64_MAX, 1, 1, 0 },
	{ "one page", 1, 1, UINT64_MAX, 1, 1, 0 },
	{ "two equal", 2, 1, UINT64_MAX, 1, 1, 0 },
	{ "two equal of two", 2, 1, UINT64_MAX, 2, 2, 0 },
	{ "all absent or zero", 1000, 1, UINT64_MAX, 2, 2, 100 },
	{ "few contents", 5000, 10, UINT64_MAX, 3, 3, 10 },
	{ "several inputs of an owner", 9000, 4000, UINT64_MAX, 9, 3, 10 },
	{ "empty inputs between", 50, 10, UINT64_MAX, 200, 100, 10 },
	{ "all different", 70000, 0, UINT64_MAX, 4, 4, 0 },
	{ "pairs", 100000, 50000, UINT64_MAX, 4, 4, 20 },
	{ "many", 200000, 60000, UINT64_MAX, 8, 5, 30 },
	{ "all equal", 100000, 1, UINT64_MAX, 4, 2, 0 },
	{ "all in the first bucket", 120000, 30000, UINT64_C(0xffffffff), 2, 2, 0 },
	{ "all in one slot", 20000, 5000, UINT64_C(0xffffffff00000000), 2, 2, 0 },
	{ "highest owner", 3000, 1000, UINT64_MAX, JOIN_OWNERS_MAX, JOIN_OWNERS_MAX, 0 },
};

static void test_join_random_inputs_as_model(void)
{
	for (size_t c = 0; c < ARRAY_SIZE(join_cases); c++) {
		const struct join_case *jc = &join_cases[c];
		unsigned used = jc->inputs > 1000 ? 3 : jc->inputs;
		struct join_input *inputs = calloc(used + 1, sizeof(*inputs));
		uint64_t *hashes = calloc(jc->pages + 1, sizeof(*hashes));
		uint64_t state = c, left = jc->pages, at = 0;

		for (uint64_t p = 0; p < jc->pages; p++) {
			uint64_t r = unit_random(&state), content = jc->distinct ? r % jc->distinct : p;

			content = content << 3 | 4;
			hashes[p] = (unit_random(&content) & jc->mask) | 2;
			if (r >> 32 & 1 && (r >> 40) % 100 < jc->empty_percent)
				hashes[p] = PAGE_HASH_NONE;
			else if ((r >> 40) % 100 < jc->empty_percent)
				hashes[p] = PAGE_HASH_ZERO;
		}
		for (unsigned i = 0; i < used; i++) {
			uint64_t pages = i + 1 == used ? left : left ? unit_random(&state) % (left + 1) : 0;
			uint32_t owner = (uint32_t)((uint64_t)i * jc->owners / jc->inputs);

			if (jc->inputs > 1000 && i + 1 == used)
				owner = jc->owners - 1;
			inputs[i] = (struct join_input){ owner, hashes + at, pages, 0 };
			if (i > 0 && inputs[i - 1].owner == owner)
				inputs[i].first_page = inputs[i - 1].first_page + inputs[i - 1].pages;
			at += pages;
			left -= pages;
		}
		UNIT_CASE(jc->what, join_as_model(inputs, used, jc->pages));
		free(inputs);
		free(hashes);
	}
}

static void take_nothing(uint64_t hash, const struct join_ref *refs, size_t count, void *userdata)
{
	(void)hash;
	(void)refs;
	*(size_t *)userdata += count;
}

static void test_join_bad_input_refused(void)
{
	const uint64_t hash = 5;
	size_t pages = 0;
	struct join_input owner = { JOIN_OWNERS_MAX, &hash, 1, 0 };
	struct join_input huge = { 0, &hash, (uint64_t)UINT32_MAX + 1, 0 };

	CU_ASSERT_EQUAL(join_run(&owner, 1, take_nothing, &pages, NULL), -EINVAL);
	CU_ASSERT_EQUAL(join_run(&huge, 1, take_nothing, &pages, NULL), -EINVAL);
	CU_ASSERT_EQUAL(pages, 0);
}

static void test_join_large_input_memory_bounded(void)
{
	const uint64_t pages = 4 << 20;
	uint64_t *hashes = scan_hashes_new(pages), state = 3;
	struct join_input inputs[2] = { { 0, hashes, pages / 2, 0 }, { 1, hashes + pages / 2, pages / 2, 0 } };
	size_t peak = 0, shared = 0;

	for (uint64_t p = 0; p < pages; p++) {
		uint64_t content = unit_random(&state) % (pages / 2);

		hashes[p] = unit_random(&content) | 2;
	}
	CU_ASSERT_EQUAL(join_run(inputs, 2, take_nothing, &shared, &peak), 0);
	CU_ASSERT_TRUE(shared > pages / 2);
	CU_ASSERT_TRUE(peak > 0 && peak <= 2 * pages);
	scan_hashes_free(hashes, pages);
}

/* ---- stable index ---- */

static bool has(struct stable_index *x, uint64_t hash)
{
	bool found;

	rcu_read_lock();
	found = stable_index_has_rcu(x, hash);
	rcu_read_unlock();
	return found;
}

static void test_stable_index_refresh_keeps_what_is_put(void)
{
	enum { N = 5000 };
	struct stable_index *x;
	size_t empty;

	rcu_register_thread();
	unit_must(stable_index_new(&x) == 0, "stable_index_new");
	empty = stable_index_bytes(x);
	CU_ASSERT_FALSE(has(x, 16));
	for (uint64_t round = 0; round < 4; round++) { /* each round every second content of the one before */
		stable_index_refresh_begin(x);
		for (uint64_t i = 0; i < N; i += (uint64_t)1 << round) {
			CU_ASSERT_EQUAL(stable_index_put(x, (i + 1) * STABLE_INDEX_SAMPLE), 0);
			CU_ASSERT_EQUAL(stable_index_put(x, (i + 1) * STABLE_INDEX_SAMPLE), 0);
		}
		CU_ASSERT_TRUE(has(x, (N - 7) * STABLE_INDEX_SAMPLE)); /* till the end: put now or before */
		stable_index_refresh_end(x);
		for (uint64_t i = 0; i < N; i++)
			CU_ASSERT_EQUAL(has(x, (i + 1) * STABLE_INDEX_SAMPLE), i % ((uint64_t)1 << round) == 0);
	}
	CU_ASSERT_TRUE(stable_index_bytes(x) > empty);
	stable_index_refresh_begin(x);
	stable_index_refresh_end(x);
	CU_ASSERT_FALSE(has(x, 16));
	CU_ASSERT_EQUAL(stable_index_bytes(x), empty);
	rcu_unregister_thread();
	CU_ASSERT_PTR_NULL(stable_index_free(x));
	CU_ASSERT_PTR_NULL(stable_index_free(NULL));
}

#define STAYING 500
#define PASSING 500

struct readers {
	struct stable_index *index;
	_Atomic bool stop;
	_Atomic unsigned started;
	_Atomic uint64_t looks, wrong;
};

/* What stays is always found, what was never put never is; the rest only must not crash. */
static void *reader(void *arg)
{
	struct readers *r = arg;

	rcu_register_thread();
	r->started++;
	while (!r->stop) {
		for (uint64_t i = 1; i <= STAYING; i++) {
			r->wrong += !has(r->index, i * STABLE_INDEX_SAMPLE);
			r->wrong += has(r->index, i * STABLE_INDEX_SAMPLE + 1);
			r->looks += 1 + has(r->index, (STAYING + i) * STABLE_INDEX_SAMPLE);
		}
	}
	rcu_unregister_thread();
	return NULL;
}

static void refresh(struct stable_index *x, bool passing)
{
	stable_index_refresh_begin(x);
	for (uint64_t i = 1; i <= STAYING + (passing ? PASSING : 0); i++)
		CU_ASSERT_EQUAL(stable_index_put(x, i * STABLE_INDEX_SAMPLE), 0);
	stable_index_refresh_end(x);
}

static void test_stable_index_readers_during_refresh_see_whole(void)
{
	struct readers r = { .stop = false };
	pthread_t threads[3];

	rcu_register_thread();
	unit_must(stable_index_new(&r.index) == 0, "stable_index_new");
	refresh(r.index, true);
	for (size_t i = 0; i < ARRAY_SIZE(threads); i++)
		unit_must(pthread_create(&threads[i], NULL, reader, &r) == 0, "pthread_create");
	while (r.started < ARRAY_SIZE(threads))
		sched_yield();
	for (int round = 0; round < 100; round++)
		refresh(r.index, round % 2);
	r.stop = true;
	for (size_t i = 0; i < ARRAY_SIZE(threads); i++)
		pthread_join(threads[i], NULL);
	CU_ASSERT_EQUAL(r.wrong, 0);
	CU_ASSERT_TRUE(r.looks > 0);
	rcu_unregister_thread();
	stable_index_free(r.index);
}

int main(void)
{
	static CU_TestInfo tests[] = {
		{ "hash_zero", test_page_hash_zero_page_known },
		{ "hash_differs", test_page_hash_contents_and_seeds_differ },
		{ "join_model", test_join_random_inputs_as_model },
		{ "join_bad", test_join_bad_input_refused },
		{ "join_memory", test_join_large_input_memory_bounded },
		{ "index_refresh", test_stable_index_refresh_keeps_what_is_put },
		{ "index_readers", test_stable_index_readers_during_refresh_see_whole },
		CU_TEST_INFO_NULL,
	};

	return unit_main("join", tests);
}
