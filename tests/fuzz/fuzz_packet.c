/* Fuzzes the packets between agents and the daemon: the first byte says how many descriptors came with the rest.
 * What packet_check() lets through must hold what both sides rely on. */
#include <assert.h>
#include <stdint.h>
#include <string.h>

#include "agent/packet.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void merge_holds(const struct agent_merge *m, size_t len)
{
	uint64_t next = 0;

	assert(m->header.count >= 1 && m->header.count <= AGENT_RUNS_MAX);
	assert(len == sizeof(*m) + m->header.count * sizeof(m->runs[0]));
	assert(m->window % (2u << 20) == 0);
	for (unsigned i = 0; i < m->header.count; i++) {
		const struct agent_run *r = &m->runs[i];

		assert(r->pages > 0 && r->first >= next);
		next = (uint64_t)r->first + r->pages;
		assert(next <= AGENT_WINDOW_PAGES);
		assert(r->frame == AGENT_ZERO || (uint64_t)r->frame + r->pages <= AGENT_ZERO);
	}
}

static void merged_holds(const struct agent_merged *m, size_t len)
{
	assert(m->header.count <= AGENT_RUNS_MAX && m->error <= 0);
	assert(len == sizeof(*m) + m->header.count * sizeof(m->results[0]));
	for (unsigned i = 0; i < m->header.count; i++)
		assert(m->results[i].merged <= AGENT_WINDOW_PAGES && m->results[i].error <= 0);
}

static void hints_hold(const struct agent_hints *h, size_t len)
{
	assert(h->header.count >= 1 && h->header.count <= AGENT_HINTS_MAX);
	assert(len == sizeof(*h) + h->header.count * sizeof(h->hints[0]));
	for (unsigned i = 0; i < h->header.count; i++)
		assert(h->hints[i].pages > 0 && h->hints[i].hva + h->hints[i].pages * UINT64_C(4096) > h->hints[i].hva);
}

static void hashed_holds(const struct agent_hashed *h, size_t len)
{
	assert(h->header.count <= AGENT_HASH_PAGES_MAX && h->error <= 0 && (h->error == 0 || h->header.count == 0));
	assert(len == sizeof(*h) + h->header.count * sizeof(h->hashes[0]));
	assert(h->huge <= AGENT_HASH_PAGES_MAX && h->swapped <= AGENT_HASH_PAGES_MAX);
}

static void why_holds(const char why[AGENT_WHY_BYTES])
{
	assert(why[AGENT_WHY_BYTES - 1] == '\0');
	for (const char *c = why; *c; c++)
		assert(*c >= ' ' && *c <= '~');
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct packet p;

	if (size < 1 || size - 1 > sizeof(p.bytes))
		return 0;
	memset(&p, 0xa5, sizeof(p));
	p.len = size - 1;
	memcpy(p.bytes, data + 1, p.len);
	if (packet_check(&p, data[0] % 4) < 0)
		return 0;
	assert(p.len >= sizeof(struct agent_header));
	if (p.header.type == AGENT_MERGE)
		merge_holds(packet_merge(&p), p.len);
	else if (p.header.type == AGENT_MERGED)
		merged_holds(packet_merged(&p), p.len);
	else if (p.header.type == AGENT_HINT)
		hints_hold(packet_hints(&p), p.len);
	else if (p.header.type == AGENT_HASHED)
		hashed_holds(packet_hashed(&p), p.len);
	else
		assert(p.header.count == 0 && (p.header.sequence == 0 || p.header.type == AGENT_HINTED ||
					       p.header.type == AGENT_HASH ||
					       p.header.type == AGENT_UNMERGE ||
					       p.header.type == AGENT_UNMERGED));
	if (p.header.type == AGENT_UNMERGED)
		assert(p.unmerged.folded <= AGENT_WINDOW_PAGES && p.unmerged.kept <= AGENT_WINDOW_PAGES &&
		       p.unmerged.error <= 0 && p.unmerged.kept_error <= 0);
	if (p.header.type == AGENT_HASH)
		assert(p.hash.pages >= 1 && p.hash.pages <= AGENT_HASH_PAGES_MAX && p.hash.hva % 4096 == 0 &&
		       p.hash.hva + p.hash.pages * UINT64_C(4096) > p.hash.hva);
	if (p.header.type == AGENT_HELLO)
		why_holds(p.hello.why);
	if (p.header.type == AGENT_SLOT)
		why_holds(p.slot.why);
	return 0;
}
