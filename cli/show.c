#include "cli/show.h"

#include <stdlib.h>
#include <string.h>

#include "cli/table.h"
#include "core/cleanup.h"

static const char *text(const json_t *object, const char *key)
{
	const char *value = json_string_value(json_object_get(object, key));

	return value ? value : "";
}

static double number(const json_t *object, const char *key)
{
	return json_number_value(json_object_get(object, key));
}

static const char *or_dash(const char *value)
{
	return *value ? value : "-";
}

static double share(double part, double whole)
{
	return whole > 0 ? part / whole * 100 : 0;
}

void show_vms(const json_t *answer)
{
	static const char *const titles[] = { "*NAME", "*UUID",	  ">PID",   "STATE", "*DOMAIN",
					      ">MEMORY",  ">RESIDENT", ">MERGED", "*WHY" };
	struct table *t;
	const json_t *vm;
	size_t i;

	if (json_array_size(answer) == 0) {
		puts("no VM is running");
		return;
	}
	t = table_new(titles, ARRAY_SIZE(titles));
	json_array_foreach(answer, i, vm) {
		table_add(t, "%s", text(vm, "name"));
		table_add(t, "%s", text(vm, "uuid"));
		table_add(t, "%.0f", number(vm, "pid"));
		table_add(t, "%s", text(vm, "state"));
		table_add(t, "%s", or_dash(text(vm, "domain")));
		table_add(t, "%.0f MiB", number(vm, "memory_mib"));
		table_add(t, "%.0f MiB", number(vm, "resident_mib"));
		table_add(t, "%.0f MiB", number(vm, "ksm_merging_mib"));
		table_add(t, "%s", text(vm, "why"));
	}
	table_print(t, stdout);
	table_free(t);
}

static void estimate_row(struct table *t, const char *name, const char *domain, const json_t *row)
{
	table_add(t, "%s", name);
	table_add(t, "%s", domain);
	table_add(t, "%.1f", number(row, "present_mib"));
	table_add(t, "%.1f", number(row, "zero_mib"));
	table_add(t, "%.1f", number(row, "dup_within_mib"));
	table_add(t, "%.1f", number(row, "dup_between_mib"));
	table_add(t, "%.1f", number(row, "mergeable_mib"));
	table_add(t, "%.0f %%", share(number(row, "mergeable_mib"), number(row, "present_mib")));
}

void show_estimate(const json_t *answer)
{
	static const char *const titles[] = { "*VM", "*DOMAIN", ">PRESENT", ">ZERO", ">WITHIN", ">BETWEEN",
					      ">MERGEABLE", ">SHARE" };
	const json_t *vms = json_object_get(answer, "vms"), *total = json_object_get(answer, "total"), *vm;
	struct table *t;
	double between;
	size_t i;

	if (json_array_size(vms) == 0) {
		puts("no VM whose memory is known is running");
		return;
	}
	t = table_new(titles, ARRAY_SIZE(titles));
	json_array_foreach(vms, i, vm)
		estimate_row(t, text(vm, "name"), or_dash(text(vm, "domain")), vm);
	estimate_row(t, "total", "", total);
	table_print(t, stdout);
	table_free(t);
	between = number(total, "zero_mib") + number(total, "dup_within_mib") + number(total, "dup_between_mib");
	printf("\nMiB. MERGEABLE is what the configured domains allow; all VMs in one domain would give %.1f.\n"
	       "Looked at in %.2f s with %.2f s of CPU time.\n",
	       between, number(total, "seconds"), number(total, "cpu_seconds"));
}

void show_sharing(const json_t *answer)
{
	const json_t *vms = json_object_get(answer, "vms"), *rows = json_object_get(answer, "shared_mib");
	size_t n = json_array_size(vms);
	const char **titles;
	struct table *t;

	if (n == 0) {
		puts("no VM whose memory is known is running");
		return;
	}
	titles = calloc(n + 1, sizeof(*titles));
	if (!titles)
		return;
	titles[0] = "*MiB";
	for (size_t i = 0; i < n; i++)
		titles[i + 1] = text(json_array_get(vms, i), "name");
	t = table_new(titles, n + 1);
	for (size_t i = 0; i < n; i++) {
		table_add(t, "%s", text(json_array_get(vms, i), "name"));
		for (size_t k = 0; k < n; k++)
			table_add(t, "%.1f", json_number_value(json_array_get(json_array_get(rows, i), k)));
	}
	table_print(t, stdout);
	table_free(t);
	free(titles);
	puts("\nContents that both VMs hold, each counted once; on the diagonal, copies inside the VM. Zero pages\n"
	     "are left out.");
}

void show_status(const json_t *answer)
{
	printf("memvirtd, pid %.0f, up %.0f s%s\n", number(answer, "pid"), number(answer, "uptime_seconds"),
	       json_is_true(json_object_get(answer, "dry_run")) ? ", dry run" : "");
	printf("VMs        %.0f\n", number(answer, "vms"));
	printf("host       %.0f of %.0f MiB available\n", number(answer, "memory_available_mib"),
	       number(answer, "memory_total_mib"));
	printf("merging    engine %s, %s, %.0f MiB saved\n", text(answer, "merge_engine"), text(answer, "ksm_state"),
	       number(answer, "saved_mib"));
	printf("           %s\n", text(answer, "why"));
	printf("own cost   %.2f s of CPU time\n", number(answer, "cpu_seconds"));
}

static void merge_vms(const json_t *vms)
{
	static const char *const titles[] = { "*VM",	 "*DOMAIN", "*ENGINE", ">RESIDENT", ">MERGEABLE",
					      ">SAVED", ">MERGED", ">BROKEN", ">BREAKS/S", ">IN KSM", "*REFUSED" };
	struct table *t = table_new(titles, ARRAY_SIZE(titles));
	const json_t *vm;
	size_t i;

	json_array_foreach(vms, i, vm) {
		table_add(t, "%s", text(vm, "name"));
		table_add(t, "%s", or_dash(text(vm, "domain")));
		table_add(t, "%s", text(vm, "engine"));
		table_add(t, "%.1f", number(vm, "resident_mib"));
		table_add(t, "%.1f", number(vm, "mergeable_mib"));
		table_add(t, "%.1f", number(vm, "saved_mib"));
		table_add(t, "%.1f", number(vm, "merged_mib"));
		table_add(t, "%.1f", number(vm, "broken_mib"));
		table_add(t, "%.0f", number(vm, "breaks_per_s"));
		table_add(t, "%.1f", number(vm, "merging_mib"));
		table_add(t, "%s", or_dash(text(vm, "refusal")));
	}
	table_print(t, stdout);
	table_free(t);
}

static void show_round(const json_t *answer, const json_t *round)
{
	printf("agents     %.0f rounds, %.1f MiB in shared frames%s\n", number(answer, "rounds"),
	       number(answer, "frames_mib"), json_is_true(json_object_get(answer, "merging")) ? ", merging now" : "");
	if (json_is_object(round))
		printf("last round %.1f MiB merged and %.1f MiB of zeroes dropped in %.2f s with %.2f s of CPU time; %.1f MiB of "
		       "new frames, longest stall %.0f us\n",
		       number(round, "merged_mib"), number(round, "zero_mib"), number(round, "seconds"),
		       number(round, "cpu_seconds"),
		       number(round, "filled_mib"), number(round, "longest_stall_us"));
}

/* "12 of 20", or "12" where there is no limit. */
static void show_rate(const char *before, double rate, double limit, const char *unit)
{
	printf("%s%.0f", before, rate);
	if (limit > 0)
		printf(" of %.0f", limit);
	fputs(unit, stdout);
}

static void show_rates(const json_t *round)
{
	show_rate("  rates    ", number(round, "windows_per_s"), number(round, "windows_per_s_limit"), " windows/s, ");
	show_rate("", number(round, "exchanged_mib_per_s"), number(round, "exchanged_mib_per_s_limit"), " MiB/s, ");
	show_rate("", number(round, "cpu_percent"), number(round, "cpu_percent_limit"), " % of a core\n");
}

static void show_debt(const json_t *answer)
{
	const json_t *domains = json_object_get(answer, "domains"), *domain;
	size_t i;

	printf("debt       %.1f of %.1f MiB merged may come back at once, %.1f MiB would fit: %s\n",
	       number(answer, "debt_mib"), number(answer, "debt_most_mib"), number(answer, "debt_limit_mib"),
	       text(answer, "debt_state"));
	json_array_foreach(domains, i, domain)
		printf("  domain   %s: %.1f MiB merged, %.0f pages a second break\n", or_dash(text(domain, "domain")),
		       number(domain, "merged_mib"), number(domain, "breaks_per_s"));
}

void show_merge_status(const json_t *answer)
{
	const json_t *ksm = json_object_get(answer, "ksm"), *pass = json_object_get(answer, "last_pass");

	printf("saved      %.1f MiB\n", number(answer, "saved_mib"));
	show_debt(answer);
	show_round(answer, json_object_get(answer, "last_round"));
	if (json_is_object(json_object_get(answer, "last_round")))
		show_rates(json_object_get(answer, "last_round"));
	printf("scanner    %s: %s; %.1f MiB expected of it\n", text(answer, "state"), text(answer, "why"),
	       number(answer, "expected_mib"));
	if (json_is_object(pass))
		printf("last pass  %.1f MiB looked at in %.2f s with %.2f s of CPU time\n",
		       number(pass, "scanned_mib"), number(pass, "seconds"), number(pass, "cpu_seconds"));
	if (json_is_true(json_object_get(answer, "passing")))
		printf("pass       %.0f %% done\n",
		       share(number(answer, "pass_done_pages"), number(answer, "pass_total_pages")));
	if (json_is_true(json_object_get(answer, "ksm_present")))
		printf("kernel     run=%.0f pages_to_scan=%.0f sleep_millisecs=%.0f, %.0f pages scanned in %.0f full "
		       "scans, %.2f s of CPU time\n",
		       number(ksm, "run"), number(ksm, "pages_to_scan"), number(ksm, "sleep_millisecs"),
		       number(ksm, "pages_scanned"), number(ksm, "full_scans"), number(ksm, "cpu_seconds"));
	puts("\nMiB:");
	merge_vms(json_object_get(answer, "vms"));
}

void show_explain(const json_t *answer)
{
	const json_t *refusals = json_object_get(answer, "refusals"), *refusal;
	size_t i;

	printf("%s  %s  pid %.0f  %s\n", text(answer, "name"), text(answer, "uuid"), number(answer, "pid"),
	       or_dash(text(answer, "machine")));
	printf("state    %s%s%s\n", text(answer, "state"), *text(answer, "why") ? ": " : "", text(answer, "why"));
	printf("memory   %.0f MiB configured, %.0f MiB resident; layout from %s%s%s\n", number(answer, "memory_mib"),
	       number(answer, "resident_mib"), text(answer, "slots_from"), *text(answer, "slots_why") ? ": " : "",
	       text(answer, "slots_why"));
	printf("domain   %s\n", *text(answer, "domain") ? text(answer, "domain") : "its own: shares with no other VM");
	printf("engine   %s\n", text(answer, "engine"));
	json_array_foreach(refusals, i, refusal)
		printf("refused  %s\n", json_string_value(refusal));
	if (*text(answer, "unmerge_why"))
		printf("unmerge  not possible: %s\n", text(answer, "unmerge_why"));
}

void show_reload(const json_t *answer)
{
	printf("reloaded %s\n", or_dash(text(answer, "reloaded")));
}
