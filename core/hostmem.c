#include "core/hostmem.h"

#include <errno.h>
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "core/cleanup.h"

#define MIB (UINT64_C(1) << 20)

int meminfo_parse(const char *text, struct host_snapshot *s)
{
	static const char *const keys[] = { "MemTotal", "MemAvailable", "SwapTotal", "SwapFree" };
	uint64_t *const fields[] = { &s->mem_total_bytes, &s->mem_available_bytes, &s->swap_total_bytes,
				     &s->swap_free_bytes };
	uint64_t kib[ARRAY_SIZE(keys)];

	for (size_t i = 0; i < ARRAY_SIZE(keys); i++) {
		int r = fsio_field_u64(text, keys[i], &kib[i]);

		if (r < 0)
			return r;
		if (kib[i] > UINT64_MAX / 1024)
			return -EBADMSG;
	}
	for (size_t i = 0; i < ARRAY_SIZE(keys); i++)
		*fields[i] = kib[i] * 1024;
	return 0;
}

int hostmem_read(const struct fsio *fs, struct host_snapshot *s)
{
	char text[8192];
	ssize_t n = fsio_read(fs, text, sizeof(text), "/proc/meminfo");
	int r;

	if (n < 0)
		return (int)n;
	r = meminfo_parse(text, s);
	if (r < 0)
		return r;
	s->pressure = (struct pressure){ 0 };
	if (fsio_read(fs, text, sizeof(text), "/proc/pressure/memory") >= 0)
		(void)pressure_parse(text, &s->pressure); /* unknown stays unknown */
	return 0;
}

static uint64_t least(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static uint64_t root_of(uint64_t n)
{
	uint64_t root = 0;

	for (uint64_t bit = UINT64_C(1) << 31; bit; bit >>= 1)
		if ((root + bit) * (root + bit) <= n)
			root += bit;
	return root;
}

/* The low watermark of a machine of this size, as mm/page_alloc.c makes it: min_free_kbytes is the root of 16 times the KiB
 * (128 KiB to 256 MiB), and low above it by a quarter, or a thousandth of memory if that is more. */
static uint64_t low_watermark(uint64_t total_bytes)
{
	uint64_t min = least(root_of(total_bytes / 1024 * 16) * 1024, 256 * MIB);
	uint64_t gap = total_bytes / 1000;

	if (min < 128 * 1024)
		min = 128 * 1024;
	return min + (gap > min / 4 ? gap : min / 4);
}

/* A cgroup has no MemAvailable; this is the kernel's formula for it (si_mem_available()). Of the page cache a part is in
 * use, and dropping it would only bring it back from disk: half of it, or what a machine of that size would be left with
 * when the kernel begins to reclaim, if that is less. */
static uint64_t available(const struct cgroup_memory *m)
{
	uint64_t file = least(m->file_bytes, m->usage_bytes), room;

	file -= least(file / 2, low_watermark(m->limit_bytes));
	room = m->limit_bytes > m->usage_bytes ? m->limit_bytes - m->usage_bytes : 0;
	return room + file;
}

void hostmem_narrow(struct host_snapshot *s, const struct cgroup_memory *m)
{
	uint64_t swap_left = m->swap_limit_bytes > m->swap_usage_bytes ? m->swap_limit_bytes - m->swap_usage_bytes : 0;

	/* What is not limited, or to more than there is, has all of the host's. */
	if (m->limit_bytes < s->mem_total_bytes) {
		s->mem_total_bytes = m->limit_bytes;
		s->mem_available_bytes = least(s->mem_available_bytes, available(m));
	}
	s->swap_total_bytes = least(s->swap_total_bytes, m->swap_limit_bytes);
	s->swap_free_bytes = least(s->swap_free_bytes, swap_left);
	s->pressure = m->pressure;
}

/* Lines begin with "Node N ". */
static int node_field(const char *text, int node, const char *key, uint64_t *ret_bytes)
{
	char name[64];
	const char *line;

	snprintf(name, sizeof(name), "Node %d %s:", node, key);
	line = strstr(text, name);
	if (!line || sscanf(line + strlen(name), " %" SCNu64 " kB", ret_bytes) != 1)
		return -EBADMSG;
	*ret_bytes *= 1024;
	return 0;
}

int hostmem_node_free(const struct fsio *fs, int node, uint64_t *ret_bytes)
{
	static const char *const keys[] = { "MemFree", "Active(file)", "Inactive(file)" };
	uint64_t bytes[3] = { 0 };
	char text[8192];
	ssize_t n = fsio_read(fs, text, sizeof(text), "/sys/devices/system/node/node%d/meminfo", node);

	if (n < 0)
		return (int)n;
	for (size_t i = 0; i < 3; i++) {
		int r = node_field(text, node, keys[i], &bytes[i]);

		if (r < 0)
			return r;
	}
	*ret_bytes = bytes[0] + (bytes[1] + bytes[2]) / 2;
	return 0;
}
