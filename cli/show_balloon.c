/* memvirtctl balloon status, for people. */
#include "cli/show.h"

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

static void mib(struct table *t, const json_t *vm, const char *key)
{
	const json_t *value = json_object_get(vm, key);

	if (json_is_number(value))
		table_add(t, "%.0f", json_number_value(value));
	else
		table_add(t, "-");
}

static void show_host(const json_t *host)
{
	printf("host is %s: %.0f MiB free of %.0f MiB, %.0f MiB to be kept so\n", text(host, "state"),
	       number(host, "free_mib"), number(host, "total_mib"), number(host, "min_free_mib"));
	if (*text(host, "state_why"))
		printf("  since it changed: %s\n", text(host, "state_why"));
	printf("idle in VMs %.0f MiB; promised to VMs to come %.0f MiB; tasks stalled %.1f %% (some), %.1f %% (full)\n",
	       number(host, "idle_mib"), number(host, "promised_mib"), number(host, "stalled_some_percent"),
	       number(host, "stalled_full_percent"));
	printf("taken %.0f MiB, given back %.0f MiB, objections of guests %.0f\n", number(host, "taken_mib"),
	       number(host, "given_mib"), number(host, "vetoes"));
	if (number(host, "missing_mib") > 0)
		printf("RESERVATIONS CANNOT ALL BE KEPT: %.0f MiB too much\n", number(host, "missing_mib"));
}

void show_balloon_status(const json_t *answer)
{
	static const char *const titles[] = { "*VM", ">SIZE", ">NOW", ">TARGET", ">USED", ">AVAILABLE", ">HELD", ">ENTITLED",
					      "*WHY" };
	const json_t *vms = json_object_get(answer, "vms"), *vm;
	struct table *t;
	size_t i;

	show_host(json_object_get(answer, "host"));
	if (json_array_size(vms) == 0)
		return;
	t = table_new(titles, ARRAY_SIZE(titles));
	json_array_foreach(vms, i, vm) {
		table_add(t, "%s", text(vm, "name"));
		mib(t, vm, "max_mib");
		mib(t, vm, "actual_mib");
		mib(t, vm, "target_mib");
		mib(t, vm, "demand_mib");
		mib(t, vm, "available_mib");
		mib(t, vm, "resident_mib");
		mib(t, vm, "entitled_mib");
		table_add(t, "%s", *text(vm, "why") ? text(vm, "why") : "nothing to do");
	}
	table_print(t, stdout);
	table_free(t);
	puts("\nMiB. HELD: resident in the host; ENTITLED: when memory was last shared out.");
}
