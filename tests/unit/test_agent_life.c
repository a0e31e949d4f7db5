/* The life of an agent: a daemon that goes and comes, one that does not read, hints, memory that is refused, and a VMM that
 * may not open a userfaultfd by itself. */
#include <grp.h>
#include <sys/ioctl.h>
#include <sys/ptrace.h>

#include "agent/eligible.h"
#include "core/clock.h"
#include "tests/unit/agent_rig.h"

static bool marked(const uint8_t *at)
{
	struct ram_attrs attrs;
	const char *why;

	return eligible_check((uint64_t)(uintptr_t)at, PAGE_BYTES, true, &attrs, &why) == 0 && attrs.mergeable;
}

/* The daemon's end of the next connection of the same agent. */
static bool accept_again(unsigned seconds)
{
	struct timeval timeout = { .tv_sec = 20 };
	struct pollfd pfd = { .fd = rig.listener, .events = POLLIN };

	packet_close(&rig.hello);
	if (poll(&pfd, 1, (int)seconds * 1000) != 1)
		return false;
	rig.sock = accept4(rig.listener, NULL, NULL, SOCK_CLOEXEC);
	setsockopt(rig.sock, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
	return rig.sock >= 0 && packet_receive(rig.sock, &rig.hello, 0) == 0 &&
	       rig.hello.header.type == AGENT_HELLO;
}

static bool connected(void)
{
	for (unsigned i = 0; i < 1000 && memvirt_agent_ended(rig.agent); i++)
		poll(NULL, 0, 1);
	return !memvirt_agent_ended(rig.agent);
}

static int merge_first(unsigned pages)
{
	struct packet *p = merge_new(0);
	int err;

	merge_run(p, 0, pages, 0);
	err = merge_ask(p);
	return err < 0 ? err : packet_merged(&rig.in)->results[0].merged;
}

static bool next_is(unsigned type)
{
	return packet_receive(rig.sock, &rig.in, 0) == 0 && rig.in.header.type == type;
}

/* ---- reconnecting ---- */

static void test_agent_daemon_comes_back_all_is_told_again(void)
{
	ram_fill();
	attach_all();
	CU_ASSERT_EQUAL(merge_first(100), 100);
	close(rig.sock);
	CU_ASSERT_TRUE_FATAL(accept_again(3));
	CU_ASSERT_TRUE(connected());
	CU_ASSERT_EQUAL(rig.hello.hello.flags, AGENT_CAN_REMAP | AGENT_CAN_UNMERGE);
	CU_ASSERT_TRUE_FATAL(next_is(AGENT_SLOT));
	CU_ASSERT_EQUAL(rig.in.slot.bytes, RAM_BYTES);
	CU_ASSERT_EQUAL(rig.in.slot.flags, AGENT_CAN_REMAP | AGENT_TRACKED);
	/* What the first daemon had merged is known: not merged again, and zero when discarded. */
	unit_must(daemon_send_store(rig.store_ro, FRAMES) == 0, "store");
	CU_ASSERT_EQUAL(merge_first(110), 10);
	CU_ASSERT_EQUAL(packet_merged(&rig.in)->results[0].outcome, AGENT_RUN_ABSENT);
	CU_ASSERT_TRUE(ram_right());
	CU_ASSERT_EQUAL(memvirt_agent_discard(rig.agent, rig.ram, 2 * PAGE_BYTES), 0);
	CU_ASSERT_TRUE(page_is(rig.ram, 0) && page_is(rig.ram + 2 * PAGE_BYTES, 3));
	CU_ASSERT_TRUE(next_is(AGENT_RELEASED));
	CU_ASSERT_EQUAL(rig.in.range.bytes, 2 * PAGE_BYTES);
	detach();
	ram_fill();
}

static void test_agent_packets_of_earlier_connection_not_executed(void)
{
	struct packet *p = merge_new(0);

	ram_fill();
	attach_all();
	merge_run(p, 0, 1, 0);
	for (unsigned i = 0; i < 50; i++)
		unit_must(packet_send(rig.sock, p->bytes, p->len, NULL, 0) == 0, "send");
	packet_send(rig.sock, "bad", 3, NULL, 0);
	for (unsigned i = 0; i < 50; i++)
		packet_send(rig.sock, p->bytes, p->len, NULL, MSG_DONTWAIT);
	close(rig.sock);
	CU_ASSERT_TRUE_FATAL(accept_again(3));
	CU_ASSERT_TRUE(next_is(AGENT_SLOT));
	p = merge_new(0); /* with no store it must not work, and nothing comes before its end */
	merge_run(p, 200, 10, AGENT_ZERO);
	CU_ASSERT_EQUAL(merge_ask(p), -ECONNRESET);
	CU_ASSERT_TRUE(ram_right());
	detach();
	ram_fill();
}

static void test_agent_slots_while_daemon_is_away_told_later(void)
{
	uint64_t start;

	ram_fill();
	CU_ASSERT_EQUAL_FATAL(attach(), 0);
	close(rig.sock);
	wait_ended();
	CU_ASSERT_STRING_EQUAL(memvirt_agent_ended(rig.agent), "the daemon is gone");
	CU_ASSERT_EQUAL(memvirt_agent_add_slot(rig.agent, rig.ram, WINDOW_BYTES, &rig.why), 0);
	CU_ASSERT_EQUAL(memvirt_agent_add_slot(rig.agent, rig.ram + WINDOW_BYTES, WINDOW_BYTES, &rig.why), 0);
	CU_ASSERT_EQUAL(memvirt_agent_remove_slot(rig.agent, rig.ram), 0);
	CU_ASSERT_TRUE_FATAL(accept_again(3));
	CU_ASSERT_TRUE(next_is(AGENT_SLOT));
	CU_ASSERT_EQUAL(rig.in.slot.hva, (uint64_t)(uintptr_t)rig.ram + WINDOW_BYTES);
	close(rig.sock); /* the second pause is longer */
	CU_ASSERT_FALSE(accept_again(1));
	start = clock_mono_ns();
	detach();
	CU_ASSERT_TRUE(clock_mono_ns() - start < NSEC_PER_SEC / 2);
}

/* ---- a daemon that does not read ---- */

static void test_agent_daemon_does_not_read_discards_do_not_wait(void)
{
	uint64_t worst = 0;

	ram_fill();
	attach_all();
	CU_ASSERT_EQUAL(merge_first(200), 200);
	/* Fill its socket first, then discard more than can be noted one by one. */
	for (unsigned round = 0; round < 400; round++) {
		uint8_t *other = rig.ram + WINDOW_BYTES;

		memvirt_agent_add_slot(rig.agent, other + round * PAGE_BYTES, PAGE_BYTES, &rig.why);
		memvirt_agent_remove_slot(rig.agent, rig.ram + WINDOW_BYTES);
	}
	for (unsigned i = 0; i < 200; i += 2) {
		uint64_t start = clock_mono_ns(), took;

		CU_ASSERT_EQUAL(memvirt_agent_discard(rig.agent, rig.ram + i * PAGE_BYTES, PAGE_BYTES), 0);
		took = clock_mono_ns() - start;
		worst = took > worst ? took : worst;
	}
	CU_ASSERT_TRUE(worst < NSEC_PER_SEC / 4);
	for (unsigned i = 0; i < 200; i++)
		CU_ASSERT_TRUE(page_is(rig.ram + i * PAGE_BYTES, i % 2 ? i + 1 : 0));
	detach();
	ram_fill();
}

/* ---- hints ---- */

static struct packet *hint_new(uint64_t hva, uint32_t pages)
{
	static struct packet p;
	struct agent_hints *h = packet_hints(&p);

	memset(&p, 0, sizeof(p));
	h->header = (struct agent_header){ .type = AGENT_HINT, .count = 1, .sequence = 5 };
	h->hints[0] = (struct agent_hint){ .hva = hva, .pages = pages };
	p.len = sizeof(*h) + sizeof(h->hints[0]);
	return &p;
}

static bool hinted(struct packet *p, int32_t err, uint32_t pages)
{
	return merge_ask(p) == 0 && rig.in.header.type == AGENT_HINTED && rig.in.header.sequence == 5 &&
	       rig.in.hinted.error == err && rig.in.hinted.pages == pages;
}

static void test_agent_hint_marks_what_is_not_merged(void)
{
	uint64_t ram = (uint64_t)(uintptr_t)rig.ram;
	struct packet *p;

	ram_fill();
	attach_all();
	p = merge_new(0);
	merge_run(p, 50, 10, 50);
	CU_ASSERT_EQUAL(merge_ask(p), 0);
	CU_ASSERT_TRUE(hinted(hint_new(ram + 40 * PAGE_BYTES, 60), 0, 50));
	CU_ASSERT_TRUE(marked(rig.ram + 40 * PAGE_BYTES) && marked(rig.ram + 99 * PAGE_BYTES));
	CU_ASSERT_FALSE(marked(rig.ram + 39 * PAGE_BYTES) || marked(rig.ram + 100 * PAGE_BYTES));
	CU_ASSERT_TRUE(mapped_from_store(55) && !mapped_from_store(60));
	p = hint_new(ram + RAM_BYTES - PAGE_BYTES, 2); /* over the end; the next one is done all the same */
	packet_hints(p)->header.count = 2;
	packet_hints(p)->hints[1] = (struct agent_hint){ .hva = ram + 300 * PAGE_BYTES, .pages = 3 };
	p->len += sizeof(struct agent_hint);
	CU_ASSERT_TRUE(hinted(p, -EINVAL, 3));
	CU_ASSERT_FALSE(marked(rig.ram + RAM_BYTES - PAGE_BYTES));
	CU_ASSERT_TRUE(hinted(hint_new(4096, 1), -EINVAL, 0));
	CU_ASSERT_TRUE(ram_right());
	detach();
	ram_fill();
}

static void test_agent_locked_memory_is_offered_for_hints_only(void)
{
	struct packet *p = merge_new(0);
	void *shared = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	ram_fill();
	unit_must(syscall(SYS_mlock, rig.ram, RAM_BYTES) == 0, "mlock"); /* a sanitizer has its own, which does nothing */
	CU_ASSERT_EQUAL_FATAL(attach(), 0);
	CU_ASSERT_EQUAL(slot_offer(), 0);
	CU_ASSERT_STRING_EQUAL(rig.why, "memory is locked (mlock)");
	CU_ASSERT_EQUAL(rig.in.header.type, AGENT_SLOT);
	CU_ASSERT_EQUAL(rig.in.slot.flags, 0);
	CU_ASSERT_STRING_EQUAL(rig.in.slot.why, "memory is locked (mlock)");
	unit_must(daemon_send_store(rig.store_ro, FRAMES) == 0, "store");
	merge_run(p, 0, 10, 0);
	CU_ASSERT_EQUAL(merge_ask(p), 0);
	CU_ASSERT_EQUAL(packet_merged(&rig.in)->error, -EINVAL);
	CU_ASSERT_TRUE(hinted(hint_new((uint64_t)(uintptr_t)rig.ram, 100), 0, 100));
	CU_ASSERT_EQUAL(memvirt_agent_add_slot(rig.agent, shared, PAGE_BYTES, &rig.why), -EOPNOTSUPP);
	CU_ASSERT_EQUAL(memvirt_agent_add_slot(rig.agent, (void *)4096, PAGE_BYTES, &rig.why), -ENOMEM);
	CU_ASSERT_TRUE(ram_right());
	detach();
	munmap(shared, PAGE_BYTES);
	ram_fill();
}

/* Staging is locked past the agent, so that it cannot be emptied: the exchange stops. When it can be again, the agent
 * goes on by itself. */
static void test_agent_stopped_exchange_is_finished_and_goes_on(void)
{
	if (UNIT_SANITIZED)
		UNIT_SKIP("a sanitizer's memory cannot be locked");
	ram_fill();
	attach_all();
	unit_must(syscall(SYS_mlockall, MCL_CURRENT) == 0 && syscall(SYS_munlock, rig.ram, RAM_BYTES) == 0, "mlockall");
	CU_ASSERT_EQUAL(merge_first(10), 0);
	CU_ASSERT_TRUE(packet_merged(&rig.in)->error < 0);
	unit_must(syscall(SYS_munlockall) == 0, "munlockall");
	CU_ASSERT_TRUE(ram_right());
	CU_ASSERT_EQUAL(packet_receive(rig.sock, &rig.in, 0), -ECONNRESET);
	close(rig.sock);
	CU_ASSERT_TRUE_FATAL(accept_again(20));
	CU_ASSERT_EQUAL(rig.hello.hello.flags, AGENT_CAN_REMAP | AGENT_CAN_UNMERGE);
	CU_ASSERT_TRUE(next_is(AGENT_SLOT));
	unit_must(daemon_send_store(rig.store_ro, FRAMES) == 0, "store");
	CU_ASSERT_EQUAL(merge_first(10), 10);
	CU_ASSERT_TRUE(ram_right());
	detach();
	ram_fill();
}

/* ---- a userfaultfd by the daemon's grace ---- */

static void become_nobody(void)
{
	unit_must(setgroups(0, NULL) == 0 && setresgid(65534, 65534, 65534) == 0 &&
			  setresuid(65534, 65534, 65534) == 0,
		  "setresuid");
	prctl(PR_SET_DUMPABLE, 1); /* as after an exec; else /proc/self stays root's */
}

/* The VMM, as nobody. Holds until the daemon has closed `hold`. */
static int nobody_vmm(int hold, const char *why)
{
	char end;

	become_nobody();
	ram_fill();
	if (memvirt_agent_attach(rig.path, &rig.agent, &rig.why) < 0 || strcmp(rig.why, why) != 0)
		return 2;
	if (memvirt_agent_add_slot(rig.agent, rig.ram, RAM_BYTES, &rig.why) < 0 || strcmp(rig.why, why) != 0)
		return 3;
	if (read(hold, &end, 1) != 0 || !ram_right())
		return 4;
	memvirt_agent_detach(rig.agent);
	return 0;
}

static pid_t nobody_start(const char *why, int *ret_hold)
{
	int hold[2];
	pid_t pid;

	if (chmod(rig.dir, 0755) < 0 || chmod(rig.path, 0777) < 0 || pipe2(hold, O_CLOEXEC) < 0)
		unit_must(false, "nobody");
	pid = fork();
	unit_must(pid >= 0, "fork");
	if (pid == 0) {
		close(hold[1]);
		_exit(nobody_vmm(hold[0], why));
	}
	close(hold[0]);
	*ret_hold = hold[1];
	rig.sock = accept4(rig.listener, NULL, NULL, SOCK_CLOEXEC);
	unit_must(rig.sock >= 0, "accept");
	return pid;
}

static int nobody_end(pid_t pid, int hold)
{
	int status = -1;

	close(hold);
	waitpid(pid, &status, 0);
	packet_close(&rig.hello);
	close(rig.sock);
	return status;
}

static void test_agent_without_privilege_gets_userfaultfd_of_daemon(void)
{
	const struct agent_uffd yes = { .header.type = AGENT_UFFD, .granted = 1 };
	auto_close int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	int hold, status;
	pid_t pid;

	if (geteuid() != 0 || device < 0)
		UNIT_SKIP("needs root and /dev/userfaultfd");
	pid = nobody_start("", &hold);
	CU_ASSERT_TRUE(next_is(AGENT_UFFD_ASK));
	CU_ASSERT_EQUAL(packet_send(rig.sock, &yes, sizeof(yes), &device, 1), 0);
	CU_ASSERT_EQUAL(packet_receive(rig.sock, &rig.hello, 0), 0);
	CU_ASSERT_EQUAL(rig.hello.header.type, AGENT_HELLO);
	CU_ASSERT_EQUAL(rig.hello.hello.flags, AGENT_CAN_REMAP | AGENT_CAN_UNMERGE);
	CU_ASSERT_TRUE(next_is(AGENT_SLOT));
	CU_ASSERT_EQUAL(daemon_send_store(rig.store_ro, FRAMES), 0);
	CU_ASSERT_EQUAL(merge_first(100), 100);
	status = nobody_end(pid, hold);
	CU_ASSERT_EQUAL(status, 0);
}

static void test_agent_without_userfaultfd_still_serves_hints(void)
{
	static const char why[] = "userfaultfd is not allowed here, and the daemon gives none";
	const struct agent_uffd no = { .header.type = AGENT_UFFD };
	int hold, status;
	pid_t pid;

	if (geteuid() != 0)
		UNIT_SKIP("needs root");
	pid = nobody_start(why, &hold);
	CU_ASSERT_TRUE(next_is(AGENT_UFFD_ASK));
	CU_ASSERT_EQUAL(packet_send(rig.sock, &no, sizeof(no), NULL, 0), 0);
	CU_ASSERT_EQUAL(packet_receive(rig.sock, &rig.hello, 0), 0);
	CU_ASSERT_EQUAL(rig.hello.header.type, AGENT_HELLO);
	CU_ASSERT_EQUAL(rig.hello.hello.flags, 0);
	CU_ASSERT_STRING_EQUAL(rig.hello.hello.why, why);
	CU_ASSERT_TRUE(next_is(AGENT_SLOT));
	CU_ASSERT_EQUAL(rig.in.slot.flags, 0);
	CU_ASSERT_STRING_EQUAL(rig.in.slot.why, why);
	CU_ASSERT_TRUE(hinted(hint_new(rig.in.slot.hva, 64), 0, 64));
	status = nobody_end(pid, hold);
	CU_ASSERT_EQUAL(status, 0);
}

/* Hostile: no answer to the question, but something to do. */
static void test_agent_asked_to_merge_before_hello_refuses(void)
{
	struct packet *p = merge_new(0);
	int hold, status;
	pid_t pid;

	if (geteuid() != 0)
		UNIT_SKIP("needs root");
	merge_run(p, 0, 10, 0);
	pid = nobody_start("", &hold);
	CU_ASSERT_TRUE(next_is(AGENT_UFFD_ASK));
	CU_ASSERT_EQUAL(packet_send(rig.sock, p->bytes, p->len, NULL, 0), 0);
	CU_ASSERT_EQUAL(packet_receive(rig.sock, &rig.in, 0), -ECONNRESET);
	status = nobody_end(pid, hold);
	CU_ASSERT_EQUAL(WEXITSTATUS(status), 2); /* attach() says so, and the VMM goes its way */
}

/* ---- a debugger ---- */

/* In a child, which its parent then traces. 0 if merging pauses and no page was touched. */
static int child_traced(void)
{
	struct packet *p = merge_new(0);

	ram_fill();
	attach_all();
	if (ptrace(PTRACE_TRACEME, 0, 0, 0) < 0)
		return 1;
	merge_run(p, 0, 100, 0);
	if (merge_ask(p) < 0 || rig.in.header.type != AGENT_MERGED || packet_merged(&rig.in)->error != -EBUSY)
		return 2;
	return memvirt_agent_ended(rig.agent) || mapped_from_store(0) || !ram_right() ? 3 : 0;
}

static void test_agent_traced_merging_pauses(void)
{
	int status = -1;
	pid_t pid = fork();

	if (pid == 0)
		_exit(child_traced());
	unit_must(pid > 0 && waitpid(pid, &status, 0) == pid, "fork");
	CU_ASSERT_EQUAL(status, 0);
}

int main(void)
{
	static CU_TestInfo tests[] = {
		{ "comes_back", test_agent_daemon_comes_back_all_is_told_again },
		{ "old_packets", test_agent_packets_of_earlier_connection_not_executed },
		{ "slots_while_away", test_agent_slots_while_daemon_is_away_told_later },
		{ "does_not_read", test_agent_daemon_does_not_read_discards_do_not_wait },
		{ "hint", test_agent_hint_marks_what_is_not_merged },
		{ "stopped", test_agent_stopped_exchange_is_finished_and_goes_on },
		{ "locked", test_agent_locked_memory_is_offered_for_hints_only },
		{ "uffd_granted", test_agent_without_privilege_gets_userfaultfd_of_daemon },
		{ "uffd_refused", test_agent_without_userfaultfd_still_serves_hints },
		{ "uffd_hostile", test_agent_asked_to_merge_before_hello_refuses },
		{ "traced", test_agent_traced_merging_pauses },
		CU_TEST_INFO_NULL,
	};
	const char *why = "a userfaultfd cannot be opened";
	int fd = uffd_open(), status;

	if (fd < 0 || uffd_probe(fd, &why) < 0) {
		printf("skip: agent_life: %s\n", why);
		return 77;
	}
	close(fd);
	rig_start();
	status = unit_main("agent_life", tests);
	unit_dir_remove(rig.dir);
	return status;
}
