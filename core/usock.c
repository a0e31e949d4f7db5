#include "core/usock.h"

#include <errno.h>
#include <grp.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "core/cleanup.h"

/* Whether somebody answers on the socket; a socket that nobody listens on is left over from a crash. */
static bool in_use(const struct sockaddr_un *address, int type)
{
	auto_close int fd = socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	return fd >= 0 && (connect(fd, (const struct sockaddr *)address, sizeof(*address)) == 0 || errno == EAGAIN);
}

static int bind_there(int fd, const struct sockaddr_un *address, int type)
{
	struct stat there;
	mode_t mask;
	int r;

	if (in_use(address, type))
		return -EADDRINUSE;
	if (lstat(address->sun_path, &there) == 0 && S_ISSOCK(there.st_mode))
		unlink(address->sun_path);
	mask = umask(0177); /* nobody else gets in before the group is set */
	r = bind(fd, (const struct sockaddr *)address, sizeof(*address)) < 0 ? -errno : 0;
	umask(mask);
	return r;
}

static int open_to_group(const char *path, const char *group)
{
	struct group *entry;

	if (!*group)
		return 0;
	entry = getgrnam(group);
	if (!entry)
		return -ENOENT;
	return chown(path, (uid_t)-1, entry->gr_gid) < 0 || chmod(path, 0660) < 0 ? -errno : 0;
}

static int parent_make(const char *path)
{
	char parent[PATH_MAX];
	char *slash;

	snprintf(parent, sizeof(parent), "%s", path);
	slash = strrchr(parent, '/');
	if (!slash || slash == parent)
		return 0;
	*slash = '\0';
	return mkdir(parent, 0755) < 0 && errno != EEXIST ? -errno : 0;
}

int usock_listen(const char *path, int type, const char *group, int backlog)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	auto_close int fd = -1;
	int r;

	if (strlen(path) >= sizeof(address.sun_path))
		return -ENAMETOOLONG;
	memcpy(address.sun_path, path, strlen(path));
	fd = socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	r = fd < 0 ? -errno : parent_make(path);
	if (r == 0)
		r = bind_there(fd, &address, type);
	if (r < 0)
		return r;
	r = open_to_group(path, group);
	if (r == 0 && listen(fd, backlog) < 0)
		r = -errno;
	if (r < 0)
		unlink(path);
	return r < 0 ? r : take_fd(fd);
}
