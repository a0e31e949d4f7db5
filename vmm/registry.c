#include "vmm/registry.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "core/clock.h"
#include "core/log.h"
#include "vmm/discover.h"
#include "vmm/entry.h"
#include "vmm/link.h"
#include "core/text.h"

const char *vm_state_name(enum vm_state state)
{
	static const char *const names[] = {
		[VM_FOUND] = "found", [VM_READY] = "ready",	[VM_NO_QMP] = "no-qmp", [VM_UNREACHABLE] = "unreachable",
		[VM_HUNG] = "hung",   [VM_GARBAGE] = "garbage", [VM_FLOOD] = "flood",
	};

	return names[state];
}

static void log_state(const struct vm *vm, const char *from, const char *to)
{
	log_info("vm name=%s uuid=%s pid=%d state %s->%s why=\"%s\"", vm->name, vm->uuid, vm->pid, from, to, vm->why);
}

void entry_set_state(struct vm_entry *e, enum vm_state state, const char *why)
{
	struct vm *vm = &e->vm;
	enum vm_state old = vm->state;

	text_copy(vm->why, sizeof(vm->why), why, strlen(why));
	if (state == old)
		return;
	vm->state = state;
	log_state(vm, vm_state_name(old), vm_state_name(state));
	if (state == VM_READY)
		e->registry->ops->ready(vm, e->registry->userdata);
	else
		e->registry->ops->changed(vm, e->registry->userdata);
}

void entry_set_flags(struct vm_entry *e, bool running, bool migrating)
{
	struct vm *vm = &e->vm;

	if (vm->running == running && vm->migrating == migrating)
		return;
	vm->running = running;
	vm->migrating = migrating;
	/* At debug level: how often this happens is the VMM's to choose. */
	log_debug("vm name=%s uuid=%s pid=%d running=%d migrating=%d", vm->name, vm->uuid, vm->pid, running, migrating);
	if (vm->state == VM_READY)
		e->registry->ops->changed(vm, e->registry->userdata);
}

void entry_set_name(struct vm_entry *e, const char *name)
{
	text_copy(e->vm.name, sizeof(e->vm.name), name, strlen(name));
	config_for_vm(e->registry->config, e->vm.name, &e->vm.settings);
}

/* Takes half-built ones, too. */
static void entry_free(struct vm_entry *e)
{
	if (!e)
		return;
	link_close(e);
	e->ended = sd_event_source_disable_unref(e->ended);
	if (e->vm.pidfd >= 0)
		close(e->vm.pidfd);
	free(e);
}

static void list_append(struct vmm_registry *r, struct vm *vm)
{
	if (r->last)
		r->last->next = vm;
	else
		r->first = vm;
	r->last = vm;
	r->count++;
}

static void list_remove(struct vmm_registry *r, struct vm *vm)
{
	struct vm *before = NULL;

	for (struct vm *v = r->first; v != vm; v = v->next)
		before = v;
	if (before)
		before->next = vm->next;
	else
		r->first = vm->next;
	if (r->last == vm)
		r->last = before;
	vm->next = NULL;
	r->count--;
}

static int on_process_ended(sd_event_source *source, int fd, uint32_t revents, void *userdata)
{
	struct vm_entry *e = userdata;
	struct vmm_registry *r = e->registry;

	(void)source;
	(void)fd;
	(void)revents;
	link_close(e);
	list_remove(r, &e->vm);
	text_copy(e->vm.why, sizeof(e->vm.why), "process ended", strlen("process ended"));
	log_state(&e->vm, vm_state_name(e->vm.state), "gone");
	r->ops->gone(&e->vm, r->userdata);
	entry_free(e);
	return 0;
}

static void entry_identify(struct vm_entry *e)
{
	struct vm *vm = &e->vm;
	char name[32];

	snprintf(vm->own_domain, sizeof(vm->own_domain), "=%d-%llu", vm->pid, (unsigned long long)vm->start_ticks);
	snprintf(name, sizeof(name), "pid-%d", vm->pid);
	entry_set_name(e, vm->cmdline.name[0] ? vm->cmdline.name : name);
	memcpy(vm->machine, vm->cmdline.machine, sizeof(vm->machine));
	if (vm->cmdline.uuid[0])
		memcpy(vm->uuid, vm->cmdline.uuid, sizeof(vm->uuid));
	else
		snprintf(vm->uuid, sizeof(vm->uuid), "%08x-0000-8000-8000-%012" PRIx64, (unsigned int)vm->pid,
			 vm->start_ticks & UINT64_C(0xffffffffffff));
}

static int on_found(const struct vmm_found *found, void *userdata)
{
	struct vmm_registry *r = userdata;
	struct vm_entry *e = calloc(1, sizeof(*e));
	const char *why = "QMP is being connected";
	struct vm *vm;

	if (!e) {
		close(found->pidfd);
		return -ENOMEM;
	}
	e->registry = r;
	vm = &e->vm;
	vm->pid = found->pid;
	vm->pidfd = found->pidfd;
	vm->uid = found->uid;
	vm->start_ticks = found->start_ticks;
	vm->found_ns = clock_mono_ns();
	vm->cmdline = found->cmdline;
	vm->ram_bytes = found->cmdline.ram_bytes;
	vm->running = true;
	if (r->count >= VM_COUNT_MAX) {
		if (!r->full_logged)
			log_warning("more than %d VMs, ignoring: pid %d and later ones", VM_COUNT_MAX, vm->pid);
		r->full_logged = true;
		entry_free(e);
		return 0;
	}
	if (sd_event_add_io(r->loop, &e->ended, vm->pidfd, EPOLLIN, on_process_ended, e) < 0) {
		entry_free(e);
		return -ENOMEM;
	}
	entry_identify(e);
	vm->state = link_path(e, &why) == 0 ? VM_FOUND : VM_NO_QMP;
	text_copy(vm->why, sizeof(vm->why), why, strlen(why));
	list_append(r, vm);
	log_state(vm, "new", vm_state_name(vm->state));
	r->ops->added(vm, r->userdata);
	if (vm->state == VM_FOUND)
		link_start(e);
	return 0;
}

static bool is_known(pid_t pid, void *userdata)
{
	const struct vmm_registry *r = userdata;

	for (const struct vm *vm = r->first; vm; vm = vm->next)
		if (vm->pid == pid)
			return true;
	return false;
}

int vmm_registry_new(sd_event *loop, const struct fsio *fs, const struct config *config,
		     const struct vmm_registry_ops *ops, void *userdata, struct vmm_registry **ret_registry)
{
	static const struct vmm_sweep_ops sweep_ops = { .known = is_known, .found = on_found };
	struct vmm_registry *r = calloc(1, sizeof(*r));

	if (!r)
		return -ENOMEM;
	r->loop = sd_event_ref(loop);
	r->fs = fs;
	r->config = config;
	r->ops = ops;
	r->userdata = userdata;
	if (vmm_sweep_new(fs, &sweep_ops, r, &r->sweep) < 0) {
		vmm_registry_free(r);
		return -ENOMEM;
	}
	*ret_registry = r;
	return 0;
}

struct vmm_registry *vmm_registry_free(struct vmm_registry *r)
{
	if (!r)
		return NULL;
	while (r->first) {
		struct vm *vm = r->first;

		list_remove(r, vm);
		entry_free(vm_entry(vm));
	}
	vmm_sweep_free(r->sweep);
	sd_event_unref(r->loop);
	free(r);
	return NULL;
}

int vmm_registry_discover(struct vmm_registry *r)
{
	int result;

	for (struct vm *vm = r->first; vm; vm = vm->next)
		link_poll(vm_entry(vm));
	result = vmm_sweep_run(r->sweep);
	return result < 0 ? result : r->count;
}

void vmm_registry_reconfigure(struct vmm_registry *r)
{
	for (struct vm *vm = r->first; vm; vm = vm->next) {
		config_for_vm(r->config, vm->name, &vm->settings);
		link_reopen(vm_entry(vm));
	}
}

struct vm *vmm_registry_first(struct vmm_registry *r)
{
	return r->first;
}

int vmm_registry_find(struct vmm_registry *r, const char *text, struct vm **ret_vm)
{
	struct vm *found = NULL;

	for (struct vm *vm = r->first; vm; vm = vm->next) {
		char pid[16];

		snprintf(pid, sizeof(pid), "%d", vm->pid);
		if (strcmp(vm->name, text) != 0 && strcasecmp(vm->uuid, text) != 0 && strcmp(pid, text) != 0)
			continue;
		if (found)
			return -ENOTUNIQ;
		found = vm;
	}
	if (!found)
		return -ENOENT;
	*ret_vm = found;
	return 0;
}

bool vmm_registry_settling(const struct vmm_registry *r)
{
	for (const struct vm *vm = r->first; vm; vm = vm->next)
		if (vm->state == VM_FOUND)
			return true;
	return false;
}
