/* ksmd/hazards on made-up trees of /proc, and on real processes. */
#include "ksmd/hazards.h"

#include <sys/ptrace.h>

#include "tests/unit/unit.h"

#define PID 40

static char dir[UNIT_DIR_MAX];
static struct fsio fs;

static const char mounts_usual[] =
	"20 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw,errors=remount-ro\n"
	"21 20 0:5 / /dev rw,nosuid shared:2 master:3 - devtmpfs udev rw,size=1k\n"
	"30 20 0:40 / /nfs rw - nfs4 host:/x\\040-\\040y rw,vers=4.2\n"
	"31 20 0:41 / /old\\040nfs rw - nfs host:/x rw\n"
	"32 20 0:42 / /ceph rw shared:7 - ceph mon:/ rw\n"
	"33 20 0:43 / /host rw - 9p share rw,trans=virtio\n"
	"34 20 0:44 / /fuse rw - fuse.glusterfs g:/ rw\n"
	"35 20 0:45 / /vfs rw - virtiofs tag rw\n"
	"36 20 0:46 / /over rw - overlay overlay rw,lowerdir=/nfs\n"
	"37 20 0:47 / /x rw - ext4x /dev/x rw\n"
	"38 20 8:2 / /xfs rw - xfs /dev/sda2 rw\n";

static void link_make(const char *name, const char *target)
{
	char path[PATH_MAX];

	snprintf(path, sizeof(path), "%s/proc/%d/fd/%s", dir, PID, name);
	unit_must(symlink(target, path) == 0, path);
}

static void file_put(const char *name, const char *text)
{
	char path[128];

	snprintf(path, sizeof(path), "proc/%d/%s", PID, name);
	unit_file(dir, path, text);
}

static void tree_begin(const char *release)
{
	char path[PATH_MAX];

	unit_dir_new(dir);
	unit_must(fsio_open_root(dir, false, &fs) == 0, dir);
	unit_file(dir, "proc/sys/kernel/osrelease", release);
	file_put("status", "Name:\tqemu\nState:\tS (sleeping)\nPPid:\t1\nTracerPid:\t0\nUid:\t0\t0\t0\t0\n");
	file_put("mountinfo", mounts_usual);
	snprintf(path, sizeof(path), "%s/proc/%d/fd", dir, PID);
	unit_must(mkdir(path, 0700) == 0, path);
}

static void tree_end(void)
{
	fsio_close(&fs);
	unit_dir_remove(dir);
}

/* Whether what is found is exactly want: "" for nothing, a piece of the one reason, or of two with a '|' between. */
static bool found(const char *want)
{
	const char *why[HAZARDS_MAX];
	size_t count = hazards_find(&fs, PID, why);
	char first[128];
	const char *bar = strchr(want, '|');

	snprintf(first, sizeof(first), "%.*s", (int)(bar ? bar - want : (int)strlen(want)), want);
	for (size_t i = 0; i < count; i++)
		if (!(i == 0 && *first && strstr(why[0], first)) && !(i == 1 && bar && strstr(why[1], bar + 1)))
			printf("\n    found: %s\n", why[i]);
	if (*want == '\0')
		return count == 0;
	return count == (bar ? 2 : 1) && strstr(why[0], first) && (!bar || strstr(why[1], bar + 1));
}

static void test_hazards_descriptors_table_gives_expected(void)
{
	static const struct {
		const char *link, *want;
	} cases[] = {
		{ "/dev/vfio/12", "(VFIO)" },
		{ "/dev/vfio/devices/vfio0", "(VFIO)" },
		{ "/srv/jail/root/dev/vfio/12 (deleted)", "(VFIO)" },
		{ "anon_inode:[vfio-device]", "(VFIO)" },
		{ "anon_inode:kvm-vfio", "" },
		{ "/dev/iommu", "" },
		{ "/dev/vhost-vdpa-0", "vDPA" },
		{ "/dev/vhost-scsi", "vhost-scsi" },
		{ "/dev/vhost-net", "" },
		{ "/dev/vhost-vsock", "" },
		{ "/dev/infiniband/uverbs0", "RDMA" },
		{ "/dev/ublkc3", "ublk" },
		{ "/dev/ublk-control", "ublk" },
		{ "/dev/ublkb3", "" },
		{ "/dev/fuse", "FUSE" },
		{ "/dev/vmci", "VMCI" },
		{ "/dev/sev", "encrypted" },
		{ "anon_inode:[kvm-gmem]", "encrypted" },
		{ "anon_inode:kvm-vm", "" },
		{ "anon_inode:[io_uring]", "" },
		{ "socket:[1234]", "" },
		{ "pipe:[1234]", "" }, /* may have O_DIRECT, which means packets */
		{ "/dev/kvm", "" },
		{ "/dev/sda", "" },
		{ "x", "" },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		tree_begin("6.18.44-fc\n");
		link_make("0", "/dev/null");
		link_make("17", cases[i].link);
		UNIT_CASE(cases[i].link, found(cases[i].want));
		tree_end();
	}
}

static void test_hazards_files_table_gives_expected(void)
{
	static const struct {
		const char *what, *fdinfo, *release, *want;
	} cases[] = {
		{ "buffered, disk", "pos:\t0\nflags:\t0100002\nmnt_id:\t20\nino:\t7\n", "6.18.0\n", "" },
		{ "direct, disk", "pos:\t0\nflags:\t0140002\nmnt_id:\t20\nino:\t7\n", "6.18.0\n", "" },
		{ "direct, another disk", "pos:\t0\nflags:\t0140002\nmnt_id:\t38\n", "6.18.0\n", "" },
		{ "direct, device node", "pos:\t0\nflags:\t02140002\nmnt_id:\t21\n", "6.18.0\n", "" },
		{ "direct, nfs4", "pos:\t0\nflags:\t0140002\nmnt_id:\t30\n", "6.18.0\n", "O_DIRECT from a file" },
		{ "direct, nfs, read only", "pos:\t0\nflags:\t0140000\nmnt_id:\t31\n", "6.18.0\n", "O_DIRECT from a file" },
		{ "direct, nfs, write only", "pos:\t0\nflags:\t0140001\nmnt_id:\t31\n", "6.18.0\n", "" },
		{ "buffered, nfs", "pos:\t0\nflags:\t0100002\nmnt_id:\t30\n", "6.18.0\n", "" },
		{ "direct, ceph", "pos:\t0\nflags:\t0140002\nmnt_id:\t32\n", "6.18.0\n", "O_DIRECT from a file" },
		{ "direct, overlay", "pos:\t0\nflags:\t0140002\nmnt_id:\t36\n", "6.18.0\n", "O_DIRECT from a file" },
		{ "direct, begins like a good one", "pos:\t0\nflags:\t0140002\nmnt_id:\t37\n", "6.18.0\n",
		  "O_DIRECT from a file" },
		{ "buffered, 9p", "pos:\t0\nflags:\t0100000\nmnt_id:\t33\n", "6.18.0\n", "9p" },
		{ "direct, 9p", "pos:\t0\nflags:\t0140002\nmnt_id:\t33\n", "6.18.0\n", "9p" },
		{ "written, 9p", "pos:\t0\nflags:\t0100001\nmnt_id:\t33\n", "6.18.0\n", "" },
		{ "named, 9p", "pos:\t0\nflags:\t010000000\nmnt_id:\t33\n", "6.18.0\n", "" },
		{ "direct, fuse", "pos:\t0\nflags:\t0140002\nmnt_id:\t34\n", "6.9.0\n", "" },
		{ "buffered, old fuse", "pos:\t0\nflags:\t0100000\nmnt_id:\t34\n", "6.8.12\n", "FUSE" },
		{ "buffered, old virtiofs", "pos:\t0\nflags:\t0100000\nmnt_id:\t35\n", "6.8.12\n", "FUSE" },
		{ "direct, not seen", "pos:\t0\nflags:\t0140002\nmnt_id:\t99\n", "6.18.0\n", "cannot be seen" },
		{ "buffered, not seen", "pos:\t0\nflags:\t0100002\nmnt_id:\t99\n", "6.18.0\n", "" },
		{ "direct, seen by us", "pos:\t0\nflags:\t0140002\nmnt_id:\t50\n", "6.18.0\n", "" },
		{ "direct, seen by us as nfs", "pos:\t0\nflags:\t0140002\nmnt_id:\t51\n", "6.18.0\n", "O_DIRECT from a file" },
		{ "no flags", "pos:\t0\nmnt_id:\t20\n", "6.18.0\n", "cannot be looked at" },
		{ "no mount", "pos:\t0\nflags:\t0100002\n", "6.18.0\n", "cannot be looked at" },
		{ "decimal", "pos:\t0\nflags:\t9\nmnt_id:\t20\n", "6.18.0\n", "cannot be looked at" },
		{ "flags too large", "pos:\t0\nflags:\t0777777777777777777777777\nmnt_id:\t20\n", "6.18.0\n",
		  "cannot be looked at" },
		{ "negative mount", "pos:\t0\nflags:\t0100002\nmnt_id:\t-20\n", "6.18.0\n", "cannot be looked at" },
		{ "empty", "", "6.18.0\n", "cannot be looked at" },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		tree_begin(cases[i].release);
		unit_file(dir, "proc/self/mountinfo",
			  "50 1 8:1 / / rw - ext4 /dev/sda1 rw\n51 1 8:1 / / rw - nfs h:/ rw\n"
			  "36 1 8:1 / / rw - ext4 /dev/sda1 rw\n"); /* the process's own word comes first */
		link_make("17", "/images/disk.qcow2");
		file_put("fdinfo/17", cases[i].fdinfo);
		UNIT_CASE(cases[i].what, found(cases[i].want));
		tree_end();
	}
}

static void test_hazards_fdinfo_long_read(void)
{
	static char text[20000];
	size_t len = (size_t)sprintf(text, "pos:\t0\nflags:\t0140002\nmnt_id:\t30\n");

	while (len < sizeof(text) - 64)
		len += (size_t)sprintf(text + len, "lock:\t1: POSIX  ADVISORY  READ 40 08:01:7 %zu 0\n", len);
	tree_begin("6.18.0\n");
	link_make("17", "/images/disk.qcow2");
	file_put("fdinfo/17", text);
	CU_ASSERT_TRUE(found("O_DIRECT"));
	tree_end();
}

static void test_hazards_mountinfo_bad_gives_expected(void)
{
	static const struct {
		const char *what, *text, *want;
	} cases[] = {
		{ "missing", NULL, "cannot be seen" },
		{ "empty", "", "cannot be seen" },
		{ "no newline", "30 1 0:1 / / rw - ext4 x y", "" },
		{ "ends in the type", "30 1 0:1 / / rw - ext4", "cannot be seen" },
		{ "ends in the dash", "30 1 0:1 / / rw - ", "cannot be seen" },
		{ "no dash", "30 1 0:1 / / rw ext4 x y\n31 1 0:1 / / rw - ext4 x y\n", "cannot be seen" },
		{ "a longer number", "300 1 0:1 / / rw - ext4 x y\n", "cannot be seen" },
		{ "a blank before", " 30 1 0:1 / / rw - ext4 x y\n", "cannot be seen" },
		{ "too large a number", "18446744073709551646 1 0:1 / / rw - ext4 x y\n", "cannot be seen" },
		{ "twice", "30 1 0:1 / / rw - nfs x y\n30 1 0:1 / / rw - ext4 x y\n", "O_DIRECT from a file" },
		{ "garbage", "\x01\xff\n\n - - - \n30\n30 ", "cannot be seen" },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		char path[PATH_MAX];

		tree_begin("6.18.0\n");
		snprintf(path, sizeof(path), "%s/proc/%d/mountinfo", dir, PID);
		unlink(path);
		if (cases[i].text)
			file_put("mountinfo", cases[i].text);
		link_make("17", "/images/disk.qcow2");
		file_put("fdinfo/17", "pos:\t0\nflags:\t0140002\nmnt_id:\t30\n");
		UNIT_CASE(cases[i].what, found(cases[i].want));
		tree_end();
	}
}

static void test_hazards_kernel_table_gives_expected(void)
{
	static const struct {
		const char *release, *intel, *amd, *want;
	} cases[] = {
		{ "6.18.44-fc\n", "Y\n", NULL, "" },
		{ "6.13.0\n", "Y\n", NULL, "" },
		{ "7.0.0-rc1\n", NULL, "1\n", "" },
		{ "6.12.99\n", "Y\n", NULL, "nested" },
		{ "6.8.0-40-generic\n", NULL, "1\n", "nested" },
		{ "6.12.1\n", "N\n", NULL, "" },
		{ "6.12.1\n", NULL, "0\n", "" },
		{ "6.12.1\n", "N\n", "0\n", "" },
		{ "6.12.1\n", "", NULL, "nested" }, /* what cannot be read may be on */
		{ "6.12.1\n", NULL, NULL, "" },
		{ "6.7.9\n", NULL, NULL, "6.8" },
		{ "5.14.0-503.el9\n", "Y\n", NULL, "6.8|nested" },
		{ "", NULL, NULL, "6.8" },
		{ "x", NULL, NULL, "6.8" },
		{ "6.", NULL, NULL, "6.8" },
		{ "6.x", NULL, NULL, "6.8" },
		{ "99999999999999999999.1", NULL, NULL, "6.8" },
		{ "6.99999999999999999999", NULL, NULL, "6.8" },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		for (int kvm = 0; kvm < 2; kvm++) {
			bool nested = strstr(cases[i].want, "nested");
			const char *want = kvm || !nested ? cases[i].want : strstr(cases[i].want, "6.8") ? "6.8" : "";

			tree_begin(cases[i].release);
			link_make("9", kvm ? "anon_inode:kvm-vm" : "anon_inode:kvm-vcpu:0");
			if (cases[i].intel)
				unit_file(dir, "sys/module/kvm_intel/parameters/nested", cases[i].intel);
			if (cases[i].amd)
				unit_file(dir, "sys/module/kvm_amd/parameters/nested", cases[i].amd);
			UNIT_CASE(cases[i].release, found(want));
			tree_end();
		}
	}
}

static void test_hazards_status_table_gives_expected(void)
{
	static const struct {
		const char *what, *status, *want;
	} cases[] = {
		{ "traced", "Name:\tx\nTracerPid:\t7\n", "debugger" },
		{ "a name that lies", "Name:\tx\\nTracerPid:\\t7\nTracerPid:\t0\n", "" },
		{ "no such line", "Name:\tx\n", "cannot be looked at" },
		{ "garbage", "TracerPid:\tx\n", "cannot be looked at" },
		{ "empty", "", "cannot be looked at" },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		tree_begin("6.18.0\n");
		file_put("status", cases[i].status);
		UNIT_CASE(cases[i].what, found(cases[i].want));
		tree_end();
	}
}

static void test_hazards_gone_none(void)
{
	const char *why[HAZARDS_MAX];
	char path[PATH_MAX];

	tree_begin("5.0.0\n");
	CU_ASSERT_EQUAL(hazards_find(&fs, PID + 1, why), 0);
	snprintf(path, sizeof(path), "%s/proc/%d/fd", dir, PID);
	unit_must(rmdir(path) == 0, path);
	CU_ASSERT_EQUAL(hazards_find(&fs, PID, why), 0);
	file_put("fd", "not a folder");
	CU_ASSERT_EQUAL(hazards_find(&fs, PID, why), 2);
	CU_ASSERT_STRING_EQUAL(why[0], "its descriptors cannot be looked at");
	tree_end();
}

static void test_hazards_all_at_once_fit(void)
{
	static const char *const links[] = {
		"/dev/vfio/1", "/dev/vfio/2", "/dev/vhost-vdpa-0", "/dev/infiniband/uverbs0", "/dev/vhost-scsi",
		"/dev/ublkc0", "/dev/fuse",   "/dev/vmci",	   "/dev/sev",		       "anon_inode:kvm-vm",
	};
	const char *why[HAZARDS_MAX + 1];
	char name[32], fdinfo[96];
	size_t count;

	tree_begin("5.0.0\n");
	file_put("status", "TracerPid:\t7\n");
	unit_file(dir, "sys/module/kvm_intel/parameters/nested", "Y\n");
	for (size_t i = 0; i < ARRAY_SIZE(links); i++) {
		snprintf(name, sizeof(name), "%zu", i);
		link_make(name, links[i]);
	}
	for (int i = 100; i < 100 + HAZARDS_FDS_MAX; i++) { /* on more mounts than are looked at, too */
		snprintf(name, sizeof(name), "%d", i);
		link_make(name, "/f");
		if (i >= 400)
			continue;
		snprintf(name, sizeof(name), "fdinfo/%d", i);
		snprintf(fdinfo, sizeof(fdinfo), "pos:\t0\nflags:\t0140002\nmnt_id:\t%d\n", 20 + i % 100);
		file_put(name, i == 399 ? "x" : fdinfo);
	}
	why[HAZARDS_MAX] = NULL;
	count = hazards_find(&fs, PID, why);
	CU_ASSERT_TRUE(count >= 13 && count <= HAZARDS_MAX);
	CU_ASSERT_PTR_NULL(why[HAZARDS_MAX]);
	for (size_t i = 0; i < count; i++) {
		CU_ASSERT_PTR_NOT_NULL_FATAL(why[i]);
		CU_ASSERT_TRUE(*why[i] != '\0' && (i == 0 || why[i] != why[i - 1]));
	}
	tree_end();
}

static char *child_make(void *arg)
{
	(void)arg;
	return unit_map(1);
}

/* What the tests' own process holds comes from its parents: only what changes is looked at. */
static void test_hazards_real_process_debugger_seen(void)
{
	const char *why[HAZARDS_MAX];
	struct unit_child child;
	bool seen = false;
	size_t before;

	unit_must(fsio_open_root("/", false, &fs) == 0, "/");
	unit_child_start(&child, child_make, NULL);
	before = hazards_find(&fs, child.pid, why);
	for (size_t i = 0; i < before; i++)
		seen |= strcmp(why[i], "a debugger is attached") == 0;
	CU_ASSERT_FALSE(seen);
	if (ptrace(PTRACE_SEIZE, child.pid, NULL, NULL) == 0) {
		CU_ASSERT_EQUAL(hazards_find(&fs, child.pid, why), before + 1);
		for (size_t i = 0; i <= before; i++)
			seen |= strcmp(why[i], "a debugger is attached") == 0;
		CU_ASSERT_TRUE(seen);
	}
	unit_child_kill(&child);
	CU_ASSERT_EQUAL(hazards_find(&fs, child.pid, why), 0);
	unit_child_stop(&child);
	fsio_close(&fs);
}

int main(void)
{
	static CU_TestInfo tests[] = {
		{ "descriptors", test_hazards_descriptors_table_gives_expected },
		{ "files", test_hazards_files_table_gives_expected },
		{ "fdinfo_long", test_hazards_fdinfo_long_read },
		{ "mountinfo_bad", test_hazards_mountinfo_bad_gives_expected },
		{ "kernel", test_hazards_kernel_table_gives_expected },
		{ "status", test_hazards_status_table_gives_expected },
		{ "gone", test_hazards_gone_none },
		{ "all", test_hazards_all_at_once_fit },
		{ "real", test_hazards_real_process_debugger_seen },
		CU_TEST_INFO_NULL,
	};

	return unit_main("hazards", tests);
}
