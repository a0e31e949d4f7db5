#include "tests/world/world.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <libgen.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "agent/uffd.h"
#include "core/cleanup.h"
#include "core/clock.h"
#include "tests/world/proc.h"

#define LOCK "/tmp/memvirt-ksm.lock" /* tests/e2e/lib.sh */
#define LOCK_FD 9

static volatile sig_atomic_t interrupted;

static void on_interrupt(int signal_number)
{
	(void)signal_number;
	interrupted = 1;
}

uint64_t world_random(struct world *w, uint64_t below)
{
	uint64_t z = w->random += UINT64_C(0x9e3779b97f4a7c15);

	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return (z ^ (z >> 31)) % below;
}

double world_seconds(const struct world *w)
{
	return (double)(clock_mono_ns() - w->started_ns) / (double)NSEC_PER_SEC;
}

void world_wrong(struct world *w, const char *fmt, ...)
{
	va_list args;

	printf("BAD after %.1f s: ", world_seconds(w));
	va_start(args, fmt);
	vprintf(fmt, args);
	va_end(args);
	printf("\n");
	w->bad++;
}

/* ---- the whole ---- */

/* Every daemon on the host finds every VMM: tests take turns. A script that has started this may hold the lock. */
static int turn_take(void)
{
	char held[64] = "";
	int fd;

	if (readlink("/proc/self/fd/9", held, sizeof(held) - 1) > 0 && strcmp(held, LOCK) == 0)
		return fcntl(LOCK_FD, F_SETFD, FD_CLOEXEC) < 0 ? -errno : 0;
	fd = open(LOCK, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
	if (fd < 0 || flock(fd, LOCK_EX) < 0)
		return -errno;
	return 0; /* the end of this process gives it back */
}

static int possible(const char **ret_why)
{
	auto_close int fd = -1;

	*ret_why = "needs root";
	if (getuid() != 0)
		return -EPERM;
	*ret_why = "a userfaultfd cannot be opened";
	fd = uffd_open();
	return fd < 0 ? fd : uffd_probe(fd, ret_why);
}

int world_open(struct world *w, uint64_t seed, const char **ret_why)
{
	const struct sigaction act = { .sa_handler = on_interrupt };
	char self[180] = "";
	int r = possible(ret_why);

	*w = (struct world){ .random = seed, .dir = "/tmp/memvirt-chaos.XXXXXX", .daemon = { .log_fd = -1 } };
	if (r < 0)
		return r;
	*ret_why = "the folder of this program";
	if (readlink("/proc/self/exe", self, sizeof(self) - 1) < 0)
		return -errno;
	snprintf(w->build, sizeof(w->build), "%s/..", dirname(self));
	*ret_why = LOCK;
	r = turn_take();
	if (r < 0)
		return r;
	w->started_ns = clock_mono_ns();
	*ret_why = "a temporary folder";
	if (!mkdtemp(w->dir))
		return -errno;
	sigaction(SIGINT, &act, NULL);
	sigaction(SIGTERM, &act, NULL);
	return daemon_open(&w->daemon, w->build, w->dir);
}

void world_close(struct world *w)
{
	char command[96];

	for (unsigned i = 0; i < WORLD_VMS; i++)
		if (w->vms[i].pid > 0)
			world_vm_kill(w, i);
	daemon_close(&w->daemon);
	snprintf(command, sizeof(command), "rm -rf '%s'", w->dir);
	if (w->bad > 0)
		printf("the daemon's log is in %s\n", w->dir);
	else if (system(command) != 0)
		printf("%s is left\n", w->dir);
}

/* ---- VMs ---- */

/* Does not return. Every fourth VM is of the other domain. */
static void vm_become(const struct world *w, const struct world_vm *vm, int fd)
{
	char path[256], ram[16], library[256], agent_socket[96];
	int quiet = open("/dev/null", O_WRONLY | O_CLOEXEC);

	snprintf(path, sizeof(path), "%s/tests/chaos-vmm", w->build);
	snprintf(ram, sizeof(ram), "%uM", CHAOS_RAM_MIB);
	snprintf(library, sizeof(library), "%s/libmemvirt-agent.so", w->build);
	snprintf(agent_socket, sizeof(agent_socket), "%s/agent", w->dir);
	setenv("LD_PRELOAD", library, 1);
	setenv("MEMVIRT_AGENT_SOCKET", agent_socket, 1);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	dup2(quiet, STDERR_FILENO); /* agents tell there that no daemon is to be had */
	if (fd != CHAOS_FD)
		dup2(fd, CHAOS_FD);
	else
		fcntl(fd, F_SETFD, 0);
	execl(path, "qemu-system-x86_64", "-name", vm->name, "-m", ram, NULL);
	_exit(127);
}

int world_vm_start(struct world *w, unsigned i)
{
	auto_close int fd = memfd_create("chaos-vmm", MFD_CLOEXEC);
	struct world_vm *vm = &w->vms[i];

	*vm = (struct world_vm){ .number = w->next_number++ };
	snprintf(vm->name, sizeof(vm->name), "chaos-%c-%u", vm->number % 4 == 3 ? 'b' : 'a', vm->number);
	if (fd < 0 || ftruncate(fd, 4096) < 0)
		return -errno;
	vm->page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (vm->page == MAP_FAILED)
		return -errno;
	vm->page->epoch = w->epoch;
	world_order_one(w, i, CHAOS_RUN);
	fflush(stdout);
	vm->pid = fork();
	if (vm->pid == 0)
		vm_become(w, vm, fd);
	return vm->pid < 0 ? -errno : 0;
}

static void vm_forget(struct world *w, struct world_vm *vm)
{
	w->writes += vm->page->writes;
	w->checks += vm->page->checks + vm->page->reads;
	w->discards += vm->page->discards;
	if (vm->page->bad > 0)
		world_wrong(w, "%s saw %lu wrong pages", vm->name, vm->page->bad);
	munmap(vm->page, 4096);
	*vm = (struct world_vm){ .pid = 0 };
}

void world_vm_kill(struct world *w, unsigned i)
{
	struct world_vm *vm = &w->vms[i];

	kill(vm->pid, SIGKILL);
	waitpid(vm->pid, NULL, 0);
	vm_forget(w, vm);
	w->vm_kills++;
}

void world_order_one(struct world *w, unsigned i, enum chaos_order order)
{
	struct world_vm *vm = &w->vms[i];

	vm->order = ((vm->order >> 8) + 1) << 8 | order;
	vm->page->order = vm->order;
	for (unsigned t = 0; t < CHAOS_THREADS; t++)
		vm->beat_ns[t] = clock_mono_ns();
}

void world_order(struct world *w, enum chaos_order order)
{
	for (unsigned i = 0; i < WORLD_VMS; i++)
		if (w->vms[i].pid > 0)
			world_order_one(w, i, order);
}

static void vm_blocked(struct world *w, const struct world_vm *vm, const char *what)
{
	world_wrong(w, "%s pid %d: %s for %d s", vm->name, (int)vm->pid, what, WORLD_QUIET_SECONDS);
	proc_print_threads(vm->pid);
}

void world_await(struct world *w)
{
	uint64_t end = clock_mono_ns() + WORLD_QUIET_SECONDS * NSEC_PER_SEC;

	for (unsigned i = 0; i < WORLD_VMS && w->bad == 0; i++) {
		struct world_vm *vm = &w->vms[i];

		while (vm->pid > 0 && vm->page->done != vm->order && w->bad == 0) {
			world_run(w, 0.01, NULL);
			if (vm->pid > 0 && clock_mono_ns() > end)
				vm_blocked(w, vm, "an order is not carried out");
		}
	}
}

void world_vm_end(struct world *w, unsigned i)
{
	struct world_vm *vm = &w->vms[i];
	pid_t ended = 0;
	int status = 0;

	world_order_one(w, i, CHAOS_END);
	for (int n = 0; n < WORLD_QUIET_SECONDS * 100 && ended == 0; n++) {
		usleep(10000);
		ended = waitpid(vm->pid, &status, WNOHANG);
	}
	if (ended == 0) {
		vm_blocked(w, vm, "it does not end");
		kill(vm->pid, SIGKILL);
		waitpid(vm->pid, &status, 0);
	}
	if (status != 0)
		world_wrong(w, "%s ended with status %#x", vm->name, (unsigned)status);
	vm_forget(w, vm);
}

void world_shift(struct world *w)
{
	w->epoch++;
	for (unsigned i = 0; i < WORLD_VMS; i++)
		if (w->vms[i].pid > 0)
			w->vms[i].page->epoch = w->epoch;
}

uint64_t world_checks(const struct world *w)
{
	uint64_t n = w->checks;

	for (unsigned i = 0; i < WORLD_VMS; i++)
		if (w->vms[i].pid > 0)
			n += w->vms[i].page->checks + w->vms[i].page->reads;
	return n;
}

void world_saved(const struct world *w, double *ret_saved_mib, double *ret_frames_mib)
{
	json_t *status = NULL;
	char command[600];
	FILE *f;

	snprintf(command, sizeof(command), "'%s/memvirtctl' -s '%s/control' --json merge status 2>/dev/null", w->build,
		 w->dir);
	f = popen(command, "re");
	if (f)
		status = json_loadf(f, 0, NULL);
	if (f)
		pclose(f);
	*ret_saved_mib = json_number_value(json_object_get(status, "saved_mib"));
	*ret_frames_mib = json_number_value(json_object_get(status, "frames_mib"));
	json_decref(status);
}

void world_report(const struct world *w)
{
	if (w->daemon.warnings > 0)
		printf("%u warnings of daemons, the last: %s\n", w->daemon.warnings, w->daemon.warning);
	printf("%s after %.0f s: %.1f M pages checked, %.1f M written, %.1f M discarded, %lu wrong\n",
	       w->bad == 0 ? "ok" : "FAIL", world_seconds(w), (double)world_checks(w) / 1e6, (double)w->writes / 1e6,
	       (double)w->discards / 1e6, w->bad);
}

/* ---- looking after them ---- */

static void vm_look(struct world *w, struct world_vm *vm)
{
	uint64_t now = clock_mono_ns();
	bool runs = (vm->order & 0xff) == CHAOS_RUN;
	int status;

	if (waitpid(vm->pid, &status, WNOHANG) == vm->pid) {
		world_wrong(w, "%s ended by itself, status %#x", vm->name, (unsigned)status);
		vm_forget(w, vm);
		return;
	}
	if (vm->page->bad > 0)
		world_wrong(w, "%s pid %d: %lu wrong pages", vm->name, (int)vm->pid, vm->page->bad);
	for (unsigned t = 0; t < CHAOS_THREADS && runs; t++) {
		if (vm->page->beats[t] != vm->beats[t]) {
			vm->beats[t] = vm->page->beats[t];
			vm->beat_ns[t] = now;
		} else if (now - vm->beat_ns[t] > WORLD_QUIET_SECONDS * NSEC_PER_SEC) {
			vm_blocked(w, vm, "a thread does nothing");
			vm->beat_ns[t] = now;
		}
	}
}

static void look(struct world *w)
{
	for (unsigned i = 0; i < WORLD_VMS; i++)
		if (w->vms[i].pid > 0)
			vm_look(w, &w->vms[i]);
	if (!daemon_watch(&w->daemon))
		world_wrong(w, "the daemon ended by itself");
	if (interrupted && w->bad == 0)
		world_wrong(w, "interrupted");
}

void world_run(struct world *w, double seconds, bool (*until)(struct world *w))
{
	uint64_t end = clock_mono_ns() + (uint64_t)(seconds * (double)NSEC_PER_SEC);

	do {
		uint64_t now = clock_mono_ns();

		look(w);
		if (now >= end || (until && until(w)))
			break;
		usleep((useconds_t)(end - now < NSEC_PER_MSEC ? (end - now) / 1000 : 1000));
	} while (w->bad == 0);
}
