#include "balloon/resident.h"

#include "ept/pagestate.h"
#include "tests/unit/unit.h"

#define MIB (UINT64_C(1) << 20)
#define MIB_PAGES 256

static struct fsio fs;

/* Memory of this process; "pages" of it are made by their number, or left alone. */
struct piece {
	char *map;
	size_t bytes;
};

static struct piece piece_new(uint64_t mib)
{
	return (struct piece){ .map = unit_map(mib * MIB_PAGES), .bytes = mib * MIB };
}

static void piece_end(struct piece *p)
{
	munmap(p->map, p->bytes);
}

static void touch(const struct piece *p, uint64_t from_mib, uint64_t mib)
{
	for (uint64_t at = from_mib * MIB; at < (from_mib + mib) * MIB; at += PAGE_BYTES)
		p->map[at] = 1;
}

static uint64_t look(const struct piece *p, enum mem_backing backing)
{
	struct mem_region region = { .hva = (uintptr_t)p->map, .bytes = p->bytes, .backing = backing };
	uint64_t bytes = UINT64_MAX;

	CU_ASSERT_EQUAL(resident_estimate(&fs, getpid(), &region, 1, &bytes), 0);
	return bytes;
}

/* The newer and the older way of looking give the same, as long as the zero page can be told. */
static void both(void (*check)(void))
{
	check();
	if (geteuid() == 0) {
		pagestate_force_fallback(true);
		check();
		pagestate_force_fallback(false);
	}
}

/* ---- what counts ---- */

static void check_kinds(void)
{
	struct piece p = piece_new(16);
	volatile char *map = p.map;

	CU_ASSERT_EQUAL(look(&p, MEM_ANON), 0);
	for (uint64_t at = 0; at < 4 * MIB; at += PAGE_BYTES)
		(void)map[at]; /* the zero page: nobody's */
	CU_ASSERT_EQUAL(look(&p, MEM_ANON), 0);
	touch(&p, 4, 4);
	CU_ASSERT_EQUAL(look(&p, MEM_ANON), 4 * MIB);
	touch(&p, 0, 2);
	CU_ASSERT_EQUAL(look(&p, MEM_ANON), 6 * MIB);
	unit_must(madvise(p.map, p.bytes, MADV_DONTNEED) == 0, "madvise");
	CU_ASSERT_EQUAL(look(&p, MEM_ANON), 0);
	piece_end(&p);
}

static void test_resident_kinds(void)
{
	if (geteuid() != 0)
		UNIT_SKIP("needs root to tell the zero page");
	both(check_kinds);
}

/* A frame of a store is mapped privately, and others may map it as well; a VMM's own memory file is its own. */
static void check_files(void)
{
	int fd = memfd_create("resident", MFD_CLOEXEC);
	struct piece p = { .bytes = 8 * MIB };

	unit_must(fd >= 0 && ftruncate(fd, (off_t)p.bytes) == 0, "memfd");
	p.map = mmap(NULL, p.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	unit_must(p.map != MAP_FAILED, "mmap");
	touch(&p, 0, 8);
	CU_ASSERT_EQUAL(look(&p, MEM_SHARED), 8 * MIB);
	piece_end(&p);

	p.map = mmap(NULL, p.bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	unit_must(p.map != MAP_FAILED, "mmap");
	for (uint64_t at = 0; at < p.bytes; at += PAGE_BYTES)
		(void)*(volatile char *)(p.map + at);
	CU_ASSERT_EQUAL(look(&p, MEM_ANON), 0);
	touch(&p, 0, 3); /* copied on write */
	CU_ASSERT_EQUAL(look(&p, MEM_ANON), 3 * MIB);
	piece_end(&p);
	close(fd);
}

static void test_resident_files(void)
{
	both(check_files);
}

/* ---- samples ---- */

/* Up to 256 MiB every page is looked at. */
static void test_resident_whole(void)
{
	struct piece p = piece_new(256);

	touch(&p, 3, 1);
	touch(&p, 255, 1);
	CU_ASSERT_EQUAL(look(&p, MEM_ANON), 2 * MIB);
	piece_end(&p);
}

/* Above, windows of 4 MiB stand for their neighbours, and are the same each time. */
static void test_resident_windows(void)
{
	struct piece p = piece_new(1024);
	uint64_t bytes;

	touch(&p, 0, 4); /* the first window of each stride of 16 MiB */
	CU_ASSERT_EQUAL(look(&p, MEM_ANON), 16 * MIB);
	touch(&p, 4, 12); /* nobody looks there */
	CU_ASSERT_EQUAL(look(&p, MEM_ANON), 16 * MIB);
	touch(&p, 16, 100);
	bytes = look(&p, MEM_ANON);
	CU_ASSERT(bytes >= 100 * MIB && bytes <= 132 * MIB);
	CU_ASSERT_EQUAL(look(&p, MEM_ANON), bytes);
	piece_end(&p);
}

/* The end of a region that is no multiple of a window. */
static void test_resident_uneven(void)
{
	struct piece p = piece_new(11);

	touch(&p, 0, 11);
	p.bytes = 10 * MIB + PAGE_BYTES;
	CU_ASSERT_EQUAL(look(&p, MEM_ANON), 10 * MIB + PAGE_BYTES);
	p.bytes = 11 * MIB;
	piece_end(&p);
}

#define MANY 1024

/* A VMM may have as many regions as it likes: no more is looked at than of one that is as large. */
static void test_resident_many_regions(void)
{
	struct piece p = piece_new(MANY);
	struct mem_region regions[MANY];
	uint64_t whole, bytes;

	for (size_t i = 0; i < MANY; i++)
		regions[i] = (struct mem_region){ .hva = (uintptr_t)p.map + i * MIB, .bytes = MIB, .backing = MEM_ANON };
	for (size_t i = 0; i < MANY; i++)
		memset(p.map + i * MIB + MIB / 2, 1, MIB / 2);
	whole = look(&p, MEM_ANON);
	CU_ASSERT_EQUAL(whole, MANY * MIB / 2);
	CU_ASSERT_EQUAL(resident_estimate(&fs, getpid(), regions, MANY, &bytes), 0);
	CU_ASSERT_EQUAL(bytes, MANY * MIB / 2);
	/* All but those of the first 4 in 16 MiB can be anywhere: nobody looks. */
	for (size_t i = 0; i < MANY; i++)
		if (i % 16 >= 4)
			regions[i].hva = UINT64_C(1) << 60;
	CU_ASSERT_EQUAL(resident_estimate(&fs, getpid(), regions, MANY, &bytes), 0);
	CU_ASSERT_EQUAL(bytes, MANY * MIB / 2);
	piece_end(&p);
}

/* ---- what cannot be looked at ---- */

static void test_resident_errors(void)
{
	struct mem_region none = { .hva = 4096, .bytes = 0, .backing = MEM_ANON };
	struct unit_pages pages = { .contents = (const uint64_t[]){ 1, 2, UNIT_ABSENT }, .count = 3 };
	struct mem_region region;
	struct unit_child child;
	uint64_t bytes = 7;

	CU_ASSERT_EQUAL(resident_estimate(&fs, getpid(), NULL, 0, &bytes), 0);
	CU_ASSERT_EQUAL(bytes, 0);
	CU_ASSERT_EQUAL(resident_estimate(&fs, getpid(), &none, 1, &bytes), 0);
	CU_ASSERT_EQUAL(bytes, 0);

	unit_child_start(&child, unit_pages_make, &pages);
	region = (struct mem_region){ .hva = (uintptr_t)child.map, .bytes = 3 * PAGE_BYTES, .backing = MEM_ANON };
	CU_ASSERT_EQUAL(resident_estimate(&fs, child.pid, &region, 1, &bytes), 0);
	CU_ASSERT_EQUAL(bytes, 2 * PAGE_BYTES);
	kill(child.pid, SIGKILL);
	unit_must(waitid(P_PID, (id_t)child.pid, &(siginfo_t){ 0 }, WEXITED | WNOWAIT) == 0, "waitid");
	bytes = 7;
	CU_ASSERT(resident_estimate(&fs, child.pid, &region, 1, &bytes) <= 0); /* a zombie: nothing, or an error */
	CU_ASSERT(bytes == 0 || bytes == 7);
	unit_child_stop(&child);
	CU_ASSERT(resident_estimate(&fs, 0x3fffffff, &region, 1, &bytes) < 0);
}

int main(void)
{
	CU_TestInfo tests[] = {
		{ "absent, zero, present", test_resident_kinds },
		{ "files", test_resident_files },
		{ "whole up to 256 MiB", test_resident_whole },
		{ "windows", test_resident_windows },
		{ "an uneven end", test_resident_uneven },
		{ "many regions", test_resident_many_regions },
		{ "what cannot be looked at", test_resident_errors },
		CU_TEST_INFO_NULL,
	};

	unit_must(fsio_open_root("/", false, &fs) == 0, "/");
	return unit_main("balloon_resident", tests);
}
