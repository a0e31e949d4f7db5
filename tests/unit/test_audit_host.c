/* The audit on real processes that share what they must not. As root. */
#include "ept/audit_host.h"

#include "ept/target.h"
#include "tests/unit/unit.h"
#include "vmm/registry.h"

#define PAGES 300u
#define BYTES ((size_t)PAGES * PAGE_BYTES)

static struct fsio fs;

/* A child of this process that has its memory, and waits. */
struct vm_rig {
	struct vm vm;
	int hold;
	struct ept_target *target;
};

/* first: runs in the child before anybody looks; may be NULL. */
static void rig_fork(struct vm_rig *g, char *map, void (*first)(char *map))
{
	struct mem_region region = { (uintptr_t)map, BYTES, MEM_ANON };
	struct ept_slot slot = { .hva = (uintptr_t)map, .bytes = BYTES };
	struct ept_view view = { .fs = &fs, .vm = &g->vm, .source = EPT_FROM_QMP, .slots = &slot, .slot_count = 1,
				 .regions = &region, .region_count = 1 };
	int hold[2], ready[2];
	char byte = 0;

	memset(g, 0, sizeof(*g));
	unit_must(pipe2(hold, O_CLOEXEC) == 0 && pipe2(ready, O_CLOEXEC) == 0, "pipe");
	g->vm.pid = fork();
	unit_must(g->vm.pid >= 0, "fork");
	if (g->vm.pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close(hold[1]);
		if (first)
			first(map);
		if (write(ready[1], &byte, 1) != 1)
			_exit(1);
		_exit(read(hold[0], &byte, 1) != 0);
	}
	close(hold[0]);
	close(ready[1]);
	g->hold = hold[1];
	unit_must(read(ready[0], &byte, 1) == 1, "child");
	close(ready[0]);
	g->vm.pidfd = (int)syscall(SYS_pidfd_open, g->vm.pid, 0);
	unit_must(g->vm.pidfd >= 0 && ept_target_new(&view, &g->target) == 0, "target");
}

static void rig_stop(struct vm_rig *g)
{
	kill(g->vm.pid, SIGKILL); /* a later child has the other end of its pipe as well */
	waitpid(g->vm.pid, NULL, 0);
	close(g->hold);
	close(g->vm.pidfd);
	ept_target_free(g->target);
}

static void write_all(char *map)
{
	for (size_t i = 0; i < PAGES; i++)
		map[i * PAGE_BYTES] = (char)(i + 1);
}

static void write_but_three(char *map)
{
	write_all(map);
	for (size_t i = 0; i < PAGES; i++)
		if (i != 7 && i != 8 && i != 200)
			map[i * PAGE_BYTES]++;
}

static void read_all(char *map)
{
	for (size_t i = 0; i < PAGES; i++)
		(void)*(volatile char *)(map + i * PAGE_BYTES);
}

static void host_start(struct audit_host *h, struct audit_target targets[2], struct vm_rig rigs[2], const char *other)
{
	targets[0] = (struct audit_target){ rigs[0].target, "x" };
	targets[1] = (struct audit_target){ rigs[1].target, other };
	memset(h, 0, sizeof(*h));
	h->fs = &fs;
	h->targets = targets;
	h->target_count = 2;
}

static void test_separate_memory_is_clean(void)
{
	struct audit_target targets[2];
	struct vm_rig rigs[2];
	struct audit_host h;
	char *map = unit_map(PAGES);

	rig_fork(&rigs[0], map, write_all);
	rig_fork(&rigs[1], map, read_all); /* the zero page */
	host_start(&h, targets, rigs, "y");
	CU_ASSERT_EQUAL(audit_host_run(&h), 0);
	CU_ASSERT_EQUAL(h.violation_count, 0);
	CU_ASSERT_EQUAL(h.counts.pages, 2 * PAGES);
	CU_ASSERT_EQUAL(h.counts.frames, PAGES + 1);
	CU_ASSERT_EQUAL(h.done_pages, 2 * PAGES);
	CU_ASSERT_EQUAL(h.lost, 0);
	audit_host_end(&h);
	rig_stop(&rigs[0]);
	rig_stop(&rigs[1]);
	munmap(map, BYTES);
}

/* All but three pages are copied on write; these three are shared as by a fault of the host. */
static void test_frames_of_two_vms_are_found(void)
{
	struct audit_target targets[2];
	struct vm_rig rigs[2];
	struct audit_host h;
	char *map = unit_map(PAGES);

	write_all(map);
	rig_fork(&rigs[0], map, NULL);
	rig_fork(&rigs[1], map, write_but_three);
	map[7 * PAGE_BYTES]++; /* ours apart, so that only the two have it */
	host_start(&h, targets, rigs, "x");
	CU_ASSERT_EQUAL(audit_host_run(&h), 0);
	CU_ASSERT_EQUAL(h.violation_count, 0); /* write_but_three() has written all of them once */
	audit_host_end(&h);
	rig_stop(&rigs[1]);

	rig_fork(&rigs[1], map, NULL);
	map[0]++;
	host_start(&h, targets, rigs, "x");
	CU_ASSERT_EQUAL(audit_host_run(&h), 0);
	CU_ASSERT_EQUAL(h.violation_count, PAGES - 1); /* page 7 is another since */
	for (size_t i = 0; i < h.violation_count; i++) {
		CU_ASSERT(h.violations[i].why == AUDIT_SHARED && h.violations[i].has_other && h.violations[i].frame != 0);
		CU_ASSERT(h.violations[i].place.vm == 1 && h.violations[i].other.vm == 0);
		CU_ASSERT_EQUAL(h.violations[i].place.hva, h.violations[i].other.hva);
		CU_ASSERT_NOT_EQUAL(h.violations[i].place.hva, (uintptr_t)map + 7 * PAGE_BYTES);
	}
	audit_host_end(&h);
	rig_stop(&rigs[0]);
	rig_stop(&rigs[1]);
	munmap(map, BYTES);
}

/* One huge page of zeroes, where the host has such. */
static void test_huge_zero_page_is_everybodys(void)
{
	const size_t huge = (size_t)2 << 20;
	struct audit_target targets[2];
	struct vm_rig rigs[2];
	struct audit_host h;
	char *map = mmap(NULL, 2 * huge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *block = (char *)(((uintptr_t)map + huge - 1) & ~(huge - 1));

	unit_must(map != MAP_FAILED, "mmap");
	madvise(block, huge, MADV_HUGEPAGE);
	rig_fork(&rigs[0], block, read_all);
	rig_fork(&rigs[1], block, read_all);
	host_start(&h, targets, rigs, "y");
	CU_ASSERT_EQUAL(audit_host_run(&h), 0);
	CU_ASSERT_EQUAL(h.violation_count, 0);
	CU_ASSERT_EQUAL(h.counts.pages, 2 * PAGES);
	CU_ASSERT(h.counts.zero >= PAGES); /* small ones are one frame, so more of them come twice */
	audit_host_end(&h);
	rig_stop(&rigs[0]);
	rig_stop(&rigs[1]);
	munmap(map, 2 * huge);
}

/* name: of the memfd; shared: mapped so that writes reach it. */
static char *file_map(const char *name, bool shared)
{
	int fd = memfd_create(name, MFD_CLOEXEC);
	char *map;

	unit_must(fd >= 0 && ftruncate(fd, (off_t)BYTES) == 0, "memfd");
	map = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, shared ? MAP_SHARED : MAP_PRIVATE, fd, 0);
	unit_must(map != MAP_FAILED, "mmap");
	for (unsigned i = 0; i < PAGES; i++)
		unit_must(pwrite(fd, "x", 1, (off_t)i * PAGE_BYTES) == 1, "memfd");
	close(fd);
	return map;
}

static void test_stores_are_for_one_domain(void)
{
	static const char *const others[] = { "x", "y" };
	struct audit_target targets[2];
	struct vm_rig rigs[2];
	struct audit_host h;
	char *map = file_map("memvirt-store:x", false);

	rig_fork(&rigs[0], map, read_all);
	rig_fork(&rigs[1], map, read_all);
	for (size_t i = 0; i < ARRAY_SIZE(others); i++) {
		host_start(&h, targets, rigs, others[i]);
		CU_ASSERT_EQUAL(audit_host_run(&h), 0);
		CU_ASSERT_EQUAL(h.violation_count, i == 0 ? 0 : PAGES + 1);
		CU_ASSERT_EQUAL(h.counts.store, i == 0 ? PAGES : 0);
		if (i == 1) {
			CU_ASSERT_EQUAL(h.violations[0].why, AUDIT_STORE_TWICE);
			CU_ASSERT_EQUAL(h.violations[1].why, AUDIT_OTHER_DOMAIN);
		}
		audit_host_end(&h);
	}
	rig_stop(&rigs[0]);
	rig_stop(&rigs[1]);
	munmap(map, BYTES);
}

static char *second_map;

static void open_the_store(char *map)
{
	read_all(map);
	second_map = mmap(map, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, (int)(intptr_t)second_map, 0);
	if (second_map == MAP_FAILED)
		_exit(1);
	second_map[0] = 1;
}

static void test_a_store_that_can_be_written_is_found(void)
{
	int fd = memfd_create("memvirt-store:x", MFD_CLOEXEC);
	struct audit_target targets[2];
	unsigned whys[AUDIT_WHYS] = { 0 };
	struct vm_rig rigs[2];
	struct audit_host h;
	char *map;

	unit_must(fd >= 0 && ftruncate(fd, (off_t)BYTES) == 0, "memfd");
	map = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	unit_must(map != MAP_FAILED, "mmap");
	second_map = (char *)(intptr_t)fd;
	rig_fork(&rigs[0], map, read_all);
	rig_fork(&rigs[1], map, open_the_store);
	host_start(&h, targets, rigs, "x");
	CU_ASSERT_EQUAL(audit_host_run(&h), 0);
	for (size_t i = 0; i < h.violation_count; i++) {
		whys[h.violations[i].why]++;
		CU_ASSERT_EQUAL(h.violations[i].place.vm, 1);
	}
	CU_ASSERT(whys[AUDIT_WRITABLE] == 1 && whys[AUDIT_BACKING] == 1);
	audit_host_end(&h);
	rig_stop(&rigs[0]);
	rig_stop(&rigs[1]);
	munmap(map, BYTES);
	close(fd);
}

static void test_foreign_backing_is_found(void)
{
	struct audit_target targets[2];
	struct vm_rig rigs[2];
	struct audit_host h;
	char *map = file_map("somebody's", true);

	rig_fork(&rigs[0], map, read_all);
	rig_fork(&rigs[1], map, NULL); /* has nothing mapped in */
	host_start(&h, targets, rigs, "x");
	CU_ASSERT_EQUAL(audit_host_run(&h), 0);
	CU_ASSERT_EQUAL(h.violation_count, PAGES);
	for (size_t i = 0; i < h.violation_count; i++)
		CU_ASSERT(h.violations[i].why == AUDIT_BACKING && h.violations[i].place.vm == 0 && !h.violations[i].has_other);
	audit_host_end(&h);
	rig_stop(&rigs[0]);
	rig_stop(&rigs[1]);
	munmap(map, BYTES);
}

static void test_vms_that_end_are_counted(void)
{
	struct audit_target targets[2];
	struct vm_rig rigs[2];
	struct audit_host h;
	char *map = unit_map(PAGES);

	rig_fork(&rigs[0], map, write_all);
	rig_fork(&rigs[1], map, write_all);
	host_start(&h, targets, rigs, "x");
	h.cancel = true;
	CU_ASSERT_EQUAL(audit_host_run(&h), -ECANCELED);
	audit_host_end(&h);
	kill(rigs[1].vm.pid, SIGKILL);
	waitpid(rigs[1].vm.pid, NULL, 0);
	host_start(&h, targets, rigs, "x");
	CU_ASSERT_EQUAL(audit_host_run(&h), 0);
	CU_ASSERT(h.lost == 1 && h.violation_count == 0 && h.counts.pages == PAGES);
	audit_host_end(&h);
	rig_stop(&rigs[0]);
	rig_stop(&rigs[1]);
	munmap(map, BYTES);
}

int main(void)
{
	CU_TestInfo tests[] = {
		{ "separate_memory_is_clean", test_separate_memory_is_clean },
		{ "frames_of_two_vms_are_found", test_frames_of_two_vms_are_found },
		{ "huge_zero_page_is_everybodys", test_huge_zero_page_is_everybodys },
		{ "stores_are_for_one_domain", test_stores_are_for_one_domain },
		{ "a_store_that_can_be_written_is_found", test_a_store_that_can_be_written_is_found },
		{ "foreign_backing_is_found", test_foreign_backing_is_found },
		{ "vms_that_end_are_counted", test_vms_that_end_are_counted },
		CU_TEST_INFO_NULL,
	};
	int status;

	if (getuid() != 0) {
		puts("skip: test_audit_host: frame numbers are shown to root only");
		return 77;
	}
	unit_must(fsio_open_root("/", false, &fs) == 0, "/");
	status = unit_main("audit_host", tests);
	fsio_close(&fs);
	return status;
}
