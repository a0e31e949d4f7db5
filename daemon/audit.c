#include "daemon/audit.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/clock.h"
#include "daemon/control.h"
#include "daemon/daemon.h"
#include "daemon/job.h"
#include "ept/slots.h"
#include "ept/target.h"

struct audit_job {
	struct audit_host host;
	struct audit_target *targets; /* with targets and domains owned */
	size_t target_count;
	char **unknown;
	size_t unknown_count;
	/* The thread's until it is done: */
	uint64_t took_ns;
	int result;
};

static void audit_run(void *work)
{
	struct audit_job *a = work;
	uint64_t start = clock_mono_ns();

	a->result = audit_host_run(&a->host);
	a->took_ns = clock_mono_ns() - start;
}

static void audit_progress(void *work, uint64_t *ret_done, uint64_t *ret_total)
{
	struct audit_job *a = work;

	*ret_done = a->host.done_pages;
	*ret_total = a->host.total_pages;
}

static void audit_cancel(void *work)
{
	struct audit_job *a = work;

	a->host.cancel = true;
}

static void audit_job_free(void *work)
{
	struct audit_job *a = work;

	audit_host_end(&a->host);
	for (size_t i = 0; i < a->target_count; i++) {
		ept_target_free((struct ept_target *)(uintptr_t)a->targets[i].target);
		free((char *)(uintptr_t)a->targets[i].domain);
	}
	for (size_t i = 0; i < a->unknown_count; i++)
		free(a->unknown[i]);
	free(a->targets);
	free(a->unknown);
	free(a);
}

static json_t *audit_answer(void *work, char *why, size_t cap)
{
	struct audit_job *a = work;

	if (a->result < 0) {
		snprintf(why, cap, "%s", a->result == -EPERM ? "the kernel does not show frame numbers to this daemon: it lacks "
							       "CAP_SYS_ADMIN" : strerror(-a->result));
		return NULL;
	}
	return render_audit(&(struct audit_answer){ &a->host, (const char *const *)a->unknown, a->unknown_count, a->took_ns });
}

static const struct job_ops audit_ops = {
	.name = "audit",
	.run = audit_run,
	.progress = audit_progress,
	.cancel = audit_cancel,
	.answer = audit_answer,
	.free = audit_job_free,
};

/* 0 or -ENOMEM. A VM that cannot be looked at is named in the answer; one that has ended is left out. */
static int target_add(struct audit_job *a, const struct vm *vm)
{
	const struct ept_view *view = vm->ept;
	struct ept_target *target;
	int r = view ? ept_target_new(view, &target) : -ENODATA;
	char *text;

	if (r == -ESRCH)
		return 0;
	if (r == -ENOMEM)
		return r;
	text = strdup(r < 0 ? vm->name : *vm->settings.domain ? vm->settings.domain : vm->own_domain);
	if (r < 0 && text) {
		a->unknown[a->unknown_count++] = text;
	} else if (text) {
		a->targets[a->target_count++] = (struct audit_target){ target, text };
	} else if (r == 0) {
		ept_target_free(target);
	}
	return text ? 0 : -ENOMEM;
}

void audit_request(struct daemon *d, struct control_client *client)
{
	struct audit_job *a = calloc(1, sizeof(*a));
	size_t count = 0;
	int r = a ? 0 : -ENOMEM;

	for (const struct vm *vm = vmm_registry_first(d->registry); vm; vm = vm->next)
		count++;
	if (r == 0) {
		a->targets = calloc(count + 1, sizeof(*a->targets));
		a->unknown = calloc(count + 1, sizeof(*a->unknown));
		r = a->targets && a->unknown ? 0 : -ENOMEM;
	}
	for (const struct vm *vm = vmm_registry_first(d->registry); vm && r == 0; vm = vm->next)
		r = target_add(a, vm);
	if (r == 0) {
		a->host.fs = &d->fs;
		a->host.targets = a->targets;
		a->host.target_count = a->target_count;
		r = job_start(d, client, &audit_ops, a);
	} else if (a) {
		audit_job_free(a);
	}
	if (r < 0)
		control_fail(client, "%s", strerror(-r));
}
