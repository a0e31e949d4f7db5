/* Giving merged memory back: at the daemon's word, window by window; and all of it when the agent is detached. */
#include "agent/client_internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "core/cleanup.h"
#include "core/clock.h"

#define ALL_NS NSEC_PER_SEC /* some 2 GiB; the VMM waits */
/* What has to stay free on the host: the pages that come are the guest's, and must not push it into swap. */
#define RESERVE_BYTES (UINT64_C(256) << 20)

void client_fold_freezer(struct memvirt_agent *a, int fd)
{
	int err;

	if (a->freezer && fd >= 0)
		close(fd);
	if (a->freezer)
		return;
	err = fd < 0 ? fd : freezer_new(fd, &a->freezer);
	a->no_freezer = "a second userfaultfd cannot be had";
	if (err == 0 && freezer_probe(a->freezer, &a->no_freezer) < 0)
		a->freezer = freezer_free(a->freezer);
	if (a->freezer)
		a->no_freezer = NULL;
}

static uint32_t us_of(uint64_t ns)
{
	return ns / 1000 < UINT32_MAX ? (uint32_t)(ns / 1000) : UINT32_MAX;
}

struct agent_unmerged *client_fold_unmerge(struct memvirt_agent *a, const struct agent_unmerge *m, int unfit)
{
	struct agent_unmerged *reply = &a->out.unmerged;
	uint64_t cpu_ns = clock_thread_cpu_ns();
	struct exchange_fold fold = { 0 };

	*reply = (struct agent_unmerged){
		.header = { .type = AGENT_UNMERGED, .sequence = m->header.sequence },
		.error = unfit,
		.window = m->window,
	};
	if (unfit == 0)
		reply->error = exchange_fold(a->x, m->window, m->flags & AGENT_UNMERGE_SPLIT, &fold);
	reply->folded = fold.folded;
	reply->kept = fold.kept;
	reply->kept_error = fold.err;
	reply->stall_us = us_of(fold.stall_max_ns);
	reply->cpu_us = us_of(clock_thread_cpu_ns() - cpu_ns);
	return reply;
}

static bool memory_is_short(void)
{
	auto_fclose FILE *f = fopen("/proc/meminfo", "re");
	unsigned long long kib = 0;
	char line[128];

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "MemAvailable: %llu kB", &kib) == 1)
			break;
	return kib * 1024 < RESERVE_BYTES;
}

static bool any_merged(struct memvirt_agent *a, uint64_t window)
{
	size_t pages;

	if (exchange_lock(a->x) < 0)
		return false;
	pages = exchange_merged_pages(a->x, (void *)(uintptr_t)window, WINDOW_BYTES);
	exchange_unlock(a->x);
	return pages > 0;
}

void client_fold_all(struct memvirt_agent *a)
{
	uint64_t end = clock_mono_ns() + ALL_NS;

	if (!a->x || !a->freezer || a->child)
		return;
	for (unsigned i = 0; i < AGENT_SLOTS_MAX; i++) {
		const struct ram *r = &a->ram[i];

		for (uint64_t at = r->start & ~(WINDOW_BYTES - 1); r->exchanged && at < r->end; at += WINDOW_BYTES) {
			struct exchange_fold fold;

			if (!any_merged(a, at))
				continue;
			if (clock_mono_ns() > end || memory_is_short() || exchange_fold(a->x, at, false, &fold) < 0)
				return;
		}
	}
}
