/* ksmd/store: what a client may do with its descriptor, and adoption after a restart. */
#include "ksmd/store.h"

#include <sys/file.h>
#include <sys/fsuid.h>

#include "tests/unit/store_help.h"

#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

/* ---- the client's side ---- */

static void test_store_client_cannot_write(void)
{
	struct store *s = new_store(FRAMES);
	int fd = store_client_fd(s);
	uint32_t first;
	char *map;

	CU_ASSERT_TRUE(fd >= 0);
	CU_ASSERT_EQUAL(store_alloc(s, 2, 1, &first), 0);
	put(s, first, 2, 40);
	CU_ASSERT_EQUAL(fcntl(fd, F_GETFL) & O_ACCMODE, O_RDONLY);
	CU_ASSERT_TRUE(fcntl(fd, F_GETFD) & FD_CLOEXEC);
	CU_ASSERT_TRUE(pwrite(fd, "x", 1, first * PAGE_BYTES) < 0 && errno == EBADF);
	CU_ASSERT_TRUE(ftruncate(fd, 0) < 0);
	CU_ASSERT_TRUE(ftruncate(fd, (off_t)2 * FRAMES * PAGE_BYTES) < 0);
	CU_ASSERT_TRUE(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, first * PAGE_BYTES, PAGE_BYTES) < 0);
	CU_ASSERT_TRUE(mmap(NULL, PAGE_BYTES, PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED && errno == EACCES);
	CU_ASSERT_TRUE(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE) < 0 && errno == EPERM);
	map = mmap(NULL, PAGE_BYTES, PROT_READ, MAP_SHARED, fd, first * PAGE_BYTES);
	CU_ASSERT_TRUE(map != MAP_FAILED && mprotect(map, PAGE_BYTES, PROT_READ | PROT_WRITE) < 0);
	munmap(map, PAGE_BYTES);
	map = mmap(NULL, 2 * PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, first * PAGE_BYTES);
	CU_ASSERT_TRUE_FATAL(map != MAP_FAILED);
	CU_ASSERT_TRUE(page_is(map, 40));
	map[7] = 1; /* a private copy */
	CU_ASSERT_TRUE(frame_is(s, first, 40) && page_is(map + PAGE_BYTES, 41));
	munmap(map, 2 * PAGE_BYTES);
	CU_ASSERT_TRUE(store_is(s, fd));
	CU_ASSERT_FALSE(store_is(s, STDIN_FILENO));
	close(fd);
	store_free(s);
}

static void test_store_unprivileged_client_cannot_reopen(void)
{
	struct store *s;
	char path[32];
	int fd, status;
	pid_t pid;

	if (geteuid() != 0)
		UNIT_SKIP("needs root to become somebody else");
	s = new_store(FRAMES);
	fd = store_client_fd(s);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	pid = fork();
	unit_must(pid >= 0, "fork");
	if (pid == 0) {
		unit_must(setresgid(65534, 65534, 65534) == 0 && setresuid(65534, 65534, 65534) == 0, "setresuid");
		prctl(PR_SET_DUMPABLE, 1); /* /proc/self is ours again */
		_exit(open(path, O_RDWR | O_CLOEXEC) >= 0 || fchmod(fd, 0666) == 0 || fchown(fd, 65534, 65534) == 0);
	}
	unit_must(waitpid(pid, &status, 0) == pid, "waitpid");
	CU_ASSERT_EQUAL(status, 0);
	close(fd);
	store_free(s);
}

/* ---- after a restart ---- */

static void test_store_adopt_retires_what_nobody_maps(void)
{
	uint64_t used[FRAMES / 64] = { 0 };
	struct store_options options = { "ignored", 0, -1 };
	struct store *s = new_store(FRAMES);
	int fd = store_client_fd(s);
	uint32_t first, next;

	CU_ASSERT_EQUAL(store_alloc(s, 2000, 1, &first), 0);
	put(s, first, 2000, 1);
	store_free(s); /* the daemon is gone, the client is not */

	if (store_adopt(&fs, fd, &options, &s) == -EACCES) {
		close(fd);
		UNIT_SKIP("needs root to open a store for writing again");
	}
	CU_ASSERT_TRUE(store_is(s, fd));
	CU_ASSERT_EQUAL(store_frames(s), FRAMES);
	CU_ASSERT_TRUE(store_is_published(s, first, 2000));
	CU_ASSERT_EQUAL(count(s).frames_used, 2000);
	for (uint32_t f = first + 100; f < first + 550; f++)
		used[f / 64] |= UINT64_C(1) << f % 64;
	used[(first + 1705) / 64] |= UINT64_C(1) << (first + 1705) % 64;
	for (uint32_t at = 0, n; store_next_unused(s, used, &at, &n);)
		CU_ASSERT_EQUAL(store_retire(s, at, n), 0);
	CU_ASSERT_EQUAL(count(s).frames_used, 451);
	CU_ASSERT_EQUAL(count(s).bytes, 451 * PAGE_BYTES);
	for (uint32_t i = 0; i < 2000; i++) {
		bool held = (i >= 100 && i < 550) || i == 1705;

		CU_ASSERT_EQUAL(store_is_published(s, first + i, 1), held);
		if (held)
			CU_ASSERT_TRUE(frame_is(s, first + i, 1 + i));
	}
	CU_ASSERT_EQUAL(store_alloc(s, 300, 1, &next), 0);
	CU_ASSERT_TRUE(next + 300 <= first + 100 || next >= first + 550);
	CU_ASSERT_EQUAL(store_alloc(s, 8 * STORE_BLOCK_FRAMES, STORE_BLOCK_FRAMES, &next), 0);
	close(fd);
	store_free(s);
}

static void test_store_adopt_in_use_refused(void)
{
	struct store_options options = { "test", FRAMES, -1 };
	struct store *s, *other;
	int fd;

	if (geteuid() != 0)
		UNIT_SKIP("needs root to open a store for writing again");
	s = new_store(FRAMES);
	fd = store_client_fd(s);
	CU_ASSERT_EQUAL(store_adopt(&fs, fd, &options, &other), -EBUSY);
	CU_ASSERT_TRUE(flock(fd, LOCK_EX | LOCK_NB) < 0); /* nor by a client, as long as there is a daemon */
	store_free(s);
	CU_ASSERT_EQUAL_FATAL(store_adopt(&fs, fd, &options, &other), 0);
	store_free(other);
	close(fd);
}

static void test_store_adopt_forged_refused(void)
{
	static const struct forged {
		const char *what, *name;
		int seals;
		mode_t mode;
		uid_t uid;
		off_t bytes;
	} cases[] = {
		{ "real", "memvirt-store:x", SEALS, 0400, 0, FRAMES * PAGE_BYTES },
		{ "name", "other", SEALS, 0400, 0, FRAMES * PAGE_BYTES },
		{ "no seals", "memvirt-store:x", 0, 0400, 0, FRAMES * PAGE_BYTES },
		{ "not all seals", "memvirt-store:x", F_SEAL_SHRINK | F_SEAL_GROW, 0400, 0, FRAMES * PAGE_BYTES },
		{ "more seals", "memvirt-store:x", SEALS | F_SEAL_WRITE, 0400, 0, FRAMES * PAGE_BYTES },
		{ "writable", "memvirt-store:x", SEALS, 0600, 0, FRAMES * PAGE_BYTES },
		{ "readable by others", "memvirt-store:x", SEALS, 0444, 0, FRAMES * PAGE_BYTES },
		{ "made by others", "memvirt-store:x", SEALS, 0400, 65534, FRAMES * PAGE_BYTES },
		{ "empty", "memvirt-store:x", SEALS, 0400, 0, 0 },
		{ "odd size", "memvirt-store:x", SEALS, 0400, 0, FRAMES * PAGE_BYTES + 1 },
		{ "too large", "memvirt-store:x", SEALS, 0400, 0, ((off_t)STORE_FRAMES_MAX + 512) * PAGE_BYTES },
	};
	struct store_options options = { NULL, 0, -1 };
	struct store *s;
	int pipe_fds[2];

	if (geteuid() != 0)
		UNIT_SKIP("needs root to make files of others");
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		const struct forged *c = &cases[i];
		int fd, r;

		setfsuid(c->uid);
		fd = memfd_create(c->name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
		setfsuid(0);
		unit_must(fd >= 0 && ftruncate(fd, c->bytes) == 0 && fchmod(fd, c->mode) == 0 &&
				  (c->seals == 0 || fcntl(fd, F_ADD_SEALS, c->seals) == 0), c->what);
		s = NULL;
		r = store_adopt(&fs, fd, &options, &s);
		UNIT_CASE(c->what, r == (i == 0 ? 0 : -EPERM) && (r == 0) == (s != NULL));
		store_free(s);
		close(fd);
	}
	unit_must(pipe2(pipe_fds, O_CLOEXEC) == 0, "pipe");
	CU_ASSERT_EQUAL(store_adopt(&fs, pipe_fds[0], &options, &s), -EPERM);
	close(pipe_fds[0]);
	close(pipe_fds[1]);
	CU_ASSERT_TRUE(store_adopt(&fs, pipe_fds[0], &options, &s) < 0); /* closed */
	CU_ASSERT_TRUE(store_adopt(&fs, -1, &options, &s) < 0);
}

int main(void)
{
	static CU_TestInfo tests[] = {
		{ "client", test_store_client_cannot_write },
		{ "client_unprivileged", test_store_unprivileged_client_cannot_reopen },
		{ "adopt", test_store_adopt_retires_what_nobody_maps },
		{ "adopt_in_use", test_store_adopt_in_use_refused },
		{ "adopt_forged", test_store_adopt_forged_refused },
		CU_TEST_INFO_NULL,
	};
	int r;

	unit_must(fsio_open_root("/", false, &fs) == 0, "fsio_open_root");
	r = unit_main("store_client", tests);
	fsio_close(&fs);
	return r;
}
