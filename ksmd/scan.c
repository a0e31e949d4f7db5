#define _LGPL_SOURCE /* inline RCU read side */
#include "ksmd/scan.h"

#include <errno.h>
#include <numa.h>
#include <numaif.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>
#include <urcu.h>

#include "agent/page_hash.h"
#include "core/clock.h"
#include "core/snapshot.h"
#include "ept/pagestate.h"
#include "ksmd/agent_peer.h"
#include "ksmd/stable_index.h"

/* One process_vm_readv: 256 KiB stays in the core's L2 between copy and hash (measured best: 64-256 pages). */
#define BATCH_PAGES 64
#define RANGES_MAX 128

/* A worker over its quota sleeps at most this long before it looks again whether it is cancelled. */
#define NAP_MAX_NS (50 * NSEC_PER_MSEC)

/* An agent hashes a chunk within milliseconds, and may have to wait for swapped pages. */
#define ANSWER_TIMEOUT_MS 5000
#define CHUNK_ASK_MAX_NS NSEC_PER_SEC /* for a chunk, which takes an agent some 5 ms */
_Static_assert(SCAN_CHUNK_PAGES <= AGENT_PEER_OUTSTANDING * AGENT_HASH_PAGES_MAX, "a chunk is asked for at once");

struct scan {
	struct scan_target *targets;
	size_t target_count;
	uint64_t *first_chunk; /* per target; [target_count]: all chunks */
	const struct scan_limits *limits;
	unsigned workers;
	bool many_nodes;
	struct stable_index *index;
	struct scan_progress *progress;
	uint64_t started_ns;
	_Atomic size_t next_group;
	_Atomic uint64_t next_chunk, read_bytes, cpu_ns;
};

struct batch {
	uint64_t pages[BATCH_PAGES]; /* index in the target */
	size_t count;
};

struct worker {
	struct scan *scan;
	pthread_t thread;
	char *buffer;		    /* BATCH_PAGES pages */
	struct batch alone, shared; /* pages to read, by how often they are mapped: see scan.h */
	int node; /* where it runs; -1: anywhere */
	uint64_t first;		    /* page of the target that the chunk begins with */
	uint64_t old[SCAN_CHUNK_PAGES]; /* hashes of the scan before */
	uint64_t agents_cpu_ns; /* spent by agents for it */
	/* Counts of one chunk: */
	uint64_t present, zero, zero_mapped, swapped, huge, index_hits;
	struct agent_answer answer; /* scratch */
};

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

/* ---- one chunk, from outside ---- */

/* Keeps the chunk's hashes of the scan before, to compare with. */
static void old_keep(struct worker *w, const struct scan_target *t, uint64_t first, uint64_t pages)
{
	w->first = first;
	if (!t->changed)
		return;
	if (t->used && !t->used[first / SCAN_CHUNK_PAGES])
		memset(w->old, 0, sizeof(w->old)); /* none; reading them would take memory for the array */
	else
		memcpy(w->old, t->hashes + first, pages * sizeof(*w->old));
	memset(t->changed + first / SCAN_CHUNK_PAGES * SCAN_CHUNK_WORDS, 0, SCAN_CHUNK_WORDS * sizeof(*t->changed));
}

static void changed_note(const struct worker *w, const struct scan_target *t, uint64_t page, uint64_t hash)
{
	uint64_t old = t->changed ? w->old[page - w->first] : PAGE_HASH_NONE;

	if (old != PAGE_HASH_NONE && old != hash)
		t->changed[page / 64] |= UINT64_C(1) << page % 64;
}

static void hash_take(struct worker *w, struct scan_target *t, uint64_t page, uint64_t hash)
{
	struct stable_index *index = w->scan->index;

	changed_note(w, t, page, hash);
	t->hashes[page] = hash;
	w->present++;
	if (hash == PAGE_HASH_ZERO) {
		w->zero++;
	} else if (index && stable_index_samples(hash)) {
		rcu_read_lock();
		w->index_hits += stable_index_has_rcu(index, hash);
		rcu_read_unlock();
	}
}

static void hash_pages(struct worker *w, struct scan_target *t, const uint64_t *pages, size_t count)
{
	for (size_t i = 0; i < count; i++)
		hash_take(w, t, pages[i], page_hash(w->buffer + i * PAGE_BYTES, t->seed));
	w->scan->read_bytes += count * PAGE_BYTES;
}

static void *page_address(const struct scan_target *t, uint64_t page)
{
	return (void *)(uintptr_t)(t->hva + page * PAGE_BYTES);
}

/* Reads the batch's pages from "from" on; returns how many came, or -errno. */
static ssize_t read_alone(const struct worker *w, const struct scan_target *t, const struct batch *b, size_t from)
{
	struct iovec local = { w->buffer, (b->count - from) * PAGE_BYTES }, remote[BATCH_PAGES];
	unsigned long count = 0;
	ssize_t n;

	for (size_t i = from; i < b->count; i++) {
		void *at = page_address(t, b->pages[i]);

		if (count > 0 && (char *)remote[count - 1].iov_base + remote[count - 1].iov_len == at)
			remote[count - 1].iov_len += PAGE_BYTES;
		else
			remote[count++] = (struct iovec){ at, PAGE_BYTES };
	}
	n = process_vm_readv(t->pid, &local, 1, remote, count, 0);
	return n < 0 ? -errno : n / PAGE_BYTES;
}

/* The same for pages that must not be pinned; stops at the first gap. */
static ssize_t read_shared(const struct worker *w, const struct scan_target *t, const struct batch *b, size_t from)
{
	size_t count = 1;
	ssize_t n;

	while (from + count < b->count && b->pages[from + count] == b->pages[from] + count)
		count++;
	n = pread(t->mem_fd, w->buffer, count * PAGE_BYTES, (off_t)(t->hva + b->pages[from] * PAGE_BYTES));
	if (n < 0)
		return errno == EIO ? -EFAULT : -errno;
	if (n == 0) /* the process has ended */
		return -ESRCH;
	return n / PAGE_BYTES;
}

/* Reads and hashes what was batched. A page that cannot be read (unmapped meanwhile) is left out. */
static void batch_flush(struct worker *w, struct scan_target *t, struct batch *b)
{
	size_t done = 0;

	while (done < b->count) {
		ssize_t n = b == &w->shared ? read_shared(w, t, b, done) : read_alone(w, t, b, done);

		if (n == -ESRCH || n == -EPERM) {
			t->gone = true; /* EPERM: another program runs there now */
			break;
		}
		if (n > 0)
			hash_pages(w, t, b->pages + done, (size_t)n);
		else
			n = 1; /* leave it out */
		done += (size_t)n;
	}
	b->count = 0;
}

static void page_add(struct worker *w, struct scan_target *t, uint64_t page, bool shared)
{
	struct batch *b = shared ? &w->shared : &w->alone;

	b->pages[b->count++] = page;
	if (b->count == BATCH_PAGES)
		batch_flush(w, t, b);
}

static void range_add(struct worker *w, struct scan_target *t, const struct page_range *range)
{
	uint64_t first = (range->start - t->hva) / PAGE_BYTES, last = (range->end - t->hva) / PAGE_BYTES;

	if (range->flags & PAGE_SWAPPED) {
		w->swapped += last - first;
		return;
	}
	if (range->flags & PAGE_ZERO_MAPPED) {
		w->zero_mapped += last - first;
		return;
	}
	if (t->anonymous && (range->flags & PAGE_FILE))
		return;
	if (range->flags & PAGE_HUGE)
		w->huge += last - first;
	/* 64 pages at a time, so that little time passes between the look and the read. */
	while (first < last && !t->gone) {
		unsigned count = last - first < 64 ? (unsigned)(last - first) : 64;
		uint64_t shared;

		if (pagestate_shared(t->pagemap_fd, t->hva + first * PAGE_BYTES, count, &shared) < 0) {
			t->gone = true;
			return;
		}
		for (unsigned i = 0; i < count && !t->gone; i++)
			page_add(w, t, first + i, shared & (UINT64_C(1) << i));
		first += count;
	}
}

/* Moves this thread to the node that holds the page: hashing remote memory costs about twice as much. */
static void follow_node(struct worker *w, const struct scan_target *t, uint64_t hva)
{
	void *page = (void *)(uintptr_t)hva;
	int node = -1;

	if (!w->scan->many_nodes || move_pages(t->pid, 1, &page, NULL, &node, 0) != 0 || node < 0)
		return;
	if (node != w->node && numa_run_on_node(node) == 0)
		w->node = node;
}

static bool process_alive(const struct scan_target *t)
{
	return syscall(SYS_pidfd_send_signal, t->pidfd, 0, NULL, 0) == 0 || errno == EPERM;
}

static void chunk_read(struct worker *w, struct scan_target *t, uint64_t first, uint64_t pages)
{
	uint64_t at = t->hva + first * PAGE_BYTES, end = at + pages * PAGE_BYTES;
	struct page_range ranges[RANGES_MAX];
	bool placed = false;

	while (at < end && !t->gone) {
		ssize_t n = pagestate_ranges(t->pagemap_fd, at, end, ranges, RANGES_MAX, &at);

		if (n < 0) {
			t->gone = true;
			break;
		}
		for (ssize_t i = 0; i < n; i++) {
			if (!placed && !(ranges[i].flags & (PAGE_SWAPPED | PAGE_ZERO_MAPPED))) {
				follow_node(w, t, ranges[i].start);
				placed = true;
			}
			range_add(w, t, &ranges[i]);
		}
	}
	batch_flush(w, t, &w->alone);
	batch_flush(w, t, &w->shared);
}

/* ---- one chunk, by the agent ---- */

static void answer_take(struct worker *w, struct scan_target *t, uint64_t first, const struct agent_answer *a)
{
	for (size_t i = 0; i < a->count; i++)
		if (a->hashes[i] != PAGE_HASH_NONE)
			hash_take(w, t, first + i, a->hashes[i]);
	w->zero_mapped += a->zero_mapped;
	w->swapped += a->swapped;
	w->huge += a->huge;
	w->agents_cpu_ns += a->cpu_us * UINT64_C(1000);
	w->scan->read_bytes += a->count * PAGE_BYTES; /* at most */
}

/* Takes all answers that are due, after an error too: the next command of whoever has the peer then finds none of them. */
static int answers_take(struct worker *w, struct scan_target *t, uint64_t first)
{
	int r = 0, error = 0;

	while (agent_peer_outstanding(t->peer) > 0) {
		r = agent_peer_take(t->peer, ANSWER_TIMEOUT_MS, &w->answer);
		if (r < 0) {
			t->peer_broken = true;
			return r;
		}
		if (r == 0 || w->answer.type != AGENT_HASHED)
			continue;
		if (w->answer.error < 0)
			error = w->answer.error;
		else if (error == 0)
			answer_take(w, t, first, &w->answer);
		first += AGENT_HASH_PAGES_MAX;
	}
	return error;
}

static int chunk_ask(struct worker *w, struct scan_target *t, uint64_t first, uint64_t pages)
{
	uint64_t at = 0, start = clock_mono_ns(), cpu_ns = w->agents_cpu_ns, most;
	int r = 0, taken;

	for (uint64_t n; at < pages && r == 0; at += n) {
		n = pages - at < AGENT_HASH_PAGES_MAX ? pages - at : AGENT_HASH_PAGES_MAX;
		r = agent_peer_hash(t->peer, t->hva + (first + at) * PAGE_BYTES, (uint32_t)n, t->seed);
	}
	taken = answers_take(w, t, first);
	/* One thread's work: more than that is not true, and would put off the pass for as long. */
	most = cpu_ns + clock_mono_ns() - start;
	w->agents_cpu_ns = w->agents_cpu_ns < most ? w->agents_cpu_ns : most;
	/* One that is slow, on purpose or not, would hold up the pass for all: from here on its memory is read from outside. */
	if (clock_mono_ns() - start > CHUNK_ASK_MAX_NS)
		return -ETIMEDOUT;
	return r < 0 ? r : taken;
}

static void counts_reset(struct worker *w)
{
	w->present = w->zero = w->zero_mapped = w->swapped = w->huge = w->index_hits = 0;
}

/* ---- one chunk ---- */

static void chunk_scan(struct worker *w, struct scan_target *t, uint64_t first)
{
	uint64_t pages = t->pages - first < SCAN_CHUNK_PAGES ? t->pages - first : SCAN_CHUNK_PAGES;

	old_keep(w, t, first, pages);
	madvise(t->hashes + first, pages * sizeof(*t->hashes), MADV_DONTNEED);
	if (t->peer && !t->peer_failed && chunk_ask(w, t, first, pages) < 0) {
		t->peer_failed = true;
		counts_reset(w);
		madvise(t->hashes + first, pages * sizeof(*t->hashes), MADV_DONTNEED);
	}
	if (!t->peer || t->peer_failed)
		chunk_read(w, t, first, pages);
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

bool scan_peer_covers(const struct agent_peer *peer, const struct scan_target *t)
{
	const struct agent_slot_view *slots;
	size_t count = agent_peer_slots(peer, &slots);
	uint64_t bytes = t->pages * PAGE_BYTES;

	for (size_t i = 0; i < count; i++)
		if (slots[i].can_remap && t->hva >= slots[i].hva && bytes <= slots[i].bytes &&
		    t->hva - slots[i].hva <= slots[i].bytes - bytes)
			return true;
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
		t->swapped_pages = t->huge_pages = t->index_hits = 0;
		t->cpu_ns = t->started_ns = t->ended_ns = 0;
		t->gone = t->peer_failed = t->peer_broken = false;
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
		if (posix_memalign((void **)&w->buffer, PAGE_BYTES, BATCH_PAGES * PAGE_BYTES) != 0)
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
