#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <urcu.h>

#include "core/clock.h"
#include "core/log.h"
#include "ksmd/frame_index.h"
#include "agent/page_hash.h"
#include "ksmd/pass_internal.h"
#include "ksmd/remap_internal.h"
#include "ksmd/store.h"

#define NAP_MAX_NS (20 * NSEC_PER_MSEC)

/* Of the kernel's limit of mappings, how much merging may fill in one VMM; the agent keeps to a half by itself. */
#define MAPPINGS_SHARE 2
#define MAPPINGS_DEFAULT 65530 /* vm.max_map_count, where it cannot be read */

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

/* ---- a round ---- */

/* Whether the guests are mostly in huge pages. What merging frees is then huge, and good for huge frames. Of small
 * pages it frees small ones, while a huge page for frames has to come from memory that was long free, which the host
 * may have taken back, or from compaction: measured 70 ms for 42,490 frames when it was warm, 130-200 ms when not, and
 * 75-80 ms in small pages at any time. */
static bool guests_are_huge(const struct remap_work *o)
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
static int frames_allocate(struct remap_work *o, const struct plan_need *need, struct plan *plan, uint32_t *ret_blocks,
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

static int plan_make(struct remap_work *o, struct plan **ret_plan)
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

static uint64_t round_cpu_ns(const struct remap_work *o)
{
	return clock_thread_cpu_ns() - o->cpu_ns + o->agents_cpu_us * NSEC_PER_USEC;
}

/* How much too early it is for the next window: what was used so far is worth so much time, by the quota that is the
 * furthest behind. Agents that say they used no CPU time are not held up; it is their VM's. */
static double quota_ahead_ns(const struct remap_work *o)
{
	const struct remap_limits *l = o->limits;
	uint64_t now = clock_mono_ns();
	double since_start = (double)(now - o->start_ns), since_first = (double)(now - o->exchange_ns), ahead = 0;
	double bytes = (double)o->result.exchanged_pages * PAGE_BYTES, windows = (double)o->result.windows;

	if (l->cpu_percent)
		ahead = fmax(ahead, (double)round_cpu_ns(o) * 100 / (double)l->cpu_percent - since_start);
	if (l->bytes_per_s)
		ahead = fmax(ahead, bytes * NSEC_PER_SEC / (double)l->bytes_per_s - since_first);
	if (l->windows_per_s)
		ahead = fmax(ahead, windows * NSEC_PER_SEC / (double)l->windows_per_s - since_first);
	return ahead;
}

/* Rests until all quotas are kept. */
static void quota_keep(const struct remap_work *o)
{
	double ahead;

	while (!remap_is_ending(o) && (ahead = quota_ahead_ns(o)) > 0) {
		struct timespec nap = { .tv_nsec = (long)fmin(ahead, NAP_MAX_NS) };

		nanosleep(&nap, NULL);
	}
}

static int windows_run(struct remap_work *o, struct plan *plan)
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
	o->exchange_ns = clock_mono_ns();
	while (r == 0 && !remap_is_ending(o) && plan_next(plan, w) == 1) {
		quota_keep(o);
		remap_window_send(o, w);
	}
	for (size_t i = 0; i < o->count; i++)
		remap_answers_take(o, &o->lanes[i], 0);
	o->result.exchange_seconds = (double)(clock_mono_ns() - o->exchange_ns) / (double)NSEC_PER_SEC;
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

/* A VM that cannot take part, or has ended, is broken from the beginning: nothing is planned with its pages. */
static int lanes_make(struct remap_work *o, const struct remap_vm *vms)
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
	/* First all, then their addresses: a new client with the pid of one that has ended drops all of these. Nothing
	 * drops any from the first address on. */
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

static void round_free(struct remap_work *o)
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

static int round_run(struct remap_work *o)
{
	struct plan *plan = NULL;
	struct store_counts counts;
	int error = remap_ranges_make(o);

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
	struct remap_work o = { .r = r, .count = count, .limits = limits, .cpu_ns = clock_thread_cpu_ns() };
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

struct remap_rates remap_rates(const struct remap_result *result)
{
	double exchange = fmax(result->exchange_seconds, 1e-9), seconds = fmax(result->seconds, 1e-9);

	return (struct remap_rates){
		.windows_per_s = (double)result->windows / exchange,
		.mib_per_s = (double)result->exchanged_pages * PAGE_BYTES / 1048576 / exchange,
		.cpu_percent = result->cpu_seconds / seconds * 100,
	};
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
	size_t words = store_frames_high(r->store) / 64;
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

int remap_look(struct remap *r)
{
	return frame_users_look_clients(r->users);
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
