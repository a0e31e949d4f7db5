#include "ept/target.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/cleanup.h"
#include "ept/frame.h"
#include "ept/maps.h"
#include "ept/pagestate.h"
#include "vmm/registry.h"

#define GIB4 (UINT64_C(1) << 32)

static int layout_copy(struct ept_target *t, const struct ept_view *view)
{
	t->slots = calloc(view->slot_count, sizeof(*t->slots));
	t->regions = calloc(view->region_count, sizeof(*t->regions));
	if (!t->slots || !t->regions)
		return -ENOMEM;
	memcpy(t->slots, view->slots, view->slot_count * sizeof(*t->slots));
	memcpy(t->regions, view->regions, view->region_count * sizeof(*t->regions));
	t->slot_count = view->slot_count;
	t->region_count = view->region_count;
	t->gpa_known = view->source == EPT_FROM_QMP;
	return 0;
}

int ept_target_new(const struct ept_view *view, struct ept_target **ret_target)
{
	const struct vm *vm = view->vm;
	struct ept_target *t;
	int r;

	if (view->source == EPT_NOT_KNOWN)
		return -ENODATA;
	t = calloc(1, sizeof(*t));
	if (!t)
		return -ENOMEM;
	t->fs = view->fs;
	t->pid = vm->pid;
	t->pidfd = t->mem_fd = t->pagemap_fd = -1;
	memcpy(t->name, vm->name, sizeof(t->name));
	memcpy(t->uuid, vm->uuid, sizeof(t->uuid));
	r = layout_copy(t, view);
	if (r < 0)
		goto fail;
	r = t->pagemap_fd = pagestate_open(t->fs, t->pid);
	if (r < 0)
		goto fail;
	r = t->mem_fd = fsio_open(t->fs, O_RDONLY, "/proc/%d/mem", (int)t->pid);
	if (r < 0)
		goto fail;
	t->pidfd = fcntl(vm->pidfd, F_DUPFD_CLOEXEC, 0);
	r = t->pidfd < 0 ? -errno : 0;
	if (r == 0 && !ept_target_alive(t)) /* then the files above may be another's */
		r = -ESRCH;
	if (r < 0)
		goto fail;
	*ret_target = t;
	return 0;
fail:
	ept_target_free(t);
	return r == -ENOENT ? -ESRCH : r;
}

struct ept_target *ept_target_free(struct ept_target *t)
{
	if (!t)
		return NULL;
	if (t->pidfd >= 0)
		close(t->pidfd);
	if (t->mem_fd >= 0)
		close(t->mem_fd);
	if (t->pagemap_fd >= 0)
		close(t->pagemap_fd);
	free(t->slots);
	free(t->regions);
	free(t);
	return NULL;
}

bool ept_target_alive(const struct ept_target *t)
{
	struct pollfd ended = { .fd = t->pidfd, .events = POLLIN };

	return poll(&ended, 1, 0) == 0;
}

const struct ept_slot *ept_target_slot(const struct ept_target *t, uint64_t gpa)
{
	size_t low = 0, high = t->gpa_known ? t->slot_count : 0;

	while (low < high) {
		size_t mid = low + (high - low) / 2;
		const struct ept_slot *slot = &t->slots[mid];

		if (gpa < slot->gpa)
			high = mid;
		else if (gpa - slot->gpa >= slot->bytes)
			low = mid + 1;
		else
			return slot;
	}
	return NULL;
}

bool ept_target_low_ram(const struct ept_target *t)
{
	const struct ept_slot *last = &t->slots[t->slot_count - 1];

	return last->gpa < GIB4 && last->bytes <= GIB4 - last->gpa;
}

int ept_target_gpa(const struct ept_target *t, uint64_t hva, size_t *next, uint64_t *ret_gpa)
{
	for (size_t i = *next; t->gpa_known && i < t->slot_count; i++) {
		const struct ept_slot *slot = &t->slots[i];

		if (hva < slot->hva || hva - slot->hva >= slot->bytes)
			continue;
		*ret_gpa = slot->gpa + (hva - slot->hva);
		*next = i + 1;
		return 0;
	}
	return -ENXIO;
}

int ept_target_vma(const struct ept_target *t, uint64_t hva, struct vma *ret_vma)
{
	auto_free struct vma *vmas = NULL;
	size_t count;
	int r = ept_maps_read(t->fs, t->pid, &vmas, &count);

	if (r < 0)
		return r;
	if (!ept_target_alive(t))
		return -ESRCH;
	for (size_t i = 0; i < count; i++) {
		if (hva < vmas[i].end) {
			if (hva < vmas[i].start)
				break;
			*ret_vma = vmas[i];
			return 0;
		}
	}
	return -ENXIO;
}

/* Of memory without a frame: 1 it may be read, 0 it is zero, -errno. Reading a hole of a memory file would fill it. */
static int absent_readable(const struct ept_target *t, uint64_t hva)
{
	struct vma vma;
	int r = ept_target_vma(t, hva, &vma);

	if (r < 0)
		return r;
	if (vma.store) /* every frame that is mapped from a store has a content */
		return 1;
	return vma.inode == 0 && !vma.shared ? 0 : -ENODATA;
}

int ept_target_read(void *target, uint64_t gpa, void *buf, size_t n)
{
	const struct ept_target *t = target;
	const struct ept_slot *slot = ept_target_slot(t, gpa);
	uint64_t hva, entry;
	ssize_t got;
	int r;

	if (!slot || slot->bytes - (gpa - slot->gpa) < n)
		return -ENXIO;
	if (slot->backing == MEM_FILE)
		return -ENODATA;
	hva = slot->hva + (gpa - slot->gpa);
	r = frame_entry(t->pagemap_fd, hva, &entry);
	if (r == 0)
		r = entry & (FRAME_ENTRY_PRESENT | FRAME_ENTRY_SWAPPED) ? 1 : absent_readable(t, hva);
	if (r < 0)
		return r;
	if (r == 0) {
		memset(buf, 0, n);
		return 0;
	}
	got = pread(t->mem_fd, buf, n, (off_t)hva);
	if (got < 0)
		return -errno;
	return (size_t)got == n ? 0 : -ESRCH;
}
