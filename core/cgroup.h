/* core/cgroup.h - cgroups as far as memory goes: limit and use of one, the pressure in one, and which one a process is in;
 * of version 2, version 1, and both side by side. */
#ifndef CORE_CGROUP_H
#define CORE_CGROUP_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "core/fsio.h"
#include "core/snapshot.h"

#define CGROUP_PATH_MAX 1024 /* with its NUL; longer ones are taken for unknown */

/* One cgroup and all below it. Limits that are not set, or that exceed what can be, are UINT64_MAX. */
struct cgroup_memory {
	uint64_t limit_bytes, usage_bytes;
	uint64_t file_bytes; /* of usage: page cache, that can be dropped or written back */
	uint64_t swap_limit_bytes, swap_usage_bytes;
	struct pressure pressure; /* unknown for version 1 */
};

/* Reads the figures of the cgroup at path, as in /proc/PID/cgroup. 0, or -errno with the file and the reason in ret_why
 * and ret_memory untouched. */
int cgroup_memory_read(const struct fsio *fs, const char *path, struct cgroup_memory *ret_memory, char *ret_why,
		       size_t cap);

/* The text of /proc/pressure/memory or a cgroup's memory.pressure. 0, or -EBADMSG and ret_pressure untouched. */
int pressure_parse(const char *text, struct pressure *ret_pressure);

/* The path of the version 2 cgroup in the text of /proc/PID/cgroup. 0; -ENOENT: there is none; -ENAMETOOLONG; -EBADMSG: it
 * is not below the root that is seen here. ret_path is written only on 0. */
int cgroup_path_parse(const char *text, char ret_path[CGROUP_PATH_MAX]);

/* The same for a process of this host; pid 0: this one. Of threaded cgroups, in which the threads of one process are spread,
 * the one that holds them all. */
int cgroup_path_read(const struct fsio *fs, pid_t pid, char ret_path[CGROUP_PATH_MAX]);

/* What the process pid suffers from want of memory. Unknown unless it is in a cgroup that this process (own_path; empty:
 * unknown) is not in as well: else it would be the plight of others, too. */
struct pressure cgroup_pressure_of(const struct fsio *fs, pid_t pid, const char *own_path);

#endif
