/* ksmd/scan while it runs: processes that end in the middle, cancelling, quotas, the stable index, and agents. */
#include "ksmd/scan.h"

#include <pthread.h>
#include <sched.h>
#include <sys/socket.h>

#include "agent/packet.h"
#include "core/clock.h"
#include "ksmd/agent_peer.h"
#include "ksmd/stable_index.h"
#include "tests/unit/scan_child.h"

struct running {
	struct scan_target *t;
	struct scan_limits limits;
	struct scan_progress progress;
	uint64_t cpu_ns;
	int result;
};

static void *run_scan(void *arg)
{
	struct running *r = arg;

	r->result = scan_run(r->t, 1, &r->limits, NULL, &r->progress, &r->cpu_ns);
	return NULL;
}

static void wait_first_chunk(struct running *r)
{
	while (r->progress.done_pages == 0)
		sched_yield();
}

/* One present page in each chunk; at this many bytes a second a chunk takes a page's time. */
static void chunks_child(struct unit_child *c, struct scan_target *t, size_t chunks)
{
	auto_free uint64_t *contents = calloc(chunks * CHUNK, sizeof(*contents));

	for (size_t i = 0; i < chunks * CHUNK; i++)
		contents[i] = i % CHUNK ? UNIT_ABSENT : 1 + i;
	unit_child_start(c, unit_pages_make, &(struct unit_pages){ contents, chunks * CHUNK });
	target_open(t, c, chunks * CHUNK);
}

/* The kill comes while the scan pauses for its quota; if this machine is too slow for that, with longer pauses. */
static void test_scan_process_dies_in_the_middle_is_gone(void)
{
	bool done = false;

	if (geteuid() != 0)
		UNIT_SKIP("reading another process needs root");
	for (uint64_t pause_ms = 100; pause_ms <= 6400 && !done; pause_ms *= 4) {
		struct running r = { .limits = { .workers = 1, .bytes_per_s = PAGE_BYTES * 1000 / pause_ms } };
		struct unit_child c;
		struct scan_target t;
		pthread_t thread;

		chunks_child(&c, &t, 3);
		r.t = &t;
		unit_must(pthread_create(&thread, NULL, run_scan, &r) == 0, "pthread_create");
		wait_first_chunk(&r);
		unit_child_kill(&c);
		pthread_join(thread, NULL);
		CU_ASSERT_EQUAL(r.result, 0);
		CU_ASSERT_EQUAL(r.progress.done_pages, r.progress.total_pages);
		CU_ASSERT_TRUE(t.present_pages <= 3);
		done = t.gone;
		if (done) {
			CU_ASSERT_EQUAL(t.hashes[2 * CHUNK], PAGE_HASH_NONE);
			CU_ASSERT_TRUE(t.present_pages < 3);
		}
		target_close(&t);
		unit_child_stop(&c);
	}
	if (!done)
		UNIT_SKIP("this machine is too slow: the scan ended before the kill");
}

/* ---- quotas and cancelling ---- */

static void test_scan_cancelled_in_a_pause_ends(void)
{
	static const struct scan_limits limits[] = { { 1, 0, 1 }, { 2, 0, 1 }, { 1, 1, 1 } };

	if (geteuid() != 0)
		UNIT_SKIP("reading another process needs root");
	for (size_t i = 0; i < ARRAY_SIZE(limits); i++) {
		struct running r = { .limits = limits[i] }; /* a byte a second: it would take hours */
		struct unit_child c;
		struct scan_target t;
		pthread_t thread;

		chunks_child(&c, &t, 4);
		r.t = &t;
		unit_must(pthread_create(&thread, NULL, run_scan, &r) == 0, "pthread_create");
		wait_first_chunk(&r);
		r.progress.cancel = true;
		pthread_join(thread, NULL);
		CU_ASSERT_EQUAL(r.result, -ECANCELED);
		CU_ASSERT_TRUE(r.progress.done_pages < r.progress.total_pages);
		CU_ASSERT_TRUE(t.present_pages <= limits[i].workers);
		target_close(&t);
		unit_child_stop(&c);
	}
}

static void test_scan_cancelled_before_does_nothing(void)
{
	uint64_t contents[] = { 1, 2 };
	struct scan_progress progress = { .cancel = true };
	struct scan_limits limits = { .workers = 2 };
	struct unit_child c;
	struct scan_target t;
	uint64_t cpu_ns = 0;

	unit_child_start(&c, unit_pages_make, &(struct unit_pages){ contents, 2 });
	target_open(&t, &c, 2);
	CU_ASSERT_EQUAL(scan_run(&t, 1, &limits, NULL, &progress, &cpu_ns), -ECANCELED);
	CU_ASSERT_EQUAL(progress.done_pages, 0);
	CU_ASSERT_EQUAL(t.present_pages, 0);
	target_close(&t);
	unit_child_stop(&c);
}

/* With quotas the result is the same, and the time that passed was enough for the bytes and the CPU time. */
static void test_scan_quotas_kept(void)
{
	static const struct scan_limits limits[] = { { 1, 50, 0 }, { 2, 100, 0 }, { 3, 0, 40 << 20 }, { 2, 80, 80 << 20 } };
	const size_t pages = 600;
	auto_free uint64_t *contents = contents_new(pages);
	struct unit_child c;
	struct scan_target t;

	if (geteuid() != 0)
		UNIT_SKIP("reading another process needs root");
	unit_child_start(&c, unit_pages_make, &(struct unit_pages){ contents, pages });
	target_open(&t, &c, pages);
	for (size_t i = 0; i < ARRAY_SIZE(limits); i++) {
		struct scan_progress progress = { .cancel = false };
		uint64_t cpu_ns = 0, start = clock_mono_ns(), elapsed;

		CU_ASSERT_EQUAL(scan_run(&t, 1, &limits[i], NULL, &progress, &cpu_ns), 0);
		elapsed = clock_mono_ns() - start;
		CU_ASSERT_EQUAL(wrong_hashes(&t, contents), 0);
		CU_ASSERT_TRUE(cpu_ns > 0 && t.cpu_ns > 0 && t.cpu_ns <= cpu_ns);
		/* Never too short: a slow machine only makes it longer. */
		if (limits[i].bytes_per_s)
			CU_ASSERT_TRUE((double)elapsed / 1e9 * (double)limits[i].bytes_per_s >=
				       (double)(t.present_pages * PAGE_BYTES) * 0.99);
		if (limits[i].cpu_percent)
			CU_ASSERT_TRUE(elapsed * limits[i].cpu_percent / 100 >= t.cpu_ns / 100 * 99);
	}
	target_close(&t);
	unit_child_stop(&c);
}

/* ---- the stable index ---- */

static void test_scan_index_hits_counted(void)
{
	const size_t pages = CHUNK + 600;
	auto_free uint64_t *contents = contents_new(pages);
	struct scan_progress progress = { .cancel = false };
	struct scan_limits limits = { .workers = 2 };
	struct stable_index *index;
	struct unit_child c;
	struct scan_target t;
	uint64_t cpu_ns = 0, want = 0;

	if (geteuid() != 0)
		UNIT_SKIP("reading another process needs root");
	unit_must(stable_index_new(&index) == 0, "stable_index_new");
	stable_index_refresh_begin(index);
	for (uint64_t content = 1; content < 500; content++)
		if (stable_index_samples(hash_of(content)))
			CU_ASSERT_EQUAL(stable_index_put(index, hash_of(content)), 0);
	stable_index_refresh_end(index);
	for (size_t i = 0; i < pages; i++)
		want += contents[i] > 0 && contents[i] < 500 && stable_index_samples(hash_of(contents[i]));
	unit_child_start(&c, unit_pages_make, &(struct unit_pages){ contents, pages });
	target_open(&t, &c, pages);
	CU_ASSERT_EQUAL(scan_run(&t, 1, &limits, index, &progress, &cpu_ns), 0);
	CU_ASSERT_TRUE(want > 0);
	CU_ASSERT_EQUAL(t.index_hits, want);
	target_close(&t);
	unit_child_stop(&c);
	stable_index_free(index);
}

/* ---- agents ---- */

enum temper { HONEST, REFUSES, CLOSES, MISCOUNTS, LIES, DAWDLES };

/* An agent that knows the contents beforehand; from the tenth question on it is of its temper. */
struct fake_agent {
	int fd;
	struct agent_peer *peer;
	const uint64_t *contents;
	uint64_t hva;
	enum temper temper;
	unsigned asked;
	pthread_t thread;
};

static int fake_answer(struct fake_agent *f, const struct agent_hash *h)
{
	static struct packet out;
	struct agent_hashed *reply = packet_hashed(&out);
	uint64_t first = (h->hva - f->hva) / PAGE_BYTES;
	bool bad = ++f->asked >= 10;

	*reply = (struct agent_hashed){ .header = { AGENT_HASHED, (uint16_t)h->pages, h->header.sequence } };
	for (uint32_t i = 0; i < h->pages; i++) {
		reply->hashes[i] = bad && f->temper == LIES ? first + i : hash_of(f->contents[first + i]);
		reply->zero_mapped += f->contents[first + i] == UNIT_ZERO_MAPPED;
	}
	if (bad && f->temper == CLOSES)
		return -1;
	if (bad && f->temper == MISCOUNTS)
		reply->header.count = 1;
	if (bad && f->temper == REFUSES) {
		reply->header.count = 0;
		reply->error = -EINVAL;
	}
	if (f->temper == DAWDLES)
		reply->cpu_us = UINT32_MAX;
	return packet_send(f->fd, reply, sizeof(*reply) + reply->header.count * sizeof(reply->hashes[0]), NULL, 0);
}

static void *fake_main(void *arg)
{
	struct fake_agent *f = arg;
	static struct packet in;

	while (packet_receive(f->fd, &in, 0) == 0 && in.header.type == AGENT_HASH && fake_answer(f, &in.hash) == 0)
		;
	shutdown(f->fd, SHUT_RDWR);
	return NULL;
}

static void fake_start(struct fake_agent *f, const struct scan_target *t, const uint64_t *contents, enum temper temper)
{
	const struct agent_hello hello = { .header.type = AGENT_HELLO, .version = AGENT_PROTOCOL_VERSION, .why = "x" };
	const struct agent_slot slot = { .header.type = AGENT_SLOT, .hva = t->hva, .bytes = t->pages * PAGE_BYTES,
					 .flags = AGENT_CAN_REMAP };
	const struct agent_slot_view *slots;
	struct agent_answer answer;
	bool tracked;
	int ends[2];

	*f = (struct fake_agent){ .contents = contents, .hva = t->hva, .temper = temper };
	unit_must(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) == 0, "socketpair");
	f->fd = ends[0];
	unit_must(agent_peer_new(ends[1], &f->peer) == 0, "peer");
	CU_ASSERT_FALSE(scan_peer_covers(f->peer, t, &tracked));
	CU_ASSERT_EQUAL(packet_send(f->fd, &hello, sizeof(hello), NULL, 0), 0);
	CU_ASSERT_EQUAL(packet_send(f->fd, &slot, sizeof(slot), NULL, 0), 0);
	while (agent_peer_slots(f->peer, &slots) == 0)
		unit_must(agent_peer_take(f->peer, 1000, &answer) >= 0, "slot");
	CU_ASSERT_TRUE(scan_peer_covers(f->peer, t, &tracked) && !tracked);
	unit_must(pthread_create(&f->thread, NULL, fake_main, f) == 0, "pthread_create");
}

static void fake_stop(struct fake_agent *f)
{
	shutdown(f->fd, SHUT_RDWR);
	pthread_join(f->thread, NULL);
	close(f->fd);
	agent_peer_free(f->peer);
}

/* Whatever becomes of the agent, the hashes are those that a look from outside gives; but if it lies, they are its own. */
static void test_scan_agents_hash_and_fail(void)
{
	static const struct {
		const char *name;
		enum temper temper;
		bool failed, broken;
	} cases[] = {
		{ "honest", HONEST, false, false }, { "refuses", REFUSES, true, false },
		{ "closes", CLOSES, true, true },   { "miscounts", MISCOUNTS, true, true },
		{ "lies", LIES, false, false },	    { "dawdles", DAWDLES, false, false },
	};
	const size_t pages = 2 * CHUNK + 600;
	auto_free uint64_t *contents = contents_new(pages);
	const struct expected want = expected_of(contents, pages);
	struct unit_child c;

	if (geteuid() != 0)
		UNIT_SKIP("reading another process needs root");
	unit_child_start(&c, unit_pages_make, &(struct unit_pages){ contents, pages });
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct scan_progress progress = { .cancel = false };
		struct scan_limits limits = { .workers = 2, .cpu_percent = cases[i].temper == DAWDLES ? 100 : 0 };
		struct fake_agent fake;
		struct scan_target t;
		uint64_t cpu_ns = 0;

		target_open(&t, &c, pages);
		fake_start(&fake, &t, contents, cases[i].temper);
		t.peer = fake.peer;
		CU_ASSERT_EQUAL(scan_run(&t, 1, &limits, NULL, &progress, &cpu_ns), 0);
		UNIT_CASE(cases[i].name, t.peer_failed == cases[i].failed && t.peer_broken == cases[i].broken);
		UNIT_CASE(cases[i].name, agent_peer_outstanding(fake.peer) == 0 || t.peer_broken);
		if (cases[i].temper != LIES) {
			UNIT_CASE(cases[i].name, wrong_hashes(&t, contents) == 0);
			UNIT_CASE(cases[i].name, t.present_pages == want.present && t.zero_pages == want.zero &&
							 t.zero_mapped_pages == want.zero_mapped);
		}
		UNIT_CASE(cases[i].name, progress.done_pages == pages);
		UNIT_CASE(cases[i].name, fake.asked > 0);
		fake_stop(&fake);
		target_close(&t);
	}
	unit_child_stop(&c);
}

int main(void)
{
	static CU_TestInfo tests[] = {
		{ "dies_in_the_middle", test_scan_process_dies_in_the_middle_is_gone },
		{ "cancelled_in_pause", test_scan_cancelled_in_a_pause_ends },
		{ "cancelled_before", test_scan_cancelled_before_does_nothing },
		{ "quotas", test_scan_quotas_kept },
		{ "index_hits", test_scan_index_hits_counted },
		{ "agents", test_scan_agents_hash_and_fail },
		CU_TEST_INFO_NULL,
	};

	unit_must(fsio_open_root("/", false, &fs) == 0, "/");
	return unit_main("scan_run", tests);
}
