/* ksmd as a module over VMs with agents: rounds, looks, debt and demotion. The VMs are children that link the agent;
 * of the host only /proc and the userfaultfd are real. Time is made up, so looks and holds cost none. */
#include <poll.h>

#include "agent/memvirt-agent.h"
#include "agent/uffd.h"
#include "core/clock.h"
#include "core/log.h"
#include "ksmd/ksmd.h"
#include "tests/unit/unit.h"

#define PAGES 8192u /* of each VM; both hold the same */
#define PARTS 8u
#define VMS 2
#define TRIES 300

struct child {
	pid_t pid;
	int pidfd, to, from;
	char *ram;
};

struct world {
	char dir[UNIT_DIR_MAX];
	struct fsio fs;
	struct config config;
	struct ksmd *ksmd;
	struct child children[VMS];
	struct mem_region regions[VMS];
	struct vm_snapshot vms[VMS];
	struct host_snapshot s;
};

/* ---- a VM ---- */

/* Commands: b: break the next part; w: write to all pages; c: is every byte right?. */
static void child_main(const char *socket_path, int from, int to)
{
	char *ram = unit_map(PAGES), want[PAGE_BYTES], c;
	struct memvirt_agent *agent = NULL;
	const char *why = "";
	unsigned part = 0;

	for (size_t i = 0; i < PAGES; i++)
		unit_page_fill(ram + i * PAGE_BYTES, i + 1);
	unit_must(write(to, &ram, sizeof(ram)) == sizeof(ram), "write");
	unit_must(memvirt_agent_attach(socket_path, &agent, &why) == 0, why);
	unit_must(memvirt_agent_add_slot(agent, ram, PAGES * (size_t)PAGE_BYTES, &why) == 0, why);
	while (read(from, &c, 1) == 1) {
		for (size_t i = 0; i < PAGES; i++) {
			volatile char *page = ram + i * PAGE_BYTES;

			unit_page_fill(want, i + 1);
			if (c == 'w' || (c == 'b' && i % PARTS == part))
				*page = *page;
			if (c == 'c')
				unit_must(memcmp(want, ram + i * PAGE_BYTES, PAGE_BYTES) == 0, "a page is wrong");
		}
		part += c == 'b';
		unit_must(write(to, &c, 1) == 1, "write");
	}
	_exit(0);
}

static void child_start(struct child *c, const char *socket_path)
{
	int there[2], back[2];

	unit_must(pipe2(there, O_CLOEXEC) == 0 && pipe2(back, O_CLOEXEC) == 0, "pipe");
	c->pid = fork();
	unit_must(c->pid >= 0, "fork");
	if (c->pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close(there[1]);
		child_main(socket_path, there[0], back[1]);
	}
	close(there[0]);
	close(back[1]);
	c->to = there[1];
	c->from = back[0];
	c->pidfd = (int)syscall(SYS_pidfd_open, c->pid, 0);
	unit_must(c->pidfd >= 0 && read(c->from, &c->ram, sizeof(c->ram)) == sizeof(c->ram), "child");
}

static void tell(struct child *c, char command)
{
	char done = 0;

	unit_must(write(c->to, &command, 1) == 1, "write");
	CU_ASSERT_TRUE(read(c->from, &done, 1) == 1 && done == command);
}

/* ---- the host ---- */

static void world_begin(struct world *w)
{
	memset(w, 0, sizeof(*w));
	unit_dir_new(w->dir);
	unit_must(fsio_open_root(w->dir, false, &w->fs) == 0, w->dir);
	unit_must(symlinkat("/proc", w->fs.root_fd, "proc") == 0, "symlink");
	config_init(&w->config);
	snprintf(w->config.agent_socket, sizeof(w->config.agent_socket), "%.90s/agent", w->dir);
	w->config.scan_workers = 1;
	w->config.scan_cpu_percent = w->config.merge_cpu_percent = 25600; /* no pauses */
	w->config.scan_rest_permille = 1000;
	w->config.merge_min_gain_bytes = 1 << 20;
	w->s = (struct host_snapshot){ .taken_ns = clock_mono_ns(), .vms = w->vms, .vm_count = VMS,
				       .mem_total_bytes = UINT64_C(8) << 30, .mem_available_bytes = UINT64_C(4) << 30 };
	unit_must(ksmd_new(&w->fs, &w->config, &w->ksmd) == 0 && ksmd_listen(w->ksmd) == 0, "ksmd");
	for (size_t i = 0; i < VMS; i++) {
		static const char *const names[] = { "a", "b" };
		struct child *c = &w->children[i];

		child_start(c, w->config.agent_socket);
		w->regions[i] = (struct mem_region){ (uintptr_t)c->ram, PAGES * (uint64_t)PAGE_BYTES, MEM_ANON };
		w->vms[i] = (struct vm_snapshot){ .name = names[i], .uuid = names[i], .domain = "one", .pid = c->pid,
						  .pidfd = c->pidfd, .regions = &w->regions[i], .region_count = 1,
						  .merge_allowed = true };
	}
}

static void world_end(struct world *w)
{
	for (size_t i = 0; i < VMS; i++)
		tell(&w->children[i], 'c');
	w->ksmd = ksmd_free(w->ksmd);
	for (size_t i = 0; i < VMS; i++) {
		kill(w->children[i].pid, SIGKILL);
		waitpid(w->children[i].pid, NULL, 0);
		close(w->children[i].to);
		close(w->children[i].from);
		close(w->children[i].pidfd);
	}
	config_free(&w->config);
	fsio_close(&w->fs);
	unit_dir_remove(w->dir);
}

static void tick(struct world *w, uint64_t seconds)
{
	w->s.taken_ns += seconds * NSEC_PER_SEC;
	ksmd_agents_dispatch(w->ksmd);
	CU_ASSERT_EQUAL(ksmd_ops.sense(w->ksmd, &w->s), 0);
	CU_ASSERT_EQUAL(ksmd_ops.decide(w->ksmd, &w->s), 0);
	CU_ASSERT_EQUAL(ksmd_ops.apply(w->ksmd, false), 0);
}

/* A tick, and more until no pass and no round is at work. */
static void settle(struct world *w, uint64_t seconds)
{
	tick(w, seconds);
	for (unsigned i = 0; i < TRIES && (ksmd_pass_fd(w->ksmd) >= 0 || ksmd_round_fd(w->ksmd) >= 0); i++) {
		struct pollfd ends[] = { { ksmd_pass_fd(w->ksmd), POLLIN, 0 }, { ksmd_round_fd(w->ksmd), POLLIN, 0 } };

		poll(ends, 2, 1000);
		tick(w, 0);
	}
}

static struct ksmd_status status(const struct world *w)
{
	struct ksmd_status st;

	ksmd_status(w->ksmd, &st);
	return st;
}

static struct ksmd_breaks breaks(const struct world *w, size_t vm)
{
	struct ksmd_breaks b = { 0 };

	CU_ASSERT_TRUE(ksmd_vm_breaks(w->ksmd, &w->vms[vm], &b));
	return b;
}

static bool refused(const struct world *w, size_t vm, const char *why)
{
	struct engine_refusal refusals[ENGINE_REFUSALS_MAX];
	size_t count = 0;
	enum merge_engine engine = ksmd_vm_engine(w->ksmd, &w->s, &w->vms[vm], refusals, &count);

	return engine == MERGE_ENGINE_OFF && count > 0 && strstr(refusals[0].why, why);
}

/* Until both VMs' agents have connected and their memory is merged. */
static void merge_all(struct world *w)
{
	for (unsigned i = 0; i < TRIES && status(w).rounds == 0; i++) {
		struct pollfd agents = { ksmd_agents_fd(w->ksmd), POLLIN, 0 };

		poll(&agents, 1, 20);
		settle(w, 60);
	}
	CU_ASSERT_EQUAL(status(w).rounds, 1);
}

/* ---- tests ---- */

static void test_agents_breaks_are_seen_and_vm_demoted_for_a_while(void)
{
	struct ksmd_domain_breaks domain;
	struct unit_stderr capture;
	auto_free char *text = NULL;
	unsigned looks = 0;
	struct world w;

	unit_stderr_begin(&capture);
	world_begin(&w);
	merge_all(&w);
	CU_ASSERT_EQUAL(status(&w).merged_pages, VMS * PAGES);
	CU_ASSERT_EQUAL(status(&w).debt->pages, VMS * PAGES / 5);
	CU_ASSERT_EQUAL(breaks(&w, 0).figures.mapped_pages, PAGES);
	CU_ASSERT_EQUAL(breaks(&w, 0).per_s, 0);
	for (unsigned i = 0; i < 3; i++) {
		CU_ASSERT_FALSE(breaks(&w, 0).demoted);
		tell(&w.children[0], 'b');
		settle(&w, 16);
		CU_ASSERT_EQUAL(breaks(&w, 0).figures.broken_pages, (i + 1) * PAGES / PARTS);
	}
	CU_ASSERT_TRUE(breaks(&w, 0).per_s > 30 && breaks(&w, 0).per_s < 65); /* 64 a second, on its way there */
	CU_ASSERT_EQUAL(breaks(&w, 1).per_s, 0);
	CU_ASSERT_EQUAL(status(&w).merged_pages, VMS * PAGES - 3 * PAGES / PARTS);
	CU_ASSERT_TRUE(ksmd_domain_breaks(w.ksmd, 0, &domain) && domain.per_s == breaks(&w, 0).per_s);
	CU_ASSERT_EQUAL(domain.merged_pages, status(&w).merged_pages);
	CU_ASSERT_TRUE(breaks(&w, 0).demoted && !breaks(&w, 1).demoted);
	tick(&w, 1);
	CU_ASSERT_TRUE(refused(&w, 0, "keep breaking") && !refused(&w, 1, "keep breaking"));
	tell(&w.children[1], 'w');
	settle(&w, 16);
	CU_ASSERT_EQUAL(breaks(&w, 1).figures.breaks, PAGES); /* worn out, and given back since */
	while (breaks(&w, 0).demoted && looks++ < 100)
		settle(&w, 16);
	CU_ASSERT_TRUE(looks >= 600 / 16 && looks <= 600 / 16 + 2);
	tick(&w, 1);
	CU_ASSERT_FALSE(refused(&w, 0, "keep breaking"));
	world_end(&w);
	text = unit_stderr_end(&capture);
	CU_ASSERT_PTR_NOT_NULL(strstr(text, "demote vm=a why=\"its merges keep breaking"));
	CU_ASSERT_PTR_NOT_NULL(strstr(text, "promote vm=a why="));
	CU_ASSERT_PTR_NOT_NULL(strstr(text, "burst vm=b broke=32 MiB"));
	CU_ASSERT_PTR_NULL(strstr(text, "burst vm=a"));
}

/* Never faster than a quota allows, the last window apart, after which nothing is waited for; slower is the machine's
 * business. */
static void test_agents_round_keeps_its_quotas(void)
{
	static const uint64_t quotas[][2] = { { 20, 0 }, { 0, 48 << 20 } }; /* windows, bytes per second */

	for (size_t i = 0; i < ARRAY_SIZE(quotas); i++) {
		const struct remap_result *m;
		double bytes;
		struct world w;

		world_begin(&w);
		w.config.merge_windows_per_s = quotas[i][0];
		w.config.merge_bytes_per_s = quotas[i][1];
		merge_all(&w);
		m = status(&w).last_round;
		bytes = (double)m->exchanged_pages * PAGE_BYTES;
		printf("\n    %lu windows, %.0f MiB in %.2f s\n", m->windows, bytes / 1048576, m->exchange_seconds);
		CU_ASSERT_EQUAL(m->merged_pages, VMS * PAGES);
		CU_ASSERT_TRUE(m->exchanged_pages >= m->merged_pages);
		if (quotas[i][0])
			CU_ASSERT_TRUE((double)(m->windows - 1) <= (double)quotas[i][0] * m->exchange_seconds);
		if (quotas[i][1])
			CU_ASSERT_TRUE(bytes - 512 * PAGE_BYTES <= (double)quotas[i][1] * m->exchange_seconds);
		world_end(&w);
	}
}

/* Ten windows a second: it is stopped long before its end, and goes on later with the same connections. */
static void test_agents_debt_stops_a_round_at_work(void)
{
	struct unit_stderr capture;
	auto_free char *text = NULL;
	struct world w;

	unit_stderr_begin(&capture);
	world_begin(&w);
	/* Behind the clock by which it is remembered, for half an hour, what a round could not get. */
	w.s.taken_ns -= w.s.taken_ns > 1000 * NSEC_PER_SEC ? 1000 * NSEC_PER_SEC : 0;
	w.config.merge_windows_per_s = 10;
	for (unsigned i = 0; i < TRIES && status(&w).merged_pages < 1024; i++) {
		struct pollfd agents = { ksmd_agents_fd(w.ksmd), POLLIN, 0 };

		poll(&agents, 1, 20);
		tick(&w, 1);
	}
	CU_ASSERT_TRUE(status(&w).merging);
	w.s.mem_available_bytes = 128 << 20; /* the reserve */
	settle(&w, 1);
	CU_ASSERT_EQUAL(status(&w).debt->state, DEBT_STOP);
	CU_ASSERT_EQUAL(status(&w).rounds, 1);
	CU_ASSERT_TRUE(status(&w).last_round->windows < VMS * PAGES / 512);
	for (unsigned i = 0; i < 5; i++)
		settle(&w, 60);
	CU_ASSERT_EQUAL(status(&w).rounds, 1);
	w.config.merge_windows_per_s = 0;
	w.s.mem_available_bytes = UINT64_C(4) << 30;
	for (unsigned i = 0; i < 3; i++)
		settle(&w, 60);
	CU_ASSERT_EQUAL(status(&w).debt->state, DEBT_OK);
	CU_ASSERT_EQUAL(status(&w).rounds, 2);
	CU_ASSERT_EQUAL(status(&w).merged_pages, VMS * PAGES);
	world_end(&w);
	text = unit_stderr_end(&capture);
	CU_ASSERT_PTR_NOT_NULL(strstr(text, "debt stop why=\""));
	CU_ASSERT_PTR_NOT_NULL(strstr(text, "debt ok why=\""));
	CU_ASSERT_PTR_NULL(strstr(text, "gives no answer"));
}

int main(void)
{
	static CU_TestInfo tests[] = {
		{ "demote", test_agents_breaks_are_seen_and_vm_demoted_for_a_while },
		{ "quotas", test_agents_round_keeps_its_quotas },
		{ "debt", test_agents_debt_stops_a_round_at_work },
		CU_TEST_INFO_NULL,
	};
	const char *why = "a userfaultfd cannot be opened";
	int fd = geteuid() == 0 ? uffd_open() : -1;

	if (fd < 0 || uffd_probe(fd, &why) < 0) {
		printf("skip: ksmd_agents: %s\n", geteuid() == 0 ? why : "needs root");
		return 77;
	}
	close(fd);
	return unit_main("ksmd_agents", tests);
}
