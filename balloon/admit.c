#include "balloon/admit.h"

#include <inttypes.h>
#include <stdio.h>

#define MIB (UINT64_C(1) << 20)

/* The VM's size as asked for and as the VMM tells it differ by firmware and video memory. */
#define FIT_SHARE 16

#define TOO_MANY "too many VMs are promised memory already"

static uint64_t less(uint64_t a, uint64_t b)
{
	return a > b ? a - b : 0;
}

static void drop(struct admit *a, size_t i)
{
	a->grants[i] = a->grants[--a->count];
}

static const struct vm_snapshot *vm_of(const struct host_snapshot *s, const struct grant *g)
{
	for (size_t i = 0; g->pid && i < s->vm_count; i++)
		if (s->vms[i].pid == g->pid && s->vms[i].start_ticks == g->start_ticks)
			return &s->vms[i];
	return NULL;
}

static uint64_t resident(const struct vm_snapshot *vm)
{
	return vm->rss_anon_bytes + vm->rss_shmem_bytes;
}

/* What counts as spoken for: all of it until the VM is there, then what it has not taken yet. */
static uint64_t outstanding(const struct host_snapshot *s, const struct grant *g)
{
	const struct vm_snapshot *vm = vm_of(s, g);

	return vm ? less(g->bytes, resident(vm)) : g->bytes;
}

static bool is_taken(const struct admit *a, const struct vm_snapshot *vm)
{
	for (size_t i = 0; i < a->count; i++)
		if (a->grants[i].pid == vm->pid && a->grants[i].start_ticks == vm->start_ticks)
			return true;
	return false;
}

static bool fits(const struct grant *g, const struct vm_snapshot *vm)
{
	uint64_t size = vm->ram_bytes, off = size > g->bytes ? size - g->bytes : g->bytes - size;

	return g->granted && !g->pid && vm->found_ns >= g->asked_ns && off <= g->bytes / FIT_SHARE;
}

static void take(struct admit *a, const struct vm_snapshot *vm)
{
	struct grant *best = NULL;

	for (size_t i = 0; i < a->count; i++)
		if (fits(&a->grants[i], vm) && (!best || a->grants[i].asked_ns < best->asked_ns))
			best = &a->grants[i];
	if (!best)
		return;
	best->pid = vm->pid;
	best->start_ticks = vm->start_ticks;
}

uint64_t admit_tick(struct admit *a, const struct host_snapshot *s)
{
	uint64_t sum = 0;

	for (size_t i = a->count; i-- > 0;)
		if (s->taken_ns >= a->grants[i].until_ns || (a->grants[i].pid && !vm_of(s, &a->grants[i])))
			drop(a, i);
	for (size_t i = 0; a->count && i < s->vm_count; i++)
		if (!is_taken(a, &s->vms[i]))
			take(a, &s->vms[i]);
	for (size_t i = 0; i < a->count; i++)
		sum += outstanding(s, &a->grants[i]);
	return sum;
}

/* Takes the earlier refusal of the same question off the list. */
static void forget_refusal(struct admit *a, const struct admit_question *q)
{
	for (size_t i = 0; i < a->count; i++) {
		if (!a->grants[i].granted && a->grants[i].bytes == q->bytes && a->grants[i].node == q->node) {
			drop(a, i);
			return;
		}
	}
}

static uint64_t promised(const struct admit *a, const struct host_snapshot *s, int node)
{
	uint64_t sum = 0;

	for (size_t i = 0; i < a->count; i++)
		if (node < 0 || a->grants[i].node == node)
			sum += outstanding(s, &a->grants[i]);
	return sum;
}

static bool note(struct admit *a, const struct host_snapshot *s, const struct admit_question *q, bool granted)
{
	if (a->count == ADMIT_GRANTS_MAX)
		return false;
	a->grants[a->count++] = (struct grant){ .bytes = q->bytes, .node = q->node, .asked_ns = s->taken_ns,
						.until_ns = s->taken_ns + q->timeout_ns, .granted = granted };
	return true;
}

/* What VMs are promised makes the host look low as well; that is no need, and no reason to refuse them again. */
static bool is_low(const struct host_snapshot *s, const struct ladder *l)
{
	uint64_t free_bytes = less(s->mem_available_bytes, s->cow_debt_bytes);

	return !ladder_rows[l->state].admit && free_bytes <= l->min_free_bytes / 100 * ladder_rows[l->state].above_percent;
}

static void grant(struct admit *a, const struct host_snapshot *s, const struct admit_question *q, uint64_t keep,
		  struct admit_answer *r)
{
	uint64_t free_bytes = less(s->mem_available_bytes, s->cow_debt_bytes + promised(a, s, -1));

	r->granted = note(a, s, q, true);
	snprintf(r->why, sizeof(r->why),
		 r->granted ? "%" PRIu64 " MiB are free, %" PRIu64 " MiB are to stay so" : TOO_MANY, free_bytes / MIB,
		 keep / MIB);
}

static void postpone(struct admit *a, const struct host_snapshot *s, const struct admit_question *q,
		     struct admit_answer *r)
{
	r->later = note(a, s, q, false);
	snprintf(r->why, sizeof(r->why),
		 r->later ? "short of %" PRIu64 " MiB, which are now taken from VMs that have %" PRIu64
			    " MiB idle: ask again in a few seconds" :
			    TOO_MANY,
		 r->short_bytes / MIB, q->idle_bytes / MIB);
}

void admit_ask(struct admit *a, const struct host_snapshot *s, const struct ladder *l, const struct admit_question *q,
	       struct admit_answer *ret_answer)
{
	struct admit_answer *r = ret_answer;
	/* With it the host is not to be worse than clear. */
	uint64_t keep = l->min_free_bytes / 100 * ladder_rows[HOST_SOFT].below_percent, node_short = 0;

	*r = (struct admit_answer){ 0 };
	forget_refusal(a, q);
	/* In one sum: what was promised beyond what is free is to come from what is idle, and is not idle for others. */
	r->short_bytes = less(q->bytes + keep + s->cow_debt_bytes + promised(a, s, -1), s->mem_available_bytes);
	if (q->node >= 0)
		node_short = less(q->bytes + promised(a, s, q->node), q->node_free_bytes);
	if (is_low(s, l)) {
		snprintf(r->why, sizeof(r->why), "the host is %s: %s", host_state_name(l->state), l->why);
	} else if (node_short) {
		r->short_bytes = node_short;
		snprintf(r->why, sizeof(r->why), "node %d is short of %" PRIu64 " MiB", q->node, node_short / MIB);
	} else if (r->short_bytes == 0) {
		grant(a, s, q, keep, r);
	} else if (r->short_bytes <= q->idle_bytes) {
		postpone(a, s, q, r);
	} else {
		snprintf(r->why, sizeof(r->why), "short of %" PRIu64 " MiB, and VMs have only %" PRIu64 " MiB idle",
			 r->short_bytes / MIB, q->idle_bytes / MIB);
	}
}
