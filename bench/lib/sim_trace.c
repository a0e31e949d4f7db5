#include "bench/lib/sim_trace.h"

#include <math.h>
#include <string.h>

#include "bench/lib/sim_random.h"

/* A day in two hours: twelve times as fast as a real one, which leaves the slowest policy (ksmtuned, a minute) sixty
 * decisions from night to noon. */
#define DAY_TICKS 7200
/* Everybody's burst at the same time (a cron job, a deployment): twice in the trace, and who takes part. */
#define COMMON_TICKS 1200
#define COMMON_SHARE 0.15
#define BOOT_TICKS 40

const struct sim_trace_info sim_traces[TRACES] = {
	[TRACE_DIURNAL] = { "diurnal", DAY_TICKS, 4096 },
	[TRACE_BURST] = { "burst", 3600, 4096 },
	[TRACE_LEAK] = { "leak", 5400, 4096 },
	[TRACE_BOOT_STORM] = { "boot_storm", 1800, 4096 },
	[TRACE_IDLE_SANDBOX] = { "idle_sandbox", 3600, 2048 },
	[TRACE_MIXED] = { "mixed", 3600, 4096 },
};

/* ---- who is who ---- */

/* Half of the guests work by day, a quarter by night, the rest around the clock. */
static void diurnal_init(struct sim_load *l)
{
	double who = sim_random_in(&l->random, 0, 1);

	l->peak = sim_random_in(&l->random, 500, 1700);
	l->phase = sim_random_in(&l->random, -0.08, 0.08) + (who < 0.5 ? 0 : 0.5);
	if (who >= 0.75) {
		l->active += l->peak / 2;
		l->peak = 0;
	}
}

/* One guest in four leaks, from an amount on that it has reached by the trace's start. */
static void leak_init(struct sim_load *l)
{
	l->active = sim_random_in(&l->random, 300, 700);
	if (sim_random_in(&l->random, 0, 1) >= 0.25)
		return;
	l->leak_mib_s = sim_random_in(&l->random, 0.3, 1.5);
	l->leaked = sim_random_in(&l->random, 0, 0.5) * l->size_mib;
}

/* One guest in four is up already; the others are started within five minutes. */
static void boot_init(struct sim_load *l)
{
	if (sim_random_in(&l->random, 0, 1) >= 0.25)
		l->start_tick = 60 + (int)sim_random_in(&l->random, 0, 300);
	l->height = sim_random_in(&l->random, 500, 1000);
}

static void sandbox_init(struct sim_load *l)
{
	l->size_mib = 2048;
	l->swaps = false;
	l->kernel = 70;
	l->active = 30;
	l->idle = sim_random_in(&l->random, 60, 140);
	l->hot = 60;
	l->cold_mib_s = 0.05;
}

void sim_load_init(struct sim_load *l, enum sim_trace trace, uint64_t seed, size_t number, size_t count)
{
	static const double sizes[] = { 1024, 2048, 4096, 4096, 8192 };
	double scale = 1;

	memset(l, 0, sizeof(*l));
	l->random = seed ^ (number + 1) * UINT64_C(0xd1342543de82ef95);
	l->size_mib = sim_traces[trace].vm_mib;
	l->kind = trace;
	if (trace == TRACE_MIXED) {
		l->kind = (enum sim_trace)(sim_random(&l->random) % TRACE_MIXED);
		l->size_mib = sizes[sim_random(&l->random) % (sizeof(sizes) / sizeof(sizes[0]))];
		scale = l->size_mib / 4096;
	}
	l->swaps = true;
	l->start_tick = -SIM_WARM_TICKS + (int)(number * (SIM_WARM_TICKS * 2 / 3) / count);
	l->kernel = 100 + 60 * scale;
	l->active = sim_random_in(&l->random, 200, 500);
	l->idle = sim_random_in(&l->random, 150, 450);
	l->hot = sim_random_in(&l->random, 100, 300);
	l->cold_mib_s = sim_random_in(&l->random, 0.2, 0.8);
	l->from_tick = l->to_tick = -SIM_WARM_TICKS;
	l->next_common = COMMON_TICKS;
	switch (l->kind) {
	case TRACE_DIURNAL: diurnal_init(l); break;
	case TRACE_LEAK: leak_init(l); break;
	case TRACE_BOOT_STORM: boot_init(l); break;
	case TRACE_IDLE_SANDBOX: sandbox_init(l); scale = 1; break;
	default: break;
	}
	l->active *= scale;
	l->idle *= scale;
	l->hot *= scale;
	l->peak *= scale;
	l->height *= scale;
}

/* ---- second by second ---- */

static void diurnal_demand(const struct sim_load *l, int tick, struct sim_demand *d)
{
	/* The trace begins at night, when day workers are at rest. */
	double level = 0.5 - 0.5 * cos(2 * M_PI * ((double)(tick < 0 ? 0 : tick) / DAY_TICKS + l->phase));

	d->active += l->peak * level;
	/* A part of what was used by day is kept and not looked at. */
	d->idle += l->peak * 0.2 * level;
	d->hot += 200 * level;
	d->cold_mib_s *= 0.4 + 1.2 * level;
}

/* Draws the next burst: alone, after a while that is random without memory, or with others. */
static void burst_next(struct sim_load *l, int tick, double mean_ticks, double shortest, double longest)
{
	l->from_tick = tick + 1 + (int)(-mean_ticks * log(1 - sim_random_in(&l->random, 0, 1)));
	if (l->next_common < l->from_tick && tick < l->next_common) {
		if (sim_random_in(&l->random, 0, 1) < COMMON_SHARE)
			l->from_tick = l->next_common + (int)sim_random_in(&l->random, 0, 20);
		l->next_common += COMMON_TICKS;
	}
	l->to_tick = l->from_tick + (int)sim_random_in(&l->random, shortest, longest);
}

static void burst_demand(struct sim_load *l, int tick, struct sim_demand *d)
{
	if (tick >= l->to_tick) {
		burst_next(l, tick < 0 ? 0 : tick, 900, 60, 180);
		l->height = sim_random_in(&l->random, 0.15, 0.45) * l->size_mib;
	}
	if (tick >= l->from_tick) /* a ramp of ten seconds */
		d->active += l->height * fmin(1, (tick - l->from_tick + 1) / 10.0);
}

static void leak_demand(struct sim_load *l, int tick, struct sim_demand *d)
{
	/* Restarted by its watchdog when it has three quarters of the guest. */
	if (tick >= 0)
		l->leaked += l->leak_mib_s;
	if (l->kernel + l->active + l->idle + l->leaked > 0.75 * l->size_mib)
		l->leaked = 0;
	d->idle += l->leaked;
}

static void boot_demand(const struct sim_load *l, int tick, struct sim_demand *d)
{
	double age = tick - l->start_tick;

	if (age >= BOOT_TICKS)
		return;
	d->active = (l->active + l->height) * (age + 1) / BOOT_TICKS;
	d->idle *= (age + 1) / BOOT_TICKS;
	d->hot *= (age + 1) / BOOT_TICKS;
	d->cold_mib_s = l->size_mib / 200; /* a fifth of its memory in the end: the image, once */
}

static void sandbox_demand(struct sim_load *l, int tick, struct sim_demand *d)
{
	if (tick >= l->to_tick) {
		burst_next(l, tick < 0 ? 0 : tick, 600, 20, 60);
		l->height = sim_random_in(&l->random, 0.15, 0.45) * l->size_mib;
	}
	if (tick < l->from_tick)
		return;
	d->active += l->height * fmin(1, (tick - l->from_tick + 1) / 5.0);
	d->cold_mib_s = 8;
}

void sim_load_demand(struct sim_load *l, int tick, struct sim_demand *ret_demand)
{
	struct sim_demand d = { l->kernel, l->active, l->idle, l->hot, l->cold_mib_s };

	switch (l->kind) {
	case TRACE_DIURNAL: diurnal_demand(l, tick, &d); break;
	case TRACE_BURST: burst_demand(l, tick, &d); break;
	case TRACE_LEAK: leak_demand(l, tick, &d); break;
	case TRACE_BOOT_STORM: boot_demand(l, tick, &d); break;
	case TRACE_IDLE_SANDBOX: sandbox_demand(l, tick, &d); break;
	default: break;
	}
	*ret_demand = d;
}
