#include "ept/frame.h"

#include <errno.h>
#include <fcntl.h>
#include <numaif.h>
#include <unistd.h>

#include "core/cleanup.h"
#include "ept/maps.h"
#include "ept/pagestate.h"
#include "ept/target.h"

/* Documentation/admin-guide/mm/pagemap.rst, /proc/kpageflags */
#define KPF_COMPOUND_TAIL (UINT64_C(1) << 16)
#define KPF_HUGE (UINT64_C(1) << 17)
#define KPF_KSM (UINT64_C(1) << 21)

#define HUGE_PAGES 512u
#define GIB_PAGES (512u * 512u)

/* A page may move while it is looked at: then the look is made again, but not for ever. */
#define LOOKS_MAX 8

int frame_entry(int pagemap_fd, uint64_t hva, uint64_t *ret_entry)
{
	uint64_t entry;
	ssize_t n = pread(pagemap_fd, &entry, sizeof(entry), (off_t)(hva / PAGE_BYTES * sizeof(entry)));

	if (n < 0)
		return -errno;
	if (n != sizeof(entry))
		return -ESRCH;
	*ret_entry = entry;
	return 0;
}

static uint64_t frame_flags(int fd, uint64_t number)
{
	uint64_t flags;

	if (fd < 0 || pread(fd, &flags, sizeof(flags), (off_t)(number * sizeof(flags))) != sizeof(flags))
		return 0;
	return flags;
}

/* A hugetlb page is 2 MiB or 1 GiB: of the larger, each 2 MiB but the first begin with a tail. */
static uint64_t hugetlb_bytes(int flags_fd, uint64_t number)
{
	uint64_t first = number - number % GIB_PAGES, block = number - number % HUGE_PAGES;

	if (block == first)
		block += HUGE_PAGES;
	return (uint64_t)(frame_flags(flags_fd, block) & KPF_COMPOUND_TAIL ? GIB_PAGES : HUGE_PAGES) * PAGE_BYTES;
}

/* The host's node, as move_pages(2) tells it when it is not to move anything. */
static int node_of(const struct ept_target *t, uint64_t hva)
{
	void *page = (void *)(uintptr_t)(hva & ~(uint64_t)(PAGE_BYTES - 1));
	int node = -1;

	return move_pages(t->pid, 1, &page, NULL, &node, 0) == 0 && node >= 0 ? node : -1;
}

static int kind_look(const struct ept_target *t, uint64_t hva, uint64_t entry, unsigned state, uint64_t flags,
		     struct frame *f)
{
	struct vma vma;
	int r;

	if (state & PAGE_ZERO_MAPPED) {
		f->kind = FRAME_ZERO;
	} else if (flags & KPF_KSM) {
		f->kind = FRAME_KSM;
	} else if (entry & FRAME_ENTRY_FILE) {
		r = ept_target_vma(t, hva, &vma);
		if (r < 0)
			return r;
		f->kind = vma.store ? FRAME_STORE : FRAME_FILE;
	} else {
		f->kind = FRAME_OWN;
	}
	return 0;
}

static int present_look(const struct ept_target *t, uint64_t hva, uint64_t entry, struct frame *f)
{
	auto_close int flags_fd = fsio_open(t->fs, O_RDONLY, "/proc/kpageflags");
	uint64_t number = entry & FRAME_ENTRY_NUMBER, page = hva & ~(uint64_t)(PAGE_BYTES - 1), next, flags;
	struct page_range range;
	ssize_t n = pagestate_ranges(t->pagemap_fd, page, page + PAGE_BYTES, &range, 1, &next);

	if (n <= 0)
		return n < 0 ? (int)n : -EAGAIN;
	flags = number ? frame_flags(flags_fd, number) : 0;
	f->hpa_known = number != 0;
	f->hpa = f->hpa_known ? number * PAGE_BYTES + hva % PAGE_BYTES : 0;
	f->exclusive = entry & FRAME_ENTRY_EXCLUSIVE;
	f->hugetlb = flags & KPF_HUGE;
	f->page_bytes = f->hugetlb		 ? hugetlb_bytes(flags_fd, number) :
			range.flags & PAGE_HUGE ? (uint64_t)HUGE_PAGES * PAGE_BYTES :
						  PAGE_BYTES;
	f->node = node_of(t, hva);
	return kind_look(t, hva, entry, range.flags, flags, f);
}

/* -EAGAIN: the page moved. */
static int look_once(const struct ept_target *t, uint64_t hva, struct frame *f)
{
	uint64_t entry = 0, again = 0;
	int r = frame_entry(t->pagemap_fd, hva, &entry);

	if (r < 0)
		return r;
	*f = (struct frame){ .state = FRAME_ABSENT, .node = -1 };
	if (entry & FRAME_ENTRY_PRESENT) {
		f->state = FRAME_PRESENT;
		r = present_look(t, hva, entry, f);
	} else if (entry & FRAME_ENTRY_SWAPPED) {
		f->state = FRAME_SWAPPED;
	}
	if (r < 0)
		return r;
	r = frame_entry(t->pagemap_fd, hva, &again);
	return r == 0 && again != entry ? -EAGAIN : r;
}

int frame_look(const struct ept_target *t, uint64_t hva, struct frame *ret_frame)
{
	struct frame f;
	int r = -EAGAIN;

	for (int looks = 0; r == -EAGAIN && looks < LOOKS_MAX; looks++)
		r = look_once(t, hva, &f);
	if (r == 0)
		*ret_frame = f;
	return r;
}

const char *frame_state_name(enum frame_state state)
{
	static const char *const names[] = { "absent", "swapped", "present" };

	return names[state];
}

const char *frame_kind_name(enum frame_kind kind)
{
	static const char *const names[] = { "own", "zero", "ksm", "store", "file" };

	return names[kind];
}
