#include "agent/pins.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "core/cleanup.h"
#include "core/clock.h"

#define MOUNTS_KEEP_NS NSEC_PER_SEC

/* CPU time of a look, for part of which the VMM's writers wait: some 500 descriptors. */
#define LOOK_MOST_NS NSEC_PER_MSEC

static const char too_many[] = "it has too much open to be looked at while its memory is frozen";
static const char unreadable[] = "its descriptors cannot be looked at";
static const char unknown[] = "it has something open that is not known never to pin memory";
static const char direct[] = "it reads with O_DIRECT";
static const char uring[] = "it may have memory pinned for io_uring";

/* ---- mounts ---- */

/* Local and memory file systems, and NFS, copy from the page cache. FUSE and 9p go round it if their server wants that;
 * overlay is like what is below it, which cannot be told. */
static const char *const cached[] = {
	"ext2", "ext3",	 "ext4",  "xfs",	"btrfs",    "f2fs",  "bcachefs", "jfs",	   "gfs2",    "ocfs2",
	"vfat", "exfat", "ntfs3", "zonefs",	"iso9660",  "udf",   "squashfs", "erofs",  "nfs",     "nfs4",
	"proc", "sysfs", "tmpfs", "devtmpfs",	"ramfs",    "devpts", "cgroup2", "debugfs", "tracefs", "hugetlbfs",
};

/* A line of mountinfo: "36 35 98:0 /root /point rw,noatime master:1 - ext4 /dev/root rw"; blanks in names are escaped. */
static void mount_line(struct pins_mounts *m, const char *line)
{
	const char *type = strstr(line, " - "), *end;

	if (!type || m->count == PINS_MOUNTS_MAX)
		return;
	type += 3;
	end = strchr(type, ' ');
	for (size_t i = 0; end && i < ARRAY_SIZE(cached); i++) {
		if (strlen(cached[i]) == (size_t)(end - type) && memcmp(type, cached[i], (size_t)(end - type)) == 0) {
			m->ids[m->count++] = strtoull(line, NULL, 10);
			return;
		}
	}
}

void pins_mounts_read(struct pins_mounts *m)
{
	auto_fclose FILE *f = NULL;
	auto_free char *line = NULL;
	size_t cap = 0;

	if (m->read_ns != 0 && clock_mono_ns() - m->read_ns < MOUNTS_KEEP_NS)
		return;
	m->read_ns = clock_mono_ns();
	m->count = 0;
	f = fopen("/proc/self/mountinfo", "re");
	while (f && getline(&line, &cap, f) > 0)
		mount_line(m, line);
}

static bool mount_is_cached(const struct pins_mounts *m, uint64_t id)
{
	for (unsigned i = 0; i < m->count; i++)
		if (m->ids[i] == id)
			return true;
	return false;
}

/* ---- descriptors ---- */

static bool link_read(int fd, char link[64])
{
	char path[32] = "/proc/self/fd/", digits[16];
	size_t at = strlen(path), n = 0;
	ssize_t len;

	do {
		digits[n++] = (char)('0' + fd % 10);
		fd /= 10;
	} while (fd > 0);
	while (n > 0)
		path[at++] = digits[--n];
	path[at] = '\0';
	len = readlink(path, link, 63);
	link[len > 0 ? len : 0] = '\0';
	return len > 0;
}

/* "UserFiles" may hold files that are read with O_DIRECT and are no descriptors; "UserBufs" are pinned for good. */
static const char *uring_look(const char *fd_name)
{
	char path[64] = "/proc/self/fdinfo/", text[4096];
	auto_close int fd = -1;
	ssize_t n;

	strncat(path, fd_name, 16);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
	if (n <= 0)
		return uring;
	text[n] = '\0';
	return strstr(text, "\nUserFiles:\t0\n") && strstr(text, "\nUserBufs:\t0\n") ? NULL : uring;
}

/* Those that a VMM has; each only copies to memory, or has nothing to do with it. */
static const char *anon_look(const char *link, const char *fd_name)
{
	static const char *const harmless[] = {
		"[eventfd]", "[eventpoll]", "[signalfd]", "[timerfd]", "inotify", "[pidfd]", "kvm-vm", "kvm-vcpu",
		"kvm-device", "kvm-stats", "kvm-vcpu-stats", "[userfaultfd]", "[perf_event]", "bpf-prog", "bpf-map",
		"kvm-vfio",
	};
	static const char prefix[] = "anon_inode:";
	const char *name = link + sizeof(prefix) - 1;

	if (strncmp(link, prefix, sizeof(prefix) - 1) != 0)
		return unknown;
	if (strcmp(name, "[io_uring]") == 0)
		return uring_look(fd_name);
	for (size_t i = 0; i < ARRAY_SIZE(harmless); i++) {
		size_t n = strlen(harmless[i]);

		if (strncmp(name, harmless[i], n) == 0 && (name[n] == '\0' || name[n] == ':'))
			return NULL;
	}
	return unknown;
}

/* AF_ALG, AF_XDP, RDS .. pin what they write to; so may TLS in the kernel. */
static const char *socket_look(int fd)
{
	int domain = -1;
	char ulp[16] = "";
	socklen_t len = sizeof(domain);

	if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &len) < 0)
		return unknown;
	if (domain == AF_UNIX || domain == AF_NETLINK || domain == AF_VSOCK || domain == AF_PACKET)
		return NULL;
	if (domain != AF_INET && domain != AF_INET6)
		return unknown;
	len = sizeof(ulp);
	return getsockopt(fd, IPPROTO_TCP, TCP_ULP, ulp, &len) == 0 && ulp[0] != '\0' ? unknown : NULL;
}

/* By the numbers that the kernel has given them for good (admin-guide/devices.txt). */
static const char *device_look(uint32_t device_major, uint32_t device_minor)
{
	static const struct {
		uint32_t major, first, last;
	} harmless[] = {
		{ 1, 3, 3 },	   { 1, 5, 5 },	      { 1, 7, 9 },	 { 4, 0, 255 }, { 5, 0, 2 },
		{ 136, 0, 1 << 20 }, /* null; zero; full, random, urandom; terminals */
		{ 10, 200, 200 }, { 10, 232, 232 }, { 10, 238, 238 }, { 10, 241, 241 }, /* tun, kvm, vhost-net, -vsock */
	};

	for (size_t i = 0; i < ARRAY_SIZE(harmless); i++)
		if (device_major == harmless[i].major && device_minor >= harmless[i].first &&
		    device_minor <= harmless[i].last)
			return NULL;
	return unknown;
}

static const char *file_look(const struct pins_mounts *m, int fd, int flags, uint64_t mount)
{
	char link[64];

	if (fcntl(fd, F_GET_SEALS) >= 0)
		return NULL; /* memory, which is copied */
	if (flags & O_DIRECT)
		return direct;
	if (mount_is_cached(m, mount))
		return NULL;
	return link_read(fd, link) && strcmp(link, "anon_inode:[pidfd]") == 0 ? NULL : unknown;
}

static const char *fd_look(const struct pins_mounts *m, int fd, const char *name)
{
	int flags = fcntl(fd, F_GETFL);
	struct statx st;
	char link[64];

	if (flags < 0) /* closed meanwhile */
		return errno == EBADF ? NULL : unreadable;
	/* Who only writes to a file only reads guest memory, and what he reads is as it was when he began. */
	if (flags & O_PATH)
		return NULL;
	if (statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_TYPE | STATX_MNT_ID, &st) < 0)
		return errno == EBADF ? NULL : unreadable;
	switch (st.stx_mode & S_IFMT) {
	case S_IFDIR:
	case S_IFIFO:
	case S_IFLNK:
		return NULL;
	case S_IFSOCK:
		return socket_look(fd);
	case S_IFCHR:
		return device_look(st.stx_rdev_major, st.stx_rdev_minor);
	case S_IFBLK:
		return (flags & O_ACCMODE) != O_WRONLY && (flags & O_DIRECT) ? direct : NULL;
	case S_IFREG:
		return (flags & O_ACCMODE) == O_WRONLY ? NULL : file_look(m, fd, flags, st.stx_mnt_id);
	default:
		return link_read(fd, link) ? anon_look(link, name) : unknown;
	}
}

/* ---- all ---- */

struct entry { /* struct linux_dirent64 */
	uint64_t inode, next;
	uint16_t len;
	uint8_t type;
	char name[];
};

const char *pins_possible(const struct pins_mounts *m)
{
	_Alignas(struct entry) char buf[4096];
	auto_close int dir = open("/proc/self/fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	uint64_t start = clock_thread_cpu_ns();
	const char *why = NULL;
	long n = -1;

	while (!why && dir >= 0 && (n = syscall(SYS_getdents64, dir, buf, sizeof(buf))) > 0) {
		for (long at = 0; at < n && !why;) {
			const struct entry *e = (const void *)(buf + at);
			int fd = 0;

			for (const char *c = e->name; *c >= '0' && *c <= '9'; c++)
				fd = fd * 10 + (*c - '0');
			if (e->name[0] != '.' && fd != dir)
				why = fd_look(m, fd, e->name);
			if (!why && clock_thread_cpu_ns() - start > LOOK_MOST_NS)
				why = too_many;
			at += e->len;
		}
	}
	return why ? why : n < 0 ? unreadable : NULL;
}
