/* One VM over the ticks: what its guest uses, what it objects to, why its balloon may not be moved. */
#include <math.h>

#include "balloon/policy_internal.h"
#include "core/clock.h"

/* A working set that gets smaller is believed after this: ESX samples for a minute, and a guest that paused for a few
 * seconds is not to lose its memory for it. */
#define DEMAND_HALF_LIFE_S 20.0

/* A guest that swaps in more than this, or has more major faults, in a second has less memory than it works with. vcmmd's
 * thresholds, 20 of each in 5 seconds, made four times as coarse: starting a program gives as many. */
#define SWAP_IN_PAGES_PER_S 16
#define FAULTS_PER_S 16

/* Below this part of "keep" a guest is about to reclaim by force. */
#define VETO_SHARE 4

/* Kept available at least: what crosvm leaves a guest is 400 MiB, of a desktop; a server's bursts are smaller. Of a small VM
 * an eighth. */
#define KEEP_BYTES (64 * MIB)
#define KEEP_SHARE 8

/* A guest whose use rises goes on for as long as it takes to hear of it, to decide, and to have the balloon move: three
 * ticks. One without swap has nothing else between a burst and a kill. */
#define AHEAD_S 3.0

#define ABOUT_EQUAL_SHARE 256 /* 0.4 %; oVirt MOM ignores changes below 0.25 %, Proxmox below 10 MiB */
#define DEAD_BAND_MIN (4 * MIB)

uint64_t vm_held_bytes(const struct vm_snapshot *vm)
{
	uint64_t resident = vm->ram_resident_ns ? vm->ram_resident_bytes : vm->rss_anon_bytes + vm->rss_shmem_bytes;

	return min_u64(resident, vm->balloon.actual_bytes);
}

uint64_t vm_limit_bytes(const struct vm_snapshot *vm)
{
	uint64_t max = vm->balloon.max_bytes;

	return vm->limit_bytes ? min_u64(vm->limit_bytes, max) : max;
}

uint64_t vm_min_bytes(const struct vm_snapshot *vm, const struct balloon_limits *l)
{
	uint64_t floor = vm->balloon.max_bytes / 100 * (100 - l->max_percent), limit = vm_limit_bytes(vm);

	return min_u64(max_u64(vm->reservation_bytes, floor), limit);
}

/* A share of little is nothing: a guest of 128 MiB needs room to start a program as well as one of 4 GiB. */
static uint64_t keep_min(const struct vm_snapshot *vm)
{
	return min_u64(KEEP_BYTES, vm->balloon.max_bytes / KEEP_SHARE);
}

uint64_t vm_keep_bytes(const struct vm_snapshot *vm, uint64_t size_bytes, const struct balloon_limits *l)
{
	return max_u64(size_bytes / 100 * l->keep_percent, keep_min(vm));
}

uint64_t vm_size_for(const struct vm_snapshot *vm, uint64_t used_bytes, const struct balloon_limits *l)
{
	return max_u64(used_bytes / (100 - l->keep_percent) * 100, used_bytes + keep_min(vm));
}

uint64_t vm_dead_band(const struct vm_snapshot *vm)
{
	uint64_t share = vm->balloon.max_bytes / ABOUT_EQUAL_SHARE;

	return max_u64(share, DEAD_BAND_MIN);
}

static bool counter_known(uint64_t then, uint64_t now)
{
	return then != BALLOON_UNTOLD && now != BALLOON_UNTOLD && now >= then;
}

static bool faster_than(uint64_t then, uint64_t now, uint64_t per_s, double seconds)
{
	return counter_known(then, now) && (double)(now - then) > (double)per_s * seconds;
}

/* Memory goes round: pages come from swap and others leave for it, or little is available anyhow. A guest that has been given
 * back what it lacked still reads for minutes what it had to swap out, whenever it comes across it; more memory does not
 * spare it that. */
static bool is_short_of_pages(const struct track *t, const struct vm_snapshot *vm, const struct balloon_limits *l,
			      double seconds)
{
	const struct vm_balloon *b = &vm->balloon;

	return b->available_bytes < vm_keep_bytes(vm, b->actual_bytes, l) || b->swap_out_bytes == BALLOON_UNTOLD ||
	       faster_than(t->swap_out_bytes, b->swap_out_bytes, SWAP_IN_PAGES_PER_S * PAGE_BYTES, seconds);
}

/* A page that comes from swap may be counted as a major fault, too. */
static uint64_t file_faults(uint64_t major_faults, uint64_t swap_in_bytes)
{
	if (major_faults == BALLOON_UNTOLD || swap_in_bytes == BALLOON_UNTOLD)
		return major_faults;
	return less_u64(major_faults, swap_in_bytes / PAGE_BYTES);
}

/* Counters of two statistics tell what the guest went through between them. */
static enum balloon_veto objection_of(const struct track *t, const struct vm_snapshot *vm,
				      const struct balloon_limits *l, double seconds)
{
	const struct vm_balloon *b = &vm->balloon;
	enum balloon_veto veto = VETO_NONE;

	if (b->available_bytes < vm_keep_bytes(vm, b->actual_bytes, l) / VETO_SHARE)
		veto = VETO_AVAILABLE;
	if (seconds <= 0)
		return veto;
	if (counter_known(t->oom_kills, b->oom_kills) && b->oom_kills > t->oom_kills)
		return VETO_OOM;
	/* A guest with that much free reclaims nothing: what it reads back now it lost before. It needs no more for it, and
	 * would go on reading for as long as it takes to look at all of its swap. */
	if (b->free_bytes != BALLOON_UNTOLD && b->free_bytes >= vm_keep_bytes(vm, b->actual_bytes, l))
		return veto;
	if (faster_than(file_faults(t->major_faults, t->swap_in_bytes), file_faults(b->major_faults, b->swap_in_bytes),
			FAULTS_PER_S, seconds))
		veto = VETO_FAULTS;
	if (faster_than(t->swap_in_bytes, b->swap_in_bytes, SWAP_IN_PAGES_PER_S * PAGE_BYTES, seconds) &&
	    is_short_of_pages(t, vm, l, seconds))
		veto = VETO_SWAP_IN;
	return veto;
}

static void demand_take(struct track *t, uint64_t used_bytes, double seconds, uint64_t max_bytes)
{
	double fallen = (double)t->demand_bytes * exp2(-seconds / DEMAND_HALF_LIFE_S);
	double ahead = seconds > 0 ? (double)less_u64(used_bytes, t->used_bytes) / seconds * AHEAD_S : 0;

	/* No more than there can be: statistics may follow each other at once. */
	t->ahead_bytes = (uint64_t)fmin(ahead, (double)max_bytes);
	t->used_bytes = used_bytes;
	t->demand_bytes = used_bytes >= t->demand_bytes || (double)used_bytes > fallen ? used_bytes : (uint64_t)fallen;
}

/* The guest was started anew: what was known of it is of another life, and what was taken from that is not to be missing
 * while this one boots. */
static void reset_take(struct track *t, const struct vm_balloon *b)
{
	t->resets = b->resets;
	t->reset = true;
	t->stats_void_ns = max_u64(b->stats_ns, t->stats_ns);
	t->stats_ns = 0;
	t->used_bytes = t->demand_bytes = t->ahead_bytes = t->cut_from_bytes = t->judge_from_bytes = 0;
	t->refused_ns = 0;
	t->objection = VETO_NONE;
}

/* What it could not bear it is not asked to bear again a few seconds later. */
static void refusal_take(struct track *t, const struct vm_balloon *b)
{
	if (t->objection == VETO_NONE || b->actual_bytes >= b->max_bytes)
		return;
	t->refused_bytes = b->actual_bytes;
	t->refused_used_bytes = t->used_bytes;
	t->refused_ns = b->stats_ns;
}

static void stats_take(struct track *t, const struct vm_snapshot *vm, const struct balloon_limits *l)
{
	const struct vm_balloon *b = &vm->balloon;
	double seconds = 0; /* since the statistics before; 0: there are none, or the clock was set back */

	if (b->stats != GUEST_STATS_GOOD || !b->actual_bytes) {
		t->objection = VETO_NONE;
		return;
	}
	if (b->stats_ns == t->stats_ns || b->stats_ns <= t->stats_void_ns)
		return;
	if (t->stats_ns && b->stats_ns > t->stats_ns)
		seconds = (double)(b->stats_ns - t->stats_ns) / (double)NSEC_PER_SEC;
	t->objection = objection_of(t, vm, l, seconds);
	/* What is not available is used, the kernel's own tables included; it holds whether the guest takes the balloon off its
	 * total or not (with deflate-on-oom Linux does not). */
	demand_take(t, b->actual_bytes - min_u64(b->available_bytes, b->actual_bytes), seconds, b->max_bytes);
	refusal_take(t, b);
	t->stats_ns = b->stats_ns;
	t->swap_in_bytes = b->swap_in_bytes;
	t->swap_out_bytes = b->swap_out_bytes;
	t->major_faults = b->major_faults;
	t->oom_kills = b->oom_kills;
}

void track_guest(struct track *t, const struct vm_snapshot *vm, const struct balloon_limits *l)
{
	uint64_t left = vm->balloon.actual_bytes;

	if (vm->balloon.resets != t->resets)
		reset_take(t, &vm->balloon);
	stats_take(t, vm, l);
	/* A guest whose balloon takes nothing, and is not asked to, has no more to be given. */
	if (t->target_bytes)
		left = min_u64(left, t->target_bytes);
	t->veto = left + vm_dead_band(vm) < vm_limit_bytes(vm) ? t->objection : VETO_NONE;
}

enum balloon_block track_block(const struct track *t, const struct vm_snapshot *vm)
{
	const struct vm_balloon *b = &vm->balloon;

	if (!vm->balloon_allowed)
		return BLOCK_OFF;
	if (!b->driver)
		return BLOCK_NO_DRIVER;
	if (b->device != BALLOON_DEVICE_PRESENT || !b->max_bytes || !b->actual_bytes)
		return BLOCK_NO_DEVICE;
	if (vm->migrating)
		return BLOCK_MIGRATING;
	if (!vm->running)
		return BLOCK_PAUSED;
	if (b->stats != GUEST_STATS_GOOD)
		return BLOCK_NO_STATS;
	if (t->stalled)
		return BLOCK_STALLED;
	if (t->no_effect_until_ns)
		return BLOCK_NO_EFFECT;
	return BLOCK_NONE;
}

void track_asked(struct track *t, const struct vm_snapshot *vm, uint64_t target_bytes, uint64_t now_ns)
{
	uint64_t actual = vm->balloon.actual_bytes;
	bool grow = target_bytes > actual, shrink = target_bytes < actual;
	/* Asked again before it is done, perhaps for more: the wait for it goes on. */
	bool waits = t->target_bytes && ((grow && t->target_bytes > actual + vm_dead_band(vm)) ||
					 (shrink && t->target_bytes + vm_dead_band(vm) < actual));

	t->target_bytes = target_bytes;
	t->arrived_ns = 0;
	if (!waits) {
		t->moved_ns = now_ns;
		t->moved_bytes = actual;
	}
	if (grow) {
		if (!t->grown_ns || t->shrunk_ns > t->grown_ns)
			t->turned_ns = now_ns;
		t->grown_ns = now_ns;
		t->cut_from_bytes = t->judge_from_bytes = 0;
		t->stalled = t->stalled && waits;
	} else if (shrink) {
		if (!t->cut_from_bytes)
			t->cut_from_bytes = actual;
		if (!t->judge_from_bytes || !t->judge_resident_bytes) {
			t->judge_from_bytes = actual;
			t->judge_resident_bytes = vm->ram_resident_ns ? vm->ram_resident_bytes : 0;
		}
		t->shrunk_ns = now_ns;
	}
}
