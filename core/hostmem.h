/* core/hostmem.h - the host's part of the snapshot: memory and how short it is, of the host or of one cgroup. */
#ifndef CORE_HOSTMEM_H
#define CORE_HOSTMEM_H

#include <stddef.h>

#include "core/cgroup.h"
#include "core/fsio.h"
#include "core/snapshot.h"

/* The text of /proc/meminfo. 0; -ENOENT: a field is missing; -EBADMSG. s is changed only on 0. */
int meminfo_parse(const char *text, struct host_snapshot *s);

/* Narrows the host's figures in s to those of a cgroup on it. */
void hostmem_narrow(struct host_snapshot *s, const struct cgroup_memory *m);

/* Reads the host's figures into s. 0 or -errno. Pressure that the kernel does not tell is unknown, and no error. */
int hostmem_read(const struct fsio *fs, struct host_snapshot *s);

/* What can be had of one NUMA node without swapping: free memory and, of its page cache, half. 0; -ENOENT: no such node; or
 * -errno. */
int hostmem_node_free(const struct fsio *fs, int node, uint64_t *ret_bytes);

#endif
