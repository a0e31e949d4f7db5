#include "core/fsio.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "core/cleanup.h"
#include "core/log.h"

int fsio_open_root(const char *root, bool dry_run, struct fsio *ret_fs)
{
	int fd = open(root, O_PATH | O_DIRECTORY | O_CLOEXEC);

	if (fd < 0)
		return -errno;
	*ret_fs = (struct fsio){ .root_fd = fd, .dry_run = dry_run };
	return 0;
}

void fsio_close(struct fsio *fs)
{
	if (fs->root_fd >= 0)
		close(fs->root_fd);
	fs->root_fd = -1;
}

/* Formats a path below the root: "." for the root itself. */
static int path_format(char *path, size_t cap, const char *fmt, va_list args)
{
	int n = vsnprintf(path, cap, fmt, args);
	size_t skip;

	if (n < 0)
		return -EINVAL;
	if ((size_t)n >= cap)
		return -ENAMETOOLONG;
	skip = strspn(path, "/");
	memmove(path, path + skip, (size_t)n - skip + 1);
	if (path[0] == '\0')
		memcpy(path, ".", 2);
	return 0;
}

static int path_open(const struct fsio *fs, int flags, const char *fmt, va_list args)
{
	char path[PATH_MAX];
	int r, fd;

	r = path_format(path, sizeof(path), fmt, args);
	if (r < 0)
		return r;
	fd = openat(fs->root_fd, path, flags | O_CLOEXEC, 0600);
	return fd < 0 ? -errno : fd;
}

int fsio_open(const struct fsio *fs, int flags, const char *fmt, ...)
{
	va_list args;
	int fd;

	va_start(args, fmt);
	fd = path_open(fs, flags, fmt, args);
	va_end(args);
	return fd;
}

DIR *fsio_opendir(const struct fsio *fs, const char *fmt, ...)
{
	va_list args;
	DIR *dir;
	int fd;

	va_start(args, fmt);
	fd = path_open(fs, O_RDONLY | O_DIRECTORY, fmt, args);
	va_end(args);
	if (fd < 0) {
		errno = -fd;
		return NULL;
	}
	dir = fdopendir(fd);
	if (!dir) {
		int saved = errno;

		close(fd);
		errno = saved;
	}
	return dir;
}

int fsio_readlink(const struct fsio *fs, char *buf, size_t cap, const char *fmt, ...)
{
	char path[PATH_MAX];
	va_list args;
	ssize_t n;
	int r;

	va_start(args, fmt);
	r = path_format(path, sizeof(path), fmt, args);
	va_end(args);
	if (r < 0)
		return r;
	n = readlinkat(fs->root_fd, path, buf, cap);
	if (n < 0)
		return -errno;
	if ((size_t)n >= cap)
		return -ENAMETOOLONG;
	buf[n] = '\0';
	return 0;
}

/* Reads from fd until its end or until cap bytes are full; returns the length or -errno. */
static ssize_t read_full(int fd, char *buf, size_t cap)
{
	size_t len = 0;

	while (len < cap) {
		ssize_t n = read(fd, buf + len, cap - len);

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

static ssize_t read_into(const struct fsio *fs, char *buf, size_t cap, const char *fmt, va_list args)
{
	auto_close int fd = path_open(fs, O_RDONLY, fmt, args);
	ssize_t n;

	if (fd < 0)
		return fd;
	n = read_full(fd, buf, cap);
	if (n < 0)
		return n;
	if ((size_t)n >= cap)
		return -EFBIG;
	buf[n] = '\0';
	return n;
}

ssize_t fsio_read(const struct fsio *fs, char *buf, size_t cap, const char *fmt, ...)
{
	va_list args;
	ssize_t n;

	va_start(args, fmt);
	n = read_into(fs, buf, cap, fmt, args);
	va_end(args);
	return n;
}

ssize_t fsio_read_alloc(const struct fsio *fs, size_t max_bytes, char **ret_text, const char *fmt, ...)
{
	auto_close int fd = -1;
	auto_free char *text = NULL;
	size_t cap = 4096, len = 0;
	va_list args;

	va_start(args, fmt);
	fd = path_open(fs, O_RDONLY, fmt, args);
	va_end(args);
	if (fd < 0)
		return fd;

	for (;;) {
		char *bigger = realloc(text, cap);
		ssize_t n;

		if (!bigger)
			return -ENOMEM;
		text = bigger;
		n = read_full(fd, text + len, cap - len);
		if (n < 0)
			return n;
		len += (size_t)n;
		if (len > max_bytes)
			return -EFBIG;
		if (len < cap)
			break;
		cap *= 2;
	}
	text[len] = '\0';
	*ret_text = take_ptr(text);
	return (ssize_t)len;
}

/* A decimal number at text, no sign; *ret_end is behind it. */
static int parse_u64(const char *text, const char **ret_end, uint64_t *ret_value)
{
	char *end;
	uint64_t value;

	if (*text < '0' || *text > '9')
		return -EBADMSG;
	errno = 0;
	value = strtoull(text, &end, 10);
	if (errno)
		return -EBADMSG;
	*ret_end = end;
	*ret_value = value;
	return 0;
}

int fsio_read_u64(const struct fsio *fs, uint64_t *ret_value, const char *fmt, ...)
{
	char text[32];
	const char *end;
	uint64_t value;
	va_list args;
	ssize_t n;
	int r;

	va_start(args, fmt);
	n = read_into(fs, text, sizeof(text), fmt, args);
	va_end(args);
	if (n == -EFBIG)
		return -EBADMSG;
	if (n < 0)
		return (int)n;
	r = parse_u64(text, &end, &value);
	if (r < 0)
		return r;
	if (*end == '\n')
		end++;
	if (*end)
		return -EBADMSG;
	*ret_value = value;
	return 0;
}

int fsio_write(const struct fsio *fs, const char *text, const char *fmt, ...)
{
	auto_close int fd = -1;
	char path[PATH_MAX];
	size_t len = strlen(text);
	va_list args;
	ssize_t n;
	int r;

	va_start(args, fmt);
	r = path_format(path, sizeof(path), fmt, args);
	va_end(args);
	if (r < 0)
		return r;
	log_debug("write /%s: \"%s\"%s", path, text, fs->dry_run ? " (dry run, not done)" : "");
	if (fs->dry_run)
		return 0;
	fd = openat(fs->root_fd, path, O_WRONLY | O_CLOEXEC | O_TRUNC);
	if (fd < 0)
		return -errno;
	n = write(fd, text, len);
	if (n < 0)
		return -errno;
	return (size_t)n == len ? 0 : -EIO;
}

static int write_synced(int fd, const char *text)
{
	size_t len = strlen(text);
	ssize_t n = write(fd, text, len);

	if (n < 0)
		return -errno;
	if ((size_t)n != len)
		return -EIO;
	return fsync(fd) < 0 ? -errno : 0;
}

int fsio_replace(const struct fsio *fs, const char *text, const char *fmt, ...)
{
	auto_close int fd = -1;
	char path[PATH_MAX - 4], temp[PATH_MAX];
	va_list args;
	int r;

	va_start(args, fmt);
	r = path_format(path, sizeof(path), fmt, args);
	va_end(args);
	if (r < 0)
		return r;
	if (fs->dry_run)
		return 0;
	snprintf(temp, sizeof(temp), "%s.new", path);
	fd = openat(fs->root_fd, temp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0)
		return -errno;
	r = write_synced(fd, text);
	if (r == 0 && renameat(fs->root_fd, temp, fs->root_fd, path) < 0)
		r = -errno;
	if (r < 0)
		unlinkat(fs->root_fd, temp, 0);
	return r;
}

int fsio_unlink(const struct fsio *fs, const char *fmt, ...)
{
	char path[PATH_MAX];
	va_list args;
	int r;

	va_start(args, fmt);
	r = path_format(path, sizeof(path), fmt, args);
	va_end(args);
	if (r < 0)
		return r;
	if (fs->dry_run)
		return 0;
	return unlinkat(fs->root_fd, path, 0) < 0 ? -errno : 0;
}

int fsio_mkdir(const struct fsio *fs, mode_t mode, const char *fmt, ...)
{
	char path[PATH_MAX];
	va_list args;
	int r;

	va_start(args, fmt);
	r = path_format(path, sizeof(path), fmt, args);
	va_end(args);
	if (r < 0)
		return r;
	return mkdirat(fs->root_fd, path, mode) < 0 ? -errno : 0;
}

int fsio_field_u64(const char *text, const char *key, uint64_t *ret_value)
{
	size_t key_len = strlen(key);

	for (const char *line = text; *line;) {
		const char *newline = strchr(line, '\n');

		if (strncmp(line, key, key_len) == 0 && strchr(": \t", line[key_len])) {
			const char *value = line + key_len + strspn(line + key_len, ": \t");

			return parse_u64(value, &value, ret_value);
		}
		if (!newline)
			break;
		line = newline + 1;
	}
	return -ENOENT;
}
