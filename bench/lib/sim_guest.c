/* What happens to a guest within a second:
 *
 * 1. Memory that it does not want any more becomes free, idle memory that it wants again becomes active.
 * 2. The balloon moves, at most as fast as published. Inflating takes free memory, then makes the guest reclaim, on
 *    the balloon's own time.
 * 3. What is wanted and not there is read back, as fast as the disk allows. The guest stands still for it.
 * 4. New memory is allocated. When there is no room, the guest reclaims: cold cache first, at next to no cost, then hot
 *    cache and idle memory, then active memory. When nothing is left to take, it kills.
 * 5. Free memory that was in use goes back to the host by free page reporting, which is on for all policies. */
#include "bench/lib/sim_guest.h"

#include <math.h>
#include <string.h>

/* virtio-balloon with 4 KiB pages: 0.95 GiB/s published, both ways. */
#define BALLOON_MIB_S 970.0
/* Reclaim by the balloon's worker: clean cache costs about 2 us a page, and what has to be written or looked at twice
 * goes at the speed of a disk that others use too. */
#define BALLOON_COLD_MIB_S 500.0
#define BALLOON_REST_MIB_S 64.0
/* A cloud disk: 100 us for a read of 4 KiB that nobody foresaw, eight pages at a time from swap (page-cluster 3), files
 * with more read-ahead. Writing to swap is in large pieces. */
#define SWAP_IN_S 0.010
#define SWAP_OUT_S 0.005
#define FILE_READ_S 0.005
#define DROP_S 0.0003 /* clean cache, by whoever allocates: 1 us a page */
#define FAULT_S 0.00026 /* a page fault in the host: 1 us for 4 KiB */
/* How often what is not active is used, per second. */
#define HOT_USE 0.1
#define IDLE_USE (1 / 1800.0)
/* vm.swappiness 60: of 200 parts of the pressure 60 are for anonymous memory, 140 for files. */
#define ANON_SHARE 0.3
/* Linux keeps that much free: between the watermarks low and high of a guest with a few GiB. */
#define WATERMARK 0.01
/* Free page reporting: pieces of 2 MiB and more, after two seconds; what is free in smaller pieces stays. */
#define REPORT_MIB_S 512.0
#define FRAGMENTS 0.1
/* Per MiB: half of what is read again is mapped, by 128 KiB around a fault; swap comes in by eight pages. */
#define FILE_MAJOR_FAULTS 4.0
#define SWAP_MAJOR_FAULTS 32.0

double sim_guest_used(const struct sim_guest *g)
{
	return g->kernel + g->active + g->idle + g->hot + g->cold;
}

double sim_guest_free(const struct sim_guest *g)
{
	return fmax(0, g->actual - sim_guest_used(g));
}

double sim_guest_available(const struct sim_guest *g)
{
	double low = WATERMARK * g->size, cache = g->hot + g->cold;

	return fmax(0, sim_guest_free(g) - low) + cache - fmin(cache / 2, low);
}

static double room(const struct sim_guest *g)
{
	return g->actual - sim_guest_used(g) - WATERMARK * g->size;
}

void sim_guest_restart(struct sim_guest *g)
{
	g->kernel = g->active = g->idle = g->hot = g->cold = 0;
	g->active_out = g->idle_out = g->hot_out = 0;
	g->touched = g->merged = g->host_active_out = g->host_idle_out = g->touched_before = 0;
	g->actual = g->target = g->size;
	g->restarts++;
}

/* ---- giving up ---- */

static double swap_free(const struct sim_guest *g)
{
	return fmax(0, g->swap_size - g->active_out - g->idle_out);
}

static double swap_out(struct sim_guest *g, double *from, double *to, double want)
{
	double mib = fmin(fmin(want, *from), swap_free(g));

	*from -= mib;
	*to += mib;
	g->swap_out_mib += mib;
	g->swapped += mib;
	return mib;
}

static double drop_hot(struct sim_guest *g, double want)
{
	double mib = fmin(want, g->hot);

	g->hot -= mib;
	g->hot_out += mib;
	return mib;
}

/* Hot cache and idle memory side by side, then what is left of either, then active memory. Returns what became free. */
static double reclaim_warm(struct sim_guest *g, double want, double *ret_swapped)
{
	double swapped = swap_out(g, &g->idle, &g->idle_out, want * ANON_SHARE);
	double got = swapped + drop_hot(g, want - swapped), more;

	more = swap_out(g, &g->idle, &g->idle_out, want - got);
	more += swap_out(g, &g->active, &g->active_out, want - got - more);
	*ret_swapped = swapped + more;
	return got + more;
}

static double reclaim_cold(struct sim_guest *g, double want)
{
	double mib = fmin(want, g->cold);

	g->cold -= mib;
	return mib;
}

/* Makes room for an allocation, by whoever allocates. Returns how much room there is, at most as much as wanted. */
static double make_room(struct sim_guest *g, double want, double *stall)
{
	double have = room(g), lacking = want - have, swapped = 0, cold;

	if (lacking <= 0)
		return want;
	cold = reclaim_cold(g, lacking);
	lacking -= cold;
	if (lacking > 0)
		lacking -= reclaim_warm(g, lacking, &swapped);
	*stall += cold * DROP_S + swapped * SWAP_OUT_S;
	return fmax(0, want - fmax(0, lacking));
}

/* The same for memory that the guest cannot be without. */
static void make_room_or_kill(struct sim_guest *g, double want, double *stall)
{
	/* The watermark is for such moments. */
	if (want - make_room(g, want, stall) <= WATERMARK * g->size)
		return;
	/* Kills its largest process: what it had is free, and it is started again. */
	g->ooms++;
	g->active = g->idle = g->active_out = g->idle_out = 0;
}

/* ---- the balloon ---- */

static void inflate(struct sim_guest *g, double want)
{
	double spare = fmax(0, room(g)), free_mib = sim_guest_free(g), idle_touched = g->touched - sim_guest_used(g);
	double from_free = fmin(fmin(want, BALLOON_MIB_S), spare), left = 1 - from_free / BALLOON_MIB_S, cold, swapped = 0;

	/* Whether a free page was ever touched is not a matter to the allocator. */
	if (free_mib > 0 && idle_touched > 0)
		g->touched -= from_free * fmin(1, idle_touched / free_mib);
	want -= from_free;
	cold = reclaim_cold(g, fmin(want, BALLOON_COLD_MIB_S * left));
	left -= cold / BALLOON_COLD_MIB_S;
	want -= cold;
	if (want > 0 && left > 0 && g->cold <= 0)
		cold += reclaim_warm(g, fmin(want, BALLOON_REST_MIB_S * left), &swapped);
	g->touched -= cold;
	g->actual -= from_free + cold;
	g->moved += from_free + cold;
}

static void move_balloon(struct sim_guest *g)
{
	double step = fmin(g->target - g->actual, BALLOON_MIB_S);

	if (step < 0) {
		inflate(g, -step);
	} else {
		g->actual += step;
		g->moved += step;
	}
}

/* ---- a second ---- */

/* Lets go of what is not wanted any more, wherever it is. */
static void let_go(struct sim_guest *g, const struct sim_demand *d)
{
	double active = g->active + g->active_out, idle = g->idle + g->idle_out, mib, part;

	if (active > d->active) {
		/* What is wanted as idle memory instead stays where it is; the rest is freed. */
		part = fmin(active - d->active, fmax(0, d->idle - idle)) / active;
		g->idle += g->active * part;
		g->idle_out += g->active_out * part;
		part = d->active / active;
		g->active *= part;
		g->active_out *= part;
	}
	if (idle > d->idle) {
		part = fmin(idle - d->idle, fmax(0, d->active - active)) / idle;
		g->active += g->idle * part;
		g->active_out += g->idle_out * part;
		part = d->idle / idle;
		g->idle *= part;
		g->idle_out *= part;
	}
	mib = fmax(0, g->hot + g->hot_out - d->hot);
	part = fmin(mib, g->hot_out);
	g->hot_out -= part;
	g->hot -= mib - part;
	g->cold += mib - part;
}

/* Reads back what is used and not there; time: what is left of this second. */
static void fault_in(struct sim_guest *g, double *stall)
{
	double time = fmax(0, 1 - g->stall_debt), active, idle, hot, got;

	active = fmin(g->active_out, time / SWAP_IN_S);
	time -= active * SWAP_IN_S;
	hot = fmin(g->hot_out * HOT_USE, time / FILE_READ_S);
	idle = g->idle_out * IDLE_USE;
	if (active + hot + idle <= 0)
		return;
	*stall += (active + idle) * SWAP_IN_S + hot * FILE_READ_S;
	g->active_out -= active;
	g->idle_out -= idle;
	make_room_or_kill(g, active + idle, stall);
	g->active += active;
	g->idle += idle;
	/* A page that finds no room is read and thrown away. */
	hot = fmin(hot, g->hot_out);
	got = make_room(g, hot, stall);
	got = fmin(got, g->hot_out);
	g->hot_out -= got;
	g->hot += got;
	g->swap_in_mib += active + idle;
	g->swapped += active + idle;
	g->major_faults += (active + idle) * SWAP_MAJOR_FAULTS + hot * FILE_MAJOR_FAULTS;
}

static void allocate(struct sim_guest *g, const struct sim_demand *d, double *stall)
{
	double kernel = fmax(0, d->kernel - g->kernel), active = fmax(0, d->active - g->active - g->active_out);
	double idle = fmax(0, d->idle - g->idle - g->idle_out), hot = fmax(0, d->hot - g->hot - g->hot_out), got;
	uint64_t ooms = g->ooms;

	make_room_or_kill(g, kernel + active + idle, stall);
	if (g->ooms == ooms) {
		g->kernel += kernel;
		g->active += active;
		g->idle += idle;
	}
	got = make_room(g, hot, stall);
	g->hot += got;
	g->hot_out += hot - got;
	g->cold += fmin(d->cold_mib_s, fmax(0, room(g)));
}

/* Faults in the host, and what it gets back. */
static void settle_with_host(struct sim_guest *g, double host_short_s, double *stall)
{
	double used = sim_guest_used(g), fresh = fmax(0, used - g->touched), excess;

	*stall += fresh * (FAULT_S + host_short_s);
	g->stall_host = fresh * host_short_s;
	g->touched += fresh;
	excess = g->touched - used - FRAGMENTS * sim_guest_free(g);
	if (excess > 0)
		g->touched -= fmin(excess, REPORT_MIB_S);
	g->touched = fmin(g->touched, fmax(g->actual, used));
}

void sim_guest_step(struct sim_guest *g, const struct sim_demand *d, double host_short_s)
{
	double stall = 0;

	g->touched_before = g->touched;
	let_go(g, d);
	move_balloon(g);
	fault_in(g, &stall);
	allocate(g, d, &stall);
	settle_with_host(g, host_short_s, &stall);
	g->stall_debt += stall;
	g->stalled = fmin(1, g->stall_debt);
	g->stall_debt -= g->stalled;
}
