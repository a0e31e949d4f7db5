#include "ept/slots.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/cleanup.h"
#include "core/log.h"
#include "core/text.h"
#include "ept/maps.h"
#include "vmm/registry.h"

/* A VMM with 65,530 mappings (the kernel's limit by default) of 100 bytes each, and room. */
#define MAPS_MAX_BYTES (16u << 20)

int ept_view_new(const struct fsio *fs, struct vm *vm, struct ept_view **ret_view)
{
	struct ept_view *v = calloc(1, sizeof(*v));

	if (!v)
		return -ENOMEM;
	v->fs = fs;
	v->vm = vm;
	*ret_view = v;
	return 0;
}

static void questions_drop(struct ept_view *v)
{
	free(v->ranges);
	free(v->answers);
	v->ranges = NULL;
	v->answers = NULL;
	v->range_count = v->asked = 0;
	v->asked_of = NULL;
}

struct ept_view *ept_view_free(struct ept_view *v)
{
	if (!v)
		return NULL;
	questions_drop(v);
	free(v->slots);
	free(v->regions);
	free(v);
	return NULL;
}

/* ---- from slots to a finished view ---- */

static int region_by_hva(const void *a, const void *b)
{
	const struct mem_region *x = a, *y = b;

	return x->hva < y->hva ? -1 : x->hva > y->hva;
}

/* Joins slots that are neighbours in the VMM, so the scanner gets long stretches. Two slots may show the
 * same memory (an alias in the guest's map): it is listed once. */
static int regions_build(const struct ept_slot *slots, size_t count, struct mem_region **ret_regions,
			 size_t *ret_count)
{
	struct mem_region *regions = calloc(count, sizeof(*regions));
	size_t used = 0;

	if (!regions)
		return -ENOMEM;
	for (size_t i = 0; i < count; i++)
		regions[i] = (struct mem_region){ slots[i].hva, slots[i].bytes, slots[i].backing };
	qsort(regions, count, sizeof(*regions), region_by_hva);
	for (size_t i = 0; i < count; i++) {
		struct mem_region *last = used ? &regions[used - 1] : NULL;
		uint64_t end = regions[i].hva + regions[i].bytes;

		if (last && last->backing == regions[i].backing && regions[i].hva <= last->hva + last->bytes) {
			if (end > last->hva + last->bytes)
				last->bytes = end - last->hva;
			continue;
		}
		regions[used++] = regions[i];
	}
	*ret_regions = regions;
	*ret_count = used;
	return 0;
}

int ept_maps_read(const struct fsio *fs, pid_t pid, struct vma **ret_vmas, size_t *ret_count)
{
	auto_free char *text = NULL;
	ssize_t n = fsio_read_alloc(fs, MAPS_MAX_BYTES, &text, "/proc/%d/maps", (int)pid);

	if (n < 0)
		return (int)n;
	if (n == 0) /* what a zombie shows */
		return -ESRCH;
	return maps_parse(text, (size_t)n, ret_vmas, ret_count);
}

/* Checks each slot against the mappings and notes its backing. */
static int slots_check(struct ept_view *v, struct ept_slot *slots, size_t count)
{
	auto_free struct vma *vmas = NULL;
	size_t vma_count;
	int r;

	r = ept_maps_read(v->fs, v->vm->pid, &vmas, &vma_count);
	if (r < 0) {
		snprintf(v->why, sizeof(v->why), "cannot read its mappings: %s", strerror(-r));
		return r;
	}
	for (size_t i = 0; i < count; i++) {
		if (maps_cover(vmas, vma_count, slots[i].hva, slots[i].bytes, &slots[i].backing))
			continue;
		snprintf(v->why, sizeof(v->why),
			 "QMP puts GPA 0x%" PRIx64 " at 0x%" PRIx64 "+0x%" PRIx64 ", which is not mapped so",
			 slots[i].gpa, slots[i].hva, slots[i].bytes);
		return -EBADMSG;
	}
	return 0;
}

/* Takes slots over; on failure they are freed. */
static int view_install(struct ept_view *v, struct ept_slot *slots, size_t count, enum ept_source source)
{
	struct mem_region *regions;
	size_t region_count;
	int r;

	r = slots_check(v, slots, count);
	if (r == 0)
		r = regions_build(slots, count, &regions, &region_count);
	if (r < 0) {
		free(slots);
		return r;
	}
	free(v->slots);
	free(v->regions);
	v->slots = slots;
	v->slot_count = count;
	v->regions = regions;
	v->region_count = region_count;
	v->source = source;
	log_debug("slots vm=%s %zu slots in %zu regions, from %s", v->vm->uuid, count, region_count,
		  source == EPT_FROM_QMP ? "QMP" : "maps");
	return 0;
}

/* ---- without QMP ---- */

static int refresh_from_maps(struct ept_view *v)
{
	auto_free struct vma *vmas = NULL;
	struct ept_slot *slot;
	size_t count;
	uint64_t hva;
	int r;

	r = ept_maps_read(v->fs, v->vm->pid, &vmas, &count);
	if (r < 0) {
		snprintf(v->why, sizeof(v->why), "cannot read its mappings: %s", strerror(-r));
		return r;
	}
	r = maps_find_anon(vmas, count, v->vm->ram_bytes, &hva);
	if (r < 0) {
		snprintf(v->why, sizeof(v->why), "no QMP, and %s anonymous mapping of its %" PRIu64 " MiB",
			 r == -ENOENT ? "no" : "more than one", v->vm->ram_bytes >> 20);
		return r;
	}
	slot = calloc(1, sizeof(*slot));
	if (!slot)
		return -ENOMEM;
	slot->gpa = EPT_GPA_UNKNOWN;
	slot->hva = hva;
	slot->bytes = v->vm->ram_bytes;
	snprintf(slot->block, sizeof(slot->block), "ram");
	r = view_install(v, slot, 1, EPT_FROM_MAPS);
	if (r == 0)
		snprintf(v->why, sizeof(v->why), "no QMP: found by its size, guest-physical addresses unknown");
	return r;
}

/* ---- with QMP ---- */

static void refresh_failed(struct ept_view *v)
{
	log_warning("slots vm=%s unknown: %s, going by its mappings", v->vm->uuid, v->why);
	questions_drop(v);
	if (v->source != EPT_FROM_QMP && refresh_from_maps(v) < 0)
		log_warning("slots vm=%s unknown: %s", v->vm->uuid, v->why);
}

static void ask_next(struct ept_view *v);

static void slots_from_answers(struct ept_view *v)
{
	struct ept_slot *slots = calloc(v->range_count, sizeof(*slots));
	size_t count = v->range_count;

	if (!slots) {
		snprintf(v->why, sizeof(v->why), "out of memory");
		refresh_failed(v);
		return;
	}
	for (size_t i = 0; i < count; i++) {
		struct mtree_range *range = &v->ranges[i];

		slots[i] = (struct ept_slot){ .gpa = range->gpa, .hva = v->answers[2 * i], .bytes = range->bytes };
		memcpy(slots[i].block, range->block, sizeof(slots[i].block));
	}
	if (view_install(v, slots, count, EPT_FROM_QMP) < 0) {
		refresh_failed(v);
		return;
	}
	v->why[0] = '\0';
	questions_drop(v);
}

/* text is the VMM's: it is cut between characters only. */
static void why_set(struct ept_view *v, const char *question, const char *text)
{
	int n = snprintf(v->why, sizeof(v->why), "%s: ", question);

	text_copy(v->why + n, sizeof(v->why) - (size_t)n, text, strlen(text));
}

static void on_hva(struct qmp *q, int result, const json_t *reply, const char *error, void *userdata)
{
	struct ept_view *v = userdata;
	const struct mtree_range *range = &v->ranges[v->asked / 2];
	bool last_page = v->asked % 2;
	const char *text = json_string_value(reply);

	(void)q;
	if (result < 0 || !text || mtree_parse_hva(text, &v->answers[v->asked]) < 0) {
		why_set(v, "gpa2hva", result < 0 && error ? error : "not understood");
		refresh_failed(v);
		return;
	}
	/* A range is one RAM block, so its last page must lie as far from its first as in the guest. */
	if (last_page && v->answers[v->asked] - v->answers[v->asked - 1] != range->bytes - PAGE_BYTES) {
		snprintf(v->why, sizeof(v->why), "gpa2hva 0x%" PRIx64 ": range is not contiguous", range->gpa);
		refresh_failed(v);
		return;
	}
	v->asked++;
	if (v->asked < 2 * v->range_count)
		ask_next(v);
	else
		slots_from_answers(v);
}

static void ask_next(struct ept_view *v)
{
	const struct mtree_range *range = &v->ranges[v->asked / 2];
	uint64_t gpa = range->gpa + (v->asked % 2 ? range->bytes - PAGE_BYTES : 0);
	char line[64];
	int r;

	snprintf(line, sizeof(line), "gpa2hva 0x%" PRIx64, gpa);
	r = v->vm->qmp ? qmp_hmp(v->vm->qmp, line, on_hva, v) : -ENOTCONN;
	if (r < 0) {
		snprintf(v->why, sizeof(v->why), "QMP: %s", strerror(-r));
		refresh_failed(v);
	}
}

static int ranges_take(struct ept_view *v, const char *text)
{
	struct mtree_range *ranges = calloc(MTREE_RANGES_MAX, sizeof(*ranges));
	int n;

	if (!ranges)
		return -ENOMEM;
	n = mtree_parse(text, ranges, MTREE_RANGES_MAX);
	if (n < 0) {
		free(ranges);
		return n;
	}
	v->answers = calloc(2 * (size_t)n, sizeof(*v->answers));
	if (!v->answers) {
		free(ranges);
		return -ENOMEM;
	}
	v->ranges = ranges;
	v->range_count = (size_t)n;
	v->asked = 0;
	return 0;
}

static void on_mtree(struct qmp *q, int result, const json_t *reply, const char *error, void *userdata)
{
	struct ept_view *v = userdata;
	const char *text = json_string_value(reply);
	int r;

	(void)q;
	if (result < 0 || !text) {
		why_set(v, "info mtree", error ? error : "no text");
		refresh_failed(v);
		return;
	}
	r = ranges_take(v, text);
	if (r < 0) {
		snprintf(v->why, sizeof(v->why), "info mtree: not understood (%s)", strerror(-r));
		refresh_failed(v);
		return;
	}
	ask_next(v);
}

void ept_view_refresh(struct ept_view *v)
{
	if (v->asked_of && v->asked_of == v->vm->qmp)
		return;
	questions_drop(v);
	if (v->vm->qmp) {
		if (qmp_hmp(v->vm->qmp, "info mtree -f", on_mtree, v) == 0) {
			v->asked_of = v->vm->qmp;
			return;
		}
		snprintf(v->why, sizeof(v->why), "QMP takes no command");
	}
	if (refresh_from_maps(v) < 0)
		log_warning("slots vm=%s unknown: %s", v->vm->uuid, v->why);
}

void ept_view_abandon(struct ept_view *v)
{
	questions_drop(v);
}

int ept_view_hva(const struct ept_view *v, uint64_t gpa, uint64_t *ret_hva)
{
	size_t low = 0, high = v->slot_count;

	while (low < high) {
		size_t mid = low + (high - low) / 2;
		const struct ept_slot *slot = &v->slots[mid];

		if (slot->gpa == EPT_GPA_UNKNOWN)
			return -ENXIO;
		if (gpa < slot->gpa) {
			high = mid;
		} else if (gpa - slot->gpa >= slot->bytes) {
			low = mid + 1;
		} else {
			*ret_hva = slot->hva + (gpa - slot->gpa);
			return 0;
		}
	}
	return -ENXIO;
}
