#include "ept/audit.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/cleanup.h"

/* 128 MiB of frames for each piece of the table: 160 KiB. */
#define PIECE_SHIFT 15
#define PIECE_FRAMES (1u << PIECE_SHIFT)
#define PIECES_MAX (UINT64_C(1) << (40 - PIECE_SHIFT)) /* frame numbers have 40 bits at most: 52 of an address */

/* What is remembered of a frame, beside who had it first. */
#define KIND_MASK 3u
#define ASKED 4u
#define IS_KSM 8u
#define IS_ZERO 16u

struct piece {
	uint32_t page[PIECE_FRAMES]; /* plus 1; 0: nobody has it */
	uint8_t flags[PIECE_FRAMES];
};

struct vm_pages {
	const char *domain;
	uint32_t first;
	uint64_t pages;
};

struct store_user {
	uint64_t inode;
	size_t vm;
	uint32_t page;
};

struct audit {
	audit_frame_fn frame;
	void *userdata;
	struct piece **pieces;
	size_t piece_cap, piece_count;
	struct vm_pages *vms;
	size_t vm_count, vm_cap;
	struct store_user *stores; /* the first VM of each */
	size_t store_count, store_cap;
	struct audit_finding *findings;
	size_t finding_count, finding_cap;
	struct audit_counts counts;
};

/* Room for one more. 0 or -ENOMEM. */
static int grow(void **array, size_t *cap, size_t count, size_t size)
{
	size_t want = *cap ? *cap * 2 : 16;
	void *bigger;

	if (count < *cap)
		return 0;
	bigger = realloc(*array, want * size);
	if (!bigger)
		return -ENOMEM;
	*array = bigger;
	*cap = want;
	return 0;
}

int audit_new(audit_frame_fn frame, void *userdata, struct audit **ret_audit)
{
	struct audit *a = calloc(1, sizeof(*a));

	if (!a)
		return -ENOMEM;
	a->frame = frame;
	a->userdata = userdata;
	*ret_audit = a;
	return 0;
}

struct audit *audit_free(struct audit *a)
{
	if (!a)
		return NULL;
	for (size_t i = 0; i < a->piece_cap; i++)
		free(a->pieces[i]);
	free(a->pieces);
	free(a->vms);
	free(a->stores);
	free(a->findings);
	free(a);
	return NULL;
}

int audit_vm(struct audit *a, const char *domain, uint64_t pages, uint32_t *ret_first)
{
	const struct vm_pages *last = a->vm_count ? &a->vms[a->vm_count - 1] : NULL;
	uint64_t first = last ? last->first + last->pages : 0;
	int r;

	if (pages > AUDIT_PAGES_MAX || first > AUDIT_PAGES_MAX - pages)
		return -E2BIG;
	r = grow((void **)&a->vms, &a->vm_cap, a->vm_count, sizeof(*a->vms));
	if (r < 0)
		return r;
	a->vms[a->vm_count++] = (struct vm_pages){ domain, (uint32_t)first, pages };
	*ret_first = (uint32_t)first;
	return 0;
}

size_t audit_vm_of(const struct audit *a, uint32_t page, uint64_t *ret_page)
{
	size_t low = 0, high = a->vm_count;

	/* The last VM that begins at or before the page; of those without pages none is meant. */
	while (high - low > 1) {
		size_t mid = low + (high - low) / 2;

		if (a->vms[mid].first <= page)
			low = mid;
		else
			high = mid;
	}
	*ret_page = page - a->vms[low].first;
	return low;
}

static int find(struct audit *a, enum audit_why why, uint64_t frame, uint32_t page, uint32_t other)
{
	int r;

	if (a->finding_count == AUDIT_FINDINGS_MAX) {
		a->counts.more++;
		return 0;
	}
	r = grow((void **)&a->findings, &a->finding_cap, a->finding_count, sizeof(*a->findings));

	if (r == 0)
		a->findings[a->finding_count++] = (struct audit_finding){ why, frame, page, other };
	return r;
}

int audit_add(struct audit *a, enum audit_why why, uint32_t page, uint64_t frame)
{
	return find(a, why, frame, page, AUDIT_NONE);
}

static bool same_domain(const struct audit *a, size_t vm, size_t other)
{
	return strcmp(a->vms[vm].domain, a->vms[other].domain) == 0;
}

static unsigned frame_flags(struct audit *a, uint64_t frame, uint8_t *flags)
{
	if (!(*flags & ASKED)) {
		unsigned says = a->frame(a->userdata, frame);

		*flags |= (uint8_t)(ASKED | (says & AUDIT_FRAME_KSM ? IS_KSM : 0u) | (says & AUDIT_FRAME_ZERO ? IS_ZERO : 0u));
	}
	return *flags;
}

/* A frame that another page was mapped to before. */
static int judge(struct audit *a, uint32_t page, uint64_t frame, enum audit_page kind, uint32_t other, uint8_t *flags)
{
	uint64_t unused;
	size_t vm = a->vm_count - 1, first = audit_vm_of(a, other, &unused);
	unsigned is;

	if (first == vm) {
		a->counts.within++;
		return 0;
	}
	is = frame_flags(a, frame, flags);
	if (is & IS_ZERO) {
		a->counts.zero++;
		return 0;
	}
	if (!(is & IS_KSM) && (kind != AUDIT_STORE || (is & KIND_MASK) != AUDIT_STORE))
		return find(a, AUDIT_SHARED, frame, page, other);
	if (!same_domain(a, vm, first))
		return find(a, AUDIT_OTHER_DOMAIN, frame, page, other);
	if (is & IS_KSM)
		a->counts.ksm++;
	else
		a->counts.store++;
	return 0;
}

static struct piece *piece_of(struct audit *a, uint64_t frame)
{
	uint64_t at = frame >> PIECE_SHIFT;

	if (at >= PIECES_MAX)
		return NULL;
	if (at >= a->piece_cap) {
		size_t cap = at + at / 2 + 16;
		struct piece **bigger = realloc(a->pieces, cap * sizeof(*bigger));

		if (!bigger)
			return NULL;
		memset(bigger + a->piece_cap, 0, (cap - a->piece_cap) * sizeof(*bigger));
		a->pieces = bigger;
		a->piece_cap = cap;
	}
	if (!a->pieces[at]) {
		a->pieces[at] = calloc(1, sizeof(*a->pieces[at]));
		a->piece_count += a->pieces[at] != NULL;
	}
	return a->pieces[at];
}

int audit_page(struct audit *a, uint32_t page, uint64_t frame, enum audit_page kind)
{
	size_t at = frame & (PIECE_FRAMES - 1);
	struct piece *p = NULL;

	if (frame >> PIECE_SHIFT < a->piece_cap)
		p = a->pieces[frame >> PIECE_SHIFT];
	if (!p)
		p = piece_of(a, frame);
	if (!p)
		return -ENOMEM;
	a->counts.pages++;
	if (p->page[at] != 0)
		return judge(a, page, frame, kind, p->page[at] - 1, &p->flags[at]);
	a->counts.frames++;
	p->page[at] = page + 1;
	p->flags[at] = (uint8_t)kind;
	return 0;
}

int audit_store(struct audit *a, uint64_t inode, uint32_t page)
{
	size_t vm = a->vm_count - 1;
	int r;

	for (size_t i = 0; i < a->store_count; i++)
		if (a->stores[i].inode == inode)
			return same_domain(a, vm, a->stores[i].vm) ? 0 : find(a, AUDIT_STORE_TWICE, 0, page, a->stores[i].page);
	r = grow((void **)&a->stores, &a->store_cap, a->store_count, sizeof(*a->stores));
	if (r == 0)
		a->stores[a->store_count++] = (struct store_user){ inode, vm, page };
	return r;
}

const struct audit_counts *audit_counts(const struct audit *a)
{
	return &a->counts;
}

const struct audit_finding *audit_findings(const struct audit *a, size_t *ret_count)
{
	*ret_count = a->finding_count;
	return a->findings;
}

size_t audit_bytes(const struct audit *a)
{
	return sizeof(*a) + a->piece_count * sizeof(struct piece) + a->piece_cap * sizeof(struct piece *) +
	       a->vm_cap * sizeof(*a->vms) + a->store_cap * sizeof(*a->stores) + a->finding_cap * sizeof(*a->findings);
}

const char *audit_why_text(enum audit_why why)
{
	static const char *const texts[AUDIT_WHYS] = {
		[AUDIT_SHARED] = "two VMs map one frame that is neither merged nor the zero page",
		[AUDIT_OTHER_DOMAIN] = "a merged frame is mapped by VMs of different domains",
		[AUDIT_STORE_TWICE] = "VMs of different domains map one store",
		[AUDIT_WRITABLE] = "a store is mapped so that the VM can write to its frames",
		[AUDIT_BACKING] = "the memory mapped there is not what the VM's RAM is made of",
	};

	return texts[why];
}
