#include "vmm/qmp.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "core/clock.h"
#include "vmm/qmp_queue.h"
#include "core/text.h"

/* Taken per wake-up, so that one talkative VMM does not keep the loop from the others. */
#define READ_BYTES 32768
/* How much longer a peer gets whose bytes were waiting, unread, when its time ran out. */
#define GRACE_US 100000

enum phase { PHASE_FAILED, PHASE_GREETING, PHASE_NEGOTIATING, PHASE_READY, PHASE_ENDED };

struct qmp {
	int fd;
	enum phase phase;
	int connect_error; /* errno, in PHASE_FAILED */
	sd_event_source *io, *timer, *failed;
	const struct qmp_ops *ops;
	void *userdata;
	uint64_t timeout_ms;
	struct qmp_frame frame;
	struct qmp_queue queue;
	size_t sent; /* bytes of the queue's head */
	bool grace; /* was given since the timer was armed */
	struct qmp_rate rate;
	/* Handlers under way; a qmp_free() from inside them is completed by the outermost. */
	unsigned int busy;
	bool freed;
	char why[256];
};

/* Lets go of everything that could call back. */
static void qmp_silence(struct qmp *q)
{
	q->phase = PHASE_ENDED;
	q->io = sd_event_source_disable_unref(q->io);
	q->timer = sd_event_source_disable_unref(q->timer);
	q->failed = sd_event_source_disable_unref(q->failed);
	if (q->fd >= 0)
		close(q->fd);
	q->fd = -1;
}

struct qmp *qmp_free(struct qmp *q)
{
	struct qmp_queued *c;

	if (!q)
		return NULL;
	qmp_silence(q);
	while ((c = qmp_queue_pop(&q->queue)))
		qmp_queued_free(c);
	q->freed = true;
	if (q->busy > 0)
		return NULL;
	qmp_frame_clear(&q->frame);
	free(q);
	return NULL;
}

/* Every handler runs between these two: q stays valid in between even when a callback frees it. */
static void qmp_enter(struct qmp *q)
{
	q->busy++;
}

static void qmp_leave(struct qmp *q)
{
	q->busy--;
	if (q->freed)
		qmp_free(q);
}

__attribute__((format(printf, 3, 4))) static void qmp_end(struct qmp *q, enum qmp_end end, const char *fmt, ...)
{
	char why[sizeof(q->why)];
	struct qmp_queued *c;
	va_list args;

	va_start(args, fmt);
	vsnprintf(why, sizeof(why), fmt, args);
	va_end(args);
	text_copy(q->why, sizeof(q->why), why, strlen(why));
	qmp_silence(q);
	while ((c = qmp_queue_pop(&q->queue))) { /* a qmp_free() inside leaves it empty */
		if (c->reply)
			c->reply(q, -ECONNRESET, NULL, q->why, c->userdata);
		qmp_queued_free(c);
	}
	if (!q->freed)
		q->ops->ended(q, end, q->why, q->userdata);
}

/* The peer has timeout_ms from now on for what is asked of it. */
static void timer_arm(struct qmp *q)
{
	q->grace = false;
	sd_event_source_set_time_relative(q->timer, q->timeout_ms * 1000);
	sd_event_source_set_enabled(q->timer, SD_EVENT_ONESHOT);
}

/* Waits for room to send when there is something to send, and only then. */
static void io_update(struct qmp *q)
{
	bool sending = q->queue.head && q->sent < q->queue.head->len;

	sd_event_source_set_io_events(q->io, EPOLLIN | (sending ? EPOLLOUT : 0u));
}

/* There is another head: its time runs from now. */
static void queue_start_head(struct qmp *q)
{
	q->sent = 0;
	if (q->queue.head)
		timer_arm(q);
	else
		sd_event_source_set_enabled(q->timer, SD_EVENT_OFF);
	io_update(q);
}

static int queue_push(struct qmp *q, const char *command, json_t *arguments, qmp_reply_fn reply, void *userdata)
{
	bool idle = !q->queue.head;
	int r = qmp_queue_push(&q->queue, command, arguments, reply, userdata);

	if (r == 0 && idle)
		queue_start_head(q);
	return r;
}

int qmp_command(struct qmp *q, const char *command, json_t *arguments, qmp_reply_fn reply, void *userdata)
{
	int r = q->phase == PHASE_READY ? queue_push(q, command, arguments, reply, userdata) : -ENOTCONN;

	json_decref(arguments);
	return r;
}

int qmp_hmp(struct qmp *q, const char *line, qmp_reply_fn reply, void *userdata)
{
	json_t *text = json_string(line), *arguments;

	if (!text)
		return -EINVAL;
	arguments = json_object();
	if (json_object_set_new(arguments, "command-line", text) < 0) { /* frees text, for a NULL object too */
		json_decref(arguments);
		return -ENOMEM;
	}
	return qmp_command(q, "human-monitor-command", arguments, reply, userdata);
}

static void on_negotiated(struct qmp *q, int result, const json_t *reply, const char *error, void *userdata)
{
	(void)reply;
	(void)userdata;
	if (result == -EREMOTEIO) {
		qmp_end(q, QMP_END_GARBAGE, "qmp_capabilities was refused: %s", error);
	} else if (result == 0) {
		q->phase = PHASE_READY;
		q->ops->ready(q, q->userdata);
	}
}

static void handle_greeting(struct qmp *q)
{
	int r;

	q->phase = PHASE_NEGOTIATING;
	r = queue_push(q, "qmp_capabilities", NULL, on_negotiated, NULL);
	if (r < 0)
		qmp_end(q, QMP_END_CLOSED, "cannot ask for capabilities: %s", strerror(-r));
}

static void handle_answer(struct qmp *q, const struct qmp_message *m)
{
	struct qmp_queued *c = q->queue.head;

	if (!c || q->sent < c->len) {
		qmp_end(q, QMP_END_GARBAGE, "an answer that nobody asked for");
		return;
	}
	/* A peer that leaves the id out is let through: commands go out one at a time. */
	if (m->id && !(json_is_number(m->id) && json_number_value(m->id) == (double)c->id)) {
		qmp_end(q, QMP_END_GARBAGE, "an answer to something else than %s", c->name);
		return;
	}
	qmp_queue_pop(&q->queue);
	queue_start_head(q);
	if (c->reply && m->kind == QMP_MESSAGE_RETURN)
		c->reply(q, 0, m->value, NULL, c->userdata);
	else if (c->reply)
		c->reply(q, -EREMOTEIO, NULL, m->text, c->userdata);
	qmp_queued_free(c);
}

static uint64_t now_us(void)
{
	return clock_mono_ns() / 1000;
}

static void handle_message(struct qmp *q, const struct qmp_message *m)
{
	switch (m->kind) {
	case QMP_MESSAGE_GREETING:
		if (q->phase == PHASE_GREETING)
			handle_greeting(q);
		else
			qmp_end(q, QMP_END_GARBAGE, "a second greeting");
		break;
	case QMP_MESSAGE_RETURN:
	case QMP_MESSAGE_ERROR:
		handle_answer(q, m);
		break;
	case QMP_MESSAGE_EVENT:
		if (q->phase == PHASE_GREETING)
			qmp_end(q, QMP_END_GARBAGE, "an event before the greeting");
		else if (!qmp_rate_count(&q->rate, now_us(), 1, 0))
			qmp_end(q, QMP_END_FLOOD, "more than %d events in a second", QMP_EVENTS_MAX_PER_S);
		else if (q->phase == PHASE_READY)
			q->ops->event(q, m->text, m->value, q->userdata);
		break;
	}
}

static void handle_messages(struct qmp *q)
{
	while (q->phase != PHASE_ENDED) {
		struct qmp_message m;
		const char *text, *why;
		size_t len;
		int r = qmp_frame_next(&q->frame, &text, &len, &why);

		if (r == 0)
			return;
		if (r > 0)
			r = qmp_message_parse(text, len, &m, &why);
		if (r < 0) {
			qmp_end(q, QMP_END_GARBAGE, "%s", why);
			return;
		}
		handle_message(q, &m);
		qmp_message_clear(&m);
	}
}

static void io_read(struct qmp *q)
{
	char data[READ_BYTES];
	ssize_t n = recv(q->fd, data, sizeof(data), MSG_DONTWAIT);

	if (n < 0) {
		int error = errno;

		if (error != EAGAIN && error != EINTR)
			qmp_end(q, QMP_END_CLOSED, "the connection broke: %s", strerror(error));
		return;
	}
	if (n == 0) {
		qmp_end(q, QMP_END_CLOSED, "the VMM closed the connection");
		return;
	}
	if (!qmp_rate_count(&q->rate, now_us(), 0, (uint64_t)n)) {
		qmp_end(q, QMP_END_FLOOD, "more than %u MiB in a second", QMP_BYTES_MAX_PER_S >> 20);
		return;
	}
	if (qmp_frame_append(&q->frame, data, (size_t)n) < 0) {
		qmp_end(q, QMP_END_CLOSED, "out of memory");
		return;
	}
	handle_messages(q);
}

static void io_write(struct qmp *q)
{
	struct qmp_queued *c = q->queue.head;

	if (c && q->sent < c->len) {
		ssize_t n = send(q->fd, c->text + q->sent, c->len - q->sent, MSG_DONTWAIT | MSG_NOSIGNAL);

		if (n > 0)
			q->sent += (size_t)n;
		/* A broken connection is found by reading, after what the peer said last. */
	}
	io_update(q);
}

static int on_io(sd_event_source *source, int fd, uint32_t revents, void *userdata)
{
	struct qmp *q = userdata;

	(void)source;
	(void)fd;
	qmp_enter(q);
	if (revents & (EPOLLIN | EPOLLHUP | EPOLLERR))
		io_read(q);
	if ((revents & EPOLLOUT) && q->phase != PHASE_ENDED)
		io_write(q);
	qmp_leave(q);
	return 0;
}

static int on_timer(sd_event_source *source, uint64_t usec, void *userdata)
{
	struct qmp *q = userdata;
	char byte;

	(void)source;
	(void)usec;
	qmp_enter(q);
	if (!q->grace && recv(q->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) > 0) {
		/* It was us who were late: the peer's bytes wait to be read. Once only. */
		q->grace = true;
		sd_event_source_set_time_relative(q->timer, GRACE_US);
		sd_event_source_set_enabled(q->timer, SD_EVENT_ONESHOT);
	} else if (q->phase == PHASE_GREETING) {
		qmp_end(q, QMP_END_HUNG,
			"no greeting within %" PRIu64 " ms: another client may hold the monitor", q->timeout_ms);
	} else {
		qmp_end(q, QMP_END_HUNG, "no answer to %s within %" PRIu64 " ms", q->queue.head ? q->queue.head->name : "?",
			q->timeout_ms);
	}
	qmp_leave(q);
	return 0;
}

static int on_failed(sd_event_source *source, void *userdata)
{
	struct qmp *q = userdata;

	(void)source;
	qmp_enter(q);
	if (q->connect_error == EAGAIN)
		qmp_end(q, QMP_END_HUNG, "the monitor's queue is full: another client may hold it");
	else
		qmp_end(q, QMP_END_UNREACHABLE, "cannot connect: %s", strerror(q->connect_error));
	qmp_leave(q);
	return 0;
}

/* A connected descriptor; a Unix socket connects at once or not at all. */
static int socket_connect(const struct sockaddr_un *addr)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd < 0)
		return -errno;
	if (connect(fd, (const struct sockaddr *)addr, sizeof(*addr)) < 0) {
		int error = errno;

		close(fd);
		return -error;
	}
	return fd;
}

int qmp_connect(sd_event *loop, const char *path, uint64_t timeout_ms, const struct qmp_ops *ops,
		void *userdata, struct qmp **ret_qmp)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	struct qmp *q;
	int r;

	if (strlen(path) >= sizeof(addr.sun_path))
		return -ENAMETOOLONG;
	memcpy(addr.sun_path, path, strlen(path) + 1);
	q = calloc(1, sizeof(*q));
	if (!q)
		return -ENOMEM;
	q->ops = ops;
	q->userdata = userdata;
	q->timeout_ms = timeout_ms;
	q->fd = socket_connect(&addr);
	if (q->fd < 0) {
		q->connect_error = -q->fd;
		r = sd_event_add_defer(loop, &q->failed, on_failed, q);
	} else {
		q->phase = PHASE_GREETING;
		r = sd_event_add_io(loop, &q->io, q->fd, EPOLLIN, on_io, q);
		if (r >= 0)
			r = sd_event_add_time_relative(loop, &q->timer, CLOCK_MONOTONIC, timeout_ms * 1000, 0,
						       on_timer, q);
	}
	if (r < 0) {
		qmp_free(q);
		return r;
	}
	*ret_qmp = q;
	return 0;
}

pid_t qmp_peer_pid(const struct qmp *q)
{
	struct ucred cred;
	socklen_t len = sizeof(cred);

	if (q->fd < 0 || getsockopt(q->fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) < 0)
		return 0;
	return cred.pid;
}
