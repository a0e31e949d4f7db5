/* vmm/qmp.h - one connection to a QEMU machine protocol socket, on an sd-event loop.
 *
 * The peer is not trusted: messages are bounded (QMP_LINE_MAX_BYTES), JSON that does not parse, answers that
 * nobody asked for and floods end the connection with a reason; a command without an answer ends it after a
 * time-out. Nothing here blocks. All calls and callbacks happen on the loop thread; callbacks come from the
 * loop only, never from inside a call of this header. */
#ifndef VMM_QMP_H
#define VMM_QMP_H

#include <jansson.h>
#include <stdint.h>
#include <sys/types.h>
#include <systemd/sd-event.h>

#include "vmm/qmp_frame.h"

/* Commands that may wait at once, the one being answered included. */
#define QMP_QUEUE_MAX 64
/* Bytes of commands that may wait at once. */
#define QMP_OUT_MAX_BYTES (1u << 20)

struct qmp;

/* Why a connection ended. */
enum qmp_end {
	QMP_END_UNREACHABLE, /* connect failed */
	QMP_END_CLOSED,	     /* the peer closed it */
	QMP_END_HUNG,	     /* no greeting or no answer in time (another client may hold the monitor) */
	QMP_END_GARBAGE,     /* not QMP: too long, not JSON, wrong shape */
	QMP_END_FLOOD,	     /* more events or bytes per second than any VMM has reason to send */
};

struct qmp_ops {
	/* The greeting came and capabilities are negotiated; commands may be sent. */
	void (*ready)(struct qmp *q, void *userdata);
	/* data is borrowed for the call; NULL when the event has none. */
	void (*event)(struct qmp *q, const char *name, const json_t *data, void *userdata);
	/* The connection is over; why is a static or q-owned text. Pending commands were answered with
	 * -ECONNRESET before. The owner calls qmp_free(), here or later. */
	void (*ended)(struct qmp *q, enum qmp_end end, const char *why, void *userdata);
};

/* result 0: reply is the value of "return", borrowed for the call. Else -EREMOTEIO (the peer answered with
 * an error, its "desc" in error) or -ECONNRESET (why the connection ended in error); reply is NULL. */
typedef void (*qmp_reply_fn)(struct qmp *q, int result, const json_t *reply, const char *error, void *userdata);

/* Starts connecting to the Unix socket at path; that it failed comes as ended(). timeout_ms is for the
 * greeting and for each command. ops is borrowed and must outlive q. 0, -ENAMETOOLONG, -ENOMEM or what the
 * system gave for a new socket or event source. */
int qmp_connect(sd_event *loop, const char *path, uint64_t timeout_ms, const struct qmp_ops *ops,
		void *userdata, struct qmp **ret_qmp);
/* The process that listens on the socket, 0 when it is unknown or not connected. Known from the start. */
pid_t qmp_peer_pid(const struct qmp *q);
/* Ends the connection without a callback; pending replies are not called. Allowed in every callback. NULL
 * ok; gives NULL. */
struct qmp *qmp_free(struct qmp *q);

/* Queues a command; arguments is taken (also on failure) and may be NULL. Commands go out one at a time,
 * answers come in order. 0, -ENOTCONN before ready and after the end, -ENOBUFS when too much is queued,
 * -EINVAL for text that is not UTF-8, -ENOMEM. */
int qmp_command(struct qmp *q, const char *command, json_t *arguments, qmp_reply_fn reply, void *userdata);
/* Same for a line of the human monitor; reply gets a JSON string. */
int qmp_hmp(struct qmp *q, const char *line, qmp_reply_fn reply, void *userdata);

#endif
