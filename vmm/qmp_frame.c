#include "vmm/qmp_frame.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* A buffer that one long answer has blown up is given back when it is empty. */
#define KEEP_BYTES 65536

void qmp_frame_clear(struct qmp_frame *f)
{
	free(f->buf);
	*f = (struct qmp_frame){ .buf = NULL };
}

/* Moves the message being read to the front of the buffer. */
static void frame_compact(struct qmp_frame *f)
{
	if (f->start == 0)
		return;
	memmove(f->buf, f->buf + f->start, f->len - f->start);
	f->len -= f->start;
	f->scanned -= f->start;
	f->start = 0;
	if (f->len == 0 && f->cap > KEEP_BYTES) {
		free(f->buf);
		f->buf = NULL;
		f->cap = 0;
	}
}

int qmp_frame_append(struct qmp_frame *f, const char *data, size_t len)
{
	size_t cap;
	char *bigger;

	if (len == 0)
		return 0;
	frame_compact(f);
	if (f->cap - f->len < len) {
		for (cap = f->cap ? f->cap : 4096; cap - f->len < len;)
			cap *= 2;
		bigger = realloc(f->buf, cap);
		if (!bigger)
			return -ENOMEM;
		f->buf = bigger;
		f->cap = cap;
	}
	memcpy(f->buf + f->len, data, len);
	f->len += len;
	return 0;
}

/* Looks at one byte of a message: 1 when it is the last, 0 when not, -EBADMSG when it cannot be JSON. */
static int frame_byte(struct qmp_frame *f, char c, const char **ret_why)
{
	if (f->in_string) {
		if ((unsigned char)c < 0x20) {
			*ret_why = "a string with a control character in it";
			return -EBADMSG;
		}
		if (f->escaped)
			f->escaped = false;
		else if (c == '\\')
			f->escaped = true;
		else if (c == '"')
			f->in_string = false;
		return 0;
	}
	switch (c) {
	case '"':
		f->in_string = true;
		return 0;
	case '{':
	case '[':
		if (f->depth == QMP_DEPTH_MAX) {
			*ret_why = "a message nested too deep";
			return -EBADMSG;
		}
		f->depth++;
		f->kinds = f->kinds << 1 | (c == '{');
		return 0;
	case '}':
	case ']':
		if ((f->kinds & 1) != (c == '}')) {
			*ret_why = "a message with brackets that do not match";
			return -EBADMSG;
		}
		f->kinds >>= 1;
		return --f->depth == 0;
	default:
		return 0;
	}
}

int qmp_frame_next(struct qmp_frame *f, const char **ret_text, size_t *ret_len, const char **ret_why)
{
	while (f->scanned < f->len) {
		char c = f->buf[f->scanned];
		int r;

		if (f->depth == 0) {
			if (c == ' ' || c == '\t' || c == '\r' || c == '\n') {
				f->start = ++f->scanned;
				continue;
			}
			if (c != '{') {
				*ret_why = "text that is not a JSON object";
				return -EBADMSG;
			}
		}
		if (f->scanned - f->start >= QMP_LINE_MAX_BYTES) {
			*ret_why = "a message longer than 1 MiB";
			return -EBADMSG;
		}
		r = frame_byte(f, c, ret_why);
		if (r < 0)
			return r;
		f->scanned++;
		if (r > 0) {
			*ret_text = f->buf + f->start;
			*ret_len = f->scanned - f->start;
			f->start = f->scanned;
			return 1;
		}
	}
	return 0;
}

bool qmp_rate_count(struct qmp_rate *rate, uint64_t now_us, uint64_t events, uint64_t bytes)
{
	if (now_us - rate->since_us >= 1000000)
		*rate = (struct qmp_rate){ .since_us = now_us };
	rate->events += events;
	rate->bytes += bytes;
	return rate->events <= QMP_EVENTS_MAX_PER_S && rate->bytes <= QMP_BYTES_MAX_PER_S;
}

/* jansson's integers end at 2^63-1 and some VMMs send 64-bit sizes above; those messages get all their
 * numbers as floating point rather than none. */
static json_t *message_load(const char *text, size_t len, int *ret_error)
{
	json_error_t error;
	json_t *root = json_loadb(text, len, 0, &error);

	if (!root && json_error_code(&error) == json_error_numeric_overflow)
		root = json_loadb(text, len, JSON_DECODE_INT_AS_REAL, &error);
	if (!root)
		*ret_error = json_error_code(&error) == json_error_out_of_memory ? -ENOMEM : -EBADMSG;
	return root;
}

/* Fills m from its root; false when the object is no message of the protocol. */
static bool message_classify(struct qmp_message *m)
{
	const json_t *error = json_object_get(m->root, "error");
	const json_t *event = json_object_get(m->root, "event");

	m->id = json_object_get(m->root, "id");
	m->value = json_object_get(m->root, "return");
	if (m->value) {
		m->kind = QMP_MESSAGE_RETURN;
		return true;
	}
	if (error) {
		m->kind = QMP_MESSAGE_ERROR;
		m->text = json_string_value(json_object_get(error, "desc"));
		return m->text != NULL;
	}
	if (event) {
		m->kind = QMP_MESSAGE_EVENT;
		m->text = json_string_value(event);
		m->value = json_object_get(m->root, "data");
		return m->text && (!m->value || json_is_object(m->value));
	}
	m->kind = QMP_MESSAGE_GREETING;
	return json_is_object(json_object_get(json_object_get(m->root, "QMP"), "version"));
}

int qmp_message_parse(const char *text, size_t len, struct qmp_message *ret_message, const char **ret_why)
{
	struct qmp_message m = { .root = NULL };
	int error = 0;

	m.root = message_load(text, len, &error);
	if (!m.root) {
		*ret_why = error == -ENOMEM ? "out of memory" : "text that is not JSON";
		return error;
	}
	if (!message_classify(&m)) {
		qmp_message_clear(&m);
		*ret_why = "an object that is no QMP message";
		return -EBADMSG;
	}
	*ret_message = m;
	return 0;
}

void qmp_message_clear(struct qmp_message *m)
{
	json_decref(m->root);
	*m = (struct qmp_message){ .root = NULL };
}
