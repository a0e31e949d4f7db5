#include "core/cgroup.h"

#include <ctype.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/cleanup.h"

#define STAT_MAX_BYTES 16384 /* memory.stat: 2 KiB on Linux 6.18 */

/* Where version 2 is mounted: alone, or beside version 1. */
static const char *const v2_roots[] = { "/sys/fs/cgroup", "/sys/fs/cgroup/unified" };
#define V1_ROOT "/sys/fs/cgroup/memory"

/* ---- pressure ---- */

/* "total=N" of the line that begins with word. */
static int total_parse(const char *text, const char *word, uint64_t *ret_us)
{
	size_t len = strlen(word);

	for (const char *line = text; line; line = strchr(line, '\n')) {
		const char *end, *total;
		uint64_t us;
		char *rest;

		line += *line == '\n';
		end = line + strcspn(line, "\n");
		if (strncmp(line, word, len) != 0 || line[len] != ' ')
			continue;
		total = strstr(line, " total=");
		if (!total || total > end || !isdigit((unsigned char)total[7]))
			return -EBADMSG;
		errno = 0;
		us = strtoull(total + 7, &rest, 10);
		if (errno || rest != end)
			return -EBADMSG;
		*ret_us = us;
		return 0;
	}
	return -EBADMSG;
}

int pressure_parse(const char *text, struct pressure *ret_pressure)
{
	struct pressure p = { .known = true };
	int r = total_parse(text, "some", &p.some_us);

	if (r == 0)
		r = total_parse(text, "full", &p.full_us);
	if (r == 0)
		*ret_pressure = p;
	return r;
}

/* Of a version 2 cgroup, whether or not version 2 has the memory controller. */
static struct pressure pressure_read(const struct fsio *fs, const char *path)
{
	struct pressure p = { 0 };
	char text[512];

	for (size_t i = 0; i < ARRAY_SIZE(v2_roots); i++)
		if (fsio_read(fs, text, sizeof(text), "%s%s/memory.pressure", v2_roots[i], path) >= 0 &&
		    pressure_parse(text, &p) == 0)
			break;
	return p;
}

/* ---- limit and use ---- */

/* A file with one number, or "max" for none. Version 1 has no word for "none", but a number beyond all memory. */
static int limit_read(const struct fsio *fs, uint64_t *ret_bytes, const char *root, const char *path, const char *name)
{
	char text[64];
	ssize_t n = fsio_read(fs, text, sizeof(text), "%s%s/%s", root, path, name);
	int r;

	if (n < 0)
		return (int)n;
	if (strcmp(text, "max\n") == 0) {
		*ret_bytes = UINT64_MAX;
		return 0;
	}
	r = fsio_read_u64(fs, ret_bytes, "%s%s/%s", root, path, name);
	if (r == 0 && *ret_bytes >= UINT64_C(1) << 62)
		*ret_bytes = UINT64_MAX;
	return r;
}

struct layout {
	const char *root;
	const char *limit, *usage;
	const char *file_keys[2]; /* in memory.stat; with all cgroups below */
	const char *swap_limit, *swap_usage;
	bool swap_with_memory; /* the two above count both together */
};

static const struct layout layouts[] = {
	{ "/sys/fs/cgroup", "memory.max", "memory.current", { "inactive_file", "active_file" }, "memory.swap.max",
	  "memory.swap.current", false },
	{ "/sys/fs/cgroup/unified", "memory.max", "memory.current", { "inactive_file", "active_file" },
	  "memory.swap.max", "memory.swap.current", false },
	{ V1_ROOT, "memory.limit_in_bytes", "memory.usage_in_bytes", { "total_inactive_file", "total_active_file" },
	  "memory.memsw.limit_in_bytes", "memory.memsw.usage_in_bytes", true },
};

/* What can be dropped, from memory.stat. */
static int file_read(const struct fsio *fs, const struct layout *l, const char *path, uint64_t *ret_bytes)
{
	auto_free char *text = NULL;
	uint64_t sum = 0, bytes;
	ssize_t n = fsio_read_alloc(fs, STAT_MAX_BYTES, &text, "%s%s/memory.stat", l->root, path);

	if (n < 0)
		return (int)n;
	for (size_t i = 0; i < ARRAY_SIZE(l->file_keys); i++) {
		int r = fsio_field_u64(text, l->file_keys[i], &bytes);

		if (r < 0)
			return -EBADMSG;
		if (__builtin_add_overflow(sum, bytes, &sum))
			return -EBADMSG;
	}
	*ret_bytes = sum;
	return 0;
}

static uint64_t less(uint64_t a, uint64_t b)
{
	return a > b ? a - b : 0;
}

/* A kernel that does not account swap has no such files: then nothing limits it. */
static void swap_read(const struct fsio *fs, const struct layout *l, const char *path, struct cgroup_memory *m)
{
	uint64_t limit, usage;

	m->swap_limit_bytes = UINT64_MAX;
	m->swap_usage_bytes = 0;
	if (limit_read(fs, &limit, l->root, path, l->swap_limit) < 0 ||
	    fsio_read_u64(fs, &usage, "%s%s/%s", l->root, path, l->swap_usage) < 0)
		return;
	if (l->swap_with_memory && limit != UINT64_MAX)
		limit = less(limit, m->limit_bytes); /* the kernel keeps it above the limit of memory alone */
	m->swap_limit_bytes = limit;
	m->swap_usage_bytes = l->swap_with_memory ? less(usage, m->usage_bytes) : usage;
}

static int layout_read(const struct fsio *fs, const struct layout *l, const char *path, struct cgroup_memory *m,
		       const char **ret_file)
{
	int r;

	*ret_file = l->usage;
	r = fsio_read_u64(fs, &m->usage_bytes, "%s%s/%s", l->root, path, l->usage);
	if (r < 0)
		return r;
	*ret_file = l->limit;
	r = limit_read(fs, &m->limit_bytes, l->root, path, l->limit);
	if (r < 0)
		return r;
	*ret_file = "memory.stat";
	r = file_read(fs, l, path, &m->file_bytes);
	if (r < 0)
		return r;
	swap_read(fs, l, path, m);
	/* A version 1 cgroup may have a namesake of version 2, but who is in that cannot be told from here. */
	if (strcmp(l->root, V1_ROOT) != 0)
		m->pressure = pressure_read(fs, path);
	return 0;
}

int cgroup_memory_read(const struct fsio *fs, const char *path, struct cgroup_memory *ret_memory, char *ret_why,
		       size_t cap)
{
	struct cgroup_memory m = { 0 };

	for (size_t i = 0; i < ARRAY_SIZE(layouts); i++) {
		const char *file;
		int r = layout_read(fs, &layouts[i], path, &m, &file);

		if (r == -ENOENT && strcmp(file, layouts[i].usage) == 0)
			continue; /* not this version, or without the memory controller */
		if (r < 0) {
			snprintf(ret_why, cap, "%s%s/%s: %s", layouts[i].root, path, file, strerror(-r));
			return r;
		}
		*ret_memory = m;
		return 0;
	}
	snprintf(ret_why, cap, "no cgroup with a memory controller at %s", path);
	return -ENOENT;
}

/* ---- whose ---- */

int cgroup_path_parse(const char *text, char ret_path[CGROUP_PATH_MAX])
{
	static const char unified[] = "0::";

	for (const char *line = text; *line;) {
		size_t len = strcspn(line, "\n");
		const char *path = line + strlen(unified);

		if (strncmp(line, unified, strlen(unified)) == 0) {
			len -= strlen(unified);
			if (len >= CGROUP_PATH_MAX)
				return -ENAMETOOLONG;
			/* "/..": outside of this process's cgroup namespace; what is mounted here does not show it. */
			if (*path != '/' || strncmp(path, "/..", 3) == 0)
				return -EBADMSG;
			memcpy(ret_path, path, len);
			ret_path[len] = '\0';
			return 0;
		}
		line += len + (line[len] == '\n');
	}
	return -ENOENT;
}

static bool is_threaded(const struct fsio *fs, const char *path)
{
	char type[32];

	for (size_t i = 0; i < ARRAY_SIZE(v2_roots); i++)
		if (fsio_read(fs, type, sizeof(type), "%s%s/cgroup.type", v2_roots[i], path) >= 0)
			return strcmp(type, "threaded\n") == 0;
	return false;
}

int cgroup_path_read(const struct fsio *fs, pid_t pid, char ret_path[CGROUP_PATH_MAX])
{
	char text[16384], id[16] = "self", path[CGROUP_PATH_MAX];
	ssize_t n;
	int r;

	if (pid > 0)
		snprintf(id, sizeof(id), "%d", (int)pid);
	n = fsio_read(fs, text, sizeof(text), "/proc/%s/cgroup", id);
	if (n < 0)
		return (int)n;
	r = cgroup_path_parse(text, path);
	if (r < 0)
		return r;
	/* libvirt has a VM's vCPU threads in cgroups beside that of its first thread. */
	while (strlen(path) > 1 && is_threaded(fs, path)) {
		char *slash = strrchr(path, '/');

		slash[slash == path] = '\0';
	}
	memcpy(ret_path, path, strlen(path) + 1);
	return 0;
}

/* Whether own is path or below it. */
static bool holds(const char *path, const char *own)
{
	size_t len = strlen(path);

	return strncmp(own, path, len) == 0 && (own[len] == '\0' || own[len] == '/');
}

struct pressure cgroup_pressure_of(const struct fsio *fs, pid_t pid, const char *own_path)
{
	char path[CGROUP_PATH_MAX];

	if (!*own_path || cgroup_path_read(fs, pid, path) < 0 || strcmp(path, "/") == 0 || holds(path, own_path))
		return (struct pressure){ 0 };
	return pressure_read(fs, path);
}
