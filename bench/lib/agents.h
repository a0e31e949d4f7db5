/* bench/lib/agents.h - agents in the replay processes, connected to an engine, and the engine's look at their memory. */
#ifndef BENCH_AGENTS_H
#define BENCH_AGENTS_H

#include <stdint.h>

#include "bench/lib/engine.h"
#include "ksmd/agent_peer.h"
#include "ksmd/pass.h"

struct bench_agents {
	const struct engine_context *c;
	struct agent_peer *peers[CAPTURES_MAX];
	struct page_table *tables[CAPTURES_MAX];
	size_t count;
};

/* c is borrowed until bench_agents_end(), which is needed after a failure, too. 0 or -errno. */
int bench_agents_attach(const struct engine_context *c, struct bench_agents *ret_agents);
void bench_agents_end(struct bench_agents *a);

/* A look as the daemon takes it, from then on only at what has changed: see pass.h. */
int bench_agents_look(struct bench_agents *a, uint64_t join_least_pages, bool *ret_joined);
/* One pass over all of them; waits. 0 or -errno. */
int bench_agents_scan(struct bench_agents *a, uint64_t *ret_metadata_bytes);

#endif
