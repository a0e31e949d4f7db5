/* ept/maps and ept/mtree: what /proc and QEMU say of a VMM's memory. No processes. */
#include "ept/maps.h"
#include "ept/mtree.h"

#include "tests/unit/unit.h"

#define GIB (UINT64_C(1) << 30)
#define MIB (UINT64_C(1) << 20)
#define KIB (UINT64_C(1) << 10)

/* ---- maps: lines ---- */

#define HEAD "7f3a80000000-7f3aa0000000 "

static const struct line_case {
	const char *line;
	int want;
	enum mem_backing backing;
	bool readable, writable, shared;
} line_cases[] = {
	/* real */
	{ HEAD "rw-p 00000000 00:00 0 ", 0, MEM_ANON, true, true, false },
	{ HEAD "rw-p 00000000 00:00 0", 0, MEM_ANON, true, true, false },
	{ HEAD "rw-p 00000000 00:00 0                          [heap]", 0, MEM_ANON, true, true, false },
	{ HEAD "rw-p 00000000 00:00 0                          [anon:guest ram]", 0, MEM_ANON, true, true, false },
	{ HEAD "---p 00000000 00:00 0 ", 0, MEM_ANON, false, false, false },
	{ HEAD "r--p 00000000 00:00 0                          [vvar]", 0, MEM_ANON, true, false, false },
	{ HEAD "r-xp 00028000 08:01 1234567                    /usr/lib/x86_64-linux-gnu/libc.so.6", 0, MEM_FILE, true,
	  false, false },
	{ HEAD "rw-p 00028000 fe:01 1234567                    /opt/my tools/a b.so (deleted)", 0, MEM_FILE, true, true,
	  false },
	{ HEAD "rw-p 00028000 fe:01 1234567                    /tmp/two\\012lines", 0, MEM_FILE, true, true, false },
	{ HEAD "rw-s 00000000 00:01 1030                       /memfd:memory-backend-memfd (deleted)", 0, MEM_SHARED,
	  true, true, true },
	{ HEAD "rw-p 00000000 00:01 1030                       /memfd:memory-backend-memfd (deleted)", 0, MEM_FILE, true,
	  true, false },
	{ HEAD "rw-s 00000000 00:10 77 /memfd:memory-backend-memfd-hugetlb (deleted)", 0, MEM_HUGETLB, true, true, true },
	{ HEAD "rw-p 00000000 00:0f 77                         /anon_hugepage (deleted)", 0, MEM_HUGETLB, true, true,
	  false },
	{ HEAD "rw-p 00000000 00:2a 77                         /dev/hugepages/libvirt/qemu/1-a/ram (deleted)", 0,
	  MEM_HUGETLB, true, true, false },
	{ HEAD "rw-s 00000000 00:01 1030                       /dev/zero (deleted)", 0, MEM_SHARED, true, true, true },
	{ HEAD "rw-s 00000000 00:19 5                          /dev/shm/ram", 0, MEM_SHARED, true, true, true },
	{ "ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]", 0, MEM_ANON, false,
	  false, false },
	/* cut short, garbage, hostile */
	{ "", -EBADMSG, 0, false, false, false },
	{ "7f3a80000000", -EBADMSG, 0, false, false, false },
	{ "7f3a80000000-", -EBADMSG, 0, false, false, false },
	{ HEAD, -EBADMSG, 0, false, false, false },
	{ HEAD "rw-p", -EBADMSG, 0, false, false, false },
	{ HEAD "rw-p 0", -EBADMSG, 0, false, false, false },
	{ HEAD "rw-p 00000000 00:00", -EBADMSG, 0, false, false, false },
	{ HEAD "rw-p 00000000 00:00 ", -EBADMSG, 0, false, false, false },
	{ HEAD "rw-p 00000000 0000 0 ", -EBADMSG, 0, false, false, false },
	{ HEAD "rw-x 00000000 00:00 0 ", -EBADMSG, 0, false, false, false },
	{ HEAD "rw-px00000000 00:00 0 ", -EBADMSG, 0, false, false, false },
	{ "7f3a80000000-7f3a80000000 rw-p 00000000 00:00 0 ", -EBADMSG, 0, false, false, false },
	{ "7f3aa0000000-7f3a80000000 rw-p 00000000 00:00 0 ", -EBADMSG, 0, false, false, false },
	{ "7f3a80000001-7f3aa0000000 rw-p 00000000 00:00 0 ", -EBADMSG, 0, false, false, false },
	{ "7f3a80000000-7f3aa0000800 rw-p 00000000 00:00 0 ", -EBADMSG, 0, false, false, false },
	{ "00007f3a80000000000-7f3aa0000000 rw-p 00000000 00:00 0 ", -EBADMSG, 0, false, false, false },
	{ "garbage", -EBADMSG, 0, false, false, false },
	{ "-1-2 rw-p 0 00:00 0", -EBADMSG, 0, false, false, false },
};

static void test_maps_line_table_gives_expected(void)
{
	for (size_t i = 0; i < ARRAY_SIZE(line_cases); i++) {
		const struct line_case *c = &line_cases[i];
		struct vma v = { .start = 77 };
		size_t len = strlen(c->line);
		auto_free char *exact = malloc(len ? len : 1); /* no NUL: a step too far is seen */

		memcpy(exact, c->line, len);
		UNIT_CASE(c->line, maps_parse_line(exact, len, &v) == c->want);
		if (c->want < 0) {
			UNIT_CASE(c->line, v.start == 77);
			continue;
		}
		UNIT_CASE(c->line, v.backing == c->backing && v.shared == c->shared);
		UNIT_CASE(c->line, v.readable == c->readable && v.writable == c->writable);
		UNIT_CASE(c->line, c->line[0] == 'f' || (v.start == 0x7f3a80000000 && v.end == 0x7f3aa0000000));
	}
}

/* ---- maps: whole texts ---- */

static const char real_maps[] =
	"55d0c0a00000-55d0c0e00000 r-xp 00400000 fe:01 99   /usr/bin/qemu system (deleted)\n"
	"55d0c2000000-55d0c2200000 rw-p 00000000 00:00 0    [heap]\n"
	"7f0000000000-7f0000021000 rw-p 00000000 00:00 0 \n"
	"7f0000021000-7f0004000000 ---p 00000000 00:00 0 \n"
	"7f1000000000-7f1040000000 rw-p 00000000 00:00 0 \n"
	"7f1040000000-7f1080000000 rw-p 00000000 00:00 0 \n"
	"7f1080000000-7f1080001000 ---p 00000000 00:00 0 \n"
	"7f2000000000-7f2040000000 rw-s 00000000 00:01 7   /memfd:a\\012b (deleted)\n"
	"7f2040000000-7f2080000000 rw-p 00000000 00:00 0 \n"
	"7f2080000000-7f2080200000 r--p 00000000 00:00 0 \n";

static void test_maps_text_table_gives_expected(void)
{
	static const struct {
		const char *what, *text;
		int want;
		size_t count;
	} cases[] = {
		{ "real", real_maps, 0, 10 },
		{ "empty", "", 0, 0 },
		{ "one", HEAD "rw-p 00000000 00:00 0\n", 0, 1 },
		{ "cut short in its last line", HEAD "rw-p 00000000 00:00 0\n7f3b000", -EBADMSG, 0 },
		{ "last line without its newline", HEAD "rw-p 00000000 00:00 0", -EBADMSG, 0 },
		{ "twice the same", HEAD "rw-p 0 00:00 0\n" HEAD "rw-p 0 00:00 0\n", -EBADMSG, 0 },
		{ "descending", HEAD "rw-p 0 00:00 0\n1000-2000 rw-p 0 00:00 0\n", -EBADMSG, 0 },
		{ "empty line", "\n", -EBADMSG, 0 },
		{ "garbage", "MemTotal: 5 kB\n", -EBADMSG, 0 },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct vma *vmas = NULL;
		size_t count = 77;

		UNIT_CASE(cases[i].what,
			  maps_parse(cases[i].text, strlen(cases[i].text), &vmas, &count) == cases[i].want);
		UNIT_CASE(cases[i].what, count == (cases[i].want ? 77 : cases[i].count));
		UNIT_CASE(cases[i].what, cases[i].want == 0 || !vmas);
		free(vmas);
	}
}

static void test_maps_joined_while_listed_cut(void)
{
	static const char text[] = "1000-2000 rw-p 00000000 00:00 0\n"
				   "5000-6000 rw-p 00004000 00:01 7 /memfd:memvirt-store:a (deleted)\n"
				   "3000-8000 rw-p 00002000 00:01 7 /memfd:memvirt-store:a (deleted)\n";
	auto_free struct vma *vmas = NULL;
	size_t count = 0;

	CU_ASSERT_EQUAL_FATAL(maps_parse(text, sizeof(text) - 1, &vmas, &count), 0);
	CU_ASSERT_EQUAL_FATAL(count, 3);
	CU_ASSERT_EQUAL(vmas[1].start, 0x5000);
	CU_ASSERT_EQUAL(vmas[1].end, 0x6000);
	CU_ASSERT_EQUAL(vmas[2].start, 0x6000);
	CU_ASSERT_EQUAL(vmas[2].end, 0x8000);
	CU_ASSERT_EQUAL(vmas[2].offset, 0x5000);
}

static void test_maps_cut_anywhere_refused_or_shorter(void)
{
	size_t len = strlen(real_maps);

	for (size_t cut = 0; cut <= len; cut++) {
		auto_free char *exact = malloc(cut ? cut : 1);
		struct vma *vmas = NULL;
		size_t count = 0;
		bool line_end = cut == 0 || real_maps[cut - 1] == '\n';

		memcpy(exact, real_maps, cut);
		CU_ASSERT_EQUAL(maps_parse(exact, cut, &vmas, &count), line_end ? 0 : -EBADMSG);
		free(vmas);
	}
}

static void test_maps_huge_text_read(void)
{
	const size_t lines = 70000;
	char *text = NULL;
	size_t len = 0, count = 0;
	FILE *f = open_memstream(&text, &len);
	struct vma *vmas = NULL;

	for (size_t i = 0; i < lines; i++)
		fprintf(f, "%zx-%zx rw-p 00000000 00:00 0 \n", 0x10000 + i * 0x2000, 0x11000 + i * 0x2000);
	fclose(f);
	CU_ASSERT_EQUAL(maps_parse(text, len, &vmas, &count), 0);
	CU_ASSERT_EQUAL(count, lines);
	CU_ASSERT_TRUE(vmas && vmas[lines - 1].start == 0x10000 + (lines - 1) * 0x2000);
	free(vmas);
	free(text);
}

static void test_maps_own_process_read(void)
{
	auto_free char *text = unit_file_text("/proc/self", "maps");
	struct vma *vmas = NULL;
	enum mem_backing backing = MEM_FILE;
	char *map = unit_map(3);
	size_t count;

	free(text);
	text = unit_file_text("/proc/self", "maps");
	CU_ASSERT_EQUAL(maps_parse(text, strlen(text), &vmas, &count), 0);
	CU_ASSERT_TRUE(maps_cover(vmas, count, (uintptr_t)map, 3 * PAGE_BYTES, &backing));
	CU_ASSERT_EQUAL(backing, MEM_ANON);
	CU_ASSERT_FALSE(maps_cover(vmas, count, (uintptr_t)test_maps_own_process_read & ~4095UL, PAGE_BYTES, &backing));
	free(vmas);
	munmap(map, (size_t)3 * PAGE_BYTES);
}

static void test_maps_cover_table_gives_expected(void)
{
	static const struct {
		uint64_t start, bytes;
		bool want;
		enum mem_backing backing;
	} cases[] = {
		{ 0x7f1000000000, GIB, true, MEM_ANON },
		{ 0x7f1000000000, 2 * GIB, true, MEM_ANON },	       /* over two mappings */
		{ 0x7f1000001000, 2 * GIB - 0x1000, true, MEM_ANON },
		{ 0x7f1000000000, 2 * GIB + 0x1000, false, 0 },	       /* into the guard page */
		{ 0x7f0fffffffff, GIB, false, 0 },		       /* begins in a hole */
		{ 0x7f2000000000, GIB, true, MEM_SHARED },
		{ 0x7f2000000000, 2 * GIB, false, 0 },		       /* shared, then private */
		{ 0x7f2040000000, GIB, true, MEM_ANON },
		{ 0x7f2080000000, MIB, false, 0 },		       /* read-only */
		{ 0x55d0c0a00000, MIB, false, 0 },
		{ 0x7f1000000000, 0, false, 0 },
		{ 0x7f1000000000, UINT64_MAX, false, 0 },	       /* wraps */
		{ UINT64_MAX - 4095, 4096, false, 0 },
		{ 0, 4096, false, 0 },
	};
	struct vma *vmas = NULL;
	size_t count = 0;

	CU_ASSERT_EQUAL(maps_parse(real_maps, strlen(real_maps), &vmas, &count), 0);
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		enum mem_backing backing = MEM_FILE;
		char what[64];

		snprintf(what, sizeof(what), "cover case %zu", i);
		UNIT_CASE(what, maps_cover(vmas, count, cases[i].start, cases[i].bytes, &backing) == cases[i].want);
		UNIT_CASE(what, backing == (cases[i].want ? cases[i].backing : MEM_FILE));
	}
	CU_ASSERT_FALSE(maps_cover(NULL, 0, 4096, 4096, &(enum mem_backing){ 0 }));
	free(vmas);
}

static void test_maps_find_anon_table_gives_expected(void)
{
	static const struct {
		uint64_t bytes;
		int want;
		uint64_t start;
	} cases[] = {
		{ 2 * GIB, 0, 0x7f1000000000 }, /* two adjacent mappings together */
		{ GIB, -ENOTUNIQ, 0 },
		{ 2 * MIB, 0, 0x55d0c2000000 },
		{ 3 * GIB, -ENOENT, 0 },
		{ 0, -ENOENT, 0 },
		{ 4 * KIB, -ENOENT, 0 },	/* guard pages are not writable */
	};
	static const char twice[] = "1000-3000 rw-p 0 00:00 0\n4000-6000 rw-p 0 00:00 0\n";
	/* RAM with a page of something else right before it and, in two parts, right behind it. */
	static const char beside[] = "1000-2000 rw-p 0 00:00 0\n2000-9000 rw-p 0 00:00 0\n9000-c000 rw-p 0 00:00 0\n"
				     "c000-10000 rw-p 0 00:00 0\n10000-17000 rw-s 0 00:01 5\n";
	struct vma *vmas = NULL;
	size_t count = 0;
	uint64_t start;

	CU_ASSERT_EQUAL(maps_parse(real_maps, strlen(real_maps), &vmas, &count), 0);
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		char what[64];

		start = 77;
		snprintf(what, sizeof(what), "find case %zu", i);
		UNIT_CASE(what, maps_find_anon(vmas, count, cases[i].bytes, &start) == cases[i].want);
		UNIT_CASE(what, start == (cases[i].want ? 77 : cases[i].start));
	}
	free(vmas);
	CU_ASSERT_EQUAL(maps_parse(twice, strlen(twice), &vmas, &count), 0);
	CU_ASSERT_EQUAL(maps_find_anon(vmas, count, 0x2000, &start), -ENOTUNIQ);
	CU_ASSERT_EQUAL(maps_find_anon(NULL, 0, 0x2000, &start), -ENOENT);
	free(vmas);
	CU_ASSERT_EQUAL(maps_parse(beside, strlen(beside), &vmas, &count), 0);
	CU_ASSERT_EQUAL(maps_find_anon(vmas, count, 0x7000, &start), 0); /* also c000-10000 and what is before it */
	CU_ASSERT_EQUAL(start, 0x2000);
	CU_ASSERT_EQUAL(maps_find_anon(vmas, count, 0x8000, &start), 0);
	CU_ASSERT_EQUAL(start, 0x1000);
	CU_ASSERT_EQUAL(maps_find_anon(vmas, count, 0xe000, &start), 0);
	CU_ASSERT_EQUAL(start, 0x2000);
	CU_ASSERT_EQUAL(maps_find_anon(vmas, count, 0x5000, &start), -ENOENT);
	free(vmas);
}

/* ---- mtree ---- */

static void test_mtree_fixture_table_gives_expected(void)
{
	static const struct {
		const char *file;
		int count;
		struct mtree_range ranges[4];
	} cases[] = {
		{ "mtree-q35-5g.txt", 3,
		  { { 0, 640 * KIB, "pc.ram" }, { MIB, 2 * GIB - MIB, "pc.ram" }, { 4 * GIB, 3 * GIB, "pc.ram" } } },
		{ "mtree-q35-kvm.txt", 3,
		  { { 0, 768 * KIB, "pc.ram" }, { MIB, 2 * GIB - MIB, "pc.ram" }, { 4 * GIB, 3 * GIB, "pc.ram" } } },
		{ "mtree-pc-64m.txt", 2, { { 0, 768 * KIB, "pc.ram" }, { MIB, 63 * MIB, "pc.ram" } } },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		auto_free char *text = unit_file_text(UNIT_FIXTURES, cases[i].file);
		struct mtree_range got[MTREE_RANGES_MAX];
		int n;

		UNIT_CASE(cases[i].file, text);
		if (!text)
			continue;
		n = mtree_parse(text, got, MTREE_RANGES_MAX);
		UNIT_CASE(cases[i].file, n == cases[i].count);
		for (int k = 0; k < n && k < cases[i].count; k++) {
			UNIT_CASE(cases[i].file, got[k].gpa == cases[i].ranges[k].gpa);
			UNIT_CASE(cases[i].file, got[k].bytes == cases[i].ranges[k].bytes);
			UNIT_CASE(cases[i].file, strcmp(got[k].block, cases[i].ranges[k].block) == 0);
		}
		UNIT_CASE(cases[i].file, mtree_parse(text, got, (size_t)cases[i].count - 1) == -E2BIG);
		for (size_t len = strlen(text); len > 0; len -= len > 512 ? 17 : 1) { /* cut short anywhere */
			text[len] = '\0';
			n = mtree_parse(text, got, MTREE_RANGES_MAX);
			UNIT_CASE(cases[i].file, n <= cases[i].count);
		}
	}
}

#define VIEW "FlatView #0\n AS \"memory\", root: system\n Root memory region: system\n"
#define RAM(first, last) "  " first "-" last " (prio 0, ram): pc.ram\n"

static void test_mtree_text_table_gives_expected(void)
{
	static const struct {
		const char *what, *text;
		int want;
		uint64_t gpa, bytes; /* of the first range */
		const char *block;
	} cases[] = {
		{ "one range", VIEW RAM("0", "fff"), 1, 0, 4096, "pc.ram" },
		{ "CRLF", "FlatView #0\r\n AS \"memory\", root: system\r\n Root memory region: system\r\n"
			  "  0000-1fff (prio 0, ram): pc.ram @0000 KVM\r\n\r\nFlatView #1\r\n", 1, 0, 8192, "pc.ram" },
		{ "KVM, name alone", VIEW "  0-fff (prio 0, ram): mem 0 KVM\n", 1, 0, 4096, "mem 0" },
		{ "shared view", "FlatView #3\n AS \"I/O\", root: io\n AS \"cpu-memory-0\", root: system\n"
				 " AS \"memory\", root: system\n Root memory region: system\n" RAM("0", "fff"), 1, 0, 4096,
		  "pc.ram" },
		{ "second view", "FlatView #0\n AS \"I/O\", root: io\n Root memory region: io\n" RAM("1000", "1fff") "\n"
				 VIEW RAM("0", "fff"), 1, 0, 4096, "pc.ram" },
		{ "other kinds", VIEW "  0-fff (prio 1, rom): pc.rom\n  1000-1fff (prio 0, i/o): vga\n"
				 "  2000-2fff (prio 0, ramd): vfio\n  3000-3fff (prio 0, romd): flash\n"
				 RAM("4000", "4fff"), 1, 0x4000, 4096, "pc.ram" },
		{ "aliases", VIEW "  0-fff (prio 0, ram): a @0000000000000000\n  1000-1fff (prio 0, ram): a @0000\n", 2, 0,
		  4096, "a" },
		{ "not a whole page", VIEW RAM("800", "2fff"), 1, 0x1000, 0x2000, "pc.ram" },
		{ "less than a page", VIEW RAM("800", "9ff") RAM("1000", "1fff"), 1, 0x1000, 4096, "pc.ram" },
		{ "ends at an empty line", VIEW RAM("0", "fff") "\n" RAM("1000", "1fff"), 1, 0, 4096, "pc.ram" },
		{ "", "", -ENOENT, 0, 0, NULL },
		{ "no such space", "FlatView #0\n AS \"I/O\", root: io\n" RAM("0", "fff"), -ENOENT, 0, 0, NULL },
		{ "name of a space in a range", "FlatView #0\n Root\n  0-f (prio 0, ram): x\n AS \"memory\", root\n", -ENOENT,
		  0, 0, NULL },
		{ "no view", " AS \"memory\", root: system\n" RAM("0", "fff"), -ENOENT, 0, 0, NULL },
		{ "no RAM", VIEW "  0-fff (prio 1, rom): pc.rom\n", -ENOENT, 0, 0, NULL },
		{ "nothing rendered", VIEW "  No rendered FlatView\n", -ENOENT, 0, 0, NULL },
		{ "cut in a range", VIEW "  0-ff", -EBADMSG, 0, 0, NULL },
		{ "cut in a kind", VIEW "  0-fff (prio 0, ra", -EBADMSG, 0, 0, NULL },
		{ "overlapping", VIEW RAM("0", "1fff") RAM("1000", "2fff"), -EBADMSG, 0, 0, NULL },
		{ "descending", VIEW RAM("1000", "1fff") RAM("0", "fff"), -EBADMSG, 0, 0, NULL },
		{ "backwards", VIEW RAM("1fff", "1000"), -EBADMSG, 0, 0, NULL },
		{ "too many digits", VIEW RAM("0", "10000000000000000"), -EBADMSG, 0, 0, NULL },
		{ "negative", VIEW RAM("-1", "fff"), -EBADMSG, 0, 0, NULL },
		{ "all there is", VIEW RAM("0", "ffffffffffffffff") RAM("1000", "1fff"), 1, 0x1000, 4096, "pc.ram" },
		{ "behind the last page", VIEW RAM("fffffffffffff800", "fffffffffffffff0") RAM("1000", "1fff"), 1, 0x1000,
		  4096, "pc.ram" },
		{ "garbage", VIEW "\x01\x02\x03 (prio 0, ram): x\n", -EBADMSG, 0, 0, NULL },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct mtree_range got[8];
		int n = mtree_parse(cases[i].text, got, ARRAY_SIZE(got));

		UNIT_CASE(cases[i].what, n == cases[i].want);
		if (n <= 0 || n != cases[i].want)
			continue;
		UNIT_CASE(cases[i].what, got[0].gpa == cases[i].gpa && got[0].bytes == cases[i].bytes);
		UNIT_CASE(cases[i].what, strcmp(got[0].block, cases[i].block) == 0);
	}
}

static void test_mtree_huge_text_bounded(void)
{
	struct mtree_range *got = calloc(MTREE_RANGES_MAX, sizeof(*got));
	char *text = NULL, name[300];
	size_t len = 0;
	FILE *f = open_memstream(&text, &len);

	memset(name, 'n', sizeof(name) - 1);
	name[sizeof(name) - 1] = '\0';
	fputs(VIEW, f);
	for (unsigned i = 0; i <= MTREE_RANGES_MAX; i++) {
		fprintf(f, "  %x000-%xfff (prio 0, ram): %s\n", 2 * i, 2 * i, name);
		fflush(f);
		if (i == MTREE_RANGES_MAX - 1)
			CU_ASSERT_EQUAL(mtree_parse(text, got, MTREE_RANGES_MAX), MTREE_RANGES_MAX);
	}
	fclose(f);
	CU_ASSERT_EQUAL(mtree_parse(text, got, MTREE_RANGES_MAX), -E2BIG);
	CU_ASSERT_EQUAL(strlen(got[0].block), MTREE_BLOCK_NAME_MAX - 1);
	free(text);
	free(got);
}

static void test_mtree_hva_table_gives_expected(void)
{
	static const struct {
		const char *text;
		int want;
		uint64_t hva;
	} cases[] = {
		{ "Host virtual address for 0x0 (pc.ram) is 0x7ff387e00000\r\n", 0, 0x7ff387e00000 },
		{ "Host virtual address for 0x100000 (mem) is 0x1", 0, 1 },
		{ "Host virtual address for 0x0 (is 0x5) is 0x7f00", 0, 0x7f00 },
		{ "", -EBADMSG, 0 },
		{ "Host virtual address for 0x0 (pc.ram) is 0x", -EBADMSG, 0 },
		{ "Host virtual address for 0x0 (pc.ram) is 7f00", -EBADMSG, 0 },
		{ "Host virtual address for 0x0 (pc.ram) is 0xzz", -EBADMSG, 0 },
		{ "Host virtual address for 0x0 (pc.ram) is 0x11112222333344445", -EBADMSG, 0 },
		{ "No memory is mapped at address 0xa0000", -EBADMSG, 0 },
		{ "Memory at address 0xfec00000 is not RAM", -EBADMSG, 0 },
		{ ") is 0x1000", -EBADMSG, 0 },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		uint64_t hva = 77;

		UNIT_CASE(cases[i].text, mtree_parse_hva(cases[i].text, &hva) == cases[i].want);
		UNIT_CASE(cases[i].text, cases[i].want < 0 || hva == cases[i].hva);
	}
}

int main(void)
{
	static CU_TestInfo tests[] = {
		{ "maps_lines", test_maps_line_table_gives_expected },
		{ "maps_texts", test_maps_text_table_gives_expected },
		{ "maps_joined", test_maps_joined_while_listed_cut },
		{ "maps_cut", test_maps_cut_anywhere_refused_or_shorter },
		{ "maps_huge", test_maps_huge_text_read },
		{ "maps_own", test_maps_own_process_read },
		{ "maps_cover", test_maps_cover_table_gives_expected },
		{ "maps_find_anon", test_maps_find_anon_table_gives_expected },
		{ "mtree_fixtures", test_mtree_fixture_table_gives_expected },
		{ "mtree_texts", test_mtree_text_table_gives_expected },
		{ "mtree_huge", test_mtree_huge_text_bounded },
		{ "mtree_hva", test_mtree_hva_table_gives_expected },
		CU_TEST_INFO_NULL,
	};

	return unit_main("ept", tests);
}
