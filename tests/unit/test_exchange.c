/* The exchange: each outcome, and the scenarios of its rules R1-R9 that one process can provoke at will. */
#include "agent/exchange.h"

#include <linux/io_uring.h>
#include <sched.h>
#include <sys/resource.h>

#include "agent/eligible.h"
#include "tests/unit/exchange_rig.h"

static struct rig rig;

/* ---- hooks ---- */

static uint32_t hooked_step;
static void (*hooked_fn)(void);

static void on_step(uint32_t step)
{
	if (step == hooked_step)
		hooked_fn();
}

static void hook_at(uint32_t step, void (*fn)(void))
{
	hooked_step = step;
	hooked_fn = fn;
	exchange_hooks.step = on_step;
}

/* The calls that fail: a bit for each enum exchange_op, in the steps from fail_from on. */
static unsigned fail_ops;
static uint32_t fail_from;
static int fail_err;

static int fail_before(enum exchange_op op, uint64_t addr, uint64_t len)
{
	(void)addr;
	(void)len;
	return (fail_ops >> op & 1) && rig.journal->step >= fail_from ? fail_err : 0;
}

static void fail(unsigned ops, uint32_t from, int err)
{
	fail_ops = ops;
	fail_from = from;
	fail_err = err;
	exchange_hooks.before = fail_before;
}

/* ---- outcomes ---- */

static void test_exchange_small_pages_each_outcome(void)
{
	rig_new(&rig, (struct rig_how){ 0 });
	rig_fill(&rig, 12, 7777); /* one page of the second run differs */
	for (size_t p = 40; p < 50; p++)
		rig_fill(&rig, p, 0);
	madvise(rig_page(&rig, 60), 10 * PAGE_BYTES, MADV_DONTNEED);
	for (size_t p = 60; p < 70; p++)
		rig.model[p] = 0;
	rig_run(&rig, 0, 8, 0);
	rig_run(&rig, 8, 8, 8);
	rig_run(&rig, 16, 8, 300); /* all differ */
	rig_run(&rig, 40, 10, EXCHANGE_ZERO);
	rig_run(&rig, 50, 4, EXCHANGE_ZERO); /* not zero */
	rig_run(&rig, 60, 10, 60);
	rig_run(&rig, 511, 1, 511);
	CU_ASSERT_EQUAL(rig_merge(&rig, 0), 0);
	CU_ASSERT_EQUAL(rig.runs[0].outcome, EXCHANGE_MERGED);
	CU_ASSERT_EQUAL(rig.runs[0].merged, 8);
	CU_ASSERT_EQUAL(rig.runs[1].outcome, EXCHANGE_UNEQUAL);
	CU_ASSERT_EQUAL(rig.runs[1].merged, 7);
	CU_ASSERT_EQUAL(rig.runs[2].outcome, EXCHANGE_UNEQUAL);
	CU_ASSERT_EQUAL(rig.runs[2].merged, 0);
	CU_ASSERT_EQUAL(rig.runs[3].outcome, EXCHANGE_MERGED);
	CU_ASSERT_EQUAL(rig.runs[4].outcome, EXCHANGE_UNEQUAL);
	CU_ASSERT_EQUAL(rig.runs[5].outcome, EXCHANGE_ABSENT);
	CU_ASSERT_EQUAL(rig.runs[6].outcome, EXCHANGE_MERGED);
	/* The zero pages are absent, the merged ones are counted. */
	CU_ASSERT_EQUAL(rig_flagged(&rig, (uint64_t)(uintptr_t)rig.ram, PAGE_IS_PRESENT), 512 - 10 - 10 - 16);
	CU_ASSERT_EQUAL(exchange_merged_pages(rig.x, rig.ram, WINDOW_BYTES), 16);
	RIG_CHECK(&rig);
	/* Again: what is merged is not tried again. */
	CU_ASSERT_EQUAL(rig_merge(&rig, 0), 0);
	CU_ASSERT_EQUAL(rig.runs[0].outcome, EXCHANGE_ABSENT);
	/* Writes get copies of their own; the store keeps its bytes. */
	for (size_t p = 0; p < 8; p++)
		rig_fill(&rig, p, 5000 + p);
	RIG_CHECK(&rig);
	CU_ASSERT_EQUAL(memcmp(rig.store.map, rig_page(&rig, 0), PAGE_BYTES) == 0, 0);
	rig_free(&rig);
}

static void test_exchange_bad_input_refused(void)
{
	const struct {
		const char *what;
		struct exchange_run run[2];
	} cases[] = {
		{ "no pages", { { .first = 0, .pages = 0 }, { .first = 5, .pages = 1 } } },
		{ "overlap", { { .first = 0, .pages = 8 }, { .first = 7, .pages = 1 } } },
		{ "descending", { { .first = 9, .pages = 1 }, { .first = 7, .pages = 1 } } },
		{ "past the window", { { .first = 0, .pages = 8 }, { .first = 510, .pages = 3 } } },
		{ "first past it", { { .first = 600, .pages = 8 }, { .first = 700, .pages = 3 } } },
		{ "past the store", { { .first = 0, .pages = 8, .frame = RIG_FRAMES - 7 }, { .first = 9, .pages = 1 } } },
		{ "overflow", { { .first = 0, .pages = 8, .frame = UINT64_MAX - 2 }, { .first = 9, .pages = 1 } } },
	};

	rig_new(&rig, (struct rig_how){ 0 });
	rig.count = 2;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		memcpy(rig.runs, cases[i].run, sizeof(cases[i].run));
		UNIT_CASE(cases[i].what, rig_merge(&rig, 0) == -EINVAL);
	}
	CU_ASSERT_EQUAL(rig_merge(&rig, RIG_WINDOWS), -EINVAL); /* behind the slot */
	CU_ASSERT_EQUAL(exchange_merge(rig.x, (uint64_t)(uintptr_t)rig.ram + PAGE_BYTES, &rig.store, rig.runs, 1,
				       &rig.opt), -EINVAL);
	CU_ASSERT_EQUAL(exchange_merge(rig.x, (uint64_t)(uintptr_t)rig.ram, &rig.store, rig.runs, 0, &rig.opt), -EINVAL);
	CU_ASSERT_EQUAL(exchange_counters(rig.x)->windows, 0);
	CU_ASSERT_EQUAL(rig_wrong(&rig), 0);
	rig_free(&rig);
}

static void test_exchange_huge_page_whole_partly_or_kept(void)
{
	rig_new(&rig, (struct rig_how){ .huge = true });
	if (!rig_huge(&rig, 0) || !rig_huge(&rig, 1)) {
		rig_free(&rig);
		UNIT_SKIP("no huge pages");
	}
	/* Nothing equal: out and back as one huge page. */
	rig_run(&rig, 0, 512, 200);
	CU_ASSERT_EQUAL(rig_merge(&rig, 1), 0);
	CU_ASSERT_EQUAL(rig.runs[0].outcome, EXCHANGE_UNEQUAL);
	CU_ASSERT_EQUAL(exchange_counters(rig.x)->huge_kept, 1);
	CU_ASSERT_EQUAL(rig_huge(&rig, 1), 1);
	CU_ASSERT_EQUAL(exchange_counters(rig.x)->copied_back, 0);
	/* Too little is equal. */
	rig.count = 0;
	rig_run(&rig, 0, 70, 0);
	rig_fill(&rig, 20, 4242);
	rig.opt.min_pages_huge = 70;
	CU_ASSERT_EQUAL(rig_merge(&rig, 0), 0);
	CU_ASSERT_EQUAL(rig.runs[0].outcome, EXCHANGE_UNEQUAL);
	CU_ASSERT_EQUAL(rig.runs[0].merged, 0);
	CU_ASSERT_EQUAL(rig_huge(&rig, 0), 1);
	/* Less than worth trying. */
	rig.opt.min_pages_huge = 71;
	CU_ASSERT_EQUAL(rig_merge(&rig, 0), 0);
	CU_ASSERT_EQUAL(rig.runs[0].outcome, EXCHANGE_SKIPPED);
	/* Partly: the leftovers are copied back. */
	rig.opt.min_pages_huge = 64;
	CU_ASSERT_EQUAL(rig_merge(&rig, 0), 0);
	CU_ASSERT_EQUAL(rig.runs[0].merged, 69);
	CU_ASSERT_EQUAL(exchange_counters(rig.x)->copied_back, 512 - 69);
	CU_ASSERT_EQUAL(rig_huge(&rig, 0), 0);
	RIG_CHECK(&rig);
	rig_free(&rig);

	/* Wholly, twice in the same staging: it keeps its bare 2 MiB entry. */
	rig_new(&rig, (struct rig_how){ .huge = true });
	for (unsigned w = 0; w < 2; w++) {
		for (size_t p = 0; p < 512; p++)
			rig_fill(&rig, w * 512 + p, p + 1);
		rig.count = 0;
		rig_run(&rig, 0, 512, 0);
		CU_ASSERT_EQUAL(rig_merge(&rig, w), 0);
		CU_ASSERT_EQUAL(rig.runs[0].outcome, EXCHANGE_MERGED);
	}
	CU_ASSERT_EQUAL(exchange_counters(rig.x)->windows_huge, 2);
	CU_ASSERT_EQUAL(exchange_counters(rig.x)->moved_pages, 1024);
	RIG_CHECK(&rig);
	rig_free(&rig);
}

/* One page written into a block of zeroes must not bring back 2 MiB of them. */
static void test_exchange_huge_zeroes_come_back_page_by_page(void)
{
	rig_new(&rig, (struct rig_how){ .huge = true });
	if (!rig_huge(&rig, 0)) {
		rig_free(&rig);
		UNIT_SKIP("no huge pages");
	}
	for (size_t p = 0; p < 512; p++)
		rig_fill(&rig, p, 0);
	rig_run(&rig, 0, 512, EXCHANGE_ZERO);
	CU_ASSERT_EQUAL(rig_merge(&rig, 0), 0);
	CU_ASSERT_EQUAL(rig.runs[0].outcome, EXCHANGE_MERGED);
	CU_ASSERT_EQUAL(exchange_counters(rig.x)->windows_huge, 1);
	rig_fill(&rig, 300, 5);
	CU_ASSERT_EQUAL(rig_huge(&rig, 0), 0);
	CU_ASSERT_EQUAL(rig_flagged(&rig, (uint64_t)(uintptr_t)rig.ram, PAGE_IS_PRESENT) -
				rig_flagged(&rig, (uint64_t)(uintptr_t)rig.ram, PAGE_IS_PFNZERO), 1);
	RIG_CHECK(&rig);
	rig_free(&rig);
}

static void test_exchange_short_pieces_left_alone(void)
{
	rig_new(&rig, (struct rig_how){ 0 });
	for (size_t p = 2; p < 64; p += 4)
		rig_fill(&rig, p, 9000 + p); /* pieces of 2, 3, 3 .. pages */
	rig_run(&rig, 0, 64, 0);
	rig.opt.min_piece = 3;
	CU_ASSERT_EQUAL(rig_merge(&rig, 0), 0);
	CU_ASSERT_EQUAL(rig.runs[0].merged, 45); /* but for the two at the start and the one at the end */
	CU_ASSERT_EQUAL(rig.runs[0].outcome, EXCHANGE_UNEQUAL);
	RIG_CHECK(&rig);
	rig_free(&rig);
}

/* ---- R1: what UFFDIO_MOVE returns is not believed ---- */

static int lie(enum exchange_op op, uint64_t addr, uint64_t len, int rc)
{
	(void)addr;
	return op == OP_MOVE && len > PAGE_BYTES && rc == 0 ? -EEXIST : rc;
}

static int stale_out(enum exchange_op op, uint64_t addr, uint64_t len, int rc)
{
	return rig.journal->step == STEP_MOVE ? lie(op, addr, len, rc) : rc;
}

static void test_exchange_move_lies_page_tables_believed(void)
{
	for (unsigned huge = 0; huge < 2; huge++) {
		rig_new(&rig, (struct rig_how){ .huge = huge });
		rig_fill(&rig, 100, 31337);
		rig_run(&rig, 0, 200, 0);
		rig_run(&rig, 200, 100, 600); /* unequal: on the way back the move lies as well */
		exchange_hooks.after = stale_out;
		CU_ASSERT_EQUAL(rig_merge(&rig, 0), 0);
		CU_ASSERT_EQUAL(rig.runs[0].merged, 199);
		exchange_hooks.after = lie;
		rig.count = 0;
		rig_run(&rig, 0, 200, 0); /* nothing equal here */
		CU_ASSERT_EQUAL(rig_merge(&rig, 1), 0);
		CU_ASSERT_EQUAL(rig.runs[0].outcome, EXCHANGE_UNEQUAL);
		RIG_CHECK(&rig);
		rig_free(&rig);
	}
}

/* The page tables cannot be read in the window: nothing is merged, and each page finds back. */
static void test_exchange_page_tables_unreadable_all_goes_back(void)
{
	for (unsigned huge = 0; huge < 2; huge++) {
		rig_new(&rig, (struct rig_how){ .huge = huge });
		rig_run(&rig, 0, 200, 0);
		fail(1u << OP_SCAN, STEP_MOVE, -EBADF);
		rig_merge(&rig, 0); /* stops: whether staging is empty cannot be told */
		exchange_hooks.before = NULL;
		CU_ASSERT_EQUAL(rig.runs[0].merged, 0);
		CU_ASSERT_EQUAL(rig_wrong(&rig), 0);
		CU_ASSERT_EQUAL(exchange_resume(rig.x), 0);
		RIG_CHECK(&rig);
		rig_free(&rig);
	}
}

/* ---- R2: the way back ---- */

static struct toucher waiter;

static void start_waiter(void)
{
	toucher_start(&waiter, rig_page(&rig, 210), false, 0);
}

static void test_exchange_way_back_takes_each_way(void)
{
	const struct {
		const char *what;
		unsigned ops;
		int err;
	} cases[] = {
		{ "moves busy", 1u << OP_MOVE, -EBUSY },
		{ "moves say exist", 1u << OP_MOVE, -EEXIST },
		{ "moves try again for ever", 1u << OP_MOVE, -EAGAIN },
		{ "copies out of memory", 1u << OP_COPY, -ENOMEM },
		{ "copies try again for ever", 1u << OP_COPY, -EAGAIN },
		{ "moves and copies fail", 1u << OP_MOVE | 1u << OP_COPY, -ENOMEM },
	};

	for (size_t i = 0; i < 2 * ARRAY_SIZE(cases); i++) {
		const struct exchange_counters *c;

		rig_new(&rig, (struct rig_how){ .huge = i % 2 });
		rig_run(&rig, 0, 200, 0);
		rig_run(&rig, 200, 100, 600);
		fail(cases[i / 2].ops, STEP_BACK, cases[i / 2].err);
		UNIT_CASE(cases[i / 2].what, rig_merge(&rig, 0) == 0);
		c = exchange_counters(rig.x);
		CU_ASSERT_EQUAL(rig.runs[0].outcome, EXCHANGE_MERGED);
		CU_ASSERT_EQUAL(rig.runs[1].outcome, EXCHANGE_UNEQUAL);
		CU_ASSERT_EQUAL(c->moved_back + c->copied_back + c->remapped_back, i % 2 ? 312 : 100);
		RIG_CHECK(&rig);
		/* And the staging is as good as before. */
		rig.count = 0;
		rig_run(&rig, 0, 200, 0);
		exchange_hooks.before = NULL;
		UNIT_CASE(cases[i / 2].what, rig_merge(&rig, 1) == 0);
		RIG_CHECK(&rig);
		rig_free(&rig);
	}
}

static void test_exchange_no_way_back_readers_wait_for_repair(void)
{
	for (unsigned huge = 0; huge < 2; huge++) {
		rig_new(&rig, (struct rig_how){ .huge = huge });
		rig_run(&rig, 0, 200, 0);
		rig_run(&rig, 200, 100, 600);
		fail(1u << OP_MOVE | 1u << OP_COPY | 1u << OP_MREMAP, STEP_BACK, -ENOMEM);
		hook_at(STEP_BACK, start_waiter);
		CU_ASSERT_EQUAL(rig_merge(&rig, 0), -EIO);
		CU_ASSERT_EQUAL(rig.journal->step, STEP_BACK);
		CU_ASSERT_EQUAL(rig.journal->stuck, huge ? 312 : 100);
		CU_ASSERT_EQUAL(waiter.done, 0);
		CU_ASSERT_EQUAL(rig_merge(&rig, 1), -EIO); /* stopped */
		/* Memory is there again. */
		memset(&exchange_hooks, 0, sizeof(exchange_hooks));
		CU_ASSERT_EQUAL(exchange_resume(rig.x), 0);
		pthread_join(waiter.thread, NULL);
		CU_ASSERT_EQUAL(waiter.got, *rig_page(&rig, 210));
		RIG_CHECK(&rig);
		rig.count = 0;
		rig_run(&rig, 0, 200, 0);
		CU_ASSERT_EQUAL(rig_merge(&rig, 1), 0);
		RIG_CHECK(&rig);
		rig_free(&rig);
	}
}

static void scan_and_arm(void)
{
	struct page_region region[64];
	uint64_t at = (uint64_t)(uintptr_t)rig.ram;
	struct pm_scan_arg arg = {
		.size = sizeof(arg),
		.flags = PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC,
		.start = at,
		.end = at + RIG_WINDOWS * WINDOW_BYTES,
		.vec = (uint64_t)(uintptr_t)region,
		.vec_len = ARRAY_SIZE(region),
		.category_mask = PAGE_IS_WRITTEN,
		.return_mask = PAGE_IS_WRITTEN,
	};
	CU_ASSERT_TRUE(ioctl(rig.pagemap_fd, PAGEMAP_SCAN, &arg) >= 0);
}

/* R2, R9: the daemon arms the window while its pages are out. */
static void test_exchange_scan_in_window_markers_overwritten(void)
{
	for (unsigned huge = 0; huge < 2; huge++) {
		rig_new(&rig, (struct rig_how){ .huge = huge, .wp = true });
		rig_run(&rig, 0, 200, 0);
		rig_run(&rig, 200, 100, 600);
		hook_at(STEP_COMPARE, scan_and_arm);
		CU_ASSERT_EQUAL(rig_merge(&rig, 0), 0);
		CU_ASSERT_EQUAL(rig.runs[0].outcome, EXCHANGE_MERGED);
		CU_ASSERT_EQUAL(exchange_counters(rig.x)->copied_back, huge ? 312 : 100);
		RIG_CHECK(&rig);
		exchange_hooks.step = NULL;
		/* R9: every mapping of the window can be armed again. */
		scan_and_arm();
		rig_fill(&rig, 3, 111);
		rig_fill(&rig, 203, 112);
		RIG_CHECK(&rig);
		rig_free(&rig);
	}
}

static bool scanned_now;

/* The move fails for one page, and the scan comes before its result is looked at. */
static int scan_after_move(enum exchange_op op, uint64_t addr, uint64_t len, int rc)
{
	if (op != OP_MOVE || rig.journal->step != STEP_MOVE || scanned_now)
		return rc;
	(void)addr;
	(void)len;
	scanned_now = true;
	scan_and_arm();
	return -EEXIST;
}

/* R1 with R9: a marker in the window must not be taken for the page. */
static void test_exchange_move_lies_and_markers_nothing_lost(void)
{
	for (unsigned huge = 0; huge < 2; huge++) {
		rig_new(&rig, (struct rig_how){ .huge = huge, .wp = true });
		rig_run(&rig, 0, 200, 0);
		scanned_now = false;
		exchange_hooks.after = scan_after_move;
		CU_ASSERT_EQUAL(rig_merge(&rig, 0), 0);
		RIG_CHECK(&rig);
		rig_free(&rig);
	}
}

static pid_t forked;

/* Round pthread_atfork, as a raw system call does it. */
static void fork_raw(void)
{
	forked = (pid_t)syscall(SYS_fork);
	if (forked == 0) {
		pause();
		_exit(0);
	}
}

/* R2, R3: a fork in the window must not make the parent lose a page. */
static void test_exchange_fork_in_window_parent_right(void)
{
	for (unsigned huge = 0; huge < 2; huge++) {
		rig_new(&rig, (struct rig_how){ .huge = huge });
		rig_run(&rig, 0, 200, 0);
		rig_run(&rig, 200, 100, 600);
		hook_at(STEP_COMPARE, fork_raw);
		CU_ASSERT_EQUAL(rig_merge(&rig, 0), 0);
		RIG_CHECK(&rig);
		/* R3: staging was not copied, so the pages came back by moves. */
		CU_ASSERT_EQUAL(exchange_counters(rig.x)->move_errors, 0);
		/* What the child shares is busy (R12), until it is gone. */
		exchange_hooks.step = NULL;
		rig.count = 0;
		rig_run(&rig, 0, 100, 0);
		CU_ASSERT_EQUAL(rig_merge(&rig, 1), 0);
		CU_ASSERT_EQUAL(rig.runs[0].outcome, EXCHANGE_BUSY);
		RIG_CHECK(&rig);
		kill(forked, SIGKILL);
		waitpid(forked, NULL, 0);
		CU_ASSERT_EQUAL(rig_merge(&rig, 1), 0);
		RIG_CHECK(&rig);
		rig_free(&rig);
	}
}

static pthread_t forker;

/* R6: a fork through the atfork handlers waits for the window, and the child sees every byte. */
static void *fork_locked(void *arg)
{
	int *ret_status = arg;

	exchange_fork_prepare(rig.x);
	forked = fork();
	if (forked == 0) {
		exchange_fork_child(rig.x);
		if (rig_wrong(&rig) != 0)
			_exit(1);
		if (exchange_lock(rig.x) != 0 || exchange_make_anonymous(rig.x, rig.ram, 4 * PAGE_BYTES) != 0)
			_exit(2);
		exchange_unlock(rig.x);
		for (size_t p = 0; p < 4; p++)
			rig.model[p] = 0;
		_exit(rig_wrong(&rig) == 0 && rig_merge(&rig, 1) == -ECHILD ? 0 : 3);
	}
	exchange_fork_parent(rig.x);
	waitpid(forked, ret_status, 0);
	return NULL;
}

static int forked_status;

static void start_forker(void)
{
	unit_must(pthread_create(&forker, NULL, fork_locked, &forked_status) == 0, "pthread_create");
	for (int i = 0; i < 100; i++)
		sched_yield();
}

static void test_exchange_fork_with_lock_child_right(void)
{
	rig_new(&rig, (struct rig_how){ 0 });
	rig_run(&rig, 0, 200, 0);
	rig_run(&rig, 200, 100, 600);
	hook_at(STEP_COMPARE, start_forker);
	CU_ASSERT_EQUAL(rig_merge(&rig, 0), 0);
	pthread_join(forker, NULL);
	CU_ASSERT_EQUAL(forked_status, 0);
	RIG_CHECK(&rig);
	rig_free(&rig);
}

/* ---- R3: staging ---- */

static char staging_flags[256];

static void look_at_staging(void)
{
	rig_flags(rig.journal->staging, staging_flags);
}

static void test_exchange_staging_attributes(void)
{
	if (SANITIZED)
		UNIT_SKIP("process-wide merging walks all shadow memory of a sanitizer");
	prctl(PR_SET_MEMORY_MERGE, 1, 0, 0, 0);
	for (unsigned huge = 0; huge < 2; huge++) {
		rig_new(&rig, (struct rig_how){ .huge = huge });
		rig_run(&rig, 0, 200, 0);
		hook_at(STEP_COMPARE, look_at_staging);
		CU_ASSERT_EQUAL(rig_merge(&rig, 0), 0);
		CU_ASSERT_TRUE(strstr(staging_flags, " dc ") && strstr(staging_flags, " nh "));
		CU_ASSERT_TRUE(strstr(staging_flags, " uw ") && !strstr(staging_flags, " um "));
		CU_ASSERT_FALSE(strstr(staging_flags, " mg ") || strstr(staging_flags, " lo "));
		/* R8: process-wide merging made the RAM mergeable, and its new mappings stay so. */
		rig_flags((uint64_t)(uintptr_t)rig.ram, staging_flags);
		CU_ASSERT_PTR_NOT_NULL(strstr(staging_flags, " mg "));
		RIG_CHECK(&rig);
		rig_free(&rig);
	}
	prctl(PR_SET_MEMORY_MERGE, 0, 0, 0, 0);
}

/* ---- R4: mappings that fail ---- */

static void test_exchange_mmap_fails_all_goes_back(void)
{
	for (unsigned huge = 0; huge < 2; huge++) {
		rig_new(&rig, (struct rig_how){ .huge = huge });
		rig_run(&rig, 0, 100, 0);
		rig_run(&rig, 100, 100, 100);
		fail(1u << OP_MMAP, STEP_MAP, -ENOMEM);
		CU_ASSERT_EQUAL(rig_merge(&rig, 0), 0);
		CU_ASSERT_EQUAL(rig.runs[0].outcome, EXCHANGE_FAILED);
		CU_ASSERT_EQUAL(rig.runs[0].err, -ENOMEM);
		CU_ASSERT_EQUAL(rig.runs[0].merged, 0);
		CU_ASSERT_EQUAL(exchange_counters(rig.x)->map_failures, 2);
		CU_ASSERT_EQUAL(rig_huge(&rig, 0), huge);
		CU_ASSERT_EQUAL(exchange_merged_pages(rig.x, rig.ram, WINDOW_BYTES), 0);
		RIG_CHECK(&rig);
		rig_free(&rig);
	}
}

static int close_hole(enum exchange_op op, uint64_t addr, uint64_t len)
{
	if (op == OP_MREMAP) /* would fill it too, were there room for its mappings */
		return -ENOMEM;
	return op == OP_MMAP && munmap((void *)(uintptr_t)addr, len) == 0 ? -ENOMEM : 0;
}

/* The kernel fails after it has cleared the range: there is a gap in the address space. */
static void test_exchange_mmap_leaves_gap_is_filled(void)
{
	rig_new(&rig, (struct rig_how){ .dontfork = true });
	rig_run(&rig, 0, 100, 0);
	exchange_hooks.before = close_hole;
	CU_ASSERT_EQUAL(rig_merge(&rig, 0), 0);
	CU_ASSERT_EQUAL(rig.runs[0].outcome, EXCHANGE_FAILED);
	RIG_CHECK(&rig);
	exchange_hooks.before = NULL;
	CU_ASSERT_EQUAL(rig_merge(&rig, 0), 0);
	CU_ASSERT_EQUAL(rig.runs[0].outcome, EXCHANGE_MERGED);
	RIG_CHECK(&rig);
	rig_free(&rig);
}

static void close_store(void)
{
	close(rig.store.fd);
}

static void test_exchange_store_closed_in_window_all_goes_back(void)
{
	rig_new(&rig, (struct rig_how){ 0 });
	rig_run(&rig, 0, 100, 0);
	hook_at(STEP_COMPARE, close_store);
	CU_ASSERT_EQUAL(rig_merge(&rig, 0), 0);
	CU_ASSERT_EQUAL(rig.runs[0].err, -EBADF);
	RIG_CHECK(&rig);
	rig_free(&rig);
}

static void use_up_mappings(void)
{
	for (int i = 0; i < 1 << 20; i++) { /* neighbours that cannot join */
		if (mmap(NULL, PAGE_BYTES, i % 2 ? PROT_READ : PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) ==
		    MAP_FAILED)
			return;
	}
}

static int child_mapping_limit(void)
{
	rig_new(&rig, (struct rig_how){ 0 });
	for (unsigned p = 0; p < 300; p += 2)
		rig_run(&rig, p, 1, p);
	hook_at(STEP_COMPARE, use_up_mappings);
	if (rig_merge(&rig, 0) != 0 || rig.journal->step != STEP_IDLE)
		return 1;
	if (rig_wrong(&rig) != 0 || rig_staged(&rig) != 0)
		return 2;
	if (exchange_counters(rig.x)->map_failures == 0)
		return 3;
	exchange_hooks.step = NULL;
	if (rig_merge(&rig, 0) != -ENOSPC) /* the budget: not even tried now */
		return 4;
	/* Discarding works without a mapping to spare. */
	if (exchange_lock(rig.x) != 0 || exchange_make_anonymous(rig.x, rig.ram, WINDOW_BYTES) != 0)
		return 5;
	exchange_unlock(rig.x);
	for (size_t p = 0; p < 300; p += 2)
		rig.model[p] = rig.runs[p / 2].merged ? 0 : rig.model[p];
	return rig_wrong(&rig) == 0 ? 0 : 6;
}

static int child_limits(void)
{
	const int which[] = { RLIMIT_AS, RLIMIT_DATA };

	rig_new(&rig, (struct rig_how){ 0 });
	rig_run(&rig, 0, 100, 0);
	for (size_t i = 0; i < ARRAY_SIZE(which); i++) {
		struct rlimit limit = { .rlim_cur = PAGE_BYTES, .rlim_max = RLIM_INFINITY };

		setrlimit((__rlimit_resource_t)which[i], &limit);
		if (rig_merge(&rig, 0) != 0 || rig_wrong(&rig) != 0 || rig.journal->step != STEP_IDLE)
			return 1;
	}
	return rig_staged(&rig) == 0 ? 0 : 2;
}

static void seal_ram(void)
{
	syscall(462 /* mseal, Linux 6.10 */, rig.ram, WINDOW_BYTES, 0UL);
}

static int child_sealed(void)
{
	rig_new(&rig, (struct rig_how){ 0 });
	rig_run(&rig, 0, 100, 0);
	hook_at(STEP_COMPARE, seal_ram);
	if (rig_merge(&rig, 0) != 0 || rig.journal->step != STEP_IDLE)
		return 1;
	return rig_wrong(&rig) == 0 && rig_staged(&rig) == 0 ? 0 : 2;
}

static void test_exchange_limits_and_seal_nothing_lost(void)
{
	if (SANITIZED)
		UNIT_SKIP("a sanitizer needs mappings and address space of its own");
	CU_ASSERT_TRUE(rig_in_child(child_mapping_limit));
	CU_ASSERT_TRUE(rig_in_child(child_limits));
	CU_ASSERT_TRUE(rig_in_child(child_sealed));
}

/* ---- R3, R8: locked memory ---- */

static void *lock_all(void *arg)
{
	mlockall(MCL_CURRENT | MCL_FUTURE);
	return arg;
}

static void start_lock_all(void)
{
	char flags[256] = "";
	pthread_t t;

	unit_must(pthread_create(&t, NULL, lock_all, NULL) == 0, "pthread_create");
	while (!strstr(flags, " lo "))
		rig_flags(rig.journal->staging, flags);
}

static int child_mlockall(void)
{
	int err;

	rig_new(&rig, (struct rig_how){ 0 });
	rig_run(&rig, 0, 100, 0);
	rig_run(&rig, 100, 100, 600);
	hook_at(STEP_COMPARE, start_lock_all);
	err = rig_merge(&rig, 0);
	if (rig_wrong(&rig) != 0)
		return 1;
	exchange_hooks.step = NULL;
	/* Staging is locked and full: stopped, or every move is refused. Never a wrong byte. */
	return (err < 0 || rig_merge(&rig, 1) < 0 || rig.runs[0].merged == 0) && rig_wrong(&rig) == 0 ? 0 : 2;
}

static void test_exchange_locked_memory_left_alone(void)
{
	const char *why;

	if (SANITIZED)
		UNIT_SKIP("a sanitizer makes mlock and mlockall do nothing");
	rig_new(&rig, (struct rig_how){ 0 });
	rig_run(&rig, 0, 100, 0);
	unit_must(mlock(rig.ram, RIG_WINDOWS * WINDOW_BYTES) == 0, "mlock");
	CU_ASSERT_EQUAL(rig_merge(&rig, 0), 0);
	CU_ASSERT_EQUAL(rig.runs[0].outcome, EXCHANGE_FAILED);
	CU_ASSERT_EQUAL(rig.runs[0].err, -EINVAL);
	RIG_CHECK(&rig);
	CU_ASSERT_EQUAL(exchange_slot_remove(rig.x, rig.ram), 0);
	CU_ASSERT_EQUAL(exchange_slot_add(rig.x, rig.ram, WINDOW_BYTES, false, &why), -EPERM);
	CU_ASSERT_STRING_EQUAL(why, "memory is locked (mlock)");
	munlock(rig.ram, RIG_WINDOWS * WINDOW_BYTES);
	rig_free(&rig);
	CU_ASSERT_TRUE(rig_in_child(child_mlockall));
}

static void test_exchange_unfit_memory_refused(void)
{
	const size_t len = 4 * PAGE_BYTES;
	auto_close int file = memfd_create("file", MFD_CLOEXEC);
	const char *why;
	struct {
		const char *what;
		void *at;
	} cases[] = {
		{ "shared", mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0) },
		{ "file", mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0) },
		{ "read-only", mmap(NULL, len, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) },
		{ "half", mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) },
		{ "not there", mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) },
		{ "mixed", mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) },
		{ "registered", mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) },
	};

	rig_new(&rig, (struct rig_how){ 0 });
	mprotect(cases[3].at, PAGE_BYTES, PROT_READ);
	munmap(cases[4].at, PAGE_BYTES);
	madvise(cases[5].at, PAGE_BYTES, MADV_DONTDUMP);
	uffd_register(rig.uffd, (uint64_t)(uintptr_t)cases[6].at, len, UFFDIO_REGISTER_MODE_MISSING);
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		UNIT_CASE(cases[i].what, exchange_slot_add(rig.x, cases[i].at, len, false, &why) < 0 && *why);
		munmap(cases[i].at, len);
	}
	CU_ASSERT_EQUAL(exchange_slot_add(rig.x, rig.ram, len, false, &why), -EEXIST);
	CU_ASSERT_EQUAL(exchange_slot_add(rig.x, rig.ram + 1, len, false, &why), -EINVAL);
	CU_ASSERT_EQUAL(exchange_slot_remove(rig.x, rig.ram + RIG_WINDOWS * WINDOW_BYTES), -ENOENT);
	rig_free(&rig);
}

/* R8: another userfaultfd has the window (postcopy). */
static void test_exchange_foreign_userfaultfd_skipped(void)
{
	auto_close int other = uffd_open();

	rig_new(&rig, (struct rig_how){ 0 });
	CU_ASSERT_EQUAL(uffd_register(other, (uint64_t)(uintptr_t)rig.ram, WINDOW_BYTES, UFFDIO_REGISTER_MODE_WP), 0);
	rig_run(&rig, 0, 100, 0);
	CU_ASSERT_EQUAL(rig_merge(&rig, 0), 0);
	CU_ASSERT_EQUAL(rig.runs[0].outcome, EXCHANGE_FAILED);
	CU_ASSERT_EQUAL(rig.runs[0].err, -EBUSY);
	CU_ASSERT_EQUAL(rig_wrong(&rig), 0);
	CU_ASSERT_EQUAL(rig.journal->step, STEP_IDLE);
	CU_ASSERT_EQUAL(uffd_unregister(other, (uint64_t)(uintptr_t)rig.ram, WINDOW_BYTES), 0); /* still its own */
	rig_free(&rig);
}

/* ---- R5: the executor, its signals and its descriptor ---- */

static _Atomic int signalled, signalled_in_window;

static void on_signal(int signal_number)
{
	(void)signal_number;
	signalled = 1;
	signalled_in_window = rig.journal->step != STEP_IDLE;
}

static void signal_self(void)
{
	pthread_kill(pthread_self(), SIGUSR1);
	pthread_cancel(pthread_self());
	pthread_testcancel();
}

static void *merge_signalled(void *arg)
{
	*(int *)arg = rig_merge(&rig, 0);
	return NULL;
}

static void test_exchange_signals_and_cancel_wait_for_end(void)
{
	struct sigaction act = { .sa_handler = on_signal };
	pthread_t t;
	int err = -1;

	sigaction(SIGUSR1, &act, NULL);
	rig_new(&rig, (struct rig_how){ 0 });
	rig_run(&rig, 0, 100, 0);
	hook_at(STEP_COMPARE, signal_self);
	unit_must(pthread_create(&t, NULL, merge_signalled, &err) == 0, "pthread_create");
	pthread_join(t, NULL);
	CU_ASSERT_EQUAL(err, 0);
	CU_ASSERT_EQUAL(signalled, 1);
	CU_ASSERT_EQUAL(signalled_in_window, 0);
	RIG_CHECK(&rig);
	rig_free(&rig);
}

static struct toucher victims[3];
static uint8_t victim_want[3];

static void victims_start(void)
{
	const unsigned pages[] = { 10, 210, 399 };

	for (size_t i = 0; i < ARRAY_SIZE(victims); i++)
		toucher_start(&victims[i], rig_page(&rig, pages[i]), false, 0);
}

static void die(void)
{
	victims_start();
	pthread_exit(NULL);
}

static void *merge_and_die(void *arg)
{
	rig_merge(&rig, 0);
	return arg;
}

static void death_rig(unsigned huge, uint32_t step)
{
	pthread_t t;

	rig_new(&rig, (struct rig_how){ .huge = huge, .wp = step % 2 });
	for (size_t p = 300; p < 400; p++)
		rig_fill(&rig, p, 0);
	victim_want[0] = *rig_page(&rig, 10);
	victim_want[1] = *rig_page(&rig, 210);
	victim_want[2] = 0;
	rig_run(&rig, 0, 200, 0);
	rig_run(&rig, 200, 100, 600);
	rig_run(&rig, 300, 100, EXCHANGE_ZERO);
	hook_at(step, die);
	unit_must(pthread_create(&t, NULL, merge_and_die, NULL) == 0, "pthread_create");
	pthread_join(t, NULL);
	exchange_hooks.step = NULL;
	CU_ASSERT_EQUAL(rig.journal->step, step);
}

static void death_check(void)
{
	for (size_t i = 0; i < ARRAY_SIZE(victims); i++) {
		pthread_join(victims[i].thread, NULL);
		CU_ASSERT_EQUAL(victims[i].got, victim_want[i]);
	}
	RIG_CHECK(&rig);
	rig.count = 0;
	rig_run(&rig, 0, 200, 0);
	CU_ASSERT_EQUAL(rig_merge(&rig, 1), 0);
	RIG_CHECK(&rig);
	rig_free(&rig);
}

/* Whoever takes the lock next finds its owner dead and repairs. */
static void test_exchange_executor_dies_next_locker_repairs(void)
{
	for (uint32_t step = STEP_REGISTER; step <= STEP_DROP; step++) {
		for (unsigned huge = 0; huge < 2; huge++) {
			death_rig(huge, step);
			CU_ASSERT_EQUAL(exchange_lock(rig.x), 0);
			exchange_unlock(rig.x);
			death_check();
		}
	}
}

/* Another process that holds the descriptor repairs: the daemon. */
static void test_exchange_executor_dies_daemon_repairs(void)
{
	for (uint32_t step = STEP_REGISTER; step <= STEP_DROP; step++) {
		for (unsigned huge = 0; huge < 2; huge++) {
			int go[2], status = -1;
			pid_t vmm = getpid(), daemon_pid;

			death_rig(huge, step);
			unit_must(pipe(go) == 0, "pipe");
			daemon_pid = fork();
			if (daemon_pid == 0) {
				char c;

				/* A private mapping of the parent's memory must not be what is read. */
				munmap(rig.ram, RIG_WINDOWS * WINDOW_BYTES);
				_exit(read(go[0], &c, 1) == 1 && exchange_repair(rig.journal, vmm, rig.uffd, -1) == 0 &&
				      exchange_repair(rig.journal, vmm, rig.uffd, -1) == 0 ? 0 : 1);
			}
			unit_must(write(go[1], "g", 1) == 1 && waitpid(daemon_pid, &status, 0) > 0, "daemon");
			CU_ASSERT_EQUAL(status, 0);
			CU_ASSERT_EQUAL(rig.journal->step, STEP_REPAIRED);
			for (size_t i = 0; i < ARRAY_SIZE(victims); i++)
				pthread_join(victims[i].thread, NULL), victims[i].thread = 0;
			CU_ASSERT_EQUAL(rig_wrong(&rig), 0); /* before staging is emptied */
			CU_ASSERT_EQUAL(exchange_resume(rig.x), 0);
			for (size_t i = 0; i < ARRAY_SIZE(victims); i++)
				toucher_start(&victims[i], (uint8_t *)(uintptr_t)victims[i].at, false, 0);
			close(go[0]);
			close(go[1]);
			death_check();
		}
	}
}

static int spare_uffd;

static void close_uffd(void)
{
	victims_start();
	close(rig.uffd);
}

/* The application closes the descriptor in the window; the daemon holds a duplicate. */
static void test_exchange_descriptor_closed_in_window_repaired(void)
{
	for (unsigned huge = 0; huge < 2; huge++) {
		rig_new(&rig, (struct rig_how){ .huge = huge });
		for (size_t p = 300; p < 400; p++)
			rig_fill(&rig, p, 0);
		victim_want[0] = *rig_page(&rig, 10);
		victim_want[1] = *rig_page(&rig, 210);
		victim_want[2] = 0;
		rig_run(&rig, 0, 200, 0);
		rig_run(&rig, 200, 100, 600);
		rig_run(&rig, 300, 100, EXCHANGE_ZERO);
		spare_uffd = dup(rig.uffd);
		hook_at(STEP_COMPARE, close_uffd);
		CU_ASSERT_EQUAL(rig_merge(&rig, 0), -EBADF);
		exchange_hooks.step = NULL;
		CU_ASSERT_EQUAL(exchange_repair(rig.journal, 0, spare_uffd, -1), 0);
		for (size_t i = 0; i < ARRAY_SIZE(victims); i++) {
			pthread_join(victims[i].thread, NULL);
			CU_ASSERT_EQUAL(victims[i].got, victim_want[i]);
		}
		CU_ASSERT_EQUAL(rig_wrong(&rig), 0);
		CU_ASSERT_EQUAL(rig_merge(&rig, 1), -EBADF); /* stopped, and it stays so */
		CU_ASSERT_EQUAL(rig_wrong(&rig), 0);
		rig.uffd = spare_uffd;
		rig_free(&rig);
	}
}

static void test_exchange_repair_hostile_journal_refused(void)
{
	struct exchange_journal bad[] = {
		{ .version = 2, .step = STEP_MOVE, .pages = 1 },
		{ .version = 1, .step = EXCHANGE_STEPS, .pages = 1 },
		{ .version = 1, .step = STEP_MOVE, .pages = 0 },
		{ .version = 1, .step = STEP_MOVE, .first = 1, .pages = 512 },
		{ .version = 1, .step = STEP_MOVE, .first = UINT32_MAX, .pages = 2 },
	};

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		CU_ASSERT_EQUAL(exchange_repair(&bad[i], 0, -1, -1), -EBADMSG);
}

/* ---- R6, R8: discards, and what new mappings keep ---- */

static void test_exchange_discard_of_merged_gives_zeroes(void)
{
	char flags[256];
	size_t before;

	rig_new(&rig, (struct rig_how){ .dontfork = true, .dontdump = true, .wp = true });
	before = mappings_count();
	rig_run(&rig, 0, 200, 0);
	CU_ASSERT_EQUAL(rig_merge(&rig, 0), 0);
	rig_fill(&rig, 5, 1234); /* a copy of its own */
	rig_flags((uint64_t)(uintptr_t)rig_page(&rig, 7), flags);
	CU_ASSERT_TRUE(strstr(flags, " dc ") && strstr(flags, " dd ") && strstr(flags, " nh ") && strstr(flags, " uw "));
	/* The control: without the exchange, the store's bytes come back. */
	madvise(rig_page(&rig, 5), PAGE_BYTES, MADV_DONTNEED);
	rig.model[5] = 6;
	CU_ASSERT_EQUAL(rig_wrong(&rig), 0);
	CU_ASSERT_EQUAL(madvise(rig_page(&rig, 5), PAGE_BYTES, MADV_FREE), -1);

	CU_ASSERT_EQUAL(exchange_lock(rig.x), 0);
	CU_ASSERT_EQUAL(exchange_make_anonymous(rig.x, rig_page(&rig, 2), 8 * PAGE_BYTES), 0);
	CU_ASSERT_EQUAL(exchange_make_anonymous(rig.x, rig_page(&rig, 250), 8 * PAGE_BYTES), 0); /* not merged */
	CU_ASSERT_EQUAL(exchange_make_anonymous(rig.x, rig_page(&rig, 2) + 1, PAGE_BYTES), -EINVAL);
	exchange_unlock(rig.x);
	for (size_t p = 2; p < 10; p++)
		rig.model[p] = 0;
	CU_ASSERT_EQUAL(madvise(rig_page(&rig, 5), PAGE_BYTES, MADV_FREE), 0);
	CU_ASSERT_EQUAL(exchange_merged_pages(rig.x, rig.ram, WINDOW_BYTES), 192);
	rig_flags((uint64_t)(uintptr_t)rig_page(&rig, 7), flags);
	CU_ASSERT_TRUE(strstr(flags, " dc ") && strstr(flags, " dd ") && strstr(flags, " nh ") && strstr(flags, " uw "));
	RIG_CHECK(&rig);
	/* All of it: the mappings are folded into one again. */
	CU_ASSERT_EQUAL(exchange_lock(rig.x), 0);
	CU_ASSERT_EQUAL(exchange_make_anonymous(rig.x, rig.ram, RIG_WINDOWS * WINDOW_BYTES), 0);
	exchange_unlock(rig.x);
	for (size_t p = 0; p < 200; p++)
		rig_fill(&rig, p, p + 1);
	CU_ASSERT_EQUAL(mappings_count(), before);
	/* And it can be merged once more. */
	CU_ASSERT_EQUAL(rig_merge(&rig, 0), 0);
	CU_ASSERT_EQUAL(rig.runs[0].merged, 200);
	RIG_CHECK(&rig);
	rig_free(&rig);
}

/* A discarded window is one mapping again and can be a huge page again. */
static void test_exchange_discard_of_window_huge_again(void)
{
	rig_new(&rig, (struct rig_how){ .huge = true });
	for (unsigned p = 0; p < 500; p += 5)
		rig_run(&rig, p, 3, p);
	CU_ASSERT_EQUAL(rig_merge(&rig, 0), 0);
	for (size_t p = 0; p < WINDOW_PAGES; p++) /* mappings and anon_vmas of all kinds */
		rig_fill(&rig, p, 70000 + p);
	CU_ASSERT_EQUAL(exchange_lock(rig.x), 0);
	CU_ASSERT_EQUAL(exchange_discard(rig.x, rig.ram, WINDOW_BYTES), 0);
	CU_ASSERT_EQUAL(exchange_discard(rig.x, rig_page(&rig, 600), PAGE_BYTES), 0); /* nothing merged: not touched */
	CU_ASSERT_EQUAL(exchange_discard(rig.x, rig.ram + 1, PAGE_BYTES), -EINVAL);
	exchange_unlock(rig.x);
	for (size_t p = 0; p < WINDOW_PAGES; p++)
		rig.model[p] = 0;
	CU_ASSERT_EQUAL(rig_wrong(&rig), 0);
	madvise(rig.ram, WINDOW_BYTES, MADV_DONTNEED);
	for (size_t p = 0; p < WINDOW_PAGES; p++)
		rig_fill(&rig, p, p + 1);
	CU_ASSERT_EQUAL(rig_huge(&rig, 0), rig_huge(&rig, 1));
	CU_ASSERT_EQUAL(rig_merge(&rig, 0), 0);
	RIG_CHECK(&rig);
	rig_free(&rig);
}

static void *discard_locked(void *arg)
{
	exchange_lock(rig.x);
	exchange_make_anonymous(rig.x, rig.ram, 200 * PAGE_BYTES);
	madvise(rig.ram, 200 * PAGE_BYTES, MADV_DONTNEED);
	exchange_unlock(rig.x);
	return arg;
}

static void start_discard(void)
{
	unit_must(pthread_create(&forker, NULL, discard_locked, NULL) == 0, "pthread_create");
	for (int i = 0; i < 100; i++)
		sched_yield();
}

static void discard_unlocked(void)
{
	madvise(rig.ram, 10 * PAGE_BYTES, MADV_DONTNEED);
}

/* A discard in the window waits for its end; without the lock the old bytes come back. */
static void test_exchange_discard_in_window_waits(void)
{
	rig_new(&rig, (struct rig_how){ 0 });
	rig_run(&rig, 0, 100, 0);
	rig_run(&rig, 100, 100, 600);
	hook_at(STEP_COMPARE, start_discard);
	CU_ASSERT_EQUAL(rig_merge(&rig, 0), 0);
	pthread_join(forker, NULL);
	for (size_t p = 0; p < 200; p++)
		rig.model[p] = 0;
	RIG_CHECK(&rig);
	rig_free(&rig);

	rig_new(&rig, (struct rig_how){ 0 });
	rig_run(&rig, 0, 100, 0);
	hook_at(STEP_COMPARE, discard_unlocked);
	CU_ASSERT_EQUAL(rig_merge(&rig, 0), 0);
	RIG_CHECK(&rig); /* the control: what was discarded is there */
	rig_free(&rig);
}

/* ---- R12: pinned pages ---- */

static int pin(const void *page, size_t len)
{
	struct io_uring_params params = { 0 };
	struct iovec iov = { .iov_base = (void *)(uintptr_t)page, .iov_len = len };
	int ring = (int)syscall(SYS_io_uring_setup, 4, &params);

	if (ring >= 0 && syscall(SYS_io_uring_register, ring, IORING_REGISTER_BUFFERS, &iov, 1) < 0) {
		close(ring);
		return -1;
	}
	return ring;
}

static void test_exchange_pinned_pages_stay(void)
{
	for (unsigned huge = 0; huge < 2; huge++) {
		auto_close int ring = -1;

		rig_new(&rig, (struct rig_how){ .huge = huge });
		ring = pin(rig_page(&rig, 50), 2 * PAGE_BYTES);
		if (ring < 0) {
			rig_free(&rig);
			UNIT_SKIP("no io_uring");
		}
		rig_run(&rig, 0, 100, 0);
		rig_run(&rig, 100, 100, 100);
		CU_ASSERT_EQUAL(rig_merge(&rig, 0), 0);
		CU_ASSERT_EQUAL(rig.runs[0].outcome, EXCHANGE_BUSY);
		CU_ASSERT_EQUAL(rig.runs[0].err, -EBUSY);
		CU_ASSERT_EQUAL(rig.runs[0].merged, huge ? 0 : 98);
		CU_ASSERT_EQUAL(rig.runs[1].merged, huge ? 0 : 100);
		CU_ASSERT_EQUAL(rig_huge(&rig, 0), huge); /* not split for nothing */
		RIG_CHECK(&rig);
		rig_free(&rig);
	}
}

static int staged_pin;

static void pin_staging(void)
{
	staged_pin = pin((void *)(uintptr_t)(rig.journal->staging + 110 * PAGE_BYTES), PAGE_BYTES);
}

/* R2: what is pinned while it is in staging is copied back. */
static void test_exchange_staging_pinned_copied_back(void)
{
	for (unsigned huge = 0; huge < 2; huge++) {
		rig_new(&rig, (struct rig_how){ .huge = huge });
		rig_run(&rig, 0, 100, 700);
		rig_run(&rig, 100, 100, 600);
		hook_at(STEP_COMPARE, pin_staging);
		CU_ASSERT_EQUAL(rig_merge(&rig, 0), 0);
		if (staged_pin >= 0)
			CU_ASSERT_TRUE(exchange_counters(rig.x)->copied_back >= 1);
		RIG_CHECK(&rig);
		close(staged_pin);
		rig_free(&rig);
	}
}

/* ---- threads that touch the window ---- */

static void writers_start(void)
{
	toucher_start(&victims[0], rig_page(&rig, 10), true, 0xa5);
	toucher_start(&victims[1], rig_page(&rig, 210), true, 0xa6);
	toucher_start(&victims[2], rig_page(&rig, 310), true, 0xa7);
	for (int i = 0; i < 200; i++)
		sched_yield();
}

static void test_exchange_writers_in_window_wait_and_keep(void)
{
	for (unsigned huge = 0; huge < 2; huge++) {
		rig_new(&rig, (struct rig_how){ .huge = huge });
		for (size_t p = 300; p < 400; p++)
			rig_fill(&rig, p, 0);
		rig_run(&rig, 0, 200, 0);
		rig_run(&rig, 200, 100, 600);
		rig_run(&rig, 300, 100, EXCHANGE_ZERO);
		hook_at(STEP_COMPARE, writers_start);
		CU_ASSERT_EQUAL(rig_merge(&rig, 0), 0);
		for (size_t i = 0; i < ARRAY_SIZE(victims); i++) {
			pthread_join(victims[i].thread, NULL);
			CU_ASSERT_EQUAL(*victims[i].at, 0xa5 + i);
		}
		CU_ASSERT_EQUAL(rig.store.map[10 * PAGE_BYTES + 1], rig_page(&rig, 10)[1]);
		rig_fill(&rig, 10, 11);
		rig_fill(&rig, 210, 211);
		rig_fill(&rig, 310, 0);
		RIG_CHECK(&rig);
		rig_free(&rig);
	}
}

/* ---- the rest ---- */

static void test_exchange_pages_in_swap(void)
{
	char line[2][128] = { "", "" };
	auto_fclose FILE *f = fopen("/proc/swaps", "re");

	if (!f || !fgets(line[0], 128, f) || !fgets(line[1], 128, f))
		UNIT_SKIP("no swap");
	rig_new(&rig, (struct rig_how){ 0 });
	madvise(rig.ram, 300 * PAGE_BYTES, MADV_PAGEOUT);
	rig_run(&rig, 0, 200, 0);
	rig_run(&rig, 200, 300, 600);
	CU_ASSERT_EQUAL(rig_merge(&rig, 0), 0);
	RIG_CHECK(&rig);
	rig_free(&rig);
}

static void test_uffd_probe_user_mode_only_refused(void)
{
	const char *why;
	auto_close int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
	auto_close int good = uffd_open();

	CU_ASSERT_EQUAL(uffd_setup(fd), 0);
	CU_ASSERT_EQUAL(uffd_probe(fd, &why), -EFAULT);
	CU_ASSERT_EQUAL(uffd_probe(good, &why), 0);
}

static void test_exchange_rounds_leave_nothing(void)
{
	size_t before = 0;

	for (int i = 0; i < 20; i++) {
		rig_new(&rig, (struct rig_how){ .huge = i % 2 });
		for (unsigned p = 0; p < 400; p += 4)
			rig_run(&rig, p, 3, p);
		CU_ASSERT_EQUAL(rig_merge(&rig, 0), 0);
		CU_ASSERT_EQUAL(exchange_lock(rig.x), 0);
		CU_ASSERT_EQUAL(exchange_make_anonymous(rig.x, rig.ram, WINDOW_BYTES), 0);
		exchange_unlock(rig.x);
		rig_free(&rig);
		if (i == 1)
			before = mappings_count();
	}
	CU_ASSERT_TRUE(SANITIZED || mappings_count() <= before + 20); /* the rig leaves a guard or two behind */
}

int main(void)
{
	static CU_TestInfo tests[] = {
		{ "small_outcomes", test_exchange_small_pages_each_outcome },
		{ "bad_input", test_exchange_bad_input_refused },
		{ "huge", test_exchange_huge_page_whole_partly_or_kept },
		{ "huge_zeroes", test_exchange_huge_zeroes_come_back_page_by_page },
		{ "short_pieces", test_exchange_short_pieces_left_alone },
		{ "R1_move_lies", test_exchange_move_lies_page_tables_believed },
		{ "R1_blind", test_exchange_page_tables_unreadable_all_goes_back },
		{ "R2_ways_back", test_exchange_way_back_takes_each_way },
		{ "R2_no_way_back", test_exchange_no_way_back_readers_wait_for_repair },
		{ "R2_R9_scan", test_exchange_scan_in_window_markers_overwritten },
		{ "R1_markers", test_exchange_move_lies_and_markers_nothing_lost },
		{ "R2_R3_fork", test_exchange_fork_in_window_parent_right },
		{ "R6_fork_locked", test_exchange_fork_with_lock_child_right },
		{ "R3_staging", test_exchange_staging_attributes },
		{ "R4_mmap", test_exchange_mmap_fails_all_goes_back },
		{ "R4_gap", test_exchange_mmap_leaves_gap_is_filled },
		{ "R4_store_closed", test_exchange_store_closed_in_window_all_goes_back },
		{ "R4_limits", test_exchange_limits_and_seal_nothing_lost },
		{ "R8_locked", test_exchange_locked_memory_left_alone },
		{ "R8_unfit", test_exchange_unfit_memory_refused },
		{ "R8_foreign", test_exchange_foreign_userfaultfd_skipped },
		{ "R5_signals", test_exchange_signals_and_cancel_wait_for_end },
		{ "R5_death_thread", test_exchange_executor_dies_next_locker_repairs },
		{ "R5_death_daemon", test_exchange_executor_dies_daemon_repairs },
		{ "R5_closed", test_exchange_descriptor_closed_in_window_repaired },
		{ "R5_hostile", test_exchange_repair_hostile_journal_refused },
		{ "R6_discard", test_exchange_discard_of_merged_gives_zeroes },
		{ "R6_huge_again", test_exchange_discard_of_window_huge_again },
		{ "R6_window", test_exchange_discard_in_window_waits },
		{ "R12_pinned", test_exchange_pinned_pages_stay },
		{ "R2_pinned", test_exchange_staging_pinned_copied_back },
		{ "writers", test_exchange_writers_in_window_wait_and_keep },
		{ "swap", test_exchange_pages_in_swap },
		{ "R7_probe", test_uffd_probe_user_mode_only_refused },
		{ "rounds", test_exchange_rounds_leave_nothing },
		CU_TEST_INFO_NULL,
	};
	const char *why = "a userfaultfd cannot be opened";
	int fd = uffd_open();

	if (fd < 0 || uffd_probe(fd, &why) < 0) {
		printf("skip: exchange: %s\n", why);
		return 77;
	}
	close(fd);
	alarm(180); /* a lost wake-up would be a hang */
	return unit_main("exchange", tests);
}
