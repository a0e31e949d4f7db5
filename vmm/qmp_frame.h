/* vmm/qmp_frame.h - the machine protocol's messages out of a stream of bytes. Pure: no sockets, no clock.
 *
 * A message is one JSON object. Its end is found by its brackets, not by the newline, because a monitor with
 * pretty=on spreads a message over many lines. The peer is not trusted: length and depth are bounded before
 * anything is parsed, and what cannot become a message any more is refused at once. */
#ifndef VMM_QMP_FRAME_H
#define VMM_QMP_FRAME_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* QEMU 7.2's longest answer, query-qmp-schema, has 207 KB. */
#define QMP_LINE_MAX_BYTES (1u << 20)
/* Seen: 7 (query-pci); a chain of backing files adds one per file. One bit of a word per level. */
#define QMP_DEPTH_MAX 64

/* Events within a second that make a flood. QEMU itself limits its frequent ones to one per
 * second each; those that it does not, as block errors and device removals, come one per request or device. */
#define QMP_EVENTS_MAX_PER_S 1000
/* Bytes within a second that make a flood: 16 answers of the longest kind. */
#define QMP_BYTES_MAX_PER_S (16u << 20)

struct qmp_frame {
	char *buf; /* owned */
	size_t len, cap;
	size_t start;	/* of the message being read */
	size_t scanned; /* bytes of buf looked at */
	uint64_t kinds; /* open brackets, innermost in bit 0: 1 for '{' */
	unsigned int depth;
	bool in_string, escaped;
};

/* All zero is a fresh frame. Frees the buffer and makes it so again. */
void qmp_frame_clear(struct qmp_frame *f);

/* Adds received bytes (copied). Take all messages out before adding more. 0 or -ENOMEM. */
int qmp_frame_append(struct qmp_frame *f, const char *data, size_t len);

/* 1 and the next whole message (valid until the next append), 0 when more bytes are needed, or -EBADMSG
 * with a static text of what was wrong; the stream is of no use then. */
int qmp_frame_next(struct qmp_frame *f, const char **ret_text, size_t *ret_len, const char **ret_why);

/* What came in the present second. All zero: nothing yet. */
struct qmp_rate {
	uint64_t since_us;
	uint64_t events, bytes;
};

/* Counts; a second after the first count of the last one starts anew. False when it is a flood. */
bool qmp_rate_count(struct qmp_rate *rate, uint64_t now_us, uint64_t events, uint64_t bytes);

enum qmp_message_kind { QMP_MESSAGE_GREETING, QMP_MESSAGE_RETURN, QMP_MESSAGE_ERROR, QMP_MESSAGE_EVENT };

struct qmp_message {
	enum qmp_message_kind kind;
	json_t *root;	     /* owned; the other pointers point into it */
	const json_t *value; /* RETURN: its value; EVENT: its data or NULL */
	const char *text;    /* EVENT: its name; ERROR: its description */
	const json_t *id;    /* RETURN and ERROR: of the command, or NULL */
};

/* 0, -EBADMSG with a static text, or -ENOMEM. *ret_message is written only on 0; end it with _clear(). */
int qmp_message_parse(const char *text, size_t len, struct qmp_message *ret_message, const char **ret_why);
void qmp_message_clear(struct qmp_message *m);

#endif
