#include "bench/lib/hist.h"

#include <errno.h>
#include <math.h>

static uint32_t bucket_of(uint64_t ns)
{
	uint32_t exponent;

	if (ns < HIST_STEPS)
		return (uint32_t)ns;
	exponent = 63 - (uint32_t)__builtin_clzll(ns); /* at least 5: log2(HIST_STEPS) */
	return (exponent - 4) * HIST_STEPS + (uint32_t)((ns >> (exponent - 5)) - HIST_STEPS);
}

static uint64_t bucket_top_ns(uint32_t bucket)
{
	uint32_t exponent = bucket / HIST_STEPS + 4;

	if (bucket < HIST_STEPS)
		return bucket;
	return ((UINT64_C(1) + HIST_STEPS + bucket % HIST_STEPS) << (exponent - 5)) - 1;
}

void hist_record(struct hist *h, uint64_t ns)
{
	h->count++;
	h->bucket[bucket_of(ns)]++;
	if (ns > h->max_ns)
		h->max_ns = ns;
}

void hist_add(struct hist *h, const struct hist *other)
{
	h->count += other->count;
	if (other->max_ns > h->max_ns)
		h->max_ns = other->max_ns;
	for (uint32_t i = 0; i < HIST_BUCKETS; i++)
		h->bucket[i] += other->bucket[i];
}

uint64_t hist_quantile_ns(const struct hist *h, double share)
{
	uint64_t rank = (uint64_t)ceil(share * (double)h->count), seen = 0;

	for (uint32_t i = 0; i < HIST_BUCKETS && h->count > 0; i++) {
		seen += h->bucket[i];
		if (seen >= rank)
			return bucket_top_ns(i) < h->max_ns ? bucket_top_ns(i) : h->max_ns;
	}
	return h->max_ns;
}

json_t *hist_to_json(const struct hist *h)
{
	json_t *buckets = json_array();

	for (uint32_t i = 0; buckets && i < HIST_BUCKETS; i++) {
		if (h->bucket[i])
			json_array_append_new(buckets, json_pack("[i,I]", (int)i, (json_int_t)h->bucket[i]));
	}
	return json_pack("{s:I, s:f, s:f, s:f, s:f, s:o}", "count", (json_int_t)h->count, "p50_us",
			 (double)hist_quantile_ns(h, 0.5) / 1e3, "p99_us", (double)hist_quantile_ns(h, 0.99) / 1e3,
			 "p999_us", (double)hist_quantile_ns(h, 0.999) / 1e3, "max_us", (double)h->max_ns / 1e3,
			 "buckets", buckets);
}

int hist_add_json(struct hist *h, const json_t *json)
{
	const json_t *buckets = json_object_get(json, "buckets"), *item;
	uint64_t max_ns = (uint64_t)(json_number_value(json_object_get(json, "max_us")) * 1e3);
	size_t i;

	if (!json_is_array(buckets))
		return -EBADMSG;
	json_array_foreach(buckets, i, item) {
		json_int_t bucket = json_integer_value(json_array_get(item, 0));
		json_int_t count = json_integer_value(json_array_get(item, 1));

		if (bucket < 0 || bucket >= HIST_BUCKETS || count < 0)
			return -EBADMSG;
		h->bucket[bucket] += (uint64_t)count;
		h->count += (uint64_t)count;
	}
	if (max_ns > h->max_ns)
		h->max_ns = max_ns;
	return 0;
}
