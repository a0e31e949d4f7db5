/* tests/unit/fake_qmp.h - a QMP server for tests, on the loop of the client under test.
 *
 * It greets, answers each command by the first rule that fits, and can be made to say anything else or
 * nothing. One client at a time, as in QEMU. Everything that waits has one generous limit against hanging. */
#ifndef TESTS_FAKE_QMP_H
#define TESTS_FAKE_QMP_H

#include <fcntl.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <systemd/sd-event.h>
#include <unistd.h>

#include "core/clock.h"

#define FAKE_GREETING "{\"QMP\": {\"version\": {\"qemu\": {\"major\": 7}}, \"capabilities\": [\"oob\"]}}\r\n"
#define FAKE_LIMIT_NS (60 * NSEC_PER_SEC)

struct fake_rule {
	const char *command; /* NULL: any */
	const char *with;    /* text that the command must have; NULL: any */
	const char *value;   /* "return" of the answer; NULL: none */
	const char *raw;     /* sent as it is, behind the answer; NULL: nothing */
	bool close;	     /* once all is sent */
};

struct fake {
	sd_event *loop;
	char path[108];
	int listen_fd, fd;
	sd_event_source *accept, *io;
	const char *greeting; /* NULL: none */
	const struct fake_rule *rules;
	size_t rule_count;
	size_t piece;	   /* bytes per write; 0: as many as go */
	const char *spout; /* sent over and over behind the greeting; NULL: nothing */
	bool close_when_sent;
	char *in, *out;
	size_t in_len, out_len, out_cap, out_sent;
	unsigned int clients, commands;
	void (*heard)(const char *line, size_t len); /* each command; NULL: nobody listens */
};

static inline void fake_must(bool ok, const char *what)
{
	if (!ok) {
		perror(what);
		abort();
	}
}

static inline void fake_update(struct fake *f)
{
	bool sending = f->out_sent < f->out_len || f->spout || f->close_when_sent;

	sd_event_source_set_io_events(f->io, EPOLLIN | (sending ? EPOLLOUT : 0u));
}

static inline void fake_send(struct fake *f, const char *text, size_t len)
{
	if (f->out_cap < f->out_len + len) {
		f->out_cap = 2 * (f->out_len + len);
		f->out = realloc(f->out, f->out_cap);
		fake_must(f->out != NULL, "realloc");
	}
	memcpy(f->out + f->out_len, text, len);
	f->out_len += len;
	fake_update(f);
}

static inline void fake_say(struct fake *f, const char *text)
{
	fake_send(f, text, strlen(text));
}

static inline void fake_hang_up(struct fake *f)
{
	f->io = sd_event_source_disable_unref(f->io);
	if (f->fd >= 0)
		close(f->fd);
	f->fd = -1;
	free(f->in);
	free(f->out);
	f->in = f->out = NULL;
	f->in_len = f->out_len = f->out_cap = f->out_sent = 0;
	f->close_when_sent = false;
}

static inline void fake_command(struct fake *f, const char *line, size_t len)
{
	json_t *root = json_loadb(line, len, 0, NULL);
	const char *command = json_string_value(json_object_get(root, "execute"));
	json_int_t id = json_integer_value(json_object_get(root, "id"));
	char *text;

	fake_must(command != NULL, "not a command");
	f->commands++;
	if (f->heard)
		f->heard(line, len);
	for (size_t i = 0; i < f->rule_count; i++) {
		const struct fake_rule *rule = &f->rules[i];

		if (rule->command && strcmp(rule->command, command) != 0)
			continue;
		if (rule->with && !memmem(line, len, rule->with, strlen(rule->with)))
			continue;
		if (rule->value) {
			fake_must(asprintf(&text, "{\"return\": %s, \"id\": %lld}\r\n", rule->value, (long long)id) > 0,
				  "asprintf");
			fake_say(f, text);
			free(text);
		}
		if (rule->raw)
			fake_say(f, rule->raw);
		f->close_when_sent = rule->close;
		fake_update(f);
		break;
	}
	json_decref(root);
}

static inline void fake_read(struct fake *f)
{
	char data[65536], *newline;
	ssize_t n = recv(f->fd, data, sizeof(data), MSG_DONTWAIT);

	if (n <= 0) {
		fake_hang_up(f);
		return;
	}
	f->in = realloc(f->in, f->in_len + (size_t)n);
	fake_must(f->in != NULL, "realloc");
	memcpy(f->in + f->in_len, data, (size_t)n);
	f->in_len += (size_t)n;
	while ((newline = memchr(f->in, '\n', f->in_len))) {
		size_t len = (size_t)(newline - f->in) + 1;

		fake_command(f, f->in, len);
		memmove(f->in, f->in + len, f->in_len - len);
		f->in_len -= len;
	}
}

static inline void fake_write(struct fake *f)
{
	size_t len;
	ssize_t n;

	if (f->out_sent == f->out_len && f->spout)
		for (int i = 0; i < 1000; i++)
			fake_say(f, f->spout);
	len = f->out_len - f->out_sent;
	n = send(f->fd, f->out + f->out_sent, f->piece && f->piece < len ? f->piece : len, MSG_DONTWAIT | MSG_NOSIGNAL);
	if (n > 0)
		f->out_sent += (size_t)n;
	if (f->out_sent < f->out_len)
		return;
	f->out_sent = f->out_len = 0;
	if (f->close_when_sent)
		fake_hang_up(f);
	else
		fake_update(f);
}

static inline int fake_on_io(sd_event_source *source, int fd, uint32_t revents, void *userdata)
{
	struct fake *f = userdata;

	(void)source;
	(void)fd;
	if (revents & (EPOLLIN | EPOLLHUP | EPOLLERR))
		fake_read(f);
	if (f->fd >= 0 && (revents & EPOLLOUT))
		fake_write(f);
	return 0;
}

static inline int fake_on_accept(sd_event_source *source, int fd, uint32_t revents, void *userdata)
{
	struct fake *f = userdata;

	(void)source;
	(void)revents;
	fake_hang_up(f);
	f->fd = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	fake_must(f->fd >= 0, "accept");
	f->clients++;
	fake_must(sd_event_add_io(f->loop, &f->io, f->fd, EPOLLIN, fake_on_io, f) >= 0, "sd_event_add_io");
	if (f->greeting)
		fake_say(f, f->greeting);
	return 0;
}

/* Listens at dir/name. f's other members may be set before or after. */
static inline void fake_start(struct fake *f, sd_event *loop, const char *dir, const char *name)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };

	f->loop = loop;
	f->fd = -1;
	fake_must(snprintf(f->path, sizeof(f->path), "%s/%s", dir, name) < (int)sizeof(f->path), "path");
	memcpy(addr.sun_path, f->path, sizeof(f->path));
	f->listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	fake_must(f->listen_fd >= 0, "socket");
	fake_must(bind(f->listen_fd, (const struct sockaddr *)&addr, sizeof(addr)) == 0, "bind");
	fake_must(listen(f->listen_fd, 1) == 0, "listen");
	fake_must(sd_event_add_io(loop, &f->accept, f->listen_fd, EPOLLIN, fake_on_accept, f) >= 0, "sd_event_add_io");
}

static inline void fake_stop(struct fake *f)
{
	fake_hang_up(f);
	f->accept = sd_event_source_disable_unref(f->accept);
	close(f->listen_fd);
	unlink(f->path);
}

/* Runs the loop until *flag reaches want; false when the limit against hanging struck. */
static inline bool fake_run_until(sd_event *loop, const unsigned int *flag, unsigned int want)
{
	uint64_t end = clock_mono_ns() + FAKE_LIMIT_NS;

	while (*flag < want && clock_mono_ns() < end)
		sd_event_run(loop, 100000);
	return *flag >= want;
}

#endif
