#include "core/log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

/* A line longer than this is cut: one write() of it is atomic enough for a pipe (PIPE_BUF). */
#define LINE_MAX_BYTES 4096

static _Atomic(enum log_level) max_level = LOG_LEVEL_INFO;

void log_set_level(enum log_level level)
{
	max_level = level;
}

static size_t line_prefix(char *out, size_t cap, enum log_level level)
{
	static const int syslog_priority[] = { 3, 4, 6, 7 };
	static const char *const name[] = { "error: ", "warning: ", "", "debug: " };
	struct timespec now;
	struct tm tm;
	int n;

	if (getenv("JOURNAL_STREAM")) {
		n = snprintf(out, cap, "<%d>", syslog_priority[level]);
		return (size_t)n;
	}
	clock_gettime(CLOCK_REALTIME, &now);
	gmtime_r(&now.tv_sec, &tm);
	n = snprintf(out, cap, "%02d:%02d:%02d.%03ld %s", tm.tm_hour, tm.tm_min, tm.tm_sec,
		     now.tv_nsec / 1000000, name[level]);
	return (size_t)n;
}

/* Copies text into out, control characters escaped; returns the length written. */
static size_t line_escape(char *out, size_t cap, const char *text)
{
	static const char hex[] = "0123456789abcdef";
	size_t len = 0;

	for (; *text && len + 4 < cap; text++) {
		unsigned char c = (unsigned char)*text;
		/* U+0080 to U+009F, which some terminals act on, are 0xc2 0x80 to 0xc2 0x9f. */
		bool c1 = c == 0xc2 && (unsigned char)text[1] >= 0x80 && (unsigned char)text[1] <= 0x9f;

		if (c >= 0x20 && c != 0x7f && !c1) {
			out[len++] = (char)c;
			continue;
		}
		if (c1)
			c = (unsigned char)*++text;
		out[len++] = '\\';
		out[len++] = 'x';
		out[len++] = hex[c >> 4];
		out[len++] = hex[c & 15];
	}
	return len;
}

void log_line(enum log_level level, const char *fmt, ...)
{
	char text[LINE_MAX_BYTES / 2], line[LINE_MAX_BYTES];
	va_list args;
	size_t len;

	if (level > max_level)
		return;
	va_start(args, fmt);
	vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);

	len = line_prefix(line, sizeof(line), level);
	len += line_escape(line + len, sizeof(line) - len - 1, text);
	line[len++] = '\n';
	/* Nobody is left to tell when standard error is gone. */
	if (write(STDERR_FILENO, line, len) < 0)
		return;
}
