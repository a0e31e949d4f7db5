/* daemon/job.h - work for one client on a thread of its own, so that nothing blocks the loop.
 *
 * A job ends with its work, with its client (as soon as the work notices) or with the daemon. */
#ifndef DAEMON_JOB_H
#define DAEMON_JOB_H

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

struct control_client;
struct daemon;
struct job;

struct job_ops {
	const char *name;		/* of the thread; at most 15 characters */
	void (*run)(void *work);	/* on the thread; everything else on the loop */
	void (*progress)(void *work, uint64_t *ret_done, uint64_t *ret_total); /* while it runs */
	void (*cancel)(void *work);	/* while it runs: it is to end soon */
	/* After it ran: the answer, or NULL with the reason in why (left empty: out of memory). */
	json_t *(*answer)(void *work, char *why, size_t cap);
	void (*free)(void *work);
};

/* Answers client when done, with progress before. work is taken. 0; -errno, and work was freed and nobody answered. */
int job_start(struct daemon *d, struct control_client *client, const struct job_ops *ops, void *work);
/* client is going away. */
void job_abandon(struct daemon *d, struct control_client *client);
/* Cancels all and waits for them. */
void jobs_end(struct daemon *d);

#endif
