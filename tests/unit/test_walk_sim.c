/* The model of bench/ept: without caches it gives the known figures; with them, what can be counted by hand. */
#include "bench/lib/walk_sim.h"

#include "bench/lib/guest_made_up.h"
#include "bench/lib/guest_space.h"
#include "tests/unit/unit.h"

#define SPACES 3
#define SMALL 512
#define LARGE 4

static struct guest_made_up guest;
static struct guest_space spaces[GUEST_SPACES_MAX];
static int space_count;

struct world {
	struct guest_ram ram;
	unsigned host_level;
};

static int world_read(void *userdata, uint64_t gpa, void *buf, size_t n)
{
	return guest_ram_read(&((struct world *)userdata)->ram, gpa, buf, n);
}

static unsigned world_host_level(void *userdata, uint64_t gpa)
{
	(void)gpa;
	return ((struct world *)userdata)->host_level;
}

static const struct walk_sim_options none = { .caches = false };
static const struct walk_sim_options usual = { .tlb_entries = 1536, .tlb_ways = 12, .walk_cache = { 0, 0, 32, 4, 2 },
					       .nested_tlb_entries = 16, .caches = true };

static struct walk_sim *sim_start(struct world *w, struct walk_sim_options o, enum walk_scheme scheme, unsigned host_level)
{
	struct walk_sim *s;

	*w = (struct world){ { guest.bytes, guest.size, &guest.present, &guest.huge }, host_level };
	o.scheme = scheme;
	unit_must(walk_sim_new(&o, world_read, world_host_level, w, &s) == 0, "sim");
	walk_sim_switch(s, 1, &spaces[0].regs);
	return s;
}

static const struct guest_page *page_of_level(unsigned level)
{
	for (size_t i = 0; i < spaces[0].page_count; i++)
		if (spaces[0].pages[i].level == level)
			return &spaces[0].pages[i];
	return NULL;
}

static void test_spaces_are_found(void)
{
	CU_ASSERT_EQUAL(space_count, SPACES);
	for (int i = 0; i < space_count; i++) {
		size_t dirty = 0;

		CU_ASSERT_EQUAL(spaces[i].page_count, SMALL + LARGE);
		for (size_t k = 0; k < spaces[i].page_count; k++)
			dirty += spaces[i].pages[k].dirty;
		CU_ASSERT_EQUAL(dirty, SMALL / 2 + LARGE);
	}
}

static void test_references_without_caches_are_the_formula(void)
{
	static const struct {
		const char *what;
		enum walk_scheme scheme;
		unsigned guest, host, references;
	} cases[] = {
		{ "native 4K", SIM_NATIVE, 1, 1, 4 },
		{ "native 2M", SIM_NATIVE, 2, 1, 3 },
		{ "4K on 4K", SIM_TWO_DIMENSIONAL, 1, 1, 24 },
		{ "4K on 2M", SIM_TWO_DIMENSIONAL, 1, 2, 19 },
		{ "2M on 4K", SIM_TWO_DIMENSIONAL, 2, 1, 19 },
		{ "2M on 2M", SIM_TWO_DIMENSIONAL, 2, 2, 15 },
		{ "2M on 1G", SIM_TWO_DIMENSIONAL, 2, 3, 11 },
		{ "shadow 4K on 4K", SIM_SHADOW, 1, 1, 4 },
		{ "shadow 2M on 4K", SIM_SHADOW, 2, 1, 4 },
		{ "shadow 2M on 2M", SIM_SHADOW, 2, 2, 3 },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct world w;
		struct walk_sim *s = sim_start(&w, none, cases[i].scheme, cases[i].host);

		for (unsigned k = 0; k < 3; k++)
			UNIT_CASE(cases[i].what, walk_sim_access(s, page_of_level(cases[i].guest)->gva + k, false) == 0);
		UNIT_CASE(cases[i].what, walk_sim_counts(s)->references == 3 * cases[i].references);
		UNIT_CASE(cases[i].what, walk_sim_counts(s)->tlb_misses == 3);
		walk_sim_free(s);
	}
}

static void test_caches_save_what_they_hold(void)
{
	const struct guest_page *page = page_of_level(1);
	struct world w;
	struct walk_sim *s = sim_start(&w, usual, SIM_NATIVE, 1);

	CU_ASSERT_EQUAL(walk_sim_access(s, page->gva, false), 0);
	CU_ASSERT_EQUAL(walk_sim_access(s, page->gva + 8, false), 0); /* in the TLB */
	CU_ASSERT_EQUAL(walk_sim_counts(s)->references, 4);
	CU_ASSERT_EQUAL(walk_sim_access(s, page->gva + PAGE_BYTES, false), 0); /* its table is known */
	CU_ASSERT_EQUAL(walk_sim_counts(s)->references, 5);
	CU_ASSERT_EQUAL(walk_sim_counts(s)->tlb_misses, 2);
	walk_sim_switch(s, 2, &spaces[1].regs);
	CU_ASSERT_EQUAL(walk_sim_access(s, page->gva, false), 0); /* another's */
	CU_ASSERT_EQUAL(walk_sim_counts(s)->references, 9);
	walk_sim_switch(s, 1, &spaces[0].regs);
	CU_ASSERT_EQUAL(walk_sim_access(s, page->gva, false), 0); /* tagged, so still there */
	CU_ASSERT_EQUAL(walk_sim_counts(s)->references, 9);
	CU_ASSERT_EQUAL(walk_sim_access(s, 0x1000, false), -EFAULT);
	CU_ASSERT_EQUAL(walk_sim_counts(s)->accesses, 5);
	walk_sim_free(s);

	/* Two dimensions, all in one page of 1 GiB: found once. 1 for each table, and 2 to find it. */
	s = sim_start(&w, usual, SIM_TWO_DIMENSIONAL, 3);
	CU_ASSERT_EQUAL(walk_sim_access(s, page->gva, false), 0);
	CU_ASSERT_EQUAL(walk_sim_counts(s)->references, 4 + 2);
	CU_ASSERT_EQUAL(walk_sim_access(s, page->gva + PAGE_BYTES, false), 0);
	CU_ASSERT_EQUAL(walk_sim_counts(s)->references, 4 + 2 + 1);
	walk_sim_free(s);
}

static void test_tlb_of_n_holds_n(void)
{
	struct walk_sim_options o = usual;
	struct world w;
	struct walk_sim *s;

	o.tlb_entries = 256;
	o.tlb_ways = 4;
	s = sim_start(&w, o, SIM_NATIVE, 1);
	for (unsigned turn = 0; turn < 2; turn++) /* 256 pages in a row fill each set evenly */
		for (unsigned i = 0; i < 256; i++)
			CU_ASSERT_EQUAL(walk_sim_access(s, page_of_level(1)->gva + i * PAGE_BYTES, false), 0);
	CU_ASSERT_EQUAL(walk_sim_counts(s)->tlb_misses, 256);
	for (unsigned turn = 0; turn < 2; turn++) /* one more than a set has room for: the oldest goes, which is next */
		for (unsigned i = 0; i < 320; i++)
			CU_ASSERT_EQUAL(walk_sim_access(s, page_of_level(1)->gva + i * PAGE_BYTES, false), 0);
	CU_ASSERT_EQUAL(walk_sim_counts(s)->tlb_misses, 256 + 64 + 64 * 5);
	walk_sim_free(s);
}

static void test_exits_are_of_each_scheme(void)
{
	const struct guest_page *small = page_of_level(1), *large = page_of_level(2);
	const struct walk_sim_counts *c;
	struct world w;
	struct walk_sim *s = sim_start(&w, usual, SIM_SHADOW, 1);

	c = walk_sim_counts(s);
	walk_sim_access(s, small->gva, false);
	CU_ASSERT(c->guest_faults == 1 && c->table_writes == 1 && c->hidden_faults == 0 && c->violations == 0);
	walk_sim_access(s, small->gva, true); /* the dirty flag */
	walk_sim_access(s, small->gva, true);
	CU_ASSERT(c->guest_faults == 1 && c->hidden_faults == 1);
	walk_sim_access(s, large->gva, true);
	walk_sim_access(s, large->gva + PAGE_BYTES, false); /* the guest has it, small pages of the composite have not */
	CU_ASSERT(c->guest_faults == 2 && c->table_writes == 2 && c->hidden_faults == 2 && c->violations == 0);
	CU_ASSERT_EQUAL(c->switches, 1);
	walk_sim_switch(s, 2, &spaces[1].regs);
	CU_ASSERT_EQUAL(c->switches, 2);
	walk_sim_free(s);

	s = sim_start(&w, usual, SIM_TWO_DIMENSIONAL, 1);
	c = walk_sim_counts(s);
	walk_sim_access(s, small->gva, true);
	walk_sim_access(s, large->gva, true);
	walk_sim_access(s, large->gva + PAGE_BYTES, true);
	CU_ASSERT(c->violations == 3 && c->guest_faults + c->table_writes + c->hidden_faults + c->switches == 0);
	walk_sim_free(s);

	s = sim_start(&w, usual, SIM_NATIVE, 1);
	walk_sim_access(s, small->gva, true);
	c = walk_sim_counts(s);
	CU_ASSERT_EQUAL(c->violations + c->guest_faults + c->table_writes + c->hidden_faults + c->switches, 0);
	walk_sim_free(s);
}

int main(void)
{
	CU_TestInfo tests[] = {
		{ "spaces_are_found", test_spaces_are_found },
		{ "references_without_caches_are_the_formula", test_references_without_caches_are_the_formula },
		{ "caches_save_what_they_hold", test_caches_save_what_they_hold },
		{ "tlb_of_n_holds_n", test_tlb_of_n_holds_n },
		{ "exits_are_of_each_scheme", test_exits_are_of_each_scheme },
		CU_TEST_INFO_NULL,
	};
	struct guest_ram ram;
	int status;

	unit_must(guest_made_up(64u << 20, SPACES, SMALL, LARGE, &guest) == 0, "made-up guest");
	ram = (struct guest_ram){ guest.bytes, guest.size, &guest.present, &guest.huge };
	space_count = guest_spaces_find(&ram, 16, spaces);
	unit_must(space_count > 0, "spaces");
	status = unit_main("walk_sim", tests);
	for (int i = 0; i < space_count; i++)
		guest_space_end(&spaces[i]);
	guest_made_up_end(&guest);
	return status;
}
