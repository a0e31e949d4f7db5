#include "cli/connection.h"

#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/cleanup.h"

#define SOCKET_PATH "/run/memvirt/control"
/* A daemon that was told to send nonsense must not make us keep it all. */
#define ANSWER_MAX_BYTES (64u << 20)

struct connection {
	FILE *stream;
	pid_t child; /* a daemon of our own; 0: none */
};

/* memvirtd beside this program or in sbin beside bin, else wherever PATH has it. */
static void daemon_path(char *out, size_t cap)
{
	static const char *const places[] = { "memvirtd", "../sbin/memvirtd" };
	char self[PATH_MAX];
	ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);
	char *slash;

	self[n > 0 ? n : 0] = '\0';
	slash = strrchr(self, '/');
	for (size_t i = 0; slash && i < ARRAY_SIZE(places); i++) {
		int len = snprintf(out, cap, "%.*s/%s", (int)(slash - self), self, places[i]);

		if (len > 0 && (size_t)len < cap && access(out, X_OK) == 0)
			return;
	}
	snprintf(out, cap, "memvirtd");
}

static void daemon_exec(int fd, const char *config_file)
{
	char path[PATH_MAX], number[16];
	const char *argv[6] = { "memvirtd", "--oneshot-fd", number };

	snprintf(number, sizeof(number), "%d", fd);
	if (config_file) {
		argv[3] = "--config";
		argv[4] = config_file;
	}
	prctl(PR_SET_PDEATHSIG, SIGTERM);
	daemon_path(path, sizeof(path));
	execvp(path, (char *const *)argv);
	fprintf(stderr, "memvirtctl: cannot run %s: %s\n", path, strerror(errno));
	_exit(127);
}

static int private_daemon_start(const struct connection_options *o, struct connection *c, int *ret_fd)
{
	int fds[2];

	if (socketpair(AF_UNIX, SOCK_STREAM, 0, fds) < 0)
		return -errno;
	c->child = fork();
	if (c->child < 0) {
		int r = -errno;

		c->child = 0;
		close(fds[0]);
		close(fds[1]);
		return r;
	}
	if (c->child == 0) {
		close(fds[0]);
		daemon_exec(fds[1], o->config_file);
	}
	close(fds[1]);
	*ret_fd = fds[0];
	return 0;
}

static int socket_connect(const char *path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	auto_close int fd = -1;

	if (strlen(path) >= sizeof(address.sun_path))
		return -ENAMETOOLONG;
	strcpy(address.sun_path, path);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
		return -errno;
	return take_fd(fd);
}

static void explain_failure(const char *path, int error)
{
	const char *hint = "";

	if (error == -ENOENT || error == -ECONNREFUSED)
		hint = " (is memvirtd running?)";
	else if (error == -EACCES)
		hint = " (root, or the group set as control_group, may use it)";
	fprintf(stderr, "memvirtctl: %s: %s%s\n", path, strerror(-error), hint);
}

int connection_open(const struct connection_options *options, struct connection **ret_connection)
{
	const char *path = options->socket ? options->socket : SOCKET_PATH;
	struct connection *c = calloc(1, sizeof(*c));
	int fd;

	if (!c)
		return -ENOMEM;
	fd = socket_connect(path);
	if ((fd == -ENOENT || fd == -ECONNREFUSED) && options->private_daemon && !options->socket) {
		int r;

		if (isatty(STDERR_FILENO))
			fputs("memvirtctl: no daemon is running, looking without one\n", stderr);
		r = private_daemon_start(options, c, &fd);
		if (r < 0)
			fd = r;
	}
	if (fd >= 0) {
		c->stream = fdopen(fd, "r+");
		if (!c->stream) {
			close(fd);
			fd = -ENOMEM;
		}
	}
	if (fd < 0) {
		explain_failure(path, fd);
		connection_close(c);
		return fd;
	}
	*ret_connection = c;
	return 0;
}

struct connection *connection_close(struct connection *c)
{
	if (!c)
		return NULL;
	if (c->stream)
		fclose(c->stream);
	if (c->child > 0)
		waitpid(c->child, NULL, 0);
	free(c);
	return NULL;
}

static int send_request(struct connection *c, const char *command, json_t *arguments)
{
	json_t *request = json_pack("{s:s, s:o*}", "command", command, "arguments", arguments);
	auto_free char *text = request ? json_dumps(request, JSON_COMPACT) : NULL;

	json_decref(request);
	if (!text)
		return -ENOMEM;
	if (fprintf(c->stream, "%s\n", text) < 0 || fflush(c->stream) != 0)
		return -EPIPE;
	return 0;
}

/* One line of the answer. 1: there is more to come. */
static int take_line(const char *line, size_t len, progress_fn progress, json_t **ret_result)
{
	json_t *answer = json_loadb(line, len, 0, NULL), *part, *result;
	const char *error;
	int r = 1;

	part = json_object_get(answer, "progress");
	result = json_object_get(answer, "result");
	error = json_string_value(json_object_get(answer, "error"));
	if (part && progress) {
		progress((uint64_t)json_integer_value(json_object_get(part, "done")),
			 (uint64_t)json_integer_value(json_object_get(part, "total")));
	} else if (error) {
		fprintf(stderr, "memvirtctl: %s\n", error);
		r = -EREMOTEIO;
	} else if (result) {
		*ret_result = json_incref(result);
		r = 0;
	} else if (!part) {
		fprintf(stderr, "memvirtctl: the daemon's answer is not understood\n");
		r = -EBADMSG;
	}
	json_decref(answer);
	return r;
}

int connection_request(struct connection *c, const char *command, json_t *arguments, progress_fn progress,
		       json_t **ret_result)
{
	auto_free char *line = NULL;
	size_t cap = 0;
	int r = send_request(c, command, arguments);

	if (r < 0) {
		fprintf(stderr, "memvirtctl: cannot ask the daemon: %s\n", strerror(-r));
		return r;
	}
	/* A stream that was written must be positioned before it is read (C11 7.21.5.3); for a socket this
	 * only drops the write buffer's state. */
	fseek(c->stream, 0, SEEK_CUR);
	do {
		ssize_t n = getline(&line, &cap, c->stream);

		if (n < 0 || n > ANSWER_MAX_BYTES) {
			fprintf(stderr, "memvirtctl: the daemon ended the connection\n");
			return -ECONNRESET;
		}
		r = take_line(line, (size_t)n, progress, ret_result);
	} while (r == 1);
	return r;
}
