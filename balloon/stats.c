#include "balloon/stats.h"

#include "core/clock.h"

/* A guest that is busy answers late; one that missed three polls is not heard any more. */
#define POLLS_MISSED 3
#define PERIOD_S_DEFAULT 10
#define PERIOD_S_MAX 3600
#define LATE_S 5

/* x86-64 has at most 52 bits of physical address. */
#define BYTES_MAX (UINT64_C(1) << 52)

static bool is_told(uint64_t bytes)
{
	return bytes != BALLOON_UNTOLD;
}

static bool is_same(const struct balloon_told *a, const struct balloon_told *b)
{
	return a->last_update_s == b->last_update_s && a->total_bytes == b->total_bytes &&
	       a->free_bytes == b->free_bytes && a->available_bytes == b->available_bytes &&
	       a->cache_bytes == b->cache_bytes && a->swap_in_bytes == b->swap_in_bytes &&
	       a->swap_out_bytes == b->swap_out_bytes && a->major_faults == b->major_faults && a->oom_kills == b->oom_kills;
}

static void age_take(struct stats_age *a, const struct balloon_told *told, int64_t now_s)
{
	bool first = !a->changed_ns;
	int64_t age_s = now_s - told->last_update_s;

	if (!first && is_same(&a->told, told))
		return;
	a->told = *told;
	a->changed_ns = told->stats_told_ns;
	/* Whoever asked before may have got them long ago. What is from the future is not believed either, till it changes. */
	a->doubtful = first && (age_s > LATE_S || age_s < -LATE_S);
}

/* NULL: nothing speaks against them. */
static const char *absurdity(const struct balloon_told *t, const struct vm_balloon *b)
{
	/* What the kernel keeps for itself is in no total; hot-plugged memory may be a poll ahead of us. */
	uint64_t most = b->max_bytes + b->max_bytes / 8;

	if (!is_told(t->total_bytes) || t->total_bytes == 0)
		return "the guest does not tell how much memory it has";
	if (!is_told(t->free_bytes))
		return "the guest does not tell how much memory is free";
	if (t->total_bytes > BYTES_MAX || (b->max_bytes && t->total_bytes > most))
		return "absurd statistics: the guest has more memory than its VM";
	if (t->free_bytes > t->total_bytes)
		return "absurd statistics: more is free than there is";
	if (is_told(t->available_bytes) && t->available_bytes > t->total_bytes)
		return "absurd statistics: more is available than there is";
	if (is_told(t->cache_bytes) && t->cache_bytes > t->total_bytes)
		return "absurd statistics: more is cached than there is";
	return NULL;
}

/* Drivers before Linux 4.6, and other systems, do not tell what is available. Of the cache, half may be in use: so
 * /proc/meminfo reckons at worst. */
static uint64_t available_of(const struct balloon_told *t)
{
	uint64_t available;

	if (is_told(t->available_bytes))
		return t->available_bytes;
	available = t->free_bytes + (is_told(t->cache_bytes) ? t->cache_bytes / 2 : 0);
	return available < t->total_bytes ? available : t->total_bytes;
}

static uint64_t period_of(const struct balloon_told *t)
{
	if (!t->period_s)
		return PERIOD_S_DEFAULT;
	return t->period_s < PERIOD_S_MAX ? t->period_s : PERIOD_S_MAX;
}

static enum guest_stats judge(const struct stats_age *a, const struct balloon_told *told, uint64_t now_ns,
			      struct vm_balloon *b)
{
	/* The period may have changed since: of an answer that was made in the old rhythm the next is not late yet. */
	uint64_t then_s = period_of(&a->told), period_s = period_of(told);
	const char *absurd = absurdity(&a->told, b);

	period_s = period_s > then_s ? period_s : then_s;
	if (a->doubtful || now_ns > a->changed_ns + (POLLS_MISSED * period_s + LATE_S) * NSEC_PER_SEC) {
		b->why = "stale statistics: the guest has not answered for too long";
		return GUEST_STATS_STALE;
	}
	if (absurd) {
		b->why = absurd;
		return GUEST_STATS_ABSURD;
	}
	return GUEST_STATS_GOOD;
}

void stats_take(struct stats_age *a, const struct balloon_told *told, uint64_t now_ns, int64_t now_s,
		struct vm_balloon *ret_balloon)
{
	struct vm_balloon *b = ret_balloon;

	b->stats = GUEST_STATS_NONE;
	if (!told->stats_told_ns || told->last_update_s <= 0) {
		b->why = "no statistics: the guest has no balloon driver, or it was not asked yet";
		return;
	}
	age_take(a, told, now_s);
	b->stats = judge(a, told, now_ns, b);
	b->stats_ns = a->doubtful ? 0 : a->changed_ns;
	if (b->stats != GUEST_STATS_GOOD)
		return;
	b->total_bytes = told->total_bytes;
	b->free_bytes = told->free_bytes;
	b->available_bytes = available_of(told);
	b->cache_bytes = told->cache_bytes;
	b->swap_in_bytes = told->swap_in_bytes;
	b->swap_out_bytes = told->swap_out_bytes;
	b->major_faults = told->major_faults;
	b->oom_kills = told->oom_kills;
}
