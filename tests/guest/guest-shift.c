/*
 * guest-shift - a guest whose need for memory comes and goes, by a schedule that all guests of a bench share: of
 * `shift_count` guests one is hot at a time, each for `phase_s` seconds. A hot guest has a large working set in
 * anonymous memory, made at once when its turn begins and given up when it ends; a cool one has a small one, and a
 * page cache that grows until nothing is free, because somebody in it reads a disk from end to end.
 *
 * Work is requests: each checks and rewrites whole pages of the working set, reads a few blocks of the disk, checks
 * those, and is counted when it is done. One is due every few milliseconds; those that come due while another takes too
 * long are lost. So what counts is how long a guest is held up by swapping or by reading again, and hardly how fast the
 * host's processors are. Nothing read may be wrong: the content of a page is a function of (seed, page,
 * times rewritten), that of the disk one of the offset.
 *
 * It obeys lines from a virtio-serial port ("warm", "go"), so that many guests begin together, and tells on standard
 * output what it has done, once a second.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define PAGE		UINT64_C(4096)
#define WORDS		(PAGE / 8)
#define MIB		(UINT64_C(1) << 20)
#define SECOND_NS	UINT64_C(1000000000)
#define GOLDEN		UINT64_C(0x9e3779b97f4a7c15)
#define BLOCK		(16 * PAGE)		/* of the disk, as it is read by requests */
#define STREAM_BLOCK	(256 * 1024)		/* ... and by the one who reads all of it */
#define POPULAR_BYTES	(32 * MIB)		/* of the disk: what most requests want */
#define POPULAR_IN_16	13			/* so many of 16 reads go there */

/* One kind of request. Under emulation a hot one takes 2 ms and a cool one half of that: the host's processors must not be
 * what is short. */
struct load {
	unsigned pages, reads, period_us;
};

static const struct load hot_load = { .pages = 96, .reads = 3, .period_us = 8000 };
static const struct load cool_load = { .pages = 24, .reads = 2, .period_us = 40000 };

struct options {
	uint64_t seed, shift_index, shift_count, phase_s, run_s, hot_mib, cool_mib, stream_mib_s;
	char data[128], port[128];
};

struct working_set {
	uint64_t *base;
	uint8_t *rewritten; /* how often, modulo 256 */
	uint64_t pages, key;
};

enum stage { WAITING, WARMING, RUNNING, DONE };

static struct options opt = {
	.seed = 1, .shift_count = 1, .phase_s = 30, .run_s = 120, .hot_mib = 256, .cool_mib = 48, .stream_mib_s = 5,
	.data = "/dev/vdb", .port = "/dev/vport*",
};
static _Atomic enum stage stage;
static _Atomic uint64_t started_ns, work_hot, work_cool, wrong;
static uint64_t disk_bytes;
static int disk_fd = -1;

static void die(const char *fmt, ...) __attribute__((format(printf, 1, 2), noreturn));

static void die(const char *fmt, ...)
{
	va_list ap;

	fputs("guest-shift: ", stderr);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputc('\n', stderr);
	exit(1);
}

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * SECOND_NS + (uint64_t)t.tv_nsec;
}

static void sleep_ns(uint64_t ns)
{
	struct timespec t = { .tv_sec = (time_t)(ns / SECOND_NS), .tv_nsec = (long)(ns % SECOND_NS) };

	while (nanosleep(&t, &t) < 0 && errno == EINTR)
		;
}

/* The finaliser of splitmix64: cheap under emulation, and no two indices give the same word. */
static inline uint64_t mix(uint64_t x)
{
	x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
	x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
	return x ^ x >> 31;
}

static uint64_t dice(uint64_t *state)
{
	*state += GOLDEN;
	return mix(*state);
}

/* ---- the disk: word i is a function of i ---- */

static inline uint64_t disk_word(uint64_t i)
{
	uint64_t x = (i + 1) * GOLDEN;

	return x ^ x >> 29;
}

static int disk_write(const char *path, uint64_t mib)
{
	static uint64_t block[MIB / 8];
	FILE *f = fopen(path, "we");

	for (uint64_t m = 0; f && m < mib; m++) {
		for (uint64_t i = 0; i < MIB / 8; i++)
			block[i] = disk_word(m * (MIB / 8) + i);
		if (fwrite(block, MIB, 1, f) != 1)
			die("%s: %s", path, strerror(errno));
	}
	if (!f || fclose(f) != 0)
		die("%s: %s", path, strerror(errno));
	return 0;
}

/* Reads [at, at + bytes) through the page cache; false when it is not what it must be. */
static bool disk_read(uint64_t *buffer, uint64_t at, uint64_t bytes)
{
	uint64_t bad = 0;

	if (pread(disk_fd, buffer, bytes, (off_t)at) != (ssize_t)bytes)
		return false;
	for (uint64_t i = 0; i < bytes / 8; i++)
		bad |= buffer[i] ^ disk_word(at / 8 + i);
	return bad == 0;
}

/* ---- a working set ---- */

static uint64_t page_key(const struct working_set *w, uint64_t page)
{
	return mix(w->key + page * 256 + w->rewritten[page]);
}

static void page_write(struct working_set *w, uint64_t page)
{
	uint64_t *mem = w->base + page * WORDS, key = page_key(w, page);

	for (uint64_t i = 0; i < WORDS; i++)
		mem[i] = key + i * GOLDEN;
	__asm__ volatile("" ::: "memory");	/* what was written must be read back */
}

static bool page_right(const struct working_set *w, uint64_t page)
{
	const uint64_t *mem = w->base + page * WORDS;
	uint64_t key = page_key(w, page), bad = 0;

	for (uint64_t i = 0; i < WORDS; i++)
		bad |= mem[i] ^ (key + i * GOLDEN);
	return bad == 0;
}

/* Every page written, and read back: what was pushed out meanwhile has to come back, too. */
static struct working_set set_make(uint64_t mib, uint64_t key)
{
	struct working_set w = { .pages = mib * MIB / PAGE, .key = key };

	w.base = mmap(NULL, mib * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	w.rewritten = calloc(w.pages, 1);
	if (w.base == MAP_FAILED || !w.rewritten)
		die("out of memory");
	for (uint64_t p = 0; p < w.pages; p++)
		page_write(&w, p);
	for (uint64_t p = 0; p < w.pages; p++)
		wrong += !page_right(&w, p);
	return w;
}

static void set_drop(struct working_set *w)
{
	munmap(w->base, w->pages * PAGE);
	free(w->rewritten);
	*w = (struct working_set){ 0 };
}

/* ---- those who work ---- */

static void request(struct working_set *w, const struct load *load, uint64_t *state)
{
	static uint64_t buffer[BLOCK / 8];

	for (unsigned i = 0; i < load->pages; i++) {
		uint64_t page = dice(state) % w->pages;

		wrong += !page_right(w, page);
		w->rewritten[page]++;
		page_write(w, page);
	}
	for (unsigned i = 0; i < load->reads; i++) {
		uint64_t reach = dice(state) % 16 < POPULAR_IN_16 && disk_bytes > POPULAR_BYTES ? POPULAR_BYTES : disk_bytes;

		wrong += !disk_read(buffer, dice(state) % (reach / BLOCK) * BLOCK, BLOCK);
	}
}

/* Whose turn it is; nobody's when the run is over. */
static bool is_hot_now(uint64_t *ret_phase)
{
	uint64_t elapsed = now_ns() - started_ns;

	*ret_phase = elapsed / (opt.phase_s * SECOND_NS);
	return stage == RUNNING && elapsed < opt.run_s * SECOND_NS &&
	       *ret_phase % opt.shift_count == opt.shift_index;
}

static struct working_set hot_make(uint64_t phase)
{
	uint64_t begin = now_ns();
	struct working_set w = set_make(opt.hot_mib, mix(opt.seed * 2 + 1) + (phase << 40));

	printf("touch t=%.1f phase=%" PRIu64 " mib=%" PRIu64 " ms=%" PRIu64 "\n", (double)(begin - started_ns) / 1e9,
	       phase, opt.hot_mib, (now_ns() - begin) / 1000000);
	fflush(stdout);
	return w;
}

/* Until the next request is due; of those that were due meanwhile only the last is left. */
static void wait_due(uint64_t *due, const struct load *load)
{
	uint64_t now = now_ns();

	*due += load->period_us * UINT64_C(1000);
	if (*due > now)
		sleep_ns(*due - now);
	else
		*due = now;
}

static void *worker_main(void *arg)
{
	struct working_set cool = set_make(opt.cool_mib, mix(opt.seed * 2)), hot = { 0 };
	uint64_t state = mix(opt.seed + 7), due = now_ns();

	(void)arg;
	printf("guest ready workload=shift seed=%" PRIu64 "\n", opt.seed);
	fflush(stdout);
	while (stage == WAITING)
		sleep_ns(SECOND_NS / 100);
	while (stage != DONE) {
		bool counts = stage == RUNNING;
		uint64_t phase;
		bool is_hot = is_hot_now(&phase);

		if (is_hot && !hot.base)
			hot = hot_make(phase);
		else if (!is_hot && hot.base)
			set_drop(&hot);
		request(is_hot ? &hot : &cool, is_hot ? &hot_load : &cool_load, &state);
		if (counts)
			*(is_hot ? &work_hot : &work_cool) += 1;
		wait_due(&due, is_hot ? &hot_load : &cool_load);
	}
	return NULL;
}

/* Reads the whole disk, over and over, at a steady pace: what fills the page cache. */
static void *stream_main(void *arg)
{
	static uint64_t buffer[STREAM_BLOCK / 8];
	uint64_t gap_ns = opt.stream_mib_s ? SECOND_NS * STREAM_BLOCK / (opt.stream_mib_s * MIB) : 0, next = 0;
	/* Guests do not read the same things at the same time. */
	uint64_t at = disk_bytes / STREAM_BLOCK * opt.shift_index / opt.shift_count * STREAM_BLOCK;

	(void)arg;
	while (gap_ns && stage != DONE) {
		uint64_t now = now_ns();

		if (stage == WAITING || now < next) {
			sleep_ns(stage == WAITING ? SECOND_NS / 100 : next - now);
			continue;
		}
		wrong += !disk_read(buffer, at, STREAM_BLOCK);
		at = (at + STREAM_BLOCK) % (disk_bytes / STREAM_BLOCK * STREAM_BLOCK);
		next = (next + gap_ns > now ? next : now) + gap_ns;
	}
	return NULL;
}

/* ---- what is told, and who tells us ---- */

/* The value behind `name` in a file of "name value" lines; 0 when it is not there. */
static uint64_t counter(const char *text, const char *name)
{
	const char *p = strstr(text, name);

	return p ? strtoull(p + strlen(name), NULL, 10) : 0;
}

static void file_read(const char *path, char *buffer, size_t cap)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	size_t len = 0;
	ssize_t n;

	while (fd >= 0 && len < cap - 1 && (n = read(fd, buffer + len, cap - 1 - len)) > 0)
		len += (size_t)n;
	buffer[len] = '\0';
	if (fd >= 0)
		close(fd);
}

/* One write: lines of the kernel must not come between. Counters are since boot. */
static void report(const char *what)
{
	static char vm[16384], mem[8192];
	uint64_t elapsed = stage >= RUNNING ? now_ns() - started_ns : 0;

	file_read("/proc/vmstat", vm, sizeof(vm));
	file_read("/proc/meminfo", mem, sizeof(mem));
	printf("%s t=%.1f phase=%" PRIu64 " work_hot=%" PRIu64 " work_cool=%" PRIu64 " swap_in=%" PRIu64 " swap_out=%" PRIu64
	       " oom=%" PRIu64 " majfault=%" PRIu64 " total_kib=%" PRIu64 " free_kib=%" PRIu64 " avail_kib=%" PRIu64
	       " wrong=%" PRIu64 "\n",
	       what, (double)elapsed / 1e9, elapsed / (opt.phase_s * SECOND_NS), work_hot, work_cool,
	       counter(vm, "pswpin "), counter(vm, "pswpout "), counter(vm, "oom_kill "), counter(vm, "pgmajfault "),
	       counter(mem, "MemTotal:"), counter(mem, "MemFree:"), counter(mem, "MemAvailable:"), wrong);
	fflush(stdout);
}

/* The first port there is; -1 and a start at once when none is wanted. */
static int port_open(void)
{
	glob_t found;
	int fd;

	if (!*opt.port) {
		started_ns = now_ns();
		stage = RUNNING;
		return -1;
	}
	for (int tries = 100; glob(opt.port, 0, NULL, &found) != 0; tries--) {
		if (!tries)
			die("no port %s", opt.port);
		sleep_ns(SECOND_NS / 20);
	}
	fd = open(found.gl_pathv[0], O_RDWR | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0)
		die("%s: %s", found.gl_pathv[0], strerror(errno));
	globfree(&found);
	return fd;
}

/* Waits until `until`, and obeys meanwhile. Without a host at its other end a port reads as ended at once. */
static void obey(int fd, uint64_t until)
{
	for (uint64_t now; (now = now_ns()) < until;) {
		struct pollfd p = { .fd = fd, .events = POLLIN };
		uint64_t wait_ms = (until - now) / 1000000 + 1;
		char line[64];
		ssize_t n;

		if (poll(&p, 1, (int)(stage == WAITING && wait_ms > 20 ? 20 : wait_ms)) <= 0)
			continue;
		n = read(fd, line, sizeof(line) - 1);
		if (n <= 0) {
			sleep_ns(SECOND_NS / 100);
			continue;
		}
		line[n] = '\0';
		if (stage == WAITING && strstr(line, "warm"))
			stage = WARMING;
		if (stage < RUNNING && strstr(line, "go")) {
			started_ns = now_ns();
			stage = RUNNING;
			report("go");
		}
	}
}

static int run(void)
{
	pthread_t worker, stream;
	uint64_t next = now_ns();
	int fd;

	disk_fd = open(opt.data, O_RDONLY | O_CLOEXEC);
	disk_bytes = disk_fd < 0 ? 0 : (uint64_t)lseek(disk_fd, 0, SEEK_END);
	if (disk_fd < 0 || disk_bytes < STREAM_BLOCK || disk_bytes > UINT64_C(1) << 50)
		die("%s: no disk to read", opt.data);
	fd = port_open();
	if (pthread_create(&worker, NULL, worker_main, NULL) || pthread_create(&stream, NULL, stream_main, NULL))
		die("cannot start a thread");
	while (stage < RUNNING || now_ns() - started_ns < opt.run_s * SECOND_NS) {
		next += SECOND_NS;
		obey(fd, next);
		if (stage > WAITING)
			report("shift");
	}
	stage = DONE;
	pthread_join(worker, NULL);
	pthread_join(stream, NULL);
	report("done");
	/* Whoever started us ends the guest: its memory is to be looked at as it is. */
	if (*opt.port)
		for (;;)
			pause();
	return wrong != 0;
}

static bool number_set(const char *word)
{
	static const struct {
		const char *name;
		uint64_t *value;
	} numbers[] = {
		{ "seed=", &opt.seed }, { "shift_index=", &opt.shift_index }, { "shift_count=", &opt.shift_count },
		{ "phase_s=", &opt.phase_s }, { "run_s=", &opt.run_s }, { "hot_mib=", &opt.hot_mib },
		{ "cool_mib=", &opt.cool_mib }, { "stream_mib_s=", &opt.stream_mib_s },
	};

	for (size_t i = 0; i < sizeof(numbers) / sizeof(*numbers); i++) {
		size_t len = strlen(numbers[i].name);
		char *end;

		if (strncmp(word, numbers[i].name, len) != 0)
			continue;
		errno = 0;
		*numbers[i].value = strtoull(word + len, &end, 10);
		if (errno || *end || end == word + len || *numbers[i].value > 1000000)
			die("%s: want a number up to 1000000", word);
		return true;
	}
	return false;
}

static void option_set(const char *word)
{
	if (number_set(word))
		return;
	if (!strncmp(word, "data=", 5))
		snprintf(opt.data, sizeof(opt.data), "%s", word + 5);
	else if (!strncmp(word, "port=", 5))
		snprintf(opt.port, sizeof(opt.port), "%s", word + 5);
	/* The rest of the kernel's command line is for others. */
}

int main(int argc, char **argv)
{
	if (argc == 4 && !strcmp(argv[1], "disk"))
		return disk_write(argv[2], strtoull(argv[3], NULL, 10));
	if (argc < 2 || strcmp(argv[1], "run") != 0)
		die("usage: guest-shift disk FILE MIB | guest-shift run [KEY=VALUE...]");
	for (int i = 2; i < argc; i++)
		option_set(argv[i]);
	if (!opt.shift_count || !opt.phase_s || !opt.run_s || !opt.hot_mib || !opt.cool_mib)
		die("shift_count, phase_s, run_s, hot_mib and cool_mib must not be 0");
	return run();
}
