#include "ksmd/policy.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "core/clock.h"

/* CPU time of the kernel's scanner for one page before it was measured here: 3.1 us on the machine this was
 * written on, published figures are 2-5 us. */
#define PAGE_COST_NS_DEFAULT 3500.0
/* No machine looks at a page faster; less means that the counters are not what they should be. */
#define PAGE_COST_NS_MIN 100.0
/* The measurement counts once it rests on this many pages. */
#define PAGE_COST_MIN_PAGES 20000

/* The scanner works for CYCLE x share and then sleeps for the rest. Short enough not to hold a core for
 * longer than a scheduler slice or two, long enough that waking up costs nothing. */
#define CYCLE_MS 40

/* KSM looks at a page once to take its checksum and merges it when it comes by again. */
#define SCANS_NEEDED 2
/* The gain is in when less than this share of it is missing. */
#define DONE_SHARE 200
/* A scan that brought less than this share of what is expected means that no more will come. */
#define PROGRESS_SHARE 100
/* After so many scans it rests whatever it got: the rest is pages that change all the time. */
#define SCANS_MAX 8
/* What a run could not get is not run after again for this long, unless more is found. */
#define RESIDUAL_KEEP_NS (30 * 60 * NSEC_PER_SEC)

/* The pace is measured over at least this long: a few dozen cycles. */
#define PACE_NS NSEC_PER_SEC
/* Below this share the sleep is 0 ms; going on would only make the way back long. */
#define SLEEP_FACTOR_MIN (1.0 / (2 * CYCLE_MS))

#define MIB_PAGES (1048576 / PAGE_BYTES)

void ksm_policy_init(struct ksm_policy *p, const struct ksm_limits *limits)
{
	memset(p, 0, sizeof(*p));
	p->limits = *limits;
	p->page_cost_ns = PAGE_COST_NS_DEFAULT;
	p->sleep_factor = 1;
}

void ksm_policy_give_up(struct ksm_policy *p, uint64_t residual_pages)
{
	p->state = KSM_REST;
	p->stopped_ns = p->started_ns;
	p->residual_pages = residual_pages;
}

const char *ksm_state_name(enum ksm_state state)
{
	static const char *const names[] = { "rest", "merge", "backoff" };

	return names[state];
}

/* Sets pages_to_scan and sleep so that all mergeable pages are passed SCANS_NEEDED times within the target,
 * using at most the CPU budget. */
static void rate_choose(struct ksm_policy *p, const struct ksm_inputs *in)
{
	double work_ns = (double)in->mergeable_pages * SCANS_NEEDED * p->page_cost_ns;
	double share = work_ns / (double)p->limits.target_ns, most = (double)p->limits.cpu_percent / 100;
	double busy_ms;

	if (share > most)
		share = most;
	busy_ms = CYCLE_MS * share;
	p->pages_to_scan = (uint64_t)(busy_ms * (double)NSEC_PER_MSEC / p->page_cost_ns);
	if (p->pages_to_scan < 64)
		p->pages_to_scan = 64;
	p->sleep_ms = (uint64_t)((CYCLE_MS - busy_ms) * p->sleep_factor);
}

static void cost_measure(struct ksm_policy *p, const struct ksm_snapshot *ksm)
{
	uint64_t pages = ksm->pages_scanned - p->start_scanned;

	if (ksm->cpu_ns <= p->start_cpu_ns || ksm->pages_scanned < p->start_scanned || pages < PAGE_COST_MIN_PAGES)
		return;
	p->page_cost_ns = (double)(ksm->cpu_ns - p->start_cpu_ns) / (double)pages;
	if (p->page_cost_ns < PAGE_COST_NS_MIN)
		p->page_cost_ns = PAGE_COST_NS_MIN;
}

/* On a busy host the scanner, a nice thread, waits for a CPU and a cycle takes longer than planned. It then
 * sleeps less, as long as its CPU time stays within the budget. */
static void pace_measure(struct ksm_policy *p, const struct host_snapshot *s)
{
	uint64_t elapsed = s->taken_ns - p->looked_ns, scanned = s->ksm.pages_scanned - p->looked_scanned;
	double planned = (double)p->pages_to_scan * (double)elapsed / (CYCLE_MS * (double)NSEC_PER_MSEC);
	double cpu_share = (double)(s->ksm.cpu_ns - p->looked_cpu_ns) / (double)elapsed;

	if (elapsed < PACE_NS)
		return;
	/* A kernel that does not count both cannot be told to hurry: nobody would see it leave the budget. */
	if (s->ksm.cpu_ns == 0 || s->ksm.pages_scanned == 0)
		return;
	if ((double)scanned < planned * 0.8 && cpu_share * 100 < (double)p->limits.cpu_percent * 0.9)
		p->sleep_factor = p->sleep_factor / 2 > SLEEP_FACTOR_MIN ? p->sleep_factor / 2 : SLEEP_FACTOR_MIN;
	else if ((double)scanned > planned * 1.1 || cpu_share * 100 > (double)p->limits.cpu_percent)
		p->sleep_factor = p->sleep_factor * 1.5 < 1 ? p->sleep_factor * 1.5 : 1;
	p->looked_ns = s->taken_ns;
	p->looked_scanned = s->ksm.pages_scanned;
	p->looked_cpu_ns = s->ksm.cpu_ns;
}

static void plan_stop(struct ksm_policy *p, const struct host_snapshot *s, const struct ksm_inputs *in,
		      struct ksm_plan *plan)
{
	p->state = KSM_REST;
	p->stopped_ns = s->taken_ns;
	p->residual_pages = in->expected_pages > in->saved_pages ? in->expected_pages - in->saved_pages : 0;
	plan->action = KSM_STOP;
	plan->pages_to_scan = s->ksm.pages_to_scan;
	plan->sleep_ms = s->ksm.sleep_ms;
}

static void decide_rest(struct ksm_policy *p, const struct host_snapshot *s, const struct ksm_inputs *in,
			struct ksm_plan *plan)
{
	uint64_t gain = in->expected_pages > in->saved_pages ? in->expected_pages - in->saved_pages : 0;
	uint64_t wanted = p->limits.min_gain_pages;

	if (in->left_running) {
		plan_stop(p, s, in, plan);
		snprintf(plan->why, sizeof(plan->why), "left running");
		return;
	}
	if (in->refusal) {
		snprintf(plan->why, sizeof(plan->why), "%s", in->refusal);
		return;
	}
	if (p->stopped_ns && s->taken_ns - p->stopped_ns < RESIDUAL_KEEP_NS)
		wanted += p->residual_pages;
	snprintf(plan->why, sizeof(plan->why),
		 "%" PRIu64 " MiB to gain, %" PRIu64 " MiB needed to start the scanner", gain / MIB_PAGES,
		 wanted / MIB_PAGES);
	if (gain == 0 || gain < wanted)
		return;
	p->state = KSM_MERGE;
	p->started_ns = s->taken_ns;
	p->start_scans = p->seen_scans = s->ksm.full_scans;
	p->seen_saved = in->saved_pages;
	p->start_scanned = s->ksm.pages_scanned;
	p->start_cpu_ns = s->ksm.cpu_ns;
	p->looked_ns = s->taken_ns;
	p->looked_scanned = s->ksm.pages_scanned;
	p->looked_cpu_ns = s->ksm.cpu_ns;
	p->sleep_factor = 1;
	rate_choose(p, in);
	plan->action = KSM_START;
}

static bool differs(uint64_t now, uint64_t before)
{
	return now > before + before / 4 || now + before / 4 < before;
}

static void decide_merge(struct ksm_policy *p, const struct host_snapshot *s, const struct ksm_inputs *in,
			 struct ksm_plan *plan)
{
	uint64_t scans = s->ksm.full_scans - p->start_scans, gained = in->saved_pages - p->seen_saved;
	uint64_t old_pages = p->pages_to_scan, old_sleep = p->sleep_ms;

	if (in->saved_pages < p->seen_saved)
		gained = 0;
	cost_measure(p, &s->ksm);
	pace_measure(p, s);
	if (in->refusal) {
		plan_stop(p, s, in, plan);
		p->residual_pages = 0; /* it was not given its time to get the rest */
		snprintf(plan->why, sizeof(plan->why), "%s", in->refusal);
		return;
	}
	if (in->saved_pages >= in->expected_pages - in->expected_pages / DONE_SHARE) {
		plan_stop(p, s, in, plan);
		snprintf(plan->why, sizeof(plan->why), "the gain is in: %" PRIu64 " of %" PRIu64 " MiB",
			 in->saved_pages / MIB_PAGES, in->expected_pages / MIB_PAGES);
		return;
	}
	if (scans >= SCANS_MAX ||
	    (scans > SCANS_NEEDED && s->ksm.full_scans != p->seen_scans &&
	     gained <= in->expected_pages / PROGRESS_SHARE)) {
		plan_stop(p, s, in, plan);
		snprintf(plan->why, sizeof(plan->why),
			 "%s after %" PRIu64 " scans: %" PRIu64 " of %" PRIu64 " MiB",
			 scans >= SCANS_MAX ? "enough tried" : "no more comes", scans, in->saved_pages / MIB_PAGES,
			 in->expected_pages / MIB_PAGES);
		return;
	}
	if (s->ksm.full_scans != p->seen_scans) {
		p->seen_scans = s->ksm.full_scans;
		p->seen_saved = in->saved_pages;
	}
	rate_choose(p, in);
	snprintf(plan->why, sizeof(plan->why), "%" PRIu64 " of %" PRIu64 " MiB, %.1f us per page",
		 in->saved_pages / MIB_PAGES, in->expected_pages / MIB_PAGES, p->page_cost_ns / 1000);
	/* Small corrections are not worth a write and a log line. */
	if (differs(p->pages_to_scan, old_pages) || differs(p->sleep_ms, old_sleep)) {
		plan->action = KSM_RATE;
	} else {
		p->pages_to_scan = old_pages;
		p->sleep_ms = old_sleep;
	}
}

void ksm_policy_decide(struct ksm_policy *p, const struct host_snapshot *s, const struct ksm_inputs *in,
		       struct ksm_plan *ret_plan)
{
	*ret_plan = (struct ksm_plan){ .action = KSM_KEEP };
	if (in->foreign_change && p->state != KSM_BACKOFF) {
		p->state = KSM_BACKOFF;
		p->backoff_until_ns = s->taken_ns + p->limits.backoff_ns;
		ret_plan->action = KSM_YIELD;
		snprintf(ret_plan->why, sizeof(ret_plan->why),
			 "somebody else set run=%" PRIu64 " pages_to_scan=%" PRIu64 " sleep_millisecs=%" PRIu64
			 ", hands off for %" PRIu64 " s",
			 s->ksm.run, s->ksm.pages_to_scan, s->ksm.sleep_ms, p->limits.backoff_ns / NSEC_PER_SEC);
		return;
	}
	if (p->state == KSM_BACKOFF) {
		if (s->taken_ns < p->backoff_until_ns) {
			snprintf(ret_plan->why, sizeof(ret_plan->why),
				 "somebody else uses KSM, hands off for %" PRIu64 " s more",
				 (p->backoff_until_ns - s->taken_ns) / NSEC_PER_SEC);
			return;
		}
		p->state = KSM_REST;
	}
	if (p->state == KSM_REST)
		decide_rest(p, s, in, ret_plan);
	else
		decide_merge(p, s, in, ret_plan);
	if (ret_plan->action == KSM_START || ret_plan->action == KSM_RATE) {
		ret_plan->pages_to_scan = p->pages_to_scan;
		ret_plan->sleep_ms = p->sleep_ms;
	}
}
