#include "daemon/job.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "core/clock.h"
#include "daemon/control.h"
#include "daemon/daemon.h"

#define PROGRESS_USEC 250000

struct job {
	struct daemon *d;
	struct control_client *client; /* NULL: gone */
	const struct job_ops *ops;
	void *work;
	pthread_t thread;
	int done_fd;
	sd_event_source *done, *progress;
	struct job *next;
};

/* Its thread has ended, or was never started. */
static void job_free(struct job *job)
{
	struct job **link = &job->d->jobs;

	while (*link && *link != job)
		link = &(*link)->next;
	if (*link)
		*link = job->next;
	sd_event_source_disable_unref(job->done);
	sd_event_source_disable_unref(job->progress);
	if (job->done_fd >= 0)
		close(job->done_fd);
	job->ops->free(job->work);
	free(job);
}

static void *job_main(void *arg)
{
	struct job *job = arg;
	uint64_t one = 1;

	pthread_setname_np(pthread_self(), job->ops->name);
	job->ops->run(job->work);
	if (write(job->done_fd, &one, sizeof(one)) < 0)
		abort(); /* an eventfd that only this thread writes cannot be full */
	return NULL;
}

/* Answering may bring the client's next request, so the job goes first. */
static int on_done(sd_event_source *source, int fd, uint32_t events, void *userdata)
{
	struct job *job = userdata;
	struct control_client *client = job->client;
	char why[512] = "";
	json_t *value = NULL;

	(void)source;
	(void)fd;
	(void)events;
	pthread_join(job->thread, NULL);
	if (client)
		value = job->ops->answer(job->work, why, sizeof(why));
	job_free(job);
	if (client && value)
		control_reply(client, value);
	else if (client)
		control_fail(client, "%s", *why ? why : "out of memory");
	return 0;
}

static int on_progress(sd_event_source *source, uint64_t usec, void *userdata)
{
	struct job *job = userdata;
	uint64_t done = 0, total = 0;

	job->ops->progress(job->work, &done, &total);
	if (job->client)
		control_progress(job->client, done, total);
	sd_event_source_set_time(source, usec + PROGRESS_USEC);
	return sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
}

int job_start(struct daemon *d, struct control_client *client, const struct job_ops *ops, void *work)
{
	struct job *job = calloc(1, sizeof(*job));
	int r;

	if (!job) {
		ops->free(work);
		return -ENOMEM;
	}
	*job = (struct job){ .d = d, .client = client, .ops = ops, .work = work, .next = d->jobs };
	d->jobs = job;
	job->done_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	r = job->done_fd < 0 ? -errno : sd_event_add_io(d->loop, &job->done, job->done_fd, EPOLLIN, on_done, job);
	if (r >= 0)
		r = sd_event_add_time(d->loop, &job->progress, CLOCK_MONOTONIC, clock_mono_ns() / 1000 + PROGRESS_USEC, 0,
				      on_progress, job);
	if (r >= 0)
		r = -pthread_create(&job->thread, NULL, job_main, job);
	if (r < 0)
		job_free(job);
	return r;
}

void job_abandon(struct daemon *d, struct control_client *client)
{
	for (struct job *job = d->jobs; job; job = job->next) {
		if (job->client != client)
			continue;
		job->client = NULL;
		job->ops->cancel(job->work);
	}
}

void jobs_end(struct daemon *d)
{
	while (d->jobs) {
		d->jobs->ops->cancel(d->jobs->work);
		pthread_join(d->jobs->thread, NULL);
		job_free(d->jobs);
	}
}
