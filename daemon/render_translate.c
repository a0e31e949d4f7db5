#include <inttypes.h>

#include "daemon/translate.h"

/* Addresses do not fit the numbers of JSON: 0x and hexadecimal digits, as text. */
static json_t *hex(uint64_t value)
{
	return json_sprintf("0x%" PRIx64, value);
}

static json_t *hex_or_null(bool known, uint64_t value)
{
	return known ? hex(value) : json_null();
}

static const char *backing_name(enum mem_backing backing)
{
	static const char *const names[] = { [MEM_ANON] = "anonymous", [MEM_SHARED] = "memory-file",
					     [MEM_HUGETLB] = "hugetlb", [MEM_FILE] = "file" };

	return names[backing];
}

static json_t *render_frame(const struct frame *f, uint64_t stage2_bytes)
{
	if (f->state != FRAME_PRESENT)
		return json_pack("{s:s, s:s, s:n, s:n, s:n, s:n}", "state", frame_state_name(f->state), "kind",
				 frame_kind_name(f->kind), "page_bytes", "stage2_page_bytes", "node", "exclusive");
	return json_pack("{s:s, s:s, s:I, s:o, s:o, s:b}", "state", frame_state_name(f->state), "kind",
			 frame_kind_name(f->kind), "page_bytes", (json_int_t)f->page_bytes, "stage2_page_bytes",
			 stage2_bytes ? json_integer((json_int_t)stage2_bytes) : json_null(), "node",
			 f->node >= 0 ? json_integer(f->node) : json_null(), "exclusive", f->exclusive);
}

static json_t *render_place(const struct translate_place *p)
{
	return p->slot ? render_frame(&p->frame, p->stage2_bytes) : json_null();
}

static json_t *render_step(const struct walk *w, const struct walk_step *s, const struct translate_place *p)
{
	return json_pack("{s:i, s:s, s:o, s:i, s:o, s:I, s:o, s:o, s:o, s:o}", "level", s->level, "name",
			 walk_level_name(w->mode, s->level), "table", hex(s->table), "index", s->index, "entry",
			 w->fault_level == s->level && (w->fault == WALK_OUTSIDE || w->fault == WALK_UNREADABLE) ?
				 json_null() :
				 hex(s->entry),
			 "entry_spans_bytes", (json_int_t)s->bytes, "gpa", hex(p->gpa), "hva",
			 hex_or_null(p->slot, p->hva), "hpa", hex_or_null(p->slot && p->frame.hpa_known, p->frame.hpa), "host",
			 render_place(p));
}

static json_t *render_steps(const struct translation *t)
{
	json_t *steps = json_array();

	for (unsigned i = 0; steps && t->gva_known && i < t->walk.step_count; i++) {
		if (json_array_append_new(steps, render_step(&t->walk, &t->walk.steps[i], &t->tables[i])) < 0) {
			json_decref(steps);
			return NULL;
		}
	}
	return steps;
}

static json_t *render_guest_page(const struct translation *t)
{
	const struct walk *w = &t->walk;

	if (!t->gva_known || w->fault != WALK_MAPPED || w->page_bytes == 0)
		return json_null();
	return json_pack("{s:I, s:b, s:b, s:b, s:b, s:b, s:b, s:i}", "page_bytes", (json_int_t)w->page_bytes, "writable",
			 w->writable, "user", w->user, "executable", w->executable, "accessed", w->accessed, "dirty", w->dirty,
			 "global", w->global, "pat_index", (int)w->pat_index);
}

static json_t *render_slot(const struct translate_place *p)
{
	if (!p->slot)
		return json_null();
	return json_pack("{s:s, s:o, s:o, s:I, s:s}", "block", p->slot->block, "gpa",
			 hex_or_null(p->slot->gpa != EPT_GPA_UNKNOWN, p->slot->gpa), "hva", hex(p->slot->hva), "bytes",
			 (json_int_t)p->slot->bytes, "backing", backing_name(p->slot->backing));
}

static json_t *render_fault(const struct translate_answer *a)
{
	const struct translation *t = a->translation;
	bool walked = t->gva_known && t->walk.fault != WALK_MAPPED;

	if (!a->fault)
		return json_null();
	return json_pack("{s:i, s:s, s:s}", "level", walked ? (int)t->walk.fault_level : 0, "reason",
			 walked ? walk_fault_name(t->walk.fault) : "not in guest RAM", "why", a->why);
}

json_t *render_translation(const struct translate_answer *a)
{
	const struct translation *t = a->translation;
	const struct translate_place *p = &t->page;
	bool walked = t->gva_known;

	return json_pack("{s:s, s:s, s:i, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o}", "name",
			 a->target->name, "uuid", a->target->uuid, "pid", (int)a->target->pid, "gva",
			 hex_or_null(t->gva_known, t->gva), "gpa", hex_or_null(t->gpa_known, p->gpa), "hva",
			 hex_or_null(p->slot, p->hva), "hpa", hex_or_null(p->slot && p->frame.hpa_known, p->frame.hpa), "cpu",
			 walked ? json_integer(a->cpu) : json_null(), "mode",
			 walked ? json_string(walk_mode_name(t->walk.mode)) : json_null(), "cr3",
			 walked ? hex(a->regs->cr3) : json_null(), "steps", render_steps(t), "guest", render_guest_page(t), "slot",
			 render_slot(p), "host", render_place(p), "references",
			 t->references ? json_integer(t->references) : json_null(), "fault", render_fault(a));
}

static json_t *render_hits(const struct search *s)
{
	size_t kept = s->found < s->cap ? (size_t)s->found : s->cap;
	json_t *hits = json_array();

	for (size_t i = 0; hits && i < kept; i++) {
		const struct ept_target *t = s->targets[s->hits[i].target];
		uint64_t gpa = 0;
		size_t next = 0;
		bool known = ept_target_gpa(t, s->hits[i].hva, &next, &gpa) == 0;

		if (json_array_append_new(hits, json_pack("{s:s, s:s, s:i, s:o, s:o}", "name", t->name, "uuid", t->uuid, "pid",
							  (int)t->pid, "gpa", hex_or_null(known, gpa), "hva",
							  hex(s->hits[i].hva))) < 0) {
			json_decref(hits);
			return NULL;
		}
	}
	return hits;
}

json_t *render_found(const struct translate_found *f)
{
	json_t *unknown = json_array();

	for (size_t i = 0; unknown && i < f->unknown_count; i++)
		json_array_append_new(unknown, json_string(f->unknown[i]));
	return json_pack("{s:o, s:I, s:o, s:o, s:I, s:o}", "hpa", hex(f->search->hpa), "found", (json_int_t)f->search->found,
			 "mappings", render_hits(f->search), "host", f->frame ? render_frame(f->frame, 0) : json_null(), "lost",
			 (json_int_t)f->search->lost, "unknown", unknown);
}
