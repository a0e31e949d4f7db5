/* balloon/entitle: memory shared out, against min-funding revocation as its paper words it, done in small units. */
#include "balloon/entitle.h"

#include <math.h>

#include "tests/unit/unit.h"

#define MIB (UINT64_C(1) << 20)
#define GIB (UINT64_C(1) << 30)
#define VMS_MAX 1024

static uint64_t below(uint64_t *random, uint64_t n)
{
	return n ? unit_random(random) % n : 0;
}

/* Sizes of all magnitudes, and bounds that are often the same. */
static struct claim claim_random(uint64_t *random, uint64_t most)
{
	uint64_t max = below(random, 8) ? below(random, most) + 1 : 0;
	uint64_t min = below(random, 3) ? below(random, max / 2 + 1) : below(random, 4) ? 0 : max;

	return (struct claim){ .min_bytes = min, .max_bytes = max, .active_bytes = below(random, 3) ? below(random, max + 1) :
											      below(random, 2 * most),
			       .shares = below(random, 3) ? 1000 : 1 + below(random, 1000000) };
}

static uint64_t sum_of(const uint64_t *bytes, size_t count)
{
	uint64_t sum = 0;

	for (size_t i = 0; i < count; i++)
		sum += bytes[i];
	return sum;
}

/* What a VM pays for a page, by the paper's formula. */
static long double rho(const struct claim *c, uint64_t bytes, unsigned int tax_percent)
{
	long double pages = (long double)bytes, k = 1 / (1 - tax_percent / 100.0L), f;

	if (bytes == 0)
		return HUGE_VALL;
	f = c->active_bytes >= bytes ? 1 : (long double)c->active_bytes / pages;
	return (long double)c->shares / (pages * (f + k * (1 - f)));
}

/* ---- by hand ---- */

static void test_entitle_example_of_readme_holds(void)
{
	/* A works with most of what it has, B with little; C is worth twice as much, D a quarter, and has a reservation. */
	const struct claim claims[] = {
		{ .min_bytes = 512 * MIB, .max_bytes = 4096 * MIB, .active_bytes = 3072 * MIB, .shares = 1000 },
		{ .min_bytes = 512 * MIB, .max_bytes = 4096 * MIB, .active_bytes = 1024 * MIB, .shares = 1000 },
		{ .min_bytes = 512 * MIB, .max_bytes = 2048 * MIB, .active_bytes = 512 * MIB, .shares = 2000 },
		{ .min_bytes = 1024 * MIB, .max_bytes = 2048 * MIB, .active_bytes = 256 * MIB, .shares = 250 },
	};
	static const struct {
		unsigned int tax;
		uint64_t mib[4];
	} cases[] = { { 75, { 3328, 1792, 2048, 1024 } }, { 0, { 2560, 2560, 2048, 1024 } } };
	uint64_t bytes[4];

	for (size_t c = 0; c < ARRAY_SIZE(cases); c++) {
		CU_ASSERT_EQUAL(entitle(claims, 4, 8192 * MIB, cases[c].tax, bytes), 0);
		for (size_t i = 0; i < 4; i++)
			CU_ASSERT(bytes[i] <= cases[c].mib[i] * MIB && bytes[i] + 1 >= cases[c].mib[i] * MIB);
	}
	CU_ASSERT_DOUBLE_EQUAL((double)rho(&claims[0], 3328 * MIB, 75), (double)rho(&claims[1], 1792 * MIB, 75), 1e-15);
}

static void test_entitle_table(void)
{
	static const struct {
		const char *what;
		struct claim claims[3];
		size_t count;
		uint64_t budget;
		unsigned int tax;
		uint64_t missing, bytes[3];
	} cases[] = {
		{ "nobody", { { 0 } }, 0, 1000, 75, 0, { 0 } },
		{ "nobody and nothing", { { 0 } }, 0, 0, 75, 0, { 0 } },
		{ "one has all of it", { { 0, 4000, 100, 1 } }, 1, 1000, 75, 0, { 1000 } },
		{ "one, nothing to have", { { 0, 4000, 100, 1 } }, 1, 0, 75, 0, { 0 } },
		{ "one, below its least", { { 600, 4000, 100, 1 } }, 1, 100, 75, 500, { 600 } },
		{ "one, at its least", { { 600, 4000, 100, 1 } }, 1, 600, 75, 0, { 600 } },
		{ "never more than most", { { 0, 400, 100, 1 }, { 0, 300, 9999, 9 } }, 2, UINT64_MAX, 75, 0, { 400, 300 } },
		{ "by shares", { { 0, 9000, 9000, 1 }, { 0, 9000, 9000, 3 } }, 2, 4000, 75, 0, { 1000, 3000 } },
		{ "by shares while idle", { { 0, 9000, 0, 1 }, { 0, 9000, 0, 3 } }, 2, 4000, 75, 0, { 1000, 3000 } },
		{ "what one may not have is the other's", { { 0, 500, 500, 9 }, { 0, 9000, 0, 1 } }, 2, 4000, 75, 0,
		  { 500, 3500 } },
		{ "reservations before shares", { { 3000, 9000, 0, 1 }, { 0, 9000, 9000, 1000000 } }, 2, 4000, 75, 0,
		  { 3000, 1000 } },
		{ "reservations above all", { { 3000, 9000, 0, 1 }, { 2000, 9000, 0, 5 }, { 0, 10, 10, 1 } }, 3, 4000, 75, 1000,
		  { 3000, 2000, 0 } },
		{ "idle at half is worth half", { { 0, 9000, 9000, 1000 }, { 0, 9000, 0, 1000 } }, 2, 3000, 50, 0,
		  { 2000, 1000 } },
		{ "a tax of 99 % leaves a hundredth", { { 0, 90000, 90000, 1 }, { 0, 90000, 0, 1 } }, 2, 10100, 99, 0,
		  { 10000, 100 } },
	};

	for (size_t c = 0; c < ARRAY_SIZE(cases); c++) {
		uint64_t bytes[3] = { 0 };
		uint64_t missing = entitle(cases[c].claims, cases[c].count, cases[c].budget, cases[c].tax, bytes);

		UNIT_CASE(cases[c].what, missing == cases[c].missing);
		for (size_t i = 0; i < cases[c].count; i++)
			UNIT_CASE(cases[c].what, bytes[i] <= cases[c].bytes[i] && bytes[i] + 1 >= cases[c].bytes[i]);
	}
}

/* ---- properties ---- */

struct shared_out {
	struct claim claims[VMS_MAX];
	uint64_t bytes[VMS_MAX], budget, missing;
	size_t count;
	unsigned int tax;
};

static void check_bounds(const struct shared_out *o)
{
	uint64_t sum = sum_of(o->bytes, o->count), least = 0, most = 0;
	bool in_bounds = true;

	for (size_t i = 0; i < o->count; i++) {
		const struct claim *c = &o->claims[i];

		in_bounds &= o->bytes[i] >= c->min_bytes && o->bytes[i] <= c->max_bytes;
		least += c->min_bytes;
		most += c->max_bytes;
	}
	CU_ASSERT(in_bounds);
	CU_ASSERT_EQUAL(o->missing, least > o->budget ? least - o->budget : 0);
	CU_ASSERT(sum <= o->budget || (o->missing && sum == least));
	CU_ASSERT(sum + o->count >= o->budget || sum == most);
}

/* Nobody who could give pays less for a page than somebody who could get one. */
static void check_fair(const struct shared_out *o)
{
	long double richest = 0, poorest = HUGE_VALL; /* of those who may get, of those who may give */

	if (o->missing)
		return;
	for (size_t i = 0; i < o->count; i++) {
		const struct claim *c = &o->claims[i];

		if (o->bytes[i] > c->min_bytes)
			poorest = fminl(poorest, rho(c, o->bytes[i], o->tax));
		if (o->bytes[i] < c->max_bytes)
			richest = fmaxl(richest, rho(c, o->bytes[i] + 1, o->tax));
	}
	CU_ASSERT(poorest >= richest * (1 - 1e-9L));
}

static void shared_out_random(struct shared_out *o, uint64_t *random, size_t count)
{
	uint64_t most = UINT64_C(1) << (4 + below(random, 40)), room = 0;

	o->count = count;
	o->tax = below(random, 4) ? (unsigned int)below(random, 100) : below(random, 2) ? 0 : 99;
	for (size_t i = 0; i < count; i++) {
		o->claims[i] = claim_random(random, most);
		room += o->claims[i].max_bytes;
	}
	o->budget = below(random, 16) ? below(random, room + room / 4 + 1) : below(random, 2) ? 0 : UINT64_MAX;
	o->missing = entitle(o->claims, count, o->budget, o->tax, o->bytes);
}

static void test_entitle_random_is_within_bounds_and_fair(void)
{
	static struct shared_out o;
	uint64_t random = 1;

	for (size_t i = 0; i < 20000; i++) {
		shared_out_random(&o, &random, below(&random, 12));
		check_bounds(&o);
		check_fair(&o);
	}
	for (size_t i = 0; i < 20; i++) {
		shared_out_random(&o, &random, VMS_MAX);
		check_bounds(&o);
		check_fair(&o);
	}
}

/* More to share out is less for nobody. */
static void test_entitle_grows_with_the_budget(void)
{
	static struct shared_out o;
	uint64_t random = 2, more[VMS_MAX];
	size_t less = 0;

	for (size_t i = 0; i < 5000; i++) {
		shared_out_random(&o, &random, below(&random, 12));
		if (o.budget == UINT64_MAX)
			continue;
		entitle(o.claims, o.count, o.budget + below(&random, GIB), o.tax, more);
		for (size_t v = 0; v < o.count; v++)
			less += more[v] < o.bytes[v];
	}
	CU_ASSERT_EQUAL(less, 0);
}

/* A VM with more shares, or that uses more, does not get less, and the others do not get more. */
static void test_entitle_grows_with_shares_and_use(void)
{
	static struct shared_out o;
	uint64_t random = 3, after[VMS_MAX];
	size_t wrong = 0;

	for (size_t i = 0; i < 5000; i++) {
		size_t lucky;

		shared_out_random(&o, &random, 1 + below(&random, 12));
		lucky = below(&random, o.count);
		if (below(&random, 2))
			o.claims[lucky].shares += below(&random, 100000);
		else
			o.claims[lucky].active_bytes += below(&random, o.claims[lucky].max_bytes + 1);
		entitle(o.claims, o.count, o.budget, o.tax, after);
		/* To a byte for each: what is left over by rounding is nobody's. */
		for (size_t v = 0; v < o.count; v++)
			wrong += v == lucky ? after[v] + o.count < o.bytes[v] : after[v] > o.bytes[v] + o.count;
	}
	CU_ASSERT_EQUAL(wrong, 0);
}

/* ---- as the paper words it: a page at a time from whoever pays least for one ---- */

static void revoke_units(const struct claim *claims, size_t count, uint64_t budget, unsigned int tax, uint64_t *units)
{
	uint64_t sum = 0;

	for (size_t i = 0; i < count; i++)
		sum += units[i] = claims[i].max_bytes;
	while (sum > budget) {
		size_t victim = count;
		long double least = HUGE_VALL;

		for (size_t i = 0; i < count; i++) {
			long double price = rho(&claims[i], units[i], tax);

			if (units[i] > claims[i].min_bytes && price < least) {
				least = price;
				victim = i;
			}
		}
		if (victim == count)
			return;
		units[victim]--;
		sum--;
	}
}

static void test_entitle_equals_revocation_unit_by_unit(void)
{
	enum { VMS = 6, UNITS = 400 };
	struct claim small[VMS], large[VMS];
	uint64_t random = 4, units[VMS], bytes[VMS];
	size_t wrong = 0;

	for (size_t i = 0; i < 3000; i++) {
		size_t count = 1 + below(&random, VMS);
		unsigned int tax = (unsigned int)below(&random, 100);
		uint64_t room = 0, budget;

		for (size_t v = 0; v < count; v++) {
			small[v] = claim_random(&random, UNITS);
			large[v] = (struct claim){ small[v].min_bytes * MIB, small[v].max_bytes * MIB,
						   small[v].active_bytes * MIB, small[v].shares };
			room += small[v].max_bytes;
		}
		budget = below(&random, room + 1);
		revoke_units(small, count, budget, tax, units);
		entitle(large, count, budget * MIB, tax, bytes);
		/* It takes whole units, and so stops up to one for each VM off. */
		for (size_t v = 0; v < count; v++)
			wrong += bytes[v] > (units[v] + count + 1) * MIB || bytes[v] + (count + 1) * MIB < units[v] * MIB;
	}
	CU_ASSERT_EQUAL(wrong, 0);
}

int main(void)
{
	CU_TestInfo tests[] = {
		{ "test_entitle_example_of_readme_holds", test_entitle_example_of_readme_holds },
		{ "test_entitle_table", test_entitle_table },
		{ "test_entitle_random_is_within_bounds_and_fair", test_entitle_random_is_within_bounds_and_fair },
		{ "test_entitle_grows_with_the_budget", test_entitle_grows_with_the_budget },
		{ "test_entitle_grows_with_shares_and_use", test_entitle_grows_with_shares_and_use },
		{ "test_entitle_equals_revocation_unit_by_unit", test_entitle_equals_revocation_unit_by_unit },
		CU_TEST_INFO_NULL,
	};

	return unit_main("balloon/entitle", tests);
}
