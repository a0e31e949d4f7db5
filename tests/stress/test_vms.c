/* VMs come and go: 100 of 64 MiB, most of it equal, some killed while they are merged. Nothing is left behind, in
 * the daemon's process or in theirs. VMS_AT_ONCE: how many live side by side (10). */
#include <malloc.h>
#include <pthread.h>

#include "agent/memvirt-agent.h"
#include "agent/uffd.h"
#include "core/clock.h"
#include "ksmd/unmerge.h"
#include "tests/lib/domain.h"
#include "tests/unit/unit.h"

#define VMS 100u
#define RAM_BYTES (64u << 20)
#define RAM_PAGES (RAM_BYTES / PAGE_BYTES)
#define STORE_FRAMES (128u * 512)
#define ATTACH_TIMEOUT_MS 20000
#define HEAP_SLACK_BYTES 65536u
#define MAPS_SLACK 8u /* threads' stacks that the C library keeps */

/* ---- what a process holds ---- */

struct holds {
	size_t fds, maps, heap_bytes;
};

static size_t lines_in(const char *path)
{
	auto_fclose FILE *f = fopen(path, "re");
	size_t n = 0;
	int c;

	unit_must(f, path);
	while ((c = getc(f)) != EOF)
		n += c == '\n';
	return n;
}

static struct holds holds_now(void)
{
	struct holds h = { 0 };
	DIR *d = opendir("/proc/self/fd");

	unit_must(d, "/proc/self/fd");
	while (readdir(d))
		h.fds++;
	closedir(d);
	/* A sanitizer's memory comes and goes as it likes: only descriptors are compared then. */
	h.maps = SANITIZED ? 0 : lines_in("/proc/self/maps");
	h.heap_bytes = SANITIZED ? 0 : mallinfo2().uordblks;
	return h;
}

/* ---- a VM: this program once more ---- */

static struct {
	uint8_t *ram;
	const char *socket_path;
	uint64_t number, base;
	struct memvirt_agent *agent;
} vm;

/* An eighth is of each VM alone. */
static uint64_t vm_content(uint64_t page)
{
	return page / 16 % 8 == 7 ? (vm.number + 2) * 1000000 + page : vm.base + 1 + page;
}

static void vm_fill(uint64_t base)
{
	vm.base = base;
	for (uint64_t p = 0; p < RAM_PAGES; p++)
		unit_page_fill((char *)vm.ram + p * PAGE_BYTES, vm_content(p));
}

static void vm_must(bool ok, const char *what)
{
	if (!ok) {
		fprintf(stderr, "VM %lu: %s\n", vm.number, what);
		_exit(1);
	}
}

static void vm_check(bool zero)
{
	char want[PAGE_BYTES];

	for (uint64_t p = 0; p < RAM_PAGES; p++) {
		unit_page_fill(want, zero ? 0 : vm_content(p));
		vm_must(memcmp(want, vm.ram + p * PAGE_BYTES, PAGE_BYTES) == 0, "a page is wrong");
	}
}

static void vm_attach(void)
{
	const char *why = "";

	vm_must(memvirt_agent_attach(vm.socket_path, &vm.agent, &why) == 0, why);
	vm_must(memvirt_agent_add_slot(vm.agent, vm.ram, RAM_BYTES, &why) == 0, why);
}

/* Gives all of it back: zeroes, and what the process holds is what it held before. */
static struct holds vm_detach(void)
{
	vm_check(false);
	vm_must(memvirt_agent_discard(vm.agent, vm.ram, RAM_BYTES) == 0, "discard");
	vm.agent = memvirt_agent_detach(vm.agent);
	vm_check(true);
	madvise(vm.ram, RAM_BYTES, MADV_DONTNEED);
	return holds_now();
}

static void vm_compare(const struct holds *before, const struct holds *after, bool first)
{
	/* The first time the C library makes stacks for the agent's threads, and keeps them. */
	vm_must(after->fds == before->fds, "descriptors are left over");
	vm_must(after->maps <= before->maps + (first ? MAPS_SLACK : 0), "mappings are left over");
	vm_must(after->heap_bytes <= before->heap_bytes + (first ? 4096 : 0), "heap is left over");
}

/* Commands: r detach and attach again, d detach and end, x end as it is; f fill with contents from a base on. */
static int vm_main(const char *socket_path, const char *number)
{
	struct holds first = holds_now(), after;
	bool again = false;
	uint64_t base;
	char c;

	vm.socket_path = socket_path;
	vm.number = strtoul(number, NULL, 10);
	/* With room around it: stacks and the like would be one mapping with it, or not, as it comes. */
	vm.ram = mmap(NULL, RAM_BYTES + 2 * PAGE_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	vm_must(vm.ram != MAP_FAILED, "mmap");
	vm.ram += PAGE_BYTES;
	vm_must(mprotect(vm.ram, RAM_BYTES, PROT_READ | PROT_WRITE) == 0, "mprotect");
	madvise(vm.ram, RAM_BYTES, vm.number % 2 ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
	first = holds_now();
	vm_fill(0);
	vm_attach();
	while (read(STDIN_FILENO, &c, 1) == 1) {
		if (c == 'f') {
			vm_must(read(STDIN_FILENO, &base, sizeof(base)) == sizeof(base), "command");
			vm_fill(base);
			vm_must(write(STDOUT_FILENO, &c, 1) == 1, "answer");
			continue;
		}
		if (c == 'x') {
			vm_check(false);
			_exit(0);
		}
		after = vm_detach();
		vm_compare(&first, &after, !again);
		if (c == 'd')
			return 0;
		first = after;
		again = true;
		vm_fill(0);
		vm_attach();
	}
	return 0;
}

/* ---- the daemon's side ---- */

struct child {
	pid_t pid;
	int in, out;
};

static struct domain domain;
static char dir[UNIT_DIR_MAX];

static void child_start(struct child *c, unsigned number)
{
	char text[16];
	int in[2], out[2];
	pid_t pid;

	snprintf(text, sizeof(text), "%u", number);
	unit_must(pipe2(in, O_CLOEXEC) == 0 && pipe2(out, O_CLOEXEC) == 0, "pipe");
	c->pid = fork();
	unit_must(c->pid >= 0, "fork");
	if (c->pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		dup2(in[0], STDIN_FILENO);
		dup2(out[1], STDOUT_FILENO);
		execl("/proc/self/exe", "vm", domain.path, text, NULL);
		_exit(127);
	}
	close(in[0]);
	close(out[1]);
	c->in = in[1];
	c->out = out[0];
	unit_must(domain_accept(&domain, ATTACH_TIMEOUT_MS, &pid) == 0 && pid == c->pid, "accept");
}

static void child_tell(const struct child *c, char command)
{
	unit_must(write(c->in, &command, 1) == 1, "command");
}

/* Detached, and here again. */
static void child_again(const struct child *c)
{
	pid_t pid;

	child_tell(c, 'r');
	domain_drop(&domain, c->pid);
	unit_must(domain_accept(&domain, ATTACH_TIMEOUT_MS, &pid) == 0 && pid == c->pid, "accept");
}

static void child_fill(const struct child *c, uint64_t base)
{
	char answer;

	child_tell(c, 'f');
	unit_must(write(c->in, &base, sizeof(base)) == sizeof(base) && read(c->out, &answer, 1) == 1, "fill");
}

static void child_reap(struct child *c, int want)
{
	int status;

	unit_must(waitpid(c->pid, &status, 0) == c->pid, "waitpid");
	CU_ASSERT_EQUAL(status, want);
	domain_drop(&domain, c->pid);
	close(c->in);
	close(c->out);
}

static void domain_begin(void)
{
	unit_dir_new(dir);
	unit_must(domain_open(&domain, dir, STORE_FRAMES) == 0, "domain");
}

static void domain_finish(void)
{
	CU_ASSERT_EQUAL(domain_count(&domain), 0);
	domain_close(&domain);
	unit_dir_remove(dir);
}

/* ---- killed while it is merged ---- */

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

struct killer {
	const struct child *victims;
	unsigned count;
	pthread_t thread;
	unsigned in_the_middle;
};

/* Each in another moment of its merging; whoever is never merged is killed in the end. */
static void *killer_main(void *arg)
{
	struct killer *k = arg;

	for (unsigned i = 0; i < k->count; i++) {
		uint64_t end_ns = clock_mono_ns() + 2 * NSEC_PER_SEC;
		size_t now = 0;

		while (now < 1 + i * 8 && clock_mono_ns() < end_ns)
			now = merged_mappings(k->victims[i].pid);
		k->in_the_middle += now > 0;
		kill(k->victims[i].pid, SIGKILL);
	}
	return NULL;
}

/* ---- 100 VMs ---- */

/* Of ten: four attach a second time and end in order, three are killed in the middle, three just end. */
static void wave(unsigned first, unsigned count, unsigned *killed_in_the_middle)
{
	unsigned again = count * 4 / 10, killed = count * 3 / 10;
	struct remap_result result = { 0 };
	struct child children[VMS];
	struct killer killer = { .victims = children + count - killed, .count = killed };

	for (unsigned i = 0; i < count - killed; i++)
		child_start(&children[i], first + i);
	CU_ASSERT_EQUAL(domain_round(&domain, &result), 0);
	CU_ASSERT_TRUE(result.merged_pages > (uint64_t)(count - killed - 1) * RAM_PAGES / 2);
	for (unsigned i = 0; i < again; i++)
		child_again(&children[i]);
	for (unsigned i = count - killed; i < count; i++)
		child_start(&children[i], first + i);
	unit_must(pthread_create(&killer.thread, NULL, killer_main, &killer) == 0, "pthread_create");
	CU_ASSERT_EQUAL(domain_round(&domain, &result), 0);
	pthread_join(killer.thread, NULL);
	*killed_in_the_middle += killer.in_the_middle;
	for (unsigned i = 0; i < count - killed; i++)
		child_tell(&children[i], i < again ? 'd' : 'x');
	for (unsigned i = 0; i < count; i++)
		child_reap(&children[i], i < count - killed ? 0 : SIGKILL);
}

static void test_vms_hundred_come_and_go_nothing_left(void)
{
	const char *at_once = getenv("VMS_AT_ONCE");
	unsigned wave_vms = at_once ? (unsigned)strtoul(at_once, NULL, 10) : 10, middle = 0;
	struct holds start, warm = { 0 }, end;
	uint64_t pages = 0;

	wave_vms = wave_vms < 4 ? 4 : wave_vms > VMS ? VMS : wave_vms;
	domain_begin();
	start = holds_now();
	for (unsigned first = 0; first < VMS; first += wave_vms) {
		wave(first, wave_vms < VMS - first ? wave_vms : VMS - first, &middle);
		CU_ASSERT_EQUAL(domain_sweep(&domain, &pages), 0);
		CU_ASSERT_EQUAL(pages, 0);
		if (first <= wave_vms) /* frames, their index, and caches are there after two */
			warm = holds_now();
	}
	end = holds_now();
	printf("\n    daemon: fds %zu %zu %zu, mappings %zu %zu %zu, heap %zu %zu %zu; store %lu pages; killed in the middle "
	       "%u\n",
	       start.fds, warm.fds, end.fds, start.maps, warm.maps, end.maps, start.heap_bytes, warm.heap_bytes,
	       end.heap_bytes, remap_memory_pages(domain.remap), middle);
	CU_ASSERT_EQUAL(end.fds, start.fds);
	CU_ASSERT_TRUE(end.maps <= warm.maps + MAPS_SLACK);
	CU_ASSERT_TRUE(end.heap_bytes <= warm.heap_bytes + HEAP_SLACK_BYTES);
	CU_ASSERT_TRUE(middle > 0);
	domain_finish();
}

/* ---- the store ---- */

static void test_vms_all_gone_store_is_empty(void)
{
	struct remap_result result = { 0 };
	struct child children[2];
	uint64_t pages = 0;
	int r;

	domain_begin();
	for (unsigned i = 0; i < ARRAY_SIZE(children); i++)
		child_start(&children[i], i);
	CU_ASSERT_EQUAL(domain_round(&domain, &result), 0);
	CU_ASSERT_TRUE(result.merged_pages > 0);
	CU_ASSERT_TRUE(remap_memory_pages(domain.remap) > 0);
	r = domain_sweep(&domain, &pages);
	CU_ASSERT_EQUAL(r, 0);
	CU_ASSERT_EQUAL(pages, result.filled_frames); /* still mapped */
	child_tell(&children[0], 'd');
	child_tell(&children[1], 'x');
	for (unsigned i = 0; i < ARRAY_SIZE(children); i++)
		child_reap(&children[i], 0);
	r = domain_sweep(&domain, &pages);
	domain_finish();
	CU_ASSERT_EQUAL(r, 0);
	CU_ASSERT_EQUAL(pages, 0);
}

/* Guests that write between the look at their memory and the copy into frames: these frames hold something else than
 * was planned, and must not be taken for it later. */
static void test_vms_written_before_the_fill_still_merged_later(void)
{
	struct remap_result result = { 0 };
	struct child children[2];

	domain_begin();
	for (unsigned i = 0; i < ARRAY_SIZE(children); i++)
		child_start(&children[i], 2 * i);
	CU_ASSERT_EQUAL(domain_scan(&domain), 0);
	for (unsigned i = 0; i < ARRAY_SIZE(children); i++)
		child_fill(&children[i], 500000 + i * 100000);
	CU_ASSERT_EQUAL(domain_merge(&domain, &result), 0);
	/* What the first VM has now is in frames, and stays merged there. The second starts over. */
	for (unsigned i = 0; i < ARRAY_SIZE(children); i++) {
		child_again(&children[i]);
		child_fill(&children[i], 0);
	}
	CU_ASSERT_EQUAL(domain_round(&domain, &result), 0);
	printf("\n    merged %lu pages, unequal runs %lu\n", result.merged_pages, result.unequal_runs);
	CU_ASSERT_EQUAL(result.unequal_runs, 0);
	CU_ASSERT_TRUE(result.merged_pages >= 2 * (RAM_PAGES / 8 * 7));
	for (unsigned i = 0; i < ARRAY_SIZE(children); i++)
		child_tell(&children[i], 'd');
	for (unsigned i = 0; i < ARRAY_SIZE(children); i++)
		child_reap(&children[i], 0);
	domain_finish();
}

/* A fifth of one core: the round takes five times its CPU time at least, however fast the machine is. Only the last
 * windows are not waited for. */
static void test_vms_round_keeps_its_cpu_share(void)
{
	struct remap_result result = { 0 };
	struct child children[2];

	domain_begin();
	domain.limits.cpu_percent = 20;
	for (unsigned i = 0; i < ARRAY_SIZE(children); i++)
		child_start(&children[i], i);
	CU_ASSERT_EQUAL(domain_round(&domain, &result), 0);
	printf("\n    %.3f s of CPU time in %.3f s, %lu windows\n", result.cpu_seconds, result.seconds, result.windows);
	CU_ASSERT_TRUE(result.merged_pages > 0 && result.cpu_seconds > 0);
	CU_ASSERT_TRUE(result.seconds > 3 * result.cpu_seconds);
	domain.limits.min_gain_pages = UINT64_MAX;
	CU_ASSERT_EQUAL(domain_round(&domain, &result), 0);
	CU_ASSERT_EQUAL(result.windows, 0); /* too little to gain */
	for (unsigned i = 0; i < ARRAY_SIZE(children); i++)
		child_tell(&children[i], 'd');
	for (unsigned i = 0; i < ARRAY_SIZE(children); i++)
		child_reap(&children[i], 0);
	domain_finish();
}

static _Atomic bool cancel;

static void *cancel_main(void *arg)
{
	(void)arg;
	unit_must(nanosleep(&(struct timespec){ .tv_nsec = 300 * 1000000 }, NULL) == 0, "nanosleep");
	cancel = true;
	return NULL;
}

/* With a hundredth of a core it would take many seconds. */
static void test_vms_round_cancelled_ends_soon_and_no_byte_wrong(void)
{
	struct remap_result result = { 0 };
	struct child children[2];
	pthread_t thread;

	domain_begin();
	domain.limits.cpu_percent = 1;
	domain.limits.cancel = &cancel;
	for (unsigned i = 0; i < ARRAY_SIZE(children); i++)
		child_start(&children[i], i);
	unit_must(pthread_create(&thread, NULL, cancel_main, NULL) == 0, "pthread_create");
	CU_ASSERT_EQUAL(domain_round(&domain, &result), 0);
	pthread_join(thread, NULL);
	printf("\n    %lu windows in %.3f s\n", result.windows, result.seconds);
	CU_ASSERT_TRUE(result.seconds < 2);
	CU_ASSERT_TRUE(result.windows < 2 * RAM_PAGES / 512);
	for (unsigned i = 0; i < ARRAY_SIZE(children); i++)
		child_tell(&children[i], 'd'); /* looks at every byte */
	for (unsigned i = 0; i < ARRAY_SIZE(children); i++)
		child_reap(&children[i], 0);
	domain_finish();
}

/* ---- given back ---- */

static struct unmerge_result give_back(pid_t pid, bool worn)
{
	const struct unmerge_options options = { .worn = worn };
	struct unmerge_result result = { .error = -ESRCH };
	struct unmerge *u = NULL;

	for (unsigned i = 0; i < DOMAIN_VMS_MAX; i++) {
		if (domain.vms[i].peer && domain.vms[i].pid == pid) {
			unit_must(unmerge_start(&domain.fs, domain.vms[i].peer, &options, &u) == 0, "unmerge_start");
			result = *unmerge_wait(u);
		}
	}
	unmerge_free(u);
	return result;
}

/* What was written since it was merged is worn out, and given back; what was not stays. Then all of another VM. */
static void test_vms_worn_and_all_given_back_no_byte_wrong(void)
{
	struct remap_result merged = { 0 };
	struct child children[3];
	struct unmerge_result r;
	uint64_t pages = 0;

	domain_begin();
	for (unsigned i = 0; i < ARRAY_SIZE(children); i++)
		child_start(&children[i], i);
	CU_ASSERT_EQUAL(domain_round(&domain, &merged), 0);
	CU_ASSERT_TRUE(merged_mappings(children[0].pid) > 0 && merged_mappings(children[1].pid) > 0);
	r = give_back(children[0].pid, true);
	CU_ASSERT_TRUE(r.error == 0 && r.pages == 0);
	child_fill(&children[0], 5000000);
	r = give_back(children[0].pid, true);
	CU_ASSERT_TRUE(r.error == 0 && r.pages > RAM_PAGES / 2 && r.kept == 0);
	CU_ASSERT_EQUAL(merged_mappings(children[0].pid), 0);
	r = give_back(children[1].pid, false);
	CU_ASSERT_TRUE(r.error == 0 && r.pages > RAM_PAGES / 2 && r.kept == 0 && r.stall_us_max > 0);
	CU_ASSERT_EQUAL(merged_mappings(children[1].pid), 0);
	printf("\n    %lu pages in %.3f s with %.3f s of CPU time, a stall of %u us at most (of a merge: %lu)\n", r.pages,
	       r.seconds, r.cpu_seconds, r.stall_us_max, merged.stall_us_max);
	CU_ASSERT_TRUE(merged_mappings(children[2].pid) > 0);
	for (unsigned i = 0; i < ARRAY_SIZE(children); i++)
		child_tell(&children[i], 'x'); /* looks at every byte */
	for (unsigned i = 0; i < ARRAY_SIZE(children); i++)
		child_reap(&children[i], 0);
	for (unsigned i = 0; i < 2; i++)
		CU_ASSERT_EQUAL(domain_sweep(&domain, &pages), 0);
	CU_ASSERT_EQUAL(pages, 0);
	domain_finish();
}

int main(int argc, char **argv)
{
	static CU_TestInfo tests[] = {
		{ "hundred", test_vms_hundred_come_and_go_nothing_left },
		{ "store_empty", test_vms_all_gone_store_is_empty },
		{ "quota", test_vms_round_keeps_its_cpu_share },
		{ "cancelled", test_vms_round_cancelled_ends_soon_and_no_byte_wrong },
		{ "given_back", test_vms_worn_and_all_given_back_no_byte_wrong },
		{ "written_before_fill", test_vms_written_before_the_fill_still_merged_later },
		CU_TEST_INFO_NULL,
	};
	const char *why = "a userfaultfd cannot be opened";
	int fd;

	if (argc == 3 && strcmp(argv[0], "vm") == 0)
		return vm_main(argv[1], argv[2]);
	fd = uffd_open();
	if (fd < 0 || uffd_probe(fd, &why) < 0) {
		printf("skip: vms: %s\n", why);
		return 77;
	}
	close(fd);
	signal(SIGPIPE, SIG_IGN);
	alarm(600); /* a lost wake-up would be a hang */
	return unit_main("vms", tests);
}
