/* Fuzzes the reader of records: what it takes, it must be able to write, and read again as the same; and whatever a record
 * tells, policies can be run over it. */
#include <assert.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "bench/lib/policy_run.h"
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

static void check_same(const struct record_line *line)
{
	char why[64], *text = dump(line), *text_again;
	struct record_line again;

	assert(record_line_parse(text, strlen(text), &again, why, sizeof(why)) == 0);
	text_again = dump(&again);
	assert(strcmp(text, text_again) == 0);
	record_line_free(&again);
	free(text);
	free(text_again);
}

static struct policy_replay *replay_new(void)
{
	static const char policy[] = "[host]\nmin_free = 1GiB\n[balloon]\nstep = 40%\nhold = 1s\n[vm *]\nshares = 5\n";
	struct policy_replay *r;
	struct config_error error;
	struct config config;

	assert(policy_replay_new(&r) == 0);
	assert(config_load_text("policy", policy, strlen(policy), &config, &error) == 0);
	assert(policy_replay_add(r, "policy", &config) == 0);
	return r;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct policy_replay *r = replay_new();
	const char *at = (const char *)data, *end = at + size;

	for (unsigned int number = 1; at < end; number++) {
		const char *newline = memchr(at, '\n', (size_t)(end - at));
		size_t len = newline ? (size_t)(newline - at) : (size_t)(end - at);
		struct record_line line;
		char why[64];

		if (record_line_parse(at, len, &line, why, sizeof(why)) < 0)
			break;
		if (line.kind == RECORD_TICK)
			check_same(&line);
		else
			assert(line.settings);
		policy_replay_line(r, &line, number, why, sizeof(why));
		record_line_free(&line);
		at += len + 1;
	}
	policy_replay_free(r);
	return 0;
}
