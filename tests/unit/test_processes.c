/* ept/ram, ept/processes on the memory of real processes that hold page tables. As root. */
#include "ept/processes.h"

#include "ept/frame.h"
#include "ept/pagestate.h"
#include "ept/target.h"
#include "tests/unit/unit.h"
#include "vmm/registry.h"

#define HUGE_BYTES (2u << 20)
#define RAM_BYTES (4u * HUGE_BYTES)
#define RAM_PAGES (RAM_BYTES / PAGE_BYTES)
#define NX (UINT64_C(1) << 63)

/* Where things are in RAM: the top tables of processes, */
#define ROOT_A 0x1000u
#define ROOT_B 0x5000u /* which no CPU was seen with */
#define ROOT_C 0xa000u /* whose user's top table follows */
#define FREED 0xc000u
#define OTHER 0xd000u /* of another kernel */
/* tables of the kernel, */
#define KERNEL_PDPT 0x10000u
#define KERNEL_EMPTY 0x11000u
/* and pages. */
#define OWN 0x20000u
#define ZERO 0x21000u
#define ABSENT 0x22000u
#define STORED 0x23000u
#define STORED_ABSENT 0x24000u
#define OF_B 0x26000u
#define BLOCK (2u * HUGE_BYTES)

static struct fsio fs;

static void put(char *ram, uint64_t at, uint64_t entry)
{
	memcpy(ram + at, &entry, sizeof(entry));
}

static void kernel_put(char *ram, uint64_t root)
{
	put(ram, root + 8 * 273, KERNEL_PDPT | 3);
	put(ram, root + 8 * 274, KERNEL_EMPTY | 3);
	put(ram, root + 8 * 402, KERNEL_EMPTY | 3);
	put(ram, root + 8 * 511, KERNEL_EMPTY | 3);
}

/* As an agent maps frames. */
static void store_map(char *ram)
{
	int fd = memfd_create("memvirt-store:test", MFD_CLOEXEC);

	if (fd < 0 || ftruncate(fd, PAGE_BYTES) < 0 ||
	    mmap(ram + STORED, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, fd, 0) != ram + STORED ||
	    mmap(ram + STORED_ABSENT, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, fd, 0) != ram + STORED_ABSENT)
		_exit(1);
	(void)*(volatile char *)(ram + STORED);
}

static char *ram_make(void *arg)
{
	static const unsigned pages[] = { OWN, ZERO, ABSENT, STORED, STORED_ABSENT };
	char *room = mmap(NULL, RAM_BYTES + HUGE_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	char *ram = (char *)(((uintptr_t)room + HUGE_BYTES - 1) & ~(uintptr_t)(HUGE_BYTES - 1));

	(void)arg;
	if (mmap(ram, RAM_BYTES, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != ram)
		_exit(1);
	madvise(ram, RAM_BYTES, MADV_NOHUGEPAGE);
	madvise(ram + BLOCK, HUGE_BYTES, MADV_HUGEPAGE);
	for (uint64_t root = ROOT_A; root <= FREED; root += 0x1000)
		if (root == ROOT_A || root == ROOT_B || root == ROOT_C || root == FREED)
			kernel_put(ram, root);
	put(ram, KERNEL_PDPT, 0x83); /* the first GiB */
	put(ram, ROOT_A, 0x2007);
	put(ram, 0x2000, 0x3007);
	put(ram, 0x3000, 0x4007);
	put(ram, 0x3008, BLOCK | 0x87);
	for (unsigned i = 0; i < ARRAY_SIZE(pages); i++)
		put(ram, 0x4000 + 8 * i, pages[i] | 7);
	put(ram, ROOT_B + 8 * 3, 0x6007);
	put(ram, 0x6000, 0x7007);
	put(ram, 0x7000, 0x8007);
	put(ram, 0x8000, OWN | 5);
	put(ram, 0x8008, OF_B | 7);
	put(ram, ROOT_C + 8, NX | 0x2067);
	put(ram, ROOT_C + PAGE_BYTES + 8, 0x2007);
	put(ram, ROOT_C + PAGE_BYTES + 8 * 511, KERNEL_EMPTY | 3);
	put(ram, OTHER, 0x2007);
	put(ram, OTHER + 8 * 273, 0x13003);
	put(ram, OTHER + 8 * 511, 0x14003);
	ram[OWN] = ram[OF_B] = 1;
	(void)*(volatile char *)(ram + ZERO);
	memset(ram + BLOCK, 7, HUGE_BYTES);
	store_map(ram);
	return ram;
}

struct rig {
	struct unit_child child;
	struct vm vm;
	struct ept_target *target;
	uint64_t seen[3];
	struct processes p;
};

static void rig_start(struct rig *g)
{
	struct ept_slot slot;
	struct mem_region region;
	struct ept_view view = { .fs = &fs, .vm = &g->vm, .source = EPT_FROM_QMP, .slots = &slot, .slot_count = 1,
				 .regions = &region, .region_count = 1 };
	uint64_t hva;

	memset(g, 0, sizeof(*g));
	unit_child_start(&g->child, ram_make, NULL);
	hva = (uintptr_t)g->child.map;
	g->vm.pid = g->child.pid;
	g->vm.pidfd = g->child.pidfd;
	slot = (struct ept_slot){ .gpa = 0, .hva = hva, .bytes = RAM_BYTES, .backing = MEM_ANON };
	region = (struct mem_region){ hva, RAM_BYTES, MEM_ANON };
	unit_must(ept_target_new(&view, &g->target) == 0, "target");
	g->seen[0] = ROOT_A | 5;
	g->seen[1] = (ROOT_C + PAGE_BYTES) | 0x123; /* in user mode */
	g->seen[2] = FREED;			    /* the kernel's own */
	g->p.target = g->target;
	g->p.regs = (struct walk_regs){ .cr0 = 0x80000011, .cr4 = 0x20, .efer = 0xd00, .phys_bits = 46, .pse36 = true,
					.gib_pages = true };
	g->p.seen = g->seen;
	g->p.seen_count = ARRAY_SIZE(g->seen);
}

static void rig_stop(struct rig *g)
{
	free(g->p.spaces);
	ept_target_free(g->target);
	unit_child_stop(&g->child);
}

static const struct processes_space *space_of(const struct rig *g, uint64_t root)
{
	for (size_t i = 0; i < g->p.space_count; i++)
		if (g->p.spaces[i].root == root)
			return &g->p.spaces[i];
	return NULL;
}

static void usage_is_a(const struct rig *g, const struct attribute_usage *u)
{
	struct frame block;

	CU_ASSERT_EQUAL(u->mapped, 5 + 512);
	CU_ASSERT_EQUAL(u->resident, 2 + 512);
	CU_ASSERT_EQUAL(u->merged, 2);
	CU_ASSERT_EQUAL(u->swapped, 0);
	CU_ASSERT_EQUAL(u->remote, 0);
	CU_ASSERT_FALSE(u->incomplete);
	unit_must(frame_look(g->target, (uintptr_t)g->child.map + BLOCK, &block) == 0, "frame");
	CU_ASSERT_EQUAL(u->huge, block.page_bytes == HUGE_BYTES ? 512 : 0);
	CU_ASSERT_EQUAL(u->entries_2m, block.page_bytes == HUGE_BYTES);
	CU_ASSERT_EQUAL(u->entries_4k, 3 + (block.page_bytes == HUGE_BYTES ? 0 : 512)); /* the zero page as well */
}

static void test_processes_found_and_counted(void)
{
	const struct processes_space *b;
	struct rig g;

	rig_start(&g);
	CU_ASSERT_EQUAL(processes_run(&g.p), 0);
	CU_ASSERT_TRUE(g.p.searched && !g.p.more && g.p.home >= 0);
	CU_ASSERT_EQUAL_FATAL(g.p.space_count, 3);
	CU_ASSERT_PTR_NOT_NULL_FATAL(space_of(&g, ROOT_A));
	CU_ASSERT_PTR_NOT_NULL_FATAL(space_of(&g, ROOT_C));
	b = space_of(&g, ROOT_B);
	CU_ASSERT_PTR_NOT_NULL_FATAL(b);
	CU_ASSERT_EQUAL(space_of(&g, ROOT_A)->seen, 1);
	CU_ASSERT_EQUAL(space_of(&g, ROOT_C)->seen, 1);
	CU_ASSERT_EQUAL(b->seen, 0);
	usage_is_a(&g, &space_of(&g, ROOT_A)->usage);
	usage_is_a(&g, &space_of(&g, ROOT_C)->usage);
	CU_ASSERT_TRUE(b->usage.mapped == 2 && b->usage.resident == 2 && b->usage.entries_4k == 2);
	CU_ASSERT_TRUE(g.p.spaces[2].root == ROOT_B); /* the smallest comes last */
	CU_ASSERT_EQUAL(g.p.together.mapped, 5 + 512 + 1);
	CU_ASSERT_EQUAL(g.p.kernel.mapped, RAM_PAGES - (5 + 512 + 1));
	CU_ASSERT_EQUAL(g.p.second.changed + g.p.second.added + g.p.second.dropped, 0);
	/* Top tables of three and of what was seen besides, three each below two, two of the kernel's. */
	CU_ASSERT_EQUAL(g.p.first.tables, 4 + 3 + 3 + 2);
	CU_ASSERT_EQUAL(g.p.watch.done_pages, processes_work(g.target));
	rig_stop(&g);
}

static void test_processes_without_scan_ioctl_as_well(void)
{
	struct rig g;

	rig_start(&g);
	pagestate_force_fallback(true);
	CU_ASSERT_EQUAL(processes_run(&g.p), 0);
	pagestate_force_fallback(false);
	CU_ASSERT_EQUAL_FATAL(g.p.space_count, 3);
	CU_ASSERT_EQUAL(g.p.spaces[0].usage.resident, 2 + 512);
	CU_ASSERT_EQUAL(g.p.spaces[0].usage.merged, 2);
	CU_ASSERT_EQUAL(g.p.together.huge, 0); /* cannot be told */
	rig_stop(&g);
}

static void test_processes_absent_pages_stay_absent(void)
{
	uint64_t entry = 1;
	struct rig g;

	rig_start(&g);
	CU_ASSERT_EQUAL(processes_run(&g.p), 0);
	CU_ASSERT_EQUAL(frame_entry(g.target->pagemap_fd, (uintptr_t)g.child.map + ABSENT, &entry), 0);
	CU_ASSERT_EQUAL(entry & (FRAME_ENTRY_PRESENT | FRAME_ENTRY_SWAPPED), 0);
	CU_ASSERT_EQUAL(frame_entry(g.target->pagemap_fd, (uintptr_t)g.child.map + STORED_ABSENT, &entry), 0);
	CU_ASSERT_EQUAL(entry & (FRAME_ENTRY_PRESENT | FRAME_ENTRY_SWAPPED), 0);
	rig_stop(&g);
}

static void test_processes_that_cannot_be_had_say_why(void)
{
	struct rig g;

	rig_start(&g);
	g.p.regs.cr0 = 0x11;
	CU_ASSERT_EQUAL(processes_run(&g.p), -EOPNOTSUPP);
	g.p.regs.cr0 = 0x80000011;
	g.p.regs.cr4 = 0;
	CU_ASSERT_EQUAL(processes_run(&g.p), -EINVAL);
	g.p.regs.cr4 = 0x20;
	g.p.watch.cancel = true;
	CU_ASSERT_EQUAL(processes_run(&g.p), -ECANCELED);
	g.p.watch.cancel = false;
	unit_child_kill(&g.child);
	CU_ASSERT_EQUAL(processes_run(&g.p), -ESRCH);
	rig_stop(&g);
}

int main(void)
{
	static CU_TestInfo tests[] = {
		{ "found and counted", test_processes_found_and_counted },
		{ "without the ioctl", test_processes_without_scan_ioctl_as_well },
		{ "absent pages", test_processes_absent_pages_stay_absent },
		{ "refused", test_processes_that_cannot_be_had_say_why },
		CU_TEST_INFO_NULL,
	};

	if (geteuid() != 0) {
		puts("skip: processes: frame numbers need root");
		return 77;
	}
	unit_must(fsio_open_root("/", false, &fs) == 0, "/");
	return unit_main("processes", tests);
}
