/* libmemvirt-agent.so in a VMM that knows nothing of it (tests/preload/vmm.c); the test plays its daemon. */
#include <grp.h>
#include <libgen.h>
#include <sys/time.h>

#include "core/clock.h"
#include "tests/preload/vmm.h"
#include "tests/unit/agent_rig.h"

static char library[PATH_MAX + 32], program[PATH_MAX + 16];

/* ---- a VMM ---- */

struct vmm {
	pid_t pid;
	int to, from;
	struct unit_stderr err;
	uint64_t rams[VMM_SCENARIOS];
};

struct vmm_options {
	bool nobody;
	const char *what; /* argument of the VMM */
};

static void vmm_exec(int to, int from, const struct vmm_options *o)
{
	int high_to = fcntl(to, F_DUPFD, 20), high_from = fcntl(from, F_DUPFD, 20);

	dup2(high_to, VMM_TO_FD);
	dup2(high_from, VMM_FROM_FD);
	close_range(VMM_FROM_FD + 1, ~0U, 0);
	setenv("LD_PRELOAD", library, 1);
	setenv("MEMVIRT_AGENT_SOCKET", rig.path, 1);
	if (o->nobody && (setgroups(0, NULL) < 0 || setresgid(65534, 65534, 65534) < 0 ||
			  setresuid(65534, 65534, 65534) < 0))
		_exit(3);
	execl(program, program, o->what, NULL);
	_exit(4);
}

static void vmm_start(struct vmm *v, const struct vmm_options *o)
{
	int to[2], from[2];

	unit_must(pipe2(to, O_CLOEXEC) == 0 && pipe2(from, O_CLOEXEC) == 0, "pipe");
	unit_stderr_begin(&v->err);
	v->pid = fork();
	unit_must(v->pid >= 0, "fork");
	if (v->pid == 0)
		vmm_exec(to[0], from[1], o);
	close(to[0]);
	close(from[1]);
	v->to = to[1];
	v->from = from[0];
	unit_must(read(v->from, v->rams, sizeof(v->rams)) == sizeof(v->rams), "the VMM");
}

/* Its exit status; *ret_text: what it wrote to standard error. */
static int vmm_end(struct vmm *v, char **ret_text)
{
	int status = -1;

	close(v->to);
	waitpid(v->pid, &status, 0);
	close(v->from);
	*ret_text = unit_stderr_end(&v->err);
	return status;
}

static void vmm_go(struct vmm *v, int scenario)
{
	unsigned char number = (unsigned char)scenario;

	unit_must(write(v->to, &number, 1) == 1, "the VMM");
}

/* 0, or the line that failed. */
static int vmm_result(struct vmm *v)
{
	int line = -1;

	if (read(v->from, &line, sizeof(line)) != sizeof(line))
		return -1;
	if (line != 0)
		printf("\n    %s: line %d\n", "tests/preload/vmm.c", line);
	return line;
}

static int vmm_do(struct vmm *v, int scenario)
{
	vmm_go(v, scenario);
	return vmm_result(v);
}

/* ---- its daemon ---- */

static bool daemon_accept(unsigned ms)
{
	struct timeval timeout = { .tv_sec = 10 };
	struct pollfd pfd = { .fd = rig.listener, .events = POLLIN };

	if (poll(&pfd, 1, (int)ms) != 1)
		return false;
	rig.sock = accept4(rig.listener, NULL, NULL, SOCK_CLOEXEC);
	return rig.sock >= 0 && setsockopt(rig.sock, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout)) == 0;
}

/* The next packet of this type, about the memory at hva (0: any); others are passed over. */
static bool packet_of(unsigned type, uint64_t hva)
{
	while (packet_receive(rig.sock, &rig.in, 0) == 0) {
		if (rig.in.header.type == type && (hva == 0 || rig.in.range.hva == hva))
			return true;
		packet_close(&rig.in);
	}
	return false;
}

static bool slot_told(uint64_t hva, const char *why)
{
	bool told = packet_of(AGENT_SLOT, hva) && strcmp(rig.in.slot.why, why) == 0;

	if (!told)
		printf("\n    told: \"%s\"\n", rig.in.slot.why);
	return told;
}

/* Hello, all slots, the store. */
static bool daemon_meets(void)
{
	return packet_of(AGENT_HELLO, 0) && (packet_close(&rig.in), true) &&
	       daemon_send_store(rig.store_ro, FRAMES) == 0;
}

static bool slots_come(unsigned n)
{
	while (n > 0 && packet_of(AGENT_SLOT, 0))
		n--;
	return n == 0;
}

/* Frame f holds what page f holds. *ret_merged: how many pages. */
static int daemon_merge(uint64_t window, unsigned first, unsigned pages, uint32_t frame)
{
	struct packet *p = merge_new(0);
	struct agent_merged *m;

	packet_merge(p)->window = window;
	merge_run(p, first, pages, frame);
	if (packet_send(rig.sock, p->bytes, p->len, NULL, 0) < 0 || !packet_of(AGENT_MERGED, 0))
		return -EIO;
	m = packet_merged(&rig.in);
	return m->error < 0 ? m->error : m->results[0].merged;
}

/* A page may be busy for a moment, whatever else goes on in this machine. Those that are merged are absent then. */
static bool daemon_merges_all(uint64_t window, unsigned first, unsigned pages, uint32_t frame)
{
	unsigned merged = 0;

	for (unsigned tries = 0; tries < 20 && merged < pages; tries++) {
		int got = daemon_merge(window, first, pages, frame);

		if (got < 0)
			return false;
		merged += (unsigned)got;
		if (merged < pages)
			poll(NULL, 0, 10);
	}
	if (merged != pages)
		printf("\n    merged %u of %u, outcome %u\n", merged, pages, packet_merged(&rig.in)->results[0].outcome);
	return merged == pages;
}

/* ---- every call on merged memory ---- */

static struct vmm vmm;

static bool rams_merged(void)
{
	for (int i = 0; i < VMM_SCENARIOS; i++) {
		if (vmm.rams[i] == 0 || i == VMM_RACE)
			continue;
		if (!daemon_merges_all(vmm.rams[i], 0, VMM_MERGED, 0) ||
		    !daemon_merges_all(vmm.rams[i], VMM_ZERO_FIRST, VMM_ZERO_END - VMM_ZERO_FIRST, AGENT_ZERO))
			return false;
	}
	return true;
}

static bool vmm_meets(void)
{
	static const struct vmm_options plain = { 0 };
	unsigned n = 0;

	vmm_start(&vmm, &plain);
	for (int i = 0; i < VMM_SCENARIOS; i++)
		n += vmm.rams[i] != 0;
	return daemon_accept(5000) && daemon_meets() && slots_come(n);
}

static void check_end(const char *text)
{
	auto_free char *err = NULL;
	int status;

	close(rig.sock);
	status = vmm_end(&vmm, &err);
	CU_ASSERT_EQUAL(status, 0);
	CU_ASSERT_STRING_EQUAL(err, text);
}

static void check_discards(void)
{
	CU_ASSERT_EQUAL(vmm_do(&vmm, VMM_DONTNEED), 0);
	CU_ASSERT_TRUE(packet_of(AGENT_RELEASED, vmm.rams[VMM_DONTNEED] + 50 * VMM_PAGE));
	CU_ASSERT_EQUAL(rig.in.range.bytes, 100 * VMM_PAGE);
	CU_ASSERT_EQUAL(vmm_do(&vmm, VMM_FREE), 0);
	CU_ASSERT_TRUE(packet_of(AGENT_RELEASED, vmm.rams[VMM_FREE]));
	CU_ASSERT_EQUAL(vmm_do(&vmm, VMM_REMOVE), 0);
	CU_ASSERT_TRUE(daemon_merges_all(vmm.rams[VMM_DONTNEED], 60, 1, 60));
}

static void check_mappings(void)
{
	CU_ASSERT_EQUAL(vmm_do(&vmm, VMM_UNMAP), 0);
	CU_ASSERT_TRUE(packet_of(AGENT_UNSLOT, vmm.rams[VMM_UNMAP]));
	CU_ASSERT_EQUAL(vmm_do(&vmm, VMM_UNMAP_PART), 0);
	CU_ASSERT_TRUE(slot_told(vmm.rams[VMM_UNMAP_PART], "a part of the memory was unmapped"));
	CU_ASSERT_EQUAL(vmm_do(&vmm, VMM_MAP_OVER), 0);
	CU_ASSERT_TRUE(slot_told(vmm.rams[VMM_MAP_OVER], "a part of the memory was mapped over"));
	CU_ASSERT_EQUAL(vmm_do(&vmm, VMM_MOVE), 0);
	CU_ASSERT_TRUE(slot_told(vmm.rams[VMM_MOVE], "a part of the memory was moved"));
	CU_ASSERT_EQUAL(daemon_merge(vmm.rams[VMM_MOVE], 100, 10, 100), -EINVAL);
}

static void check_protection(void)
{
	CU_ASSERT_EQUAL(vmm_do(&vmm, VMM_PROTECT), 0);
	CU_ASSERT_TRUE(slot_told(vmm.rams[VMM_PROTECT], "memory is not private, readable and writable only"));
	CU_ASSERT_EQUAL(daemon_merge(vmm.rams[VMM_PROTECT], 100, 10, 100), -EINVAL);
	CU_ASSERT_EQUAL(vmm_do(&vmm, VMM_UNPROTECT), 0);
	CU_ASSERT_TRUE(slot_told(vmm.rams[VMM_PROTECT], ""));
	CU_ASSERT_TRUE(daemon_merges_all(vmm.rams[VMM_PROTECT], 100, 10, 100));
	CU_ASSERT_EQUAL(vmm_do(&vmm, VMM_LOCK), 0);
	CU_ASSERT_TRUE(slot_told(vmm.rams[VMM_LOCK], "memory is locked (mlock)"));
	CU_ASSERT_EQUAL(daemon_merge(vmm.rams[VMM_LOCK], 100, 10, 100), -EINVAL);
	CU_ASSERT_EQUAL(vmm_do(&vmm, VMM_UNLOCK), 0);
	CU_ASSERT_TRUE(slot_told(vmm.rams[VMM_LOCK], ""));
	CU_ASSERT_TRUE(daemon_merges_all(vmm.rams[VMM_LOCK], 100, 10, 100));
}

static void check_advice(void)
{
	CU_ASSERT_EQUAL(vmm_do(&vmm, VMM_ADVISE), 0);
	CU_ASSERT_TRUE(daemon_merges_all(vmm.rams[VMM_ADVISE], 100, 10, 100));
	CU_ASSERT_EQUAL(vmm_do(&vmm, VMM_ADVISE_PART), 0);
	CU_ASSERT_TRUE(slot_told(vmm.rams[VMM_ADVISE_PART], "memory has not the same attributes everywhere"));
}

static void test_preload_each_call_on_merged_memory_as_on_anonymous(void)
{
	CU_ASSERT_TRUE_FATAL(vmm_meets());
	CU_ASSERT_TRUE_FATAL(rams_merged());
	check_discards();
	check_mappings();
	check_protection();
	check_advice();
	CU_ASSERT_EQUAL(vmm_do(&vmm, VMM_WATCH), 0);
	CU_ASSERT_TRUE(slot_told(vmm.rams[VMM_WATCH],
				 "memory is registered by a userfaultfd of the VMM (postcopy, snapshot)"));
	CU_ASSERT_EQUAL(vmm_do(&vmm, VMM_FORK), 0);
	CU_ASSERT_TRUE(daemon_merges_all(vmm.rams[VMM_FORK], 100, 10, 100));
	CU_ASSERT_EQUAL(vmm_do(&vmm, VMM_LOCK_ALL), 0);
	CU_ASSERT_TRUE(slot_told(vmm.rams[VMM_LOCK_ALL], "memory is locked (mlock)"));
	CU_ASSERT_EQUAL(daemon_merge(vmm.rams[VMM_LOCK_ALL], 100, 10, 100), -EINVAL);
	CU_ASSERT_EQUAL(vmm_do(&vmm, VMM_UNLOCK_ALL), 0);
	CU_ASSERT_TRUE(slot_told(vmm.rams[VMM_LOCK_ALL], ""));
	CU_ASSERT_TRUE(daemon_merges_all(vmm.rams[VMM_LOCK_ALL], 100, 10, 100));
	check_end("");
}

static void test_preload_discards_race_with_merging_no_byte_wrong(void)
{
	uint64_t end = clock_mono_ns() + 4 * NSEC_PER_SEC, merged = 0;

	CU_ASSERT_TRUE_FATAL(vmm_meets());
	vmm_go(&vmm, VMM_RACE);
	while (clock_mono_ns() < end) {
		int got = daemon_merge(vmm.rams[VMM_RACE], 0, VMM_ZERO_FIRST, 0);

		merged += got > 0 ? (unsigned)got : 0;
		got = daemon_merge(vmm.rams[VMM_RACE] + WINDOW_BYTES, 0, FRAMES - WINDOW_PAGES, WINDOW_PAGES);
		merged += got > 0 ? (unsigned)got : 0;
	}
	printf(" %llu pages merged meanwhile ", (unsigned long long)merged);
	CU_ASSERT_TRUE(merged > 1000);
	vmm_go(&vmm, VMM_RACE);
	CU_ASSERT_EQUAL(vmm_result(&vmm), 0);
	check_end("");
}

/* ---- with and without a daemon ---- */

#define GONE "memvirt-agent: memory is not merged by remap: the daemon cannot be reached\n"

static void test_preload_daemon_comes_and_goes_one_line(void)
{
	static const struct vmm_options plain = { 0 };
	char away[UNIT_DIR_MAX + 32];

	snprintf(away, sizeof(away), "%s.away", rig.path);
	unit_must(rename(rig.path, away) == 0, "rename");
	vmm_start(&vmm, &plain);
	CU_ASSERT_FALSE(daemon_accept(500));
	unit_must(rename(away, rig.path) == 0, "rename");
	for (unsigned i = 0; i < 2; i++) {
		CU_ASSERT_TRUE_FATAL(daemon_accept(5000));
		CU_ASSERT_TRUE(daemon_meets() && slots_come(2));
		if (i == 0)
			packet_send(rig.sock, "hostile", 7, NULL, 0);
		if (i == 0)
			CU_ASSERT_FALSE(packet_of(AGENT_MERGED, 0));
		close(rig.sock);
	}
	CU_ASSERT_TRUE_FATAL(daemon_accept(9000));
	CU_ASSERT_TRUE(daemon_meets() && packet_of(AGENT_SLOT, vmm.rams[VMM_DONTNEED]));
	CU_ASSERT_TRUE(daemon_merges_all(vmm.rams[VMM_DONTNEED], 0, VMM_MERGED, 0));
	CU_ASSERT_EQUAL(vmm_do(&vmm, VMM_DONTNEED), 0);
	check_end(GONE);
}

static void test_preload_program_that_is_no_vmm_left_alone(void)
{
	static const struct vmm_options options = { .what = "not" };

	vmm_start(&vmm, &options);
	CU_ASSERT_FALSE(daemon_accept(1500));
	CU_ASSERT_EQUAL(vmm_do(&vmm, VMM_UNMAP), 0);
	rig.sock = -1;
	check_end("");
}

static void test_preload_child_with_ram_of_its_own_is_a_vmm(void)
{
	static const struct vmm_options options = { .what = "child" };
	int parents;

	vmm_start(&vmm, &options);
	CU_ASSERT_TRUE_FATAL(daemon_accept(5000));
	parents = rig.sock;
	CU_ASSERT_TRUE_FATAL(daemon_accept(5000));
	CU_ASSERT_TRUE(daemon_meets() && packet_of(AGENT_SLOT, vmm.rams[VMM_DONTNEED]));
	CU_ASSERT_TRUE(daemon_merges_all(vmm.rams[VMM_DONTNEED], 0, VMM_MERGED, 0));
	CU_ASSERT_EQUAL(vmm_do(&vmm, VMM_DONTNEED), 0);
	close(rig.sock);
	rig.sock = parents;
	CU_ASSERT_TRUE(daemon_meets() && slots_come(1)); /* it has what it had */
	check_end("");
}

/* As libvirt runs QEMU: not root, with a daemon that is. */
static void test_preload_without_privilege_merges_by_daemons_userfaultfd(void)
{
	static const struct vmm_options options = { .nobody = true };
	const struct agent_uffd yes = { .header.type = AGENT_UFFD, .granted = 1 };
	auto_close int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);

	if (geteuid() != 0 || device < 0)
		UNIT_SKIP("needs root and /dev/userfaultfd");
	unit_must(chmod(rig.dir, 0755) == 0 && chmod(rig.path, 0777) == 0, "chmod");
	vmm_start(&vmm, &options);
	CU_ASSERT_TRUE_FATAL(daemon_accept(5000));
	CU_ASSERT_TRUE(packet_of(AGENT_UFFD_ASK, 0));
	CU_ASSERT_EQUAL(packet_send(rig.sock, &yes, sizeof(yes), &device, 1), 0);
	CU_ASSERT_TRUE(daemon_meets() && packet_of(AGENT_SLOT, vmm.rams[VMM_DONTNEED]));
	CU_ASSERT_TRUE(daemon_merges_all(vmm.rams[VMM_DONTNEED], 0, VMM_MERGED, 0));
	CU_ASSERT_EQUAL(vmm_do(&vmm, VMM_DONTNEED), 0);
	check_end("");
}

static void test_preload_userfaultfd_refused_one_line_and_runs_on(void)
{
	static const struct vmm_options options = { .nobody = true };
	const struct agent_uffd no = { .header.type = AGENT_UFFD };

	if (geteuid() != 0)
		UNIT_SKIP("needs root");
	vmm_start(&vmm, &options);
	CU_ASSERT_TRUE_FATAL(daemon_accept(5000));
	CU_ASSERT_TRUE(packet_of(AGENT_UFFD_ASK, 0));
	CU_ASSERT_EQUAL(packet_send(rig.sock, &no, sizeof(no), NULL, 0), 0);
	CU_ASSERT_TRUE(packet_of(AGENT_HELLO, 0) && rig.in.hello.flags == 0);
	CU_ASSERT_TRUE(slot_told(0, "userfaultfd is not allowed here, and the daemon gives none"));
	CU_ASSERT_EQUAL(vmm_do(&vmm, VMM_DONTNEED), 0);
	check_end("memvirt-agent: memory is not merged by remap: "
		  "userfaultfd is not allowed here, and the daemon gives none\n");
}

/* ---- the library itself ---- */

static void test_preload_library_exports_what_it_interposes_and_no_more(void)
{
	static const char *const want = "ioctl madvise memvirt_agent_add_slot memvirt_agent_attach memvirt_agent_detach "
					"memvirt_agent_discard memvirt_agent_ended memvirt_agent_remove_slot mlock "
					"mlock2 mlockall mmap mmap64 mprotect mremap munlock munlockall munmap "
					"pkey_mprotect posix_madvise ";
	char command[PATH_MAX + 256], names[2048] = "";
	size_t n;
	FILE *nm;

	snprintf(command, sizeof(command),
		 "LC_ALL=C nm -D --defined-only --format=posix %s | cut -d' ' -f1 | LC_ALL=C sort | tr '\\n' ' '",
		 library);
	nm = popen(command, "re");
	unit_must(nm, "nm");
	n = fread(names, 1, sizeof(names) - 1, nm);
	names[n] = '\0';
	CU_ASSERT_EQUAL(pclose(nm), 0);
	CU_ASSERT_STRING_EQUAL(names, want);
}

int main(int argc, char **argv)
{
	static CU_TestInfo tests[] = {
		{ "calls", test_preload_each_call_on_merged_memory_as_on_anonymous },
		{ "race", test_preload_discards_race_with_merging_no_byte_wrong },
		{ "daemon", test_preload_daemon_comes_and_goes_one_line },
		{ "no_vmm", test_preload_program_that_is_no_vmm_left_alone },
		{ "child", test_preload_child_with_ram_of_its_own_is_a_vmm },
		{ "uffd_granted", test_preload_without_privilege_merges_by_daemons_userfaultfd },
		{ "uffd_refused", test_preload_userfaultfd_refused_one_line_and_runs_on },
		{ "symbols", test_preload_library_exports_what_it_interposes_and_no_more },
		CU_TEST_INFO_NULL,
	};
	const char *why = "a userfaultfd cannot be opened";
	char self[PATH_MAX];
	int fd = uffd_open(), status;

	if (fd < 0 || uffd_probe(fd, &why) < 0) {
		printf("skip: preload: %s\n", why);
		return 77;
	}
	close(fd);
	unit_must(argc > 0 && realpath(argv[0], self), "argv[0]");
	snprintf(program, sizeof(program), "%s/preload-vmm", dirname(self));
	snprintf(library, sizeof(library), "%s/libmemvirt-agent.so", dirname(self));
	rig_start();
	status = unit_main("preload", tests);
	unit_dir_remove(rig.dir);
	return status;
}
