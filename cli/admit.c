#include "cli/admit.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXIT_NO 1
#define EXIT_ERROR 2

/* KiB, MiB, GiB and TiB, as in the configuration; also K, M, G and T, as QEMU takes them. */
static bool parse_size(const char *text, json_int_t *ret_bytes)
{
	static const char units[] = "KMGT";
	unsigned long long number;
	const char *unit;
	char *end;

	errno = 0;
	number = strtoull(text, &end, 10);
	if (!isdigit((unsigned char)*text) || errno || !*end)
		return false;
	unit = strchr(units, *end);
	if (!unit || (end[1] && strcmp(end + 1, "iB") != 0))
		return false;
	for (const char *u = units; u <= unit; u++) {
		if (number > (unsigned long long)INT64_MAX >> 10)
			return false;
		number <<= 10;
	}
	*ret_bytes = (json_int_t)number;
	return number > 0;
}

static bool parse_node(const char *text, int *ret_node)
{
	char *end;
	long node;

	if (!text)
		return true;
	errno = 0;
	node = strtol(text, &end, 10);
	if (!isdigit((unsigned char)*text) || errno || *end || node > 4095)
		return false;
	*ret_node = (int)node;
	return true;
}

static int answer_show(const json_t *answer, bool as_json)
{
	bool granted = json_is_true(json_object_get(answer, "granted"));
	bool later = json_is_true(json_object_get(answer, "later"));
	const char *why = json_string_value(json_object_get(answer, "why"));

	if (as_json) {
		json_dumpf(answer, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(12));
		putchar('\n');
	} else {
		printf("%s: %s\n", granted ? "yes" : later ? "not yet" : "no", why ? why : "");
	}
	if (fflush(stdout) != 0)
		return EXIT_ERROR;
	return granted ? EXIT_SUCCESS : EXIT_NO;
}

int admit_command(const struct connection_options *options, const char *size, const struct cli_flags *flags)
{
	struct connection *c;
	json_t *answer = NULL;
	json_int_t bytes;
	int node = -1, status = EXIT_ERROR;

	if (!parse_size(size, &bytes)) {
		fprintf(stderr, "memvirtctl: \"%s\" is no size; expected one as 4GiB or 512MiB\n", size);
		return EXIT_ERROR;
	}
	if (!parse_node(flags->node, &node)) {
		fprintf(stderr, "memvirtctl: \"%s\" is no number of a NUMA node\n", flags->node);
		return EXIT_ERROR;
	}
	if (connection_open(options, &c) < 0)
		return EXIT_ERROR;
	if (connection_request(c, "admit", json_pack("{s:I, s:i}", "bytes", bytes, "node", node), NULL, &answer) == 0)
		status = answer_show(answer, flags->json);
	json_decref(answer);
	connection_close(c);
	return status;
}
