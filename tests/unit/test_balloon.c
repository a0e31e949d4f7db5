/* balloon/balloon.h: the module as a whole, from what a VMM says to what it is told; the VMM and the host are made up. */
#include "tests/unit/balloon_host.h"

#include "balloon/balloon.h"

#define TICKS_MAX 100

static struct balloon *balloon;
static struct vm *vm;
static struct host_snapshot snapshot;
static struct vm_snapshot vm_snapshot;

static void setup(void)
{
	host_setup();
	clock_ahead_ns = 0;
	balloon_say_good();
	vm = balloon_vm_start();
	configure("[daemon]\ntick = 100ms\n[host]\nmin_free = 100MiB\n[balloon]\nhold = 1s\nstall = 1s\n");
	CU_ASSERT_EQUAL(balloon_new(loop, &fs, &config, registry, &balloon), 0);
	balloon_vm_ready(balloon, vm);
	CU_ASSERT_FALSE(balloon_settled(balloon));
	balloon_settle(vm);
	balloon_settle(vm);
	CU_ASSERT_FALSE(balloon_settled(balloon)); /* found, and nothing told yet */
}

static void teardown(void)
{
	balloon = balloon_free(balloon);
	host_teardown();
}

/* A look at a host with so much available. */
static void look(uint64_t available_mib, uint64_t taken_ns, bool dry_run)
{
	vm_snapshot = (struct vm_snapshot){ .name = vm->name, .uuid = vm->uuid, .domain = "d", .pid = vm->pid,
					    .start_ticks = vm->start_ticks, .ram_bytes = vm->ram_bytes,
					    .running = vm->running, .balloon_allowed = true, .shares = 1000,
					    .rss_anon_bytes = GUEST_MIB * MIB };
	snapshot = (struct host_snapshot){ .taken_ns = taken_ns, .mem_total_bytes = 4096 * MIB,
					   .mem_available_bytes = available_mib * MIB, .vms = &vm_snapshot, .vm_count = 1 };
	CU_ASSERT_EQUAL(balloon_ops.sense(balloon, &snapshot), 0);
	CU_ASSERT_EQUAL(balloon_ops.decide(balloon, &snapshot), 0);
	CU_ASSERT_EQUAL(balloon_ops.apply(balloon, dry_run), 0);
}

static void tick(uint64_t available_mib, bool dry_run)
{
	uint64_t end;

	look(available_mib, clock_mono_ns(), dry_run);
	/* As the daemon does: the next one after a tick's time, with whatever came in between. */
	for (end = clock_mono_ns() + 100 * NSEC_PER_MSEC; clock_mono_ns() < end;)
		sd_event_run(loop, (end - clock_mono_ns()) / 1000 + 1);
}

static bool tick_until(const unsigned int *what, unsigned int want, uint64_t available_mib, bool dry_run)
{
	for (int i = 0; i < TICKS_MAX && *what < want; i++)
		tick(available_mib, dry_run);
	return *what >= want;
}

/* ---- what is asked ---- */

/* Also when a tick always comes before the guest can have answered. */
static void test_balloon_asks_with_short_ticks(void)
{
	uint64_t end_ns = clock_mono_ns() + FAKE_LIMIT_NS;

	for (uint64_t taken_ns = clock_mono_ns(); heard.stats == 0 && clock_mono_ns() < end_ns; taken_ns += NSEC_PER_SEC) {
		look(50, taken_ns, false);
		sd_event_run(loop, 1000);
	}
	CU_ASSERT_EQUAL(heard.stats, 1);
}

static void test_balloon_asks(void)
{
	CU_ASSERT_TRUE(tick_until(&heard.stats, 3, 50, false));
	CU_ASSERT_TRUE(balloon_settled(balloon));
	CU_ASSERT(heard.periods >= 2);
	CU_ASSERT_EQUAL(heard.period_s, 1);
	tick(50, false);
	CU_ASSERT_EQUAL(vm_snapshot.balloon.stats, GUEST_STATS_GOOD);
	CU_ASSERT_STRING_EQUAL(vm_snapshot.balloon.driver, "qmp");
	CU_ASSERT_EQUAL(vm_snapshot.balloon.actual_bytes, GUEST_MIB * MIB);
}

/* A host with room asks rarely, and moves nothing. */
static void test_balloon_calm(void)
{
	uint64_t begin_ns = clock_mono_ns();

	CU_ASSERT_TRUE(tick_until(&heard.stats, 1, 4000, false));
	CU_ASSERT(heard.periods >= 2);
	CU_ASSERT_EQUAL(heard.period_s, 10);
	for (int i = 0; i < 10; i++)
		tick(4000, false);
	CU_ASSERT(heard.stats <= 2 + (clock_mono_ns() - begin_ns) / (10 * NSEC_PER_SEC));
	CU_ASSERT_EQUAL(heard.balloons, 0);
}

/* ---- what is decided, said and done ---- */

static char *log_of(bool dry_run)
{
	struct unit_stderr capture;
	char *said;

	log_set_level(LOG_LEVEL_INFO);
	unit_stderr_begin(&capture);
	for (int i = 0; i < TICKS_MAX && vm_snapshot.balloon.stats != GUEST_STATS_GOOD; i++)
		tick(4000, dry_run);
	for (int i = 0; i < 3; i++)
		tick(80, dry_run);
	said = unit_stderr_end(&capture);
	log_set_level(LOG_LEVEL_ERROR);
	return said;
}

static void test_balloon_takes_what_is_idle(void)
{
	char *said = log_of(false);

	CU_ASSERT_PTR_NOT_NULL(strstr(said, "host state high->soft why=\"80 MiB free"));
	CU_ASSERT_PTR_NOT_NULL(strstr(said, "balloon vm=" UUID " 512->487 MiB why=\"idle memory\""));
	CU_ASSERT_EQUAL(heard.balloon_bytes, 487 * MIB);
	CU_ASSERT_EQUAL(heard.balloons, 1); /* not again before it is there */
	free(said);
}

static void test_balloon_dry_run_says_the_same(void)
{
	char *said;

	fs.dry_run = true;
	said = log_of(true);
	CU_ASSERT_PTR_NOT_NULL(strstr(said, "host state high->soft why=\"80 MiB free"));
	CU_ASSERT_PTR_NOT_NULL(strstr(said, "balloon vm=" UUID " 512->487 MiB why=\"idle memory\""));
	CU_ASSERT_EQUAL(heard.balloons, 0);
	CU_ASSERT_EQUAL(heard.periods, 0);
	free(said);
}

static void test_balloon_refusal_is_said(void)
{
	char *said;

	told_by_vmm.set = NULL;
	balloon_say();
	said = log_of(false);
	CU_ASSERT_PTR_NOT_NULL(strstr(said, "cannot be set, ignoring: no such thing"));
	free(said);
}

/* The VMM takes the command, and nothing happens: it is said once, and withdrawn, lest it is obeyed at an unfit time. */
static void test_balloon_stalls(void)
{
	struct unit_stderr capture;
	char *said;

	free(log_of(false));
	CU_ASSERT_EQUAL(heard.balloon_bytes, 487 * MIB);
	log_set_level(LOG_LEVEL_INFO);
	unit_stderr_begin(&capture);
	CU_ASSERT_TRUE(tick_until(&heard.balloons, 2, 80, false));
	for (int i = 0; i < 5; i++)
		tick(80, false);
	said = unit_stderr_end(&capture);
	log_set_level(LOG_LEVEL_ERROR);
	CU_ASSERT_PTR_NOT_NULL(strstr(said, "warning: balloon vm=" UUID " does not move, with 25 MiB to go: set aside"));
	CU_ASSERT_EQUAL(heard.balloon_bytes, 512 * MIB);
	CU_ASSERT_EQUAL(heard.balloons, 2);
	CU_ASSERT_EQUAL(balloon_vm_plan(vm)->block, BLOCK_STALLED);
	free(said);
}

/* ---- resets ---- */

static void vm_reset(void)
{
	uint64_t resets = vm->resets;

	fake_say(&fake, "{\"event\": \"RESET\", \"data\": {\"guest\": true}, \"timestamp\": {\"seconds\": 1, \"microseconds\": 2}}\r\n");
	while (vm->resets == resets)
		sd_event_run(loop, 100000);
}

/* All of its memory, but for what makes a driver speak that has nothing to do. */
static void test_balloon_reset(void)
{
	told_by_vmm.balloon = "{\"actual\": 314572800}";
	stats_say(time(NULL), "293601280", "109715200", "214572800");
	balloon_say();
	for (int i = 0; i < TICKS_MAX && vm_snapshot.balloon.actual_bytes != 300 * MIB; i++)
		tick(200, false);
	heard.balloons = 0;
	vm_reset();
	CU_ASSERT_TRUE(tick_until(&heard.balloons, 1, 200, false));
	CU_ASSERT_EQUAL(heard.balloon_bytes, 511 * MIB);
}

/* ---- VMs come and go ---- */

static void test_balloon_vm_unreached_then_gone(void)
{
	CU_ASSERT_TRUE(tick_until(&heard.stats, 1, 4000, false));
	fake.greeting = NULL;
	fake_hang_up(&fake);
	CU_ASSERT_TRUE(wait_state(vm, VM_UNREACHABLE));
	tick(50, false);
	CU_ASSERT_PTR_NULL(vm_snapshot.balloon.driver);
	CU_ASSERT_STRING_EQUAL(vm_snapshot.balloon.why, vm->why);
	CU_ASSERT(*vm->why);
	CU_ASSERT_EQUAL(balloon_vm_plan(vm)->block, BLOCK_NO_DRIVER);
	CU_ASSERT_EQUAL(heard.balloons, 0);
	balloon_vm_gone(balloon, vm);
	CU_ASSERT_PTR_NULL(vm->balloon);
	CU_ASSERT_PTR_NULL(balloon_vm_plan(vm));
	CU_ASSERT_PTR_NULL(balloon_vm_told(vm));
	CU_ASSERT_EQUAL(balloon_ops.apply(balloon, false), 0);
}

static void test_balloon_without_vms(void)
{
	struct host_snapshot s = { .taken_ns = clock_mono_ns(), .mem_total_bytes = 4096 * MIB, .mem_available_bytes = MIB };
	struct balloon_status status;
	struct admit_answer answer;

	CU_ASSERT_EQUAL(balloon_admit(balloon, &s, MIB, -1, &answer), -EAGAIN); /* no tick so far */
	balloon_status(balloon, &status);
	CU_ASSERT_PTR_NULL(status.ladder);
	balloon_vm_gone(balloon, vm);
	CU_ASSERT_EQUAL(balloon_ops.sense(balloon, &s), 0);
	CU_ASSERT_EQUAL(balloon_ops.decide(balloon, &s), 0);
	CU_ASSERT_EQUAL(balloon_ops.apply(balloon, false), 0);
	CU_ASSERT_EQUAL(balloon_admit(balloon, &s, MIB, -1, &answer), 0);
	CU_ASSERT_FALSE(answer.granted || answer.later);
	CU_ASSERT_EQUAL(balloon_admit(balloon, &s, MIB, 7, &answer), -ENOENT);
	balloon_status(balloon, &status);
	CU_ASSERT_EQUAL(status.ladder->state, HOST_LOW);
}

int main(void)
{
	static CU_TestInfo tests[] = {
		{ "asks", test_balloon_asks },
		{ "asks with short ticks", test_balloon_asks_with_short_ticks },
		{ "a host with room", test_balloon_calm },
		{ "takes what is idle", test_balloon_takes_what_is_idle },
		{ "a dry run says the same", test_balloon_dry_run_says_the_same },
		{ "a refusal is said", test_balloon_refusal_is_said },
		{ "a balloon stalls", test_balloon_stalls },
		{ "a guest is reset", test_balloon_reset },
		{ "a VM is not reached, and gone", test_balloon_vm_unreached_then_gone },
		{ "without VMs", test_balloon_without_vms },
		CU_TEST_INFO_NULL,
	};
	static CU_SuiteInfo suites[] = { { "balloon", NULL, NULL, setup, teardown, tests }, CU_SUITE_INFO_NULL };
	unsigned int failed, run;

	if (CU_initialize_registry() != CUE_SUCCESS || CU_register_suites(suites) != CUE_SUCCESS)
		return 1;
	CU_basic_set_mode(CU_BRM_NORMAL);
	CU_basic_run_tests();
	failed = CU_get_number_of_failures() + CU_get_number_of_suites_failed();
	run = CU_get_number_of_tests_run();
	CU_cleanup_registry();
	return failed > 0 || run == 0;
}
