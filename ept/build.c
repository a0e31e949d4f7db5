#include "ept/build.h"

#include <cpuid.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/cleanup.h"
#include "ept/maps.h"
#include "ept/pagestate.h"
#include "ept/target.h"

#define HUGE_PAGES 512u
#define HUGE_BYTES (UINT64_C(2) << 20)
#define GIB_BYTES (UINT64_C(1) << 30)
#define GIB_PAGES (HUGE_PAGES * HUGE_PAGES)
/* Looked at in one go: 64 KiB of entries, 32 MiB of guest memory. */
#define WINDOW_PAGES 8192u
#define RANGES_MAX 128u
/* Documentation/admin-guide/mm/pagemap.rst, /proc/kpageflags */
#define KPF_KSM (UINT64_C(1) << 21)

/* What one update works with. */
struct look {
	struct ept_build *b;
	struct vma *vmas;
	size_t vma_count;
	int flags_fd; /* /proc/kpageflags; -1: no page of KSM is there to be found */
	struct window {
		uint64_t gpa, hva;
		unsigned pages;
		uint64_t entries[WINDOW_PAGES]; /* of pagemap */
		uint8_t flags[WINDOW_PAGES];	/* enum page_flag; 0 where pagestate tells of none */
	} w;
};

/* ---- the host ---- */

/* "Hygo": newer than some compilers' <cpuid.h>. Its processors are AMD's. */
#define VENDOR_HYGON_EBX 0x6f677948u

void ept_build_host_options(struct table_options *ret_options)
{
	unsigned a = 0, b = 0, c = 0, d = 0;
	struct table_options o = { .format = &table_format_ept, .levels = 4, .phys_bits = 52, .accessed_dirty = true };

	if (__get_cpuid(0, &a, &b, &c, &d) && (b == signature_AMD_ebx || b == VENDOR_HYGON_EBX))
		o.format = &table_format_npt;
	if (__get_cpuid(0x80000001, &a, &b, &c, &d))
		o.gib_pages = d >> 26 & 1;
	if (__get_cpuid(0x80000008, &a, &b, &c, &d) && (a & 0xff) >= 36 && (a & 0xff) <= 52)
		o.phys_bits = a & 0xff;
	*ret_options = o;
}

/* ---- looking ---- */

static int entries_read(const struct ept_target *t, struct window *w)
{
	size_t want = w->pages * sizeof(w->entries[0]), have = 0;

	while (have < want) {
		ssize_t n = pread(t->pagemap_fd, (char *)w->entries + have, want - have,
				  (off_t)(w->hva / PAGE_BYTES * sizeof(w->entries[0]) + have));

		if (n < 0)
			return -errno;
		if (n == 0)
			return -ESRCH;
		have += (size_t)n;
	}
	return 0;
}

static int flags_read(const struct ept_target *t, struct window *w)
{
	uint64_t end = w->hva + (uint64_t)w->pages * PAGE_BYTES;
	struct page_range ranges[RANGES_MAX];

	memset(w->flags, 0, w->pages);
	for (uint64_t at = w->hva; at < end;) {
		ssize_t n = pagestate_ranges(t->pagemap_fd, at, end, ranges, RANGES_MAX, &at);

		if (n < 0)
			return (int)n;
		for (ssize_t i = 0; i < n; i++)
			memset(w->flags + (ranges[i].start - w->hva) / PAGE_BYTES, (int)ranges[i].flags,
			       (ranges[i].end - ranges[i].start) / PAGE_BYTES);
	}
	return 0;
}

static const struct vma *vma_at(const struct look *l, uint64_t hva)
{
	size_t low = 0, high = l->vma_count;

	while (low < high) {
		size_t mid = low + (high - low) / 2;

		if (hva < l->vmas[mid].start)
			high = mid;
		else if (hva >= l->vmas[mid].end)
			low = mid + 1;
		else
			return &l->vmas[mid];
	}
	return NULL;
}

static uint64_t frame_of(uint64_t entry)
{
	return entry & FRAME_ENTRY_PRESENT ? entry & FRAME_ENTRY_NUMBER : 0;
}

/* Bit i of kinds[i / 64]: page i of the block is KSM's. Frames in a row are asked for together. */
static void ksm_look(const struct look *l, const uint64_t *entries, unsigned pages, uint64_t ksm[HUGE_PAGES / 64])
{
	uint64_t flags[HUGE_PAGES];

	memset(ksm, 0, HUGE_PAGES / 8);
	for (unsigned i = 0; l->flags_fd >= 0 && i < pages;) {
		uint64_t first = frame_of(entries[i]);
		unsigned n = 1;
		ssize_t got;

		if (first == 0 || entries[i] & FRAME_ENTRY_FILE) {
			i++;
			continue;
		}
		while (i + n < pages && frame_of(entries[i + n]) == first + n)
			n++;
		got = pread(l->flags_fd, flags, n * sizeof(flags[0]), (off_t)(first * sizeof(flags[0])));
		for (ssize_t k = 0; k < got / (ssize_t)sizeof(flags[0]); k++)
			if (flags[k] & KPF_KSM)
				ksm[(i + (size_t)k) / 64] |= UINT64_C(1) << (i + (size_t)k) % 64;
		i += n;
	}
}

static enum frame_kind kind_of(const struct vma *vma, uint64_t entry, unsigned flags, bool ksm)
{
	if (flags & PAGE_ZERO_MAPPED)
		return FRAME_ZERO;
	if (ksm)
		return FRAME_KSM;
	if (entry & FRAME_ENTRY_FILE)
		return vma && vma->store ? FRAME_STORE : FRAME_FILE;
	return FRAME_OWN;
}

static struct table_leaf leaf_of(const struct ept_build *b, const struct vma *vma, uint64_t entry, enum frame_kind kind)
{
	bool own = kind == FRAME_OWN && entry & FRAME_ENTRY_EXCLUSIVE, shared = kind == FRAME_FILE && vma && vma->shared;
	struct table_leaf leaf = {
		.address = frame_of(entry) * PAGE_BYTES,
		.perms = TABLE_READ | TABLE_EXECUTE,
		.memory_type = TABLE_WB,
		.ignore_pat = ept_table_options(b->table)->format->has_ignore_pat,
		.tag = (uint8_t)kind,
	};

	if (vma && vma->writable && (own || shared))
		leaf.perms |= TABLE_WRITE;
	return leaf;
}

/* ---- putting it into the table ---- */

static void changed(struct ept_build *b, uint64_t gpa, uint64_t pages)
{
	if (gpa != b->changed_end || b->changed_pages == 0)
		b->changed_ranges++;
	b->changed_pages += pages;
	b->changed_end = gpa + pages * PAGE_BYTES;
}

static int leaf_put(struct ept_build *b, uint64_t gpa, unsigned level, const struct table_leaf *leaf)
{
	const struct table_format *f = ept_table_options(b->table)->format;
	struct table_walk w;
	int r;

	b->census.leaves[level - 1]++;
	if (ept_table_lookup(b->table, gpa, 0, &w) == TABLE_MAPPED && w.level == level && w.entry == f->encode(level, leaf))
		return 0;
	r = ept_table_map(b->table, gpa, level, leaf);
	if (r == 0)
		changed(b, gpa, table_level_bytes(level) / PAGE_BYTES);
	return r;
}

static int count_one(void *userdata, uint64_t gpa, unsigned level, const struct table_leaf *leaf)
{
	(void)gpa;
	(void)level;
	(void)leaf;
	(*(uint64_t *)userdata)++;
	return 0;
}

/* pages that are not present, in a block of 2 MiB at most. */
static int hole_put(struct ept_build *b, uint64_t gpa, unsigned pages)
{
	uint64_t bytes = (uint64_t)pages * PAGE_BYTES, mapped = 0;
	struct table_walk w;
	int r;

	ept_table_lookup(b->table, gpa, 0, &w);
	if (w.perms == 0 && (w.level > 1 || pages == 1))
		return 0; /* no table, so the whole block is empty; or one page */
	if (w.perms != 0 && w.level > 1)
		mapped = pages; /* part of a large page */
	else
		ept_table_each(b->table, gpa, gpa + bytes, count_one, &mapped);
	if (mapped == 0)
		return 0;
	r = ept_table_unmap(b->table, gpa, bytes);
	if (r == 0)
		changed(b, gpa, mapped);
	return r;
}

static void count_present(struct ept_census *c, enum frame_kind kind, unsigned size, uint64_t pages)
{
	c->present += pages;
	c->kinds[kind] += pages;
	c->host[size] += pages;
}

/* Whether the host maps the whole block by one entry, and so may the second stage. */
static bool block_is_huge(uint64_t gpa, uint64_t hva, const uint64_t *entries, const uint8_t *flags)
{
	uint64_t first = frame_of(entries[0]);

	if ((gpa | hva) % HUGE_BYTES != 0 || first == 0 || first % HUGE_PAGES != 0)
		return false;
	for (unsigned i = 0; i < HUGE_PAGES; i++)
		if (!(flags[i] & PAGE_HUGE) || frame_of(entries[i]) != first + i)
			return false;
	return true;
}

static int small_put(struct look *l, uint64_t gpa, uint64_t hva, unsigned at, unsigned pages)
{
	const uint64_t *entries = l->w.entries + at;
	struct ept_census *c = &l->b->census;
	uint64_t ksm[HUGE_PAGES / 64];
	const struct vma *vma = NULL;
	unsigned hole = 0;
	int r = 0;

	ksm_look(l, entries, pages, ksm);
	for (unsigned i = 0; i <= pages && r == 0; i++) {
		uint64_t page = hva + (uint64_t)i * PAGE_BYTES;
		struct table_leaf leaf;
		enum frame_kind kind;

		if (i < pages && !(entries[i] & FRAME_ENTRY_PRESENT)) {
			c->swapped += entries[i] & FRAME_ENTRY_SWAPPED ? 1 : 0;
			hole++;
			continue;
		}
		if (hole > 0)
			r = hole_put(l->b, gpa + (uint64_t)(i - hole) * PAGE_BYTES, hole);
		hole = 0;
		if (i == pages || r < 0)
			break;
		if (frame_of(entries[i]) == 0)
			return -EPERM;
		if (!vma || page >= vma->end)
			vma = vma_at(l, page);
		kind = kind_of(vma, entries[i], l->w.flags[at + i], ksm[i / 64] >> i % 64 & 1);
		leaf = leaf_of(l->b, vma, entries[i], kind);
		count_present(c, kind, l->w.flags[at + i] & PAGE_HUGE ? 1 : 0, 1);
		r = leaf_put(l->b, gpa + (uint64_t)i * PAGE_BYTES, 1, &leaf);
	}
	return r;
}

/* pages of the window from at on, all in one block of 2 MiB. */
static int block_put(struct look *l, unsigned at, unsigned pages)
{
	uint64_t gpa = l->w.gpa + (uint64_t)at * PAGE_BYTES, hva = l->w.hva + (uint64_t)at * PAGE_BYTES;
	const uint64_t *entries = l->w.entries + at;
	const uint8_t *flags = l->w.flags + at;
	const struct vma *vma;
	struct table_leaf leaf;
	enum frame_kind kind;

	if (pages < HUGE_PAGES || !block_is_huge(gpa, hva, entries, flags))
		return small_put(l, gpa, hva, at, pages);
	vma = vma_at(l, hva);
	kind = kind_of(vma, entries[0], flags[0], false);
	leaf = leaf_of(l->b, vma, entries[0], kind);
	count_present(&l->b->census, kind, 1, HUGE_PAGES);
	return leaf_put(l->b, gpa, 2, &leaf);
}

static int window_put(struct look *l)
{
	int r = entries_read(l->b->target, &l->w);

	if (r == 0)
		r = flags_read(l->b->target, &l->w);
	for (unsigned at = 0; at < l->w.pages && r == 0;) {
		uint64_t gpa = l->w.gpa + (uint64_t)at * PAGE_BYTES;
		unsigned pages = HUGE_PAGES - (unsigned)(gpa / PAGE_BYTES % HUGE_PAGES);

		if (pages > l->w.pages - at)
			pages = l->w.pages - at;
		r = block_put(l, at, pages);
		at += pages;
	}
	return r;
}

/* A page of 1 GiB, which only hugetlb has. 1: done; 0: it is none; -errno. */
static int gib_put(struct look *l, const struct ept_slot *slot, uint64_t gpa, uint64_t hva)
{
	const struct vma *vma = vma_at(l, hva);
	struct table_leaf leaf;
	uint64_t entry;
	struct frame f;
	int r;

	if (slot->backing != MEM_HUGETLB || (gpa | hva) % GIB_BYTES != 0 || slot->bytes - (gpa - slot->gpa) < GIB_BYTES ||
	    !ept_table_options(l->b->table)->gib_pages)
		return 0;
	r = frame_look(l->b->target, hva, &f);
	if (r == 0)
		r = frame_entry(l->b->target->pagemap_fd, hva, &entry);
	if (r < 0)
		return r == -EAGAIN ? 0 : r;
	if (f.state != FRAME_PRESENT || f.page_bytes != GIB_BYTES || frame_of(entry) == 0 || frame_of(entry) % GIB_PAGES != 0)
		return 0;
	leaf = leaf_of(l->b, vma, entry, f.kind);
	count_present(&l->b->census, f.kind, 2, GIB_PAGES);
	r = leaf_put(l->b, gpa, 3, &leaf);
	return r < 0 ? r : 1;
}

static int slot_put(struct look *l, const struct ept_slot *slot)
{
	for (uint64_t at = 0; at < slot->bytes;) {
		uint64_t gpa = slot->gpa + at, hva = slot->hva + at, left = (slot->bytes - at) / PAGE_BYTES;
		uint64_t aligned = WINDOW_PAGES - gpa / PAGE_BYTES % WINDOW_PAGES;
		int r = gib_put(l, slot, gpa, hva);

		if (r < 0)
			return r;
		if (r == 0) {
			l->w.gpa = gpa;
			l->w.hva = hva;
			l->w.pages = (unsigned)(left < aligned ? left : aligned);
			r = window_put(l);
			if (r < 0)
				return r;
			at += (uint64_t)l->w.pages * PAGE_BYTES;
			l->b->done_pages += l->w.pages;
		} else {
			at += GIB_BYTES;
			l->b->done_pages += GIB_PAGES;
		}
		if (l->b->cancel)
			return -ECANCELED;
	}
	return 0;
}

/* ---- by mapping, as smaps has it ---- */

static int mapping_count(const struct ept_target *t, const struct vma *vma, struct ept_census *c)
{
	struct page_range ranges[RANGES_MAX];

	for (uint64_t at = vma->start; at < vma->end;) {
		ssize_t n = pagestate_ranges(t->pagemap_fd, at, vma->end, ranges, RANGES_MAX, &at);

		if (n < 0)
			return (int)n;
		for (ssize_t i = 0; i < n; i++) {
			uint64_t pages = (ranges[i].end - ranges[i].start) / PAGE_BYTES;
			unsigned flags = ranges[i].flags;

			if (flags & PAGE_SWAPPED)
				c->mapping_swapped += pages;
			if (!(flags & PAGE_PRESENT) || flags & PAGE_ZERO_MAPPED)
				continue; /* the zero page is nobody's resident memory */
			c->rss += pages;
			if (flags & PAGE_HUGE && !(flags & PAGE_FILE))
				c->anon_huge += pages;
		}
	}
	return 0;
}

static int mappings_count(const struct look *l)
{
	const struct ept_target *t = l->b->target;
	size_t region = 0;
	int r = 0;

	for (size_t i = 0; i < l->vma_count && r == 0; i++) {
		while (region < t->region_count && t->regions[region].hva + t->regions[region].bytes <= l->vmas[i].start)
			region++;
		if (region < t->region_count && t->regions[region].hva < l->vmas[i].end &&
		    t->regions[region].backing != MEM_HUGETLB)
			r = mapping_count(t, &l->vmas[i], &l->b->census);
	}
	return r;
}

/* ---- the whole ---- */

int ept_build_init(struct ept_build *b, const struct ept_target *target, const struct table_options *options)
{
	*b = (struct ept_build){ .target = target };
	if (!target->gpa_known)
		return -ENODATA;
	return ept_table_new(options, &b->table);
}

void ept_build_end(struct ept_build *b)
{
	b->table = ept_table_free(b->table);
}

/* Asking of what kind each frame is takes a call for each that lies alone: only where there is one to be found. */
static bool has_ksm_pages(const struct ept_target *t)
{
	uint64_t pages;

	return fsio_read_u64(t->fs, &pages, "/proc/%d/ksm_merging_pages", (int)t->pid) < 0 || pages > 0;
}

int ept_build_update(struct ept_build *b)
{
	const struct ept_target *t = b->target;
	auto_free struct look *l = calloc(1, sizeof(*l));
	auto_free struct vma *vmas = NULL;
	auto_close int flags_fd = -1;
	uint64_t total = 0;
	int r;

	if (!l)
		return -ENOMEM;
	b->census = (struct ept_census){ 0 };
	b->changed_pages = b->changed_ranges = b->changed_end = 0;
	for (size_t i = 0; i < t->slot_count; i++)
		total += t->slots[i].bytes / PAGE_BYTES;
	b->census.pages = total;
	b->total_pages = total;
	b->done_pages = 0;
	r = ept_maps_read(t->fs, t->pid, &vmas, &l->vma_count);
	if (r < 0)
		return ept_target_alive(t) ? r : -ESRCH;
	flags_fd = has_ksm_pages(t) ? fsio_open(t->fs, O_RDONLY, "/proc/kpageflags") : -1;
	l->b = b;
	l->vmas = vmas;
	l->flags_fd = flags_fd;
	for (size_t i = 0; i < t->slot_count && r == 0; i++)
		r = slot_put(l, &t->slots[i]);
	if (r == 0)
		r = mappings_count(l);
	return ept_target_alive(t) ? r : -ESRCH;
}
