#include "bench/lib/made_up.h"

#include <stdbool.h>

#include "agent/page_hash.h"
#include "core/cleanup.h"
#include "ksmd/plan.h"

#define CONTENT_FAMILIES (UINT64_C(1) << 62) /* above the contents of the common image and of VMs */

static uint64_t mix(uint64_t *state)
{
	uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);

	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return z ^ (z >> 31);
}

static uint64_t hash_of(uint64_t content)
{
	return mix(&content) | 2;
}

/* Stretches by the share of all pages that they hold, in per mille. Shared stretches repeat the image from some
 * place on; whole windows of it lie at 2 MiB, in each VM another choice. */
static const struct stretch {
	unsigned permille, pages_min, pages_max;
	enum { OWN, ZERO, SHARED, WINDOW } kind;
} stretches[] = {
	{ 240, 1, 60, OWN },	{ 140, 1, 40, ZERO },	{ 50, 1, 1, SHARED },	{ 10, 2, 3, SHARED },
	{ 30, 4, 15, SHARED },	{ 90, 16, 63, SHARED }, { 240, 64, 511, SHARED }, { 200, 512, 512, WINDOW },
};

static const struct stretch *stretch_pick(uint64_t r)
{
	double weights[ARRAY_SIZE(stretches)], sum = 0, at;
	size_t i;

	for (i = 0; i < ARRAY_SIZE(stretches); i++)
		sum += weights[i] = 2.0 * stretches[i].permille / (stretches[i].pages_min + stretches[i].pages_max);
	at = (double)(r >> 11) / 9007199254740992.0 * sum; /* 2^53 */
	for (i = 0; i + 1 < ARRAY_SIZE(stretches) && at >= weights[i]; i++)
		at -= weights[i];
	return &stretches[i];
}

void made_up_vm(uint64_t *hashes, uint64_t pages, size_t vm, size_t family)
{
	uint64_t state = vm + 1, image_pages = pages / 2, own = (vm + 2) << 40, image = 1;

	for (uint64_t page = 0; page < pages;) {
		const struct stretch *s = stretch_pick(mix(&state));
		uint64_t len = s->pages_min + mix(&state) % (s->pages_max - s->pages_min + 1);
		uint64_t from = mix(&state) % image_pages;

		if (family > 0)
			image = mix(&state) % 4 == 0 ? 1 : CONTENT_FAMILIES | (vm / family) << 40;
		if (s->kind == WINDOW) { /* up to the border a few pages of its own, then the window */
			from = from / PLAN_WINDOW_PAGES * PLAN_WINDOW_PAGES;
			for (; page < pages && page % PLAN_WINDOW_PAGES; page++)
				hashes[page] = hash_of(own | page);
		}
		for (uint64_t k = 0; k < len && page < pages; k++, page++)
			hashes[page] = s->kind == OWN  ? hash_of(own | page) :
				       s->kind == ZERO ? PAGE_HASH_ZERO :
							 hash_of(image + (from + k) % image_pages);
	}
}
