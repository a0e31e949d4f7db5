#include "bench/lib/replay_work.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <time.h>

#include "core/clock.h"
#include "core/snapshot.h"

#define VICTIM_BATCH_NS NSEC_PER_MSEC
#define DIRTIER_BATCH_NS (10 * NSEC_PER_MSEC)
#define WRITE_EVERY 16u

static uint64_t random_next(uint64_t *state)
{
	*state ^= *state >> 12; /* xorshift64* */
	*state ^= *state << 25;
	*state ^= *state >> 27;
	return *state * UINT64_C(2685821657736338717);
}

static uint64_t random_below(uint64_t *state, uint64_t limit)
{
	return (random_next(state) >> 11) % limit;
}

/* Sleeps to the next batch. A batch that comes late is not made up for. */
static void batch_sleep(uint64_t *next_ns, uint64_t step_ns)
{
	uint64_t now_ns = clock_mono_ns();
	struct timespec until;

	*next_ns += step_ns;
	if (*next_ns < now_ns)
		*next_ns = now_ns;
	until.tv_sec = (time_t)(*next_ns / NSEC_PER_SEC);
	until.tv_nsec = (long)(*next_ns % NSEC_PER_SEC);
	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR)
		;
}

/* How many of rate per second are due in this batch; the remainder is carried over. */
static uint64_t batch_size(uint64_t rate, uint64_t step_ns, uint64_t *carry)
{
	uint64_t due = rate * step_ns + *carry;

	*carry = due % NSEC_PER_SEC;
	return due / NSEC_PER_SEC;
}

/* ---- victim ---- */

struct flip { /* a byte that is changed until the next batch */
	volatile uint8_t *byte;
	uint8_t original;
};

struct victim {
	pthread_t thread;
	const struct replay_mem *mem;
	uint64_t rate;
	uint64_t write_pages; /* how many pages may be written */
	_Atomic bool stop;
	struct flip flips[VICTIM_WRITE_PAGES_MAX];
	size_t flip_count;
	struct victim_result result;
};

static void restore_flips(struct victim *v)
{
	while (v->flip_count > 0) {
		struct flip *f = &v->flips[--v->flip_count];

		if ((*f->byte ^ f->original) != 0xff)
			v->result.lost_writes++;
		*f->byte = f->original;
	}
}

/* The last 8 bytes of a page are the dirtier's. */
static volatile uint8_t *victim_byte(const struct replay_mem *m, uint64_t index, uint64_t *random)
{
	return (volatile uint8_t *)m->base + (uint64_t)m->pages[index] * PAGE_BYTES +
	       random_below(random, PAGE_BYTES - 8);
}

static void victim_read(struct victim *v, uint64_t *random)
{
	volatile uint8_t *byte = victim_byte(v->mem, random_below(random, v->mem->page_count), random);
	uint64_t start_ns = clock_mono_ns();

	(void)*byte;
	hist_record(&v->result.hist, clock_mono_ns() - start_ns);
	v->result.reads++;
}

/* The bit pattern stays changed until the next batch: whoever copies the page meanwhile and loses the
 * second write is found by the checksum, whoever loses the first by restore_flips(). */
static void victim_write(struct victim *v, uint64_t *random)
{
	uint64_t index = v->result.writes % v->write_pages * (v->mem->page_count / v->write_pages);
	volatile uint8_t *byte = victim_byte(v->mem, index, random);
	uint64_t start_ns = clock_mono_ns();
	uint8_t original = *byte;

	*byte = original ^ 0xff;
	hist_record(&v->result.hist, clock_mono_ns() - start_ns);
	v->flips[v->flip_count++] = (struct flip){ byte, original };
	v->result.writes++;
}

static void *victim_main(void *userdata)
{
	struct victim *v = userdata;
	uint64_t random = UINT64_C(0x853c49e6748fea9b), next_ns = clock_mono_ns(), carry = 0, turn = 0;

	prctl(PR_SET_TIMERSLACK, 1000L);
	while (!v->stop) {
		uint64_t n = batch_size(v->rate, VICTIM_BATCH_NS, &carry);

		restore_flips(v);
		/* No page is written twice in one batch: its first value would be taken for the original. */
		for (uint64_t i = 0; i < n; i++) {
			if (++turn % WRITE_EVERY == 0 && v->flip_count < v->write_pages)
				victim_write(v, &random);
			else
				victim_read(v, &random);
		}
		batch_sleep(&next_ns, VICTIM_BATCH_NS);
	}
	restore_flips(v);
	return NULL;
}

int victim_start(const struct replay_mem *m, uint64_t rate, struct victim **ret_victim)
{
	struct victim *v = calloc(1, sizeof(*v));
	int r;

	if (!v)
		return -ENOMEM;
	v->mem = m;
	v->rate = rate;
	v->write_pages = m->page_count / VICTIM_WRITE_STRIDE + 1;
	if (v->write_pages > VICTIM_WRITE_PAGES_MAX)
		v->write_pages = VICTIM_WRITE_PAGES_MAX;
	r = pthread_create(&v->thread, NULL, victim_main, v);
	if (r != 0) {
		free(v);
		return -r;
	}
	*ret_victim = v;
	return 0;
}

void victim_stop(struct victim *v, struct victim_result *ret_result)
{
	v->stop = true;
	pthread_join(v->thread, NULL);
	*ret_result = v->result;
	free(v);
}

/* ---- dirtier ---- */

struct dirtied { /* of one page: its last 8 bytes before the first write, and after the last */
	uint64_t original, written;
};

struct dirtier {
	pthread_t thread;
	const struct replay_mem *mem;
	uint64_t rate, writes;
	_Atomic bool stop;
	struct dirtied *pages; /* by index of mem->pages; written == original: not dirtied */
};

static volatile uint64_t *dirtier_word(const struct replay_mem *m, uint64_t index)
{
	return (volatile uint64_t *)(void *)(m->base + ((uint64_t)m->pages[index] + 1) * PAGE_BYTES - 8);
}

static void dirty_page(struct dirtier *d, uint64_t index)
{
	volatile uint64_t *word = dirtier_word(d->mem, index);
	struct dirtied *page = &d->pages[index];

	if (page->written == page->original)
		page->original = *word;
	page->written = page->original + 1 + d->writes++;
	*word = page->written;
}

static void *dirtier_main(void *userdata)
{
	struct dirtier *d = userdata;
	uint64_t random = UINT64_C(0xda3e39cb94b95bdb), next_ns = clock_mono_ns(), carry = 0;

	while (!d->stop) {
		for (uint64_t n = batch_size(d->rate, DIRTIER_BATCH_NS, &carry); n > 0; n--)
			dirty_page(d, random_below(&random, d->mem->page_count));
		batch_sleep(&next_ns, DIRTIER_BATCH_NS);
	}
	return NULL;
}

int dirtier_start(const struct replay_mem *m, uint64_t rate, struct dirtier **ret_dirtier)
{
	struct dirtier *d = calloc(1, sizeof(*d));
	int r = -ENOMEM;

	if (!d)
		return -ENOMEM;
	d->mem = m;
	d->rate = rate;
	d->pages = calloc(m->page_count, sizeof(*d->pages));
	if (d->pages)
		r = -pthread_create(&d->thread, NULL, dirtier_main, d);
	if (r != 0) {
		free(d->pages);
		free(d);
		return r;
	}
	*ret_dirtier = d;
	return 0;
}

void dirtier_stop(struct dirtier *d, uint64_t *ret_writes, uint64_t *ret_lost)
{
	uint64_t lost = 0;

	d->stop = true;
	pthread_join(d->thread, NULL);
	for (uint64_t i = 0; i < d->mem->page_count; i++) {
		if (d->pages[i].written == d->pages[i].original)
			continue;
		lost += *dirtier_word(d->mem, i) != d->pages[i].written;
		*dirtier_word(d->mem, i) = d->pages[i].original;
	}
	*ret_writes = d->writes;
	*ret_lost = lost;
	free(d->pages);
	free(d);
}

/* ---- all at once ---- */

#define REWRITE_MASK UINT64_C(0xa5a5a5a5a5a5a5a5)

void rewrite_all(const struct replay_mem *m, struct rewrite_result *ret_result)
{
	struct rewrite_result r = { .pages = m->page_count };
	uint64_t start_ns = clock_mono_ns(), then_ns = start_ns;

	for (uint64_t i = 0; i < m->page_count; i++) {
		uint64_t now_ns;

		*dirtier_word(m, i) ^= REWRITE_MASK;
		now_ns = clock_mono_ns();
		r.longest_ns = now_ns - then_ns > r.longest_ns ? now_ns - then_ns : r.longest_ns;
		then_ns = now_ns;
	}
	r.ns = then_ns - start_ns;
	for (uint64_t i = 0; i < m->page_count; i++)
		*dirtier_word(m, i) ^= REWRITE_MASK;
	*ret_result = r;
}
