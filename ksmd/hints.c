#include "ksmd/hints.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>

#include "agent/page_hash.h"
#include "core/snapshot.h"
#include "ksmd/pass_internal.h"

/* A stretch is a bargain: what it costs (its price: two mappings) against what it gives (pages to merge), less what
 * scanning of its gaps costs. In units of 1/64 page to merge:
 *
 * A page in a gap that is there but unique is scanned as long as it stays marked, and KSM remembers it in 64 bytes.
 * An absent one costs the scanner some nanoseconds, as it walks page tables. */
#define COPY 64
#define GAP_PRESENT 128
#define GAP_ABSENT 1

#define BLOCK_PAGES 512
#define BLOCK_BYTES ((uint64_t)BLOCK_PAGES * PAGE_BYTES)

struct vm_plan {
	uint64_t *copies; /* a bit for each page: to be merged; NULL when there are none, and after planning */
	uint64_t pages;
	struct agent_hint *hints;
	size_t count;
};

struct hints {
	struct hints_limits limits;
	size_t vm_count;
	struct hints_totals totals;
	size_t bits_bytes, hints_bytes, join_bytes;
	struct vm_plan vms[];
};

/* ---- pages to merge ---- */

static bool bit_get(const uint64_t *bits, uint64_t i)
{
	return bits[i / 64] >> i % 64 & 1;
}

static void bit_set(uint64_t *bits, uint64_t i)
{
	bits[i / 64] |= UINT64_C(1) << i % 64;
}

static void on_group(uint64_t hash, const struct join_ref *refs, size_t count, void *userdata)
{
	struct hints *h = userdata;

	(void)hash;
	for (size_t i = 0; i < count; i++)
		bit_set(h->vms[refs[i].owner].copies, refs[i].page);
}

static int join(struct hints *h, const struct join_input *inputs, size_t count, join_group_fn group)
{
	size_t peak = 0;
	int r = join_run(inputs, count, group, h, &peak);

	peak += count * sizeof(*inputs);
	if (peak > h->join_bytes)
		h->join_bytes = peak;
	return r;
}

/* Duplicates from a join over everything, zero pages (which it passes over) from the hashes. */
static int copies_find(struct hints *h, const struct hints_vm *vms)
{
	struct join_input *inputs;
	size_t count = 0;
	int r;

	for (size_t i = 0; i < h->vm_count; i++)
		count += page_table_joins(vms[i].table, (uint32_t)i, NULL);
	inputs = calloc(count + 1, sizeof(*inputs));
	if (!inputs)
		return -ENOMEM;
	count = 0;
	for (size_t i = 0; i < h->vm_count; i++)
		count += page_table_joins(vms[i].table, (uint32_t)i, inputs + count);
	r = join(h, inputs, count, on_group);
	for (size_t i = 0; i < count && r == 0; i++)
		for (uint64_t page = 0; page < inputs[i].pages; page++)
			if (inputs[i].hashes[page] == PAGE_HASH_ZERO)
				bit_set(h->vms[inputs[i].owner].copies, inputs[i].first_page + page);
	free(inputs);
	return r;
}

/* A huge page that would give too little stays huge: a page table does not tell which are, so where there are some,
 * all whole blocks count as such. first: number of the target's first page. */
static void blocks_clear(struct hints *h, struct vm_plan *vm, const struct scan_target *t, uint64_t first)
{
	uint64_t page = (BLOCK_BYTES - t->hva % BLOCK_BYTES) % BLOCK_BYTES / PAGE_BYTES;

	for (; t->huge_pages > 0 && page + BLOCK_PAGES <= t->pages; page += BLOCK_PAGES) {
		uint32_t copies = 0;

		if (!t->used[page / SCAN_CHUNK_PAGES] && !t->used[(page + BLOCK_PAGES - 1) / SCAN_CHUNK_PAGES])
			continue;
		for (uint64_t i = 0; i < BLOCK_PAGES; i++)
			copies += bit_get(vm->copies, first + page + i);
		if (copies >= h->limits.block_min)
			continue;
		h->totals.left += copies;
		for (uint64_t i = 0; i < BLOCK_PAGES && copies > 0; i++)
			vm->copies[(first + page + i) / 64] &= ~(UINT64_C(1) << (first + page + i) % 64);
	}
}

/* ---- choosing stretches ---- */

/* Goes over the pages once and finds the stretches whose gain, summed up and each less the price, is the highest
 * possible. Runs of pages to merge come in order, each with the cost of the gap before it. A candidate begins with a
 * run where the score was nothing. Once it has reached the price it is sure to pay, and ends with the best run so far as
 * soon as gaps have eaten a whole price since: going on is then never better than beginning anew. */
struct chooser {
	uint64_t hva; /* of page 0 */
	int64_t price;
	int64_t score, peak, gap;
	uint64_t start, end; /* of the candidate; end: at its peak */
	bool sure;
	struct agent_hint *hints; /* NULL: only counts */
	size_t count, most;
};

static void chooser_take(struct chooser *c)
{
	if (c->sure && c->hints)
		c->hints[c->count] = (struct agent_hint){ .hva = c->hva + c->start * PAGE_BYTES,
							  .pages = (uint32_t)(c->end - c->start) };
	c->count += c->sure;
	c->sure = false;
	c->score = 0;
}

static void chooser_run(struct chooser *c, uint64_t start, uint64_t end)
{
	c->score -= c->gap;
	c->gap = 0;
	if (c->sure && c->peak - c->score >= c->price)
		chooser_take(c);
	if (!c->sure && c->score <= 0) {
		c->score = 0;
		c->start = start;
	}
	c->score += (int64_t)(end - start) * COPY;
	if (c->sure ? c->score > c->peak : c->score >= c->price) {
		c->sure = true;
		c->peak = c->score;
		c->end = end;
	}
}

static void target_choose(const struct vm_plan *vm, const struct scan_target *t, uint64_t first, struct chooser *c)
{
	uint64_t run = 0; /* its length */

	c->hva = t->hva;
	c->score = c->gap = 0;
	for (uint64_t page = 0; page < t->pages && c->count <= c->most; page++) {
		if (page % SCAN_CHUNK_PAGES == 0 && !t->used[page / SCAN_CHUNK_PAGES]) {
			if (run > 0)
				chooser_run(c, page - run, page);
			run = 0;
			c->gap += SCAN_CHUNK_PAGES * GAP_ABSENT;
			page += SCAN_CHUNK_PAGES - 1;
			continue;
		}
		if (bit_get(vm->copies, first + page)) {
			run++;
			continue;
		}
		if (run > 0)
			chooser_run(c, page - run, page);
		run = 0;
		c->gap += t->hashes[page] == PAGE_HASH_NONE ? GAP_ABSENT : GAP_PRESENT;
	}
	if (run > 0)
		chooser_run(c, t->pages - run, t->pages);
	chooser_take(c);
}

/* How many stretches there are at this price; more than most: at least one too many. */
static size_t vm_choose(const struct vm_plan *vm, const struct page_table *table, int64_t price, size_t most,
			struct agent_hint *hints)
{
	struct chooser c = { .price = price, .hints = hints, .most = most };
	uint64_t first = 0;

	for (size_t k = 0; k < table->target_count && c.count <= most; k++) {
		target_choose(vm, &table->targets[k], first, &c);
		first += table->targets[k].pages;
	}
	return c.count;
}

/* The lowest price (to a sixteenth) at which there are no more stretches than may be. It goes up until the longest
 * stretch cannot pay it. */
static int64_t vm_price(const struct hints *h, const struct vm_plan *vm, const struct page_table *table, size_t most)
{
	int64_t low = (int64_t)(h->limits.stretch_min > 0 ? h->limits.stretch_min : 1) * COPY, high = low;

	if (vm_choose(vm, table, low, most, NULL) <= most)
		return low;
	do {
		low = high;
		high *= 2;
	} while (vm_choose(vm, table, high, most, NULL) > most);
	while (high - low > low / 16) {
		int64_t middle = low + (high - low) / 2;

		if (vm_choose(vm, table, middle, most, NULL) > most)
			low = middle;
		else
			high = middle;
	}
	return high;
}

static int vm_plan(struct hints *h, size_t i, const struct hints_vm *input)
{
	struct vm_plan *vm = &h->vms[i];
	size_t most = input->mappings_left / 2;
	uint64_t first = 0;
	int64_t price;

	for (size_t k = 0; k < input->table->target_count; k++) {
		blocks_clear(h, vm, &input->table->targets[k], first);
		first += input->table->targets[k].pages;
	}
	for (uint64_t word = 0; word < (vm->pages + 63) / 64; word++)
		h->totals.copies += (unsigned)__builtin_popcountll(vm->copies[word]);
	if (most == 0)
		return 0;
	price = vm_price(h, vm, input->table, most);
	vm->count = vm_choose(vm, input->table, price, SIZE_MAX - 1, NULL);
	vm->hints = calloc(vm->count + 1, sizeof(*vm->hints));
	if (!vm->hints)
		return -ENOMEM;
	vm_choose(vm, input->table, price, SIZE_MAX - 1, vm->hints);
	h->hints_bytes += (vm->count + 1) * sizeof(*vm->hints);
	return 0;
}

/* ---- what is to be gained ---- */

static void on_marked_group(uint64_t hash, const struct join_ref *refs, size_t count, void *userdata)
{
	struct hints *h = userdata;

	(void)hash;
	(void)refs;
	h->totals.saved += count - 1;
}

/* The stretches of one VM as inputs of a join; the pages of each lie in one target. */
static void vm_joins(struct hints *h, size_t i, const struct page_table *table, struct join_input *inputs)
{
	const struct vm_plan *vm = &h->vms[i];
	const struct scan_target *t = table->targets;
	uint64_t first = 0, copies = 0;

	for (size_t n = 0; n < vm->count; n++) {
		const struct agent_hint *hint = &vm->hints[n];
		uint64_t page;

		while (hint->hva < t->hva || hint->hva - t->hva >= t->pages * PAGE_BYTES)
			first += t++->pages;
		page = (hint->hva - t->hva) / PAGE_BYTES;
		inputs[n] = (struct join_input){ (uint32_t)i, t->hashes + page, hint->pages, first + page };
		for (uint64_t k = 0; k < hint->pages; k++) {
			copies += bit_get(vm->copies, first + page + k);
			h->totals.saved_zero += t->hashes[page + k] == PAGE_HASH_ZERO;
		}
		h->totals.pages += hint->pages;
	}
	h->totals.stretches += vm->count;
	h->totals.left -= copies; /* all were counted as left */
	h->totals.copies += copies;
}

/* Copies of which only one was marked save nothing: the marked pages are joined once more. */
static int gain_count(struct hints *h, const struct hints_vm *vms)
{
	struct hints_totals *t = &h->totals;
	struct join_input *inputs;
	size_t count = 0;
	int r;

	t->left += t->copies;
	t->copies = 0;
	for (size_t i = 0; i < h->vm_count; i++)
		count += h->vms[i].count;
	inputs = calloc(count + 1, sizeof(*inputs));
	if (!inputs)
		return -ENOMEM;
	count = 0;
	for (size_t i = 0; i < h->vm_count; i++) {
		vm_joins(h, i, vms[i].table, inputs + count);
		count += h->vms[i].count;
	}
	r = join(h, inputs, count, on_marked_group);
	t->saved += t->saved_zero;
	free(inputs);
	return r;
}

/* ---- all ---- */

static int bits_make(struct hints *h, const struct hints_vm *vms)
{
	for (size_t i = 0; i < h->vm_count; i++) {
		const struct page_table *table = vms[i].table;
		struct vm_plan *vm = &h->vms[i];

		for (size_t k = 0; k < table->target_count; k++) {
			if (table->targets[k].pages > UINT32_MAX)
				return -E2BIG;
			vm->pages += table->targets[k].pages;
		}
		vm->copies = calloc(vm->pages / 64 + 1, sizeof(*vm->copies));
		if (!vm->copies)
			return -ENOMEM;
		h->bits_bytes += (vm->pages / 64 + 1) * sizeof(*vm->copies);
	}
	return 0;
}

int hints_plan(const struct hints_vm *vms, size_t count, const struct hints_limits *limits, struct hints **ret_hints)
{
	struct hints *h;
	int r;

	if (count > JOIN_OWNERS_MAX)
		return -EINVAL;
	h = calloc(1, sizeof(*h) + count * sizeof(h->vms[0]));
	if (!h)
		return -ENOMEM;
	h->vm_count = count;
	h->limits = limits ? *limits : HINTS_LIMITS_DEFAULT;
	r = bits_make(h, vms);
	if (r == 0)
		r = copies_find(h, vms);
	for (size_t i = 0; i < count && r == 0; i++)
		r = vm_plan(h, i, &vms[i]);
	if (r == 0)
		r = gain_count(h, vms);
	for (size_t i = 0; i < count; i++) {
		free(h->vms[i].copies);
		h->vms[i].copies = NULL;
	}
	if (r < 0) {
		hints_free(h);
		return r;
	}
	*ret_hints = h;
	return 0;
}

struct hints *hints_free(struct hints *h)
{
	for (size_t i = 0; h && i < h->vm_count; i++) {
		free(h->vms[i].copies);
		free(h->vms[i].hints);
	}
	free(h);
	return NULL;
}

const struct agent_hint *hints_of(const struct hints *h, size_t vm, size_t *ret_count)
{
	*ret_count = h->vms[vm].count;
	return h->vms[vm].hints;
}

void hints_count(const struct hints *h, struct hints_totals *ret_totals)
{
	*ret_totals = h->totals;
}

size_t hints_bytes(const struct hints *h)
{
	return sizeof(*h) + h->vm_count * sizeof(h->vms[0]) + h->bits_bytes + h->hints_bytes + h->join_bytes;
}
