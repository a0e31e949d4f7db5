#include "bench/lib/walk_trace.h"

#include <errno.h>
#include <stdlib.h>

#include "bench/lib/sim_random.h"
#include "core/cleanup.h"
#include "core/snapshot.h"

/* Accesses until another process runs. At one access in some nanoseconds: some tens of microseconds, as where processes
 * wait for each other; those that compute run for longer. */
#define SWITCH_ACCESSES 10000u
#define SWEEP_ACCESSES 16u
/* Of accesses to pages that the guest has marked dirty. */
#define WRITES_IN_TEN 3u

const char *const trace_order_names[TRACE_ORDERS] = { "sweep", "skewed", "random" };

struct trace {
	const struct trace_run *run;
	uint8_t *host_huge; /* by 2 MiB of guest-physical memory */
	uint64_t blocks;
	uint64_t random;
};

void trace_options_usual(struct walk_sim_options *ret_options)
{
	*ret_options = (struct walk_sim_options){ .tlb_entries = 1536, .tlb_ways = 12, .walk_cache = { 0, 0, 32, 4, 2 },
						  .nested_tlb_entries = 16, .caches = true };
}

static int trace_read(void *userdata, uint64_t gpa, void *buf, size_t n)
{
	return guest_ram_read((void *)(uintptr_t)((struct trace *)userdata)->run->ram, gpa, buf, n);
}

static unsigned trace_host_level(void *userdata, uint64_t gpa)
{
	const struct trace *t = userdata;
	uint64_t block = gpa / (HUGE_PAGES * PAGE_BYTES);

	return t->run->host == TRACE_HOST_CAPTURED && block < t->blocks && t->host_huge[block] ? 2 : 1;
}

static int huge_blocks_find(struct trace *t)
{
	const struct page_runs *huge = t->run->ram->huge;

	t->blocks = t->run->ram->size / (HUGE_PAGES * PAGE_BYTES);
	t->host_huge = calloc(t->blocks + 1, 1);
	if (!t->host_huge)
		return -ENOMEM;
	for (size_t i = 0; i < huge->count; i++) {
		uint64_t first = (huge->run[i].first + HUGE_PAGES - 1) / HUGE_PAGES;
		uint64_t end = (huge->run[i].first + huge->run[i].count) / HUGE_PAGES;

		for (uint64_t block = first; block < end && block < t->blocks; block++)
			t->host_huge[block] = 1;
	}
	return 0;
}

/* The hot pages are spread over the space. */
static size_t skewed_page(uint64_t *random, size_t count)
{
	size_t among = count;

	while (among > 1 && sim_random(random) % 5 != 0)
		among = (among + 4) / 5;
	return (size_t)((sim_random(random) % among * UINT64_C(2654435761)) % count);
}

static size_t page_choose(struct trace *t, const struct guest_space *s, uint64_t nth)
{
	switch (t->run->order) {
	case TRACE_SWEEP:
		return (size_t)(nth / SWEEP_ACCESSES % s->page_count);
	case TRACE_SKEWED:
		return skewed_page(&t->random, s->page_count);
	default:
		return (size_t)(sim_random(&t->random) % s->page_count);
	}
}

static int access_one(struct trace *t, struct walk_sim *sim, const struct guest_space *s, uint64_t nth)
{
	const struct guest_page *page = &s->pages[page_choose(t, s, nth)];
	uint64_t bytes = walk_level_bytes(WALK_4LEVEL, page->level), within = sim_random(&t->random) % bytes & ~UINT64_C(7);
	bool write = page->dirty && sim_random(&t->random) % 10 < WRITES_IN_TEN;
	int r;

	if (t->run->order == TRACE_SWEEP)
		within = nth % SWEEP_ACCESSES * (bytes / SWEEP_ACCESSES);
	r = walk_sim_access(sim, page->gva + within, write);
	return r == -EFAULT ? 0 : r; /* a large page may reach out of the RAM */
}

static void counts_add(struct walk_sim_counts *to, const struct walk_sim_counts *c)
{
	to->accesses += c->accesses;
	to->tlb_misses += c->tlb_misses;
	to->references += c->references;
	to->violations += c->violations;
	to->guest_faults += c->guest_faults;
	to->table_writes += c->table_writes;
	to->hidden_faults += c->hidden_faults;
	to->switches += c->switches;
}

int trace_run(const struct trace_run *run, struct walk_sim_counts *counts)
{
	struct trace t = { .run = run, .random = 7 };
	uint64_t *nth = calloc(run->space_count + 1, sizeof(*nth)); /* accesses that each space has made */
	struct walk_sim *sim = NULL;
	int r = nth ? huge_blocks_find(&t) : -ENOMEM;

	if (r == 0)
		r = walk_sim_new(&run->options, trace_read, trace_host_level, &t, &sim);
	for (uint64_t i = 0; i < run->accesses && r == 0; i++) {
		size_t space = (size_t)(i / SWITCH_ACCESSES % run->space_count);

		if (i % SWITCH_ACCESSES == 0)
			walk_sim_switch(sim, (unsigned)space + 1, &run->spaces[space].regs);
		r = access_one(&t, sim, &run->spaces[space], nth[space]++);
	}
	if (r == 0)
		counts_add(counts, walk_sim_counts(sim));
	walk_sim_free(sim);
	free(t.host_huge);
	free(nth);
	return r;
}
