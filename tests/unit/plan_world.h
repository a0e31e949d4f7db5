/* tests/unit/plan_world.h - VMs whose pages are numbers, and a model that plans are applied to. */
#ifndef TESTS_PLAN_WORLD_H
#define TESTS_PLAN_WORLD_H

#include <urcu.h>

#include "agent/page_hash.h"
#include "ksmd/frame_index.h"
#include "ksmd/plan.h"
#include "tests/unit/unit.h"

#define ABSENT UINT64_MAX /* contents are numbers; 0 is the zero page */
#define VMS_MAX 16

static inline uint64_t content_hash(uint64_t content)
{
	uint64_t state = content;

	if (content == ABSENT)
		return PAGE_HASH_NONE;
	return content ? unit_random(&state) | 2 : PAGE_HASH_ZERO;
}

static inline uint32_t find(const struct frame_index *x, uint64_t content)
{
	uint32_t frame;

	rcu_read_lock();
	frame = frame_index_find_rcu(x, content_hash(content));
	rcu_read_unlock();
	return frame;
}

/* ---- a world of VMs ---- */

struct world {
	size_t vms, ranges_per_vm;
	uint64_t pages; /* of each VM */
	uint64_t *contents[VMS_MAX], *hashes[VMS_MAX];
	uint64_t *merged[VMS_MAX], *huge[VMS_MAX], *skip[VMS_MAX]; /* merged: by page; others by window; may be NULL */
	struct plan_vm limits[VMS_MAX];
	struct plan_range ranges[VMS_MAX * 4];
	struct frame_index *index;
	uint64_t *known; /* content of frames 0 .. known_count - 1 */
	size_t known_count;
};

static inline void world_new(struct world *w, size_t vms, uint64_t pages)
{
	memset(w, 0, sizeof(*w));
	w->vms = vms;
	w->pages = pages;
	w->ranges_per_vm = 1;
	for (size_t v = 0; v < vms; v++) {
		w->contents[v] = calloc(pages + 1, sizeof(uint64_t));
		w->hashes[v] = calloc(pages + 1, sizeof(uint64_t));
		unit_must(w->contents[v] && w->hashes[v], "calloc");
		w->limits[v].mappings_left = PLAN_MAPPINGS_UNLIMITED;
		for (uint64_t i = 0; i < pages; i++) /* all different */
			w->contents[v][i] = (v + 1) << 40 | i;
	}
}

static inline void world_free(struct world *w)
{
	for (size_t v = 0; v < w->vms; v++) {
		free(w->contents[v]);
		free(w->hashes[v]);
		free(w->merged[v]);
		free(w->huge[v]);
		free(w->skip[v]);
	}
	frame_index_free(w->index);
	free(w->known);
}

static inline uint64_t *bits_new(uint64_t count, unsigned percent, uint64_t *state)
{
	uint64_t *bits = calloc(count / 64 + 1, sizeof(*bits));

	unit_must(bits, "calloc");
	for (uint64_t i = 0; i < count; i++)
		if (unit_random(state) % 100 < percent)
			bits[i / 64] |= UINT64_C(1) << (i % 64);
	return bits;
}

static inline bool bit(const uint64_t *bits, uint64_t i)
{
	return bits && (bits[i / 64] >> (i % 64) & 1);
}

/* Stretches of pages: absent, zero, of its own, from a common pool. */
static inline void world_fill(struct world *w, uint64_t pool, unsigned stretch_max, uint64_t seed)
{
	uint64_t state = seed;

	for (size_t v = 0; v < w->vms; v++) {
		for (uint64_t i = 0; i < w->pages;) {
			uint64_t r = unit_random(&state), len = 1 + (r >> 8) % stretch_max, from = (r >> 32) % pool;

			for (uint64_t k = 0; k < len && i < w->pages; k++, i++) {
				if (r % 16 == 0)
					w->contents[v][i] = ABSENT;
				else if (r % 16 < 3)
					w->contents[v][i] = 0;
				else if (r % 16 < 11)
					w->contents[v][i] = 1 + (from + k) % pool;
			}
		}
	}
}

/* Ranges with gaps between their page numbers; hva may be anywhere. */
static inline uint64_t first_page_of(const struct world *w, size_t range)
{
	return range * (w->pages / w->ranges_per_vm) + range * 1000;
}

static inline size_t world_ranges(struct world *w, uint64_t misaligned)
{
	uint64_t each = w->pages / w->ranges_per_vm;
	size_t count = 0;

	for (size_t v = 0; v < w->vms; v++) {
		for (uint64_t i = 0; i < w->pages; i++)
			w->hashes[v][i] = content_hash(w->contents[v][i]);
		for (size_t k = 0; k < w->ranges_per_vm && each > 0; k++) {
			uint64_t hva = (UINT64_C(1) << 40) * (v + 1) + (k << 36) + misaligned * (v + k) * PAGE_BYTES;
			uint64_t pages = k + 1 == w->ranges_per_vm ? w->pages - k * each : each;

			w->ranges[count++] = (struct plan_range){ (uint32_t)v, first_page_of(w, k), hva, pages,
								  w->hashes[v] + k * each,
								  k == 0 ? w->merged[v] : NULL,
								  k == 0 ? w->huge[v] : NULL,
								  k == 0 ? w->skip[v] : NULL };
		}
	}
	return count;
}

/* The index of a page in contents[]; false when there is no such page. */
static inline bool page_index(const struct world *w, uint32_t vm, uint64_t page, uint64_t *ret_index)
{
	uint64_t each = w->pages / w->ranges_per_vm;

	for (size_t k = w->ranges_per_vm; k-- > 0;) {
		uint64_t pages = k + 1 == w->ranges_per_vm ? w->pages - k * each : each;

		if (vm >= w->vms || page < first_page_of(w, k) || page >= first_page_of(w, k) + pages)
			continue;
		*ret_index = page - first_page_of(w, k) + k * each;
		return true;
	}
	return false;
}

static inline bool page_allowed(const struct world *w, uint32_t vm, uint64_t index)
{
	const struct plan_range *first = &w->ranges[vm * w->ranges_per_vm];
	uint64_t shift = first->hva / PAGE_BYTES % PLAN_WINDOW_PAGES;

	if (index >= first->pages)
		return true;
	return !bit(w->merged[vm], index) && !bit(w->skip[vm], (index + shift) / PLAN_WINDOW_PAGES);
}

/* ---- applying a plan ---- */

struct applied {
	struct plan_need need;
	struct plan_totals totals;
	size_t bytes, join_bytes;
	uint64_t mappings[VMS_MAX];
	uint64_t runs_huge;
	struct {
		uint32_t vm;
		bool zero; /* nothing but zero pages */
	} first[16]; /* windows, in the order in which they came */
	const char *wrong; /* first thing that was */
};

#define WRONG_IF(a, condition)                             \
	do {                                               \
		if ((condition) && !(a)->wrong)            \
			(a)->wrong = #condition;           \
	} while (0)

struct model {
	struct world *world;
	uint64_t *frames; /* content, by number from first_frame */
	uint32_t first_frame, frame_count;
	unsigned char *done[VMS_MAX];
	uint64_t merged, zero, filled;
};

static inline uint64_t frame_content(const struct model *m, uint32_t frame)
{
	if (frame < m->world->known_count)
		return m->world->known[frame];
	if (frame < m->first_frame || frame - m->first_frame >= m->frame_count)
		return ABSENT;
	return m->frames[frame - m->first_frame];
}

static inline void apply_fills(struct model *m, const struct plan *p, const struct plan_window *win, struct applied *a)
{
	for (uint32_t i = 0; i < win->fill_count; i++) {
		for (uint32_t k = 0; k < win->fills[i].pages; k++) {
			uint32_t frame = win->fills[i].frame + k;
			uint64_t index = 0;
			bool there = page_index(m->world, win->vm, win->fills[i].page + k, &index);

			WRONG_IF(a, !there);
			WRONG_IF(a, frame < m->first_frame || frame - m->first_frame >= m->frame_count);
			WRONG_IF(a, frame_content(m, frame) != ABSENT); /* filled once */
			if (a->wrong)
				return;
			m->frames[frame - m->first_frame] = m->world->contents[win->vm][index];
			m->filled++;
			WRONG_IF(a, plan_page_hash(p, win->vm, win->fills[i].page + k) !=
					    m->world->hashes[win->vm][index]);
		}
	}
}

static inline void apply_run(struct model *m, const struct plan_window *win, const struct plan_run *run, struct applied *a)
{
	WRONG_IF(a, run->pages == 0 || run->page < win->page || run->page + run->pages > win->page + win->pages);
	for (uint32_t k = 0; k < run->pages && !a->wrong; k++) {
		uint64_t index = 0, content;

		WRONG_IF(a, !page_index(m->world, win->vm, run->page + k, &index));
		if (a->wrong)
			return;
		content = m->world->contents[win->vm][index];
		WRONG_IF(a, m->done[win->vm][index]++); /* no page twice */
		WRONG_IF(a, !page_allowed(m->world, win->vm, index));
		WRONG_IF(a, content == ABSENT);
		if (run->frame == PLAN_ZERO) {
			WRONG_IF(a, content != 0);
			m->zero++;
		} else {
			WRONG_IF(a, frame_content(m, run->frame + k) != content);
			m->merged++;
		}
	}
}

static inline void apply_window(struct model *m, const struct plan *p, const struct plan_window *win,
			 const struct plan_limits *limits, struct applied *a)
{
	uint64_t end = 0, pages = 0;

	WRONG_IF(a, win->vm >= m->world->vms || win->pages == 0 || win->pages > PLAN_WINDOW_PAGES);
	WRONG_IF(a, win->merged < (win->huge ? limits->window_min_huge : limits->window_min_small));
	if (a->wrong)
		return;
	apply_fills(m, p, win, a);
	for (uint32_t i = 0; i < win->run_count && !a->wrong; i++) {
		const struct plan_run *run = &win->runs[i];

		WRONG_IF(a, run->page < end); /* ascending */
		end = run->page + run->pages;
		pages += run->pages;
		apply_run(m, win, run, a);
		if (run->frame == PLAN_ZERO)
			continue;
		WRONG_IF(a, run->pages < limits->run_min);
		a->mappings[win->vm] += 2;
		a->runs_huge += run->pages == PLAN_WINDOW_PAGES && run->frame % PLAN_WINDOW_PAGES == 0;
	}
	WRONG_IF(a, pages != win->merged);
}

/* Makes the plan, applies all of it, and checks what holds for every plan. */
static inline struct applied world_plan(struct world *w, struct plan_limits limits, uint64_t misaligned)
{
	struct plan_input in = { w->ranges, world_ranges(w, misaligned), w->limits, w->vms, limits, w->index };
	struct model m = { .world = w };
	struct applied a = { .wrong = NULL };
	struct plan_window *win = calloc(1, sizeof(*win));
	uint32_t score = UINT32_MAX;
	size_t windows = 0;
	struct plan *p;

	unit_must(win, "calloc");
	for (size_t v = 0; v < w->vms; v++) {
		m.done[v] = calloc(w->pages + 1, 1);
		unit_must(m.done[v], "calloc");
	}
	CU_ASSERT_EQUAL_FATAL(plan_new(&in, &p), 0);
	CU_ASSERT_EQUAL(plan_join(p, &a.join_bytes), 0);
	CU_ASSERT_EQUAL(plan_build(p, &a.need), 0);
	m.frame_count = a.need.block_frames + a.need.frames;
	m.first_frame = (uint32_t)(w->known_count / PLAN_WINDOW_PAGES + 1) * PLAN_WINDOW_PAGES;
	m.frames = malloc((m.frame_count + 1) * sizeof(*m.frames));
	unit_must(m.frames, "malloc");
	memset(m.frames, 0xff, m.frame_count * sizeof(*m.frames)); /* ABSENT */
	CU_ASSERT_EQUAL(plan_place(p, m.first_frame, m.first_frame + a.need.block_frames), 0);
	while (plan_next(p, win) == 1 && !a.wrong) {
		WRONG_IF(&a, win->score > score);
		score = win->score;
		if (windows < ARRAY_SIZE(a.first)) {
			a.first[windows].vm = win->vm;
			a.first[windows++].zero = win->run_count == 1 && win->runs[0].frame == PLAN_ZERO;
		}
		apply_window(&m, p, win, &limits, &a);
	}
	plan_count(p, &a.totals);
	a.bytes = plan_bytes(p);
	WRONG_IF(&a, a.totals.merged_pages != m.merged || a.totals.zero_pages != m.zero);
	WRONG_IF(&a, a.totals.filled_frames != m.filled || a.totals.huge_windows != a.runs_huge);
	WRONG_IF(&a, a.totals.saved_pages != m.merged + m.zero - m.filled);
	for (size_t v = 0; v < w->vms; v++) {
		WRONG_IF(&a, w->limits[v].mappings_left < a.mappings[v]);
		free(m.done[v]);
	}
	plan_free(p);
	free(m.frames);
	free(win);
	if (a.wrong)
		printf("\n    wrong: %s\n", a.wrong);
	return a;
}

/* What could be saved at best: copies beyond the first, all copies of known contents, zero pages. */
static inline uint64_t world_oracle(const struct world *w, uint64_t pool)
{
	uint64_t *count = calloc(pool + 1, sizeof(*count)), saved = 0;

	unit_must(count, "calloc");
	for (size_t v = 0; v < w->vms; v++) {
		for (uint64_t i = 0; i < w->pages; i++) {
			uint64_t content = w->contents[v][i];

			if (content <= pool && page_allowed(w, (uint32_t)v, i))
				count[content]++;
		}
	}
	saved = count[0];
	for (uint64_t c = 1; c <= pool; c++) {
		bool known = w->index && find(w->index, c) != FRAME_NONE;

		saved += count[c] > 0 ? count[c] - !known : 0;
	}
	free(count);
	return saved;
}

#endif
