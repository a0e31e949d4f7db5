#include "daemon/guest_processes.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "core/clock.h"
#include "core/text.h"
#include "daemon/control.h"
#include "daemon/daemon.h"
#include "ept/cpu_ask.h"
#include "ept/target.h"

#define PROGRESS_USEC 250000
/* A CPU is asked so often, with so much time between. Most guests need one answer, since memory is searched; of the others those
 * address spaces are found that run meanwhile. Each answer stops the CPU for a moment. */
#define ROUNDS 5u
#define ROUND_USEC 60000
#define CPUS_MAX 64u

/* One request. First QMP is asked (ask is set), or waited until it is again (pause); then a thread looks (running). */
struct job {
	struct guest_processes *owner;
	struct control_client *client; /* NULL: gone */

	const struct vm *vm; /* only while it is asked */
	struct cpu_ask *ask;
	sd_event_source *pause;
	unsigned cpu, cpus, round; /* cpus: 0 before all were asked once */
	bool regs_known;
	uint64_t seen[ROUNDS * CPUS_MAX];
	char why[256]; /* the last answer that was none */

	struct ept_target *target;
	pthread_t thread;
	bool running;
	int done_fd;
	sd_event_source *done, *progress;

	/* The thread's until done: */
	int result;
	struct processes processes;

	struct job *next;
};

struct guest_processes {
	struct daemon *d;
	struct job *jobs;
};

static void job_free(struct job *job)
{
	struct job **link = &job->owner->jobs;

	while (*link && *link != job)
		link = &(*link)->next;
	if (*link)
		*link = job->next;
	if (job->running) {
		job->processes.watch.cancel = true;
		pthread_join(job->thread, NULL);
	}
	sd_event_source_disable_unref(job->pause);
	sd_event_source_disable_unref(job->done);
	sd_event_source_disable_unref(job->progress);
	if (job->done_fd >= 0)
		close(job->done_fd);
	cpu_ask_free(job->ask);
	ept_target_free(job->target);
	free(job->processes.spaces);
	free(job);
}

/* Ends the job with an error, unless its client is gone. Answering may bring the client's next request, so the job goes
 * first. */
static void job_fail(struct job *job, const char *why)
{
	struct control_client *client = job->client;
	char text[512];

	text_copy(text, sizeof(text), why, strlen(why));
	job_free(job);
	if (client)
		control_fail(client, "%s", text);
}

/* ---- the thread ---- */

static void *job_main(void *arg)
{
	struct job *job = arg;
	uint64_t one = 1;

	pthread_setname_np(pthread_self(), "processes");
	job->result = processes_run(&job->processes);
	if (write(job->done_fd, &one, sizeof(one)) < 0)
		abort(); /* an eventfd that only this thread writes cannot be full */
	return NULL;
}

static void job_error(const struct job *job, char *buf, size_t cap)
{
	switch (job->result) {
	case -ESRCH:
		snprintf(buf, cap, "the VM ended meanwhile");
		break;
	case -EINVAL:
		snprintf(buf, cap, "no processor can have the registers that QMP tells");
		break;
	case -EOPNOTSUPP:
		snprintf(buf, cap, "the guest has no paging at the moment, so there are no address spaces");
		break;
	case -EOVERFLOW:
		snprintf(buf, cap, "the guest has more page tables than the %zu that are looked at in a VM of its size",
			 processes_tables_max(job->target));
		break;
	case -EPERM:
		snprintf(buf, cap, "the kernel does not show frame numbers to this daemon: it lacks CAP_SYS_ADMIN");
		break;
	default:
		snprintf(buf, cap, "%s", strerror(-job->result));
	}
}

static int on_done(sd_event_source *source, int fd, uint32_t events, void *userdata)
{
	struct job *job = userdata;
	struct control_client *client = job->client;
	json_t *value;
	char why[256];

	(void)source;
	(void)fd;
	(void)events;
	pthread_join(job->thread, NULL);
	job->running = false;
	if (job->result < 0) {
		job_error(job, why, sizeof(why));
		job_fail(job, why);
		return 0;
	}
	value = client ? render_guest_processes(&job->processes, job->cpus) : NULL;
	job_free(job);
	if (client)
		control_reply(client, value);
	return 0;
}

static int on_progress(sd_event_source *source, uint64_t usec, void *userdata)
{
	struct job *job = userdata;

	if (job->client)
		control_progress(job->client, job->processes.watch.done_pages, processes_work(job->target));
	sd_event_source_set_time(source, usec + PROGRESS_USEC);
	return sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
}

static void job_run(struct job *job)
{
	sd_event *loop = job->owner->d->loop;
	int r = job->done_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);

	job->vm = NULL;
	job->processes.target = job->target;
	job->processes.seen = job->seen;
	r = r < 0 ? -errno : sd_event_add_io(loop, &job->done, job->done_fd, EPOLLIN, on_done, job);
	if (r >= 0)
		r = sd_event_add_time(loop, &job->progress, CLOCK_MONOTONIC, clock_mono_ns() / 1000 + PROGRESS_USEC, 0,
				      on_progress, job);
	if (r >= 0)
		r = -pthread_create(&job->thread, NULL, job_main, job);
	if (r < 0)
		job_fail(job, strerror(-r));
	else
		job->running = true;
}

/* ---- which tables the CPUs have ---- */

static void job_ask(struct job *job);

static int on_pause_over(sd_event_source *source, uint64_t usec, void *userdata)
{
	struct job *job = userdata;

	(void)source;
	(void)usec;
	job->pause = sd_event_source_disable_unref(job->pause);
	job_ask(job);
	return 0;
}

/* All CPUs were asked once more. */
static void round_over(struct job *job)
{
	int r;

	job->cpus = job->cpu;
	job->cpu = 0;
	job->round++;
	if (job->round == ROUNDS || job->cpus == 0) {
		if (job->processes.seen_count > 0)
			job_run(job);
		else
			job_fail(job, job->why);
		return;
	}
	r = sd_event_add_time(job->owner->d->loop, &job->pause, CLOCK_MONOTONIC, clock_mono_ns() / 1000 + ROUND_USEC, 0,
			      on_pause_over, job);
	if (r < 0)
		job_fail(job, strerror(-r));
}

static bool same_paging(const struct walk_regs *a, const struct walk_regs *b)
{
	enum walk_mode x, y;

	return walk_mode_of(a, &x) == 0 && walk_mode_of(b, &y) == 0 && x == y;
}

static void on_registers(int result, const struct walk_regs *regs, const char *why, void *userdata)
{
	struct job *job = userdata;

	job->ask = NULL; /* it ends with this call */
	if (!job->client) {
		job_free(job);
		return;
	}
	if (result == -ENOENT && job->cpu > 0) { /* that was the last */
		round_over(job);
		return;
	}
	if (result < 0 && result != -ENODATA) {
		job_fail(job, why);
		return;
	}
	if (result < 0) {
		text_copy(job->why, sizeof(job->why), why, strlen(why));
	} else if (!job->regs_known || same_paging(regs, &job->processes.regs)) {
		/* One that has paging still off, as all but the first have while a guest boots, tells nothing. */
		job->regs_known = true;
		job->processes.regs = *regs;
		job->seen[job->processes.seen_count++] = regs->cr3;
	}
	job->cpu++;
	if (job->cpu == CPUS_MAX || job->cpu == job->cpus)
		round_over(job);
	else
		job_ask(job);
}

static void job_ask(struct job *job)
{
	const struct vm *vm = job->vm;
	int r = -ENOTCONN;

	if (!job->client) {
		job_free(job);
		return;
	}
	if (vm->qmp)
		r = cpu_ask_start(vm->qmp, job->cpu, ept_target_low_ram(job->target), on_registers, job, &job->ask);
	if (r < 0) {
		char why[sizeof(vm->why) + 64];

		snprintf(why, sizeof(why), "registers are not known: QMP: %s", r == -ENOTCONN ? vm->why : strerror(-r));
		job_fail(job, why);
	}
}

void guest_processes_request(struct daemon *d, struct control_client *client, const struct vm *vm)
{
	const struct ept_view *view = vm->ept;
	struct job *job = calloc(1, sizeof(*job));
	int r = view ? 0 : -ENODATA;

	if (!job) {
		control_fail(client, "out of memory");
		return;
	}
	job->owner = d->guest_processes;
	job->client = client;
	job->done_fd = -1;
	job->vm = vm;
	job->next = job->owner->jobs;
	job->owner->jobs = job;
	if (r == 0)
		r = ept_target_new(view, &job->target);
	if (r < 0)
		job_fail(job, r == -ESRCH	   ? "the VM ended meanwhile" :
			      r != -ENODATA	   ? strerror(-r) :
			      view && *view->why ? view->why :
						   "where its memory lies is not known yet; ask again");
	else if (!job->target->gpa_known)
		job_fail(job, view->why); /* no QMP: found by its size */
	else
		job_ask(job);
}

/* ---- life ---- */

int guest_processes_new(struct daemon *d, struct guest_processes **ret_processes)
{
	struct guest_processes *p = calloc(1, sizeof(*p));

	if (!p)
		return -ENOMEM;
	p->d = d;
	*ret_processes = p;
	return 0;
}

struct guest_processes *guest_processes_free(struct guest_processes *p)
{
	while (p && p->jobs)
		job_free(p->jobs);
	free(p);
	return NULL;
}

void guest_processes_abandon(struct daemon *d, struct control_client *client)
{
	for (struct job *job = d->guest_processes ? d->guest_processes->jobs : NULL; job; job = job->next) {
		if (job->client != client)
			continue;
		/* An answer of QMP's, the end of a pause or of the thread finds it without a client and ends it. */
		job->client = NULL;
		job->processes.watch.cancel = true;
	}
}

void guest_processes_vm_lost(struct daemon *d, const struct vm *vm)
{
	/* Answering brings new requests to the list: it is searched anew each time. */
	for (;;) {
		struct job *job = d->guest_processes ? d->guest_processes->jobs : NULL;

		while (job && job->vm != vm)
			job = job->next;
		if (!job)
			return;
		job_fail(job, "the VM, or its QMP connection, is gone");
	}
}
