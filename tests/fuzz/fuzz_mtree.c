/* Fuzzes QEMU's "info mtree -f" and, with the same bytes, its answer to "gpa2hva". */
#include <assert.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "core/snapshot.h"
#include "ept/mtree.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define CAP 8

static void check_ranges(const struct mtree_range *ranges, int count)
{
	for (int i = 0; i < count; i++) {
		const struct mtree_range *r = &ranges[i];

		assert(r->bytes >= PAGE_BYTES && r->bytes % PAGE_BYTES == 0 && r->gpa % PAGE_BYTES == 0);
		assert(r->gpa + r->bytes - 1 > r->gpa); /* does not wrap */
		assert(i == 0 || r->gpa >= ranges[i - 1].gpa + ranges[i - 1].bytes);
		assert(strnlen(r->block, sizeof(r->block)) < sizeof(r->block));
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const char head[] = "FlatView #0\n AS \"memory\", root: system\n Root memory region: system\n";
	const size_t head_len = sizeof(head) - 1;
	struct mtree_range ranges[CAP];
	char *text = malloc(head_len + size + 1);
	uint64_t hva;
	int n;

	if (!text)
		return 0;
	memcpy(text, head, head_len);
	if (size > 0)
		memcpy(text + head_len, data, size);
	text[head_len + size] = '\0';
	n = mtree_parse(text, ranges, CAP); /* the ranges without having to find the header first */
	assert(n < 0 || (n > 0 && n <= CAP));
	check_ranges(ranges, n);
	n = mtree_parse(text + head_len, ranges, CAP);
	check_ranges(ranges, n);
	mtree_parse_hva(text + head_len, &hva);
	free(text);
	return 0;
}
