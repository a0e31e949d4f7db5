#include "cli/doctor.h"

#include <stdio.h>
#include <stdlib.h>

#define EXIT_MISSING 1
#define EXIT_ERROR 2

/* Names and reasons are chosen by VMs. */
static void print_text(const json_t *object, const char *key)
{
	const char *text = json_string_value(json_object_get(object, key));

	for (; text && *text; text++)
		putchar((unsigned char)*text < ' ' || *text == 0x7f ? '?' : *text);
}

static void show_finding(const json_t *finding)
{
	const char *why = json_string_value(json_object_get(finding, "why"));
	const char *fix = json_string_value(json_object_get(finding, "fix"));

	fputs("  ", stdout);
	print_text(finding, "severity");
	fputs(": ", stdout);
	print_text(finding, "what");
	if (why && *why) {
		fputs("\n      why: ", stdout);
		print_text(finding, "why");
	}
	if (fix && *fix) {
		fputs("\n      fix: ", stdout);
		print_text(finding, "fix");
	}
	putchar('\n');
}

static void show(const json_t *answer)
{
	const json_t *vms = json_object_get(answer, "vms"), *vm, *finding;
	size_t i, k;

	if (json_array_size(vms) == 0)
		puts("no VM is running");
	json_array_foreach(vms, i, vm) {
		const json_t *findings = json_object_get(vm, "findings");

		print_text(vm, "name");
		fputs("  ", stdout);
		print_text(vm, "uuid");
		printf("  pid %.0f%s\n", json_number_value(json_object_get(vm, "pid")),
		       json_array_size(findings) == 0 ? ": nothing is missing" : "");
		json_array_foreach(findings, k, finding)
			show_finding(finding);
	}
}

int doctor_command(const struct connection_options *options, const char *none, const struct cli_flags *flags)
{
	struct connection *c;
	json_t *answer = NULL;
	int status = EXIT_ERROR;

	(void)none;
	if (connection_open(options, &c) < 0)
		return EXIT_ERROR;
	if (connection_request(c, "doctor", NULL, NULL, &answer) == 0) {
		status = json_integer_value(json_object_get(answer, "missing")) > 0 ? EXIT_MISSING : EXIT_SUCCESS;
		if (flags->json) {
			json_dumpf(answer, stdout, JSON_INDENT(2));
			putchar('\n');
		} else {
			show(answer);
		}
		if (fflush(stdout) != 0)
			status = EXIT_ERROR;
	}
	json_decref(answer);
	connection_close(c);
	return status;
}
