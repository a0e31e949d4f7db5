/* Fuzzes what looks for the balloon in a domain's XML: text of the domain's owner is in it. */
#include <assert.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "balloon/libvirt_xml.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct libvirt_memballoon b = { .period_s = UINT64_MAX };
	char *text = malloc(size + 1);
	int r;

	if (!text)
		return 0;
	if (size > 0)
		memcpy(text, data, size);
	text[size] = '\0';
	r = libvirt_xml_memballoon(text, &b);
	if (r == 0)
		assert(b.period_s <= INT32_MAX && b.device != BALLOON_DEVICE_UNKNOWN);
	else
		assert(b.period_s == UINT64_MAX);
	/* What is looked for must be spelled out. */
	assert(r < 0 || b.device == BALLOON_DEVICE_ABSENT || strstr(text, "memballoon"));
	free(text);
	return 0;
}
