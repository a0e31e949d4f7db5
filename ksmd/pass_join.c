/* What the pages of a pass have in common: equal hashes, group by group, and what merging them would give. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "ksmd/pass_internal.h"
#include "ksmd/stable_index.h"

/* ---- groups of equal pages ---- */

/* The pages of one VM in a group: refs[i .. result). */
static size_t vm_end(const struct join_ref *refs, size_t count, size_t i)
{
	uint32_t vm = refs[i].owner;

	while (i < count && refs[i].owner == vm)
		i++;
	return i;
}

/* Adds what the group would save with the domains as they are: in each domain all copies but one, the
 * frames saved between VMs split evenly among the sharers. */
static void group_mergeable(struct pass *p, const struct join_ref *refs, size_t count)
{
	for (size_t i = 0; i < count; i = vm_end(refs, count, i))
		if (p->domains[refs[i].owner] != PASS_NO_DOMAIN)
			p->sharers[p->domains[refs[i].owner]]++;
	for (size_t i = 0, end; i < count; i = end) {
		uint32_t vm = refs[i].owner, domain = p->domains[vm];

		end = vm_end(refs, count, i);
		if (domain == PASS_NO_DOMAIN)
			continue;
		p->result.vms[vm].counts.mergeable +=
			(double)(end - i - 1) + (double)(p->sharers[domain] - 1) / p->sharers[domain];
	}
	for (size_t i = 0; i < count; i = vm_end(refs, count, i))
		if (p->domains[refs[i].owner] != PASS_NO_DOMAIN)
			p->sharers[p->domains[refs[i].owner]] = 0;
}

static void group_sharing(struct pass *p, const struct join_ref *refs, size_t count)
{
	uint64_t *table = p->result.sharing_pages;
	size_t n = p->count, owners = 0;

	for (size_t i = 0, end; i < count; i = end) {
		size_t a = refs[i].owner;

		end = vm_end(refs, count, i);
		table[a * n + a] += end - i - 1;
		for (size_t k = 0; k < owners; k++) {
			table[a * n + p->owners[k]]++;
			table[p->owners[k] * n + a]++;
		}
		p->owners[owners++] = refs[i].owner;
	}
}

static void on_group(uint64_t hash, const struct join_ref *refs, size_t count, void *userdata)
{
	struct pass *p = userdata;
	double vms = 1;

	for (size_t i = 1; i < count; i++) {
		if (refs[i].owner == refs[i - 1].owner)
			p->result.vms[refs[i].owner].counts.dup_within++;
		else
			vms++;
	}
	for (size_t i = 0; vms > 1 && i < count; i++)
		if (i == 0 || refs[i].owner != refs[i - 1].owner)
			p->result.vms[refs[i].owner].counts.dup_between += (vms - 1) / vms;
	group_mergeable(p, refs, count);
	if (p->result.sharing_pages)
		group_sharing(p, refs, count);
	if (p->options.index && stable_index_samples(hash) && stable_index_put(p->options.index, hash) < 0)
		p->error = -ENOMEM;
}

/* ---- which VMs are compared ---- */

/* Domains by number: VMs of equal name get the number of the first of them. */
void pass_domains_number(struct pass *p)
{
	for (size_t i = 0; i < p->count; i++) {
		const struct page_table *t = p->inputs[i].table;
		size_t first = 0;

		while (strcmp(p->inputs[first].table->domain, t->domain) != 0)
			first++;
		p->domains[i] = t->merge_allowed && t->anonymous && !p->inputs[i].unmergeable ? (uint32_t)first :
												PASS_NO_DOMAIN;
	}
}

static bool same_join(const struct pass *p, size_t i, size_t first)
{
	return p->options.across_domains ||
	       strcmp(p->inputs[i].table->domain, p->inputs[first].table->domain) == 0;
}

/* Joins the VMs that belong together with VM number "first", if it is the first of them. joins has room for the
 * stretches of all VMs. */
static int join_from(struct pass *p, size_t first, struct join_input *joins)
{
	size_t count = 0, peak = 0;
	int r;

	for (size_t i = 0; i < first; i++)
		if (same_join(p, i, first))
			return 0;
	for (size_t i = first; i < p->count; i++)
		if (same_join(p, i, first))
			count += page_table_joins(p->inputs[i].table, (uint32_t)i, joins + count);
	r = join_run(joins, count, on_group, p, &peak);
	if (peak > p->result.metadata_bytes)
		p->result.metadata_bytes = peak;
	return r;
}

/* Whether the join may be spared: the same VMs as in the last one, and too little that has changed since. */
static bool join_holds(const struct pass *p)
{
	uint64_t settled = 0;

	if (p->options.sharing || p->options.join_least_pages == 0)
		return false;
	for (size_t i = 0; i < p->count; i++) {
		const struct page_table *t = p->inputs[i].table;

		if (t->join == 0 || t->join != p->inputs[0].table->join || t->join_tables != p->count ||
		    t->join_unmergeable != p->inputs[i].unmergeable)
			return false;
		for (size_t k = 0; k < t->target_count; k++) {
			settled += t->targets[k].settled_pages;
			if (t->targets[k].gone)
				return false;
		}
	}
	return settled < p->options.join_least_pages;
}

static void join_recall(struct pass *p)
{
	for (size_t i = 0; i < p->count; i++)
		p->result.vms[i].counts = p->inputs[i].table->joined;
}

/* For the passes to come. */
static void join_remember(struct pass *p)
{
	static _Atomic uint64_t joins;
	uint64_t number = ++joins;

	for (size_t i = 0; i < p->count; i++) {
		struct page_table *t = p->inputs[i].table;

		t->join = p->options.across_domains ? 0 : number;
		t->join_tables = p->count;
		t->join_unmergeable = p->inputs[i].unmergeable;
		t->joined = p->result.vms[i].counts;
		for (size_t k = 0; k < t->target_count; k++)
			t->targets[k].settled_pages = 0;
	}
}

int pass_join(struct pass *p)
{
	struct join_input *joins;
	size_t stretches = 0;
	int r = 0;

	if (join_holds(p)) {
		join_recall(p);
		return 0;
	}
	p->result.joined = true;
	for (size_t i = 0; i < p->count; i++)
		stretches += page_table_joins(p->inputs[i].table, (uint32_t)i, NULL);
	joins = calloc(stretches + 1, sizeof(*joins));
	if (!joins)
		return -ENOMEM;
	if (p->options.index)
		stable_index_refresh_begin(p->options.index);
	for (size_t i = 0; i < p->count && r == 0; i++)
		r = join_from(p, i, joins);
	if (p->options.index)
		stable_index_refresh_end(p->options.index);
	free(joins);
	r = r < 0 ? r : p->error;
	if (r == 0)
		join_remember(p);
	return r;
}
