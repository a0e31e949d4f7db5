#include "daemon/estimate.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/random.h>

#include "core/clock.h"
#include "core/log.h"
#include "daemon/control.h"
#include "daemon/daemon.h"
#include "ksmd/pass.h"

#define PROGRESS_USEC 250000
/* VMs that were found just now may not have told where their memory lies: they get this long to do so. */
#define SETTLE_POLL_USEC 50000
#define SETTLE_MAX_NS (5 * NSEC_PER_SEC)

struct waiter {
	struct control_client *client;
	estimate_render_fn render;
	bool running; /* waits for the pass that runs, not the next */
	struct waiter *next;
};

struct estimates {
	struct daemon *d;
	struct waiter *waiters;
	struct pass *pass;
	sd_event_source *done, *progress, *settle;
	uint64_t asked_ns; /* since when the pass that waits for VMs to settle is wanted */
};

/* Tables of their own, with one seed for all domains: contents of different domains are compared here, which
 * the merging passes can not. What it finds is told to the operator only, and merged nowhere. */
static int inputs_make(struct daemon *d, const struct host_snapshot *s, struct pass_input *inputs,
		       size_t *ret_count)
{
	uint64_t seed;

	*ret_count = 0;
	if (getrandom(&seed, sizeof(seed), 0) != sizeof(seed))
		return -errno;
	for (size_t i = 0; i < s->vm_count; i++) {
		struct page_table *table;
		int r;

		if (s->vms[i].region_count == 0)
			continue;
		r = page_table_new(&d->fs, &s->vms[i], seed, &table);
		if (r == -ESRCH)
			continue;
		if (r < 0) {
			log_warning("estimate leaves out vm=%s: %s", s->vms[i].uuid, strerror(-r));
			continue;
		}
		inputs[(*ret_count)++] = (struct pass_input){ .table = table, .rescan = true };
	}
	return 0;
}

/* Answers all that wait for the pass that ran; result NULL: with error. Answering may bring the client's next
 * request into the list, so it is searched anew each time. */
static void waiters_answer(struct estimates *e, const struct pass_result *result, int error)
{
	for (;;) {
		struct waiter **link = &e->waiters, *w;

		while (*link && !(*link)->running)
			link = &(*link)->next;
		w = *link;
		if (!w)
			return;
		*link = w->next;
		if (result)
			control_reply(w->client, w->render(result));
		else
			control_fail(w->client, "estimate failed: %s", strerror(-error));
		free(w);
	}
}

static void estimate_begin(struct estimates *e);

static void estimate_end(struct estimates *e)
{
	const struct pass_result *result = pass_wait(e->pass);

	e->done = sd_event_source_disable_unref(e->done);
	e->progress = sd_event_source_disable_unref(e->progress);
	waiters_answer(e, result->error ? NULL : result, result->error);
	e->pass = pass_free(e->pass);
	if (e->waiters)
		estimate_begin(e);
}

static int on_done(sd_event_source *source, int fd, uint32_t events, void *userdata)
{
	(void)source;
	(void)fd;
	(void)events;
	estimate_end(userdata);
	return 0;
}

static int on_progress(sd_event_source *source, uint64_t usec, void *userdata)
{
	struct estimates *e = userdata;
	uint64_t done, total;

	pass_progress(e->pass, &done, &total);
	for (struct waiter *w = e->waiters; w; w = w->next)
		if (w->running)
			control_progress(w->client, done, total);
	sd_event_source_set_time(source, usec + PROGRESS_USEC);
	return sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
}

static int pass_watch(struct estimates *e)
{
	sd_event *loop = e->d->loop;
	int r = sd_event_add_io(loop, &e->done, pass_done_fd(e->pass), EPOLLIN, on_done, e);

	if (r < 0)
		return r;
	return sd_event_add_time(loop, &e->progress, CLOCK_MONOTONIC, clock_mono_ns() / 1000 + PROGRESS_USEC, 0,
				 on_progress, e);
}

static void pass_begin(struct estimates *e)
{
	const struct pass_options options = {
		.limits.workers = (unsigned)e->d->config.scan_workers,
		.across_domains = true,
		.sharing = true,
	};
	struct host_snapshot snapshot = { 0 };
	struct pass_input *inputs = NULL;
	size_t count = 0;
	int r = snapshot_take(e->d, &snapshot);

	for (struct waiter *w = e->waiters; w; w = w->next)
		w->running = true;
	if (r == 0) {
		inputs = calloc(snapshot.vm_count + 1, sizeof(*inputs));
		r = inputs ? inputs_make(e->d, &snapshot, inputs, &count) : -ENOMEM;
	}
	if (r == 0)
		r = pass_start(inputs, count, &options, &e->pass);
	if (r == 0)
		r = pass_watch(e);
	for (size_t i = 0; i < count; i++)
		page_table_unref(inputs[i].table);
	free(inputs);
	snapshot_free(&snapshot);
	if (r < 0) {
		e->pass = pass_free(e->pass);
		waiters_answer(e, NULL, r);
	}
}

static int on_settle(sd_event_source *source, uint64_t usec, void *userdata)
{
	struct estimates *e = userdata;

	if (!daemon_settled(e->d) && clock_mono_ns() - e->asked_ns < SETTLE_MAX_NS) {
		sd_event_source_set_time(source, usec + SETTLE_POLL_USEC);
		return sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
	}
	e->settle = sd_event_source_disable_unref(e->settle);
	pass_begin(e);
	return 0;
}

static void estimate_begin(struct estimates *e)
{
	e->asked_ns = clock_mono_ns();
	if (daemon_settled(e->d) ||
	    sd_event_add_time(e->d->loop, &e->settle, CLOCK_MONOTONIC, 0, 0, on_settle, e) < 0)
		pass_begin(e);
}

int estimates_new(struct daemon *d, struct estimates **ret_estimates)
{
	struct estimates *e = calloc(1, sizeof(*e));

	if (!e)
		return -ENOMEM;
	e->d = d;
	*ret_estimates = e;
	return 0;
}

struct estimates *estimates_free(struct estimates *e)
{
	if (!e)
		return NULL;
	sd_event_source_disable_unref(e->done);
	sd_event_source_disable_unref(e->progress);
	sd_event_source_disable_unref(e->settle);
	pass_free(e->pass);
	while (e->waiters) {
		struct waiter *w = e->waiters;

		e->waiters = w->next;
		free(w);
	}
	free(e);
	return NULL;
}

int estimate_request(struct daemon *d, struct control_client *client, estimate_render_fn render)
{
	struct estimates *e = d->estimates;
	struct waiter *w = calloc(1, sizeof(*w));

	if (!w)
		return -ENOMEM;
	*w = (struct waiter){ .client = client, .render = render, .next = e->waiters };
	e->waiters = w;
	if (!e->pass && !e->settle)
		estimate_begin(e);
	return 0;
}

void estimate_abandon(struct daemon *d, struct control_client *client)
{
	struct estimates *e = d->estimates;
	bool wanted = false;

	if (!e)
		return;
	for (struct waiter **link = &e->waiters; *link;) {
		struct waiter *w = *link;

		if (w->client == client) {
			*link = w->next;
			free(w);
			continue;
		}
		wanted |= w->running;
		link = &w->next;
	}
	if (e->pass && !wanted)
		pass_cancel(e->pass);
}
