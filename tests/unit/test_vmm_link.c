/* vmm/registry.h: what VMs tell over QMP, how they are lost and found again. */
#include "tests/unit/fake_host.h"

#include <errno.h>

static void test_handshake_nameless_vm_told(void)
{
	struct vm *vm = start_configured(ARGS(QEMU "-S"));

	CU_ASSERT_EQUAL(seen.added_state, VM_FOUND);
	CU_ASSERT_TRUE(vmm_registry_settling(registry));
	CU_ASSERT_EQUAL(strncmp(vm->name, "pid-", 4), 0);
	CU_ASSERT_TRUE(wait_state(vm, VM_READY));
	CU_ASSERT_FALSE(vmm_registry_settling(registry));
	CU_ASSERT_STRING_EQUAL(vm->name, "told");
	CU_ASSERT_STRING_EQUAL(vm->uuid, UUID);
	CU_ASSERT_STRING_EQUAL(vm->machine, "pc-q35-7.2");
	CU_ASSERT_EQUAL(vm->ram_bytes, UINT64_C(536870912));
	CU_ASSERT_TRUE(vm->running && !vm->migrating);
	CU_ASSERT_EQUAL(seen.ready, 1);
}

static void test_handshake_named_vm_keeps_name(void)
{
	struct vm *vm = start_configured(ARGS(QEMU "-name\0own\0-uuid\0" "00000000-0000-0000-0000-000000000001"));

	CU_ASSERT_TRUE(wait_state(vm, VM_READY));
	CU_ASSERT_STRING_EQUAL(vm->name, "own");
	CU_ASSERT_STRING_EQUAL(vm->uuid, "00000000-0000-0000-0000-000000000001");
}

static void test_handshake_refusals_and_lies_survived(void)
{
	static const struct fake_rule refuse[] = {
		{ .command = "qmp_capabilities", .value = "{}" },
		{ .raw = "{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"none\"}}" },
	};
	static const struct fake_rule lie[] = {
		{ .command = "query-name", .value = "[1]" },
		{ .command = "query-uuid", .value = "{\"UUID\": \"00000000-0000-0000-0000-000000000000\"}" },
		{ .command = "query-status", .value = "null" },
		{ .command = "query-memory-size-summary", .value = "{\"base-memory\": -1}" },
		{ .command = "qom-get", .value = "{}" },
		{ .value = "7" },
	};
	static const struct {
		const struct fake_rule *rules;
		size_t count;
	} cases[] = { { refuse, ARRAY_SIZE(refuse) }, { lie, ARRAY_SIZE(lie) } };

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct vm *vm;
		pid_t pid;

		fake.rules = cases[i].rules;
		fake.rule_count = cases[i].count;
		vm = start_configured(ARGS(QEMU "-M\0virt\0-m\0" "64"));
		pid = vm->pid;
		CU_ASSERT_TRUE(wait_state(vm, VM_READY));
		CU_ASSERT_EQUAL(strncmp(vm->name, "pid-", 4), 0);
		CU_ASSERT_EQUAL(vm->uuid[14], '8');
		CU_ASSERT_STRING_EQUAL(vm->machine, "virt");
		CU_ASSERT_EQUAL(vm->ram_bytes, UINT64_C(64) << 20);
		CU_ASSERT_TRUE(vm->running && !vm->migrating);
		kill_child(pid);
		CU_ASSERT_TRUE(fake_run_until(loop, &seen.gone, (unsigned int)i + 1));
	}
}

static void test_bad_peer_sets_state(void)
{
	static const struct {
		const char *greeting, *spout;
		struct fake_rule rule;
		uint64_t timeout_ms;
		enum vm_state state;
	} cases[] = {
		{ NULL, NULL, { 0 }, 50, VM_HUNG },
		{ "hello\n", NULL, { 0 }, PATIENT_MS, VM_GARBAGE },
		{ FAKE_GREETING, "{\"event\": \"E\"}", { .value = "{}" }, PATIENT_MS, VM_FLOOD },
		{ FAKE_GREETING, NULL, { .close = true }, PATIENT_MS, VM_UNREACHABLE },
	};

	configure("[vm *]\nqmp = %s\n", fake.path);
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct vm *vm;

		fake.greeting = cases[i].greeting;
		fake.spout = cases[i].spout;
		fake.rules = &cases[i].rule;
		fake.rule_count = 1;
		config.qmp_timeout_ms = cases[i].timeout_ms;
		put_vm(ARGS(QEMU));
		CU_ASSERT_EQUAL_FATAL(vmm_registry_discover(registry), 1);
		vm = vmm_registry_first(registry);
		CU_ASSERT_TRUE(wait_state(vm, cases[i].state));
		CU_ASSERT_TRUE(vm->why[0] != '\0');
		CU_ASSERT_FALSE(vmm_registry_settling(registry));
		kill_child(vm->pid);
		CU_ASSERT_TRUE(fake_run_until(loop, &seen.gone, (unsigned int)i + 1));
	}
}

static void test_connection_lost_comes_back(void)
{
	struct vm *vm = start_configured(ARGS(QEMU "-S"));

	CU_ASSERT_TRUE(wait_state(vm, VM_READY));
	fake_hang_up(&fake);
	CU_ASSERT_TRUE(wait_state(vm, VM_UNREACHABLE));
	CU_ASSERT_PTR_NULL(vm->qmp);
	CU_ASSERT_EQUAL(seen.changed, 1);
	CU_ASSERT_TRUE(wait_state(vm, VM_READY)); /* by its own timer */
	CU_ASSERT_EQUAL(seen.ready, 2);
	CU_ASSERT_EQUAL(fake.clients, 2);
}

static void test_reconnect_new_identity_ignored(void)
{
	static const struct fake_rule rules[] = {
		{ .command = "query-name", .value = "{\"name\": \"other\"}" },
		{ .command = "query-uuid", .value = "{\"UUID\": \"11111111-1111-1111-1111-111111111111\"}" },
		{ .value = "{}" },
	};
	struct vm *vm = start_configured(ARGS(QEMU "-S"));

	CU_ASSERT_TRUE(wait_state(vm, VM_READY));
	fake.rules = rules;
	fake.rule_count = ARRAY_SIZE(rules);
	fake_hang_up(&fake);
	CU_ASSERT_TRUE(wait_state(vm, VM_UNREACHABLE));
	CU_ASSERT_TRUE(wait_state(vm, VM_READY));
	CU_ASSERT_STRING_EQUAL(vm->name, "told");
	CU_ASSERT_STRING_EQUAL(vm->uuid, UUID);
}

static void test_events_set_flags(void)
{
	static const struct {
		const char *event;
		bool running, migrating;
	} steps[] = {
		{ "{\"event\": \"STOP\"}", false, false },
		{ "{\"event\": \"RESUME\"}", true, false },
		{ "{\"event\": \"MIGRATION\", \"data\": {\"status\": \"setup\"}}", true, true },
		{ "{\"event\": \"STOP\"}", false, true },
		{ "{\"event\": \"MIGRATION\", \"data\": {\"status\": \"failed\"}}", false, false },
		{ "{\"event\": \"WAKEUP\"}", true, false },
		{ "{\"event\": \"MIGRATION\", \"data\": {\"status\": \"a-word-of-tomorrow\"}}", true, true },
		{ "{\"event\": \"MIGRATION\"}", true, false },
		{ "{\"event\": \"RESET\"}{\"event\": \"X\", \"data\": {}}{\"event\": \"SHUTDOWN\"}", false, false },
	};
	struct vm *vm = start_configured(ARGS(QEMU "-S"));

	CU_ASSERT_TRUE(wait_state(vm, VM_READY));
	for (size_t i = 0; i < ARRAY_SIZE(steps); i++) {
		fake_say(&fake, steps[i].event);
		CU_ASSERT_TRUE(fake_run_until(loop, &seen.changed, (unsigned int)i + 1));
		CU_ASSERT_EQUAL(vm->running, steps[i].running);
		CU_ASSERT_EQUAL(vm->migrating, steps[i].migrating);
	}
}

static void test_discover_asks_ready_vms(void)
{
	static const struct fake_rule incoming[] = {
		{ .command = "query-status", .value = "{\"status\": \"inmigrate\", \"running\": false}" },
		{ .value = "{}" },
	};
	static const struct fake_rule outgoing[] = {
		{ .command = "query-status", .value = "{\"status\": \"running\", \"running\": true}" },
		{ .command = "query-migrate", .value = "{\"status\": \"active\"}" },
	};
	struct vm *vm = start_configured(ARGS(QEMU "-S"));

	CU_ASSERT_TRUE(wait_state(vm, VM_READY));
	fake.rules = incoming;
	CU_ASSERT_EQUAL(vmm_registry_discover(registry), 1);
	CU_ASSERT_EQUAL(vmm_registry_discover(registry), 1); /* asks only once at a time */
	CU_ASSERT_TRUE(fake_run_until(loop, &seen.changed, 1));
	CU_ASSERT_TRUE(!vm->running && vm->migrating);
	CU_ASSERT_TRUE(fake_run_until(loop, &fake.commands, 9)); /* 7 for the handshake, 2 for the question */
	fake_say(&fake, "{\"event\": \"MIGRATION\", \"data\": {\"status\": \"completed\"}}");
	CU_ASSERT_TRUE(fake_run_until(loop, &seen.changed, 2));
	CU_ASSERT_FALSE(vm->migrating);
	fake.rules = outgoing;
	/* A question is left out while the last is unanswered, so ask until it was heard. */
	for (uint64_t end = clock_mono_ns() + FAKE_LIMIT_NS; !vm->running || !vm->migrating;) {
		if (clock_mono_ns() > end)
			break;
		vmm_registry_discover(registry);
		sd_event_run(loop, 100000);
	}
	CU_ASSERT_TRUE(vm->running && vm->migrating);
}

static void test_relative_path_resolved_foreign_socket_refused(void)
{
	struct vm *vm;

	put_vm(ARGS(QEMU "-qmp\0unix:s,server=on"));
	CU_ASSERT_EQUAL_FATAL(vmm_registry_discover(registry), 1);
	vm = vmm_registry_first(registry);
	CU_ASSERT_STRING_EQUAL(vm->qmp_path, fake.path);
	/* The fake is served by this program, not by the process that names it. */
	CU_ASSERT_TRUE(wait_state(vm, VM_UNREACHABLE));
	CU_ASSERT_PTR_NOT_NULL(strstr(vm->why, "belongs to pid"));
	CU_ASSERT_EQUAL(fake.commands, 0);
}

static void test_reconfigure_path_followed(void)
{
	struct vm *vm;

	put_vm(ARGS(QEMU "-name\0a"));
	CU_ASSERT_EQUAL_FATAL(vmm_registry_discover(registry), 1);
	vm = vmm_registry_first(registry);
	CU_ASSERT_EQUAL(vm->state, VM_NO_QMP);

	configure("[vm a]\nqmp = %s/absent\n", dir);
	vmm_registry_reconfigure(registry);
	CU_ASSERT_EQUAL(vm->state, VM_FOUND);
	CU_ASSERT_TRUE(wait_state(vm, VM_UNREACHABLE));
	configure("[vm a]\nqmp = %s\ndomain = d\n", fake.path);
	vmm_registry_reconfigure(registry);
	CU_ASSERT_STRING_EQUAL(vm->settings.domain, "d");
	CU_ASSERT_TRUE(wait_state(vm, VM_READY));
	vmm_registry_reconfigure(registry); /* nothing new: the connection stays */
	CU_ASSERT_EQUAL(vm->state, VM_READY);
	CU_ASSERT_EQUAL(fake.clients, 1);
	configure("[vm b]\nqmp = %s\n", fake.path);
	vmm_registry_reconfigure(registry);
	CU_ASSERT_EQUAL(vm->state, VM_NO_QMP);
	CU_ASSERT_PTR_NULL(vm->qmp);
}

int main(void)
{
	static CU_TestInfo tests[] = {
		{ "nameless", test_handshake_nameless_vm_told },
		{ "named", test_handshake_named_vm_keeps_name },
		{ "lies", test_handshake_refusals_and_lies_survived },
		{ "bad_peer", test_bad_peer_sets_state },
		{ "comes_back", test_connection_lost_comes_back },
		{ "identity", test_reconnect_new_identity_ignored },
		{ "events", test_events_set_flags },
		{ "asks", test_discover_asks_ready_vms },
		{ "foreign_socket", test_relative_path_resolved_foreign_socket_refused },
		{ "reconfigure", test_reconfigure_path_followed },
		CU_TEST_INFO_NULL,
	};
	static CU_SuiteInfo suites[] = { { "link", NULL, NULL, host_setup, host_teardown, tests }, CU_SUITE_INFO_NULL };
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
