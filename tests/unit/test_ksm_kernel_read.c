/* ksmd/ksm_kernel's reading: counters, the scanner's CPU time, what a process gave to KSM. */
#include "ksmd/ksm_kernel.h"

#include "tests/unit/ksm_tree.h"

static void test_ksm_kernel_absent_not_supported(void)
{
	struct ksm_kernel *k = NULL;

	unit_dir_new(dir);
	unit_must(fsio_open_root(dir, false, &fs) == 0, dir);
	CU_ASSERT_EQUAL(ksm_kernel_new(&fs, "/" STATE, &k), -EOPNOTSUPP);
	CU_ASSERT_PTR_NULL(k);
	knob("run", "garbage\n");
	CU_ASSERT_EQUAL(ksm_kernel_new(&fs, "/" STATE, &k), -EBADMSG);
	CU_ASSERT_PTR_NULL(k);
	CU_ASSERT_PTR_NULL(ksm_kernel_free(NULL));
	tree_end();
}

static void test_ksm_kernel_counters_read(void)
{
	struct ksm_snapshot s;
	struct ksm_kernel *k;

	tree_begin("1\n", "100\n", "20\n", false);
	knob("ksm_zero_pages", "30\n");
	knob("pages_scanned", "40\n");
	k = kernel_new();
	CU_ASSERT_EQUAL(ksm_kernel_read(k, &s), 0);
	CU_ASSERT_TRUE(s.present && s.run == 1 && s.pages_to_scan == 100 && s.sleep_ms == 20);
	CU_ASSERT_TRUE(s.pages_shared == 10 && s.pages_sharing == 20 && s.full_scans == 3);
	CU_ASSERT_TRUE(s.zero_pages == 30 && s.pages_scanned == 40 && s.cpu_ns == 0);
	unlinkat(fs.root_fd, KSM "ksm_zero_pages", 0); /* older kernels */
	unlinkat(fs.root_fd, KSM "pages_scanned", 0);
	CU_ASSERT_EQUAL(ksm_kernel_read(k, &s), 0);
	CU_ASSERT_TRUE(s.zero_pages == 0 && s.pages_scanned == 0);
	knob("pages_shared", "");
	s.run = 77;
	CU_ASSERT_EQUAL(ksm_kernel_read(k, &s), -EBADMSG);
	CU_ASSERT_EQUAL(s.run, 77);
	unlinkat(fs.root_fd, KSM "pages_shared", 0);
	CU_ASSERT_EQUAL(ksm_kernel_read(k, &s), -ENOENT);
	ksm_kernel_free(k);
	tree_end();
}

static void test_ksm_kernel_scanner_cpu_time_table_gives_expected(void)
{
	static const char long_stat[] = "30 (ksmd) S 2 0 0 0 -1 2129984 0 0 0 0 1 2 0 0 25 5 1 0 20 0\n";
	static const struct {
		const char *what, *comm, *cmdline, *schedstat, *stat;
		uint64_t cpu_ns;
	} cases[] = {
		{ "schedstat", "ksmd\n", "", "123456789 55 66\n", long_stat, 123456789 },
		{ "stat, in ticks", "ksmd\n", "", NULL, long_stat, 3 },
		{ "garbage in schedstat", "ksmd\n", "", "x\n", long_stat, 3 },
		{ "a name with brackets", "ksmd\n", "", NULL, "30 (a) b (c) S 2 0 0 0 -1 0 0 0 0 0 1 2 0 0\n", 3 },
		{ "cut short", "ksmd\n", "", NULL, "30 (ksmd) S 2 0 0", 0 },
		{ "no bracket", "ksmd\n", "", NULL, "30", 0 },
		{ "nothing", "ksmd\n", "", NULL, NULL, 0 },
		{ "a program of that name", "ksmd\n", "/usr/bin/ksmd", "123 55 66\n", long_stat, 0 },
		{ "another thread", "ksmtuned\n", "", "123 55 66\n", long_stat, 0 },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct ksm_snapshot s = { 0 };
		struct ksm_kernel *k;
		uint64_t unit = i > 0 ? 1000000000ul / (uint64_t)sysconf(_SC_CLK_TCK) : 1;

		tree_begin("0\n", "100\n", "20\n", false);
		unit_file(dir, "proc/cpuinfo", "x");
		unit_file(dir, "proc/30/comm", cases[i].comm);
		unit_file(dir, "proc/30/cmdline", cases[i].cmdline);
		if (cases[i].schedstat)
			unit_file(dir, "proc/30/schedstat", cases[i].schedstat);
		if (cases[i].stat)
			unit_file(dir, "proc/30/stat", cases[i].stat);
		k = kernel_new();
		CU_ASSERT_EQUAL(ksm_kernel_read(k, &s), 0);
		UNIT_CASE(cases[i].what, s.cpu_ns == cases[i].cpu_ns * unit);
		ksm_kernel_free(k);
		tree_end();
	}
}

static void test_ksm_kernel_vm_table_gives_expected(void)
{
	static const struct {
		const char *what, *ksm_stat, *merging_file;
		int want;
		enum ksm_marked marked;
		uint64_t merging;
	} cases[] = {
		{ "newest", "ksm_rmap_items 5\nksm_merging_pages 7\nksm_merge_any: no\nksm_mergeable: yes\n", NULL, 0,
		  KSM_MARKED_YES, 7 },
		{ "by the process", "ksm_merging_pages 7\nksm_merge_any: yes\nksm_mergeable: no\n", NULL, 0, KSM_MARKED_YES,
		  7 },
		{ "not given", "ksm_merging_pages 0\nksm_merge_any: no\nksm_mergeable: no\n", NULL, 0, KSM_MARKED_NO, 0 },
		{ "before 6.17", "ksm_rmap_items 5\nksm_merging_pages 7\n", "9\n", 0, KSM_MARKED_UNKNOWN, 7 },
		{ "before ksm_merging_pages was there", "ksm_rmap_items 5\n", "9\n", 0, KSM_MARKED_UNKNOWN, 9 },
		{ "before ksm_stat", NULL, "9\n", 0, KSM_MARKED_UNKNOWN, 9 },
		{ "empty, of a zombie", "", "", 0, KSM_MARKED_UNKNOWN, 0 },
		{ "garbage", "\x01\x02", "x", 0, KSM_MARKED_UNKNOWN, 0 },
		{ "gone", NULL, NULL, -ESRCH, 0, 77 },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		enum ksm_marked marked = 0;
		uint64_t merging = 77;
		struct ksm_kernel *k;

		tree_begin("0\n", "100\n", "20\n", false);
		if (cases[i].ksm_stat)
			unit_file(dir, "proc/40/ksm_stat", cases[i].ksm_stat);
		if (cases[i].merging_file)
			unit_file(dir, "proc/40/ksm_merging_pages", cases[i].merging_file);
		k = kernel_new();
		UNIT_CASE(cases[i].what, ksm_kernel_read_vm(k, 40, &marked, &merging) == cases[i].want);
		UNIT_CASE(cases[i].what, marked == cases[i].marked && merging == cases[i].merging);
		ksm_kernel_free(k);
		tree_end();
	}
}

int main(void)
{
	static CU_TestInfo tests[] = {
		{ "absent", test_ksm_kernel_absent_not_supported },
		{ "counters", test_ksm_kernel_counters_read },
		{ "scanner_cpu", test_ksm_kernel_scanner_cpu_time_table_gives_expected },
		{ "vm", test_ksm_kernel_vm_table_gives_expected },
		CU_TEST_INFO_NULL,
	};

	return unit_main("ksm_kernel_read", tests);
}
