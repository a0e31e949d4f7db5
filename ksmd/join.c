#include "ksmd/join.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "agent/page_hash.h"
#include "core/cleanup.h"

/* Records of one bucket: with its table about 44 B each, so that a bucket works in 180 KiB of L2. */
#define BUCKET_RECORDS 4096
#define BUCKET_BITS_MAX 20
/* A sweep takes one record in SWEEP_SHARE of all: 16 B / 16 is 1 byte per page of transient memory. Each
 * sweep reads all hashes once, 8 B a page, which at 10 GB/s costs 0.8 ns a page. */
#define SWEEP_SHARE 16
#define SWEEP_RECORDS_MIN 32768

#define NO_RECORD UINT32_MAX

struct record {
	uint64_t hash;
	uint32_t input;
	uint32_t page;
};

struct join {
	const struct join_input *inputs;
	size_t input_count;
	join_group_fn group;
	void *userdata;

	unsigned bits;	     /* the top bits of a hash name its bucket */
	size_t *fill;	     /* per bucket: records in all, later where the next one goes */
	struct record *records; /* of one sweep, bucket after bucket */
	size_t record_cap;

	/* Of one bucket: */
	uint32_t *heads, *next;
	struct join_ref *refs;
	size_t head_cap, chain_cap;
	size_t peak_bytes;
};

static size_t bucket_of(const struct join *j, uint64_t hash)
{
	return j->bits ? (size_t)(hash >> (64 - j->bits)) : 0;
}

static int grow(void *array, size_t *cap, size_t want, size_t item)
{
	void *bigger;

	if (want <= *cap)
		return 0;
	bigger = realloc(*(void **)array, want * item);
	if (!bigger)
		return -ENOMEM;
	*(void **)array = bigger;
	*cap = want;
	return 0;
}

static int bucket_reserve(struct join *j, size_t records, size_t slots)
{
	size_t next_cap = j->chain_cap, bytes;
	int r;

	r = grow(&j->heads, &j->head_cap, slots, sizeof(*j->heads));
	if (r == 0)
		r = grow(&j->next, &next_cap, records, sizeof(*j->next));
	if (r == 0)
		r = grow(&j->refs, &j->chain_cap, records, sizeof(*j->refs));
	bytes = j->record_cap * sizeof(*j->records) + j->head_cap * sizeof(*j->heads) +
		j->chain_cap * (sizeof(*j->next) + sizeof(*j->refs)) + (sizeof(*j->fill) << j->bits);
	if (bytes > j->peak_bytes)
		j->peak_bytes = bytes;
	return r;
}

/* Hands out the chain that starts at record "at"; chains run from the last record to the first. */
static void chain_emit(struct join *j, const struct record *records, uint32_t at)
{
	uint64_t hash = records[at].hash;
	size_t count = 0;

	for (uint32_t i = at; i != NO_RECORD; i = j->next[i])
		count++;
	for (size_t left = count; left > 0; at = j->next[at]) {
		const struct join_input *input = &j->inputs[records[at].input];

		j->refs[--left] = (struct join_ref){ input->owner, input->first_page + records[at].page };
	}
	j->group(hash, j->refs, count, j->userdata);
}

static int bucket_join(struct join *j, const struct record *records, size_t count)
{
	size_t slots = 16;
	int r;

	while (slots < 2 * count)
		slots *= 2;
	r = bucket_reserve(j, count, slots);
	if (r < 0)
		return r;
	memset(j->heads, 0xff, slots * sizeof(*j->heads)); /* NO_RECORD everywhere */
	for (uint32_t i = 0; i < count; i++) {
		size_t slot = (size_t)records[i].hash & (slots - 1);

		while (j->heads[slot] != NO_RECORD && records[j->heads[slot]].hash != records[i].hash)
			slot = (slot + 1) & (slots - 1);
		j->next[i] = j->heads[slot];
		j->heads[slot] = i;
	}
	for (size_t slot = 0; slot < slots; slot++) {
		uint32_t head = j->heads[slot];

		if (head != NO_RECORD && j->next[head] != NO_RECORD)
			chain_emit(j, records, head);
	}
	return 0;
}

/* Calls visit for every hash of a page with data. */
#define for_each_hash(j, in, pg, hash)                                                     \
	for (size_t in = 0; in < (j)->input_count; in++)                                   \
		for (uint64_t pg = 0, hash; pg < (j)->inputs[in].pages; pg++)              \
			if ((hash = (j)->inputs[in].hashes[pg]) > PAGE_HASH_ZERO)

/* Joins buckets [first, last), whose records fit in j->records. */
static int sweep(struct join *j, size_t first, size_t last)
{
	size_t offset = 0, start = 0;

	for (size_t b = first; b < last; b++) {
		size_t count = j->fill[b];

		j->fill[b] = offset;
		offset += count;
	}
	for_each_hash (j, in, pg, hash) {
		size_t b = bucket_of(j, hash);

		if (b < first || b >= last)
			continue;
		/* A hash array that changed since it was counted would be our own bug; stay in bounds. */
		if (j->fill[b] >= offset)
			continue;
		j->records[j->fill[b]++] = (struct record){ hash, (uint32_t)in, (uint32_t)pg };
	}
	for (size_t b = first; b < last; b++) {
		int r = bucket_join(j, j->records + start, j->fill[b] - start);

		if (r < 0)
			return r;
		start = j->fill[b];
	}
	return 0;
}

/* Sweep by sweep: as many buckets as fit the limit, at least one. */
static int join_all(struct join *j, size_t total)
{
	size_t buckets = (size_t)1 << j->bits;
	size_t limit = total / SWEEP_SHARE > SWEEP_RECORDS_MIN ? total / SWEEP_SHARE : SWEEP_RECORDS_MIN;

	if (total == 0)
		return 0;
	for (size_t first = 0, last; first < buckets; first = last) {
		size_t records = j->fill[first];
		int r;

		for (last = first + 1; last < buckets && records + j->fill[last] <= limit; last++)
			records += j->fill[last];
		r = grow(&j->records, &j->record_cap, records, sizeof(*j->records));
		if (r == 0)
			r = sweep(j, first, last);
		if (r < 0)
			return r;
	}
	return 0;
}

int join_run(const struct join_input *inputs, size_t count, join_group_fn group, void *userdata,
	     size_t *ret_peak_bytes)
{
	struct join j = { .inputs = inputs, .input_count = count, .group = group, .userdata = userdata };
	uint64_t pages = 0;
	size_t total = 0;
	int r;

	for (size_t i = 0; i < count; i++) {
		if (inputs[i].pages > UINT32_MAX || inputs[i].owner >= JOIN_OWNERS_MAX)
			return -EINVAL;
		pages += inputs[i].pages;
	}
	while (j.bits < BUCKET_BITS_MAX && pages >> j.bits > BUCKET_RECORDS)
		j.bits++;
	j.fill = calloc((size_t)1 << j.bits, sizeof(*j.fill));
	if (!j.fill)
		return -ENOMEM;
	for_each_hash (&j, in, pg, hash) {
		j.fill[bucket_of(&j, hash)]++;
		total++;
	}
	r = join_all(&j, total);
	free(j.fill);
	free(j.records);
	free(j.heads);
	free(j.next);
	free(j.refs);
	if (r == 0 && ret_peak_bytes)
		*ret_peak_bytes = j.peak_bytes;
	return r;
}
