#include "cli/run.h"

#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/cleanup.h"

#define AGENT_LIBRARY "libmemvirt-agent.so"
#define EXIT_NOT_EXECUTED 126 /* as shells and env(1) have it */
#define EXIT_NOT_FOUND 127

static const struct option long_options[] = {
	{ "socket", required_argument, NULL, 's' },
	{ "agent-library", required_argument, NULL, 'l' },
	{ "help", no_argument, NULL, 'h' },
	{ NULL, 0, NULL, 0 },
};

static void usage(FILE *out)
{
	fputs("Usage: memvirtctl run [OPTION...] [--] COMMAND [ARGUMENT...]\n"
	      "Executes COMMAND with memvirtd's agent inside, so that guest memory can be merged by remapping.\n\n"
	      "  -s, --socket PATH         the daemon's socket for agents\n"
	      "      --agent-library FILE  the agent, if not where memvirtctl was installed\n"
	      "  -h, --help                this text\n",
	      out);
}

/* Beside this program in a build, or where it was installed to. */
static bool library_find(char path[PATH_MAX])
{
	static const char *const places[] = { "", "../lib/memvirt/" };
	char self[PATH_MAX];
	ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);
	char *slash;

	if (n <= 0)
		return false;
	self[n] = '\0';
	slash = strrchr(self, '/');
	if (!slash)
		return false;
	slash[1] = '\0';
	for (size_t i = 0; i < ARRAY_SIZE(places); i++) {
		char joined[2 * PATH_MAX];

		snprintf(joined, sizeof(joined), "%s%s%s", self, places[i], AGENT_LIBRARY);
		if (realpath(joined, path))
			return true;
	}
	return false;
}

/* NULL, or why the command has to do without. In front of what is preloaded already: the first to define a call has it. */
static const char *library_preload(const char *given)
{
	const char *others = getenv("LD_PRELOAD");
	auto_free char *list = NULL;
	char path[PATH_MAX];

	if (given ? !realpath(given, path) : !library_find(path))
		return given ? strerror(errno) : "it is not beside memvirtctl nor in ../lib/memvirt";
	if (access(path, R_OK) < 0)
		return strerror(errno);
	if (strpbrk(path, " :"))
		return "its path has a blank or a colon, which the dynamic linker takes for its end";
	if (asprintf(&list, "%s%s%s", path, others && *others ? ":" : "", others ? others : "") < 0) {
		list = NULL;
		return "no memory";
	}
	return setenv("LD_PRELOAD", list, 1) < 0 ? strerror(errno) : NULL;
}

int run_command(int argc, char **argv)
{
	const char *library = NULL, *why;
	int option, err;

	optind = 1;
	while ((option = getopt_long(argc, argv, "+s:h", long_options, NULL)) != -1) { /* +: the rest is COMMAND's */
		switch (option) {
		case 's':
			if (setenv("MEMVIRT_AGENT_SOCKET", optarg, 1) < 0)
				return EXIT_FAILURE;
			break;
		case 'l':
			library = optarg;
			break;
		case 'h':
			usage(stdout);
			return EXIT_SUCCESS;
		default:
			fputs("Try 'memvirtctl run --help'.\n", stderr);
			return EXIT_FAILURE;
		}
	}
	if (optind == argc) {
		usage(stderr);
		return EXIT_FAILURE;
	}
	why = library_preload(library);
	if (why)
		fprintf(stderr, "memvirtctl: no agent in %s: %s: %s\n", argv[optind],
			library ? library : AGENT_LIBRARY, why);
	execvp(argv[optind], argv + optind);
	err = errno;
	fprintf(stderr, "memvirtctl: %s: %s\n", argv[optind], strerror(err));
	return err == ENOENT ? EXIT_NOT_FOUND : EXIT_NOT_EXECUTED;
}
