#include "daemon/census.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/clock.h"
#include "daemon/control.h"
#include "daemon/daemon.h"
#include "daemon/job.h"
#include "ept/target.h"

struct census {
	struct ept_target *target; /* owned */
	struct ept_build build;
	bool initialised;
	/* The thread's until it is done: */
	uint64_t build_ns;
	int result;
};

static void census_run(void *work)
{
	struct census *c = work;
	uint64_t start = clock_mono_ns();

	c->result = ept_build_update(&c->build);
	c->build_ns = clock_mono_ns() - start;
	/* How much of it is out of date already: the guest runs. */
	if (c->result == 0)
		c->result = ept_build_update(&c->build);
}

static void census_progress(void *work, uint64_t *ret_done, uint64_t *ret_total)
{
	struct census *c = work;

	*ret_done = c->build.done_pages;
	*ret_total = c->build.total_pages;
}

static void census_cancel(void *work)
{
	struct census *c = work;

	c->build.cancel = true;
}

static void census_free(void *work)
{
	struct census *c = work;

	if (c->initialised)
		ept_build_end(&c->build);
	ept_target_free(c->target);
	free(c);
}

static const char *why_of(int error)
{
	switch (error) {
	case -ESRCH:
		return "the VM ended meanwhile";
	case -EPERM:
		return "the kernel does not show frame numbers to this daemon: it lacks CAP_SYS_ADMIN";
	default:
		return strerror(-error);
	}
}

static json_t *census_answer(void *work, char *why, size_t cap)
{
	struct census *c = work;

	if (c->result < 0) {
		snprintf(why, cap, "%s", why_of(c->result));
		return NULL;
	}
	return render_census(&(struct census_answer){ c->target, &c->build, c->build_ns, c->build.changed_pages });
}

static const struct job_ops census_ops = {
	.name = "ept",
	.run = census_run,
	.progress = census_progress,
	.cancel = census_cancel,
	.answer = census_answer,
	.free = census_free,
};

void census_request(struct daemon *d, struct control_client *client, const struct vm *vm)
{
	const struct ept_view *view = vm->ept;
	struct census *c = calloc(1, sizeof(*c));
	struct table_options options;
	int r;

	if (!c) {
		control_fail(client, "out of memory");
		return;
	}
	r = view ? ept_target_new(view, &c->target) : -ENODATA;
	ept_build_host_options(&options);
	if (r == 0)
		r = ept_build_init(&c->build, c->target, &options);
	c->initialised = r == 0;
	if (r == 0) {
		r = job_start(d, client, &census_ops, c);
	} else {
		census_free(c);
	}
	if (r == -ENODATA)
		control_fail(client, "%s", view && *view->why ? view->why : "where its memory lies is not known yet; ask again");
	else if (r < 0)
		control_fail(client, "%s", why_of(r));
}
