/* bench/lib/capture_take.h - copies the RAM of a running process into a capture, or makes one up. */
#ifndef BENCH_CAPTURE_TAKE_H
#define BENCH_CAPTURE_TAKE_H

#include <stdint.h>
#include <sys/types.h>

#include "bench/lib/capture_file.h"
#include "core/fsio.h"

/* The guest RAM of a QEMU: its private anonymous mapping of the size on its command line. 0; -ENOTSUP (no
 * QEMU); -ENOENT or -ENOTUNIQ (no such mapping, or several); -errno. */
int capture_find_ram(const struct fsio *fs, pid_t pid, uint64_t *ret_hva, uint64_t *ret_bytes);

/* Fills DIR/NAME.raw and DIR/NAME.json from [hva, hva + bytes) of the process; info->name and info->bytes
 * are given, the rest is filled. Reads only what is present, so nothing is faulted in. 0 or -errno. */
int capture_take(const struct fsio *fs, pid_t pid, uint64_t hva, const char *dir, struct capture_info *info);

/* What synthetic captures hold, for checking an oracle. */
struct synth_truth {
	uint64_t present, zero, within, between; /* pages; the last three are what merging would save */
};

/* Writes count captures of this many MiB each into dir: zero pages, stretches that all have in common in
 * lengths from one page to whole 2 MiB blocks, repeats inside one, and the rest unique. The same every
 * time. 0 or -errno. */
int capture_synthesize(const char *dir, unsigned count, uint64_t mib, struct synth_truth *ret_truth);

#endif
