#include "bench/lib/scan_bench.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <xxhash.h>

#include "bench/lib/capture_file.h"
#include "core/cleanup.h"
#include "core/clock.h"
#include "core/snapshot.h"
#include "ept/pagestate.h"
#include "ksmd/pass.h"
#include "ksmd/scan.h"

#define ROUNDS_MAX 32u
#define BATCH_PAGES 64u /* 256 KiB stay in a core's cache between the copy and the hash */
#define SEED UINT64_C(0x6d656d76697274)

enum variant { BARE, BARE_MEM, ONE_WORKER, TWO_WORKERS, VARIANTS };

struct bench {
	const struct replay_group *group;
	struct page_runs present[CAPTURES_MAX];
	struct scan_target targets[CAPTURES_MAX];
	int mem_fd[CAPTURES_MAX];
	uint64_t bytes;		     /* present, in all */
	double seconds[VARIANTS][ROUNDS_MAX], cpu_seconds[VARIANTS][ROUNDS_MAX];
};

/* ---- the bare loop ---- */

struct bare {
	pid_t pid;
	int mem_fd; /* of /proc/PID/mem; -1: process_vm_readv */
	char *buffer;
	struct iovec parts[BATCH_PAGES];
	size_t part_count, pages; /* of the batch so far */
	uint64_t sum;
};

static ssize_t bare_read(struct bare *b)
{
	struct iovec local = { b->buffer, b->pages * PAGE_BYTES };
	ssize_t total = 0, n = 1;

	if (b->mem_fd < 0)
		return process_vm_readv(b->pid, &local, 1, b->parts, b->part_count, 0);
	for (size_t i = 0; i < b->part_count && n > 0; i++) {
		n = pread(b->mem_fd, b->buffer + total, b->parts[i].iov_len, (off_t)(uintptr_t)b->parts[i].iov_base);
		total += n;
	}
	return n < 0 ? n : total;
}

static int bare_batch(struct bare *b)
{
	ssize_t n = bare_read(b);

	if (n < 0)
		return -errno;
	if ((size_t)n != b->pages * PAGE_BYTES)
		return -EIO;
	for (size_t i = 0; i < b->pages; i++)
		b->sum ^= XXH3_64bits_withSeed(b->buffer + i * PAGE_BYTES, PAGE_BYTES, SEED);
	b->part_count = b->pages = 0;
	return 0;
}

static int bare_guest(struct bare *b, uint64_t hva, const struct page_runs *present)
{
	int r = 0;

	for (size_t i = 0; i < present->count && r == 0; i++) {
		uint64_t page = present->run[i].first, end = page + present->run[i].count;

		while (page < end && r == 0) {
			uint64_t room = BATCH_PAGES - b->pages, take = end - page < room ? end - page : room;

			b->parts[b->part_count++] =
				(struct iovec){ (void *)(uintptr_t)(hva + page * PAGE_BYTES), take * PAGE_BYTES };
			b->pages += take;
			page += take;
			if (b->pages == BATCH_PAGES)
				r = bare_batch(b);
		}
	}
	return r < 0 || b->pages == 0 ? r : bare_batch(b);
}

static int bare_run(const struct bench *b, bool through_mem, uint64_t *ret_cpu_ns)
{
	auto_free char *buffer = malloc(BATCH_PAGES * PAGE_BYTES);
	uint64_t start_ns = clock_thread_cpu_ns(), sum = 0;
	volatile uint64_t kept; /* so that the hashes are not optimised away */
	int r = buffer ? 0 : -ENOMEM;

	for (size_t i = 0; i < b->group->count && r == 0; i++) {
		struct bare bare = { .pid = b->group->proc[i].pid,
				     .mem_fd = through_mem ? b->mem_fd[i] : -1,
				     .buffer = buffer };

		r = bare_guest(&bare, b->group->proc[i].hva, &b->present[i]);
		sum ^= bare.sum;
	}
	kept = sum;
	(void)kept;
	*ret_cpu_ns += clock_thread_cpu_ns() - start_ns;
	return r;
}

/* ---- rounds ---- */

static int run_variant(struct bench *b, enum variant v, unsigned round)
{
	struct scan_limits limits = { .workers = v == TWO_WORKERS ? 2 : 1 };
	struct scan_progress scan_progress = { 0 };
	uint64_t start_ns = clock_mono_ns(), cpu_ns = 0;
	int r;

	if (v == BARE || v == BARE_MEM)
		r = bare_run(b, v == BARE_MEM, &cpu_ns);
	else
		r = scan_run(b->targets, b->group->count, &limits, NULL, &scan_progress, &cpu_ns);
	b->seconds[v][round] = (double)(clock_mono_ns() - start_ns) / 1e9;
	b->cpu_seconds[v][round] = (double)cpu_ns / 1e9;
	return r;
}

static int bench_prepare(const struct fsio *fs, char *const *json_paths, struct bench *b)
{
	for (size_t i = 0; i < b->group->count; i++)
		b->targets[i].pagemap_fd = b->mem_fd[i] = -1;
	for (size_t i = 0; i < b->group->count; i++) {
		const struct replay_proc *p = &b->group->proc[i];
		struct capture_info info;
		int r = capture_info_load(json_paths[i], &info);

		if (r < 0)
			return r;
		b->present[i] = info.present;
		info.present = (struct page_runs){ 0 };
		capture_info_free(&info);
		b->bytes += p->present_pages * PAGE_BYTES;
		b->targets[i].pid = p->pid;
		b->targets[i].pidfd = p->pidfd;
		b->targets[i].hva = p->hva;
		b->targets[i].pages = p->bytes / PAGE_BYTES;
		b->targets[i].seed = SEED;
		b->targets[i].hashes = scan_hashes_new(b->targets[i].pages);
		if (!b->targets[i].hashes)
			return -ENOMEM;
		b->targets[i].pagemap_fd = pagestate_open(fs, p->pid);
		if (b->targets[i].pagemap_fd < 0)
			return b->targets[i].pagemap_fd;
		b->targets[i].mem_fd = b->mem_fd[i] = fsio_open(fs, O_RDONLY, "proc/%d/mem", (int)p->pid);
		if (b->mem_fd[i] < 0)
			return b->mem_fd[i];
	}
	return 0;
}

static void bench_release(struct bench *b)
{
	for (size_t i = 0; i < b->group->count; i++) {
		page_runs_free(&b->present[i]);
		scan_hashes_free(b->targets[i].hashes, b->targets[i].pages);
		cleanup_close(&b->targets[i].pagemap_fd);
		cleanup_close(&b->mem_fd[i]);
	}
	free(b);
}

static int number_order(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static struct rate rate_of(struct bench *b, enum variant v, unsigned rounds)
{
	double giga = (double)b->bytes / 1e9;

	qsort(b->seconds[v], rounds, sizeof(double), number_order);
	qsort(b->cpu_seconds[v], rounds, sizeof(double), number_order);
	return (struct rate){ .best = giga / b->seconds[v][0],
			      .median = giga / b->seconds[v][rounds / 2],
			      .cpu_best = giga / b->cpu_seconds[v][0] };
}

int scan_bench_run(const struct fsio *fs, const struct replay_group *group, char *const *json_paths, unsigned rounds,
		   struct scan_bench *ret_bench)
{
	struct bench *b = calloc(1, sizeof(*b));
	int r;

	if (!b)
		return -ENOMEM;
	b->group = group;
	r = bench_prepare(fs, json_paths, b);
	rounds = rounds < 1 ? 1 : rounds > ROUNDS_MAX ? ROUNDS_MAX : rounds;
	/* One round more, not counted: it touches the hash tables and wakes the cores. */
	for (unsigned round = 0; round <= rounds && r == 0; round++) {
		for (enum variant v = BARE; v < VARIANTS && r == 0; v++)
			r = run_variant(b, v, round > 0 ? round - 1 : 0);
	}
	if (r == 0) {
		ret_bench->bare = rate_of(b, BARE, rounds);
		ret_bench->bare_mem = rate_of(b, BARE_MEM, rounds);
		ret_bench->project[0] = rate_of(b, ONE_WORKER, rounds);
		ret_bench->project[1] = rate_of(b, TWO_WORKERS, rounds);
	}
	bench_release(b);
	return r;
}

/* ---- estimate ---- */

static int tables_new(const struct fsio *fs, const struct replay_group *group, struct pass_input *inputs)
{
	for (size_t i = 0; i < group->count; i++) {
		const struct replay_proc *p = &group->proc[i];
		struct mem_region region = { .hva = p->hva, .bytes = p->bytes, .backing = MEM_ANON };
		struct vm_snapshot vm = {
			.name = p->name,
			.uuid = p->name,
			.domain = "bench",
			.pid = p->pid,
			.pidfd = p->pidfd,
			.start_ticks = p->start_ticks,
			.regions = &region,
			.region_count = 1,
			.merge_allowed = true,
		};
		int r = page_table_new(fs, &vm, SEED, &inputs[i].table);

		if (r < 0)
			return r;
		inputs[i].rescan = true;
	}
	return 0;
}

static void read_result(const struct pass_result *result, struct estimate *e)
{
	e->present = (double)result->total.present;
	e->zero = (double)result->total.zero;
	e->within = result->total.dup_within;
	e->between = result->total.dup_between;
	e->mergeable = result->total.mergeable;
	e->metadata_bytes = result->metadata_bytes;
	e->seconds = result->seconds;
	e->cpu_seconds = result->cpu_seconds;
}

int estimate_run(const struct fsio *fs, const struct replay_group *group, struct estimate *ret_estimate)
{
	const struct pass_options options = { .across_domains = true };
	struct pass_input inputs[CAPTURES_MAX] = { 0 };
	struct pass *pass = NULL;
	int r = tables_new(fs, group, inputs);

	if (r == 0)
		r = pass_start(inputs, group->count, &options, &pass);
	if (r == 0) {
		const struct pass_result *result = pass_wait(pass);

		r = result->error;
		if (r == 0)
			read_result(result, ret_estimate);
	}
	pass_free(pass);
	for (size_t i = 0; i < group->count; i++)
		page_table_unref(inputs[i].table);
	return r;
}
