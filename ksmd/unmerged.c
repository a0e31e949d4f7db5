/* Giving memory back, as the module does it: one VM at a time. Wanted by an operator, for a migration, since the VM is
 * another domain's now, or since what was merged has worn out. */
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <string.h>

#include "core/clock.h"
#include "core/log.h"
#include "ksmd/ksmd_internal.h"

/* A migration that has just begun may be registering memory with a userfaultfd of the VMM's own (background snapshots
 * do), which would fail where a stretch is held at that moment. Later, it is we who are told. */
#define MIGRATION_NS (2 * NSEC_PER_SEC)
/* Worn memory is looked for when so much more was copied on write as is worth a look, and not all the time. */
#define WORN_PAGES 1024u
#define WORN_NS (60 * NSEC_PER_SEC)
#define WORN_FUTILE_NS (10 * WORN_NS) /* nothing was given back: a device may have it all pinned */

static const char *const reasons[] = {
	[UNMERGE_OPERATOR] = "asked for",
	[UNMERGE_DOMAIN] = "it is in another domain now",
	[UNMERGE_MIGRATION] = "it is migrating",
	[UNMERGE_WORN] = "most of it was copied on write",
};

static const struct vm_snapshot *snapshot_of(const struct host_snapshot *s, const struct tracked_vm *t)
{
	for (size_t i = 0; i < s->vm_count; i++)
		if (s->vms[i].pid == t->pid && s->vms[i].start_ticks == t->start_ticks)
			return &s->vms[i];
	return NULL;
}

static struct tracked_vm *tracked_of(struct ksmd *k, pid_t pid)
{
	for (size_t i = 0; i < k->vm_count; i++)
		if (k->vms[i].pid == pid)
			return &k->vms[i];
	return NULL;
}

/* What is at work, or wanted for another reason, goes first. */
static void want(struct tracked_vm *t, enum unmerge_reason reason)
{
	if (t->unmerge_state == UNMERGE_WANTED || t->unmerge_state == UNMERGE_WORKING)
		return;
	t->unmerge_state = UNMERGE_WANTED;
	t->unmerge_reason = reason;
}

/* ---- the end ---- */

static void result_log(const struct tracked_vm *t, const char *uuid)
{
	const struct unmerge_result *res = &t->unmerged;
	const char *problem = res->error == -ENOMEM ? "the host is short of memory" :
			      res->error < 0	    ? strerror(-res->error) :
						      unmerge_kept_why(res->kept_error);

	if (t->unmerge_reason == UNMERGE_WORN && res->pages == 0 && !*problem) /* a look, and no more */
		return;
	log_info("unmerge vm=%s pages=%" PRIu64 " kept=%" PRIu64 " longest_stall=%u us took=%.2f s cpu=%.2f s why=\"%s\"%s%s",
		 uuid, res->pages, res->kept, res->stall_us_max, res->seconds, res->cpu_seconds,
		 reasons[t->unmerge_reason], *problem ? " but " : "", problem);
}

/* What it held may be free now. */
static void frames_released(struct ksmd *k, const struct tracked_vm *t)
{
	struct agent *agent = agents_find(k->agents, t->pid);

	if (agent)
		agent->released = true;
}

void ksmd_unmerge_take(struct ksmd *k, const struct host_snapshot *s)
{
	struct pollfd ended = { .fd = k->unmerge ? unmerge_done_fd(k->unmerge) : -1, .events = POLLIN };
	const struct unmerge_result *res;
	const struct vm_snapshot *vm;
	struct tracked_vm *t;

	if (!k->unmerge || poll(&ended, 1, 0) != 1)
		return;
	res = unmerge_wait(k->unmerge);
	k->cpu_seconds += res->cpu_seconds;
	t = tracked_of(k, agent_peer_pid(unmerge_peer(k->unmerge)));
	agent_return(k->agents, (struct agent_peer *)(uintptr_t)unmerge_peer(k->unmerge), res->broken);
	if (t) {
		if (t->table)
			page_table_disturb(t->table);
		t->unmerged = *res;
		t->unmerge_state = UNMERGE_ENDED;
		if (t->unmerge_reason == UNMERGE_WORN && res->pages == 0)
			t->worn_next_ns = clock_mono_ns() + WORN_FUTILE_NS;
		if (t->unmerge_reason == UNMERGE_DOMAIN)
			t->left = t->domain;
		vm = snapshot_of(s, t);
		result_log(t, vm ? vm->uuid : "?");
		if (res->pages > 0)
			frames_released(k, t);
		if (t->apart && t->unmerge_reason != UNMERGE_OPERATOR) /* asked for meanwhile */
			want(t, UNMERGE_OPERATOR);
	}
	k->unmerge = unmerge_free(k->unmerge);
}

/* ---- what is wanted ---- */

/* Of the last look at what it maps; false: nothing was ever merged. */
static bool figures_of(const struct tracked_vm *t, struct frame_user_figures *ret_figures)
{
	*ret_figures = t->figures;
	return t->figures.looks > 0;
}

static bool can(const struct tracked_vm *t)
{
	return t->has_agent && t->unmerge_why[0] == '\0';
}

/* Before, if the host has room for it: a VM that is to leave a full host must not be what fills it up. */
static void migration_look(struct ksmd *k, struct tracked_vm *t, const struct vm_snapshot *vm)
{
	struct frame_user_figures f;

	if (!vm->migrating)
		t->migrating_ns = 0;
	if (!vm->migrating || t->migrating_ns == UINT64_MAX)
		return;
	if (t->migrating_ns == 0)
		t->migrating_ns = clock_mono_ns();
	if (clock_mono_ns() - t->migrating_ns < MIGRATION_NS || !figures_of(t, &f))
		return;
	t->migrating_ns = UINT64_MAX; /* once each */
	if (!can(t) || f.mapped_pages <= f.broken_pages)
		return;
	if (unmerge_memory_allows(k->fs, (f.mapped_pages - f.broken_pages) * PAGE_BYTES))
		want(t, UNMERGE_MIGRATION);
	else
		log_info("unmerge vm=%s not done why=\"it is migrating, but the host is short of memory\"", vm->uuid);
}

static void worn_look(struct ksmd *k, struct tracked_vm *t)
{
	struct frame_user_figures f;
	uint64_t now = clock_mono_ns();

	if (t->engine != MERGE_ENGINE_REMAP || !can(t) || k->round || k->pass || !figures_of(t, &f))
		return;
	if (f.broken_pages < t->worn_pages)
		t->worn_pages = f.broken_pages;
	if (f.broken_pages - t->worn_pages < WORN_PAGES || now < t->worn_next_ns)
		return;
	t->worn_next_ns = now + WORN_NS;
	t->worn_pages = f.broken_pages;
	want(t, UNMERGE_WORN);
}

bool ksmd_unmerge_first(struct ksmd *k, struct tracked_vm *t)
{
	struct frame_user_figures f;

	if (t->left == t->domain || !t->domain->remap || !can(t))
		return false;
	if (k->round_domain == t->domain)
		return true; /* nothing can be known of it now */
	if (!figures_of(t, &f) || f.mapped_pages == 0)
		return false;
	want(t, UNMERGE_DOMAIN);
	return true;
}

static bool is_ready(struct ksmd *k, struct tracked_vm *t)
{
	struct agent *agent = agents_find(k->agents, t->pid);

	return agent && !agent->lent && !(k->round && k->round_domain == t->domain);
}

void ksmd_unmerge_plan(struct ksmd *k, const struct host_snapshot *s)
{
	k->unmerge_planned = 0;
	if (!k->agents)
		return;
	for (size_t i = 0; i < s->vm_count; i++) {
		struct tracked_vm *t = ksmd_track(k, &s->vms[i]);

		if (!t)
			continue;
		migration_look(k, t, &s->vms[i]);
		worn_look(k, t);
		if (t->unmerge_state == UNMERGE_WANTED && !t->has_agent) { /* it has gone meanwhile */
			t->unmerged = (struct unmerge_result){ .error = -ECONNRESET };
			t->unmerge_state = UNMERGE_ENDED;
		}
		if (t->unmerge_state == UNMERGE_WANTED && !k->unmerge && !k->marking && !k->unmerge_planned &&
		    is_ready(k, t))
			k->unmerge_planned = t->pid;
	}
}

void ksmd_unmerge_begin(struct ksmd *k, bool dry_run)
{
	struct tracked_vm *t = k->unmerge_planned ? tracked_of(k, k->unmerge_planned) : NULL;
	struct unmerge_options options = { 0 };
	struct agent *agent = t ? agents_find(k->agents, t->pid) : NULL;
	struct agent_peer *peer;
	int r;

	k->unmerge_planned = 0;
	if (!agent || agent->lent) /* it was told to connect anew: in a later tick */
		return;
	if (dry_run) {
		log_info("dry run: unmerge pid=%d would start why=\"%s\"", (int)t->pid, reasons[t->unmerge_reason]);
		t->unmerge_state = UNMERGE_ENDED;
		t->left = t->domain;
		return;
	}
	options.worn = t->unmerge_reason == UNMERGE_WORN;
	options.cpu_percent = options.worn ? k->config->merge_cpu_percent : 0;
	peer = agent_lend(k->agents, agent);
	r = unmerge_start(k->fs, peer, &options, &k->unmerge);
	if (r < 0) {
		agent_return(k->agents, peer, false);
		t->unmerged = (struct unmerge_result){ .error = r };
	}
	t->unmerge_state = r < 0 ? UNMERGE_ENDED : UNMERGE_WORKING;
}

/* ---- an operator ---- */

const char *ksmd_unmerge_refusal(const struct ksmd *k, const struct vm_snapshot *vm)
{
	const struct tracked_vm *t = ksmd_track((struct ksmd *)(uintptr_t)k, vm);

	if (!t)
		return "it was found just now; ask again";
	if (!t->has_agent)
		return "no agent in its VMM (start it with memvirtctl run)";
	return can(t) ? NULL : t->unmerge_why;
}

int ksmd_unmerge(struct ksmd *k, const struct vm_snapshot *vm)
{
	struct tracked_vm *t = ksmd_track(k, vm);

	if (ksmd_unmerge_refusal(k, vm))
		return -EOPNOTSUPP;
	t->apart = true;
	want(t, UNMERGE_OPERATOR);
	if (t->unmerge_state == UNMERGE_WANTED)
		t->unmerge_reason = UNMERGE_OPERATOR;
	return 0;
}

bool ksmd_unmerge_undo(struct ksmd *k, const struct vm_snapshot *vm)
{
	struct tracked_vm *t = ksmd_track(k, vm);
	bool was = t && t->apart;

	if (was)
		t->apart = false;
	return was;
}

const struct unmerge_result *ksmd_unmerge_result(const struct ksmd *k, const struct vm_snapshot *vm, bool *ret_busy)
{
	const struct tracked_vm *t = ksmd_track((struct ksmd *)(uintptr_t)k, vm);

	*ret_busy = t && (t->unmerge_state == UNMERGE_WANTED || t->unmerge_state == UNMERGE_WORKING);
	return t && t->unmerge_state == UNMERGE_ENDED ? &t->unmerged : NULL;
}
