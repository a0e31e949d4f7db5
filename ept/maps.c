#include "ept/maps.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/cleanup.h"

/* Reads a hexadecimal number that must be followed by the character "then"; NULL when it is not there. */
static const char *parse_hex(const char *p, const char *end, char then, uint64_t *value)
{
	int digits = 0;

	*value = 0;
	for (; p < end && isxdigit((unsigned char)*p) && digits < 16; p++, digits++) {
		int c = tolower((unsigned char)*p);

		*value = *value << 4 | (uint64_t)(c <= '9' ? c - '0' : c - 'a' + 10);
	}
	if (digits == 0 || p == end || *p != then)
		return NULL;
	return p + 1;
}

static bool starts_with(const char *p, const char *end, const char *prefix)
{
	size_t len = strlen(prefix);

	return (size_t)(end - p) >= len && memcmp(p, prefix, len) == 0;
}

/* hugetlbfs mounts have no fixed place; QEMU's anonymous and memfd ones are told by these names, other
 * paths by the mount point every distribution uses. */
static enum mem_backing backing_of(const struct vma *vma, const char *path, const char *end)
{
	static const char *const memory_files[] = { "/memfd:", "/dev/shm/", "/dev/zero", "/SYSV" };

	if (vma->inode == 0)
		return vma->shared ? MEM_SHARED : MEM_ANON;
	if (starts_with(path, end, "/anon_hugepage") || starts_with(path, end, "/dev/hugepages") ||
	    starts_with(path, end, "/memfd:memory-backend-memfd-hugetlb"))
		return MEM_HUGETLB;
	if (vma->store)
		return MEM_ANON;
	for (size_t i = 0; vma->shared && i < sizeof(memory_files) / sizeof(memory_files[0]); i++)
		if (starts_with(path, end, memory_files[i]))
			return MEM_SHARED;
	return MEM_FILE;
}

int maps_parse_line(const char *line, size_t len, struct vma *ret_vma)
{
	const char *end = line + len, *p = line;
	struct vma vma = { 0 };
	uint64_t major, minor;

	p = parse_hex(p, end, '-', &vma.start);
	if (p)
		p = parse_hex(p, end, ' ', &vma.end);
	if (!p || vma.start >= vma.end || vma.start % PAGE_BYTES || vma.end % PAGE_BYTES)
		return -EBADMSG;
	if (end - p < 5 || (p[3] != 'p' && p[3] != 's') || p[4] != ' ')
		return -EBADMSG;
	vma.readable = p[0] == 'r';
	vma.writable = p[1] == 'w';
	vma.shared = p[3] == 's';
	p = parse_hex(p + 5, end, ' ', &vma.offset);
	if (p)
		p = parse_hex(p, end, ':', &major);
	if (p)
		p = parse_hex(p, end, ' ', &minor);
	if (!p || p == end || !isdigit((unsigned char)*p))
		return -EBADMSG;
	for (; p < end && isdigit((unsigned char)*p); p++)
		vma.inode = vma.inode * 10 + (uint64_t)(*p - '0');
	while (p < end && *p == ' ')
		p++;
	vma.store = vma.inode != 0 && !vma.shared && starts_with(p, end, "/memfd:memvirt-store:");
	vma.backing = backing_of(&vma, p, end);
	*ret_vma = vma;
	return 0;
}

/* The kernel lists a few mappings at a time. One that was joined with its neighbour in between is shown once more, from
 * a place that lies before the last; only what is behind that is news. */
static bool vma_cut(struct vma *v, uint64_t listed_end)
{
	if (v->end <= listed_end)
		return false;
	if (v->start < listed_end) {
		v->offset += v->inode ? listed_end - v->start : 0;
		v->start = listed_end;
	}
	return true;
}

int maps_parse(const char *text, size_t len, struct vma **ret_vmas, size_t *ret_count)
{
	auto_free struct vma *vmas = NULL;
	const char *end = text + len;
	size_t count = 0, cap = 0;

	for (const char *line = text; line < end;) {
		const char *newline = memchr(line, '\n', (size_t)(end - line));
		int r;

		if (!newline)
			return -EBADMSG;
		if (count == cap) {
			struct vma *bigger;

			cap = cap ? cap * 2 : 64;
			bigger = reallocarray(vmas, cap, sizeof(*vmas));
			if (!bigger)
				return -ENOMEM;
			vmas = bigger;
		}
		r = maps_parse_line(line, (size_t)(newline - line), &vmas[count]);
		if (r < 0)
			return r;
		if (count > 0 && !vma_cut(&vmas[count], vmas[count - 1].end))
			return -EBADMSG;
		count++;
		line = newline + 1;
	}
	*ret_vmas = take_ptr(vmas);
	*ret_count = count;
	return 0;
}

bool maps_cover(const struct vma *vmas, size_t count, uint64_t start, uint64_t bytes,
		enum mem_backing *ret_backing)
{
	uint64_t at = start, end = start + bytes;
	enum mem_backing backing = MEM_ANON;

	if (bytes == 0 || end < start)
		return false;
	for (size_t i = 0; i < count && at < end; i++) {
		const struct vma *v = &vmas[i];

		if (v->end <= at)
			continue;
		if (v->start > at || !v->readable || !v->writable)
			return false;
		if (at == start)
			backing = v->backing;
		else if (backing != v->backing)
			return false;
		at = v->end;
	}
	if (at < end)
		return false;
	*ret_backing = backing;
	return true;
}

static bool usable(const struct vma *v)
{
	return v->backing == MEM_ANON && v->readable && v->writable;
}

int maps_find_anon(const struct vma *vmas, size_t count, uint64_t bytes, uint64_t *ret_start)
{
	size_t best = 0, matches = 0, last = 0;
	uint64_t start = 0;

	/* A window [i, last] of adjacent mappings that only moves forward: one look at each, however many. */
	for (size_t i = 0; i < count; i++) {
		size_t length;

		if (!usable(&vmas[i]))
			continue;
		if (last < i)
			last = i;
		while (last + 1 < count && vmas[last].end - vmas[i].start < bytes && usable(&vmas[last + 1]) &&
		       vmas[last + 1].start == vmas[last].end)
			last++;
		length = last - i + 1;
		if (vmas[last].end - vmas[i].start != bytes || (best && length > best))
			continue;
		matches = length == best ? matches + 1 : 1;
		best = length;
		start = vmas[i].start;
	}
	if (matches == 0)
		return -ENOENT;
	if (matches > 1)
		return -ENOTUNIQ;
	*ret_start = start;
	return 0;
}
