/* What ksmd looks at in a tick: the kernel's KSM counters, and per VM its resident and merged pages. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/clock.h"
#include "core/log.h"
#include "ksmd/ksmd_internal.h"

struct tracked_vm *ksmd_track(struct ksmd *k, const struct vm_snapshot *vm)
{
	for (size_t i = 0; i < k->vm_count; i++)
		if (k->vms[i].pid == vm->pid && k->vms[i].start_ticks == vm->start_ticks)
			return &k->vms[i];
	return NULL;
}

static struct tracked_vm *track_new(struct ksmd *k, const struct vm_snapshot *vm)
{
	struct tracked_vm *bigger = reallocarray(k->vms, k->vm_count + 1, sizeof(*bigger));

	if (!bigger)
		return NULL;
	k->vms = bigger;
	bigger += k->vm_count++;
	*bigger = (struct tracked_vm){ .pid = vm->pid, .start_ticks = vm->start_ticks, .engine = MERGE_ENGINE_OFF,
				       .possible = MERGE_ENGINE_OFF };
	return bigger;
}

static void sweep_soon(struct domain *d)
{
	if (d->remap && !d->sweep_ns)
		d->sweep_ns = clock_mono_ns() + SWEEP_REST_NS;
}

/* Where this VM may have held frames: it may have been in other domains before. */
static void sweeps_after(struct ksmd *k, const struct tracked_vm *gone)
{
	struct frame_user_figures figures;

	for (size_t i = 0; i < k->domain_count; i++) {
		struct domain *d = k->domains[i];

		if (d->remap && (d == k->round_domain || remap_vm_figures(d->remap, gone->pid, &figures)))
			sweep_soon(d);
	}
}

/* Forgets the VMs that are not in the snapshot any more. */
static void untrack_gone(struct ksmd *k)
{
	size_t kept = 0;

	for (size_t i = 0; i < k->vm_count; i++) {
		if (!k->vms[i].seen) {
			page_table_unref(k->vms[i].table);
			sweeps_after(k, &k->vms[i]);
			continue;
		}
		k->vms[kept++] = k->vms[i];
	}
	k->vm_count = kept;
}

/* Descriptors of a VMM rarely change, and each costs a readlink. What matters is looked at again before a round. */
#define HAZARDS_NS (30 * NSEC_PER_SEC)
#define HAZARDS_IDLE_NS (10 * HAZARDS_NS) /* without an agent: only to be explained */

static bool overlaps(const struct vm_snapshot *vm, const struct agent_slot_view *slot)
{
	for (size_t i = 0; i < vm->region_count; i++)
		if (vm->regions[i].hva < slot->hva + slot->bytes &&
		    slot->hva < vm->regions[i].hva + vm->regions[i].bytes)
			return true;
	return false;
}

/* Why its agent cannot exchange its RAM; empty: it can, at least in part. */
static void sense_slots(struct tracked_vm *t, const struct vm_snapshot *vm, const struct agent_peer *peer)
{
	const struct agent_slot_view *slots;
	size_t count = agent_peer_slots(peer, &slots);

	snprintf(t->slot_why, sizeof(t->slot_why), "its agent has not named this memory");
	for (size_t i = 0; i < count; i++) {
		if (!overlaps(vm, &slots[i]))
			continue;
		memcpy(t->slot_why, slots[i].why, sizeof(t->slot_why));
		if (slots[i].can_remap)
			return;
	}
}

static void sense_agent(struct ksmd *k, struct tracked_vm *t, const struct vm_snapshot *vm)
{
	struct agent *agent = k->agents ? agents_find(k->agents, vm->pid) : NULL;

	t->has_agent = agent != NULL;
	if (!agent || agent->lent) /* what was known still holds */
		return;
	snprintf(t->agent_why, sizeof(t->agent_why), "%s",
		 agent_peer_refusal(agent->peer) ? agent_peer_refusal(agent->peer) : "");
	snprintf(t->unmerge_why, sizeof(t->unmerge_why), "%s",
		 agent_peer_unmerge_refusal(agent->peer) ? agent_peer_unmerge_refusal(agent->peer) : "");
	sense_slots(t, vm, agent->peer);
	if (agent->released && t->table)
		page_table_disturb(t->table);
	if (agent->released && t->domain)
		sweep_soon(t->domain);
}

/* The kernel walks all mappings of the process for it: 0.3 ms with 6,000 of them, which merging by the agent makes. */
#define KSM_STAT_NS (30 * NSEC_PER_SEC)

/* Kernels before 6.17 do not say whether a VM gave its memory to KSM (and smaps, which does, makes the kernel walk all its
 * page tables). Then the command line decides; what cannot be known counts as given, because a VM that is overlooked could be
 * merged across domains. */
static void sense_ksm(struct ksmd *k, struct tracked_vm *t, struct vm_snapshot *vm, uint64_t now)
{
	enum ksm_marked marked = KSM_MARKED_UNKNOWN;

	if (t->possible != MERGE_ENGINE_REMAP || !t->ksm_ns || now - t->ksm_ns > KSM_STAT_NS) {
		if (ksm_kernel_read_vm(k->kernel, vm->pid, &marked, &vm->ksm_merging_pages) < 0)
			marked = KSM_MARKED_UNKNOWN;
		t->ksm_mergeable = marked == KSM_MARKED_YES || (marked == KSM_MARKED_UNKNOWN && vm->mem_merge);
		t->ksm_merging_pages = vm->ksm_merging_pages;
		t->ksm_ns = now;
	}
	vm->ksm_mergeable = t->ksm_mergeable;
	vm->ksm_merging_pages = t->ksm_merging_pages;
}

static void sense_vm(struct ksmd *k, struct tracked_vm *t, struct vm_snapshot *vm)
{
	uint64_t kib;
	char text[16384]; /* about 1.5 KB, but the list of groups may be long */
	uint64_t now = clock_mono_ns();

	sense_agent(k, t, vm);
	if (!t->hazards_ns || now - t->hazards_ns > (t->has_agent ? HAZARDS_NS : HAZARDS_IDLE_NS)) {
		t->hazard_count = hazards_find(k->fs, vm->pid, t->hazards);
		t->hazards_ns = now;
	}

	/* RssAnon is exact to within a batch of pages per CPU. */
	if (fsio_read(k->fs, text, sizeof(text), "/proc/%d/status", (int)vm->pid) > 0) {
		if (fsio_field_u64(text, "RssAnon", &kib) == 0)
			vm->rss_anon_bytes = kib * 1024;
		if (fsio_field_u64(text, "RssShmem", &kib) == 0)
			vm->rss_shmem_bytes = kib * 1024;
	}
	if (k->kernel)
		sense_ksm(k, t, vm, now);
}

/* The scanner must not run while nobody can see what it does, for whom, and at what price. */
static void scanner_unwatched(struct ksmd *k, int error)
{
	if (k->policy.state != KSM_MERGE)
		return;
	log_error("ksm stop why=\"its state cannot be read: %s\"", strerror(-error));
	ksm_policy_give_up(&k->policy, k->expected_pages);
	if (ksm_kernel_set(k->kernel, false, k->policy.pages_to_scan, k->policy.sleep_ms) < 0)
		k->left_running = true;
}

int ksmd_sense(void *m, struct host_snapshot *s)
{
	struct ksmd *k = m;

	s->cow_debt_bytes = k->debt.pages * PAGE_BYTES;
	if (k->kernel) {
		int r = ksm_kernel_read(k->kernel, &s->ksm);

		if (r < 0) {
			scanner_unwatched(k, r);
			return r;
		}
	}
	for (size_t i = 0; i < k->vm_count; i++)
		k->vms[i].seen = false;
	for (size_t i = 0; i < s->vm_count; i++) {
		struct tracked_vm *t = ksmd_track(k, &s->vms[i]);

		if (!t)
			t = track_new(k, &s->vms[i]);
		if (!t)
			return -ENOMEM;
		t->seen = true;
		sense_vm(k, t, &s->vms[i]);
	}
	untrack_gone(k);
	return 0;
}
