/* ksmd/frame_index.h - which frame of a store holds a content: hash -> frame, and frame -> hash.
 *
 * One for each store, so the domain is part of the key by construction. This is not the stable index: that
 * one is a sample of contents known to be shared, frame or not, at 64 bytes an entry, and serves estimates; this
 * one has an entry for every frame and must be small: 6 bytes of tag for each frame, in an array by frame number, and
 * 4 bytes for each slot of an open-addressing table of frame numbers, with bits of the tag above the number. The array answers "is this page what the
 * next frame holds?" without a look-up, which is the usual question: shared pages come in runs.
 *
 * The tag is 48 bits of the hash. An answer is a hint, as a hash is: a store may have freed the frame meanwhile
 * (its owner notices when it takes the reference), and only a byte-wise comparison merges.
 *
 * Writer: one thread at a time. Readers: any thread, registered with RCU for the functions that say so. */
#ifndef KSMD_FRAME_INDEX_H
#define KSMD_FRAME_INDEX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FRAME_NONE UINT32_MAX

struct frame_index;

/* For frames 0 .. frames - 1. Address space only; memory is taken as frames are put. 0, -EINVAL or -ENOMEM. */
int frame_index_new(uint32_t frames, struct frame_index **ret_index);
struct frame_index *frame_index_free(struct frame_index *x); /* no reader may be left; NULL ok; gives NULL */

/* The frame that holds this content, or FRAME_NONE; the caller holds rcu_read_lock(). */
uint32_t frame_index_find_rcu(const struct frame_index *x, uint64_t hash);
/* Whether this frame holds this content (PAGE_HASH_ZERO too). Any frame number is fine. */
bool frame_index_is(const struct frame_index *x, uint32_t frame, uint64_t hash);
size_t frame_index_count(const struct frame_index *x); /* contents that find knows; writer only */
size_t frame_index_bytes(const struct frame_index *x); /* writer only */

/* The frame holds this content from now on. A frame of zeroes is known to frame_index_is() only: zero pages need
 * no frame. Of two frames with one content the first is found. 0, -EINVAL, -ENOMEM. */
int frame_index_put(struct frame_index *x, uint64_t hash, uint32_t frame);
void frame_index_drop(struct frame_index *x, uint32_t frame); /* call before the frame is freed; unknown is fine */

#endif
