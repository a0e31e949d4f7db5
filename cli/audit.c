#include "cli/audit.h"

#include <stdio.h>
#include <stdlib.h>

#define EXIT_VIOLATION 1
#define EXIT_ERROR 2

static const char *text(const json_t *object, const char *key)
{
	const char *value = json_string_value(json_object_get(object, key));

	return value ? value : "-";
}

static double number(const json_t *object, const char *key)
{
	return json_number_value(json_object_get(object, key));
}

static void show_violations(const json_t *answer)
{
	const json_t *violations = json_object_get(answer, "violations"), *v, *vm;
	size_t i, k;

	json_array_foreach(violations, i, v) {
		printf("frame %s: %s\n", text(v, "hpa"), text(v, "why"));
		json_array_foreach(json_object_get(v, "vms"), k, vm)
			printf("  %s  %s  pid %.0f  gpa %s  hva %s\n", text(vm, "name"), text(vm, "uuid"), number(vm, "pid"),
			       text(vm, "gpa"), text(vm, "hva"));
	}
	if (number(answer, "violation_count") > (double)json_array_size(violations))
		printf("... and %.0f more\n", number(answer, "violation_count") - (double)json_array_size(violations));
}

static void show(const json_t *answer)
{
	const json_t *unknown = json_object_get(answer, "unknown"), *name;
	double seconds = number(answer, "seconds"), gib = number(answer, "pages") / 262144;
	size_t i;

	show_violations(answer);
	printf("%s: %.0f VMs, %.1f MiB mapped to %.1f MiB of frames; rightly shared %.1f MiB of stores, %.1f of KSM, %.1f zero\n",
	       json_is_true(json_object_get(answer, "clean")) ? "clean" : "VIOLATED", number(answer, "vms"),
	       number(answer, "pages") / 256, number(answer, "frames") / 256, number(answer, "shared_store") / 256,
	       number(answer, "shared_ksm") / 256, number(answer, "shared_zero") / 256);
	printf("in %.3f s, %.1f GiB/s\n", seconds, seconds > 0 ? gib / seconds : 0);
	if (number(answer, "not_checked") > 0)
		printf("%.0f findings beyond those were not looked at again\n", number(answer, "not_checked"));
	json_array_foreach(unknown, i, name)
		fprintf(stderr, "memvirtctl: not looked at, its memory is not known: %s\n", json_string_value(name));
	if (number(answer, "lost") > 0)
		fprintf(stderr, "memvirtctl: %.0f VMs ended meanwhile or could not be looked at\n", number(answer, "lost"));
}

/* What was not looked at is not proven. A VM that ended maps nothing, but one of those may not have. */
static int verdict(const json_t *answer)
{
	if (!json_is_true(json_object_get(answer, "clean")))
		return EXIT_VIOLATION;
	return json_array_size(json_object_get(answer, "unknown")) > 0 || number(answer, "lost") > 0 ||
			       number(answer, "not_checked") > 0 ? EXIT_ERROR : EXIT_SUCCESS;
}

int audit_command(const struct connection_options *options, const char *none, const struct cli_flags *flags)
{
	struct connection *c;
	json_t *answer = NULL;
	int status = EXIT_ERROR;

	(void)none;
	if (connection_open(options, &c) < 0)
		return EXIT_ERROR;
	if (connection_request(c, "audit", NULL, NULL, &answer) == 0) {
		if (flags->json) {
			json_dumpf(answer, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(12));
			putchar('\n');
		} else {
			show(answer);
		}
		status = fflush(stdout) == 0 ? verdict(answer) : EXIT_ERROR;
	}
	json_decref(answer);
	connection_close(c);
	return status;
}
