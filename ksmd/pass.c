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

/* ---- steps ---- */

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
	if (p->domains[i] != PASS_NO_DOMAIN)
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
		pass_domains_number(p);
		r = scan_step(p);
	}
	if (r == 0) {
		gone_forget(p);
		r = pass_join(p);
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
