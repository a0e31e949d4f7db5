#define _LGPL_SOURCE /* inline RCU read side */
#include <errno.h>
#include <numa.h>
#include <numaif.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>
#include <urcu.h>

#include "agent/page_hash.h"
#include "core/snapshot.h"
#include "ept/pagestate.h"
#include "ksmd/scan_internal.h"
#include "ksmd/stable_index.h"

#define RANGES_MAX 128

void scan_old_keep(struct worker *w, const struct scan_target *t, uint64_t first, uint64_t pages)
{
	w->first = first;
	if (!t->changed)
		return;
	if (t->used && !t->used[first / SCAN_CHUNK_PAGES])
		memset(w->old, 0, sizeof(w->old)); /* none; reading them would take memory for the array */
	else
		memcpy(w->old, t->hashes + first, pages * sizeof(*w->old));
	memset(t->changed + first / SCAN_CHUNK_PAGES * SCAN_CHUNK_WORDS, 0, SCAN_CHUNK_WORDS * sizeof(*t->changed));
}

static void changed_note(const struct worker *w, const struct scan_target *t, uint64_t page, uint64_t hash)
{
	uint64_t old = t->changed ? w->old[page - w->first] : PAGE_HASH_NONE;

	if (old != PAGE_HASH_NONE && old != hash)
		t->changed[page / 64] |= UINT64_C(1) << page % 64;
}

void scan_hash_take(struct worker *w, struct scan_target *t, uint64_t page, uint64_t hash)
{
	struct stable_index *index = w->scan->index;

	if (w->tracking) {
		scan_track_take(w, t, page, hash);
		return;
	}
	changed_note(w, t, page, hash);
	t->hashes[page] = hash;
	w->present++;
	if (hash == PAGE_HASH_ZERO) {
		w->zero++;
	} else if (index && stable_index_samples(hash)) {
		rcu_read_lock();
		w->index_hits += stable_index_has_rcu(index, hash);
		rcu_read_unlock();
	}
}

static void hash_pages(struct worker *w, struct scan_target *t, const uint64_t *pages, size_t count)
{
	for (size_t i = 0; i < count; i++)
		scan_hash_take(w, t, pages[i], page_hash(w->buffer + i * PAGE_BYTES, t->seed));
	w->scan->read_bytes += count * PAGE_BYTES;
}

static void *page_address(const struct scan_target *t, uint64_t page)
{
	return (void *)(uintptr_t)(t->hva + page * PAGE_BYTES);
}

/* Reads the batch's pages from "from" on; returns how many came, or -errno. */
static ssize_t read_alone(const struct worker *w, const struct scan_target *t, const struct batch *b, size_t from)
{
	struct iovec local = { w->buffer, (b->count - from) * PAGE_BYTES }, remote[SCAN_BATCH_PAGES];
	unsigned long count = 0;
	ssize_t n;

	for (size_t i = from; i < b->count; i++) {
		void *at = page_address(t, b->pages[i]);

		if (count > 0 && (char *)remote[count - 1].iov_base + remote[count - 1].iov_len == at)
			remote[count - 1].iov_len += PAGE_BYTES;
		else
			remote[count++] = (struct iovec){ at, PAGE_BYTES };
	}
	n = process_vm_readv(t->pid, &local, 1, remote, count, 0);
	return n < 0 ? -errno : n / PAGE_BYTES;
}

/* The same for pages that must not be pinned; stops at the first gap. */
static ssize_t read_shared(const struct worker *w, const struct scan_target *t, const struct batch *b, size_t from)
{
	size_t count = 1;
	ssize_t n;

	while (from + count < b->count && b->pages[from + count] == b->pages[from] + count)
		count++;
	n = pread(t->mem_fd, w->buffer, count * PAGE_BYTES, (off_t)(t->hva + b->pages[from] * PAGE_BYTES));
	if (n < 0)
		return errno == EIO ? -EFAULT : -errno;
	if (n == 0) /* the process has ended */
		return -ESRCH;
	return n / PAGE_BYTES;
}

/* Reads and hashes what was batched. A page that cannot be read (unmapped meanwhile) is left out. */
static void batch_flush(struct worker *w, struct scan_target *t, struct batch *b)
{
	size_t done = 0;

	while (done < b->count) {
		ssize_t n = b == &w->shared ? read_shared(w, t, b, done) : read_alone(w, t, b, done);

		if (n == -ESRCH || n == -EPERM) {
			t->gone = true; /* EPERM: another program runs there now */
			break;
		}
		if (n > 0)
			hash_pages(w, t, b->pages + done, (size_t)n);
		else
			n = 1; /* leave it out */
		done += (size_t)n;
	}
	b->count = 0;
}

static void page_add(struct worker *w, struct scan_target *t, uint64_t page, bool shared)
{
	struct batch *b = shared ? &w->shared : &w->alone;

	b->pages[b->count++] = page;
	if (b->count == SCAN_BATCH_PAGES)
		batch_flush(w, t, b);
}

void scan_pages_read(struct worker *w, struct scan_target *t, uint64_t first, uint64_t pages)
{
	uint64_t last = first + pages;

	/* 64 pages at a time, so that little time passes between the look and the read. */
	while (first < last && !t->gone) {
		unsigned count = last - first < 64 ? (unsigned)(last - first) : 64;
		uint64_t shared;

		if (pagestate_shared(t->pagemap_fd, t->hva + first * PAGE_BYTES, count, &shared) < 0) {
			t->gone = true;
			return;
		}
		for (unsigned i = 0; i < count && !t->gone; i++)
			page_add(w, t, first + i, shared & (UINT64_C(1) << i));
		first += count;
	}
}

void scan_read_flush(struct worker *w, struct scan_target *t)
{
	batch_flush(w, t, &w->alone);
	batch_flush(w, t, &w->shared);
}

static void range_add(struct worker *w, struct scan_target *t, const struct page_range *range)
{
	uint64_t first = (range->start - t->hva) / PAGE_BYTES, last = (range->end - t->hva) / PAGE_BYTES;

	if (range->flags & PAGE_SWAPPED) {
		w->swapped += last - first;
		return;
	}
	if (range->flags & PAGE_ZERO_MAPPED) {
		w->zero_mapped += last - first;
		return;
	}
	if (t->anonymous && (range->flags & PAGE_FILE))
		return;
	if (range->flags & PAGE_HUGE)
		w->huge += last - first;
	scan_pages_read(w, t, first, last - first);
}

/* Moves this thread to the node that holds the page: hashing remote memory costs about twice as much. */
static void follow_node(struct worker *w, const struct scan_target *t, uint64_t hva)
{
	void *page = (void *)(uintptr_t)hva;
	int node = -1;

	if (!w->scan->many_nodes || move_pages(t->pid, 1, &page, NULL, &node, 0) != 0 || node < 0)
		return;
	if (node != w->node && numa_run_on_node(node) == 0)
		w->node = node;
}

void scan_chunk_read(struct worker *w, struct scan_target *t, uint64_t first, uint64_t pages)
{
	uint64_t at = t->hva + first * PAGE_BYTES, end = at + pages * PAGE_BYTES;
	struct page_range ranges[RANGES_MAX];
	bool placed = false;

	while (at < end && !t->gone) {
		ssize_t n = pagestate_ranges(t->pagemap_fd, at, end, ranges, RANGES_MAX, &at);

		if (n < 0) {
			t->gone = true;
			break;
		}
		for (ssize_t i = 0; i < n; i++) {
			if (!placed && !(ranges[i].flags & (PAGE_SWAPPED | PAGE_ZERO_MAPPED))) {
				follow_node(w, t, ranges[i].start);
				placed = true;
			}
			range_add(w, t, &ranges[i]);
		}
	}
	scan_read_flush(w, t);
}
