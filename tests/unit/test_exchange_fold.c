/* Folding: merged memory becomes anonymous again, with every byte, whatever else goes on. */
#include <poll.h>

#include "agent/exchange_internal.h"
#include "agent/freezer.h"
#include "core/clock.h"
#include "tests/unit/exchange_rig.h"

static struct rig rig;
static struct freezer *freezer;
static struct exchange_fold result;

/* Merges the first `pages` of window 0, in one piece or in several. */
static void fold_rig(struct rig_how how, unsigned pages, unsigned pieces)
{
	rig_new(&rig, how);
	unit_must(freezer_new(uffd_open_freezer(), &freezer) == 0, "freezer");
	exchange_use_freezer(rig.x, freezer);
	for (unsigned i = 0; i < pieces; i++)
		rig_run(&rig, i * (pages / pieces), pages / pieces - (pieces > 1), i * (pages / pieces));
	CU_ASSERT_EQUAL(rig_merge(&rig, 0), 0);
	CU_ASSERT_EQUAL(exchange_merged_pages(rig.x, rig.ram, WINDOW_BYTES), pages - (pieces > 1 ? pieces : 0));
}

static void fold_free(void)
{
	rig_free(&rig);
	freezer = freezer_free(freezer);
}

static int fold(bool split)
{
	return exchange_fold(rig.x, (uint64_t)(uintptr_t)rig.ram, split, &result);
}

static unsigned from_store(void)
{
	unsigned n = 0;
	auto_fclose FILE *f = fopen("/proc/self/maps", "re");
	char line[512];
	uint64_t start, end, ram = (uint64_t)(uintptr_t)rig.ram;

	while (fgets(line, sizeof(line), f))
		if (sscanf(line, "%lx-%lx", &start, &end) == 2 && start >= ram && start < ram + WINDOW_BYTES &&
		    strstr(line, "memfd"))
			n++;
	return n;
}

static unsigned ram_maps(void)
{
	unsigned n = 0;
	auto_fclose FILE *f = fopen("/proc/self/maps", "re");
	char line[512];
	uint64_t start, end, ram = (uint64_t)(uintptr_t)rig.ram;

	while (fgets(line, sizeof(line), f))
		n += sscanf(line, "%lx-%lx", &start, &end) == 2 && start < ram + RIG_WINDOWS * WINDOW_BYTES && end > ram;
	return n;
}

/* ---- what it is for ---- */

static void test_fold_pages_and_mappings_as_before(void)
{
	static const struct {
		const char *name;
		struct rig_how how;
		unsigned pages, pieces;
	} cases[] = {
		{ "one piece", { 0 }, 256, 1 },
		{ "whole window", { 0 }, 512, 1 },
		{ "pieces", { 0 }, 512, 64 },
		{ "watched", { .wp = true }, 256, 8 },
		{ "advice", { .dontfork = true, .dontdump = true }, 512, 8 },
		{ "huge", { .huge = true }, 512, 1 },
		{ "huge, watched", { .huge = true, .wp = true, .dontfork = true }, 512, 4 },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		char before[256], after[256];
		unsigned merged = cases[i].pages - (cases[i].pieces > 1 ? cases[i].pieces : 0), maps, huge;

		fold_rig(cases[i].how, cases[i].pages, cases[i].pieces);
		for (size_t p = 3; p < cases[i].pages; p += 7)
			rig_fill(&rig, p, 5000 + p); /* copies */
		rig_flags((uint64_t)(uintptr_t)rig_page(&rig, 600), before);
		huge = rig_huge(&rig, 1);
		maps = ram_maps();
		CU_ASSERT_TRUE(maps > 1);
		UNIT_CASE(cases[i].name, fold(false) == 0);
		UNIT_CASE(cases[i].name, result.folded == merged && result.kept == 0 && result.err == 0);
		UNIT_CASE(cases[i].name, from_store() == 0 && ram_maps() == 1);
		CU_ASSERT_EQUAL(exchange_merged_pages(rig.x, rig.ram, WINDOW_BYTES), 0);
		CU_ASSERT_EQUAL(rig_huge(&rig, 1), huge); /* the neighbour */
		rig_flags((uint64_t)(uintptr_t)rig.ram, after);
		CU_ASSERT_STRING_EQUAL(before, after);
		RIG_CHECK(&rig);
		/* And can be merged again, but for what was written. */
		for (size_t p = 3; p < cases[i].pages; p += 7)
			rig_fill(&rig, p, p + 1);
		CU_ASSERT_EQUAL(rig_merge(&rig, 0), 0);
		UNIT_CASE(cases[i].name, exchange_merged_pages(rig.x, rig.ram, WINDOW_BYTES) == merged);
		RIG_CHECK(&rig);
		fold_free();
	}
}

static void test_fold_nothing_to_do_or_not_allowed(void)
{
	fold_rig((struct rig_how){ 0 }, 100, 1);
	CU_ASSERT_EQUAL(exchange_fold(rig.x, (uint64_t)(uintptr_t)rig.ram + PAGE_BYTES, false, &result), -EINVAL);
	CU_ASSERT_EQUAL(exchange_fold(rig.x, (uint64_t)(uintptr_t)rig.ram + WINDOW_BYTES, false, &result), 0);
	CU_ASSERT_TRUE(result.folded == 0 && result.kept == 0);
	CU_ASSERT_EQUAL(exchange_fold(rig.x, 1u << 30, false, &result), 0); /* no slot */
	exchange_lock(rig.x);
	exchange_slot_close(rig.x, rig.ram, true);
	exchange_unlock(rig.x);
	CU_ASSERT_EQUAL(fold(false), 0);
	CU_ASSERT_TRUE(result.folded == 0 && result.kept == 100 && result.err == -EPERM);
	exchange_lock(rig.x);
	exchange_slot_close(rig.x, rig.ram, false);
	exchange_unlock(rig.x);
	rig.x->map_limit = 16; /* and more are there */
	CU_ASSERT_EQUAL(fold(false), 0);
	CU_ASSERT_TRUE(result.folded == 0 && result.kept == 100 && result.err == -ENOSPC);
	rig.x->map_limit = mappings_limit();
	exchange_use_freezer(rig.x, NULL);
	CU_ASSERT_EQUAL(fold(false), -EOPNOTSUPP);
	CU_ASSERT_EQUAL(exchange_merged_pages(rig.x, rig.ram, WINDOW_BYTES), 100);
	RIG_CHECK(&rig);
	fold_free();
}

/* Discards of what was folded, and of what is folded at the time, which waits. */
static void *discard_half(void *arg)
{
	exchange_lock(rig.x);
	exchange_discard(rig.x, rig_page(&rig, 100), 100 * PAGE_BYTES);
	madvise(rig_page(&rig, 100), 100 * PAGE_BYTES, MADV_DONTNEED);
	exchange_unlock(rig.x);
	return arg;
}

static pthread_t meanwhile;
static uint32_t meanwhile_step;
static void *(*meanwhile_fn)(void *);
static int meanwhile_started;

static void on_step(uint32_t step)
{
	if (step == meanwhile_step && meanwhile_started++ == 0)
		unit_must(pthread_create(&meanwhile, NULL, meanwhile_fn, NULL) == 0, "pthread_create");
}

static void hook_meanwhile(uint32_t step, void *(*fn)(void *))
{
	meanwhile_step = step;
	meanwhile_fn = fn;
	meanwhile_started = 0;
	exchange_hooks.step = on_step;
}

static void test_fold_discard_meanwhile_gives_zeroes(void)
{
	for (uint32_t step = STEP_FOLD_FREEZE; step <= STEP_FOLD_FILL; step++) {
		fold_rig((struct rig_how){ 0 }, 512, 1);
		hook_meanwhile(step, discard_half);
		CU_ASSERT_EQUAL(fold(false), 0);
		exchange_hooks.step = NULL;
		pthread_join(meanwhile, NULL);
		for (size_t p = 100; p < 200; p++)
			rig.model[p] = 0;
		RIG_CHECK(&rig);
		fold_free();
	}
}

/* A child sees every byte, and can fold nothing. */
static void test_fold_child_of_a_fork_does_not(void)
{
	int status = -1;
	pid_t pid;

	fold_rig((struct rig_how){ 0 }, 200, 1);
	exchange_fork_prepare(rig.x);
	pid = fork();
	if (pid == 0) {
		exchange_fork_child(rig.x);
		_exit(fold(false) == -ECHILD && rig_wrong(&rig) == 0 ? 0 : 1);
	}
	exchange_fork_parent(rig.x);
	unit_must(waitpid(pid, &status, 0) == pid, "waitpid");
	CU_ASSERT_EQUAL(status, 0);
	CU_ASSERT_EQUAL(fold(false), 0);
	CU_ASSERT_EQUAL(result.folded, 200);
	RIG_CHECK(&rig);
	fold_free();
}

/* ---- others write and read meanwhile ---- */

#define WRITERS 3u
#define ROUNDS 150u

static _Atomic int stop;
static _Atomic uint64_t writes[WRITERS], longest_ns;

/* Adds one to its own word of a page, as fast as it can. */
static void *writer_main(void *arg)
{
	unsigned me = (unsigned)(uintptr_t)arg, r = me + 1;

	while (!stop) {
		uint64_t begin = clock_mono_ns(), took;
		volatile uint64_t *word;

		r = r * 1103515245 + 12345;
		word = (volatile uint64_t *)(rig_page(&rig, (r >> 8) % WINDOW_PAGES)) + me;
		*word = *word + 1;
		took = clock_mono_ns() - begin;
		if (took > longest_ns)
			longest_ns = took;
		writes[me]++;
	}
	return NULL;
}

/* The rest of a page never changes. */
static void *reader_main(void *arg)
{
	char want[PAGE_BYTES];
	unsigned p = 0;

	while (!stop) {
		unit_page_fill(want, p + 1);
		if (memcmp(want + 64, rig_page(&rig, p) + 64, PAGE_BYTES - 64) != 0)
			return (void *)1;
		p = (p + 17) % WINDOW_PAGES;
	}
	return arg;
}

static uint64_t words_sum(void)
{
	uint64_t sum = 0;

	for (size_t p = 0; p < WINDOW_PAGES; p++) {
		char page[PAGE_BYTES];

		unit_page_fill(page, p + 1);
		for (unsigned w = 0; w < WRITERS; w++) {
			uint64_t was;

			memcpy(&was, page + w * 8, 8);
			sum += ((uint64_t *)rig_page(&rig, p))[w] - was;
		}
	}
	return sum;
}

static void test_fold_racing_writers_lose_nothing(void)
{
	uint64_t stall = 0, worst = 0, merge_stall = 0;

	for (unsigned round = 0; round < ROUNDS; round++) {
		pthread_t t[WRITERS + 1];
		uint64_t sum = 0;
		void *bad = NULL;

		fold_rig((struct rig_how){ .wp = round % 2 }, 512, round % 3 == 2 ? 16 : 1);
		stop = 0;
		for (uintptr_t i = 0; i < WRITERS; i++) {
			writes[i] = 0;
			unit_must(pthread_create(&t[i], NULL, writer_main, (void *)i) == 0, "pthread_create");
		}
		unit_must(pthread_create(&t[WRITERS], NULL, reader_main, NULL) == 0, "pthread_create");
		poll(NULL, 0, 1);
		CU_ASSERT_EQUAL(fold(round % 4 == 3), 0);
		CU_ASSERT_EQUAL(result.kept, 0);
		poll(NULL, 0, 1);
		stop = 1;
		for (unsigned i = 0; i < WRITERS; i++) {
			pthread_join(t[i], NULL);
			sum += writes[i];
		}
		pthread_join(t[WRITERS], &bad);
		CU_ASSERT_PTR_NULL(bad);
		CU_ASSERT_EQUAL(words_sum(), sum);
		CU_ASSERT_EQUAL(from_store(), 0);
		CU_ASSERT_EQUAL(rig.journal->step, STEP_IDLE);
		if (round % 3 != 2)
			stall += exchange_counters(rig.x)->fold_stall_ns;
		worst = exchange_counters(rig.x)->fold_stall_max_ns > worst ? exchange_counters(rig.x)->fold_stall_max_ns : worst;
		merge_stall += exchange_counters(rig.x)->stall_ns;
		fold_free();
	}
	printf("\n    each window of 512 pages: frozen %.0f us on average, a stretch %.0f at most (a merge: %.0f); longest write %.0f us\n    ",
	       (double)stall / 1e3 / (ROUNDS * 2 / 3), (double)worst / 1e3, (double)merge_stall / 1e3 / ROUNDS,
	       (double)longest_ns / 1e3);
}

/* ---- what may be pinned ---- */

static int direct_open(void)
{
	char path[] = "/var/tmp/fold-XXXXXX";
	int fd = mkstemp(path), direct;

	unit_must(fd >= 0, path);
	direct = open(path, O_RDWR | O_DIRECT | O_CLOEXEC);
	unlink(path);
	close(fd);
	return direct;
}

static void test_fold_with_direct_io_open_copies_stay(void)
{
	int fd = direct_open();

	if (fd < 0)
		UNIT_SKIP("no O_DIRECT here");
	fold_rig((struct rig_how){ 0 }, 400, 4);
	rig_fill(&rig, 10, 5000);
	rig_fill(&rig, 50, 5001);
	rig_fill(&rig, 51, 5002);
	rig_fill(&rig, 98, 5003); /* the last of its piece */
	rig_fill(&rig, 100, 5004); /* the first of the second */
	CU_ASSERT_EQUAL(fold(false), 0);
	CU_ASSERT_EQUAL(result.folded, 198);
	CU_ASSERT_EQUAL(result.kept, 198);
	CU_ASSERT_EQUAL(result.err, -EBUSY);
	RIG_CHECK(&rig);
	CU_ASSERT_EQUAL(fold(true), 0);
	CU_ASSERT_EQUAL(result.folded, 198 - 5);
	CU_ASSERT_EQUAL(result.kept, 5);
	RIG_CHECK(&rig);
	close(fd);
	CU_ASSERT_EQUAL(fold(false), 0);
	CU_ASSERT_EQUAL(result.folded, 5);
	CU_ASSERT_EQUAL(result.kept, 0);
	CU_ASSERT_EQUAL(from_store(), 0);
	RIG_CHECK(&rig);
	fold_free();
}

static int opened;

static int open_and_write(enum exchange_op op, uint64_t addr, uint64_t len)
{
	(void)addr;
	(void)len;
	if (op == OP_WP && opened < 0) { /* as late as can be: writers wait right after */
		opened = direct_open();
		rig_fill(&rig, 7, 4242);
	}
	return 0;
}

/* What is opened after the first look is seen by the second, when nobody can pin any more. */
static void test_fold_direct_io_opened_late_copies_stay(void)
{
	opened = -1;
	fold_rig((struct rig_how){ 0 }, 100, 1);
	exchange_hooks.before = open_and_write;
	CU_ASSERT_EQUAL(fold(true), 0);
	exchange_hooks.before = NULL;
	if (opened >= 0) {
		CU_ASSERT_EQUAL(result.kept, 100);
		CU_ASSERT_EQUAL(result.err, -EBUSY);
		close(opened);
	}
	RIG_CHECK(&rig);
	CU_ASSERT_EQUAL(fold(false), 0);
	CU_ASSERT_EQUAL(result.folded, 100);
	RIG_CHECK(&rig);
	fold_free();
}

/* ---- what fails ---- */

static enum exchange_op fail_op;
static uint32_t fail_step;
static int fail_err;

static int fail_before(enum exchange_op op, uint64_t addr, uint64_t len)
{
	(void)addr;
	(void)len;
	return op == fail_op && rig.journal->step == fail_step ? fail_err : 0;
}

static void test_fold_calls_that_fail_leave_all_as_it_was(void)
{
	static const struct {
		const char *name;
		enum exchange_op op;
		uint32_t step;
		int err;
	} cases[] = {
		{ "register, busy", OP_REGISTER, STEP_FOLD_FREEZE, -EBUSY },
		{ "register, no memory", OP_REGISTER, STEP_FOLD_FREEZE, -ENOMEM },
		{ "write protection", OP_WP, STEP_FOLD_FREEZE, -EAGAIN },
		{ "page tables", OP_SCAN, STEP_FOLD_FREEZE, -EIO },
		{ "mremap", OP_MREMAP, STEP_FOLD_PLACE, -ENOMEM },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		unsigned maps;

		fold_rig((struct rig_how){ .wp = i % 2 }, 100, 1);
		rig_fill(&rig, 5, 5000);
		maps = (unsigned)mappings_count();
		fail_op = cases[i].op;
		fail_step = cases[i].step;
		fail_err = cases[i].err;
		exchange_hooks.before = fail_before;
		UNIT_CASE(cases[i].name, fold(false) == 0);
		exchange_hooks.before = NULL;
		UNIT_CASE(cases[i].name, result.folded == 0 && result.kept == 100 && result.err == cases[i].err);
		UNIT_CASE(cases[i].name, mappings_count() == maps || UNIT_SANITIZED); /* whose runtime maps, too */
		rig_fill(&rig, 6, 6000); /* nobody waits */
		RIG_CHECK(&rig);
		UNIT_CASE(cases[i].name, fold(false) == 0 && result.folded == 100);
		RIG_CHECK(&rig);
		fold_free();
	}
}

/* As the kernel fails near the limit of mappings: the destination is gone. */
static int mremap_unmaps(enum exchange_op op, uint64_t addr, uint64_t len)
{
	if (op != OP_MREMAP)
		return 0;
	munmap((void *)(uintptr_t)addr, len);
	return -ENOMEM;
}

static void test_fold_move_that_unmaps_is_filled(void)
{
	fold_rig((struct rig_how){ 0 }, 100, 1);
	exchange_hooks.before = mremap_unmaps;
	CU_ASSERT_EQUAL(fold(false), 0);
	exchange_hooks.before = NULL;
	CU_ASSERT_EQUAL(result.folded, 100);
	RIG_CHECK(&rig);
	fold_free();
}

/* R2: what cannot be copied stays in staging, its readers wait, and nothing shows zeroes. */
static void test_fold_copy_that_fails_blocks_until_resumed(void)
{
	struct toucher t;

	fold_rig((struct rig_how){ 0 }, 100, 1);
	fail_op = OP_COPY;
	fail_step = STEP_FOLD_FILL;
	fail_err = -ENOMEM;
	exchange_hooks.before = fail_before;
	CU_ASSERT_EQUAL(fold(false), -ENOMEM);
	toucher_start(&t, rig_page(&rig, 50), false, 0);
	poll(NULL, 0, 20);
	CU_ASSERT_EQUAL(t.done, 0);
	CU_ASSERT_EQUAL(rig.journal->stuck, 100);
	CU_ASSERT_EQUAL(fold(false), -ENOMEM);
	exchange_hooks.before = NULL;
	CU_ASSERT_EQUAL(exchange_resume(rig.x), 0);
	pthread_join(t.thread, NULL);
	CU_ASSERT_EQUAL(t.got, *rig_page(&rig, 50));
	RIG_CHECK(&rig);
	CU_ASSERT_EQUAL(fold(false), 0);
	RIG_CHECK(&rig);
	fold_free();
}

/* ---- R5: the executor dies ---- */

static uint32_t death_step;
static struct toucher victims[4];

static void die(uint32_t step)
{
	const unsigned pages[] = { 10, 99, 250, 700 };

	if (step != death_step)
		return;
	for (size_t i = 0; i < ARRAY_SIZE(victims); i++)
		toucher_start(&victims[i], rig_page(&rig, pages[i]), i % 2, (uint8_t)(100 + i));
	poll(NULL, 0, 2);
	pthread_exit(NULL);
}

static void *fold_and_die(void *arg)
{
	fold(false);
	return arg;
}

static void death_rig(uint32_t step, bool wp)
{
	pthread_t t;

	fold_rig((struct rig_how){ .wp = wp }, 300, 1);
	rig_fill(&rig, 10, 5000);
	rig_fill(&rig, 20, 5001);
	death_step = step;
	exchange_hooks.step = die;
	unit_must(pthread_create(&t, NULL, fold_and_die, NULL) == 0, "pthread_create");
	pthread_join(t, NULL);
	exchange_hooks.step = NULL;
	CU_ASSERT_EQUAL(rig.journal->step, step);
}

static void victims_join(void)
{
	for (size_t i = 0; i < ARRAY_SIZE(victims); i++) {
		pthread_join(victims[i].thread, NULL);
		CU_ASSERT_EQUAL(*victims[i].at, victims[i].got);
		if (victims[i].write) { /* what they wrote is there; back to what the model says */
			char page[PAGE_BYTES];
			size_t p = (size_t)(victims[i].at - rig.ram) / PAGE_BYTES;

			unit_page_fill(page, rig.model[p]);
			*victims[i].at = (uint8_t)page[0];
		}
	}
}

static void death_check(void)
{
	RIG_CHECK(&rig);
	CU_ASSERT_EQUAL(fold(false), 0);
	CU_ASSERT_EQUAL(result.kept, 0);
	CU_ASSERT_EQUAL(from_store(), 0);
	RIG_CHECK(&rig);
	fold_free();
}

static const uint32_t deaths[] = { STEP_FOLD_FREEZE, STEP_FOLD_PLACE, STEP_FOLD_FILL, STEP_UNREGISTER, STEP_WAKE, STEP_DROP };

static void test_fold_executor_dies_next_locker_repairs(void)
{
	for (size_t i = 0; i < 2 * ARRAY_SIZE(deaths); i++) {
		death_rig(deaths[i / 2], i % 2);
		CU_ASSERT_EQUAL(exchange_lock(rig.x), 0);
		exchange_unlock(rig.x);
		victims_join();
		death_check();
	}
}

static void test_fold_executor_dies_daemon_repairs(void)
{
	for (size_t i = 0; i < 2 * ARRAY_SIZE(deaths); i++) {
		int go[2], status = -1;
		pid_t vmm = getpid(), daemon_pid;

		death_rig(deaths[i / 2], i % 2);
		unit_must(pipe(go) == 0, "pipe");
		daemon_pid = fork();
		if (daemon_pid == 0) {
			int dup = freezer_fd(freezer);
			char c;

			munmap(rig.ram, RIG_WINDOWS * WINDOW_BYTES);
			_exit(read(go[0], &c, 1) == 1 && exchange_repair(rig.journal, vmm, rig.uffd, dup) == 0 &&
			      exchange_repair(rig.journal, vmm, rig.uffd, dup) == 0 ? 0 : 1);
		}
		unit_must(write(go[1], "g", 1) == 1 && waitpid(daemon_pid, &status, 0) > 0, "daemon");
		CU_ASSERT_EQUAL(status, 0);
		CU_ASSERT_EQUAL(rig.journal->step, STEP_REPAIRED);
		victims_join();
		CU_ASSERT_EQUAL(rig_wrong(&rig), 0); /* before staging is emptied */
		CU_ASSERT_EQUAL(exchange_resume(rig.x), 0);
		close(go[0]);
		close(go[1]);
		death_check();
	}
}

static void test_fold_repair_hostile_journal_refused(void)
{
	struct exchange_journal j = { .version = EXCHANGE_JOURNAL_VERSION, .pages = 1, .window = 2u << 20,
				      .staging = 4u << 20, .tid = 1 };

	for (j.step = STEP_FOLD_FREEZE; j.step <= STEP_FOLD_FILL; j.step++) {
		j.freezer = 0;
		CU_ASSERT_EQUAL(exchange_repair(&j, 0, -1, -1), -EBADMSG);
		j.freezer = 1;
		CU_ASSERT_TRUE(exchange_repair(&j, 0, -1, -1) < 0);
		j.pages = 513;
		CU_ASSERT_EQUAL(exchange_repair(&j, 0, -1, -1), -EBADMSG);
		j.pages = 1;
	}
}

static void test_freezer_probe_tells(void)
{
	const char *why = "";
	int fd = uffd_open(); /* writers do not wait with this one */

	fold_rig((struct rig_how){ 0 }, 10, 1);
	CU_ASSERT_EQUAL(freezer_probe(freezer, &why), 0);
	fold_free();
	unit_must(fd >= 0 && freezer_new(fd, &freezer) == 0, "freezer");
	CU_ASSERT_TRUE(freezer_probe(freezer, &why) < 0);
	CU_ASSERT_TRUE(strlen(why) > 0);
	freezer = freezer_free(freezer);
	CU_ASSERT_EQUAL(freezer_new(-1, &freezer), 0); /* nobody reads from it */
	freezer = freezer_free(freezer);
}

int main(void)
{
	static CU_TestInfo tests[] = {
		{ "fold", test_fold_pages_and_mappings_as_before },
		{ "refused", test_fold_nothing_to_do_or_not_allowed },
		{ "R6_discard", test_fold_discard_meanwhile_gives_zeroes },
		{ "R6_fork", test_fold_child_of_a_fork_does_not },
		{ "racing", test_fold_racing_writers_lose_nothing },
		{ "direct", test_fold_with_direct_io_open_copies_stay },
		{ "direct_late", test_fold_direct_io_opened_late_copies_stay },
		{ "R4_failures", test_fold_calls_that_fail_leave_all_as_it_was },
		{ "R4_hole", test_fold_move_that_unmaps_is_filled },
		{ "R2_copy", test_fold_copy_that_fails_blocks_until_resumed },
		{ "R5_death_thread", test_fold_executor_dies_next_locker_repairs },
		{ "R5_death_daemon", test_fold_executor_dies_daemon_repairs },
		{ "R5_hostile", test_fold_repair_hostile_journal_refused },
		{ "probe", test_freezer_probe_tells },
		CU_TEST_INFO_NULL,
	};
	const char *why = "a userfaultfd cannot be opened";
	int fd = uffd_open_freezer();

	if (fd < 0 || freezer_new(fd, &freezer) < 0 || freezer_probe(freezer, &why) < 0) {
		printf("skip: exchange_fold: %s\n", why);
		return 77;
	}
	freezer = freezer_free(freezer);
	return unit_main("exchange_fold", tests);
}
