#include "bench/lib/sim.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench/lib/sim_guest.h"
#include "bench/lib/sim_host.h"

#define TURN_WINDOW 10 /* decisions in which turns of a target are counted */
#define SHORT_STALL 0.1 /* from here on a guest is short of memory */

/* What is watched of one VM. */
struct watch {
	double turned_target; /* last one */
	int direction, turns[TURN_WINDOW]; /* decisions at which the target turned round, the latest ones */
	unsigned int turn_next;
	int short_since; /* 0: it is not */
	double short_actual;
	uint64_t ooms_seen;
};

struct run {
	const struct sim_options *options;
	const struct sim_policy *policy;
	const struct sim_trace_info *trace;
	size_t count;
	int ticks;
	struct sim_guest *guests;
	struct sim_load *loads;
	struct watch *watches;
	struct sim_vm_view *views;
	double *targets;
	void *state;
	struct sim_host host;
	double stalled, stall_most, used, given; /* sums over VMs and ticks, or ticks */
	uint64_t guest_ticks;
	int decisions;
	struct sim_result *result;
};

static void run_free(struct run *r)
{
	if (r->policy->stop)
		r->policy->stop(r->state);
	free(r->guests);
	free(r->loads);
	free(r->watches);
	free(r->views);
	free(r->targets);
}

static int run_new(struct run *r, enum sim_trace trace)
{
	const struct sim_options *o = r->options;
	size_t n = r->count > 0 ? r->count : 1;

	r->guests = calloc(n, sizeof(*r->guests));
	r->loads = calloc(n, sizeof(*r->loads));
	r->watches = calloc(n, sizeof(*r->watches));
	r->views = calloc(n, sizeof(*r->views));
	r->targets = calloc(n, sizeof(*r->targets));
	if (!r->guests || !r->loads || !r->watches || !r->views || !r->targets)
		return -ENOMEM;
	for (size_t i = 0; i < r->count; i++) {
		sim_load_init(&r->loads[i], trace, o->seed, i, r->count);
		r->guests[i].size = r->guests[i].actual = r->guests[i].target = r->loads[i].size_mib;
		r->guests[i].swap_size = r->loads[i].swaps ? o->guest_swap * r->loads[i].size_mib : 0;
	}
	r->host = (struct sim_host){ .total = o->host_mib, .swap_total = o->host_swap_mib, .guests = r->guests,
				     .count = r->count, .merger = r->policy->merger,
				     .merger_period = r->policy->merger_period, .random = o->seed,
				     .available = o->host_mib };
	r->ticks = r->trace->ticks;
	if (o->ticks_max > 0 && o->ticks_max < r->ticks)
		r->ticks = o->ticks_max;
	r->stall_most = o->stall_limit * (double)r->count * r->ticks;
	return r->policy->start ? r->policy->start(n, &r->state) : 0;
}

/* ---- what the policy sees and does ---- */

static void view(struct run *r, int tick, struct sim_view *v)
{
	size_t n = 0;

	for (size_t i = 0; i < r->count; i++) {
		const struct sim_guest *g = &r->guests[i];

		if (!g->started)
			continue;
		r->views[n++] = (struct sim_vm_view){
			.number = i, .restarts = g->restarts, .size = g->size, .floor = g->size * r->options->floor,
			.actual = g->actual, .shares = 1000, .free = sim_guest_free(g), .available = sim_guest_available(g),
			.cache = g->hot + g->cold, .swap_in = g->swap_in_mib, .swap_out = g->swap_out_mib,
			.major_faults = (uint64_t)g->major_faults, .ooms = g->ooms,
			.rss = g->touched - g->merged - g->host_active_out - g->host_idle_out };
	}
	*v = (struct sim_view){ .tick = tick, .total = r->host.total, .available = r->host.available,
				.swap_total = r->host.swap_total, .swap_free = r->host.swap_total - r->host.swapped,
				.merged = r->host.merged, .stall_some_s = r->host.stall_some_s,
				.stall_full_s = r->host.stall_full_s, .vms = r->views, .vm_count = n };
}

/* Counts in how many of the last ten decisions the target turned round. */
static void watch_target(struct run *r, struct watch *w, double target)
{
	int direction = target > w->turned_target ? 1 : target < w->turned_target ? -1 : 0, turns = 0;

	if (w->turned_target > 0 && direction != 0) {
		if (w->direction == -direction)
			w->turns[w->turn_next++ % TURN_WINDOW] = r->decisions;
		w->direction = direction;
	}
	w->turned_target = target;
	for (int i = 0; i < TURN_WINDOW; i++)
		turns += w->turns[i] > 0 && r->decisions - w->turns[i] < TURN_WINDOW;
	if (turns > r->result->direction_changes_max)
		r->result->direction_changes_max = turns;
}

static int decide(struct run *r, const struct sim_view *v)
{
	int err = r->policy->decide(r->state, v, r->targets);

	if (err < 0)
		return err;
	r->decisions++;
	for (size_t i = 0; i < v->vm_count; i++) {
		const struct sim_vm_view *vm = &v->vms[i];
		double target = r->targets[i];

		if (target == 0) /* as it is */
			continue;
		if (!(target > 0 && target <= vm->size + 1)) {
			r->result->absurd_targets++;
			continue;
		}
		/* A byte of rounding is nobody's loss. */
		if (target < vm->floor - 1e-5)
			r->result->floor_violations++;
		watch_target(r, &r->watches[vm->number], target);
		r->guests[vm->number].target = fmin(target, vm->size);
	}
	return 0;
}

static int policy_step(struct run *r, int tick)
{
	const struct sim_policy *p = r->policy;
	bool look = tick % p->statistics == 0, due = tick % p->period == 0;
	struct sim_view v;

	if (!p->decide || !(look || due))
		return 0;
	view(r, tick, &v);
	if (look && p->look)
		p->look(r->state, &v);
	return due ? decide(r, &v) : 0;
}

/* ---- a second ---- */

static void start_vm(struct run *r, size_t i)
{
	r->guests[i].started = true;
	r->guests[i].actual = r->guests[i].target = r->guests[i].size;
}

/* How long a guest that is short of memory, and whose balloon has some, waits until that is coming back. */
static void watch_shortage(struct run *r, size_t i, int tick)
{
	const struct sim_guest *g = &r->guests[i];
	struct watch *w = &r->watches[i];
	bool is_short = g->stalled > SHORT_STALL && g->stall_host < SHORT_STALL && g->size - g->actual > 1;

	if (is_short && w->short_since == 0) {
		w->short_since = tick;
		w->short_actual = g->actual;
	}
	if (w->short_since > 0 && (!is_short || g->actual > w->short_actual + 1)) {
		int took = tick - w->short_since;

		if (took > r->result->react_ticks_max)
			r->result->react_ticks_max = took;
		w->short_since = 0;
	}
}

static void guests_step(struct run *r, int tick)
{
	int at = tick - SIM_WARM_TICKS;
	double given = 0;

	for (size_t i = 0; i < r->count; i++) {
		struct sim_guest *g = &r->guests[i];
		struct sim_demand d;

		if (at < r->loads[i].start_tick)
			continue;
		if (!g->started)
			start_vm(r, i);
		sim_load_demand(&r->loads[i], at, &d);
		sim_guest_step(g, &d, r->host.short_s);
		r->result->guest_ooms += g->ooms - r->watches[i].ooms_seen;
		r->watches[i].ooms_seen = g->ooms;
		given += g->actual;
		if (at < 0)
			continue;
		r->stalled += g->stalled;
		r->guest_ticks++;
		watch_shortage(r, i, tick);
	}
	if (at >= 0) {
		r->given += given;
		r->used += r->host.total - r->host.available;
	}
}

static void finish(struct run *r, int ticks)
{
	struct sim_result *s = r->result;

	s->vms = r->count;
	s->host_ooms = r->host.ooms;
	s->stall_share = r->guest_ticks > 0 ? r->stalled / (double)r->guest_ticks : 0;
	s->used_share = ticks > 0 ? r->used / r->host.total / ticks : 0;
	s->guest_mib_share = ticks > 0 ? r->given / r->host.total / ticks : 0;
	s->swapped_mib = r->host.swap_moved;
	for (size_t i = 0; i < r->count; i++) {
		s->moved_mib += r->guests[i].moved;
		s->swapped_mib += r->guests[i].swapped;
	}
	if (!r->policy->decide)
		s->react_ticks_max = -1;
}

int sim_run(const struct sim_options *o, enum sim_trace trace, const struct sim_policy *p, size_t vms, bool stop_early,
	    struct sim_result *ret_result)
{
	struct sim_result result = { 0 };
	struct run r = { .options = o, .policy = p, .trace = &sim_traces[trace], .count = vms, .result = &result };
	int err = run_new(&r, trace), tick;

	for (tick = 1; err == 0 && tick < SIM_WARM_TICKS + r.ticks; tick++) {
		err = policy_step(&r, tick);
		guests_step(&r, tick);
		sim_host_step(&r.host, tick);
		result.stopped = stop_early &&
				 (r.host.ooms > 0 || result.guest_ooms > 0 || r.stalled > r.stall_most);
		if (result.stopped)
			break;
	}
	if (err == 0) {
		finish(&r, tick - SIM_WARM_TICKS);
		*ret_result = result;
	}
	run_free(&r);
	return err;
}

/* ---- the search ---- */

bool sim_result_is_good(const struct sim_options *o, const struct sim_result *r)
{
	return !r->stopped && r->host_ooms == 0 && r->guest_ooms == 0 && r->stall_share <= o->stall_limit;
}

/* As many as fit with all of their memory. */
static size_t count_fitting(const struct sim_options *o, enum sim_trace trace)
{
	double left = o->host_mib * (1 - SIM_HOST_SHARE) - SIM_HOST_MIB;
	size_t n = 0;

	for (;;) {
		struct sim_load l;

		sim_load_init(&l, trace, o->seed, n, 1);
		left -= l.size_mib + SIM_VMM_MIB;
		if (left < 0)
			return n;
		n++;
	}
}

int sim_search(const struct sim_options *o, enum sim_trace trace, const struct sim_policy *p,
	       struct sim_result *ret_result)
{
	size_t fitting = count_fitting(o, trace), good = 0, bad = p->overcommits ? 0 : fitting + 1, next = fitting;
	struct sim_result r, best = { 0 };

	/* Up in steps of two fifths until it fails, then halving what lies between. */
	while (next > 0) {
		int err = sim_run(o, trace, p, next, true, &r);

		if (err < 0)
			return err;
		if (sim_result_is_good(o, &r)) {
			good = next;
			best = r;
		} else {
			bad = next;
		}
		if (bad > 0 && bad - good <= 1 + good / 200)
			break;
		next = bad == 0 ? good + good * 2 / 5 + 1 : good + (bad - good) / 2;
	}
	*ret_result = best;
	return 0;
}
