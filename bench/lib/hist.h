/* bench/lib/hist.h - a histogram of latencies, log-linear: 32 steps per power of two, so a value is known to
 * 3 %. Plain data; two of them add up. */
#ifndef BENCH_HIST_H
#define BENCH_HIST_H

#include <jansson.h>
#include <stdint.h>

#define HIST_STEPS 32u
#define HIST_BUCKETS (60u * HIST_STEPS)

struct hist {
	uint64_t count, max_ns;
	uint64_t bucket[HIST_BUCKETS];
};

void hist_record(struct hist *h, uint64_t ns);
void hist_add(struct hist *h, const struct hist *other);
/* The upper edge of the bucket that holds this share of the values, at most the maximum; 0 when empty. */
uint64_t hist_quantile_ns(const struct hist *h, double share);

/* {"count", "p50_us", "p99_us", "p999_us", "max_us", "buckets": [[index, count], ...]}; NULL: no memory. */
json_t *hist_to_json(const struct hist *h);
/* Reads count, maximum and buckets back and adds them. 0 or -EBADMSG. */
int hist_add_json(struct hist *h, const json_t *json);

#endif
