#include "bench/lib/sim_host.h"

#include <math.h>

#include "bench/lib/sim_random.h"

/* Below this much free the kernel reclaims (its watermarks). */
#define HOST_WATERMARK 0.002
/* The host's swap: reads are single pages that nobody foresaw, 80 us each; at most 400 MiB/s are written. */
#define HOST_SWAP_IN_S 0.020
#define HOST_SWAP_OUT_S 0.0025
/* Of what the host swaps out this part is in use in the guest, for its LRU sees accessed bits of guest memory late. */
#define VICTIM_ACTIVE 0.2
#define IDLE_USE (1 / 1800.0)
/* Pages of a guest, active memory apart, that have a copy elsewhere: field studies find under 15 % without zero pages.
 * The same for everybody who merges. */
#define MERGE_SHARE 0.12
/* ksmtuned and MOM's KSM rule: 20 % free (KSM_THRES_COEF, ksm_free_percent), +300 and -50 pages, 64 .. 1250, 10 ms of sleep
 * on a large host. The scan itself is taken to cost no time. */
#define KSM_FREE 0.20
#define KSM_BOOST 300.0
#define KSM_DECAY 50.0
#define KSM_PAGES_MIN 64.0
#define KSM_PAGES_MAX 1250.0
#define KSM_MIB_S (100.0 / 256) /* per page to scan, at 10 ms */
/* memvirtd: a quarter of a core for background passes at 7 GB/s, over what was written since; merged two looks of 10 s
 * later. */
#define MEMVIRT_MIB_S 1700.0
#define MEMVIRT_LOOKS_S 20.0

static double potential(const struct sim_guest *g)
{
	double unshared = g->active + g->host_active_out + g->host_idle_out;

	return MERGE_SHARE * fmax(0, g->touched - unshared);
}

static void tune_scanner(struct sim_host *h, int tick)
{
	double committed = 0, threshold = h->total * KSM_FREE, pages;

	if (h->merger != MERGER_KSM || tick % h->merger_period != 0)
		return;
	for (size_t i = 0; i < h->count; i++)
		committed += h->guests[i].started ? h->guests[i].size : 0;
	pages = h->pages_to_scan + (h->available < threshold ? KSM_BOOST : -KSM_DECAY);
	h->pages_to_scan = fmax(KSM_PAGES_MIN, fmin(KSM_PAGES_MAX, pages));
	h->scan_mib_s = committed + threshold < h->total && h->available > threshold ? 0 : h->pages_to_scan * KSM_MIB_S;
}

/* Which part of what could be merged and is not gets merged in this second. */
static double merge_part(const struct sim_host *h, double resident, double waiting)
{
	switch (h->merger) {
	case MERGER_KSM: /* goes round over everything, and has to see a page twice */
		return resident > 0 ? fmin(1, h->scan_mib_s / (2 * resident)) : 0;
	case MERGER_MEMVIRT: /* looks at what has changed */
		return waiting > 0 ? fmin(1 / MEMVIRT_LOOKS_S, MEMVIRT_MIB_S * MERGE_SHARE / (2 * waiting)) : 0;
	default: return 0;
	}
}

static void merge(struct sim_host *h, bool settled)
{
	double resident = 0, waiting = 0, part;

	h->merged = 0;
	if (h->merger == MERGER_NONE)
		return;
	for (size_t i = 0; i < h->count; i++) {
		struct sim_guest *g = &h->guests[i];

		/* What is written to, or given up, is merged no more. */
		g->merged = fmin(g->merged, potential(g));
		resident += g->touched;
		waiting += potential(g) - g->merged;
	}
	part = settled ? 1 : merge_part(h, resident, waiting);
	for (size_t i = 0; i < h->count; i++) {
		struct sim_guest *g = &h->guests[i];

		g->merged += part * (potential(g) - g->merged);
		h->merged += g->merged;
	}
}

static double in_use(const struct sim_host *h)
{
	double used = SIM_HOST_MIB + SIM_HOST_SHARE * h->total;

	for (size_t i = 0; i < h->count; i++) {
		const struct sim_guest *g = &h->guests[i];

		if (g->started)
			used += g->touched - g->merged - g->host_active_out - g->host_idle_out + SIM_VMM_MIB;
	}
	return used;
}

/* Out of the host's swap again: what the guest uses, at once; the rest when it is looked at. */
static void swap_in(struct sim_host *h, struct sim_guest *g)
{
	double active = fmin(g->host_active_out, 1 / HOST_SWAP_IN_S), idle = g->host_idle_out * IDLE_USE, stall;

	if (active + idle <= 0)
		return;
	g->host_active_out -= active;
	g->host_idle_out -= idle;
	h->swap_moved += active + idle;
	stall = (active + idle) * HOST_SWAP_IN_S;
	g->stall_debt += stall;
	g->stall_host += stall;
}

/* Takes lacking MiB from VMs at random. Returns what could not be taken. */
static double swap_out(struct sim_host *h, double lacking)
{
	double room = h->swap_total - h->swapped;
	size_t tries = 8 * h->count;

	while (lacking > 0 && room > 0 && tries-- > 0) {
		struct sim_guest *g = &h->guests[sim_random(&h->random) % h->count];
		double held = g->touched - g->merged - g->host_active_out - g->host_idle_out, active, idle, mib;

		mib = fmin(fmin(lacking, room), fmin(64, held));
		if (!g->started || mib <= 0)
			continue;
		active = fmin(mib * VICTIM_ACTIVE, fmax(0, g->active - g->host_active_out));
		idle = mib - active;
		g->host_active_out += active;
		g->host_idle_out += idle;
		h->swap_moved += mib;
		lacking -= mib;
		room -= mib;
	}
	return lacking;
}

static void kill_largest(struct sim_host *h)
{
	struct sim_guest *largest = NULL;

	for (size_t i = 0; i < h->count; i++)
		if (h->guests[i].started && (!largest || h->guests[i].touched > largest->touched))
			largest = &h->guests[i];
	h->ooms++;
	if (largest)
		sim_guest_restart(largest);
}

static void count_pressure(struct sim_host *h)
{
	double some = 0, sum = 0;
	size_t running = 0;

	for (size_t i = 0; i < h->count; i++) {
		double s = fmin(1, h->guests[i].stall_host);

		if (!h->guests[i].started)
			continue;
		running++;
		some = fmax(some, s);
		sum += s;
	}
	h->stall_some_s += some;
	h->stall_full_s += running > 0 ? sum / (double)running : 0;
}

void sim_host_step(struct sim_host *h, int tick)
{
	double watermark = h->total * HOST_WATERMARK, lacking;

	for (size_t i = 0; i < h->count; i++)
		swap_in(h, &h->guests[i]);
	/* When the trace begins the host has been up for days, and what can be merged is. */
	merge(h, tick == SIM_WARM_TICKS);
	tune_scanner(h, tick);
	lacking = in_use(h) + watermark - h->total;
	h->short_s = lacking > 0 ? HOST_SWAP_OUT_S : 0;
	h->swapped = 0;
	for (size_t i = 0; i < h->count; i++)
		h->swapped += h->guests[i].host_active_out + h->guests[i].host_idle_out;
	if (lacking > 0) {
		lacking = swap_out(h, lacking);
		/* The watermark is for such moments. */
		while (lacking > watermark && h->count > 0) {
			kill_largest(h);
			lacking = in_use(h) + watermark - h->total;
		}
	}
	count_pressure(h);
	h->available = fmax(0, h->total - in_use(h) - watermark);
}
