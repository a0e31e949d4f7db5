/* What the module looks at in a tick: what was told of balloons and guests, and how much of guest RAM is resident. */
#include <string.h>
#include <time.h>

#include "balloon/balloon_internal.h"
#include "balloon/resident.h"
#include "core/clock.h"
#include "core/log.h"

/* What a guest tells at a tick was asked of it so long before, and of its VMM that much: a guest answers in milliseconds. */
#define REFRESH_AHEAD_NS (150 * NSEC_PER_MSEC)
#define ASK_AHEAD_NS (50 * NSEC_PER_MSEC)

/* While the host has room and the balloon is empty, a guest is asked this often: its demand is known when it is needed. */
#define CALM_PERIOD_S 10
/* A balloon that is let go keeps what is not worth a command. */
#define NEARLY_EMPTY_BYTES (UINT64_C(4) << 20)

/* VMs whose resident memory is counted in one tick, at 1 ms each. */
#define RESIDENT_PER_TICK 4

/* ---- asking ---- */

static bool is_calm(const struct balloon *b, const struct vm *vm)
{
	const struct balloon_told *told = balloon_vm_told(vm);

	return (!b->plan.ladder || b->plan.ladder->state < HOST_SOFT) && told &&
	       told->actual_bytes + NEARLY_EMPTY_BYTES >= told->max_bytes;
}

static bool is_due(const struct balloon *b, const struct vm *vm, uint64_t now_ns)
{
	const struct balloon_vm *v = vm->balloon;

	return !is_calm(b, vm) || !balloon_vm_told(vm)->stats_told_ns ||
	       now_ns - v->asked_ns >= CALM_PERIOD_S * NSEC_PER_SEC - REFRESH_AHEAD_NS;
}

static int on_ask_timer(sd_event_source *source, uint64_t usec, void *userdata)
{
	struct balloon *b = userdata;
	uint64_t now_ns = clock_mono_ns();
	bool libvirt_due = false;

	(void)usec;
	for (struct vm *vm = vmm_registry_first(b->registry); vm; vm = vm->next) {
		struct balloon_vm *v = vm->balloon;

		if (!v || !is_due(b, vm, now_ns))
			continue;
		libvirt_due |= balloon_by_libvirt(vm);
		/* How often it is asked is a setting of the VM: a dry run sees what is told anyway. */
		if (!b->refreshed && !b->fs->dry_run) {
			port_qmp_refresh(v->qmp, is_calm(b, vm) ? CALM_PERIOD_S : 1);
		} else if (b->refreshed) {
			port_qmp_ask(v->qmp);
			v->asked_ns = now_ns;
		}
	}
	/* libvirt asks guests by itself, once a second; what it knows takes one call for all. */
	if (b->libvirt && libvirt_due && !b->refreshed)
		port_libvirt_ask(b->libvirt);
	b->refreshed = !b->refreshed;
	if (!b->refreshed)
		return 0;
	sd_event_source_set_time(source, (now_ns + REFRESH_AHEAD_NS - ASK_AHEAD_NS) / 1000);
	return sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
}

void balloon_ask_later(struct balloon *b)
{
	uint64_t tick_ns = b->config->tick_ms * NSEC_PER_MSEC;
	uint64_t at_us = (clock_mono_ns() + (tick_ns > REFRESH_AHEAD_NS ? tick_ns - REFRESH_AHEAD_NS : 0)) / 1000;

	/* Ticks may be shorter than it takes a guest to answer. */
	if (b->refreshed)
		return;
	if (!b->ask_timer) {
		sd_event_add_time(b->loop, &b->ask_timer, CLOCK_MONOTONIC, at_us, 1, on_ask_timer, b);
		return;
	}
	sd_event_source_set_time(b->ask_timer, at_us);
	sd_event_source_set_enabled(b->ask_timer, SD_EVENT_ONESHOT);
}

/* ---- taking in ---- */

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
		struct balloon_vm *v = balloon_vm_of(vm);

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
