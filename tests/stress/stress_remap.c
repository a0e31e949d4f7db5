/* stress-remap SECONDS - merging at full speed over memory that is written, read, discarded, freed, read into by
 * devices, copied by the kernel, forked, pinned, scanned, collapsed and swapped out at the same time, by threads that
 * get signals, with every byte checked against a model (stress.h); and folded back at the same time. STRESS_KSM=1: all
 * memory is given to the kernel's scanner as well (which somebody else has to start). STRESS_NO_PINS=1: without devices
 * that hold pages pinned, so that what was copied on write is folded, too.
 *
 * Exit 0 only if every byte was right, staging is empty and no mapping is left over. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "agent/eligible.h"
#include "agent/freezer.h"
#include "agent/pagemap.h"
#include "agent/uffd.h"
#include "core/cleanup.h"
#include "core/clock.h"
#include "core/kernel_abi.h"
#include "tests/lib/sanitized.h"
#include "tests/stress/stress.h"

/* ---- threads ---- */

static void *writer(void *arg)
{
	unsigned me = (unsigned)(uintptr_t)arg;
	uint64_t r = me + 1;

	while (!s.stop) {
		unsigned block = below(&r, PAGES / BLOCK / WRITERS) * WRITERS + me;
		pthread_rwlock_t *lock = &s.window_lock[block * BLOCK / WINDOW_PAGES];

		pthread_rwlock_rdlock(lock);
		for (int i = 0; i < 8; i++)
			owner_act(block, &r);
		pthread_rwlock_unlock(lock);
	}
	return NULL;
}

/* Never waits for an owner, so that it reads in every moment of an exchange. */
static void *reader(void *arg)
{
	uint64_t r = 1000 + (uint64_t)(uintptr_t)arg;
	uint8_t copy[PAGE];

	while (!s.stop) {
		unsigned p = below(&r, PAGES);
		uint32_t seq = atomic_load(&s.model[p].seq);
		struct model m = { .content = s.model[p].content, .word = s.model[p].word, .value = s.model[p].value };

		memcpy(copy, page_at(p), PAGE);
		atomic_thread_fence(memory_order_seq_cst);
		s.reads++;
		if (seq % 2 == 0 && m.content <= CONTENTS && !page_is(copy, &m) &&
		    atomic_load(&s.model[p].seq) == seq)
			report(p, &m, "reader");
	}
	return NULL;
}

static unsigned runs_choose(struct exchange_run *runs, unsigned w, uint64_t *r)
{
	unsigned count = 0, skip = below(r, 4);
	uint64_t next = 0;

	for (unsigned i = 0; i < WINDOW_PAGES; i++) {
		uint32_t content = s.model[w * WINDOW_PAGES + i].content; /* a hint, as hashes are */
		uint64_t frame = content == 0 || content > CONTENTS ? EXCHANGE_ZERO : content - 1;
		struct exchange_run *last = count > 0 ? &runs[count - 1] : NULL;

		if (below(r, 8) < skip)
			continue;
		if (below(r, 64) == 0)
			frame = below(r, CONTENTS); /* wrong */
		if (last && last->first + last->pages == i && frame == (last->frame == EXCHANGE_ZERO ? last->frame : next)) {
			last->pages++;
		} else {
			runs[count++] = (struct exchange_run){ .first = (uint16_t)i, .pages = 1, .frame = frame };
			next = frame;
		}
		next++;
	}
	return count;
}

static void merge_window(unsigned w, uint64_t *r)
{
	struct exchange_run runs[WINDOW_PAGES];
	struct exchange_options opt = { .min_pages_huge = below(r, 2) ? 64 : 1, .min_pages = 1,
					.min_piece = 1 + below(r, 3) };
	unsigned count = runs_choose(runs, w, r);
	int err = 0;

	if (count > 0)
		err = exchange_merge(s.x, (uint64_t)(uintptr_t)page_at(w * WINDOW_PAGES), &s.store, runs, count, &opt);
	if (err < 0 && err != -ENOSPC) {
		printf("BAD exchange_merge: %s\n", strerror(-err));
		s.bad++;
		s.stop = true;
	}
	s.merges++;
}

static void *merger(void *arg)
{
	uint64_t r = 3000 + (uint64_t)(uintptr_t)arg;

	while (!s.stop)
		merge_window(below(&r, WINDOWS), &r);
	return NULL;
}

/* The stretches that are merged become anonymous again: where a page was copied, only if nothing can have it pinned. */
static void *folder(void *arg)
{
	uint64_t r = 8000;

	while (!s.stop) {
		struct exchange_fold fold;
		unsigned w = below(&r, WINDOWS);
		int err = exchange_fold(s.x, (uint64_t)(uintptr_t)page_at(w * WINDOW_PAGES), below(&r, 2), &fold);

		if (err < 0) {
			printf("BAD exchange_fold: %s\n", strerror(-err));
			s.bad++;
			s.stop = true;
		}
		s.folds++;
		s.folded += fold.folded;
		s.kept += fold.kept;
		usleep(below(&r, 3000));
	}
	return arg;
}

/* Gives whole windows back and fills them anew: huge pages come again, and merging never runs dry. */
static void *recycler(void *arg)
{
	uint64_t r = 2000;

	while (!s.stop) {
		unsigned w = below(&r, WINDOWS), first = w * WINDOW_PAGES;
		unsigned step = below(&r, 2) ? WINDOW_PAGES : BLOCK;

		pthread_rwlock_wrlock(&s.window_lock[w]);
		for (unsigned p = first; p < first + WINDOW_PAGES; p++)
			page_check(p, "recycler");
		do_discard(first, WINDOW_PAGES);
		for (unsigned p = first; p < first + WINDOW_PAGES; p += step)
			do_fill(p, step, &r);
		pthread_rwlock_unlock(&s.window_lock[w]);
		s.recycles++;
		merge_window(w, &r); /* at once, while it is still huge */
		usleep(2000);
	}
	return arg;
}

/* A child sees a window that nobody changes while it is copied. */
static void *forker(void *arg)
{
	uint64_t r = 4000;

	while (!s.stop) {
		unsigned w = below(&r, WINDOWS);
		int status = 0;
		pid_t pid;

		pthread_rwlock_wrlock(&s.window_lock[w]);
		pid = fork();
		if (pid == 0) {
			for (unsigned p = w * WINDOW_PAGES; p < (w + 1) * WINDOW_PAGES; p++) {
				if (!page_is(page_at(p), &s.model[p]))
					_exit(1);
			}
			_exit(0);
		}
		pthread_rwlock_unlock(&s.window_lock[w]);
		if (pid < 0 || waitpid(pid, &status, 0) != pid || status != 0) {
			printf("BAD fork child: status %#x\n", (unsigned)status);
			s.bad++;
		}
		s.forks++;
		usleep(200000); /* each makes all memory busy until it is written to */
	}
	return arg;
}

/* Holds pages pinned, as a device with fixed buffers does, while their window is merged again and again. */
static void merge_repeatedly(unsigned w, uint64_t *r)
{
	for (int i = 0; i < 4; i++)
		merge_window(w, r);
}

static void *pinner(void *arg)
{
	uint64_t r = 5000;

	while (!s.stop && !s.no_pins) {
		unsigned first = below(&r, PAGES / BLOCK) * BLOCK, w = first / WINDOW_PAGES;

		pthread_rwlock_wrlock(&s.window_lock[w]);
		do_pinned(first, 1 + below(&r, BLOCK), &r, merge_repeatedly);
		pthread_rwlock_unlock(&s.window_lock[w]);
		usleep(500);
	}
	return arg;
}

/* Writers and readers wait for pages with signals pending (R10): none may get EFAULT, or lose what it does. */
static pthread_t threads[16];

static void *signaller(void *arg)
{
	uint64_t r = 7000;

	while (!s.stop) {
		pthread_kill(threads[below(&r, WRITERS + 2)], SIGUSR1);
		s.signals++;
		usleep(300);
	}
	return arg;
}

static void on_signal(int signal_number)
{
	(void)signal_number;
}

/* The daemon's part: arms memory without asking anybody; and other unasked changes of the page tables. */
static void *scanner(void *arg)
{
	static struct page_region regions[PAGES];
	uint64_t r = 6000;

	while (!s.stop) {
		unsigned w = below(&r, WINDOWS);
		uint64_t at = (uint64_t)(uintptr_t)s.ram[1];
		struct pm_scan_arg scan = { .size = sizeof(scan), .flags = PM_SCAN_WP_MATCHING, .start = at,
					    .end = at + SLOT_WINDOWS * WINDOW_BYTES,
					    .vec = (uint64_t)(uintptr_t)regions, .vec_len = PAGES,
					    .category_mask = PAGE_IS_WRITTEN, .return_mask = PAGE_IS_WRITTEN };

		s.scans += ioctl(s.pagemap_fd, PAGEMAP_SCAN, &scan) >= 0;
		if (below(&r, 4) == 0)
			s.collapses += madvise(page_at(below(&r, SLOT_WINDOWS) * WINDOW_PAGES), WINDOW_BYTES,
					       MADV_COLLAPSE) == 0;
		madvise(page_at(below(&r, WINDOWS) * WINDOW_PAGES), WINDOW_BYTES, MADV_COLD);
		if (s.swap)
			s.pageouts += madvise(page_at(w * WINDOW_PAGES), WINDOW_BYTES, MADV_PAGEOUT) == 0;
		usleep(1000);
	}
	return arg;
}

/* ---- set up, and the account ---- */

static void fork_prepare(void)
{
	exchange_fork_prepare(s.x);
}

static void fork_parent(void)
{
	exchange_fork_parent(s.x);
}

static void fork_child(void)
{
	exchange_fork_child(s.x);
}

static uint8_t *ram_new(int advice)
{
	uint64_t len = SLOT_WINDOWS * WINDOW_BYTES;
	uint8_t *area = mmap(NULL, len + 2 * WINDOW_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint64_t at = ((uint64_t)(uintptr_t)area + 2 * WINDOW_BYTES - 1) & ~(WINDOW_BYTES - 1);

	must(area != MAP_FAILED && mmap((void *)at, len, PROT_READ | PROT_WRITE,
					MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == (void *)at &&
		     madvise((void *)at, len, advice) == 0,
	     "guest memory");
	return (uint8_t *)at;
}

static void contents_new(void)
{
	auto_close int fd = memfd_create("store", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	char path[] = "/var/tmp/stress-remap-XXXXXX", self[64];
	uint64_t r = 42;
	int file = mkstemp(path);
	size_t len = (size_t)(CONTENTS + 1) * PAGE;

	s.contents = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	must(s.contents != MAP_FAILED && file >= 0 && fd >= 0, "contents");
	for (size_t i = PAGE; i < len; i += 8) {
		uint64_t word = rnd(&r);

		memcpy(s.contents + i, &word, 8);
	}
	must(write(file, s.contents, len) == (ssize_t)len && fsync(file) == 0, path);
	s.file = open(path, O_RDONLY | (s.no_pins ? 0 : O_DIRECT) | O_CLOEXEC);
	unlink(path);
	close(file);
	must(s.file >= 0, "O_DIRECT");
	must(write(fd, s.contents + PAGE, len - PAGE) == (ssize_t)(len - PAGE) &&
		     fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0,
	     "store");
	snprintf(self, sizeof(self), "/proc/self/fd/%d", fd);
	s.store.fd = open(self, O_RDONLY | O_CLOEXEC);
	s.store.map = mmap(NULL, len - PAGE, PROT_READ, MAP_SHARED, s.store.fd, 0);
	s.store.frames = CONTENTS;
	must(s.store.map != MAP_FAILED, "store");
}

static bool swap_is_on(void)
{
	char buf[4096] = "";
	auto_close int fd = open("/proc/swaps", O_RDONLY | O_CLOEXEC);

	return fd >= 0 && read(fd, buf, sizeof(buf) - 1) > 0 && strchr(buf, '\n') && strchr(buf, '\n')[1] != '\0';
}

static struct freezer *freezer;

static void set_up(void)
{
	const char *why = "userfaultfd";
	size_t slot_len = SLOT_WINDOWS * WINDOW_BYTES;

	s.uffd = uffd_open();
	if (s.uffd < 0 || uffd_probe(s.uffd, &why) < 0) {
		printf("skip: stress-remap: %s\n", why);
		exit(77);
	}
	s.swap = swap_is_on();
	s.no_pins = getenv("STRESS_NO_PINS");
	if (getenv("STRESS_KSM"))
		must(prctl(PR_SET_MEMORY_MERGE, 1, 0, 0, 0) == 0, "PR_SET_MEMORY_MERGE");
	s.ram[0] = ram_new(MADV_HUGEPAGE);
	s.ram[1] = ram_new(MADV_NOHUGEPAGE);
	contents_new();
	s.pagemap_fd = pagemap_open(0);
	s.mem_fd = open("/proc/self/mem", O_RDWR | O_CLOEXEC);
	must(s.mem_fd >= 0, "/proc/self/mem");
	s.journal = mmap(NULL, sizeof(*s.journal), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	must(exchange_new(s.uffd, s.journal, &s.x) == 0, "exchange_new");
	must(uffd_register(s.uffd, (uint64_t)(uintptr_t)s.ram[1], slot_len, UFFDIO_REGISTER_MODE_WP) == 0, "WP");
	must(freezer_new(uffd_open_freezer(), &freezer) == 0, "freezer");
	exchange_use_freezer(s.x, freezer);
	for (unsigned i = 0; i < SLOTS; i++)
		must(exchange_slot_add(s.x, s.ram[i], slot_len, i == 1, &why) == 0, why);
	for (unsigned w = 0; w < WINDOWS; w++)
		pthread_rwlock_init(&s.window_lock[w], NULL);
	pthread_atfork(fork_prepare, fork_parent, fork_child);
}

/* Mappings within guest RAM. */
static unsigned ram_mappings(void)
{
	auto_fclose FILE *f = fopen("/proc/self/maps", "re");
	char line[512];
	uint64_t start, end;
	unsigned n = 0;

	while (f && fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%lx-%lx", &start, &end) != 2)
			continue;
		for (unsigned i = 0; i < SLOTS; i++)
			n += start < (uint64_t)(uintptr_t)s.ram[i] + SLOT_WINDOWS * WINDOW_BYTES &&
			     end > (uint64_t)(uintptr_t)s.ram[i];
	}
	return n;
}

static void print_counts(const struct exchange_counters *c)
{
	static const char *const names[EXCHANGE_STEPS] = { "", "register", "move", "compare", "map", "back",
							   "unregister", "wake", "drop", "" };

	printf("writes %lu checks %lu reads %lu discarded %lu O_DIRECT %lu io_uring %lu kernel writes %lu refused %lu reads "
	       "%lu forks %lu pins %lu scans %lu recycled %lu collapsed %lu paged out %lu signals %lu\n",
	       s.writes, s.checks, s.reads, s.discards, s.direct_reads, s.uring_reads, s.kernel_writes, s.refused,
	       s.kernel_reads, s.forks, s.pins, s.scans, s.recycles, s.collapses, s.pageouts, s.signals);
	printf("calls %lu windows %lu huge %lu merged %lu zero %lu moved %lu moved-back %lu copied-back %lu "
	       "remapped-back %lu huge-kept %lu unequal %lu busy %lu\n",
	       s.merges, c->windows, c->windows_huge, c->merged_pages, c->zero_pages, c->moved_pages, c->moved_back,
	       c->copied_back, c->remapped_back, c->huge_kept, c->unequal_pages, c->busy_pages);
	printf("fold calls %lu stretches %lu folded %lu kept %lu frozen mean %.1f us max %.1f us\n", s.folds, c->folds,
	       s.folded, s.kept, c->folds ? (double)c->fold_stall_ns / 1e3 / (double)c->folds : 0,
	       (double)c->fold_stall_max_ns / 1e3);
	printf("move-errors %lu map-failures %lu attributes-lost %lu zeroed-in-place %lu stall mean %.1f us max %.1f us\n",
	       c->move_errors, c->map_failures, c->attributes_lost, c->zeroed_in_place,
	       c->windows ? (double)c->stall_ns / 1e3 / (double)c->windows : 0, (double)c->stall_max_ns / 1e3);
	for (unsigned i = STEP_REGISTER; i <= STEP_DROP; i++)
		printf("%s %.2f ", names[i], c->windows ? (double)c->step_ns[i] / 1e3 / (double)c->windows : 0);
	printf("us a window\n");
}

static void final_checks(size_t mappings_before)
{
	struct page_states st = { 0 };
	unsigned in_staging = 0, left;

	for (unsigned p = 0; p < PAGES; p++)
		page_check(p, "end");
	if (memcmp(s.store.map, s.contents + PAGE, (size_t)CONTENTS * PAGE) != 0) {
		printf("BAD store: changed\n");
		s.bad++;
	}
	if (s.journal->staging != 0)
		must(pagemap_read(s.pagemap_fd, s.journal->staging, 0, WINDOW_PAGES, &st) == 0, "pagemap");
	for (unsigned p = 0; p < WINDOW_PAGES; p++)
		in_staging += st.flags[p] != 0;
	if (s.journal->step != STEP_IDLE || in_staging > 0) {
		printf("BAD end: step %u, %u pages in staging\n", s.journal->step, in_staging);
		s.bad++;
	}
	printf("mappings of guest memory: %u merged", ram_mappings());
	for (unsigned i = 0; i < SLOTS; i++)
		do_discard(i * SLOT_WINDOWS * WINDOW_PAGES, SLOT_WINDOWS * WINDOW_PAGES);
	for (unsigned p = 0; p < PAGES; p++)
		page_check(p, "discarded");
	printf(", %u discarded\n", ram_mappings());
	if (ram_mappings() != SLOTS) {
		printf("BAD end: guest memory is in pieces\n");
		s.bad++;
	}
	print_counts(exchange_counters(s.x));
	if (exchange_counters(s.x)->attributes_lost > 0 && exchange_counters(s.x)->map_failures == 0)
		s.bad++;
	s.x = exchange_free(s.x);
	freezer = freezer_free(freezer);
	for (unsigned i = 0; i < SLOTS; i++) /* one mapping again, as a VMM's own mmap would */
		must(mmap(s.ram[i], SLOT_WINDOWS * WINDOW_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1,
			  0) != MAP_FAILED,
		     "mmap");
	left = (unsigned)mappings_count();
	if (left > mappings_before && !SANITIZED) {
		printf("BAD end: %u mappings, %zu at the start\n", left, mappings_before);
		s.bad++;
	}
}

int main(int argc, char **argv)
{
	void *(*const actors[])(void *) = { writer, writer, writer, reader, reader, recycler, merger, merger,
					    forker, pinner, scanner, signaller, folder };
	struct sigaction act = { .sa_handler = on_signal, .sa_flags = SA_RESTART };
	unsigned seconds = argc == 2 ? (unsigned)strtoul(argv[1], NULL, 10) : 0;
	size_t before;
	uint64_t r = 7;

	if (seconds == 0) {
		fprintf(stderr, "usage: stress-remap SECONDS\n");
		return 2;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	set_up();
	sigaction(SIGUSR1, &act, NULL);
	for (unsigned p = 0; p < PAGES; p += BLOCK)
		do_fill(p, BLOCK, &r);
	before = mappings_count() + ARRAY_SIZE(actors) * 4; /* stacks, arenas and rings stay */
	for (size_t i = 0; i < ARRAY_SIZE(actors); i++)
		must(pthread_create(&threads[i], NULL, actors[i], (void *)i) == 0, "pthread_create");
	for (unsigned i = 0; i < seconds * 10 && !s.stop; i++)
		usleep(100000);
	s.stop = true;
	for (size_t i = 0; i < ARRAY_SIZE(actors); i++)
		pthread_join(threads[i], NULL);
	final_checks(before);
	printf("%s: %lu wrong\n", s.bad == 0 ? "ok" : "FAIL", s.bad);
	return s.bad == 0 ? 0 : 1;
}
