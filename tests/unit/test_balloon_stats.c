#include "balloon/stats.h"

#include "core/clock.h"
#include "tests/unit/unit.h"

#define MIB (UINT64_C(1) << 20)
#define SIZE (512 * MIB)
#define NOW_S INT64_C(1700000000)
#define NOW_NS (1000 * NSEC_PER_SEC)

static const struct balloon_told good = {
	.device = BALLOON_DEVICE_PRESENT,
	.max_bytes = SIZE,
	.actual_bytes = SIZE,
	.told_ns = NOW_NS,
	.period_s = 1,
	.last_update_s = NOW_S,
	.stats_told_ns = NOW_NS,
	.total_bytes = 480 * MIB,
	.free_bytes = 100 * MIB,
	.available_bytes = 300 * MIB,
	.cache_bytes = 220 * MIB,
	.swap_in_bytes = 1,
	.swap_out_bytes = 2,
	.major_faults = 3,
	.oom_kills = 4,
};

static struct vm_balloon take_at(struct stats_age *a, const struct balloon_told *told, uint64_t now_ns, int64_t now_s)
{
	struct vm_balloon b = { .why = "", .device = told->device, .max_bytes = SIZE, .actual_bytes = SIZE };

	stats_take(a, told, now_ns, now_s, &b);
	return b;
}

/* ---- one answer by itself ---- */

static void test_stats_table_judged(void)
{
	static const struct {
		const char *what;
		size_t member;
		uint64_t value;
		enum guest_stats want;
		const char *why; /* part of it; NULL: empty */
	} table[] = {
		{ "as it is", offsetof(struct balloon_told, total_bytes), 480 * MIB, GUEST_STATS_GOOD, NULL },
		{ "never asked", offsetof(struct balloon_told, stats_told_ns), 0, GUEST_STATS_NONE, "no statistics" },
		{ "no driver", offsetof(struct balloon_told, last_update_s), 0, GUEST_STATS_NONE, "no statistics" },
		{ "before 1970", offsetof(struct balloon_told, last_update_s), (uint64_t)-5, GUEST_STATS_NONE,
		  "no statistics" },
		{ "total untold", offsetof(struct balloon_told, total_bytes), BALLOON_UNTOLD, GUEST_STATS_ABSURD,
		  "does not tell how much memory it has" },
		{ "total zero", offsetof(struct balloon_told, total_bytes), 0, GUEST_STATS_ABSURD,
		  "does not tell how much memory it has" },
		{ "free untold", offsetof(struct balloon_told, free_bytes), BALLOON_UNTOLD, GUEST_STATS_ABSURD,
		  "does not tell how much memory is free" },
		{ "more than the VM", offsetof(struct balloon_told, total_bytes), 2 * SIZE, GUEST_STATS_ABSURD,
		  "more memory than its VM" },
		{ "a hot-plug ahead", offsetof(struct balloon_told, total_bytes), SIZE + SIZE / 8, GUEST_STATS_GOOD, NULL },
		{ "total beyond address space", offsetof(struct balloon_told, total_bytes), UINT64_MAX - 1,
		  GUEST_STATS_ABSURD, "more memory than its VM" },
		{ "free above total", offsetof(struct balloon_told, free_bytes), 480 * MIB + 1, GUEST_STATS_ABSURD,
		  "more is free" },
		{ "free is all", offsetof(struct balloon_told, free_bytes), 480 * MIB, GUEST_STATS_GOOD, NULL },
		{ "free huge", offsetof(struct balloon_told, free_bytes), UINT64_MAX - 1, GUEST_STATS_ABSURD, "more is free" },
		{ "available above total", offsetof(struct balloon_told, available_bytes), 480 * MIB + 1,
		  GUEST_STATS_ABSURD, "more is available" },
		{ "nothing available", offsetof(struct balloon_told, available_bytes), 0, GUEST_STATS_GOOD, NULL },
		{ "cached above total", offsetof(struct balloon_told, cache_bytes), 480 * MIB + 1, GUEST_STATS_ABSURD,
		  "more is cached" },
		{ "cache untold", offsetof(struct balloon_told, cache_bytes), BALLOON_UNTOLD, GUEST_STATS_GOOD, NULL },
		{ "counters untold", offsetof(struct balloon_told, swap_in_bytes), BALLOON_UNTOLD, GUEST_STATS_GOOD, NULL },
	};

	for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
		struct balloon_told told = good;
		struct stats_age age = { 0 };
		struct vm_balloon b;

		memcpy((char *)&told + table[i].member, &table[i].value, sizeof(uint64_t));
		b = take_at(&age, &told, NOW_NS, NOW_S);
		UNIT_CASE(table[i].what, b.stats == table[i].want);
		UNIT_CASE(table[i].what, table[i].why ? strstr(b.why, table[i].why) != NULL : *b.why == '\0');
	}
}

static void test_stats_good_copied(void)
{
	struct stats_age age = { 0 };
	struct vm_balloon b = take_at(&age, &good, NOW_NS, NOW_S);

	CU_ASSERT_EQUAL(b.stats_ns, NOW_NS);
	CU_ASSERT_EQUAL(b.total_bytes, good.total_bytes);
	CU_ASSERT_EQUAL(b.free_bytes, good.free_bytes);
	CU_ASSERT_EQUAL(b.available_bytes, good.available_bytes);
	CU_ASSERT_EQUAL(b.cache_bytes, good.cache_bytes);
	CU_ASSERT_EQUAL(b.swap_in_bytes, 1);
	CU_ASSERT_EQUAL(b.swap_out_bytes, 2);
	CU_ASSERT_EQUAL(b.major_faults, 3);
	CU_ASSERT_EQUAL(b.oom_kills, 4);
}

/* A VM whose size nobody told: only what contradicts itself is absurd. */
static void test_stats_size_unknown(void)
{
	struct balloon_told told = good;
	struct stats_age age = { 0 };
	struct vm_balloon b = { .why = "" };

	told.total_bytes = UINT64_C(1) << 45;
	stats_take(&age, &told, NOW_NS, NOW_S, &b);
	CU_ASSERT_EQUAL(b.stats, GUEST_STATS_GOOD);
	told.total_bytes = (UINT64_C(1) << 52) + 1;
	stats_take(&age, &told, NOW_NS, NOW_S, &b);
	CU_ASSERT_EQUAL(b.stats, GUEST_STATS_ABSURD);
}

/* Drivers before Linux 4.6, and other systems. */
static void test_stats_available_missing(void)
{
	struct balloon_told told = good;
	struct stats_age age = { 0 };

	told.available_bytes = BALLOON_UNTOLD;
	CU_ASSERT_EQUAL(take_at(&age, &told, NOW_NS, NOW_S).available_bytes, (100 + 220 / 2) * MIB);
	told.cache_bytes = BALLOON_UNTOLD;
	told.last_update_s++;
	CU_ASSERT_EQUAL(take_at(&age, &told, NOW_NS, NOW_S + 1).available_bytes, 100 * MIB);
	/* Free and half of the cache cannot exceed the total by themselves, but together: */
	told.free_bytes = told.cache_bytes = told.total_bytes;
	told.last_update_s++;
	CU_ASSERT(take_at(&age, &told, NOW_NS, NOW_S + 2).available_bytes <= told.total_bytes);
}

/* ---- age ---- */

static void test_stats_first_sight(void)
{
	static const struct {
		const char *what;
		int64_t update_s;
		enum guest_stats want;
	} table[] = {
		{ "just now", NOW_S, GUEST_STATS_GOOD },
		{ "a moment ago", NOW_S - 5, GUEST_STATS_GOOD },
		{ "clocks differ a little", NOW_S + 5, GUEST_STATS_GOOD },
		{ "of another daemon's time", NOW_S - 60, GUEST_STATS_STALE },
		{ "of 1970", 1, GUEST_STATS_STALE },
		{ "from the future", NOW_S + 3600, GUEST_STATS_STALE },
		{ "from the end of time", INT64_MAX, GUEST_STATS_STALE },
	};

	for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
		struct balloon_told told = good;
		struct stats_age age = { 0 };

		told.last_update_s = table[i].update_s;
		UNIT_CASE(table[i].what, take_at(&age, &told, NOW_NS, NOW_S).stats == table[i].want);
		/* Whatever the clocks say, an answer that is new now is new. */
		told.last_update_s = table[i].update_s == INT64_MAX ? 5 : table[i].update_s + 1;
		told.stats_told_ns += NSEC_PER_SEC;
		UNIT_CASE(table[i].what, take_at(&age, &told, NOW_NS + NSEC_PER_SEC, NOW_S + 1).stats == GUEST_STATS_GOOD);
	}
}

/* A host that was started a moment ago: old answers are old all the same. */
static void test_stats_first_sight_after_boot(void)
{
	struct balloon_told told = good;
	struct stats_age age = { 0 };

	told.last_update_s = NOW_S - 60;
	told.stats_told_ns = NSEC_PER_SEC;
	CU_ASSERT_EQUAL(take_at(&age, &told, NSEC_PER_SEC, NOW_S).stats, GUEST_STATS_STALE);
}

/* Answers that do not change age by the host's monotonic clock. */
static void test_stats_age_by_period(void)
{
	static const struct {
		uint64_t period_s, good_s, stale_s;
	} table[] = { { 1, 8, 9 }, { 10, 35, 36 }, { 0, 35, 36 }, { UINT64_MAX, 10000, 10806 } };

	for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
		struct balloon_told told = good;
		struct stats_age age = { 0 };

		told.period_s = table[i].period_s;
		take_at(&age, &told, NOW_NS, NOW_S);
		told.stats_told_ns = NOW_NS + table[i].good_s * NSEC_PER_SEC; /* told anew, as it was */
		CU_ASSERT_EQUAL(take_at(&age, &told, told.stats_told_ns, NOW_S).stats, GUEST_STATS_GOOD);
		told.stats_told_ns = NOW_NS + table[i].stale_s * NSEC_PER_SEC;
		CU_ASSERT_EQUAL(take_at(&age, &told, told.stats_told_ns, NOW_S).stats, GUEST_STATS_STALE);
		CU_ASSERT_EQUAL(take_at(&age, &told, told.stats_told_ns, NOW_S).total_bytes, 0);
	}
}

/* The guest is asked more rarely from now on, and has not answered in the new rhythm yet; or more often. */
static void test_stats_period_changes(void)
{
	struct balloon_told told = good;
	struct stats_age age = { 0 };

	take_at(&age, &told, NOW_NS, NOW_S);
	told.period_s = 10;
	CU_ASSERT_EQUAL(take_at(&age, &told, NOW_NS + 20 * NSEC_PER_SEC, NOW_S).stats, GUEST_STATS_GOOD);
	told.last_update_s += 20;
	told.stats_told_ns += 20 * NSEC_PER_SEC;
	take_at(&age, &told, told.stats_told_ns, NOW_S);
	told.period_s = 1;
	CU_ASSERT_EQUAL(take_at(&age, &told, told.stats_told_ns + 20 * NSEC_PER_SEC, NOW_S).stats, GUEST_STATS_GOOD);
	CU_ASSERT_EQUAL(take_at(&age, &told, told.stats_told_ns + 36 * NSEC_PER_SEC, NOW_S).stats, GUEST_STATS_STALE);
}

static void test_stats_clock_set_back(void)
{
	struct balloon_told told = good;
	struct stats_age age = { 0 };

	take_at(&age, &told, NOW_NS, NOW_S);
	told.last_update_s = NOW_S - 86400;
	told.stats_told_ns = NOW_NS + 2 * NSEC_PER_SEC;
	CU_ASSERT_EQUAL(take_at(&age, &told, told.stats_told_ns, NOW_S - 86400).stats, GUEST_STATS_GOOD);
	CU_ASSERT_EQUAL(age.changed_ns, told.stats_told_ns);
}

/* The VMM tells whole seconds: in one the guest may answer twice. */
static void test_stats_same_second(void)
{
	static const size_t members[] = {
		offsetof(struct balloon_told, total_bytes),   offsetof(struct balloon_told, free_bytes),
		offsetof(struct balloon_told, available_bytes), offsetof(struct balloon_told, cache_bytes),
		offsetof(struct balloon_told, swap_in_bytes), offsetof(struct balloon_told, swap_out_bytes),
		offsetof(struct balloon_told, major_faults),  offsetof(struct balloon_told, oom_kills),
	};

	for (size_t i = 0; i < ARRAY_SIZE(members); i++) {
		struct balloon_told told = good;
		struct stats_age age = { 0 };
		uint64_t value;

		take_at(&age, &told, NOW_NS, NOW_S);
		memcpy(&value, (char *)&told + members[i], sizeof(value));
		value++;
		memcpy((char *)&told + members[i], &value, sizeof(value));
		told.stats_told_ns += NSEC_PER_SEC / 2;
		CU_ASSERT_EQUAL(take_at(&age, &told, told.stats_told_ns, NOW_S).stats_ns, told.stats_told_ns);
	}
}

static void test_stats_stale_then_back(void)
{
	struct balloon_told told = good;
	struct stats_age age = { 0 };
	uint64_t later = NOW_NS + 600 * NSEC_PER_SEC;

	take_at(&age, &told, NOW_NS, NOW_S);
	told.stats_told_ns = later;
	CU_ASSERT_EQUAL(take_at(&age, &told, later, NOW_S + 600).stats, GUEST_STATS_STALE);
	told.last_update_s = NOW_S + 600;
	CU_ASSERT_EQUAL(take_at(&age, &told, later, NOW_S + 600).stats, GUEST_STATS_GOOD);
	/* The driver goes: the VMM may say that there never was an answer. */
	told.last_update_s = 0;
	CU_ASSERT_EQUAL(take_at(&age, &told, later, NOW_S + 601).stats, GUEST_STATS_NONE);
}

int main(void)
{
	CU_TestInfo tests[] = {
		{ "one answer, judged", test_stats_table_judged },
		{ "a good one is copied", test_stats_good_copied },
		{ "of a VM of unknown size", test_stats_size_unknown },
		{ "what is available is not told", test_stats_available_missing },
		{ "seen for the first time", test_stats_first_sight },
		{ "... right after boot", test_stats_first_sight_after_boot },
		{ "ages by the period", test_stats_age_by_period },
		{ "the period changes", test_stats_period_changes },
		{ "the clock is set back", test_stats_clock_set_back },
		{ "two in a second", test_stats_same_second },
		{ "stale, and back", test_stats_stale_then_back },
		CU_TEST_INFO_NULL,
	};

	return unit_main("balloon_stats", tests);
}
