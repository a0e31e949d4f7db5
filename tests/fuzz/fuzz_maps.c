/* Fuzzes /proc/PID/maps, and questions about what was read: with the text's own numbers and with odd ones. */
#include <assert.h>
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>

#include "ept/maps.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void ask(const struct vma *vmas, size_t count, uint64_t start, uint64_t bytes)
{
	enum mem_backing backing;
	uint64_t found;

	if (maps_cover(vmas, count, start, bytes, &backing))
		assert(count > 0 && start >= vmas[0].start && start + bytes <= vmas[count - 1].end);
	if (maps_find_anon(vmas, count, bytes, &found) == 0) {
		assert(maps_cover(vmas, count, found, bytes, &backing));
		assert(backing == MEM_ANON);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct vma *vmas = NULL;
	size_t count = 0;
	int r = maps_parse((const char *)data, size, &vmas, &count);

	if (r < 0) {
		assert(r == -EBADMSG && !vmas);
		return 0;
	}
	for (size_t i = 0; i < count; i++) {
		assert(vmas[i].start < vmas[i].end && vmas[i].start % PAGE_BYTES == 0 && vmas[i].end % PAGE_BYTES == 0);
		assert(i == 0 || vmas[i].start >= vmas[i - 1].end);
	}
	for (size_t i = 0; i < count && i < 8; i++) {
		ask(vmas, count, vmas[i].start, vmas[i].end - vmas[i].start);
		ask(vmas, count, vmas[i].start, vmas[count - 1].end - vmas[i].start);
		ask(vmas, count, vmas[i].end - PAGE_BYTES, UINT64_MAX);
		ask(vmas, count, vmas[i].start + 1, PAGE_BYTES);
	}
	free(vmas);
	return 0;
}
