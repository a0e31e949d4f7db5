#include "balloon/admit.h"

#include "core/clock.h"
#include "tests/unit/unit.h"

#define MIB (UINT64_C(1) << 20)
#define MIN_FREE (1000 * MIB) /* so that a percent is 10 MiB; "clear" ends at 1000 */
#define TIMEOUT_NS (60 * NSEC_PER_SEC)
#define VMS_MAX 300

/* A host whose state and picture the test sets; one tick is a second. */
static struct {
	struct admit admit;
	struct ladder ladder;
	struct host_snapshot s;
	struct vm_snapshot vms[VMS_MAX];
} w;

static void world(uint64_t available_mib)
{
	memset(&w, 0, sizeof(w));
	w.s.taken_ns = 100 * NSEC_PER_SEC;
	w.s.mem_total_bytes = 100000 * MIB;
	w.s.mem_available_bytes = available_mib * MIB;
	w.s.vms = w.vms;
	w.ladder.min_free_bytes = MIN_FREE;
	ladder_look(&w.ladder, &w.s, MIN_FREE);
}

static uint64_t tick(void)
{
	w.s.taken_ns += NSEC_PER_SEC;
	w.s.admitted_bytes = admit_tick(&w.admit, &w.s);
	ladder_look(&w.ladder, &w.s, MIN_FREE);
	return w.s.admitted_bytes / MIB;
}

static struct admit_answer ask(uint64_t mib, uint64_t idle_mib)
{
	struct admit_question q = { .bytes = mib * MIB, .node = -1, .idle_bytes = idle_mib * MIB, .timeout_ns = TIMEOUT_NS };
	struct admit_answer answer;

	admit_ask(&w.admit, &w.s, &w.ladder, &q, &answer);
	return answer;
}

static struct admit_answer ask_node(uint64_t mib, int node, uint64_t node_free_mib)
{
	struct admit_question q = { .bytes = mib * MIB, .node = node, .node_free_bytes = node_free_mib * MIB,
				    .timeout_ns = TIMEOUT_NS };
	struct admit_answer answer;

	admit_ask(&w.admit, &w.s, &w.ladder, &q, &answer);
	return answer;
}

static struct vm_snapshot *vm_start(uint64_t mib, uint64_t found_ns)
{
	struct vm_snapshot *vm = &w.vms[w.s.vm_count];

	*vm = (struct vm_snapshot){ .pid = (pid_t)(100 + w.s.vm_count), .start_ticks = 1, .ram_bytes = mib * MIB,
				    .found_ns = found_ns };
	w.s.vm_count++;
	return vm;
}

static void vm_end(size_t i)
{
	w.vms[i] = w.vms[--w.s.vm_count];
}

/* ---- yes and no ---- */

static void test_admit_by_room(void)
{
	static const struct {
		const char *what;
		uint64_t available_mib, ask_mib, idle_mib;
		bool granted, later;
		uint64_t short_mib;
	} table[] = {
		{ "room", 10000, 4000, 0, true, false, 0 },
		{ "just enough", 5000, 4000, 0, true, false, 0 },
		{ "a MiB short", 4999, 4000, 0, false, false, 1 },
		{ "a MiB short, idle", 4999, 4000, 1, false, true, 1 },
		{ "a MiB short, not enough idle", 4998, 4000, 1, false, false, 2 },
		{ "host clear", 3000, 1000, 0, true, false, 0 },
		{ "host soft", 900, 1, 0, false, false, 101 },
		{ "host soft, idle", 900, 1, 200, false, true, 101 },
		{ "host hard, idle", 500, 1, 600, false, true, 501 },
		{ "host low, idle", 300, 1, 100000, false, false, 701 },
		{ "more than there is in the world", 10000, UINT64_C(1) << 32, 0, false, false, (UINT64_C(1) << 32) - 9000 },
	};

	for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
		struct admit_answer answer;

		world(table[i].available_mib);
		answer = ask(table[i].ask_mib, table[i].idle_mib);
		UNIT_CASE(table[i].what, answer.granted == table[i].granted && answer.later == table[i].later);
		UNIT_CASE(table[i].what, answer.short_bytes == table[i].short_mib * MIB);
		UNIT_CASE(table[i].what, *answer.why);
		UNIT_CASE(table[i].what, tick() == (answer.granted || answer.later ? table[i].ask_mib : 0));
	}
}

static void test_admit_debt_counts(void)
{
	world(6000);
	w.s.cow_debt_bytes = 2000 * MIB;
	CU_ASSERT_FALSE(ask(4000, 0).granted);
	CU_ASSERT(ask(3000, 0).granted);
}

static void test_admit_low_says_so(void)
{
	struct admit_answer answer;

	world(100);
	answer = ask(1, 0);
	CU_ASSERT_FALSE(answer.granted || answer.later);
	CU_ASSERT_PTR_NOT_NULL(strstr(answer.why, "the host is low"));
}

/* ---- nothing is promised twice ---- */

static void test_admit_sum_of_grants(void)
{
	uint64_t granted_mib = 0;

	world(10000);
	/* Between two ticks: whoever asks sees what the others were given. */
	for (int i = 0; i < 20; i++)
		granted_mib += ask(1000, 0).granted ? 1000 : 0;
	CU_ASSERT_EQUAL(granted_mib, 9000);
	CU_ASSERT_EQUAL(tick(), 9000);
	CU_ASSERT_FALSE(ask(1, 0).granted);
}

/* What is idle in VMs cannot be promised twice either. */
static void test_admit_sum_of_refusals(void)
{
	uint64_t promised_mib = 0;

	world(3000);
	for (uint64_t i = 0; i < 20; i++) {
		struct admit_answer answer = ask(1500 + i, 5000);

		promised_mib += answer.granted || answer.later ? 1500 + i : 0;
	}
	/* 2000 are there beyond what is to stay free, and 5000 idle. */
	CU_ASSERT(promised_mib <= 7000);
	CU_ASSERT(promised_mib > 7000 - 1520);
}

static void test_admit_random_never_oversold(void)
{
	uint64_t seed = 42;

	for (int round = 0; round < 2000; round++) {
		uint64_t available, idle, sum = 0;

		world(available = unit_random(&seed) % 20000);
		idle = unit_random(&seed) % 8000;
		for (int i = 0; i < 30; i++) {
			uint64_t mib = unit_random(&seed) % 3000 + 1;
			struct admit_answer answer = ask(mib, idle);

			CU_ASSERT(!answer.granted || !answer.later);
			CU_ASSERT(!answer.granted || answer.short_bytes == 0);
		}
		for (size_t i = 0; i < w.admit.count; i++)
			sum += w.admit.grants[i].bytes / MIB;
		CU_ASSERT(sum == 0 || sum + 1000 <= available + idle);
	}
}

/* ---- refused, and granted later ---- */

static void test_admit_later_then_granted(void)
{
	world(3000);
	CU_ASSERT(ask(4000, 3000).later);
	CU_ASSERT_EQUAL(tick(), 4000);
	/* Nothing has come yet: the question is the same, and so is the answer. */
	for (int i = 0; i < 5; i++) {
		CU_ASSERT(ask(4000, 3000).later);
		CU_ASSERT_EQUAL(w.admit.count, 1);
		CU_ASSERT_EQUAL(tick(), 4000);
	}
	/* Room is made bit by bit, out of what is idle. */
	w.s.mem_available_bytes = 4500 * MIB;
	tick();
	CU_ASSERT(ask(4000, 1500).later);
	w.s.mem_available_bytes = 5000 * MIB;
	tick();
	CU_ASSERT(ask(4000, 1000).granted);
	CU_ASSERT_EQUAL(tick(), 4000);
}

/* Room that is being made for one is not given to another that asks in between. */
static void test_admit_later_is_kept(void)
{
	world(3000);
	CU_ASSERT(ask(4000, 3000).later);
	w.s.mem_available_bytes = 5000 * MIB;
	tick();
	CU_ASSERT_FALSE(ask(1000, 0).granted);
	CU_ASSERT(ask(4000, 0).granted);
}

static void test_admit_later_ends(void)
{
	world(3000);
	CU_ASSERT(ask(4000, 3000).later);
	for (int i = 0; i < 59; i++)
		CU_ASSERT_EQUAL(tick(), 4000);
	CU_ASSERT_EQUAL(tick(), 0);
}

/* What makes the host look low is only what was promised: no reason to refuse whom it was promised to. */
static void test_admit_promise_is_not_need(void)
{
	world(1500);
	CU_ASSERT(ask(4000, 6000).later);
	tick();
	CU_ASSERT_EQUAL(w.ladder.state, HOST_LOW);
	CU_ASSERT(ask(4000, 6000).later);
	w.s.mem_available_bytes = 200 * MIB;
	tick();
	CU_ASSERT_PTR_NOT_NULL(strstr(ask(4000, 6000).why, "the host is low"));
}

/* ---- the VM shows up ---- */

static void test_admit_vm_takes_its_grant(void)
{
	struct vm_snapshot *vm;

	world(10000);
	CU_ASSERT(ask(4000, 0).granted);
	tick();
	vm = vm_start(4000, w.s.taken_ns + 1);
	CU_ASSERT_EQUAL(tick(), 4000);
	vm->rss_anon_bytes = 1000 * MIB;
	vm->rss_shmem_bytes = 500 * MIB;
	CU_ASSERT_EQUAL(tick(), 2500);
	vm->rss_anon_bytes = 5000 * MIB;
	CU_ASSERT_EQUAL(tick(), 0);
	vm->rss_anon_bytes = 1000 * MIB; /* e.g. it gave some back: still its own */
	CU_ASSERT_EQUAL(tick(), 2500);
}

static void test_admit_vm_dies(void)
{
	world(10000);
	CU_ASSERT(ask(4000, 0).granted);
	tick();
	vm_start(4000, w.s.taken_ns + 1);
	CU_ASSERT_EQUAL(tick(), 4000);
	vm_end(0);
	CU_ASSERT_EQUAL(tick(), 0);
	CU_ASSERT_EQUAL(w.admit.count, 0);
}

/* Another process with the pid of one that died. */
static void test_admit_pid_again(void)
{
	world(10000);
	CU_ASSERT(ask(4000, 0).granted);
	tick();
	vm_start(4000, w.s.taken_ns + 1);
	tick();
	w.vms[0].start_ticks = 2;
	CU_ASSERT_EQUAL(tick(), 0);
}

static void test_admit_which_vm(void)
{
	static const struct {
		const char *what;
		uint64_t mib;
		int64_t found_ns; /* relative to the question */
		bool takes;
	} table[] = {
		{ "its size", 4000, 1, true },
		{ "a little more", 4250, 1, true },
		{ "a little less", 3750, 1, true },
		{ "too large", 4251, 1, false },
		{ "too small", 3749, 1, false },
		{ "there before", 4000, -1, false },
		{ "size unknown", 0, 1, false },
	};

	for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
		world(10000);
		CU_ASSERT(ask(4000, 0).granted);
		vm_start(table[i].mib, (uint64_t)((int64_t)w.s.taken_ns + table[i].found_ns))->rss_anon_bytes = 3000 * MIB;
		UNIT_CASE(table[i].what, tick() == (table[i].takes ? 1000 : 4000));
	}
}

/* Each VM takes one grant, the oldest that fits; a refusal is nobody's. */
static void test_admit_one_each(void)
{
	world(10000);
	CU_ASSERT(ask(3000, 0).granted);
	tick();
	CU_ASSERT(ask(3000, 0).granted);
	tick();
	vm_start(3000, w.s.taken_ns + 1)->rss_anon_bytes = 3000 * MIB;
	CU_ASSERT_EQUAL(tick(), 3000);
	CU_ASSERT_EQUAL(w.admit.grants[0].pid, 100);
	CU_ASSERT_EQUAL(w.admit.grants[1].pid, 0);
	CU_ASSERT_EQUAL(tick(), 3000);
	vm_start(3000, w.s.taken_ns + 1)->rss_anon_bytes = 3000 * MIB;
	CU_ASSERT_EQUAL(tick(), 0);

	world(3000);
	CU_ASSERT(ask(4000, 3000).later);
	vm_start(4000, w.s.taken_ns + 1)->rss_anon_bytes = 4000 * MIB;
	CU_ASSERT_EQUAL(tick(), 4000);
}

static void test_admit_expires(void)
{
	world(10000);
	CU_ASSERT(ask(4000, 0).granted);
	for (int i = 0; i < 59; i++)
		CU_ASSERT_EQUAL(tick(), 4000);
	CU_ASSERT_EQUAL(tick(), 0);
	CU_ASSERT(ask(9000, 0).granted);
}

/* ---- nodes, and a full table ---- */

static void test_admit_node(void)
{
	struct admit_answer answer;

	world(100000);
	CU_ASSERT(ask_node(3000, 1, 5000).granted);
	answer = ask_node(3000, 1, 5000);
	CU_ASSERT_FALSE(answer.granted || answer.later);
	CU_ASSERT_EQUAL(answer.short_bytes, 1000 * MIB);
	CU_ASSERT_PTR_NOT_NULL(strstr(answer.why, "node 1"));
	CU_ASSERT(ask_node(3000, 0, 5000).granted); /* what was promised of node 1 is not of this */
	CU_ASSERT(ask(80000, 0).granted);
	CU_ASSERT_FALSE(ask_node(20000, 0, 50000).granted); /* the node has it, the host has not */
}

static void test_admit_full(void)
{
	struct admit_answer answer;

	world(100000);
	for (size_t i = 0; i < ADMIT_GRANTS_MAX; i++)
		CU_ASSERT(ask(1, 0).granted);
	answer = ask(1, 0);
	CU_ASSERT_FALSE(answer.granted || answer.later);
	CU_ASSERT_PTR_NOT_NULL(strstr(answer.why, "too many"));
	answer = ask(200000, 200000);
	CU_ASSERT_FALSE(answer.granted || answer.later);
	CU_ASSERT_PTR_NOT_NULL(strstr(answer.why, "too many"));
	CU_ASSERT_EQUAL(tick(), ADMIT_GRANTS_MAX);
}

int main(void)
{
	CU_TestInfo tests[] = {
		{ "by the room there is", test_admit_by_room },
		{ "debt is not room", test_admit_debt_counts },
		{ "a host that is low", test_admit_low_says_so },
		{ "the sum of grants", test_admit_sum_of_grants },
		{ "the sum of refusals", test_admit_sum_of_refusals },
		{ "never oversold", test_admit_random_never_oversold },
		{ "refused, granted later", test_admit_later_then_granted },
		{ "room being made is kept", test_admit_later_is_kept },
		{ "... for a while", test_admit_later_ends },
		{ "a promise is no need", test_admit_promise_is_not_need },
		{ "a VM takes its grant", test_admit_vm_takes_its_grant },
		{ "and dies", test_admit_vm_dies },
		{ "its pid again", test_admit_pid_again },
		{ "which VM takes it", test_admit_which_vm },
		{ "one each", test_admit_one_each },
		{ "a grant ends", test_admit_expires },
		{ "nodes", test_admit_node },
		{ "a full table", test_admit_full },
		CU_TEST_INFO_NULL,
	};

	return unit_main("balloon_admit", tests);
}
