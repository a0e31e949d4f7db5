/* ksmd/agents: who is accepted, turned away, lent. The agents are connections of this process: its pid is what the kernel
 * names. */
#include "ksmd/agents.h"

#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "agent/packet.h"
#include "core/clock.h"
#include "ksmd/store.h"
#include "tests/unit/unit.h"

static struct {
	char dir[UNIT_DIR_MAX], path[100];
	struct agents *agents;
	struct fsio fs;
	bool known; /* what the daemon thinks of this process */
} rig;

static bool is_vm(pid_t pid, void *userdata)
{
	(void)userdata;
	return rig.known && pid == getpid();
}

static void rig_start(void)
{
	snprintf(rig.path, sizeof(rig.path), "%.80s/agent", rig.dir);
	unit_must(agents_new(rig.path, "", &rig.agents) == 0, "agents_new");
	rig.known = true;
}

static int dial(void)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	memcpy(addr.sun_path, rig.path, strlen(rig.path) + 1);
	unit_must(fd >= 0 && connect(fd, (struct sockaddr *)&addr, sizeof(addr)) == 0, "connect");
	return fd;
}

/* Takes in all that is there. */
static bool settle(void)
{
	for (int i = 0; i < 8; i++)
		agents_dispatch(rig.agents);
	return agents_review(rig.agents, is_vm, NULL);
}

static void say_hello(int fd)
{
	const struct agent_hello hello = { .header.type = AGENT_HELLO, .version = AGENT_PROTOCOL_VERSION,
					   .why = "too old" };

	CU_ASSERT_EQUAL(packet_send(fd, &hello, sizeof(hello), NULL, 0), 0);
}

static void say_slot(int fd, uint64_t hva, const char *why)
{
	struct agent_slot slot = { .header.type = AGENT_SLOT, .hva = hva, .bytes = 8192 };

	slot.flags = *why ? 0 : AGENT_CAN_REMAP;
	snprintf(slot.why, sizeof(slot.why), "%s", why);
	CU_ASSERT_EQUAL(packet_send(fd, &slot, sizeof(slot), NULL, 0), 0);
}

static void hello_as(int fd, uint32_t version, const char *why)
{
	struct agent_hello hello = { .header.type = AGENT_HELLO, .version = version };

	snprintf(hello.why, sizeof(hello.why), "%s", why);
	CU_ASSERT_EQUAL(packet_send(fd, &hello, sizeof(hello), NULL, 0), 0);
	settle();
}

static bool is_closed(int fd)
{
	struct packet p;

	return packet_receive(fd, &p, MSG_DONTWAIT) == -ECONNRESET;
}

/* VMs outlive a daemon: one of this version serves the agents of the one before. */
static void test_agents_version_before_is_served_others_not(void)
{
	const uint32_t unknown[] = { 0, AGENT_PROTOCOL_OLDEST - 1, AGENT_PROTOCOL_VERSION + 1 };
	struct agent *agent;
	int fd;

	rig_start();
	for (size_t i = 0; i < ARRAY_SIZE(unknown); i++) {
		fd = dial();
		hello_as(fd, unknown[i], "too old");
		CU_ASSERT_TRUE(is_closed(fd));
		close(fd);
	}
	for (uint32_t v = AGENT_PROTOCOL_OLDEST; v <= AGENT_PROTOCOL_VERSION; v++) {
		fd = dial();
		hello_as(fd, v, "too old");
		agent = agents_find(rig.agents, getpid());
		CU_ASSERT_PTR_NOT_NULL_FATAL(agent);
		CU_ASSERT_STRING_EQUAL(agent_peer_refusal(agent->peer), "too old");
		CU_ASSERT_STRING_EQUAL(agent_peer_unmerge_refusal(agent->peer),
				       v < 3 ? "its agent is of an earlier version (restart the VM)" : "too old");
		close(fd);
		settle();
	}
	agents_free(rig.agents);
}

static void test_agents_hello_and_slots_are_known(void)
{
	const struct agent_slot_view *slots;
	struct agent *agent;
	int fd;

	rig_start();
	fd = dial();
	settle();
	CU_ASSERT_PTR_NULL(agents_find(rig.agents, getpid())); /* it has not said hello */
	say_hello(fd);
	say_slot(fd, 4096, "locked");
	say_slot(fd, 65536, "");
	settle();
	agent = agents_find(rig.agents, getpid());
	CU_ASSERT_PTR_NOT_NULL_FATAL(agent);
	CU_ASSERT_TRUE(agent->said_hello && !agent->lent);
	CU_ASSERT_STRING_EQUAL(agent_peer_refusal(agent->peer), "too old");
	CU_ASSERT_EQUAL(agent_peer_slots(agent->peer, &slots), 2);
	CU_ASSERT_STRING_EQUAL(slots[0].why, "locked");
	CU_ASSERT_TRUE(!slots[0].can_remap && slots[1].can_remap && slots[1].hva == 65536);
	say_slot(fd, 4096, ""); /* fit now */
	settle();
	CU_ASSERT_EQUAL(agent_peer_slots(agent->peer, &slots), 2);
	CU_ASSERT_TRUE(slots[0].can_remap);
	close(fd);
	settle();
	CU_ASSERT_PTR_NULL(agents_find(rig.agents, getpid()));
	agents_free(rig.agents);
	CU_ASSERT_TRUE(access(rig.path, F_OK) < 0);
}

static void test_agents_unknown_group_leaves_no_socket(void)
{
	struct agents *agents;

	snprintf(rig.path, sizeof(rig.path), "%.80s/agent", rig.dir);
	CU_ASSERT_EQUAL(agents_new(rig.path, "no such group", &agents), -ENOENT);
	CU_ASSERT_TRUE(access(rig.path, F_OK) < 0);
}

static void test_agents_strangers_looked_for_once(void)
{
	int fd;

	rig_start();
	rig.known = false;
	fd = dial();
	agents_dispatch(rig.agents);
	CU_ASSERT_TRUE(agents_review(rig.agents, is_vm, NULL)); /* look for its VM */
	CU_ASSERT_FALSE(agents_review(rig.agents, is_vm, NULL)); /* but not again */
	CU_ASSERT_FALSE(is_closed(fd));
	rig.known = true;
	say_hello(fd);
	CU_ASSERT_FALSE(settle());
	CU_ASSERT_PTR_NOT_NULL(agents_find(rig.agents, getpid()));
	close(fd);
	agents_free(rig.agents);
}

static void test_agents_userfaultfd_only_for_vms(void)
{
	const struct agent_header ask = { .type = AGENT_UFFD_ASK };
	struct packet p;
	int fd;

	rig_start();
	rig.known = false;
	fd = dial();
	CU_ASSERT_EQUAL(packet_send(fd, &ask, sizeof(ask), NULL, 0), 0);
	settle();
	CU_ASSERT_EQUAL(packet_receive(fd, &p, MSG_DONTWAIT), -EAGAIN);
	rig.known = true;
	settle();
	CU_ASSERT_EQUAL_FATAL(packet_receive(fd, &p, MSG_DONTWAIT), 0);
	CU_ASSERT_EQUAL(p.header.type, AGENT_UFFD);
	CU_ASSERT_EQUAL(p.uffd.granted, access("/dev/userfaultfd", R_OK | W_OK) == 0);
	packet_close(&p);
	close(fd);
	agents_free(rig.agents);
}

static void test_agents_nonsense_turned_away(void)
{
	static const struct {
		const char *what;
		bool hello;
		uint64_t words[4];
		size_t len;
	} cases[] = {
		{ "slot before hello", false, { AGENT_SLOT, 4096, 4096, 1 }, sizeof(struct agent_slot) },
		{ "garbage", false, { 0x1234567812345678 }, 24 },
		{ "short", false, { AGENT_HELLO }, 8 },
		{ "version 9", false, { AGENT_HELLO, 9 }, 112 },
		{ "hello twice", true, { AGENT_HELLO, UINT64_C(1) << 32 | 1 }, 112 },
		{ "answer to nothing", true, { AGENT_MERGED, (uint32_t)-22, 0 }, 32 },
		{ "hinted to nothing", true, { AGENT_HINTED, 0 }, 16 },
		{ "hashed to nothing", true, { AGENT_HASHED, 0 }, 32 },
		{ "what only daemons send", true, { AGENT_UFFD, 0 }, 16 },
		{ "slot over another", true, { AGENT_SLOT, 8192, 8192, 1 }, sizeof(struct agent_slot) },
		{ "unslot of none", true, { AGENT_UNSLOT, 1 << 20, 4096 }, 24 },
		{ "unslot of a part", true, { AGENT_UNSLOT, 4096, 4096 }, 24 },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		char bytes[256] = { 0 };
		int fd;

		rig_start();
		fd = dial();
		if (cases[i].hello) {
			say_hello(fd);
			say_slot(fd, 4096, "");
			settle();
		}
		memcpy(bytes, cases[i].words, sizeof(cases[i].words));
		unit_must(send(fd, bytes, cases[i].len, 0) >= 0, "send");
		settle();
		UNIT_CASE(cases[i].what, is_closed(fd));
		UNIT_CASE(cases[i].what, agents_find(rig.agents, getpid()) == NULL);
		close(fd);
		agents_free(rig.agents);
	}
}

static void test_agents_too_many_slots_turned_away(void)
{
	int fd;

	rig_start();
	fd = dial();
	say_hello(fd);
	for (uint64_t i = 1; i <= AGENT_SLOTS_MAX + 1; i++) {
		say_slot(fd, i << 20, "");
		settle();
	}
	CU_ASSERT_TRUE(is_closed(fd));
	close(fd);
	agents_free(rig.agents);
}

static void test_agents_newer_connection_replaces(void)
{
	struct agent_peer *peer;
	int first, second;

	rig_start();
	first = dial();
	say_hello(first);
	settle();
	second = dial();
	settle();
	CU_ASSERT_FALSE(is_closed(first)); /* the other has not said hello */
	say_hello(second);
	settle();
	CU_ASSERT_TRUE(is_closed(first));
	CU_ASSERT_FALSE(is_closed(second));
	peer = agents_find(rig.agents, getpid())->peer;
	CU_ASSERT_PTR_EQUAL(agent_lend(rig.agents, agents_find(rig.agents, getpid())), peer);
	close(first);
	first = dial(); /* while the other is lent */
	say_hello(first);
	settle();
	CU_ASSERT_FALSE(is_closed(second)); /* somebody uses it */
	agent_return(rig.agents, peer, false);
	CU_ASSERT_TRUE(is_closed(second));
	CU_ASSERT_PTR_NOT_NULL(agents_find(rig.agents, getpid()));
	close(first);
	close(second);
	agents_free(rig.agents);
}

static void test_agents_one_process_cannot_take_all(void)
{
	int fds[8];

	rig_start();
	for (size_t i = 0; i < ARRAY_SIZE(fds); i++)
		fds[i] = dial();
	for (size_t i = 0; i < ARRAY_SIZE(fds); i++)
		settle();
	CU_ASSERT_FALSE(is_closed(fds[0]));
	CU_ASSERT_TRUE(is_closed(fds[7]));
	for (size_t i = 0; i < ARRAY_SIZE(fds); i++)
		close(fds[i]);
	settle();
	fds[0] = dial();
	settle();
	CU_ASSERT_FALSE(is_closed(fds[0])); /* there is room again */
	close(fds[0]);
	agents_free(rig.agents);
}

/* The loop must not be told again and again of somebody whom it cannot accept. */
static void test_agents_no_descriptors_left_does_not_spin(void)
{
	struct pollfd ready = { .events = POLLIN };
	struct rlimit files, none;
	int fd;

	rig_start();
	ready.fd = agents_fd(rig.agents);
	fd = dial();
	unit_must(getrlimit(RLIMIT_NOFILE, &files) == 0, "getrlimit");
	none = files;
	none.rlim_cur = 0;
	unit_must(setrlimit(RLIMIT_NOFILE, &none) == 0, "setrlimit");
	agents_dispatch(rig.agents);
	unit_must(setrlimit(RLIMIT_NOFILE, &files) == 0, "setrlimit");
	CU_ASSERT_EQUAL(poll(&ready, 1, 0), 0);
	unit_must(nanosleep(&(struct timespec){ .tv_sec = 1 }, NULL) == 0, "nanosleep");
	settle();
	say_hello(fd);
	settle();
	settle();
	CU_ASSERT_PTR_NOT_NULL(agents_find(rig.agents, getpid()));
	close(fd);
	agents_free(rig.agents);
}

static void test_agents_dropped_is_closed(void)
{
	int fd;

	rig_start();
	fd = dial();
	say_hello(fd);
	settle();
	agents_drop(rig.agents, getpid() + 1);
	CU_ASSERT_FALSE(is_closed(fd));
	agents_drop(rig.agents, getpid());
	CU_ASSERT_TRUE(is_closed(fd));
	CU_ASSERT_PTR_NULL(agents_find(rig.agents, getpid()));
	close(fd);
	agents_free(rig.agents);
}

static void test_agents_lent_is_not_read_and_comes_back(void)
{
	const struct agent_range released = { { .type = AGENT_RELEASED }, 4096, 4096 };
	struct agent_peer *peer;
	struct agent *agent;
	int fd;

	rig_start();
	fd = dial();
	say_hello(fd);
	settle();
	agent = agents_find(rig.agents, getpid());
	peer = agent_lend(rig.agents, agent);
	CU_ASSERT_EQUAL(packet_send(fd, &released, sizeof(released), NULL, 0), 0);
	settle();
	CU_ASSERT_TRUE(agent->lent && !agent->released);
	agent_return(rig.agents, peer, false);
	settle();
	CU_ASSERT_TRUE(!agent->lent && agent->released);
	agent_lend(rig.agents, agent);
	agent_return(rig.agents, peer, true);
	CU_ASSERT_TRUE(is_closed(fd));
	CU_ASSERT_PTR_NULL(agents_find(rig.agents, getpid()));
	close(fd);
	agents_free(rig.agents);
}

/* Ends as soon as its connection is its child's as well, which lives until "go" is closed. */
static void heir_make(const int go[2])
{
	char c;

	close(go[1]);
	dial();
	if (fork() == 0)
		(void)!read(go[0], &c, 1);
	_exit(0);
}

/* Who connected has ended, and its pid may be a VM's by now: what is given would go to its heir. */
static void test_agents_ended_process_is_given_nothing(void)
{
	struct store_options options = { "test", STORE_BLOCK_FRAMES, -1 };
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	struct store *store = NULL;
	struct agent_peer *peer = NULL;
	int listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0), go[2], fd;
	pid_t pid;

	snprintf(rig.path, sizeof(rig.path), "%.80s/heir", rig.dir);
	memcpy(addr.sun_path, rig.path, strlen(rig.path) + 1);
	unit_must(bind(listener, (struct sockaddr *)&addr, sizeof(addr)) == 0 && listen(listener, 1) == 0, "listen");
	unit_must(store_new(&rig.fs, &options, &store) == 0 && pipe(go) == 0, "store_new");
	pid = fork();
	unit_must(pid >= 0, "fork");
	if (pid == 0)
		heir_make(go);
	fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	unit_must(fd >= 0 && agent_peer_new(fd, &peer) == 0, "agent_peer_new");
	waitpid(pid, NULL, 0);
	CU_ASSERT_EQUAL(agent_peer_pid(peer), pid);
	CU_ASSERT_EQUAL(agent_peer_give_store(peer, store), -ESRCH);
	CU_ASSERT_EQUAL(agent_peer_give_uffd(peer, -1), -ESRCH);
	agent_peer_free(peer);
	close(go[0]);
	close(go[1]);
	close(listener);
	unlink(rig.path);
	store_free(store);
}

/* A VM that changes its domain: frames of the new store, named to an agent that compares with the old one's, would be
 * mapped from the old, where nobody counts them. */
static void test_agents_second_store_needs_a_new_connection(void)
{
	struct store_options options = { "test", STORE_BLOCK_FRAMES, -1 };
	struct store *one = NULL, *two = NULL;
	struct agent_peer *peer;
	struct packet p;
	int fd;

	unit_must(store_new(&rig.fs, &options, &one) == 0 && store_new(&rig.fs, &options, &two) == 0, "store_new");
	rig_start();
	fd = dial();
	say_hello(fd);
	settle();
	peer = agents_find(rig.agents, getpid())->peer;
	CU_ASSERT_EQUAL(agent_peer_give_store(peer, one), 0);
	CU_ASSERT_EQUAL(packet_receive(fd, &p, MSG_DONTWAIT), 0);
	CU_ASSERT_EQUAL(p.header.type, AGENT_STORE);
	packet_close(&p);
	CU_ASSERT_EQUAL(agent_peer_give_store(peer, one), 0);
	CU_ASSERT_EQUAL(agent_peer_give_store(peer, two), -EXDEV);
	CU_ASSERT_EQUAL(packet_receive(fd, &p, MSG_DONTWAIT), -EAGAIN);
	close(fd);
	agents_free(rig.agents);
	store_free(one);
	store_free(two);
}

static atomic_bool flood_over;

static void *flood(void *arg)
{
	const struct agent_range released = { { .type = AGENT_RELEASED }, 4096, 4096 };

	while (!atomic_load(&flood_over))
		packet_send(*(int *)arg, &released, sizeof(released), NULL, 0);
	return NULL;
}

/* An agent that talks without end and answers nothing. */
static void test_agents_flood_is_no_answer(void)
{
	const struct agent_run run = { 0, 1, 0 };
	struct agent_answer answer;
	struct agent_peer *peer;
	uint64_t start;
	pthread_t thread;
	int fd;

	rig_start();
	fd = dial();
	say_hello(fd);
	settle();
	peer = agent_lend(rig.agents, agents_find(rig.agents, getpid()));
	CU_ASSERT_EQUAL(agent_peer_merge(peer, 0x200000, &run, 1, 1, 1), 0);
	atomic_store(&flood_over, false);
	unit_must(pthread_create(&thread, NULL, flood, &fd) == 0, "pthread_create");
	start = clock_mono_ns();
	CU_ASSERT_EQUAL(agent_peer_answer(peer, 200, &answer), -ETIMEDOUT);
	CU_ASSERT_TRUE(clock_mono_ns() - start < 2 * NSEC_PER_SEC);
	atomic_store(&flood_over, true);
	shutdown(fd, SHUT_RDWR);
	pthread_join(thread, NULL);
	agent_return(rig.agents, peer, true);
	close(fd);
	agents_free(rig.agents);
}

int main(void)
{
	static CU_TestInfo tests[] = {
		{ "hello", test_agents_hello_and_slots_are_known },
		{ "versions", test_agents_version_before_is_served_others_not },
		{ "group", test_agents_unknown_group_leaves_no_socket },
		{ "strangers", test_agents_strangers_looked_for_once },
		{ "userfaultfd", test_agents_userfaultfd_only_for_vms },
		{ "nonsense", test_agents_nonsense_turned_away },
		{ "slots", test_agents_too_many_slots_turned_away },
		{ "newer", test_agents_newer_connection_replaces },
		{ "many", test_agents_one_process_cannot_take_all },
		{ "deaf", test_agents_no_descriptors_left_does_not_spin },
		{ "dropped", test_agents_dropped_is_closed },
		{ "lent", test_agents_lent_is_not_read_and_comes_back },
		{ "heir", test_agents_ended_process_is_given_nothing },
		{ "second_store", test_agents_second_store_needs_a_new_connection },
		{ "flood", test_agents_flood_is_no_answer },
		CU_TEST_INFO_NULL,
	};
	int r;

	unit_dir_new(rig.dir);
	unit_must(fsio_open_root("/", false, &rig.fs) == 0, "fsio_open_root");
	r = unit_main("agents", tests);
	unit_dir_remove(rig.dir);
	return r;
}
