/* Merging by agents, as the module does it: one round at a time, domain by domain, each after a pass that has looked at
 * the VMs anew. Between rounds, sweeps free the frames that nobody uses any more. */
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/cleanup.h"
#include "core/clock.h"
#include "core/log.h"
#include "ksmd/frame_look.h"
#include "ksmd/ksmd_internal.h"
#include "ksmd/store.h"

/* What a round could not get (pages that change, windows with too little in them) is not run after again for so long,
 * unless more is found. As for the kernel's scanner. */
#define RESIDUAL_KEEP_NS (30 * 60 * NSEC_PER_SEC)

static bool takes_part(const struct tracked_vm *t, const struct domain *d)
{
	return t->domain == d && t->engine == MERGE_ENGINE_REMAP && t->table;
}

/* ---- the end of a round ---- */

static struct tracked_vm *tracked_of(struct ksmd *k, const struct agent_peer *peer)
{
	for (size_t i = 0; i < k->vm_count; i++)
		if (k->vms[i].pid == agent_peer_pid(peer))
			return &k->vms[i];
	return NULL;
}

static void vms_take(struct ksmd *k, const struct round_result *res)
{
	size_t count;
	const struct remap_vm *vms = round_vms(k->round, &count);

	for (size_t i = 0; i < count; i++) {
		struct tracked_vm *t = tracked_of(k, vms[i].peer);

		if (t && t->table)
			page_table_disturb(t->table);
		if (t && !res->error)
			t->dropped_pages += res->vms[i].zero_pages;
		agent_return(k->agents, vms[i].peer, !res->error && res->vms[i].broken);
	}
}

/* How fast a round exchanged, beside the quotas that it was held to (0: none). */
static void rates_log(const struct ksmd *k, const struct domain *d, const struct remap_result *m)
{
	const struct remap_rates rates = remap_rates(m);

	log_debug("remap domain=%s rates windows=%.0f/s of %" PRIu64 "/s exchanged=%.0f MiB/s of %" PRIu64
		 " MiB/s cpu=%.0f%% of %" PRIu64 "%%",
		 d->name, rates.windows_per_s, k->config->merge_windows_per_s, rates.mib_per_s,
		 k->config->merge_bytes_per_s >> 20, rates.cpu_percent, k->config->merge_cpu_percent);
}

/* Planning in vain is looking on, like a pass, and has the same share of the host's CPU time: 100 s of it for a domain of
 * 1 TiB (bench/index), whose guests write enough for another plan all the time. */
static uint64_t rest_ns(const struct ksmd *k, double cpu_seconds)
{
	double share = (double)k->config->scan_rest_permille / 1000 * (double)sysconf(_SC_NPROCESSORS_ONLN);

	return (uint64_t)(cpu_seconds / share * (double)NSEC_PER_SEC);
}

static void merged_take(struct ksmd *k, const struct host_snapshot *s, const struct round_result *res)
{
	const struct remap_result *m = &res->merged;
	uint64_t got = m->merged_pages + m->zero_pages;
	struct domain *d = k->round_domain;

	k->cpu_seconds += m->cpu_seconds;
	if (res->error) {
		log_warning("remap domain=%s failed, ignoring: %s", d->name, strerror(-res->error));
		return;
	}
	if (m->windows == 0) { /* too little to gain; the old residual's time goes on */
		d->rest_until_ns = s->taken_ns + rest_ns(k, m->cpu_seconds);
		log_debug("remap domain=%s rests why=\"%" PRIu64 " MiB to gain\"", d->name, m->planned_pages >> 8);
		return;
	}
	got -= m->filled_frames < got ? m->filled_frames : got;
	/* One that was stopped was not given its time to get the rest. */
	d->residual_pages = m->planned_pages > got && !res->stopped ? m->planned_pages - got : 0;
	d->residual_ns = s->taken_ns;
	k->rounds++;
	k->last_round = *m;
	log_info("remap domain=%s merged=%" PRIu64 " MiB zero=%" PRIu64 " MiB windows=%" PRIu64 " runs=%" PRIu64
		 " frames=%" PRIu64 " unequal=%" PRIu64 " busy=%" PRIu64 " failed=%" PRIu64
		 " longest_stall=%" PRIu64 " us took=%.2f s cpu=%.2f s",
		 d->name, m->merged_pages >> 8, m->zero_pages >> 8, m->windows, m->runs, m->filled_frames,
		 m->unequal_runs, m->busy_runs, m->failed_runs, m->stall_us_max, m->seconds, m->cpu_seconds);
	rates_log(k, d, m);
}

static void look_end(struct ksmd *k, const struct host_snapshot *s, const struct round_result *res)
{
	if (res->error) {
		log_debug("remap domain=%s cannot be looked at now: %s", k->round_domain->name, strerror(-res->error));
		k->round_domain->look_ns = s->taken_ns + LOOK_NS;
	}
	k->round = round_free(k->round);
	k->round_domain = NULL;
}

void ksmd_round_take(struct ksmd *k, const struct host_snapshot *s)
{
	struct pollfd ended = { .fd = k->round ? round_done_fd(k->round) : -1, .events = POLLIN };
	const struct round_result *res;
	size_t count;

	if (!k->round || poll(&ended, 1, 0) != 1)
		return;
	res = round_wait(k->round);
	ksmd_looks_take(k, k->round_domain, s, res);
	if (res->look) {
		look_end(k, s, res);
		return;
	}
	round_vms(k->round, &count);
	if (count > 0)
		merged_take(k, s, res);
	vms_take(k, res);
	if (res->sweep_error)
		log_warning("remap domain=%s: frames cannot be freed now: %s", k->round_domain->name,
			    strerror(-res->sweep_error));
	if (res->freed_frames)
		log_info("remap domain=%s freed=%u frames", k->round_domain->name, res->freed_frames);
	if (res->sweep_error || res->sweep_more) /* else there may be news since it began */
		k->round_domain->sweep_ns = s->taken_ns + SWEEP_REST_NS;
	k->round = round_free(k->round);
	k->round_domain = NULL;
}

bool ksmd_round_merges(const struct ksmd *k)
{
	size_t count = 0;

	if (k->round)
		round_vms(k->round, &count);
	return count > 0;
}

/* ---- the next round ---- */

static bool wants_round(const struct ksmd *k, const struct domain *d, uint64_t now_ns)
{
	if (now_ns < d->rest_until_ns)
		return false;
	for (size_t i = 0; i < k->vm_count && d->passed && k->debt.state != DEBT_STOP; i++)
		if (takes_part(&k->vms[i], d))
			return true;
	return false;
}

void ksmd_round_plan(struct ksmd *k, const struct host_snapshot *s)
{
	k->round_planned = NULL;
	k->look_planned = false;
	if (k->round || k->marking || k->unmerge || k->unmerge_planned || !k->agents)
		return;
	for (size_t i = 0; i < k->domain_count && !k->round_planned && !k->pass; i++) {
		struct domain *d = k->domains[i];

		k->round_wanted = wants_round(k, d, s->taken_ns);
		if (k->round_wanted || (d->remap && d->sweep_ns && s->taken_ns >= d->sweep_ns))
			k->round_planned = d;
	}
	/* A look needs no tables: it does not wait for a pass. */
	for (size_t i = 0; i < k->domain_count && !k->round_planned; i++) {
		struct domain *d = k->domains[i];

		k->look_planned = d->look_ns && s->taken_ns >= d->look_ns;
		k->round_planned = k->look_planned ? d : NULL;
	}
}

/* The store that an earlier daemon left in the VMs of this domain, whether or not their agents have called again: the
 * first that calls may be of a VM that was never merged, and with a store of its own the frames of the others could be
 * neither shared nor freed. A process may present anything under that name: only what root has made and nobody else
 * can write is taken. */
static int domain_adopt(struct ksmd *k, struct domain *d)
{
	int r = -ENOENT;

	if (strlen(d->name) > STORE_NAME_USED)
		return -ENOENT;
	for (size_t i = 0; r < 0 && i < k->vm_count; i++) {
		auto_close int fd = k->vms[i].domain == d ? frame_look_find_store(k->fs, k->vms[i].pid, d->name) :
							    -ENOENT;

		if (fd >= 0)
			r = remap_adopt(k->fs, d->name, fd, &d->remap);
		if (fd >= 0 && r < 0)
			log_warning("remap domain=%s: what pid=%d maps under a store's name is not taken: %s", d->name,
				    (int)k->vms[i].pid, strerror(-r));
	}
	if (r == 0)
		log_info("remap domain=%s goes on with the frames of an earlier daemon, %" PRIu64 " MiB", d->name,
			 remap_memory_pages(d->remap) >> 8);
	return r;
}

/* Frames for all of the host's memory: room costs nothing until it is used. */
static int domain_open(struct ksmd *k, struct domain *d)
{
	uint64_t frames = (uint64_t)sysconf(_SC_PHYS_PAGES);

	if (d->remap || domain_adopt(k, d) == 0)
		return 0;
	if (frames > STORE_FRAMES_MAX)
		frames = STORE_FRAMES_MAX;
	return remap_new(k->fs, d->name, (uint32_t)frames, &d->remap);
}

/* What the agents of this domain have said since the last round; only now is nobody at work with them. */
static void news_tell(struct ksmd *k, const struct domain *d)
{
	for (size_t i = 0; i < k->vm_count; i++) {
		struct agent *agent = k->vms[i].domain == d ? agents_find(k->agents, k->vms[i].pid) : NULL;

		if (!agent)
			continue;
		if (agent->said_hello)
			remap_vm_hello(d->remap, k->vms[i].pid);
		if (agent->released)
			remap_vm_changed(d->remap, k->vms[i].pid);
		agent->said_hello = agent->released = false;
	}
}

/* The VMs that take part, their peers lent. A device or a debugger may have come since they were last looked at. */
static size_t vms_lend(struct ksmd *k, const struct domain *d, struct remap_vm *vms)
{
	size_t count = 0;

	for (size_t i = 0; i < k->vm_count; i++) {
		struct tracked_vm *t = &k->vms[i];
		struct agent *agent = takes_part(t, d) ? agents_find(k->agents, t->pid) : NULL;

		if (!agent)
			continue;
		t->hazard_count = hazards_find(k->fs, t->pid, t->hazards);
		t->hazards_ns = clock_mono_ns();
		if (t->hazard_count == 0)
			vms[count++] = (struct remap_vm){ agent_lend(k->agents, agent), t->table };
	}
	return count;
}

static struct remap_limits limits_of(const struct ksmd *k, const struct domain *d)
{
	struct remap_limits limits = {
		.min_gain_pages = k->config->merge_min_gain_bytes / PAGE_BYTES,
		.cpu_percent = k->config->merge_cpu_percent,
		.bytes_per_s = k->config->merge_bytes_per_s,
		.windows_per_s = k->config->merge_windows_per_s,
	};

	if (d->residual_ns && clock_mono_ns() - d->residual_ns < RESIDUAL_KEEP_NS)
		limits.min_gain_pages += d->residual_pages;
	return limits;
}

static void start(struct ksmd *k, struct domain *d)
{
	struct remap_vm *vms = calloc(k->vm_count + 1, sizeof(*vms));
	const struct remap_limits limits = limits_of(k, d);
	size_t count = 0;
	int r = vms ? domain_open(k, d) : -ENOMEM;

	if (r == 0) {
		news_tell(k, d);
		count = k->round_wanted ? vms_lend(k, d, vms) : 0;
		r = round_start(d->remap, vms, count, &limits, &k->round);
	}
	d->sweep_ns = 0;
	if (r == 0) {
		k->round_domain = d;
		log_debug("remap start domain=%s vms=%zu", d->name, count);
	} else {
		log_warning("remap domain=%s cannot start, ignoring: %s", d->name, strerror(-r));
		for (size_t i = 0; i < count; i++)
			agent_return(k->agents, vms[i].peer, false);
	}
	free(vms);
}

static void look(struct ksmd *k, struct domain *d)
{
	int r = round_look(d->remap, &k->round);

	d->look_ns = clock_mono_ns() + LOOK_NS; /* its end may say another time */
	if (r == 0)
		k->round_domain = d;
	else
		log_warning("remap domain=%s cannot be looked at, ignoring: %s", d->name, strerror(-r));
}

void ksmd_round_begin(struct ksmd *k, bool dry_run)
{
	struct domain *d = k->round_planned;

	k->round_planned = NULL;
	if (!d)
		return;
	if (k->look_planned) {
		look(k, d);
		return;
	}
	if (dry_run && k->round_wanted)
		log_info("dry run: remap domain=%s would start", d->name);
	else if (!dry_run)
		start(k, d);
	if (k->round_wanted) /* else it was to free frames */
		d->passed = false;
}

/* ---- figures ---- */

/* Zero pages that were dropped and may have come back: every growth of resident memory counts as that, so that the
 * figure is never too high. */
static void dropped_update(struct tracked_vm *t, const struct vm_snapshot *vm)
{
	uint64_t rss = vm->rss_anon_bytes / PAGE_BYTES, grown = rss > t->rss_low_pages ? rss - t->rss_low_pages : 0;

	if (t->rss_low_pages && t->dropped_pages)
		t->dropped_pages -= grown < t->dropped_pages ? grown : t->dropped_pages;
	t->rss_low_pages = rss;
}

uint64_t ksmd_round_vm_saved(const struct ksmd *k, struct tracked_vm *t, const struct vm_snapshot *vm)
{
	const struct frame_user_figures *f = &t->figures;

	dropped_update(t, vm);
	if (t->domain && t->domain == k->round_domain) /* as it was: the round changes it under our eyes */
		return t->saved_pages;
	if (f->looks == 0)
		return 0;
	return f->mapped_pages - (f->broken_pages < f->mapped_pages ? f->broken_pages : f->mapped_pages) +
	       t->dropped_pages;
}
