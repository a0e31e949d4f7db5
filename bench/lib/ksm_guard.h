/* bench/lib/ksm_guard.h - the machine's KSM for one bench alone, put back as it was found however the bench ends.
 *
 * A guard process takes the advisory lock /tmp/memvirt-ksm.lock, notes the settings, runs the bench in a
 * child and restores them when the child is gone: after a normal end, a signal, or a crash. Only the kill of
 * the guard itself leaves them changed. run = 2 is never written: a found 2 (everything unmerged, scanner
 * stopped) is restored as 0, which leaves the scanner stopped as well. */
#ifndef BENCH_KSM_GUARD_H
#define BENCH_KSM_GUARD_H

#include <stdbool.h>
#include <stdint.h>

#include "core/fsio.h"

#define KSM_LOCK_PATH "/tmp/memvirt-ksm.lock"

/* Settings the bench changes. */
struct ksm_settings {
	uint64_t run, pages_to_scan, sleep_ms;
	bool advisor; /* the kernel chooses pages_to_scan itself ("scan-time") */
};

/* 0; -EOPNOTSUPP without KSM; -EACCES when not root; -errno. */
int ksm_settings_read(const struct fsio *fs, struct ksm_settings *ret_settings);
/* Advisor off first, on last: while it is on the kernel refuses pages_to_scan. 0 or -errno. */
int ksm_settings_write(const struct fsio *fs, const struct ksm_settings *s);
/* Sets the scanner going, or stops it. 0 or -errno. */
int ksm_run(const struct fsio *fs, bool run);

/* Lets the scanner forget processes that have ended, whose pages it counts until it next runs: until
 * pages_shared + pages_sharing go down no more. Leaves it stopped. */
void ksm_drain(const struct fsio *fs);

/* Runs work(userdata) in a child, guarded. Gives its exit status, or 128 + signal, or -errno when it could
 * not be started. dir: a name as for mkdtemp(), of a directory that is made for the child and removed with
 * the files in it. */
int ksm_guard_run(const struct fsio *fs, bool uses_ksm, char *dir, int (*work)(void *userdata),
		  void *userdata);

#endif
