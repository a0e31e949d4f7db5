/* 65,536 runs in one VM: every second of its pages is merged, so that its memory is 131,072 mappings. Planned, exchanged,
 * looked through by the daemon, written to and given back, every byte right all the time. Done with a quarter of it
 * before, to see what grows how: times are printed, none fails.
 *
 * The kernel allows a process 65,530 mappings (vm.max_map_count), for the whole machine: raised while this runs, and put
 * back by a process of its own, however this one ends. */
#include <sys/file.h>

#include "agent/memvirt-agent.h"
#include "agent/uffd.h"
#include "core/clock.h"
#include "tests/lib/domain.h"
#include "tests/unit/unit.h"

#define RUNS_MAX 65536u
#define STORE_FRAMES (2 * RUNS_MAX)
/* A run makes two mappings, and merging may fill half of what the kernel allows; the rest is the process's own. */
#define MAPPINGS_WANTED (2 * (2 * RUNS_MAX + 4096))
#define LIMIT_PATH "/proc/sys/vm/max_map_count"
#define ATTACH_TIMEOUT_MS 20000
#define OWN_CONTENT (1u << 24) /* above what is shared */
#define WRITTEN_CONTENT (1u << 25)
#define WRITTEN_EVERY 14u /* even: of the pages that are merged one by one, each seventh */

/* ---- the limit ---- */

static bool limit_write(int fd, unsigned long limit)
{
	char text[32];
	int len = snprintf(text, sizeof(text), "%lu\n", limit);

	return pwrite(fd, text, (size_t)len, 0) == len;
}

/* Waits for the end of the process that has the other end of the pipe, out of reach of what ends that one. */
static void limit_guard(int fd, int pipe_fd, unsigned long found)
{
	char c;

	setsid();
	signal(SIGINT, SIG_IGN);
	signal(SIGTERM, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
	while (read(pipe_fd, &c, 1) < 0 && errno == EINTR)
		;
	_exit(limit_write(fd, found) ? 0 : 1);
}

/* Others that want the same wait for us: the guard holds the lock until the limit is as it was. *ret_guard: -1 if nothing
 * had to be raised; else *ret_pipe is to be closed at the end. 0 or -errno. */
static int limit_raise(pid_t *ret_guard, int *ret_pipe)
{
	auto_close int fd = open(LIMIT_PATH, O_RDWR | O_CLOEXEC);
	unsigned long found;
	char text[32] = "";
	int ends[2];

	*ret_guard = -1;
	if (fd < 0 || flock(fd, LOCK_EX) < 0 || pread(fd, text, sizeof(text) - 1, 0) <= 0)
		return -errno;
	found = strtoul(text, NULL, 10);
	if (found >= MAPPINGS_WANTED)
		return 0;
	unit_must(pipe2(ends, O_CLOEXEC) == 0, "pipe");
	*ret_guard = fork();
	unit_must(*ret_guard >= 0, "fork");
	if (*ret_guard == 0) {
		close(ends[1]);
		limit_guard(fd, ends[0], found);
	}
	close(ends[0]);
	*ret_pipe = ends[1];
	return limit_write(fd, MAPPINGS_WANTED) ? 0 : -errno;
}

static bool limit_restore(pid_t guard, int pipe_fd)
{
	int status = 0;

	if (guard < 0)
		return true;
	close(pipe_fd);
	return waitpid(guard, &status, 0) == guard && status == 0;
}

/* ---- a VM: this program once more ---- */

static struct {
	char *ram;
	size_t pages;
	bool rows; /* what is shared lies in a row; else every second page */
	struct memvirt_agent *agent;
} vm;

static uint64_t vm_content(uint64_t page, bool written)
{
	if (written && page % WRITTEN_EVERY == 0)
		return WRITTEN_CONTENT + page;
	if (vm.rows)
		return 1 + page;
	return page % 2 ? OWN_CONTENT + page : 1 + page / 2;
}

static void vm_must(bool ok, const char *what)
{
	if (!ok) {
		fprintf(stderr, "VM: %s\n", what);
		_exit(1);
	}
}

static void vm_check(bool written, bool zero)
{
	char want[PAGE_BYTES];

	for (uint64_t p = 0; p < vm.pages; p++) {
		unit_page_fill(want, zero ? 0 : vm_content(p, written));
		vm_must(memcmp(want, vm.ram + p * PAGE_BYTES, PAGE_BYTES) == 0, "a page is wrong");
	}
}

/* Whole, written in part, given back. */
static void vm_end(void)
{
	vm_check(false, false);
	for (uint64_t p = 0; p < vm.pages; p += WRITTEN_EVERY)
		unit_page_fill(vm.ram + p * PAGE_BYTES, vm_content(p, true));
	vm_check(true, false);
	vm_must(memvirt_agent_discard(vm.agent, vm.ram, vm.pages * PAGE_BYTES) == 0, "discard");
	vm.agent = memvirt_agent_detach(vm.agent);
	vm_check(false, true);
}

static int vm_main(const char *socket_path, const char *runs, bool rows)
{
	const char *why = "";
	char c;

	vm.rows = rows;
	vm.pages = strtoul(runs, NULL, 10) * (rows ? 1 : 2);
	vm.ram = unit_map(vm.pages);
	for (uint64_t p = 0; p < vm.pages; p++)
		unit_page_fill(vm.ram + p * PAGE_BYTES, vm_content(p, false));
	vm_must(memvirt_agent_attach(socket_path, &vm.agent, &why) == 0, why);
	vm_must(memvirt_agent_add_slot(vm.agent, vm.ram, vm.pages * PAGE_BYTES, &why) == 0, why);
	vm_must(read(STDIN_FILENO, &c, 1) == 1, "command");
	vm_end();
	return 0;
}

/* ---- the daemon's side ---- */

struct child {
	pid_t pid;
	int in;
};

static struct domain domain;

static void child_start(struct child *c, uint32_t runs, bool rows)
{
	char text[16];
	int in[2];
	pid_t pid;

	snprintf(text, sizeof(text), "%u", runs);
	unit_must(pipe2(in, O_CLOEXEC) == 0, "pipe");
	c->pid = fork();
	unit_must(c->pid >= 0, "fork");
	if (c->pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		dup2(in[0], STDIN_FILENO);
		execl("/proc/self/exe", "vm", domain.path, text, rows ? "rows" : "pages", NULL);
		_exit(127);
	}
	close(in[0]);
	c->in = in[1];
	unit_must(domain_accept(&domain, ATTACH_TIMEOUT_MS, &pid) == 0 && pid == c->pid, "accept");
}

static void child_end(struct child *c)
{
	int status;

	unit_must(write(c->in, "e", 1) == 1, "command");
	unit_must(waitpid(c->pid, &status, 0) == c->pid, "waitpid");
	CU_ASSERT_EQUAL(status, 0);
	domain_drop(&domain, c->pid);
	close(c->in);
}

static size_t merged_mappings(pid_t pid)
{
	auto_fclose FILE *f = NULL;
	char path[40], line[512];
	size_t n = 0;

	snprintf(path, sizeof(path), "/proc/%d/maps", (int)pid);
	f = fopen(path, "re");
	while (f && fgets(line, sizeof(line), f))
		n += strstr(line, "rw-p") && strstr(line, "/memfd:");
	return n;
}

static double seconds_since(uint64_t start_ns)
{
	return (double)(clock_mono_ns() - start_ns) / (double)NSEC_PER_SEC;
}

static void merge_and_end(uint32_t runs)
{
	struct remap_result result = { 0 }, again = { 0 };
	struct child alternating, rows;
	uint64_t start, pages = 0;
	double sweep, end;

	child_start(&alternating, runs, false);
	child_start(&rows, runs, true);
	CU_ASSERT_EQUAL(domain_round(&domain, &result), 0);
	CU_ASSERT_EQUAL(result.merged_pages, 2 * runs);
	CU_ASSERT_EQUAL(result.filled_frames, runs);
	CU_ASSERT_EQUAL(merged_mappings(alternating.pid), runs);
	start = clock_mono_ns();
	CU_ASSERT_EQUAL(domain_sweep(&domain, &pages), 0);
	sweep = seconds_since(start);
	CU_ASSERT_EQUAL(pages, runs);
	CU_ASSERT_EQUAL(domain_round(&domain, &again), 0); /* finds all of it merged */
	CU_ASSERT_EQUAL(again.windows, 0);
	start = clock_mono_ns();
	child_end(&alternating);
	child_end(&rows);
	end = seconds_since(start);
	CU_ASSERT_EQUAL(domain_sweep(&domain, &pages), 0);
	CU_ASSERT_EQUAL(pages, 0);
	printf("\n    %u runs: planned in %.3f s, merged in %.3f s, sweep %.3f s, next round %.3f s, checked and given back "
	       "in %.3f s", runs, result.plan_seconds, result.seconds, sweep, again.seconds, end);
}

static void test_many_runs_in_one_vm_no_byte_wrong(void)
{
	char dir[UNIT_DIR_MAX];

	unit_dir_new(dir);
	unit_must(domain_open(&domain, dir, STORE_FRAMES) == 0, "domain");
	merge_and_end(RUNS_MAX / 4);
	merge_and_end(RUNS_MAX);
	puts("");
	domain_close(&domain);
	unit_dir_remove(dir);
}

static int run(void)
{
	static CU_TestInfo tests[] = {
		{ "many_runs", test_many_runs_in_one_vm_no_byte_wrong },
		CU_TEST_INFO_NULL,
	};
	int pipe_fd = -1, r;
	pid_t guard;

	r = limit_raise(&guard, &pipe_fd);
	if (r < 0) {
		limit_restore(guard, pipe_fd);
		printf("skip: many_runs: " LIMIT_PATH " cannot be raised to %u: %s\n", MAPPINGS_WANTED, strerror(-r));
		return 77;
	}
	r = unit_main("many_runs", tests);
	if (!limit_restore(guard, pipe_fd)) {
		puts(LIMIT_PATH " could not be put back");
		r = 1;
	}
	return r;
}

int main(int argc, char **argv)
{
	const char *why = "a userfaultfd cannot be opened";
	int fd;

	if (argc == 4 && strcmp(argv[0], "vm") == 0)
		return vm_main(argv[1], argv[2], strcmp(argv[3], "rows") == 0);
	fd = uffd_open();
	if (fd < 0 || uffd_probe(fd, &why) < 0) {
		printf("skip: many_runs: %s\n", why);
		return 77;
	}
	close(fd);
	signal(SIGPIPE, SIG_IGN);
	alarm(600); /* a lost wake-up would be a hang */
	return run();
}
