#include "vmm/qmp_queue.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/cleanup.h"
#include "core/text.h"

void qmp_queued_free(struct qmp_queued *c)
{
	if (!c)
		return;
	free(c->text);
	free(c);
}

struct qmp_queued *qmp_queue_pop(struct qmp_queue *queue)
{
	struct qmp_queued *c = queue->head;

	if (!c)
		return NULL;
	queue->head = c->next;
	if (!queue->head)
		queue->tail = NULL;
	queue->count--;
	queue->bytes -= c->len;
	return c;
}

/* {"execute": command, "arguments": arguments, "id": id} as one line. */
static int queued_format(struct qmp_queued *c, const char *command, json_t *arguments)
{
	auto_free char *text = NULL;
	json_t *root = json_object();
	int r = 0, len;

	if (!root)
		return -ENOMEM;
	/* json_string() refuses text that is not UTF-8. */
	if (json_object_set_new(root, "execute", json_string(command)) < 0 ||
	    (arguments && json_object_set(root, "arguments", arguments) < 0))
		r = -EINVAL;
	else if (json_object_set_new(root, "id", json_integer(c->id)) < 0)
		r = -ENOMEM;
	else
		text = json_dumps(root, JSON_COMPACT);
	json_decref(root);
	if (r < 0)
		return r;
	if (!text)
		return -ENOMEM;
	len = asprintf(&c->text, "%s\n", text);
	if (len < 0) {
		c->text = NULL;
		return -ENOMEM;
	}
	c->len = (size_t)len;
	return 0;
}

int qmp_queue_push(struct qmp_queue *queue, const char *command, json_t *arguments, qmp_reply_fn reply,
		   void *userdata)
{
	struct qmp_queued *c;
	int r;

	if (queue->count >= QMP_QUEUE_MAX)
		return -ENOBUFS;
	c = calloc(1, sizeof(*c));
	if (!c)
		return -ENOMEM;
	c->id = queue->last_id + 1;
	c->reply = reply;
	c->userdata = userdata;
	text_copy(c->name, sizeof(c->name), command, strlen(command));
	r = queued_format(c, command, arguments);
	if (r == 0 && queue->bytes + c->len > QMP_OUT_MAX_BYTES)
		r = -ENOBUFS;
	if (r < 0) {
		qmp_queued_free(c);
		return r;
	}
	if (queue->tail)
		queue->tail->next = c;
	else
		queue->head = c;
	queue->tail = c;
	queue->count++;
	queue->bytes += c->len;
	queue->last_id = c->id;
	return 0;
}
