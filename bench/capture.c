/* capture - copy the RAM of a running guest into a file that replay and merge can load. */
#include <errno.h>
#include <getopt.h>
#include <jansson.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "bench/lib/capture_take.h"
#include "bench/lib/progress.h"
#include "core/snapshot.h"

#define SYNTHETIC_MEMBERS 4

struct options {
	pid_t pid;
	uint64_t hva, bytes, synthetic_mib;
	const char *dir, *name;
	bool freeze;
};

/* Set while the guest is stopped: a signal must not leave it so. */
static volatile sig_atomic_t frozen_pid;

static void usage(FILE *out)
{
	fputs("usage: capture --pid PID --dir DIR --name NAME [--freeze] [--hva ADDRESS --size BYTES]\n"
	      "       capture --synthetic MIB --dir DIR\n"
	      "  --pid PID        a running QEMU; its RAM is the anonymous mapping of its -m size\n"
	      "  --hva, --size    where the RAM is, when it cannot be told (or PID is no QEMU)\n"
	      "  --dir DIR        gets NAME.raw (sparse) and NAME.json\n"
	      "  --freeze         stop the process while copying, so that the copy is of one moment\n"
	      "  --synthetic MIB  make up four captures of this size instead, for use without guests\n"
	      "Nothing is faulted in: absent, swapped and zero-mapped pages are not read. Needs root.\n",
	      out);
}

static bool parse_number(const char *text, uint64_t *value)
{
	char *rest;

	errno = 0;
	*value = strtoull(text, &rest, 0);
	return errno == 0 && rest != text && *rest == '\0' && *text != '-';
}

/* 0; 1 to end well (--help); -1 for bad usage. */
static int parse_options(int argc, char **argv, struct options *o)
{
	static const struct option table[] = {
		{ "pid", required_argument, NULL, 'p' },  { "hva", required_argument, NULL, 'a' },
		{ "size", required_argument, NULL, 's' }, { "dir", required_argument, NULL, 'd' },
		{ "name", required_argument, NULL, 'n' }, { "synthetic", required_argument, NULL, 'S' },
		{ "freeze", no_argument, NULL, 'f' },	  { "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	uint64_t pid = 0;
	bool good = true;
	int c;

	while ((c = getopt_long(argc, argv, "h", table, NULL)) != -1) {
		switch (c) {
		case 'p': good &= parse_number(optarg, &pid) && pid <= INT32_MAX; break;
		case 'a': good &= parse_number(optarg, &o->hva) && o->hva % PAGE_BYTES == 0; break;
		case 's': good &= parse_number(optarg, &o->bytes) && o->bytes % PAGE_BYTES == 0; break;
		case 'S': good &= parse_number(optarg, &o->synthetic_mib) && o->synthetic_mib <= 65536; break;
		case 'd': o->dir = optarg; break;
		case 'n': o->name = optarg; break;
		case 'f': o->freeze = true; break;
		case 'h': usage(stdout); return 1;
		default: good = false;
		}
	}
	o->pid = (pid_t)pid;
	good &= optind == argc && o->dir && (o->hva == 0) == (o->bytes == 0);
	good &= o->synthetic_mib > 0 ? !o->name && !pid :
				       pid > 0 && o->name && strlen(o->name) < CAPTURE_NAME_MAX &&
					       !strpbrk(o->name, "/\"\\");
	if (!good)
		usage(stderr);
	return good ? 0 : -1;
}

static void thaw_and_die(int signal_number)
{
	if (frozen_pid > 0)
		kill((pid_t)frozen_pid, SIGCONT);
	signal(signal_number, SIG_DFL);
	raise(signal_number);
}

static void freeze(pid_t pid)
{
	signal(SIGINT, thaw_and_die);
	signal(SIGTERM, thaw_and_die);
	signal(SIGHUP, thaw_and_die);
	frozen_pid = (sig_atomic_t)pid;
	kill(pid, SIGSTOP);
}

static void thaw(void)
{
	if (frozen_pid > 0)
		kill((pid_t)frozen_pid, SIGCONT);
	frozen_pid = 0;
}

static int synthesize(const struct options *o)
{
	struct synth_truth t;
	int r = capture_synthesize(o->dir, SYNTHETIC_MEMBERS, o->synthetic_mib, &t);

	if (r < 0) {
		fprintf(stderr, "capture: %s: %s\n", o->dir, strerror(-r));
		return 1;
	}
	printf("{\"captures\": %d, \"present_pages\": %llu, \"zero_pages\": %llu, \"within_pages\": %llu, "
	       "\"between_pages\": %llu}\n",
	       SYNTHETIC_MEMBERS, (unsigned long long)t.present, (unsigned long long)t.zero,
	       (unsigned long long)t.within, (unsigned long long)t.between);
	return 0;
}

static int take(const struct fsio *fs, struct options *o)
{
	struct capture_info info = { 0 };
	int r = 0;

	if (o->bytes == 0)
		r = capture_find_ram(fs, o->pid, &o->hva, &o->bytes);
	if (r < 0) {
		fprintf(stderr, "capture: no guest RAM in process %d: %s\n", (int)o->pid, strerror(-r));
		return 1;
	}
	snprintf(info.name, sizeof(info.name), "%s", o->name);
	info.bytes = o->bytes;
	progress("capturing %s: %llu MiB at %#llx", o->name, (unsigned long long)(o->bytes >> 20),
		 (unsigned long long)o->hva);
	if (o->freeze)
		freeze(o->pid);
	r = capture_take(fs, o->pid, o->hva, o->dir, &info);
	thaw();
	if (r < 0)
		fprintf(stderr, "capture: %s/%s: %s\n", o->dir, o->name, strerror(-r));
	else
		printf("{\"name\": \"%s\", \"present_pages\": %llu, \"huge_pages\": %llu, "
		       "\"zero_mapped_pages\": %llu, \"swapped_pages\": %llu}\n",
		       info.name, (unsigned long long)page_runs_pages(&info.present),
		       (unsigned long long)page_runs_pages(&info.huge), (unsigned long long)info.zero_mapped_pages,
		       (unsigned long long)info.swapped_pages);
	capture_info_free(&info);
	return r < 0;
}

int main(int argc, char **argv)
{
	struct options o = { 0 };
	struct fsio fs;
	int r = parse_options(argc, argv, &o);

	if (r != 0)
		return r > 0 ? 0 : 2;
	if (mkdir(o.dir, 0700) < 0 && errno != EEXIST) {
		fprintf(stderr, "capture: %s: %s\n", o.dir, strerror(errno));
		return 1;
	}
	if (o.synthetic_mib > 0)
		return synthesize(&o);
	r = fsio_open_root("/", false, &fs);
	if (r < 0) {
		fprintf(stderr, "capture: /: %s\n", strerror(-r));
		return 1;
	}
	r = take(&fs, &o);
	fsio_close(&fs);
	return r;
}
