#include "bench/lib/meter.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core/cleanup.h"
#include "core/clock.h"
#include "core/kernel_abi.h"
#include "core/snapshot.h"

#define KSM "sys/kernel/mm/ksm/"
#define KSM_ITEM_BYTES 64u /* struct ksm_rmap_item, and struct ksm_stable_node, on 64 bit */
#define PAGEMAP_PRESENT (UINT64_C(1) << 63)
#define PAGEMAP_FRAME ((UINT64_C(1) << 55) - 1)
#define PAGEMAP_AT_ONCE 8192u

/* ---- counters ---- */

/* The kernel's scanner by its name; a user's process cannot have no command line and parent 2. */
static pid_t find_ksmd(const struct fsio *fs)
{
	auto_closedir DIR *d = fsio_opendir(fs, "proc");
	const struct dirent *entry;

	while (d && (entry = readdir(d))) {
		char stat[512];

		if (!isdigit((unsigned char)entry->d_name[0]) ||
		    fsio_read(fs, stat, sizeof(stat), "proc/%s/stat", entry->d_name) < 0)
			continue;
		if (strstr(stat, " (ksmd) S 2 ") || strstr(stat, " (ksmd) R 2 ") || strstr(stat, " (ksmd) D 2 "))
			return (pid_t)strtol(entry->d_name, NULL, 10);
	}
	return 0;
}

/* In nanoseconds where the kernel keeps them, else in clock ticks. */
static uint64_t thread_cpu_ns(const struct fsio *fs, pid_t pid)
{
	char text[1024], *at;
	uint64_t ticks = 0;

	if (pid == 0)
		return 0;
	if (fsio_read(fs, text, sizeof(text), "proc/%d/schedstat", (int)pid) > 0)
		return strtoull(text, NULL, 10);
	if (fsio_read(fs, text, sizeof(text), "proc/%d/stat", (int)pid) < 0)
		return 0;
	at = strrchr(text, ')');
	for (int field = 2; at && field < 14; field++)
		at = strchr(at + 1, ' ');
	if (at) {
		ticks = strtoull(at, &at, 10);
		ticks += strtoull(at, NULL, 10);
	}
	return ticks * (NSEC_PER_SEC / (uint64_t)sysconf(_SC_CLK_TCK));
}

static uint64_t ksm_counter(const struct fsio *fs, const char *name)
{
	uint64_t value = 0;

	return fsio_read_u64(fs, &value, KSM "%s", name) < 0 ? 0 : value;
}

static uint64_t ksm_of_process(const struct fsio *fs, pid_t pid, const char *name)
{
	uint64_t value = 0;
	char stat[1024];

	if (fsio_read(fs, stat, sizeof(stat), "proc/%d/ksm_stat", (int)pid) > 0)
		fsio_field_u64(stat, name, &value);
	return value;
}

static int anon_pages(const struct meter *m, uint64_t *ret_pages)
{
	uint64_t pages = 0;

	for (size_t i = 0; i < m->group->count; i++) {
		uint64_t kib = 0;
		char status[4096];
		ssize_t n = fsio_read(m->fs, status, sizeof(status), "proc/%d/status", (int)m->group->proc[i].pid);

		if (n < 0)
			return (int)n;
		if (fsio_field_u64(status, "RssAnon", &kib) < 0)
			return -ESRCH;
		pages += kib * 1024 / PAGE_BYTES;
	}
	*ret_pages = pages;
	return 0;
}

/* Mappings of KSM frames by the guests, the first of each frame apart. */
static uint64_t shared_pages(const struct meter *m)
{
	uint64_t frames = ksm_counter(m->fs, "pages_shared"), beyond = ksm_counter(m->fs, "pages_sharing");
	uint64_t mappings = 0;

	for (size_t i = 0; i < m->group->count; i++)
		mappings += ksm_of_process(m->fs, m->group->proc[i].pid, "ksm_merging_pages");
	return mappings == 0 || frames == 0 ? 0 : (uint64_t)((double)mappings * (double)beyond /
							      (double)(frames + beyond));
}

/* The agent's thread in a replay process works for the engine too. */
static uint64_t agent_cpu_ns(const struct fsio *fs, pid_t pid)
{
	auto_closedir DIR *d = fsio_opendir(fs, "proc/%d/task", (int)pid);
	const struct dirent *entry;
	uint64_t ns = 0;

	while (d && (entry = readdir(d))) {
		char name[32];
		int tid = atoi(entry->d_name);

		if (tid > 0 && fsio_read(fs, name, sizeof(name), "proc/%d/task/%d/comm", (int)pid, tid) > 0 &&
		    strcmp(name, "memvirt-agent\n") == 0)
			ns += thread_cpu_ns(fs, tid);
	}
	return ns;
}

uint64_t meter_agents_cpu_ns(const struct meter *m)
{
	uint64_t ns = 0;

	for (size_t i = 0; i < m->group->count; i++)
		ns += agent_cpu_ns(m->fs, m->group->proc[i].pid);
	return ns;
}

static uint64_t engine_cpu_ns(const struct meter *m)
{
	return clock_ns(CLOCK_PROCESS_CPUTIME_ID) + thread_cpu_ns(m->fs, m->ksmd_pid) - m->measuring_ns +
	       meter_agents_cpu_ns(m);
}

int meter_start(struct meter *m, const struct fsio *fs, const struct replay_group *group, bool uses_ksm)
{
	*m = (struct meter){ .fs = fs, .group = group, .ksmd_pid = uses_ksm ? find_ksmd(fs) : 0 };
	m->start_cpu_ns = engine_cpu_ns(m);
	m->start_ns = clock_mono_ns();
	return anon_pages(m, &m->start_anon_pages);
}

int meter_take(struct meter *m, struct meter_sample *ret_sample)
{
	uint64_t measuring_ns = clock_thread_cpu_ns(), anon = 0, had;
	struct meter_sample s = { .ns = clock_mono_ns() - m->start_ns };
	int r = anon_pages(m, &anon);

	if (r == 0) {
		had = m->start_anon_pages + shared_pages(m);
		s.saved_pages = had > anon ? had - anon : 0;
		s.ksm_full_scans = ksm_counter(m->fs, "full_scans");
		s.cpu_ns = engine_cpu_ns(m) - (clock_thread_cpu_ns() - measuring_ns) - m->start_cpu_ns;
		*ret_sample = s;
	}
	m->measuring_ns += clock_thread_cpu_ns() - measuring_ns;
	return r;
}

uint64_t meter_ksm_metadata_bytes(const struct meter *m, uint64_t *ret_foreign_pages)
{
	auto_closedir DIR *d = fsio_opendir(m->fs, "proc");
	uint64_t guests = 0, all = 0;
	const struct dirent *entry;

	for (size_t i = 0; i < m->group->count; i++)
		guests += ksm_of_process(m->fs, m->group->proc[i].pid, "ksm_rmap_items");
	while (d && (entry = readdir(d))) {
		if (isdigit((unsigned char)entry->d_name[0]))
			all += ksm_of_process(m->fs, (pid_t)strtol(entry->d_name, NULL, 10), "ksm_rmap_items");
	}
	*ret_foreign_pages = all > guests ? all - guests : 0;
	return (guests + (guests > 0 ? ksm_counter(m->fs, "pages_shared") : 0)) * KSM_ITEM_BYTES;
}

/* ---- frames ---- */

struct frame_list {
	uint64_t *frame;
	size_t count, cap;
};

static int frame_add(struct frame_list *l, uint64_t frame)
{
	if (l->count == l->cap) {
		size_t cap = l->cap ? l->cap * 2 : 65536;
		uint64_t *grown = reallocarray(l->frame, cap, sizeof(*grown));

		if (!grown)
			return -ENOMEM;
		l->frame = grown;
		l->cap = cap;
	}
	l->frame[l->count++] = frame;
	return 0;
}

static int frames_of(const struct fsio *fs, pid_t pid, uint64_t start, uint64_t pages, struct frame_list *l)
{
	auto_free uint64_t *entries = calloc(PAGEMAP_AT_ONCE, sizeof(*entries));
	auto_close int fd = fsio_open(fs, O_RDONLY, "proc/%d/pagemap", (int)pid);
	int r = 0;

	if (!entries)
		return -ENOMEM;
	if (fd < 0)
		return fd;
	for (uint64_t at = 0; at < pages && r == 0;) {
		uint64_t want = pages - at < PAGEMAP_AT_ONCE ? pages - at : PAGEMAP_AT_ONCE;
		ssize_t n = pread(fd, entries, want * 8, (off_t)((start / PAGE_BYTES + at) * 8));

		if (n < 8)
			return n < 0 ? -errno : -ESRCH;
		for (uint64_t i = 0; i < (uint64_t)n / 8 && r == 0; i++) {
			if (entries[i] & PAGEMAP_PRESENT)
				r = frame_add(l, entries[i] & PAGEMAP_FRAME);
		}
		at += (uint64_t)n / 8;
	}
	return r;
}

/* A fresh anonymous page that is only read is mapped to the zero page. */
static int zero_frame(const struct fsio *fs, uint64_t *ret_frame)
{
	volatile char *page = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct frame_list l = { 0 };
	int r;

	if (page == MAP_FAILED)
		return -errno;
	(void)*page;
	r = frames_of(fs, getpid(), (uintptr_t)page, 1, &l);
	if (r == 0)
		*ret_frame = l.count > 0 ? l.frame[0] : 0;
	free(l.frame);
	munmap((void *)(uintptr_t)page, PAGE_BYTES);
	return r;
}

static int frame_order(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

int meter_frames(const struct fsio *fs, const struct replay_group *group, uint64_t *ret_frames)
{
	struct frame_list l = { 0 };
	uint64_t zero = 0, frames = 0;
	int r = zero_frame(fs, &zero);

	if (r == 0 && zero == 0)
		r = -EACCES; /* frame numbers read as 0 */
	for (size_t i = 0; i < group->count && r == 0; i++)
		r = frames_of(fs, group->proc[i].pid, group->proc[i].hva, group->proc[i].bytes / PAGE_BYTES, &l);
	if (r == 0) {
		qsort(l.frame, l.count, sizeof(*l.frame), frame_order);
		for (size_t i = 0; i < l.count; i++)
			frames += l.frame[i] != zero && (i == 0 || l.frame[i] != l.frame[i - 1]);
		*ret_frames = frames;
	}
	free(l.frame);
	return r;
}

/* ---- huge mappings ---- */

static int huge_file_pages(int pagemap_fd, uint64_t start, uint64_t end, uint64_t *pages)
{
	struct page_region regions[64];
	struct pm_scan_arg arg = {
		.size = sizeof(arg),
		.start = start,
		.end = end,
		.vec = (uint64_t)(uintptr_t)regions,
		.vec_len = ARRAY_SIZE(regions),
		.category_mask = PAGE_IS_PRESENT | PAGE_IS_HUGE | PAGE_IS_FILE,
		.return_mask = PAGE_IS_HUGE,
	};

	while (arg.start < end) {
		int found = ioctl(pagemap_fd, PAGEMAP_SCAN, &arg);

		if (found < 0)
			return -errno;
		for (int i = 0; i < found; i++)
			*pages += (regions[i].end - regions[i].start) / PAGE_BYTES;
		if (arg.walk_end <= arg.start)
			return -EIO;
		arg.start = arg.walk_end;
	}
	return 0;
}

int meter_huge_merged(const struct fsio *fs, const struct replay_group *group, uint64_t *ret_pages)
{
	uint64_t pages = 0;
	int r = 0;

	for (size_t i = 0; i < group->count && r == 0; i++) {
		const struct replay_proc *p = &group->proc[i];
		auto_close int fd = fsio_open(fs, O_RDONLY, "proc/%d/pagemap", (int)p->pid);

		r = fd < 0 ? fd : huge_file_pages(fd, p->hva, p->hva + p->bytes, &pages);
	}
	if (r == 0)
		*ret_pages = pages;
	return r;
}
