/* core/hostmem, core/cgroup: texts of the kernel, whole trees of version 1, version 2 and both, and what becomes of a
 * limit. */
#include "core/hostmem.h"

#include "tests/unit/unit.h"

#define KIB UINT64_C(1024)
#define MIB (KIB * 1024)
#define GIB (MIB * 1024)

static char dir[UNIT_DIR_MAX];
static struct fsio fs;

static void tree_begin(void)
{
	unit_dir_new(dir);
	unit_must(fsio_open_root(dir, false, &fs) == 0, dir);
}

static void tree_end(void)
{
	fsio_close(&fs);
	unit_dir_remove(dir);
}

/* ---- /proc/meminfo ---- */

#define MEMINFO                                                                                         \
	"MemTotal:       24684096 kB\nMemFree:        23941500 kB\nMemAvailable:   24173428 kB\n"       \
	"Buffers:           14708 kB\nSwapCached:            0 kB\nSwapTotal:       4194300 kB\n"       \
	"SwapFree:        4194000 kB\nDirty:                 4 kB\nHugePages_Total:       0\n"

static void test_meminfo_texts_give_expected(void)
{
	static const struct {
		const char *what, *text;
		int want;
	} cases[] = {
		{ "real", MEMINFO, 0 },
		{ "empty", "", -ENOENT },
		{ "no available", "MemTotal: 1 kB\nSwapTotal: 1 kB\nSwapFree: 1 kB\n", -ENOENT },
		{ "no swap", "MemTotal: 1 kB\nMemAvailable: 1 kB\nSwapTotal: 1 kB\n", -ENOENT },
		{ "garbage", "\x01\xff\n\n:::\nMemTotals: 3", -ENOENT },
		{ "no number", "MemTotal: much\n", -EBADMSG },
		{ "negative", "MemTotal: -1 kB\n", -EBADMSG },
		{ "too many bytes", "MemTotal: 18014398509481985 kB\nMemAvailable: 1 kB\nSwapTotal: 0\nSwapFree: 0\n",
		  -EBADMSG },
		{ "beyond 64 bits", "MemTotal: 99999999999999999999 kB\n", -EBADMSG },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct host_snapshot s = { .mem_total_bytes = 7, .swap_free_bytes = 9 };
		int r = meminfo_parse(cases[i].text, &s);

		UNIT_CASE(cases[i].what, r == cases[i].want);
		if (r < 0) {
			UNIT_CASE(cases[i].what, s.mem_total_bytes == 7 && s.swap_free_bytes == 9);
			continue;
		}
		CU_ASSERT_EQUAL(s.mem_total_bytes, 24684096 * KIB);
		CU_ASSERT_EQUAL(s.mem_available_bytes, 24173428 * KIB);
		CU_ASSERT_EQUAL(s.swap_total_bytes, 4194300 * KIB);
		CU_ASSERT_EQUAL(s.swap_free_bytes, 4194000 * KIB);
	}
}

/* ---- pressure ---- */

#define SOME "some avg10=0.00 avg60=0.12 avg300=1.00 total=1061443\n"
#define FULL "full avg10=0.00 avg60=0.00 avg300=0.00 total=973951\n"

static void test_pressure_texts_give_expected(void)
{
	static const struct {
		const char *what, *text;
		uint64_t some_us, full_us; /* 0: refused */
	} cases[] = {
		{ "real", SOME FULL, 1061443, 973951 },
		{ "other order", FULL SOME, 1061443, 973951 },
		{ "no newline at the end", SOME "full avg10=0.00 total=5", 1061443, 5 },
		{ "blank lines", "\n\n" SOME "\n" FULL "\n", 1061443, 973951 },
		{ "largest", SOME "full total=18446744073709551615\n", 1061443, UINT64_MAX },
		{ "empty", "", 0, 0 },
		{ "one line", SOME, 0, 0 },
		{ "garbage", "\xff\xfe total=3\nsometotal=3\nfull", 0, 0 },
		{ "total of another line", "some avg10=0.00\nx total=3\n" FULL, 0, 0 },
		{ "no number", "some avg10=0 total=\n" FULL, 0, 0 },
		{ "negative", "some avg10=0 total=-4\n" FULL, 0, 0 },
		{ "more behind", "some total=4x\n" FULL, 0, 0 },
		{ "too large", SOME "full total=18446744073709551616\n", 0, 0 },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct pressure p = { .some_us = 42 };
		int r = pressure_parse(cases[i].text, &p);

		UNIT_CASE(cases[i].what, r == (cases[i].some_us ? 0 : -EBADMSG));
		UNIT_CASE(cases[i].what, p.known == (r == 0));
		UNIT_CASE(cases[i].what, p.some_us == (r == 0 ? cases[i].some_us : 42));
		UNIT_CASE(cases[i].what, p.full_us == cases[i].full_us);
	}
}

static void test_hostmem_read_without_pressure_is_unknown(void)
{
	struct host_snapshot s = { .pressure = { .known = true, .some_us = 3 } };
	char *huge = calloc(1, 9000);

	tree_begin();
	CU_ASSERT_EQUAL(hostmem_read(&fs, &s), -ENOENT);
	unit_file(dir, "proc/meminfo", MEMINFO);
	CU_ASSERT_EQUAL(hostmem_read(&fs, &s), 0);
	CU_ASSERT_FALSE(s.pressure.known);
	CU_ASSERT_EQUAL(s.pressure.some_us, 0);
	unit_file(dir, "proc/pressure/memory", "nonsense\n");
	CU_ASSERT_EQUAL(hostmem_read(&fs, &s), 0);
	CU_ASSERT_FALSE(s.pressure.known);
	unit_file(dir, "proc/pressure/memory", SOME FULL);
	CU_ASSERT_EQUAL(hostmem_read(&fs, &s), 0);
	CU_ASSERT_TRUE(s.pressure.known);
	CU_ASSERT_EQUAL(s.pressure.full_us, 973951);
	unit_must(huge, "calloc");
	memset(huge, 'x', 8999);
	unit_file(dir, "proc/meminfo", huge);
	CU_ASSERT_EQUAL(hostmem_read(&fs, &s), -EFBIG);
	free(huge);
	tree_end();
}

/* ---- limit and use of a cgroup ---- */

#define V2 "sys/fs/cgroup/machine.slice/"
#define V2_HYBRID "sys/fs/cgroup/unified/machine.slice/"
#define V1 "sys/fs/cgroup/memory/machine.slice/"
#define PATH "/machine.slice"

static int group_read(struct cgroup_memory *m, char why[256])
{
	why[0] = '\0';
	return cgroup_memory_read(&fs, PATH, m, why, 256);
}

static void v2_files(const char *max, const char *swap_max)
{
	unit_file(dir, V2 "memory.current", "3221225472\n");
	unit_file(dir, V2 "memory.max", max);
	unit_file(dir, V2 "memory.stat", "anon 2684354560\nfile 536870912\nkernel 1\ninactive_anon 0\n"
					 "inactive_file 314572800\nactive_file 209715200\nunevictable 0\n");
	unit_file(dir, V2 "memory.pressure", SOME FULL);
	unit_file(dir, V2 "memory.swap.max", swap_max);
	unit_file(dir, V2 "memory.swap.current", "1048576\n");
}

static void v1_files(const char *limit, const char *memsw)
{
	unit_file(dir, V1 "memory.usage_in_bytes", "3221225472\n");
	unit_file(dir, V1 "memory.limit_in_bytes", limit);
	unit_file(dir, V1 "memory.stat", "cache 5\ninactive_file 1\nactive_file 2\nhierarchical_memory_limit 9\n"
					 "total_inactive_file 314572800\ntotal_active_file 209715200\n");
	unit_file(dir, V1 "memory.memsw.limit_in_bytes", memsw);
	unit_file(dir, V1 "memory.memsw.usage_in_bytes", "3222274048\n");
}

static void test_cgroup_v2_tree_is_read(void)
{
	struct cgroup_memory m;
	char why[256];

	tree_begin();
	v2_files("4294967296\n", "max\n");
	CU_ASSERT_EQUAL(group_read(&m, why), 0);
	CU_ASSERT_EQUAL(m.limit_bytes, 4 * GIB);
	CU_ASSERT_EQUAL(m.usage_bytes, 3 * GIB);
	CU_ASSERT_EQUAL(m.file_bytes, 500 * MIB);
	CU_ASSERT_EQUAL(m.swap_limit_bytes, UINT64_MAX);
	CU_ASSERT_EQUAL(m.swap_usage_bytes, MIB);
	CU_ASSERT_TRUE(m.pressure.known);
	CU_ASSERT_EQUAL(m.pressure.some_us, 1061443);
	v2_files("max\n", "1073741824\n");
	CU_ASSERT_EQUAL(group_read(&m, why), 0);
	CU_ASSERT_EQUAL(m.limit_bytes, UINT64_MAX);
	CU_ASSERT_EQUAL(m.swap_limit_bytes, GIB);
	tree_end();
}

/* Both versions mounted, memory belongs to version 1: what version 2 has of that name is other people's. */
static void test_cgroup_hybrid_tree_gives_v1_without_pressure(void)
{
	struct cgroup_memory m;
	char why[256];

	tree_begin();
	unit_file(dir, V2_HYBRID "memory.pressure", SOME FULL);
	unit_file(dir, V2_HYBRID "cgroup.procs", "");
	v1_files("4294967296\n", "5368709120\n");
	CU_ASSERT_EQUAL(group_read(&m, why), 0);
	CU_ASSERT_EQUAL(m.limit_bytes, 4 * GIB);
	CU_ASSERT_EQUAL(m.usage_bytes, 3 * GIB);
	CU_ASSERT_EQUAL(m.file_bytes, 500 * MIB); /* the whole of it, not the uppermost level's 3 bytes */
	CU_ASSERT_EQUAL(m.swap_limit_bytes, GIB);
	CU_ASSERT_EQUAL(m.swap_usage_bytes, MIB);
	CU_ASSERT_FALSE(m.pressure.known);
	v1_files("9223372036854771712\n", "9223372036854771712\n");
	CU_ASSERT_EQUAL(group_read(&m, why), 0);
	CU_ASSERT_EQUAL(m.limit_bytes, UINT64_MAX);
	CU_ASSERT_EQUAL(m.swap_limit_bytes, UINT64_MAX);
	tree_end();
}

static void test_cgroup_v2_at_unified_is_read(void)
{
	struct cgroup_memory m;
	char why[256];

	tree_begin();
	unit_file(dir, V2_HYBRID "memory.current", "4096\n");
	unit_file(dir, V2_HYBRID "memory.max", "8192\n");
	unit_file(dir, V2_HYBRID "memory.stat", "active_file 5\ninactive_file 6\n");
	CU_ASSERT_EQUAL(group_read(&m, why), 0);
	CU_ASSERT_EQUAL(m.limit_bytes, 8192);
	CU_ASSERT_EQUAL(m.file_bytes, 11);
	CU_ASSERT_EQUAL(m.swap_limit_bytes, UINT64_MAX); /* no swap accounting */
	CU_ASSERT_FALSE(m.pressure.known);
	tree_end();
}

static void test_cgroup_broken_file_is_named(void)
{
	static const struct {
		const char *what, *file, *text; /* text NULL: removed */
		const char *why;
		int want;
	} cases[] = {
		{ "not there", V2 "memory.current", NULL, "no cgroup with a memory controller at /machine.slice", -ENOENT },
		{ "empty use", V2 "memory.current", "", "/memory.current: ", -EBADMSG },
		{ "garbage limit", V2 "memory.max", "lots\n", "/sys/fs/cgroup/machine.slice/memory.max: ", -EBADMSG },
		{ "negative limit", V2 "memory.max", "-1\n", "/memory.max: ", -EBADMSG },
		{ "empty limit", V2 "memory.max", "", "/memory.max: ", -EBADMSG },
		{ "no limit file", V2 "memory.max", NULL, "/memory.max: No such file", -ENOENT },
		{ "long limit", V2 "memory.max",
		  "1111111111111111111111111111111111111111111111111111111111111111111111111111111111111\n",
		  "/memory.max: File too large", -EFBIG },
		{ "no stat", V2 "memory.stat", NULL, "/memory.stat: No such file", -ENOENT },
		{ "stat without files", V2 "memory.stat", "anon 5\n", "/memory.stat: ", -EBADMSG },
		{ "stat too large", V2 "memory.stat", "active_file 18446744073709551615\ninactive_file 1\n",
		  "/memory.stat: ", -EBADMSG },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct cgroup_memory m = { .limit_bytes = 77 };
		char why[256];

		tree_begin();
		v2_files("4294967296\n", "max\n");
		if (cases[i].text)
			unit_file(dir, cases[i].file, cases[i].text);
		else
			unlinkat(fs.root_fd, cases[i].file, 0);
		UNIT_CASE(cases[i].what, group_read(&m, why) == cases[i].want);
		UNIT_CASE(cases[i].what, strstr(why, cases[i].why));
		UNIT_CASE(cases[i].what, m.limit_bytes == 77);
		tree_end();
	}
}

/* ---- what becomes of it ---- */

#define NONE UINT64_MAX

/* 4 GiB: the root of 16 x 4,194,304 KiB is 8 MiB, and a thousandth of 4 GiB above it is the low watermark. */
#define LOW_4_GIB (8 * MIB + 4294967)
static const struct {
	const char *what;
	struct cgroup_memory m;
	uint64_t total, available, swap_total, swap_free;
} narrow_cases[] = {
	{ "no limits", { NONE, 3 * GIB, 0, NONE, 0, { 0 } }, 16 * GIB, 8 * GIB, 2 * GIB, GIB },
	{ "limit above the host", { 17 * GIB, 16 * GIB, 0, NONE, 0, { 0 } }, 16 * GIB, 8 * GIB, 2 * GIB, GIB },
	{ "limit decides", { 4 * GIB, 3 * GIB, 0, NONE, 0, { 0 } }, 4 * GIB, GIB, 2 * GIB, GIB },
	{ "host decides", { 15 * GIB, GIB, 0, NONE, 0, { 0 } }, 15 * GIB, 8 * GIB, 2 * GIB, GIB },
	{ "page cache less the low watermark", { 4 * GIB, 3 * GIB, 500 * MIB, NONE, 0, { 0 } }, 4 * GIB,
	  GIB + 500 * MIB - LOW_4_GIB, 2 * GIB, GIB },
	{ "little page cache: half of it", { 4 * GIB, 3 * GIB, 8 * MIB, NONE, 0, { 0 } }, 4 * GIB, GIB + 4 * MIB, 2 * GIB,
	  GIB },
	{ "more page cache than use", { 4 * GIB, 8 * MIB, NONE, NONE, 0, { 0 } }, 4 * GIB, 4 * GIB - 4 * MIB, 2 * GIB,
	  GIB },
	{ "full", { 4 * GIB, 4 * GIB, 0, NONE, 0, { 0 } }, 4 * GIB, 0, 2 * GIB, GIB },
	{ "above its limit", { 4 * GIB, 5 * GIB, 0, NONE, 0, { 0 } }, 4 * GIB, 0, 2 * GIB, GIB },
	{ "limit of nothing", { 0, 0, 0, 0, 0, { 0 } }, 0, 0, 0, 0 },
	{ "little swap left", { NONE, 0, 0, GIB, GIB - MIB, { 0 } }, 16 * GIB, 8 * GIB, GIB, MIB },
	{ "more swap used than allowed", { NONE, 0, 0, MIB, GIB, { 0 } }, 16 * GIB, 8 * GIB, MIB, 0 },
	{ "swap of the host decides", { NONE, 0, 0, 3 * GIB, 0, { 0 } }, 16 * GIB, 8 * GIB, 2 * GIB, GIB },
};

static void test_hostmem_narrow_table_gives_expected(void)
{
	for (size_t i = 0; i < ARRAY_SIZE(narrow_cases); i++) {
		struct host_snapshot s = { .mem_total_bytes = 16 * GIB, .mem_available_bytes = 8 * GIB,
					   .swap_total_bytes = 2 * GIB, .swap_free_bytes = GIB,
					   .pressure = { true, 5, 6 } };

		hostmem_narrow(&s, &narrow_cases[i].m);
		UNIT_CASE(narrow_cases[i].what, s.mem_total_bytes == narrow_cases[i].total);
		UNIT_CASE(narrow_cases[i].what, s.mem_available_bytes == narrow_cases[i].available);
		UNIT_CASE(narrow_cases[i].what, s.swap_total_bytes == narrow_cases[i].swap_total);
		UNIT_CASE(narrow_cases[i].what, s.swap_free_bytes == narrow_cases[i].swap_free);
		UNIT_CASE(narrow_cases[i].what, !s.pressure.known); /* the host's is not the cgroup's */
	}
}

/* ---- whose cgroup, and its pressure ---- */

static void test_cgroup_path_texts_give_expected(void)
{
	static char too_long[CGROUP_PATH_MAX + 16] = "0::/";
	static const struct {
		const char *what, *text, *want; /* NULL: error */
		int error;
	} cases[] = {
		{ "version 2", "0::/machine.slice/machine-qemu\\x2d1\\x2dweb.scope\n",
		  "/machine.slice/machine-qemu\\x2d1\\x2dweb.scope", 0 },
		{ "hybrid", "9:name=systemd:/x\n4:memory:/vm/1\n1:cpu:/\n0::/vm\n", "/vm", 0 },
		{ "root", "0::/\n", "/", 0 },
		{ "no newline", "0::/a", "/a", 0 },
		{ "with blanks and a colon", "0::/a b:c\n", "/a b:c", 0 },
		{ "version 1", "4:memory:/vm/1\n1:cpu:/\n", NULL, -ENOENT },
		{ "empty", "", NULL, -ENOENT },
		{ "garbage", "\xff\n\n0:\n0:x:/y\n", NULL, -ENOENT },
		{ "outside of the namespace", "0::/../vm\n", NULL, -EBADMSG },
		{ "no path", "0::\n", NULL, -EBADMSG },
		{ "relative", "0::vm\n", NULL, -EBADMSG },
		{ "too long", too_long, NULL, -ENAMETOOLONG },
	};

	memset(too_long + 4, 'a', sizeof(too_long) - 5);
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		char path[CGROUP_PATH_MAX] = "kept";
		int r = cgroup_path_parse(cases[i].text, path);

		UNIT_CASE(cases[i].what, r == cases[i].error);
		UNIT_CASE(cases[i].what, strcmp(path, cases[i].want ? cases[i].want : "kept") == 0);
	}
}

static void test_cgroup_pressure_only_of_its_own_cgroup(void)
{
	static const struct {
		const char *what, *vm, *own;
		uint64_t some_us; /* 0: unknown */
	} cases[] = {
		{ "its own", "0::/machine.slice/a\n", "/system.slice/memvirtd.service", 11 },
		{ "the daemon in the root", "0::/machine.slice/a\n", "/", 11 },
		{ "its own, a namesake's beginning", "0::/machine.slice/a\n", "/machine.slice/ab", 11 },
		{ "threads apart", "0::/machine.slice/b/libvirt/emulator\n", "/x", 22 },
		{ "the daemon's", "0::/machine.slice/a\n", "/machine.slice/a", 0 },
		{ "with the daemon below", "0::/machine.slice\n", "/machine.slice/d", 0 },
		{ "root", "0::/\n", "/x", 0 },
		{ "threaded up to the root", "0::/t\n", "/x", 0 },
		{ "version 1", "4:memory:/machine.slice/a\n", "/x", 0 },
		{ "no pressure file", "0::/machine.slice/c\n", "/x", 0 },
		{ "the daemon's is unknown", "0::/machine.slice/a\n", "", 0 },
	};

	tree_begin();
	unit_file(dir, "sys/fs/cgroup/machine.slice/a/memory.pressure", "some total=11\nfull total=1\n");
	unit_file(dir, "sys/fs/cgroup/machine.slice/a/cgroup.type", "domain\n");
	unit_file(dir, "sys/fs/cgroup/machine.slice/memory.pressure", "some total=33\nfull total=1\n");
	unit_file(dir, "sys/fs/cgroup/machine.slice/b/memory.pressure", "some total=44\nfull total=1\n");
	unit_file(dir, "sys/fs/cgroup/machine.slice/b/libvirt/memory.pressure", "some total=22\nfull total=1\n");
	unit_file(dir, "sys/fs/cgroup/machine.slice/b/libvirt/cgroup.type", "domain threaded\n");
	unit_file(dir, "sys/fs/cgroup/machine.slice/b/libvirt/emulator/memory.pressure", "some total=55\nfull total=1\n");
	unit_file(dir, "sys/fs/cgroup/machine.slice/b/libvirt/emulator/cgroup.type", "threaded\n");
	unit_file(dir, "sys/fs/cgroup/machine.slice/c/cgroup.type", "domain\n");
	unit_file(dir, "sys/fs/cgroup/t/cgroup.type", "threaded\n");
	unit_file(dir, "sys/fs/cgroup/memory.pressure", "some total=99\nfull total=1\n");
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct pressure p;

		unit_file(dir, "proc/7/cgroup", cases[i].vm);
		p = cgroup_pressure_of(&fs, 7, cases[i].own);
		UNIT_CASE(cases[i].what, p.known == (cases[i].some_us > 0));
		UNIT_CASE(cases[i].what, p.some_us == cases[i].some_us);
	}
	CU_ASSERT_FALSE(cgroup_pressure_of(&fs, 8, "/x").known); /* gone */
	tree_end();
}

static void test_cgroup_pressure_of_unified_is_read(void)
{
	char own[CGROUP_PATH_MAX];

	tree_begin();
	unit_file(dir, "proc/self/cgroup", "4:memory:/x\n0::/system.slice/d\n");
	unit_file(dir, "proc/7/cgroup", "4:memory:/x\n0::/vm\n");
	unit_file(dir, "sys/fs/cgroup/unified/vm/memory.pressure", SOME FULL);
	CU_ASSERT_EQUAL(cgroup_path_read(&fs, 0, own), 0);
	CU_ASSERT_STRING_EQUAL(own, "/system.slice/d");
	CU_ASSERT_EQUAL(cgroup_pressure_of(&fs, 7, own).some_us, 1061443);
	tree_end();
}

/* This very machine: its figures make sense, whichever version it has. */
static void test_hostmem_of_this_host_makes_sense(void)
{
	struct host_snapshot s = { 0 };

	unit_must(fsio_open_root("/", true, &fs) == 0, "/");
	CU_ASSERT_EQUAL(hostmem_read(&fs, &s), 0);
	CU_ASSERT_TRUE(s.mem_total_bytes > 64 * MIB);
	CU_ASSERT_TRUE(s.mem_available_bytes > 0 && s.mem_available_bytes < s.mem_total_bytes);
	CU_ASSERT_TRUE(s.swap_free_bytes <= s.swap_total_bytes);
	CU_ASSERT_EQUAL(s.pressure.known, access("/proc/pressure/memory", R_OK) == 0);
	fsio_close(&fs);
}

int main(void)
{
	static CU_TestInfo tests[] = {
		{ "meminfo", test_meminfo_texts_give_expected },
		{ "pressure", test_pressure_texts_give_expected },
		{ "hostmem_no_pressure", test_hostmem_read_without_pressure_is_unknown },
		{ "cgroup_v2", test_cgroup_v2_tree_is_read },
		{ "cgroup_hybrid", test_cgroup_hybrid_tree_gives_v1_without_pressure },
		{ "cgroup_unified", test_cgroup_v2_at_unified_is_read },
		{ "cgroup_broken", test_cgroup_broken_file_is_named },
		{ "narrow", test_hostmem_narrow_table_gives_expected },
		{ "path", test_cgroup_path_texts_give_expected },
		{ "pressure_of", test_cgroup_pressure_only_of_its_own_cgroup },
		{ "pressure_of_unified", test_cgroup_pressure_of_unified_is_read },
		{ "this_host", test_hostmem_of_this_host_makes_sense },
		CU_TEST_INFO_NULL,
	};

	return unit_main("hostmem", tests);
}
