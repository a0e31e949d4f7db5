/* replay-policy - what memvirtd --record has written, decided once more: by the settings of the record, which must give the
 * same decisions, and by those of policy files beside it. */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/lib/policy_report.h"
#include "core/cleanup.h"

struct options {
	const char *record;
	char **policies;
	int policy_count;
	bool json, ticks;
};

static void usage(FILE *out)
{
	fputs("usage: replay-policy [--json] [--ticks] RECORD [POLICY.conf...]\n"
	      "Decides once more what memvirtd --record RECORD has seen. Each policy file is what memvirtd -c would be given: of\n"
	      "its keys those of [host], [balloon] and [vm] count, and what it does not set has its default.\n"
	      "  --ticks  every tick: seconds, and of each policy the host's state and new targets in MiB\n"
	      "  --json   as JSON\n"
	      "Exits with 1 if the settings of the record do not give what was recorded, or on an error.\n",
	      out);
}

static int options_parse(int argc, char **argv, struct options *o)
{
	static const struct option longs[] = { { "json", no_argument, NULL, 'j' },
					       { "ticks", no_argument, NULL, 't' },
					       { "help", no_argument, NULL, 'h' },
					       { NULL, 0, NULL, 0 } };
	int option;

	while ((option = getopt_long(argc, argv, "h", longs, NULL)) != -1) {
		if (option == 'h') {
			usage(stdout);
			exit(EXIT_SUCCESS);
		} else if (option == 'j') {
			o->json = true;
		} else if (option == 't') {
			o->ticks = true;
		} else {
			return -EINVAL;
		}
	}
	if (optind == argc)
		return -EINVAL;
	o->record = argv[optind];
	o->policies = argv + optind + 1;
	o->policy_count = argc - optind - 1;
	return 0;
}

static int policies_add(struct policy_replay *r, const struct options *o)
{
	for (int i = 0; i < o->policy_count; i++) {
		struct config_error error = { "" };
		struct config config;
		int result = config_load(o->policies[i], NULL, &config, &error);

		if (result < 0) {
			fprintf(stderr, "replay-policy: %s\n", *error.text ? error.text : strerror(-result));
			return result;
		}
		result = policy_replay_add(r, o->policies[i], &config);
		if (result < 0) {
			config_free(&config);
			fprintf(stderr, "replay-policy: more than %d policy files\n", POLICY_RUNS_MAX - 2);
			return result;
		}
	}
	return 0;
}

/* One line into buf without its newline. Its length; -ENODATA at the end; -EBADMSG: too long, or with a NUL. */
static ssize_t line_read(FILE *in, char *buf, size_t cap)
{
	size_t len;

	if (!fgets(buf, (int)cap, in))
		return ferror(in) ? -EIO : -ENODATA;
	len = strlen(buf);
	if (len > 0 && buf[len - 1] == '\n')
		return (ssize_t)(len - 1);
	return feof(in) ? (ssize_t)len : -EBADMSG;
}

/* The tick that was run last, if it is one in which something was decided. */
static void tick_show(const struct policy_replay *r, const struct record_line *line, uint64_t *first_ns, json_t *ticks,
		      const struct options *o)
{
	if (line->kind == RECORD_HEADER)
		*first_ns = 0;
	if (line->kind != RECORD_TICK)
		return;
	if (!*first_ns)
		*first_ns = r->taken_ns;
	if (!o->ticks || !line->has_decided)
		return;
	if (o->json)
		json_array_append_new(ticks, policy_report_tick_json(r, *first_ns));
	else
		policy_report_tick(stdout, r, *first_ns);
}

static int record_run(struct policy_replay *r, FILE *in, json_t *ticks, const struct options *o)
{
	auto_free char *buf = malloc(RECORD_LINE_MAX_BYTES + 2);
	uint64_t first_ns = 0;
	unsigned int number = 0;
	char why[512] = "longer than a line can be, or holds a NUL";
	int result = 0;

	if (!buf)
		return -ENOMEM;
	for (;;) {
		struct record_line line;
		ssize_t len = line_read(in, buf, RECORD_LINE_MAX_BYTES + 2);

		if (len == -ENODATA)
			return 0;
		number++;
		result = len < 0 ? (int)len : record_line_parse(buf, (size_t)len, &line, why, sizeof(why));
		if (result < 0)
			break;
		result = policy_replay_line(r, &line, number, why, sizeof(why));
		if (result == 0)
			tick_show(r, &line, &first_ns, ticks, o);
		record_line_free(&line);
		if (result < 0)
			break;
	}
	fprintf(stderr, "replay-policy: %s:%u: %s\n", o->record, number, result == -EBADMSG ? why : strerror(-result));
	/* What is whole before a broken line counts. */
	if (result != -EBADMSG || !r->ticks)
		return result;
	fprintf(stderr, "replay-policy: using the %llu ticks before it\n", (unsigned long long)r->ticks);
	return 0;
}

static int show(const struct policy_replay *r, json_t *ticks, const struct options *o)
{
	json_t *root;
	int result;

	if (!o->json) {
		if (o->ticks)
			putchar('\n');
		policy_report(stdout, r);
		return 0;
	}
	root = policy_report_json(r);
	if (root && o->ticks)
		json_object_set(root, "per_tick", ticks);
	result = root ? json_dumpf(root, stdout, JSON_INDENT(2)) : -1;
	putchar('\n');
	json_decref(root);
	return result;
}

int main(int argc, char **argv)
{
	struct options o = { 0 };
	struct policy_replay *r;
	auto_fclose FILE *in = NULL;
	json_t *ticks;
	int result;

	if (options_parse(argc, argv, &o) < 0) {
		usage(stderr);
		return EXIT_FAILURE;
	}
	if (policy_replay_new(&r) < 0) {
		fputs("replay-policy: out of memory\n", stderr);
		return EXIT_FAILURE;
	}
	ticks = json_array();
	result = policies_add(r, &o);
	if (result == 0) {
		in = fopen(o.record, "re");
		if (!in) {
			result = -errno;
			fprintf(stderr, "replay-policy: %s: %s\n", o.record, strerror(-result));
		}
	}
	if (result == 0)
		result = record_run(r, in, ticks, &o);
	if (result == 0 && !r->ticks) {
		fprintf(stderr, "replay-policy: %s: no tick in it\n", o.record);
		result = -ENODATA;
	}
	if (result == 0)
		result = show(r, ticks, &o);
	if (result == 0 && r->runs[1].differs_line) {
		fprintf(stderr, "replay-policy: the record's own settings do not give what was recorded (line %u): not by the "
				"same version of memvirtd?\n", r->runs[1].differs_line);
		result = -EUCLEAN;
	}
	json_decref(ticks);
	policy_replay_free(r);
	return result < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}
