#include "bench/lib/ksm_guard.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "bench/lib/progress.h"
#include "core/cleanup.h"
#include "core/clock.h"

#define KSM "sys/kernel/mm/ksm/"
#define DRAIN_STEP_NS (50 * NSEC_PER_MSEC)
#define DRAIN_STILL_STEPS 8 /* 0.4 s without anything forgotten: there is no more */
#define DRAIN_STEPS_MAX 100 /* 5 s */
#define DRAIN_PAGES_TO_SCAN 10000u

/* ---- settings ---- */

int ksm_settings_read(const struct fsio *fs, struct ksm_settings *ret_settings)
{
	struct ksm_settings s = { 0 };
	char advisor[64];
	int r = fsio_read_u64(fs, &s.run, KSM "run");

	if (r < 0)
		return r == -ENOENT ? -EOPNOTSUPP : r;
	if (geteuid() != 0)
		return -EACCES;
	r = fsio_read_u64(fs, &s.pages_to_scan, KSM "pages_to_scan");
	if (r == 0)
		r = fsio_read_u64(fs, &s.sleep_ms, KSM "sleep_millisecs");
	if (r < 0)
		return r;
	if (fsio_read(fs, advisor, sizeof(advisor), KSM "advisor_mode") > 0)
		s.advisor = strstr(advisor, "[scan-time]") != NULL;
	*ret_settings = s;
	return 0;
}

static int write_number(const struct fsio *fs, const char *name, uint64_t value)
{
	char text[32];

	snprintf(text, sizeof(text), "%" PRIu64, value);
	return fsio_write(fs, text, KSM "%s", name);
}

static int write_advisor(const struct fsio *fs, bool on)
{
	int r = fsio_write(fs, on ? "scan-time" : "none", KSM "advisor_mode");

	return r == -ENOENT ? 0 : r; /* Linux < 6.8 has none */
}

int ksm_settings_write(const struct fsio *fs, const struct ksm_settings *s)
{
	int r = write_advisor(fs, false), next;

	next = write_number(fs, "pages_to_scan", s->pages_to_scan);
	r = r < 0 ? r : next;
	next = write_number(fs, "sleep_millisecs", s->sleep_ms);
	r = r < 0 ? r : next;
	next = s->advisor ? write_advisor(fs, true) : 0;
	r = r < 0 ? r : next;
	next = ksm_run(fs, s->run == 1);
	return r < 0 ? r : next;
}

int ksm_run(const struct fsio *fs, bool run)
{
	return write_number(fs, "run", run ? 1 : 0);
}

static uint64_t merged_pages(const struct fsio *fs)
{
	uint64_t shared = 0, sharing = 0;

	if (fsio_read_u64(fs, &shared, KSM "pages_shared") < 0 || fsio_read_u64(fs, &sharing, KSM "pages_sharing") < 0)
		return 0;
	return shared + sharing;
}

void ksm_drain(const struct fsio *fs)
{
	const struct ksm_settings fast = { .run = 1, .pages_to_scan = DRAIN_PAGES_TO_SCAN };
	const struct timespec step = { .tv_nsec = DRAIN_STEP_NS };
	uint64_t last = merged_pages(fs);
	int still = 0;

	if (last > 0 && ksm_settings_write(fs, &fast) == 0) {
		for (int i = 0; i < DRAIN_STEPS_MAX && still < DRAIN_STILL_STEPS && last > 0; i++) {
			uint64_t now;

			nanosleep(&step, NULL);
			now = merged_pages(fs);
			still = now < last ? 0 : still + 1;
			last = now;
		}
	}
	ksm_run(fs, false);
}

/* ---- guard ---- */

/* The file may be another user's: opening it with O_CREAT is then refused in a sticky directory. */
static int take_lock(void)
{
	int fd = open(KSM_LOCK_PATH, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);

	if (fd < 0 && errno == ENOENT)
		fd = open(KSM_LOCK_PATH, O_RDONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644);
	if (fd < 0)
		return -errno;
	if (flock(fd, LOCK_EX | LOCK_NB) < 0) {
		progress("waiting for %s: somebody else uses KSM", KSM_LOCK_PATH);
		if (flock(fd, LOCK_EX) < 0) {
			int r = -errno;

			close(fd);
			return r;
		}
	}
	return fd;
}

static void remove_dir(const char *dir)
{
	auto_closedir DIR *d = opendir(dir);
	const struct dirent *entry;

	while (d && (entry = readdir(d)))
		unlinkat(dirfd(d), entry->d_name, 0); /* "." and ".." are refused */
	rmdir(dir);
}

/* Waits for the child; passes on what should end the bench. */
static int wait_child(pid_t child, const sigset_t *signals)
{
	int status = 0;

	for (;;) {
		siginfo_t info;

		if (waitpid(child, &status, WNOHANG) == child)
			break;
		if (sigwaitinfo(signals, &info) > 0 && info.si_signo != SIGCHLD)
			kill(child, SIGTERM);
	}
	return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

static int run_child(const sigset_t *signals, const sigset_t *before, int (*work)(void *userdata), void *userdata)
{
	pid_t parent = getpid(), child;
	int result;

	fflush(NULL);
	child = fork();
	if (child == 0) {
		sigprocmask(SIG_SETMASK, before, NULL);
		if (prctl(PR_SET_PDEATHSIG, SIGTERM) < 0 || getppid() != parent)
			_exit(1);
		result = work(userdata);
		fflush(NULL);
		_exit(result);
	}
	return child < 0 ? -errno : wait_child(child, signals);
}

static void restore(const struct fsio *fs, const struct ksm_settings *found)
{
	int r;

	ksm_drain(fs);
	r = ksm_settings_write(fs, found);
	if (r < 0)
		fprintf(stderr, "KSM settings could not be restored: %s\n", strerror(-r));
}

int ksm_guard_run(const struct fsio *fs, bool uses_ksm, char *dir, int (*work)(void *userdata),
		  void *userdata)
{
	struct ksm_settings found = { 0 };
	auto_close int lock = -1;
	sigset_t signals, before;
	int r;

	uses_ksm = uses_ksm && ksm_settings_read(fs, &found) == 0;
	if (uses_ksm) {
		lock = take_lock();
		if (lock < 0)
			fprintf(stderr, "%s cannot be locked, ignoring: %s\n", KSM_LOCK_PATH, strerror(-lock));
	}
	sigemptyset(&signals);
	sigaddset(&signals, SIGINT);
	sigaddset(&signals, SIGTERM);
	sigaddset(&signals, SIGHUP);
	sigaddset(&signals, SIGCHLD);
	sigprocmask(SIG_BLOCK, &signals, &before); /* until all is as it was */
	if (uses_ksm)
		ksm_settings_read(fs, &found); /* again: the lock may have taken long */
	r = mkdtemp(dir) ? run_child(&signals, &before, work, userdata) : -errno;
	if (uses_ksm)
		restore(fs, &found);
	remove_dir(dir);
	sigprocmask(SIG_SETMASK, &before, NULL);
	return r;
}
