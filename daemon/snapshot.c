/* The part of the snapshot that no module owns: the host's memory, and who the VMs are. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/cgroup.h"
#include "core/clock.h"
#include "core/hostmem.h"
#include "core/log.h"
#include "daemon/daemon.h"
#include "ept/slots.h"

/* An unreadable cgroup is said once, and the host's own figures stand in for it. */
int snapshot_host(struct daemon *d, struct host_snapshot *s)
{
	const char *path = d->config.host_cgroup;
	struct cgroup_memory memory;
	char why[CGROUP_PATH_MAX + 128];
	int r = hostmem_read(&d->fs, s);

	if (r < 0 || !*path)
		return r;
	r = cgroup_memory_read(&d->fs, path, &memory, why, sizeof(why));
	if (r == 0)
		hostmem_narrow(s, &memory);
	if (r < 0 && !d->cgroup_failed)
		log_error("[host] cgroup = %s: using all of the host's memory instead: %s", path, why);
	else if (r == 0 && d->cgroup_failed)
		log_info("[host] cgroup = %s: can be read now", path);
	d->cgroup_failed = r < 0;
	return 0;
}

static int vm_fill(const struct daemon *d, const char *own_cgroup, const struct vm *vm, struct vm_snapshot *out)
{
	const struct ept_view *view = vm->ept;
	struct mem_region *regions = NULL;

	/* A copy: the view may be replaced while the snapshot is in use. */
	if (view && view->region_count > 0) {
		regions = calloc(view->region_count, sizeof(*regions));
		if (!regions)
			return -ENOMEM;
		memcpy(regions, view->regions, view->region_count * sizeof(*regions));
	}
	*out = (struct vm_snapshot){
		.name = vm->name,
		.uuid = vm->uuid,
		.domain = *vm->settings.domain ? vm->settings.domain : vm->own_domain,
		.pid = vm->pid,
		.pidfd = vm->pidfd,
		.start_ticks = vm->start_ticks,
		.regions = regions,
		.region_count = regions ? view->region_count : 0,
		.merge_allowed = vm->settings.merge,
		.engine = (enum merge_engine)vm->settings.engine,
		.mem_merge = vm->cmdline.mem_merge,
		.mem_lock = vm->cmdline.mem_lock,
		.migrating = vm->migrating,
		.running = vm->running,
		.ram_bytes = vm->ram_bytes,
		.found_ns = vm->found_ns,
		.balloon_allowed = vm->settings.balloon,
		.reservation_bytes = vm->settings.reservation_bytes,
		.limit_bytes = vm->settings.limit_bytes,
		.shares = vm->settings.shares,
		.pressure = cgroup_pressure_of(&d->fs, vm->pid, own_cgroup),
	};
	return 0;
}

static int vms_fill(const struct daemon *d, struct host_snapshot *s)
{
	char own_cgroup[CGROUP_PATH_MAX] = "";
	size_t cap = 0;

	(void)cgroup_path_read(&d->fs, 0, own_cgroup); /* unknown: so is all that depends on it */
	for (struct vm *vm = vmm_registry_first(d->registry); vm; vm = vm->next) {
		int r;

		if (s->vm_count == cap) {
			struct vm_snapshot *bigger;

			cap = cap ? cap * 2 : 16;
			bigger = reallocarray(s->vms, cap, sizeof(*bigger));
			if (!bigger)
				return -ENOMEM;
			s->vms = bigger;
		}
		r = vm_fill(d, own_cgroup, vm, &s->vms[s->vm_count]);
		if (r < 0)
			return r;
		s->vm_count++;
	}
	return 0;
}

int snapshot_take(struct daemon *d, struct host_snapshot *ret_snapshot)
{
	struct host_snapshot s = { .taken_ns = clock_mono_ns() };
	int r = snapshot_host(d, &s);

	if (r == 0)
		r = vms_fill(d, &s);
	if (r < 0) {
		snapshot_free(&s);
		return r;
	}
	*ret_snapshot = s;
	return 0;
}

void snapshot_drop_vm(struct host_snapshot *s, const struct vm *vm)
{
	size_t kept = 0;

	for (size_t i = 0; i < s->vm_count; i++) {
		if (s->vms[i].pid == vm->pid && s->vms[i].start_ticks == vm->start_ticks)
			free((void *)s->vms[i].regions);
		else
			s->vms[kept++] = s->vms[i];
	}
	s->vm_count = kept;
}

void snapshot_free(struct host_snapshot *s)
{
	for (size_t i = 0; i < s->vm_count; i++)
		free((void *)s->vms[i].regions);
	free(s->vms);
	*s = (struct host_snapshot){ 0 };
}
