/* ksmd/demote: sequences of looks at one VM. */
#include "ksmd/demote.h"

#include "core/clock.h"
#include "tests/unit/unit.h"

#define MIB_PAGES 256

struct sim {
	struct demotion d;
	uint64_t now_ns, whole, breaks;
};

static void sim_init(struct sim *m)
{
	*m = (struct sim){ .now_ns = 1000 * NSEC_PER_SEC, .whole = 100 * MIB_PAGES };
	CU_ASSERT_EQUAL(demote_look(&m->d, m->whole, m->breaks, m->now_ns), DEMOTE_KEEP);
}

/* One look later; what broke is merged again at once, so that there is always as much to break. */
static enum demote_event step(struct sim *m, unsigned seconds, unsigned broke_mib)
{
	m->now_ns += seconds * NSEC_PER_SEC;
	m->breaks += (uint64_t)broke_mib * MIB_PAGES;
	return demote_look(&m->d, m->whole, m->breaks, m->now_ns);
}

#define LOOKS_MAX 8

static const struct {
	const char *what;
	unsigned whole_mib, seconds;
	int broke_mib[LOOKS_MAX]; /* -1: no look more */
	bool demoted;
} cases[] = {
	{ "half a minute's fifth is enough, three times", 100, 15, { 7, 7, 7, -1 }, true },
	{ "but not twice", 100, 15, { 7, 7, -1 }, false },
	{ "and not with a calm look between", 100, 15, { 7, 7, 1, 7, 7, -1 }, false },
	{ "less than a fifth a minute is no reason", 100, 15, { 4, 4, 4, 4, 4, 4, 4, -1 }, false },
	{ "the same broken in a longer time neither", 100, 60, { 7, 7, 7, 7, -1 }, false },
	{ "a fifth in a minute is", 100, 60, { 26, 26, 26, -1 }, true },
	{ "too few pages to judge", 2, 15, { 1, 1, 1, 1, 1, -1 }, false },
	{ "one burst of everything is no habit", 100, 15, { 100, 0, 0, 0, -1 }, false },
	{ "looks that come too soon count as one", 100, 5, { 7, 7, 7, 7, 7, 7, -1 }, false },
};

static void test_demote_only_what_keeps_breaking(void)
{
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		enum demote_event last = DEMOTE_KEEP;
		struct sim m;

		sim_init(&m);
		m.d.whole_then = m.whole = cases[i].whole_mib * MIB_PAGES;
		for (size_t k = 0; k < LOOKS_MAX && cases[i].broke_mib[k] >= 0; k++)
			last = step(&m, cases[i].seconds, (unsigned)cases[i].broke_mib[k]);
		UNIT_CASE(cases[i].what, m.d.demoted == cases[i].demoted);
		UNIT_CASE(cases[i].what, (last == DEMOTE_DOWN) == cases[i].demoted);
	}
}

static void demote_now(struct sim *m)
{
	unsigned looks = 0;

	while (step(m, 15, 30) != DEMOTE_DOWN && looks < 10)
		looks++;
	CU_ASSERT_EQUAL(looks, 2);
}

/* Looks without breaks until it is promoted. */
static unsigned minutes_held(struct sim *m)
{
	uint64_t start = m->now_ns;

	while (step(m, 15, 0) != DEMOTE_UP && m->now_ns - start < 100 * 3600 * NSEC_PER_SEC)
		;
	return (unsigned)((m->now_ns - start) / NSEC_PER_SEC / 60);
}

static void test_demote_holds_longer_each_time(void)
{
	static const unsigned minutes[] = { 10, 20, 40, 80, 160, 240, 240 };
	struct sim m;

	sim_init(&m);
	for (size_t i = 0; i < ARRAY_SIZE(minutes); i++) {
		char want[80];

		demote_now(&m);
		snprintf(want, sizeof(want), "not merged for %u min", minutes[i]);
		UNIT_CASE(m.d.why, strstr(m.d.why, want) != NULL);
		UNIT_CASE(want, minutes_held(&m) == minutes[i]);
	}
	for (unsigned i = 0; i < 5 * 60; i++) /* it keeps for longer than it was held */
		step(&m, 60, 0);
	demote_now(&m);
	CU_ASSERT_EQUAL(minutes_held(&m), 10);
}

static void test_demote_not_promoted_while_it_goes_on(void)
{
	struct sim m;

	sim_init(&m);
	demote_now(&m);
	for (unsigned i = 0; i < 199; i++)
		CU_ASSERT_EQUAL(step(&m, 15, i % 3 ? 0 : 5), DEMOTE_KEEP);
	CU_ASSERT_TRUE(m.d.demoted);
	step(&m, 15, 0);
	step(&m, 15, 0);
	CU_ASSERT_EQUAL(step(&m, 15, 0), DEMOTE_UP);
	CU_ASSERT_PTR_NOT_NULL(strstr(m.d.why, "have kept"));
}

/* A guest that rewrites everything, always: a day of it, merged again two minutes after each promotion. */
static void test_demote_does_not_oscillate(void)
{
	unsigned downs = 0, ups = 0, since = 0;
	struct sim m;

	sim_init(&m);
	for (unsigned t = 0; t < 24 * 3600 / 15; t++) {
		bool merged = !m.d.demoted && ++since > 8;
		enum demote_event e;

		m.whole = 0; /* all gone by the next look */
		e = step(&m, 15, merged ? 100 : 0);
		downs += e == DEMOTE_DOWN;
		ups += e == DEMOTE_UP;
		since = e == DEMOTE_UP ? 0 : since;
	}
	CU_ASSERT_TRUE(downs >= 3 && downs <= 10);
	CU_ASSERT_TRUE(ups == downs || ups + 1 == downs);
}

static void test_demote_count_that_went_back_begins_anew(void)
{
	struct sim m;

	sim_init(&m);
	step(&m, 15, 30);
	step(&m, 15, 30);
	m.breaks = 0; /* another domain's store */
	CU_ASSERT_EQUAL(step(&m, 15, 0), DEMOTE_KEEP);
	CU_ASSERT_EQUAL(step(&m, 15, 0), DEMOTE_KEEP);
	CU_ASSERT_FALSE(m.d.demoted);
}

int main(void)
{
	static CU_TestInfo tests[] = {
		{ "demote", test_demote_only_what_keeps_breaking },
		{ "hold", test_demote_holds_longer_each_time },
		{ "not_calm", test_demote_not_promoted_while_it_goes_on },
		{ "steady", test_demote_does_not_oscillate },
		{ "back", test_demote_count_that_went_back_begins_anew },
		CU_TEST_INFO_NULL,
	};

	return unit_main("demote", tests);
}
