/* vmm/qmp_queue.h - the commands of one QMP connection that are not answered yet, oldest first. Bounded.
 * Private to vmm/qmp.c. */
#ifndef VMM_QMP_QUEUE_H
#define VMM_QMP_QUEUE_H

#include "vmm/qmp.h"

struct qmp_queued {
	struct qmp_queued *next;
	char *text; /* as sent, newline included */
	size_t len;
	json_int_t id;
	qmp_reply_fn reply;
	void *userdata;
	char name[48]; /* for people */
};

/* All zero is an empty queue. */
struct qmp_queue {
	/* The head is being sent or answered; the others wait. */
	struct qmp_queued *head, *tail;
	size_t count, bytes;
	json_int_t last_id;
};

/* Formats the command as a line and adds it; arguments is borrowed. 0, -ENOBUFS, -EINVAL or -ENOMEM. */
int qmp_queue_push(struct qmp_queue *queue, const char *command, json_t *arguments, qmp_reply_fn reply,
		   void *userdata);
/* Takes the head; NULL when there is none. The caller ends it with qmp_queued_free(). */
struct qmp_queued *qmp_queue_pop(struct qmp_queue *queue);
void qmp_queued_free(struct qmp_queued *c); /* NULL ok */

#endif
