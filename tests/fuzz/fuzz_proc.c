/* Fuzzes the readers of /proc text: /proc/PID/stat, "key value" lines, and the file that keeps what was found of
 * KSM, in a folder of its own. */
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
	static const char *const folders[] = { "sys", "sys/kernel", "sys/kernel/mm", "sys/kernel/mm/ksm", "run" };
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
	free(text);
	return 0;
}
