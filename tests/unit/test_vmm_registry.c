/* vmm/registry.h: which processes are VMs, and when they end; and all of it with a real QEMU. */
#include "tests/unit/fake_host.h"

#include <errno.h>

static void test_discover_only_qemu_found(void)
{
	static const char good[] = QEMU "-name\0good,process=x\0-m\0" "1G";
	pid_t zombie = spawn_idle(), by_exe, by_argv;
	siginfo_t info;
	struct vm *vm;

	put_process(spawn_idle(), NULL, ARGS(QEMU "-name\0kernel-thread"), 'S', 1);
	put_process(spawn_idle(), "/bin/sh", ARGS("sh\0-c\0qemu-system-x86_64"), 'S', 1);
	put_process(spawn_idle(), "/usr/bin/qemu-system-x86_64", "", 0, 'S', 1);
	put_process(spawn_idle(), "/usr/bin/qemu-system-x86_64", ARGS(QEMU), 'Z', 1);
	put_process(INT_MAX, "/usr/bin/qemu-system-x86_64", ARGS(QEMU "-name\0no-such-process"), 'S', 1);
	put("x", 1, "%s/proc/12x", dir);
	put("x", 1, "%s/proc/99999999999999999999", dir);
	put_process(zombie, "/usr/bin/qemu-system-x86_64", ARGS(QEMU), 'S', 1);
	kill_child(zombie);
	fake_must(waitid(P_PID, (id_t)zombie, &info, WEXITED | WNOWAIT) == 0, "waitid");
	by_exe = spawn_idle();
	put_process(by_exe, "/x/qemu-kvm (deleted)", ARGS("other\0-name\0good"), 'S', 1);
	by_argv = spawn_idle();
	put_process(by_argv, "/bin/wrapper", ARGS(good), 'S', 1);

	CU_ASSERT_EQUAL(vmm_registry_discover(registry), 2);
	CU_ASSERT_EQUAL(vmm_registry_discover(registry), 2);
	CU_ASSERT_EQUAL(seen.added, 2);
	CU_ASSERT_EQUAL(vmm_registry_find(registry, "good", &vm), -ENOTUNIQ);
	for (vm = vmm_registry_first(registry); vm; vm = vm->next) {
		char uuid[VM_UUID_MAX];

		snprintf(uuid, sizeof(uuid), "%08x-0000-8000-8000-000000001234", (unsigned int)vm->pid);
		CU_ASSERT_TRUE(vm->pid == by_exe || vm->pid == by_argv);
		CU_ASSERT_STRING_EQUAL(vm->name, "good");
		CU_ASSERT_STRING_EQUAL(vm->uuid, uuid);
		CU_ASSERT_EQUAL(vm->start_ticks, 4660);
		CU_ASSERT_EQUAL(vm->uid, 1234);
		CU_ASSERT_EQUAL(vm->ram_bytes, vm->pid == by_argv ? UINT64_C(1) << 30 : UINT64_C(128) << 20);
		CU_ASSERT_EQUAL(vm->state, VM_NO_QMP);
	}
}

static void test_discover_no_proc_fails(void)
{
	char path[PATH_MAX];

	snprintf(path, sizeof(path), "%s/proc", dir);
	fake_must(rmdir(path) == 0, path);
	CU_ASSERT_EQUAL(vmm_registry_discover(registry), -ENOENT);
}

static void test_discover_forked_helper_ignored(void)
{
	pid_t vm = put_vm(ARGS(QEMU "-name\0a"));

	CU_ASSERT_EQUAL(vmm_registry_discover(registry), 1);
	put_process(spawn_idle(), "/usr/bin/qemu-system-x86_64", ARGS(QEMU "-name\0a"), 'S', vm);
	CU_ASSERT_EQUAL(vmm_registry_discover(registry), 1);
}

/* A wrapper that is looked at less often by and by is seen when it has become QEMU at last. */
static void test_discover_late_exec_found(void)
{
	pid_t pid = spawn_idle();
	char exe[PATH_MAX];
	int count = 0;

	put_process(pid, "/bin/sh", ARGS("sh\0wrapper"), 'S', 1);
	for (int i = 0; i < 20; i++)
		CU_ASSERT_EQUAL(vmm_registry_discover(registry), 0);
	snprintf(exe, sizeof(exe), "%s/proc/%d/exe", dir, pid);
	fake_must(unlink(exe) == 0 && symlink("/usr/bin/qemu-system-x86_64", exe) == 0, exe);
	for (int i = 0; i < 12 && count == 0; i++)
		count = vmm_registry_discover(registry);
	CU_ASSERT_EQUAL(count, 1);
}

static void test_find_ambiguous_refused(void)
{
	char cmdline[64], text[16];
	pid_t pid = put_vm(ARGS(QEMU "-name\0a\0-uuid\0" UUID));
	struct vm *vm = NULL;
	int n;

	CU_ASSERT_EQUAL(vmm_registry_discover(registry), 1);
	snprintf(text, sizeof(text), "%d", pid);
	CU_ASSERT_EQUAL(vmm_registry_find(registry, "b", &vm), -ENOENT);
	CU_ASSERT_PTR_NULL(vm);
	CU_ASSERT_EQUAL(vmm_registry_find(registry, "a", &vm), 0);
	CU_ASSERT_EQUAL(vmm_registry_find(registry, "4DEA22B3-1d52-d8f3-2516-782e98ab3fa0", &vm), 0);
	CU_ASSERT_EQUAL(vmm_registry_find(registry, text, &vm), 0);
	CU_ASSERT_PTR_EQUAL(vm, vmm_registry_first(registry));

	n = snprintf(cmdline, sizeof(cmdline), "kvm%c-name%c%d", 0, 0, pid);
	put_vm(cmdline, (size_t)n + 1);
	CU_ASSERT_EQUAL(vmm_registry_discover(registry), 2);
	CU_ASSERT_EQUAL(vmm_registry_find(registry, text, &vm), -ENOTUNIQ);
	CU_ASSERT_EQUAL(vmm_registry_find(registry, "a", &vm), 0);
}

/* A shell that reads a pipe nobody writes to, under QEMU's name. *ret_pipe is the caller's to close. */
static pid_t spawn_shell(int ret_pipe[2])
{
	char *argv[] = { "qemu-system-x86_64", "-c", "read line", "-name", "real", NULL };
	int stdin_copy = dup(STDIN_FILENO);
	pid_t pid;

	fake_must(stdin_copy >= 0 && pipe2(ret_pipe, O_CLOEXEC) == 0 && dup2(ret_pipe[0], STDIN_FILENO) == 0, "pipe");
	pid = spawn_program("/bin/sh", argv, NULL);
	dup2(stdin_copy, STDIN_FILENO);
	close(stdin_copy);
	put_real(pid);
	return pid;
}

static void test_process_ended_gone(void)
{
	struct vm *vm = NULL;
	int pipe_fds[2];
	pid_t pid = spawn_shell(pipe_fds);

	CU_ASSERT_EQUAL(vmm_registry_discover(registry), 1);
	CU_ASSERT_EQUAL_FATAL(vmm_registry_find(registry, "real", &vm), 0);
	CU_ASSERT_EQUAL(vm->pid, pid);
	CU_ASSERT_EQUAL(vm->uid, getuid());
	CU_ASSERT_TRUE(vm->start_ticks > 0);
	kill_child(pid);
	CU_ASSERT_TRUE(fake_run_until(loop, &seen.gone, 1));
	CU_ASSERT_EQUAL(seen.gone_pid, pid);
	CU_ASSERT_PTR_NULL(vmm_registry_first(registry));
	/* Not waited for yet: a zombie, and not found again. */
	CU_ASSERT_EQUAL(vmm_registry_discover(registry), 0);
	close(pipe_fds[0]);
	close(pipe_fds[1]);
}

static void test_young_process_left_alone(void)
{
	uint64_t started_ns;
	int pipe_fds[2];
	struct vm *vm;

	configure("[vm *]\nqmp = %s\n", fake.path);
	spawn_shell(pipe_fds);
	CU_ASSERT_EQUAL_FATAL(vmm_registry_discover(registry), 1);
	vm = vmm_registry_first(registry);
	started_ns = vm->start_ticks * (NSEC_PER_SEC / (uint64_t)sysconf(_SC_CLK_TCK));
	CU_ASSERT_TRUE(vmm_registry_settling(registry));
	vmm_registry_reconfigure(registry); /* no way around it */
	CU_ASSERT_TRUE(fake_run_until(loop, &fake.clients, 1));
	CU_ASSERT_TRUE(clock_ns(CLOCK_BOOTTIME) - started_ns >= 2 * NSEC_PER_SEC);
	CU_ASSERT_TRUE(wait_state(vm, VM_READY));
	close(pipe_fds[0]);
	close(pipe_fds[1]);
}

static void test_list_any_order_of_ends_consistent(void)
{
	pid_t pids[4];
	static const size_t order[] = { 1, 3, 0, 2 };

	for (size_t i = 0; i < ARRAY_SIZE(pids); i++)
		pids[i] = put_vm(ARGS(QEMU));
	CU_ASSERT_EQUAL(vmm_registry_discover(registry), 4);
	for (size_t i = 0; i < ARRAY_SIZE(order); i++) {
		int left = 0;

		kill_child(pids[order[i]]);
		CU_ASSERT_TRUE(fake_run_until(loop, &seen.gone, (unsigned int)i + 1));
		CU_ASSERT_EQUAL(seen.gone_pid, pids[order[i]]);
		for (struct vm *vm = vmm_registry_first(registry); vm; vm = vm->next)
			left++;
		CU_ASSERT_EQUAL(left, 3 - (int)i);
	}
	put_vm(ARGS(QEMU));
	CU_ASSERT_EQUAL(vmm_registry_discover(registry), 1);
	CU_ASSERT_PTR_NOT_NULL(vmm_registry_first(registry));
}

static void test_no_monitor_says_why(void)
{
	static const struct {
		const char *cmdline;
		size_t len;
		const char *why;
	} cases[] = {
		{ ARGS(QEMU "-name\0a"), "no QMP socket on the command line" },
		{ ARGS(QEMU "-object\0secret,id=masterKey0"), "monitor belongs to libvirt" },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		char pid[16];
		struct vm *vm;

		snprintf(pid, sizeof(pid), "%d", put_vm(cases[i].cmdline, cases[i].len));
		vmm_registry_discover(registry);
		CU_ASSERT_EQUAL_FATAL(vmm_registry_find(registry, pid, &vm), 0);
		CU_ASSERT_EQUAL(vm->state, VM_NO_QMP);
		CU_ASSERT_STRING_EQUAL(vm->why, cases[i].why);
	}
	CU_ASSERT_FALSE(vmm_registry_settling(registry));
}

/* The real one gets its monitor as a descriptor, and only the made-up /proc tells the socket's path: a daemon
 * that runs on this host would find the process, too, and take the only place at the monitor. And wait=on,
 * because the made-up start time is long ago and a QEMU that starts must be waiting for its client. */
static void test_real_qemu_ready_and_gone(void)
{
	static const char qemu[] = "/usr/bin/qemu-system-x86_64";
	char *argv[] = { "qemu-system-x86_64", "-S", "-machine", "none", "-display", "none", "-nodefaults",
			 "-chardev", "socket,id=c,fd=9,server=on,wait=on", "-mon", "chardev=c,mode=control", NULL };
	char path[128], cmdline[256];
	struct vm *vm;
	pid_t pid;
	int n;

	if (access(qemu, X_OK) < 0) {
		printf("skipped: test_real_qemu_ready_and_gone: no %s\n", qemu);
		return;
	}
	snprintf(path, sizeof(path), "%s/real", dir);
	pid = spawn_program(qemu, argv, path);
	n = snprintf(cmdline, sizeof(cmdline), "kvm%c-name%creal,,vm%c-qmp%cunix:%s,server=on", 0, 0, 0, 0, path);
	put_process(pid, qemu, cmdline, (size_t)n + 1, 'S', 1);
	CU_ASSERT_EQUAL_FATAL(vmm_registry_discover(registry), 1);
	vm = vmm_registry_first(registry);
	CU_ASSERT_STRING_EQUAL(vm->name, "real,vm");
	CU_ASSERT_TRUE(wait_state(vm, VM_READY));
	CU_ASSERT_STRING_EQUAL(vm->machine, "none");
	CU_ASSERT_EQUAL(vm->ram_bytes, 0);
	CU_ASSERT_FALSE(vm->running);
	kill_child(pid);
	CU_ASSERT_TRUE(fake_run_until(loop, &seen.gone, 1));
}

int main(void)
{
	static CU_TestInfo tests[] = {
		{ "only_qemu", test_discover_only_qemu_found },
		{ "no_proc", test_discover_no_proc_fails },
		{ "forked_helper", test_discover_forked_helper_ignored },
		{ "late_exec", test_discover_late_exec_found },
		{ "find", test_find_ambiguous_refused },
		{ "gone", test_process_ended_gone },
		{ "young", test_young_process_left_alone },
		{ "list", test_list_any_order_of_ends_consistent },
		{ "no_monitor", test_no_monitor_says_why },
		{ "real_qemu", test_real_qemu_ready_and_gone },
		CU_TEST_INFO_NULL,
	};
	static CU_SuiteInfo suites[] = { { "registry", NULL, NULL, host_setup, host_teardown, tests }, CU_SUITE_INFO_NULL };
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
