#include "ept/translate.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* The largest of the host's page and those below it for which guest and host address lie alike within the page and
 * the slot holds the whole of it. */
static uint64_t stage2_bytes(const struct ept_slot *slot, uint64_t gpa, uint64_t hva, uint64_t host_bytes)
{
	for (uint64_t bytes = host_bytes; bytes > PAGE_BYTES; bytes /= 512) {
		uint64_t first = gpa & ~(bytes - 1);

		if (((gpa ^ hva) & (bytes - 1)) == 0 && first >= slot->gpa &&
		    first - slot->gpa + bytes <= slot->bytes)
			return bytes;
	}
	return PAGE_BYTES;
}

static int place_look(const struct ept_target *target, uint64_t gpa, struct translate_place *p)
{
	int r;

	*p = (struct translate_place){ .gpa = gpa, .slot = ept_target_slot(target, gpa) };
	if (!p->slot)
		return -EFAULT;
	p->hva = p->slot->hva + (gpa - p->slot->gpa);
	r = frame_look(target, p->hva, &p->frame);
	if (r < 0)
		return r;
	p->stage2_bytes = p->frame.state == FRAME_PRESENT ? stage2_bytes(p->slot, gpa, p->hva, p->frame.page_bytes) :
							    PAGE_BYTES;
	return 0;
}

unsigned translate_stage2_references(uint64_t bytes)
{
	unsigned references = TRANSLATE_STAGE2_LEVELS;

	for (uint64_t page = PAGE_BYTES; page < bytes; page *= 512)
		references--;
	return references;
}

/* Each guest table is found through the second stage and then read, and so is at last the page: (g + 1) * (h + 1) - 1
 * where all second-stage leaves are of one level. The four entries of PAE's first table are in registers. */
static unsigned references(const struct translation *t)
{
	unsigned sum = translate_stage2_references(t->page.stage2_bytes);

	for (unsigned i = t->gva_known && t->walk.mode == WALK_PAE ? 1 : 0; i < t->walk.step_count; i++)
		sum += translate_stage2_references(t->tables[i].stage2_bytes) + 1;
	return sum;
}

static int tables_look(const struct ept_target *target, struct translation *t)
{
	for (unsigned i = 0; i < t->walk.step_count; i++) {
		const struct walk_step *s = &t->walk.steps[i];
		int r = place_look(target, s->table + (uint64_t)s->index * s->entry_bytes, &t->tables[i]);

		if (r < 0 && r != -EFAULT)
			return r;
	}
	return 0;
}

static int page_look(const struct ept_target *target, uint64_t gpa, struct translation *t)
{
	int r = place_look(target, gpa, &t->page);

	t->gpa_known = true;
	if (r == 0)
		t->references = references(t);
	return r;
}

/* What was looked up by pid or read by a descriptor says nothing of a process that has ended. */
static int still(const struct ept_target *target, int r)
{
	return ept_target_alive(target) ? r : -ESRCH;
}

int translate_gva(const struct ept_target *target, const struct walk_regs *regs, uint64_t gva, struct translation *ret_t)
{
	struct translation *t = ret_t;
	int mapped, r;

	*t = (struct translation){ .gva_known = true, .gva = gva };
	mapped = walk_gva(regs, ept_target_read, (void *)(uintptr_t)target, gva, &t->walk);
	if (mapped == -EINVAL)
		return mapped;
	r = tables_look(target, t);
	if (r == 0 && mapped == 0)
		r = page_look(target, t->walk.gpa, t);
	else if (r == 0)
		r = mapped;
	return still(target, r);
}

int translate_gpa(const struct ept_target *target, uint64_t gpa, struct translation *ret_t)
{
	*ret_t = (struct translation){ 0 };
	return still(target, page_look(target, gpa, ret_t));
}

/* Without slots, as there are none without QMP. */
static int hva_look(const struct ept_target *target, uint64_t hva, struct translation *t)
{
	const struct ept_slot *slot = NULL;

	for (size_t i = 0; i < target->slot_count && !slot; i++)
		if (hva >= target->slots[i].hva && hva - target->slots[i].hva < target->slots[i].bytes)
			slot = &target->slots[i];
	if (!slot)
		return -ENXIO;
	t->page = (struct translate_place){ .slot = slot, .hva = hva, .stage2_bytes = PAGE_BYTES };
	return frame_look(target, hva, &t->page.frame);
}

int translate_hva(const struct ept_target *target, uint64_t hva, struct translation *ret_t)
{
	uint64_t gpa;
	size_t next = 0;

	*ret_t = (struct translation){ 0 };
	if (ept_target_gpa(target, hva, &next, &gpa) == 0)
		return still(target, page_look(target, gpa, ret_t));
	return still(target, hva_look(target, hva, ret_t));
}

static void walk_why(const struct walk *w, uint64_t gva, char *buf, size_t cap)
{
	const struct walk_step *s = w->step_count ? &w->steps[w->step_count - 1] : NULL;

	if (!s) {
		snprintf(buf, cap, "0x%" PRIx64 " is no address where the guest's paging is %s: more than %u bits", gva,
			 walk_mode_name(w->mode), walk_address_bits(w->mode));
		return;
	}
	if (w->fault == WALK_OUTSIDE || w->fault == WALK_UNREADABLE) {
		snprintf(buf, cap, "0x%" PRIx64 " is not mapped: level %u: the table at 0x%" PRIx64 " %s%s", gva,
			 s->level, s->table, w->fault == WALK_OUTSIDE ? "is outside of guest RAM" : "cannot be read: ",
			 w->fault == WALK_OUTSIDE ? "" : strerror(-w->error));
		return;
	}
	snprintf(buf, cap, "0x%" PRIx64 " is not mapped: level %u: %s 0x%" PRIx64 " (entry %u of the table at 0x%" PRIx64
		 ") ", gva, s->level, walk_level_name(w->mode, s->level), s->entry, s->index, s->table);
	cap -= strlen(buf);
	buf += strlen(buf);
	if (w->fault == WALK_RESERVED)
		snprintf(buf, cap, "has reserved bits set: 0x%" PRIx64, w->reserved);
	else
		snprintf(buf, cap, "is not present");
}

void translate_why(const struct translation *t, char *buf, size_t cap)
{
	if (t->gva_known && t->walk.fault != WALK_MAPPED)
		walk_why(&t->walk, t->gva, buf, cap);
	else
		snprintf(buf, cap, "guest-physical 0x%" PRIx64 " is not in guest RAM: a device, ROM, or nothing", t->page.gpa);
}
