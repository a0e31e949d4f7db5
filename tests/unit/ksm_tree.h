/* tests/unit/ksm_tree.h - a tree that stands for /sys/kernel/mm/ksm, /proc and the state directory. */
#ifndef TESTS_KSM_TREE_H
#define TESTS_KSM_TREE_H

#include "ksmd/ksm_kernel.h"
#include "tests/unit/unit.h"

#define KSM "sys/kernel/mm/ksm/"
#define STATE "run/memvirt"
#define FOUND STATE "/ksm-found"

static char dir[UNIT_DIR_MAX];
static struct fsio fs;

static inline void knob(const char *name, const char *value)
{
	char path[64];

	snprintf(path, sizeof(path), KSM "%s", name);
	unit_file(dir, path, value);
}

/* A kernel with KSM and its settings; the state directory is there. */
static inline void tree_begin(const char *run, const char *pages_to_scan, const char *sleep, bool dry_run)
{
	unit_dir_new(dir);
	unit_must(fsio_open_root(dir, dry_run, &fs) == 0, dir);
	unit_file(dir, STATE "/here", "");
	unit_file(dir, "proc/1/comm", "init\n");
	knob("run", run);
	knob("pages_to_scan", pages_to_scan);
	knob("sleep_millisecs", sleep);
	knob("pages_shared", "10\n");
	knob("pages_sharing", "20\n");
	knob("full_scans", "3\n");
}

static inline void tree_end(void)
{
	fsio_close(&fs);
	unit_dir_remove(dir);
}

static inline struct ksm_kernel *kernel_new(void)
{
	struct ksm_kernel *k = NULL;

	CU_ASSERT_EQUAL(ksm_kernel_new(&fs, "/" STATE, &k), 0);
	unit_must(k, "ksm_kernel_new");
	return k;
}

#endif
