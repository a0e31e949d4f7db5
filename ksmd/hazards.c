#include "ksmd/hazards.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "core/cleanup.h"

/* In the order in which they are reported. */
enum hazard {
	HAZARD_UNREADABLE,
	HAZARD_FDS,
	HAZARD_MOUNTS,
	HAZARD_KERNEL,
	HAZARD_NESTED,
	HAZARD_TRACED,
	HAZARD_ENCRYPTED,
	HAZARD_VFIO,
	HAZARD_VDPA,
	HAZARD_RDMA,
	HAZARD_VHOST_SCSI,
	HAZARD_UBLK,
	HAZARD_FUSE_SERVER,
	HAZARD_VMCI,
	HAZARD_DIRECT,
	HAZARD_DIRECT_UNSEEN,
	HAZARD_UNCACHED,
};

static const char *const whys[] = {
	[HAZARD_UNREADABLE] = "its descriptors cannot be looked at",
	[HAZARD_FDS] = "it has too many descriptors to look at",
	[HAZARD_MOUNTS] = "the mounts of its files cannot be looked at",
	[HAZARD_KERNEL] = "the kernel is older than 6.8",
	[HAZARD_NESTED] = "nested virtualization is on (kvm's parameter nested) and the kernel is older than 6.13",
	[HAZARD_TRACED] = "a debugger is attached",
	[HAZARD_ENCRYPTED] = "guest memory is encrypted",
	[HAZARD_VFIO] = "a device is assigned (VFIO)",
	[HAZARD_VDPA] = "a device is assigned (vDPA)",
	[HAZARD_RDMA] = "it uses RDMA",
	[HAZARD_VHOST_SCSI] = "it uses vhost-scsi",
	[HAZARD_UBLK] = "it serves a ublk device",
	[HAZARD_FUSE_SERVER] = "it serves a FUSE file system",
	[HAZARD_VMCI] = "it uses VMCI",
	[HAZARD_DIRECT] = "it reads with O_DIRECT from a file system that is not known to pin pages",
	[HAZARD_DIRECT_UNSEEN] = "it reads with O_DIRECT from a mount that cannot be seen",
	[HAZARD_UNCACHED] = "it has files open on 9p, or on FUSE before Linux 6.9",
};
_Static_assert(ARRAY_SIZE(whys) <= HAZARDS_MAX && ARRAY_SIZE(whys) <= 32, "a bit for each");

#define RELEASE(major, minor) ((major) * 1000u + (minor))

/* Looked for anywhere in a descriptor's link: the device may be in a chroot or a container. /dev/vfio/vfio is opened
 * for a device only; /dev/iommu and kvm's own vfio object mean nothing yet. */
static const struct trace {
	const char *link;
	enum hazard hazard;
} traces[] = {
	{ "/dev/vfio/", HAZARD_VFIO },
	{ "anon_inode:[vfio-device]", HAZARD_VFIO },
	{ "/dev/vhost-vdpa", HAZARD_VDPA },
	{ "/dev/infiniband/", HAZARD_RDMA },
	{ "/dev/vhost-scsi", HAZARD_VHOST_SCSI },
	{ "/dev/ublkc", HAZARD_UBLK }, /* ublkb is the disk, and as safe as any */
	{ "/dev/ublk-control", HAZARD_UBLK },
	{ "/dev/fuse", HAZARD_FUSE_SERVER },
	{ "/dev/vmci", HAZARD_VMCI },
	{ "/dev/sev", HAZARD_ENCRYPTED },
	{ "anon_inode:[kvm-gmem]", HAZARD_ENCRYPTED },
};

/* O_DIRECT pins pages on these: disk file systems do (since Linux 6.5), memory ones copy; devtmpfs stands for block
 * devices. Named are the good ones: a file system that is forgotten here costs speed, not a guest's memory. NFS, ceph
 * and 9p take plain references; overlay is like what is below it, which cannot be told. */
static const char *const pinning[] = {
	"ext4", "xfs",	 "btrfs", "f2fs", "bcachefs", "devtmpfs", "tmpfs", "ramfs", "hugetlbfs",
	"ext2", "ext3", "gfs2",  "ocfs2", "jfs",     "vfat",	 "exfat", "ntfs3", "zonefs",
};

#define MOUNTS_MAX 64		/* that one VMM has files on */
#define MOUNTINFO_MAX (8u << 20) /* 40,000 mounts */
#define PREFIX_MAX 1024		/* holds the lines that are looked for: they come first */

struct mount {
	uint64_t id;
	bool direct; /* some descriptor on it reads with O_DIRECT */
	bool seen;
};

struct look {
	const struct fsio *fs;
	pid_t pid;
	uint32_t found; /* a bit for each enum hazard */
	unsigned release;
	bool kvm;
	struct mount mounts[MOUNTS_MAX]; /* of descriptors that can be read from */
	size_t mount_count;
};

static void note(struct look *l, enum hazard hazard)
{
	l->found |= UINT32_C(1) << hazard;
}

static bool is_gone(int error)
{
	return error == -ENOENT || error == -ESRCH;
}

/* ---- kernel ---- */

/* 0: unknown, which is older than anything. */
static unsigned release_read(const struct fsio *fs)
{
	unsigned long major, minor;
	char text[256], *end;

	if (fsio_read(fs, text, sizeof(text), "/proc/sys/kernel/osrelease") < 0)
		return 0;
	major = strtoul(text, &end, 10);
	if (*end != '.' || end[1] < '0' || end[1] > '9')
		return 0;
	minor = strtoul(end + 1, NULL, 10);
	return major < 1000 && minor < 1000 ? RELEASE((unsigned)major, (unsigned)minor) : 0;
}

static bool nested_is_on(const struct fsio *fs, const char *module)
{
	char text[16];
	ssize_t n = fsio_read(fs, text, sizeof(text), "/sys/module/%s/parameters/nested", module);

	if (n == -ENOENT)
		return false;
	return n < 0 || (text[0] != 'N' && text[0] != '0');
}

/* kvm maps a nested guest's pages by plain references before 6.13. Whether the guest runs guests cannot be seen. */
static void kernel_look(struct look *l)
{
	if (l->release < RELEASE(6, 8))
		note(l, HAZARD_KERNEL);
	if (l->kvm && l->release < RELEASE(6, 13) &&
	    (nested_is_on(l->fs, "kvm_intel") || nested_is_on(l->fs, "kvm_amd")))
		note(l, HAZARD_NESTED);
}

/* ---- texts ---- */

/* The beginning of a file, with a NUL. These files may be long: a line for each lock, for each group. */
static int prefix_read(const struct look *l, char text[PREFIX_MAX], const char *what, const char *name)
{
	auto_close int fd = fsio_open(l->fs, O_RDONLY, "/proc/%d/%s%s", (int)l->pid, what, name);
	ssize_t n;

	if (fd < 0)
		return fd;
	n = read(fd, text, PREFIX_MAX - 1);
	if (n < 0)
		return -errno;
	text[n] = '\0';
	return 0;
}

/* False: the process is gone. */
static bool status_look(struct look *l)
{
	char text[PREFIX_MAX];
	uint64_t tracer;
	int r = prefix_read(l, text, "status", "");

	if (is_gone(r))
		return false;
	/* The name, which the process chooses, comes before it, but escaped. */
	if (r < 0 || fsio_field_u64(text, "TracerPid", &tracer) < 0)
		note(l, HAZARD_UNREADABLE);
	else if (tracer != 0)
		note(l, HAZARD_TRACED);
	return true;
}

/* fdinfo begins with "pos:\t0\nflags:\t0140002\nmnt_id:\t29\n", the flags in octal. */
static int fdinfo_parse(const char *text, unsigned long *ret_flags, uint64_t *ret_mount)
{
	static const char key[] = "\nflags:\t";
	const char *at = strstr(text, key);
	unsigned long flags;
	char *end;

	if (!at)
		return -EBADMSG;
	at += sizeof(key) - 1;
	if (*at < '0' || *at > '7')
		return -EBADMSG;
	errno = 0;
	flags = strtoul(at, &end, 8);
	if (errno || *end != '\n')
		return -EBADMSG;
	*ret_flags = flags;
	return fsio_field_u64(text, "mnt_id", ret_mount);
}

/* ---- descriptors ---- */

static void mount_note(struct look *l, uint64_t id, bool direct)
{
	size_t i = 0;

	while (i < l->mount_count && l->mounts[i].id != id)
		i++;
	if (i == MOUNTS_MAX) {
		note(l, HAZARD_MOUNTS);
		return;
	}
	if (i == l->mount_count)
		l->mounts[l->mount_count++] = (struct mount){ .id = id };
	l->mounts[i].direct |= direct;
}

static void file_look(struct look *l, const char *fd_name)
{
	char text[PREFIX_MAX];
	unsigned long flags = 0;
	uint64_t id = 0;
	int r = prefix_read(l, text, "fdinfo/", fd_name);

	if (is_gone(r)) /* closed meanwhile */
		return;
	if (r == 0)
		r = fdinfo_parse(text, &flags, &id);
	if (r < 0) {
		note(l, HAZARD_UNREADABLE);
		return;
	}
	/* A write only reads guest memory, and what it reads is as it was when it began. */
	if (!(flags & O_PATH) && (flags & O_ACCMODE) != O_WRONLY)
		mount_note(l, id, (flags & O_DIRECT) != 0);
}

static void fd_look(struct look *l, const char *name)
{
	char link[PATH_MAX];
	int r = fsio_readlink(l->fs, link, sizeof(link), "/proc/%d/fd/%s", (int)l->pid, name);

	if (is_gone(r))
		return;
	if (r == -ENAMETOOLONG) {
		file_look(l, name);
		return;
	}
	if (r < 0) {
		note(l, HAZARD_UNREADABLE);
		return;
	}
	for (size_t i = 0; i < ARRAY_SIZE(traces); i++)
		if (strstr(link, traces[i].link))
			note(l, traces[i].hazard);
	l->kvm |= strcmp(link, "anon_inode:kvm-vm") == 0;
	/* Only files have a leading '/': pipes know an O_DIRECT of their own. Devices lie on devtmpfs or tmpfs; drivers
	 * of graphics cards take locks to write their fdinfo. */
	if (link[0] == '/' && strncmp(link, "/dev/", 5) != 0)
		file_look(l, name);
}

/* False: the process is gone. */
static bool fds_look(struct look *l)
{
	auto_closedir DIR *dir = fsio_opendir(l->fs, "/proc/%d/fd", (int)l->pid);
	const struct dirent *entry;
	unsigned count = 0;

	if (!dir) {
		if (is_gone(-errno))
			return false;
		note(l, HAZARD_UNREADABLE);
		return true;
	}
	while (errno = 0, entry = readdir(dir)) {
		const char *name = entry->d_name;

		if (name[strspn(name, "0123456789")] != '\0')
			continue;
		if (++count > HAZARDS_FDS_MAX) {
			note(l, HAZARD_FDS);
			return true;
		}
		fd_look(l, name);
	}
	if (errno != 0 && !is_gone(-errno))
		note(l, HAZARD_UNREADABLE);
	return true;
}

/* ---- mounts ---- */

static bool type_is(const char *type, size_t len, const char *name)
{
	return strlen(name) == len && memcmp(type, name, len) == 0;
}

static void mount_judge(struct look *l, const struct mount *m, const char *type, size_t len)
{
	bool fuse = type_is(type, len, "fuse") || type_is(type, len, "fuseblk") || type_is(type, len, "virtiofs") ||
		    (len > 5 && memcmp(type, "fuse.", 5) == 0);
	bool pins = fuse;

	/* Both may go round the page cache without being asked to by O_DIRECT: 9p mostly does, FUSE if its server
	 * wants it. FUSE pins pages since 6.9. */
	if (type_is(type, len, "9p") || (fuse && l->release < RELEASE(6, 9))) {
		note(l, HAZARD_UNCACHED);
		return;
	}
	for (size_t i = 0; i < ARRAY_SIZE(pinning) && !pins; i++)
		pins = type_is(type, len, pinning[i]);
	if (m->direct && !pins)
		note(l, HAZARD_DIRECT);
}

/* A line of mountinfo: "36 35 98:0 /root /point rw,noatime master:1 - ext4 /dev/root rw"; blanks in names are
 * escaped, so the first lone dash ends the optional fields. */
static void mount_line(struct look *l, const char *line, const char *end)
{
	const char *dash = memmem(line, (size_t)(end - line), " - ", 3), *type, *type_end;
	uint64_t id;
	char *rest;

	if (!dash || *line < '0' || *line > '9')
		return;
	errno = 0;
	id = strtoull(line, &rest, 10);
	if (errno || *rest != ' ')
		return;
	type = dash + 3;
	type_end = memchr(type, ' ', (size_t)(end - type));
	for (size_t i = 0; i < l->mount_count && type_end; i++) {
		struct mount *m = &l->mounts[i];

		if (m->id != id || m->seen)
			continue;
		m->seen = true;
		mount_judge(l, m, type, (size_t)(type_end - type));
	}
}

static int mounts_read(struct look *l, const char *process)
{
	auto_free char *text = NULL;
	ssize_t n = fsio_read_alloc(l->fs, MOUNTINFO_MAX, &text, "/proc/%s/mountinfo", process);

	if (n < 0)
		return (int)n;
	for (const char *line = text, *end; line < text + n; line = end + 1) {
		end = memchr(line, '\n', (size_t)(text + n - line));
		if (!end)
			end = text + n;
		mount_line(l, line, end);
	}
	return 0;
}

static bool mounts_all_seen(const struct look *l)
{
	for (size_t i = 0; i < l->mount_count; i++)
		if (!l->mounts[i].seen)
			return false;
	return true;
}

/* A descriptor may be of a mount that the process itself cannot name: it was passed to it, or the process has
 * changed its root. The caller's mounts are tried then. Mounts that nobody can name are the kernel's own (memory
 * files) or detached ones: the first never read into guest memory, for the second nobody can speak. */
static void mounts_look(struct look *l)
{
	char process[16];
	int r;

	if (l->mount_count == 0)
		return;
	snprintf(process, sizeof(process), "%d", (int)l->pid);
	r = mounts_read(l, process);
	if (r < 0 && !is_gone(r))
		note(l, HAZARD_MOUNTS);
	if (!mounts_all_seen(l))
		mounts_read(l, "self");
	for (size_t i = 0; i < l->mount_count; i++)
		if (l->mounts[i].direct && !l->mounts[i].seen)
			note(l, HAZARD_DIRECT_UNSEEN);
}

/* ---- all ---- */

size_t hazards_find(const struct fsio *fs, pid_t pid, const char *ret_why[HAZARDS_MAX])
{
	struct look l = { .fs = fs, .pid = pid };
	size_t count = 0;

	if (!status_look(&l) || !fds_look(&l))
		return 0;
	l.release = release_read(fs);
	kernel_look(&l);
	mounts_look(&l);
	for (size_t i = 0; i < ARRAY_SIZE(whys); i++)
		if (l.found & UINT32_C(1) << i)
			ret_why[count++] = whys[i];
	return count;
}
