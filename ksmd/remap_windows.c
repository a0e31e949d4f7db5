/* The windows of a round: frames filled, commands sent, answers counted. */
#include <errno.h>
#include <string.h>

#include "core/clock.h"
#include "core/log.h"
#include "core/snapshot.h"
#include "ksmd/frame_index.h"
#include "ksmd/pass_internal.h"
#include "ksmd/remap_internal.h"
#include "ksmd/store.h"

/* An agent answers a window within milliseconds; one that does not is hung, and so are perhaps its guest's
 * threads, which is for the repair to end. */
#define ANSWER_TIMEOUT_MS 5000
/* Beyond that, how long all answers of one agent may take, for each: one that is slow on purpose would hold up the other
 * VMs for hours. A window takes 0.2 to 5 ms, and up to eight are on their way at once. */
#define ANSWER_USUAL_MS 50
#define WINDOW_CPU_US_MAX 20000 /* an agent that says more would have the round rest for ever */

/* ---- answers ---- */

static void answer_count(struct remap_work *o, struct lane *lane, const struct agent_answer *a)
{
	const struct sent *s = &lane->sent[lane->first];

	for (size_t i = 0; i < s->count; i++) {
		const struct agent_run *run = &s->runs[i];
		uint16_t merged = a->error ? 0 : a->results[i].merged;

		merged = merged < run->pages ? merged : run->pages; /* it may say anything */
		if (o->limits->merged_pages)
			*o->limits->merged_pages += merged;
		if (run->frame == AGENT_ZERO) {
			lane->result.zero_pages += merged;
			continue;
		}
		lane->result.merged_pages += merged;
		o->result.runs += merged > 0;
	}
	for (size_t i = 0; i < a->count; i++) {
		o->result.unequal_runs += a->results[i].outcome == AGENT_RUN_UNEQUAL;
		o->result.busy_runs += a->results[i].outcome == AGENT_RUN_BUSY;
		o->result.skipped_runs += a->results[i].outcome == AGENT_RUN_SKIPPED;
		o->result.failed_runs += a->results[i].outcome == AGENT_RUN_FAILED;
	}
	o->agents_cpu_us += a->cpu_us < WINDOW_CPU_US_MAX ? a->cpu_us : WINDOW_CPU_US_MAX;
	if (a->stall_us > o->result.stall_us_max)
		o->result.stall_us_max = a->stall_us;
	lane->first = (lane->first + 1) % AGENT_PEER_OUTSTANDING;
	lane->count--;
	lane->answers++;
}

static int patience_ms(const struct lane *lane)
{
	uint64_t all = ANSWER_TIMEOUT_MS + lane->answers * ANSWER_USUAL_MS, waited = lane->waited_ns / NSEC_PER_MSEC;
	uint64_t left = waited < all ? all - waited : 0;

	return left < ANSWER_TIMEOUT_MS ? (int)left : ANSWER_TIMEOUT_MS;
}

bool remap_is_cancelled(const struct remap_work *o)
{
	return o->limits->cancel && *o->limits->cancel;
}

bool remap_is_ending(const struct remap_work *o)
{
	return remap_is_cancelled(o) || (o->limits->stop && *o->limits->stop);
}

void remap_answers_take(struct remap_work *o, struct lane *lane, unsigned left)
{
	struct agent_answer answer;

	if (remap_is_cancelled(o) && lane->count > left)
		lane->result.broken = true; /* what was sent is carried out or not: the frames stay in use */
	while (!lane->result.broken && lane->count > left) {
		uint64_t start = clock_mono_ns();
		int r = agent_peer_answer(lane->vm->peer, patience_ms(lane), &answer);

		lane->waited_ns += clock_mono_ns() - start;
		if (r == 0) {
			answer_count(o, lane, &answer);
		} else {
			log_warning("agent pid=%d gives no answer, its VM is merged no further: %s",
				    (int)agent_peer_pid(lane->vm->peer), strerror(-r));
			lane->result.broken = true;
		}
	}
}

/* ---- windows ---- */

/* Fills the frames that this window is the first to use, and makes them known: by what they hold, which is not what
 * was planned if the guest has written since. Under the planned hash such a frame would be taken for ever for a
 * content that it does not hold, and that content would never be merged again. */
static int window_fill(struct remap_work *o, const struct plan_window *w)
{
	struct store_piece pieces[PLAN_WINDOW_PAGES];
	uint64_t hashes[PLAN_WINDOW_PAGES];
	const struct agent_peer *peer = o->lanes[w->vm].vm->peer;
	const struct store_source from = { agent_peer_pid(peer), agent_peer_pidfd(peer),
					   o->lanes[w->vm].vm->table->seed };
	const uint64_t *hash = hashes;
	struct remap *r = o->r;
	size_t done = 0;
	int error;

	for (uint32_t i = 0; i < w->fill_count; i++)
		pieces[i] = (struct store_piece){ w->fills[i].frame, w->fills[i].pages,
						  remap_page_hva(o, w->vm, w->fills[i].page) };
	error = w->fill_count ? store_fill(r->store, &from, pieces, w->fill_count, hashes, &done) : 0;
	if (error < 0)
		return error;
	for (uint32_t i = 0; i < w->fill_count; i++) {
		error = store_publish(r->store, w->fills[i].frame, w->fills[i].pages);
		for (uint32_t k = 0; error == 0 && k < w->fills[i].pages; k++)
			error = frame_index_put(r->index, *hash++, w->fills[i].frame + k);
		if (error < 0)
			return error;
		o->result.filled_frames += w->fills[i].pages;
	}
	return 0;
}

/* What a command names is in use now, whatever the last look said: two looks have to find nobody after it. */
static int frames_ask(struct remap *r, struct frame_user *user, uint32_t first, uint32_t n)
{
	for (uint32_t f = first; f < first + n; f++)
		r->used_before[f / 64] |= UINT64_C(1) << f % 64;
	return frame_user_ask(user, first, n);
}

/* The window's runs whose frames can be referenced, as the agent is told them. */
static size_t window_runs(struct remap_work *o, const struct plan_window *w, uint64_t window, struct sent *s)
{
	for (uint32_t i = 0; i < w->run_count; i++) {
		const struct plan_run *run = &w->runs[i];
		uint64_t at = remap_page_hva(o, w->vm, run->page);

		/* A frame whose fill failed, in this window or an earlier one, is not published. */
		if (run->frame != PLAN_ZERO && !store_is_published(o->r->store, run->frame, run->pages))
			continue;
		if (run->frame != PLAN_ZERO && frames_ask(o->r, o->lanes[w->vm].user, run->frame, run->pages) < 0)
			continue;
		s->runs[s->count++] = (struct agent_run){ (uint16_t)((at - window) / PAGE_BYTES),
							  (uint16_t)run->pages,
							  run->frame == PLAN_ZERO ? AGENT_ZERO : run->frame };
	}
	s->window = window;
	return s->count;
}

void remap_window_send(struct remap_work *o, const struct plan_window *w)
{
	struct lane *lane = &o->lanes[w->vm];
	uint64_t window = remap_page_hva(o, w->vm, w->page) / HUGE_BYTES * HUGE_BYTES;
	struct sent *s;
	int r;

	if (lane->result.broken)
		return;
	r = window_fill(o, w);
	if (r < 0)
		log_debug("window 0x%llx: frames not filled: %s", (unsigned long long)window, strerror(-r));
	remap_answers_take(o, lane, AGENT_PEER_OUTSTANDING - 1);
	s = &lane->sent[(lane->first + lane->count) % AGENT_PEER_OUTSTANDING];
	s->count = 0;
	if (lane->result.broken || window_runs(o, w, window, s) == 0)
		return;
	r = agent_peer_merge(lane->vm->peer, window, s->runs, s->count,
			     (uint16_t)PLAN_LIMITS_DEFAULT.window_min_huge,
			     (uint16_t)PLAN_LIMITS_DEFAULT.window_min_small);
	if (r < 0) {
		lane->result.broken = true;
		return;
	}
	lane->count++;
	o->result.windows++;
	for (size_t i = 0; i < s->count; i++)
		o->result.exchanged_pages += s->runs[i].pages;
}
