#include "cli/translate.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/progress.h"
#include "cli/table.h"
#include "core/cleanup.h"

#define EXIT_NOWHERE 1
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

static bool is(const json_t *object, const char *key)
{
	return json_is_true(json_object_get(object, key));
}

static const char *page_size(const json_t *object, const char *key)
{
	switch (json_integer_value(json_object_get(object, key))) {
	case 4096:
		return "4 KiB";
	case 2 << 20:
		return "2 MiB";
	case 4 << 20:
		return "4 MiB";
	case 1 << 30:
		return "1 GiB";
	default:
		return "-";
	}
}

static const char *node_text(const json_t *host, char buf[16])
{
	const json_t *node = json_object_get(host, "node");

	snprintf(buf, 16, json_is_integer(node) ? "%lld" : "-", (long long)json_integer_value(node));
	return buf;
}

/* A page on the host in a few words: "present, own, 4 KiB, node 0". */
static void print_host(const json_t *host)
{
	char node[16];

	printf("%s: %s frame", text(host, "state"), text(host, "kind"));
	if (strcmp(text(host, "state"), "present") == 0)
		printf(", %s page, node %s%s", page_size(host, "page_bytes"),
		       node_text(host, node), is(host, "exclusive") ? "" : ", mapped elsewhere too");
}

/* The bits that are set, low ones first: present, writable, user, PWT, PCD, accessed, dirty, large (at the lowest level
 * PAT), global, no execute. */
static const char *entry_bits(const json_t *step, char buf[16])
{
	static const char letters[] = "PWUtcADLG";
	const char *entry = json_string_value(json_object_get(step, "entry"));
	unsigned long long value = entry ? strtoull(entry, NULL, 16) : 0;
	size_t n = 0;

	for (size_t bit = 0; bit < sizeof(letters) - 1; bit++)
		if (value >> bit & 1)
			buf[n++] = letters[bit];
	if (value >> 63)
		buf[n++] = 'X';
	buf[n] = '\0';
	return n ? buf : "-";
}

static void print_steps(const json_t *steps)
{
	static const char *const titles[] = { "LEVEL", "ENTRY", ">TABLE", ">INDEX", ">VALUE",	"BITS",
					      ">HVA",  ">HPA",	"FRAME",  ">PAGE",  ">STAGE 2", ">NODE" };
	struct table *t;
	const json_t *step;
	size_t i;

	if (json_array_size(steps) == 0)
		return;
	t = table_new(titles, ARRAY_SIZE(titles));
	json_array_foreach(steps, i, step) {
		const json_t *host = json_object_get(step, "host");
		char bits[16], node[16];

		table_add(t, "%.0f", number(step, "level"));
		table_add(t, "%s", text(step, "name"));
		table_add(t, "%s", text(step, "table"));
		table_add(t, "%.0f", number(step, "index"));
		table_add(t, "%s", text(step, "entry"));
		table_add(t, "%s", entry_bits(step, bits));
		table_add(t, "%s", text(step, "hva"));
		table_add(t, "%s", text(step, "hpa"));
		table_add(t, "%s", strcmp(text(host, "state"), "present") == 0 ? text(host, "kind") : text(host, "state"));
		table_add(t, "%s", page_size(host, "page_bytes"));
		table_add(t, "%s", page_size(host, "stage2_page_bytes"));
		table_add(t, "%s", node_text(host, node));
	}
	table_print(t, stdout);
	table_free(t);
	putchar('\n');
}

static void print_guest(const json_t *answer)
{
	const json_t *guest = json_object_get(answer, "guest"), *slot = json_object_get(answer, "slot");

	printf("GPA  %-20s", text(answer, "gpa"));
	if (json_is_object(guest))
		printf(" %s page, %s, %s, %sexecutable%s%s%s, PAT %.0f;", page_size(guest, "page_bytes"),
		       is(guest, "user") ? "user" : "supervisor", is(guest, "writable") ? "writable" : "read-only",
		       is(guest, "executable") ? "" : "not ", is(guest, "accessed") ? ", accessed" : "",
		       is(guest, "dirty") ? ", dirty" : "", is(guest, "global") ? ", global" : "",
		       number(guest, "pat_index"));
	if (json_is_object(slot))
		printf(" in %s, %s", text(slot, "block"), text(slot, "backing"));
	putchar('\n');
}

static void show_translation(const json_t *answer)
{
	const json_t *host = json_object_get(answer, "host");

	if (json_is_string(json_object_get(answer, "gva"))) {
		printf("GVA  %-20s CPU %.0f, paging: %s, CR3 %s\n\n", text(answer, "gva"), number(answer, "cpu"),
		       text(answer, "mode"), text(answer, "cr3"));
		print_steps(json_object_get(answer, "steps"));
	}
	if (!json_is_object(host)) /* the way has no such end */
		return;
	print_guest(answer);
	printf("HVA  %-20s pid %.0f\n", text(answer, "hva"), number(answer, "pid"));
	printf("HPA  %-20s ", text(answer, "hpa"));
	print_host(host);
	if (json_is_integer(json_object_get(host, "stage2_page_bytes")))
		printf("; by the second stage as %s", page_size(host, "stage2_page_bytes"));
	putchar('\n');
	if (json_is_integer(json_object_get(answer, "references")))
		printf("\n%.0f memory references in two dimensions, without any cache\n", number(answer, "references"));
}

static void show_found(const json_t *answer)
{
	static const char *const titles[] = { "*NAME", "*UUID", ">PID", ">GPA", ">HVA" };
	const json_t *hits = json_object_get(answer, "mappings"), *unknown = json_object_get(answer, "unknown"), *hit;
	struct table *t;
	size_t i;

	printf("HPA  %s  ", text(answer, "hpa"));
	if (json_is_object(json_object_get(answer, "host")))
		print_host(json_object_get(answer, "host"));
	else
		fputs("in no VM's memory", stdout);
	putchar('\n');
	if (json_array_size(hits) > 0) {
		t = table_new(titles, ARRAY_SIZE(titles));
		json_array_foreach(hits, i, hit) {
			table_add(t, "%s", text(hit, "name"));
			table_add(t, "%s", text(hit, "uuid"));
			table_add(t, "%.0f", number(hit, "pid"));
			table_add(t, "%s", text(hit, "gpa"));
			table_add(t, "%s", text(hit, "hva"));
		}
		putchar('\n');
		table_print(t, stdout);
		table_free(t);
	}
	if (number(answer, "found") > (double)json_array_size(hits))
		printf("... and %.0f more\n", number(answer, "found") - (double)json_array_size(hits));
	json_array_foreach(unknown, i, hit)
		fprintf(stderr, "memvirtctl: not looked at, its memory is not known: %s\n", json_string_value(hit));
	if (number(answer, "lost") > 0)
		fprintf(stderr, "memvirtctl: %.0f VMs ended meanwhile\n", number(answer, "lost"));
}

bool translate_flags_any(const struct cli_flags *w)
{
	return w->gva || w->gpa || w->hva || w->hpa || w->cpu || w->cr3;
}

/* NULL: some word is not UTF-8. */
static json_t *arguments_make(const char *vm, const struct cli_flags *w)
{
	const struct {
		const char *name, *value;
	} all[] = { { "vm", vm },   { "gva", w->gva }, { "gpa", w->gpa }, { "hva", w->hva },
		    { "hpa", w->hpa }, { "cpu", w->cpu }, { "cr3", w->cr3 } };
	json_t *arguments = json_object();

	for (size_t i = 0; i < ARRAY_SIZE(all); i++) {
		if (all[i].value && json_object_set_new(arguments, all[i].name, json_string(all[i].value)) < 0) {
			json_decref(arguments);
			return NULL;
		}
	}
	return arguments;
}

static int show(const json_t *answer, const struct cli_flags *flags)
{
	const json_t *fault = json_object_get(answer, "fault");

	if (flags->json) {
		json_dumpf(answer, stdout, JSON_INDENT(2));
		putchar('\n');
	} else if (flags->hpa) {
		show_found(answer);
	} else {
		show_translation(answer);
	}
	if (fflush(stdout) != 0)
		return EXIT_ERROR;
	if (json_is_object(fault))
		fprintf(stderr, "memvirtctl: %s\n", text(fault, "why"));
	return json_is_object(fault) ? EXIT_NOWHERE : EXIT_SUCCESS;
}

int translate_command(const struct connection_options *options, const char *vm, const struct cli_flags *flags)
{
	json_t *arguments, *answer = NULL;
	struct connection *c;
	int r, status = EXIT_ERROR;

	if (flags->hpa && (flags->gva || flags->gpa || flags->hva || flags->cpu || flags->cr3)) {
		fputs("memvirtctl: --hpa goes alone\n", stderr);
		return EXIT_USAGE;
	}
	arguments = arguments_make(vm, flags);
	if (!arguments) {
		fputs("memvirtctl: a name or a number is not UTF-8\n", stderr);
		return EXIT_USAGE;
	}
	if (connection_open(options, &c) < 0) {
		json_decref(arguments);
		return EXIT_ERROR;
	}
	r = connection_request(c, "translate", arguments, progress_show, &answer);
	progress_end();
	if (r == 0)
		status = show(answer, flags);
	json_decref(answer);
	connection_close(c);
	return status;
}
