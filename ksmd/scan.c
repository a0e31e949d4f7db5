#include "ksmd/scan.h"

#include <errno.h>
#include <numa.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <urcu.h>

#include "core/clock.h"
#include "core/snapshot.h"
#include "ksmd/scan_internal.h"

/* A worker over its quota sleeps at most this long before it looks again whether it is cancelled. */
#define NAP_MAX_NS (50 * NSEC_PER_MSEC)

/* ---- hash arrays ---- */

uint64_t *scan_hashes_new(uint64_t pages)
{
	void *map;

	if (pages == 0 || pages > SIZE_MAX / sizeof(uint64_t))
		return NULL;
	map = mmap(NULL, pages * sizeof(uint64_t), PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	return map == MAP_FAILED ? NULL : map;
}

uint64_t *scan_hashes_free(uint64_t *hashes, uint64_t pages)
{
	if (hashes)
		munmap(hashes, pages * sizeof(uint64_t));
	return NULL;
}
static void counts_reset(struct worker *w)
{
	w->present = w->zero = w->zero_mapped = w->swapped = w->huge = w->index_hits = w->hashed = w->unsettled = 0;
	w->watched = false;
}

/* ---- one chunk ---- */

static bool process_alive(const struct scan_target *t)
{
	return syscall(SYS_pidfd_send_signal, t->pidfd, 0, NULL, 0) == 0 || errno == EPERM;
}

/* All of it, whatever was known. */
static void chunk_hash(struct worker *w, struct scan_target *t, uint64_t first, uint64_t pages)
{
	const struct scan_stretch all = { first, pages };

	scan_old_keep(w, t, first, pages);
	madvise(t->hashes + first, pages * sizeof(*t->hashes), MADV_DONTNEED);
	if (t->peer && !t->peer_failed && scan_ask(w, t, &all, 1) < 0) {
		t->peer_failed = true;
		counts_reset(w);
		madvise(t->hashes + first, pages * sizeof(*t->hashes), MADV_DONTNEED);
	}
	if (!t->peer || t->peer_failed)
		scan_chunk_read(w, t, first, pages);
	w->hashed = w->present;
	t->settled_pages += w->present;
	if (t->track)
		scan_track_forget(t->track, (size_t)(first / SCAN_CHUNK_PAGES));
}

static void chunk_scan(struct worker *w, struct scan_target *t, uint64_t first)
{
	uint64_t pages = t->pages - first < SCAN_CHUNK_PAGES ? t->pages - first : SCAN_CHUNK_PAGES;

	w->tracking = t->tracked;
	if (!t->tracked)
		chunk_hash(w, t, first, pages);
	else if (scan_chunk_track(w, t, first, pages) < 0)
		t->gone = true;
	/* Still the same process after the last read, so it was during all of them: a pid is not used again
	 * while its process is there. */
	if (!process_alive(t))
		t->gone = true;
	if (t->gone)
		madvise(t->hashes + first, pages * sizeof(*t->hashes), MADV_DONTNEED);
	if (t->used)
		t->used[first / SCAN_CHUNK_PAGES] = w->present > 0 && !t->gone;
}

static void counts_publish(struct worker *w, struct scan_target *t)
{
	t->present_pages += w->present;
	t->zero_pages += w->zero;
	t->zero_mapped_pages += w->zero_mapped;
	t->swapped_pages += w->swapped;
	t->huge_pages += w->huge;
	t->index_hits += w->index_hits;
	t->hashed_pages += w->hashed;
	t->unsettled_pages += w->unsettled;
	if (w->watched)
		t->watched = true;
	if (t->early)
		w->scan->progress->early_hits += w->index_hits;
	counts_reset(w);
}

/* Of this thread, and of the agents that it had at work. */
static uint64_t worker_cpu_ns(const struct worker *w)
{
	return clock_thread_cpu_ns() + w->agents_cpu_ns;
}

static void chunk_timed(struct worker *w, struct scan_target *t, uint64_t first)
{
	uint64_t cpu_ns = worker_cpu_ns(w), never = 0;

	atomic_compare_exchange_strong(&t->started_ns, &never, clock_mono_ns());
	chunk_scan(w, t, first);
	t->cpu_ns += worker_cpu_ns(w) - cpu_ns;
	t->ended_ns = clock_mono_ns();
}

/* ---- quotas ---- */

/* How long to pause so that this worker's CPU time and everybody's bytes are within the limits. */
static uint64_t over_quota_ns(const struct worker *w)
{
	const struct scan *s = w->scan;
	uint64_t elapsed = clock_mono_ns() - s->started_ns, due = 0, needed;

	if (s->limits->cpu_percent) {
		needed = worker_cpu_ns(w) * 100 / s->limits->cpu_percent * s->workers;
		due = needed > elapsed ? needed - elapsed : 0;
	}
	if (s->limits->bytes_per_s) {
		needed = (uint64_t)((double)s->read_bytes / (double)s->limits->bytes_per_s * (double)NSEC_PER_SEC);
		if (needed > elapsed && needed - elapsed > due)
			due = needed - elapsed;
	}
	return due;
}

static void quota_wait(const struct worker *w)
{
	uint64_t due;

	while (!w->scan->progress->cancel && (due = over_quota_ns(w)) > 0) {
		uint64_t nap = due < NAP_MAX_NS ? due : NAP_MAX_NS;
		struct timespec ts = { 0, (long)nap };

		clock_nanosleep(CLOCK_MONOTONIC, 0, &ts, NULL);
	}
}

/* ---- workers ---- */

/* The target that a chunk belongs to. */
static size_t target_of_chunk(const struct scan *s, uint64_t chunk)
{
	size_t low = 0, high = s->target_count;

	while (high - low > 1) {
		size_t mid = low + (high - low) / 2;

		if (s->first_chunk[mid] <= chunk)
			low = mid;
		else
			high = mid;
	}
	return low;
}

static void chunk_do(struct worker *w, struct scan_target *t, uint64_t first)
{
	struct scan *s = w->scan;

	if (!t->gone)
		chunk_timed(w, t, first);
	counts_publish(w, t);
	s->progress->done_pages += t->pages - first < SCAN_CHUNK_PAGES ? t->pages - first : SCAN_CHUNK_PAGES;
	quota_wait(w);
}

/* All targets of one agent, from its first on: a peer is for one thread at a time, and the agent has but one. */
static void group_scan(struct worker *w, size_t i)
{
	struct scan *s = w->scan;
	bool failed = false, broken = false;

	for (const struct agent_peer *peer = s->targets[i].peer; i < s->target_count && s->targets[i].peer == peer; i++) {
		struct scan_target *t = &s->targets[i];

		t->peer_failed = failed;
		t->peer_broken = broken;
		for (uint64_t first = 0; first < t->pages && !s->progress->cancel; first += SCAN_CHUNK_PAGES)
			chunk_do(w, t, first);
		failed = t->peer_failed;
		broken = t->peer_broken;
	}
}

static bool group_begins(const struct scan *s, size_t i)
{
	return s->targets[i].peer && (i == 0 || s->targets[i - 1].peer != s->targets[i].peer);
}

static void *worker_main(void *arg)
{
	struct worker *w = arg;
	struct scan *s = w->scan;
	uint64_t chunk;
	size_t group;

	pthread_setname_np(pthread_self(), "scan");
	rcu_register_thread();
	while (!s->progress->cancel && (group = s->next_group++) < s->target_count)
		if (group_begins(s, group))
			group_scan(w, group);
	while (!s->progress->cancel && (chunk = s->next_chunk++) < s->first_chunk[s->target_count]) {
		size_t i = target_of_chunk(s, chunk);

		if (!s->targets[i].peer)
			chunk_do(w, &s->targets[i], (chunk - s->first_chunk[i]) * SCAN_CHUNK_PAGES);
	}
	s->cpu_ns += worker_cpu_ns(w);
	rcu_unregister_thread();
	return NULL;
}

static unsigned workers_choose(const struct scan_limits *limits)
{
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);

	if (limits->workers)
		return limits->workers;
	if (cpus < 1)
		return 1;
	return cpus < SCAN_WORKERS_DEFAULT_MAX ? (unsigned)cpus : SCAN_WORKERS_DEFAULT_MAX;
}

bool scan_peer_covers(const struct agent_peer *peer, const struct scan_target *t, bool *ret_tracked)
{
	const struct agent_slot_view *slots;
	size_t count = agent_peer_slots(peer, &slots);
	uint64_t bytes = t->pages * PAGE_BYTES;

	for (size_t i = 0; i < count; i++)
		if (slots[i].can_remap && t->hva >= slots[i].hva && bytes <= slots[i].bytes &&
		    t->hva - slots[i].hva <= slots[i].bytes - bytes) {
			*ret_tracked = slots[i].tracked;
			return true;
		}
	*ret_tracked = false;
	return bytes == 0;
}

static int scan_prepare(struct scan *s)
{
	uint64_t chunks = 0;

	s->first_chunk = calloc(s->target_count + 1, sizeof(*s->first_chunk));
	if (!s->first_chunk)
		return -ENOMEM;
	for (size_t i = 0; i < s->target_count; i++) {
		struct scan_target *t = &s->targets[i];

		s->first_chunk[i] = chunks;
		chunks += (t->pages + SCAN_CHUNK_PAGES - 1) / SCAN_CHUNK_PAGES;
		s->progress->total_pages += t->pages;
		t->present_pages = t->zero_pages = t->zero_mapped_pages = 0;
		t->swapped_pages = t->huge_pages = t->index_hits = t->hashed_pages = t->unsettled_pages = 0;
		t->cpu_ns = t->started_ns = t->ended_ns = 0;
		t->gone = t->watched = t->peer_failed = t->peer_broken = false;
	}
	s->first_chunk[s->target_count] = chunks;
	return 0;
}

/* Starts as many workers as it can; one is enough. */
static int workers_run(struct scan *s)
{
	struct worker *workers = calloc(s->workers, sizeof(*workers));
	unsigned started = 0;

	if (!workers)
		return -ENOMEM;
	for (; started < s->workers; started++) {
		struct worker *w = &workers[started];

		w->scan = s;
		w->node = -1;
		if (posix_memalign((void **)&w->buffer, PAGE_BYTES, SCAN_BATCH_PAGES * PAGE_BYTES) != 0)
			break;
		if (pthread_create(&w->thread, NULL, worker_main, w) != 0) {
			free(w->buffer);
			break;
		}
	}
	for (unsigned i = 0; i < started; i++) {
		pthread_join(workers[i].thread, NULL);
		free(workers[i].buffer);
	}
	free(workers);
	return started ? 0 : -EAGAIN;
}

int scan_run(struct scan_target *targets, size_t count, const struct scan_limits *limits,
	     struct stable_index *index, struct scan_progress *progress, uint64_t *ret_cpu_ns)
{
	struct scan s = {
		.targets = targets,
		.target_count = count,
		.limits = limits,
		.workers = workers_choose(limits),
		.many_nodes = numa_available() >= 0 && numa_max_node() > 0,
		.index = index,
		.progress = progress,
		.started_ns = clock_mono_ns(),
	};
	int r = scan_prepare(&s);

	if (r == 0 && count > 0)
		r = workers_run(&s);
	free(s.first_chunk);
	*ret_cpu_ns += s.cpu_ns;
	if (r == 0 && progress->cancel)
		r = -ECANCELED;
	return r;
}
