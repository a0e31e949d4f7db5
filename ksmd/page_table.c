#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/cleanup.h"
#include "ept/pagestate.h"
#include "ksmd/pass_internal.h"

/* A join counts the pages of one input in 32 bits. */
#define STRETCH_CHUNKS_MAX (UINT32_MAX / SCAN_CHUNK_PAGES)

static bool all_anonymous(const struct vm_snapshot *vm)
{
	for (size_t i = 0; i < vm->region_count; i++)
		if (vm->regions[i].backing != MEM_ANON)
			return false;
	return vm->region_count > 0;
}

/* How much of a region is looked at: nothing of a file, whose file system could make a reader wait for ever. */
static uint64_t readable_pages(const struct mem_region *region)
{
	return region->backing == MEM_FILE ? 0 : region->bytes / PAGE_BYTES;
}

static int regions_copy(struct page_table *t, const struct vm_snapshot *vm)
{
	t->targets = calloc(vm->region_count ? vm->region_count : 1, sizeof(*t->targets));
	if (!t->targets)
		return -ENOMEM;
	t->anonymous = all_anonymous(vm);
	for (size_t i = 0; i < vm->region_count; i++) {
		const struct mem_region *region = &vm->regions[i];
		struct scan_target *target = &t->targets[i];

		target->pid = vm->pid;
		target->pidfd = t->pidfd;
		target->pagemap_fd = t->pagemap_fd;
		target->mem_fd = t->mem_fd;
		target->hva = region->hva;
		target->pages = readable_pages(region);
		target->seed = t->seed;
		target->anonymous = region->backing == MEM_ANON;
		t->target_count++; /* from here on page_table_unref() knows it */
		if (target->pages == 0)
			continue;
		target->hashes = scan_hashes_new(target->pages);
		target->used = calloc((size_t)(target->pages / SCAN_CHUNK_PAGES + 1), 1);
		target->changed = calloc((size_t)(target->pages / SCAN_CHUNK_PAGES + 1) * SCAN_CHUNK_WORDS,
					 sizeof(*target->changed));
		target->track = scan_track_new(target->pages);
		if (!target->hashes || !target->used || !target->changed || !target->track)
			return -ENOMEM; /* also for an address space too large to be true */
	}
	return 0;
}

int page_table_new(const struct fsio *fs, const struct vm_snapshot *vm, uint64_t seed,
		   struct page_table **ret_table)
{
	struct page_table *t = calloc(1, sizeof(*t));
	int r;

	if (!t)
		return -ENOMEM;
	t->refs = 1;
	t->pid = vm->pid;
	t->start_ticks = vm->start_ticks;
	t->seed = seed;
	t->merge_allowed = vm->merge_allowed;
	t->pagemap_fd = t->mem_fd = t->stat_fd = -1;
	t->pidfd = fcntl(vm->pidfd, F_DUPFD_CLOEXEC, 0);
	if (t->pidfd < 0) {
		r = -errno;
		goto fail;
	}
	r = t->pagemap_fd = pagestate_open(fs, vm->pid);
	if (r < 0)
		goto fail;
	r = t->mem_fd = fsio_open(fs, O_RDONLY, "/proc/%d/mem", (int)vm->pid);
	if (r < 0)
		goto fail;
	r = t->stat_fd = fsio_open(fs, O_RDONLY, "/proc/%d/stat", (int)vm->pid);
	if (r < 0)
		goto fail;
	t->name = strdup(vm->name);
	t->uuid = strdup(vm->uuid);
	t->domain = strdup(vm->domain);
	r = t->name && t->uuid && t->domain ? regions_copy(t, vm) : -ENOMEM;
	if (r < 0)
		goto fail;
	*ret_table = t;
	return 0;
fail:
	page_table_unref(t);
	return r == -ENOENT ? -ESRCH : r;
}

struct page_table *page_table_ref(struct page_table *t)
{
	t->refs++;
	return t;
}

struct page_table *page_table_unref(struct page_table *t)
{
	if (!t || --t->refs > 0)
		return NULL;
	for (size_t i = 0; i < t->target_count; i++) {
		scan_hashes_free(t->targets[i].hashes, t->targets[i].pages);
		free(t->targets[i].used);
		free(t->targets[i].changed);
		scan_track_free(t->targets[i].track);
	}
	free(t->targets);
	if (t->pidfd >= 0)
		close(t->pidfd);
	if (t->pagemap_fd >= 0)
		close(t->pagemap_fd);
	if (t->mem_fd >= 0)
		close(t->mem_fd);
	if (t->stat_fd >= 0)
		close(t->stat_fd);
	free(t->name);
	free(t->uuid);
	free(t->domain);
	free(t);
	return NULL;
}

void page_table_disturb(struct page_table *t)
{
	t->disturbed = true;
}

bool page_table_is_for(const struct page_table *t, const struct vm_snapshot *vm)
{
	if (t->pid != vm->pid || t->start_ticks != vm->start_ticks || t->target_count != vm->region_count)
		return false;
	if (strcmp(t->domain, vm->domain) != 0 || t->merge_allowed != vm->merge_allowed ||
	    t->anonymous != all_anonymous(vm) || strcmp(t->name, vm->name) != 0 || strcmp(t->uuid, vm->uuid) != 0)
		return false;
	for (size_t i = 0; i < t->target_count; i++)
		if (t->targets[i].hva != vm->regions[i].hva ||
		    t->targets[i].pages != readable_pages(&vm->regions[i]))
			return false;
	return true;
}

/* The stretches of a target in which hashes are set: a VMM may map far more than it has. joins NULL: only
 * counts. Returns how many. */
static size_t target_stretches(const struct scan_target *t, uint32_t owner, uint64_t page, struct join_input *joins)
{
	size_t chunks = (size_t)((t->pages + SCAN_CHUNK_PAGES - 1) / SCAN_CHUNK_PAGES), count = 0;

	for (size_t c = 0, end; c < chunks; c = end) {
		uint64_t first = (uint64_t)c * SCAN_CHUNK_PAGES, last;

		end = c + 1;
		if (!t->used[c])
			continue;
		while (end < chunks && end - c < STRETCH_CHUNKS_MAX && t->used[end])
			end++;
		last = (uint64_t)end * SCAN_CHUNK_PAGES < t->pages ? (uint64_t)end * SCAN_CHUNK_PAGES : t->pages;
		if (joins)
			joins[count] = (struct join_input){ owner, t->hashes + first, last - first, page + first };
		count++;
	}
	return count;
}

size_t page_table_joins(const struct page_table *t, uint32_t owner, struct join_input *joins)
{
	size_t count = 0;
	uint64_t page = 0;

	for (size_t k = 0; k < t->target_count; k++) {
		count += target_stretches(&t->targets[k], owner, page, joins ? joins + count : NULL);
		page += t->targets[k].pages;
	}
	return count;
}
