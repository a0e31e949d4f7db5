/* What ksmd looks at in a tick: the kernel's KSM counters, and per VM its resident and merged pages. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/clock.h"
#include "core/log.h"
#include "ksmd/ksmd_internal.h"

/* How often a kernel that does not say so in ksm_stat is asked whether a VM gave its memory to KSM: often while
 * it is new, as a VMM may be found before it has given anything. */
#define MARKED_ASK_NS (300 * NSEC_PER_SEC)
#define MARKED_ASK_NEW_NS (5 * NSEC_PER_SEC)
#define MARKED_NEW_NS (60 * NSEC_PER_SEC)

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
	*bigger = (struct tracked_vm){ .pid = vm->pid, .start_ticks = vm->start_ticks };
	return bigger;
}

/* Forgets the VMs that are not in the snapshot any more. */
static void untrack_gone(struct ksmd *k)
{
	size_t kept = 0;

	for (size_t i = 0; i < k->vm_count; i++) {
		if (!k->vms[i].seen) {
			page_table_unref(k->vms[i].table);
			continue;
		}
		k->vms[kept++] = k->vms[i];
	}
	k->vm_count = kept;
}

static void sense_marked(struct ksmd *k, struct tracked_vm *t, enum ksm_marked marked, uint64_t now)
{
	uint64_t pause = now - t->seen_first_ns < MARKED_NEW_NS ? MARKED_ASK_NEW_NS : MARKED_ASK_NS;

	if (marked != KSM_MARKED_UNKNOWN) {
		t->marked = marked == KSM_MARKED_YES;
		return;
	}
	if (t->marked_asked_ns && (t->marked || now - t->marked_asked_ns < pause))
		return;
	t->marked_asked_ns = now;
	t->marked = ksm_kernel_smaps_mergeable(k->kernel, t->pid);
}

static void sense_vm(struct ksmd *k, struct tracked_vm *t, struct vm_snapshot *vm, uint64_t now)
{
	enum ksm_marked marked;
	uint64_t kib;
	char text[4096];

	/* /proc/PID/status is about 1.5 KB; its RssAnon is exact to within a batch of pages per CPU. */
	if (fsio_read(k->fs, text, sizeof(text), "/proc/%d/status", (int)vm->pid) > 0 &&
	    fsio_field_u64(text, "RssAnon", &kib) == 0)
		vm->rss_anon_bytes = kib * 1024;
	if (!k->kernel)
		return;
	if (ksm_kernel_read_vm(k->kernel, vm->pid, &marked, &vm->ksm_merging_pages) < 0)
		return; /* it ended; the registry will say so */
	sense_marked(k, t, marked, now);
	vm->ksm_mergeable = t->marked;
}

int ksmd_sense(void *m, struct host_snapshot *s)
{
	struct ksmd *k = m;

	if (k->kernel) {
		int r = ksm_kernel_read(k->kernel, &s->ksm);

		if (r < 0)
			return r;
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
		if (!t->seen_first_ns)
			t->seen_first_ns = s->taken_ns;
		sense_vm(k, t, &s->vms[i], s->taken_ns);
	}
	untrack_gone(k);
	return 0;
}
