/* memvirtctl: one row per command. */
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/connection.h"
#include "cli/run.h"
#include "cli/show.h"
#include "cli/translate.h"
#include "cli/unmerge.h"
#include "core/cleanup.h"

struct command {
	const char *name, *request;
	const char *argument; /* name of its one argument in the request; NULL: none */
	bool looks;	      /* only looks at the host, so it works without a running daemon too */
	void (*show)(const json_t *answer);
	const char *help;
	enum { RUN_SHOW, RUN_UNMERGE, RUN_TRANSLATE } run; /* the last two in files of their own, without show */
};

static const struct command commands[] = {
	{ "vms", "vms", NULL, true, show_vms, "list the VMs of this host and how well they are known", RUN_SHOW },
	{ "estimate", "estimate", NULL, true, show_estimate, "what merging would save, per VM and in total", RUN_SHOW },
	{ "sharing", "sharing", NULL, true, show_sharing, "how much each pair of VMs has in common", RUN_SHOW },
	{ "merge status", "merge-status", NULL, false, show_merge_status, "what was merged, and why (not) more", RUN_SHOW },
	{ "explain", "explain", "vm", true, show_explain, "VM: how it is merged, or every reason why not", RUN_SHOW },
	{ "unmerge", "unmerge", "vm", false, NULL, "VM: give it its own memory back, and merge it no more (--undo)",
	  RUN_UNMERGE },
	{ "translate", "translate", "vm", true, NULL, "VM: a guest address on its way to the host's frame (--gva)",
	  RUN_TRANSLATE },
	{ "reload", "reload", NULL, false, show_reload, "load the configuration anew", RUN_SHOW },
	{ "status", "status", NULL, false, show_status, "the daemon and the host in short", RUN_SHOW },
};

/* Long options without a letter. */
enum { OPT_GVA = 256, OPT_GPA, OPT_HVA, OPT_HPA, OPT_CPU, OPT_CR3 };

static const struct option long_options[] = {
	{ "json", no_argument, NULL, 'j' },	     { "socket", required_argument, NULL, 's' },
	{ "config", required_argument, NULL, 'c' }, { "help", no_argument, NULL, 'h' },
	{ "version", no_argument, NULL, 'V' },	     { "undo", no_argument, NULL, 'u' },
	{ "gva", required_argument, NULL, OPT_GVA }, { "gpa", required_argument, NULL, OPT_GPA },
	{ "hva", required_argument, NULL, OPT_HVA }, { "hpa", required_argument, NULL, OPT_HPA },
	{ "cpu", required_argument, NULL, OPT_CPU }, { "cr3", required_argument, NULL, OPT_CR3 },
	{ NULL, 0, NULL, 0 },
};

static void usage(FILE *out)
{
	fputs("Usage: memvirtctl [OPTION...] COMMAND\n"
	      "Talks to memvirtd. Commands marked * work without a running daemon too.\n\n",
	      out);
	for (size_t i = 0; i < ARRAY_SIZE(commands); i++)
		fprintf(out, "%c %-13s %s\n", commands[i].looks ? '*' : ' ', commands[i].name, commands[i].help);
	fprintf(out, "  %-13s %s\n", "run", "COMMAND...: start a VMM with the agent inside; see run --help");
	fputs("\n"
	      "  -j, --json          answer as JSON\n"
	      "  -s, --socket PATH   control socket of the daemon\n"
	      "  -c, --config FILE   configuration, where no daemon is running\n"
	      "      --undo          with unmerge: the VM may be merged again\n"
	      "      --gva ADDRESS   with translate: guest-virtual; or --gpa (guest-physical), --hva (in the VMM),\n"
	      "                      or --hpa of the host without a VM: who has this frame mapped\n"
	      "      --cpu N         with --gva: by the registers of this CPU (0)\n"
	      "      --cr3 ADDRESS   with --gva: by these page tables instead of the CPU's\n"
	      "  -h, --help          this text\n"
	      "  -V, --version       the version\n",
	      out);
}

static void end_progress(void)
{
	if (isatty(STDERR_FILENO))
		fputs("\r\033[K", stderr);
}

/* Shown only where somebody watches, and only once it takes a while. Of nothing: it is over. */
static void show_progress(uint64_t done, uint64_t total)
{
	if (total == 0)
		end_progress();
	else if (isatty(STDERR_FILENO))
		fprintf(stderr, "\r%3u %% of %llu MiB looked at", (unsigned)(done * 100 / total),
			(unsigned long long)(total >> 8));
	fflush(stderr);
}

/* The command that the words name; *ret_used words belong to its name. */
static const struct command *find_command(char **words, int count, int *ret_used)
{
	for (size_t i = 0; i < ARRAY_SIZE(commands); i++) {
		const char *name = commands[i].name, *blank = strchr(name, ' ');
		size_t first = blank ? (size_t)(blank - name) : strlen(name);

		if (count < 1 || strlen(words[0]) != first || strncmp(words[0], name, first) != 0)
			continue;
		if (blank && (count < 2 || strcmp(words[1], blank + 1) != 0))
			continue;
		*ret_used = blank ? 2 : 1;
		return &commands[i];
	}
	return NULL;
}

static int run(const struct command *command, const struct connection_options *options, const char *argument,
	       bool as_json)
{
	json_t *result = NULL, *arguments = NULL;
	struct connection *c;
	int r;

	if (argument) {
		arguments = json_pack("{s:s}", command->argument, argument);
		if (!arguments) {
			fprintf(stderr, "memvirtctl: \"%s\" is not UTF-8\n", argument);
			return EXIT_FAILURE;
		}
	}
	r = connection_open(options, &c);
	if (r < 0) {
		json_decref(arguments);
		return EXIT_FAILURE;
	}
	r = connection_request(c, command->request, arguments, show_progress, &result);
	end_progress();
	connection_close(c);
	if (r < 0)
		return EXIT_FAILURE;
	if (as_json) {
		json_dumpf(result, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(12));
		putchar('\n');
	} else {
		command->show(result);
	}
	json_decref(result);
	return ferror(stdout) || fflush(stdout) != 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}

/* What the options say. */
struct given {
	struct connection_options options;
	struct translate_words words;
	bool as_json, undo;
};

/* True, or *ret_status is what the program ends with. */
static bool option_take(int option, struct given *g, int *ret_status)
{
	*ret_status = EXIT_SUCCESS;
	switch (option) {
	case 'j':
		g->as_json = true;
		return true;
	case 's':
		g->options.socket = optarg;
		return true;
	case 'c':
		g->options.config_file = optarg;
		return true;
	case 'u':
		g->undo = true;
		return true;
	case OPT_GVA:
		g->words.gva = optarg;
		return true;
	case OPT_GPA:
		g->words.gpa = optarg;
		return true;
	case OPT_HVA:
		g->words.hva = optarg;
		return true;
	case OPT_HPA:
		g->words.hpa = optarg;
		return true;
	case OPT_CPU:
		g->words.cpu = optarg;
		return true;
	case OPT_CR3:
		g->words.cr3 = optarg;
		return true;
	case 'h':
		usage(stdout);
		return false;
	case 'V':
		puts("memvirtctl " MEMVIRT_VERSION);
		return false;
	default:
		fputs("Try 'memvirtctl --help'.\n", stderr);
		*ret_status = EXIT_FAILURE;
		return false;
	}
}

/* words are what comes behind the command's name. */
static int command_run(const struct command *command, struct given *g, char **words, int count)
{
	bool translate = command->run == RUN_TRANSLATE, alone = translate && g->words.hpa; /* without a VM */

	if (count != (command->argument && !alone ? 1 : 0)) {
		fprintf(stderr, "memvirtctl: %s takes %s\n", command->name,
			alone		    ? "no VM with --hpa" :
			command->argument ? "one argument: a VM's name, uuid or pid" :
					      "no argument");
		return EXIT_FAILURE;
	}
	if (g->undo && command->run != RUN_UNMERGE) {
		fputs("memvirtctl: --undo is for unmerge only\n", stderr);
		return EXIT_FAILURE;
	}
	if (translate_words_any(&g->words) && !translate) {
		fputs("memvirtctl: addresses, --cpu and --cr3 are for translate only\n", stderr);
		return EXIT_FAILURE;
	}
	g->options.private_daemon = command->looks;
	switch (command->run) {
	case RUN_UNMERGE:
		return unmerge_command(&g->options, words[0], g->undo, g->as_json);
	case RUN_TRANSLATE:
		return translate_command(&g->options, count ? words[0] : NULL, &g->words, show_progress, g->as_json);
	default:
		return run(command, &g->options, count ? words[0] : NULL, g->as_json);
	}
}

int main(int argc, char **argv)
{
	struct given given = { 0 };
	const struct command *command;
	int option, used, status;

	if (argc > 1 && strcmp(argv[1], "run") == 0) /* before getopt sees what is COMMAND's */
		return run_command(argc - 1, argv + 1);
	while ((option = getopt_long(argc, argv, "js:c:hV", long_options, NULL)) != -1)
		if (!option_take(option, &given, &status))
			return status;
	signal(SIGPIPE, SIG_IGN);
	if (optind == argc) {
		usage(stderr);
		return EXIT_FAILURE;
	}
	command = find_command(argv + optind, argc - optind, &used);
	if (!command) {
		fprintf(stderr, "memvirtctl: unknown command \"%s\"\nTry 'memvirtctl --help'.\n", argv[optind]);
		return EXIT_FAILURE;
	}
	return command_run(command, &given, argv + optind + used, argc - optind - used);
}
