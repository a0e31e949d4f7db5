#include <inttypes.h>

#include "core/snapshot.h"
#include "daemon/guest_processes.h"
#include "ept/target.h"

static double mib(uint64_t pages)
{
	return (double)(pages * 100 / ((1u << 20) / PAGE_BYTES)) / 100;
}

static json_t *render_usage(const struct attribute_usage *u)
{
	return json_pack("{s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:b}", "mapped_mib", mib(u->mapped), "resident_mib",
			 mib(u->resident), "merged_mib", mib(u->merged), "huge_mib", mib(u->huge), "swapped_mib",
			 mib(u->swapped), "remote_mib", mib(u->remote), "devices_mib", mib(u->outside), "incomplete",
			 u->incomplete);
}

static json_t *render_spaces(const struct processes *p)
{
	json_t *spaces = json_array();

	for (size_t i = 0; spaces && i < p->space_count; i++) {
		const struct processes_space *s = &p->spaces[i];
		json_t *row = render_usage(&s->usage);
		json_t *more = json_pack("{s:o, s:i, s:I, s:I}", "root", json_sprintf("0x%" PRIx64, s->root), "seen",
					 (int)s->seen, "entries_4k", (json_int_t)s->usage.entries_4k, "entries_2m",
					 (json_int_t)s->usage.entries_2m);
		int r = row && more ? json_object_update(row, more) : -1;

		json_decref(more);
		if (r < 0 || json_array_append(spaces, row) < 0) {
			json_decref(row);
			json_decref(spaces);
			return NULL;
		}
		json_decref(row);
	}
	return spaces;
}

json_t *render_guest_processes(const struct processes *p, unsigned cpus)
{
	const struct ept_target *t = p->target;
	enum walk_mode mode = WALK_FLAT;

	walk_mode_of(&p->regs, &mode);
	return json_pack("{s:s, s:s, s:i, s:s, s:i, s:i, s:o, s:b, s:b, s:{s:I, s:I, s:I, s:I}, s:o, s:o, s:o}", "name", t->name,
			 "uuid", t->uuid, "pid", (int)t->pid, "mode", walk_mode_name(mode), "cpus", (int)cpus, "samples",
			 (int)p->seen_count, "home_node", p->home >= 0 ? json_integer(p->home) : json_null(), "searched",
			 p->searched, "more", p->more, "tables", "count", (json_int_t)p->second.tables, "changed",
			 (json_int_t)(p->second.changed + p->second.added + p->second.dropped), "outside",
			 (json_int_t)p->second.outside, "unreadable", (json_int_t)p->second.unreadable, "spaces",
			 render_spaces(p), "together", render_usage(&p->together), "kernel", render_usage(&p->kernel));
}
