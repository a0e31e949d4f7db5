#include <math.h>

#include "core/cleanup.h"
#include "daemon/census.h"
#include "ept/target.h"
#include "ept/walk_cost.h"

static const char *const size_names[TABLE_LEAF_LEVELS] = { "4k", "2m", "1g" };

static json_t *render_pages(const struct ept_census *c)
{
	static const char *const kinds[EPT_FRAME_KINDS] = { [FRAME_OWN] = "own", [FRAME_ZERO] = "zero", [FRAME_KSM] = "ksm",
							    [FRAME_STORE] = "store", [FRAME_FILE] = "file" };
	json_t *pages = json_pack("{s:I, s:I, s:I, s:I}", "total", (json_int_t)c->pages, "present", (json_int_t)c->present,
				  "swapped", (json_int_t)c->swapped, "absent",
				  (json_int_t)(c->pages - c->present - c->swapped));

	for (size_t i = 0; pages && i < ARRAY_SIZE(kinds); i++)
		json_object_set_new(pages, kinds[i], json_integer((json_int_t)c->kinds[i]));
	return pages;
}

static json_t *render_sizes(const uint64_t counts[TABLE_LEAF_LEVELS])
{
	json_t *sizes = json_object();

	for (unsigned i = 0; i < TABLE_LEAF_LEVELS; i++)
		json_object_set_new(sizes, size_names[i], json_integer((json_int_t)counts[i]));
	return sizes;
}

static json_t *render_walk(const struct ept_census *c, unsigned levels)
{
	json_t *rows = json_array();

	for (unsigned guest = 1; guest <= TABLE_LEAF_LEVELS; guest++) {
		struct walk_cost cost;
		json_t *row;

		walk_cost_of(c->leaves, levels, guest, &cost);
		row = json_pack("{s:s, s:f, s:I, s:I}", "guest_page", size_names[guest - 1], "references",
				round(cost.references * 1000) / 1000, "tlb_entries", (json_int_t)cost.tlb_entries,
				"tlb_reach_pages", (json_int_t)cost.tlb_reach_pages);
		json_object_set_new(row, "references_by_host_page",
				    render_sizes((uint64_t[]){ cost.uniform[0], cost.uniform[1], cost.uniform[2] }));
		json_array_append_new(rows, row);
	}
	return rows;
}

json_t *render_census(const struct census_answer *a)
{
	const struct ept_census *c = &a->build->census;
	const struct table_options *o = ept_table_options(a->build->table);
	json_t *table = json_pack("{s:s, s:i, s:i, s:I, s:I, s:f, s:f}", "format", o->format->name, "levels", (int)o->levels,
				  "slots", (int)a->target->slot_count, "tables",
				  (json_int_t)ept_table_count(a->build->table), "bytes",
				  (json_int_t)ept_table_bytes(a->build->table), "share",
				  (double)ept_table_bytes(a->build->table) / ((double)c->pages * PAGE_BYTES), "build_ms",
				  round((double)a->build_ns / 1e3) / 1e3);

	return json_pack("{s:s, s:s, s:i, s:o, s:o, s:o, s:o, s:o, s:o, s:{s:i, s:i}, s:I}", "name", a->target->name, "uuid",
			 a->target->uuid, "pid", (int)a->target->pid, "pages", render_pages(c), "host_pages",
			 render_sizes(c->host), "leaves", render_sizes(c->leaves), "mappings",
			 json_pack("{s:I, s:I, s:I}", "rss_kib", (json_int_t)c->rss * 4, "anon_huge_kib",
				   (json_int_t)c->anon_huge * 4, "swap_kib", (json_int_t)c->mapping_swapped * 4),
			 "table", table, "walk", render_walk(c, o->levels), "tlb", "entries", (int)WALK_COST_TLB_ENTRIES,
			 "entries_1g", (int)WALK_COST_TLB_GIB_ENTRIES, "moved_pages", (json_int_t)a->moved_pages);
}
