/*
 * guest-work - what a test guest does: hold memory whose every word is known, change some of it each
 * round, and say on the console whether all of it still is what it must be.
 *
 * The content of a word is a pure function of (seed, region, page, word, round): nothing that could be
 * wrong in the same way as the memory under test is kept beside it. Each round
 *   1. checks every word against the model of the round before: what lay still must not have changed;
 *   2. rewrites a few words in some pages: a write to a merged page must keep the rest of that page;
 *   3. checks the rewritten pages against the model of this round.
 * The same binary run on the host prints the same sums, so the model can be tested without a guest.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define WORDS		UINT64_C(512)	/* 64-bit words in a page */
#define MIB_PAGES	UINT64_C(256)
#define HUGE_BYTES	(UINT64_C(2) << 20)
#define HOT_SLICES	16		/* a hot page is rewritten every so many rounds */
#define TOUCH_STRIDE	64		/* one word in so many is rewritten: the rest must survive the copy */
#define TWIN_PAGES	UINT64_C(64)	/* period of the content that repeats inside one guest */
#define FILE_SLICES	8		/* rounds to check all files of the root image: a guest has cold memory too */
#define FILE_SLICES_BUSY	2	/* the same for workload=files */
#define TMPFS_MIB	8
#define TMPFS_MIB_BUSY	112		/* workload=tmpfs */
#define GOLDEN		UINT64_C(0x9e3779b97f4a7c15)

enum page_class { COMMON, UNIQUE, TWIN, ZERO, CLASSES };

struct region {
	uint64_t *base;
	uint64_t pages;
	uint64_t seed;
	unsigned eighths[CLASSES];	/* how the region is shared out, in order; the sum is 8 */
};

struct fault {	/* the first wrong word of a round */
	bool set;
	uint64_t page, word, got, want;
};

struct file {
	char *path;
	uint64_t bytes, hash;
};

struct options {
	char workload[16];
	char manifest[256], root[256], tmp[256];
	uint64_t pattern_mib, round_s, seed, rounds, corrupt_round;
	char corrupt_what[16];
};

static void die(const char *fmt, ...) __attribute__((format(printf, 1, 2), noreturn));

static void die(const char *fmt, ...)
{
	va_list ap;

	fputs("guest-work: ", stderr);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputc('\n', stderr);
	exit(1);
}

static void *must(void *p)
{
	if (!p)
		die("out of memory");
	return p;
}

/* The finaliser of splitmix64: cheap under emulation, and no two indices give the same word. */
static inline uint64_t mix(uint64_t x)
{
	x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
	x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
	return x ^ x >> 31;
}

static inline uint64_t fold(uint64_t sum, uint64_t word)
{
	return (sum << 7 | sum >> 57) * GOLDEN ^ word;
}

/* ---- the model ---- */

static enum page_class class_of(const struct region *r, uint64_t page)
{
	uint64_t eighth = page * 8 / r->pages;
	unsigned end = 0;

	for (int c = COMMON; c < ZERO; c++) {
		end += r->eighths[c];
		if (eighth < end)
			return (enum page_class)c;
	}
	return ZERO;
}

/* Whole MiB are hot or cold, so that cold 2 MiB blocks exist that can stay or become huge. */
static bool is_hot(uint64_t page)
{
	return page / MIB_PAGES % 4 == 3;
}

static bool is_due(uint64_t page, uint64_t round)
{
	uint64_t first = page % HOT_SLICES + 1;

	return is_hot(page) && round >= first && (round - first) % HOT_SLICES == 0;
}

static uint64_t rewrites(uint64_t page, uint64_t round)
{
	uint64_t first = page % HOT_SLICES + 1;

	return is_hot(page) && round >= first ? (round - first) / HOT_SLICES + 1 : 0;
}

static uint64_t page_key(const struct region *r, uint64_t page)
{
	switch (class_of(r, page)) {
	case COMMON:
		return mix(page + 1);
	case TWIN:
		return mix(mix(r->seed + 3) + page % TWIN_PAGES);
	default:
		return mix(mix(r->seed + 2) + page);
	}
}

/* Consecutive keys give words that differ in about half of their bits: enough to tell any two pages apart. */
static inline uint64_t plain_word(bool zero, uint64_t key, uint64_t word)
{
	uint64_t x = (key + word) * GOLDEN;

	return zero ? 0 : x ^ x >> 31;
}

/* What stands in a touched word after n rewrites: something unique, then the old content again, so
 * that a page which lost its twin can find it back. */
static uint64_t touched_word(const struct region *r, uint64_t page, uint64_t word, uint64_t n, uint64_t plain)
{
	return n % 2 ? mix(mix(mix(r->seed + 4) + page) + n * WORDS + word) : plain;
}

/* The inner loops: everything else is outside of them, for emulation makes each instruction dear. */
static inline __attribute__((always_inline))
void words_fill(volatile uint64_t *mem, bool zero, uint64_t key, uint64_t from, uint64_t to)
{
	for (uint64_t w = from; w < to; w++)
		mem[w] = plain_word(zero, key, w);
}

static inline __attribute__((always_inline))
uint64_t words_check(const uint64_t *mem, bool zero, uint64_t key, uint64_t from, uint64_t to, uint64_t *sum)
{
	uint64_t wrong = 0, s = *sum;

	for (uint64_t w = from; w < to; w++) {
		s = fold(s, mem[w]);
		wrong |= mem[w] ^ plain_word(zero, key, w);
	}
	*sum = s;
	return wrong;
}

static void page_fill(struct region *r, uint64_t page)	/* as of round 0 */
{
	uint64_t *mem = r->base + page * WORDS;

	if (class_of(r, page) == ZERO)
		words_fill(mem, true, 0, 0, WORDS);
	else
		words_fill(mem, false, page_key(r, page), 0, WORDS);
}

/* Compares a page with the model; `sum` takes what the memory holds. */
static void page_check(struct region *r, uint64_t page, uint64_t round, uint64_t *sum, struct fault *f)
{
	const uint64_t *mem = r->base + page * WORDS;
	bool zero = class_of(r, page) == ZERO;
	uint64_t key = page_key(r, page), n = rewrites(page, round), first = page % TOUCH_STRIDE;
	uint64_t wrong = 0;

	__asm__ volatile("" ::: "memory");	/* what was written must be read back */
	for (uint64_t w = 0; w < WORDS; w += TOUCH_STRIDE) {
		uint64_t t = w + first, end = w + TOUCH_STRIDE;

		if (zero)
			wrong |= words_check(mem, true, key, w, t, sum);
		else
			wrong |= words_check(mem, false, key, w, t, sum);
		*sum = fold(*sum, mem[t]);
		wrong |= mem[t] ^ touched_word(r, page, t, n, plain_word(zero, key, t));
		if (zero)
			wrong |= words_check(mem, true, key, t + 1, end, sum);
		else
			wrong |= words_check(mem, false, key, t + 1, end, sum);
	}
	if (!wrong || f->set)
		return;
	*f = (struct fault){ .set = true, .page = page };
	for (uint64_t w = 0; w < WORDS; w++) {
		uint64_t want = plain_word(zero, key, w), got = mem[w];

		if (w % TOUCH_STRIDE == first)
			want = touched_word(r, page, w, n, want);
		if (got != want) {
			f->word = w;
			f->got = got;
			f->want = want;
			return;
		}
	}
}

static uint64_t region_check(struct region *r, uint64_t round, struct fault *f)
{
	uint64_t sum = 0;

	for (uint64_t p = 0; p < r->pages; p++)
		page_check(r, p, round, &sum, f);
	return sum;
}

static void region_rewrite(struct region *r, uint64_t round, struct fault *f)
{
	uint64_t unused = 0;

	for (uint64_t p = 0; p < r->pages; p++) {
		uint64_t *mem = r->base + p * WORDS, key, n;
		bool zero = class_of(r, p) == ZERO;

		if (!is_due(p, round))
			continue;
		key = page_key(r, p);
		n = rewrites(p, round);
		for (uint64_t w = p % TOUCH_STRIDE; w < WORDS; w += TOUCH_STRIDE)
			mem[w] = touched_word(r, p, w, n, plain_word(zero, key, w));
		page_check(r, p, round, &unused, f);
	}
}

/* ---- where the regions live ---- */

/* Aligned for the guest's own huge pages: only then are its guest-physical pages in a row as well. */
static void region_map_memory(struct region *r)
{
	uint64_t bytes = r->pages * WORDS * 8;
	char *p = mmap(NULL, bytes + HUGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		die("cannot map %" PRIu64 " bytes: %s", bytes, strerror(errno));
	p += (HUGE_BYTES - (uintptr_t)p % HUGE_BYTES) % HUGE_BYTES;
	madvise(p, bytes, MADV_HUGEPAGE);
	r->base = (uint64_t *)(void *)p;
}

static void region_map_file(struct region *r, const char *dir)
{
	uint64_t bytes = r->pages * WORDS * 8;
	char path[sizeof(((struct options *)0)->tmp) + 16];
	int fd;

	snprintf(path, sizeof(path), "%s/pattern", dir);
	fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0 || ftruncate(fd, (off_t)bytes) < 0)
		die("%s: %s", path, strerror(errno));
	r->base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (r->base == MAP_FAILED)
		die("cannot map %s: %s", path, strerror(errno));
	close(fd);
}

/* ---- files of the root image ---- */

/* Maps rather than reads: the page cache itself is what must be right. 0 or -errno. */
static int file_hash(int dirfd, const char *path, uint64_t *ret_bytes, uint64_t *ret_hash)
{
	int fd = openat(dirfd, path, O_RDONLY | O_CLOEXEC);
	uint64_t bytes, hash = 0, tail = 0;
	const unsigned char *p = NULL;
	struct stat st;

	if (fd < 0 || fstat(fd, &st) < 0)
		return -errno;
	bytes = (uint64_t)st.st_size;
	if (bytes) {
		p = mmap(NULL, bytes, PROT_READ, MAP_SHARED, fd, 0);
		if (p == MAP_FAILED)
			die("cannot map %s: %s", path, strerror(errno));
	}
	close(fd);
	for (uint64_t i = 0; i < bytes / 8; i++)
		hash = fold(hash, ((const uint64_t *)(const void *)p)[i]);
	if (bytes % 8)
		memcpy(&tail, p + bytes / 8 * 8, bytes % 8);
	if (p)
		munmap((void *)(uintptr_t)p, bytes);
	*ret_bytes = bytes;
	*ret_hash = mix(fold(hash, tail));
	return 0;
}

static int manifest_write(void)	/* paths on stdin, relative to the working directory */
{
	char line[4096];

	while (fgets(line, sizeof(line), stdin)) {
		uint64_t bytes, hash;

		line[strcspn(line, "\n")] = '\0';
		if (file_hash(AT_FDCWD, line, &bytes, &hash) < 0)
			die("%s: %s", line, strerror(errno));
		printf("%016" PRIx64 " %" PRIu64 " %s\n", hash, bytes, line);
	}
	return 0;
}

static size_t manifest_read(const char *path, struct file **ret_files)
{
	FILE *fp = fopen(path, "re");
	struct file *files = NULL, one;
	char name[4096];
	size_t n = 0;

	if (!fp)
		die("%s: %s", path, strerror(errno));
	while (fscanf(fp, "%" SCNx64 " %" SCNu64 " %4095[^\n]", &one.hash, &one.bytes, name) == 3) {
		one.path = must(strdup(name));
		files = must(realloc(files, (n + 1) * sizeof(*files)));
		files[n++] = one;
	}
	fclose(fp);
	if (!n)
		die("%s: no entries", path);
	*ret_files = files;
	return n;
}

/* Returns the first wrong file, or NULL. Every `step`th file from `first` is read. */
static const char *files_check(int rootfd, const struct file *files, size_t n, size_t first, size_t step)
{
	for (size_t i = first; i < n; i += step) {
		uint64_t bytes, hash;

		if (file_hash(rootfd, files[i].path, &bytes, &hash) < 0 ||
		    bytes != files[i].bytes || hash != files[i].hash)
			return files[i].path;
	}
	return NULL;
}

/* ---- the Python process: told each round number, answers OK or BAD ---- */

static FILE *python_in, *python_out;

static bool python_answers(const char *want)
{
	char line[256];

	return fgets(line, sizeof(line), python_out) && !strncmp(line, want, strlen(want));
}

static void python_start(const struct options *o)
{
	int in[2], out[2];
	char seed[32];
	pid_t pid;

	snprintf(seed, sizeof(seed), "%" PRIu64, o->seed);
	if (pipe2(in, O_CLOEXEC) < 0 || pipe2(out, O_CLOEXEC) < 0)
		die("pipe: %s", strerror(errno));
	pid = fork();
	if (pid < 0)
		die("fork: %s", strerror(errno));
	if (pid == 0) {
		/* Nothing but the interpreter's own modules, and no attempt to write into a read-only image. */
		if (dup2(in[0], 0) < 0 || dup2(out[1], 1) < 0 || chroot(o->root) < 0 || chdir("/") < 0)
			_exit(127);
		execl("/usr/bin/python3", "python3", "-BSE", "/guest.py", seed, (char *)NULL);
		_exit(127);
	}
	close(in[0]);
	close(out[1]);
	python_in = must(fdopen(in[1], "w"));
	python_out = must(fdopen(out[0], "r"));
	if (!python_answers("READY"))
		die("the Python process did not start");
}

static bool python_round(uint64_t round)
{
	fprintf(python_in, "%" PRIu64 "\n", round);
	return fflush(python_in) == 0 && python_answers("OK");
}

/* ---- rounds ---- */

static uint64_t number(const char *key, const char *text)
{
	char *end;
	uint64_t v;

	errno = 0;
	v = strtoull(text, &end, 0);
	if (errno || end == text || *end)
		die("%s=%s: not a number", key, text);
	return v;
}

static void option_set(struct options *o, const char *arg)	/* words of others on the command line pass */
{
	const struct { const char *key; uint64_t *value; } numbers[] = {
		{ "pattern_mib", &o->pattern_mib }, { "round_s", &o->round_s }, { "seed", &o->seed },
		{ "rounds", &o->rounds }, { "corrupt_round", &o->corrupt_round },
	};
	const struct { const char *key; char *value; size_t size; } texts[] = {
		{ "workload", o->workload, sizeof(o->workload) }, { "tmp", o->tmp, sizeof(o->tmp) },
		{ "manifest", o->manifest, sizeof(o->manifest) }, { "image", o->root, sizeof(o->root) },
		{ "corrupt_what", o->corrupt_what, sizeof(o->corrupt_what) },
	};
	const char *eq = strchr(arg, '=');
	size_t len = eq ? (size_t)(eq - arg) : 0;

	for (size_t i = 0; len && i < sizeof(numbers) / sizeof(numbers[0]); i++)
		if (strlen(numbers[i].key) == len && !strncmp(arg, numbers[i].key, len))
			*numbers[i].value = number(numbers[i].key, eq + 1);
	for (size_t i = 0; len && i < sizeof(texts) / sizeof(texts[0]); i++)
		if (strlen(texts[i].key) == len && !strncmp(arg, texts[i].key, len))
			snprintf(texts[i].value, texts[i].size, "%s", eq + 1);
}

static bool is_workload(const struct options *o, const char *name)
{
	return !strcmp(o->workload, name);
}

static void options_check(const struct options *o)
{
	if (!is_workload(o, "idle") && !is_workload(o, "python") && !is_workload(o, "tmpfs") &&
	    !is_workload(o, "files"))
		die("workload=%s: want idle, python, tmpfs or files", o->workload);
	if (strcmp(o->corrupt_what, "memory") != 0 && strcmp(o->corrupt_what, "files") != 0)
		die("corrupt_what=%s: want memory or files", o->corrupt_what);
	if (o->pattern_mib < 8 || o->pattern_mib > 65536)
		die("pattern_mib=%" PRIu64 ": want 8 to 65536", o->pattern_mib);
}

/* One write: lines of the kernel must not come between. The tail is empty unless something is wrong. */
static void report(const struct options *o, uint64_t round, uint64_t sum, const struct fault *mem,
		   const struct fault *tmp, bool python_ok, const char *bad_file)
{
	const struct fault *f = mem->set ? mem : tmp;
	char where[160] = "";

	if (f->set)
		snprintf(where, sizeof(where), " first=%s page=%" PRIu64 " word=%" PRIu64 " got=%016" PRIx64
			 " want=%016" PRIx64, f == mem ? "memory" : "tmpfs", f->page, f->word, f->got, f->want);
	else if (!python_ok)
		snprintf(where, sizeof(where), " first=python");
	else if (bad_file)
		snprintf(where, sizeof(where), " first=%.140s", bad_file);
	printf("round %" PRIu64 " workload=%s memory=%s files=%s sum=%016" PRIx64 "%s\n", round, o->workload,
	       mem->set || !python_ok ? "BAD" : "OK", tmp->set || bad_file ? "BAD" : "OK", sum, where);
	fflush(stdout);
}

static int run(const struct options *o)
{
	struct region mem = { .pages = o->pattern_mib * MIB_PAGES, .seed = o->seed, .eighths = { 4, 2, 1, 1 } };
	struct region tmp = { .pages = (is_workload(o, "tmpfs") ? TMPFS_MIB_BUSY : TMPFS_MIB) * MIB_PAGES, .seed = ~o->seed,
			      .eighths = { 0, 4, 0, 4 } };
	struct timespec next;
	struct file *files;
	size_t file_count = manifest_read(o->manifest, &files);
	int rootfd = open(o->root, O_PATH | O_DIRECTORY | O_CLOEXEC);
	size_t slices = is_workload(o, "files") ? FILE_SLICES_BUSY : FILE_SLICES;
	const char *bad;

	if (rootfd < 0)
		die("%s: %s", o->root, strerror(errno));
	region_map_memory(&mem);
	region_map_file(&tmp, o->tmp);
	for (uint64_t p = 0; p < mem.pages; p++)
		page_fill(&mem, p);
	for (uint64_t p = 0; p < tmp.pages; p++)
		page_fill(&tmp, p);
	bad = files_check(rootfd, files, file_count, 0, 1);
	if (bad)
		die("%s is not as it was built", bad);
	if (is_workload(o, "python"))
		python_start(o);
	printf("guest ready workload=%s seed=%" PRIu64 "\n", o->workload, o->seed);
	fflush(stdout);

	clock_gettime(CLOCK_MONOTONIC, &next);
	for (uint64_t round = 1; !o->rounds || round <= o->rounds; round++) {
		bool python_ok = true;
		struct fault mem_fault = { .set = false }, tmp_fault = { .set = false };
		struct timespec now;
		uint64_t sum;

		if (round == o->corrupt_round)	/* a cold page: no rewrite may hide it */
			((unsigned char *)(strcmp(o->corrupt_what, "files") ? mem.base : tmp.base))[7 * 4096 + 123] ^= 1;
		sum = region_check(&mem, round - 1, &mem_fault);
		region_check(&tmp, round - 1, &tmp_fault);
		region_rewrite(&mem, round, &mem_fault);
		region_rewrite(&tmp, round, &tmp_fault);
		bad = files_check(rootfd, files, file_count, round % slices, slices);
		if (python_in)
			python_ok = python_round(round);
		report(o, round, sum, &mem_fault, &tmp_fault, python_ok, bad);

		/* A guest that was held up goes on from now: no burst of rounds to catch up. */
		next.tv_sec += (time_t)o->round_s;
		clock_gettime(CLOCK_MONOTONIC, &now);
		if (next.tv_sec <= now.tv_sec)
			next = now;
		else
			while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &next, NULL) == EINTR)
				;
	}
	return 0;
}

int main(int argc, char **argv)
{
	struct options o = {
		.workload = "idle", .manifest = "/manifest", .root = "/image", .tmp = "/tmp",
		.pattern_mib = 32, .round_s = 2, .seed = 1, .corrupt_what = "memory",
	};

	if (argc == 2 && !strcmp(argv[1], "manifest"))
		return manifest_write();
	if (argc < 2 || strcmp(argv[1], "run") != 0)
		die("usage: guest-work manifest <PATHS | guest-work run [KEY=VALUE...]");
	for (int i = 2; i < argc; i++)
		option_set(&o, argv[i]);
	options_check(&o);
	return run(&o);
}
