/* balloon/port_qmp.h: what VMMs say of balloons, true, false and not at all. */
#include "tests/unit/balloon_host.h"

#include "balloon/port_qmp.h"

static struct port_qmp *port;

static void setup(void)
{
	host_setup();
	balloon_say_good();
	clock_ahead_ns = 0;
	port = NULL;
}

static void teardown(void)
{
	vmm_registry_free(registry); /* the connections first */
	registry = NULL;
	port_qmp_free(port);
	host_teardown();
}

/* A port to a VM that is reached, as the module has it. */
static struct vm *begin(void)
{
	struct vm *vm = balloon_vm_start();

	CU_ASSERT_EQUAL(port_qmp_new(vm, &port), 0);
	CU_ASSERT_EQUAL(port_qmp_told(port)->device, BALLOON_DEVICE_UNKNOWN);
	port_qmp_connected(port);
	balloon_settle(vm);
	balloon_settle(vm); /* the second shelf is asked for by the first one's answer */
	return vm;
}

static const struct balloon_told *ask(struct vm *vm)
{
	port_qmp_ask(port);
	balloon_settle(vm);
	return port_qmp_told(port);
}

/* ---- finding it ---- */

static void test_port_device_by_id(void)
{
	struct vm *vm = begin();
	const struct balloon_told *told = port_qmp_told(port);

	balloon_settle(vm);
	CU_ASSERT_EQUAL(told->device, BALLOON_DEVICE_PRESENT);
	CU_ASSERT_STRING_EQUAL(told->why, "");
	CU_ASSERT_EQUAL(heard.searches, 1);
	CU_ASSERT(told->options_known && told->reporting && told->deflate_on_oom);
	CU_ASSERT_EQUAL(told->period_s, 2);
	CU_ASSERT_EQUAL(told->actual_bytes, 0);
	ask(vm);
	CU_ASSERT_STRING_EQUAL(heard.path, "/machine/peripheral/balloon7");
	CU_ASSERT_EQUAL(told->max_bytes, GUEST_MIB * MIB);
	CU_ASSERT_EQUAL(told->actual_bytes, GUEST_MIB * MIB);
	CU_ASSERT_EQUAL(told->total_bytes, 503316480);
	CU_ASSERT_EQUAL(told->free_bytes, 209715200);
	CU_ASSERT_EQUAL(told->available_bytes, 314572800);
	CU_ASSERT_EQUAL(told->cache_bytes, 104857600);
	CU_ASSERT_EQUAL(told->swap_in_bytes, 1);
	CU_ASSERT_EQUAL(told->swap_out_bytes, 2);
	CU_ASSERT_EQUAL(told->major_faults, 3);
	CU_ASSERT_EQUAL(told->oom_kills, BALLOON_UNTOLD);
	CU_ASSERT(told->last_update_s > 0 && told->stats_told_ns > 0 && told->told_ns > 0);
}

static void test_port_device_anonymous(void)
{
	struct vm *vm;

	told_by_vmm.peripheral = "[]";
	told_by_vmm.anonymous = "[{\"name\": \"device[0]\", \"type\": \"child<virtio-blk-pci>\"}, "
				"{\"name\": \"device[1]\", \"type\": \"child<virtio-balloon-pci-non-transitional>\"}]";
	vm = begin();
	ask(vm);
	CU_ASSERT_EQUAL(port_qmp_told(port)->device, BALLOON_DEVICE_PRESENT);
	CU_ASSERT_STRING_EQUAL(heard.path, "/machine/peripheral-anon/device[1]");
	CU_ASSERT_EQUAL(port_qmp_told(port)->actual_bytes, GUEST_MIB * MIB);
}

static void test_port_device_none_then_plugged(void)
{
	struct vm *vm;

	told_by_vmm.peripheral = "[{\"name\": \"virtio-balloon\", \"type\": \"child<virtio-net-pci>\"}]";
	vm = begin();
	CU_ASSERT_EQUAL(port_qmp_told(port)->device, BALLOON_DEVICE_ABSENT);
	CU_ASSERT_STRING_EQUAL(port_qmp_told(port)->why, "the VM has no balloon device");
	CU_ASSERT_EQUAL(heard.searches, 2);
	ask(vm);
	CU_ASSERT_EQUAL(heard.stats, 0);
	port_qmp_refresh(port, 1);
	balloon_settle(vm);
	CU_ASSERT_EQUAL(heard.periods, 0);
	/* Plugged: noticed once a minute has passed. */
	balloon_say_good();
	balloon_say();
	ask(vm);
	CU_ASSERT_EQUAL(port_qmp_told(port)->device, BALLOON_DEVICE_ABSENT);
	clock_ahead_ns = 61 * NSEC_PER_SEC;
	ask(vm);
	balloon_settle(vm);
	CU_ASSERT_EQUAL(port_qmp_told(port)->device, BALLOON_DEVICE_PRESENT);
	CU_ASSERT_STRING_EQUAL(port_qmp_told(port)->why, "");
	CU_ASSERT_EQUAL(ask(vm)->actual_bytes, GUEST_MIB * MIB);
}

/* What is unplugged is not told of any more; and may come back. */
static void test_port_device_unplugged(void)
{
	struct vm *vm = begin();

	CU_ASSERT_EQUAL(ask(vm)->actual_bytes, GUEST_MIB * MIB);
	told_by_vmm.peripheral = "[]";
	told_by_vmm.balloon = told_by_vmm.stats = NULL;
	balloon_say();
	ask(vm);
	CU_ASSERT_EQUAL(port_qmp_told(port)->device, BALLOON_DEVICE_ABSENT);
	CU_ASSERT_EQUAL(port_qmp_told(port)->actual_bytes, 0);
	CU_ASSERT_PTR_NOT_NULL(strstr(port_qmp_told(port)->why, "no such thing"));
	balloon_say_good();
	balloon_say();
	clock_ahead_ns = 61 * NSEC_PER_SEC;
	ask(vm);
	balloon_settle(vm);
	CU_ASSERT_EQUAL(ask(vm)->actual_bytes, GUEST_MIB * MIB);
}

static void test_port_device_lists_of_garbage(void)
{
	static const char *const lists[] = {
		"null", "{}", "7", "[null]", "[[]]", "[{}]", "[{\"name\": 1, \"type\": \"child<virtio-balloon-pci>\"}]",
		"[{\"name\": \"b\"}]", "[{\"type\": \"child<virtio-balloon-pci>\"}]", "[{\"name\": \"b\", \"type\": [1]}]",
		"[{\"name\": \"b\", \"type\": \"virtio-balloon-pci\"}]", NULL,
	};

	for (size_t i = 0; i < ARRAY_SIZE(lists); i++) {
		teardown();
		setup();
		told_by_vmm.peripheral = told_by_vmm.anonymous = lists[i];
		begin();
		UNIT_CASE(lists[i] ? lists[i] : "error", port_qmp_told(port)->device == BALLOON_DEVICE_ABSENT);
	}
}

static void test_port_device_name_too_long(void)
{
	static char list[1024];
	struct vm *vm;

	snprintf(list, sizeof(list), "[{\"name\": \"%0300d\", \"type\": \"child<virtio-balloon-pci>\"}]", 1);
	told_by_vmm.peripheral = list;
	vm = begin();
	ask(vm);
	CU_ASSERT_EQUAL(port_qmp_told(port)->device, BALLOON_DEVICE_ABSENT);
	CU_ASSERT(*port_qmp_told(port)->why);
	CU_ASSERT_EQUAL(heard.stats, 0);
}

/* ---- what is told ---- */

static void test_port_numbers(void)
{
	static const struct {
		const char *text;
		uint64_t want;
	} table[] = {
		{ "0", 0 },
		{ "1", 1 },
		{ "503316480", 503316480 },
		{ "18446744073709551615", BALLOON_UNTOLD }, /* what QEMU says of what the guest did not */
		{ "-1", BALLOON_UNTOLD },
		{ "9223372036854775808", BALLOON_UNTOLD },
		{ "1e300", BALLOON_UNTOLD },
		{ "123456789012345678901234567890", BALLOON_UNTOLD },
		{ "4096.0", 4096 },
		{ "\"4096\"", BALLOON_UNTOLD },
		{ "null", BALLOON_UNTOLD },
		{ "[1]", BALLOON_UNTOLD },
		{ "true", BALLOON_UNTOLD },
	};
	struct vm *vm = begin();

	for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
		stats_say(1700000000, table[i].text, "7", table[i].text);
		UNIT_CASE(table[i].text, ask(vm)->total_bytes == table[i].want);
		UNIT_CASE(table[i].text, port_qmp_told(port)->available_bytes == table[i].want);
		UNIT_CASE(table[i].text, port_qmp_told(port)->free_bytes == 7);
		UNIT_CASE(table[i].text, vm->state == VM_READY);
	}
}

static void test_port_sizes(void)
{
	static const struct {
		const char *summary, *balloon;
		uint64_t max_bytes, actual_bytes;
	} table[] = {
		{ "{\"base-memory\": 1048576, \"plugged-memory\": 2097152}", "{\"actual\": 3145728}", 3 * MIB, 3 * MIB },
		{ "{\"base-memory\": 1048576}", "{\"actual\": 0}", MIB, 0 },
		{ "{\"base-memory\": 1048576, \"plugged-memory\": -1}", "{\"actual\": 4503599627370496}", MIB,
		  UINT64_C(1) << 52 },
		/* Not believed: what was told before stays */
		{ "{\"base-memory\": 18446744073709551615}", "{\"actual\": 18446744073709551615}", MIB, UINT64_C(1) << 52 },
		{ "{\"base-memory\": 4503599627370497}", "{\"actual\": 4503599627370497}", MIB, UINT64_C(1) << 52 },
		{ "[]", "[]", MIB, UINT64_C(1) << 52 },
		{ "null", "null", MIB, UINT64_C(1) << 52 },
		{ "{}", "{\"actual\": {}}", MIB, UINT64_C(1) << 52 },
		{ "\"x\"", "\"x\"", MIB, UINT64_C(1) << 52 },
	};
	struct vm *vm = begin();

	for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
		told_by_vmm.summary = table[i].summary;
		told_by_vmm.balloon = table[i].balloon;
		balloon_say();
		UNIT_CASE(table[i].summary, ask(vm)->max_bytes == table[i].max_bytes);
		UNIT_CASE(table[i].balloon, port_qmp_told(port)->actual_bytes == table[i].actual_bytes);
	}
}

static void test_port_statistics_of_garbage(void)
{
	static const char *const shapes[] = {
		"null", "7", "[]", "{}", "\"x\"", "{\"stats\": null, \"last-update\": 5}",
		"{\"stats\": [1, 2], \"last-update\": 5}", "{\"stats\": \"x\", \"last-update\": \"y\"}",
		"{\"stats\": {\"stat-total-memory\": {}}, \"last-update\": 18446744073709551615}",
		"{\"last-update\": -9223372036854775808}", NULL,
	};
	struct vm *vm = begin();

	for (size_t i = 0; i < ARRAY_SIZE(shapes); i++) {
		const char *what = shapes[i] ? shapes[i] : "error";

		ask(vm);
		told_by_vmm.stats = shapes[i];
		balloon_say();
		ask(vm);
		UNIT_CASE(what, !shapes[i] || port_qmp_told(port)->total_bytes == BALLOON_UNTOLD);
		UNIT_CASE(what, vm->state == VM_READY);
		UNIT_CASE(what, ask(vm)->actual_bytes == GUEST_MIB * MIB); /* the rest goes on */
		told_by_vmm.stats = stats_text;
		balloon_say();
		UNIT_CASE(what, ask(vm)->total_bytes == 503316480);
	}
}

static void test_port_options_of_garbage(void)
{
	static const struct {
		const char *text;
		bool known, on;
		uint64_t period_s;
	} table[] = {
		{ "true", true, true, 0 }, { "false", true, false, 0 }, { NULL, false, false, 0 }, { "7", true, false, 7 },
		{ "-1", true, false, 0 },  { "null", true, false, 0 },	{ "\"x\"", true, false, 0 },
	};

	for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
		const struct balloon_told *told;
		struct vm *vm;

		teardown();
		setup();
		told_by_vmm.period = told_by_vmm.reporting = told_by_vmm.deflate = table[i].text;
		vm = begin();
		balloon_settle(vm);
		told = port_qmp_told(port);
		CU_ASSERT_EQUAL(told->options_known, table[i].known);
		CU_ASSERT_EQUAL(told->reporting, table[i].on);
		CU_ASSERT_EQUAL(told->deflate_on_oom, table[i].on);
		CU_ASSERT_EQUAL(told->period_s, table[i].period_s);
	}
}

/* ---- asking and setting ---- */

/* One question at a time: a VMM that is slow is not asked more and more. */
static void test_port_asks_once(void)
{
	struct vm *vm = begin();

	for (int i = 0; i < 50; i++)
		port_qmp_ask(port);
	balloon_settle(vm);
	CU_ASSERT_EQUAL(heard.stats, 1);
	ask(vm);
	CU_ASSERT_EQUAL(heard.stats, 2);
}

static void test_port_refresh_sets_anew(void)
{
	struct vm *vm = begin();

	port_qmp_refresh(port, 3);
	balloon_settle(vm);
	CU_ASSERT_EQUAL(heard.periods, 2);
	CU_ASSERT_EQUAL(heard.period_s, 3);
	CU_ASSERT_EQUAL(port_qmp_told(port)->period_s, 3);
}

static void test_port_set(void)
{
	struct vm *vm = begin();
	struct unit_stderr capture;
	char *said;

	CU_ASSERT_EQUAL(port_qmp_set(port, 300 * MIB), 0);
	balloon_settle(vm);
	CU_ASSERT_EQUAL(heard.balloons, 1);
	CU_ASSERT_EQUAL(heard.balloon_bytes, 300 * MIB);

	told_by_vmm.set = NULL;
	balloon_say();
	log_set_level(LOG_LEVEL_WARNING);
	unit_stderr_begin(&capture);
	CU_ASSERT_EQUAL(port_qmp_set(port, 200 * MIB), 0);
	balloon_settle(vm);
	said = unit_stderr_end(&capture);
	CU_ASSERT_PTR_NOT_NULL(strstr(said, "cannot be set, ignoring: no such thing"));
	CU_ASSERT_EQUAL(vm->state, VM_READY);
	free(said);
}

/* ---- no connection ---- */

static void test_port_not_reached(void)
{
	struct vm *vm = begin();

	ask(vm);
	fake.greeting = NULL; /* nor does it come back at once */
	fake_hang_up(&fake);
	CU_ASSERT_TRUE(wait_state(vm, VM_UNREACHABLE));
	CU_ASSERT_EQUAL(port_qmp_set(port, MIB), -ENOTCONN);
	heard.stats = heard.periods = 0;
	port_qmp_ask(port);
	port_qmp_refresh(port, 1);
	CU_ASSERT_EQUAL(heard.stats + heard.periods, 0);
	/* What was told last is kept, with its time. */
	CU_ASSERT_EQUAL(port_qmp_told(port)->actual_bytes, GUEST_MIB * MIB);
}

/* It goes while questions are open; the next connection starts all over. */
static void test_port_reconnects(void)
{
	struct vm *vm = begin();

	told_by_vmm.stats = NO_ANSWER;
	balloon_say();
	port_qmp_ask(port);
	fake_run_until(loop, &heard.stats, 1);
	fake_hang_up(&fake);
	CU_ASSERT_TRUE(wait_state(vm, VM_UNREACHABLE));
	balloon_say_good();
	told_by_vmm.peripheral = "[{\"name\": \"other\", \"type\": \"child<virtio-balloon-ccw>\"}]";
	balloon_say();
	CU_ASSERT_TRUE(wait_state(vm, VM_READY));
	port_qmp_connected(port);
	balloon_settle(vm);
	CU_ASSERT_EQUAL(ask(vm)->total_bytes, 503316480);
	CU_ASSERT_STRING_EQUAL(heard.path, "/machine/peripheral/other");
}

/* A VMM that hangs: in the search, with statistics, with a command. It is dropped, and the port survives. */
static void test_port_hangs(void)
{
	for (int i = 0; i < 3; i++) {
		struct vm *vm;

		teardown();
		setup();
		vm = balloon_vm_start();
		CU_ASSERT_EQUAL(port_qmp_new(vm, &port), 0);
		if (i > 0) {
			port_qmp_connected(port);
			balloon_settle(vm);
		}
		/* The time-out is the connection's: one with a short one. */
		config.qmp_timeout_ms = 50;
		fake_hang_up(&fake);
		CU_ASSERT_TRUE(wait_state(vm, VM_UNREACHABLE));
		CU_ASSERT_TRUE(wait_state(vm, VM_READY));
		if (i > 0) {
			port_qmp_connected(port);
			balloon_settle(vm);
		}
		told_by_vmm.peripheral = told_by_vmm.stats = told_by_vmm.set = NO_ANSWER;
		balloon_say();
		if (i == 0)
			port_qmp_connected(port);
		else if (i == 1)
			port_qmp_ask(port);
		else
			CU_ASSERT_EQUAL(port_qmp_set(port, 300 * MIB), 0);
		CU_ASSERT_TRUE(wait_state(vm, VM_HUNG));
		CU_ASSERT_EQUAL(port_qmp_set(port, 300 * MIB), -ENOTCONN);
		balloon_say_good();
		balloon_say();
		config.qmp_timeout_ms = PATIENT_MS;
		CU_ASSERT_TRUE(wait_state(vm, VM_READY));
		port_qmp_connected(port);
		balloon_settle(vm);
		CU_ASSERT_EQUAL(ask(vm)->actual_bytes, GUEST_MIB * MIB);
	}
}

#define T(name, function) { name, function }

int main(void)
{
	static CU_TestInfo tests[] = {
		T("device by id", test_port_device_by_id),
		T("device without id", test_port_device_anonymous),
		T("no device, then plugged", test_port_device_none_then_plugged),
		T("unplugged", test_port_device_unplugged),
		T("lists of garbage", test_port_device_lists_of_garbage),
		T("a name that is too long", test_port_device_name_too_long),
		T("numbers", test_port_numbers),
		T("sizes", test_port_sizes),
		T("statistics of garbage", test_port_statistics_of_garbage),
		T("options of garbage", test_port_options_of_garbage),
		T("asks once", test_port_asks_once),
		T("refresh", test_port_refresh_sets_anew),
		T("set", test_port_set),
		T("not reached", test_port_not_reached),
		T("reconnects", test_port_reconnects),
		T("hangs", test_port_hangs),
		CU_TEST_INFO_NULL,
	};
	static CU_SuiteInfo suites[] = { { "balloon_qmp", NULL, NULL, setup, teardown, tests }, CU_SUITE_INFO_NULL };
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
