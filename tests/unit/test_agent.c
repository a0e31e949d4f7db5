/* The agent of a linked-in VMM, with a daemon played by the test in the same process. */
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <time.h>

#include "agent/page_hash.h"
#include "tests/unit/agent_rig.h"

#define ROUNDS 1000

/* ---- what it is for ---- */

static void test_agent_attach_says_hello_with_descriptors(void)
{
	struct exchange_journal *j;

	CU_ASSERT_EQUAL(attach(), 0);
	CU_ASSERT_STRING_EQUAL(rig.why, "");
	CU_ASSERT_PTR_NULL(memvirt_agent_ended(rig.agent));
	CU_ASSERT_EQUAL(rig.hello.header.type, AGENT_HELLO);
	CU_ASSERT_EQUAL(rig.hello.hello.version, AGENT_PROTOCOL_VERSION);
	CU_ASSERT_EQUAL(uffd_wake(rig.hello.fds[0], (uint64_t)(uintptr_t)rig.ram, PAGE_BYTES), 0);
	j = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, rig.hello.fds[1], 0);
	CU_ASSERT_PTR_NOT_EQUAL_FATAL(j, MAP_FAILED);
	CU_ASSERT_EQUAL(j->version, EXCHANGE_JOURNAL_VERSION);
	CU_ASSERT_EQUAL(j->step, STEP_IDLE);
	munmap(j, PAGE_BYTES);
	CU_ASSERT_TRUE(ftruncate(rig.hello.fds[1], 0) < 0); /* would be SIGBUS in the VMM */
	CU_ASSERT_EQUAL(memvirt_agent_attach(rig.path, &rig.agent, &rig.why), -EBUSY);
	detach();
}

static void test_agent_slots_are_offered_and_withdrawn(void)
{
	CU_ASSERT_EQUAL(attach(), 0);
	CU_ASSERT_EQUAL(memvirt_agent_add_slot(rig.agent, rig.ram + 1, PAGE_BYTES, &rig.why), -EINVAL);
	CU_ASSERT_TRUE(strlen(rig.why) > 0);
	CU_ASSERT_EQUAL(slot_offer(), 0);
	CU_ASSERT_EQUAL(rig.in.header.type, AGENT_SLOT);
	CU_ASSERT_EQUAL(rig.in.slot.hva, (uint64_t)(uintptr_t)rig.ram);
	CU_ASSERT_EQUAL(rig.in.slot.bytes, RAM_BYTES);
	CU_ASSERT_EQUAL(memvirt_agent_add_slot(rig.agent, rig.ram, PAGE_BYTES, &rig.why), -EEXIST);
	CU_ASSERT_EQUAL(memvirt_agent_remove_slot(rig.agent, rig.ram + PAGE_BYTES), -ENOENT);
	CU_ASSERT_EQUAL(memvirt_agent_remove_slot(rig.agent, rig.ram), 0);
	CU_ASSERT_EQUAL(packet_receive(rig.sock, &rig.in, 0), 0);
	CU_ASSERT_EQUAL(rig.in.header.type, AGENT_UNSLOT);
	CU_ASSERT_EQUAL(rig.in.slot.bytes, RAM_BYTES);
	CU_ASSERT_EQUAL(memvirt_agent_remove_slot(rig.agent, rig.ram), -ENOENT);
	detach();
}

static void check_merge_results(void)
{
	const struct agent_merged *m = packet_merged(&rig.in);

	CU_ASSERT_EQUAL_FATAL(m->header.type, AGENT_MERGED);
	CU_ASSERT_EQUAL(m->header.sequence, 77);
	CU_ASSERT_EQUAL(m->error, 0);
	CU_ASSERT_EQUAL(m->window, (uint64_t)(uintptr_t)rig.ram);
	CU_ASSERT_TRUE(m->stall_us > 0);
	CU_ASSERT_EQUAL_FATAL(m->header.count, 4);
	CU_ASSERT_EQUAL(m->results[0].outcome, EXCHANGE_MERGED);
	CU_ASSERT_EQUAL(m->results[0].merged, 100);
	CU_ASSERT_EQUAL(m->results[1].outcome, EXCHANGE_UNEQUAL);
	CU_ASSERT_EQUAL(m->results[1].merged, 0);
	CU_ASSERT_EQUAL(m->results[2].outcome, EXCHANGE_MERGED); /* zeroes */
	CU_ASSERT_EQUAL(m->results[2].merged, 10);
	CU_ASSERT_EQUAL(m->results[3].outcome, EXCHANGE_UNEQUAL); /* no zeroes */
	CU_ASSERT_EQUAL(m->results[3].merged, 0);
}

static void test_agent_merge_each_kind_of_run_contents_right(void)
{
	struct packet *p = merge_new(0);
	uint8_t frame[PAGE_BYTES];

	ram_fill();
	attach_all();
	merge_run(p, 0, 100, 0);
	merge_run(p, 100, 10, 300);
	merge_run(p, 200, 10, AGENT_ZERO);
	merge_run(p, 300, 5, AGENT_ZERO);
	CU_ASSERT_EQUAL_FATAL(merge_ask(p), 0);
	check_merge_results();
	CU_ASSERT_TRUE(mapped_from_store(0) && mapped_from_store(99));
	CU_ASSERT_FALSE(mapped_from_store(100) || mapped_from_store(205));
	CU_ASSERT_TRUE(ram_right());

	memset(rig.ram + 5 * PAGE_BYTES, 0x5a, PAGE_BYTES);
	CU_ASSERT_EQUAL(pread(rig.store_rw, frame, PAGE_BYTES, 5 * PAGE_BYTES), PAGE_BYTES);
	CU_ASSERT_TRUE(page_is(frame, 6));
	CU_ASSERT_TRUE(page_is(rig.ram + 4 * PAGE_BYTES, 5) && page_is(rig.ram + 6 * PAGE_BYTES, 7));
	unit_page_fill((char *)rig.ram + 5 * PAGE_BYTES, 6);
	detach();
	CU_ASSERT_TRUE(ram_right()); /* its own again, without agent and daemon */
	CU_ASSERT_FALSE(mapped_from_store(0));
	ram_fill();
}

static void test_agent_discard_of_merged_gives_zeroes_and_tells(void)
{
	struct packet *p = merge_new(0);

	ram_fill();
	attach_all();
	merge_run(p, 0, 100, 0);
	CU_ASSERT_EQUAL(merge_ask(p), 0);
	CU_ASSERT_EQUAL(packet_merged(&rig.in)->results[0].merged, 100);
	CU_ASSERT_EQUAL(memvirt_agent_discard(rig.agent, rig.ram + 50 * PAGE_BYTES, 100 * PAGE_BYTES), 0);
	for (unsigned i = 50; i < 150; i++)
		CU_ASSERT_TRUE(page_is(rig.ram + i * PAGE_BYTES, 0));
	CU_ASSERT_TRUE(page_is(rig.ram + 49 * PAGE_BYTES, 50) && page_is(rig.ram + 150 * PAGE_BYTES, 151));
	CU_ASSERT_EQUAL(packet_receive(rig.sock, &rig.in, 0), 0);
	CU_ASSERT_EQUAL(rig.in.header.type, AGENT_RELEASED);
	CU_ASSERT_EQUAL(rig.in.range.bytes, 100 * PAGE_BYTES);
	CU_ASSERT_EQUAL(memvirt_agent_discard(rig.agent, rig.ram + 1, PAGE_BYTES), -EINVAL);
	detach();
	ram_fill();
}

/* ---- hashes ---- */

#define SEED 4711

static const struct agent_hashed *hash_ask(uint64_t hva, uint32_t pages)
{
	const struct agent_hash h = { .header = { .type = AGENT_HASH, .sequence = 9 },
				      .hva = hva, .seed = SEED, .pages = pages };

	CU_ASSERT_EQUAL_FATAL(packet_send(rig.sock, &h, sizeof(h), NULL, 0), 0);
	CU_ASSERT_EQUAL_FATAL(packet_receive(rig.sock, &rig.in, 0), 0);
	CU_ASSERT_EQUAL_FATAL(rig.in.header.type, AGENT_HASHED);
	CU_ASSERT_EQUAL(rig.in.header.sequence, 9);
	return packet_hashed(&rig.in);
}

static unsigned wrong_hashes(const struct agent_hashed *h, unsigned first)
{
	unsigned wrong = 0;

	for (unsigned i = 0; i < h->header.count; i++) {
		unsigned p = first + i;
		bool none = p < 10 || (p >= 20 && p < 30); /* merged; discarded */

		wrong += h->hashes[i] != (none ? PAGE_HASH_NONE : page_hash(rig.ram + p * PAGE_BYTES, SEED));
	}
	return wrong;
}

/* What came back; NULL: nothing. */
static const struct agent_unmerged *unmerge_ask(unsigned window, uint32_t flags)
{
	const struct agent_unmerge m = { .header = { .type = AGENT_UNMERGE, .sequence = 78 },
					 .window = (uint64_t)(uintptr_t)rig.ram + window * WINDOW_BYTES,
					 .flags = flags };

	if (packet_send(rig.sock, &m, sizeof(m), NULL, 0) < 0 || packet_receive(rig.sock, &rig.in, 0) < 0 ||
	    rig.in.header.type != AGENT_UNMERGED || rig.in.header.sequence != 78)
		return NULL;
	return &rig.in.unmerged;
}

static void test_agent_unmerge_gives_memory_back(void)
{
	struct packet *p = merge_new(0);
	const struct agent_unmerged *u;

	attach_all();
	CU_ASSERT_EQUAL(rig.hello.hello.flags, AGENT_CAN_REMAP | AGENT_CAN_UNMERGE);
	CU_ASSERT_EQUAL(uffd_wake(rig.hello.fds[2], (uint64_t)(uintptr_t)rig.ram, PAGE_BYTES), 0);
	merge_run(p, 0, 100, 0);
	CU_ASSERT_EQUAL(merge_ask(p), 0);
	CU_ASSERT_TRUE(mapped_from_store(50));
	rig.ram[60 * PAGE_BYTES]++;
	rig.ram[60 * PAGE_BYTES]--;
	u = unmerge_ask(0, 0);
	CU_ASSERT_PTR_NOT_NULL_FATAL(u);
	CU_ASSERT_TRUE(u->error == 0 && u->folded == 100 && u->kept == 0 && u->kept_error == 0 && u->stall_us > 0);
	CU_ASSERT_FALSE(mapped_from_store(50));
	u = unmerge_ask(0, AGENT_UNMERGE_SPLIT); /* nothing is left */
	CU_ASSERT_TRUE(u && u->error == 0 && u->folded == 0);
	u = unmerge_ask(1000, 0); /* nobody's memory */
	CU_ASSERT_TRUE(u && u->error == 0 && u->folded == 0 && u->kept == 0);
	CU_ASSERT_TRUE(ram_right());
	merge_run(p, 100, 100, 100);
	CU_ASSERT_EQUAL(merge_ask(p), 0);
	CU_ASSERT_TRUE(mapped_from_store(150));
	detach();
	CU_ASSERT_FALSE(mapped_from_store(50) || mapped_from_store(150));
	CU_ASSERT_TRUE(ram_right());
	ram_fill();
}

/* A child that looks at this process as a debugger does, until it is told to end. */
static pid_t debugger_start(int *ret_end)
{
	int go[2], end[2];
	pid_t pid;
	char c;

	unit_must(pipe(go) == 0 && pipe(end) == 0, "pipe");
	prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY);
	pid = fork();
	unit_must(pid >= 0, "fork");
	if (pid == 0) {
		close(end[1]);
		c = ptrace(PTRACE_SEIZE, getppid(), 0, 0) == 0;
		unit_must(write(go[1], &c, 1) == 1, "write");
		_exit(read(end[0], &c, 1) == 0 ? 0 : 1);
	}
	close(end[0]);
	unit_must(read(go[0], &c, 1) == 1, "read");
	close(go[0]);
	close(go[1]);
	*ret_end = end[1];
	if (c)
		return pid;
	close(end[1]);
	waitpid(pid, NULL, 0);
	return -1;
}

/* R13: both pause, and go on when it has gone. */
static void test_agent_debugger_attached_merging_pauses(void)
{
	const struct timespec look = { .tv_sec = 1, .tv_nsec = 50 * 1000 * 1000 }; /* the agent looks once a second */
	struct packet *p = merge_new(0);
	const struct agent_unmerged *u;
	int end;
	pid_t pid;

	attach_all();
	merge_run(p, 0, 100, 0);
	pid = debugger_start(&end);
	if (pid < 0) {
		detach();
		UNIT_SKIP("a debugger cannot attach here");
	}
	CU_ASSERT_EQUAL(merge_ask(p), 0);
	CU_ASSERT_EQUAL(packet_merged(&rig.in)->error, -EBUSY);
	u = unmerge_ask(0, 0);
	CU_ASSERT_TRUE(u && u->error == -EBUSY && u->folded == 0);
	close(end);
	unit_must(waitpid(pid, NULL, 0) == pid, "waitpid");
	nanosleep(&look, NULL);
	for (unsigned i = 0; i < 100; i++) /* shared with the child until they are written to */
		unit_page_fill((char *)rig.ram + i * PAGE_BYTES, content_of(i));
	CU_ASSERT_EQUAL(merge_ask(p), 0);
	CU_ASSERT_EQUAL(packet_merged(&rig.in)->error, 0);
	CU_ASSERT_TRUE(mapped_from_store(50));
	u = unmerge_ask(0, 0);
	CU_ASSERT_TRUE(u && u->error == 0 && u->folded == 100);
	CU_ASSERT_TRUE(ram_right());
	detach();
	ram_fill();
}

static void test_agent_hash_tells_what_is_there(void)
{
	struct packet *p = merge_new(0);
	const struct agent_hashed *h;

	ram_fill();
	attach_all();
	merge_run(p, 0, 10, 0);
	CU_ASSERT_EQUAL(merge_ask(p), 0);
	CU_ASSERT_TRUE(mapped_from_store(0) && mapped_from_store(9));
	CU_ASSERT_EQUAL(madvise(rig.ram + 20 * PAGE_BYTES, 10 * PAGE_BYTES, MADV_DONTNEED), 0);
	CU_ASSERT_EQUAL(*(volatile uint8_t *)(rig.ram + 25 * PAGE_BYTES), 0); /* the zero page */
	h = hash_ask((uint64_t)(uintptr_t)rig.ram, RAM_PAGES);
	CU_ASSERT_EQUAL(h->error, 0);
	CU_ASSERT_EQUAL_FATAL(h->header.count, RAM_PAGES);
	CU_ASSERT_EQUAL(h->hashes[205], PAGE_HASH_ZERO);
	CU_ASSERT_EQUAL(h->zero_mapped, 1);
	CU_ASSERT_EQUAL(h->huge, 0);
	CU_ASSERT_EQUAL(wrong_hashes(h, 0), 0);
	h = hash_ask((uint64_t)(uintptr_t)rig.ram + 7 * PAGE_BYTES, 1000);
	CU_ASSERT_EQUAL_FATAL(h->header.count, 1000);
	CU_ASSERT_EQUAL(wrong_hashes(h, 7), 0);
	h = hash_ask((uint64_t)(uintptr_t)rig.ram + 20 * PAGE_BYTES, 5);
	CU_ASSERT_EQUAL(h->error, 0);
	CU_ASSERT_EQUAL(h->header.count, 0); /* none is there */
	detach();
	ram_fill();
}

/* Nothing is read but slots that may be merged: all else could be gone in the middle of it. */
static void test_agent_hash_outside_of_slots_refused(void)
{
	const uint64_t ram = (uint64_t)(uintptr_t)rig.ram;

	ram_fill();
	attach_all();
	CU_ASSERT_EQUAL(hash_ask(ram - PAGE_BYTES, 2)->error, -EINVAL);
	CU_ASSERT_EQUAL(hash_ask(ram + RAM_BYTES - PAGE_BYTES, 2)->error, -EINVAL);
	CU_ASSERT_EQUAL(hash_ask(ram + RAM_BYTES - 300 * PAGE_BYTES, 301)->error, -EINVAL); /* the second look */
	CU_ASSERT_EQUAL(rig.in.header.count, 0);
	CU_ASSERT_EQUAL(hash_ask(4096, 1)->error, -EINVAL);
	CU_ASSERT_EQUAL(hash_ask(ram, 1)->error, 0);
	CU_ASSERT_EQUAL(memvirt_agent_remove_slot(rig.agent, rig.ram), 0);
	CU_ASSERT_EQUAL(packet_receive(rig.sock, &rig.in, 0), 0);
	CU_ASSERT_EQUAL(hash_ask(ram, 1)->error, -EINVAL);
	detach();
}

static void test_page_hash_both_ways_the_same(void)
{
	char page[PAGE_BYTES];

	CU_ASSERT_EQUAL(page_hash(memset(page, 0, sizeof(page)), 1), PAGE_HASH_ZERO);
	page[PAGE_BYTES - 1] = 1;
	CU_ASSERT_TRUE(page_hash(page, 1) > PAGE_HASH_ZERO);
	for (uint64_t i = 1; i < 1000 && __builtin_cpu_supports("avx2"); i++) {
		unit_page_fill(page, i);
		CU_ASSERT_EQUAL(page_xxh3_sse2(page, i * SEED), page_xxh3_avx2(page, i * SEED));
	}
}

/* ---- the VMM runs on ---- */

static void test_agent_no_daemon_or_another_users_refused(void)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	char longest[200];
	unsigned fds = count_fds();
	int other;

	rig.agent = NULL;
	CU_ASSERT_EQUAL(memvirt_agent_attach("/nonexistent/sock", &rig.agent, &rig.why), -ENOENT);
	CU_ASSERT_STRING_EQUAL(rig.why, "the daemon cannot be reached");
	CU_ASSERT_EQUAL(memvirt_agent_attach("", &rig.agent, &rig.why), -ENAMETOOLONG);
	memset(longest, 'x', sizeof(longest));
	longest[sizeof(longest) - 1] = '\0';
	CU_ASSERT_EQUAL(memvirt_agent_attach(longest, &rig.agent, &rig.why), -ENAMETOOLONG);
	CU_ASSERT_PTR_NULL(rig.agent);
	CU_ASSERT_PTR_NULL(memvirt_agent_detach(NULL));
	CU_ASSERT_EQUAL(count_fds(), fds);
	if (geteuid() != 0)
		UNIT_SKIP("a listener of another user needs root");
	other = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	snprintf(addr.sun_path, sizeof(addr.sun_path), "%.90s/other", rig.dir);
	unit_must(other >= 0 && bind(other, (struct sockaddr *)&addr, sizeof(addr)) == 0, "bind");
	unit_must(seteuid(65534) == 0 && listen(other, 1) == 0 && seteuid(0) == 0, "listen");
	prctl(PR_SET_DUMPABLE, 1); /* seteuid() takes /proc/self away */
	CU_ASSERT_EQUAL(memvirt_agent_attach(addr.sun_path, &rig.agent, &rig.why), -EPERM);
	CU_ASSERT_STRING_EQUAL(rig.why, "the daemon's socket belongs to another user");
	CU_ASSERT_EQUAL(count_fds(), fds + 1);
	close(other);
}

static void test_agent_daemon_gone_vmm_runs_on(void)
{
	struct packet *p = merge_new(0);

	ram_fill();
	attach_all();
	merge_run(p, 0, 100, 0);
	CU_ASSERT_EQUAL(merge_ask(p), 0);
	shutdown(rig.sock, SHUT_RDWR);
	wait_ended();
	CU_ASSERT_PTR_NOT_NULL_FATAL(memvirt_agent_ended(rig.agent));
	CU_ASSERT_STRING_EQUAL(memvirt_agent_ended(rig.agent), "the daemon is gone");
	CU_ASSERT_TRUE(ram_right());
	CU_ASSERT_EQUAL(memvirt_agent_discard(rig.agent, rig.ram, PAGE_BYTES), 0);
	CU_ASSERT_TRUE(page_is(rig.ram, 0));
	CU_ASSERT_EQUAL(memvirt_agent_remove_slot(rig.agent, rig.ram), 0);
	detach();
	ram_fill();
}

static void test_agent_fork_child_keeps_memory_and_parent_its_daemon(void)
{
	struct packet *p = merge_new(0);
	int status = -1;
	pid_t pid;

	ram_fill();
	attach_all();
	merge_run(p, 0, 100, 0);
	CU_ASSERT_EQUAL(merge_ask(p), 0);
	pid = fork();
	if (pid == 0) {
		bool ok = ram_right() && memvirt_agent_ended(rig.agent) &&
			  memvirt_agent_add_slot(rig.agent, rig.ram, PAGE_BYTES, &rig.why) == -ENOTCONN &&
			  memvirt_agent_discard(rig.agent, rig.ram, PAGE_BYTES) == 0 && page_is(rig.ram, 0);

		memvirt_agent_detach(rig.agent);
		_exit(ok ? 0 : 1);
	}
	unit_must(pid > 0 && waitpid(pid, &status, 0) == pid, "fork");
	CU_ASSERT_EQUAL(status, 0);
	CU_ASSERT_TRUE(ram_right());
	CU_ASSERT_PTR_NULL(memvirt_agent_ended(rig.agent));
	p = merge_new(1); /* pages are shared with nobody any more */
	merge_run(p, 0, 50, 512);
	CU_ASSERT_EQUAL(merge_ask(p), 0);
	CU_ASSERT_EQUAL(packet_merged(&rig.in)->error, 0);
	CU_ASSERT_TRUE(ram_right());
	detach();
	ram_fill();
}

/* ---- a hostile daemon ---- */

static bool ended_and_intact(void)
{
	bool closed = packet_receive(rig.sock, &rig.in, 0) == -ECONNRESET;

	wait_ended();
	return closed && memvirt_agent_ended(rig.agent) && ram_right() && !mapped_from_store(0) &&
	       !mapped_from_store(20);
}

#define FIELD(type, field) offsetof(struct type, field), sizeof(((struct type *)0)->field)
#define RUN(i, field) \
	offsetof(struct agent_merge, runs) + (i) * sizeof(struct agent_run) + offsetof(struct agent_run, field), \
		sizeof(((struct agent_run *)0)->field)

/* The packet is two runs, [0,10) with frame 0 and [20,30) with frame 20. */
static void test_agent_hostile_merge_ends_connection(void)
{
	static const struct {
		const char *name;
		size_t at, bytes;
		uint64_t value;
	} cases[] = {
		{ "type 0", FIELD(agent_header, type), 0 },
		{ "type unknown", FIELD(agent_header, type), 8 },
		{ "type huge", FIELD(agent_header, type), 0xffff },
		{ "type of agents", FIELD(agent_header, type), AGENT_MERGED },
		{ "a store without descriptor", FIELD(agent_header, type), AGENT_STORE },
		{ "count 0", FIELD(agent_header, count), 0 },
		{ "count too small", FIELD(agent_header, count), 1 },
		{ "count too large", FIELD(agent_header, count), 3 },
		{ "count over all", FIELD(agent_header, count), 0xffff },
		{ "window not aligned", FIELD(agent_merge, window), 4096 },
		{ "window at the end", FIELD(agent_merge, window), UINT64_C(0xffffffffffe00000) },
		{ "run empty", RUN(0, pages), 0 },
		{ "runs overlap", RUN(0, pages), 21 },
		{ "runs descend", RUN(0, first), 100 },
		{ "run too long", RUN(1, pages), 493 },
		{ "run longest", RUN(1, pages), 0xffff },
		{ "run outside", RUN(1, first), 512 },
		{ "run far outside", RUN(1, first), 0xffff },
		{ "frames beyond the end", RUN(1, frame), FRAMES - 9 },
		{ "frame outside", RUN(1, frame), FRAMES },
		{ "frames wrap", RUN(1, frame), AGENT_ZERO - 5 },
	};

	ram_fill();
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct packet *p = merge_new(0);
		unsigned fds = count_fds();

		merge_run(p, 0, 10, 0);
		merge_run(p, 20, 10, 20);
		memcpy(p->bytes + cases[i].at, &cases[i].value, cases[i].bytes);
		attach_all();
		unit_must(packet_send(rig.sock, p->bytes, p->len, NULL, 0) == 0, "send");
		UNIT_CASE(cases[i].name, ended_and_intact());
		detach();
		UNIT_CASE(cases[i].name, count_fds() == fds);
	}
}

static void test_agent_packets_cut_or_grown_refused(void)
{
	static const size_t sent[] = { 1, 7, 8, 23, 24, 39, 41, 48, AGENT_PACKET_MAX };
	struct packet *p = merge_new(0);
	size_t len;

	ram_fill();
	merge_run(p, 0, 10, 0);
	merge_run(p, 20, 10, 20);
	len = p->len;
	CU_ASSERT_EQUAL(packet_check(p, 0), 0);
	CU_ASSERT_EQUAL(packet_check(p, 1), -EPROTO);
	for (p->len = 0; p->len <= AGENT_PACKET_MAX; p->len++)
		CU_ASSERT_TRUE(p->len == len || packet_check(p, 0) == -EPROTO);
	for (size_t i = 0; i < ARRAY_SIZE(sent); i++) {
		attach_all();
		unit_must(packet_send(rig.sock, p->bytes, sent[i], NULL, 0) == 0, "send");
		UNIT_CASE("cut", ended_and_intact());
		detach();
	}
	attach_all();
	{
		char longest[AGENT_PACKET_MAX + 1] = { 0 };

		memcpy(longest, p->bytes, AGENT_PACKET_MAX);
		unit_must(send(rig.sock, longest, sizeof(longest), MSG_NOSIGNAL) > 0, "send");
		UNIT_CASE("longer than any", ended_and_intact());
	}
	detach();
}

/* A MERGE that is well formed, for memory that was never offered, changes nothing. */
static void test_agent_merge_outside_slots_answered_and_nothing_mapped(void)
{
	uint8_t *room = mmap(NULL, 2 * WINDOW_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint64_t windows[4] = { 0, UINT64_C(0x7fffffe00000), UINT64_C(0xffff800000000000) };

	windows[3] = ((uint64_t)(uintptr_t)room + WINDOW_BYTES - 1) & ~(WINDOW_BYTES - 1);
	ram_fill();
	unit_page_fill((char *)windows[3], 1);
	attach_all();
	for (size_t i = 0; i < ARRAY_SIZE(windows); i++) {
		struct packet *p = merge_new(0);

		merge_run(p, 0, 1, 0);
		packet_merge(p)->window = windows[i];
		CU_ASSERT_EQUAL_FATAL(merge_ask(p), 0);
		CU_ASSERT_EQUAL(packet_merged(&rig.in)->error, -EINVAL);
		CU_ASSERT_EQUAL(packet_merged(&rig.in)->header.count, 0);
	}
	CU_ASSERT_TRUE(page_is((uint8_t *)windows[3], 1) && ram_right());
	CU_ASSERT_PTR_NULL(memvirt_agent_ended(rig.agent));
	detach();
	munmap(room, 2 * WINDOW_BYTES);
}

/* The slot ends in the middle of its window: what lies behind it is not the daemon's to merge. */
static void test_agent_merge_over_end_of_slot_refused(void)
{
	struct packet *p = merge_new(0);

	ram_fill();
	CU_ASSERT_EQUAL_FATAL(attach(), 0);
	CU_ASSERT_EQUAL(memvirt_agent_add_slot(rig.agent, rig.ram, 64 * PAGE_BYTES, &rig.why), 0);
	CU_ASSERT_EQUAL(packet_receive(rig.sock, &rig.in, 0), 0);
	CU_ASSERT_EQUAL(daemon_send_store(rig.store_ro, FRAMES), 0);
	merge_run(p, 60, 5, 60);
	CU_ASSERT_EQUAL(merge_ask(p), 0);
	CU_ASSERT_EQUAL(packet_merged(&rig.in)->error, -EINVAL);
	CU_ASSERT_FALSE(mapped_from_store(60) || mapped_from_store(64));
	CU_ASSERT_TRUE(ram_right());
	detach();
}

static void test_agent_stores_that_will_not_do_refused(void)
{
	const int seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
	int pipe_fds[2];
	struct {
		const char *name;
		int fd;
		uint32_t frames;
	} cases[] = {
		{ "not sealed", store_make(10, F_SEAL_SEAL, O_RDONLY, NULL), 10 },
		{ "may shrink", store_make(10, F_SEAL_GROW | F_SEAL_SEAL, O_RDONLY, NULL), 10 },
		{ "may grow", store_make(10, F_SEAL_SHRINK | F_SEAL_SEAL, O_RDONLY, NULL), 10 },
		{ "writable", store_make(10, seals, O_RDWR, NULL), 10 },
		{ "path only", store_make(10, seals, O_PATH, NULL), 10 },
		{ "a page too small", store_make(10, seals, O_RDONLY, NULL), 11 },
		{ "much too small", store_make(10, seals, O_RDONLY, NULL), UINT32_MAX },
		{ "no frames", store_make(10, seals, O_RDONLY, NULL), 0 },
		{ "a file", open("/proc/self/exe", O_RDONLY | O_CLOEXEC), 1 },
		{ "zeroes", open("/dev/zero", O_RDONLY | O_CLOEXEC), 1 },
		{ "a pipe", -1, 1 },
	};

	unit_must(pipe2(pipe_fds, O_CLOEXEC) == 0, "pipe");
	cases[ARRAY_SIZE(cases) - 1].fd = pipe_fds[0];
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		unsigned fds = count_fds();

		CU_ASSERT_EQUAL_FATAL(attach(), 0);
		CU_ASSERT_EQUAL(slot_offer(), 0);
		unit_must(daemon_send_store(cases[i].fd, cases[i].frames) == 0, "send");
		UNIT_CASE(cases[i].name, ended_and_intact());
		detach();
		UNIT_CASE(cases[i].name, count_fds() == fds);
		close(cases[i].fd);
	}
	close(pipe_fds[1]);
	attach_all();
	CU_ASSERT_EQUAL(daemon_send_store(rig.store_ro, FRAMES), 0);
	UNIT_CASE("a second store", ended_and_intact());
	detach();
}

static void test_agent_merge_before_store_ends_connection(void)
{
	struct packet *p = merge_new(0);

	CU_ASSERT_EQUAL_FATAL(attach(), 0);
	CU_ASSERT_EQUAL(slot_offer(), 0);
	merge_run(p, 200, 10, AGENT_ZERO);
	CU_ASSERT_EQUAL(packet_send(rig.sock, p->bytes, p->len, NULL, 0), 0);
	CU_ASSERT_TRUE(ended_and_intact());
	detach();
}

/* len bytes with n copies of one descriptor, more than packet_send() would. */
static void send_fds(int sock, const void *bytes, size_t len, unsigned n)
{
	union {
		struct cmsghdr header;
		char bytes[CMSG_SPACE(253 * sizeof(int))];
	} control = { 0 };
	struct iovec iov = { .iov_base = (void *)(uintptr_t)bytes, .iov_len = len };
	struct msghdr msg = { .msg_iov = &iov,
			      .msg_iovlen = 1,
			      .msg_control = n > 0 ? &control : NULL,
			      .msg_controllen = n > 0 ? CMSG_SPACE(n * sizeof(int)) : 0 };

	control.header.cmsg_level = SOL_SOCKET;
	control.header.cmsg_type = SCM_RIGHTS;
	control.header.cmsg_len = CMSG_LEN(n * sizeof(int));
	for (unsigned i = 0; i < n; i++)
		memcpy(CMSG_DATA(&control.header) + i * sizeof(int), &rig.store_ro, sizeof(int));
	unit_must(sendmsg(sock, &msg, MSG_NOSIGNAL) >= 0, "sendmsg");
}

static void test_agent_descriptors_not_announced_closed(void)
{
	const struct agent_store store = { .header.type = AGENT_STORE, .frames = FRAMES };
	struct packet *merge = merge_new(0);
	struct {
		const char *name;
		const void *bytes;
		size_t len;
		unsigned fds;
	} cases[] = {
		{ "store without", &store, sizeof(store), 0 },
		{ "store with two", &store, sizeof(store), 2 },
		{ "store with three", &store, sizeof(store), 3 },
		{ "store with all it can", &store, sizeof(store), 253 },
		{ "merge with one", merge->bytes, 0, 1 },
		{ "merge with many", merge->bytes, 0, 253 },
		{ "nothing with one", &store, 0, 1 },
		{ "garbage with two", "garbage", 7, 2 },
	};

	merge_run(merge, 0, 10, 0);
	cases[4].len = cases[5].len = merge->len;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		unsigned fds = count_fds(), attached;

		CU_ASSERT_EQUAL_FATAL(attach(), 0);
		CU_ASSERT_EQUAL(slot_offer(), 0);
		attached = count_fds();
		send_fds(rig.sock, cases[i].bytes, cases[i].len, cases[i].fds);
		UNIT_CASE(cases[i].name, ended_and_intact());
		UNIT_CASE(cases[i].name, count_fds() == attached - 1); /* its end of the connection */
		detach();
		UNIT_CASE(cases[i].name, count_fds() == fds);
	}
}

/* The other direction: what a daemon does with the packets of a hostile agent. */
static void test_packet_receive_more_descriptors_than_said_closed(void)
{
	static const struct {
		unsigned fds;
		int want;
	} cases[] = { { 2, 0 }, { 0, -EPROTO }, { 1, -EPROTO }, { 3, -EPROTO }, { 4, -ETOOMANYREFS }, { 253, -ETOOMANYREFS } };
	const struct agent_hello hello = { .header.type = AGENT_HELLO,
					   .version = AGENT_PROTOCOL_VERSION,
					   .flags = AGENT_CAN_REMAP,
					   .why = "no freezer" };
	int ends[2];
	unsigned fds;

	unit_must(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) == 0, "socketpair");
	fds = count_fds();
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		send_fds(ends[0], &hello, sizeof(hello), cases[i].fds);
		CU_ASSERT_EQUAL(packet_receive(ends[1], &rig.in, 0), cases[i].want);
		CU_ASSERT_EQUAL(count_fds(), fds + (cases[i].want == 0 ? 2 : 0));
		packet_close(&rig.in);
		CU_ASSERT_EQUAL(count_fds(), fds);
	}
	CU_ASSERT_EQUAL(packet_receive(ends[1], &rig.in, MSG_DONTWAIT), -EAGAIN);
	close(ends[0]);
	CU_ASSERT_EQUAL(packet_receive(ends[1], &rig.in, 0), -ECONNRESET);
	CU_ASSERT_EQUAL(packet_send(ends[1], &hello, sizeof(hello), NULL, 0), -EPIPE); /* and no signal */
	close(ends[1]);
}

#define REMAP (UINT64_C(1) << 32) /* the second word's upper half: flags */
#define UNMERGE (UINT64_C(2) << 32)
#define V2 UINT64_C(2)
#define V AGENT_PROTOCOL_VERSION
#define WHY UINT64_C(0x646c6f206f6f74) /* "too old" */

static void test_packet_check_each_type_bad_fields_refused(void)
{
	static const struct {
		const char *name;
		unsigned fds;
		size_t len;
		uint64_t words[5];
		int want;
	} cases[] = {
		{ "hello", 3, 112, { AGENT_HELLO, REMAP | UNMERGE | V }, 0 },
		{ "hello, no un-merging", 2, 112, { AGENT_HELLO, REMAP | V, WHY }, 0 },
		{ "hello, no un-merging, without a reason", 2, 112, { AGENT_HELLO, REMAP | V }, -EPROTO },
		{ "hello, all and a reason", 3, 112, { AGENT_HELLO, REMAP | UNMERGE | V, WHY }, -EPROTO },
		{ "hello, only un-merging", 3, 112, { AGENT_HELLO, UNMERGE | V, WHY }, -EPROTO },
		{ "hello, third descriptor missing", 2, 112, { AGENT_HELLO, REMAP | UNMERGE | V }, -EPROTO },
		{ "hello of version 2", 2, 112, { AGENT_HELLO, REMAP | V2 }, 0 },
		{ "hello of version 2 that un-merges", 3, 112, { AGENT_HELLO, REMAP | UNMERGE | V2 }, -EPROTO },
		{ "hello of version 2 with a reason", 2, 112, { AGENT_HELLO, REMAP | V2, WHY }, -EPROTO },
		{ "hello of version 1", 2, 112, { AGENT_HELLO, REMAP | 1 }, -EPROTONOSUPPORT },
		{ "hello of version 9, shorter", 0, 16, { AGENT_HELLO, 9 }, -EPROTONOSUPPORT },
		{ "hello without journal", 1, 112, { AGENT_HELLO, REMAP | V, WHY }, -EPROTO },
		{ "hello, only hints", 0, 112, { AGENT_HELLO, V, WHY }, 0 },
		{ "hello, only hints, with descriptors", 2, 112, { AGENT_HELLO, V, WHY }, -EPROTO },
		{ "hello, only hints, without a reason", 0, 112, { AGENT_HELLO, V }, -EPROTO },
				{ "hello, unknown flag", 2, 112, { AGENT_HELLO, UINT64_C(5) << 32 | V, WHY }, -EPROTO },
		{ "hello, reason that rings", 0, 112, { AGENT_HELLO, V, 7 }, -EPROTO },
		{ "hello, reason with a hole", 0, 112, { AGENT_HELLO, V, 'a', 'b' }, -EPROTO },
		{ "hello with sequence", 2, 112, { UINT64_C(1) << 32 | AGENT_HELLO, REMAP | V2 }, -EPROTO },
		{ "hello with count", 2, 112, { 1 << 16 | AGENT_HELLO, REMAP | V2 }, -EPROTO },
		{ "slot", 0, 128, { AGENT_SLOT, 4096, 4096, 1 }, 0 },
		{ "slot, only hints", 0, 128, { AGENT_SLOT, 4096, 4096, 0, WHY }, 0 },
		{ "slot, reserved", 0, 128, { AGENT_SLOT, 4096, 4096, REMAP | 1 }, -EPROTO },
		{ "slot empty", 0, 128, { AGENT_SLOT, 4096, 0, 1 }, -EPROTO },
		{ "slot not aligned", 0, 128, { AGENT_SLOT, 4097, 4096, 1 }, -EPROTO },
		{ "slot wraps", 0, 128, { AGENT_SLOT, UINT64_C(0xfffffffffffff000), 8192, 1 }, -EPROTO },
		{ "slot ends at 2^64", 0, 128, { AGENT_SLOT, UINT64_C(0xfffffffffffff000), 4096, 1 }, -EPROTO },
		{ "unslot", 0, 24, { AGENT_UNSLOT, 4096, 4096 }, 0 },
		{ "asks for a userfaultfd", 0, 8, { AGENT_UFFD_ASK }, 0 },
		{ "userfaultfd", 1, 16, { AGENT_UFFD, 1 }, 0 },
		{ "no userfaultfd", 0, 16, { AGENT_UFFD, 0 }, 0 },
		{ "userfaultfd that is missing", 0, 16, { AGENT_UFFD, 1 }, -EPROTO },
		{ "two userfaultfds", 2, 16, { AGENT_UFFD, 2 }, -EPROTO },
		{ "hint", 0, 24, { 1 << 16 | AGENT_HINT, 8192, 16 }, 0 },
		{ "hint of nothing", 0, 24, { 1 << 16 | AGENT_HINT, 8192, 0 }, -EPROTO },
		{ "hint not aligned", 0, 24, { 1 << 16 | AGENT_HINT, 8193, 16 }, -EPROTO },
		{ "hint wraps", 0, 24, { 1 << 16 | AGENT_HINT, UINT64_C(0xfffffffffffff000), 16 }, -EPROTO },
		{ "hint, reserved", 0, 24, { 1 << 16 | AGENT_HINT, 8192, REMAP | 16 }, -EPROTO },
		{ "no hints", 0, 8, { AGENT_HINT }, -EPROTO },
		{ "hinted", 0, 16, { AGENT_HINTED, UINT64_C(16) << 32 }, 0 },
		{ "hinted, error positive", 0, 16, { AGENT_HINTED, 22 }, -EPROTO },
		{ "hash", 0, 32, { AGENT_HASH, 8192, 1, 1024 }, 0 },
		{ "hash too much", 0, 32, { AGENT_HASH, 8192, 1, 1025 }, -EPROTO },
		{ "hash nothing", 0, 32, { AGENT_HASH, 8192, 1, 0 }, -EPROTO },
		{ "hash, not aligned", 0, 32, { AGENT_HASH, 8193, 1, 16 }, -EPROTO },
		{ "hash wraps", 0, 32, { AGENT_HASH, UINT64_C(0xfffffffffffff000), 1, 16 }, -EPROTO },
		{ "hash, reserved", 0, 32, { AGENT_HASH, 8192, 1, REMAP | 16 }, -EPROTO },
		{ "hashed, nothing there", 0, 32, { AGENT_HASHED }, 0 },
		{ "hashed", 0, 40, { 1 << 16 | AGENT_HASHED }, 0 },
		{ "hashed, counts more", 0, 40, { 2 << 16 | AGENT_HASHED }, -EPROTO },
		{ "hashed, error", 0, 32, { AGENT_HASHED, (uint32_t)-22 }, 0 },
		{ "hashed, error and hashes", 0, 40, { 1 << 16 | AGENT_HASHED, (uint32_t)-22 }, -EPROTO },
		{ "hashed, error positive", 0, 32, { AGENT_HASHED, 22 }, -EPROTO },
		{ "hashed, more huge than asked for", 0, 32, { AGENT_HASHED, 0, 0, 1025 }, -EPROTO },
		{ "hashed, reserved", 0, 32, { AGENT_HASHED, 0, 0, REMAP }, -EPROTO },
		{ "unmerge", 0, 24, { AGENT_UNMERGE, 2u << 20, 1 }, 0 },
		{ "unmerge, no window", 0, 24, { AGENT_UNMERGE, 4096, 0 }, -EPROTO },
		{ "unmerge, flags", 0, 24, { AGENT_UNMERGE, 2u << 20, 2 }, -EPROTO },
		{ "unmerge, reserved", 0, 24, { AGENT_UNMERGE, 2u << 20, REMAP }, -EPROTO },
		{ "unmerge, longer", 0, 32, { AGENT_UNMERGE, 2u << 20, 0 }, -EPROTO },
		{ "unmerged", 0, 40, { AGENT_UNMERGED, 0, 2u << 20, 512 }, 0 },
		{ "unmerged, error positive", 0, 40, { AGENT_UNMERGED, 16, 2u << 20, 0 }, -EPROTO },
		{ "unmerged, reason positive", 0, 40, { AGENT_UNMERGED, REMAP, 2u << 20, 0 }, -EPROTO },
		{ "unmerged, too many", 0, 40, { AGENT_UNMERGED, 0, 2u << 20, 513 }, -EPROTO },
		{ "unmerged, no window", 0, 40, { AGENT_UNMERGED, 0, 4096, 512 }, -EPROTO },
		{ "unslot with a descriptor", 1, 24, { AGENT_UNSLOT, 4096, 4096 }, -EPROTO },
		{ "released", 0, 24, { AGENT_RELEASED, 8192, 4096 }, 0 },
		{ "released too long", 0, 32, { AGENT_RELEASED, 8192, 4096 }, -EPROTO },
		{ "merged, all failed", 0, 32, { AGENT_MERGED, (uint32_t)-22, 0 }, 0 },
		{ "merged without results", 0, 32, { AGENT_MERGED, 0, 0 }, -EPROTO },
		{ "merged, error positive", 0, 32, { AGENT_MERGED, 22, 0 }, -EPROTO },
		{ "merged, no errno", 0, 32, { AGENT_MERGED, UINT32_C(0x80000000), 0 }, -EPROTO },
		{ "merged", 0, 40, { 1 << 16 | AGENT_MERGED, 0, 0, 7, 512 }, 0 },
		{ "merged too many", 0, 40, { 1 << 16 | AGENT_MERGED, 0, 0, 0, 513 }, -EPROTO },
		{ "merged, outcome", 0, 40, { 1 << 16 | AGENT_MERGED, 0, 0, 0, 6 << 16 }, -EPROTO },
		{ "merged, result reserved", 0, 40, { 1 << 16 | AGENT_MERGED, 0, 0, 0, 1 << 24 }, -EPROTO },
		{ "merged, reserved", 0, 40, { 1 << 16 | AGENT_MERGED, 0, 0, UINT64_C(1) << 32, 1 }, -EPROTO },
		{ "merged, counts more", 0, 40, { 2 << 16 | AGENT_MERGED, 0, 0, 0, 1 }, -EPROTO },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct packet p = { .len = cases[i].len };

		memcpy(p.bytes, cases[i].words, sizeof(cases[i].words));
		UNIT_CASE(cases[i].name, packet_check(&p, cases[i].fds) == cases[i].want);
	}
}

/* ---- nothing is left behind ---- */

static void test_agent_rounds_leave_nothing(void)
{
	unsigned fds = count_fds(), maps = 0, bad = 0;

	for (unsigned i = 0; i < ROUNDS; i++) {
		struct packet *p = merge_new(0);

		attach_all();
		if (i % 100 == 0) {
			merge_run(p, 0, 10, 0);
			bad += merge_ask(p) != 0 || packet_merged(&rig.in)->error != 0;
			ram_fill();
		}
		detach();
		if (i == 10) /* the C library has cached its stacks */
			maps = count_maps();
	}
	CU_ASSERT_EQUAL(bad, 0);
	CU_ASSERT_EQUAL(count_fds(), fds);
	CU_ASSERT_TRUE(count_maps() < maps + ROUNDS / 4); /* a sanitizer's own heap grows, too */
}

int main(void)
{
	static CU_TestInfo tests[] = {
		{ "hello", test_agent_attach_says_hello_with_descriptors },
		{ "slots", test_agent_slots_are_offered_and_withdrawn },
		{ "merge", test_agent_merge_each_kind_of_run_contents_right },
		{ "unmerge", test_agent_unmerge_gives_memory_back },
		{ "debugger", test_agent_debugger_attached_merging_pauses },
		{ "hash", test_agent_hash_tells_what_is_there },
		{ "hash_outside", test_agent_hash_outside_of_slots_refused },
		{ "hash_same", test_page_hash_both_ways_the_same },
		{ "discard", test_agent_discard_of_merged_gives_zeroes_and_tells },
		{ "no_daemon", test_agent_no_daemon_or_another_users_refused },
		{ "daemon_gone", test_agent_daemon_gone_vmm_runs_on },
		{ "fork", test_agent_fork_child_keeps_memory_and_parent_its_daemon },
		{ "hostile_merge", test_agent_hostile_merge_ends_connection },
		{ "hostile_lengths", test_agent_packets_cut_or_grown_refused },
		{ "hostile_window", test_agent_merge_outside_slots_answered_and_nothing_mapped },
		{ "hostile_slot_end", test_agent_merge_over_end_of_slot_refused },
		{ "hostile_store", test_agent_stores_that_will_not_do_refused },
		{ "hostile_order", test_agent_merge_before_store_ends_connection },
		{ "hostile_fds", test_agent_descriptors_not_announced_closed },
		{ "packet_fds", test_packet_receive_more_descriptors_than_said_closed },
		{ "packet_fields", test_packet_check_each_type_bad_fields_refused },
		{ "rounds", test_agent_rounds_leave_nothing },
		CU_TEST_INFO_NULL,
	};
	const char *why = "a userfaultfd cannot be opened";
	int fd = uffd_open(), status;

	if (fd < 0 || uffd_probe(fd, &why) < 0) {
		printf("skip: agent: %s\n", why);
		return 77;
	}
	close(fd);
	rig_start();
	status = unit_main("agent", tests);
	unit_dir_remove(rig.dir);
	return status;
}
