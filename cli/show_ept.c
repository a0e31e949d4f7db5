/* memvirtctl ept, for people. */
#include "cli/show.h"

#include "cli/table.h"
#include "core/cleanup.h"

static const char *const sizes[] = { "4k", "2m", "1g" };
static const char *const size_names[] = { "4 KiB", "2 MiB", "1 GiB" };
static const double size_pages[] = { 1, 512, 262144 };

static double number(const json_t *object, const char *key)
{
	return json_number_value(json_object_get(object, key));
}

static const char *text(const json_t *object, const char *key)
{
	const char *value = json_string_value(json_object_get(object, key));

	return value ? value : "";
}

static double mib(double pages)
{
	return pages / 256;
}

static void show_pages(const json_t *pages)
{
	printf("memory   %.1f MiB: %.1f present, %.1f swapped, %.1f absent\n", mib(number(pages, "total")),
	       mib(number(pages, "present")), mib(number(pages, "swapped")), mib(number(pages, "absent")));
	printf("present  %.1f MiB its own, %.1f zero page, %.1f in frames of a store, %.1f in KSM's, %.1f of files\n",
	       mib(number(pages, "own")), mib(number(pages, "zero")), mib(number(pages, "store")), mib(number(pages, "ksm")),
	       mib(number(pages, "file")));
}

static void show_sizes(const json_t *host, const json_t *leaves)
{
	static const char *const titles[] = { "PAGES", ">HOST MIB", ">MIB", ">ENTRIES" };
	struct table *t = table_new(titles, ARRAY_SIZE(titles));

	for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
		table_add(t, "%s", size_names[i]);
		table_add(t, "%.1f", mib(number(host, sizes[i])));
		table_add(t, "%.1f", mib(number(leaves, sizes[i]) * size_pages[i]));
		table_add(t, "%.0f", number(leaves, sizes[i]));
	}
	table_print(t, stdout);
	table_free(t);
}

static void show_walk(const json_t *rows)
{
	static const char *const titles[] = { "GUEST PAGES", ">REFERENCES", ">ON 4 KIB", ">ON 2 MIB", ">ON 1 GIB", ">TLB ENTRIES",
					      ">TLB HOLDS" };
	struct table *t = table_new(titles, ARRAY_SIZE(titles));
	const json_t *row;
	size_t i;

	json_array_foreach(rows, i, row) {
		const json_t *uniform = json_object_get(row, "references_by_host_page");

		table_add(t, "%s", i < ARRAY_SIZE(size_names) ? size_names[i] : "");
		table_add(t, "%.1f", number(row, "references"));
		for (size_t k = 0; k < ARRAY_SIZE(sizes); k++)
			table_add(t, "%.0f", number(uniform, sizes[k]));
		table_add(t, "%.0f", number(row, "tlb_entries"));
		table_add(t, "%.1f MiB", mib(number(row, "tlb_reach_pages")));
	}
	table_print(t, stdout);
	table_free(t);
}

void show_ept(const json_t *answer)
{
	const json_t *table = json_object_get(answer, "table"), *tlb = json_object_get(answer, "tlb");

	printf("%s  %s  pid %.0f\n", text(answer, "name"), text(answer, "uuid"), number(answer, "pid"));
	show_pages(json_object_get(answer, "pages"));
	printf("table    %s, %.0f levels: %.0f tables, %.1f KiB (%.3f %% of the VM), built in %.1f ms; %.0f pages were other "
	       "ones just after\n\n",
	       text(table, "format"), number(table, "levels"), number(table, "tables"), number(table, "bytes") / 1024,
	       number(table, "share") * 100, number(table, "build_ms"), number(answer, "moved_pages"));
	show_sizes(json_object_get(answer, "host_pages"), json_object_get(answer, "leaves"));
	puts("\nMemory references of one address translation without any cache, (g+1)(h+1)-1 with the mean h of the pages above:");
	show_walk(json_object_get(answer, "walk"));
	printf("\nHow large the guest's pages are is not known; its tables are taken to lie in host pages of the same mix.\n"
	       "TLB: entries that hold all present memory; what %.0f entries (%.0f for 1 GiB) hold at most.\n",
	       number(tlb, "entries"), number(tlb, "entries_1g"));
}
