/* memvirtctl: one row per command. */
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/admit.h"
#include "cli/audit.h"
#include "cli/connection.h"
#include "cli/doctor.h"
#include "cli/flags.h"
#include "cli/guest_processes.h"
#include "cli/progress.h"
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
	/* In place of "show": asks and answers by itself, and gives the exit code. */
	int (*run)(const struct connection_options *options, const char *argument, const struct cli_flags *flags);
	const char *help;
};

static const struct command commands[] = {
	{ "vms", "vms", NULL, true, show_vms, NULL, "list the VMs of this host and how well they are known" },
	{ "estimate", "estimate", NULL, true, show_estimate, NULL, "what merging would save, per VM and in total" },
	{ "sharing", "sharing", NULL, true, show_sharing, NULL, "how much each pair of VMs has in common" },
	{ "merge status", "merge-status", NULL, false, show_merge_status, NULL, "what was merged, and why (not) more" },
	{ "explain", "explain", "vm", true, show_explain, NULL, "VM: how it is merged, or every reason why not" },
	{ "ept", "ept", "vm", true, show_ept, NULL, "VM: its memory as the second stage maps it: page sizes, costs of walks" },
	{ "audit", "audit", NULL, true, NULL, audit_command,
	  "does any VM map a frame that it must not? 0 no, 1 yes, 2 error" },
	{ "balloon status", "balloon-status", NULL, false, show_balloon_status, NULL,
	  "the host's state, and what each VM is given and why" },
	{ "doctor", "doctor", NULL, true, NULL, doctor_command,
	  "what VMs lack for their balloons, and how to have it: 0 nothing, 1 something, 2 error" },
	{ "admit", "admit", "size", false, NULL, admit_command,
	  "SIZE: may a VM of that size start (--node N)? 0 yes, 1 no, 2 error" },
	{ "unmerge", "unmerge", "vm", false, NULL, unmerge_command, "VM: give it its own memory back, and merge it no more (--undo)" },
	{ "translate", "translate", "vm", true, NULL, translate_command,
	  "VM: a guest address on its way to the host's frame (--gva): 0 yes, 1 leads nowhere, 2 error" },
	{ "guest-processes", "guest-processes", "vm", true, show_guest_processes, NULL,
	  "VM: the address spaces of its guest, and the memory of each" },
	{ "reload", "reload", NULL, false, show_reload, NULL, "load the configuration anew" },
	{ "status", "status", NULL, false, show_status, NULL, "the daemon and the host in short" },
};

/* Behind all letters. */
enum { OPT_GVA = 256, OPT_GPA, OPT_HVA, OPT_HPA, OPT_CPU, OPT_CR3 };

static const struct option long_options[] = {
	{ "json", no_argument, NULL, 'j' },	     { "socket", required_argument, NULL, 's' },
	{ "config", required_argument, NULL, 'c' }, { "help", no_argument, NULL, 'h' },
	{ "version", no_argument, NULL, 'V' },	     { "undo", no_argument, NULL, 'u' },
	{ "node", required_argument, NULL, 'N' },    { "gva", required_argument, NULL, OPT_GVA },
	{ "gpa", required_argument, NULL, OPT_GPA }, { "hva", required_argument, NULL, OPT_HVA },
	{ "hpa", required_argument, NULL, OPT_HPA }, { "cpu", required_argument, NULL, OPT_CPU },
	{ "cr3", required_argument, NULL, OPT_CR3 },
	{ NULL, 0, NULL, 0 },
};

static void usage(FILE *out)
{
	fputs("Usage: memvirtctl [OPTION...] COMMAND\n"
	      "Talks to memvirtd. Commands marked * work without a running daemon too.\n\n",
	      out);
	for (size_t i = 0; i < ARRAY_SIZE(commands); i++)
		fprintf(out, "%c %-15s %s\n", commands[i].looks ? '*' : ' ', commands[i].name, commands[i].help);
	fprintf(out, "  %-15s %s\n", "run", "COMMAND...: start a VMM with the agent inside; see run --help");
	fputs("\n"
	      "  -j, --json          answer as JSON\n"
	      "  -s, --socket PATH   control socket of the daemon\n"
	      "  -c, --config FILE   configuration, where no daemon is running\n"
	      "      --undo          with unmerge: the VM may be merged again\n"
	      "      --node N        with admit: memory of that NUMA node\n"
	      "      --gva ADDRESS   with translate: guest-virtual; or --gpa (guest-physical), --hva (in the VMM),\n"
	      "                      or --hpa of the host without a VM: who has this frame mapped\n"
	      "      --cpu N         with --gva: by the registers of this CPU (0)\n"
	      "      --cr3 ADDRESS   with --gva: by these page tables instead of the CPU's\n"
	      "  -h, --help          this text\n"
	      "  -V, --version       the version\n",
	      out);
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
	r = connection_request(c, command->request, arguments, progress_show, &result);
	progress_end();
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

static const char *takes(const struct command *command)
{
	if (!command->argument)
		return "no argument";
	return strcmp(command->argument, "vm") == 0 ? "one argument: a VM's name, uuid or pid" :
						      "one argument: a size, as 4GiB or 512MiB";
}

static int try_help(void)
{
	fputs("Try 'memvirtctl --help'.\n", stderr);
	return EXIT_USAGE;
}

/* -1: go on; else the exit code. */
static int parse_options(int argc, char **argv, struct connection_options *options, struct cli_flags *flags)
{
	int option;

	while ((option = getopt_long(argc, argv, "js:c:hV", long_options, NULL)) != -1) {
		switch (option) {
		case 'j':
			flags->json = true;
			break;
		case 's':
			options->socket = optarg;
			break;
		case 'c':
			options->config_file = optarg;
			break;
		case 'u':
			flags->undo = true;
			break;
		case 'N':
			flags->node = optarg;
			break;
		case OPT_GVA:
			flags->gva = optarg;
			break;
		case OPT_GPA:
			flags->gpa = optarg;
			break;
		case OPT_HVA:
			flags->hva = optarg;
			break;
		case OPT_HPA:
			flags->hpa = optarg;
			break;
		case OPT_CPU:
			flags->cpu = optarg;
			break;
		case OPT_CR3:
			flags->cr3 = optarg;
			break;
		case 'h':
			usage(stdout);
			return EXIT_SUCCESS;
		case 'V':
			puts("memvirtctl " MEMVIRT_VERSION);
			return EXIT_SUCCESS;
		default:
			return try_help();
		}
	}
	return -1;
}

/* Options that only one command takes. */
static bool flags_fit(const struct command *command, const struct cli_flags *flags)
{
	if (flags->undo && command->run != unmerge_command) {
		fputs("memvirtctl: --undo is for unmerge only\n", stderr);
		return false;
	}
	if (flags->node && command->run != admit_command) {
		fputs("memvirtctl: --node is for admit only\n", stderr);
		return false;
	}
	if (translate_flags_any(flags) && command->run != translate_command) {
		fputs("memvirtctl: addresses, --cpu and --cr3 are for translate only\n", stderr);
		return false;
	}
	return true;
}

int main(int argc, char **argv)
{
	struct connection_options options = { 0 };
	struct cli_flags flags = { 0 };
	const struct command *command;
	const char *argument;
	int status, used;

	if (argc > 1 && strcmp(argv[1], "run") == 0) /* before getopt sees what is COMMAND's */
		return run_command(argc - 1, argv + 1);
	status = parse_options(argc, argv, &options, &flags);
	if (status >= 0)
		return status;
	signal(SIGPIPE, SIG_IGN);
	if (optind == argc) {
		usage(stderr);
		return EXIT_USAGE;
	}
	command = find_command(argv + optind, argc - optind, &used);
	if (!command) {
		fprintf(stderr, "memvirtctl: unknown command \"%s\"\n", argv[optind]);
		return try_help();
	}
	argument = command->argument && !flags.hpa ? argv[argc - 1] : NULL; /* who has a frame is asked of all VMs */
	if (argc - optind - used != (argument ? 1 : 0)) {
		fprintf(stderr, "memvirtctl: %s takes %s\n", command->name,
			flags.hpa ? "no argument with --hpa" : takes(command));
		return EXIT_USAGE;
	}
	if (!flags_fit(command, &flags))
		return EXIT_USAGE;
	options.private_daemon = command->looks;
	return command->run ? command->run(&options, argument, &flags) : run(command, &options, argument, flags.json);
}
