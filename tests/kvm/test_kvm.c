/* Two small virtual machines under KVM, merged at full speed while their guests write, verify, give memory back and
 * read from a disk. KVM_SECONDS: how long each test takes. */
#include <linux/kvm.h>
#include <poll.h>
#include <sys/ioctl.h>

#include "agent/uffd.h"
#include "core/clock.h"
#include "tests/lib/domain.h"
#include "tests/unit/unit.h"

#define VMS 2u
#define STORE_FRAMES (64u * 512)
#define ATTACH_TIMEOUT_MS 20000
#define ROUNDS_MERGING 5u /* at least so many in which pages were merged, however long it takes */

struct vmm {
	pid_t pid;
	int in, out; /* the ends of its standard input and output that are ours */
};

static uint64_t test_ns(void)
{
	const char *seconds = getenv("KVM_SECONDS");

	return (seconds ? strtoul(seconds, NULL, 10) : 4) * NSEC_PER_SEC;
}

static void vmm_start(struct vmm *v, const char *socket_path, unsigned seed, bool huge)
{
	const char *build = getenv("BUILD");
	char path[PATH_MAX], number[16];
	int in[2], out[2];

	snprintf(path, sizeof(path), "%s/tests/tiny-vmm", build ? build : "build");
	snprintf(number, sizeof(number), "%u", seed);
	unit_must(pipe2(in, O_CLOEXEC) == 0 && pipe2(out, O_CLOEXEC) == 0, "pipe");
	v->pid = fork();
	unit_must(v->pid >= 0, "fork");
	if (v->pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		dup2(in[0], STDIN_FILENO);
		dup2(out[1], STDOUT_FILENO);
		execl(path, "tiny-vmm", socket_path, number, huge ? "huge" : NULL, NULL);
		perror(path);
		_exit(127);
	}
	close(in[0]);
	close(out[1]);
	v->in = in[1];
	v->out = out[0];
}

/* Its last words, when it has ended: figures by name. -1: there is none of that name. */
static long figure(const char *line, const char *name)
{
	const char *at = strstr(line, name);

	return at ? strtol(at + strlen(name), NULL, 10) : -1;
}

static void vmm_end(struct vmm *v, char line[512])
{
	int status;
	ssize_t n = read(v->out, line, 511);

	line[n > 0 ? n : 0] = '\0';
	unit_must(waitpid(v->pid, &status, 0) == v->pid, "waitpid");
	CU_ASSERT_EQUAL(status, 0);
	close(v->out);
}

struct account {
	unsigned rounds, merging;
	uint64_t merged, zero, unequal, busy, stall_us_max;
};

static void round_once(struct domain *d, struct account *a)
{
	struct remap_result result = { 0 };

	CU_ASSERT_EQUAL(domain_round(d, &result), 0);
	a->rounds++;
	a->merging += result.merged_pages > 0;
	a->merged += result.merged_pages;
	a->zero += result.zero_pages;
	a->unequal += result.unequal_runs;
	a->busy += result.busy_runs;
	if (result.stall_us_max > a->stall_us_max)
		a->stall_us_max = result.stall_us_max;
}

/* Is one still running? Merging goes on while the VMMs check, discard and detach. */
static bool vmms_run(const struct vmm *vmms)
{
	struct pollfd fds[VMS];
	unsigned ended = 0;

	for (unsigned i = 0; i < VMS; i++)
		fds[i] = (struct pollfd){ .fd = vmms[i].out, .events = POLLIN };
	unit_must(poll(fds, VMS, 0) >= 0, "poll");
	for (unsigned i = 0; i < VMS; i++)
		ended += fds[i].revents != 0;
	return ended < VMS;
}

static void vmms_end(struct vmm *vmms)
{
	char line[512];

	for (unsigned i = 0; i < VMS; i++) {
		vmm_end(&vmms[i], line);
		printf("\n    VM %u: %s", i, line);
		CU_ASSERT_EQUAL(figure(line, "bad "), 0);
		CU_ASSERT_TRUE(figure(line, "actions ") > 0);
		CU_ASSERT_TRUE(figure(line, "merged ") > 0);
		CU_ASSERT_TRUE(figure(line, "copied_pages ") > 0);
	}
}

static void guests_merged(bool huge)
{
	uint64_t end_ns = clock_mono_ns() + test_ns();
	struct account a = { 0 };
	struct vmm vmms[VMS];
	char dir[UNIT_DIR_MAX];
	struct domain d;
	pid_t pid;

	unit_dir_new(dir);
	unit_must(domain_open(&d, dir, STORE_FRAMES) == 0, "domain");
	for (unsigned i = 0; i < VMS; i++) {
		vmm_start(&vmms[i], d.path, i, huge);
		CU_ASSERT_EQUAL_FATAL(domain_accept(&d, ATTACH_TIMEOUT_MS, &pid), 0);
	}
	while (clock_mono_ns() < end_ns || a.merging < ROUNDS_MERGING)
		round_once(&d, &a);
	for (unsigned i = 0; i < VMS; i++)
		close(vmms[i].in);
	while (vmms_run(vmms))
		round_once(&d, &a);
	vmms_end(vmms);
	printf("    rounds %u, merging %u; pages merged %lu zero %lu; runs unequal %lu busy %lu; longest stall %lu us\n",
	       a.rounds, a.merging, a.merged, a.zero, a.unequal, a.busy, a.stall_us_max);
	CU_ASSERT_TRUE(a.zero > 0);
	domain_close(&d);
	unit_dir_remove(dir);
}

static void test_kvm_small_pages_no_byte_wrong(void)
{
	guests_merged(false);
}

static void test_kvm_huge_pages_no_byte_wrong(void)
{
	guests_merged(true);
}

static bool kvm_works(void)
{
	auto_close int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	auto_close int vm = kvm < 0 ? -1 : ioctl(kvm, KVM_CREATE_VM, 0);

	return vm >= 0;
}

int main(void)
{
	static CU_TestInfo tests[] = {
		{ "small", test_kvm_small_pages_no_byte_wrong },
		{ "huge", test_kvm_huge_pages_no_byte_wrong },
		CU_TEST_INFO_NULL,
	};
	const char *why = "a userfaultfd cannot be opened";
	int fd = uffd_open();

	if (fd < 0 || uffd_probe(fd, &why) < 0) {
		printf("skip: kvm: %s\n", why);
		return 77;
	}
	close(fd);
	if (!kvm_works()) {
		printf("skip: kvm: /dev/kvm: %s\n", strerror(errno));
		return 77;
	}
	signal(SIGPIPE, SIG_IGN);
	alarm(240 + (unsigned)(2 * test_ns() / NSEC_PER_SEC)); /* a lost wake-up would be a hang */
	return unit_main("kvm", tests);
}
