/* ksmd/frame_users.h - who may see which frames of a store: what decides when a frame can be used again.
 *
 * Nothing that an agent says counts here. A frame is in use while
 * - the kernel's list of mappings (/proc/PID/maps) of any process shows it: clients, and others that may have
 *   inherited the mapping (forked children) or the descriptor; whether its pages were all copied on write does not
 *   matter; or
 * - a command that names it was sent to a client and is not known to be over: frame_user_ask() before it is sent. When
 *   the answer came, the mappings tell. When the connection broke first, the packet may still be carried out:
 *   the frames stay in use until the process ends or its agent has said hello again, which it does after it has put
 *   away all packets of the connection before.
 *
 * A process that is no client but has the store mapped as agents do, to compare with (shared), may have commands of an
 * earlier daemon or connection that it has not carried out yet; an agent takes that mapping away when it has put them
 * away. While there is such a process nothing is known.
 *
 * What one look misses: a child that was forked after its place in /proc was passed, of a parent that dropped its
 * mapping before its own turn came. Such a child is there at the next look, so a frame is free when two looks in a
 * row found nobody (remap_sweep()). No look may run while commands are under way.
 *
 * One thread at a time. */
#ifndef KSMD_FRAME_USERS_H
#define KSMD_FRAME_USERS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "core/fsio.h"

struct frame_users;
struct frame_user; /* a client */

struct hva_range {
	uint64_t start, end;
	uint64_t broken_pages; /* copied on write */
};

struct frame_user_figures {
	uint64_t mapped_pages; /* mapped to frames */
	uint64_t broken_pages; /* of these: copied on write since */
	uint64_t breaks; /* in all since the first look, those that were given back meanwhile included; never too many */
	uint32_t looks;
	uint32_t mappings;     /* of the whole process */
};

/* Of the store whose file has this number, with this many frames; fs is borrowed. 0 or -ENOMEM. */
int frame_users_new(const struct fsio *fs, uint64_t inode, uint32_t frames, struct frame_users **ret_users);
struct frame_users *frame_users_free(struct frame_users *u); /* NULL ok; gives NULL */

/* The client with this pid; made at its first use. pidfd is duplicated. NULL: no memory or descriptor. The pointer is
 * good until a look finds that the process has ended. */
struct frame_user *frame_users_client(struct frame_users *u, pid_t pid, int pidfd);
/* NULL: this process is no client. */
struct frame_user *frame_users_find(const struct frame_users *u, pid_t pid);
/* A command that names these frames is about to be sent; must not be sent on failure. 0 or -ENOMEM. */
int frame_user_ask(struct frame_user *user, uint32_t first, uint32_t n);
/* Every command was answered: from now on its mappings tell. */
void frame_user_settle(struct frame_user *user);
/* Its mappings may have become fewer: to be looked at. */
void frame_user_changed(struct frame_user *user);
/* Looks at it now. 0 or -errno. */
int frame_user_look(struct frame_users *u, struct frame_user *user);
/* As last looked at; zeroes before. */
const struct frame_user_figures *frame_user_figures(const struct frame_user *user);
/* Where it maps frames, of any store, as last looked at; ascending, apart. What was copied on write since is part of it:
 * it cannot be exchanged in place (SAFETY.md, R12). Borrowed until the next look. */
const struct hva_range *frame_user_ranges(const struct frame_user *user, size_t *ret_count);

/* Looks at all processes: *ret_bits, owned by u and good until the next look, has a bit for each frame in use.
 * 0; -EBUSY (see above), or -errno when a process could not be looked at: then nothing is known. */
int frame_users_look(struct frame_users *u, const uint64_t **ret_bits);
/* Whether a look could find less in use than the one before: clients that changed, or ended. */
bool frame_users_stale(const struct frame_users *u);
/* Looks at the clients alone, changed or not: for their figures. One that had too few faults for more copies counts as looked
 * at. 0 or -errno. */
int frame_users_look_clients(struct frame_users *u);

#endif
