/* tests/unit/fake_host.h - a made-up host for tests of the registry: a /proc of real child processes, a fake
 * QMP server, a registry that counts its callbacks. Nothing outside is seen, let alone talked to.
 *
 * State of one test program; host_setup() and host_teardown() are its suite's setup and teardown. */
#ifndef TESTS_FAKE_HOST_H
#define TESTS_FAKE_HOST_H

#include <CUnit/Basic.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "core/cleanup.h"
#include "core/log.h"
#include "tests/unit/fake_qmp.h"
#include "vmm/registry.h"

#define PATIENT_MS 600000 /* longer than any test may take: these tests are not about time-outs */
#define CHILDREN_MAX 16
#define QEMU "qemu-system-x86_64\0"
#define ARGS(text) (text), sizeof(text)
#define UUID "4dea22b3-1d52-d8f3-2516-782e98ab3fa0"

static const struct fake_rule rules_good[] = {
	{ .command = "query-name", .value = "{\"name\": \"told\"}" },
	{ .command = "query-uuid", .value = "{\"UUID\": \"" UUID "\"}" },
	{ .command = "query-status", .value = "{\"status\": \"running\", \"running\": true}" },
	{ .command = "query-memory-size-summary", .value = "{\"base-memory\": 536870912, \"plugged-memory\": 0}" },
	{ .command = "qom-get", .value = "\"pc-q35-7.2-machine\"" },
	{ .value = "{}" },
};

static char dir[64];
static struct fsio fs;
static struct config config;
static sd_event *loop;
static struct vmm_registry *registry;
static struct fake fake;
static pid_t children[CHILDREN_MAX];
static size_t child_count;
static struct {
	unsigned int added, ready, changed, gone;
	enum vm_state added_state;
	pid_t gone_pid;
} seen;

static inline void on_added(struct vm *vm, void *userdata)
{
	(void)userdata;
	seen.added++;
	seen.added_state = vm->state;
}

static inline void on_ready(struct vm *vm, void *userdata)
{
	(void)userdata;
	CU_ASSERT_EQUAL(vm->state, VM_READY);
	CU_ASSERT_PTR_NOT_NULL(vm->qmp);
	seen.ready++;
}

static inline void on_changed(struct vm *vm, void *userdata)
{
	(void)userdata;
	CU_ASSERT_EQUAL(vm->qmp != NULL, vm->state == VM_READY);
	seen.changed++;
}

static inline void on_gone(struct vm *vm, void *userdata)
{
	(void)userdata;
	CU_ASSERT_PTR_NULL(vm->qmp);
	seen.gone++;
	seen.gone_pid = vm->pid;
}

static const struct vmm_registry_ops ops = {
	.added = on_added, .ready = on_ready, .changed = on_changed, .gone = on_gone
};

__attribute__((format(printf, 3, 4))) static inline void put(const char *text, size_t len, const char *fmt, ...)
{
	char path[PATH_MAX];
	va_list args;
	FILE *f;

	va_start(args, fmt);
	vsnprintf(path, sizeof(path), fmt, args);
	va_end(args);
	f = fopen(path, "w");
	fake_must(f && fwrite(text, 1, len, f) == len && fclose(f) == 0, path);
}

static inline pid_t child_add(pid_t pid)
{
	fake_must(pid > 0 && child_count < CHILDREN_MAX, "fork");
	children[child_count++] = pid;
	return pid;
}

static inline pid_t spawn_idle(void)
{
	pid_t pid = fork();

	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (;;)
			pause();
	}
	return child_add(pid);
}

#define LISTEN_FD 9

/* Gives this process a listening socket as LISTEN_FD, also for the program it becomes. */
static inline void listen_at(const char *path)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	fake_must(strlen(path) < sizeof(addr.sun_path), path);
	memcpy(addr.sun_path, path, strlen(path) + 1);
	fake_must(fd >= 0 && bind(fd, (const struct sockaddr *)&addr, sizeof(addr)) == 0 && listen(fd, 1) == 0 &&
			  dup2(fd, LISTEN_FD) == LISTEN_FD, path);
}

/* Comes back when the program runs: a close-on-exec pipe tells. listen_path NULL: no socket. */
static inline pid_t spawn_program(const char *path, char *const argv[], const char *listen_path)
{
	int pipe_fds[2];
	char byte;
	pid_t pid;

	fake_must(pipe2(pipe_fds, O_CLOEXEC) == 0, "pipe2");
	pid = fork();
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		fake_must(fcntl(pipe_fds[1], F_DUPFD_CLOEXEC, LISTEN_FD + 1) > LISTEN_FD, "fcntl");
		close(pipe_fds[1]);
		if (listen_path)
			listen_at(listen_path);
		execv(path, argv);
		_exit(127);
	}
	close(pipe_fds[1]);
	fake_must(read(pipe_fds[0], &byte, 1) == 0, "exec");
	close(pipe_fds[0]);
	return child_add(pid);
}

static inline void kill_child(pid_t pid)
{
	kill(pid, SIGKILL);
}

/* A process directory; exe NULL: none, as kernel threads have it. */
static inline void put_process(pid_t pid, const char *exe, const char *cmdline, size_t len, char state, pid_t ppid)
{
	char path[PATH_MAX], stat[256];
	int n;

	snprintf(path, sizeof(path), "%s/proc/%d", dir, pid);
	fake_must(mkdir(path, 0700) == 0, path);
	n = snprintf(stat, sizeof(stat), "%d (a) b\n) %c %d 1 1 0 -1 5 5 5 5 5 5 5 5 5 20 0 1 0 4660 1 2\n", pid, state, ppid);
	put(stat, (size_t)n, "%s/stat", path);
	put(cmdline, len, "%s/cmdline", path);
	put("Name:\tx\nUid:\t1234\t0\t0\t0\n", 24, "%s/status", path);
	if (exe) {
		snprintf(path, sizeof(path), "%s/proc/%d/exe", dir, pid);
		fake_must(symlink(exe, path) == 0, path);
	}
	snprintf(path, sizeof(path), "%s/proc/%d/cwd", dir, pid);
	fake_must(symlink(dir, path) == 0, path);
}

static inline pid_t put_vm(const char *cmdline, size_t len)
{
	pid_t pid = spawn_idle();

	put_process(pid, "/usr/bin/qemu-system-x86_64", cmdline, len, 'S', 1);
	return pid;
}

/* The real directory of a real process in the made-up /proc. */
static inline void put_real(pid_t pid)
{
	char target[64], path[PATH_MAX];

	snprintf(target, sizeof(target), "/proc/%d", pid);
	snprintf(path, sizeof(path), "%s%s", dir, target);
	fake_must(symlink(target, path) == 0, path);
}

static inline void configure(const char *fmt, ...)
{
	struct config_error error;
	char text[1024];
	va_list args;

	va_start(args, fmt);
	vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);
	config_free(&config);
	fake_must(config_load_text("test", text, strlen(text), &config, &error) == 0, text);
	config.qmp_timeout_ms = PATIENT_MS;
}

static inline void host_setup(void)
{
	char path[PATH_MAX];

	log_set_level(LOG_LEVEL_ERROR);
	memset(&seen, 0, sizeof(seen));
	child_count = 0;
	snprintf(dir, sizeof(dir), "/tmp/memvirt-registry-XXXXXX");
	fake_must(mkdtemp(dir) != NULL, "mkdtemp");
	snprintf(path, sizeof(path), "%s/proc", dir);
	fake_must(mkdir(path, 0700) == 0, path);
	fake_must(fsio_open_root(dir, false, &fs) == 0, dir);
	config_init(&config);
	config.qmp_timeout_ms = PATIENT_MS;
	fake_must(sd_event_new(&loop) >= 0, "sd_event_new");
	fake = (struct fake){ .greeting = FAKE_GREETING, .rules = rules_good, .rule_count = ARRAY_SIZE(rules_good) };
	fake_start(&fake, loop, dir, "s");
	fake_must(vmm_registry_new(loop, &fs, &config, &ops, NULL, &registry) == 0, "vmm_registry_new");
}

static inline void host_teardown(void)
{
	char command[128];

	registry = vmm_registry_free(registry);
	fake_stop(&fake);
	loop = sd_event_unref(loop);
	config_free(&config);
	fsio_close(&fs);
	for (size_t i = 0; i < child_count; i++) {
		kill(children[i], SIGKILL);
		waitpid(children[i], NULL, 0);
	}
	snprintf(command, sizeof(command), "rm -rf -- %s", dir);
	fake_must(system(command) == 0, command);
}

static inline bool wait_state(struct vm *vm, enum vm_state state)
{
	uint64_t end = clock_mono_ns() + FAKE_LIMIT_NS;

	while (vm->state != state && clock_mono_ns() < end)
		sd_event_run(loop, 100000);
	if (vm->state != state)
		fprintf(stderr, "state is %s: %s\n", vm_state_name(vm->state), vm->why);
	return vm->state == state;
}

/* One VM whose QMP is the fake, by configuration. */
static inline struct vm *start_configured(const char *cmdline, size_t len)
{
	configure("[vm *]\nqmp = %s\n", fake.path);
	put_vm(cmdline, len);
	CU_ASSERT_EQUAL_FATAL(vmm_registry_discover(registry), 1);
	return vmm_registry_first(registry);
}

#endif
