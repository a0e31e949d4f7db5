#include "bench/lib/sim_policy.h"

/* Periods are the shipped defaults. MOM: policy-engine-interval 10, *-monitor-interval 5 (doc/mom-balloon+ksm.conf);
 * KSM is a rule of the same policy. Proxmox: pvestatd's cycle of 10 s, guest-stats-polling-interval 2; ksmtuned is
 * installed with it. ksmtuned: KSM_MONITOR_INTERVAL 60. The rivals merge as well, as they do when installed: their
 * balloons alone are in the rows _balloon. */
const struct sim_policy sim_policies[] = {
	{ .name = "memvirt", .period = 1, .statistics = 1, .merger = MERGER_MEMVIRT, .overcommits = true,
	  .start = sim_memvirt_start, .decide = sim_memvirt_decide, .stop = sim_memvirt_stop },
	{ .name = "mom", .period = 10, .statistics = 5, .merger = MERGER_KSM, .merger_period = 10, .overcommits = true,
	  .start = sim_mom_start, .look = sim_mom_look, .decide = sim_mom_decide, .stop = sim_mom_stop },
	{ .name = "proxmox", .period = 10, .statistics = 2, .merger = MERGER_KSM, .merger_period = 60,
	  .overcommits = true, .decide = sim_proxmox_decide },
	{ .name = "ksmtuned", .period = 60, .statistics = 60, .merger = MERGER_KSM, .merger_period = 60,
	  .overcommits = true },
	{ .name = "static", .period = 60, .statistics = 60 },
	{ .name = "memvirt_balloon", .period = 1, .statistics = 1, .overcommits = true,
	  .start = sim_memvirt_start_unmerged, .decide = sim_memvirt_decide, .stop = sim_memvirt_stop },
	{ .name = "mom_balloon", .period = 10, .statistics = 5, .overcommits = true, .start = sim_mom_start,
	  .look = sim_mom_look, .decide = sim_mom_decide, .stop = sim_mom_stop },
	{ .name = "proxmox_balloon", .period = 10, .statistics = 2, .overcommits = true,
	  .decide = sim_proxmox_decide },
};
const size_t sim_policy_count = sizeof(sim_policies) / sizeof(sim_policies[0]);
const struct sim_policy *const sim_policy_ours = &sim_policies[0];
