#include "ksmd/remap.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <urcu.h>

#include "core/clock.h"
#include "core/log.h"
#include "ept/pagestate.h"
#include "ksmd/frame_index.h"
#include "ksmd/page_hash.h"
#include "ksmd/pass_internal.h"
#include "ksmd/plan.h"
#include "ksmd/store.h"

/* An agent answers a window within milliseconds; one that does not is hung, and so are perhaps its guest's
 * threads, which is for the repair to end. */
#define ANSWER_TIMEOUT_MS 5000
/* Beyond that, how long all answers of one agent may take, for each: one that is slow on purpose would hold up the other
 * VMs for hours. A window takes 0.2 to 5 ms, and up to eight are on their way at once. */
#define ANSWER_USUAL_MS 50
#define WINDOW_CPU_US_MAX 20000 /* an agent that says more would have the round rest for ever */
#define NAP_MAX_NS (20 * NSEC_PER_MSEC)
#define HUGE_BYTES ((uint64_t)PLAN_WINDOW_PAGES * PAGE_BYTES)

/* Of the kernel's limit of mappings, how much merging may fill in one VMM; the agent keeps to a half by itself. */
#define MAPPINGS_SHARE 2
#define MAPPINGS_DEFAULT 65530 /* vm.max_map_count, where it cannot be read */

struct remap {
	const struct fsio *fs;
	struct store *store;
	struct frame_index *index;
	struct frame_users *users;
	uint64_t *used_before; /* frames in use at the last sweep, or named in a command since */
	bool swept;	       /* used_before is of use */
	bool unindexed;	       /* adopted, and its frames are not in the index yet */
};

/* A window on its way: what its answer needs. */
struct sent {
	uint64_t window;
	uint16_t count;
	struct agent_run runs[AGENT_RUNS_MAX];
};

struct lane { /* of one VM */
	const struct remap_vm *vm;
	struct frame_user *user;
	struct remap_vm_result result;
	uint32_t mappings_left;
	struct sent sent[AGENT_PEER_OUTSTANDING];
	unsigned first, count;
	uint64_t answers, waited_ns; /* for these */
};

struct round {
	struct remap *r;
	struct lane *lanes;
	size_t count;
	struct plan_range *ranges;
	size_t range_count;
	uint64_t **huge, **left_out; /* per range */
	const struct remap_limits *limits;
	uint64_t start_ns;
	uint64_t cpu_ns;	/* of this thread when the round began */
	uint64_t agents_cpu_us; /* as they said */
	struct remap_result result;
};

/* What belongs to r->store. */
static int parts_make(struct remap *r)
{
	uint32_t frames = store_frames(r->store);
	int error = frame_index_new(frames, &r->index);

	if (error == 0)
		error = frame_users_new(r->fs, store_inode(r->store), frames, &r->users);
	r->used_before = calloc((frames + 63) / 64, sizeof(*r->used_before));
	return error == 0 && !r->used_before ? -ENOMEM : error;
}

static int remap_make(const struct fsio *fs, const struct store_options *options, int adopt_fd, struct remap **ret_remap)
{
	struct remap *r = calloc(1, sizeof(*r));
	int error;

	if (!r)
		return -ENOMEM;
	r->fs = fs;
	r->unindexed = adopt_fd >= 0;
	error = adopt_fd >= 0 ? store_adopt(fs, adopt_fd, options, &r->store) : store_new(fs, options, &r->store);
	if (error == 0)
		error = parts_make(r);
	if (error < 0) {
		remap_free(r);
		return error;
	}
	*ret_remap = r;
	return 0;
}

int remap_new(const struct fsio *fs, const char *domain, uint32_t frames, struct remap **ret_remap)
{
	const struct store_options options = {
		.name = domain,
		.frames = (frames + STORE_BLOCK_FRAMES - 1) / STORE_BLOCK_FRAMES * STORE_BLOCK_FRAMES,
		.node = -1,
	};

	return remap_make(fs, &options, -1, ret_remap);
}

int remap_adopt(const struct fsio *fs, const char *domain, int fd, struct remap **ret_remap)
{
	const struct store_options options = { .name = domain, .node = -1 };

	return remap_make(fs, &options, fd, ret_remap);
}

struct remap *remap_free(struct remap *r)
{
	if (!r)
		return NULL;
	frame_users_free(r->users);
	frame_index_free(r->index);
	store_free(r->store);
	free(r->used_before);
	free(r);
	return NULL;
}

uint64_t remap_memory_pages(const struct remap *r)
{
	return store_memory_bytes(r->store) / PAGE_BYTES;
}

/* ---- what the planner is told ---- */

/* A bit for each window that is one huge page. */
static uint64_t *huge_windows(int pagemap_fd, uint64_t at, uint64_t end)
{
	uint64_t base = at / HUGE_BYTES;
	size_t windows = (size_t)((end - 1) / HUGE_BYTES - base + 1);
	uint64_t *bits = calloc((windows + 63) / 64, sizeof(*bits));
	struct page_range ranges[64];

	while (bits && at < end) {
		ssize_t n = pagestate_ranges(pagemap_fd, at, end, ranges, 64, &at);

		for (ssize_t i = 0; i < n; i++) {
			if (!(ranges[i].flags & PAGE_HUGE))
				continue;
			for (uint64_t w = (ranges[i].start + HUGE_BYTES - 1) / HUGE_BYTES;
			     (w + 1) * HUGE_BYTES <= ranges[i].end; w++)
				bits[(w - base) / 64] |= UINT64_C(1) << ((w - base) % 64);
		}
		if (n < 0)
			break;
	}
	return bits;
}

static void bits_set(uint64_t *bits, uint64_t from, uint64_t to)
{
	for (uint64_t p = from; p < to; p++)
		bits[p / 64] |= UINT64_C(1) << p % 64;
}

/* A bit for each page of [start, end) that is not to be merged now: it is mapped to a frame already, written since or not;
 * or the guest has written to it between the last two passes, and would soon again: a merge costs it a fault and a copy.
 * first: the target's page at start. NULL: no memory. */
static uint64_t *pages_left_out(const struct frame_user *user, const struct scan_target *t, uint64_t first,
				uint64_t start, uint64_t end)
{
	size_t count;
	const struct hva_range *ranges = frame_user_ranges(user, &count);
	uint64_t pages = (end - start) / PAGE_BYTES, *bits = calloc(pages / 64 + 1, sizeof(*bits));

	for (size_t i = 0; bits && i < count; i++) {
		uint64_t from = ranges[i].start > start ? ranges[i].start : start;
		uint64_t to = ranges[i].end < end ? ranges[i].end : end;

		if (from < to)
			bits_set(bits, (from - start) / PAGE_BYTES, (to - start) / PAGE_BYTES);
	}
	for (uint64_t p = 0; bits && p < pages; p++)
		if (t->changed[(first + p) / 64] >> (first + p) % 64 & 1)
			bits_set(bits, p, p + 1);
	return bits;
}

/* The part of a target that lies in a slot; page: the target's first. */
static int range_add(struct round *o, uint32_t vm, const struct scan_target *t, uint64_t page,
		     const struct agent_slot_view *slot)
{
	uint64_t start = t->hva > slot->hva ? t->hva : slot->hva, end = t->hva + t->pages * PAGE_BYTES;
	uint64_t skip;

	if (end > slot->hva + slot->bytes)
		end = slot->hva + slot->bytes;
	if (!slot->can_remap || start >= end)
		return 0;
	skip = (start - t->hva) / PAGE_BYTES;
	/* A huge page that came since the scan is planned for like small ones; the agent looks for itself. */
	if (t->huge_pages > 0) {
		o->huge[o->range_count] = huge_windows(t->pagemap_fd, start, end);
		if (!o->huge[o->range_count])
			return -ENOMEM;
	}
	o->left_out[o->range_count] = pages_left_out(o->lanes[vm].user, t, skip, start, end);
	if (!o->left_out[o->range_count])
		return -ENOMEM;
	o->ranges[o->range_count] = (struct plan_range){
		.vm = vm,
		.first_page = page + skip,
		.hva = start,
		.pages = (end - start) / PAGE_BYTES,
		.hashes = t->hashes + skip,
		.left_out = o->left_out[o->range_count],
		.huge = o->huge[o->range_count],
	};
	o->range_count++;
	return 0;
}

static int slot_compare(const void *a, const void *b)
{
	const struct agent_slot_view *x = a, *y = b;

	return x->hva < y->hva ? -1 : x->hva > y->hva;
}

/* What both sides call guest RAM: the daemon by what the VMM's monitor says, the agent by what the VMM did with it. */
static int vm_ranges_make(struct round *o, uint32_t vm)
{
	const struct page_table *table = o->lanes[vm].vm->table;
	struct agent_slot_view slots[AGENT_SLOTS_MAX];
	const struct agent_slot_view *said;
	size_t count = agent_peer_slots(o->lanes[vm].vm->peer, &said);
	uint64_t page = 0;

	memcpy(slots, said, count * sizeof(*slots));
	qsort(slots, count, sizeof(*slots), slot_compare);
	for (size_t k = 0; k < table->target_count; k++) {
		for (size_t i = 0; i < count; i++) {
			int r = range_add(o, vm, &table->targets[k], page, &slots[i]);

			if (r < 0)
				return r;
		}
		page += table->targets[k].pages;
	}
	return 0;
}

static int ranges_make(struct round *o)
{
	size_t total = 0;
	int r = 0;

	/* Slots do not overlap, targets neither: each pair has one part at most, each end of one ends one. */
	for (size_t i = 0; i < o->count; i++)
		total += o->lanes[i].vm->table->target_count + AGENT_SLOTS_MAX;
	o->ranges = calloc(total + 1, sizeof(*o->ranges));
	o->huge = calloc(total + 1, sizeof(*o->huge));
	o->left_out = calloc(total + 1, sizeof(*o->left_out));
	if (!o->ranges || !o->huge || !o->left_out)
		return -ENOMEM;
	for (size_t i = 0; i < o->count && r == 0; i++)
		r = vm_ranges_make(o, (uint32_t)i);
	return r;
}

/* The address of page number "page" of VM number vm. */
static uint64_t page_hva(const struct round *o, uint32_t vm, uint64_t page)
{
	for (size_t i = 0; i < o->range_count; i++) {
		const struct plan_range *g = &o->ranges[i];

		if (g->vm == vm && page >= g->first_page && page - g->first_page < g->pages)
			return g->hva + (page - g->first_page) * PAGE_BYTES;
	}
	return 0;
}

/* ---- answers ---- */

static void answer_count(struct round *o, struct lane *lane, const struct agent_answer *a)
{
	const struct sent *s = &lane->sent[lane->first];

	for (size_t i = 0; i < s->count; i++) {
		const struct agent_run *run = &s->runs[i];
		uint16_t merged = a->error ? 0 : a->results[i].merged;

		merged = merged < run->pages ? merged : run->pages; /* it may say anything */
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

static bool is_cancelled(const struct round *o)
{
	return o->limits->cancel && *o->limits->cancel;
}

/* Takes answers until at most "left" windows are without one. */
static void answers_take(struct round *o, struct lane *lane, unsigned left)
{
	struct agent_answer answer;

	if (is_cancelled(o) && lane->count > left)
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
static int window_fill(struct round *o, const struct plan_window *w)
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
						  page_hva(o, w->vm, w->fills[i].page) };
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
static void frames_ask(struct remap *r, struct frame_user *user, uint32_t first, uint32_t n)
{
	frame_user_ask(user, first, n);
	for (uint32_t f = first; f < first + n; f++)
		r->used_before[f / 64] |= UINT64_C(1) << f % 64;
}

/* The window's runs whose frames can be referenced, as the agent is told them. */
static size_t window_runs(struct round *o, const struct plan_window *w, uint64_t window, struct sent *s)
{
	for (uint32_t i = 0; i < w->run_count; i++) {
		const struct plan_run *run = &w->runs[i];
		uint64_t at = page_hva(o, w->vm, run->page);

		/* A frame whose fill failed, in this window or an earlier one, is not published. */
		if (run->frame != PLAN_ZERO && !store_is_published(o->r->store, run->frame, run->pages))
			continue;
		if (run->frame != PLAN_ZERO)
			frames_ask(o->r, o->lanes[w->vm].user, run->frame, run->pages);
		s->runs[s->count++] = (struct agent_run){ (uint16_t)((at - window) / PAGE_BYTES),
							  (uint16_t)run->pages,
							  run->frame == PLAN_ZERO ? AGENT_ZERO : run->frame };
	}
	s->window = window;
	return s->count;
}

static void window_send(struct round *o, const struct plan_window *w)
{
	struct lane *lane = &o->lanes[w->vm];
	uint64_t window = page_hva(o, w->vm, w->page) / HUGE_BYTES * HUGE_BYTES;
	struct sent *s;
	int r;

	if (lane->result.broken)
		return;
	r = window_fill(o, w);
	if (r < 0)
		log_debug("window 0x%llx: frames not filled: %s", (unsigned long long)window, strerror(-r));
	answers_take(o, lane, AGENT_PEER_OUTSTANDING - 1);
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
}

/* ---- a round ---- */

/* Whether the guests are mostly in huge pages. What merging frees is then huge, and good for huge frames. Of small
 * pages it frees small ones, while a huge page for frames has to come from memory that was long free, which the host
 * may have taken back, or from compaction: measured 70 ms for 42,490 frames when it was warm, 130-200 ms when not, and
 * 75-80 ms in small pages at any time. */
static bool guests_are_huge(const struct round *o)
{
	uint64_t huge = 0, present = 0;

	for (size_t i = 0; i < o->count; i++) {
		const struct page_table *t = o->lanes[i].vm->table;

		for (size_t k = 0; k < t->target_count; k++) {
			huge += t->targets[k].huge_pages;
			present += t->targets[k].present_pages;
		}
	}
	return huge > present / 2;
}

/* The extents that the plan asks for. */
static int frames_allocate(struct round *o, const struct plan_need *need, struct plan *plan, uint32_t *ret_blocks,
			   uint32_t *ret_frames)
{
	uint32_t align = need->frames >= STORE_BLOCK_FRAMES && guests_are_huge(o) ? STORE_BLOCK_FRAMES : 1;
	int r = 0;

	*ret_blocks = *ret_frames = 0;
	if (need->block_frames)
		r = store_alloc(o->r->store, need->block_frames, STORE_BLOCK_FRAMES, ret_blocks);
	if (r == 0 && need->frames)
		r = store_alloc(o->r->store, need->frames, align, ret_frames);
	return r < 0 ? r : plan_place(plan, *ret_blocks, *ret_frames);
}

static int plan_make(struct round *o, struct plan **ret_plan)
{
	struct plan_input input = {
		.ranges = o->ranges,
		.range_count = o->range_count,
		.vm_count = o->count,
		.limits = PLAN_LIMITS_DEFAULT,
		.index = o->r->index,
	};
	struct plan_vm *vms = calloc(o->count + 1, sizeof(*vms));
	int r;

	if (!vms)
		return -ENOMEM;
	for (size_t i = 0; i < o->count; i++)
		vms[i].mappings_left = o->lanes[i].mappings_left;
	input.vms = vms;
	r = plan_new(&input, ret_plan);
	free(vms);
	if (r == 0)
		r = plan_join(*ret_plan, NULL);
	return r;
}

static uint64_t round_cpu_ns(const struct round *o)
{
	return clock_thread_cpu_ns() - o->cpu_ns + o->agents_cpu_us * NSEC_PER_USEC;
}

/* Rests until the CPU time so far is within the quota. Agents that say they used none are not held up; it is their
 * VM's CPU time. */
static void quota_keep(const struct round *o)
{
	uint64_t share = o->limits->cpu_percent, due, elapsed;

	while (share > 0 && !is_cancelled(o)) {
		struct timespec nap = { 0, 0 };

		due = round_cpu_ns(o) / share * 100;
		elapsed = clock_mono_ns() - o->start_ns;
		if (due <= elapsed)
			return;
		nap.tv_nsec = (long)(due - elapsed < NAP_MAX_NS ? due - elapsed : NAP_MAX_NS);
		nanosleep(&nap, NULL);
	}
}

static int windows_run(struct round *o, struct plan *plan)
{
	struct plan_window *w = malloc(sizeof(*w));
	struct plan_need need;
	uint32_t blocks = 0, frames = 0;
	int r;

	if (!w)
		return -ENOMEM;
	r = plan_build(plan, &need);
	o->result.planned_pages = r == 0 ? need.gain_pages : 0;
	if (r < 0 || need.gain_pages == 0 || need.gain_pages < o->limits->min_gain_pages) {
		free(w);
		return r;
	}
	r = frames_allocate(o, &need, plan, &blocks, &frames);
	while (r == 0 && !is_cancelled(o) && plan_next(plan, w) == 1) {
		quota_keep(o);
		window_send(o, w);
	}
	for (size_t i = 0; i < o->count; i++)
		answers_take(o, &o->lanes[i], 0);
	/* What was allocated and came to no use. */
	if (r == 0 && need.block_frames)
		store_release(o->r->store, blocks, need.block_frames);
	if (r == 0 && need.frames)
		store_release(o->r->store, frames, need.frames);
	free(w);
	return r;
}

/* How many mappings merging may still make in this process. Half of the limit is the VMM's own. */
static uint32_t mappings_left(const struct remap *r, struct frame_user *user)
{
	uint64_t limit = MAPPINGS_DEFAULT;
	uint32_t mappings;

	if (fsio_read_u64(r->fs, &limit, "/proc/sys/vm/max_map_count") < 0)
		limit = MAPPINGS_DEFAULT;
	if (limit > PLAN_MAPPINGS_UNLIMITED - 1)
		limit = PLAN_MAPPINGS_UNLIMITED - 1;
	if (frame_user_look(r->users, user) < 0)
		return 0;
	mappings = frame_user_figures(user)->mappings;
	return mappings < limit / MAPPINGS_SHARE ? (uint32_t)(limit / MAPPINGS_SHARE) - mappings : 0;
}

/* A VM that cannot take part is broken from the beginning: its pages are planned for and not merged. */
static int lanes_make(struct round *o, const struct remap_vm *vms)
{
	o->lanes = calloc(o->count + 1, sizeof(*o->lanes));
	if (!o->lanes)
		return -ENOMEM;
	for (size_t i = 0; i < o->count; i++) {
		struct lane *lane = &o->lanes[i];
		int r;

		lane->vm = &vms[i];
		r = agent_peer_give_store(vms[i].peer, o->r->store);
		lane->result.broken = r < 0;
		if (r < 0)
			log_warning("agent pid=%d does not take the store: %s", (int)agent_peer_pid(vms[i].peer),
				    strerror(-r));
	}
	/* First all, then their addresses: a client that is new drops those that have ended. Nothing drops any from the
	 * first address on. */
	for (size_t i = 0; i < o->count; i++) {
		const struct agent_peer *peer = vms[i].peer;

		if (!frame_users_client(o->r->users, agent_peer_pid(peer), agent_peer_pidfd(peer)))
			return -ENOMEM;
	}
	for (size_t i = 0; i < o->count; i++) {
		struct lane *lane = &o->lanes[i];

		lane->user = frame_users_find(o->r->users, agent_peer_pid(vms[i].peer));
		if (lane->user)
			lane->mappings_left = mappings_left(o->r, lane->user);
		else
			lane->result.broken = true;
	}
	return 0;
}

static void round_free(struct round *o)
{
	for (size_t i = 0; o->huge && o->left_out && i <= o->range_count; i++) { /* one may be half made */
		free(o->huge[i]);
		free(o->left_out[i]);
	}
	free(o->huge);
	free(o->left_out);
	free(o->ranges);
	free(o->lanes);
}

/* An earlier daemon's frames, by the hashes of this one. Frames that nobody maps any more are among them until the next
 * sweeps; they do no harm. */
static int frames_index(struct remap *r, uint64_t seed)
{
	int error = 0;

	for (uint32_t f = 0; error == 0 && f < store_frames(r->store); f++)
		if (store_is_published(r->store, f, 1))
			error = frame_index_put(r->index, page_hash(store_frame(r->store, f), seed), f);
	r->unindexed = error != 0;
	return error;
}

static int round_run(struct round *o)
{
	struct plan *plan = NULL;
	struct store_counts counts;
	int error = ranges_make(o);

	if (error == 0 && o->r->unindexed && o->count > 0)
		error = frames_index(o->r, o->lanes[0].vm->table->seed);

	if (error == 0)
		error = plan_make(o, &plan);
	o->result.plan_seconds = (double)(clock_mono_ns() - o->start_ns) / (double)NSEC_PER_SEC;
	if (error == 0)
		error = windows_run(o, plan);
	store_count(o->r->store, &counts);
	if (plan)
		o->result.metadata_bytes =
			plan_bytes(plan) + counts.metadata_bytes + frame_index_bytes(o->r->index);
	plan_free(plan);
	return error;
}

int remap_round(struct remap *r, const struct remap_vm *vms, size_t count, const struct remap_limits *limits,
		struct remap_vm_result *ret_vms, struct remap_result *ret_result)
{
	struct round o = { .r = r, .count = count, .limits = limits, .cpu_ns = clock_thread_cpu_ns() };
	int error;

	o.start_ns = clock_mono_ns();
	rcu_register_thread();
	error = lanes_make(&o, vms);
	if (error == 0)
		error = round_run(&o);
	rcu_unregister_thread();
	for (size_t i = 0; error == 0 && i < count; i++) {
		if (!o.lanes[i].result.broken)
			frame_user_settle(o.lanes[i].user);
		o.result.merged_pages += o.lanes[i].result.merged_pages;
		o.result.zero_pages += o.lanes[i].result.zero_pages;
		if (ret_vms)
			ret_vms[i] = o.lanes[i].result;
	}
	round_free(&o);
	o.result.seconds = (double)(clock_mono_ns() - o.start_ns) / (double)NSEC_PER_SEC;
	o.result.cpu_seconds = (double)round_cpu_ns(&o) / (double)NSEC_PER_SEC;
	if (error == 0)
		*ret_result = o.result;
	return error;
}

/* ---- frames that nobody uses any more ---- */

static uint32_t frames_free(struct remap *r, const uint64_t *used)
{
	uint32_t at = 0, n, freed = 0;

	for (; store_next_unused(r->store, used, &at, &n); freed += n) {
		/* Not to be found any more before it is gone. */
		for (uint32_t f = at; f < at + n; f++)
			frame_index_drop(r->index, f);
		store_retire(r->store, at, n);
	}
	return freed;
}

int remap_sweep(struct remap *r, uint32_t *ret_freed, bool *ret_more)
{
	size_t words = (store_frames(r->store) + 63) / 64;
	const uint64_t *used;
	uint32_t at = 0, n;
	int error = frame_users_look(r->users, &used);

	*ret_freed = 0;
	*ret_more = true;
	if (error < 0)
		return error;
	for (size_t w = 0; w < words; w++)
		r->used_before[w] |= used[w];
	if (r->swept)
		*ret_freed = frames_free(r, r->used_before);
	memcpy(r->used_before, used, words * sizeof(*used));
	r->swept = true;
	*ret_more = store_next_unused(r->store, used, &at, &n) || frame_users_stale(r->users);
	return 0;
}

void remap_vm_changed(struct remap *r, pid_t pid)
{
	struct frame_user *user = frame_users_find(r->users, pid);

	if (user)
		frame_user_changed(user);
}

void remap_vm_hello(struct remap *r, pid_t pid)
{
	struct frame_user *user = frame_users_find(r->users, pid);

	if (user)
		frame_user_settle(user);
}

bool remap_vm_figures(const struct remap *r, pid_t pid, struct frame_user_figures *ret_figures)
{
	const struct frame_user *user = frame_users_find(r->users, pid);

	if (user)
		*ret_figures = *frame_user_figures(user);
	return user != NULL;
}

uint64_t remap_frames(const struct remap *r)
{
	struct store_counts counts;

	store_count(r->store, &counts);
	return counts.frames_used;
}
