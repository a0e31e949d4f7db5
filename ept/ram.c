#include "ept/ram.h"

#include <errno.h>
#include <fcntl.h>
#include <numaif.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/cleanup.h"
#include "ept/frame.h"
#include "ept/maps.h"
#include "ept/pagestate.h"
#include "ept/target.h"

#define KPF_KSM (UINT64_C(1) << 21) /* /proc/kpageflags */

/* Looked at together: 32 KiB of pagemap, 16 MiB of memory. */
#define BATCH_PAGES 4096u
#define RANGES 128u
/* Nodes that can be home; what is on one above counts as remote. */
#define NODES_MAX 1024u

struct loading {
	const struct ept_target *t;
	struct vma *vmas;
	size_t vma_count, vma_at;
	int flags_fd;
	uint64_t entries[BATCH_PAGES];
	void *addresses[BATCH_PAGES];
	int nodes[BATCH_PAGES];
	uint64_t by_node[NODES_MAX]; /* resident pages */
	bool hidden;
};

uint64_t ram_pages(const struct ept_target *t)
{
	uint64_t pages = 0;

	for (size_t i = 0; i < t->region_count; i++)
		pages += t->regions[i].bytes / PAGE_BYTES;
	return pages;
}

/* ---- one batch ---- */

/* Whether the page is in a mapping of a store; addresses ascend from call to call but for a new batch. */
static bool in_store(struct loading *l, uint64_t hva)
{
	if (l->vma_at > 0 && hva < l->vmas[l->vma_at - 1].end)
		l->vma_at = 0;
	while (l->vma_at < l->vma_count && l->vmas[l->vma_at].end <= hva)
		l->vma_at++;
	return l->vma_at < l->vma_count && l->vmas[l->vma_at].start <= hva && l->vmas[l->vma_at].store;
}

static bool is_ksm(const struct loading *l, uint64_t entry)
{
	uint64_t flags, number = entry & FRAME_ENTRY_NUMBER;

	/* KSM's frames are anonymous ones; of those it has, one may be mapped at one place only. */
	return l->flags_fd >= 0 && number && !(entry & FRAME_ENTRY_FILE) &&
	       pread(l->flags_fd, &flags, sizeof(flags), (off_t)(number * sizeof(flags))) == sizeof(flags) && (flags & KPF_KSM);
}

static uint64_t page_of(struct loading *l, uint64_t hva, uint64_t entry)
{
	uint64_t page = 0;

	if (entry & FRAME_ENTRY_PRESENT) {
		l->hidden |= (entry & FRAME_ENTRY_NUMBER) == 0;
		page = ATTRIBUTE_PRESENT | (entry & FRAME_ENTRY_NUMBER & ATTRIBUTE_FRAME);
		if (entry & FRAME_ENTRY_FILE ? in_store(l, hva) : is_ksm(l, entry))
			page |= ATTRIBUTE_MERGED;
	} else if (entry & FRAME_ENTRY_SWAPPED) {
		page = ATTRIBUTE_SWAPPED;
	} else if (in_store(l, hva)) {
		page = ATTRIBUTE_MERGED;
	}
	return page;
}

/* What only the page tables' walk of the kernel tells. */
static int huge_and_zero(struct loading *l, uint64_t hva, uint64_t count, uint64_t *pages)
{
	uint64_t end = hva + count * PAGE_BYTES, next = hva;
	struct page_range ranges[RANGES];

	while (next < end) {
		ssize_t n = pagestate_ranges(l->t->pagemap_fd, next, end, ranges, RANGES, &next);

		if (n < 0)
			return (int)n;
		for (ssize_t i = 0; i < n; i++) {
			uint64_t set = (ranges[i].flags & PAGE_HUGE ? ATTRIBUTE_HUGE : 0) |
				       (ranges[i].flags & PAGE_ZERO_MAPPED ? ATTRIBUTE_ZERO : 0);

			for (uint64_t at = ranges[i].start; set && at < ranges[i].end; at += PAGE_BYTES)
				if (pages[(at - hva) / PAGE_BYTES] & ATTRIBUTE_PRESENT)
					pages[(at - hva) / PAGE_BYTES] |= set;
		}
	}
	return 0;
}

static int nodes_look(struct loading *l, uint64_t hva, uint64_t count, uint64_t *pages)
{
	uint64_t n = 0;

	for (uint64_t i = 0; i < count; i++)
		if ((pages[i] & (ATTRIBUTE_PRESENT | ATTRIBUTE_ZERO)) == ATTRIBUTE_PRESENT)
			l->addresses[n++] = (void *)(uintptr_t)(hva + i * PAGE_BYTES);
	if (n == 0)
		return 0;
	if (move_pages(l->t->pid, n, l->addresses, NULL, l->nodes, 0) != 0)
		return -errno;
	for (uint64_t k = 0; k < n; k++) {
		uint64_t i = ((uint64_t)(uintptr_t)l->addresses[k] - hva) / PAGE_BYTES;

		if (l->nodes[k] < 0) /* it went meanwhile */
			continue;
		pages[i] |= (uint64_t)(l->nodes[k] + 1) << ATTRIBUTE_NODE_SHIFT;
		if ((unsigned)l->nodes[k] < NODES_MAX)
			l->by_node[l->nodes[k]]++;
	}
	return 0;
}

static int batch_load(struct loading *l, uint64_t hva, uint64_t count, uint64_t *pages)
{
	size_t want = count * sizeof(*l->entries);
	ssize_t n = pread(l->t->pagemap_fd, l->entries, want, (off_t)(hva / PAGE_BYTES * sizeof(*l->entries)));
	int r;

	if (n < 0)
		return -errno;
	if ((size_t)n != want)
		return -ESRCH;
	for (uint64_t i = 0; i < count; i++)
		pages[i] = page_of(l, hva + i * PAGE_BYTES, l->entries[i]);
	r = huge_and_zero(l, hva, count, pages);
	return r < 0 ? r : nodes_look(l, hva, count, pages);
}

/* ---- all ---- */

static int home_of(const struct loading *l)
{
	int home = -1;

	for (int i = 0; i < (int)NODES_MAX; i++)
		if (l->by_node[i] > (home < 0 ? 0 : l->by_node[home]))
			home = i;
	return home;
}

static int regions_load(struct loading *l, struct ram_watch *watch, uint64_t *pages)
{
	for (size_t i = 0; i < l->t->region_count; i++) {
		const struct mem_region *region = &l->t->regions[i];
		uint64_t count = region->bytes / PAGE_BYTES, n;

		for (uint64_t at = 0; at < count; at += n) {
			int r;

			n = count - at < BATCH_PAGES ? count - at : BATCH_PAGES;
			r = watch->cancel ? -ECANCELED : batch_load(l, region->hva + at * PAGE_BYTES, n, pages + at);
			if (r < 0)
				return r;
			watch->done_pages += n;
		}
		pages += count;
	}
	return ept_target_alive(l->t) ? 0 : -ESRCH; /* nodes and mappings are looked up by pid */
}

int ram_load(const struct ept_target *t, struct ram_watch *watch, struct attribute_pages *ret_pages)
{
	auto_free struct loading *l = calloc(1, sizeof(*l));
	uint64_t count = ram_pages(t);
	auto_free uint64_t *pages = calloc(count + 1, sizeof(*pages));
	int r;

	if (!l || !pages)
		return -ENOMEM;
	l->t = t;
	r = ept_maps_read(t->fs, t->pid, &l->vmas, &l->vma_count);
	if (r < 0)
		return r;
	l->flags_fd = fsio_open(t->fs, O_RDONLY, "/proc/kpageflags");
	r = regions_load(l, watch, pages);
	free(l->vmas);
	if (l->flags_fd >= 0)
		close(l->flags_fd);
	if (r == 0 && l->hidden)
		r = -EPERM;
	if (r < 0)
		return r;
	*ret_pages = (struct attribute_pages){ take_ptr(pages), count, home_of(l) };
	return 0;
}

/* ---- where a page is ---- */

/* How far it is to the slot that comes next. */
static uint64_t gap_pages(const struct ept_target *t, uint64_t gpa)
{
	for (size_t i = 0; i < t->slot_count; i++)
		if (t->slots[i].gpa > gpa)
			return (t->slots[i].gpa - gpa + PAGE_BYTES - 1) / PAGE_BYTES;
	return UINT64_MAX / PAGE_BYTES;
}

int ram_locate(void *target, uint64_t gpa, uint64_t *ret_index, uint64_t *ret_pages)
{
	const struct ept_target *t = target;
	const struct ept_slot *slot = ept_target_slot(t, gpa);
	uint64_t hva, first = 0;

	if (!slot) {
		*ret_pages = gap_pages(t, gpa);
		return -ENXIO;
	}
	hva = slot->hva + (gpa - slot->gpa);
	for (size_t i = 0; i < t->region_count; i++) {
		const struct mem_region *region = &t->regions[i];

		if (hva >= region->hva && hva - region->hva < region->bytes) {
			uint64_t left = slot->bytes - (gpa - slot->gpa), room = region->bytes - (hva - region->hva);

			*ret_index = first + (hva - region->hva) / PAGE_BYTES;
			*ret_pages = (left < room ? left : room) / PAGE_BYTES;
			return 0;
		}
		first += region->bytes / PAGE_BYTES;
	}
	*ret_pages = 1; /* every slot is in a region */
	return -ENXIO;
}
