/* bench/lib/sim: the simulated guests and rivals are what they claim to be, and balloon/policy.h hosts more VMs than any
 * rival without its targets turning round. No time is measured; every run is the same. */
#include "bench/lib/sim.h"

#include <math.h>

#include "bench/lib/sim_guest.h"
#include "tests/unit/unit.h"

/* Small enough for all searches to take seconds. */
#define HOST_MIB 65536.0
/* Here one VM is one in a hundred. */
#define SEARCH_HOST_MIB 131072.0
/* The sanitizers' programs are several times slower. */
#define SEEDS (UNIT_SANITIZED ? 3 : 12)
#define TURNS_MAX 2

static struct sim_options options(void)
{
	struct sim_options o = SIM_OPTIONS_DEFAULT;

	o.host_mib = HOST_MIB;
	o.host_swap_mib = 1024;
	return o;
}

static bool is_ours(const struct sim_policy *p)
{
	return strncmp(p->name, "memvirt", 7) == 0;
}

static void check_ours(const char *what, const struct sim_result *r)
{
	UNIT_CASE(what, r->direction_changes_max <= TURNS_MAX);
	UNIT_CASE(what, r->floor_violations == 0);
	UNIT_CASE(what, r->absurd_targets == 0);
}

/* ---- the guest ---- */

static void guest_settle(struct sim_guest *g, const struct sim_demand *d, int seconds)
{
	while (seconds-- > 0)
		sim_guest_step(g, d, 0);
}

static struct sim_guest guest_new(double swap)
{
	return (struct sim_guest){ .size = 4096, .actual = 4096, .target = 4096, .swap_size = swap, .started = true };
}

static void test_simulate_guest_squeezed_pays_in_order(void)
{
	struct sim_demand d = { .kernel = 160, .active = 800, .idle = 400, .hot = 400, .cold_mib_s = 100 };
	struct sim_guest g = guest_new(1024);

	guest_settle(&g, &d, 100);
	CU_ASSERT_DOUBLE_EQUAL(sim_guest_used(&g), 4096 * 0.99, 1); /* cache fills what there is, but for a watermark */
	CU_ASSERT_DOUBLE_EQUAL(g.touched, sim_guest_used(&g), 41);
	d.cold_mib_s = 0;
	guest_settle(&g, &d, 100);
	g.target = 2000; /* more than the 1760 in use: only cold cache goes, which nobody misses */
	guest_settle(&g, &d, 30);
	CU_ASSERT_DOUBLE_EQUAL(g.actual, 2000, 1);
	CU_ASSERT(g.touched <= 2000);
	CU_ASSERT_EQUAL(g.stalled, 0);
	CU_ASSERT_EQUAL(g.hot_out + g.idle_out + g.active_out, 0);
	g.target = 1600; /* idle memory and cache in use go; the latter is read again and again */
	guest_settle(&g, &d, 60);
	CU_ASSERT(g.hot_out > 0 && g.idle_out > 0);
	CU_ASSERT_EQUAL(g.active_out, 0);
	CU_ASSERT(g.stalled > 0 && g.stalled < 0.5);
	g.target = 700; /* less than what it uses every second */
	guest_settle(&g, &d, 120);
	CU_ASSERT(g.active_out > 0);
	CU_ASSERT(g.stalled > 0.9);
	CU_ASSERT_EQUAL(g.ooms, 0);
	g.target = 4096; /* and all is well again */
	guest_settle(&g, &d, 600);
	CU_ASSERT(g.stalled < 0.01);
	CU_ASSERT(g.active_out < 1 && g.hot_out < 1);
}

static void test_simulate_guest_without_swap_kills(void)
{
	struct sim_demand d = { .kernel = 160, .active = 800, .idle = 400, .hot = 100 };
	struct sim_guest g = guest_new(0);

	g.actual = g.target = 1024;
	guest_settle(&g, &d, 3);
	CU_ASSERT(g.ooms > 0);
}

static void test_simulate_guest_memory_freed_goes_to_host(void)
{
	struct sim_demand d = { .kernel = 160, .active = 3000 };
	struct sim_guest g = guest_new(0);

	guest_settle(&g, &d, 10);
	CU_ASSERT_DOUBLE_EQUAL(g.touched, 3160, 1);
	d.active = 100;
	guest_settle(&g, &d, 30);
	/* A tenth of what is free is in pieces too small to be reported. */
	CU_ASSERT_DOUBLE_EQUAL(g.touched, 260 + 0.1 * (4096 - 260), 1);
}

/* ---- rivals ---- */

/* From pve-manager's own test of its rule; its GB are 1000 MB. */
static void test_simulate_proxmox_gives_its_own_tests_results(void)
{
	static const struct {
		double goal, max, floor[3], actual[3], free[3], shares[3], expected[3];
		size_t vms;
	} cases[] = {
		{ 0, 2000, { 1000, 1000 }, { 1000, 1000 }, { 0 }, { 2000, 1000 }, { 0, 0 }, 2 },
		{ 90, 2000, { 1000, 1000 }, { 1000, 1000 }, { 0 }, { 2000, 1000 }, { 1060, 1030 }, 2 },
		{ 150, 2000, { 1000, 1000 }, { 1000, 1000 }, { 0 }, { 2000, 1000 }, { 1100, 1050 }, 2 },
		{ 270, 2000, { 1000, 1000 }, { 1000, 1000 }, { 0 }, { 2000, 1000 }, { 1100, 1090 }, 2 },
		{ 18, 2000, { 2000, 1000 }, { 2000, 1000 }, { 0 }, { 2000, 1000 }, { 0, 1018 }, 2 },
		{ 500, 2000, { 2000, 1000 }, { 2000, 1000 }, { 0 }, { 2000, 1000 }, { 0, 1100 }, 2 },
		{ 11, 2000, { 2000, 1000, 1000 }, { 2000, 1007, 1000 }, { 0, 0, 512 }, { 2000, 1000, 1000 },
		  { 0, 1018, 0 }, 3 },
		{ 80, 2000, { 2000, 1000, 1000 }, { 2000, 1007, 1000 }, { 0, 0, 512 }, { 2000, 1000, 1000 },
		  { 0, 1087, 0 }, 3 },
		{ 200, 2000, { 2000, 1000, 1000 }, { 2000, 1007, 1000 }, { 0, 0, 512 }, { 2000, 1000, 1000 },
		  { 0, 1107, 0 }, 3 },
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct sim_vm_view vms[3] = { 0 };
		struct sim_view v = { .total = 100000, .available = 20000 + cases[i].goal, .vms = vms,
				      .vm_count = cases[i].vms };
		double targets[3];
		char what[32];

		snprintf(what, sizeof(what), "case %zu", i);
		for (size_t k = 0; k < v.vm_count; k++)
			vms[k] = (struct sim_vm_view){ .number = k, .size = cases[i].max, .floor = cases[i].floor[k],
						       .actual = cases[i].actual[k], .free = cases[i].free[k],
						       .shares = cases[i].shares[k] };
		CU_ASSERT_EQUAL(sim_proxmox_decide(NULL, &v, targets), 0);
		for (size_t k = 0; k < v.vm_count; k++)
			UNIT_CASE(what, fabs(targets[k] - cases[i].expected[k]) < 0.01);
	}
}

static void test_simulate_mom_follows_its_rule(void)
{
	static const struct {
		double host_free, actual, free, expected;
	} cases[] = {
		{ 0.30, 4096, 1000, 0 },    /* room, and all is given */
		{ 0.30, 2000, 500, 2100 },  /* room: 5 % more */
		{ 0.30, 2000, 100, 2500 },  /* or as much as three tenths free need: 1900 used + 600 */
		{ 0.10, 4000, 2000, 3800 }, /* short: 5 % less */
		{ 0.10, 4000, 500, 3900 },  /* a tenth is to stay free: 3500 used + 400 */
		{ 0.10, 4000, 404, 0 },	    /* below a quarter of a percent: not worth it */
		{ 0.02, 4000, 40, 3840 },   /* in need: guests swap, 3960 used - 120 */
		{ 0.02, 1500, 40, 1433.6 }, /* but not below what they are guaranteed */
		{ 0.30, 1000, 900, 1433.6 },
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct sim_vm_view vm = { .size = 4096, .floor = 4096 * 0.35, .actual = cases[i].actual,
					  .free = cases[i].free };
		struct sim_view v = { .total = 100000, .available = 100000 * cases[i].host_free, .vms = &vm,
				      .vm_count = 1 };
		double target = -1;
		char what[32];
		void *state;

		snprintf(what, sizeof(what), "case %zu", i);
		unit_must(sim_mom_start(1, &state) == 0, "sim_mom_start");
		sim_mom_look(state, &v);
		CU_ASSERT_EQUAL(sim_mom_decide(state, &v, &target), 0);
		UNIT_CASE(what, fabs(target - cases[i].expected) < 1);
		sim_mom_stop(state);
	}
}

/* ---- everybody ---- */

static void test_simulate_same_seed_same_result(void)
{
	struct sim_options o = options();
	struct sim_result a, b;

	o.ticks_max = 600;
	CU_ASSERT_EQUAL(sim_run(&o, TRACE_BURST, sim_policy_ours, 30, false, &a), 0);
	CU_ASSERT_EQUAL(sim_run(&o, TRACE_BURST, sim_policy_ours, 30, false, &b), 0);
	CU_ASSERT_EQUAL(memcmp(&a, &b, sizeof(a)), 0);
	o.seed++;
	CU_ASSERT_EQUAL(sim_run(&o, TRACE_BURST, sim_policy_ours, 30, false, &b), 0);
	CU_ASSERT(memcmp(&a, &b, sizeof(a)) != 0);
}

static void test_simulate_overcommitted_without_policy_kills(void)
{
	struct sim_options o = options();
	struct sim_result r;

	CU_ASSERT_EQUAL(sim_run(&o, TRACE_LEAK, &sim_policies[3], 40, false, &r), 0);
	CU_ASSERT(r.host_ooms > 0);
	CU_ASSERT_FALSE(sim_result_is_good(&o, &r));
}

static void test_simulate_every_trace_more_vms_than_any_rival(void)
{
	struct sim_options o = options();

	o.host_mib = SEARCH_HOST_MIB;
	for (enum sim_trace t = 0; t < TRACES; t++) {
		struct sim_result ours;

		unit_must(sim_search(&o, t, sim_policy_ours, &ours) == 0, "sim_search");
		UNIT_CASE(sim_traces[t].name, ours.vms > 0 && sim_result_is_good(&o, &ours));
		check_ours(sim_traces[t].name, &ours);
		for (size_t p = 0; p < sim_policy_count; p++) {
			const struct sim_policy *rival = &sim_policies[p];
			struct sim_result r;
			char what[80];

			if (is_ours(rival))
				continue;
			unit_must(sim_search(&o, t, rival, &r) == 0, "sim_search");
			snprintf(what, sizeof(what), "%s: %zu VMs, %s %zu", sim_traces[t].name, ours.vms, rival->name,
				 r.vms);
			UNIT_CASE(what, r.vms > 0 && ours.vms > r.vms);
		}
	}
}

/* Other guests, other floors, from a host with room to one that is full. */
static void test_simulate_random_guests_targets_never_oscillate(void)
{
	static const size_t counts[] = { 16, 22, 28, 32 };
	static const double floors[] = { 0.35, 0.2, 0.5, 0.35 };

	for (uint64_t seed = 1; seed <= SEEDS; seed++) {
		for (enum sim_trace t = 0; t < TRACES; t++) {
			struct sim_options o = options();
			size_t n = (seed + t) % 4;
			struct sim_result r;
			char what[80];
			int err;

			o.seed = seed * 7919;
			o.floor = floors[n];
			err = sim_run(&o, t, sim_policy_ours, counts[n] * (t == TRACE_IDLE_SANDBOX ? 2 : 1), false, &r);
			snprintf(what, sizeof(what), "%s, seed %d, %zu VMs, turns %d", sim_traces[t].name, (int)o.seed,
				 r.vms, r.direction_changes_max);
			UNIT_CASE(what, err == 0);
			check_ours(what, &r);
		}
	}
}

int main(void)
{
	static CU_TestInfo tests[] = {
		{ "guest_squeezed", test_simulate_guest_squeezed_pays_in_order },
		{ "guest_without_swap", test_simulate_guest_without_swap_kills },
		{ "guest_frees", test_simulate_guest_memory_freed_goes_to_host },
		{ "proxmox", test_simulate_proxmox_gives_its_own_tests_results },
		{ "mom", test_simulate_mom_follows_its_rule },
		{ "same_seed", test_simulate_same_seed_same_result },
		{ "kills", test_simulate_overcommitted_without_policy_kills },
		{ "more_vms", test_simulate_every_trace_more_vms_than_any_rival },
		{ "oscillation", test_simulate_random_guests_targets_never_oscillate },
		CU_TEST_INFO_NULL,
	};

	return unit_main("simulate", tests);
}
