/* replay - hold a captured guest's RAM in memory, and do with it what line commands on standard input say. */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "agent/memvirt-agent.h"
#include "bench/lib/replay_mem.h"
#include "bench/lib/replay_work.h"
#include "core/cleanup.h"
#include "core/fsio.h"

#define RATE_MAX UINT64_C(10000000)
#define PROC_FILE_MAX 65536

struct replay {
	struct fsio fs;
	struct replay_mem mem;
	struct victim *victim;
	struct dirtier *dirtier;
	struct memvirt_agent *agent;
	bool quit;
};

/* args is what follows the command's name. Gives the answer, or NULL with *ret_why. */
struct command {
	const char *name, *help;
	json_t *(*run)(struct replay *r, const char *args, const char **ret_why);
};

static bool parse_rate(const char *text, uint64_t *rate)
{
	char *rest;

	errno = 0;
	*rate = strtoull(text, &rest, 10);
	return errno == 0 && rest != text && *rest == '\0' && *text != '-' && *rate > 0 && *rate <= RATE_MAX;
}

static json_t *victim_begin(struct replay *r, const char *rate_text, const char **ret_why)
{
	uint64_t rate = VICTIM_RATE_DEFAULT;
	int result;

	*ret_why = "victim start [ACCESSES_PER_S], once";
	if (r->victim || (*rate_text && !parse_rate(rate_text, &rate)))
		return NULL;
	result = victim_start(&r->mem, rate, &r->victim);
	*ret_why = strerror(-result);
	return result < 0 ? NULL : json_pack("{s:I}", "rate", (json_int_t)rate);
}

static json_t *run_victim(struct replay *r, const char *args, const char **ret_why)
{
	auto_free struct victim_result *result = NULL;
	json_t *latency;

	if (strncmp(args, "start", 5) == 0)
		return victim_begin(r, args + 5 + strspn(args + 5, " "), ret_why);
	*ret_why = "victim start [ACCESSES_PER_S] | victim stop";
	if (strcmp(args, "stop") != 0 || !r->victim)
		return NULL;
	*ret_why = "no memory";
	result = calloc(1, sizeof(*result));
	if (!result)
		return NULL;
	victim_stop(r->victim, result);
	r->victim = NULL;
	latency = hist_to_json(&result->hist);
	return json_pack("{s:I, s:I, s:I, s:o}", "reads", (json_int_t)result->reads, "writes",
			 (json_int_t)result->writes, "lost_writes", (json_int_t)result->lost_writes, "latency", latency);
}

static json_t *run_dirty(struct replay *r, const char *args, const char **ret_why)
{
	uint64_t rate, writes, lost;
	int result;

	*ret_why = "dirty PAGES_PER_S | dirty off";
	if (strcmp(args, "off") == 0 && r->dirtier) {
		dirtier_stop(r->dirtier, &writes, &lost);
		r->dirtier = NULL;
		return json_pack("{s:I, s:I}", "writes", (json_int_t)writes, "lost_writes", (json_int_t)lost);
	}
	if (r->dirtier || !parse_rate(args, &rate))
		return NULL;
	result = dirtier_start(&r->mem, rate, &r->dirtier);
	*ret_why = strerror(-result);
	return result < 0 ? NULL : json_pack("{s:I}", "rate", (json_int_t)rate);
}

static json_t *run_rewrite(struct replay *r, const char *args, const char **ret_why)
{
	struct rewrite_result result;

	(void)args;
	*ret_why = "stop dirty first: both change the same bytes";
	if (r->dirtier)
		return NULL;
	rewrite_all(&r->mem, &result);
	return json_pack("{s:I, s:I, s:I}", "pages", (json_int_t)result.pages, "ns", (json_int_t)result.ns, "longest_ns",
			 (json_int_t)result.longest_ns);
}

static int discard(void *agent, void *at, size_t bytes)
{
	if (agent)
		return memvirt_agent_discard(agent, at, bytes);
	return madvise(at, bytes, MADV_DONTNEED) < 0 ? -errno : 0;
}

/* The same new contents in every guest that is told so: pages that were absent, which come as the guest would touch
 * them, and go as its balloon would take them. */
static json_t *run_inject(struct replay *r, const char *args, const char **ret_why)
{
	uint64_t pages;

	*ret_why = "inject PAGES | inject 0";
	if (strcmp(args, "0") != 0 && !parse_rate(args, &pages))
		return NULL;
	if (strcmp(args, "0") == 0)
		pages = 0;
	*ret_why = "too few absent pages, or they cannot be discarded";
	return replay_mem_inject(&r->mem, pages, discard, r->agent) < 0 ? NULL : json_pack("{s:I}", "pages", (json_int_t)pages);
}

static json_t *run_checksum(struct replay *r, const char *args, const char **ret_why)
{
	struct replay_check check;
	json_t *answer;
	char sum[17];
	int result;

	(void)args;
	*ret_why = "stop victim and dirty first: they keep pages changed";
	if (r->victim || r->dirtier)
		return NULL;
	result = replay_mem_check(&r->fs, &r->mem, &check);
	*ret_why = strerror(-result);
	if (result < 0)
		return NULL;
	snprintf(sum, sizeof(sum), "%016" PRIx64, check.sum);
	answer = json_pack("{s:s, s:I, s:I}", "checksum", sum, "pages", (json_int_t)r->mem.page_count, "wrong_pages",
			   (json_int_t)check.wrong_pages);
	if (answer && check.wrong_pages > 0)
		json_object_set_new(answer, "first_wrong_page", json_integer((json_int_t)check.first_wrong));
	return answer;
}

static json_t *run_stats(struct replay *r, const char *args, const char **ret_why)
{
	auto_free char *status = NULL, *rollup = NULL;
	uint64_t rss_kib = 0, anon_kib = 0, huge_kib = 0;

	(void)args;
	*ret_why = "/proc/self cannot be read";
	if (fsio_read_alloc(&r->fs, PROC_FILE_MAX, &status, "proc/%d/status", (int)getpid()) < 0 ||
	    fsio_read_alloc(&r->fs, PROC_FILE_MAX, &rollup, "proc/%d/smaps_rollup", (int)getpid()) < 0 ||
	    fsio_field_u64(status, "VmRSS", &rss_kib) < 0 || fsio_field_u64(status, "RssAnon", &anon_kib) < 0 ||
	    fsio_field_u64(rollup, "AnonHugePages", &huge_kib) < 0)
		return NULL;
	return json_pack("{s:I, s:I, s:I}", "rss_kib", (json_int_t)rss_kib, "rss_anon_kib", (json_int_t)anon_kib,
			 "anon_huge_kib", (json_int_t)huge_kib);
}

static json_t *run_attach(struct replay *r, const char *args, const char **ret_why)
{
	*ret_why = "attach SOCKET, once";
	if (r->agent || *args == '\0')
		return NULL;
	if (memvirt_agent_attach(args, &r->agent, ret_why) < 0 ||
	    memvirt_agent_add_slot(r->agent, r->mem.base, r->mem.info.bytes, ret_why) < 0)
		return NULL;
	return json_object();
}

static json_t *run_quit(struct replay *r, const char *args, const char **ret_why)
{
	(void)args;
	(void)ret_why;
	r->quit = true;
	return json_object();
}

static const struct command commands[] = {
	{ "attach", "SOCKET - let a daemon merge the memory through the agent", run_attach },
	{ "dirty", "PAGES_PER_S | off - change random pages at this rate; off puts them back", run_dirty },
	{ "inject", "PAGES | 0 - fill absent pages with contents that are the same in every guest; 0 discards them",
	  run_inject },
	{ "rewrite", "- write to every page at once, and put them back; how long that took", run_rewrite },
	{ "victim", "start [ACCESSES_PER_S] | stop - touch random pages; stop reports how long accesses took",
	  run_victim },
	{ "checksum", "- of all pages, and how many are not what was loaded", run_checksum },
	{ "stats", "- resident, anonymous and huge memory", run_stats },
	{ "quit", "- end; so does the end of the input", run_quit },
};

static void answer(json_t *result, const char *why)
{
	json_t *out = result ? result : json_pack("{s:s}", "why", why);

	if (out) {
		json_object_set_new(out, "ok", json_boolean(result != NULL));
		json_dumpf(out, stdout, JSON_COMPACT);
		json_decref(out);
	}
	putchar('\n');
	fflush(stdout);
}

static void run_line(struct replay *r, const char *line)
{
	const char *why = "unknown command";
	size_t len = strcspn(line, " ");

	for (size_t i = 0; i < ARRAY_SIZE(commands); i++) {
		if (strlen(commands[i].name) == len && memcmp(commands[i].name, line, len) == 0) {
			json_t *result = commands[i].run(r, line + len + strspn(line + len, " "), &why);

			answer(result, why);
			return;
		}
	}
	answer(NULL, why);
}

static void usage(FILE *out)
{
	fputs("usage: replay [--thp on|off] [--mergeable] CAPTURE.json\n"
	      "  --thp on     2 MiB blocks that are present as a whole become huge pages, as under QEMU\n"
	      "  --thp off    none does (default)\n"
	      "  --mergeable  madvise(MADV_MERGEABLE), as QEMU does\n"
	      "Prints one JSON line when the memory is in place, then one per command on standard input:\n",
	      out);
	for (size_t i = 0; i < ARRAY_SIZE(commands); i++)
		fprintf(out, "  %s %s\n", commands[i].name, commands[i].help);
}

static int parse_options(int argc, char **argv, struct replay_options *o)
{
	static const struct option table[] = {
		{ "thp", required_argument, NULL, 't' },
		{ "mergeable", no_argument, NULL, 'm' },
		{ "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	bool good = true;
	int c;

	while ((c = getopt_long(argc, argv, "h", table, NULL)) != -1) {
		switch (c) {
		case 't':
			o->thp = strcmp(optarg, "on") == 0;
			good &= o->thp || strcmp(optarg, "off") == 0;
			break;
		case 'm': o->mergeable = true; break;
		case 'h': usage(stdout); return 1;
		default: good = false;
		}
	}
	if (!good || optind + 1 != argc) {
		usage(stderr);
		return -1;
	}
	return 0;
}

static void say_ready(struct replay *r)
{
	const char *why;
	json_t *stats = run_stats(r, "", &why);

	answer(json_pack("{s:b, s:s, s:i, s:I, s:I, s:I, s:O}", "ready", 1, "name", r->mem.info.name, "pid",
			 (int)getpid(), "hva", (json_int_t)(uintptr_t)r->mem.base, "bytes",
			 (json_int_t)r->mem.info.bytes, "present_pages", (json_int_t)r->mem.page_count, "stats",
			 stats),
	       why);
	json_decref(stats);
}

static int serve(struct replay *r)
{
	auto_free char *line = NULL;
	size_t cap = 0;
	ssize_t len;

	say_ready(r);
	while (!r->quit && (len = getline(&line, &cap, stdin)) > 0) {
		if (line[len - 1] == '\n')
			line[len - 1] = '\0';
		run_line(r, line);
	}
	return 0; /* threads may still run: they end with the process */
}

int main(int argc, char **argv)
{
	struct replay_options options = { 0 };
	struct replay r = { 0 };
	int result = parse_options(argc, argv, &options);

	if (result != 0)
		return result > 0 ? 0 : 2;
	result = fsio_open_root("/", false, &r.fs);
	if (result == 0)
		result = replay_mem_load(argv[optind], &options, &r.mem);
	if (result < 0) {
		fprintf(stderr, "replay: %s: %s\n", argv[optind], strerror(-result));
		return 1;
	}
	/* No clean-up: the memory of a guest is gone sooner with its process. */
	return serve(&r);
}
