#include "vmm/discover.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>

#include "core/cleanup.h"

/* Enough of a command line to hold argv[0]. */
#define PROGRAM_READ_BYTES PATH_MAX

/* A process that is not QEMU is looked at this often in a row, because what is seen may be a child between
 * its fork and its exec of QEMU; and then only every so many sweeps, for the rare wrapper that works for long
 * before it execs. Looking costs about 14 us a process, listing it 0.6 us. */
#define REJECTIONS_SURE 3
#define SWEEPS_BETWEEN_LOOKS 12

/* A process that was looked at and is not QEMU. Another process with its pid gets another inode in /proc. */
struct rejected {
	ino_t ino;
	pid_t pid;
	uint8_t times; /* up to REJECTIONS_SURE */
	uint8_t skip;  /* sweeps till the next look */
};

/* In the order of the sweep that filled it, which is by pid in the kernel's /proc. */
struct rejected_list {
	struct rejected *items;
	size_t count, cap;
};

struct vmm_sweep {
	const struct fsio *fs;
	const struct vmm_sweep_ops *ops;
	void *userdata;
	struct rejected_list before, now; /* of the last sweep and of this */
	size_t cursor;			  /* in before */
	char cmdline[VMM_CMDLINE_MAX_BYTES];
};

/* The next blank-separated number of *text. */
static bool stat_field(const char **text, uint64_t *ret_value)
{
	char *end;

	*text += strspn(*text, " ");
	if (**text == '-') /* some fields before the start time may be negative; none of them is used */
		(*text)++;
	if (!isdigit((unsigned char)**text))
		return false;
	errno = 0;
	*ret_value = strtoull(*text, &end, 10);
	*text = end;
	return errno == 0;
}

int vmm_stat_parse(const char *text, struct vmm_stat *ret_stat)
{
	/* The name's own brackets come before the last one: all that follows is numbers. */
	const char *p = strrchr(text, ')');
	struct vmm_stat st = { .state = 0 };
	uint64_t value;

	if (!p || p[1] != ' ' || !isalpha((unsigned char)p[2]))
		return -EBADMSG;
	st.state = p[2];
	p += 3;
	for (int field = 4; field <= 22; field++) { /* numbered as in proc(5) */
		if (!stat_field(&p, &value))
			return -EBADMSG;
		if (field == 4) {
			if (value > INT_MAX)
				return -EBADMSG;
			st.ppid = (pid_t)value;
		}
	}
	st.start_ticks = value;
	*ret_stat = st;
	return 0;
}

/* Reads the command line's first bytes, up to want. Returns how many or -errno. */
static ssize_t cmdline_read(struct vmm_sweep *s, pid_t pid, size_t want)
{
	auto_close int fd = fsio_open(s->fs, O_RDONLY, "/proc/%d/cmdline", pid);
	size_t len = 0;

	if (fd < 0)
		return fd;
	while (len < want) {
		ssize_t n = read(fd, s->cmdline + len, want - len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			break;
		len += (size_t)n;
	}
	return (ssize_t)len;
}

/* Is it QEMU, by the program it runs or by what it calls itself? 1, 0 or -errno. Both count: wrappers run
 * QEMU by another file name, and "exec -a" or setproctitle change the other. */
static int process_is_qemu(struct vmm_sweep *s, pid_t pid)
{
	char exe[PATH_MAX];
	ssize_t n;
	int r = fsio_readlink(s->fs, exe, sizeof(exe), "/proc/%d/exe", pid);

	if (r == -ENOENT || r == -ESRCH)
		return 0; /* kernel threads and zombies run no program; the cheapest check, for the most pids */
	if (r == 0 && vmm_cmdline_is_qemu(exe))
		return 1;
	n = cmdline_read(s, pid, PROGRAM_READ_BYTES);
	if (n <= 0)
		return (int)n;
	s->cmdline[n] = '\0'; /* the buffer is far larger than what was asked for */
	return vmm_cmdline_is_qemu(s->cmdline);
}

static uid_t process_uid(struct vmm_sweep *s, pid_t pid)
{
	char text[4096];
	uint64_t uid;

	if (fsio_read(s->fs, text, sizeof(text), "/proc/%d/status", pid) < 0 ||
	    fsio_field_u64(text, "Uid", &uid) < 0 || uid > UINT32_MAX)
		return (uid_t)-1;
	return (uid_t)uid;
}

/* A process that has ended makes its pidfd readable, a zombie's too. */
static bool pidfd_alive(int pidfd)
{
	struct pollfd p = { .fd = pidfd, .events = POLLIN };

	return poll(&p, 1, 0) == 0;
}

/* Fills found with what /proc says of the process. All of it is true of the process behind found->pidfd: a
 * pid is not given to another while that one lives, and that it still does is looked at last. */
static int process_describe(struct vmm_sweep *s, struct vmm_found *found)
{
	struct vmm_stat st;
	char text[2048];
	ssize_t n = fsio_read(s->fs, text, sizeof(text), "/proc/%d/stat", found->pid);

	if (n < 0)
		return (int)n;
	if (vmm_stat_parse(text, &st) < 0 || st.state == 'Z' || st.state == 'X')
		return -ESRCH;
	/* What QEMU forks to run a helper looks like QEMU until it has exec'ed. */
	if (s->ops->known(st.ppid, s->userdata))
		return -ESRCH;
	n = cmdline_read(s, found->pid, VMM_CMDLINE_MAX_BYTES);
	if (n <= 0)
		return n < 0 ? (int)n : -ESRCH;
	found->start_ticks = st.start_ticks;
	found->uid = process_uid(s, found->pid);
	vmm_cmdline_parse_args(s->cmdline, (size_t)n, &found->cmdline);
	return pidfd_alive(found->pidfd) ? 0 : -ESRCH;
}

/* What the last sweep remembered of this process; NULL: nothing. The cursor only moves on: a process that is
 * out of order (in a /proc that is not the kernel's) is not remembered, so looked at. */
static const struct rejected *rejected_find(struct vmm_sweep *s, pid_t pid, ino_t ino)
{
	while (s->cursor < s->before.count && s->before.items[s->cursor].pid < pid)
		s->cursor++;
	if (s->cursor < s->before.count && s->before.items[s->cursor].pid == pid &&
	    s->before.items[s->cursor].ino == ino)
		return &s->before.items[s->cursor];
	return NULL;
}

/* Remembers; without memory the process is just looked at again. */
static void rejected_add(struct rejected_list *list, struct rejected r)
{
	if (list->count == list->cap) {
		size_t cap = list->cap ? list->cap * 2 : 256;
		struct rejected *bigger = reallocarray(list->items, cap, sizeof(*bigger));

		if (!bigger)
			return;
		list->items = bigger;
		list->cap = cap;
	}
	list->items[list->count++] = r;
}

/* A process that may be QEMU: takes it in when it is not known yet. */
static int process_take(struct vmm_sweep *s, pid_t pid)
{
	struct vmm_found found = { .pid = pid };
	auto_close int pidfd = -1;
	int r;

	if (s->ops->known(pid, s->userdata))
		return 0;
	pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	if (pidfd < 0)
		return -errno;
	found.pidfd = pidfd;
	r = process_describe(s, &found);
	if (r < 0)
		return r;
	take_fd(pidfd);
	return s->ops->found(&found, s->userdata);
}

static int process_visit(struct vmm_sweep *s, pid_t pid, ino_t ino)
{
	const struct rejected *before = rejected_find(s, pid, ino);
	struct rejected now = { .pid = pid, .ino = ino };
	int r;

	if (before)
		now = *before;
	if (now.skip > 0) {
		now.skip--;
		rejected_add(&s->now, now);
		return 0;
	}
	r = process_is_qemu(s, pid);
	if (r > 0)
		return process_take(s, pid);
	if (now.times < REJECTIONS_SURE && ++now.times == REJECTIONS_SURE)
		now.skip = (uint8_t)(pid % SWEEPS_BETWEEN_LOOKS); /* spreads the looks over the sweeps */
	else if (now.times == REJECTIONS_SURE)
		now.skip = SWEEPS_BETWEEN_LOOKS - 1;
	rejected_add(&s->now, now);
	return r;
}

/* Errors that are the daemon's, not of one process. */
static bool error_ends_sweep(int r)
{
	return r == -ENOMEM || r == -EMFILE || r == -ENFILE || r == -ENOSYS;
}

static int sweep_entry(struct vmm_sweep *s, const struct dirent *entry)
{
	char *end;
	long pid;
	int r;

	if (!isdigit((unsigned char)entry->d_name[0]))
		return 0;
	pid = strtol(entry->d_name, &end, 10);
	if (*end || pid <= 0 || pid > INT_MAX)
		return 0;
	r = process_visit(s, (pid_t)pid, entry->d_ino);
	return error_ends_sweep(r) ? r : 0;
}

int vmm_sweep_run(struct vmm_sweep *s)
{
	auto_closedir DIR *dir = fsio_opendir(s->fs, "/proc");
	struct rejected_list spare = s->before;
	struct dirent *entry;
	int r = 0;

	if (!dir)
		return -errno;
	s->before = s->now;
	s->now = spare;
	s->now.count = 0;
	s->cursor = 0;
	while (r == 0 && (entry = readdir(dir)))
		r = sweep_entry(s, entry);
	return r;
}

int vmm_sweep_new(const struct fsio *fs, const struct vmm_sweep_ops *ops, void *userdata,
		  struct vmm_sweep **ret_sweep)
{
	struct vmm_sweep *s = calloc(1, sizeof(*s));

	if (!s)
		return -ENOMEM;
	s->fs = fs;
	s->ops = ops;
	s->userdata = userdata;
	*ret_sweep = s;
	return 0;
}

struct vmm_sweep *vmm_sweep_free(struct vmm_sweep *s)
{
	if (!s)
		return NULL;
	free(s->before.items);
	free(s->now.items);
	free(s);
	return NULL;
}
