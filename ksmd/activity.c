#include "ksmd/activity.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

int activity_parse(const char *stat, struct activity *ret_activity)
{
	const char *rest = strrchr(stat, ')'); /* a name may hold anything */
	struct activity a;
	uint64_t minor, major;
	int64_t resident;

	/* Fields 10, 12 and 24 of proc(5), the next after the name being 3. */
	if (!rest || sscanf(rest + 1,
			    " %*c %*d %*d %*d %*d %*d %*u %lu %*u %lu %*u %*u %*u %*d %*d %*d %*d %*d %*d %*u %*u %ld",
			    &minor, &major, &resident) != 3)
		return -EBADMSG;
	a.faults = minor + major;
	a.resident_pages = resident > 0 ? (uint64_t)resident : 0;
	*ret_activity = a;
	return 0;
}

int activity_read(int stat_fd, struct activity *ret_activity)
{
	char text[1024];
	ssize_t n = pread(stat_fd, text, sizeof(text) - 1, 0);

	if (n <= 0)
		return -ESRCH;
	text[n] = '\0';
	return activity_parse(text, ret_activity);
}

uint64_t activity_pages(const struct activity *before, const struct activity *after)
{
	uint64_t faults = after->faults >= before->faults ? after->faults - before->faults : UINT64_MAX / 2;
	uint64_t came = after->resident_pages > before->resident_pages ?
				after->resident_pages - before->resident_pages : 0;

	return faults > came ? faults : came;
}
