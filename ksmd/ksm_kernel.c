#include "ksmd/ksm_kernel.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/cleanup.h"
#include "core/log.h"

#define KSM_DIR "/sys/kernel/mm/ksm"
#define FOUND_FILE "ksm-found"
#define ADVISOR_OFF "none"
#define NO_KNOB UINT64_MAX

/* What can be set, and is put back. */
struct knobs {
	uint64_t run, pages_to_scan, sleep_ms;
	char advisor[16];    /* empty: this kernel has none (before Linux 6.8) */
	uint64_t smart_scan; /* NO_KNOB: this kernel has none (before Linux 6.7) */
};

struct ksm_kernel {
	const struct fsio *fs;
	char *state_dir;
	pid_t scanner; /* the kernel's thread; 0: not found */
	long tick_ns;  /* of /proc/PID/stat */
	bool controlled; /* found is valid and will be put back */
	struct knobs found;
	bool helpers_off; /* advisor and smart_scan were seen to */
	bool tells_merging; /* of a process, seen once */
	bool written;	  /* wrote is valid */
	struct knobs wrote;
};

static int knob_read(const struct fsio *fs, const char *name, uint64_t *ret_value)
{
	return fsio_read_u64(fs, ret_value, KSM_DIR "/%s", name);
}

static int knob_write(const struct fsio *fs, const char *name, uint64_t value)
{
	char text[24];
	int r;

	snprintf(text, sizeof(text), "%" PRIu64, value);
	r = fsio_write(fs, text, KSM_DIR "/%s", name);
	if (r < 0)
		log_error("cannot set " KSM_DIR "/%s to %s: %s", name, text, strerror(-r));
	return r;
}

/* The choice in brackets out of "[none] scan-time". */
static void advisor_read(const struct fsio *fs, char *out, size_t cap)
{
	char text[64], *open, *close;

	out[0] = '\0';
	if (fsio_read(fs, text, sizeof(text), KSM_DIR "/advisor_mode") < 0)
		return;
	open = strchr(text, '[');
	close = open ? strchr(open, ']') : NULL;
	if (!close || (size_t)(close - open) > cap)
		return;
	*close = '\0';
	snprintf(out, cap, "%s", open + 1);
}

static int knobs_read(const struct fsio *fs, struct knobs *ret_knobs)
{
	struct knobs k = { 0 };
	int r;

	r = knob_read(fs, "run", &k.run);
	if (r == 0)
		r = knob_read(fs, "pages_to_scan", &k.pages_to_scan);
	if (r == 0)
		r = knob_read(fs, "sleep_millisecs", &k.sleep_ms);
	if (r < 0)
		return r;
	advisor_read(fs, k.advisor, sizeof(k.advisor));
	if (knob_read(fs, "smart_scan", &k.smart_scan) < 0)
		k.smart_scan = NO_KNOB;
	*ret_knobs = k;
	return 0;
}

/* ---- what was found, on disk ---- */

static int found_save(const struct ksm_kernel *k)
{
	char text[512];
	int n, r;

	n = snprintf(text, sizeof(text),
		     "run %" PRIu64 "\npages_to_scan %" PRIu64 "\nsleep_millisecs %" PRIu64 "\nadvisor_mode %s\n",
		     k->found.run, k->found.pages_to_scan, k->found.sleep_ms,
		     *k->found.advisor ? k->found.advisor : "-");
	if (k->found.smart_scan != NO_KNOB)
		n += snprintf(text + n, sizeof(text) - (size_t)n, "smart_scan %" PRIu64 "\n", k->found.smart_scan);
	if (k->written)
		snprintf(text + n, sizeof(text) - (size_t)n,
			 "wrote_run %" PRIu64 "\nwrote_pages_to_scan %" PRIu64 "\nwrote_sleep_millisecs %" PRIu64 "\n",
			 k->wrote.run, k->wrote.pages_to_scan, k->wrote.sleep_ms);
	r = fsio_replace(k->fs, text, "%s/" FOUND_FILE, k->state_dir);
	if (r < 0)
		log_error("cannot keep the KSM settings that were found in %s: %s", k->state_dir, strerror(-r));
	return r;
}

static bool advisor_known(const char *name)
{
	return strcmp(name, ADVISOR_OFF) == 0 || strcmp(name, "scan-time") == 0;
}

/* An earlier daemon that was killed left what it had found: it is still what has to be put back. */
static void found_load(struct ksm_kernel *k)
{
	struct knobs found = { 0 };
	const char *advisor;
	char text[256];
	ssize_t n = fsio_read(k->fs, text, sizeof(text), "%s/" FOUND_FILE, k->state_dir);

	if (n == -ENOENT)
		return;
	if (n < 0 || fsio_field_u64(text, "run", &found.run) < 0 ||
	    fsio_field_u64(text, "pages_to_scan", &found.pages_to_scan) < 0 ||
	    fsio_field_u64(text, "sleep_millisecs", &found.sleep_ms) < 0 || found.pages_to_scan > UINT32_MAX ||
	    found.sleep_ms > UINT32_MAX) {
		log_warning("%s/" FOUND_FILE " is not readable: the KSM settings from before are unknown, ignoring",
			    k->state_dir);
		return;
	}
	if (fsio_field_u64(text, "smart_scan", &found.smart_scan) < 0 || found.smart_scan > 1)
		found.smart_scan = NO_KNOB;
	advisor = strstr(text, "advisor_mode ");
	if (advisor && sscanf(advisor, "advisor_mode %15s", found.advisor) == 1 && !advisor_known(found.advisor))
		found.advisor[0] = '\0';
	k->found = found;
	k->controlled = true;
	/* What it wrote last tells whether somebody else has been at the settings since. */
	k->written = fsio_field_u64(text, "wrote_run", &k->wrote.run) == 0 &&
		     fsio_field_u64(text, "wrote_pages_to_scan", &k->wrote.pages_to_scan) == 0 &&
		     fsio_field_u64(text, "wrote_sleep_millisecs", &k->wrote.sleep_ms) == 0;
	log_info("ksm: an earlier daemon did not end cleanly; will restore run=%" PRIu64 " pages_to_scan=%" PRIu64
		 " sleep_millisecs=%" PRIu64 " at the end",
		 found.run, found.pages_to_scan, found.sleep_ms);
}

/* ---- the scanner's CPU time ---- */

static pid_t scanner_find(const struct fsio *fs)
{
	auto_closedir DIR *proc = fsio_opendir(fs, "/proc");
	struct dirent *entry;

	while (proc && (entry = readdir(proc))) {
		char comm[32];
		int pid = atoi(entry->d_name);

		/* A kernel thread has no executable, so no program can pose as it. */
		if (pid <= 0 || fsio_read(fs, comm, sizeof(comm), "/proc/%d/comm", pid) < 0 ||
		    strcmp(comm, "ksmd\n") != 0)
			continue;
		if (fsio_read(fs, comm, sizeof(comm), "/proc/%d/cmdline", pid) == 0)
			return pid;
	}
	return 0;
}

static uint64_t scanner_cpu_ns(const struct ksm_kernel *k)
{
	char text[512];
	uint64_t user, system;
	const char *p;

	if (k->scanner == 0)
		return 0;
	/* schedstat counts nanoseconds; stat, in clock ticks, is always there. */
	if (fsio_read(k->fs, text, sizeof(text), "/proc/%d/schedstat", (int)k->scanner) > 0 &&
	    sscanf(text, "%" SCNu64, &user) == 1)
		return user;
	if (fsio_read(k->fs, text, sizeof(text), "/proc/%d/stat", (int)k->scanner) < 0)
		return 0;
	p = strrchr(text, ')');
	if (!p || sscanf(p + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %" SCNu64 " %" SCNu64, &user, &system) != 2)
		return 0;
	return (user + system) * (uint64_t)k->tick_ns;
}

/* ---- life ---- */

int ksm_kernel_new(const struct fsio *fs, const char *state_dir, struct ksm_kernel **ret_ksm)
{
	struct ksm_kernel *k;
	uint64_t run;
	int r;

	r = knob_read(fs, "run", &run);
	if (r == -ENOENT)
		return -EOPNOTSUPP;
	if (r < 0)
		return r;
	k = calloc(1, sizeof(*k));
	if (!k)
		return -ENOMEM;
	k->fs = fs;
	k->state_dir = strdup(state_dir);
	if (!k->state_dir) {
		free(k);
		return -ENOMEM;
	}
	k->scanner = scanner_find(fs);
	k->tick_ns = 1000000000L / sysconf(_SC_CLK_TCK);
	found_load(k);
	*ret_ksm = k;
	return 0;
}

struct ksm_kernel *ksm_kernel_free(struct ksm_kernel *k)
{
	if (!k)
		return NULL;
	free(k->state_dir);
	free(k);
	return NULL;
}

/* ---- reading ---- */

/* Since Linux 5.19. The file is long, and only of interest while there is something to copy. */
static uint64_t cow_pages(const struct ksm_kernel *k)
{
	uint64_t pages = 0;
	char text[16384];

	if (fsio_read(k->fs, text, sizeof(text), "/proc/vmstat") < 0 || fsio_field_u64(text, "cow_ksm", &pages) < 0)
		return 0;
	return pages;
}

int ksm_kernel_read(struct ksm_kernel *k, struct ksm_snapshot *ret_snapshot)
{
	struct ksm_snapshot s = { .present = true };
	const struct {
		const char *name;
		uint64_t *value;
		bool optional; /* newer than KSM itself */
	} files[] = {
		{ "run", &s.run, false },
		{ "pages_to_scan", &s.pages_to_scan, false },
		{ "sleep_millisecs", &s.sleep_ms, false },
		{ "pages_shared", &s.pages_shared, false },
		{ "pages_sharing", &s.pages_sharing, false },
		{ "full_scans", &s.full_scans, false },
		{ "ksm_zero_pages", &s.zero_pages, true },
		{ "pages_scanned", &s.pages_scanned, true },
	};

	for (size_t i = 0; i < ARRAY_SIZE(files); i++) {
		int r = knob_read(k->fs, files[i].name, files[i].value);

		if (r < 0 && !files[i].optional)
			return r;
	}
	s.cpu_ns = scanner_cpu_ns(k);
	if (s.pages_sharing + s.zero_pages > 0)
		s.cow_pages = cow_pages(k);
	*ret_snapshot = s;
	return 0;
}

bool ksm_kernel_tells_merging(const struct ksm_kernel *k)
{
	return k->tells_merging;
}

int ksm_kernel_read_vm(struct ksm_kernel *k, pid_t pid, enum ksm_marked *ret_marked, uint64_t *ret_merging_pages)
{
	enum ksm_marked marked = KSM_MARKED_UNKNOWN;
	uint64_t merging = 0;
	char text[512];
	ssize_t n;

	n = fsio_read(k->fs, text, sizeof(text), "/proc/%d/ksm_stat", (int)pid);
	if (n < 0 && n != -ENOENT)
		return (int)n;
	if (n < 0)
		text[0] = '\0'; /* before Linux 6.1, or the process is gone */
	if (strstr(text, "ksm_mergeable: yes") || strstr(text, "ksm_merge_any: yes"))
		marked = KSM_MARKED_YES;
	else if (strstr(text, "ksm_mergeable: no"))
		marked = KSM_MARKED_NO;
	if (fsio_field_u64(text, "ksm_merging_pages", &merging) < 0) {
		int r = fsio_read_u64(k->fs, &merging, "/proc/%d/ksm_merging_pages", (int)pid);

		if (r == -ENOENT && n < 0)
			return -ESRCH;
		if (r < 0) {
			*ret_marked = marked;
			*ret_merging_pages = 0;
			return 0;
		}
	}
	k->tells_merging = true;
	*ret_marked = marked;
	*ret_merging_pages = merging;
	return 0;
}

/* ---- writing ---- */

/* What would work against us: the advisor overwrites pages_to_scan. smart_scan passes over pages that were looked
 * at in vain before; we start the scanner because there is something to find, so that only delays it (measured:
 * 4 % more merged with a quarter less CPU time). */
static void helpers_off(struct ksm_kernel *k)
{
	struct knobs now;

	if (k->helpers_off || knobs_read(k->fs, &now) < 0)
		return;
	k->helpers_off = true;
	if (strcmp(now.advisor, "scan-time") == 0) {
		int r = fsio_write(k->fs, ADVISOR_OFF, KSM_DIR "/advisor_mode");

		if (r < 0)
			log_warning("cannot switch the KSM advisor off, ignoring: %s", strerror(-r));
	}
	if (now.smart_scan == 1 && knob_write(k->fs, "smart_scan", 0) < 0)
		log_warning("smart_scan stays on, ignoring");
}

/* Takes control: remembers what was found, on disk before anything is changed. */
static int control_take(struct ksm_kernel *k)
{
	int r;

	if (!k->controlled) {
		r = knobs_read(k->fs, &k->found);
		if (r == 0)
			r = found_save(k);
		if (r < 0)
			return r;
		k->controlled = true;
	}
	helpers_off(k);
	if (!k->written)
		r = knobs_read(k->fs, &k->wrote);
	else
		r = 0;
	k->written = r == 0 && !k->fs->dry_run;
	return r;
}

/* Writes one setting and notes it, so that a failure in the middle does not look like somebody else's change. */
static int knob_set(struct ksm_kernel *k, const char *name, uint64_t value, uint64_t *wrote)
{
	int r = knob_write(k->fs, name, value);

	if (r == 0)
		*wrote = value;
	return r;
}

int ksm_kernel_set(struct ksm_kernel *k, bool run, uint64_t pages_to_scan, uint64_t sleep_ms)
{
	int r = control_take(k);

	if (r < 0)
		return r;
	/* Stopping comes first and starting last, so the scanner never runs at a rate nobody chose. The file names
	 * a start before it happens and a stop afterwards: a daemon killed in between leaves either its own start,
	 * which the next one stops, or a stopped scanner. */
	if (!run)
		r = knob_set(k, "run", 0, &k->wrote.run);
	if (r == 0 && run) {
		struct knobs was = k->wrote;

		k->wrote.run = 1;
		k->wrote.pages_to_scan = pages_to_scan;
		k->wrote.sleep_ms = sleep_ms;
		r = found_save(k);
		k->wrote = was;
	}
	if (r == 0)
		r = knob_set(k, "pages_to_scan", pages_to_scan, &k->wrote.pages_to_scan);
	if (r == 0)
		r = knob_set(k, "sleep_millisecs", sleep_ms, &k->wrote.sleep_ms);
	if (r == 0 && run)
		r = knob_set(k, "run", 1, &k->wrote.run);
	if (r == 0 && !run)
		r = found_save(k);
	return r;
}

bool ksm_kernel_was_changed(const struct ksm_kernel *k, const struct ksm_snapshot *s)
{
	if (!k->written)
		return false;
	return s->run != k->wrote.run || s->pages_to_scan != k->wrote.pages_to_scan ||
	       s->sleep_ms != k->wrote.sleep_ms;
}

bool ksm_kernel_is_controlled(const struct ksm_kernel *k)
{
	return k->controlled;
}

static void control_drop(struct ksm_kernel *k)
{
	k->controlled = k->written = k->helpers_off = false;
	fsio_unlink(k->fs, "%s/" FOUND_FILE, k->state_dir);
}

void ksm_kernel_yield(struct ksm_kernel *k)
{
	struct knobs now;

	/* What somebody else set stays; what is still as we wrote it goes back, above all a scanner that runs only
	 * because we started it, and that nobody would watch any more. */
	if (k->controlled && k->written && knobs_read(k->fs, &now) == 0) {
		if (now.run == k->wrote.run && now.run != k->found.run)
			knob_write(k->fs, "run", k->found.run == 1);
		if (now.pages_to_scan == k->wrote.pages_to_scan && now.pages_to_scan != k->found.pages_to_scan)
			knob_write(k->fs, "pages_to_scan", k->found.pages_to_scan);
		if (now.sleep_ms == k->wrote.sleep_ms && now.sleep_ms != k->found.sleep_ms)
			knob_write(k->fs, "sleep_millisecs", k->found.sleep_ms);
		if (now.smart_scan == 0 && k->found.smart_scan == 1)
			knob_write(k->fs, "smart_scan", 1);
		if (strcmp(now.advisor, ADVISOR_OFF) == 0 && strcmp(k->found.advisor, "scan-time") == 0)
			fsio_write(k->fs, k->found.advisor, KSM_DIR "/advisor_mode");
	}
	control_drop(k);
}

int ksm_kernel_restore(struct ksm_kernel *k)
{
	struct ksm_snapshot now;
	uint64_t run = k->found.run;
	int r;

	if (!k->controlled)
		return 0;
	if (ksm_kernel_read(k, &now) == 0 && ksm_kernel_was_changed(k, &now)) {
		log_info("ksm: settings were changed by somebody else, leaving them");
		ksm_kernel_yield(k);
		return 0;
	}
	if (run > 1) {
		log_warning("ksm: run was %" PRIu64 " (unmerge) when found; restoring 0", run);
		run = 0;
	}
	r = ksm_kernel_set(k, run == 1, k->found.pages_to_scan, k->found.sleep_ms);
	if (r == 0 && *k->found.advisor)
		r = fsio_write(k->fs, k->found.advisor, KSM_DIR "/advisor_mode");
	if (r == 0 && k->found.smart_scan != NO_KNOB)
		r = knob_write(k->fs, "smart_scan", k->found.smart_scan);
	if (r < 0)
		return r;
	log_info("ksm: %s run=%" PRIu64 " pages_to_scan=%" PRIu64 " sleep_millisecs=%" PRIu64,
		 k->fs->dry_run ? "would restore" : "restored", run, k->found.pages_to_scan, k->found.sleep_ms);
	control_drop(k);
	return 0;
}
