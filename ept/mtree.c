#include "ept/mtree.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/snapshot.h"

/* A view is a block of lines: "FlatView #N", its address spaces (" AS "memory", root: system"), then its
 * ranges ("  START-END (prio N, KIND): NAME[ @OFFSET]"), ended by an empty line. Views with the same content
 * are printed once, under all their address spaces. */
#define VIEW_START "FlatView #"
#define NO_RANGES "  No rendered FlatView" /* a machine without memory */
#define MEMORY_SPACE " AS \"memory\","

/* The end of the line at text, without its line break; *ret_next is the start of the next one. */
static const char *line_end(const char *text, const char **ret_next)
{
	const char *end = text + strcspn(text, "\n");

	*ret_next = *end ? end + 1 : end;
	while (end > text && end[-1] == '\r')
		end--;
	return end;
}

/* The text behind the header line of the view that holds the address space "memory"; NULL if none does. */
static const char *find_memory_view(const char *text)
{
	bool in_header = false;

	while (*text) {
		const char *next;

		line_end(text, &next);
		if (strncmp(text, VIEW_START, strlen(VIEW_START)) == 0)
			in_header = true;
		else if (in_header && strncmp(text, MEMORY_SPACE, strlen(MEMORY_SPACE)) == 0)
			return next;
		else if (strncmp(text, " AS ", 4) != 0)
			in_header = false;
		text = next;
	}
	return NULL;
}

static bool parse_hex(const char **p, uint64_t *value)
{
	char *end;

	if (!strchr("0123456789abcdefABCDEF", **p) || **p == '\0')
		return false;
	errno = 0;
	*value = strtoull(*p, &end, 16);
	*p = end;
	return errno == 0;
}

/* The name without what follows it: "NAME[ @OFFSET][ KVM]", the last for memory that the accelerator maps. */
static void copy_block_name(char *out, const char *name, const char *end)
{
	const char *offset;
	size_t len;

	if (end - name > 4 && memcmp(end - 4, " KVM", 4) == 0)
		end -= 4;
	offset = memmem(name, (size_t)(end - name), " @", 2);
	len = (size_t)((offset ? offset : end) - name);
	if (len >= MTREE_BLOCK_NAME_MAX)
		len = MTREE_BLOCK_NAME_MAX - 1;
	memcpy(out, name, len);
	out[len] = '\0';
}

/* 1: a range of RAM; 0: another kind; -EBADMSG: not a range at all. */
static int parse_range(const char *line, const char *end, struct mtree_range *range)
{
	const char *p = line + strspn(line, " "), *kind, *name;
	uint64_t first, last;

	if (!parse_hex(&p, &first) || *p++ != '-' || !parse_hex(&p, &last) || last < first)
		return -EBADMSG;
	kind = memmem(p, (size_t)(end - p), ", ", 2);
	name = kind ? memmem(kind, (size_t)(end - kind), "): ", 3) : NULL;
	if (!name)
		return -EBADMSG;
	if (name - (kind + 2) != 3 || strncmp(kind + 2, "ram", 3) != 0)
		return 0;
	/* Whole pages only: a range may begin or end within one next to device memory. Nothing can begin behind
	 * the last page, and rounding up from there would wrap. */
	if (first > ~(uint64_t)(PAGE_BYTES - 1))
		return 0;
	first = (first + PAGE_BYTES - 1) & ~(uint64_t)(PAGE_BYTES - 1);
	last = (last + 1) & ~(uint64_t)(PAGE_BYTES - 1);
	if (last <= first)
		return 0;
	range->gpa = first;
	range->bytes = last - first;
	copy_block_name(range->block, name + 3, end);
	return 1;
}

int mtree_parse(const char *text, struct mtree_range *ranges, size_t cap)
{
	const char *line = find_memory_view(text), *next;
	size_t count = 0;

	if (!line)
		return -ENOENT;
	for (; *line; line = next) {
		const char *end = line_end(line, &next);
		struct mtree_range range;
		int r;

		if (end == line)
			break;
		if (strncmp(line, " AS ", 4) == 0 || strncmp(line, " Root ", 6) == 0)
			continue;
		if (strncmp(line, NO_RANGES, strlen(NO_RANGES)) == 0)
			break;
		r = parse_range(line, end, &range);
		if (r < 0)
			return r;
		if (r == 0)
			continue;
		if (count == cap)
			return -E2BIG;
		if (count > 0 && range.gpa < ranges[count - 1].gpa + ranges[count - 1].bytes)
			return -EBADMSG;
		ranges[count++] = range;
	}
	return count ? (int)count : -ENOENT;
}

int mtree_parse_hva(const char *text, uint64_t *ret_hva)
{
	const char *p = strstr(text, ") is 0x");

	if (strncmp(text, "Host virtual address for ", 25) != 0 || !p)
		return -EBADMSG;
	p += strlen(") is 0x");
	return parse_hex(&p, ret_hva) ? 0 : -EBADMSG;
}
