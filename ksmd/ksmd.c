#include "ksmd/ksmd.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "core/clock.h"
#include "core/log.h"
#include "ksmd/ksmd_internal.h"
#include "ksmd/stable_index.h"
#include "ksmd/zero_split.h"

/* An agent without a daemon looks for one every 5 s at least. Until then a VM that seems to have none may have one. */
#define AGENTS_CALL_NS (7 * NSEC_PER_SEC)

static struct ksm_limits limits_from(const struct config *c)
{
	return (struct ksm_limits){
		.min_gain_pages = c->merge_min_gain_bytes / PAGE_BYTES,
		.target_ns = c->merge_target_ms * NSEC_PER_MSEC,
		.backoff_ns = c->merge_backoff_ms * NSEC_PER_MSEC,
		.cpu_percent = c->merge_cpu_percent < 100 ? c->merge_cpu_percent : 100, /* it is one thread */
	};
}

int ksmd_new(const struct fsio *fs, const struct config *config, struct ksmd **ret_ksmd)
{
	struct ksm_limits limits = limits_from(config);
	struct ksmd *k = calloc(1, sizeof(*k));
	int r;

	if (!k)
		return -ENOMEM;
	k->fs = fs;
	k->config = config;
	ksm_policy_init(&k->policy, &limits);
	r = stable_index_new(&k->index);
	if (r < 0)
		goto fail;
	r = ksm_kernel_new(fs, config->state_dir, &k->kernel);
	if (r == -EOPNOTSUPP)
		log_info("ksm: this kernel has no KSM: nothing is merged, estimates work");
	else if (r < 0)
		goto fail;
	k->left_running = k->kernel && ksm_kernel_is_controlled(k->kernel);
	*ret_ksmd = k;
	return 0;
fail:
	ksmd_free(k);
	return r;
}

static void domain_free(struct domain *d)
{
	remap_free(d->remap);
	free(d->name);
	free(d);
}

struct ksmd *ksmd_free(struct ksmd *k)
{
	int r;

	if (!k)
		return NULL;
	if (k->kernel) { /* first: what follows may have to wait for threads */
		r = ksm_kernel_restore(k->kernel);
		if (r < 0)
			log_error("cannot restore the KSM settings that were found: %s", strerror(-r));
		ksm_kernel_free(k->kernel);
	}
	round_free(k->round);
	marking_free(k->marking);
	unmerge_free(k->unmerge);
	pass_free(k->pass);
	agents_free(k->agents);
	zero_split_free(k->split, NULL, NULL);
	pass_free(k->last);
	for (size_t i = 0; i < k->vm_count; i++)
		page_table_unref(k->vms[i].table);
	for (size_t i = 0; i < k->domain_count; i++)
		domain_free(k->domains[i]);
	free(k->domains);
	free(k->vms);
	stable_index_free(k->index);
	free(k);
	return NULL;
}

int ksmd_domain(struct ksmd *k, const char *name, struct domain **ret_domain)
{
	struct domain **bigger, *d;

	for (size_t i = 0; i < k->domain_count; i++) {
		if (strcmp(k->domains[i]->name, name) == 0) {
			*ret_domain = k->domains[i];
			return 0;
		}
	}
	bigger = reallocarray(k->domains, k->domain_count + 1, sizeof(struct domain *));
	if (!bigger)
		return -ENOMEM;
	k->domains = bigger;
	d = calloc(1, sizeof(*d));
	if (!d)
		return -ENOMEM;
	d->name = strdup(name);
	if (!d->name || getrandom(&d->seed, sizeof(d->seed), 0) != sizeof(d->seed)) {
		domain_free(d);
		return -ENOMEM;
	}
	k->domains[k->domain_count++] = *ret_domain = d;
	return 0;
}

int ksmd_listen(struct ksmd *k)
{
	int r = agents_new(k->config->agent_socket, k->config->agent_group, &k->agents);

	k->agents_called_ns = clock_mono_ns() + AGENTS_CALL_NS;
	if (r < 0)
		log_warning("agents cannot reach the daemon at %s, merging without them: %s", k->config->agent_socket,
			    r == -ENOENT     ? "[daemon] agent_group: no such group on this host" :
			    r == -EADDRINUSE ? "somebody else listens there" :
					       strerror(-r));
	return r;
}

int ksmd_agents_fd(const struct ksmd *k)
{
	return k->agents ? agents_fd(k->agents) : -1;
}

static bool is_vm(pid_t pid, void *userdata)
{
	const struct ksmd *k = userdata;

	for (size_t i = 0; i < k->vm_count; i++)
		if (k->vms[i].pid == pid)
			return true;
	return false;
}

bool ksmd_agents_dispatch(struct ksmd *k)
{
	agents_dispatch(k->agents);
	return agents_review(k->agents, is_vm, k);
}

/* ---- taking a pass in ---- */

static const struct vm_snapshot *snapshot_of(const struct host_snapshot *s, const struct pass_vm *vm)
{
	for (size_t i = 0; i < s->vm_count; i++)
		if (s->vms[i].pid == vm->pid && s->vms[i].start_ticks == vm->start_ticks)
			return &s->vms[i];
	return NULL;
}

static bool by_kernel(enum merge_engine engine)
{
	return engine == MERGE_ENGINE_KERNEL || engine == MERGE_ENGINE_HINTED;
}

/* What the kernel's scanner can get, out of the last pass and the VMs that are there now. While it may not run on this
 * host at all: what it could get. */
static void expectation_update(struct ksmd *k, const struct host_snapshot *s, bool refused)
{
	const struct pass_result *res = k->last ? pass_wait(k->last) : NULL;
	double expected = 0;
	bool hinted = false;
	uint64_t early;

	k->mergeable_pages = 0;
	for (size_t i = 0; res && i < res->vm_count; i++) {
		const struct vm_snapshot *vm = snapshot_of(s, &res->vms[i]);
		struct tracked_vm *t = vm ? ksmd_track(k, vm) : NULL;

		if (!t || !by_kernel(refused ? t->possible : t->engine))
			continue;
		t->zero_pages = res->vms[i].counts.zero;
		hinted |= t->engine == MERGE_ENGINE_HINTED;
		if (t->engine == MERGE_ENGINE_HINTED)
			continue;
		expected += res->vms[i].counts.mergeable;
		k->mergeable_pages += res->vms[i].counts.present;
	}
	if (hinted) { /* what their agents have marked, and no more */
		expected += (double)k->hinted.saved;
		k->mergeable_pages += k->hinted.pages;
	}
	/* A pass over new VMs that is still running (it may take long on a large host, with its CPU share) has
	 * met contents that others have too: reason enough to start merging. */
	early = k->pass ? pass_early_pages(k->pass) : 0;
	k->expected_pages = (uint64_t)expected + early;
	k->mergeable_pages += early;
}

/* Pages that the kernel has saved of a VM. A KSM page still counts as resident in each process, so its copies are
 * pages_sharing / (pages_shared + pages_sharing) of the merged pages. Zero pages inside huge pages never become KSM
 * pages: splitting the huge page maps them to the zero page, which shows as resident memory lost since the pass that
 * found them. */
static uint64_t vm_saved(const struct tracked_vm *t, const struct vm_snapshot *vm, const struct ksm_snapshot *ksm)
{
	uint64_t all = ksm->pages_shared + ksm->pages_sharing, rss = vm->rss_anon_bytes / PAGE_BYTES;
	uint64_t lost = t->rss_then_pages > rss ? t->rss_then_pages - rss : 0, copies = 0;

	if (all)
		copies = (uint64_t)((double)vm->ksm_merging_pages * (double)ksm->pages_sharing / (double)all);
	return copies + (lost < t->zero_pages ? lost : t->zero_pages);
}

static void saved_update(struct ksmd *k, const struct host_snapshot *s)
{
	k->saved_pages = 0;
	for (size_t i = 0; i < s->vm_count; i++) {
		struct tracked_vm *t = ksmd_track(k, &s->vms[i]);

		if (!t)
			continue;
		if (k->pass_taken && t->due) /* later passes see lost pages no more, so they start from here */
			t->rss_then_pages = s->vms[i].rss_anon_bytes / PAGE_BYTES;
		if (by_kernel(t->possible)) {
			t->saved_pages = vm_saved(t, &s->vms[i], &s->ksm);
			k->saved_pages += t->saved_pages;
		} else {
			t->saved_pages = ksmd_round_vm_saved(k, t, &s->vms[i]);
		}
	}
	k->pass_taken = false;
}

uint64_t ksmd_vm_saved_pages(const struct ksmd *k, const struct vm_snapshot *vm)
{
	const struct tracked_vm *t = ksmd_track((struct ksmd *)(uintptr_t)k, vm);

	return t ? t->saved_pages : 0;
}

void ksmd_peers_return(struct ksmd *k, const struct pass_input *inputs, size_t count)
{
	for (size_t i = 0; i < count; i++)
		if (inputs[i].peer)
			agent_return(k->agents, inputs[i].peer, inputs[i].peer_broken);
}

/* Each VM rests until its looks cost no more than its part of what all may cost together: one that is read as a whole
 * does not keep others waiting of which the kernel tells what has changed. */
static void rests_set(struct ksmd *k, const struct host_snapshot *s, const struct pass_result *res,
		      const struct pass_input *inputs, size_t count)
{
	double share = (double)k->config->scan_rest_permille / 1000 * (double)sysconf(_SC_NPROCESSORS_ONLN);
	double common = res->cpu_seconds;
	size_t due = 0;

	for (size_t i = 0; i < count; i++) {
		common -= inputs[i].rescan ? res->vms[i].cpu_seconds : 0;
		due += inputs[i].rescan;
	}
	for (size_t i = 0; i < count; i++) {
		const struct vm_snapshot *vm = inputs[i].rescan ? snapshot_of(s, &res->vms[i]) : NULL;
		struct tracked_vm *t = vm ? ksmd_track(k, vm) : NULL;
		double cost = res->vms[i].cpu_seconds + (common > 0 ? common / (double)due : 0);

		if (t)
			t->rest_until_ns = s->taken_ns +
					   (uint64_t)(cost * (double)k->vm_count / share * (double)NSEC_PER_SEC);
	}
}

static void pass_take(struct ksmd *k, const struct host_snapshot *s)
{
	struct pollfd ready = { .fd = k->pass ? pass_done_fd(k->pass) : -1, .events = POLLIN };
	const struct pass_result *res;
	const struct pass_input *inputs;
	size_t count;

	if (!k->pass || poll(&ready, 1, 0) != 1)
		return;
	res = pass_wait(k->pass);
	inputs = pass_inputs(k->pass, &count);
	ksmd_peers_return(k, inputs, count);
	k->cpu_seconds += res->cpu_seconds;
	k->pass_ended_ns = s->taken_ns;
	if (res->error) {
		log_warning("pass failed, ignoring: %s", strerror(-res->error));
		k->pass = pass_free(k->pass);
		return;
	}
	rests_set(k, s, res, inputs, count);
	pass_free(k->last);
	k->last = k->pass;
	k->pass = NULL;
	k->passes++;
	k->pass_taken = true;
	k->unmarked |= res->joined;
	for (size_t i = 0; i < k->domain_count; i++)
		k->domains[i]->passed |= res->joined;
	log_line(res->joined ? LOG_LEVEL_INFO : LOG_LEVEL_DEBUG, "pass vms=%zu scanned=%" PRIu64 " MiB mergeable=%.0f MiB zero=%" PRIu64
		 " MiB took=%.2f s cpu=%.2f s",
		 res->vm_count, res->scanned_pages >> 8, res->total.mergeable / 256, res->total.zero >> 8,
		 res->seconds, res->cpu_seconds);
}

/* ---- planning a pass ---- */

/* Tables of VMs that are not what they were. First of all in a tick: a VM that has another domain since must not be in
 * another round of its old one, whose pass may be long over. */
static void tables_review(struct ksmd *k, const struct host_snapshot *s)
{
	for (size_t i = 0; i < s->vm_count; i++) {
		struct tracked_vm *t = ksmd_track(k, &s->vms[i]);

		if (t && t->table && !page_table_is_for(t->table, &s->vms[i]))
			t->table = page_table_unref(t->table);
	}
}

/* Frames of another domain are in another store, for which its agent has to make a new connection. Before that it gives
 * back what it has of the old one, as far as it can; whatever is left there keeps its frames (frame_users). */
static int domain_choose(struct ksmd *k, struct tracked_vm *t, const struct vm_snapshot *vm)
{
	const struct domain *before = t->domain;
	int r;

	if (before && strcmp(before->name, vm->domain) != 0 && ksmd_unmerge_first(k, t))
		return -EAGAIN;
	t->left = NULL;
	r = ksmd_domain(k, vm->domain, &t->domain);

	if (r == 0 && before && before != t->domain) {
		t->figures = (struct frame_user_figures){ 0 };
		if (k->agents)
			agents_drop(k->agents, t->pid);
	}
	return r;
}

/* It is giving memory back: without it the VM would have to be read as a whole, and what was protected forgotten. */
static bool agent_is_lent(const struct ksmd *k, const struct tracked_vm *t)
{
	const struct agent *agent = k->agents ? agents_find(k->agents, t->pid) : NULL;

	return agent && agent->lent;
}

/* Marks the VMs to scan now and makes their tables. True when there is one. */
static bool pass_plan(struct ksmd *k, const struct host_snapshot *s)
{
	uint64_t interval_ns = k->config->scan_interval_ms * NSEC_PER_MSEC;
	bool any = false, scanner_works = k->policy.state == KSM_MERGE;

	for (size_t i = 0; i < s->vm_count; i++) {
		const struct vm_snapshot *vm = &s->vms[i];
		struct tracked_vm *t = ksmd_track(k, vm);
		int r;

		if (!t)
			continue;
		t->early = false;
		t->due = !t->passed_ns || !t->table ||
			 (s->taken_ns >= t->rest_until_ns && s->taken_ns - t->passed_ns >= interval_ns);
		/* While the scanner works the estimate for its VMs stands; afterwards a new pass shows what is left. */
		if (scanner_works && by_kernel(t->engine))
			t->due = false;
		if (!t->due || vm->region_count == 0 || agent_is_lent(k, t)) {
			t->due = false;
			continue;
		}
		r = domain_choose(k, t, vm);
		if (r == 0 && !t->table)
			r = page_table_new(k->fs, vm, t->domain->seed, &t->table);
		if (r < 0) {
			log_debug("vm=%s no page table: %s", vm->uuid, strerror(-r));
			t->due = false;
			continue;
		}
		t->early = !t->passed_ns && t->engine == MERGE_ENGINE_KERNEL;
		t->passed_ns = s->taken_ns;
		any = true;
	}
	return any;
}

static bool scanner_is_wanted(const struct ksmd *k)
{
	for (size_t i = 0; i < k->vm_count; i++)
		if (by_kernel(k->vms[i].engine))
			return true;
	return false;
}

/* ---- the module ---- */

static int ksmd_decide(void *m, const struct host_snapshot *s)
{
	struct ksmd *k = m;
	struct ksm_inputs in = { .refusal = ksmd_host_refusal(k, s) };

	pass_take(k, s);
	ksmd_round_take(k, s);
	ksmd_marking_take(k);
	ksmd_unmerge_take(k, s);
	if (!k->pass) /* which writes them */
		tables_review(k, s);
	ksmd_engines_decide(k, s, in.refusal);
	expectation_update(k, s, in.refusal != NULL);
	saved_update(k, s);
	ksmd_debt_update(k, s);
	ksmd_unmerge_plan(k, s);
	ksmd_round_plan(k, s);
	ksmd_marking_plan(k);
	/* Both work with the tables that a pass would write. */
	if (!k->pass && !k->round && !k->round_planned && !k->marking && !k->marking_planned)
		k->pass_planned = pass_plan(k, s);
	if (!k->kernel)
		return 0;
	if (!in.refusal && !scanner_is_wanted(k))
		in.refusal = "no VM is to be merged by the kernel's scanner";
	if (!in.refusal && k->debt.state == DEBT_STOP)
		in.refusal = k->debt.why;
	if (!in.refusal && k->config->merge_engine == MERGE_ENGINE_AUTO && s->taken_ns < k->agents_called_ns)
		in.refusal = "the agents of VMs that run already may still call";
	in.foreign_change = ksm_kernel_was_changed(k->kernel, &s->ksm);
	in.left_running = k->left_running && s->ksm.run == 1;
	k->left_running = false;
	k->seen = s->ksm;
	in.expected_pages = k->expected_pages;
	in.saved_pages = k->saved_pages;
	in.mergeable_pages = k->mergeable_pages;
	k->policy.limits = limits_from(k->config);
	ksm_policy_decide(&k->policy, s, &in, &k->plan);
	if (in.refusal && strcmp(k->logged_why, in.refusal) != 0)
		log_info("ksm rests why=\"%s\"", in.refusal);
	snprintf(k->logged_why, sizeof(k->logged_why), "%s", in.refusal ? in.refusal : "");
	return 0;
}

const struct module_ops ksmd_ops = {
	.name = "ksmd",
	.sense = ksmd_sense,
	.decide = ksmd_decide,
	.apply = ksmd_apply,
};

int ksmd_round_fd(const struct ksmd *k)
{
	if (k->round)
		return round_done_fd(k->round);
	return k->marking ? marking_done_fd(k->marking) : k->unmerge ? unmerge_done_fd(k->unmerge) : -1;
}

int ksmd_pass_fd(const struct ksmd *k)
{
	return k->pass ? pass_done_fd(k->pass) : -1;
}

static uint64_t frames_count(const struct ksmd *k)
{
	uint64_t frames = 0;

	for (size_t i = 0; i < k->domain_count; i++)
		if (k->domains[i]->remap)
			frames += remap_memory_pages(k->domains[i]->remap);
	return frames;
}

/* By the kernel; and by agents, whose frames are nobody's savings. */
static uint64_t saved_sum(const struct ksmd *k, uint64_t frames)
{
	uint64_t saved = 0;

	for (size_t i = 0; i < k->vm_count; i++)
		saved += by_kernel(k->vms[i].possible) ? 0 : k->vms[i].saved_pages;
	return k->saved_pages + (saved > frames ? saved - frames : 0);
}

void ksmd_status(const struct ksmd *k, struct ksmd_status *ret_status)
{
	struct ksmd_status st = {
		.ksm_present = k->kernel != NULL,
		.state = k->policy.state,
		.why = k->kernel ? k->plan.why : "this kernel has no KSM",
		.passing = k->pass != NULL,
		.passes = k->passes,
		.last = k->last ? pass_wait(k->last) : NULL,
		.expected_pages = k->expected_pages,
		.cpu_seconds = k->cpu_seconds,
		.frames = frames_count(k),
		.rounds = k->rounds,
		.last_round = k->rounds ? &k->last_round : NULL,
		.merging = ksmd_round_merges(k),
		.debt = &k->debt,
		.merged_pages = k->merged_pages,
		.breaks_per_s = k->breaks_per_s,
	};

	st.saved_pages = saved_sum(k, st.frames);

	if (k->pass)
		pass_progress(k->pass, &st.pass_done_pages, &st.pass_total_pages);
	*ret_status = st;
}
