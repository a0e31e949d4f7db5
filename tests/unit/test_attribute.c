/* ept/attribute, ept/roots: hand-built tables put together with the host's pages; what top tables look like. */
#include "ept/attribute.h"

#include "ept/roots.h"
#include "tests/unit/walk_model.h"

#define NX (UINT64_C(1) << 63)
#define GIB (UINT64_C(1) << 30)
#define WORLD_BYTES (16u * PAGE_BYTES)
#define BUDGET (UINT64_C(1) << 40)

/* ---- whose memory ---- */

/* RAM of 8 MiB at 0 and 2 MiB at 1 GiB; between them nothing. */
#define LOW_PAGES 2048u
#define HIGH_PAGES 512u

static int locate(void *userdata, uint64_t gpa, uint64_t *ret_index, uint64_t *ret_pages)
{
	uint64_t page = gpa / PAGE_BYTES, high = GIB / PAGE_BYTES;

	(void)userdata;
	if (page < LOW_PAGES) {
		*ret_index = page;
		*ret_pages = LOW_PAGES - page;
		return 0;
	}
	if (page >= high && page < high + HIGH_PAGES) {
		*ret_index = LOW_PAGES + page - high;
		*ret_pages = high + HIGH_PAGES - page;
		return 0;
	}
	*ret_pages = page < high ? high - page : UINT64_MAX / PAGE_BYTES;
	return -ENXIO;
}

#define OWN(frame, node) (ATTRIBUTE_PRESENT | (frame) | (UINT64_C(1) + (node)) << ATTRIBUTE_NODE_SHIFT)

/* Two address spaces with a table in common; a huge page; what is not there. */
static void test_attribute_hand_built_gives_figures(void)
{
	static uint64_t host[LOW_PAGES + HIGH_PAGES];
	struct attribute_pages pages = { host, LOW_PAGES + HIGH_PAGES, 1 };
	struct attribute_usage one, two, together, kernel;
	struct walk_regs regs = { .cr0 = 0x80000011, .cr4 = 0x20, .efer = 0xd00, .phys_bits = 46, .gib_pages = true };
	struct world w = { .bytes = calloc(1, WORLD_BYTES), .size = WORLD_BYTES };
	struct attribute *a = NULL;
	struct composite_sync s;
	struct composite *c;
	uint64_t budget = BUDGET;

	unit_must(w.bytes, "calloc");
	memset(host, 0, sizeof(host));
	for (unsigned i = 0; i < 512; i++)
		host[1024 + i] = OWN(1024 * 7 + i, 1) | ATTRIBUTE_HUGE; /* 4 MiB on: a page of 2 MiB, frame aligned */
	host[0x20] = OWN(5, 1);
	host[0x21] = OWN(6, 0);
	host[0x22] = OWN(7, 1) | ATTRIBUTE_MERGED;
	host[0x23] = OWN(8, 1) | ATTRIBUTE_ZERO;
	host[0x24] = ATTRIBUTE_MERGED;
	host[0x25] = ATTRIBUTE_SWAPPED;
	host[LOW_PAGES] = OWN(9, 1);
	/* The first at 0x1000: pages 0x20 .. 0x26, 0x20 twice, a device, 4 MiB on. */
	world_put(&w, 0x1000, 0x2007, 8);
	world_put(&w, 0x2000, 0x3007, 8);
	world_put(&w, 0x3000, 0x4007, 8);
	world_put(&w, 0x3008, 0x400087, 8);
	for (unsigned i = 0; i < 7; i++)
		world_put(&w, 0x4000 + 8 * i, (0x20 + i) * PAGE_BYTES | 7, 8);
	world_put(&w, 0x4100, 0x20 * PAGE_BYTES | 7, 8);
	world_put(&w, 0x4108, UINT64_C(0xfee00007), 8);
	/* The second at 0x5000: the same 4 KiB pages, and page 0 of what is high. */
	world_put(&w, 0x5000, 0x6007, 8);
	world_put(&w, 0x6000, 0x7007, 8);
	world_put(&w, 0x7000, 0x4007, 8);
	world_put(&w, 0x7008, 0x8007, 8);
	world_put(&w, 0x8000, GIB | 7, 8);
	/* The kernel of the first: all of the first GiB. */
	world_put(&w, 0x1800, 0x9003, 8);
	world_put(&w, 0x9000, 0x83, 8);

	unit_must(composite_new(&regs, 100, &c) == 0 && composite_root_add(c, 0x1000) == 0 &&
			  composite_root_add(c, 0x5000) == 0 && composite_sync(c, world_read, &w, NULL, &s) == 0 &&
			  attribute_new(&pages, locate, NULL, &a) == 0,
		  "composite");
	attribute_user(a, c, 0x1000, &budget, &one);
	attribute_user(a, c, 0x5000, &budget, &two);
	attribute_together(a, &together);
	attribute_kernel(a, c, 0x1000, &budget, &kernel);
	CU_ASSERT_TRUE(one.mapped == 7 + 512 && one.resident == 3 + 512 && one.merged == 2 && one.huge == 512);
	CU_ASSERT_TRUE(one.swapped == 1 && one.remote == 1 && one.outside == 1 && !one.incomplete);
	CU_ASSERT_TRUE(one.entries_2m == 1 && one.entries_4k == 5); /* one place twice, and the zero page */
	CU_ASSERT_TRUE(two.mapped == 8 && two.resident == 4 && two.huge == 0 && two.entries_4k == 6);
	CU_ASSERT_TRUE(together.mapped == 8 + 512 && together.resident == 4 + 512 && together.remote == 1);
	CU_ASSERT_TRUE(kernel.mapped == LOW_PAGES - 7 - 512 && kernel.resident == 0 && !kernel.incomplete);
	/* A host page that begins elsewhere within 2 MiB than the guest's cannot be one entry. */
	for (unsigned i = 0; i < 512; i++)
		host[1024 + i] = OWN(1024 * 7 + 1 + i, 1) | ATTRIBUTE_HUGE;
	attribute_user(a, c, 0x1000, &budget, &one);
	CU_ASSERT_TRUE(one.entries_2m == 0 && one.entries_4k == 5 + 512);
	/* Going through pages of RAM costs as well. */
	budget = 1000;
	attribute_kernel(a, c, 0x1000, &budget, &kernel);
	CU_ASSERT_TRUE(kernel.incomplete && budget == 0);
	attribute_free(a);
	composite_free(c);
	free(w.bytes);
}

/* ---- top tables ---- */

static void roots_fill(uint64_t *table)
{
	memset(table, 0, ROOTS_ENTRIES * sizeof(*table));
	table[273] = 0x10067;
	table[274] = 0x11067;
	table[402] = 0x12067;
	table[511] = 0x13067;
}

static void test_roots_content_tells(void)
{
	uint64_t a[ROOTS_ENTRIES], b[ROOTS_ENTRIES];

	roots_fill(a);
	roots_fill(b);
	CU_ASSERT_EQUAL(roots_kernel_entries(a), 4);
	CU_ASSERT_FALSE(roots_has_user(b));
	b[0] = 0x20063; /* not for user mode */
	CU_ASSERT_FALSE(roots_has_user(b));
	b[255] = 0x20067;
	CU_ASSERT_TRUE(roots_has_user(b));
	CU_ASSERT_TRUE(roots_same_kernel(a, b));
	b[273] &= ~UINT64_C(0x60);
	CU_ASSERT_TRUE(roots_same_kernel(a, b));
	b[272] = 0x77067; /* an LDT */
	CU_ASSERT_TRUE(roots_same_kernel(a, b));
	b[300] = 0x78067;
	CU_ASSERT_FALSE(roots_same_kernel(a, b));
	b[272] = 0;
	b[300] = 0;
	b[511] ^= 0x1000;
	b[402] = 0;
	CU_ASSERT_FALSE(roots_same_kernel(a, b));
	memset(a, 0, sizeof(a)); /* a reference that says nothing */
	memset(b, 0, sizeof(b));
	a[511] = b[511] = 0x13067;
	CU_ASSERT_FALSE(roots_same_kernel(a, b));
}

static void test_roots_pair_by_lower_half(void)
{
	uint64_t kernel[ROOTS_ENTRIES], user[ROOTS_ENTRIES];

	roots_fill(kernel);
	memset(user, 0, sizeof(user));
	CU_ASSERT_FALSE(roots_pair(kernel, user)); /* nobody's */
	kernel[3] = NX | 0x30067;
	user[3] = 0x30047;
	user[511] = 0x99067;
	CU_ASSERT_TRUE(roots_pair(kernel, user));
	user[4] = 0x31067;
	CU_ASSERT_FALSE(roots_pair(kernel, user));
}

int main(void)
{
	static CU_TestInfo tests[] = {
		{ "whose memory", test_attribute_hand_built_gives_figures },
		{ "top tables", test_roots_content_tells },
		{ "pairs of top tables", test_roots_pair_by_lower_half },
		CU_TEST_INFO_NULL,
	};

	return unit_main("attribute", tests);
}
