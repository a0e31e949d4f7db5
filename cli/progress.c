#include "cli/progress.h"

#include <stdio.h>
#include <unistd.h>

void progress_show(uint64_t done, uint64_t total)
{
	if (!isatty(STDERR_FILENO) || total == 0)
		return;
	fprintf(stderr, "\r%3u %% of %llu MiB looked at", (unsigned)(done * 100 / total),
		(unsigned long long)(total >> 8));
	fflush(stderr);
}

void progress_end(void)
{
	if (isatty(STDERR_FILENO))
		fputs("\r\033[K", stderr);
}
