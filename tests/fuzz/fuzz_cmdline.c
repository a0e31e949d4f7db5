/* Fuzzes what is read from /proc: a command line and, for the same bytes, a stat line. */
#include <assert.h>
#include <jansson.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/cmdline.h"
#include "vmm/discover.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_text(const char *text)
{
	json_t *string = json_string(text);

	assert(string); /* valid UTF-8 */
	json_decref(string);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct vmm_cmdline got, again;
	struct vmm_stat st;
	char *text = malloc(size + 1);

	if (!text)
		return 0;
	vmm_cmdline_parse_args((const char *)data, size, &got);
	assert(strnlen(got.name, sizeof(got.name)) < sizeof(got.name));
	assert(strnlen(got.machine, sizeof(got.machine)) < sizeof(got.machine));
	assert(strnlen(got.qmp_path, sizeof(got.qmp_path)) < sizeof(got.qmp_path));
	assert(got.uuid[0] == '\0' || strlen(got.uuid) == sizeof(got.uuid) - 1);
	assert(got.ram_bytes > 0);
	check_text(got.name);
	check_text(got.machine);
	if (vmm_cmdline_parse((const char *)data, size, &again))
		assert(strcmp(got.name, again.name) == 0);

	if (size > 0)
		memcpy(text, data, size);
	text[size] = '\0';
	if (vmm_stat_parse(text, &st) == 0)
		assert(st.ppid >= 0);
	free(text);
	return 0;
}
