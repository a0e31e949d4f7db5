#include "tests/world/load.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#define BLOCK 16u
#define OF_THE_VM UINT32_C(0x80000000) /* contents that no other VM has */
#define ZEROES 0u

struct load load;

struct model {
	_Atomic uint32_t seq; /* odd: being changed */
	uint32_t content;
	uint32_t word;	/* this 8-byte word of it is replaced .. */
	uint64_t value; /* .. if this is not 0 */
};
static struct model model[PAGES];

static uint64_t mix(uint64_t z)
{
	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return z ^ (z >> 31);
}

static unsigned below(uint64_t *r, unsigned n)
{
	return (unsigned)(mix(*r += UINT64_C(0x9e3779b97f4a7c15)) % n);
}

static uint8_t *page_at(unsigned p)
{
	return load.ram + (size_t)p * PAGE;
}

/* ---- contents ---- */

static void content_make(uint32_t content, uint64_t *words)
{
	uint64_t key = content & OF_THE_VM ? (uint64_t)content << 32 | load.vm : content;

	for (unsigned i = 0; i < PAGE / 8; i++)
		words[i] = content == ZEROES ? 0 : mix((key << 9 | i) + UINT64_C(0x9e3779b97f4a7c15) * (key + 1));
}

static bool page_is(const uint8_t *page, const struct model *m)
{
	uint64_t want[PAGE / 8];

	content_make(m->content, want);
	if (m->value != 0)
		want[m->word] = m->value;
	return memcmp(page, want, PAGE) == 0;
}

static uint32_t content_shared(unsigned at)
{
	return 1 + load.page->epoch * POOL + at % POOL;
}

/* Where it lies, in the kernel's words. */
static void print_place(unsigned p)
{
	FILE *f = fopen("/proc/self/maps", "re");
	uint64_t entry = 0, at = (uint64_t)(uintptr_t)page_at(p);
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	unsigned long start, end;
	char line[512];

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "%lx-%lx", &start, &end) == 2 && at >= start && at < end)
			printf("  %s", line);
	if (fd >= 0 && pread(fd, &entry, sizeof(entry), (off_t)(at / PAGE * 8)) == sizeof(entry))
		printf("  pagemap %#lx\n", entry);
	if (f)
		fclose(f);
	if (fd >= 0)
		close(fd);
}

/* One is enough: the world ends as soon as it sees the count. */
static void report(unsigned p, const struct model *m, const uint8_t *page, const char *who)
{
	uint64_t want[PAGE / 8], got[PAGE / 8];
	unsigned first = PAGE / 8, wrong = 0;

	if (load.page->bad++ > 3)
		return;
	content_make(m->content, want);
	if (m->value != 0)
		want[m->word] = m->value;
	memcpy(got, page, PAGE);
	for (unsigned i = PAGE / 8; i-- > 0;) {
		wrong += got[i] != want[i];
		first = got[i] != want[i] ? i : first;
	}
	printf("BAD pid %d page %u at %p (%s): content %#x word %u value %#lx seq %u: %u words wrong, first %u: "
		"%#lx instead of %#lx\n", (int)getpid(), p, (void *)page_at(p), who, m->content, m->word, m->value,
		m->seq, wrong, first, first < PAGE / 8 ? got[first] : 0, first < PAGE / 8 ? want[first] : 0);
	print_place(p);
}

static void failed(const char *what)
{
	printf("BAD pid %d %s: %s\n", (int)getpid(), what, strerror(errno));
	load.page->bad++;
}

/* ---- what an owner does ---- */

static void change(unsigned first, unsigned n)
{
	for (unsigned p = first; p < first + n; p++)
		atomic_fetch_add(&model[p].seq, 1);
}

static void model_set(unsigned p, uint32_t content)
{
	model[p].content = content;
	model[p].value = 0;
}

static void page_check(unsigned p, const char *who)
{
	load.page->checks++;
	if (!page_is(page_at(p), &model[p]))
		report(p, &model[p], page_at(p), who);
}

/* step 1: consecutive contents, so that runs come long; 0: all the same. */
static void fill(unsigned first, unsigned n, uint32_t content, unsigned step)
{
	change(first, n);
	for (unsigned p = first; p < first + n; p++, content += step) {
		content_make(content, (uint64_t *)(void *)page_at(p));
		model_set(p, content);
	}
	change(first, n);
	load.page->writes += n;
}

static void write_word(unsigned p, uint64_t *r)
{
	volatile uint64_t *words = (volatile uint64_t *)(void *)page_at(p);
	struct model *m = &model[p];
	uint64_t want[PAGE / 8];

	content_make(m->content, want);
	change(p, 1);
	if (m->value != 0)
		words[m->word] = want[m->word];
	m->word = below(r, PAGE / 8);
	m->value = mix(*r) | 1;
	if (m->value & 2) /* as a guest's locked instructions do it */
		__atomic_exchange_n(&words[m->word], m->value, __ATOMIC_SEQ_CST);
	else
		words[m->word] = m->value;
	change(p, 1);
	load.page->writes++;
}

/* As a balloon or free page reporting does. */
static void discard(unsigned first, unsigned n)
{
	change(first, n);
	if (madvise(page_at(first), (size_t)n * PAGE, MADV_DONTNEED) < 0)
		failed("MADV_DONTNEED");
	for (unsigned p = first; p < first + n; p++)
		model_set(p, ZEROES);
	change(first, n);
	load.page->discards += n;
}

/* Until it is written again it holds the old bytes or zeroes. */
static void lazy_free(unsigned first, unsigned n)
{
	change(first, n);
	if (madvise(page_at(first), (size_t)n * PAGE, MADV_FREE) < 0)
		failed("MADV_FREE");
	for (unsigned p = first; p < first + n; p++) {
		memset(page_at(p), 0, PAGE);
		model_set(p, ZEROES);
	}
	change(first, n);
	load.page->discards += n;
}

/* The kernel writes into RAM on the VMM's behalf: what a device model without DMA does. */
static void copy_by_kernel(unsigned writer, unsigned p, uint32_t content, bool by_pipe)
{
	uint64_t page[PAGE / 8];
	struct iovec from = { page, PAGE }, to = { page_at(p), PAGE };
	ssize_t n = PAGE;

	content_make(content, page);
	change(p, 1);
	if (by_pipe && write(load.pipe[writer][1], page, PAGE) == PAGE)
		n = read(load.pipe[writer][0], page_at(p), PAGE);
	else
		n = process_vm_writev(getpid(), &from, 1, &to, 1, 0);
	if (n != PAGE)
		failed("copy by the kernel");
	model_set(p, content);
	change(p, 1);
	load.page->copies++;
}

/* A guest that is rebooted, or starts another program: the window comes back with what all VMs have (and huge, if it
 * may), with what they have elsewhere, or with zeroes. So there is always something to merge. */
static void refill(unsigned w, uint64_t *r)
{
	unsigned first = w * WINDOW_PAGES, kind = below(r, 16);

	for (unsigned p = first; p < first + WINDOW_PAGES; p++)
		page_check(p, "refill");
	discard(first, WINDOW_PAGES);
	page_check(first + below(r, WINDOW_PAGES), "discarded");
	if (kind < 10)
		fill(first, WINDOW_PAGES, content_shared(w * WINDOW_PAGES), 1);
	else if (kind < 15)
		for (unsigned p = first; p < first + WINDOW_PAGES; p += 4 * BLOCK)
			fill(p, 4 * BLOCK, content_shared(below(r, POOL - 4 * BLOCK)), 1);
	else
		fill(first, WINDOW_PAGES, ZEROES, 0);
	load.page->refills++;
}

void load_write(unsigned writer, uint64_t *r)
{
	unsigned w = below(r, WINDOWS / WRITERS) * WRITERS + writer;
	unsigned first = w * WINDOW_PAGES + below(r, WINDOW_PAGES / BLOCK) * BLOCK;
	unsigned p = first + below(r, BLOCK), n = 1 + below(r, BLOCK);

	/* At the pace of chaos-vmm memory holds the same for some seconds: long enough to be seen and merged, short
	 * enough for there to be more. */
	switch (below(r, 4096)) {
	case 0 ... 1:
		refill(w, r);
		break;
	case 2 ... 25:
		fill(first, BLOCK, content_shared(below(r, POOL - BLOCK)), 1);
		break;
	case 26 ... 37:
		fill(first, n, OF_THE_VM | below(r, OF_THE_VM - BLOCK), 1);
		break;
	case 38 ... 57:
		discard(first, n);
		break;
	case 58 ... 63:
		lazy_free(first, n);
		break;
	case 64 ... 83:
		copy_by_kernel(writer, p, content_shared(below(r, POOL)), n & 1);
		break;
	case 84 ... 283:
		write_word(p, r);
		break;
	default:
		page_check(p, "writer");
	}
}

/* Waits for no owner, so that it reads in every moment of an exchange. */
void load_read(uint64_t *r)
{
	unsigned p = below(r, PAGES);
	uint32_t seq = atomic_load(&model[p].seq);
	struct model m = { .content = model[p].content, .word = model[p].word % (PAGE / 8), .value = model[p].value };
	uint8_t copy[PAGE];

	memcpy(copy, page_at(p), PAGE);
	atomic_thread_fence(memory_order_seq_cst);
	load.page->reads++;
	if (seq % 2 == 0 && !page_is(copy, &m) && atomic_load(&model[p].seq) == seq)
		report(p, &m, copy, "reader");
}

/* ---- the whole ---- */

/* Between gaps: found by its size, it must not be one with what lies beside it. */
int load_open(uint32_t vm, struct chaos_page *page)
{
	uint64_t huge = 2u << 20, at;
	void *area = mmap(NULL, RAM_BYTES + 2 * huge, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	load.vm = vm;
	load.page = page;
	if (area == MAP_FAILED)
		return -errno;
	at = ((uint64_t)(uintptr_t)area + PAGE + huge - 1) & ~(huge - 1);
	load.ram = mmap((void *)(uintptr_t)at, RAM_BYTES, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	if (load.ram == MAP_FAILED || madvise(load.ram, RAM_BYTES, vm % 2 ? MADV_HUGEPAGE : MADV_NOHUGEPAGE) < 0)
		return -errno;
	for (unsigned i = 0; i < WRITERS; i++)
		if (pipe2(load.pipe[i], O_CLOEXEC) < 0)
			return -errno;
	return 0;
}

/* As QEMU does, without which the agent does not start. */
void load_name_ram(void)
{
	if (madvise(load.ram, RAM_BYTES, MADV_DONTFORK) < 0)
		failed("MADV_DONTFORK");
}

/* An eighth is of this VM alone. */
void load_fill_all(void)
{
	for (unsigned p = 0; p < PAGES; p += BLOCK) {
		bool own = p / BLOCK % 8 == 7;

		fill(p, BLOCK, own ? OF_THE_VM | p : content_shared(p), 1);
	}
}

void load_check_all(const char *who)
{
	for (unsigned p = 0; p < PAGES; p++)
		page_check(p, who);
}

void load_discard_all(void)
{
	discard(0, PAGES);
}
