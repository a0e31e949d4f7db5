/* core/fsio.h - the one place that opens /proc, /sys and run-time files.
 *
 * Every path is opened relative to a root descriptor, so tests run the same code on a fixture tree.
 * Paths are printf formats; a leading '/' is dropped. All functions return 0 or a count, or -errno. */
#ifndef CORE_FSIO_H
#define CORE_FSIO_H

#include <dirent.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct fsio {
	int root_fd;
	bool dry_run; /* writes are logged, not done */
};

/* root "/" for the real host. The caller ends it with fsio_close(). */
int fsio_open_root(const char *root, bool dry_run, struct fsio *ret_fs);
void fsio_close(struct fsio *fs);

/* Gives a descriptor the caller closes. flags as for open(2); O_CLOEXEC is added. */
int fsio_open(const struct fsio *fs, int flags, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
/* NULL and errno on failure; the caller closes it. */
DIR *fsio_opendir(const struct fsio *fs, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* The target of a symbolic link into buf (NUL added); -ENAMETOOLONG when it does not fit. */
int fsio_readlink(const struct fsio *fs, char *buf, size_t cap, const char *fmt, ...)
	__attribute__((format(printf, 4, 5)));

/* Reads the whole file into buf and adds a NUL. Returns the length; -EFBIG when it does not fit. */
ssize_t fsio_read(const struct fsio *fs, char *buf, size_t cap, const char *fmt, ...)
	__attribute__((format(printf, 4, 5)));
/* Same into a buffer that the caller frees; -EFBIG above max_bytes. */
ssize_t fsio_read_alloc(const struct fsio *fs, size_t max_bytes, char **ret_text, const char *fmt, ...)
	__attribute__((format(printf, 4, 5)));
/* A file that holds one unsigned decimal number; -EBADMSG when it holds anything else. */
int fsio_read_u64(const struct fsio *fs, uint64_t *ret_value, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

/* Writes text in one write(2) to an existing file, as sysfs wants it. Logs it at debug level. */
int fsio_write(const struct fsio *fs, const char *text, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
/* Replaces a regular file whole: readers see the old or the new content, after a crash too. */
int fsio_replace(const struct fsio *fs, const char *text, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
int fsio_unlink(const struct fsio *fs, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
int fsio_mkdir(const struct fsio *fs, mode_t mode, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

/* Finds "key" at the start of a line of text and reads the unsigned decimal number behind it (blanks
 * and a ':' between them are skipped). Returns 0, -ENOENT or -EBADMSG. */
int fsio_field_u64(const char *text, const char *key, uint64_t *ret_value);

#endif
