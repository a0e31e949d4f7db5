/* ksmd/join.h - finds pages of equal hash: a partitioned hash join over hash arrays.
 *
 * Transient memory is 1 byte per page with data, or 256 KiB if that is more, and the table of one bucket (about
 * 180 KiB): the hashes are swept several times, each sweep takes one slice of the hash space, splits it into
 * buckets that fit a core's cache, and joins each with a small open-addressing table (measured: 5-8 ms for
 * 377,000 pages). Only when very many pages have one hash, their bucket takes up to 44 bytes for each. */
#ifndef KSMD_JOIN_H
#define KSMD_JOIN_H

#include <stddef.h>
#include <stdint.h>

/* One array of hashes; PAGE_HASH_NONE and PAGE_HASH_ZERO entries are passed over. */
struct join_input {
	uint32_t owner;	 /* the caller's number for the VM, below JOIN_OWNERS_MAX; inputs in ascending order */
	const uint64_t *hashes;
	uint64_t pages;
	uint64_t first_page; /* added to the index of a page in join_ref.page */
};
#define JOIN_OWNERS_MAX (1u << 20)

/* One page of a group. */
struct join_ref {
	uint32_t owner;
	uint64_t page;
};

/* Called for each hash that occurs at least twice; refs ascending by owner, then page; borrowed. */
typedef void (*join_group_fn)(uint64_t hash, const struct join_ref *refs, size_t count, void *userdata);

/* 0 or -ENOMEM. *ret_peak_bytes (may be NULL) gets the transient memory used. */
int join_run(const struct join_input *inputs, size_t count, join_group_fn group, void *userdata,
	     size_t *ret_peak_bytes);

#endif
