/* ksmd/unmerge: which windows of a VM an agent is asked to give back, and what is made of its answers. The agent is a thread
 * of this process, whose own mappings are what is looked at. */
#include "ksmd/unmerge.h"

#include <poll.h>
#include <pthread.h>
#include <sys/socket.h>

#include "agent/packet.h"
#include "agent/uffd.h"
#include "ksmd/agent_peer.h"
#include "ksmd/store.h"
#include "tests/unit/unit.h"

#define WINDOW ((size_t)2 << 20)
#define WINDOWS 4u

enum temper { HONEST, KEEPS, RELENTS, REFUSES, CLOSES, LIES };

static struct {
	struct fsio fs;
	uint8_t *ram; /* window 1 and 3 are mapped to a store, and a page of window 2 */
	int fd;
	enum temper temper;
	unsigned slot_windows; /* of its RAM that the agent names */
	unsigned asked[WINDOWS];
	uint32_t flags;
	pthread_t thread;
	struct agent_peer *peer;
} rig;

static void store_map(uint8_t *at, size_t len)
{
	auto_close int fd = memfd_create(STORE_NAME_PREFIX "test", MFD_CLOEXEC);

	unit_must(fd >= 0 && ftruncate(fd, (off_t)len) == 0 &&
			  mmap(at, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, fd, 0) == at, "store");
}

static void ram_make(void)
{
	uint8_t *area = mmap(NULL, (WINDOWS + 1) * WINDOW, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	unit_must(area != MAP_FAILED, "mmap");
	rig.ram = area + (-(uintptr_t)area & (WINDOW - 1));
	rig.slot_windows = WINDOWS;
	store_map(rig.ram + WINDOW, WINDOW);
	store_map(rig.ram + 2 * WINDOW + 5 * PAGE_BYTES, PAGE_BYTES);
	store_map(rig.ram + 3 * WINDOW, WINDOW);
	memset(rig.ram + 3 * WINDOW, 1, WINDOW * 4 / 5); /* worn */
	memset(rig.ram + WINDOW, 1, WINDOW / 2); /* not */
}

static int agent_answer(const struct agent_unmerge *m)
{
	unsigned w = (unsigned)((m->window - (uintptr_t)rig.ram) / WINDOW), first = w < WINDOWS ? rig.asked[w]++ : 1;
	struct agent_unmerged u = { .header = { .type = AGENT_UNMERGED, .sequence = m->header.sequence },
				    .window = m->window,
				    .stall_us = 100 + w,
				    .folded = 10 };

	rig.flags |= m->flags;
	if (rig.temper == KEEPS || (rig.temper == RELENTS && first == 0)) {
		u.kept = 2;
		u.kept_error = -EBUSY;
	} else if (rig.temper == REFUSES) {
		u.error = -EIO;
	} else if (rig.temper == LIES) {
		u.window += WINDOW;
	}
	return rig.temper == CLOSES ? -1 : packet_send(rig.fd, &u, sizeof(u), NULL, 0);
}

static void *agent_main(void *arg)
{
	static struct packet in;

	while (packet_receive(rig.fd, &in, 0) == 0 && in.header.type == AGENT_UNMERGE && agent_answer(&in.unmerge) == 0)
		;
	shutdown(rig.fd, SHUT_RDWR);
	return arg;
}

static void agent_start(enum temper temper, uint32_t version)
{
	struct agent_hello hello = { .header.type = AGENT_HELLO, .version = version,
				     .flags = AGENT_CAN_REMAP | (version > 2 ? AGENT_CAN_UNMERGE : 0) };
	const struct agent_slot slot = { .header.type = AGENT_SLOT, .hva = (uintptr_t)rig.ram,
					 .bytes = rig.slot_windows * WINDOW, .flags = AGENT_CAN_REMAP };
	const struct agent_slot_view *slots;
	int journal = memfd_create("journal", MFD_CLOEXEC | MFD_ALLOW_SEALING), ends[2];
	int fds[] = { uffd_open(), journal, uffd_open_freezer() };
	struct agent_answer answer;

	unit_must(fds[0] >= 0 && fds[2] >= 0 && ftruncate(journal, PAGE_BYTES) == 0 &&
			  fcntl(journal, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) == 0, "journal");
	unit_must(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) == 0, "socketpair");
	rig.fd = ends[0];
	rig.temper = temper;
	rig.flags = 0;
	memset(rig.asked, 0, sizeof(rig.asked));
	unit_must(agent_peer_new(ends[1], &rig.peer) == 0, "peer");
	CU_ASSERT_EQUAL(packet_send(rig.fd, &hello, sizeof(hello), fds, version > 2 ? 3 : 2), 0);
	unit_must(agent_peer_take(rig.peer, 1000, &answer) == 0 && agent_peer_ready(rig.peer), "hello");
	CU_ASSERT_EQUAL(packet_send(rig.fd, &slot, sizeof(slot), NULL, 0), 0);
	unit_must(agent_peer_take(rig.peer, 1000, &answer) == 0 && agent_peer_slots(rig.peer, &slots) == 1, "slot");
	for (size_t i = 0; i < ARRAY_SIZE(fds); i++)
		close(fds[i]);
	unit_must(pthread_create(&rig.thread, NULL, agent_main, NULL) == 0, "pthread_create");
}

static void agent_stop(void)
{
	shutdown(rig.fd, SHUT_RDWR);
	pthread_join(rig.thread, NULL);
	close(rig.fd);
	rig.peer = agent_peer_free(rig.peer);
}

static struct unmerge_result run(bool worn)
{
	const struct unmerge_options options = { .worn = worn };
	struct unmerge_result result;
	struct unmerge *u = NULL;
	struct pollfd ended;

	unit_must(unmerge_start(&rig.fs, rig.peer, &options, &u) == 0, "unmerge_start");
	ended = (struct pollfd){ .fd = unmerge_done_fd(u), .events = POLLIN };
	CU_ASSERT_EQUAL(poll(&ended, 1, 10000), 1);
	CU_ASSERT_PTR_EQUAL(unmerge_peer(u), rig.peer);
	result = *unmerge_wait(u);
	unmerge_free(u);
	return result;
}

static void test_unmerge_leaves_what_the_agent_has_not_named(void)
{
	struct unmerge_result r;

	rig.slot_windows = 3;
	agent_start(HONEST, AGENT_PROTOCOL_VERSION);
	r = run(false);
	agent_stop();
	rig.slot_windows = WINDOWS;
	CU_ASSERT_EQUAL(r.pages, 20);
	CU_ASSERT_EQUAL(rig.asked[3], 0);
}

static void test_unmerge_asks_for_windows_with_frames(void)
{
	static const struct {
		const char *name;
		enum temper temper;
		bool worn;
		unsigned asked[WINDOWS];
		uint64_t pages, kept;
		int kept_error, error;
		bool broken;
	} cases[] = {
		{ "all", HONEST, false, { 0, 1, 1, 1 }, 30, 0, 0, 0, false },
		{ "worn", HONEST, true, { 0, 0, 0, 1 }, 10, 0, 0, 0, false },
		{ "keeps some", KEEPS, false, { 0, 3, 3, 3 }, 90, 6, -EBUSY, 0, false },
		{ "gives them later", RELENTS, false, { 0, 2, 2, 2 }, 60, 0, 0, 0, false },
		{ "worn, keeps some", KEEPS, true, { 0, 0, 0, 1 }, 10, 2, -EBUSY, 0, false },
		{ "refuses", REFUSES, true, { 0, 0, 0, 1 }, 10, 0, 0, -EREMOTEIO, false },
		{ "closes", CLOSES, true, { 0, 0, 0, 1 }, 0, 0, 0, -ECONNRESET, true },
		{ "lies", LIES, true, { 0, 0, 0, 1 }, 0, 0, 0, -EPROTO, true },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct unmerge_result r;

		agent_start(cases[i].temper, AGENT_PROTOCOL_VERSION);
		r = run(cases[i].worn);
		agent_stop();
		UNIT_CASE(cases[i].name, memcmp(rig.asked, cases[i].asked, sizeof(rig.asked)) == 0);
		UNIT_CASE(cases[i].name, r.pages == cases[i].pages && r.kept == cases[i].kept);
		UNIT_CASE(cases[i].name, r.kept_error == cases[i].kept_error && r.error == cases[i].error);
		UNIT_CASE(cases[i].name, r.broken == cases[i].broken);
		UNIT_CASE(cases[i].name, rig.flags == (cases[i].worn ? 0 : AGENT_UNMERGE_SPLIT));
		UNIT_CASE(cases[i].name, r.pages == 0 || r.stall_us_max == 103);
		CU_ASSERT_TRUE(strlen(unmerge_kept_why(r.kept_error)) > 0 || r.kept == 0);
	}
}

static void test_unmerge_agent_of_version_2_is_not_asked(void)
{
	struct unmerge_result r;

	agent_start(HONEST, 2);
	CU_ASSERT_PTR_NOT_NULL(agent_peer_unmerge_refusal(rig.peer));
	CU_ASSERT_PTR_NULL(agent_peer_refusal(rig.peer));
	r = run(false);
	agent_stop();
	CU_ASSERT_EQUAL(r.error, -EOPNOTSUPP);
	CU_ASSERT_EQUAL(rig.asked[1], 0);
}

static void test_unmerge_memory_keeps_a_reserve(void)
{
	static const struct {
		const char *text;
		uint64_t bytes;
		bool allows;
	} cases[] = {
		{ "MemTotal: 1048576 kB\nMemAvailable: 524288 kB\n", 256u << 20, true },
		{ "MemTotal: 1048576 kB\nMemAvailable: 524288 kB\n", (256u << 20) + 1, false },
		{ "MemTotal: 104857600 kB\nMemAvailable: 2097152 kB\n", 0, true },
		{ "MemTotal: 104857600 kB\nMemAvailable: 2097151 kB\n", 0, false }, /* 2 % */
		{ "MemTotal: 1048576 kB\nMemAvailable: 0 kB\n", 0, false },
		{ "MemTotal: 1048576 kB\n", 0, false },
		{ "", 0, false },
	};
	char dir[UNIT_DIR_MAX];
	struct fsio fs;

	unit_dir_new(dir);
	unit_must(mkdir(dir, 0700) == 0 || errno == EEXIST, dir);
	unit_must(fsio_open_root(dir, false, &fs) == 0, dir);
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		unit_file(dir, "proc/meminfo", cases[i].text);
		UNIT_CASE(cases[i].text, unmerge_memory_allows(&fs, cases[i].bytes) == cases[i].allows);
	}
	fsio_close(&fs);
	unit_dir_remove(dir);
}

int main(void)
{
	static CU_TestInfo tests[] = {
		{ "windows", test_unmerge_asks_for_windows_with_frames },
		{ "slots", test_unmerge_leaves_what_the_agent_has_not_named },
		{ "version_2", test_unmerge_agent_of_version_2_is_not_asked },
		{ "reserve", test_unmerge_memory_keeps_a_reserve },
		CU_TEST_INFO_NULL,
	};
	int fd = uffd_open_freezer();

	if (fd < 0) {
		printf("skip: unmerge: no userfaultfd with which writers wait\n");
		return 77;
	}
	close(fd);
	unit_must(fsio_open_root("/", false, &rig.fs) == 0, "/");
	ram_make();
	return unit_main("unmerge", tests);
}
