/* ept/maps.h - the mappings of a VMM, from /proc/PID/maps. Pure. */
#ifndef EPT_MAPS_H
#define EPT_MAPS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/snapshot.h"

struct vma {
	uint64_t start, end;
	uint64_t offset, inode; /* inode 0: anonymous */
	bool readable, writable, shared;
	bool store; /* pages merged with a store's frames: mapped privately from it; they count as MEM_ANON */
	enum mem_backing backing;
};

/* Reads one line (without its newline) of /proc/PID/maps. 0 or -EBADMSG. */
int maps_parse_line(const char *line, size_t len, struct vma *ret_vma);

/* Reads the whole text into an array the caller frees, mappings ascending and apart. 0; -EBADMSG for a bad line or
 * descending addresses (a text cut short in its last line counts as bad); -ENOMEM. */
int maps_parse(const char *text, size_t len, struct vma **ret_vmas, size_t *ret_count);

/* Whether [start, start + bytes) is mapped without a gap, readable and writable, with one backing, which is
 * given in *ret_backing. */
bool maps_cover(const struct vma *vmas, size_t count, uint64_t start, uint64_t bytes,
		enum mem_backing *ret_backing);

/* The stretch of adjacent private anonymous writable mappings that is exactly bytes long. Where several are,
 * the one of fewest mappings: RAM is one mapping unless somebody gave parts of it other advice.
 * 0; -ENOENT; -ENOTUNIQ when that does not decide. */
int maps_find_anon(const struct vma *vmas, size_t count, uint64_t bytes, uint64_t *ret_start);

#endif
