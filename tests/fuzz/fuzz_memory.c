/* Fuzzes the readers of the host's memory: /proc/meminfo, pressure, /proc/PID/cgroup, and the files of a cgroup in a folder
 * of its own. */
#include <assert.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/cgroup.h"
#include "core/hostmem.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char root[] = "/tmp/fuzz-memory.XXXXXX";

static const struct file {
	const char *name, *usual;
} files[] = {
	{ "sys/fs/cgroup/g/memory.current", "1048576\n" },
	{ "sys/fs/cgroup/g/memory.max", "2097152\n" },
	{ "sys/fs/cgroup/g/memory.stat", "inactive_file 4096\nactive_file 4096\n" },
	{ "sys/fs/cgroup/g/memory.swap.max", "max\n" },
	{ "sys/fs/cgroup/g/memory.swap.current", "0\n" },
	{ "sys/fs/cgroup/g/memory.pressure", "some total=1\nfull total=1\n" },
	{ "sys/fs/cgroup/g/cgroup.type", "domain\n" },
	{ "proc/7/cgroup", "0::/g\n" },
	{ "proc/meminfo", "MemTotal: 4096 kB\nMemAvailable: 2048 kB\nSwapTotal: 0 kB\nSwapFree: 0 kB\n" },
	{ "proc/pressure/memory", "some total=1\nfull total=1\n" },
};
#define FILES (sizeof(files) / sizeof(files[0]))

static void put(const char *name, const void *data, size_t size)
{
	char path[128];
	FILE *f;

	snprintf(path, sizeof(path), "%s/%s", root, name);
	f = fopen(path, "we");
	assert(f && fwrite(data, 1, size, f) == size);
	fclose(f);
}

static void remove_tree(void)
{
	char command[64];

	snprintf(command, sizeof(command), "rm -rf %s", root);
	if (system(command) != 0)
		return;
}

static void tree_make(struct fsio *fs)
{
	static const char *const folders[] = { "proc", "proc/7", "proc/pressure", "sys", "sys/fs", "sys/fs/cgroup",
					       "sys/fs/cgroup/g" };
	char path[128];

	assert(mkdtemp(root));
	atexit(remove_tree);
	for (size_t i = 0; i < sizeof(folders) / sizeof(folders[0]); i++) {
		snprintf(path, sizeof(path), "%s/%s", root, folders[i]);
		assert(mkdir(path, 0700) == 0);
	}
	assert(fsio_open_root(root, true, fs) == 0);
}

static void check_texts(const char *text)
{
	struct host_snapshot s = { 0 };
	struct pressure p = { 0 };
	char path[CGROUP_PATH_MAX];

	meminfo_parse(text, &s);
	assert((pressure_parse(text, &p) == 0) == p.known);
	if (cgroup_path_parse(text, path) == 0)
		assert(path[0] == '/' && strlen(path) < sizeof(path) && !strchr(path, '\n'));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct fsio fs = { .root_fd = -1 };
	struct host_snapshot s = { .mem_total_bytes = 7 };
	struct cgroup_memory m;
	char why[256] = "", *text;

	if (size == 0)
		return 0;
	if (fs.root_fd < 0)
		tree_make(&fs);
	text = malloc(size);
	assert(text);
	memcpy(text, data + 1, size - 1);
	text[size - 1] = '\0';
	check_texts(text);
	/* The first byte says which of the files is the fuzzer's; the others are as usual. */
	for (size_t i = 0; i < FILES; i++) {
		if (i == data[0] % FILES)
			put(files[i].name, data + 1, size - 1);
		else
			put(files[i].name, files[i].usual, strlen(files[i].usual));
	}
	if (hostmem_read(&fs, &s) == 0 && cgroup_memory_read(&fs, "/g", &m, why, sizeof(why)) == 0) {
		uint64_t total = s.mem_total_bytes, available = s.mem_available_bytes, swap = s.swap_free_bytes;

		hostmem_narrow(&s, &m);
		assert(s.mem_total_bytes <= total && s.mem_available_bytes <= available && s.swap_free_bytes <= swap);
	}
	cgroup_pressure_of(&fs, 7, "/d");
	free(text);
	return 0;
}
