#include "cli/unmerge.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>

#define ASK_MS 200

/* 0, and the answer; else it was said why not. */
static int ask(struct connection *c, const char *vm, const char *what, json_t **ret_answer)
{
	json_t *arguments = json_pack("{s:s}", "vm", vm);

	if (!arguments) {
		fprintf(stderr, "memvirtctl: \"%s\" is not UTF-8\n", vm);
		return -1;
	}
	if (what)
		json_object_set_new(arguments, what, json_true());
	return connection_request(c, "unmerge", arguments, NULL, ret_answer);
}

static int show(const json_t *answer, bool as_json)
{
	const json_t *last = json_object_get(answer, "last");
	const char *error = json_string_value(json_object_get(last, "error"));
	const char *why = json_string_value(json_object_get(last, "kept_why"));
	double kept = json_number_value(json_object_get(last, "kept_mib"));

	if (as_json) {
		json_dumpf(answer, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(12));
		putchar('\n');
	} else {
		printf("given back %.1f MiB in %.2f s, longest stall %.0f us\n",
		       json_number_value(json_object_get(last, "given_back_mib")),
		       json_number_value(json_object_get(last, "seconds")),
		       json_number_value(json_object_get(last, "longest_stall_us")));
	}
	if (kept > 0)
		fprintf(stderr, "memvirtctl: %.1f MiB stay merged: %s\n", kept, why ? why : "");
	if (error && *error)
		fprintf(stderr, "memvirtctl: it was not finished: %s\n", error);
	if (fflush(stdout) != 0 || (error && *error))
		return EXIT_FAILURE;
	return kept > 0 ? EXIT_KEPT : EXIT_SUCCESS;
}

static int wait_over(struct connection *c, const char *vm, json_t **answer)
{
	int r = 0;

	while (r == 0 && json_is_true(json_object_get(*answer, "busy"))) {
		json_decref(*answer);
		*answer = NULL;
		poll(NULL, 0, ASK_MS);
		r = ask(c, vm, NULL, answer);
	}
	return r;
}

int unmerge_command(const struct connection_options *options, const char *vm, const struct cli_flags *flags)
{
	struct connection *c;
	json_t *answer = NULL;
	int status = EXIT_FAILURE;

	if (connection_open(options, &c) < 0)
		return EXIT_FAILURE;
	if (ask(c, vm, flags->undo ? "undo" : "start", &answer) == 0) {
		if (flags->undo)
			status = EXIT_SUCCESS;
		else if (wait_over(c, vm, &answer) == 0)
			status = show(answer, flags->json);
	}
	json_decref(answer);
	connection_close(c);
	return status;
}
