/* ept/target, ept/frame, ept/translate, ept/search on the memory of real processes that hold page tables. As root. */
#include "ept/translate.h"

#include <poll.h>

#include "ept/maps.h"
#include "ept/pagestate.h"
#include "ept/search.h"
#include "tests/unit/unit.h"
#include "vmm/registry.h"

#define HUGE_BYTES (2u << 20)
#define RAM_BYTES (4u * HUGE_BYTES)
#define HIGH_GPA (UINT64_C(1) << 32) /* of the second half of RAM; the first is at 0 */

/* Where things are in the first half. */
#define PML4 0x1000u
#define PDPT 0x2000u
#define PD 0x3000u
#define PT 0x4000u
#define ABSENT_PT 0x5000u
#define OWN 0x6000u
#define ZERO 0x7000u
#define ABSENT 0x8000u
#define FILLED "guest"

static struct fsio fs;

struct ram {
	int advice;  /* MADV_HUGEPAGE or MADV_NOHUGEPAGE */
	bool shared; /* a memory file */
	bool hugetlb;
};

static void put(char *ram, uint64_t at, uint64_t entry)
{
	memcpy(ram + at, &entry, sizeof(entry));
}

/* RAM aligned to 2 MiB, with 4-level tables: GVA 0 .. 2 MiB by small pages, 2 MiB on by a page of 2 MiB, 4 MiB on by a table
 * that is not there, 6 MiB on by one outside of RAM. */
static char *ram_make(void *arg)
{
	const struct ram *r = arg;
	int fd = r->shared ? memfd_create("ram", MFD_CLOEXEC) : -1;
	int flags = r->shared ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS | (r->hugetlb ? MAP_HUGETLB : 0);
	char *room = mmap(NULL, RAM_BYTES + HUGE_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	char *ram = (char *)(((uintptr_t)room + HUGE_BYTES - 1) & ~(uintptr_t)(HUGE_BYTES - 1));

	if (r->shared && (fd < 0 || ftruncate(fd, RAM_BYTES) < 0))
		_exit(1);
	if (mmap(ram, RAM_BYTES, PROT_READ | PROT_WRITE, MAP_FIXED | flags, fd, 0) != ram)
		_exit(1);
	madvise(ram, RAM_BYTES, r->advice);
	put(ram, PML4, PDPT | 7);
	put(ram, PDPT, PD | 7);
	put(ram, PD, PT | 7);
	put(ram, PD + 8, HIGH_GPA | 0x87);
	put(ram, PD + 16, ABSENT_PT | 7);
	put(ram, PD + 24, UINT64_C(0x40000000) | 7);
	put(ram, PT, OWN | 7);
	put(ram, PT + 8, ZERO | 7);
	put(ram, PT + 16, ABSENT | 7);
	put(ram, PT + 24, UINT64_C(0xfee00000) | 3); /* a device */
	memcpy(ram + OWN + 0x123, FILLED, sizeof(FILLED));
	if (!r->shared && !r->hugetlb)
		(void)*(volatile char *)(ram + ZERO);
	ram[RAM_BYTES / 2] = 1;
	return ram;
}

struct rig {
	struct unit_child child;
	struct vm vm;
	struct ept_target *target;
};

static const struct walk_regs regs = { .cr0 = 0x80000011, .cr3 = PML4, .cr4 = 0x20, .efer = 0xd00, .phys_bits = 46,
				       .pse36 = true, .gib_pages = true };

static void rig_start(struct rig *g, struct ram ram)
{
	struct ept_slot slots[2];
	struct mem_region region;
	struct ept_view view = { .fs = &fs, .vm = &g->vm, .source = EPT_FROM_QMP, .slots = slots, .slot_count = 2,
				 .regions = &region, .region_count = 1 };
	enum mem_backing backing = ram.shared ? MEM_SHARED : MEM_ANON;
	uint64_t hva;

	memset(g, 0, sizeof(*g));
	unit_child_start(&g->child, ram_make, &ram);
	hva = (uintptr_t)g->child.map;
	g->vm.pid = g->child.pid;
	g->vm.pidfd = g->child.pidfd;
	slots[0] = (struct ept_slot){ .gpa = 0, .hva = hva, .bytes = RAM_BYTES / 2, .backing = backing };
	slots[1] = (struct ept_slot){ .gpa = HIGH_GPA, .hva = hva + RAM_BYTES / 2, .bytes = RAM_BYTES / 2, .backing = backing };
	region = (struct mem_region){ hva, RAM_BYTES, backing };
	unit_must(ept_target_new(&view, &g->target) == 0, "target");
}

static void rig_stop(struct rig *g)
{
	ept_target_free(g->target);
	unit_child_stop(&g->child);
}

static uint64_t hva_of(const struct rig *g, uint64_t offset)
{
	return (uintptr_t)g->child.map + offset;
}

/* What the kernel says, read in another way than the library does. */
static uint64_t frame_of(const struct rig *g, uint64_t offset)
{
	uint64_t entry = 0;
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/pagemap", g->child.pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	unit_must(fd >= 0 && pread(fd, &entry, 8, (off_t)(hva_of(g, offset) / PAGE_BYTES * 8)) == 8, path);
	close(fd);
	return entry >> 63 ? entry & ((UINT64_C(1) << 55) - 1) : 0;
}

static void test_translate_small_pages_every_step_told(void)
{
	static const uint64_t tables[] = { PML4, PDPT, PD, PT };
	struct translation t;
	struct rig g;
	char byte;

	rig_start(&g, (struct ram){ .advice = MADV_NOHUGEPAGE });
	CU_ASSERT_EQUAL(translate_gva(g.target, &regs, 0x123, &t), 0);
	CU_ASSERT_EQUAL_FATAL(t.walk.step_count, 4);
	for (unsigned i = 0; i < 4; i++) {
		CU_ASSERT_EQUAL(t.tables[i].gpa, tables[i]);
		CU_ASSERT_EQUAL(t.tables[i].hva, hva_of(&g, tables[i]));
		CU_ASSERT_EQUAL(t.tables[i].frame.hpa, frame_of(&g, tables[i]) * PAGE_BYTES);
		CU_ASSERT_EQUAL(t.tables[i].frame.kind, FRAME_OWN);
	}
	CU_ASSERT_EQUAL(t.page.gpa, OWN + 0x123);
	CU_ASSERT_EQUAL(t.page.hva, hva_of(&g, OWN + 0x123));
	CU_ASSERT_EQUAL(t.page.frame.state, FRAME_PRESENT);
	CU_ASSERT_EQUAL(t.page.frame.hpa, frame_of(&g, OWN) * PAGE_BYTES + 0x123);
	CU_ASSERT_TRUE(t.page.frame.hpa_known && t.page.frame.exclusive);
	CU_ASSERT_TRUE(t.page.frame.node >= 0);
	CU_ASSERT_EQUAL(t.page.frame.page_bytes, PAGE_BYTES);
	CU_ASSERT_EQUAL(t.references, 24);
	CU_ASSERT_EQUAL(ept_target_read(g.target, t.page.gpa, &byte, 1), 0);
	CU_ASSERT_EQUAL(byte, FILLED[0]);
	rig_stop(&g);
}

static void test_translate_zero_and_absent_pages_not_touched(void)
{
	struct translation t;
	struct rig g;
	uint64_t word = 1;

	rig_start(&g, (struct ram){ .advice = MADV_NOHUGEPAGE });
	CU_ASSERT_EQUAL(translate_gva(g.target, &regs, 0x1010, &t), 0);
	CU_ASSERT_EQUAL(t.page.frame.state, FRAME_PRESENT);
	CU_ASSERT_EQUAL(t.page.frame.kind, FRAME_ZERO);
	CU_ASSERT_EQUAL(translate_gva(g.target, &regs, 0x2010, &t), 0);
	CU_ASSERT_EQUAL(t.page.frame.state, FRAME_ABSENT);
	CU_ASSERT_FALSE(t.page.frame.hpa_known);
	/* A table in a page that was never written: full of zeroes, and stays absent. */
	CU_ASSERT_EQUAL(translate_gva(g.target, &regs, 2 * HUGE_BYTES, &t), -EFAULT);
	CU_ASSERT_EQUAL(t.walk.fault, WALK_NOT_PRESENT);
	CU_ASSERT_EQUAL(t.walk.fault_level, 1);
	CU_ASSERT_EQUAL(t.tables[3].frame.state, FRAME_ABSENT);
	CU_ASSERT_EQUAL(ept_target_read(g.target, ABSENT, &word, sizeof(word)), 0);
	CU_ASSERT_EQUAL(word, 0);
	CU_ASSERT_EQUAL(frame_of(&g, ABSENT_PT), 0);
	CU_ASSERT_EQUAL(frame_of(&g, ABSENT), 0);
	rig_stop(&g);
}

static void test_translate_faults_say_why(void)
{
	static const struct {
		const char *what, *why;
		uint64_t gva;
	} cases[] = {
		{ "no entry", "0x800000 is not mapped: level 2: PDE 0x0 (entry 4 of the table at 0x3000) is not present", 0x800000 },
		{ "outside", "0x600000 is not mapped: level 1: the table at 0x40000000 is outside of guest RAM", 0x600000 },
		{ "canonical", "0x1000000000000 is no address where the guest's paging is 4-level: more than 48 bits",
		  UINT64_C(1) << 48 },
		{ "device", "guest-physical 0xfee00010 is not in guest RAM: a device, ROM, or nothing", 0x3010 },
	};
	struct translation t;
	char why[256];
	struct rig g;

	rig_start(&g, (struct ram){ .advice = MADV_NOHUGEPAGE });
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		UNIT_CASE(cases[i].what, translate_gva(g.target, &regs, cases[i].gva, &t) == -EFAULT);
		UNIT_CASE(cases[i].what, t.references == 0);
		translate_why(&t, why, sizeof(why));
		if (strcmp(why, cases[i].why) != 0)
			printf("\n    %s\n", why);
		UNIT_CASE(cases[i].what, strcmp(why, cases[i].why) == 0);
	}
	CU_ASSERT_EQUAL(translate_gpa(g.target, RAM_BYTES / 2, &t), -EFAULT);
	CU_ASSERT_EQUAL(translate_hva(g.target, hva_of(&g, RAM_BYTES), &t), -ENXIO);
	rig_stop(&g);
}

/* 2 MiB on 2 MiB, and what is left of it when guest and host address do not lie alike. */
static void test_translate_huge_pages_cost_fewer_references(void)
{
	struct translation t;
	struct rig g;

	rig_start(&g, (struct ram){ .advice = MADV_HUGEPAGE });
	CU_ASSERT_EQUAL(translate_gva(g.target, &regs, HUGE_BYTES + 0x1234, &t), 0);
	CU_ASSERT_EQUAL(t.walk.page_bytes, HUGE_BYTES);
	CU_ASSERT_EQUAL(t.page.gpa, HIGH_GPA + 0x1234);
	CU_ASSERT_EQUAL(t.page.frame.hpa, frame_of(&g, RAM_BYTES / 2 + 0x1000) * PAGE_BYTES + 0x234);
	if (t.page.frame.page_bytes == PAGE_BYTES || t.tables[0].frame.page_bytes == PAGE_BYTES) {
		rig_stop(&g);
		UNIT_SKIP("the kernel gave no huge pages");
	}
	CU_ASSERT_EQUAL(t.page.frame.page_bytes, HUGE_BYTES);
	CU_ASSERT_EQUAL(t.page.stage2_bytes, HUGE_BYTES);
	CU_ASSERT_EQUAL(t.references, 15);
	g.target->slots[1].bytes -= PAGE_BYTES; /* the block is not whole in the slot */
	CU_ASSERT_EQUAL(translate_gpa(g.target, HIGH_GPA + HUGE_BYTES - 1, &t), 0);
	CU_ASSERT_EQUAL(t.page.stage2_bytes, HUGE_BYTES);
	CU_ASSERT_EQUAL(t.references, 3);
	g.target->slots[1].gpa -= PAGE_BYTES;
	CU_ASSERT_EQUAL(translate_gpa(g.target, HIGH_GPA, &t), 0);
	CU_ASSERT_EQUAL(t.page.frame.page_bytes, HUGE_BYTES);
	CU_ASSERT_EQUAL(t.page.stage2_bytes, PAGE_BYTES);
	CU_ASSERT_EQUAL(t.references, 4);
	rig_stop(&g);
}

#define SURPLUS "/proc/sys/vm/nr_overcommit_hugepages"

static uint64_t surplus(const char *text)
{
	auto_fclose FILE *f = fopen(SURPLUS, text ? "we" : "re");
	uint64_t value = 0;

	if (f && text)
		fputs(text, f);
	else if (f && fscanf(f, "%lu", &value) != 1)
		value = 0;
	return value;
}

static void test_translate_hugetlb_pages_known(void)
{
	uint64_t before = surplus(NULL);
	struct translation t;
	char text[32];
	void *probe;
	struct rig g;

	snprintf(text, sizeof(text), "%lu\n", before + RAM_BYTES / HUGE_BYTES);
	surplus(text);
	probe = mmap(NULL, RAM_BYTES, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
	if (probe == MAP_FAILED) {
		snprintf(text, sizeof(text), "%lu\n", before);
		surplus(text);
		UNIT_SKIP("no hugetlb pages to be had");
	}
	munmap(probe, RAM_BYTES);
	rig_start(&g, (struct ram){ .advice = MADV_NORMAL, .hugetlb = true });
	snprintf(text, sizeof(text), "%lu\n", before);
	surplus(text);
	CU_ASSERT_EQUAL(translate_gva(g.target, &regs, 0x123, &t), 0);
	CU_ASSERT_TRUE(t.page.frame.hugetlb);
	CU_ASSERT_EQUAL(t.page.frame.page_bytes, HUGE_BYTES);
	CU_ASSERT_EQUAL(t.page.frame.hpa, frame_of(&g, OWN) * PAGE_BYTES + 0x123);
	CU_ASSERT_EQUAL(t.references, 5 * 4 - 1); /* four levels of the guest's, three of the host's */
	rig_stop(&g);
}

static void test_translate_modes_count_references(void)
{
	struct walk_regs r = regs;
	struct translation t;
	struct rig g;

	rig_start(&g, (struct ram){ .advice = MADV_NOHUGEPAGE });
	r.cr0 = 1; /* no paging */
	CU_ASSERT_EQUAL(translate_gva(g.target, &r, OWN, &t), 0);
	CU_ASSERT_EQUAL(t.page.gpa, OWN);
	CU_ASSERT_EQUAL(t.references, 4);
	r = regs;
	r.efer = 0x800; /* PAE over the two lower levels; its first table is in registers */
	r.cr3 = PDPT;
	CU_ASSERT_EQUAL(translate_gva(g.target, &r, 0, &t), -EFAULT); /* a right in the pointer */
	CU_ASSERT_EQUAL(t.walk.fault, WALK_RESERVED);
	r.efer = 0;
	r.cr3 = OWN + 0x20; /* zeroes */
	CU_ASSERT_EQUAL(translate_gva(g.target, &r, 0, &t), -EFAULT);
	CU_ASSERT_EQUAL(t.walk.fault_level, 3);
	r.cr4 = 0;
	r.cr3 = 0x10000000;
	CU_ASSERT_EQUAL(translate_gva(g.target, &r, 0, &t), -EFAULT);
	CU_ASSERT_EQUAL(t.walk.fault, WALK_OUTSIDE);
	r.efer = 0x500;
	CU_ASSERT_EQUAL(translate_gva(g.target, &r, 0, &t), -EINVAL);
	rig_stop(&g);
}

static void test_translate_memory_file_only_what_is_mapped(void)
{
	struct translation t;
	struct rig g;
	char byte;

	rig_start(&g, (struct ram){ .advice = MADV_NOHUGEPAGE, .shared = true });
	CU_ASSERT_EQUAL(translate_gva(g.target, &regs, 0x123, &t), 0);
	CU_ASSERT_EQUAL(t.page.frame.kind, FRAME_FILE);
	CU_ASSERT_EQUAL(t.page.frame.hpa, frame_of(&g, OWN) * PAGE_BYTES + 0x123);
	/* Whether an absent page of a file holds something cannot be told without a risk of filling a hole. */
	CU_ASSERT_EQUAL(ept_target_read(g.target, ABSENT, &byte, 1), -ENODATA);
	CU_ASSERT_EQUAL(translate_gva(g.target, &regs, 2 * HUGE_BYTES, &t), -EFAULT);
	CU_ASSERT_EQUAL(t.walk.fault, WALK_UNREADABLE);
	CU_ASSERT_EQUAL(frame_of(&g, ABSENT_PT), 0);
	rig_stop(&g);
}

static void test_translate_by_hva_finds_gpa(void)
{
	struct translation t;
	struct rig g;
	uint64_t gpa;
	size_t next = 0;

	rig_start(&g, (struct ram){ .advice = MADV_NOHUGEPAGE });
	CU_ASSERT_EQUAL(translate_hva(g.target, hva_of(&g, RAM_BYTES / 2), &t), 0);
	CU_ASSERT_TRUE(t.gpa_known);
	CU_ASSERT_EQUAL(t.page.gpa, HIGH_GPA);
	CU_ASSERT_EQUAL(t.page.frame.hpa, frame_of(&g, RAM_BYTES / 2) * PAGE_BYTES);
	CU_ASSERT_EQUAL(t.references, 4);
	/* An alias: the same memory at two places of the guest. */
	g.target->slots[1].hva = g.target->slots[0].hva;
	CU_ASSERT_EQUAL(ept_target_gpa(g.target, hva_of(&g, OWN), &next, &gpa), 0);
	CU_ASSERT_EQUAL(gpa, OWN);
	CU_ASSERT_EQUAL(ept_target_gpa(g.target, hva_of(&g, OWN), &next, &gpa), 0);
	CU_ASSERT_EQUAL(gpa, HIGH_GPA + OWN);
	CU_ASSERT_EQUAL(ept_target_gpa(g.target, hva_of(&g, OWN), &next, &gpa), -ENXIO);
	/* Found by its size: no guest-physical addresses. */
	g.target->gpa_known = false;
	CU_ASSERT_EQUAL(translate_hva(g.target, hva_of(&g, OWN), &t), 0);
	CU_ASSERT_FALSE(t.gpa_known);
	CU_ASSERT_EQUAL(t.page.frame.hpa, frame_of(&g, OWN) * PAGE_BYTES);
	CU_ASSERT_EQUAL(translate_gpa(g.target, OWN, &t), -EFAULT);
	rig_stop(&g);
}

static void test_translate_gone_process_told(void)
{
	struct translation t;
	struct rig g;
	char byte;

	rig_start(&g, (struct ram){ .advice = MADV_NOHUGEPAGE });
	CU_ASSERT_TRUE(ept_target_alive(g.target));
	unit_child_kill(&g.child);
	CU_ASSERT_FALSE(ept_target_alive(g.target));
	CU_ASSERT_EQUAL(translate_gva(g.target, &regs, 0x123, &t), -ESRCH);
	CU_ASSERT_EQUAL(translate_hva(g.target, hva_of(&g, 0), &t), -ESRCH);
	CU_ASSERT_TRUE(ept_target_read(g.target, OWN, &byte, 1) < 0);
	rig_stop(&g);
}

/* Two processes; a frame of one, then the zero page, which both have. */
static void test_search_finds_frames_of_right_vm(void)
{
	struct search_hit hits[8];
	struct translation t;
	struct rig g[2];
	struct ept_target *targets[2];
	struct search s = { .targets = targets, .target_count = 2, .hits = hits, .cap = ARRAY_SIZE(hits) };

	for (unsigned i = 0; i < 2; i++) {
		rig_start(&g[i], (struct ram){ .advice = MADV_NOHUGEPAGE });
		targets[i] = g[i].target;
	}
	s.hpa = frame_of(&g[1], OWN) * PAGE_BYTES + 0x123;
	CU_ASSERT_EQUAL(search_run(&s), 0);
	CU_ASSERT_EQUAL(s.found, 1);
	CU_ASSERT_EQUAL(hits[0].target, 1);
	CU_ASSERT_EQUAL(hits[0].hva, hva_of(&g[1], OWN + 0x123));
	CU_ASSERT_EQUAL(s.done_pages, 2 * RAM_BYTES / PAGE_BYTES);
	CU_ASSERT_EQUAL(s.total_pages, s.done_pages);

	unit_must(translate_gva(g[0].target, &regs, 0x1000, &t) == 0, "zero page");
	s.hpa = t.page.frame.hpa;
	s.found = s.done_pages = 0;
	s.cap = 1;
	CU_ASSERT_EQUAL(search_run(&s), 0);
	CU_ASSERT_EQUAL(s.found, 2);
	CU_ASSERT_EQUAL(hits[0].hva, hva_of(&g[0], ZERO));

	s.hpa = frame_of(&g[0], OWN) * PAGE_BYTES;
	s.found = s.done_pages = 0;
	unit_child_kill(&g[0].child); /* the other is looked at all the same */
	CU_ASSERT_EQUAL(search_run(&s), 0);
	CU_ASSERT_EQUAL(s.found, 0);
	CU_ASSERT_EQUAL(s.lost, 1);
	CU_ASSERT_EQUAL(s.done_pages, s.total_pages);
	s.cancel = true;
	CU_ASSERT_EQUAL(search_run(&s), -ECANCELED);
	rig_stop(&g[0]);
	rig_stop(&g[1]);
}

int main(void)
{
	static CU_TestInfo tests[] = {
		{ "small", test_translate_small_pages_every_step_told },
		{ "zero and absent", test_translate_zero_and_absent_pages_not_touched },
		{ "faults", test_translate_faults_say_why },
		{ "huge", test_translate_huge_pages_cost_fewer_references },
		{ "hugetlb", test_translate_hugetlb_pages_known },
		{ "modes", test_translate_modes_count_references },
		{ "memory file", test_translate_memory_file_only_what_is_mapped },
		{ "hva", test_translate_by_hva_finds_gpa },
		{ "gone", test_translate_gone_process_told },
		{ "search", test_search_finds_frames_of_right_vm },
		CU_TEST_INFO_NULL,
	};

	if (geteuid() != 0) {
		puts("skip: translate: frame numbers need root");
		return 77;
	}
	unit_must(fsio_open_root("/", false, &fs) == 0, "/");
	return unit_main("translate", tests);
}
