#include "cli/guest_processes.h"

#include <stdio.h>

#include "cli/table.h"
#include "core/cleanup.h"

static double number(const json_t *object, const char *key)
{
	return json_number_value(json_object_get(object, key));
}

static const char *text(const json_t *object, const char *key)
{
	const char *value = json_string_value(json_object_get(object, key));

	return value ? value : "-";
}

static void row(struct table *t, const char *name, const char *seen, const json_t *usage)
{
	static const char *const columns[] = { "mapped_mib", "resident_mib", "merged_mib",
					       "huge_mib",   "swapped_mib",  "remote_mib" };

	table_add(t, "%s", name);
	table_add(t, "%s", seen);
	for (size_t i = 0; i < ARRAY_SIZE(columns); i++)
		table_add(t, "%.1f", number(usage, columns[i]));
	table_add(t, "%s", json_is_true(json_object_get(usage, "incomplete")) ? "too much is mapped to count it all" : "");
}

void show_guest_processes(const json_t *answer)
{
	static const char *const titles[] = { "*ADDRESS SPACE", ">SEEN", ">MAPPED",  ">RESIDENT", ">MERGED",
					      ">HUGE",		">SWAPPED", ">REMOTE", "*NOTE" };
	const json_t *spaces = json_object_get(answer, "spaces"), *tables = json_object_get(answer, "tables"), *space;
	struct table *t = table_new(titles, ARRAY_SIZE(titles));
	size_t i;

	json_array_foreach(spaces, i, space) {
		char seen[24];

		snprintf(seen, sizeof(seen), "%.0f", number(space, "seen"));
		row(t, text(space, "root"), seen, space);
	}
	row(t, "together", "", json_object_get(answer, "together"));
	row(t, "kernel, rest", "", json_object_get(answer, "kernel"));
	table_print(t, stdout);
	table_free(t);
	printf("\nMiB. \"together\" has each page once; \"kernel, rest\" is what only the guest's kernel maps.\n"
	       "Paging: %s. CPUs: %.0f, looked at %.0f times in all. Page tables: %.0f, of which %.0f changed meanwhile.\n",
	       text(answer, "mode"), number(answer, "cpus"), number(answer, "samples"), number(tables, "count"),
	       number(tables, "changed"));
	if (!json_is_true(json_object_get(answer, "searched")))
		puts("Only address spaces that a CPU was seen with.");
	if (json_is_true(json_object_get(answer, "more")))
		puts("There are more address spaces than were looked at.");
	if (number(tables, "outside") + number(tables, "unreadable") > 0)
		printf("%.0f entries lead to page tables outside of guest RAM, %.0f to some that cannot be read.\n",
		       number(tables, "outside"), number(tables, "unreadable"));
}
