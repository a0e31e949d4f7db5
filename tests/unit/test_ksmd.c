/* ksmd as a module: ticks over real children, with a tree of its own in place of /sys/kernel/mm/ksm. Only /proc
 * is the host's. Time is made up, so intervals and back-off cost none. */
#include "ksmd/ksmd.h"

#include <poll.h>

#include "core/clock.h"
#include "core/log.h"
#include "tests/unit/unit.h"

#define KSM "sys/kernel/mm/ksm/"
#define FOUND "run/memvirt/ksm-found"
#define PAGES 1024
#define VMS 2

struct world {
	uint64_t merging_pages; /* by the kernel, of each VM */
	char dir[UNIT_DIR_MAX];
	struct fsio fs;
	struct config config;
	struct ksmd *ksmd;
	struct unit_child children[VMS];
	struct mem_region regions[VMS];
	struct vm_snapshot vms[VMS];
	struct host_snapshot s;
	bool dry_run;
};

#define SHARED_BYTES (1u << 20)

/* Both children hold the same: half of it zero pages, the other half pages that occur once in each. */
static char *guest_make(void *arg)
{
	uint64_t contents[PAGES];
	char *map, *shared;

	(void)arg;
	for (size_t i = 0; i < PAGES; i++)
		contents[i] = i % 2 ? i : 0;
	map = unit_pages_make(&(struct unit_pages){ contents, PAGES });
	madvise(map, PAGES * (size_t)PAGE_BYTES, MADV_MERGEABLE); /* the host's scanner is not started */
	shared = mmap(NULL, SHARED_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	unit_must(shared != MAP_FAILED, "mmap");
	memset(shared, 1, SHARED_BYTES);
	return map;
}

static void knob(struct world *w, const char *name, const char *value)
{
	char path[64];

	snprintf(path, sizeof(path), KSM "%s", name);
	unit_file(w->dir, path, value);
}

static bool knob_is(const struct world *w, const char *name, const char *value)
{
	char path[64];

	snprintf(path, sizeof(path), KSM "%s", name);
	return unit_file_is(w->dir, path, value);
}

static void world_begin(struct world *w, bool ksm, bool dry_run)
{
	memset(w, 0, sizeof(*w));
	unit_dir_new(w->dir);
	unit_must(fsio_open_root(w->dir, dry_run, &w->fs) == 0, w->dir);
	unit_must(symlinkat("/proc", w->fs.root_fd, "proc") == 0, "symlink");
	unit_file(w->dir, "run/memvirt/here", "");
	if (ksm) {
		knob(w, "run", "0\n");
		knob(w, "pages_to_scan", "100\n");
		knob(w, "sleep_millisecs", "20\n");
		knob(w, "pages_shared", "0\n");
		knob(w, "pages_sharing", "0\n");
		knob(w, "full_scans", "0\n");
		knob(w, "pages_scanned", "0\n");
	}
	config_init(&w->config);
	w->config.scan_workers = 1;
	w->config.scan_cpu_percent = 25600; /* no pauses */
	w->config.merge_min_gain_bytes = 1 << 20;
	w->dry_run = dry_run;
	w->s.taken_ns = 1000 * NSEC_PER_SEC;
	w->s.vms = w->vms;
	w->s.vm_count = VMS;
	for (size_t i = 0; i < VMS; i++) {
		static const char *const names[] = { "a", "b" };

		unit_child_start(&w->children[i], guest_make, NULL);
		w->regions[i] = (struct mem_region){ (uintptr_t)w->children[i].map, PAGES * PAGE_BYTES, MEM_ANON };
		w->vms[i] = (struct vm_snapshot){ .name = names[i], .uuid = names[i], .domain = "one",
						  .pid = w->children[i].pid, .pidfd = w->children[i].pidfd,
						  .regions = &w->regions[i], .region_count = 1, .merge_allowed = true };
	}
	unit_must(ksmd_new(&w->fs, &w->config, &w->ksmd) == 0, "ksmd_new");
}

static void world_end(struct world *w)
{
	w->ksmd = ksmd_free(w->ksmd);
	for (size_t i = 0; i < VMS; i++)
		unit_child_stop(&w->children[i]);
	config_free(&w->config);
	fsio_close(&w->fs);
	unit_dir_remove(w->dir);
}

/* One tick as the daemon does it; every VM counts as mergeable, whatever this kernel tells. */
static void tick(struct world *w, uint64_t seconds)
{
	w->s.taken_ns += seconds * NSEC_PER_SEC;
	for (size_t i = 0; i < VMS; i++)
		w->vms[i].ksm_merging_pages = 0;
	CU_ASSERT_EQUAL(ksmd_ops.sense(w->ksmd, &w->s), 0);
	for (size_t i = 0; i < VMS; i++) {
		w->vms[i].ksm_mergeable = true;
		w->vms[i].ksm_merging_pages = w->merging_pages;
	}
	CU_ASSERT_EQUAL(ksmd_ops.decide(w->ksmd, &w->s), 0);
	CU_ASSERT_EQUAL(ksmd_ops.apply(w->ksmd, w->dry_run), 0);
}

static void wait_pass(struct world *w)
{
	struct pollfd ready = { .fd = ksmd_pass_fd(w->ksmd), .events = POLLIN };

	CU_ASSERT_TRUE(ready.fd >= 0);
	if (ready.fd >= 0)
		CU_ASSERT_EQUAL(poll(&ready, 1, -1), 1);
}

static struct ksmd_status status(const struct world *w)
{
	struct ksmd_status st;

	ksmd_status(w->ksmd, &st);
	return st;
}

/* The first pass, up to the tick that starts the scanner. */
static void start_merging(struct world *w)
{
	tick(w, 1);
	wait_pass(w);
	tick(w, 1);
}

static void test_ksmd_gain_found_scanner_started_and_restored(void)
{
	struct world w;

	if (geteuid() != 0)
		UNIT_SKIP("reading another process needs root");
	world_begin(&w, true, false);
	tick(&w, 1);
	CU_ASSERT_TRUE(status(&w).passing);
	CU_ASSERT_TRUE(w.vms[0].rss_anon_bytes >= (uint64_t)PAGES * PAGE_BYTES);
	CU_ASSERT_TRUE(w.vms[0].rss_shmem_bytes >= SHARED_BYTES);
	CU_ASSERT_TRUE(knob_is(&w, "run", "0\n"));
	CU_ASSERT_PTR_NULL(status(&w).last);
	wait_pass(&w);
	tick(&w, 1);
	CU_ASSERT_EQUAL(status(&w).passes, 1);
	CU_ASSERT_EQUAL(status(&w).expected_pages, PAGES + PAGES / 2); /* all zero pages; half of the others */
	CU_ASSERT_EQUAL(status(&w).state, KSM_MERGE);
	CU_ASSERT_TRUE(knob_is(&w, "run", "1"));
	CU_ASSERT_FALSE(knob_is(&w, "pages_to_scan", "100\n"));
	CU_ASSERT_FALSE(unit_file_is(w.dir, FOUND, NULL));
	w.ksmd = ksmd_free(w.ksmd);
	CU_ASSERT_TRUE(knob_is(&w, "run", "0") && knob_is(&w, "pages_to_scan", "100"));
	CU_ASSERT_TRUE(knob_is(&w, "sleep_millisecs", "20"));
	CU_ASSERT_TRUE(unit_file_is(w.dir, FOUND, NULL));
	world_end(&w);
}

static void test_ksmd_no_more_comes_scanner_rests(void)
{
	struct world w;

	if (geteuid() != 0)
		UNIT_SKIP("reading another process needs root");
	world_begin(&w, true, false);
	start_merging(&w);
	CU_ASSERT_TRUE(knob_is(&w, "run", "1"));
	tick(&w, 100);
	CU_ASSERT_FALSE(status(&w).passing); /* while it merges the estimate stands */
	knob(&w, "full_scans", "9\n");
	tick(&w, 1);
	CU_ASSERT_EQUAL(status(&w).state, KSM_REST);
	CU_ASSERT_TRUE(knob_is(&w, "run", "0"));
	tick(&w, 100); /* afterwards a new pass shows what is left; it does not start again for the same */
	CU_ASSERT_TRUE(status(&w).passing);
	wait_pass(&w);
	tick(&w, 1);
	CU_ASSERT_EQUAL(status(&w).passes, 2);
	CU_ASSERT_EQUAL(status(&w).state, KSM_REST);
	CU_ASSERT_TRUE(knob_is(&w, "run", "0"));
	world_end(&w);
}

static void test_ksmd_foreign_change_yields_then_returns(void)
{
	struct world w;

	if (geteuid() != 0)
		UNIT_SKIP("reading another process needs root");
	world_begin(&w, true, false);
	start_merging(&w);
	knob(&w, "pages_to_scan", "1250\n");
	tick(&w, 1);
	CU_ASSERT_EQUAL(status(&w).state, KSM_BACKOFF);
	CU_ASSERT_TRUE(knob_is(&w, "pages_to_scan", "1250\n"));
	CU_ASSERT_TRUE(knob_is(&w, "run", "0")); /* it ran only because we had started it */
	CU_ASSERT_TRUE(unit_file_is(w.dir, FOUND, NULL));
	tick(&w, 599);
	CU_ASSERT_EQUAL(status(&w).state, KSM_BACKOFF);
	tick(&w, 2);
	CU_ASSERT_EQUAL(status(&w).state, KSM_MERGE);
	CU_ASSERT_FALSE(knob_is(&w, "pages_to_scan", "1250\n"));
	w.ksmd = ksmd_free(w.ksmd); /* gives back what the other one had set */
	CU_ASSERT_TRUE(knob_is(&w, "pages_to_scan", "1250") && knob_is(&w, "run", "0"));
	world_end(&w);
}

static void test_ksmd_left_running_is_stopped(void)
{
	struct world w;

	if (geteuid() != 0)
		UNIT_SKIP("reading another process needs root");
	world_begin(&w, true, false);
	w.ksmd = ksmd_free(w.ksmd);
	knob(&w, "run", "1\n");
	unit_file(w.dir, FOUND, "run 0\npages_to_scan 77\nsleep_millisecs 8\nadvisor_mode -\n");
	unit_must(ksmd_new(&w.fs, &w.config, &w.ksmd) == 0, "ksmd_new");
	tick(&w, 1);
	CU_ASSERT_TRUE(knob_is(&w, "run", "0"));
	CU_ASSERT_PTR_NOT_NULL(strstr(status(&w).why, "left running"));
	wait_pass(&w);
	tick(&w, 1);
	CU_ASSERT_TRUE(knob_is(&w, "run", "1")); /* carries on */
	w.ksmd = ksmd_free(w.ksmd);
	CU_ASSERT_TRUE(knob_is(&w, "run", "0") && knob_is(&w, "pages_to_scan", "77"));
	world_end(&w);
}

static void test_ksmd_refusal_table_keeps_scanner_off(void)
{
	static const struct {
		const char *what, *why;
	} cases[] = {
		{ "two domains", "several domains" },
		{ "engine off", "engine = off" },
		{ "merge off", "merge = off" },
	};

	if (geteuid() != 0)
		UNIT_SKIP("reading another process needs root");
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		const char *why;
		struct world w;

		world_begin(&w, true, false);
		if (i == 0)
			w.vms[1].domain = "two";
		else if (i == 1)
			w.config.merge_engine = MERGE_ENGINE_OFF;
		else
			w.vms[1].merge_allowed = false;
		start_merging(&w);
		why = ksmd_host_refusal(w.ksmd, &w.s);
		UNIT_CASE(cases[i].what, why && strstr(why, cases[i].why));
		UNIT_CASE(cases[i].what, strcmp(status(&w).why, why) == 0);
		UNIT_CASE(cases[i].what, knob_is(&w, "run", "0\n"));
		UNIT_CASE(cases[i].what, status(&w).passes == 1); /* estimates go on */
		world_end(&w);
	}
}

/* What the kernel has merged counts: while it would not fit into memory if it came back, no more is merged. */
static void test_ksmd_debt_keeps_scanner_off_until_it_fits(void)
{
	struct unit_stderr capture;
	auto_free char *text = NULL;
	struct world w;

	if (geteuid() != 0)
		UNIT_SKIP("reading another process needs root");
	unit_stderr_begin(&capture);
	world_begin(&w, true, false);
	knob(&w, "pages_sharing", "51200\n"); /* 200 MiB, of which a fifth is the debt */
	w.s.mem_available_bytes = 39 << 20;
	w.merging_pages = 1;
	start_merging(&w);
	CU_ASSERT_EQUAL(status(&w).debt->state, DEBT_STOP);
	CU_ASSERT_EQUAL(status(&w).debt->pages, 51200 / 5);
	CU_ASSERT_EQUAL(status(&w).merged_pages, 51200);
	CU_ASSERT_TRUE(knob_is(&w, "run", "0\n"));
	CU_ASSERT_PTR_NOT_NULL(strstr(status(&w).why, "40 of 200 MiB merged may come back at once"));
	w.s.mem_available_bytes = 41 << 20; /* it would fit, but only just */
	tick(&w, 1);
	CU_ASSERT_TRUE(knob_is(&w, "run", "0\n"));
	CU_ASSERT_EQUAL(w.s.cow_debt_bytes, 40 << 20); /* others see it too */
	w.s.swap_free_bytes = 9 << 20;
	tick(&w, 1);
	CU_ASSERT_EQUAL(status(&w).debt->state, DEBT_OK);
	CU_ASSERT_TRUE(knob_is(&w, "run", "1"));
	w.s.mem_available_bytes = 0;
	tick(&w, 1);
	CU_ASSERT_TRUE(knob_is(&w, "run", "0"));
	w.merging_pages = 0;
	tick(&w, 1);
	CU_ASSERT_EQUAL(status(&w).debt->pages, 0); /* what the kernel counts is no VM's: as likely of processes that ended */
	world_end(&w);
	text = unit_stderr_end(&capture);
	CU_ASSERT_PTR_NOT_NULL(strstr(text, "debt stop why=\"40 of 200 MiB"));
	CU_ASSERT_PTR_NOT_NULL(strstr(text, "debt ok why="));
}

static void test_ksmd_without_ksm_estimates_work(void)
{
	struct world w;

	if (geteuid() != 0)
		UNIT_SKIP("reading another process needs root");
	world_begin(&w, false, false);
	start_merging(&w);
	CU_ASSERT_FALSE(status(&w).ksm_present);
	CU_ASSERT_EQUAL(status(&w).passes, 1);
	CU_ASSERT_PTR_NOT_NULL(status(&w).last);
	CU_ASSERT_PTR_NOT_NULL(strstr(ksmd_host_refusal(w.ksmd, &w.s), "no KSM"));
	world_end(&w);
}

static void test_ksmd_dry_run_writes_nothing(void)
{
	struct unit_stderr capture;
	auto_free char *text = NULL;
	struct world w;

	if (geteuid() != 0)
		UNIT_SKIP("reading another process needs root");
	unit_stderr_begin(&capture);
	world_begin(&w, true, true);
	start_merging(&w);
	for (int i = 0; i < 5; i++) {
		CU_ASSERT_EQUAL(status(&w).state, KSM_REST); /* as if it had run and got nothing */
		tick(&w, 1);
	}
	CU_ASSERT_TRUE(knob_is(&w, "run", "0\n") && knob_is(&w, "pages_to_scan", "100\n"));
	CU_ASSERT_TRUE(unit_file_is(w.dir, FOUND, NULL));
	world_end(&w);
	text = unit_stderr_end(&capture);
	CU_ASSERT_PTR_NOT_NULL(strstr(text, "ksm start run=0->1 pages_to_scan=100->"));
	CU_ASSERT_TRUE(strstr(text, "ksm start") && !strstr(strstr(text, "ksm start") + 1, "ksm start")); /* once */
}

static void test_ksmd_vm_that_died_is_forgotten(void)
{
	struct world w;

	if (geteuid() != 0)
		UNIT_SKIP("reading another process needs root");
	world_begin(&w, true, false);
	start_merging(&w);
	CU_ASSERT_TRUE(knob_is(&w, "run", "1"));
	unit_child_kill(&w.children[1]); /* still in the snapshot */
	tick(&w, 1);
	w.s.vm_count = 1; /* and out of it: its zero pages and half of the rest will not come */
	tick(&w, 1);
	CU_ASSERT_EQUAL(status(&w).expected_pages, PAGES / 2 + PAGES / 4);
	w.s.vm_count = 0;
	tick(&w, 1);
	CU_ASSERT_EQUAL(status(&w).expected_pages, 0);
	CU_ASSERT_TRUE(knob_is(&w, "run", "0"));
	world_end(&w);
}

static void test_ksmd_freed_while_passing_cancels(void)
{
	struct world w;

	if (geteuid() != 0)
		UNIT_SKIP("reading another process needs root");
	world_begin(&w, true, false);
	w.config.scan_bytes_per_s = 1; /* would take hours */
	tick(&w, 1);
	CU_ASSERT_TRUE(status(&w).passing);
	tick(&w, 1);
	CU_ASSERT_TRUE(status(&w).passing);
	world_end(&w);
	CU_ASSERT_PTR_NULL(ksmd_free(NULL));
}

int main(void)
{
	static CU_TestInfo tests[] = {
		{ "started_and_restored", test_ksmd_gain_found_scanner_started_and_restored },
		{ "no_more_comes", test_ksmd_no_more_comes_scanner_rests },
		{ "foreign_change", test_ksmd_foreign_change_yields_then_returns },
		{ "left_running", test_ksmd_left_running_is_stopped },
		{ "host_refusals", test_ksmd_refusal_table_keeps_scanner_off },
		{ "debt", test_ksmd_debt_keeps_scanner_off_until_it_fits },
		{ "without_ksm", test_ksmd_without_ksm_estimates_work },
		{ "dry_run", test_ksmd_dry_run_writes_nothing },
		{ "vm_died", test_ksmd_vm_that_died_is_forgotten },
		{ "freed_while_passing", test_ksmd_freed_while_passing_cancels },
		CU_TEST_INFO_NULL,
	};

	log_set_level(LOG_LEVEL_INFO);
	return unit_main("ksmd", tests);
}
