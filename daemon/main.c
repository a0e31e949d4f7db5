/* memvirtd: options, configuration, exit code. */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "core/config.h"
#include "core/log.h"
#include "daemon/daemon.h"

#define CONFIG_FILE "/etc/memvirt/memvirt.conf"
#define POLICY_DIR "/etc/memvirt/policy.d"

static const char usage[] =
	"Usage: memvirtd [OPTION...]\n"
	"Carries more KVM guests than the host has memory for: finds VMs, says what merging their memory\n"
	"would save, and merges it.\n"
	"\n"
	"  -c, --config FILE      configuration instead of " CONFIG_FILE "\n"
	"  -p, --policy-dir DIR   further *.conf files instead of " POLICY_DIR "\n"
	"  -n, --dry-run          decide and log, but change nothing on the host\n"
	"      --record FILE      append what is seen and decided in each tick to FILE, for replay-policy\n"
	"  -t, --check            check the configuration and end\n"
	"  -v, --verbose          log at level debug\n"
	"      --help-config[=text|conf|man]\n"
	"                         list all configuration keys: as text, as a file, as roff\n"
	"      --oneshot-fd FD    look only; serve control requests on this descriptor, end with it\n"
	"  -h, --help             this text\n"
	"  -V, --version          the version\n"
	"\n"
	"SIGHUP loads the configuration anew; SIGTERM restores what was changed and ends.\n"
	"memvirtctl(1) talks to the running daemon.\n";

enum { OPT_HELP_CONFIG = 256, OPT_ONESHOT, OPT_RECORD };

static const struct option long_options[] = {
	{ "config", required_argument, NULL, 'c' },
	{ "policy-dir", required_argument, NULL, 'p' },
	{ "dry-run", no_argument, NULL, 'n' },
	{ "check", no_argument, NULL, 't' },
	{ "verbose", no_argument, NULL, 'v' },
	{ "help-config", optional_argument, NULL, OPT_HELP_CONFIG },
	{ "oneshot-fd", required_argument, NULL, OPT_ONESHOT },
	{ "record", required_argument, NULL, OPT_RECORD },
	{ "help", no_argument, NULL, 'h' },
	{ "version", no_argument, NULL, 'V' },
	{ NULL, 0, NULL, 0 },
};

struct arguments {
	struct daemon_options daemon;
	bool check;
};

static int help_config(const char *form)
{
	if (!form || strcmp(form, "text") == 0) {
		config_print_help(stdout);
	} else if (strcmp(form, "conf") == 0) {
		config_print_file(stdout);
	} else if (strcmp(form, "man") == 0) {
		config_print_man(stdout);
	} else {
		fprintf(stderr, "memvirtd: --help-config takes text, conf or man, not \"%s\"\n", form);
		return EXIT_FAILURE;
	}
	return EXIT_SUCCESS;
}

static int parse_fd(const char *text)
{
	char *end;
	long fd;

	errno = 0;
	fd = strtol(text, &end, 10);
	if (errno || end == text || *end || fd < 0 || fd > 1 << 20 || fcntl((int)fd, F_SETFD, FD_CLOEXEC) < 0)
		return -1;
	return (int)fd;
}

/* -1: go on; else the exit code. */
static int parse_arguments(int argc, char **argv, struct arguments *a)
{
	int option;

	while ((option = getopt_long(argc, argv, "c:p:ntvhV", long_options, NULL)) != -1) {
		switch (option) {
		case 'c':
			a->daemon.config_file = optarg;
			break;
		case 'p':
			a->daemon.policy_dir = optarg;
			break;
		case 'n':
			a->daemon.dry_run = true;
			break;
		case 't':
			a->check = true;
			break;
		case 'v':
			a->daemon.verbose = true;
			break;
		case OPT_RECORD:
			a->daemon.record_file = optarg;
			break;
		case OPT_HELP_CONFIG:
			return help_config(optarg);
		case OPT_ONESHOT:
			a->daemon.oneshot_fd = parse_fd(optarg);
			if (a->daemon.oneshot_fd >= 0)
				break;
			fprintf(stderr, "memvirtd: --oneshot-fd: \"%s\" is no open descriptor\n", optarg);
			return EXIT_FAILURE;
		case 'h':
			fputs(usage, stdout);
			return EXIT_SUCCESS;
		case 'V':
			puts("memvirtd " MEMVIRT_VERSION);
			return EXIT_SUCCESS;
		default:
			fputs("Try 'memvirtd --help'.\n", stderr);
			return EXIT_FAILURE;
		}
	}
	if (optind < argc) {
		fprintf(stderr, "memvirtd: unexpected argument \"%s\"\nTry 'memvirtd --help'.\n", argv[optind]);
		return EXIT_FAILURE;
	}
	return -1;
}

/* The standard places are used when nothing was named, and need not exist; policy.d goes with its file. */
static void default_places(struct daemon_options *o)
{
	if (o->config_file)
		return;
	o->config_file = CONFIG_FILE;
	o->config_optional = true;
	if (!o->policy_dir)
		o->policy_dir = POLICY_DIR;
}

/* Five descriptors for each VM, and three more while it is estimated: with the usual soft limit of 1024 there would
 * be an end at about 200 VMs. */
static void files_allow(void)
{
	struct rlimit files;

	if (getrlimit(RLIMIT_NOFILE, &files) < 0)
		return;
	files.rlim_cur = files.rlim_max;
	if (setrlimit(RLIMIT_NOFILE, &files) < 0)
		log_warning("the limit of open files stays as it is, ignoring: %s", strerror(errno));
}

int main(int argc, char **argv)
{
	struct arguments a = { .daemon.oneshot_fd = -1 };
	struct config_error error;
	struct config config;
	struct daemon *d;
	int r = parse_arguments(argc, argv, &a);

	if (r >= 0)
		return r;
	default_places(&a.daemon);
	r = daemon_config_load(&a.daemon, &config, &error);
	if (r < 0) {
		log_error("%s", error.text);
		return EXIT_FAILURE;
	}
	if (a.check) {
		puts("configuration is good");
		config_free(&config);
		return EXIT_SUCCESS;
	}
	if (geteuid() != 0) {
		log_error("memvirtd must run as root: it reads the memory of other users' VMMs and sets kernel parameters");
		config_free(&config);
		return EXIT_FAILURE;
	}
	files_allow();
	r = daemon_new(&a.daemon, &config, &d);
	if (r < 0)
		return EXIT_FAILURE;
	r = daemon_run(d);
	if (r < 0)
		log_error("ended: %s", strerror(-r));
	daemon_free(d);
	return r < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}
