/* exchange-cost - what the exchange of one full window costs, step by step, beside the byte compare alone;
 * and the way back (folding), for which a page in eight was written to. */
#include "tests/unit/exchange_rig.h"

#include "agent/freezer.h"
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

/* By a freezer of our own; the window is merged. Returns the time, and the longest that a stretch was frozen. */
static uint64_t fold_ns(struct freezer *freezer, uint64_t *ret_frozen)
{
	const struct exchange_counters *c = exchange_counters(rig.x);
	uint64_t start, before = c->fold_stall_ns, folds = c->folds;
	struct exchange_fold result;

	for (size_t p = 0; p < WINDOW_PAGES; p += 8)
		(*(volatile uint8_t *)rig_page(&rig, p))++;
	exchange_use_freezer(rig.x, freezer);
	start = clock_mono_ns();
	unit_must(exchange_fold(rig.x, (uint64_t)(uintptr_t)rig.ram, false, &result) == 0 && result.kept == 0, "fold");
	start = clock_mono_ns() - start;
	*ret_frozen = (c->fold_stall_ns - before) / (c->folds - folds);
	return start;
}

static void measure(const struct kind *k)
{
	static uint64_t fold[ROUNDS], frozen[ROUNDS];
	struct freezer *freezer = NULL;
	static uint64_t total[ROUNDS], compare[ROUNDS], step[EXCHANGE_STEPS][ROUNDS];
	static const char *const names[] = { "register", "move", "compare", "map", "back", "unregister", "wake", "drop" };
	const struct exchange_counters *c;
	struct exchange_counters before;
	unsigned runs = 0, merged = 0;

	rig_new(&rig, (struct rig_how){ .huge = k->huge, .dontfork = k->advice, .dontdump = k->advice });
	rig.opt.min_pages_huge = 1;
	unit_must(freezer_new(uffd_open_freezer(), &freezer) == 0, "freezer");
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
		fold[i] = fold_ns(freezer, &frozen[i]);
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
	qsort(fold, ROUNDS, sizeof(*fold), by_value);
	qsort(frozen, ROUNDS, sizeof(*frozen), by_value);
	printf("; fold total %.1f us, a stretch %.1f\n", (double)fold[ROUNDS / 2] / 1e3,
	       (double)frozen[ROUNDS / 2] / 1e3);
	rig_free(&rig);
	freezer_free(freezer);
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
