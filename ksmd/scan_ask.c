#include <errno.h>

#include "agent/page_hash.h"
#include "core/clock.h"
#include "core/snapshot.h"
#include "ksmd/scan_internal.h"

/* An agent hashes a chunk within milliseconds, and may have to wait for swapped pages. */
#define ANSWER_TIMEOUT_MS 5000
#define CHUNK_ASK_MAX_NS NSEC_PER_SEC /* for a chunk, which takes an agent some 5 ms */

static void answer_take(struct worker *w, struct scan_target *t, uint64_t first, const struct agent_answer *a)
{
	for (size_t i = 0; i < a->count; i++)
		if (a->hashes[i] != PAGE_HASH_NONE)
			scan_hash_take(w, t, first + i, a->hashes[i]);
	if (!w->tracking) { /* which has looked for itself */
		w->zero_mapped += a->zero_mapped;
		w->swapped += a->swapped;
		w->huge += a->huge;
	}
	w->agents_cpu_ns += a->cpu_us * UINT64_C(1000);
	w->scan->read_bytes += a->count * PAGE_BYTES; /* at most */
}

/* What was asked for and not answered yet: answers come in order. */
struct asked {
	uint64_t firsts[AGENT_PEER_OUTSTANDING];
	unsigned at;
};

/* Takes answers until so many are left. After an error too: the next command of whoever has the peer then finds none. */
static int answers_take(struct worker *w, struct scan_target *t, struct asked *asked, unsigned left)
{
	while (agent_peer_outstanding(t->peer) > left) {
		int r = agent_peer_take(t->peer, ANSWER_TIMEOUT_MS, &w->answer);

		if (r < 0) {
			t->peer_broken = true;
			return r;
		}
		if (r == 0 || w->answer.type != AGENT_HASHED)
			continue;
		asked->at++;
		if (w->answer.error < 0)
			return w->answer.error;
		answer_take(w, t, asked->firsts[(asked->at - 1) % AGENT_PEER_OUTSTANDING], &w->answer);
	}
	return 0;
}

static int stretches_ask(struct worker *w, struct scan_target *t, const struct scan_stretch *stretches, size_t count)
{
	struct asked asked = { 0 };
	unsigned sent = 0;
	int r = 0, rest;

	for (size_t i = 0; i < count && r == 0; i++) {
		uint64_t at = stretches[i].first, end = at + stretches[i].pages;

		for (uint64_t n; at < end && r == 0; at += n) {
			n = end - at < AGENT_HASH_PAGES_MAX ? end - at : AGENT_HASH_PAGES_MAX;
			asked.firsts[sent++ % AGENT_PEER_OUTSTANDING] = at;
			r = agent_peer_hash(t->peer, t->hva + at * PAGE_BYTES, (uint32_t)n, t->seed);
			if (r == 0)
				r = answers_take(w, t, &asked, AGENT_PEER_OUTSTANDING - 1);
		}
	}
	do { /* one that says an error for a piece still answers the others */
		rest = t->peer_broken ? 0 : answers_take(w, t, &asked, 0);
		r = r < 0 ? r : rest;
	} while (rest < 0 && !t->peer_broken);
	return r;
}

int scan_ask(struct worker *w, struct scan_target *t, const struct scan_stretch *stretches, size_t count)
{
	uint64_t start = clock_mono_ns(), cpu_ns = w->agents_cpu_ns, most;
	int r = stretches_ask(w, t, stretches, count);

	/* One thread's work: more than that is not true, and would put off the pass for as long. */
	most = cpu_ns + clock_mono_ns() - start;
	w->agents_cpu_ns = w->agents_cpu_ns < most ? w->agents_cpu_ns : most;
	/* One that is slow, on purpose or not, would hold up the pass for all: from here on its memory is read from outside. */
	return r == 0 && clock_mono_ns() - start > CHUNK_ASK_MAX_NS ? -ETIMEDOUT : r;
}
