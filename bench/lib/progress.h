/* bench/lib/progress.h - one line on standard error per step, with the time since the first one. */
#ifndef BENCH_PROGRESS_H
#define BENCH_PROGRESS_H

void progress(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

#endif
