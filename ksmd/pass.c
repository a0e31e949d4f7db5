#include "ksmd/pass.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include <urcu.h>

#include "core/clock.h"
#include "ksmd/join.h"
#include "ksmd/pass_internal.h"
#include "ksmd/stable_index.h"

#define NO_DOMAIN UINT32_MAX /* nothing of this VM may be merged */

struct pass {
	struct pass_options options;
	struct pass_input *inputs; /* tables referenced */
	size_t count;
	uint32_t *domains; /* per input: number of its domain, NO_DOMAIN */
	uint32_t *owners;  /* of one group: scratch of group_sharing() */
	uint32_t *sharers; /* per domain: scratch of group_mergeable(), zero between calls */
	struct scan_progress progress;
	struct pass_result result;
	int error; /* of the index while groups come in */
	pthread_t thread;
	bool joined;
	int done_fd;
};

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
		if (p->domains[refs[i].owner] != NO_DOMAIN)
			p->sharers[p->domains[refs[i].owner]]++;
	for (size_t i = 0, end; i < count; i = end) {
		uint32_t vm = refs[i].owner, domain = p->domains[vm];

		end = vm_end(refs, count, i);
		if (domain == NO_DOMAIN)
			continue;
		p->result.vms[vm].counts.mergeable +=
			(double)(end - i - 1) + (double)(p->sharers[domain] - 1) / p->sharers[domain];
	}
	for (size_t i = 0; i < count; i = vm_end(refs, count, i))
		if (p->domains[refs[i].owner] != NO_DOMAIN)
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

/* ---- steps ---- */

/* Domains by number: VMs of equal name get the number of the first of them. */
static void domains_number(struct pass *p)
{
	for (size_t i = 0; i < p->count; i++) {
		const struct page_table *t = p->inputs[i].table;
		size_t first = 0;

		while (strcmp(p->inputs[first].table->domain, t->domain) != 0)
			first++;
		p->domains[i] = t->merge_allowed && t->anonymous && !p->inputs[i].unmergeable ? (uint32_t)first :
												NO_DOMAIN;
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

static int join_step(struct pass *p)
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

/* The agent, if it can be asked about all of the table. */
static struct agent_peer *input_peer(const struct pass_input *input)
{
	const struct page_table *t = input->table;

	for (size_t k = 0; k < t->target_count && input->peer; k++) {
		bool tracked = false;

		if (!scan_peer_covers(input->peer, &t->targets[k], &tracked))
			return NULL;
		t->targets[k].tracked = tracked && t->anonymous && t->targets[k].track;
	}
	return input->peer;
}

/* A look that is spared is made up for then, whatever the counters say. */
#define SPARED_LOOKS 16

/* Whether a look would find too little to be worth a join: all that waits to settle, has settled since the last one, or can
 * have been written since the last look. */
static bool look_is_spared(const struct pass *p, const struct pass_input *input)
{
	struct page_table *t = input->table;
	struct activity now;
	uint64_t pages;

	if (!input_peer(input) || t->join == 0 || activity_read(t->stat_fd, &now) < 0)
		return false;
	pages = activity_pages(&t->active, &now);
	for (size_t k = 0; k < t->target_count; k++) {
		const struct scan_target *target = &t->targets[k];

		if (!target->tracked || target->watched || target->gone)
			pages = UINT64_MAX / 2;
		pages += target->settled_pages + target->unsettled_pages;
	}
	if (!t->disturbed && pages < p->options.join_least_pages && t->spared < SPARED_LOOKS) {
		t->spared++;
		return true;
	}
	t->active = now; /* read before the look: what comes meanwhile counts for the next */
	t->disturbed = false;
	t->spared = 0;
	return false;
}

/* The targets of the tables that are due lie in one array for the scan, and go back afterwards. */
static int scan_step(struct pass *p)
{
	struct scan_target *targets;
	size_t count = 0;
	uint64_t cpu_ns = 0, start = clock_mono_ns();
	int r;

	for (size_t i = 0; i < p->count; i++) {
		p->inputs[i].rescan = p->inputs[i].rescan && !look_is_spared(p, &p->inputs[i]);
		count += p->inputs[i].rescan ? p->inputs[i].table->target_count : 0;
	}
	targets = calloc(count ? count : 1, sizeof(*targets));
	if (!targets)
		return -ENOMEM;
	count = 0;
	for (size_t i = 0; i < p->count; i++) {
		const struct page_table *t = p->inputs[i].table;
		struct agent_peer *peer = input_peer(&p->inputs[i]);

		for (size_t k = 0; k < t->target_count && p->inputs[i].rescan; k++) {
			memcpy(&targets[count], &t->targets[k], sizeof(*targets));
			targets[count].peer = peer;
			targets[count].tracked = peer && t->targets[k].tracked;
			targets[count++].early = p->inputs[i].early;
		}
	}
	r = scan_run(targets, count, &p->options.limits, p->options.index, &p->progress, &cpu_ns);
	for (size_t i = 0, from = 0; i < p->count; i++) {
		struct page_table *t = p->inputs[i].table;

		for (size_t k = 0; k < t->target_count && p->inputs[i].rescan; k++, from++) {
			p->result.scanned_pages += targets[from].hashed_pages;
			p->inputs[i].peer_broken |= targets[from].peer_broken;
			memcpy(&t->targets[k], &targets[from], sizeof(*targets));
			t->targets[k].peer = NULL; /* not its any more */
		}
	}
	free(targets);
	p->result.cpu_seconds += (double)cpu_ns / (double)NSEC_PER_SEC;
	p->result.scan_seconds = (double)(clock_mono_ns() - start) / (double)NSEC_PER_SEC;
	return r;
}

static int result_begin(struct pass *p)
{
	struct pass_result *res = &p->result;

	res->vms = calloc(p->count ? p->count : 1, sizeof(*res->vms));
	if (!res->vms)
		return -ENOMEM;
	res->vm_count = p->count;
	for (size_t i = 0; i < p->count; i++) {
		const struct page_table *t = p->inputs[i].table;
		struct pass_vm *vm = &res->vms[i];

		vm->pid = t->pid;
		vm->start_ticks = t->start_ticks;
		vm->name = strdup(t->name);
		vm->uuid = strdup(t->uuid);
		vm->domain = strdup(t->domain);
		if (!vm->name || !vm->uuid || !vm->domain)
			return -ENOMEM;
	}
	if (p->options.sharing) {
		res->sharing_pages = calloc(p->count * p->count + 1, sizeof(*res->sharing_pages));
		if (!res->sharing_pages)
			return -ENOMEM;
	}
	return 0;
}

static void vm_finish(struct pass *p, size_t i)
{
	const struct page_table *t = p->inputs[i].table;
	struct pass_vm *vm = &p->result.vms[i];
	struct pass_counts *c = &vm->counts, *total = &p->result.total;
	uint64_t started_ns = 0, ended_ns = 0;

	for (size_t k = 0; k < t->target_count; k++) {
		const struct scan_target *target = &t->targets[k];

		c->present += target->present_pages;
		c->zero += target->zero_pages;
		c->zero_mapped += target->zero_mapped_pages;
		c->swapped += target->swapped_pages;
		c->huge += target->huge_pages;
		vm->gone |= target->gone;
		vm->cpu_seconds += (double)target->cpu_ns / (double)NSEC_PER_SEC;
		if (target->started_ns && (!started_ns || target->started_ns < started_ns))
			started_ns = target->started_ns;
		if (target->ended_ns > ended_ns)
			ended_ns = target->ended_ns;
	}
	vm->seconds = (double)(ended_ns - started_ns) / (double)NSEC_PER_SEC;
	if (p->domains[i] != NO_DOMAIN)
		c->mergeable += (double)c->zero;
	if (vm->gone)
		memset(c, 0, sizeof(*c));
	total->present += c->present;
	total->zero += c->zero;
	total->dup_within += c->dup_within;
	total->dup_between += c->dup_between;
	total->mergeable += c->mergeable;
	total->zero_mapped += c->zero_mapped;
	total->swapped += c->swapped;
	total->huge += c->huge;
}

/* VMs that ended during the scan take no part in the join. */
static void gone_forget(struct pass *p)
{
	for (size_t i = 0; i < p->count; i++) {
		struct page_table *t = p->inputs[i].table;
		bool gone = false;

		for (size_t k = 0; k < t->target_count; k++)
			gone |= t->targets[k].gone;
		for (size_t k = 0; k < t->target_count && gone; k++) {
			t->targets[k].gone = true;
			scan_hashes_free(t->targets[k].hashes, t->targets[k].pages);
			t->targets[k].hashes = NULL;
			t->targets[k].pages = 0;
		}
	}
}

static void *pass_main(void *arg)
{
	struct pass *p = arg;
	uint64_t start = clock_mono_ns(), one = 1;
	int r;

	pthread_setname_np(pthread_self(), "pass");
	rcu_register_thread();
	r = result_begin(p);
	if (r == 0) {
		domains_number(p);
		r = scan_step(p);
	}
	if (r == 0) {
		gone_forget(p);
		r = join_step(p);
	}
	for (size_t i = 0; i < p->count && r == 0; i++)
		vm_finish(p, i);
	p->result.error = r;
	p->result.metadata_bytes += p->result.total.present * sizeof(uint64_t);
	if (p->options.index)
		p->result.metadata_bytes += stable_index_bytes(p->options.index);
	p->result.cpu_seconds += (double)clock_thread_cpu_ns() / (double)NSEC_PER_SEC;
	p->result.seconds = (double)(clock_mono_ns() - start) / (double)NSEC_PER_SEC;
	rcu_unregister_thread();
	if (write(p->done_fd, &one, sizeof(one)) < 0)
		abort(); /* an eventfd that only this thread writes cannot be full */
	return NULL;
}

/* ---- the caller's side ---- */

int pass_start(const struct pass_input *inputs, size_t count, const struct pass_options *options,
	       struct pass **ret_pass)
{
	struct pass *p = calloc(1, sizeof(*p));
	int r = -ENOMEM;

	if (!p)
		return -ENOMEM;
	p->options = *options;
	p->joined = true; /* no thread yet */
	p->done_fd = eventfd(0, EFD_CLOEXEC);
	p->inputs = calloc(count ? count : 1, sizeof(*p->inputs));
	p->domains = calloc(count ? count : 1, sizeof(*p->domains));
	p->sharers = calloc(count ? count : 1, sizeof(*p->sharers));
	p->owners = calloc(count ? count : 1, sizeof(*p->owners));
	if (p->done_fd < 0 || !p->inputs || !p->domains || !p->sharers || !p->owners)
		goto fail;
	for (; p->count < count; p->count++) {
		p->inputs[p->count] = inputs[p->count];
		page_table_ref(inputs[p->count].table);
	}
	r = -pthread_create(&p->thread, NULL, pass_main, p);
	if (r < 0)
		goto fail;
	p->joined = false;
	*ret_pass = p;
	return 0;
fail:
	pass_free(p);
	return r;
}

int pass_done_fd(const struct pass *p)
{
	return p->done_fd;
}

void pass_progress(const struct pass *p, uint64_t *ret_done, uint64_t *ret_total)
{
	*ret_done = p->progress.done_pages;
	*ret_total = p->progress.total_pages;
}

uint64_t pass_early_pages(const struct pass *p)
{
	return p->progress.early_hits * STABLE_INDEX_SAMPLE;
}

const struct pass_result *pass_wait(struct pass *p)
{
	if (!p->joined)
		pthread_join(p->thread, NULL);
	p->joined = true;
	return &p->result;
}

const struct pass_input *pass_inputs(const struct pass *p, size_t *ret_count)
{
	*ret_count = p->count;
	return p->inputs;
}

void pass_cancel(struct pass *p)
{
	p->progress.cancel = true;
}

struct pass *pass_free(struct pass *p)
{
	if (!p)
		return NULL;
	p->progress.cancel = true;
	pass_wait(p);
	for (size_t i = 0; i < p->count; i++)
		page_table_unref(p->inputs[i].table);
	for (size_t i = 0; i < p->result.vm_count; i++) {
		free(p->result.vms[i].name);
		free(p->result.vms[i].uuid);
		free(p->result.vms[i].domain);
	}
	free(p->result.vms);
	free(p->result.sharing_pages);
	free(p->inputs);
	free(p->domains);
	free(p->sharers);
	free(p->owners);
	if (p->done_fd >= 0)
		close(p->done_fd);
	free(p);
	return NULL;
}
