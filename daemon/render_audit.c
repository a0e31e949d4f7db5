#include <inttypes.h>
#include <math.h>

#include "daemon/audit.h"
#include "ept/target.h"

/* Violations that are named; more are counted. */
#define NAMED_MAX 64

static json_t *render_place(const struct audit_host *h, const struct audit_place *p)
{
	const struct ept_target *t = h->targets[p->vm].target;
	const char *domain = h->targets[p->vm].domain;
	json_t *place = json_pack("{s:s, s:s, s:i, s:s, s:o}", "name", t->name, "uuid", t->uuid, "pid", (int)t->pid, "domain",
				  domain[0] == '=' ? "" : domain, "hva", json_sprintf("0x%" PRIx64, p->hva));
	uint64_t gpa;
	size_t next = 0;

	if (place)
		json_object_set_new(place, "gpa", ept_target_gpa(t, p->hva, &next, &gpa) == 0 ?
							 json_sprintf("0x%" PRIx64, gpa) : json_null());
	return place;
}

static json_t *render_violation(const struct audit_host *h, const struct audit_violation *v)
{
	json_t *vms = json_array();

	if (v->has_other)
		json_array_append_new(vms, render_place(h, &v->other));
	json_array_append_new(vms, render_place(h, &v->place));
	return json_pack("{s:s, s:o, s:o}", "why", audit_why_text(v->why), "hpa",
			 v->frame ? json_sprintf("0x%" PRIx64, v->frame * PAGE_BYTES) : json_null(), "vms", vms);
}

json_t *render_audit(const struct audit_answer *a)
{
	const struct audit_host *h = a->host;
	const struct audit_counts *c = &h->counts;
	json_t *violations = json_array(), *unknown = json_array();
	double seconds = (double)a->took_ns / 1e9;

	for (size_t i = 0; i < h->violation_count && i < NAMED_MAX; i++)
		json_array_append_new(violations, render_violation(h, &h->violations[i]));
	for (size_t i = 0; i < a->unknown_count; i++)
		json_array_append_new(unknown, json_string(a->unknown[i]));
	return json_pack("{s:b, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:o, s:o, s:f, s:I}", "clean",
			 h->violation_count == 0, "vms", (json_int_t)h->target_count, "pages", (json_int_t)c->pages, "frames",
			 (json_int_t)c->frames, "shared_zero", (json_int_t)c->zero, "shared_ksm", (json_int_t)c->ksm,
			 "shared_store", (json_int_t)c->store, "shared_within", (json_int_t)c->within, "violation_count",
			 (json_int_t)h->violation_count, "not_checked", (json_int_t)c->more, "vanished",
			 (json_int_t)h->vanished, "lost", (json_int_t)h->lost, "violations", violations, "unknown", unknown,
			 "seconds", round(seconds * 10000) / 10000, "metadata_bytes", (json_int_t)h->bytes);
}
