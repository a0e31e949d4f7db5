/* bench/lib/sim_policy.h - what the simulator compares: who moves balloons, by which rule, and who merges.
 *
 * A policy sees the world as it was at the end of the last second, and says where the balloons are to go. All in MiB. */
#ifndef BENCH_SIM_POLICY_H
#define BENCH_SIM_POLICY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct sim_vm_view {
	size_t number; /* of the VM, for good */
	uint64_t restarts;
	double size, floor, actual, shares;
	double free, available, cache; /* the guest's word */
	double swap_in, swap_out;
	uint64_t major_faults, ooms;
	double rss; /* in the host's memory and not shared */
};

struct sim_view {
	int tick; /* counts up from 1 */
	double total, available, swap_total, swap_free;
	double merged;			/* saved on the whole host */
	double stall_some_s, stall_full_s; /* since the start: some VM, all VMs waited for the host's memory */
	const struct sim_vm_view *vms; /* those that run */
	size_t vm_count;
};

enum sim_merger { MERGER_NONE, MERGER_KSM, MERGER_MEMVIRT };

struct sim_policy {
	const char *name;
	int period;	      /* ticks between decisions */
	int statistics; /* ticks between its looks at the world */
	enum sim_merger merger;
	int merger_period; /* of MERGER_KSM: ticks between adjustments of the scanner */
	bool overcommits; /* false: no more VMs than fit with all of their memory */
	/* NULL: no balloon is moved. */
	int (*start)(size_t vms, void **ret_state); /* vms: numbers are below this. 0 or -ENOMEM */
	void (*look)(void *state, const struct sim_view *v); /* every "statistics" ticks; NULL: not before a decision */
	/* targets[i]: of v->vms[i], 0: as it is. 0, -ENOMEM, -EPROTO: the plan contradicts itself */
	int (*decide)(void *state, const struct sim_view *v, double *targets);
	void (*stop)(void *state); /* NULL ok */
};

extern const struct sim_policy sim_policies[];
extern const size_t sim_policy_count;
extern const struct sim_policy *const sim_policy_ours; /* with merging */

/* sim_rivals.c */
int sim_mom_start(size_t vms, void **ret_state);
void sim_mom_look(void *state, const struct sim_view *v);
int sim_mom_decide(void *state, const struct sim_view *v, double *targets);
void sim_mom_stop(void *state);
int sim_proxmox_decide(void *state, const struct sim_view *v, double *targets);

/* sim_memvirt.c */
int sim_memvirt_start(size_t vms, void **ret_state);
int sim_memvirt_start_unmerged(size_t vms, void **ret_state);
int sim_memvirt_decide(void *state, const struct sim_view *v, double *targets);
void sim_memvirt_stop(void *state);

#endif
