#include "daemon/control.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <systemd/sd-event.h>
#include <unistd.h>

#include "core/cleanup.h"
#include "core/log.h"
#include "core/text.h"
#include "core/usock.h"
#include "daemon/daemon.h"

#define CLIENTS_MAX 32
/* A client that does not read: a sharing table of 1000 VMs is about 8 MiB of JSON. */
#define OUT_MAX_BYTES (64u << 20)

struct control_client {
	struct control *control;
	int fd;
	sd_event_source *source;
	char in[CONTROL_LINE_MAX_BYTES];
	size_t in_len;
	char *out;
	size_t out_len, out_sent;
	bool busy;    /* a request waits for its answer */
	bool reading; /* client_lines() is on the stack */
	bool broken;  /* to be closed as soon as nobody is in its functions */
	bool ended;   /* the peer sends no more: close once all is answered */
	struct control_client *next;
};

struct control {
	struct daemon *d;
	int listen_fd; /* -1: one connection only */
	sd_event_source *source;
	struct control_client *clients;
	unsigned client_count;
};

/* ---- clients ---- */

static void client_free(struct control_client *client)
{
	struct control *c = client->control;
	struct control_client **link = &c->clients;

	while (*link != client)
		link = &(*link)->next;
	*link = client->next;
	c->client_count--;
	command_abandon(c->d, client);
	sd_event_source_disable_unref(client->source);
	close(client->fd);
	free(client->out);
	free(client);
	if (c->listen_fd < 0)
		sd_event_exit(c->d->loop, 0);
}

static bool client_done(const struct control_client *client)
{
	return client->broken || (client->ended && !client->busy && client->out_len == 0);
}

static void client_watch(struct control_client *client)
{
	uint32_t events = client->out_len > client->out_sent ? EPOLLOUT : 0;

	/* Clients are freed only in on_client(): here a caller may still hold one. */
	if (client_done(client)) {
		shutdown(client->fd, SHUT_RDWR);
		events |= EPOLLIN;
	}

	/* While a request is at work no further one is read: the socket's buffer is the queue. */
	if (!client->busy && !client->ended)
		events |= EPOLLIN;
	sd_event_source_set_io_events(client->source, events);
}

static void client_write(struct control_client *client)
{
	while (client->out_sent < client->out_len) {
		ssize_t n = send(client->fd, client->out + client->out_sent, client->out_len - client->out_sent,
				 MSG_DONTWAIT | MSG_NOSIGNAL);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0) {
			if (errno != EAGAIN)
				client->broken = true;
			return;
		}
		client->out_sent += (size_t)n;
	}
	client->out_len = client->out_sent = 0;
}

/* Queues one line. value is taken. */
static void client_send(struct control_client *client, json_t *value)
{
	auto_free char *line = value ? json_dumps(value, JSON_COMPACT) : NULL;
	size_t len = line ? strlen(line) : 0;
	char *bigger = NULL;

	json_decref(value);
	if (line && client->out_len + len + 1 <= OUT_MAX_BYTES)
		bigger = realloc(client->out, client->out_len + len + 1);
	if (!bigger) {
		log_warning("control: an answer of %zu bytes cannot be sent, closing the connection", len);
		client->broken = true;
		return;
	}
	client->out = bigger;
	memcpy(client->out + client->out_len, line, len);
	client->out[client->out_len + len] = '\n';
	client->out_len += len + 1;
	client_write(client);
}

static void client_lines(struct control_client *client);

/* The answer to the request at work; then the next one that has come in meanwhile. */
static void client_answer(struct control_client *client, json_t *value)
{
	client->busy = false;
	client_send(client, value);
	client_lines(client);
	client_watch(client);
}

void control_reply(struct control_client *client, json_t *value)
{
	client_answer(client, json_pack("{s:o}", "result", value));
}

void control_fail(struct control_client *client, const char *fmt, ...)
{
	char raw[1024], text[1024];
	va_list args;

	va_start(args, fmt);
	vsnprintf(raw, sizeof(raw), fmt, args);
	va_end(args);
	text_copy(text, sizeof(text), raw, strlen(raw)); /* it may quote a file, or be cut within a character */
	client_answer(client, json_pack("{s:s}", "error", text));
}

void control_progress(struct control_client *client, uint64_t done, uint64_t total)
{
	/* Progress that the client does not read is not worth keeping. */
	if (client->out_len > 0)
		return;
	client_send(client, json_pack("{s:{s:I,s:I}}", "progress", "done", (json_int_t)done, "total",
				      (json_int_t)total));
	client_watch(client);
}

static void client_request(struct control_client *client, const char *line, size_t len)
{
	json_error_t error;
	json_t *request = json_loadb(line, len, JSON_REJECT_DUPLICATES, &error);
	const char *name;
	json_t *arguments = NULL;

	client->busy = true;
	if (!request) {
		control_fail(client, "request is not JSON: %s", error.text);
		return;
	}
	if (json_unpack(request, "{s:s, s?o}", "command", &name, "arguments", &arguments) < 0 ||
	    (arguments && !json_is_object(arguments)))
		control_fail(client, "request has no \"command\"");
	else
		command_run(client->control->d, client, name, arguments);
	json_decref(request);
}

/* Answers the complete lines that have come in, until one of them has to wait. */
static void client_lines(struct control_client *client)
{
	if (client->reading)
		return;
	client->reading = true;
	while (!client->busy && !client->broken) {
		char *newline = memchr(client->in, '\n', client->in_len);
		char line[CONTROL_LINE_MAX_BYTES];
		size_t len;

		if (!newline)
			break;
		len = (size_t)(newline - client->in);
		memcpy(line, client->in, len);
		client->in_len -= len + 1;
		memmove(client->in, newline + 1, client->in_len);
		client_request(client, line, len);
	}
	client->reading = false;
	if (client->in_len == sizeof(client->in) && !client->busy) {
		log_warning("control: a request longer than %d bytes, closing the connection",
			    CONTROL_LINE_MAX_BYTES);
		client->broken = true;
	}
}

static void client_read(struct control_client *client)
{
	ssize_t n = recv(client->fd, client->in + client->in_len, sizeof(client->in) - client->in_len, MSG_DONTWAIT);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n < 0)
		client->broken = true;
	else if (n == 0)
		client->ended = true;
	else
		client->in_len += (size_t)n;
}

static int on_client(sd_event_source *source, int fd, uint32_t events, void *userdata)
{
	struct control_client *client = userdata;

	(void)source;
	(void)fd;
	if (events & EPOLLOUT)
		client_write(client);
	if ((events & EPOLLIN) && !client->busy)
		client_read(client);
	if ((events & (EPOLLHUP | EPOLLERR)) && !(events & EPOLLIN))
		client->broken = true;
	client_lines(client);
	if (client_done(client))
		client_free(client);
	else
		client_watch(client);
	return 0;
}

/* fd is taken. */
static int client_new(struct control *c, int fd)
{
	struct control_client *client = calloc(1, sizeof(*client));
	int r = -ENOMEM;

	if (client) {
		client->control = c;
		client->fd = fd;
		r = sd_event_add_io(c->d->loop, &client->source, fd, EPOLLIN, on_client, client);
	}
	if (r < 0) {
		free(client);
		close(fd);
		return r;
	}
	client->next = c->clients;
	c->clients = client;
	c->client_count++;
	return 0;
}

/* ---- the socket ---- */

static int on_connect(sd_event_source *source, int listen_fd, uint32_t events, void *userdata)
{
	struct control *c = userdata;
	int fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	(void)source;
	(void)events;
	if (fd < 0)
		return 0;
	if (c->client_count >= CLIENTS_MAX) {
		log_warning("control: more than %d clients, turning one away", CLIENTS_MAX);
		close(fd);
		return 0;
	}
	client_new(c, fd);
	return 0;
}

int control_listen(struct daemon *d, struct control **ret_control)
{
	const char *path = d->config.control_socket, *group = d->config.control_group;
	struct control *c = calloc(1, sizeof(*c));
	int r;

	if (!c)
		return -ENOMEM;
	c->d = d;
	r = c->listen_fd = usock_listen(path, SOCK_STREAM, group, CLIENTS_MAX);
	if (r >= 0)
		r = sd_event_add_io(d->loop, &c->source, c->listen_fd, EPOLLIN, on_connect, c);
	if (r < 0) {
		log_error("control socket %s: %s", path,
			  r == -EADDRINUSE ? "another memvirtd is running, or a file of another kind is there" :
			  r == -ENOENT	   ? "[daemon] control_group: no such group on this host" :
					     strerror(-r));
		if (c->listen_fd >= 0)
			close(c->listen_fd);
		free(c);
		return r;
	}
	*ret_control = c;
	return 0;
}

int control_serve_one(struct daemon *d, int fd, struct control **ret_control)
{
	struct control *c = calloc(1, sizeof(*c));
	int r;

	if (!c)
		return -ENOMEM;
	c->d = d;
	c->listen_fd = -1;
	r = client_new(c, fd);
	if (r < 0) {
		free(c);
		return r;
	}
	*ret_control = c;
	return 0;
}

struct control *control_free(struct control *c)
{
	if (!c)
		return NULL;
	while (c->clients)
		client_free(c->clients);
	sd_event_source_disable_unref(c->source);
	if (c->listen_fd >= 0) {
		unlink(c->d->config.control_socket);
		close(c->listen_fd);
	}
	free(c);
	return NULL;
}
