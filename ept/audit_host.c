#include "ept/audit_host.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "core/cleanup.h"
#include "ept/frame.h"
#include "ept/maps.h"
#include "ept/target.h"

/* One read(2): 128 KiB of entries, 64 MiB of address space. */
#define BATCH_PAGES 16384u
/* Documentation/admin-guide/mm/pagemap.rst, /proc/kpageflags */
#define KPF_KSM (UINT64_C(1) << 21)
#define KPF_ZERO_PAGE (UINT64_C(1) << 24)

struct work {
	struct audit_host *h;
	struct audit *audit;
	int flags_fd;
	uint64_t *entries;
	uint64_t *stores; /* files that are stores of any VM */
	size_t store_count;
	/* Of the VM at work: */
	const struct ept_target *target;
	struct vma *vmas;
	size_t vma_count;
	uint32_t first;
	uint64_t zero_block; /* where the huge page of zeroes lies, in pages of 2 MiB; 0: not met yet */
};

static unsigned frame_flags(void *userdata, uint64_t frame)
{
	const struct work *w = userdata;
	uint64_t flags;

	if (pread(w->flags_fd, &flags, sizeof(flags), (off_t)(frame * sizeof(flags))) != sizeof(flags))
		return 0;
	return (flags & KPF_KSM ? AUDIT_FRAME_KSM : 0u) | (flags & KPF_ZERO_PAGE ? AUDIT_FRAME_ZERO : 0u);
}

static uint64_t target_pages(const struct ept_target *t)
{
	uint64_t pages = 0;

	for (size_t i = 0; i < t->region_count; i++)
		pages += t->regions[i].bytes / PAGE_BYTES;
	return pages;
}

/* ---- one VM ---- */

/* Entries come in ascending order: *at goes on from where it was. */
static const struct vma *vma_at(const struct work *w, uint64_t hva, size_t *at)
{
	while (*at < w->vma_count && w->vmas[*at].end <= hva)
		(*at)++;
	return *at < w->vma_count && w->vmas[*at].start <= hva ? &w->vmas[*at] : NULL;
}

/* The kernel's huge page of zeroes looks like a file's page in pagemap. */
static bool is_huge_zero(struct work *w, uint64_t frame)
{
	uint64_t block = frame / 512;

	if (block != w->zero_block && frame_flags(w, frame) & AUDIT_FRAME_ZERO)
		w->zero_block = block;
	return block == w->zero_block;
}

static int entry_take(struct work *w, const struct mem_region *region, uint64_t hva, uint32_t page, uint64_t entry,
		      size_t *vma_index)
{
	enum audit_page kind = AUDIT_ANON;
	uint64_t frame = entry & FRAME_ENTRY_NUMBER;
	int r;

	if (frame == 0)
		return -EPERM;
	if (entry & FRAME_ENTRY_FILE) {
		const struct vma *vma = vma_at(w, hva, vma_index);

		kind = vma && vma->store ? AUDIT_STORE : AUDIT_FILE;
		if (kind == AUDIT_FILE && region->backing == MEM_ANON && !is_huge_zero(w, frame)) {
			r = audit_add(w->audit, AUDIT_BACKING, page, frame);
			if (r < 0)
				return r;
		}
	}
	return audit_page(w->audit, page, frame, kind);
}

/* first: the number of the region's first page. */
static int region_take(struct work *w, const struct mem_region *region, uint32_t first)
{
	uint64_t pages = region->bytes / PAGE_BYTES;
	size_t vma = 0;
	int r = 0;

	for (uint64_t at = 0; at < pages && r == 0;) {
		uint64_t want = pages - at < BATCH_PAGES ? pages - at : BATCH_PAGES, page = region->hva / PAGE_BYTES + at;
		ssize_t n = pread(w->target->pagemap_fd, w->entries, want * sizeof(*w->entries),
				  (off_t)(page * sizeof(*w->entries)));

		if (w->h->cancel)
			return -ECANCELED;
		if (n < 0)
			return -errno;
		if (n < (ssize_t)sizeof(*w->entries))
			return -ESRCH;
		n /= (ssize_t)sizeof(*w->entries);
		for (uint64_t i = 0; i < (uint64_t)n && r == 0; i++)
			if (w->entries[i] & FRAME_ENTRY_PRESENT)
				r = entry_take(w, region, (page + i) * PAGE_BYTES, first + (uint32_t)(at + i), w->entries[i], &vma);
		at += (uint64_t)n;
		w->h->done_pages += (uint64_t)n;
	}
	return r;
}

static bool in_region(const struct ept_target *t, const struct vma *vma, uint64_t *ret_page)
{
	uint64_t before = 0;

	for (size_t i = 0; i < t->region_count; i++) {
		const struct mem_region *region = &t->regions[i];

		if (vma->start < region->hva + region->bytes && region->hva < vma->end) {
			*ret_page = before + (vma->start > region->hva ? (vma->start - region->hva) / PAGE_BYTES : 0);
			return true;
		}
		before += region->bytes / PAGE_BYTES;
	}
	return false;
}

static bool store_known(const struct work *w, uint64_t inode)
{
	for (size_t i = 0; i < w->store_count; i++)
		if (w->stores[i] == inode)
			return true;
	return false;
}

static int store_note(struct work *w, uint64_t inode)
{
	uint64_t *bigger;

	if (store_known(w, inode))
		return 0;
	bigger = realloc(w->stores, (w->store_count + 1) * sizeof(*bigger));
	if (!bigger)
		return -ENOMEM;
	w->stores = bigger;
	w->stores[w->store_count++] = inode;
	return 0;
}

static int mappings_take(struct work *w)
{
	uint64_t page, last = 0;
	int r = 0;

	for (size_t i = 0; i < w->vma_count && r == 0; i++) {
		const struct vma *vma = &w->vmas[i];

		/* A VM maps one store thousands of times in a row. */
		if (vma->store && vma->inode != last && in_region(w->target, vma, &page)) {
			last = vma->inode;
			r = audit_store(w->audit, vma->inode, w->first + (uint32_t)page);
		}
		if (r == 0 && vma->shared && vma->writable && vma->inode != 0 && store_known(w, vma->inode))
			r = audit_add(w->audit, AUDIT_WRITABLE, w->first, 0);
	}
	return r;
}

static int target_take(struct work *w, size_t vm)
{
	const struct audit_target *t = &w->h->targets[vm];
	uint64_t before = w->h->done_pages, pages = target_pages(t->target);
	auto_free struct vma *vmas = NULL;
	uint32_t first;
	int r = audit_vm(w->audit, t->domain, pages, &w->first);

	if (r < 0)
		return r;
	w->target = t->target;
	first = w->first;
	r = ept_maps_read(t->target->fs, t->target->pid, &vmas, &w->vma_count);
	w->vmas = vmas;
	if (r == 0)
		r = mappings_take(w);
	for (size_t i = 0; i < t->target->region_count && r == 0; i++) {
		r = region_take(w, &t->target->regions[i], first);
		first += (uint32_t)(t->target->regions[i].bytes / PAGE_BYTES);
	}
	w->h->done_pages = before + pages;
	if (r == -ECANCELED || r == -EPERM || r == -ENOMEM)
		return r;
	w->h->lost += r < 0 || !ept_target_alive(t->target);
	return 0;
}

/* ---- looking again ---- */

static struct audit_place place_of(const struct work *w, uint32_t number)
{
	uint64_t page;
	struct audit_place place = { .vm = audit_vm_of(w->audit, number, &page) };
	const struct ept_target *t = w->h->targets[place.vm].target;

	for (size_t i = 0; i < t->region_count; i++) {
		if (page < t->regions[i].bytes / PAGE_BYTES) {
			place.hva = t->regions[i].hva + page * PAGE_BYTES;
			break;
		}
		page -= t->regions[i].bytes / PAGE_BYTES;
	}
	return place;
}

static bool maps_frame(const struct work *w, const struct audit_place *place, uint64_t frame)
{
	uint64_t entry;

	return frame_entry(w->h->targets[place->vm].target->pagemap_fd, place->hva, &entry) == 0 &&
	       entry & FRAME_ENTRY_PRESENT && (entry & FRAME_ENTRY_NUMBER) == frame;
}

/* One VM has the frame before and after the other is seen to have it: both have it then. */
static bool still_true(const struct work *w, const struct audit_violation *v)
{
	if (v->frame == 0)
		return true;
	return maps_frame(w, &v->place, v->frame) &&
	       (!v->has_other || (maps_frame(w, &v->other, v->frame) && maps_frame(w, &v->place, v->frame)));
}

static int findings_confirm(struct work *w)
{
	struct audit_host *h = w->h;
	size_t count;
	const struct audit_finding *f = audit_findings(w->audit, &count);

	h->violations = calloc(count + 1, sizeof(*h->violations));
	if (!h->violations)
		return -ENOMEM;
	for (size_t i = 0; i < count; i++) {
		struct audit_violation v = { .why = f[i].why, .frame = f[i].frame, .place = place_of(w, f[i].page) };

		v.has_other = f[i].other != AUDIT_NONE;
		if (v.has_other)
			v.other = place_of(w, f[i].other);
		if (still_true(w, &v))
			h->violations[h->violation_count++] = v;
		else
			h->vanished++;
	}
	return 0;
}

/* Which files are stores: those that any VM has mapped as one. */
static int stores_find(struct work *w)
{
	for (size_t vm = 0; vm < w->h->target_count; vm++) {
		const struct ept_target *t = w->h->targets[vm].target;
		auto_free struct vma *vmas = NULL;
		size_t count;

		if (ept_maps_read(t->fs, t->pid, &vmas, &count) < 0)
			continue;
		for (size_t i = 0; i < count; i++)
			if (vmas[i].store && (i == 0 || vmas[i].inode != vmas[i - 1].inode) && store_note(w, vmas[i].inode) < 0)
				return -ENOMEM;
	}
	return 0;
}

int audit_host_run(struct audit_host *h)
{
	auto_free uint64_t *entries = calloc(BATCH_PAGES, sizeof(*entries));
	auto_close int flags_fd = fsio_open(h->fs, O_RDONLY, "/proc/kpageflags");
	struct work w = { .h = h, .flags_fd = flags_fd, .entries = entries };
	uint64_t total = 0;
	int r = entries ? 0 : -ENOMEM;

	if (flags_fd < 0)
		return flags_fd == -EACCES ? -EPERM : flags_fd;
	for (size_t i = 0; i < h->target_count; i++)
		total += target_pages(h->targets[i].target);
	h->total_pages = total;
	if (r == 0)
		r = audit_new(frame_flags, &w, &w.audit);
	if (r == 0)
		r = stores_find(&w);
	for (size_t i = 0; i < h->target_count && r == 0; i++)
		r = target_take(&w, i);
	if (r == 0)
		r = findings_confirm(&w);
	if (r == 0) {
		h->counts = *audit_counts(w.audit);
		h->bytes = audit_bytes(w.audit) + BATCH_PAGES * sizeof(*entries);
	}
	audit_free(w.audit);
	free(w.stores);
	return r;
}

void audit_host_end(struct audit_host *h)
{
	free(h->violations);
	h->violations = NULL;
}
