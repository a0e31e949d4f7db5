/* A VMM that knows nothing of the agent in it: it has RAM as QEMU has, and does to it what VMMs do, when it is told to.
 * Page contents say whether every call did what it does to anonymous memory. */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/kernel_abi.h"
#include "tests/preload/vmm.h"

static uint8_t *rams[VMM_SCENARIOS];

/* Where it failed, for the test to print: no output of its own, standard error belongs to the test. */
#define CHECK(ok)                                \
	do {                                     \
		if (!(ok))                       \
			return __LINE__;         \
	} while (0)

/* As unit_page_fill(). */
static void page_make(uint64_t *page, uint64_t content)
{
	uint64_t state = content << 32;

	for (size_t i = 0; i < VMM_PAGE / 8; i++) {
		uint64_t z = state += UINT64_C(0x9e3779b97f4a7c15);

		z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
		z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
		page[i] = content ? z ^ (z >> 31) : 0;
	}
}

static uint8_t *page_of(uint8_t *ram, unsigned p)
{
	return ram + p * VMM_PAGE;
}

static void page_put(uint8_t *ram, unsigned p, uint64_t content)
{
	uint64_t page[VMM_PAGE / 8];

	page_make(page, content);
	memcpy(page_of(ram, p), page, VMM_PAGE);
}

static bool page_holds(uint8_t *ram, unsigned p, uint64_t content)
{
	uint64_t page[VMM_PAGE / 8];

	page_make(page, content);
	return memcmp(page_of(ram, p), page, VMM_PAGE) == 0;
}

static uint64_t content_of(unsigned p)
{
	return p >= VMM_ZERO_FIRST && p < VMM_ZERO_END ? 0 : p + 1;
}

/* As filled, but for [first, end), which is zero. */
static bool ram_is(uint8_t *ram, unsigned first, unsigned end)
{
	for (unsigned p = 0; p < VMM_RAM_PAGES; p++)
		if (!page_holds(ram, p, p >= first && p < end ? 0 : content_of(p)))
			return false;
	return true;
}

/* Can the kernel write there? */
static bool writable(uint8_t *at)
{
	int ends[2];
	bool ok;

	if (pipe(ends) < 0 || write(ends[1], at, 1) != 1)
		return false;
	ok = read(ends[0], at, 1) == 1;
	close(ends[0]);
	close(ends[1]);
	return ok;
}

static bool has_flag(const uint8_t *at, const char *flag)
{
	FILE *f = fopen("/proc/self/smaps", "re");
	unsigned long start = 0, end = 0;
	bool found = false;
	char line[1024];

	while (f && fgets(line, sizeof(line), f)) {
		unsigned long s, e;

		if (sscanf(line, "%lx-%lx ", &s, &e) == 2) {
			start = s;
			end = e;
		} else if (strncmp(line, "VmFlags:", 8) == 0 && (uintptr_t)at >= start && (uintptr_t)at < end) {
			found = strstr(line, flag) != NULL;
		}
	}
	if (f)
		fclose(f);
	return found;
}

/* ---- the scenarios ---- */

static int do_dontneed(uint8_t *ram)
{
	CHECK(ram_is(ram, 0, 0));
	CHECK(madvise(page_of(ram, 50), 100 * VMM_PAGE - 1, MADV_DONTNEED) == 0); /* the kernel rounds up */
	CHECK(ram_is(ram, 50, 150));
	CHECK(madvise(page_of(ram, 20) + 1, VMM_PAGE, MADV_DONTNEED) == -1 && errno == EINVAL);
	CHECK(posix_madvise(ram, VMM_RAM_BYTES, POSIX_MADV_DONTNEED) == 0);
	CHECK(ram_is(ram, 50, 150));
	page_put(ram, 60, 61);
	CHECK(page_holds(ram, 60, 61));
	return 0;
}

static int do_free(uint8_t *ram)
{
	CHECK(madvise(ram, VMM_MERGED * VMM_PAGE, MADV_FREE) == 0);
	CHECK(ram_is(ram, 0, VMM_MERGED));
	return 0;
}

static int do_remove(uint8_t *ram)
{
	CHECK(madvise(ram, VMM_MERGED * VMM_PAGE, MADV_REMOVE) == -1 && errno == EINVAL);
	CHECK(ram_is(ram, 0, 0));
	return 0;
}

static int do_unmap(uint8_t *ram)
{
	CHECK(munmap(ram, VMM_RAM_BYTES) == 0);
	CHECK(mmap(ram, VMM_RAM_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == ram);
	CHECK(page_holds(ram, 0, 0) && page_holds(ram, VMM_RAM_PAGES - 1, 0));
	return 0;
}

static int do_unmap_part(uint8_t *ram)
{
	uint8_t *hole = page_of(ram, 300);

	CHECK(munmap(hole, 10 * VMM_PAGE) == 0);
	CHECK(mmap(hole, 10 * VMM_PAGE, PROT_READ, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == hole);
	for (unsigned p = 0; p < VMM_MERGED; p++)
		CHECK(page_holds(ram, p, p + 1));
	CHECK(madvise(ram, 2 * VMM_PAGE, MADV_DONTNEED) == 0);
	CHECK(page_holds(ram, 0, 0) && page_holds(ram, 1, 0) && page_holds(ram, 2, 3));
	CHECK(madvise(ram, VMM_RAM_BYTES, MADV_DONTNEED) == 0);
	CHECK(page_holds(ram, 2, 0) && page_holds(ram, VMM_RAM_PAGES - 1, 0) && !writable(hole));
	return 0;
}

static int do_map_over(uint8_t *ram)
{
	CHECK(mmap(page_of(ram, 10), 10 * VMM_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1,
		   0) == page_of(ram, 10));
	CHECK(ram_is(ram, 10, 20));
	return 0;
}

static int do_protect(uint8_t *ram)
{
	CHECK(mprotect(ram, VMM_RAM_BYTES, PROT_READ) == 0);
	CHECK(ram_is(ram, 0, 0));
	CHECK(!writable(ram) && !writable(page_of(ram, 400)));
	CHECK(madvise(ram, 2 * VMM_PAGE, MADV_DONTNEED) == 0);
	CHECK(ram_is(ram, 0, 2));
	CHECK(!writable(ram) && !writable(page_of(ram, 1)) && !writable(page_of(ram, 2)));
	CHECK(mprotect(ram, VMM_RAM_BYTES, PROT_NONE) == 0);
	return 0;
}

static int do_unprotect(uint8_t *ram)
{
	CHECK(mprotect(ram, VMM_RAM_BYTES, PROT_READ | PROT_WRITE) == 0);
	CHECK(ram_is(ram, 0, 2));
	CHECK(writable(ram) && writable(page_of(ram, 5)));
	page_put(ram, 5, 99);
	page_put(ram, 5, 6);
	CHECK(ram_is(ram, 0, 2));
	return 0;
}

static int do_lock(uint8_t *ram)
{
	CHECK(mlock(page_of(ram, 10) + 7, 10 * VMM_PAGE) == 0);
	CHECK(ram_is(ram, 0, 0));
	CHECK(madvise(page_of(ram, 12), VMM_PAGE, MADV_DONTNEED) == -1 && errno == EINVAL); /* as for any memory */
	CHECK(ram_is(ram, 0, 0));
	CHECK(madvise(page_of(ram, 30), VMM_PAGE, MADV_DONTNEED) == 0);
	CHECK(ram_is(ram, 30, 31));
	return 0;
}

static int do_unlock(uint8_t *ram)
{
	CHECK(munlock(ram, VMM_RAM_BYTES) == 0);
	CHECK(ram_is(ram, 30, 31));
	CHECK(madvise(page_of(ram, 10), 21 * VMM_PAGE, MADV_DONTNEED) == 0);
	CHECK(ram_is(ram, 10, 31));
	return 0;
}

static int do_move(uint8_t *ram)
{
	uint8_t *room = mmap(NULL, VMM_RAM_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(room != MAP_FAILED);
	CHECK(mremap(ram, VMM_RAM_BYTES, VMM_RAM_BYTES, MREMAP_MAYMOVE | MREMAP_FIXED, room) == MAP_FAILED);
	CHECK(errno == ENOMEM && ram_is(ram, 0, 0));
	CHECK(mremap(page_of(ram, 512), WINDOW_BYTES, WINDOW_BYTES, MREMAP_MAYMOVE | MREMAP_FIXED, room) == room);
	for (unsigned p = 0; p < WINDOW_PAGES; p++)
		CHECK(page_holds(ram, p, content_of(p)) && page_holds(room, p, p + 513));
	return 0;
}

static int do_advise(uint8_t *ram)
{
	CHECK(madvise(ram, VMM_RAM_BYTES, MADV_DONTDUMP) == 0);
	CHECK(madvise(ram, VMM_RAM_BYTES, MADV_DOFORK) == 0);
	CHECK(has_flag(ram, " dd") && !has_flag(ram, " dc") && has_flag(page_of(ram, 300), " dd"));
	CHECK(madvise(ram, 5 * VMM_PAGE, MADV_DONTNEED) == 0);
	CHECK(has_flag(ram, " dd") && !has_flag(ram, " dc")); /* the new mapping as well */
	CHECK(madvise(ram, VMM_RAM_BYTES, MADV_WILLNEED) == 0 && ram_is(ram, 0, 5));
	return 0;
}

static int do_advise_part(uint8_t *ram)
{
	CHECK(madvise(ram, VMM_RAM_BYTES / 2, MADV_DODUMP) == 0); /* which it is already: changes nothing */
	CHECK(madvise(ram, VMM_RAM_BYTES / 2, MADV_DOFORK) == 0);
	CHECK(!has_flag(ram, " dc") && has_flag(page_of(ram, 600), " dc"));
	CHECK(ram_is(ram, 0, 0));
	return 0;
}

/* All of it can be watched, merged or not, and what is protected says so. */
static int do_watch(uint8_t *ram)
{
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_PAGEFAULT_FLAG_WP };
	struct uffdio_register all = { .range = { (uintptr_t)ram, VMM_RAM_BYTES },
				       .mode = UFFDIO_REGISTER_MODE_WP };
	struct uffdio_writeprotect wp = { .range = { (uintptr_t)ram, 2 * WINDOW_BYTES },
					  .mode = UFFDIO_WRITEPROTECT_MODE_WP };

	CHECK(fd >= 0 && ioctl(fd, UFFDIO_API, &api) == 0);
	CHECK(ioctl(fd, UFFDIO_REGISTER, &all) == 0);
	CHECK(ram_is(ram, 0, 0));
	CHECK(ioctl(fd, UFFDIO_WRITEPROTECT, &wp) == 0);
	wp.mode = 0;
	CHECK(ioctl(fd, UFFDIO_WRITEPROTECT, &wp) == 0);
	ram[5 * VMM_PAGE] ^= 1;
	ram[5 * VMM_PAGE] ^= 1;
	/* A merged page would not be watched any more: refused, and nothing is lost. Another goes as ever. */
	CHECK(madvise(ram, VMM_PAGE, MADV_DONTNEED) < 0 && errno == EBUSY);
	CHECK(ram_is(ram, 0, 0));
	CHECK(madvise(page_of(ram, 600), VMM_PAGE, MADV_DONTNEED) == 0);
	CHECK(ram_is(ram, 600, 601));
	CHECK(ioctl(fd, UFFDIO_UNREGISTER, &all.range) == 0 && close(fd) == 0);
	return 0;
}

/* RAM that children get; and one that executes something, with the library still in LD_PRELOAD. */
static int do_fork(uint8_t *ram)
{
	int status = -1;
	pid_t pid = fork();

	if (pid == 0) {
		bool ok = ram_is(ram, 0, 0) && madvise(ram, 2 * VMM_PAGE, MADV_DONTNEED) == 0 && ram_is(ram, 0, 2);

		_exit(ok && munmap(ram, VMM_RAM_BYTES) == 0 ? 0 : 1);
	}
	CHECK(pid > 0 && waitpid(pid, &status, 0) == pid && status == 0);
	CHECK(ram_is(ram, 0, 0));
	CHECK(system("exec true") == 0);
	for (unsigned p = 0; p < VMM_RAM_PAGES; p++) /* pages are its own again */
		page_put(ram, p, content_of(p));
	return 0;
}

static int do_lock_all(uint8_t *ram)
{
	CHECK(mlockall(MCL_CURRENT | MCL_FUTURE) == 0);
	CHECK(ram_is(ram, 0, 0));
	return 0;
}

static int do_unlock_all(uint8_t *ram)
{
	CHECK(munlockall() == 0);
	CHECK(madvise(ram, 2 * VMM_PAGE, MADV_DONTNEED) == 0);
	CHECK(ram_is(ram, 0, 2));
	return 0;
}

/* ---- the race ---- */

static atomic_bool race_over;
static atomic_int race_failed;
static uint8_t *race_ram;

/* What closes the slot for a while and opens it again. */
static int racer_shut(uint8_t *at, unsigned p, unsigned span)
{
	CHECK(mprotect(at, span * VMM_PAGE, PROT_READ) == 0 && !writable(at));
	for (unsigned i = p; i < p + span; i++)
		CHECK(page_holds(race_ram, i, content_of(i)));
	CHECK(mprotect(at, span * VMM_PAGE, PROT_READ | PROT_WRITE) == 0);
	CHECK(mlock(at, span * VMM_PAGE) == 0);
	for (unsigned i = p; i < p + span; i++)
		CHECK(page_holds(race_ram, i, content_of(i)));
	CHECK(madvise(at, VMM_PAGE, MADV_DONTNEED) == -1 && errno == EINVAL);
	CHECK(munlock(at, span * VMM_PAGE) == 0);
	CHECK(madvise(race_ram, VMM_RAM_BYTES, MADV_DONTDUMP) == 0);
	/* EFAULT: nothing is merged just now, but the mapping is in pieces still. */
	CHECK(mremap(race_ram, VMM_RAM_BYTES, 2 * VMM_RAM_BYTES, 0) == MAP_FAILED);
	CHECK(errno == ENOMEM || errno == EFAULT);
	return 0;
}

/* A quarter of RAM each: written, read, discarded in all ways, looked at after each. */
static int racer_round(unsigned first, unsigned n, unsigned round)
{
	unsigned p = first + round * 7919 % n, span = 1 + round % 23;
	uint8_t *at = page_of(race_ram, p);

	span = p + span > first + n ? first + n - p : span;
	for (unsigned i = p; i < p + span; i++)
		CHECK(page_holds(race_ram, i, content_of(i)));
	if (first > VMM_RAM_PAGES / 2 && round % 256 == 0) {
		int line = racer_shut(at, p, span);

		if (line != 0)
			return line;
	}
	CHECK(madvise(at, span * VMM_PAGE, round % 2 ? MADV_DONTNEED : MADV_FREE) == 0);
	if (round % 2)
		for (unsigned i = p; i < p + span; i++)
			CHECK(page_holds(race_ram, i, 0));
	for (unsigned i = p; i < p + span; i++)
		page_put(race_ram, i, content_of(i));
	for (unsigned i = p; i < p + span; i++)
		CHECK(page_holds(race_ram, i, content_of(i)));
	return 0;
}

static void *racer(void *arg)
{
	unsigned n = VMM_RAM_PAGES / 4, first = (unsigned)(uintptr_t)arg * n;

	for (unsigned round = 0; !atomic_load(&race_over); round++) {
		int line = racer_round(first, n, round);

		if (line != 0)
			atomic_store(&race_failed, line);
		usleep(round % 64 == 0 ? 200 : 0);
	}
	return NULL;
}

/* What libraries, allocators and children do elsewhere in the address space meanwhile. */
static void *bystander(void *arg)
{
	(void)arg;
	while (!atomic_load(&race_over)) {
		void *lib = dlopen("libm.so.6", RTLD_NOW), *some = malloc(1 << 20);
		pid_t pid = fork();

		if (pid == 0)
			_exit(0);
		if (!lib || !some || pid < 0 || waitpid(pid, NULL, 0) != pid)
			atomic_store(&race_failed, __LINE__);
		free(some);
		if (lib)
			dlclose(lib);
		usleep(5000);
	}
	return NULL;
}

static int do_race(uint8_t *ram)
{
	pthread_t threads[5];
	char end;

	race_ram = ram;
	for (unsigned i = 0; i < 5; i++)
		CHECK(pthread_create(&threads[i], NULL, i < 4 ? racer : bystander, (void *)(uintptr_t)i) == 0);
	CHECK(read(VMM_TO_FD, &end, 1) == 1);
	atomic_store(&race_over, true);
	for (unsigned i = 0; i < 5; i++)
		pthread_join(threads[i], NULL);
	CHECK(ram_is(ram, 0, 0));
	return atomic_load(&race_failed);
}

static int (*const scenarios[VMM_SCENARIOS])(uint8_t *ram) = {
	[VMM_DONTNEED] = do_dontneed,	  [VMM_FREE] = do_free,
	[VMM_REMOVE] = do_remove,	  [VMM_UNMAP] = do_unmap,
	[VMM_UNMAP_PART] = do_unmap_part, [VMM_MAP_OVER] = do_map_over,
	[VMM_PROTECT] = do_protect,	  [VMM_UNPROTECT] = do_unprotect,
	[VMM_LOCK] = do_lock,		  [VMM_UNLOCK] = do_unlock,
	[VMM_MOVE] = do_move,		  [VMM_ADVISE] = do_advise,
	[VMM_ADVISE_PART] = do_advise_part, [VMM_FORK] = do_fork,
	[VMM_WATCH] = do_watch,
	[VMM_RACE] = do_race,		  [VMM_LOCK_ALL] = do_lock_all,
	[VMM_UNLOCK_ALL] = do_unlock_all,
};

/* At a multiple of 2 MiB, with room around it, so that no two pieces are one mapping. */
static uint8_t *ram_new(int advice)
{
	size_t room = VMM_RAM_BYTES + 2 * WINDOW_BYTES;
	uint8_t *area = mmap(NULL, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), *ram;

	if (area == MAP_FAILED)
		_exit(2);
	ram = area + VMM_PAGE + (-(uintptr_t)(area + VMM_PAGE) & (WINDOW_BYTES - 1));
	if (mmap(ram, VMM_RAM_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != ram)
		_exit(2);
	madvise(ram, VMM_RAM_BYTES, MADV_NOHUGEPAGE);
	for (unsigned p = 0; p < VMM_RAM_PAGES; p++)
		page_put(ram, p, content_of(p));
	if (madvise(ram, VMM_RAM_BYTES, advice) < 0)
		_exit(2);
	/* Only a sign for the agent: the kernel's own merging, if it runs on this machine, must not come first. */
	if (advice == MADV_MERGEABLE && syscall(SYS_madvise, ram, VMM_RAM_BYTES, MADV_UNMERGEABLE) < 0)
		_exit(2);
	return ram;
}

/* What came before it is not the child's; what the child makes may come to be at the same place. */
static void go_on_in_child(void)
{
	uint8_t *ram = ram_new(MADV_DONTFORK);
	int status;
	pid_t pid;

	sleep(2); /* until it is offered */
	pid = fork();
	if (pid == 0)
		return;
	if (pid < 0 || waitpid(pid, &status, 0) != pid || !ram_is(ram, 0, 0))
		_exit(2);
	_exit(status != 0);
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";
	unsigned char number;
	int line;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (strcmp(what, "child") == 0)
		go_on_in_child();
	for (int i = 0; i < VMM_SCENARIOS; i++) {
		if (vmm_ram_of(i) == i) /* "not": no VMM, only a program that likes huge pages */
			rams[i] = ram_new(strcmp(what, "not") == 0 ? MADV_HUGEPAGE :
					  i == VMM_FORK		   ? MADV_MERGEABLE :
								     MADV_DONTFORK);
	}
	if (write(VMM_FROM_FD, rams, sizeof(rams)) != sizeof(rams))
		return 2;
	while (read(VMM_TO_FD, &number, 1) == 1) {
		line = number < VMM_SCENARIOS ? scenarios[number](rams[vmm_ram_of(number)]) : 0;
		if (write(VMM_FROM_FD, &line, sizeof(line)) != sizeof(line))
			return 2;
	}
	return 0;
}
