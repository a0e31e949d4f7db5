#include "ept/processes.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/cleanup.h"
#include "ept/frame.h"
#include "ept/roots.h"
#include "ept/target.h"

/* Of each VM a sixteenth of its pages may be tables and be copied, and of a large one 1 GiB: tables for 512 GiB of small
 * pages. A VM of any size has some for its kernel. */
#define TABLES_SHARE 16u
#define TABLES_MIN 1024u
#define TABLES_MAX (1u << 18)
/* An address space may map the VM eight times over, and all together sixty-four times; see composite_each(). */
#define SPACE_SHARE 8u
#define SPACE_MIN (UINT64_C(1) << 20)
#define ALL_SHARE 64u
#define ALL_MIN (UINT64_C(1) << 26)

#define KPTI_USER PAGE_BYTES /* in CR3: the user's top table follows the kernel's */
#define READ_PAGES 64u

struct run {
	struct processes *p;
	const struct ept_target *t;
	struct attribute_pages pages;
	enum walk_mode mode;
	size_t space_cap;
};

uint64_t processes_work(const struct ept_target *t)
{
	return 2 * ram_pages(t);
}

size_t processes_tables_max(const struct ept_target *t)
{
	uint64_t max = ram_pages(t) / TABLES_SHARE + TABLES_MIN;

	return max < TABLES_MAX ? (size_t)max : TABLES_MAX;
}

/* A walk_read_fn that asks what is known of the page first: a hostile guest has tables in absent pages by the million, and
 * ept_target_read() looks up the mapping of each. */
static int table_read(void *userdata, uint64_t gpa, void *buf, size_t n)
{
	const struct run *run = userdata;
	const struct ept_slot *slot = ept_target_slot(run->t, gpa);
	uint64_t index, count, entry;
	int r;

	if (!slot || ram_locate((void *)run->t, gpa, &index, &count) < 0)
		return -ENXIO;
	if (slot->backing == MEM_ANON && (run->pages.pages[index] & (ATTRIBUTE_PRESENT | ATTRIBUTE_SWAPPED | ATTRIBUTE_MERGED)) == 0) {
		r = frame_entry(run->t->pagemap_fd, slot->hva + (gpa - slot->gpa), &entry);
		if (r < 0)
			return r;
		if (!(entry & (FRAME_ENTRY_PRESENT | FRAME_ENTRY_SWAPPED))) {
			memset(buf, 0, n);
			return 0;
		}
	}
	return ept_target_read((void *)run->t, gpa, buf, n);
}

/* ---- which address spaces ---- */

/* 0; -ENOMEM. One that is there already is seen more often. */
static int space_add(struct run *run, uint64_t root, unsigned seen)
{
	struct processes *p = run->p;

	for (size_t i = 0; i < p->space_count; i++) {
		if (p->spaces[i].root == root) {
			p->spaces[i].seen += seen;
			return 0;
		}
	}
	if (p->space_count == PROCESSES_MAX) {
		p->more = true;
		return 0;
	}
	if (p->space_count == run->space_cap) {
		size_t cap = run->space_cap ? 2 * run->space_cap : 16;
		struct processes_space *spaces = reallocarray(p->spaces, cap, sizeof(*spaces));

		if (!spaces)
			return -ENOMEM;
		p->spaces = spaces;
		run->space_cap = cap;
	}
	p->spaces[p->space_count++] = (struct processes_space){ .root = root, .seen = seen };
	return 0;
}

static bool is_long(const struct run *run)
{
	return run->mode == WALK_4LEVEL || run->mode == WALK_5LEVEL;
}

/* What the CPU in user mode has under KPTI is told by the kernel's top table of the same process. */
static uint64_t kernel_root(struct run *run, uint64_t root)
{
	uint64_t kernel[ROOTS_ENTRIES], user[ROOTS_ENTRIES];

	if (!is_long(run) || !(root & KPTI_USER) || table_read(run, root, user, sizeof(user)) < 0 ||
	    table_read(run, root - KPTI_USER, kernel, sizeof(kernel)) < 0)
		return root;
	return roots_pair(kernel, user) && roots_kernel_entries(kernel) >= roots_kernel_entries(user) ? root - KPTI_USER : root;
}

/* Also gives the top table with most of the kernel in it, what may be none. */
static int spaces_seen(struct run *run, uint64_t *ret_reference)
{
	struct walk_regs regs = run->p->regs;
	unsigned most = 0;
	int r = 0;

	for (size_t i = 0; i < run->p->seen_count && r == 0; i++) {
		uint64_t table[ROOTS_ENTRIES], root;

		regs.cr3 = run->p->seen[i];
		root = kernel_root(run, walk_root(&regs, run->mode));
		r = space_add(run, root, 1);
		if (r == 0 && is_long(run) && table_read(run, root, table, sizeof(table)) == 0 &&
		    roots_kernel_entries(table) > most) {
			most = roots_kernel_entries(table);
			memcpy(ret_reference, table, sizeof(table));
		}
	}
	return r;
}

/* Memory that is present, a few pages of it. What cannot be read is no table. */
static int pages_search(struct run *run, const uint64_t *reference, uint64_t hva, uint64_t count, uint64_t *tables)
{
	ssize_t n = pread(run->t->mem_fd, tables, count * PAGE_BYTES, (off_t)hva);

	for (uint64_t i = 0; n > 0 && i < (uint64_t)n / PAGE_BYTES; i++) {
		const uint64_t *table = tables + i * ROOTS_ENTRIES;
		size_t next = 0;
		uint64_t gpa;
		int r;

		if (!roots_same_kernel(reference, table) || !roots_has_user(table) ||
		    ept_target_gpa(run->t, hva + i * PAGE_BYTES, &next, &gpa) < 0)
			continue;
		r = space_add(run, gpa, 0);
		if (r < 0)
			return r;
	}
	return 0;
}

static bool is_searched(uint64_t page)
{
	return (page & (ATTRIBUTE_PRESENT | ATTRIBUTE_ZERO)) == ATTRIBUTE_PRESENT;
}

static int region_search(struct run *run, const uint64_t *reference, const struct mem_region *region, const uint64_t *pages,
			 uint64_t *tables)
{
	uint64_t total = region->bytes / PAGE_BYTES, n;
	int r = 0;

	for (uint64_t at = 0; at < total && r == 0; at += n) {
		if (run->p->watch.cancel)
			return -ECANCELED;
		for (n = 0; n < READ_PAGES && at + n < total && is_searched(pages[at + n]);)
			n++;
		if (n > 0)
			r = pages_search(run, reference, region->hva + at * PAGE_BYTES, n, tables);
		else
			n = 1;
		run->p->watch.done_pages += n;
	}
	return r;
}

static int spaces_search(struct run *run, const uint64_t *reference)
{
	auto_free uint64_t *tables = malloc(READ_PAGES * (size_t)PAGE_BYTES);
	const uint64_t *pages = run->pages.pages;
	int r = tables ? 0 : -ENOMEM;

	run->p->searched = true;
	for (size_t i = 0; i < run->t->region_count && r == 0; i++) {
		const struct mem_region *region = &run->t->regions[i];

		if (region->backing != MEM_FILE) /* a disk may make a reader wait */
			r = region_search(run, reference, region, pages, tables);
		pages += region->bytes / PAGE_BYTES;
	}
	return r;
}

/* ---- how much ---- */

static int by_resident(const void *a, const void *b)
{
	const struct processes_space *x = a, *y = b;

	if (x->usage.resident != y->usage.resident)
		return x->usage.resident < y->usage.resident ? 1 : -1;
	return x->root < y->root ? -1 : x->root > y->root;
}

static int spaces_count(struct run *run, const struct composite *c)
{
	struct processes *p = run->p;
	uint64_t space_budget = SPACE_SHARE * run->pages.count + SPACE_MIN, all = ALL_SHARE * run->pages.count + ALL_MIN;
	uint64_t kernel_root_of = p->spaces[0].root, budget; /* the first was seen on a CPU: it has the kernel */
	struct attribute *a;
	size_t kept = 0;
	int r = attribute_new(&run->pages, ram_locate, (void *)run->t, &a);

	if (r < 0)
		return r;
	for (size_t i = 0; i < p->space_count && r == 0; i++) {
		struct processes_space *space = &p->spaces[i];
		uint64_t given = budget = all < space_budget ? all : space_budget;

		attribute_user(a, c, space->root, &budget, &space->usage);
		all -= given - budget;
		if (space->usage.mapped > 0 || space->usage.incomplete)
			p->spaces[kept++] = *space;
		r = p->watch.cancel ? -ECANCELED : 0;
	}
	p->space_count = kept;
	budget = space_budget;
	attribute_kernel(a, c, kernel_root_of, &budget, &p->kernel);
	attribute_together(a, &p->together);
	attribute_free(a);
	qsort(p->spaces, p->space_count, sizeof(*p->spaces), by_resident);
	return r;
}

static int spaces_look(struct run *run)
{
	struct processes *p = run->p;
	struct composite *c;
	int r = composite_new(&p->regs, processes_tables_max(run->t), &c);

	if (r < 0)
		return r;
	for (size_t i = 0; i < p->space_count && r == 0; i++)
		r = composite_root_add(c, p->spaces[i].root);
	if (r == 0)
		r = composite_sync(c, table_read, run, &p->watch.cancel, &p->first);
	/* The first took its time; what changed meanwhile is read again, so that all tables are of about one time. */
	if (r == 0)
		r = composite_sync(c, table_read, run, &p->watch.cancel, &p->second);
	if (r == 0)
		r = spaces_count(run, c);
	composite_free(c);
	return r;
}

static int run_all(struct run *run)
{
	uint64_t reference[ROOTS_ENTRIES] = { 0 };
	int r = ram_load(run->t, &run->p->watch, &run->pages);

	if (r < 0)
		return r;
	run->p->home = run->pages.home;
	r = spaces_seen(run, reference);
	if (r == 0 && is_long(run) && roots_kernel_entries(reference) >= ROOTS_KERNEL_MIN)
		r = spaces_search(run, reference);
	if (r == 0)
		r = spaces_look(run);
	free(run->pages.pages);
	return r;
}

int processes_run(struct processes *p)
{
	struct run run = { .p = p, .t = p->target };
	int r = walk_mode_of(&p->regs, &run.mode);

	if (r < 0)
		return r;
	if (run.mode == WALK_FLAT || p->seen_count == 0)
		return -EOPNOTSUPP;
	r = run_all(&run);
	/* What fails then fails in many ways. */
	return r != -ECANCELED && !ept_target_alive(p->target) ? -ESRCH : r;
}
