#include "ksmd/frame_look.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/cleanup.h"
#include "core/snapshot.h"
#include "ept/maps.h"
#include "ept/pagestate.h"
#include "ksmd/store.h"

/* Of /proc/PID/maps at a time; the kernel gives a page per read(2), and no line is longer. */
#define TEXT_BYTES 65536

int frame_list_add(struct frame_list *f, uint32_t first, uint32_t n)
{
	struct frame_stretch *last = f->count > 0 ? &f->stretches[f->count - 1] : NULL, *bigger;

	if (last && last->first + last->n == first) {
		last->n += n;
		return 0;
	}
	if (f->count == f->cap) {
		size_t cap = f->cap ? f->cap * 2 : 64;

		bigger = reallocarray(f->stretches, cap, sizeof(*bigger));
		if (!bigger)
			return -ENOMEM;
		f->stretches = bigger;
		f->cap = cap;
	}
	f->stretches[f->count++] = (struct frame_stretch){ first, n };
	return 0;
}

/* Pages of a private mapping that are the process's own: copies, in memory or in swap. */
static uint64_t copies_count(int pagemap_fd, uint64_t at, uint64_t end)
{
	struct page_range ranges[64];
	uint64_t pages = 0;

	while (pagemap_fd >= 0 && at < end) {
		ssize_t n = pagestate_ranges(pagemap_fd, at, end, ranges, ARRAY_SIZE(ranges), &at);

		for (ssize_t i = 0; i < n; i++)
			if (!(ranges[i].flags & PAGE_FILE))
				pages += (ranges[i].end - ranges[i].start) / PAGE_BYTES;
		if (n < 0)
			break;
	}
	return pages;
}

static int range_keep(struct frame_look *l, const struct vma *v, uint64_t broken_pages)
{
	struct hva_range *bigger;

	if (l->range_count > 0 && l->ranges[l->range_count - 1].end == v->start) {
		l->ranges[l->range_count - 1].end = v->end;
		l->ranges[l->range_count - 1].broken_pages += broken_pages;
		return 0;
	}
	if (l->range_count == l->range_cap) {
		l->range_cap = l->range_cap ? l->range_cap * 2 : 256;
		bigger = reallocarray(l->ranges, l->range_cap, sizeof(*bigger));
		if (!bigger)
			return -ENOMEM;
		l->ranges = bigger;
	}
	l->ranges[l->range_count++] = (struct hva_range){ v->start, v->end, broken_pages };
	return 0;
}

static int look_at_line(struct frame_look *l, const char *line, size_t len)
{
	struct vma v;
	uint64_t first, n, broken = 0;
	int r = maps_parse_line(line, len, &v);

	l->figures.mappings++;
	if (r == 0 && v.inode == l->inode && !v.shared)
		broken = copies_count(l->pagemap_fd, v.start, v.end);
	if (r == 0 && v.store && l->keep_ranges)
		r = range_keep(l, &v, broken);
	if (r < 0 || v.inode != l->inode)
		return r;
	l->views |= v.shared; /* no guest depends on it */
	if (v.shared)
		return 0;
	first = v.offset / PAGE_BYTES;
	n = (v.end - v.start) / PAGE_BYTES;
	if (first >= l->frame_count)
		return 0;
	if (n > l->frame_count - first)
		n = l->frame_count - first;
	r = frame_list_add(&l->frames, (uint32_t)first, (uint32_t)n);
	l->figures.mapped_pages += n;
	l->figures.broken_pages += broken;
	return r;
}

/* A mapping that is there all the while is never left out: the kernel goes on behind the last address that it has
 * shown, whatever is split, joined or unmapped meanwhile. */
int frame_look_process(struct frame_look *l, pid_t pid)
{
	auto_close int fd = fsio_open(l->fs, O_RDONLY, "/proc/%d/maps", (int)pid);
	auto_free char *text = malloc(TEXT_BYTES);
	size_t have = 0;
	ssize_t n;

	if (fd < 0)
		return fd;
	if (!text)
		return -ENOMEM;
	while ((n = read(fd, text + have, TEXT_BYTES - have)) > 0) {
		char *line = text, *newline;

		have += (size_t)n;
		while ((newline = memchr(line, '\n', have - (size_t)(line - text)))) {
			int r = look_at_line(l, line, (size_t)(newline - line));

			if (r < 0)
				return r;
			line = newline + 1;
		}
		have -= (size_t)(line - text);
		memmove(text, line, have);
		if (have == TEXT_BYTES)
			return -EMSGSIZE;
	}
	return n < 0 ? -errno : 0;
}

int frame_look_threads(struct frame_look *l, pid_t pid)
{
	auto_closedir DIR *tasks = fsio_opendir(l->fs, "/proc/%d/task", (int)pid);
	struct dirent *entry;
	int r = 0;

	while (r == 0 && tasks && l->figures.mappings == 0 && (entry = readdir(tasks))) {
		pid_t tid = isdigit((unsigned char)entry->d_name[0]) ? (pid_t)strtol(entry->d_name, NULL, 10) : 0;

		if (tid > 0 && tid != pid)
			r = frame_look_process(l, tid);
	}
	return r;
}

int frame_look_ranges(const struct fsio *fs, pid_t pid, struct hva_range **ret_ranges, size_t *ret_count)
{
	struct frame_look l = { .fs = fs, .inode = UINT64_MAX, .pagemap_fd = -1, .keep_ranges = true };
	int r = frame_look_process(&l, pid);

	if (r < 0) {
		free(l.ranges);
		return r;
	}
	*ret_ranges = l.ranges;
	*ret_count = l.range_count;
	return 0;
}

int frame_look_find_store(const struct fsio *fs, pid_t pid, const char *name)
{
	auto_close int maps_fd = fsio_open(fs, O_RDONLY, "/proc/%d/maps", (int)pid);
	auto_fclose FILE *maps = maps_fd < 0 ? NULL : fdopen(maps_fd, "r");
	auto_free char *line = NULL, *want = NULL;
	char address[40];
	size_t cap = 0;

	if (!maps)
		return maps_fd < 0 ? maps_fd : -errno;
	take_fd(maps_fd); /* the stream's */
	if (asprintf(&want, "/memfd:" STORE_NAME_PREFIX "%s (deleted)\n", name) < 0) {
		want = NULL;
		return -ENOMEM;
	}
	while (getline(&line, &cap, maps) > 0) {
		const char *path = strchr(line, '/');

		if (path && strcmp(path, want) == 0 && sscanf(line, "%39[0-9a-f-]", address) == 1)
			return fsio_open(fs, O_RDONLY, "/proc/%d/map_files/%s", (int)pid, address);
	}
	return -ENOENT;
}
