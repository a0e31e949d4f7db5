/* ksmd/pass over children with hand-made contents: every number is known. */
#include "ksmd/pass.h"

#include <math.h>
#include <poll.h>

#include "ept/pagestate.h"
#include "ksmd/stable_index.h"
#include "tests/unit/unit.h"

#define Z UNIT_ZERO_MAPPED
#define N UNIT_ABSENT

static struct fsio fs;

struct made {
	const char *name, *domain;
	bool merge_allowed;
	size_t count;
	uint64_t contents[12];
};

enum { A, B, C, D, VMS };

static const struct made made[VMS] = {
	[A] = { "a", "one", true, 10, { 1, 1, N, 1, 2, Z, 3, 0, 0, N } },
	[B] = { "b", "one", true, 5, { Z, 1, 2, 4, 0 } },
	[C] = { "c", "vm:c", true, 4, { 1, 5, 5, N } },
	[D] = { "d", "one", false, 2, { 1, 2 } },
};

struct host {
	struct unit_child children[VMS];
	struct mem_region regions[VMS];
	struct vm_snapshot vms[VMS];
	struct page_table *tables[VMS];
};

static void host_start(struct host *h, bool one_seed)
{
	memset(h, 0, sizeof(*h));
	for (size_t i = 0; i < VMS; i++) {
		struct unit_pages layout = { made[i].contents, made[i].count };
		uint64_t seed = one_seed || i != C ? 7 : 8; /* by domain */

		unit_child_start(&h->children[i], unit_pages_make, &layout);
		h->regions[i] = (struct mem_region){ (uintptr_t)h->children[i].map, made[i].count * PAGE_BYTES,
						     MEM_ANON };
		h->vms[i] = (struct vm_snapshot){ .name = made[i].name, .uuid = made[i].name, .domain = made[i].domain,
						  .pid = h->children[i].pid, .pidfd = h->children[i].pidfd,
						  .start_ticks = i, .regions = &h->regions[i], .region_count = 1,
						  .merge_allowed = made[i].merge_allowed };
		unit_must(page_table_new(&fs, &h->vms[i], seed, &h->tables[i]) == 0, "page_table_new");
	}
}

static void host_stop(struct host *h)
{
	for (size_t i = 0; i < VMS; i++) {
		page_table_unref(h->tables[i]);
		unit_child_stop(&h->children[i]);
	}
}

static struct pass *pass_run(struct host *h, bool rescan, const struct pass_options *options)
{
	struct pass_input inputs[VMS];
	struct pollfd ready = { .events = POLLIN };
	uint64_t done, total;
	struct pass *p;

	for (size_t i = 0; i < VMS; i++)
		inputs[i] = (struct pass_input){ .table = h->tables[i], .rescan = rescan };
	unit_must(pass_start(inputs, VMS, options, &p) == 0, "pass_start");
	ready.fd = pass_done_fd(p);
	CU_ASSERT_EQUAL(poll(&ready, 1, -1), 1);
	CU_ASSERT_EQUAL(pass_wait(p)->error, 0);
	CU_ASSERT_EQUAL(pass_wait(p)->vm_count, VMS);
	pass_progress(p, &done, &total);
	CU_ASSERT_EQUAL(done, total);
	return p;
}

struct want {
	uint64_t present, zero, zero_mapped;
	double within, between, mergeable;
	uint64_t sharing[VMS];
};

static bool near(double a, double b)
{
	return fabs(a - b) < 1e-9;
}

static void check(const struct pass_result *r, const struct want *want)
{
	struct want total = { 0 };

	for (size_t i = 0; i < VMS; i++) {
		const struct pass_counts *c = &r->vms[i].counts;

		UNIT_CASE(made[i].name, strcmp(r->vms[i].name, made[i].name) == 0);
		UNIT_CASE(made[i].name, strcmp(r->vms[i].domain, made[i].domain) == 0);
		UNIT_CASE(made[i].name, c->present == want[i].present);
		UNIT_CASE(made[i].name, c->zero == want[i].zero);
		UNIT_CASE(made[i].name, c->zero_mapped == want[i].zero_mapped);
		UNIT_CASE(made[i].name, near(c->dup_within, want[i].within));
		UNIT_CASE(made[i].name, near(c->dup_between, want[i].between));
		UNIT_CASE(made[i].name, near(c->mergeable, want[i].mergeable));
		for (size_t k = 0; k < VMS && r->sharing_pages; k++)
			UNIT_CASE(made[i].name, r->sharing_pages[i * VMS + k] == want[i].sharing[k]);
		total.present += want[i].present;
		total.zero += want[i].zero;
		total.within += want[i].within;
		total.between += want[i].between;
		total.mergeable += want[i].mergeable;
	}
	CU_ASSERT_EQUAL(r->total.present, total.present);
	CU_ASSERT_EQUAL(r->total.zero, total.zero);
	CU_ASSERT_TRUE(near(r->total.dup_within, total.within));
	CU_ASSERT_TRUE(near(r->total.dup_between, total.between));
	CU_ASSERT_TRUE(near(r->total.mergeable, total.mergeable));
	CU_ASSERT_TRUE(r->metadata_bytes >= 8 * total.present);
}

/* Content 1 is held by all four VMs, 2 by a, b and d. Mergeable only inside "one", without d: of content 1 the
 * three copies of a and the one of b become one, of content 2 two become one; and the zero pages. */
static const struct want across[VMS] = {
	[A] = { 7, 2, 1, 2, 3.0 / 4 + 2.0 / 3, 2 + 0.5 + 0.5 + 2, { 2, 2, 1, 2 } },
	[B] = { 4, 1, 1, 0, 3.0 / 4 + 2.0 / 3, 0.5 + 0.5 + 1, { 2, 0, 1, 2 } },
	[C] = { 3, 0, 0, 1, 3.0 / 4, 1, { 1, 1, 1, 1 } },
	[D] = { 2, 0, 0, 0, 3.0 / 4 + 2.0 / 3, 0, { 2, 2, 1, 0 } },
};

static const struct want by_domain[VMS] = {
	[A] = { 7, 2, 1, 2, 2.0 / 3 + 2.0 / 3, 5, { 2, 2, 0, 2 } },
	[B] = { 4, 1, 1, 0, 2.0 / 3 + 2.0 / 3, 2, { 2, 0, 0, 2 } },
	[C] = { 3, 0, 0, 1, 0, 1, { 0, 0, 1, 0 } },
	[D] = { 2, 0, 0, 0, 2.0 / 3 + 2.0 / 3, 0, { 2, 2, 0, 0 } },
};

static void test_pass_across_domains_exact(void)
{
	const struct pass_options options = { .limits = { .workers = 2 }, .across_domains = true, .sharing = true };
	struct host h;
	struct pass *p;

	if (geteuid() != 0)
		UNIT_SKIP("reading another process needs root");
	host_start(&h, true);
	p = pass_run(&h, true, &options);
	check(pass_wait(p), across);
	CU_ASSERT_EQUAL(pass_wait(p)->scanned_pages, 16);
	pass_free(p);
	host_stop(&h);
}

static void test_pass_by_domain_exact(void)
{
	const struct pass_options options = { .limits = { .workers = 1 }, .sharing = true };
	struct host h;
	struct pass *p;

	if (geteuid() != 0)
		UNIT_SKIP("reading another process needs root");
	host_start(&h, false);
	p = pass_run(&h, true, &options);
	check(pass_wait(p), by_domain);
	pass_free(p);
	host_stop(&h);
	host_start(&h, true); /* nothing is compared across domains, whatever the seeds */
	p = pass_run(&h, true, &options);
	check(pass_wait(p), by_domain);
	pass_free(p);
	host_stop(&h);
}

static void test_pass_without_rescan_remembers(void)
{
	struct pass_options options = { .limits = { .workers = 1 }, .across_domains = true, .sharing = true };
	struct pass *first, *again;
	struct host h;

	if (geteuid() != 0)
		UNIT_SKIP("reading another process needs root");
	host_start(&h, true);
	first = pass_run(&h, true, &options);
	again = pass_run(&h, false, &options);
	check(pass_wait(again), across);
	CU_ASSERT_EQUAL(pass_wait(again)->scanned_pages, 0);
	options.sharing = false;
	pass_free(again);
	again = pass_run(&h, true, &options); /* several passes at hand: the older result stays as it was */
	check(pass_wait(again), across);
	CU_ASSERT_PTR_NULL(pass_wait(again)->sharing_pages);
	check(pass_wait(first), across);
	pass_free(first);
	pass_free(again);
	host_stop(&h);
}

/* While fewer pages have settled than that, the last join of the same VMs holds, to the last count. */
static void test_pass_join_spared_when_nothing_new(void)
{
	const struct pass_options options = { .limits = { .workers = 1 }, .join_least_pages = 1 };
	const struct pass_options patient = { .limits = { .workers = 1 }, .join_least_pages = 17 };
	struct pass_input fewer[VMS - 1];
	struct pass *p;
	struct host h;

	if (geteuid() != 0)
		UNIT_SKIP("reading another process needs root");
	host_start(&h, true);
	for (size_t i = 0; i < 4; i++) { /* joined; nothing settled; too little settled; that and 16 more */
		p = pass_run(&h, i != 1, i == 2 ? &patient : &options);
		check(pass_wait(p), by_domain);
		CU_ASSERT_EQUAL(pass_wait(p)->joined, i == 0 || i == 3);
		pass_free(p);
	}
	for (size_t i = 0; i < VMS - 1; i++)
		fewer[i] = (struct pass_input){ .table = h.tables[i] };
	unit_must(pass_start(fewer, VMS - 1, &options, &p) == 0, "pass_start");
	CU_ASSERT_TRUE(pass_wait(p)->error == 0 && pass_wait(p)->joined); /* other VMs */
	pass_free(p);
	host_stop(&h);
}

static void test_pass_dead_child_is_gone(void)
{
	static const struct want without_b[VMS] = {
		[A] = { 7, 2, 1, 2, 2.0 / 3 + 1.0 / 2, 2 + 2, { 2, 0, 1, 2 } },
		[C] = { 3, 0, 0, 1, 2.0 / 3, 1, { 1, 0, 1, 1 } },
		[D] = { 2, 0, 0, 0, 2.0 / 3 + 1.0 / 2, 0, { 2, 0, 1, 0 } },
	};
	const struct pass_options options = { .limits = { .workers = 2 }, .across_domains = true, .sharing = true };
	struct page_table *none = NULL;
	struct host h;
	struct pass *p;

	if (geteuid() != 0)
		UNIT_SKIP("reading another process needs root");
	host_start(&h, true);
	pass_free(pass_run(&h, true, &options)); /* has been seen alive */
	unit_child_kill(&h.children[B]);
	p = pass_run(&h, true, &options);
	for (size_t i = 0; i < VMS; i++)
		CU_ASSERT_EQUAL(pass_wait(p)->vms[i].gone, i == B);
	check(pass_wait(p), without_b);
	CU_ASSERT_FALSE(page_table_is_for(h.tables[B], &h.vms[B])); /* never used again */
	CU_ASSERT_EQUAL(page_table_new(&fs, &h.vms[B], 7, &none), -ESRCH);
	CU_ASSERT_PTR_NULL(none);
	pass_free(p);
	host_stop(&h);
}

static void test_pass_shared_memory_not_mergeable(void)
{
	const struct pass_options options = { .limits = { .workers = 1 }, .across_domains = true };
	struct host h;
	struct pass *p;

	if (geteuid() != 0)
		UNIT_SKIP("reading another process needs root");
	host_start(&h, true);
	h.regions[A].backing = MEM_SHARED;
	page_table_unref(h.tables[A]);
	unit_must(page_table_new(&fs, &h.vms[A], 7, &h.tables[A]) == 0, "page_table_new");
	p = pass_run(&h, true, &options);
	CU_ASSERT_TRUE(near(pass_wait(p)->vms[A].counts.mergeable, 0));
	CU_ASSERT_TRUE(near(pass_wait(p)->vms[A].counts.dup_within, 2));
	CU_ASSERT_TRUE(near(pass_wait(p)->vms[B].counts.mergeable, 1)); /* its zero page */
	pass_free(p);
	host_stop(&h);
}

static void test_pass_index_filled_and_counted(void)
{
	enum { PAGES = 2048 };
	struct pass_options options = { .limits = { .workers = 2 } };
	auto_free uint64_t *contents = calloc(PAGES, sizeof(*contents));
	struct mem_region region = { .bytes = PAGES * PAGE_BYTES };
	struct vm_snapshot vm = { .name = "v", .uuid = "v", .domain = "v", .regions = &region, .region_count = 1,
				  .merge_allowed = true };
	struct pass_input input = { .rescan = true };
	const struct pass_result *r;
	struct unit_child c;
	struct pass *p;

	if (geteuid() != 0)
		UNIT_SKIP("reading another process needs root");
	for (size_t i = 0; i < PAGES; i++)
		contents[i] = 1 + i / 2; /* everything twice */
	unit_child_start(&c, unit_pages_make, &(struct unit_pages){ contents, PAGES });
	region.hva = (uintptr_t)c.map;
	vm.pid = c.pid;
	vm.pidfd = c.pidfd;
	unit_must(page_table_new(&fs, &vm, 7, &input.table) == 0 && stable_index_new(&options.index) == 0, "new");
	for (int round = 0; round < 3; round++) {
		uint64_t early;

		input.early = round < 2;
		unit_must(pass_start(&input, 1, &options, &p) == 0, "pass_start");
		r = pass_wait(p);
		early = pass_early_pages(p);
		CU_ASSERT_EQUAL(r->error, 0);
		CU_ASSERT_TRUE(near(r->total.dup_within, PAGES / 2));
		/* Empty at first; then the sample of the contents, counted up: about all pages are known. */
		CU_ASSERT_TRUE(round == 1 ? early > PAGES / 2 && early < PAGES * 2 : early == 0);
		pass_free(p);
	}
	page_table_unref(input.table);
	stable_index_free(options.index);
	unit_child_stop(&c);
}

static void test_pass_cancelled_or_empty_ends(void)
{
	const struct pass_options slow = { .limits = { .workers = 1, .bytes_per_s = 1 } };
	struct pass_input inputs[VMS];
	struct host h;
	struct pass *p;

	if (geteuid() != 0)
		UNIT_SKIP("reading another process needs root");
	host_start(&h, true);
	for (size_t i = 0; i < VMS; i++)
		inputs[i] = (struct pass_input){ .table = h.tables[i], .rescan = true };
	unit_must(pass_start(inputs, VMS, &slow, &p) == 0, "pass_start"); /* would take hours */
	CU_ASSERT_PTR_NULL(pass_free(p));
	unit_must(pass_start(inputs, 0, &slow, &p) == 0, "pass_start");
	CU_ASSERT_EQUAL(pass_wait(p)->error, 0);
	CU_ASSERT_EQUAL(pass_wait(p)->vm_count, 0);
	pass_free(p);
	CU_ASSERT_PTR_NULL(pass_free(NULL));
	host_stop(&h);
}

static void test_page_table_identity_table_gives_expected(void)
{
	struct mem_region two[2];
	struct vm_snapshot other;
	struct host h;

	if (geteuid() != 0)
		UNIT_SKIP("reading another process needs root");
	host_start(&h, true);
	CU_ASSERT_TRUE(page_table_is_for(h.tables[A], &h.vms[A]));
	CU_ASSERT_FALSE(page_table_is_for(h.tables[A], &h.vms[B]));
#define DIFFERS(change)                                                       \
	do {                                                                  \
		other = h.vms[A];                                             \
		two[0] = two[1] = h.regions[A];                               \
		other.regions = two;                                          \
		change;                                                       \
		UNIT_CASE(#change, !page_table_is_for(h.tables[A], &other));  \
	} while (0)
	DIFFERS(other.pid++);
	DIFFERS(other.start_ticks++);
	DIFFERS(other.domain = "two");
	DIFFERS(other.merge_allowed = false);
	DIFFERS(other.name = "x");
	DIFFERS(other.region_count = 2);
	DIFFERS(other.region_count = 0);
	DIFFERS(two[0].hva += PAGE_BYTES);
	DIFFERS(two[0].bytes += PAGE_BYTES);
	DIFFERS(two[0].backing = MEM_SHARED);
	CU_ASSERT_PTR_EQUAL(page_table_ref(h.tables[A]), h.tables[A]);
	CU_ASSERT_PTR_NULL(page_table_unref(h.tables[A]));
	CU_ASSERT_TRUE(page_table_is_for(h.tables[A], &h.vms[A]));
	CU_ASSERT_PTR_NULL(page_table_unref(NULL));
	host_stop(&h);
}

int main(void)
{
	static CU_TestInfo tests[] = {
		{ "across_domains", test_pass_across_domains_exact },
		{ "by_domain", test_pass_by_domain_exact },
		{ "without_rescan", test_pass_without_rescan_remembers },
		{ "join_spared", test_pass_join_spared_when_nothing_new },
		{ "dead_child", test_pass_dead_child_is_gone },
		{ "shared_memory", test_pass_shared_memory_not_mergeable },
		{ "index", test_pass_index_filled_and_counted },
		{ "cancelled", test_pass_cancelled_or_empty_ends },
		{ "table_identity", test_page_table_identity_table_gives_expected },
		CU_TEST_INFO_NULL,
	};

	unit_must(fsio_open_root("/", false, &fs) == 0, "/");
	return unit_main("pass", tests);
}
