#include "balloon/libvirt_figures.h"

#include <stddef.h>
#include <string.h>

#include "core/cleanup.h"

static const struct figure {
	const char *name;
	size_t field;
	unsigned int unit; /* bytes, or 1 for a number */
	bool guests;
} figures[] = {
	{ "balloon.current", offsetof(struct balloon_told, actual_bytes), 1024, false },
	{ "balloon.maximum", offsetof(struct balloon_told, max_bytes), 1024, false },
	{ "balloon.available", offsetof(struct balloon_told, total_bytes), 1024, true },
	{ "balloon.unused", offsetof(struct balloon_told, free_bytes), 1024, true },
	{ "balloon.usable", offsetof(struct balloon_told, available_bytes), 1024, true },
	{ "balloon.disk_caches", offsetof(struct balloon_told, cache_bytes), 1024, true },
	{ "balloon.swap_in", offsetof(struct balloon_told, swap_in_bytes), 1024, true },
	{ "balloon.swap_out", offsetof(struct balloon_told, swap_out_bytes), 1024, true },
	{ "balloon.major_fault", offsetof(struct balloon_told, major_faults), 1, true },
};

static uint64_t *field_of(const struct figure *f, struct balloon_told *told)
{
	return (uint64_t *)(void *)((char *)told + f->field);
}

/* False: not told, or no number that fits. */
static bool param_find(const virTypedParameter *params, int count, const char *name, uint64_t *ret_value)
{
	for (int i = 0; i < count; i++) {
		if (strncmp(params[i].field, name, sizeof(params[i].field)) != 0)
			continue;
		if (params[i].type != VIR_TYPED_PARAM_ULLONG)
			return false;
		*ret_value = params[i].value.ul;
		return true;
	}
	return false;
}

enum libvirt_answer libvirt_figures_take(const virTypedParameter *params, int count, uint64_t now_ns,
					 struct balloon_told *told)
{
	uint64_t value;
	/* libvirt looks this up beside the VMM's answer, and at no other time. */
	bool answered = param_find(params, count, "balloon.rss", &value), any = answered;

	for (size_t i = 0; i < ARRAY_SIZE(figures); i++) {
		const struct figure *f = &figures[i];
		bool is_told = param_find(params, count, f->name, &value) && value <= UINT64_MAX / 2 / f->unit;

		any = any || is_told;
		if (is_told && (answered || !f->guests))
			*field_of(f, told) = value * f->unit;
		else if (f->guests && answered)
			*field_of(f, told) = BALLOON_UNTOLD;
	}
	if (param_find(params, count, "balloon.current", &value))
		told->told_ns = now_ns;
	if (answered) {
		bool has = param_find(params, count, "balloon.last-update", &value) && value <= INT64_MAX;

		told->last_update_s = has ? (int64_t)value : 0;
		told->stats_told_ns = now_ns;
	}
	return answered ? LIBVIRT_ANSWER_VMM : any ? LIBVIRT_ANSWER_BUSY : LIBVIRT_ANSWER_NONE;
}
