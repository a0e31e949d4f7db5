#include <errno.h>

#include "agent/page_hash.h"
#include "core/clock.h"
#include "core/snapshot.h"
#include "ksmd/scan_internal.h"

/* An agent hashes a chunk within milliseconds, and may have to wait for swapped pages. */
#define ANSWER_TIMEOUT_MS 5000
#define CHUNK_ASK_MAX_NS NSEC_PER_SEC /* for a chunk, which takes an agent some 5 ms */
_Static_assert(SCAN_CHUNK_PAGES <= AGENT_PEER_OUTSTANDING * AGENT_HASH_PAGES_MAX, "a chunk is asked for at once");

static void answer_take(struct worker *w, struct scan_target *t, uint64_t first, const struct agent_answer *a)
{
	for (size_t i = 0; i < a->count; i++)
		if (a->hashes[i] != PAGE_HASH_NONE)
			scan_hash_take(w, t, first + i, a->hashes[i]);
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

int scan_chunk_ask(struct worker *w, struct scan_target *t, uint64_t first, uint64_t pages)
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
