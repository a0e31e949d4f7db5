#include "tests/world/proc.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/cleanup.h"

static FILE *proc_open(pid_t pid, const char *what)
{
	char path[96];

	snprintf(path, sizeof(path), "/proc/%d/%s", (int)pid, what);
	return fopen(path, "re");
}

static bool map_parse(const char *line, struct proc_map *m)
{
	unsigned long start, end, offset, inode;
	int name = 0;

	if (sscanf(line, "%lx-%lx %*4s %lx %*s %lu %n", &start, &end, &offset, &inode, &name) < 4)
		return false;
	*m = (struct proc_map){ .start = start, .end = end, .offset = offset, .inode = inode };
	snprintf(m->name, sizeof(m->name), "%.*s", (int)strcspn(line + name, "\n"), line + name);
	return true;
}

bool proc_maps(pid_t pid, void (*one)(const struct proc_map *m, void *userdata), void *userdata)
{
	auto_fclose FILE *f = proc_open(pid, "maps");
	char line[512];
	struct proc_map m;

	while (f && fgets(line, sizeof(line), f))
		if (map_parse(line, &m))
			one(&m, userdata);
	return f != NULL;
}

static void map_count(const struct proc_map *m, void *userdata)
{
	uint32_t *n = userdata;

	(void)m;
	(*n)++;
}

uint32_t proc_maps_count(pid_t pid)
{
	uint32_t n = 0;

	proc_maps(pid, map_count, &n);
	return n;
}

/* Entries of a folder whose names are numbers. */
static uint32_t numbers_in(pid_t pid, const char *what, void (*one)(pid_t pid, const char *name))
{
	auto_closedir DIR *d = NULL;
	struct dirent *entry;
	char path[64];
	uint32_t n = 0;

	snprintf(path, sizeof(path), "/proc/%d/%s", (int)pid, what);
	d = opendir(path);
	while (d && (entry = readdir(d))) {
		if (!isdigit((unsigned char)entry->d_name[0]))
			continue;
		n++;
		if (one)
			one(pid, entry->d_name);
	}
	return n;
}

uint32_t proc_fds_count(pid_t pid)
{
	return numbers_in(pid, "fd", NULL);
}

uint64_t proc_anon_kib(pid_t pid)
{
	auto_fclose FILE *f = proc_open(pid, "status");
	unsigned long kib = 0;
	char line[256];

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "RssAnon: %lu", &kib) == 1)
			break;
	return kib;
}

double proc_cpu_seconds(pid_t pid)
{
	auto_fclose FILE *f = proc_open(pid, "stat");
	unsigned long user = 0, system = 0;
	char line[1024] = "", *name_end;

	if (!f || !fgets(line, sizeof(line), f))
		return 0;
	name_end = strrchr(line, ')');
	if (name_end)
		sscanf(name_end + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &system);
	return (double)(user + system) / (double)sysconf(_SC_CLK_TCK);
}

void proc_range(pid_t pid, uint64_t start, uint64_t end, uint32_t *ret_maps, uint32_t *ret_windows)
{
	auto_fclose FILE *f = proc_open(pid, "smaps");
	struct proc_map m = { 0 };
	char line[1024];

	*ret_maps = *ret_windows = 0;
	while (f && fgets(line, sizeof(line), f)) {
		bool inside;

		if (map_parse(line, &m))
			*ret_maps += m.start < end && m.end > start;
		inside = m.start < end && m.end > start;
		*ret_windows += inside && strncmp(line, "VmFlags:", 8) == 0 && strstr(line, " um");
	}
}

static void thread_print(pid_t pid, const char *name)
{
	char what[64], line[256];
	auto_fclose FILE *f = NULL;

	snprintf(what, sizeof(what), "task/%.20s/stack", name);
	f = proc_open(pid, what);
	printf("  thread %s\n", name);
	while (f && fgets(line, sizeof(line), f))
		printf("    %s", line);
}

void proc_print_threads(pid_t pid)
{
	numbers_in(pid, "task", thread_print);
}
