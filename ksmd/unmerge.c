#include "ksmd/unmerge.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "core/cleanup.h"
#include "core/clock.h"
#include "core/snapshot.h"
#include "ept/pagestate.h"
#include "ksmd/agent_peer.h"
#include "ksmd/frame_look.h"

#define HUGE_BYTES (UINT64_C(2) << 20)
#define COMMANDS_MOST 4 /* without an answer: one is folded, one is on the way */
#define ANSWER_MS 5000 /* a window of single pages takes 10 ms */
/* Beyond that, how long all answers may take, for each: an agent that is slow on purpose would keep every other VM from
 * being merged, and frames from being freed. */
#define USUAL_MS 50
#define LATE_MS 500 /* until it is looked whether the agent's freezer waits for a reader */
#define PASSES_MOST 3 /* pages that were written to just then are taken by the next */
#define NAP_NS (20 * NSEC_PER_MSEC)
/* Pages that come must not push the host into swap: what the kernel's own watermarks and the page cache of a busy host
 * move by within a second. Looked at every 64 windows, which is 128 MiB at most. */
#define RESERVE_BYTES (UINT64_C(256) << 20)
#define RESERVE_SHARE 50
#define MEMORY_EVERY 64
/* Three quarters copied: a merged window then saves 128 pages at most, and every write to it costs a copy. */
#define WORN(broken, mapped) ((broken) * 4 >= (mapped) * 3)

struct unmerge {
	const struct fsio *fs;
	struct agent_peer *peer;
	struct unmerge_options options;
	struct unmerge_result result;
	uint64_t agent_cpu_us, start_ns, waited_ns, answers;
	unsigned windows; /* sent */
	pthread_t thread;
	bool joined;
	_Atomic bool cancel;
	int done_fd;
};

bool unmerge_memory_allows(const struct fsio *fs, uint64_t bytes)
{
	uint64_t available = 0, total = 0, reserve = RESERVE_BYTES;
	char text[8192];

	if (fsio_read(fs, text, sizeof(text), "/proc/meminfo") < 0 ||
	    fsio_field_u64(text, "MemAvailable", &available) < 0 || fsio_field_u64(text, "MemTotal", &total) < 0)
		return false;
	if (reserve < total * 1024 / RESERVE_SHARE)
		reserve = total * 1024 / RESERVE_SHARE;
	return available * 1024 >= reserve && available * 1024 - reserve >= bytes;
}

const char *unmerge_kept_why(int kept_error)
{
	switch (kept_error) {
	case 0:
		return "";
	case -EBUSY:
		return "a device of the VMM may write to pages that were copied on write (O_DIRECT, io_uring ..)";
	case -ENOSPC:
		return "the VMM has too many mappings";
	case -EPERM:
		return "the memory is locked, protected or not in one piece";
	default:
		return strerror(-kept_error);
	}
}

/* ---- which windows ---- */

struct ranges {
	struct hva_range *list;
	size_t count;
};

/* Of the window at `at`, from range i on: whether it is worth having its own memory. */
static bool window_is_worn(const struct ranges *r, size_t i, int pagemap_fd, uint64_t at)
{
	uint64_t mapped = 0, broken = 0;

	for (; i < r->count && r->list[i].start < at + HUGE_BYTES; i++) {
		uint64_t from = r->list[i].start > at ? r->list[i].start : at;
		uint64_t end = r->list[i].end < at + HUGE_BYTES ? r->list[i].end : at + HUGE_BYTES;
		struct page_range found[64];

		if (from >= end)
			continue;
		mapped += end - from;
		while (from < end) {
			ssize_t n = pagestate_ranges(pagemap_fd, from, end, found, ARRAY_SIZE(found), &from);

			for (ssize_t k = 0; k < n; k++)
				if (!(found[k].flags & PAGE_FILE))
					broken += found[k].end - found[k].start;
			if (n < 0)
				return false;
		}
	}
	return broken > 0 && WORN(broken, mapped);
}

/* ---- asking the agent ---- */

static int answer_wait(struct unmerge *u, struct agent_answer *ret_answer)
{
	uint64_t start = clock_mono_ns();
	int r = agent_peer_answer(u->peer, LATE_MS, ret_answer);

	if (r == -ETIMEDOUT) {
		agent_peer_nudge(u->peer);
		r = agent_peer_answer(u->peer, ANSWER_MS, ret_answer);
	}
	u->waited_ns += clock_mono_ns() - start;
	if (r == 0 && u->waited_ns > (ANSWER_MS + ++u->answers * USUAL_MS) * NSEC_PER_MSEC)
		r = -ETIMEDOUT;
	return r;
}

static int answer_take(struct unmerge *u)
{
	struct agent_answer answer;
	int r = answer_wait(u, &answer);

	if (r == 0 && answer.type != AGENT_UNMERGED)
		r = -EPROTO;
	if (r < 0) {
		u->result.broken = true;
		return r;
	}
	u->agent_cpu_us += answer.cpu_us;
	u->result.pages += answer.unmerged.folded;
	u->result.kept += answer.unmerged.kept;
	if (u->result.kept_error == 0)
		u->result.kept_error = answer.unmerged.kept_error;
	if (answer.unmerged.stall_us > u->result.stall_us_max)
		u->result.stall_us_max = answer.unmerged.stall_us;
	return answer.error < 0 ? -EREMOTEIO : 0; /* its own reason, which is not the host's */
}

static void quota_keep(const struct unmerge *u)
{
	const struct timespec nap = { .tv_nsec = (long)NAP_NS };

	while (u->options.cpu_percent > 0 && !u->cancel &&
	       u->agent_cpu_us * NSEC_PER_USEC / u->options.cpu_percent * 100 > clock_mono_ns() - u->start_ns)
		nanosleep(&nap, NULL);
}

static int window_send(struct unmerge *u, uint64_t at)
{
	int r = 0;

	quota_keep(u);
	if (u->windows++ % MEMORY_EVERY == 0 && !unmerge_memory_allows(u->fs, MEMORY_EVERY * HUGE_BYTES))
		return -ENOMEM;
	while (r == 0 && agent_peer_outstanding(u->peer) >= COMMANDS_MOST)
		r = answer_take(u);
	if (r < 0)
		return r;
	r = agent_peer_unmerge(u->peer, at, !u->options.worn);
	u->result.broken |= r < 0;
	return r;
}

/* Only what the agent has named, for a process may map what it likes under the name of a store: the first window from
 * `at` on that lies in a slot; UINT64_MAX: none. */
static uint64_t slot_next(const struct unmerge *u, uint64_t at)
{
	const struct agent_slot_view *slots;
	size_t count = agent_peer_slots(u->peer, &slots);
	uint64_t next = UINT64_MAX;

	for (size_t i = 0; i < count; i++) {
		uint64_t from = slots[i].hva > at ? slots[i].hva / HUGE_BYTES * HUGE_BYTES : at;

		if (at < slots[i].hva + slots[i].bytes && from < next)
			next = from;
	}
	return next;
}

static int pass_over(struct unmerge *u, const struct ranges *r)
{
	auto_close int pagemap_fd = u->options.worn ? pagestate_open(u->fs, agent_peer_pid(u->peer)) : -1;
	uint64_t next = 0;
	int error = 0;

	for (size_t i = 0; i < r->count && error == 0; i++) {
		uint64_t at = r->list[i].start / HUGE_BYTES * HUGE_BYTES;

		at = slot_next(u, at > next ? at : next);
		for (; at < r->list[i].end && error == 0 && !u->cancel; at = slot_next(u, next)) {
			next = at + HUGE_BYTES;
			if (!u->options.worn || window_is_worn(r, i, pagemap_fd, at))
				error = window_send(u, at);
		}
	}
	while (!u->result.broken && agent_peer_outstanding(u->peer) > 0) {
		int one = answer_take(u);

		error = error < 0 ? error : one;
	}
	return error;
}

static int unmerge_run(struct unmerge *u)
{
	int error = 0;

	for (unsigned pass = 0; pass < (u->options.worn ? 1 : PASSES_MOST) && error == 0 && !u->cancel; pass++) {
		uint64_t before = u->result.pages;
		struct ranges r = { 0 };

		u->result.kept = 0;
		u->result.kept_error = 0;
		error = frame_look_ranges(u->fs, agent_peer_pid(u->peer), &r.list, &r.count);
		if (error == 0)
			error = pass_over(u, &r);
		free(r.list);
		if (u->result.kept == 0 || u->result.pages == before)
			break;
	}
	return error;
}

static void *unmerge_main(void *arg)
{
	struct unmerge *u = arg;
	uint64_t one = 1;

	pthread_setname_np(pthread_self(), "unmerge");
	u->start_ns = clock_mono_ns();
	u->result.error = unmerge_run(u);
	u->result.seconds = (double)(clock_mono_ns() - u->start_ns) / (double)NSEC_PER_SEC;
	u->result.cpu_seconds = (double)(clock_thread_cpu_ns() + u->agent_cpu_us * NSEC_PER_USEC) / (double)NSEC_PER_SEC;
	if (write(u->done_fd, &one, sizeof(one)) < 0)
		abort(); /* an eventfd that only this thread writes cannot be full */
	return NULL;
}

/* ---- life ---- */

int unmerge_start(const struct fsio *fs, struct agent_peer *peer, const struct unmerge_options *options,
		  struct unmerge **ret_unmerge)
{
	struct unmerge *u = calloc(1, sizeof(*u));
	int error;

	if (!u)
		return -ENOMEM;
	u->fs = fs;
	u->peer = peer;
	u->options = *options;
	u->joined = true; /* no thread yet */
	u->done_fd = eventfd(0, EFD_CLOEXEC);
	error = u->done_fd < 0 ? -errno : -pthread_create(&u->thread, NULL, unmerge_main, u);
	if (error < 0) {
		unmerge_free(u);
		return error;
	}
	u->joined = false;
	*ret_unmerge = u;
	return 0;
}

int unmerge_done_fd(const struct unmerge *u)
{
	return u->done_fd;
}

const struct unmerge_result *unmerge_wait(struct unmerge *u)
{
	if (!u->joined)
		pthread_join(u->thread, NULL);
	u->joined = true;
	return &u->result;
}

const struct agent_peer *unmerge_peer(const struct unmerge *u)
{
	return u->peer;
}

struct unmerge *unmerge_free(struct unmerge *u)
{
	if (!u)
		return NULL;
	u->cancel = true;
	unmerge_wait(u);
	if (u->done_fd >= 0)
		close(u->done_fd);
	free(u);
	return NULL;
}
