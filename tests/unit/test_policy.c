/* ksmd/policy: sequences of decisions. Time comes in with the snapshot. */
#include "ksmd/policy.h"

#include "core/clock.h"
#include "tests/unit/unit.h"

#define MIB_PAGES 256
#define NO (-1)

static const struct ksm_limits limits = {
	.min_gain_pages = 64 * MIB_PAGES,
	.target_ns = 30 * NSEC_PER_SEC,
	.backoff_ns = 600 * NSEC_PER_SEC,
	.cpu_percent = 50,
};

struct sim {
	struct ksm_policy policy;
	struct host_snapshot s;
	struct ksm_inputs in;
	struct ksm_plan plan;
	double pace; /* pages that the scanner gets through, to those that were planned */
};

#define CYCLE_MS 40 /* pages_to_scan are planned for as long */
#define PAGE_NS 3500

static void sim_init(struct sim *m)
{
	memset(m, 0, sizeof(*m));
	ksm_policy_init(&m->policy, &limits);
	m->s.taken_ns = 1000 * NSEC_PER_SEC;
	m->s.ksm = (struct ksm_snapshot){ .present = true, .pages_to_scan = 100, .sleep_ms = 20, .full_scans = 50 };
	m->s.ksm.pages_scanned = 1000000;
	m->s.ksm.cpu_ns = 5 * NSEC_PER_SEC;
	m->in.mergeable_pages = 4096 * MIB_PAGES;
	m->pace = 1;
}

static enum ksm_action step(struct sim *m, double seconds)
{
	uint64_t pages = 0;

	if (m->policy.state == KSM_MERGE)
		pages = (uint64_t)((double)m->policy.pages_to_scan * seconds * 1000 / CYCLE_MS * m->pace);
	m->s.ksm.pages_scanned += pages;
	m->s.ksm.cpu_ns += pages * PAGE_NS;
	m->s.taken_ns += (uint64_t)(seconds * 1e9);
	memset(&m->plan, 0xa5, sizeof(m->plan));
	ksm_policy_decide(&m->policy, &m->s, &m->in, &m->plan);
	return m->plan.action;
}

/* ---- sequences ---- */

struct line {
	double seconds;		 /* since the line before */
	int expected_mib, saved_mib, scans; /* NO: as before; scans: more full scans */
	const char *refusal;
	bool foreign, left;
	enum ksm_action action;
	enum ksm_state state;
	const char *why; /* part of it */
};

#define LINES_MAX 14
#define KEEPS(e, s, n, st, why) { 1, e, s, n, NULL, false, false, KSM_KEEP, st, why }
#define ACTS(e, s, n, act, st, why) { 1, e, s, n, NULL, false, false, act, st, why }

static const struct sequence {
	const char *what;
	struct line lines[LINES_MAX]; /* ended by one of 0 seconds */
} sequences[] = {
	{ "starts when there is enough to gain, not before",
	  { KEEPS(0, 0, 0, KSM_REST, "0 MiB to gain, 64 MiB needed"), KEEPS(63, 0, 0, KSM_REST, "63 MiB to gain"),
	    KEEPS(164, 101, 0, KSM_REST, "63 MiB to gain"), KEEPS(50, 100, 0, KSM_REST, "0 MiB to gain"),
	    ACTS(164, 100, 0, KSM_START, KSM_MERGE, "64 MiB to gain, 64 MiB needed") } },
	{ "stops when the gain is in",
	  { ACTS(1000, 0, 0, KSM_START, KSM_MERGE, "1000 MiB"), KEEPS(NO, 500, 1, KSM_MERGE, "500 of 1000 MiB"),
	    KEEPS(NO, 994, 1, KSM_MERGE, "994 of 1000"), ACTS(NO, 995, 0, KSM_STOP, KSM_REST, "the gain is in"),
	    KEEPS(NO, NO, 0, KSM_REST, "5 MiB to gain") } },
	{ "stops when what is expected has gone",
	  { ACTS(1000, 0, 0, KSM_START, KSM_MERGE, ""), ACTS(0, 0, 0, KSM_STOP, KSM_REST, "the gain is in") } },
	{ "stops when no more comes, but not before it had its scans",
	  { ACTS(1000, 0, 0, KSM_START, KSM_MERGE, ""), KEEPS(NO, 0, 1, KSM_MERGE, ""), KEEPS(NO, 0, 1, KSM_MERGE, ""),
	    ACTS(NO, 10, 1, KSM_STOP, KSM_REST, "no more comes after 3 scans: 10 of 1000 MiB"),
	    KEEPS(NO, NO, 5, KSM_REST, "990 MiB to gain, 1054 MiB needed") } },
	{ "goes on while more comes, within bounds",
	  { ACTS(1000, 0, 0, KSM_START, KSM_MERGE, ""), KEEPS(NO, 100, 1, KSM_MERGE, ""), KEEPS(NO, 200, 1, KSM_MERGE, ""),
	    KEEPS(NO, 300, 1, KSM_MERGE, ""), KEEPS(NO, 300, 0, KSM_MERGE, ""), KEEPS(NO, 320, 1, KSM_MERGE, ""),
	    KEEPS(NO, 340, 1, KSM_MERGE, ""), KEEPS(NO, 360, 2, KSM_MERGE, ""),
	    ACTS(NO, 400, 1, KSM_STOP, KSM_REST, "enough tried after 8 scans: 400 of 1000") } },
	{ "losing what was gained is no progress",
	  { ACTS(1000, 100, 0, KSM_START, KSM_MERGE, ""), KEEPS(NO, 500, 2, KSM_MERGE, ""),
	    ACTS(NO, 300, 1, KSM_STOP, KSM_REST, "no more comes") } },
	{ "residual is not run after again, until there is more or long after",
	  { ACTS(1000, 0, 0, KSM_START, KSM_MERGE, ""), KEEPS(NO, 600, 2, KSM_MERGE, ""),
	    ACTS(NO, 600, 1, KSM_STOP, KSM_REST, "no more comes"), KEEPS(NO, NO, 0, KSM_REST, "400 MiB to gain, 464"),
	    KEEPS(1063, 600, 0, KSM_REST, "463 MiB to gain"), ACTS(1064, 600, 0, KSM_START, KSM_MERGE, "464 MiB"),
	    ACTS(NO, 600, 3, KSM_STOP, KSM_REST, "no more"),
	    { 1798, NO, NO, 0, NULL, false, false, KSM_KEEP, KSM_REST, "528 MiB needed" },
	    { 2, NO, NO, 0, NULL, false, false, KSM_START, KSM_MERGE, "464 MiB to gain, 64 MiB needed" } } },
	{ "refusal keeps it at rest, and says why",
	  { { 1, 1000, 0, 0, "not today", false, false, KSM_KEEP, KSM_REST, "not today" },
	    ACTS(NO, NO, 0, KSM_START, KSM_MERGE, "") } },
	{ "refusal while merging stops; without it, it goes on",
	  { ACTS(1000, 0, 0, KSM_START, KSM_MERGE, ""), KEEPS(NO, 100, 1, KSM_MERGE, ""),
	    { 1, NO, NO, 0, "two domains", false, false, KSM_STOP, KSM_REST, "two domains" },
	    { 1, NO, NO, 0, "two domains", false, false, KSM_KEEP, KSM_REST, "two domains" },
	    ACTS(NO, NO, 0, KSM_START, KSM_MERGE, "900 MiB to gain, 64 MiB needed") } },
	{ "yields to somebody else, keeps off, then returns",
	  { ACTS(1000, 0, 0, KSM_START, KSM_MERGE, ""),
	    { 1, NO, 100, 0, NULL, true, false, KSM_YIELD, KSM_BACKOFF, "somebody else set run=" },
	    { 1, NO, NO, 0, NULL, false, false, KSM_KEEP, KSM_BACKOFF, "hands off for 599 s more" },
	    { 598, NO, NO, 9, "refused", true, false, KSM_KEEP, KSM_BACKOFF, "hands off for 1 s more" },
	    { 1, NO, NO, 0, NULL, false, false, KSM_START, KSM_MERGE, "900 MiB to gain" } } },
	{ "yields at rest as well",
	  { { 1, 0, 0, 0, NULL, true, false, KSM_YIELD, KSM_BACKOFF, "hands off for 600 s" },
	    { 599, 1000, 0, 0, NULL, false, false, KSM_KEEP, KSM_BACKOFF, "" },
	    { 2, NO, NO, 0, NULL, false, false, KSM_START, KSM_MERGE, "" } } },
	{ "left running by an earlier daemon is stopped first",
	  { { 1, 1000, 0, 0, NULL, false, true, KSM_STOP, KSM_REST, "left running" },
	    { 1, NO, NO, 0, "refused", false, true, KSM_STOP, KSM_REST, "left running" } } },
	{ "an empty start does not count as tried",
	  { { 1, 0, 0, 0, NULL, false, true, KSM_STOP, KSM_REST, "left running" }, KEEPS(63, 0, 0, KSM_REST, ""),
	    ACTS(64, 0, 0, KSM_START, KSM_MERGE, "") } },
	{ "the counter of scans starts anew",
	  { ACTS(1000, 0, 0, KSM_START, KSM_MERGE, ""), ACTS(NO, NO, -50, KSM_STOP, KSM_REST, "enough tried") } },
};

static void test_policy_sequence_table_gives_expected(void)
{
	for (size_t i = 0; i < ARRAY_SIZE(sequences); i++) {
		struct sim m;

		sim_init(&m);
		for (size_t k = 0; k < LINES_MAX && sequences[i].lines[k].seconds > 0; k++) {
			const struct line *l = &sequences[i].lines[k];
			char what[160];

			m.in.expected_pages = l->expected_mib < 0 ? m.in.expected_pages : (uint64_t)l->expected_mib * MIB_PAGES;
			m.in.saved_pages = l->saved_mib < 0 ? m.in.saved_pages : (uint64_t)l->saved_mib * MIB_PAGES;
			m.s.ksm.full_scans += (uint64_t)(int64_t)l->scans;
			m.in.refusal = l->refusal;
			m.in.foreign_change = l->foreign;
			m.in.left_running = l->left;
			step(&m, l->seconds);
			snprintf(what, sizeof(what), "%s, line %zu", sequences[i].what, k);
			UNIT_CASE(what, m.plan.action == l->action);
			UNIT_CASE(what, m.policy.state == l->state);
			UNIT_CASE(what, strstr(m.plan.why, l->why));
			if (!strstr(m.plan.why, l->why))
				printf("    got \"%s\"\n", m.plan.why);
		}
	}
}

/* ---- rate ---- */

static void test_policy_rate_meets_target_within_budget(void)
{
	static const struct {
		uint64_t mergeable_mib, target_s, cpu_percent;
		double share; /* of a core, expected: 7 us a page for two scans, over the target, at most the budget */
	} cases[] = {
		{ 4096, 30, 50, 0.2447 },
		{ 4096, 30, 10, 0.10 },
		{ 65536, 30, 50, 0.50 },
		{ 65536, 30, 100, 1.0 },
		{ 64, 30, 50, 0.0038 },
		{ 1024, 3600, 50, 0.0005 },
		{ 0, 30, 50, 0 },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct sim m;
		double busy_ms, share;
		char what[32];

		sim_init(&m);
		m.in.expected_pages = 1000 * MIB_PAGES;
		m.in.mergeable_pages = cases[i].mergeable_mib * MIB_PAGES;
		m.policy.limits.target_ns = cases[i].target_s * NSEC_PER_SEC;
		m.policy.limits.cpu_percent = cases[i].cpu_percent;
		snprintf(what, sizeof(what), "rate case %zu", i);
		UNIT_CASE(what, step(&m, 1) == KSM_START);
		busy_ms = (double)m.plan.pages_to_scan * 3.5e-3;
		share = busy_ms / (busy_ms + (double)m.plan.sleep_ms);
		UNIT_CASE(what, share <= (double)cases[i].cpu_percent / 100 * 1.05 + 0.001);
		UNIT_CASE(what, share >= cases[i].share * 0.95);
		UNIT_CASE(what, share <= cases[i].share * 1.05 + 0.006); /* never less than 64 pages a time */
		UNIT_CASE(what, m.plan.pages_to_scan >= 64 && m.plan.sleep_ms <= 40);
	}
}

/* The cost of a page is measured; a clear difference sets the rate anew, within the budget; a small one does not. */
static void test_policy_cost_measured_sets_rate(void)
{
	struct sim m;
	uint64_t before;

	sim_init(&m);
	m.in.expected_pages = 1000 * MIB_PAGES;
	m.in.mergeable_pages = 65536 * MIB_PAGES; /* the budget decides */
	CU_ASSERT_EQUAL(step(&m, 1), KSM_START);
	before = m.plan.pages_to_scan;
	m.s.ksm.cpu_ns += 15 * NSEC_PER_MSEC; /* ten times a page's cost, but of a few pages only */
	CU_ASSERT_EQUAL(step(&m, 0.01), KSM_KEEP);
	m.s.ksm.cpu_ns -= 15 * NSEC_PER_MSEC;
	for (int i = 0; i < 10; i++)
		CU_ASSERT_EQUAL(step(&m, 0.1), KSM_KEEP);
	m.s.ksm.cpu_ns += m.s.ksm.cpu_ns - 5 * NSEC_PER_SEC; /* twice as dear */
	CU_ASSERT_EQUAL(step(&m, 0.001), KSM_RATE);
	CU_ASSERT_TRUE(m.plan.pages_to_scan * 2 <= before + 20 && m.plan.pages_to_scan * 2 >= before - 20);
	CU_ASSERT_EQUAL(step(&m, 0.001), KSM_KEEP);
	m.s.ksm.cpu_ns = 0; /* unknown all at once */
	CU_ASSERT_EQUAL(step(&m, 0.001), KSM_KEEP);
	m.s.ksm.pages_scanned = 7; /* or counted anew */
	CU_ASSERT_EQUAL(step(&m, 0.001), KSM_KEEP);
}

/* A scanner that waits for a CPU sleeps less, down to its budget; one that has its pace again, as planned. */
static void test_policy_slow_pace_sleeps_less(void)
{
	struct sim m;
	uint64_t planned, shortest;

	sim_init(&m);
	m.in.expected_pages = 1000 * MIB_PAGES;
	CU_ASSERT_EQUAL(step(&m, 1), KSM_START);
	planned = m.plan.sleep_ms;
	m.pace = 0.5;
	CU_ASSERT_EQUAL(step(&m, 0.5), KSM_KEEP); /* too short to tell */
	CU_ASSERT_EQUAL(step(&m, 0.6), KSM_RATE);
	CU_ASSERT_TRUE(m.plan.sleep_ms <= planned / 2 + 1);
	m.pace = 1;
	for (int i = 0; i < 5; i++)
		CU_ASSERT_EQUAL(step(&m, 1), KSM_KEEP);
	m.pace = 1.5;
	for (int i = 0; i < 5; i++)
		step(&m, 1);
	CU_ASSERT_EQUAL(m.policy.sleep_ms, planned);

	m.pace = 0.1; /* nothing helps */
	for (int i = 0; i < 100; i++)
		step(&m, 1);
	shortest = m.policy.sleep_ms;
	CU_ASSERT_TRUE(shortest <= 1);
	m.pace = 2; /* the CPU is free again: far more than its budget at once */
	for (int i = 0; i < 12; i++)
		step(&m, 1);
	CU_ASSERT_TRUE(m.policy.sleep_ms >= planned * 3 / 4);
}

static void test_policy_unknown_counters_keep_pace(void)
{
	for (int unknown = 0; unknown < 2; unknown++) {
		struct sim m;

		sim_init(&m);
		m.pace = 0.01;
		m.in.expected_pages = 1000 * MIB_PAGES;
		for (int i = 0; i < 30; i++) {
			if (unknown == 0)
				m.s.ksm.cpu_ns = 0;
			m.s.ksm.pages_scanned = unknown ? 0 : m.s.ksm.pages_scanned;
			CU_ASSERT_EQUAL(m.policy.state, i ? KSM_MERGE : KSM_REST);
			ksm_policy_decide(&m.policy, &m.s, &m.in, &m.plan);
			CU_ASSERT_EQUAL(m.plan.action, i ? KSM_KEEP : KSM_START);
			m.s.taken_ns += NSEC_PER_SEC;
		}
	}
}

static void test_policy_stop_keeps_found_rate(void)
{
	struct sim m;

	sim_init(&m);
	m.in.expected_pages = 1000 * MIB_PAGES;
	CU_ASSERT_EQUAL(step(&m, 1), KSM_START);
	m.s.ksm.pages_to_scan = m.plan.pages_to_scan;
	m.s.ksm.sleep_ms = m.plan.sleep_ms;
	m.in.saved_pages = m.in.expected_pages;
	CU_ASSERT_EQUAL(step(&m, 1), KSM_STOP);
	CU_ASSERT_EQUAL(m.plan.pages_to_scan, m.s.ksm.pages_to_scan);
	CU_ASSERT_EQUAL(m.plan.sleep_ms, m.s.ksm.sleep_ms);
}

/* ---- over a long time ---- */

/* Gain comes as the scanner works, up to a share of what was expected; then nothing changes for ten minutes. */
static void test_policy_constant_input_never_oscillates(void)
{
	static const int reachable_percent[] = { 100, 99, 90, 50, 10, 1, 0 };

	for (size_t i = 0; i < ARRAY_SIZE(reachable_percent); i++) {
		uint64_t gain = 1000 * MIB_PAGES, reachable = gain * (uint64_t)reachable_percent[i] / 100;
		int starts = 0, stops = 0, others = 0;
		struct sim m;

		sim_init(&m);
		m.in.expected_pages = gain;
		for (int second = 0; second < 600; second++) {
			enum ksm_action a = step(&m, 1);

			starts += a == KSM_START;
			stops += a == KSM_STOP;
			others += a == KSM_YIELD || a == KSM_RATE;
			if (m.policy.state == KSM_MERGE && second % 5 == 4) {
				m.s.ksm.full_scans++;
				m.in.saved_pages += (reachable - m.in.saved_pages) / 2 + 1;
				if (m.in.saved_pages > reachable)
					m.in.saved_pages = reachable;
			}
		}
		CU_ASSERT_EQUAL(starts, 1);
		CU_ASSERT_EQUAL(stops, 1);
		CU_ASSERT_EQUAL(others, 0);
	}
}

static void test_policy_gain_around_minimum_starts_once(void)
{
	int starts = 0;
	struct sim m;

	sim_init(&m);
	for (int second = 0; second < 1200; second++) {
		m.in.expected_pages = (second % 2 ? 63 : 65) * (uint64_t)MIB_PAGES;
		m.s.ksm.full_scans += m.policy.state == KSM_MERGE;
		starts += step(&m, 1) == KSM_START;
	}
	CU_ASSERT_EQUAL(starts, 1); /* got nothing, so not again */
}

static void test_policy_gain_one_page_short_rests(void)
{
	struct sim m;

	sim_init(&m);
	m.in.saved_pages = 1000;
	m.in.expected_pages = 1000 + limits.min_gain_pages - 1;
	CU_ASSERT_EQUAL(step(&m, 1), KSM_KEEP);
	m.in.expected_pages++;
	CU_ASSERT_EQUAL(step(&m, 1), KSM_START);
	sim_init(&m);
	m.policy.limits.min_gain_pages = 0; /* any gain, but none is none */
	CU_ASSERT_EQUAL(step(&m, 1), KSM_KEEP);
	m.in.expected_pages = 1;
	CU_ASSERT_EQUAL(step(&m, 1), KSM_START);
}

static void test_policy_given_up_waits_for_more(void)
{
	struct sim m;

	sim_init(&m);
	m.in.expected_pages = 1000 * MIB_PAGES;
	CU_ASSERT_EQUAL(step(&m, 1), KSM_START);
	ksm_policy_give_up(&m.policy, m.in.expected_pages); /* dry run */
	CU_ASSERT_EQUAL(m.policy.state, KSM_REST);
	for (int second = 0; second < 1700; second += 100)
		CU_ASSERT_EQUAL(step(&m, 100), KSM_KEEP);
	m.in.expected_pages = 1064 * MIB_PAGES;
	CU_ASSERT_EQUAL(step(&m, 1), KSM_START);
	CU_ASSERT_STRING_EQUAL(ksm_state_name(KSM_REST), "rest");
	CU_ASSERT_STRING_EQUAL(ksm_state_name(KSM_MERGE), "merge");
	CU_ASSERT_STRING_EQUAL(ksm_state_name(KSM_BACKOFF), "backoff");
}

int main(void)
{
	static CU_TestInfo tests[] = {
		{ "sequences", test_policy_sequence_table_gives_expected },
		{ "rate", test_policy_rate_meets_target_within_budget },
		{ "cost", test_policy_cost_measured_sets_rate },
		{ "pace", test_policy_slow_pace_sleeps_less },
		{ "unknown_counters", test_policy_unknown_counters_keep_pace },
		{ "stop_rate", test_policy_stop_keeps_found_rate },
		{ "constant", test_policy_constant_input_never_oscillates },
		{ "around_minimum", test_policy_gain_around_minimum_starts_once },
		{ "one_page_short", test_policy_gain_one_page_short_rests },
		{ "given_up", test_policy_given_up_waits_for_more },
		CU_TEST_INFO_NULL,
	};

	return unit_main("policy", tests);
}
