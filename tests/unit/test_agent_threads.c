/* All calls of the agent at once, by threads of one VMM, while a daemon played by the test merges: discards, slots that
 * come and go, forks. Most telling when built with ThreadSanitizer (make check-tsan). AGENT_SECONDS: how long. */
#include <pthread.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "agent/exchange.h"
#include "agent/memvirt-agent.h"
#include "agent/packet.h"
#include "agent/uffd.h"
#include "core/clock.h"
#include "tests/unit/unit.h"

#define FRAMES WINDOW_PAGES
#define WINDOWS 4u /* 0, 1: discarded and filled again; 2: never changed; 3: a slot of its own that comes and goes */
#define RAM_BYTES (WINDOWS * WINDOW_BYTES)
#define BLOCK 16u

static struct {
	uint8_t *ram;
	struct memvirt_agent *agent;
	int listener, sock;
	_Atomic bool stop;
	_Atomic unsigned bad, merges, merged_pages, discards, slots, forks;
} t;

static void wrong(const char *what)
{
	if (t.bad++ < 10)
		printf("\n    %s\n", what);
}

static uint8_t *page_at(unsigned p)
{
	return t.ram + (size_t)p * PAGE_BYTES;
}

/* Page p has the content of frame p % FRAMES, or zeroes. */
static bool page_is(unsigned p, bool zero)
{
	char want[PAGE_BYTES];

	unit_page_fill(want, zero ? 0 : p % FRAMES + 1);
	return memcmp(want, page_at(p), PAGE_BYTES) == 0;
}

static void pages_fill(unsigned first, unsigned n)
{
	for (unsigned p = first; p < first + n; p++)
		unit_page_fill((char *)page_at(p), p % FRAMES + 1);
}

/* ---- the daemon ---- */

static int store_send(void)
{
	struct agent_store s = { .header.type = AGENT_STORE, .frames = FRAMES };
	auto_close int rw = memfd_create("store", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	auto_close int ro = -1;
	char page[PAGE_BYTES], path[64];

	for (unsigned f = 0; f < FRAMES; f++) {
		unit_page_fill(page, f + 1);
		unit_must(pwrite(rw, page, PAGE_BYTES, (off_t)f * PAGE_BYTES) == PAGE_BYTES, "pwrite");
	}
	unit_must(fcntl(rw, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0, "seals");
	snprintf(path, sizeof(path), "/proc/self/fd/%d", rw);
	ro = open(path, O_RDONLY | O_CLOEXEC);
	return packet_send(t.sock, &s, sizeof(s), &ro, 1);
}

/* One window; what came unasked in between is taken in. */
static int window_merge(unsigned window, struct packet *in)
{
	struct packet p;
	struct agent_merge *m = packet_merge(&p);
	int err;

	*m = (struct agent_merge){ .header = { .type = AGENT_MERGE, .count = 1, .sequence = 1 },
				   .window = (uint64_t)(uintptr_t)t.ram + window * WINDOW_BYTES,
				   .min_pages_huge = 1, .min_pages = 1, .min_piece = 1 };
	m->runs[0] = (struct agent_run){ .pages = WINDOW_PAGES };
	err = packet_send(t.sock, m, sizeof(*m) + sizeof(m->runs[0]), NULL, 0);
	while (err == 0) {
		err = packet_receive(t.sock, in, 0);
		if (err == 0 && in->header.type == AGENT_MERGED)
			return 0;
	}
	return err;
}

static void *daemon_main(void *arg)
{
	static struct packet in;
	unsigned window = 0;

	while (!t.stop) {
		if (window_merge(window++ % WINDOWS, &in) < 0) {
			wrong("the agent is gone");
			break;
		}
		if (packet_merged(&in)->error == 0)
			t.merged_pages += packet_merged(&in)->results[0].merged;
		else if (packet_merged(&in)->error != -EINVAL || window % WINDOWS != 0) /* but for window 3 */
			wrong("a window was not merged");
		t.merges++;
	}
	return arg;
}

/* ---- the VMM ---- */

static void *discarder(void *arg)
{
	const unsigned half = (unsigned)(uintptr_t)arg;
	uint64_t r = half;

	while (!t.stop) {
		unsigned first = half * WINDOW_PAGES + (unsigned)(unit_random(&r) % (WINDOW_PAGES / BLOCK)) * BLOCK;

		for (unsigned p = first; p < first + BLOCK; p++) {
			if (!page_is(p, false))
				wrong("a filled page is wrong");
		}
		if (memvirt_agent_discard(t.agent, page_at(first), BLOCK * PAGE_BYTES) < 0)
			wrong("discard");
		for (unsigned p = first; p < first + BLOCK; p++) {
			if (!page_is(p, true))
				wrong("a discarded page is not zero");
		}
		pages_fill(first, BLOCK);
		t.discards++;
	}
	return NULL;
}

/* Memory hot-plug: the slot goes, its memory is mapped anew, and the slot comes back. */
static void *slotter(void *arg)
{
	uint8_t *at = page_at(3 * WINDOW_PAGES);
	const char *why;

	while (!t.stop) {
		if (memvirt_agent_remove_slot(t.agent, at) < 0)
			wrong("remove_slot");
		unit_must(mmap(at, WINDOW_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1,
			       0) == at,
			  "mmap");
		pages_fill(3 * WINDOW_PAGES, BLOCK);
		if (memvirt_agent_add_slot(t.agent, at, WINDOW_BYTES, &why) < 0)
			wrong(why);
		for (unsigned p = 3 * WINDOW_PAGES; p < 4 * WINDOW_PAGES; p++) {
			if (!page_is(p, p >= 3 * WINDOW_PAGES + BLOCK))
				wrong("a page of the slot that comes and goes is wrong");
		}
		t.slots++;
	}
	return arg;
}

static int child_main(void)
{
	for (unsigned p = 2 * WINDOW_PAGES; p < 3 * WINDOW_PAGES; p++) {
		if (!page_is(p, false))
			return 1;
	}
	if (!memvirt_agent_ended(t.agent) || memvirt_agent_discard(t.agent, page_at(0), BLOCK * PAGE_BYTES) < 0 ||
	    !page_is(0, true))
		return 2;
	memvirt_agent_detach(t.agent);
	return page_is(2 * WINDOW_PAGES, false) ? 0 : 3;
}

static void *forker(void *arg)
{
	while (!t.stop) {
		int status = -1;
		pid_t pid = fork();

		if (pid == 0)
			_exit(child_main());
		if (pid < 0 || waitpid(pid, &status, 0) != pid || status != 0)
			wrong("a forked child");
		t.forks++;
		usleep(20000); /* each makes all memory busy until it is written to */
	}
	return arg;
}

static void vmm_start(const char *dir)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	struct packet hello = { .fds = { -1, -1, -1 } };
	const char *why;
	uint8_t *area = mmap(NULL, RAM_BYTES + 2 * WINDOW_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	t.ram = area + PAGE_BYTES + (-(uintptr_t)(area + PAGE_BYTES) & (WINDOW_BYTES - 1));
	unit_must(mmap(t.ram, RAM_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) ==
			  t.ram,
		  "ram");
	pages_fill(0, 3 * WINDOW_PAGES);
	snprintf(addr.sun_path, sizeof(addr.sun_path), "%.90s/sock", dir);
	t.listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	unit_must(t.listener >= 0 && bind(t.listener, (struct sockaddr *)&addr, sizeof(addr)) == 0 &&
			  listen(t.listener, 1) == 0,
		  "listen");
	unit_must(memvirt_agent_attach(addr.sun_path, &t.agent, &why) == 0, why);
	t.sock = accept4(t.listener, NULL, NULL, SOCK_CLOEXEC);
	unit_must(t.sock >= 0 && packet_receive(t.sock, &hello, 0) == 0, "hello");
	packet_close(&hello);
	unit_must(memvirt_agent_add_slot(t.agent, t.ram, 3 * WINDOW_BYTES, &why) == 0, why);
	unit_must(memvirt_agent_add_slot(t.agent, page_at(3 * WINDOW_PAGES), WINDOW_BYTES, &why) == 0, why);
	unit_must(store_send() == 0, "store");
}

static void test_agent_all_calls_at_once_every_byte_right(void)
{
	void *(*const mains[])(void *) = { discarder, discarder, slotter, forker, daemon_main };
	const char *seconds = getenv("AGENT_SECONDS");
	uint64_t end_ns = clock_mono_ns() + (seconds ? strtoul(seconds, NULL, 10) : 2) * NSEC_PER_SEC;
	pthread_t threads[ARRAY_SIZE(mains)];
	char dir[UNIT_DIR_MAX];

	unit_dir_new(dir);
	vmm_start(dir);
	for (size_t i = 0; i < ARRAY_SIZE(mains); i++)
		unit_must(pthread_create(&threads[i], NULL, mains[i], (void *)i) == 0, "pthread_create");
	while ((clock_mono_ns() < end_ns || !t.merged_pages || !t.slots || !t.forks) && t.bad == 0)
		usleep(10000);
	t.stop = true;
	for (size_t i = 0; i < ARRAY_SIZE(mains); i++)
		pthread_join(threads[i], NULL);
	for (unsigned p = 0; p < 3 * WINDOW_PAGES; p++)
		CU_ASSERT_TRUE(page_is(p, false));
	CU_ASSERT_PTR_NULL(memvirt_agent_ended(t.agent));
	CU_ASSERT_EQUAL(memvirt_agent_discard(t.agent, t.ram, RAM_BYTES), 0);
	t.agent = memvirt_agent_detach(t.agent);
	for (unsigned p = 0; p < WINDOWS * WINDOW_PAGES; p++)
		CU_ASSERT_TRUE(page_is(p, true));
	printf("\n    windows %u, pages merged %u, discards %u, slots %u, forks %u\n", t.merges, t.merged_pages,
	       t.discards, t.slots, t.forks);
	CU_ASSERT_EQUAL(t.bad, 0);
	close(t.sock);
	close(t.listener);
	unit_dir_remove(dir);
}

int main(void)
{
	static CU_TestInfo tests[] = {
		{ "all_calls_at_once", test_agent_all_calls_at_once_every_byte_right },
		CU_TEST_INFO_NULL,
	};
	const char *why = "a userfaultfd cannot be opened";
	int fd = uffd_open();

	if (fd < 0 || uffd_probe(fd, &why) < 0) {
		printf("skip: agent_threads: %s\n", why);
		return 77;
	}
	close(fd);
	alarm(300); /* a lost wake-up would be a hang */
	return unit_main("agent_threads", tests);
}
