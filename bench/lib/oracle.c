#include "bench/lib/oracle.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <xxhash.h>

#include "bench/lib/capture_file.h"
#include "core/cleanup.h"
#include "core/clock.h"
#include "core/snapshot.h"

struct entry {
	XXH128_hash_t hash;
	uint32_t guest, page;
};

struct guest {
	struct capture_info info;
	const char *data; /* the file, mapped */
};

static int guest_open(const char *json_path, struct guest *g)
{
	auto_close int fd = -1;
	void *data;
	int r = capture_info_load(json_path, &g->info);

	if (r < 0)
		return r;
	fd = capture_open_raw(json_path, &g->info, O_RDONLY);
	if (fd < 0)
		return fd;
	data = mmap(NULL, g->info.bytes, PROT_READ, MAP_PRIVATE, fd, 0);
	if (data == MAP_FAILED)
		return -errno;
	g->data = data;
	return 0;
}

static void guest_close(struct guest *g)
{
	if (g->data)
		munmap((void *)(uintptr_t)g->data, g->info.bytes);
	capture_info_free(&g->info);
}

static const char *entry_data(const struct guest *guests, const struct entry *e)
{
	return guests[e->guest].data + (uint64_t)e->page * PAGE_BYTES;
}

static size_t hash_guest(const struct guest *guests, uint32_t number, struct entry *entries, struct oracle *o)
{
	const struct page_runs *present = &guests[number].info.present;
	size_t count = 0;

	for (size_t i = 0; i < present->count; i++) {
		for (uint64_t j = 0; j < present->run[i].count; j++) {
			struct entry e = { .guest = number, .page = (uint32_t)(present->run[i].first + j) };
			const char *data = entry_data(guests, &e);

			if (data[0] == 0 && memcmp(data, data + 1, PAGE_BYTES - 1) == 0) {
				o->zero++;
				continue;
			}
			e.hash = XXH3_128bits(data, PAGE_BYTES);
			entries[count++] = e;
		}
	}
	return count;
}

static int entry_order(const void *a, const void *b)
{
	const struct entry *x = a, *y = b;

	if (x->hash.high64 != y->hash.high64)
		return x->hash.high64 < y->hash.high64 ? -1 : 1;
	if (x->hash.low64 != y->hash.low64)
		return x->hash.low64 < y->hash.low64 ? -1 : 1;
	return (x->guest > y->guest) - (x->guest < y->guest);
}

static int count_groups(const struct guest *guests, const struct entry *entries, size_t count, struct oracle *o)
{
	const struct entry *first = entries;

	for (size_t i = 1; i < count; i++) {
		const struct entry *e = &entries[i];

		if (e->hash.high64 != first->hash.high64 || e->hash.low64 != first->hash.low64) {
			first = e;
			continue;
		}
		if (memcmp(entry_data(guests, e), entry_data(guests, first), PAGE_BYTES) != 0)
			return -EILSEQ;
		if (e->guest == entries[i - 1].guest)
			o->within++;
		else
			o->between++;
	}
	return 0;
}

static int count_all(struct guest *guests, size_t count, struct oracle *o)
{
	auto_free struct entry *entries = NULL;
	size_t used = 0;
	int r;

	for (size_t i = 0; i < count; i++) {
		o->guest_pages += guests[i].info.bytes / PAGE_BYTES;
		o->present += page_runs_pages(&guests[i].info.present);
	}
	entries = calloc(o->present, sizeof(*entries));
	if (!entries)
		return -ENOMEM;
	for (size_t i = 0; i < count; i++)
		used += hash_guest(guests, (uint32_t)i, entries + used, o);
	qsort(entries, used, sizeof(*entries), entry_order);
	r = used > 0 ? count_groups(guests, entries, used, o) : 0;
	o->savable = o->zero + o->within + o->between;
	return r;
}

int oracle_run(char *const *json_paths, size_t count, struct oracle *ret_oracle)
{
	auto_free struct guest *guests = calloc(count, sizeof(*guests));
	uint64_t start_ns = clock_mono_ns();
	struct oracle o = { 0 };
	int r = 0;

	if (!guests)
		return -ENOMEM;
	for (size_t i = 0; i < count && r == 0; i++)
		r = guest_open(json_paths[i], &guests[i]);
	if (r == 0)
		r = count_all(guests, count, &o);
	for (size_t i = 0; i < count; i++)
		guest_close(&guests[i]);
	if (r < 0)
		return r;
	o.seconds = (double)(clock_mono_ns() - start_ns) / 1e9;
	*ret_oracle = o;
	return 0;
}
