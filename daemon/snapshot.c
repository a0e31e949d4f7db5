/* The part of the snapshot that no module owns: the host's memory, and who the VMs are. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/clock.h"
#include "daemon/daemon.h"
#include "ept/slots.h"

static int host_fill(const struct daemon *d, struct host_snapshot *s)
{
	char text[8192];
	ssize_t n = fsio_read(&d->fs, text, sizeof(text), "/proc/meminfo");
	const struct {
		const char *key;
		uint64_t *bytes;
	} fields[] = { { "MemTotal", &s->mem_total_bytes },
		       { "MemAvailable", &s->mem_available_bytes },
		       { "SwapFree", &s->swap_free_bytes } };

	if (n < 0)
		return (int)n;
	for (size_t i = 0; i < sizeof(fields) / sizeof(fields[0]); i++) {
		uint64_t kib;
		int r = fsio_field_u64(text, fields[i].key, &kib);

		if (r < 0)
			return r;
		*fields[i].bytes = kib * 1024;
	}
	return 0;
}

static int vm_fill(const struct vm *vm, struct vm_snapshot *out)
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
	};
	return 0;
}

static int vms_fill(const struct daemon *d, struct host_snapshot *s)
{
	size_t cap = 0;

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
		r = vm_fill(vm, &s->vms[s->vm_count]);
		if (r < 0)
			return r;
		s->vm_count++;
	}
	return 0;
}

int snapshot_take(const struct daemon *d, struct host_snapshot *ret_snapshot)
{
	struct host_snapshot s = { .taken_ns = clock_mono_ns() };
	int r = host_fill(d, &s);

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
