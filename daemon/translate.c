#include "daemon/translate.h"

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

#define PROGRESS_USEC 250000
/* Places that are listed of one frame; the zero page is mapped at very many. An answer of 1 MiB. */
#define HITS_MAX 4096

enum job_kind { FROM_GVA, FROM_GPA, FROM_HVA, FROM_HPA };

static const char *const kind_names[] = { [FROM_GVA] = "gva", [FROM_GPA] = "gpa", [FROM_HVA] = "hva", [FROM_HPA] = "hpa" };

/* One request. First QMP is asked, if need be (ask is set); then a thread looks (running). */
struct job {
	struct translations *owner;
	struct control_client *client; /* NULL: gone */
	enum job_kind kind;
	uint64_t address;

	const struct vm *vm; /* only while it is asked */
	struct cpu_ask *ask;
	unsigned cpu;
	bool cr3_given;
	uint64_t cr3;
	struct walk_regs regs;

	struct ept_target **targets; /* owned; one, but for FROM_HPA */
	size_t target_count;
	char **unknown; /* names of VMs without a target */
	size_t unknown_count;

	pthread_t thread;
	bool running;
	int done_fd;
	sd_event_source *done, *progress;

	/* The thread's until done: */
	int result;
	struct translation translation;
	struct search search;
	struct frame frame;
	bool frame_known;

	struct job *next;
};

struct translations {
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
		job->search.cancel = true;
		pthread_join(job->thread, NULL);
	}
	sd_event_source_disable_unref(job->done);
	sd_event_source_disable_unref(job->progress);
	if (job->done_fd >= 0)
		close(job->done_fd);
	cpu_ask_free(job->ask);
	for (size_t i = 0; i < job->target_count; i++)
		ept_target_free(job->targets[i]);
	for (size_t i = 0; i < job->unknown_count; i++)
		free(job->unknown[i]);
	free(job->targets);
	free(job->unknown);
	free(job->search.hits);
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

/* Where the first hit still shows the frame. */
static void search_describe(struct job *job)
{
	size_t kept = job->search.found < job->search.cap ? (size_t)job->search.found : job->search.cap;

	for (size_t i = 0; i < kept && !job->frame_known && !job->search.cancel; i++) {
		const struct search_hit *hit = &job->search.hits[i];

		job->frame_known = frame_look(job->targets[hit->target], hit->hva, &job->frame) == 0 &&
				   job->frame.hpa == job->address;
	}
}

static void *job_main(void *arg)
{
	struct job *job = arg;
	uint64_t one = 1;

	pthread_setname_np(pthread_self(), "translate");
	switch (job->kind) {
	case FROM_GVA:
		job->result = translate_gva(job->targets[0], &job->regs, job->address, &job->translation);
		break;
	case FROM_GPA:
		job->result = translate_gpa(job->targets[0], job->address, &job->translation);
		break;
	case FROM_HVA:
		job->result = translate_hva(job->targets[0], job->address, &job->translation);
		break;
	case FROM_HPA:
		job->result = search_run(&job->search);
		search_describe(job);
		break;
	}
	if (write(job->done_fd, &one, sizeof(one)) < 0)
		abort(); /* an eventfd that only this thread writes cannot be full */
	return NULL;
}

static json_t *job_render(const struct job *job, const char *why)
{
	if (job->kind == FROM_HPA)
		return render_found(&(struct translate_found){ .search = &job->search,
							       .frame = job->frame_known ? &job->frame : NULL,
							       .unknown = (const char *const *)job->unknown,
							       .unknown_count = job->unknown_count });
	return render_translation(&(struct translate_answer){ .target = job->targets[0], .translation = &job->translation,
							      .regs = &job->regs, .cpu = job->cpu,
							      .fault = job->result == -EFAULT, .why = why });
}

static const char *job_error(const struct job *job)
{
	switch (job->result) {
	case -ESRCH:
		return "the VM ended meanwhile";
	case -EINVAL:
		return "no processor can have the registers that QMP tells";
	case -ENXIO:
		return "not an address of this VM's guest RAM in its VMM";
	case -EPERM:
		return "the kernel does not show frame numbers to this daemon: it lacks CAP_SYS_ADMIN";
	default:
		return strerror(-job->result);
	}
}

static int on_done(sd_event_source *source, int fd, uint32_t events, void *userdata)
{
	struct job *job = userdata;
	struct control_client *client = job->client;
	json_t *value;
	char why[256] = "";

	(void)source;
	(void)fd;
	(void)events;
	pthread_join(job->thread, NULL);
	job->running = false;
	if (job->result < 0 && job->result != -EFAULT) {
		job_fail(job, job_error(job));
		return 0;
	}
	if (job->result == -EFAULT)
		translate_why(&job->translation, why, sizeof(why));
	value = client ? job_render(job, why) : NULL;
	job_free(job);
	if (client)
		control_reply(client, value);
	return 0;
}

static int on_progress(sd_event_source *source, uint64_t usec, void *userdata)
{
	struct job *job = userdata;

	if (job->client)
		control_progress(job->client, job->search.done_pages, job->search.total_pages);
	sd_event_source_set_time(source, usec + PROGRESS_USEC);
	return sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
}

static void job_run(struct job *job)
{
	sd_event *loop = job->owner->d->loop;
	int r = job->done_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);

	r = r < 0 ? -errno : sd_event_add_io(loop, &job->done, job->done_fd, EPOLLIN, on_done, job);
	if (r >= 0 && job->kind == FROM_HPA)
		r = sd_event_add_time(loop, &job->progress, CLOCK_MONOTONIC, clock_mono_ns() / 1000 + PROGRESS_USEC, 0,
				      on_progress, job);
	if (r >= 0)
		r = -pthread_create(&job->thread, NULL, job_main, job);
	if (r < 0)
		job_fail(job, strerror(-r));
	else
		job->running = true;
}

/* ---- requests ---- */

static void on_registers(int result, const struct walk_regs *regs, const char *why, void *userdata)
{
	struct job *job = userdata;

	job->ask = NULL; /* it ends with this call */
	job->vm = NULL;
	if (result < 0 || !job->client) {
		job_fail(job, why);
		return;
	}
	job->regs = *regs;
	if (job->cr3_given)
		job->regs.cr3 = job->cr3;
	job_run(job);
}

static void job_begin(struct job *job, const struct vm *vm)
{
	const struct ept_view *view = vm->ept;
	int r = view ? ept_target_new(view, &job->targets[0]) : -ENODATA;

	if (r < 0) {
		job_fail(job, r == -ESRCH ? "the VM ended meanwhile" :
			      r != -ENODATA ? strerror(-r) :
			      view && *view->why ? view->why :
						   "where its memory lies is not known yet; ask again");
		return;
	}
	job->target_count = 1;
	if (job->kind != FROM_HVA && !job->targets[0]->gpa_known) {
		job_fail(job, view->why); /* no QMP: found by its size */
		return;
	}
	if (job->kind != FROM_GVA) {
		job_run(job);
		return;
	}
	job->vm = vm;
	r = vm->qmp ? cpu_ask_start(vm->qmp, job->cpu, ept_target_low_ram(job->targets[0]), on_registers, job, &job->ask) : -ENOTCONN;
	if (r < 0) {
		char why[sizeof(vm->why) + 64];

		snprintf(why, sizeof(why), "registers are not known: QMP: %s", r == -ENOTCONN ? vm->why : strerror(-r));
		job_fail(job, why);
	}
}

/* Decimal, or hexadecimal with 0x; nothing else, so that no digit is dropped in silence. */
static bool number_read(const char *text, uint64_t *ret_value)
{
	bool is_hex = text[0] == '0' && (text[1] == 'x' || text[1] == 'X');
	const char *digits = is_hex ? text + 2 : text;
	char *end;

	if (*digits == '\0' || strspn(digits, is_hex ? "0123456789abcdefABCDEF" : "0123456789") != strlen(digits))
		return false;
	errno = 0;
	*ret_value = strtoull(digits, &end, is_hex ? 16 : 10);
	return errno == 0 && *end == '\0';
}

/* 1: *ret_value is set; 0: there is no such argument; -EINVAL: bad, and the client was told. */
static int argument_read(struct control_client *client, const json_t *arguments, const char *name, uint64_t *ret_value)
{
	const json_t *value = json_object_get(arguments, name);

	if (!value)
		return 0;
	if (json_is_string(value) && number_read(json_string_value(value), ret_value))
		return 1;
	control_fail(client, "%s: \"%.64s\" is no number of 64 bits; hexadecimal ones begin with 0x", name,
		     json_is_string(value) ? json_string_value(value) : "");
	return -EINVAL;
}

static struct job *job_new(struct daemon *d, struct control_client *client, size_t targets)
{
	struct job *job = calloc(1, sizeof(*job));

	if (!job)
		return NULL;
	job->owner = d->translations;
	job->client = client;
	job->done_fd = -1;
	job->targets = calloc(targets + 1, sizeof(*job->targets));
	job->unknown = calloc(targets + 1, sizeof(*job->unknown));
	job->next = job->owner->jobs;
	job->owner->jobs = job;
	if (!job->targets || !job->unknown) {
		job_free(job);
		return NULL;
	}
	return job;
}

/* Which of the three addresses it is. 0; -EINVAL, and the client was told. */
static int entry_read(struct control_client *client, const json_t *arguments, enum job_kind *ret_kind, uint64_t *ret_address)
{
	unsigned given = 0;

	for (enum job_kind kind = FROM_GVA; kind <= FROM_HVA; kind++) {
		int r = argument_read(client, arguments, kind_names[kind], ret_address);

		if (r < 0)
			return r;
		if (r > 0) {
			*ret_kind = kind;
			given++;
		}
	}
	if (given != 1) {
		control_fail(client, "which address? one of gva, gpa and hva");
		return -EINVAL;
	}
	return 0;
}

void translate_request(struct daemon *d, struct control_client *client, const struct vm *vm, const json_t *arguments)
{
	uint64_t address = 0, cpu = 0, cr3 = 0;
	enum job_kind kind = FROM_GVA;
	int cpu_given, cr3_given;
	struct job *job;

	if (entry_read(client, arguments, &kind, &address) < 0)
		return;
	cpu_given = argument_read(client, arguments, "cpu", &cpu);
	cr3_given = cpu_given < 0 ? 0 : argument_read(client, arguments, "cr3", &cr3);
	if (cpu_given < 0 || cr3_given < 0)
		return;
	if (kind != FROM_GVA && (cpu_given || cr3_given)) {
		control_fail(client, "cpu and cr3 are for guest-virtual addresses only");
		return;
	}
	if (cpu > INT32_MAX) {
		control_fail(client, "there is no CPU with so high a number");
		return;
	}
	job = job_new(d, client, 1);
	if (!job) {
		control_fail(client, "out of memory");
		return;
	}
	job->kind = kind;
	job->address = address;
	job->cpu = (unsigned)cpu;
	job->cr3_given = cr3_given;
	job->cr3 = cr3;
	job_begin(job, vm);
}

static size_t vm_count(const struct daemon *d)
{
	size_t count = 0;

	for (const struct vm *vm = vmm_registry_first(d->registry); vm; vm = vm->next)
		count++;
	return count;
}

/* 0 or -ENOMEM. A VM that cannot be looked at is named in the answer; one that has ended is left out. */
static int search_targets(struct daemon *d, struct job *job)
{
	for (struct vm *vm = vmm_registry_first(d->registry); vm; vm = vm->next) {
		const struct ept_view *view = vm->ept;
		int r = view ? ept_target_new(view, &job->targets[job->target_count]) : -ENODATA;

		if (r == -ENOMEM)
			return r;
		if (r == 0) {
			job->target_count++;
		} else if (r != -ESRCH) {
			job->unknown[job->unknown_count] = strdup(vm->name);
			if (!job->unknown[job->unknown_count])
				return -ENOMEM;
			job->unknown_count++;
		}
	}
	return 0;
}

void translate_search_request(struct daemon *d, struct control_client *client, const json_t *arguments)
{
	uint64_t hpa = 0;
	int r = argument_read(client, arguments, kind_names[FROM_HPA], &hpa);
	struct job *job;

	if (r < 0)
		return;
	if (json_object_size(arguments) != 1) {
		control_fail(client, "hpa is asked of all VMs, and alone");
		return;
	}
	job = job_new(d, client, vm_count(d));
	if (!job) {
		control_fail(client, "out of memory");
		return;
	}
	job->kind = FROM_HPA;
	job->address = hpa;
	job->search.hits = calloc(HITS_MAX, sizeof(*job->search.hits));
	if (!job->search.hits || search_targets(d, job) < 0) {
		job_fail(job, "out of memory");
		return;
	}
	job->search.targets = job->targets;
	job->search.target_count = job->target_count;
	job->search.hpa = hpa;
	job->search.cap = HITS_MAX;
	job_run(job);
}

/* ---- life ---- */

int translations_new(struct daemon *d, struct translations **ret_translations)
{
	struct translations *t = calloc(1, sizeof(*t));

	if (!t)
		return -ENOMEM;
	t->d = d;
	*ret_translations = t;
	return 0;
}

struct translations *translations_free(struct translations *t)
{
	while (t && t->jobs)
		job_free(t->jobs);
	free(t);
	return NULL;
}

void translate_abandon(struct daemon *d, struct control_client *client)
{
	struct job *next;

	for (struct job *job = d->translations ? d->translations->jobs : NULL; job; job = next) {
		next = job->next;
		if (job->client != client)
			continue;
		/* An answer of QMP's, or the thread's end, finds it without a client and ends it. */
		job->client = NULL;
		job->search.cancel = true;
	}
}

void translate_vm_lost(struct daemon *d, const struct vm *vm)
{
	/* Answering brings new requests to the list: it is searched anew each time. */
	for (;;) {
		struct job *job = d->translations ? d->translations->jobs : NULL;

		while (job && job->vm != vm)
			job = job->next;
		if (!job)
			return;
		job_fail(job, "the VM, or its QMP connection, is gone");
	}
}
