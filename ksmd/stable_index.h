/* ksmd/stable_index.h - contents that are known to be shared, by hash.
 *
 * Lets a scan see while it runs how much of a new VM is shared with what is there already, before any join: on a
 * large host, where a pass within its CPU share takes long, merging a new VM starts that much earlier.
 * It holds a sample, one content in STABLE_INDEX_SAMPLE (chosen by the hash, so every page of a content is
 * in or out): counted hits times the sample are the estimate, a scan pays a look-up only for every 16th page,
 * and with 80 bytes an entry the index takes 5 bytes per shared content, well below one per scanned page.
 *
 * Readers: any registered RCU thread. Writer: one thread at a time (the background pass). Domains need no
 * extra key: each has its own secret hash seed, so a content has another hash in every domain. */
#ifndef KSMD_STABLE_INDEX_H
#define KSMD_STABLE_INDEX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define STABLE_INDEX_SAMPLE 16

struct stable_index;

int stable_index_new(struct stable_index **ret_index); /* 0 or -ENOMEM */
struct stable_index *stable_index_free(struct stable_index *x); /* no reader may be left; NULL ok; gives NULL */

static inline bool stable_index_samples(uint64_t hash)
{
	return hash % STABLE_INDEX_SAMPLE == 0;
}

/* Whether a sampled content is known; the caller holds rcu_read_lock(). */
bool stable_index_has_rcu(struct stable_index *x, uint64_t hash);

/* One refresh: begin, put every sampled content that is shared now, end (drops what was not put again). */
void stable_index_refresh_begin(struct stable_index *x);
int stable_index_put(struct stable_index *x, uint64_t hash); /* 0 or -ENOMEM */
void stable_index_refresh_end(struct stable_index *x);

size_t stable_index_bytes(const struct stable_index *x);

#endif
