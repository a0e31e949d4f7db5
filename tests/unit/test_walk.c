/* ept/walk and ept/registers: hand-built tables for each mode, random ones against a model, hostile ones. */
#include "ept/walk.h"
#include "ept/registers.h"

#include "tests/unit/walk_model.h"

#define PG (UINT64_C(1) << 31 | 1)
#define PSE 0x10u
#define PAE 0x20u
#define LA57 0x1000u
#define LME 0x500u /* and LMA */
#define NXE 0x800u
#define NX (UINT64_C(1) << 63)
#define WORLD_BYTES (64u << 10)

static struct world world_new(uint64_t size)
{
	struct world w = { .bytes = calloc(1, size), .size = size };

	unit_must(w.bytes, "calloc");
	return w;
}

static struct walk_regs regs_of(enum walk_mode mode)
{
	struct walk_regs r = { .cr0 = PG, .cr3 = 0x1000, .efer = NXE, .phys_bits = 46, .pse36 = true, .gib_pages = true };

	switch (mode) {
	case WALK_FLAT:
		r.cr0 = 1;
		break;
	case WALK_32:
		r.cr4 = PSE;
		break;
	case WALK_PAE:
		r.cr4 = PAE;
		break;
	case WALK_4LEVEL:
		r.cr4 = PAE;
		r.efer |= LME;
		break;
	case WALK_5LEVEL:
		r.cr4 = PAE | LA57;
		r.efer |= LME;
		break;
	}
	return r;
}

/* ---- one thing at a time ---- */

struct put {
	uint64_t at, entry;
};

static const struct walk_case {
	const char *what;
	enum walk_mode mode;
	uint64_t gva;
	struct put puts[6];
	enum walk_fault fault;
	unsigned level, steps;
	uint64_t gpa, page_bytes;
	bool writable, user, executable, accessed, dirty, global;
	unsigned pat;
	uint64_t reserved;
} walk_cases[] = {
	{ .what = "no paging", .mode = WALK_FLAT, .gva = 0x12345678, .gpa = 0x12345678, .writable = true, .user = true,
	  .executable = true },
	{ .what = "no paging, too far", .mode = WALK_FLAT, .gva = UINT64_C(1) << 32, .fault = WALK_NOT_CANONICAL },

	{ .what = "32-bit 4K", .mode = WALK_32, .gva = 0x00403abc, .puts = { { 0x1004, 0x2007 }, { 0x200c, 0x5067 } },
	  .steps = 2, .gpa = 0x5abc, .page_bytes = 4096, .writable = true, .user = true, .executable = true,
	  .accessed = true, .dirty = true },
	{ .what = "32-bit 4K read-only above", .mode = WALK_32, .gva = 0x00403abc,
	  .puts = { { 0x1004, 0x2005 }, { 0x200c, 0x5117 | 0x80 } }, .steps = 2, .gpa = 0x5abc, .page_bytes = 4096,
	  .user = true, .executable = true, .global = true, .pat = 6 },
	{ .what = "32-bit 4M", .mode = WALK_32, .gva = 0xffc12345, .puts = { { 0x1ffc, 0x00c000e3 } }, .steps = 1,
	  .gpa = 0x00c12345, .page_bytes = 4u << 20, .writable = true, .executable = true, .accessed = true,
	  .dirty = true },
	{ .what = "32-bit 4M above 4 GiB", .mode = WALK_32, .gva = 0xffc12345, .puts = { { 0x1ffc, 0x00c000e3 | 0x5000 | 0x100000 } },
	  .steps = 1, .gpa = UINT64_C(0x8200c12345), .page_bytes = 4u << 20, .writable = true, .executable = true,
	  .accessed = true, .dirty = true, .pat = 4 },
	{ .what = "32-bit 4M reserved bit 21", .mode = WALK_32, .gva = 0xffc12345, .puts = { { 0x1ffc, 0x00e000e3 } },
	  .steps = 1, .fault = WALK_RESERVED, .level = 2, .reserved = 0x200000 },
	{ .what = "32-bit no directory entry", .mode = WALK_32, .gva = 0x00403abc, .puts = { { 0x1004, 0x2006 } },
	  .steps = 1, .fault = WALK_NOT_PRESENT, .level = 2 },
	{ .what = "32-bit no table entry", .mode = WALK_32, .gva = 0x00403abc,
	  .puts = { { 0x1004, 0x2007 }, { 0x200c, 0xfffffffe } }, .steps = 2, .fault = WALK_NOT_PRESENT, .level = 1 },
	{ .what = "32-bit too far", .mode = WALK_32, .gva = UINT64_C(0x100000000), .fault = WALK_NOT_CANONICAL },

	{ .what = "PAE 4K", .mode = WALK_PAE, .gva = 0xc0201fff,
	  .puts = { { 0x1018, 0x2001 }, { 0x2008, 0x3007 }, { 0x3008, UINT64_C(0x3ffffffff000) | 0x67 } }, .steps = 3,
	  .gpa = UINT64_C(0x3fffffffffff), .page_bytes = 4096, .writable = true, .user = true, .executable = true,
	  .accessed = true, .dirty = true },
	{ .what = "PAE 2M, not executable", .mode = WALK_PAE, .gva = 0xc0234567,
	  .puts = { { 0x1018, 0x2001 }, { 0x2008, NX | 0x400000 | 0x83 } }, .steps = 2, .gpa = 0x434567,
	  .page_bytes = 2u << 20, .writable = true },
	{ .what = "PAE pointer with a right", .mode = WALK_PAE, .gva = 0xc0234567, .puts = { { 0x1018, 0x2003 } },
	  .steps = 1, .fault = WALK_RESERVED, .level = 3, .reserved = 2 },
	{ .what = "PAE pointer not executable", .mode = WALK_PAE, .gva = 0, .puts = { { 0x1000, NX | 0x2001 } },
	  .steps = 1, .fault = WALK_RESERVED, .level = 3, .reserved = NX },
	{ .what = "PAE software bits are reserved", .mode = WALK_PAE, .gva = 0,
	  .puts = { { 0x1000, 0x2001 }, { 0x2000, UINT64_C(1) << 52 | 0x3001 } }, .steps = 2, .fault = WALK_RESERVED,
	  .level = 2, .reserved = UINT64_C(1) << 52 },
	{ .what = "PAE beyond the processor", .mode = WALK_PAE, .gva = 0,
	  .puts = { { 0x1000, 0x2001 }, { 0x2000, 0x3001 }, { 0x3000, UINT64_C(1) << 46 | 1 } }, .steps = 3,
	  .fault = WALK_RESERVED, .level = 1, .reserved = UINT64_C(1) << 46 },

	{ .what = "4-level 4K kernel", .mode = WALK_4LEVEL, .gva = UINT64_C(0xffffffff81000123),
	  .puts = { { 0x1ff8, 0x2003 }, { 0x2ff0, 0x3003 }, { 0x3040, 0x4003 }, { 0x4000, 0x5163 } }, .steps = 4,
	  .gpa = 0x5123, .page_bytes = 4096, .writable = true, .executable = true, .accessed = true, .dirty = true,
	  .global = true },
	{ .what = "4-level 2M user", .mode = WALK_4LEVEL, .gva = UINT64_C(0x7fffffe00042),
	  .puts = { { 0x17f8, 0x2007 }, { 0x2ff8, 0x3007 }, { 0x3ff8, NX | 0x12200000 | 0x1087 } }, .steps = 3,
	  .gpa = 0x12200042, .page_bytes = 2u << 20, .writable = true, .user = true, .pat = 4 },
	{ .what = "4-level 1G", .mode = WALK_4LEVEL, .gva = UINT64_C(0xffff888040000008),
	  .puts = { { 0x1888, 0x2003 }, { 0x2008, 0x140000000 | 0x9b } }, .steps = 2, .gpa = UINT64_C(0x140000008),
	  .page_bytes = 1u << 30, .writable = true, .executable = true, .pat = 3 },
	{ .what = "4-level 1G reserved", .mode = WALK_4LEVEL, .gva = 0, .puts = { { 0x1000, 0x2003 }, { 0x2000, 0x2083 } },
	  .steps = 2, .fault = WALK_RESERVED, .level = 3, .reserved = 0x2000 },
	{ .what = "4-level 1G reserved below its address", .mode = WALK_4LEVEL, .gva = 0,
	  .puts = { { 0x1000, 0x2003 }, { 0x2000, 0x20000083 } }, .steps = 2, .fault = WALK_RESERVED, .level = 3,
	  .reserved = 0x20000000 },
	{ .what = "4-level 2M reserved below its address", .mode = WALK_4LEVEL, .gva = 0,
	  .puts = { { 0x1000, 0x2003 }, { 0x2000, 0x3003 }, { 0x3000, 0x100083 } }, .steps = 3, .fault = WALK_RESERVED,
	  .level = 2, .reserved = 0x100000 },
	{ .what = "4-level large in the highest", .mode = WALK_4LEVEL, .gva = 0, .puts = { { 0x1000, 0x2083 } },
	  .steps = 1, .fault = WALK_RESERVED, .level = 4, .reserved = 0x80 },
	{ .what = "4-level software bits", .mode = WALK_4LEVEL, .gva = 0,
	  .puts = { { 0x1000, UINT64_C(0x7ff0000000002007) }, { 0x2000, 0x3007 }, { 0x3000, 0x4007 }, { 0x4000, 0x5007 } },
	  .steps = 4, .gpa = 0x5000, .page_bytes = 4096, .writable = true, .user = true, .executable = true },
	{ .what = "4-level not canonical", .mode = WALK_4LEVEL, .gva = UINT64_C(0x800000000000), .fault = WALK_NOT_CANONICAL },
	{ .what = "4-level not canonical above", .mode = WALK_4LEVEL, .gva = UINT64_C(0xffff7fffffffffff),
	  .fault = WALK_NOT_CANONICAL },
	{ .what = "4-level table beyond memory", .mode = WALK_4LEVEL, .gva = 0,
	  .puts = { { 0x1000, 0x2003 }, { 0x2000, 0x10003 } }, .steps = 3, .fault = WALK_OUTSIDE, .level = 2 },
	{ .what = "4-level own table as all levels", .mode = WALK_4LEVEL, .gva = 0, .puts = { { 0x1000, 0x1003 } },
	  .steps = 4, .gpa = 0x1000, .page_bytes = 4096, .writable = true, .executable = true },

	{ .what = "5-level 4K", .mode = WALK_5LEVEL, .gva = UINT64_C(0xff11000000000123),
	  .puts = { { 0x1888, 0x2003 }, { 0x2000, 0x3003 }, { 0x3000, 0x4003 }, { 0x4000, 0x5003 }, { 0x5000, 0x6003 } },
	  .steps = 5, .gpa = 0x6123, .page_bytes = 4096, .writable = true, .executable = true },
	{ .what = "5-level not present at the top", .mode = WALK_5LEVEL, .gva = UINT64_C(0xff11000000000123), .steps = 1,
	  .fault = WALK_NOT_PRESENT, .level = 5 },
	{ .what = "5-level not canonical", .mode = WALK_5LEVEL, .gva = UINT64_C(1) << 56, .fault = WALK_NOT_CANONICAL },
};

static void test_walk_table_gives_expected(void)
{
	for (size_t i = 0; i < ARRAY_SIZE(walk_cases); i++) {
		const struct walk_case *c = &walk_cases[i];
		struct walk_regs regs = regs_of(c->mode);
		struct world w = world_new(WORLD_BYTES);
		struct walk walk;
		int r;

		for (size_t k = 0; k < ARRAY_SIZE(c->puts) && c->puts[k].at; k++)
			world_put(&w, c->puts[k].at, c->puts[k].entry, c->mode == WALK_32 ? 4 : 8);
		r = walk_gva(&regs, world_read, &w, c->gva, &walk);
		UNIT_CASE(c->what, r == (c->fault ? -EFAULT : 0));
		UNIT_CASE(c->what, walk.mode == c->mode && walk.fault == c->fault && walk.fault_level == c->level);
		UNIT_CASE(c->what, walk.step_count == c->steps && w.reads == c->steps);
		UNIT_CASE(c->what, walk.gpa == c->gpa && walk.reserved == c->reserved);
		if (!c->fault) {
			UNIT_CASE(c->what, walk.page_bytes == c->page_bytes);
			UNIT_CASE(c->what, walk.writable == c->writable && walk.user == c->user &&
						   walk.executable == c->executable);
			UNIT_CASE(c->what, walk.accessed == c->accessed && walk.dirty == c->dirty &&
						   walk.global == c->global && walk.pat_index == c->pat);
		}
		for (size_t k = 0; k < walk.step_count && k < ARRAY_SIZE(c->puts) && c->puts[k].at; k++)
			UNIT_CASE(c->what, walk.steps[k].table + walk.steps[k].index * walk.steps[k].entry_bytes ==
						   c->puts[k].at && walk.steps[k].entry == c->puts[k].entry);
		free(w.bytes);
	}
}

/* The same entry under other settings of the processor. */
static void test_walk_settings_decide_what_is_reserved(void)
{
	struct world w = world_new(WORLD_BYTES);
	struct walk_regs regs = regs_of(WALK_4LEVEL);
	struct walk walk;

	world_put(&w, 0x1000, 0x2003, 8);
	world_put(&w, 0x2000, NX | 0x83, 8);
	CU_ASSERT_EQUAL(walk_gva(&regs, world_read, &w, 0, &walk), 0);
	CU_ASSERT_FALSE(walk.executable);
	regs.efer &= ~(uint64_t)NXE;
	CU_ASSERT_EQUAL(walk_gva(&regs, world_read, &w, 0, &walk), -EFAULT);
	CU_ASSERT_EQUAL(walk.reserved, NX);
	regs.efer |= NXE;
	regs.gib_pages = false;
	CU_ASSERT_EQUAL(walk_gva(&regs, world_read, &w, 0, &walk), -EFAULT);
	CU_ASSERT_EQUAL(walk.reserved, 0x80);

	regs = regs_of(WALK_32);
	world_put(&w, 0x1000, 0x00402083, 4); /* bit 13: address bit 32 */
	CU_ASSERT_EQUAL(walk_gva(&regs, world_read, &w, 0, &walk), 0);
	CU_ASSERT_EQUAL(walk.gpa, UINT64_C(0x100400000));
	regs.pse36 = false;
	CU_ASSERT_EQUAL(walk_gva(&regs, world_read, &w, 0, &walk), -EFAULT);
	CU_ASSERT_EQUAL(walk.reserved, 0x2000);
	regs.cr4 = 0; /* no large pages: the bit means nothing, the entry names a table */
	CU_ASSERT_EQUAL(walk_gva(&regs, world_read, &w, 0, &walk), -EFAULT);
	CU_ASSERT_EQUAL(walk.fault, WALK_OUTSIDE);
	CU_ASSERT_EQUAL(walk.fault_level, 1);
	free(w.bytes);
}

static void test_walk_impossible_registers_refused(void)
{
	struct walk_regs regs = regs_of(WALK_4LEVEL);
	struct walk walk = { .gpa = 77 };

	regs.cr4 = 0; /* long mode without PAE */
	CU_ASSERT_EQUAL(walk_gva(&regs, world_read, NULL, 0, &walk), -EINVAL);
	regs.cr4 = PAE;
	regs.cr0 = UINT64_C(1) << 31; /* paging without protection */
	CU_ASSERT_EQUAL(walk_gva(&regs, world_read, NULL, 0, &walk), -EINVAL);
	CU_ASSERT_EQUAL(walk.gpa, 77);
}

static int read_fails(void *userdata, uint64_t gpa, void *buf, size_t n)
{
	(void)gpa;
	memset(buf, 0xff, n);
	return *(const int *)userdata;
}

static void test_walk_unreadable_table_names_level(void)
{
	struct walk_regs regs = regs_of(WALK_5LEVEL);
	struct walk walk;
	int error = -EIO;

	CU_ASSERT_EQUAL(walk_gva(&regs, read_fails, &error, 0, &walk), -EFAULT);
	CU_ASSERT_EQUAL(walk.fault, WALK_UNREADABLE);
	CU_ASSERT_EQUAL(walk.error, -EIO);
	CU_ASSERT_EQUAL(walk.fault_level, 5);
	CU_ASSERT_EQUAL(walk.steps[0].entry, 0);
}

/* ---- random tables against the model ---- */

/* Entries that lead somewhere more often than chance would have them. */
static uint64_t random_entry(uint64_t *state, uint64_t size, bool wide)
{
	uint64_t e = unit_random(state), r = unit_random(state);

	if (r % 16 < 13)
		e = (e & 0xfff) | 1 | (unit_random(state) % (size + 0x2000) & ~UINT64_C(0xfff));
	if (r >> 8 & 7)
		e &= ~UINT64_C(0x80);
	if ((r >> 16 & 15) == 0)
		e |= UINT64_C(1) << (r >> 32 & 63);
	if (r >> 24 & 3) /* what PAE's pointers may not have */
		e &= ~UINT64_C(0x1e6);
	return wide ? e : (uint32_t)e;
}

static bool same(const struct walk *walk, const struct model *m)
{
	if (walk->fault != m->fault || walk->step_count != m->visited || walk->fault_level != m->level)
		return false;
	return m->fault || (walk->gpa == m->gpa && walk->page_bytes == m->page_bytes && walk->writable == m->writable &&
			    walk->user == m->user && walk->executable == m->executable);
}

static uint64_t random_gva(uint64_t *state, enum walk_mode mode)
{
	uint64_t gva = unit_random(state);
	unsigned bits = walk_address_bits(mode);

	if (gva % 8 == 0) /* mostly no address at all */
		return unit_random(state);
	gva = unit_random(state) >> (64 - bits);
	return bits > 32 && gva >> (bits - 1) ? gva | ~UINT64_C(0) << bits : gva;
}

static void test_walk_random_tables_equal_model(void)
{
	static const unsigned widths[] = { 32, 36, 40, 46, 52 };
	unsigned faults[WALK_UNREADABLE + 1] = { 0 };
	uint64_t state = 11, sizes = 0;

	for (unsigned round = 0; round < 400; round++) {
		enum walk_mode mode = (enum walk_mode)(round % 5);
		struct world w = world_new(WORLD_BYTES);
		struct walk_regs regs = regs_of(mode);
		uint64_t r = unit_random(&state);

		regs.phys_bits = widths[r % ARRAY_SIZE(widths)];
		regs.pse36 = r >> 8 & 1;
		regs.gib_pages = r >> 9 & 1;
		regs.efer ^= r >> 10 & 1 ? NXE : 0;
		regs.cr4 ^= r >> 11 & 1 ? PSE : 0;
		regs.cr3 = (r >> 16 & 0xf000) | (r >> 40 & 0xfff);
		for (uint64_t at = 0; at < w.size; at += mode == WALK_32 ? 4 : 8)
			world_put(&w, at, random_entry(&state, w.size, mode != WALK_32), mode == WALK_32 ? 4 : 8);
		for (unsigned i = 0; i < 500; i++) {
			uint64_t gva = random_gva(&state, mode);
			struct model m = model_walk(&regs, &w, gva);
			struct walk walk;

			walk_gva(&regs, world_read, &w, gva, &walk);
			if (!same(&walk, &m)) {
				printf("\n    round %u gva %lx: %s level %u gpa %lx, model %s level %u gpa %lx\n", round, gva,
				       walk_fault_name(walk.fault), walk.fault_level, walk.gpa,
				       walk_fault_name(m.fault), m.level, m.gpa);
				CU_FAIL("walk and model differ");
			}
			faults[m.fault]++;
			sizes |= m.page_bytes;
		}
		free(w.bytes);
	}
	for (unsigned i = 0; i < WALK_UNREADABLE; i++) /* each came, or nothing is proved about it */
		CU_ASSERT_TRUE(faults[i] > 100);
	CU_ASSERT_EQUAL(sizes, 0x1000 | 0x200000 | 0x400000 | 0x40000000);
}

static int read_noise(void *userdata, uint64_t gpa, void *buf, size_t n)
{
	uint64_t *state = userdata, value = unit_random(state) | (gpa & 0) | 1;

	memcpy(buf, &value, n);
	return 0;
}

/* Tables that are something else at every look. */
static void test_walk_changing_tables_end(void)
{
	uint64_t state = 5;

	for (unsigned i = 0; i < 100000; i++) {
		enum walk_mode mode = (enum walk_mode)(i % 5);
		struct walk_regs regs = regs_of(mode);
		struct walk walk;

		walk_gva(&regs, read_noise, &state, random_gva(&state, mode), &walk);
		if (walk.step_count > walk_levels(mode))
			CU_FAIL("more steps than levels");
	}
	CU_PASS("all ended");
}

/* ---- registers ---- */

#define REAL_64                                                                                            \
	"\r\nCPU#0\r\nRAX=0000000000000000 RBX=ffffffff82611980 RCX=0000000000000001 RDX=4000000000000000\r\n" \
	"LDT=0000 0000000000000000 0000ffff 00008200 DPL=0 LDT\r\n"                                         \
	"CR0=80050033 CR2=00007f9b81ebf000 CR3=0000000003a1c000 CR4=000006f0\r\n"                           \
	"DR0=0000000000000000 DR1=0000000000000000 DR2=0000000000000000 DR3=0000000000000000 \r\n"          \
	"EFER=0000000000000d01\r\nFCW=037f FSW=0000 [ST=0] FTW=00 MXCSR=00001f80\r\n"
#define REAL_32                                                                            \
	"EAX=2badb002 EBX=00009500\nCR0=00000011 CR2=00000000 CR3=00000000 CR4=00000000\n" \
	"DR0=00000000\nEFER=0000000000000000\n"

static void test_registers_text_table_gives_expected(void)
{
	static const struct {
		const char *what, *text;
		int want;
		uint64_t cr0, cr3, cr4, efer;
		bool cut;
	} cases[] = {
		{ "real, 64 bits", REAL_64, 0, 0x80050033, 0x3a1c000, 0x6f0, 0xd01, false },
		{ "real, 32 bits", REAL_32, 0, 0x11, 0, 0, 0, false },
		{ "32-bit code in long mode", "CR0=80050033 CR2=00000000 CR3=03a1c000 CR4=000006f0\nEFER=0000000000000d01\n", 0,
		  0x80050033, 0x3a1c000, 0x6f0, 0xd01, true },
		{ "empty", "", -EBADMSG, 0, 0, 0, 0, false },
		{ "garbage", "no CPU here\n\n\n", -EBADMSG, 0, 0, 0, 0, false },
		{ "no EFER", "CR0=1 CR2=0 CR3=0 CR4=0\n", -EBADMSG, 0, 0, 0, 0, false },
		{ "EFER only", "EFER=0000000000000000\n", -EBADMSG, 0, 0, 0, 0, false },
		{ "cut short", "EFER=0\nCR0=80050033 CR2=00000000 CR3=", -EBADMSG, 0, 0, 0, 0, false },
		{ "order", "EFER=0\nCR0=1 CR3=0 CR2=0 CR4=0\n", -EBADMSG, 0, 0, 0, 0, false },
		{ "no digits", "EFER=0\nCR0= CR2=0 CR3=0 CR4=0\n", -EBADMSG, 0, 0, 0, 0, false },
		{ "too many digits", "EFER=0\nCR0=1 CR2=0 CR3=00000000000000000 CR4=0\n", -EBADMSG, 0, 0, 0, 0, false },
		{ "sign", "EFER=0\nCR0=-1 CR2=0 CR3=0 CR4=0\n", -EBADMSG, 0, 0, 0, 0, false },
		{ "not at the beginning of a line", "EFER=0\nxCR0=1 CR2=0 CR3=0 CR4=0\n", -EBADMSG, 0, 0, 0, 0, false },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct walk_regs regs = { .cr0 = 77, .phys_bits = 40 };
		bool cut = false;
		int r = registers_parse(cases[i].text, &regs, &cut);

		UNIT_CASE(cases[i].what, r == cases[i].want && regs.phys_bits == 40);
		if (r < 0) {
			UNIT_CASE(cases[i].what, regs.cr0 == 77);
			continue;
		}
		UNIT_CASE(cases[i].what, regs.cr0 == cases[i].cr0 && regs.cr3 == cases[i].cr3 &&
						 regs.cr4 == cases[i].cr4 && regs.efer == cases[i].efer &&
						 cut == cases[i].cut);
	}
}

static void test_registers_cut_anywhere_refused_or_whole(void)
{
	static const char real[] = REAL_64;
	size_t efer_digits = (size_t)(strstr(real, "EFER=") - real) + strlen("EFER=");

	for (size_t len = 0; len < sizeof(real); len++) {
		auto_free char *text = strndup(real, len);
		struct walk_regs regs = { 0 };
		bool cut;

		/* Of the last number a part is left: that is a number, too. */
		CU_ASSERT_EQUAL(registers_parse(text, &regs, &cut), len > efer_digits ? 0 : -EBADMSG);
	}
}

int main(void)
{
	static CU_TestInfo tests[] = {
		{ "walk table", test_walk_table_gives_expected },
		{ "walk settings", test_walk_settings_decide_what_is_reserved },
		{ "walk impossible", test_walk_impossible_registers_refused },
		{ "walk unreadable", test_walk_unreadable_table_names_level },
		{ "walk model", test_walk_random_tables_equal_model },
		{ "walk noise", test_walk_changing_tables_end },
		{ "registers table", test_registers_text_table_gives_expected },
		{ "registers cut", test_registers_cut_anywhere_refused_or_whole },
		CU_TEST_INFO_NULL,
	};

	return unit_main("walk", tests);
}
