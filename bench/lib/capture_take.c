#include "bench/lib/capture_take.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/cleanup.h"
#include "core/snapshot.h"
#include "ept/maps.h"
#include "ept/pagestate.h"
#include "vmm/cmdline.h"

#define CMDLINE_MAX_BYTES (1u << 20)
#define MAPS_MAX_BYTES (64u << 20)
#define COPY_PAGES 256u
#define RANGES_AT_ONCE 512u

/* A mapping of just this size, which other anonymous memory may adjoin; else a stretch of several that
 * have it together. */
static int find_mapping(const struct vma *vmas, size_t count, uint64_t bytes, uint64_t *ret_hva)
{
	const struct vma *found = NULL;

	for (size_t i = 0; i < count; i++) {
		const struct vma *v = &vmas[i];

		if (v->backing != MEM_ANON || !v->readable || !v->writable || v->end - v->start != bytes)
			continue;
		if (found)
			return -ENOTUNIQ;
		found = v;
	}
	if (!found)
		return maps_find_anon(vmas, count, bytes, ret_hva);
	*ret_hva = found->start;
	return 0;
}

int capture_find_ram(const struct fsio *fs, pid_t pid, uint64_t *ret_hva, uint64_t *ret_bytes)
{
	auto_free char *cmdline_text = NULL, *maps_text = NULL;
	auto_free struct vmm_cmdline *cmdline = calloc(1, sizeof(*cmdline));
	auto_free struct vma *vmas = NULL;
	size_t count;
	ssize_t len;
	int r;

	if (!cmdline)
		return -ENOMEM;
	len = fsio_read_alloc(fs, CMDLINE_MAX_BYTES, &cmdline_text, "proc/%d/cmdline", (int)pid);
	if (len < 0)
		return (int)len;
	if (!vmm_cmdline_parse(cmdline_text, (size_t)len, cmdline))
		return -ENOTSUP;
	len = fsio_read_alloc(fs, MAPS_MAX_BYTES, &maps_text, "proc/%d/maps", (int)pid);
	if (len < 0)
		return (int)len;
	r = maps_parse(maps_text, (size_t)len, &vmas, &count);
	if (r < 0)
		return r;
	r = find_mapping(vmas, count, cmdline->ram_bytes, ret_hva);
	if (r < 0)
		return r;
	*ret_bytes = cmdline->ram_bytes;
	return 0;
}

static bool page_is_zero(const char *page)
{
	return page[0] == 0 && memcmp(page, page + 1, PAGE_BYTES - 1) == 0;
}

static int write_all(int fd, const char *data, size_t len, uint64_t offset)
{
	while (len > 0) {
		ssize_t n = pwrite(fd, data, len, (off_t)offset);

		if (n < 0)
			return -errno;
		data += n;
		len -= (size_t)n;
		offset += (uint64_t)n;
	}
	return 0;
}

/* Pages full of zeroes stay holes of the file. */
static int write_pages(int fd, const char *data, uint64_t pages, uint64_t first_page)
{
	uint64_t i = 0, start;
	int r = 0;

	while (i < pages && r == 0) {
		if (page_is_zero(data + i * PAGE_BYTES)) {
			i++;
			continue;
		}
		for (start = i; i < pages && !page_is_zero(data + i * PAGE_BYTES); i++)
			;
		r = write_all(fd, data + start * PAGE_BYTES, (i - start) * PAGE_BYTES,
			      (first_page + start) * PAGE_BYTES);
	}
	return r;
}

/* Through /proc/PID/mem and not process_vm_readv(), which pins what it reads: the kernel gives a process a
 * page of its own before it lets a shared one be pinned, so reading would undo what KSM has merged. */
static int copy_run(int mem_fd, uint64_t hva, const struct page_run *run, char *buffer, int fd)
{
	uint64_t end = run->first + run->count;
	int r = 0;

	for (uint64_t page = run->first; page < end && r == 0;) {
		uint64_t pages = end - page < COPY_PAGES ? end - page : COPY_PAGES;
		ssize_t n = pread(mem_fd, buffer, pages * PAGE_BYTES, (off_t)(hva + page * PAGE_BYTES));

		if (n < PAGE_BYTES)
			return n < 0 ? -errno : -EIO;
		pages = (uint64_t)n / PAGE_BYTES;
		r = write_pages(fd, buffer, pages, page);
		page += pages;
	}
	return r;
}

static int note_range(struct capture_info *info, uint64_t hva, const struct page_range *range)
{
	uint64_t first = (range->start - hva) / PAGE_BYTES, count = (range->end - range->start) / PAGE_BYTES;
	int r;

	if (range->flags & PAGE_SWAPPED) {
		info->swapped_pages += count;
		return 0;
	}
	if (range->flags & PAGE_ZERO_MAPPED) {
		info->zero_mapped_pages += count;
		return 0;
	}
	if (!(range->flags & PAGE_PRESENT))
		return 0;
	r = page_runs_add(&info->present, first, count);
	if (r == 0 && (range->flags & PAGE_HUGE))
		r = page_runs_add(&info->huge, first, count);
	return r;
}

static int note_pages(const struct fsio *fs, pid_t pid, uint64_t hva, struct capture_info *info)
{
	auto_free struct page_range *ranges = calloc(RANGES_AT_ONCE, sizeof(*ranges));
	auto_close int pagemap = pagestate_open(fs, pid);
	uint64_t end = hva + info->bytes;
	int r = 0;

	if (!ranges)
		return -ENOMEM;
	if (pagemap < 0)
		return pagemap;
	for (uint64_t at = hva; at < end && r == 0;) {
		uint64_t next = at;
		ssize_t n = pagestate_ranges(pagemap, at, end, ranges, RANGES_AT_ONCE, &next);

		if (n < 0)
			return (int)n;
		for (ssize_t i = 0; i < n && r == 0; i++)
			r = note_range(info, hva, &ranges[i]);
		if (next <= at)
			return -EIO;
		at = next;
	}
	return r;
}

static int create_raw(const char *dir, const struct capture_info *info)
{
	char path[PATH_MAX];
	int fd;

	/* Without its description it is no capture: an interrupted run leaves none that looks whole. */
	if (snprintf(path, sizeof(path), "%s/%s.json", dir, info->name) >= (int)sizeof(path))
		return -ENAMETOOLONG;
	if (unlink(path) < 0 && errno != ENOENT)
		return -errno;
	snprintf(path, sizeof(path), "%s/%s.raw", dir, info->name);
	fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0)
		return -errno;
	if (ftruncate(fd, (off_t)info->bytes) < 0) {
		int r = -errno;

		close(fd);
		return r;
	}
	return fd;
}

int capture_take(const struct fsio *fs, pid_t pid, uint64_t hva, const char *dir, struct capture_info *info)
{
	auto_free char *buffer = malloc(COPY_PAGES * PAGE_BYTES);
	auto_close int mem_fd = fsio_open(fs, O_RDONLY, "proc/%d/mem", (int)pid);
	auto_close int fd = -1;
	int r;

	if (!buffer)
		return -ENOMEM;
	if (mem_fd < 0)
		return mem_fd;
	r = note_pages(fs, pid, hva, info);
	if (r < 0)
		return r;
	fd = create_raw(dir, info);
	if (fd < 0)
		return fd;
	for (size_t i = 0; i < info->present.count && r == 0; i++)
		r = copy_run(mem_fd, hva, &info->present.run[i], buffer, fd);
	return r < 0 ? r : capture_info_save(info, dir);
}

/* ---- synthetic ---- */

/* A 64-page pattern is repeated over the RAM; all members build theirs from the same recipe, so what they
 * have in common lies at the same place in each, as it does with guests of one image, in stretches of
 * 1, 3, 8 and 16 pages. Every fourth 2 MiB block is common as a whole. Shares: about 14 % zero, 2 % repeats
 * inside one member and half common, which is near what test guests hold. */
enum synth_kind { SYNTH_ZERO, SYNTH_COMMON, SYNTH_WITHIN, SYNTH_UNIQUE };

static enum synth_kind synth_kind(uint64_t page)
{
	uint64_t at = page % 64;

	if (page / HUGE_PAGES % 4 == 3)
		return SYNTH_COMMON;
	if (at < 12)
		return SYNTH_ZERO;
	if (at == 12 || (at >= 14 && at < 17) || (at >= 20 && at < 28) || (at >= 32 && at < 48))
		return SYNTH_COMMON;
	return at == 50 || at == 51 ? SYNTH_WITHIN : SYNTH_UNIQUE;
}

static void synth_fill(uint64_t *page, uint64_t content)
{
	uint64_t x = content;

	for (size_t i = 0; i < PAGE_BYTES / sizeof(*page); i++) {
		x += UINT64_C(0x9e3779b97f4a7c15); /* splitmix64 */
		page[i] = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
		page[i] ^= page[i] >> 27;
	}
}

static int synth_member(const char *dir, unsigned member, uint64_t pages)
{
	struct capture_info info = { .bytes = pages * PAGE_BYTES };
	uint64_t page_data[PAGE_BYTES / sizeof(uint64_t)];
	auto_close int fd = -1;
	int r;

	snprintf(info.name, sizeof(info.name), "synthetic%u", member);
	fd = create_raw(dir, &info);
	if (fd < 0)
		return fd;
	r = page_runs_add(&info.present, 0, pages);
	if (r == 0)
		r = page_runs_add(&info.huge, 0, pages / HUGE_PAGES * HUGE_PAGES);
	for (uint64_t page = 0; page < pages && r == 0; page++) {
		enum synth_kind kind = synth_kind(page);

		if (kind == SYNTH_ZERO)
			continue;
		/* Multiplied apart, so that no page's number stream continues another's. */
		synth_fill(page_data, kind == SYNTH_COMMON ? page << 32 :
				      kind == SYNTH_WITHIN ? ((page & ~UINT64_C(1)) << 32 | (member + 1) << 16) :
							     (page << 32 | (member + 1) << 8));
		r = write_all(fd, (const char *)page_data, PAGE_BYTES, page * PAGE_BYTES);
	}
	if (r == 0)
		r = capture_info_save(&info, dir);
	capture_info_free(&info);
	return r;
}

int capture_synthesize(const char *dir, unsigned count, uint64_t mib, struct synth_truth *ret_truth)
{
	uint64_t pages = mib * (1u << 20) / PAGE_BYTES;
	struct synth_truth truth = { .present = pages * count };

	for (unsigned member = 0; member < count; member++) {
		int r = synth_member(dir, member, pages);

		if (r < 0)
			return r;
	}
	for (uint64_t page = 0; page < pages; page++) {
		enum synth_kind kind = synth_kind(page);

		truth.zero += kind == SYNTH_ZERO ? count : 0;
		truth.between += kind == SYNTH_COMMON ? count - 1 : 0;
		truth.within += kind == SYNTH_WITHIN && page % 2 == 1 ? count : 0; /* pairs 50/51 */
	}
	*ret_truth = truth;
	return 0;
}
