/* Fuzzes the reader of records: what it takes, it must be able to write, and read again as the same. */
#include <assert.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "core/record.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char *dump(const struct record_line *line)
{
	json_t *root = record_tick_json(&line->snapshot, line->has_decided ? &line->decided : NULL);
	char *text;

	assert(root);
	text = json_dumps(root, JSON_COMPACT);
	assert(text);
	json_decref(root);
	return text;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct record_line line, again;
	char why[64], *text, *text_again;

	if (record_line_parse((const char *)data, size, &line, why, sizeof(why)) < 0)
		return 0;
	if (line.kind == RECORD_TICK) {
		text = dump(&line);
		assert(record_line_parse(text, strlen(text), &again, why, sizeof(why)) == 0);
		text_again = dump(&again);
		assert(strcmp(text, text_again) == 0);
		record_line_free(&again);
		free(text);
		free(text_again);
	} else {
		assert(line.settings);
	}
	record_line_free(&line);
	return 0;
}
