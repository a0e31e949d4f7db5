#include "balloon/doctor.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>

#include "core/clock.h"

/* A guest is asked at the second tick after its VM was found, and answers in milliseconds. */
#define ANSWER_NS (10 * NSEC_PER_SEC)

struct report {
	const struct doctor_facts *facts;
	struct doctor_finding *findings;
	size_t count;
};

/* Where a fix is written: both ways are given at each finding, and the VM's own is taken. */
struct fix {
	const char *libvirt, *qemu;
};

__attribute__((format(printf, 5, 6))) static void add(struct report *r, enum doctor_severity severity, const char *why,
						      struct fix fix, const char *fmt, ...)
{
	struct doctor_finding *f;
	va_list args;

	if (r->count == DOCTOR_FINDINGS_MAX)
		return;
	f = &r->findings[r->count++];
	*f = (struct doctor_finding){ .severity = severity, .why = why,
				      .fix = r->facts->libvirt ? fix.libvirt : fix.qemu };
	va_start(args, fmt);
	vsnprintf(f->what, sizeof(f->what), fmt, args);
	va_end(args);
}

static struct fix same_fix(const char *text)
{
	return (struct fix){ text, text };
}

/* ---- can it be reached, is there a balloon ---- */

static void look_reached(struct report *r)
{
	static const char why[] = "nobody can see or move its balloon";
	const struct doctor_facts *f = r->facts;

	if (f->libvirt)
		add(r, DOCTOR_ERROR, why,
		    same_fix("memvirt.conf: [vmm] libvirt = qemu:///system; and a libvirt that answers: virsh -c qemu:///system "
			     "list"),
		    "libvirt is not reached: %.128s", f->vm->balloon.why);
	else if (!f->has_monitor)
		add(r, DOCTOR_ERROR, why,
		    same_fix("QEMU: -qmp unix:/run/NAME.qmp,server=on,wait=off; or memvirt.conf: [vm NAME] qmp = PATH of a QMP "
			     "socket that it has"),
		    "it has no QMP socket");
	else
		add(r, DOCTOR_ERROR, why,
		    same_fix("a QMP socket serves one client: QEMU: a second -qmp unix:/run/NAME.qmp,server=on,wait=off, and "
			     "memvirt.conf: [vm NAME] qmp = /run/NAME.qmp"),
		    "its QMP socket is not reached: %.128s", f->vm->balloon.why);
}

static void look_device(struct report *r)
{
	if (r->facts->vm->balloon.device == BALLOON_DEVICE_UNKNOWN) {
		add(r, DOCTOR_NOTE, "", same_fix(""), "not known yet whether it has a balloon device");
		return;
	}
	add(r, DOCTOR_ERROR, "without one no memory can be taken from the guest or given back",
	    (struct fix){
		    "virsh edit, in <devices>: <memballoon model='virtio' autodeflate='on' freePageReporting='on'>"
		    "<stats period='5'/></memballoon>; from the next start on",
		    "QEMU: -device virtio-balloon-pci,deflate-on-oom=on,free-page-reporting=on",
	    },
	    "no balloon device");
}

/* ---- does the guest answer ---- */

static void look_silent(struct report *r)
{
	const struct doctor_facts *f = r->facts;

	if (!f->vm->running)
		add(r, DOCTOR_NOTE, "", same_fix(""), "paused: whether its guest has a balloon driver is not known");
	else if (!f->asks && f->told && !f->told->period_s)
		add(r, DOCTOR_NOTE, "", same_fix("start memvirtd, which asks the guest"),
		    "no daemon runs: whether its guest has a balloon driver is not known");
	else if (f->taken_ns - f->vm->found_ns < ANSWER_NS)
		add(r, DOCTOR_NOTE, "", same_fix("ask again in a few seconds"), "found just now: its guest has not answered yet");
	else if (f->told && !f->told->period_s && f->libvirt)
		add(r, DOCTOR_ERROR, "memory is taken only from guests that tell how they are doing",
		    same_fix("virsh edit, in <memballoon>: <stats period='5'/>; at once: virsh dommemstat NAME --period 5 --live"),
		    "its guest is not asked for statistics, and that could not be changed");
	else
		add(r, DOCTOR_ERROR, "memory is taken only from guests that tell how they are doing",
		    same_fix("in the guest: modprobe virtio_balloon (Linux), or the balloon driver and service of virtio-win "
			     "(Windows)"),
		    "no balloon driver in the guest: it never answered");
}

static void look_stats(struct report *r)
{
	const struct vm_balloon *b = &r->facts->vm->balloon;

	switch (b->stats) {
	case GUEST_STATS_NONE:
		look_silent(r);
		break;
	case GUEST_STATS_STALE:
		if (r->facts->vm->running)
			add(r, DOCTOR_ERROR, "memory is taken only from guests that tell how they are doing",
			    same_fix("look at the guest: it hangs, or its balloon driver was unloaded"),
			    "its guest does not answer any more");
		break;
	case GUEST_STATS_ABSURD:
		add(r, DOCTOR_ERROR, "what contradicts itself is not acted on", same_fix("update the guest's balloon driver"),
		    "%.160s", b->why);
		break;
	case GUEST_STATS_GOOD:
		break;
	}
}

/* ---- is it as useful as it could be ---- */

static void look_options(struct report *r)
{
	const struct balloon_told *told = r->facts->told;

	if (!told || !told->options_known)
		return;
	if (!told->reporting)
		add(r, DOCTOR_WARNING, "memory that the guest frees stays taken from the host until the balloon asks for it",
		    (struct fix){ "virsh edit: <memballoon model='virtio' freePageReporting='on'>; from the next start on",
				  "QEMU: -device virtio-balloon-pci,free-page-reporting=on" },
		    "free page reporting is off");
	if (!told->deflate_on_oom)
		add(r, DOCTOR_WARNING,
		    "a guest that runs out of memory between two ticks kills a process instead of using the balloon's memory",
		    (struct fix){ "virsh edit: <memballoon model='virtio' autodeflate='on'>; from the next start on",
				  "QEMU: -device virtio-balloon-pci,deflate-on-oom=on" },
		    "deflate-on-oom is off");
}

static void look_memory(struct report *r)
{
	const struct vm_snapshot *vm = r->facts->vm;
	bool hugetlb = false;

	for (size_t i = 0; i < vm->region_count; i++)
		hugetlb = hugetlb || vm->regions[i].backing == MEM_HUGETLB;
	if (vm->mem_lock)
		add(r, DOCTOR_ERROR, "what the balloon takes from the guest does not come back to the host",
		    (struct fix){ "virsh edit: remove <locked/> from <memoryBacking>; from the next start on",
				  "QEMU: -overcommit mem-lock=off" },
		    "its memory is locked");
	if (hugetlb)
		add(r, DOCTOR_WARNING,
		    "a balloon takes 4 KiB pages; a huge page of the pool comes back only when all of it was taken",
		    (struct fix){ "virsh edit: remove <hugepages/> from <memoryBacking>; from the next start on",
				  "QEMU: a memory backend without hugetlb=on, or off the hugetlbfs mount" },
		    "its memory is of a huge page pool");
}

static void look_effect(struct report *r)
{
	if (r->facts->block == BLOCK_STALLED)
		add(r, DOCTOR_WARNING, "no memory is taken from it until it moves",
		    same_fix("look at the guest: it has nothing to give, or its driver hangs"), "its balloon does not move");
	else if (r->facts->block == BLOCK_NO_EFFECT)
		add(r, DOCTOR_ERROR, "taking memory from the guest hurts it and brings nothing",
		    same_fix("no devices of the host assigned (VFIO), no locked memory, no huge page pool"),
		    "what its balloon took did not come back to the host");
}

/* ---- does the configuration contradict itself ---- */

static void look_limits(struct report *r)
{
	const struct vm_snapshot *vm = r->facts->vm;
	uint64_t size = vm->balloon.max_bytes ? vm->balloon.max_bytes : vm->ram_bytes;
	uint64_t most = vm->limit_bytes && vm->limit_bytes < size ? vm->limit_bytes : size;

	if (vm->limit_bytes && vm->reservation_bytes > vm->limit_bytes)
		add(r, DOCTOR_ERROR, "the limit counts, and the reservation is not kept",
		    same_fix("memvirt.conf: [vm NAME] limit = 0, or a smaller reservation; a later section that matches wins"),
		    "reservation of %" PRIu64 " MiB above its limit of %" PRIu64 " MiB", vm->reservation_bytes >> 20,
		    vm->limit_bytes >> 20);
	else if (size && vm->reservation_bytes > size)
		add(r, DOCTOR_WARNING, "no more than its size can be kept for it",
		    same_fix("memvirt.conf: [vm NAME] reservation, at most the VM's size"),
		    "reservation of %" PRIu64 " MiB above its size of %" PRIu64 " MiB", vm->reservation_bytes >> 20, size >> 20);
	else if (size && vm->reservation_bytes == most)
		add(r, DOCTOR_NOTE, "", same_fix(""), "all of its memory is reserved: nothing is ever taken from it");
	if (r->facts->host_bytes && vm->reservation_bytes > r->facts->host_bytes)
		add(r, DOCTOR_ERROR, "it cannot be kept",
		    same_fix("memvirt.conf: [vm NAME] reservation, less than the host's memory"),
		    "reservation of %" PRIu64 " MiB above the host's %" PRIu64 " MiB", vm->reservation_bytes >> 20,
		    r->facts->host_bytes >> 20);
}

static void sort(struct doctor_finding *findings, size_t count)
{
	for (size_t i = 1; i < count; i++) {
		struct doctor_finding f = findings[i];
		size_t at = i;

		for (; at > 0 && findings[at - 1].severity < f.severity; at--)
			findings[at] = findings[at - 1];
		findings[at] = f;
	}
}

size_t balloon_doctor(const struct doctor_facts *f, struct doctor_finding ret_findings[DOCTOR_FINDINGS_MAX])
{
	struct report r = { .facts = f, .findings = ret_findings };

	if (!f->vm->balloon_allowed) {
		add(&r, DOCTOR_NOTE, "", same_fix(""), "off by configuration: its balloon is not moved");
		return r.count;
	}
	if (!f->vm->balloon.driver) {
		look_reached(&r);
	} else if (f->vm->balloon.device != BALLOON_DEVICE_PRESENT) {
		look_device(&r);
	} else {
		look_stats(&r);
		look_options(&r);
		look_effect(&r);
	}
	look_memory(&r);
	look_limits(&r);
	sort(ret_findings, r.count);
	return r.count;
}

const char *doctor_severity_name(enum doctor_severity severity)
{
	static const char *const names[] = { "note", "warning", "error" };

	return names[severity];
}
