/* What the module looks at in a tick: what was told of balloons and guests, and how much of guest RAM is resident. */
#include <string.h>
#include <time.h>

#include "balloon/balloon_internal.h"
#include "balloon/resident.h"
#include "core/clock.h"
#include "core/log.h"

/* VMs whose resident memory is counted in one tick, at 1 ms each. */
#define RESIDENT_PER_TICK 4

bool balloon_by_libvirt(const struct vm *vm)
{
	return vm->cmdline.libvirt && !*vm->qmp_path;
}

const struct balloon_told *balloon_told_now(struct balloon *b, const struct vm *vm, struct balloon_vm *v)
{
	if (!balloon_by_libvirt(vm))
		return port_qmp_told(v->qmp);
	v->libvirt = (struct balloon_told){ .why = "its monitor belongs to libvirt, which is not asked" };
	if (b->libvirt) {
		port_libvirt_want(b->libvirt);
		v->libvirt_known = port_libvirt_told(b->libvirt, vm->uuid, vm->pid, &v->libvirt);
	}
	return &v->libvirt;
}

static void reach(const struct vm *vm, const struct balloon_vm *v, const struct balloon_told *told, struct vm_balloon *out)
{
	if (vm->qmp)
		out->driver = "qmp";
	else if (balloon_by_libvirt(vm) && v->libvirt_known)
		out->driver = "libvirt";
	if (*told->why && (out->driver || balloon_by_libvirt(vm)))
		out->why = told->why;
	else if (!out->driver)
		out->why = vm->why;
}

static void sense_vm(struct balloon *b, const struct vm *vm, struct balloon_vm *v, struct vm_snapshot *s, uint64_t now_ns)
{
	const struct balloon_told *told = balloon_told_now(b, vm, v);
	struct vm_balloon *out = &s->balloon;

	s->balloon_allowed = s->balloon_allowed && b->config->balloon_control;
	*out = (struct vm_balloon){ .why = "", .device = told->device, .actual_bytes = told->actual_bytes,
				    .told_ns = told->told_ns, .resets = vm->resets + told->resets,
				    .max_bytes = told->max_bytes ? told->max_bytes : vm->ram_bytes };
	stats_take(&v->age, told, now_ns, (int64_t)time(NULL), out);
	reach(vm, v, told, out);
	s->ram_resident_bytes = v->resident_bytes;
	s->ram_resident_ns = v->resident_ns;
}

static bool wants_counting(const struct balloon *b, const struct vm_snapshot *s)
{
	return s->region_count > 0 && s->balloon.device == BALLOON_DEVICE_PRESENT &&
	       (s->balloon.actual_bytes < s->balloon.max_bytes || (b->plan.ladder && b->plan.ladder->state >= HOST_SOFT));
}

/* Some VMs in each tick, in turn: what was counted is seconds old on a host of many. */
static void resident_count(struct balloon *b, struct vm_snapshot *s, struct balloon_vm *v)
{
	int r = resident_estimate(b->fs, s->pid, s->regions, s->region_count, &v->resident_bytes);

	v->resident_ns = r == 0 ? clock_mono_ns() : 0;
	s->ram_resident_bytes = v->resident_bytes;
	s->ram_resident_ns = v->resident_ns;
}

int balloon_sense(void *m, struct host_snapshot *s)
{
	struct balloon *b = m;
	size_t i = 0, counted = 0;

	for (struct vm *vm = vmm_registry_first(b->registry); vm && i < s->vm_count; vm = vm->next, i++) {
		struct balloon_vm *v = balloon_vm_of(b, vm);

		/* One that cannot be had has no balloon; the snapshot's zeroes say so. */
		if (!v) {
			s->vms[i].balloon.why = "out of memory";
			continue;
		}
		sense_vm(b, vm, v, &s->vms[i], s->taken_ns);
		if (i >= b->resident_next && counted < RESIDENT_PER_TICK && wants_counting(b, &s->vms[i])) {
			resident_count(b, &s->vms[i], v);
			b->resident_next = i + 1;
			counted++;
		}
	}
	if (counted < RESIDENT_PER_TICK)
		b->resident_next = 0;
	s->admitted_bytes = b->promised_bytes = admit_tick(&b->admit, s);
	return 0;
}
