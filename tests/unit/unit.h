/* tests/unit/unit.h - what the unit test programs share: a main(), skips, temporary trees, children.
 *
 * Helpers that only prepare abort when the system refuses; what is under test is checked by CUnit. */
#ifndef TESTS_UNIT_H
#define TESTS_UNIT_H

#include <CUnit/Basic.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/cleanup.h"
#include "core/snapshot.h"
#include "tests/lib/sanitized.h"

#define UNIT_FIXTURES "tests/fixtures" /* tests run in the root of the source tree */

static inline void unit_must(bool ok, const char *what)
{
	if (!ok) {
		perror(what);
		abort();
	}
}

/* Whether a sanitizer has mapped most of the address space for itself: locking all memory would need all of it. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define UNIT_SANITIZED 1
#elif defined(__has_feature)
#define UNIT_SANITIZED (__has_feature(address_sanitizer) || __has_feature(thread_sanitizer))
#else
#define UNIT_SANITIZED 0
#endif

/* ---- the program ---- */

static unsigned unit_skips;

/* Leaves a test that this machine cannot run. */
#define UNIT_SKIP(reason)                                         \
	do {                                                      \
		printf("\nskip: %s: %s\n", __func__, (reason));   \
		unit_skips++;                                     \
		return;                                           \
	} while (0)

/* Fails with the case's name; use it in tables. */
#define UNIT_CASE(what, ok)                                                                   \
	do {                                                                                  \
		bool unit_ok_ = (ok);                                                         \
		if (!unit_ok_)                                                                \
			printf("\n    case \"%s\": %s\n", (what), #ok);                       \
		CU_assertImplementation(unit_ok_, __LINE__, (what), __FILE__, __func__, CU_FALSE); \
	} while (0)

static inline int unit_main(const char *name, CU_TestInfo *tests)
{
	CU_SuiteInfo suites[] = { { name, NULL, NULL, NULL, NULL, tests }, CU_SUITE_INFO_NULL };
	unsigned failed, run;

	setvbuf(stdout, NULL, _IOLBF, 0); /* nothing is left to be written twice by a child */
	if (CU_initialize_registry() != CUE_SUCCESS || CU_register_suites(suites) != CUE_SUCCESS)
		return 1;
	CU_basic_set_mode(CU_BRM_NORMAL);
	CU_basic_run_tests();
	failed = CU_get_number_of_failures() + CU_get_number_of_suites_failed();
	run = CU_get_number_of_tests_run();
	CU_cleanup_registry();
	if (failed > 0 || run == 0)
		return 1;
	return run == unit_skips ? 77 : 0;
}

/* ---- files ---- */

#define UNIT_DIR_MAX 256

static inline void unit_dir_new(char dir[UNIT_DIR_MAX])
{
	const char *base = getenv("TMPDIR");

	snprintf(dir, UNIT_DIR_MAX, "%.200s/memvirt-unit-XXXXXX", base ? base : "/tmp");
	unit_must(mkdtemp(dir), dir);
}

static inline int unit_remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	(void)st;
	(void)type;
	(void)ftw;
	return remove(path);
}

static inline void unit_dir_remove(const char *dir)
{
	nftw(dir, unit_remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

/* Writes len bytes to dir/name, with the folders in between. */
static inline void unit_file_bytes(const char *dir, const char *name, const void *data, size_t len)
{
	char path[PATH_MAX];
	auto_fclose FILE *f = NULL;

	snprintf(path, sizeof(path), "%.255s/%.3000s", dir, name);
	for (char *p = path + strlen(dir) + 1; (p = strchr(p, '/')); p++) {
		*p = '\0';
		unit_must(mkdir(path, 0700) == 0 || errno == EEXIST, path);
		*p = '/';
	}
	f = fopen(path, "we");
	unit_must(f && fwrite(data, 1, len, f) == len, path);
}

static inline void unit_file(const char *dir, const char *name, const char *text)
{
	unit_file_bytes(dir, name, text, strlen(text));
}

/* The whole file with a NUL behind it; NULL when it is not there. The caller frees it. */
static inline char *unit_file_text(const char *dir, const char *name)
{
	char path[PATH_MAX];
	auto_fclose FILE *f = NULL;
	char *text = NULL;
	size_t cap = 0;
	ssize_t n;

	snprintf(path, sizeof(path), "%.255s/%.3000s", dir, name);
	f = fopen(path, "re");
	if (!f)
		return NULL;
	n = getdelim(&text, &cap, '\0', f);
	if (n < 0) {
		free(text);
		text = strdup("");
	}
	unit_must(text, path);
	return text;
}

static inline bool unit_file_is(const char *dir, const char *name, const char *want)
{
	auto_free char *text = unit_file_text(dir, name);

	return want ? text && strcmp(text, want) == 0 : !text;
}

/* ---- standard error ---- */

struct unit_stderr {
	int saved, memory;
};

static inline void unit_stderr_begin(struct unit_stderr *c)
{
	fflush(stderr);
	c->saved = dup(STDERR_FILENO);
	c->memory = memfd_create("stderr", MFD_CLOEXEC);
	unit_must(c->saved >= 0 && c->memory >= 0 && dup2(c->memory, STDERR_FILENO) >= 0, "stderr");
}

/* What was written since; the caller frees it. */
static inline char *unit_stderr_end(struct unit_stderr *c)
{
	off_t len = lseek(c->memory, 0, SEEK_END);
	char *text = calloc(1, (size_t)len + 1);

	unit_must(dup2(c->saved, STDERR_FILENO) >= 0 && text && pread(c->memory, text, (size_t)len, 0) == len,
		  "stderr");
	close(c->saved);
	close(c->memory);
	return text;
}

/* ---- memory ---- */

/* Numbers that repeat from run to run. */
static inline uint64_t unit_random(uint64_t *state)
{
	uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);

	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return z ^ (z >> 31);
}

/* The page with this number: 0 is all zero, others are random and all different. */
static inline void unit_page_fill(char *page, uint64_t content)
{
	uint64_t state = content << 32;

	for (size_t i = 0; i < PAGE_BYTES; i += sizeof(state)) {
		uint64_t word = content ? unit_random(&state) : 0;

		memcpy(page + i, &word, sizeof(word));
	}
}

/* Private anonymous memory of small pages, none of them present. */
static inline char *unit_map(size_t pages)
{
	char *map = mmap(NULL, pages * PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	unit_must(map != MAP_FAILED, "mmap");
	madvise(map, pages * PAGE_BYTES, MADV_NOHUGEPAGE);
	return map;
}

/* ---- children ---- */

/* A process that made its memory and waits to be ended. */
struct unit_child {
	pid_t pid;
	int pidfd;
	int hold;  /* closed: the child ends */
	char *map; /* what make() returned, in the child */
};

/* Runs make(arg) in a child and waits until it is through. make() must not use the heap or stdio. */
static inline void unit_child_start(struct unit_child *c, char *(*make)(void *arg), void *arg)
{
	int ready[2], hold[2];

	unit_must(pipe2(ready, O_CLOEXEC) == 0 && pipe2(hold, O_CLOEXEC) == 0, "pipe");
	c->pid = fork();
	unit_must(c->pid >= 0, "fork");
	if (c->pid == 0) {
		char *map, end;

		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close(hold[1]);
		map = make(arg);
		if (write(ready[1], &map, sizeof(map)) != sizeof(map) || read(hold[0], &end, 1) != 0)
			_exit(1);
		_exit(0);
	}
	close(ready[1]);
	close(hold[0]);
	c->hold = hold[1];
	unit_must(read(ready[0], &c->map, sizeof(c->map)) == sizeof(c->map), "child");
	close(ready[0]);
	c->pidfd = (int)syscall(SYS_pidfd_open, c->pid, 0);
	unit_must(c->pidfd >= 0, "pidfd_open");
}

/* Ends the child at once; its pid is free afterwards. */
static inline void unit_child_kill(struct unit_child *c)
{
	if (c->pid <= 0)
		return;
	kill(c->pid, SIGKILL);
	waitpid(c->pid, NULL, 0);
	c->pid = 0;
}

static inline void unit_child_stop(struct unit_child *c)
{
	unit_child_kill(c);
	close(c->hold);
	close(c->pidfd);
}

/* One page after the other, by number: see unit_page_fill(); UNIT_ABSENT: not touched, UNIT_ZERO_MAPPED: read only. */
#define UNIT_ABSENT UINT64_MAX
#define UNIT_ZERO_MAPPED (UINT64_MAX - 1)

struct unit_pages {
	const uint64_t *contents;
	size_t count;
};

static inline char *unit_pages_make(void *arg)
{
	const struct unit_pages *p = arg;
	char *map = unit_map(p->count);

	for (size_t i = 0; i < p->count; i++) {
		volatile char *page = map + i * PAGE_BYTES;

		if (p->contents[i] == UNIT_ABSENT)
			continue;
		if (p->contents[i] == UNIT_ZERO_MAPPED) {
			(void)*page;
			continue;
		}
		*page = 1; /* present, whatever is filled in */
		unit_page_fill(map + i * PAGE_BYTES, p->contents[i]);
	}
	return map;
}

#endif
