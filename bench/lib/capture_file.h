/* bench/lib/capture_file.h - a guest's RAM as a file: NAME.raw (sparse, as long as the RAM) and NAME.json,
 * which says which pages were there. Pages that were absent, swapped or the shared zero page are not part
 * of "present"; pages that were present but full of zeroes are, although they are holes in NAME.raw. */
#ifndef BENCH_CAPTURE_FILE_H
#define BENCH_CAPTURE_FILE_H

#include <stddef.h>
#include <stdint.h>

#include "bench/lib/page_runs.h"

#define CAPTURE_NAME_MAX 64
#define CAPTURES_MAX 64

struct capture_info {
	char name[CAPTURE_NAME_MAX];
	uint64_t bytes;		  /* of the RAM, holes included */
	struct page_runs present; /* pages with a frame of their own */
	struct page_runs huge;	  /* of these: mapped by 2 MiB entries */
	uint64_t zero_mapped_pages, swapped_pages;
};

/* Writes DIR/NAME.json whole or not at all. 0 or -errno. */
int capture_info_save(const struct capture_info *info, const char *dir);
/* json_path ends in ".json". 0, -EBADMSG (not a capture, or numbers that contradict) or -errno.
 * *ret_info is written only on 0 and ended with capture_info_free(). */
int capture_info_load(const char *json_path, struct capture_info *ret_info);
void capture_info_free(struct capture_info *info);

/* Opens the NAME.raw beside json_path and checks its length. A descriptor or -errno. */
int capture_open_raw(const char *json_path, const struct capture_info *info, int flags);

/* The *.json of dir in name order. The caller frees each path. Returns how many, at most
 * CAPTURES_MAX, or -errno. */
int capture_list(const char *dir, char *ret_paths[CAPTURES_MAX]);

#endif
