/* Fuzzes the readers of /proc text: /proc/PID/stat, "key value" lines, what is looked at for hazards, and the file
 * that keeps what was found of KSM, in a folder of its own. */
#include <assert.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/fsio.h"
#include "core/log.h"
#include "ksmd/hazards.h"
#include "ksmd/ksm_kernel.h"
#include "vmm/discover.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char root[] = "/tmp/fuzz-proc.XXXXXX";

static void put(const char *name, const void *data, size_t size)
{
	char path[128];
	int fd;

	snprintf(path, sizeof(path), "%s/%s", root, name);
	fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	assert(fd >= 0 && write(fd, data, size) == (ssize_t)size);
	close(fd);
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
	static const char *const folders[] = { "sys", "sys/kernel", "sys/kernel/mm", "sys/kernel/mm/ksm", "run",
					       "proc", "proc/sys", "proc/sys/kernel", "proc/7", "proc/7/fd",
					       "proc/7/fdinfo" };
	char path[128];

	assert(mkdtemp(root));
	atexit(remove_tree);
	for (size_t i = 0; i < sizeof(folders) / sizeof(folders[0]); i++) {
		snprintf(path, sizeof(path), "%s/%s", root, folders[i]);
		assert(mkdir(path, 0700) == 0);
	}
	put("sys/kernel/mm/ksm/run", "0\n", 2);
	put("sys/kernel/mm/ksm/pages_to_scan", "100\n", 4);
	put("sys/kernel/mm/ksm/sleep_millisecs", "20\n", 3);
	log_set_level(LOG_LEVEL_ERROR);
	assert(fsio_open_root(root, false, fs) == 0);
}

/* Whatever the file says, run = 2 is never written. */
static void check_found(const struct fsio *fs, const uint8_t *data, size_t size)
{
	struct ksm_kernel *k;
	uint64_t run;

	put("run/ksm-found", data, size);
	assert(ksm_kernel_new(fs, "/run", &k) == 0);
	ksm_kernel_restore(k);
	ksm_kernel_free(k);
	assert(fsio_read_u64(fs, &run, "/sys/kernel/mm/ksm/run") == 0 && run < 2);
}

/* The first byte says which of the texts is the fuzzer's; the others are as usual. */
static void check_hazards(const struct fsio *fs, const char *text, size_t size)
{
	static const struct {
		const char *name, *usual;
	} files[] = {
		{ "proc/7/status", "Name:\tx\nTracerPid:\t0\n" },
		{ "proc/7/fdinfo/3", "pos:\t0\nflags:\t0140002\nmnt_id:\t30\n" },
		{ "proc/7/mountinfo", "30 1 0:1 / / rw - nfs x y\n" },
		{ "proc/sys/kernel/osrelease", "6.18.0\n" },
	};
	const size_t count = sizeof(files) / sizeof(files[0]);
	size_t mine = size > 0 ? (unsigned char)text[0] % (count + 1) : count;
	const char *why[HAZARDS_MAX], *link = mine == count && size > 1 && text[1] ? text + 1 : "/file";
	size_t found;

	for (size_t i = 0; i < count; i++) {
		if (i == mine)
			put(files[i].name, text + 1, size - 1);
		else
			put(files[i].name, files[i].usual, strlen(files[i].usual));
	}
	unlinkat(fs->root_fd, "proc/7/fd/3", 0);
	if (symlinkat(link, fs->root_fd, "proc/7/fd/3") < 0)
		return; /* too long for a link */
	found = hazards_find(fs, 7, why);
	assert(found <= HAZARDS_MAX);
	for (size_t i = 0; i < found; i++)
		assert(why[i] && *why[i]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct fsio fs = { .root_fd = -1 };
	struct vmm_stat stat;
	char *text = malloc(size + 1);
	uint64_t value;

	if (!text)
		return 0;
	if (fs.root_fd < 0)
		tree_make(&fs);
	if (size > 0)
		memcpy(text, data, size);
	text[size] = '\0';
	vmm_stat_parse(text, &stat);
	fsio_field_u64(text, "MemTotal", &value);
	check_found(&fs, data, size);
	check_hazards(&fs, text, size);
	free(text);
	return 0;
}
