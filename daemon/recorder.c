#include "daemon/recorder.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "core/cleanup.h"
#include "core/log.h"
#include "core/record.h"

struct recorder {
	int fd; /* -1: the record has ended */
	uint64_t bytes, max_bytes;
	char path[];
};

/* ---- writing ---- */

__attribute__((format(printf, 2, 3))) static void end(struct recorder *r, const char *fmt, ...)
{
	char why[160];
	va_list args;

	va_start(args, fmt);
	vsnprintf(why, sizeof(why), fmt, args);
	va_end(args);
	log_warning("record %s ends here: %s", r->path, why);
	close(r->fd);
	r->fd = -1;
}

/* Takes the line. A line is written whole or not at all. */
static void line_write(struct recorder *r, json_t *line)
{
	auto_free char *text = line ? json_dumps(line, JSON_COMPACT) : NULL;
	size_t len = text ? strlen(text) : 0;
	const struct iovec parts[] = { { text, len }, { (void *)(uintptr_t)"\n", 1 } };
	ssize_t n;

	json_decref(line);
	if (!text) {
		end(r, "%s", strerror(ENOMEM));
		return;
	}
	if (r->bytes + len + 1 > r->max_bytes) {
		end(r, "it has reached %" PRIu64 " MiB", r->max_bytes >> 20);
		return;
	}
	n = writev(r->fd, parts, 2);
	if (n != (ssize_t)(len + 1)) {
		int error = n < 0 ? errno : ENOSPC;

		if (n > 0 && ftruncate(r->fd, (off_t)r->bytes) < 0)
			log_debug("record %s: its last line is not whole: %s", r->path, strerror(errno));
		end(r, "%s", strerror(error));
		return;
	}
	r->bytes += len + 1;
}

static json_t *settings_json(const struct config *c, json_t *(*make)(const char *settings))
{
	char *text = NULL;
	size_t len = 0;
	FILE *out = open_memstream(&text, &len);
	json_t *line;

	if (!out)
		return NULL;
	config_print_section(out, c, "host");
	config_print_section(out, c, "balloon");
	line = fclose(out) == 0 ? make(text) : NULL;
	free(text);
	return line;
}

static json_t *header_json(const char *settings)
{
	return record_header_json(MEMVIRT_VERSION, settings);
}

void recorder_settings(struct recorder *r, const struct config *c)
{
	if (r->fd >= 0)
		line_write(r, settings_json(c, record_settings_json));
}

void recorder_tick(struct recorder *r, const struct host_snapshot *s, const struct balloon_plan *plan)
{
	auto_free struct record_vm *vms = NULL;
	struct record_decided decided;

	if (r->fd < 0)
		return;
	if (!plan || plan->vm_count != s->vm_count) {
		line_write(r, record_tick_json(s, NULL));
		return;
	}
	vms = calloc(s->vm_count + 1, sizeof(*vms));
	if (!vms) {
		end(r, "%s", strerror(ENOMEM));
		return;
	}
	for (size_t i = 0; i < s->vm_count; i++) {
		const struct balloon_vm_plan *p = &plan->vms[i];

		vms[i] = (struct record_vm){ p->target_bytes, p->not_done, balloon_block_name(p->block),
					     balloon_veto_name(p->veto), p->why };
	}
	decided = (struct record_decided){ host_state_name(plan->ladder->state), vms, s->vm_count };
	line_write(r, record_tick_json(s, &decided));
}

/* ---- life ---- */

/* The place behind the last newline; 0: there is none. */
static off_t whole_end(int fd, off_t size)
{
	char part[4096];

	while (size > 0) {
		off_t from = size > (off_t)sizeof(part) ? size - (off_t)sizeof(part) : 0;
		ssize_t n = pread(fd, part, (size_t)(size - from), from);
		const char *newline = n > 0 ? memrchr(part, '\n', (size_t)n) : NULL;

		if (n <= 0)
			return 0;
		if (newline)
			return from + (newline - part) + 1;
		size = from;
	}
	return 0;
}

/* Goes on with an earlier record; anything else stays as it is. A host that lost power may have left half a line. */
static int go_on(struct recorder *r, off_t size)
{
	char begin[sizeof(RECORD_BEGIN) - 1];
	off_t whole = whole_end(r->fd, size);

	if (pread(r->fd, begin, sizeof(begin), 0) != (ssize_t)sizeof(begin) ||
	    memcmp(begin, RECORD_BEGIN, sizeof(begin)) != 0 || whole == 0) {
		log_error("record %s: the file is not empty and no record", r->path);
		return -EINVAL;
	}
	if (whole < size) {
		log_warning("record %s: its last line is not whole and is cut off", r->path);
		if (ftruncate(r->fd, whole) < 0)
			return -errno;
	}
	r->bytes = (uint64_t)whole;
	return 0;
}

static int file_open(struct recorder *r)
{
	struct stat st;

	/* Not to wait for a reader of a pipe. */
	r->fd = open(r->path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC | O_NONBLOCK | O_NOCTTY, 0600);
	if (r->fd < 0 || fstat(r->fd, &st) < 0) {
		int error = errno;

		log_error("record %s: %s", r->path, strerror(error));
		return -error;
	}
	if (!S_ISREG(st.st_mode)) {
		log_error("record %s: not a regular file", r->path);
		return -EINVAL;
	}
	return st.st_size > 0 ? go_on(r, st.st_size) : 0;
}

int recorder_new(const char *path, uint64_t max_bytes, const struct config *c, struct recorder **ret_recorder)
{
	struct recorder *r = calloc(1, sizeof(*r) + strlen(path) + 1);
	int result;

	if (!r)
		return -ENOMEM;
	memcpy(r->path, path, strlen(path) + 1);
	r->max_bytes = max_bytes;
	result = file_open(r);
	if (result < 0) {
		recorder_free(r);
		return result;
	}
	line_write(r, settings_json(c, header_json));
	*ret_recorder = r;
	return 0;
}

struct recorder *recorder_free(struct recorder *r)
{
	if (!r)
		return NULL;
	if (r->fd >= 0)
		close(r->fd);
	free(r);
	return NULL;
}
