#include "daemon/commands.h"

#include <errno.h>
#include <string.h>

#include "core/cleanup.h"
#include "core/log.h"
#include "daemon/audit.h"
#include "daemon/census.h"
#include "daemon/control.h"
#include "daemon/daemon.h"
#include "daemon/estimate.h"
#include "daemon/guest_processes.h"
#include "daemon/job.h"
#include "daemon/translate.h"

typedef void (*command_fn)(struct daemon *d, struct control_client *client, const json_t *arguments);

static void run_vms(struct daemon *d, struct control_client *client, const json_t *arguments)
{
	(void)arguments;
	control_reply(client, render_vms(d));
}

static void run_status(struct daemon *d, struct control_client *client, const json_t *arguments)
{
	(void)arguments;
	control_reply(client, render_status(d));
}

static void run_merge_status(struct daemon *d, struct control_client *client, const json_t *arguments)
{
	(void)arguments;
	control_reply(client, render_merge_status(d));
}

static void run_pass(struct daemon *d, struct control_client *client, estimate_render_fn render)
{
	int r = estimate_request(d, client, render);

	if (r < 0)
		control_fail(client, "estimate failed: %s", strerror(-r));
}

static void run_estimate(struct daemon *d, struct control_client *client, const json_t *arguments)
{
	(void)arguments;
	run_pass(d, client, render_estimate);
}

static void run_sharing(struct daemon *d, struct control_client *client, const json_t *arguments)
{
	(void)arguments;
	run_pass(d, client, render_sharing);
}

/* NULL: there is none, and the client was told. */
static struct vm *vm_named(struct daemon *d, struct control_client *client, const json_t *arguments)
{
	const char *text = json_string_value(json_object_get(arguments, "vm"));
	struct vm *vm = NULL;
	int r = text ? vmm_registry_find(d->registry, text, &vm) : 0;

	if (!text)
		control_fail(client, "which VM? name, uuid or pid");
	else if (r == -ENOTUNIQ)
		control_fail(client, "several VMs are named \"%.200s\"; use the uuid or the pid", text);
	else if (r < 0)
		control_fail(client, "no VM \"%.200s\"; memvirtctl vms lists them", text);
	return r < 0 ? NULL : vm;
}

static void run_explain(struct daemon *d, struct control_client *client, const json_t *arguments)
{
	struct vm *vm = vm_named(d, client, arguments);

	if (vm)
		control_reply(client, render_explain(d, vm));
}

static void run_translate(struct daemon *d, struct control_client *client, const json_t *arguments)
{
	struct vm *vm = json_object_get(arguments, "hpa") ? NULL : vm_named(d, client, arguments);

	if (vm)
		translate_request(d, client, vm, arguments);
	else if (json_object_get(arguments, "hpa"))
		translate_search_request(d, client, arguments);
}

static void run_ept(struct daemon *d, struct control_client *client, const json_t *arguments)
{
	const struct vm *vm = vm_named(d, client, arguments);

	if (vm)
		census_request(d, client, vm);
}

static void run_audit(struct daemon *d, struct control_client *client, const json_t *arguments)
{
	(void)arguments;
	audit_request(d, client);
}

static void run_guest_processes(struct daemon *d, struct control_client *client, const json_t *arguments)
{
	struct vm *vm = vm_named(d, client, arguments);

	if (vm)
		guest_processes_request(d, client, vm);
}

static void run_unmerge(struct daemon *d, struct control_client *client, const json_t *arguments)
{
	struct vm *vm = vm_named(d, client, arguments);
	const struct vm_snapshot *s = vm ? render_snapshot_of(d, vm) : NULL;
	bool start = json_is_true(json_object_get(arguments, "start"));

	if (!vm)
		return;
	if (!s)
		control_fail(client, "it was found just now; ask again after the next tick");
	else if (json_is_true(json_object_get(arguments, "undo")) && !ksmd_unmerge_undo(d->ksmd, s))
		control_fail(client, "\"%.200s\" was not un-merged", vm->name);
	else if (start && ksmd_unmerge(d->ksmd, s) < 0)
		control_fail(client, "\"%.200s\" cannot be un-merged: %s", vm->name, ksmd_unmerge_refusal(d->ksmd, s));
	else
		control_reply(client, render_unmerge(d, s));
}

static void run_reload(struct daemon *d, struct control_client *client, const json_t *arguments)
{
	struct config_error error;
	int r = daemon_reload(d, &error);

	(void)arguments;
	if (r < 0)
		control_fail(client, "nothing was changed: %s", error.text);
	else
		control_reply(client, json_pack("{s:s}", "reloaded", d->options.config_file ? d->options.config_file : ""));
}

static void run_balloon_status(struct daemon *d, struct control_client *client, const json_t *arguments)
{
	(void)arguments;
	control_reply(client, render_balloon_status(d));
}

static void run_doctor(struct daemon *d, struct control_client *client, const json_t *arguments)
{
	(void)arguments;
	control_reply(client, render_doctor(d));
}

static void run_admit(struct daemon *d, struct control_client *client, const json_t *arguments)
{
	const json_t *bytes = json_object_get(arguments, "bytes"), *node = json_object_get(arguments, "node");
	json_int_t size = json_integer_value(bytes), n = json_is_integer(node) ? json_integer_value(node) : -1;
	struct admit_answer answer;
	int r;

	if (!json_is_integer(bytes) || size <= 0 || size > INT64_C(1) << 52) {
		control_fail(client, "admit what? \"bytes\" is the size of a VM");
		return;
	}
	if (n < -1 || n > 4095) {
		control_fail(client, "\"node\" is no number of a NUMA node");
		return;
	}
	r = balloon_admit(d->balloon, &d->snapshot, (uint64_t)size, (int)n, &answer);
	if (r == -ENOENT)
		control_fail(client, "this host has no NUMA node %d", (int)n);
	else if (r < 0)
		control_fail(client, "the memory of the host is not known: %s", strerror(-r));
	else
		control_reply(client, render_admit(&answer));
}

static const struct {
	const char *name;
	command_fn run;
} commands[] = {
	{ "vms", run_vms },		    { "status", run_status },	{ "merge-status", run_merge_status },
	{ "estimate", run_estimate }, { "sharing", run_sharing }, { "explain", run_explain },
	{ "reload", run_reload },   { "unmerge", run_unmerge },
	{ "balloon-status", run_balloon_status }, { "admit", run_admit },
	{ "doctor", run_doctor }, { "ept", run_ept }, { "audit", run_audit },
	{ "translate", run_translate },
	{ "guest-processes", run_guest_processes },
};

void command_run(struct daemon *d, struct control_client *client, const char *name, const json_t *arguments)
{
	for (size_t i = 0; i < ARRAY_SIZE(commands); i++) {
		if (strcmp(commands[i].name, name) == 0) {
			commands[i].run(d, client, arguments);
			return;
		}
	}
	control_fail(client, "unknown command \"%.64s\"", name);
}

void command_abandon(struct daemon *d, struct control_client *client)
{
	estimate_abandon(d, client);
	translate_abandon(d, client);
	job_abandon(d, client);
	guest_processes_abandon(d, client);
}
