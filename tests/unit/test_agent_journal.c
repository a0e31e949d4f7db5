/* ksmd/agent_journal: what is taken from a VMM with its hello, which may be hostile, and what is done with it. */
#include "ksmd/agent_journal.h"

#include <poll.h>

#include "agent/uffd.h"
#include "core/kernel_abi.h"
#include "tests/unit/unit.h"

static void test_journal_unfit_refused(void)
{
	static const struct {
		const char *what;
		int seals;
		off_t bytes;
		int want;
	} cases[] = {
		{ "good", F_SEAL_SHRINK | F_SEAL_GROW, PAGE_BYTES, 0 },
		{ "can shrink", F_SEAL_GROW, PAGE_BYTES, -EPROTO },
		{ "no seals", 0, PAGE_BYTES, -EPROTO },
		{ "empty", F_SEAL_SHRINK | F_SEAL_GROW, 0, -EPROTO },
		{ "short", F_SEAL_SHRINK | F_SEAL_GROW, PAGE_BYTES - 1, -EPROTO },
	};
	struct exchange_journal *j;
	int pipe_fds[2];

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		int fd = memfd_create("journal", MFD_CLOEXEC | MFD_ALLOW_SEALING);

		unit_must(fd >= 0 && ftruncate(fd, cases[i].bytes) == 0, "memfd");
		unit_must(cases[i].seals == 0 || fcntl(fd, F_ADD_SEALS, cases[i].seals) == 0, "seal");
		j = NULL;
		UNIT_CASE(cases[i].what, agent_journal_map(fd, &j) == cases[i].want);
		agent_journal_unmap(j);
		UNIT_CASE(cases[i].what, agent_journal_check_uffd(fd) == -EPROTO);
		close(fd);
	}
	unit_must(pipe(pipe_fds) == 0, "pipe");
	CU_ASSERT_EQUAL(agent_journal_map(pipe_fds[0], &j), -EPROTO);
	CU_ASSERT_EQUAL(agent_journal_map(-1, &j), -EPROTO);
	CU_ASSERT_EQUAL(agent_journal_check_uffd(-1), -EPROTO);
	close(pipe_fds[0]);
	close(pipe_fds[1]);
}

/* An executor that lives, however slow, must not find its window repaired: it would map frames over what the guest
 * has written since. */
static void test_journal_repaired_only_when_thread_is_dead(void)
{
	struct exchange_journal j = { .version = EXCHANGE_JOURNAL_VERSION, .step = STEP_MOVE, .window = 2u << 20,
				      .staging = 4u << 20, .pages = 1, .tid = (uint32_t)getpid() };
	auto_close int pidfd = (int)syscall(SYS_pidfd_open, getpid(), 0);
	pid_t child;

	CU_ASSERT_EQUAL(agent_journal_repair(&j, getpid(), pidfd, -1, -1), 0);
	CU_ASSERT_EQUAL(j.step, STEP_MOVE);
	j.tid = 0; /* nobody has said who: in doubt it lives */
	CU_ASSERT_EQUAL(agent_journal_repair(&j, getpid(), pidfd, -1, -1), 0);
	child = fork();
	if (child == 0)
		_exit(0);
	j.tid = (uint32_t)child; /* a number that no thread of ours has */
	CU_ASSERT_TRUE(agent_journal_repair(&j, getpid(), pidfd, -1, -1) < 0); /* it tries: there is no userfaultfd */
	CU_ASSERT_EQUAL(j.step, STEP_MOVE);
	j.pages = 100000; /* hostile */
	CU_ASSERT_EQUAL(agent_journal_repair(&j, getpid(), pidfd, -1, -1), -EBADMSG);
	j.step = STEP_IDLE;
	CU_ASSERT_EQUAL(agent_journal_repair(&j, getpid(), pidfd, -1, -1), 0);
	waitpid(child, NULL, 0);
}

/* "Staging" is memory that nobody will ever fill, with a mark in its page table by which it seems to be in swap. */
static char *bottomless_make(int uffd)
{
	char *map = unit_map(512);
	struct uffdio_writeprotect mark = { { (uintptr_t)map, PAGE_BYTES }, UFFDIO_WRITEPROTECT_MODE_WP };

	unit_must(uffd_register(uffd, (uintptr_t)map, 512 * PAGE_BYTES,
				UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP) == 0, "UFFDIO_REGISTER");
	unit_must(ioctl(uffd, UFFDIO_WRITEPROTECT, &mark) == 0, "UFFDIO_WRITEPROTECT");
	return map;
}

/* The daemon repairs on its loop: it must not wait for a hostile VMM there. */
static void test_journal_hostile_staging_does_not_hang(void)
{
	struct exchange_journal j = { .version = EXCHANGE_JOURNAL_VERSION, .step = STEP_MOVE, .pages = 1 };
	auto_close int pidfd = (int)syscall(SYS_pidfd_open, getpid(), 0), uffd = uffd_open();
	struct pollfd ended = { .fd = -1, .events = POLLIN };
	pid_t daemon, vmm = getpid();
	int status = -1;

	if (uffd < 0)
		UNIT_SKIP("no userfaultfd that can move pages");
	j.staging = (uintptr_t)bottomless_make(uffd);
	j.window = (uintptr_t)unit_map(512);
	daemon = fork();
	unit_must(daemon >= 0, "fork");
	if (daemon == 0) {
		j.tid = (uint32_t)getpid(); /* no thread of the VMM */
		_exit(agent_journal_repair(&j, vmm, pidfd, uffd, -1) < 0 ? 0 : 1);
	}
	ended.fd = (int)syscall(SYS_pidfd_open, daemon, 0);
	CU_ASSERT_EQUAL(poll(&ended, 1, 3000), 1);
	kill(daemon, SIGKILL);
	waitpid(daemon, &status, 0);
	CU_ASSERT_EQUAL(status, 0);
	close(ended.fd);
	munmap((void *)(uintptr_t)j.staging, 512 * PAGE_BYTES);
	munmap((void *)(uintptr_t)j.window, 512 * PAGE_BYTES);
}

int main(void)
{
	static CU_TestInfo tests[] = {
		{ "unfit", test_journal_unfit_refused },
		{ "repair", test_journal_repaired_only_when_thread_is_dead },
		{ "repair_hostile", test_journal_hostile_staging_does_not_hang },
		CU_TEST_INFO_NULL,
	};

	return unit_main("agent_journal", tests);
}
