/* exchange-cost - what the exchange of one full window costs, step by step, beside the byte compare alone. */
#include "tests/unit/exchange_rig.h"

#include "core/clock.h"

#define ROUNDS 200

static struct rig rig;

struct kind {
	const char *name;
	bool huge;
	unsigned pages; /* of the window that are equal, from its start */
	unsigned run;	/* pages a run; between two runs one page is not named */
	bool advice;	/* RAM has advice that each new mapping gets again (R8) */
};

static void fill_window(const struct kind *k)
{
	madvise(rig.ram, WINDOW_BYTES, MADV_DONTNEED);
	for (size_t p = 0; p < WINDOW_PAGES; p++)
		rig_fill(&rig, p, p < k->pages ? p + 1 : p + 100000);
	rig.count = 0;
	for (unsigned p = 0; p + k->run <= k->pages; p += k->run + (k->run < WINDOW_PAGES))
		rig_run(&rig, p, k->run, p);
}

static uint64_t compare_ns(void)
{
	uint64_t start = clock_mono_ns();
	volatile int differ = memcmp(rig.ram, rig.store.map, WINDOW_BYTES);

	(void)differ;
	return clock_mono_ns() - start;
}

static int by_value(const void *a, const void *b)
{
	const uint64_t *x = a, *y = b;

	return (*x > *y) - (*x < *y);
}

static void measure(const struct kind *k)
{
	static uint64_t total[ROUNDS], compare[ROUNDS], step[EXCHANGE_STEPS][ROUNDS];
	static const char *const names[] = { "register", "move", "compare", "map", "back", "unregister", "wake", "drop" };
	const struct exchange_counters *c;
	struct exchange_counters before;
	unsigned runs = 0, merged = 0;

	rig_new(&rig, (struct rig_how){ .huge = k->huge, .dontfork = k->advice, .dontdump = k->advice });
	rig.opt.min_pages_huge = 1;
	c = exchange_counters(rig.x);
	for (unsigned i = 0; i < ROUNDS; i++) {
		uint64_t start;

		exchange_lock(rig.x);
		exchange_make_anonymous(rig.x, rig.ram, WINDOW_BYTES);
		exchange_unlock(rig.x);
		fill_window(k);
		runs = (unsigned)rig.count;
		compare[i] = compare_ns();
		before = *c;
		start = clock_mono_ns();
		unit_must(rig_merge(&rig, 0) == 0, "merge");
		total[i] = clock_mono_ns() - start;
		merged = (unsigned)(c->merged_pages - before.merged_pages);
		for (unsigned s = STEP_REGISTER; s <= STEP_DROP; s++)
			step[s][i] = c->step_ns[s] - before.step_ns[s];
	}
	qsort(total, ROUNDS, sizeof(*total), by_value);
	qsort(compare, ROUNDS, sizeof(*compare), by_value);
	printf("%-22s runs %3u merged %3u total %6.1f us, memcmp of 2 MiB %6.1f us, ratio %.2f;", k->name, runs, merged,
	       (double)total[ROUNDS / 2] / 1e3, (double)compare[ROUNDS / 2] / 1e3,
	       (double)total[ROUNDS / 2] / (double)compare[ROUNDS / 2]);
	for (unsigned s = STEP_REGISTER; s <= STEP_DROP; s++) {
		qsort(step[s], ROUNDS, sizeof(**step), by_value);
		printf(" %s %.1f", names[s - 1], (double)step[s][ROUNDS / 2] / 1e3);
	}
	printf("\n");
	rig_free(&rig);
}

int main(void)
{
	static const struct kind kinds[] = {
		{ "huge, full", true, 512, 512, false },
		{ "huge, half", true, 256, 256, false },
		{ "huge, 64 pages", true, 64, 64, false },
		{ "huge, 1 page", true, 1, 1, false },
		{ "huge, runs of 8", true, 512, 8, false },
		{ "same, with advice", true, 512, 8, true },
		{ "4K, full", false, 512, 512, false },
		{ "4K, half", false, 256, 256, false },
		{ "4K, runs of 8", false, 512, 8, false },
		{ "same, with advice", false, 512, 8, true },
		{ "4K, runs of 1", false, 512, 1, false },
	};
	const char *why = "a userfaultfd cannot be opened";
	int fd = uffd_open();

	if (fd < 0 || uffd_probe(fd, &why) < 0) {
		printf("skip: exchange-cost: %s\n", why);
		return 77;
	}
	close(fd);
	for (size_t i = 0; i < ARRAY_SIZE(kinds); i++)
		measure(&kinds[i]);
	return 0;
}
