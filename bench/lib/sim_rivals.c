/* The rules of others, from their sources:
 *
 * MOM: oVirt/vdsm static/etc/vdsm/mom.d/02-balloon.policy, the same rule as oVirt/mom doc/balloon.rules.
 * Proxmox: pve-manager PVE/AutoBalloon.pm (compute_alg1) and PVE/Service/pvestatd.pm (auto_balloning). */
#include <errno.h>
#include <math.h>
#include <stdlib.h>

#include "bench/lib/sim_policy.h"

/* ---- MOM ---- */

#define MOM_PRESSURE 0.20      /* pressure_threshold */
#define MOM_CRITICAL 0.05      /* pressure_critical */
#define MOM_GUEST_FREE 0.20    /* min_guest_free_percent */
#define MOM_CHANGE_MAX 0.05    /* max_balloon_change_percent */
#define MOM_CHANGE_MIN 0.0025  /* min_balloon_change_percent */
#define MOM_HISTORY 10	       /* sample-history-length: StatAvg is over so many samples */

struct mom_samples {
	double value[MOM_HISTORY];
	size_t count; /* ever taken */
};

struct mom {
	struct mom_samples host_free;
	struct mom_samples *used; /* of each guest: balloon_cur - mem_unused */
};

static void sample(struct mom_samples *s, double value)
{
	s->value[s->count++ % MOM_HISTORY] = value;
}

static double average(const struct mom_samples *s)
{
	size_t count = s->count < MOM_HISTORY ? s->count : MOM_HISTORY;
	double sum = 0;

	for (size_t i = 0; i < count; i++)
		sum += s->value[i];
	return count > 0 ? sum / (double)count : 0;
}

int sim_mom_start(size_t vms, void **ret_state)
{
	struct mom *m = calloc(1, sizeof(*m));

	if (!m)
		return -ENOMEM;
	m->used = calloc(vms, sizeof(*m->used));
	if (!m->used) {
		free(m);
		return -ENOMEM;
	}
	*ret_state = m;
	return 0;
}

void sim_mom_stop(void *state)
{
	struct mom *m = state;

	if (m)
		free(m->used);
	free(m);
}

void sim_mom_look(void *state, const struct sim_view *v)
{
	struct mom *m = state;

	sample(&m->host_free, v->available);
	for (size_t i = 0; i < v->vm_count; i++) {
		const struct sim_vm_view *vm = &v->vms[i];

		/* mem_unused is libvirt's "unused": free memory without caches. */
		sample(&m->used[vm->number], vm->actual - vm->free);
	}
}

/* 0: no change that is worth it. */
static double mom_guest(const struct sim_vm_view *vm, double used, double host_free)
{
	double guest_free = host_free <= MOM_CRITICAL ? host_free - MOM_CRITICAL
						      : MOM_GUEST_FREE * (host_free / MOM_PRESSURE);
	double least = fmax(vm->floor, used + guest_free * vm->actual), wanted;

	if (host_free < MOM_PRESSURE) {
		wanted = fmax(vm->actual * (1 - MOM_CHANGE_MAX), least);
		if (wanted > vm->actual)
			wanted = vm->actual;
	} else {
		wanted = fmin(fmax(vm->actual * (1 + MOM_CHANGE_MAX), least), vm->size);
	}
	if (fabs(wanted - vm->actual) <= MOM_CHANGE_MIN * vm->actual)
		wanted = 0;
	/* guest_qos: whatever was said above. */
	return vm->actual < vm->floor ? vm->floor : wanted;
}

int sim_mom_decide(void *state, const struct sim_view *v, double *targets)
{
	struct mom *m = state;
	double host_free = average(&m->host_free) / v->total;

	for (size_t i = 0; i < v->vm_count; i++) {
		const struct mom_samples *used = &m->used[v->vms[i].number];

		targets[i] = used->count > 0 ? mom_guest(&v->vms[i], average(used), host_free) : 0;
	}
	return 0;
}

/* ---- Proxmox ---- */

#define PVE_TARGET 0.80	   /* ballooning-target: of the host's memory in use */
#define PVE_DEAD_MIB 10.0  /* no change below this */
#define PVE_STEP_MIB 100.0 /* maxchange, of one VM */
#define PVE_PRESSURE 0.25  /* of balloon_min free, or less: the VM is short */

struct pve {
	const struct sim_view *v;
	double *targets;
	bool *done;
	double goal;
};

static bool pve_is_short(const struct sim_vm_view *vm)
{
	return vm->free <= 0 || vm->free <= vm->floor * PVE_PRESSURE || vm->actual < vm->floor;
}

static bool pve_takes_part(const struct sim_vm_view *vm, int which)
{
	return which < 0 || pve_is_short(vm) == (which == 1);
}

/* One round of change_func. Returns whether another is due. */
static bool pve_round(struct pve *p, int which, double *rest)
{
	double shares = 0, allocated = *rest, changes = 0;
	bool repeat = false, progress = false;

	for (size_t i = 0; i < p->v->vm_count; i++) {
		const struct sim_vm_view *vm = &p->v->vms[i];

		if (p->done[i] || !pve_takes_part(vm, which))
			continue;
		allocated += (p->targets[i] > 0 ? p->targets[i] : vm->actual) - vm->floor;
		shares += vm->shares;
	}
	for (size_t i = 0; i < p->v->vm_count; i++) {
		const struct sim_vm_view *vm = &p->v->vms[i];
		double desired = vm->floor + allocated / shares * vm->shares, before, wanted;

		if (p->done[i] || !pve_takes_part(vm, which))
			continue;
		if (desired > vm->size || desired < vm->floor)
			repeat = true;
		desired = fmax(fmin(desired, vm->size), vm->floor);
		if (p->goal > 0 && desired > vm->actual) {
			wanted = fmin(desired, vm->actual + PVE_STEP_MIB);
		} else if (desired < vm->actual) {
			wanted = fmax(desired, vm->actual - PVE_STEP_MIB);
		} else {
			p->done[i] = true;
			continue;
		}
		before = p->targets[i] > 0 ? p->targets[i] : vm->actual;
		p->targets[i] = wanted;
		/* The source counts bytes in integers: less than one is no change. */
		if (fabs(wanted - before) < 1e-6)
			continue;
		changes += wanted - before;
		repeat = progress = true;
	}
	*rest -= changes;
	return repeat && progress && fabs(*rest) >= 1e-6;
}

static double pve_change(struct pve *p, int which, double rest)
{
	for (size_t i = 0; i < p->v->vm_count; i++)
		p->done[i] = false;
	while (pve_round(p, which, &rest))
		;
	return rest;
}

int sim_proxmox_decide(void *state, const struct sim_view *v, double *targets)
{
	struct pve p = { .v = v, .targets = targets, .goal = v->total * PVE_TARGET - (v->total - v->available) };
	double rest;

	(void)state;
	for (size_t i = 0; i < v->vm_count; i++)
		targets[i] = 0;
	if (fabs(p.goal) <= PVE_DEAD_MIB || v->vm_count == 0)
		return 0;
	p.done = calloc(v->vm_count, sizeof(*p.done));
	if (!p.done)
		return -ENOMEM;
	/* First those that are short get some, or those that are not give some; all, if that changes nothing. */
	rest = pve_change(&p, p.goal > 0 ? 1 : 0, p.goal);
	if (p.goal > 0 ? rest >= p.goal : rest <= p.goal)
		pve_change(&p, -1, rest);
	free(p.done);
	return 0;
}
