#include "bench/lib/progress.h"

#include <stdarg.h>
#include <stdio.h>

#include "core/clock.h"

void progress(const char *fmt, ...)
{
	static uint64_t first_ns;
	uint64_t now_ns = clock_mono_ns();
	va_list args;

	if (first_ns == 0)
		first_ns = now_ns;
	va_start(args, fmt);
	fprintf(stderr, "[%6.1f s] ", (double)(now_ns - first_ns) / 1e9);
	vfprintf(stderr, fmt, args);
	fputc('\n', stderr);
	va_end(args);
}
