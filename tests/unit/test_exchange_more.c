/* The exchange: what other parts of the kernel, and of the VMM, do to pages in the window. See test_exchange.c. */
#include <linux/mempolicy.h>
#include <sys/ptrace.h>

#include "tests/unit/exchange_rig.h"

static struct rig rig;
static void (*hooked)(void);

static void on_compare(uint32_t step)
{
	if (step == STEP_COMPARE)
		hooked();
}

/* One run that is equal, one that is not, and fn while both are out. */
static void merge_with(void (*fn)(void), struct rig_how how)
{
	rig_new(&rig, how);
	rig_run(&rig, 0, 200, 0);
	rig_run(&rig, 200, 100, 600);
	hooked = fn;
	exchange_hooks.step = on_compare;
	CU_ASSERT_EQUAL(rig_merge(&rig, 0), 0);
	exchange_hooks.step = NULL;
}

static void *staging(void)
{
	return (void *)(uintptr_t)rig.journal->staging;
}

/* ---- R2: swap, compaction ---- */

static bool swap_is_on(void)
{
	char text[1024] = "";
	auto_close int fd = open("/proc/swaps", O_RDONLY | O_CLOEXEC);
	const char *line = fd >= 0 && read(fd, text, sizeof(text) - 1) > 0 ? strchr(text, '\n') : NULL;

	return line && line[1] != '\0';
}

static unsigned swapped;

static void page_out(void)
{
	madvise(staging(), WINDOW_BYTES, MADV_PAGEOUT);
	madvise(rig.ram, WINDOW_BYTES, MADV_PAGEOUT);
	swapped = rig_flagged(&rig, rig.journal->staging, PAGE_IS_SWAPPED);
}

static void test_exchange_staging_swapped_out_nothing_lost(void)
{
	if (!swap_is_on())
		UNIT_SKIP("no swap");
	for (unsigned i = 0; i < 4; i++) {
		merge_with(page_out, (struct rig_how){ .huge = i % 2, .wp = i / 2 });
		CU_ASSERT_TRUE(swapped > 0);
		RIG_CHECK(&rig);
		rig_free(&rig);
	}
}

static void collapse(void)
{
	madvise(staging(), WINDOW_BYTES, MADV_COLLAPSE);
	madvise(rig.ram, WINDOW_BYTES, MADV_COLLAPSE);
	madvise(staging(), WINDOW_BYTES, MADV_COLD);
}

static void test_exchange_collapsed_and_cooled_in_window_nothing_lost(void)
{
	for (unsigned huge = 0; huge < 2; huge++) {
		merge_with(collapse, (struct rig_how){ .huge = huge });
		RIG_CHECK(&rig);
		rig_free(&rig);
	}
}

/* ---- R1, R3: staging that is not as it should be ---- */

static int populate_after_drop(enum exchange_op op, uint64_t addr, uint64_t len)
{
	(void)len;
	if (op == OP_SCAN && rig.journal->step == STEP_DROP && addr >= rig.journal->staging)
		*(volatile char *)staging() = 1; /* as mlockall() would */
	return 0;
}

static void test_exchange_staging_not_empty_stops_merging(void)
{
	for (unsigned huge = 0; huge < 2; huge++) {
		rig_new(&rig, (struct rig_how){ .huge = huge });
		rig_run(&rig, 0, 200, 0);
		exchange_hooks.before = populate_after_drop;
		CU_ASSERT_EQUAL(rig_merge(&rig, 0), -ENOTEMPTY);
		exchange_hooks.before = NULL;
		CU_ASSERT_EQUAL(rig_wrong(&rig), 0);
		CU_ASSERT_EQUAL(rig_merge(&rig, 1), -ENOTEMPTY); /* and it stays so */
		CU_ASSERT_EQUAL(exchange_resume(rig.x), 0);
		CU_ASSERT_EQUAL(rig_merge(&rig, 1), 0);
		RIG_CHECK(&rig);
		rig_free(&rig);
	}
}

static void discard_before_move(uint32_t step)
{
	if (step == STEP_MOVE)
		madvise(rig_page(&rig, 20), PAGE_BYTES, MADV_DONTNEED);
}

static int move_says_done(enum exchange_op op, uint64_t addr, uint64_t len, int rc)
{
	(void)addr;
	return op == OP_MOVE && len == PAGE_BYTES && rc == -ENOENT ? 0 : rc;
}

/* A page that is not in staging, whatever the move has said, is neither compared nor taken for one of zeroes. */
static void test_exchange_absent_in_staging_not_compared(void)
{
	rig_new(&rig, (struct rig_how){ 0 });
	rig_run(&rig, 20, 1, EXCHANGE_ZERO);
	exchange_hooks.step = discard_before_move;
	exchange_hooks.after = move_says_done;
	CU_ASSERT_EQUAL(rig_merge(&rig, 0), 0);
	CU_ASSERT_EQUAL(rig.runs[0].outcome, EXCHANGE_ABSENT);
	CU_ASSERT_EQUAL(exchange_counters(rig.x)->moved_pages, 0);
	rig.model[20] = 0;
	RIG_CHECK(&rig);
	rig_free(&rig);
}

/* ---- R12: what is not tried, or not for long ---- */

static void test_exchange_merged_and_written_not_moved_again(void)
{
	rig_new(&rig, (struct rig_how){ 0 });
	rig_run(&rig, 0, 100, 0);
	CU_ASSERT_EQUAL(rig_merge(&rig, 0), 0);
	for (size_t p = 0; p < 100; p++)
		rig_fill(&rig, p, p + 1); /* the same again, in copies of its own */
	CU_ASSERT_EQUAL(rig_merge(&rig, 0), 0);
	CU_ASSERT_EQUAL(rig.runs[0].outcome, EXCHANGE_ABSENT);
	CU_ASSERT_EQUAL(exchange_counters(rig.x)->move_errors, 0);
	CU_ASSERT_EQUAL(exchange_counters(rig.x)->windows, 1);
	RIG_CHECK(&rig);
	rig_free(&rig);
}

/* All pages are shared with a child, and all moves refused: the window is not frozen for each of them. */
static void test_exchange_all_busy_given_up_soon(void)
{
	pid_t child;

	rig_new(&rig, (struct rig_how){ 0 });
	rig_run(&rig, 0, 512, 0);
	child = (pid_t)syscall(SYS_fork); /* round the handlers */
	if (child == 0) {
		pause();
		_exit(0);
	}
	CU_ASSERT_EQUAL(rig_merge(&rig, 0), 0);
	CU_ASSERT_EQUAL(rig.runs[0].outcome, EXCHANGE_BUSY);
	CU_ASSERT_TRUE(exchange_counters(rig.x)->move_errors < 128);
	RIG_CHECK(&rig);
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
	rig_free(&rig);
}

/* ---- R13: debuggers ---- */

static ssize_t mem_written, mem_read;

static void use_mem(void)
{
	auto_close int fd = open("/proc/self/mem", O_RDWR | O_CLOEXEC);
	char page[PAGE_BYTES] = { 0 };

	mem_read = pread(fd, page, 1, (off_t)(uintptr_t)rig_page(&rig, 10));
	mem_written = pwrite(fd, page, 1, (off_t)(uintptr_t)rig_page(&rig, 210));
}

/* It cannot be prevented that they are refused; but they are told, and nothing is lost. */
static void test_exchange_proc_mem_in_window_refused(void)
{
	for (unsigned huge = 0; huge < 2; huge++) {
		merge_with(use_mem, (struct rig_how){ .huge = huge });
		CU_ASSERT_EQUAL(mem_read, -1);
		CU_ASSERT_EQUAL(mem_written, -1);
		RIG_CHECK(&rig);
		rig_free(&rig);
	}
}

static int child_traced(void)
{
	const char *why = "";

	rig_new(&rig, (struct rig_how){ 0 });
	if (ptrace(PTRACE_TRACEME, 0, 0, 0) != 0 || exchange_slot_remove(rig.x, rig.ram) != 0)
		return 1;
	return exchange_slot_add(rig.x, rig.ram, WINDOW_BYTES, false, &why) == -EBUSY &&
	       strcmp(why, "a debugger is attached") == 0 ? 0 : 2;
}

static void test_exchange_traced_process_refused(void)
{
	CU_ASSERT_TRUE(rig_in_child(child_traced));
}

/* ---- R6: mappings that the VMM replaces ---- */

static void test_exchange_mapped_over_and_forgotten_merges_again(void)
{
	rig_new(&rig, (struct rig_how){ 0 });
	rig_run(&rig, 0, 200, 0);
	CU_ASSERT_EQUAL(rig_merge(&rig, 0), 0);
	CU_ASSERT_EQUAL(exchange_lock(rig.x), 0);
	unit_must(mmap(rig_page(&rig, 50), 50 * PAGE_BYTES, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == rig_page(&rig, 50),
		  "mmap");
	exchange_forget(rig.x, rig_page(&rig, 50), 50 * PAGE_BYTES);
	exchange_unlock(rig.x);
	CU_ASSERT_EQUAL(exchange_merged_pages(rig.x, rig.ram, WINDOW_BYTES), 150);
	for (size_t p = 50; p < 100; p++)
		rig_fill(&rig, p, p + 1);
	CU_ASSERT_EQUAL(rig_merge(&rig, 0), 0);
	CU_ASSERT_EQUAL(rig.runs[0].merged, 50);
	CU_ASSERT_EQUAL(exchange_merged_pages(rig.x, rig.ram, WINDOW_BYTES), 200);
	RIG_CHECK(&rig);
	rig_free(&rig);
}

/* ---- R8: what a new mapping has to keep ---- */

static int policy_of(const void *at)
{
	int policy = -1;

	syscall(SYS_get_mempolicy, &policy, NULL, 0, at, MPOL_F_ADDR);
	return policy;
}

static void test_exchange_new_mappings_keep_advice_and_policy(void)
{
	unsigned long nodes = 1;
	char flags[256];
	const char *why;

	rig_new(&rig, (struct rig_how){ .huge = true });
	CU_ASSERT_EQUAL(exchange_slot_remove(rig.x, rig.ram), 0);
	if (syscall(SYS_mbind, rig.ram, RIG_WINDOWS * WINDOW_BYTES, MPOL_PREFERRED, &nodes, 64UL, 0) < 0) {
		rig_free(&rig);
		UNIT_SKIP("no memory policies");
	}
	CU_ASSERT_EQUAL(exchange_slot_add(rig.x, rig.ram, RIG_WINDOWS * WINDOW_BYTES, false, &why), 0);
	rig_run(&rig, 0, 200, 0);
	CU_ASSERT_EQUAL(rig_merge(&rig, 0), 0);
	CU_ASSERT_EQUAL(rig.runs[0].merged, 200);
	for (unsigned round = 0; round < 2; round++) {
		rig_flags((uint64_t)(uintptr_t)rig_page(&rig, 100), flags);
		CU_ASSERT_PTR_NOT_NULL(strstr(flags, " hg "));
		CU_ASSERT_EQUAL(policy_of(rig_page(&rig, 100)), MPOL_PREFERRED);
		RIG_CHECK(&rig);
		if (round == 0) {
			CU_ASSERT_EQUAL(exchange_lock(rig.x), 0);
			CU_ASSERT_EQUAL(exchange_make_anonymous(rig.x, rig.ram, WINDOW_BYTES), 0);
			exchange_unlock(rig.x);
			memset(rig.model, 0, 200 * sizeof(rig.model[0]));
		}
	}
	rig_free(&rig);
}

int main(void)
{
	static CU_TestInfo tests[] = {
		{ "R2_swap", test_exchange_staging_swapped_out_nothing_lost },
		{ "R2_collapse", test_exchange_collapsed_and_cooled_in_window_nothing_lost },
		{ "R1_not_empty", test_exchange_staging_not_empty_stops_merging },
		{ "R3_absent", test_exchange_absent_in_staging_not_compared },
		{ "R12_written", test_exchange_merged_and_written_not_moved_again },
		{ "R12_all_busy", test_exchange_all_busy_given_up_soon },
		{ "R13_proc_mem", test_exchange_proc_mem_in_window_refused },
		{ "R13_traced", test_exchange_traced_process_refused },
		{ "R6_forget", test_exchange_mapped_over_and_forgotten_merges_again },
		{ "R8_kept", test_exchange_new_mappings_keep_advice_and_policy },
		CU_TEST_INFO_NULL,
	};
	const char *why = "a userfaultfd cannot be opened";
	int fd = uffd_open();

	if (fd < 0 || uffd_probe(fd, &why) < 0) {
		printf("skip: exchange_more: %s\n", why);
		return 77;
	}
	close(fd);
	alarm(180); /* a lost wake-up would be a hang */
	return unit_main("exchange_more", tests);
}
