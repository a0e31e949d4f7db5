/* ept/build on memory of this process: every entry against its own pagemap, and what an update rewrites. As root. */
#include "ept/build.h"

#include <sys/mman.h>

#include "ept/pagestate.h"
#include "ept/target.h"
#include "tests/unit/unit.h"
#include "vmm/registry.h"

#define HUGE_BYTES ((size_t)2 << 20)
#define RAM_BYTES (8 * HUGE_BYTES)
#define HIGH_GPA (UINT64_C(4) << 30)
/* Blocks of 2 MiB. The rest is small pages: own, zero-mapped and absent ones. */
#define HUGE_BLOCK 1
#define EMPTY_BLOCK 2

static struct fsio fs;
static int pagemap_fd;

struct rig {
	char *ram;
	struct vm vm;
	struct ept_target *target;
	struct ept_build build;
};

static uint64_t entry_of(const void *page)
{
	uint64_t entry = 0;

	unit_must(pread(pagemap_fd, &entry, sizeof(entry), (off_t)((uintptr_t)page / PAGE_BYTES * sizeof(entry))) ==
			  sizeof(entry), "pagemap");
	return entry;
}

static char *ram_map(int flags, int fd)
{
	char *map = mmap(NULL, RAM_BYTES + HUGE_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *ram = (char *)(((uintptr_t)map + HUGE_BYTES - 1) & ~(HUGE_BYTES - 1));

	unit_must(map != MAP_FAILED, "mmap");
	unit_must(mmap(ram, RAM_BYTES, PROT_READ | PROT_WRITE, flags | MAP_FIXED, fd, 0) == ram, "mmap");
	return ram;
}

static void ram_fill(char *ram)
{
	madvise(ram, RAM_BYTES, MADV_NOHUGEPAGE);
	madvise(ram + HUGE_BLOCK * HUGE_BYTES, HUGE_BYTES, MADV_HUGEPAGE);
	ram[HUGE_BLOCK * HUGE_BYTES] = 1;
	for (size_t at = 0; at < RAM_BYTES; at += PAGE_BYTES) {
		size_t block = at / HUGE_BYTES;

		if (block == HUGE_BLOCK || block == EMPTY_BLOCK)
			continue;
		if (at / PAGE_BYTES % 4 < 2)
			ram[at] = 1;
		else if (at / PAGE_BYTES % 4 == 2)
			(void)*(volatile char *)(ram + at);
	}
}

/* Two slots, the second one shift bytes further up in the guest. */
static void rig_start(struct rig *g, enum mem_backing backing, uint64_t shift)
{
	struct ept_slot slots[2];
	struct mem_region region;
	struct ept_view view = { .fs = &fs, .vm = &g->vm, .source = EPT_FROM_QMP, .slots = slots, .slot_count = 2,
				 .regions = &region, .region_count = 1 };
	struct table_options options;
	int fd = backing == MEM_SHARED ? memfd_create("ram", MFD_CLOEXEC) : -1;

	memset(g, 0, sizeof(*g));
	unit_must(backing != MEM_SHARED || (fd >= 0 && ftruncate(fd, RAM_BYTES) == 0), "memfd");
	g->ram = ram_map(backing == MEM_SHARED ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS, fd);
	ram_fill(g->ram);
	g->vm.pid = getpid();
	g->vm.pidfd = (int)syscall(SYS_pidfd_open, g->vm.pid, 0);
	slots[0] = (struct ept_slot){ .gpa = 0, .hva = (uintptr_t)g->ram, .bytes = RAM_BYTES / 2, .backing = backing };
	slots[1] = (struct ept_slot){ .gpa = HIGH_GPA + shift, .hva = (uintptr_t)g->ram + RAM_BYTES / 2,
				      .bytes = RAM_BYTES / 2, .backing = backing };
	region = (struct mem_region){ (uintptr_t)g->ram, RAM_BYTES, backing };
	unit_must(ept_target_new(&view, &g->target) == 0, "target");
	ept_build_host_options(&options);
	unit_must(ept_build_init(&g->build, g->target, &options) == 0, "build");
}

static void rig_stop(struct rig *g)
{
	ept_build_end(&g->build);
	ept_target_free(g->target);
	close(g->vm.pidfd);
	munmap(g->ram, RAM_BYTES);
}

/* Everything that the table says of a slot, by this process's own pagemap. */
static void slot_check(const struct rig *g, size_t slot, bool shared)
{
	const struct ept_slot *s = &g->target->slots[slot];

	for (uint64_t at = 0; at < s->bytes; at += PAGE_BYTES) {
		const volatile char *page = (char *)(uintptr_t)(s->hva + at);
		uint64_t entry = entry_of((const void *)page);
		bool present = entry >> 63, huge = (s->hva + at - (uintptr_t)g->ram) / HUGE_BYTES == HUGE_BLOCK;
		bool zero = present && !huge && !shared && at / PAGE_BYTES % 4 == 2;
		unsigned want = !present ? 0u : shared || (!zero && entry >> 56 & 1) ? 7u : 5u;
		struct table_walk w;

		ept_table_lookup(g->build.table, s->gpa + at, 0, &w);
		if (w.perms != want || (present && w.address != (entry & ((UINT64_C(1) << 55) - 1)) * PAGE_BYTES)) {
			CU_FAIL("an entry differs from pagemap");
			printf("\n    gpa 0x%llx: perms %u, want %u\n", (unsigned long long)(s->gpa + at), w.perms, want);
			return;
		}
	}
}

static void test_build_entries_equal_pagemap(void)
{
	struct ept_census *c;
	struct rig g;

	rig_start(&g, MEM_ANON, 0);
	CU_ASSERT_EQUAL_FATAL(ept_build_update(&g.build), 0);
	c = &g.build.census;
	slot_check(&g, 0, false);
	slot_check(&g, 1, false);
	CU_ASSERT_EQUAL(c->pages, RAM_BYTES / PAGE_BYTES);
	CU_ASSERT_EQUAL(c->present, 512 + 6 * 384);
	CU_ASSERT_EQUAL(c->kinds[FRAME_ZERO], 6 * 128);
	CU_ASSERT_EQUAL(c->kinds[FRAME_OWN], 512 + 6 * 256);
	CU_ASSERT_EQUAL(c->swapped, 0);
	CU_ASSERT_EQUAL(c->rss, 512 + 6 * 256);
	CU_ASSERT_EQUAL(c->host[1], c->anon_huge);
	CU_ASSERT_EQUAL(c->leaves[0] + c->leaves[1] * 512, c->present);
	CU_ASSERT_EQUAL(g.build.changed_pages, c->present);
	CU_ASSERT_EQUAL(g.build.done_pages, c->pages);
	if (c->host[1] == 512)
		CU_ASSERT_EQUAL(c->leaves[1], 1);
	rig_stop(&g);
	if (c->host[1] != 512)
		UNIT_SKIP("no huge page was to be had, or this kernel does not tell");
}

static void test_update_rewrites_what_changed_only(void)
{
	struct rig g;
	pid_t child;
	int hold[2];

	rig_start(&g, MEM_ANON, 0);
	CU_ASSERT_EQUAL(ept_build_update(&g.build), 0);
	CU_ASSERT_EQUAL(ept_build_update(&g.build), 0);
	CU_ASSERT_EQUAL(g.build.changed_pages, 0);
	CU_ASSERT_EQUAL(g.build.changed_ranges, 0);

	/* Pages come, go, and are written to for the first time. */
	g.ram[EMPTY_BLOCK * HUGE_BYTES + 7 * PAGE_BYTES] = 1;
	g.ram[2 * PAGE_BYTES] = 1; /* was zero-mapped */
	madvise(g.ram + 5 * HUGE_BYTES, 8 * PAGE_BYTES, MADV_DONTNEED); /* six of them were present */
	CU_ASSERT_EQUAL(ept_build_update(&g.build), 0);
	CU_ASSERT_EQUAL(g.build.changed_pages, 1 + 1 + 6);
	CU_ASSERT_EQUAL(g.build.census.present, 512 + 6 * 384 + 1 - 6);
	for (size_t i = 0; i < 8; i++) {
		struct table_walk w;

		CU_ASSERT_EQUAL(ept_table_lookup(g.build.table, HIGH_GPA + HUGE_BYTES + i * PAGE_BYTES, 0, &w), TABLE_VIOLATION);
	}

	/* All of a block goes, and its table with it. */
	madvise(g.ram + 6 * HUGE_BYTES, HUGE_BYTES, MADV_DONTNEED);
	{
		size_t tables = ept_table_count(g.build.table);

		CU_ASSERT_EQUAL(ept_build_update(&g.build), 0);
		CU_ASSERT_EQUAL(g.build.changed_pages, 384);
		CU_ASSERT_EQUAL(ept_table_count(g.build.table), tables - 1);
	}

	/* What a child shares cannot be written without a copy. */
	unit_must(pipe2(hold, O_CLOEXEC) == 0, "pipe");
	child = fork();
	if (child == 0) {
		char end;

		close(hold[1]);
		_exit(read(hold[0], &end, 1) != 0);
	}
	CU_ASSERT_EQUAL(ept_build_update(&g.build), 0);
	CU_ASSERT_EQUAL(g.build.changed_pages, g.build.census.kinds[FRAME_OWN]);
	close(hold[1]);
	waitpid(child, NULL, 0);
	close(hold[0]);
	rig_stop(&g);
}

static void test_build_misaligned_slot_has_small_leaves(void)
{
	struct rig g;

	rig_start(&g, MEM_ANON, PAGE_BYTES);
	g.target->slots[0].gpa = PAGE_BYTES;
	CU_ASSERT_EQUAL(ept_build_update(&g.build), 0);
	CU_ASSERT_EQUAL(g.build.census.leaves[1], 0);
	CU_ASSERT_EQUAL(g.build.census.leaves[0], g.build.census.present);
	CU_ASSERT_EQUAL(g.build.census.host[1], g.build.census.anon_huge);
	slot_check(&g, 0, false);
	slot_check(&g, 1, false);
	rig_stop(&g);
}

static void test_build_shared_memory_is_writable(void)
{
	struct rig g;

	rig_start(&g, MEM_SHARED, 0);
	CU_ASSERT_EQUAL(ept_build_update(&g.build), 0);
	CU_ASSERT(g.build.census.present > 0 && g.build.census.kinds[FRAME_FILE] == g.build.census.present);
	slot_check(&g, 0, true);
	rig_stop(&g);
}

static void test_build_failures_are_told(void)
{
	struct table_options options;
	struct unit_child child;
	struct unit_pages pages = { (uint64_t[]){ 1, 2, UNIT_ABSENT, 3 }, 4 };
	struct ept_build build;
	struct rig g;

	rig_start(&g, MEM_ANON, 0);
	g.build.cancel = true;
	CU_ASSERT_EQUAL(ept_build_update(&g.build), -ECANCELED);
	g.target->gpa_known = false;
	ept_build_host_options(&options);
	CU_ASSERT_EQUAL(ept_build_init(&build, g.target, &options), -ENODATA);
	rig_stop(&g);

	unit_child_start(&child, unit_pages_make, &pages);
	{
		struct ept_slot slot = { .hva = (uintptr_t)child.map, .bytes = 4 * PAGE_BYTES };
		struct mem_region region = { (uintptr_t)child.map, 4 * PAGE_BYTES, MEM_ANON };
		struct vm vm = { .pid = child.pid, .pidfd = child.pidfd };
		struct ept_view view = { .fs = &fs, .vm = &vm, .source = EPT_FROM_QMP, .slots = &slot, .slot_count = 1,
					 .regions = &region, .region_count = 1 };
		struct ept_target *target;

		unit_must(ept_target_new(&view, &target) == 0 && ept_build_init(&build, target, &options) == 0, "build");
		CU_ASSERT_EQUAL(ept_build_update(&build), 0);
		CU_ASSERT_EQUAL(build.census.present, 3);
		unit_child_kill(&child);
		CU_ASSERT_EQUAL(ept_build_update(&build), -ESRCH);
		ept_build_end(&build);
		ept_target_free(target);
	}
	unit_child_stop(&child);
}

int main(void)
{
	CU_TestInfo tests[] = {
		{ "build_entries_equal_pagemap", test_build_entries_equal_pagemap },
		{ "update_rewrites_what_changed_only", test_update_rewrites_what_changed_only },
		{ "build_misaligned_slot_has_small_leaves", test_build_misaligned_slot_has_small_leaves },
		{ "build_shared_memory_is_writable", test_build_shared_memory_is_writable },
		{ "build_failures_are_told", test_build_failures_are_told },
		CU_TEST_INFO_NULL,
	};
	int status;

	if (getuid() != 0) {
		puts("skip: test_build: frame numbers are shown to root only");
		return 77;
	}
	unit_must(fsio_open_root("/", false, &fs) == 0, "/");
	pagemap_fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	unit_must(pagemap_fd >= 0, "pagemap");
	status = unit_main("build", tests);
	close(pagemap_fd);
	fsio_close(&fs);
	return status;
}
