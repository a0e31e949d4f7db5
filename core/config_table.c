#include "core/config_table.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "core/cleanup.h"
#include "core/config.h"
#include "core/text.h"

#define KIB UINT64_C(1024)
#define MIB (KIB * 1024)
#define GIB (MIB * 1024)
#define MINUTE_MS UINT64_C(60000)
#define HOUR_MS (60 * MINUTE_MS)

static const char *const log_levels[] = { "error", "warning", "info", "debug", NULL };
static const char *const engines[] = { "auto", "remap", "hinted", "kernel", "off", NULL };

#define G(field) offsetof(struct config, field)
#define V(field) offsetof(struct config_vm, field)

const struct config_key config_keys[] = {
	{ "daemon", "control_socket", CONFIG_TEXT, G(control_socket), 0, 0, NULL, "/run/memvirt/control", false,
	  "Where memvirtctl reaches the daemon." },
	{ "daemon", "control_group", CONFIG_TEXT, G(control_group), 0, 0, NULL, "", false,
	  "Members of this group may use the control socket beside root. Empty: root only." },
	{ "daemon", "agent_socket", CONFIG_TEXT, G(agent_socket), 0, 0, NULL, "/run/memvirt/agent", false,
	  "Where the agents in VMMs reach the daemon." },
	{ "daemon", "agent_group", CONFIG_TEXT, G(agent_group), 0, 0, NULL, "", false,
	  "VMMs of this group may use the agent socket beside root's (libvirt on Debian: kvm). They get the right to "
	  "a userfaultfd over their own memory. Empty: root only." },
	{ "daemon", "state_dir", CONFIG_TEXT, G(state_dir), 0, 0, NULL, "/run/memvirt", false,
	  "Keeps the kernel settings that were found, so that a restart after a crash still restores them. "
	  "Must not outlive a reboot." },
	{ "daemon", "tick", CONFIG_DURATION, G(tick_ms), 100, MINUTE_MS, NULL, "1s", true,
	  "How often the daemon looks and decides. One tick costs about 0.1 ms per VM." },
	{ "daemon", "log_level", CONFIG_CHOICE, G(log_level), 0, 0, log_levels, "info", true,
	  "Least important message that is logged." },

	{ "vmm", "discover", CONFIG_DURATION, G(discover_ms), 100, HOUR_MS, NULL, "5s", true,
	  "How often /proc is searched for new VMs. A VM that ends is noticed at once." },
	{ "vmm", "qmp_timeout", CONFIG_DURATION, G(qmp_timeout_ms), 100, 10 * MINUTE_MS, NULL, "5s", true,
	  "A VMM that does not answer a QMP command within this time is set aside and tried again later." },

	{ "vmm", "libvirt", CONFIG_TEXT, G(libvirt_uri), 0, 0, NULL, "qemu:///system", false,
	  "Where VMs whose monitor belongs to libvirt are reached; connected to once there is such a VM. Empty: they are "
	  "left alone." },

	{ "host", "cgroup", CONFIG_TEXT, G(host_cgroup), 0, 0, NULL, "", true,
	  "A cgroup that holds the VMs, as in /proc/PID/cgroup (/machine.slice): its memory limit counts as the host's "
	  "memory. Empty: all of the host's." },
	{ "host", "min_free", CONFIG_SIZE, G(host_min_free_bytes), 0, 1024 * GIB, NULL, "0", true,
	  "Memory to keep available; the host's state follows from how much of it there is. 0: 3.2 % of the first 28 GiB "
	  "and 1 % of the rest." },

	{ "balloon", "control", CONFIG_BOOL, G(balloon_control), 0, 0, NULL, "on", true,
	  "off: balloons are looked at and never moved." },
	{ "balloon", "idle_tax", CONFIG_PERCENT, G(balloon_idle_tax_percent), 0, 99, NULL, "75%", true,
	  "How much more a VM pays for memory that it does not use: at 75 % an idle page costs as many shares as four in "
	  "use, at 0 % as much as one." },
	{ "balloon", "max", CONFIG_PERCENT, G(balloon_max_percent), 0, 95, NULL, "65%", true,
	  "Most of its memory that a VM's balloon may take." },
	{ "balloon", "step", CONFIG_PERCENT, G(balloon_step_percent), 1, 100, NULL, "5%", true,
	  "Most of its memory that is taken from a VM in one tick. What is given back is not held to it." },
	{ "balloon", "keep", CONFIG_PERCENT, G(balloon_keep_percent), 1, 90, NULL, "20%", true,
	  "Part of its present memory that a guest keeps available, as /proc/meminfo in it says, while memory is taken "
	  "from it. Below a quarter of this it gets memory back." },
	{ "balloon", "hold", CONFIG_DURATION, G(balloon_hold_ms), 1000, HOUR_MS, NULL, "10s", true,
	  "After memory was given back to a VM none is taken from it for this long; while the host is in need, and the guest "
	  "uses less than half of what it has, counted from when it was first given any." },
	{ "balloon", "stall", CONFIG_DURATION, G(balloon_stall_ms), 1000, HOUR_MS, NULL, "10s", true,
	  "A balloon that does not move for this long is set aside, and tried again after six times as long." },
	{ "balloon", "admit_timeout", CONFIG_DURATION, G(balloon_admit_ms), 1000, HOUR_MS, NULL, "60s", true,
	  "How long memory granted by memvirtctl admit is kept for a VM that does not show up." },

	{ "scan", "workers", CONFIG_NUMBER, G(scan_workers), 0, 256, NULL, "0", true,
	  "Threads that hash guest memory. 0: one per CPU, at most 8." },
	{ "scan", "cpu_percent", CONFIG_PERCENT, G(scan_cpu_percent), 1, 25600, NULL, "25%", true,
	  "CPU share, of one core, that a background pass may use. An estimate that was asked for is not held "
	  "to it." },
	{ "scan", "rate", CONFIG_SIZE, G(scan_bytes_per_s), 0, 1024 * GIB, NULL, "0", true,
	  "Guest memory that a background pass may read per second. 0: no limit." },
	{ "scan", "interval", CONFIG_DURATION, G(scan_interval_ms), 1000, 24 * HOUR_MS, NULL, "10s", true,
	  "Shortest time between two background passes over the same VM. What its guest wrote in between is merged two "
	  "passes later at the earliest." },
	{ "scan", "rest_permille", CONFIG_NUMBER, G(scan_rest_permille), 1, 1000, NULL, "3", true,
	  "Thousandths of the host's CPU time that background passes may use in the long run: a VM rests until what its "
	  "last pass cost is worth no more than its part of this. Matters for VMs that have to be read as a whole, "
	  "for want of an agent. VMs never looked at do not wait." },

	{ "merge", "engine", CONFIG_CHOICE, G(merge_engine), 0, 0, engines, "auto", true,
	  "How memory is merged. remap: by the agent in the VMM (memvirtctl run); hinted: the agent marks what is "
	  "worth it and kernel KSM merges just that; kernel: kernel KSM over all that VMMs gave it; auto: for each VM "
	  "the first of these that it allows; off: nothing is merged, estimates still work." },
	{ "merge", "min_gain", CONFIG_SIZE, G(merge_min_gain_bytes), 0, 1024 * GIB, NULL, "64MiB", true,
	  "Merging, by whichever engine, begins only when at least this much more can be merged." },
	{ "merge", "target", CONFIG_DURATION, G(merge_target_ms), 1000, HOUR_MS, NULL, "30s", true,
	  "Time in which the kernel's scanner should merge what was found, as far as cpu_percent allows." },
	{ "merge", "cpu_percent", CONFIG_PERCENT, G(merge_cpu_percent), 1, 25600, NULL, "50%", true,
	  "CPU share, of one core, that merging may use while it is at work: agents and daemon together, or the kernel's "
	  "scanner (which is one thread and cannot take more than 100%)." },
	{ "merge", "bytes_per_s", CONFIG_SIZE, G(merge_bytes_per_s), 0, 1024 * GIB, NULL, "0", true,
	  "Guest memory that agents may exchange for shared frames per second, on the whole host. 0: no limit." },
	{ "merge", "windows_per_s", CONFIG_NUMBER, G(merge_windows_per_s), 0, 1000000, NULL, "0", true,
	  "Windows of 2 MiB that agents may exchange per second; what touches one meanwhile waits for it. 0: no limit." },
	{ "merge", "debt_share", CONFIG_PERCENT, G(merge_debt_percent), 0, 100, NULL, "20%", true,
	  "How much of the merged memory the host must be able to give back at any time, whatever was observed: while "
	  "free memory and swap would not take it, nothing more is merged. 100%: also if all guests write all of it at "
	  "once." },
	{ "merge", "backoff", CONFIG_DURATION, G(merge_backoff_ms), 1000, 24 * HOUR_MS, NULL, "10min", true,
	  "When somebody else changes the KSM settings, the daemon keeps its hands off them for this long." },
};
const size_t config_key_count = ARRAY_SIZE(config_keys);

const struct config_key config_vm_keys[] = {
	{ "vm", "domain", CONFIG_TEXT, V(domain), 0, 0, NULL, "", true,
	  "VMs of one domain may share memory with each other. Empty: the VM shares only with itself." },
	{ "vm", "merge", CONFIG_BOOL, V(merge), 0, 0, NULL, "on", true, "off: this VM is never merged." },
	{ "vm", "engine", CONFIG_CHOICE, V(engine), 0, 0, engines, "auto", true,
	  "How this VM is merged. auto: as [merge] engine says." },
	{ "vm", "balloon", CONFIG_BOOL, V(balloon), 0, 0, NULL, "on", true, "off: this VM's balloon is never moved." },
	{ "vm", "reservation", CONFIG_SIZE, V(reservation_bytes), 0, 1024 * GIB, NULL, "0", true,
	  "Memory that is never taken from the VM." },
	{ "vm", "limit", CONFIG_SIZE, V(limit_bytes), 0, 1024 * GIB, NULL, "0", true,
	  "Most memory that the VM is given while the host is short of it. 0: its size." },
	{ "vm", "shares", CONFIG_NUMBER, V(shares), 1, 1000000, NULL, "1000", true,
	  "Its weight against other VMs while the host is short of memory." },
	{ "vm", "qmp", CONFIG_TEXT, V(qmp), 0, 0, NULL, "", true,
	  "Path of the VM's QMP socket. Empty: taken from the VMM's command line." },
};
const size_t config_vm_key_count = ARRAY_SIZE(config_vm_keys);

_Static_assert(ARRAY_SIZE(config_keys) <= 64 && ARRAY_SIZE(config_vm_keys) <= 64, "a set mask has 64 bits");

struct unit {
	const char *name;
	uint64_t factor;
};

static const struct unit no_unit[] = { { "", 1 }, { NULL, 0 } };
static const struct unit percent_units[] = { { "", 1 }, { "%", 1 }, { NULL, 0 } };
static const struct unit duration_units[] = {
	{ "ms", 1 }, { "s", 1000 }, { "min", MINUTE_MS }, { "h", HOUR_MS }, { NULL, 0 }
};
static const struct unit size_units[] = { { "KiB", KIB }, { "MiB", MIB }, { "GiB", GIB }, { NULL, 0 } };

struct number_kind {
	const struct unit *units;
	const char *expected;
};

static struct number_kind number_kind(enum config_type type)
{
	switch (type) {
	case CONFIG_PERCENT:
		return (struct number_kind){ percent_units, "a percentage" };
	case CONFIG_DURATION:
		return (struct number_kind){ duration_units, "a number with a unit of ms, s, min or h" };
	case CONFIG_SIZE:
		return (struct number_kind){ size_units, "a number with a unit of KiB, MiB or GiB, or 0" };
	default:
		return (struct number_kind){ no_unit, "a whole number" };
	}
}

static int parse_number(const struct config_key *key, const char *text, uint64_t *value, char *why, size_t cap)
{
	struct number_kind kind = number_kind(key->type);
	uint64_t number;
	char *rest;

	errno = 0;
	number = strtoull(text, &rest, 10);
	if (!isdigit((unsigned char)*text) || errno) {
		snprintf(why, cap, "expected %s", kind.expected);
		return -EINVAL;
	}
	rest += strspn(rest, " ");
	if (key->type == CONFIG_SIZE && number == 0 && *rest == '\0')
		kind.units = no_unit;
	for (const struct unit *u = kind.units; u->name; u++) {
		if (strcmp(rest, u->name) != 0)
			continue;
		if (number > key->max / u->factor || number * u->factor < key->min) {
			snprintf(why, cap, "out of bounds; expected %llu to %llu%s",
				 (unsigned long long)key->min, (unsigned long long)key->max,
				 key->type == CONFIG_DURATION ? " ms" :
				 key->type == CONFIG_SIZE     ? " bytes" :
								"");
			return -EINVAL;
		}
		*value = number * u->factor;
		return 0;
	}
	snprintf(why, cap, "bad unit \"%.20s\"; expected %s", rest, kind.expected);
	return -EINVAL;
}

static int parse_bool(const char *text, bool *value, char *why, size_t cap)
{
	static const struct {
		const char *name;
		bool value;
	} words[] = { { "on", true }, { "yes", true }, { "true", true }, { "off", false }, { "no", false },
		      { "false", false } };

	for (size_t i = 0; i < ARRAY_SIZE(words); i++) {
		if (strcasecmp(text, words[i].name) == 0) {
			*value = words[i].value;
			return 0;
		}
	}
	snprintf(why, cap, "expected on or off");
	return -EINVAL;
}

static int parse_choice(const struct config_key *key, const char *text, uint64_t *value, char *why, size_t cap)
{
	int n;

	for (uint64_t i = 0; key->choices[i]; i++) {
		if (strcmp(text, key->choices[i]) == 0) {
			*value = i;
			return 0;
		}
	}
	n = snprintf(why, cap, "expected one of:");
	for (size_t i = 0; key->choices[i] && n > 0 && (size_t)n < cap; i++)
		n += snprintf(why + n, cap - (size_t)n, " %s", key->choices[i]);
	return -EINVAL;
}

static int parse_text(const char *text, char *value, char *why, size_t cap)
{
	size_t len = strlen(text);

	if (len >= CONFIG_TEXT_MAX) {
		snprintf(why, cap, "longer than %d bytes", CONFIG_TEXT_MAX - 1);
		return -EINVAL;
	}
	if (!text_valid(text)) {
		snprintf(why, cap, "not UTF-8");
		return -EINVAL;
	}
	memset(value, 0, CONFIG_TEXT_MAX);
	memcpy(value, text, len);
	return 0;
}

int config_value_parse(const struct config_key *key, const char *text, void *base, char *ret_why, size_t cap)
{
	void *value = (char *)base + key->offset;

	switch (key->type) {
	case CONFIG_BOOL:
		return parse_bool(text, value, ret_why, cap);
	case CONFIG_CHOICE:
		return parse_choice(key, text, value, ret_why, cap);
	case CONFIG_TEXT:
		return parse_text(text, value, ret_why, cap);
	default:
		return parse_number(key, text, value, ret_why, cap);
	}
}

size_t config_value_size(const struct config_key *key)
{
	switch (key->type) {
	case CONFIG_BOOL:
		return sizeof(bool);
	case CONFIG_TEXT:
		return CONFIG_TEXT_MAX;
	default:
		return sizeof(uint64_t);
	}
}

const char *config_engine_name(uint64_t engine)
{
	return engine < ARRAY_SIZE(engines) - 1 ? engines[engine] : "?";
}

/* ---- values as text ---- */

/* What was read in a unit is a multiple of that unit, so nothing is lost in the largest that fits. */
static void print_number(FILE *out, const struct config_key *key, uint64_t value)
{
	const struct unit *best = NULL;

	for (const struct unit *u = number_kind(key->type).units; u->name; u++)
		if (value % u->factor == 0 && (value > 0 || !best))
			best = u;
	if (best)
		fprintf(out, "%" PRIu64 "%s", value / best->factor, best->name);
}

void config_print_section(FILE *out, const struct config *c, const char *section)
{
	fprintf(out, "[%s]\n", section);
	for (size_t i = 0; i < config_key_count; i++) {
		const struct config_key *key = &config_keys[i];
		const char *at = (const char *)c + key->offset;
		uint64_t number = 0;

		if (strcmp(key->section, section) != 0)
			continue;
		fprintf(out, "%s = ", key->name);
		if (key->type != CONFIG_BOOL && key->type != CONFIG_TEXT)
			memcpy(&number, at, sizeof(number));
		if (key->type == CONFIG_TEXT)
			fputs(at, out);
		else if (key->type == CONFIG_BOOL)
			fputs(*(const bool *)at ? "on" : "off", out);
		else if (key->type == CONFIG_CHOICE)
			fputs(key->choices[number], out);
		else
			print_number(out, key, number);
		fputc('\n', out);
	}
}

/* ---- the table for people ---- */

static void print_expected(FILE *out, const struct config_key *key)
{
	static const char *const what[] = { "number", "percent", "duration (ms, s, min, h)", "size (KiB, MiB, GiB)",
					    "on or off", "", "text" };

	if (key->type != CONFIG_CHOICE) {
		fputs(what[key->type], out);
		return;
	}
	for (size_t i = 0; key->choices[i]; i++)
		fprintf(out, "%s%s", i ? " | " : "", key->choices[i]);
}

/* Prints text wrapped at 96 columns, each line behind prefix. */
static void print_wrapped(FILE *out, const char *prefix, const char *text)
{
	const size_t width = 96 - strlen(prefix);

	while (*text) {
		size_t len = strlen(text);

		if (len > width)
			for (len = width; len > 1 && text[len] != ' ';)
				len--;
		fprintf(out, "%s%.*s\n", prefix, (int)len, text);
		text += len + strspn(text + len, " ");
	}
}

static void print_keys(FILE *out, const struct config_key *keys, size_t count,
		       void (*print)(FILE *, const struct config_key *, bool new_section))
{
	for (size_t i = 0; i < count; i++)
		print(out, &keys[i], i == 0 || strcmp(keys[i].section, keys[i - 1].section) != 0);
}

static const char *section_title(const struct config_key *key)
{
	return strcmp(key->section, "vm") == 0 ? "vm GLOB" : key->section;
}

static void print_help_key(FILE *out, const struct config_key *key, bool new_section)
{
	if (new_section)
		fprintf(out, "[%s]\n", section_title(key));
	fprintf(out, "  %s = ", key->name);
	print_expected(out, key);
	fprintf(out, "; default %s%s\n", *key->def ? key->def : "empty", key->reloadable ? "" : "; needs a restart");
	print_wrapped(out, "      ", key->help);
}

static void print_file_key(FILE *out, const struct config_key *key, bool new_section)
{
	if (new_section && strcmp(key->section, "vm") == 0)
		fputs("\n# Settings of the VMs whose name matches the pattern; a later section wins.\n#[vm web-*]\n",
		      out);
	else if (new_section)
		fprintf(out, "\n[%s]\n", key->section);
	print_wrapped(out, "# ", key->help);
	fprintf(out, "#%s = %s\n", key->name, key->def);
}

static void print_man_key(FILE *out, const struct config_key *key, bool new_section)
{
	if (new_section)
		fprintf(out, ".SS [%s]\n", section_title(key));
	fprintf(out, ".TP\n.B %s\n", key->name);
	print_wrapped(out, "", key->help);
	fputs("Takes ", out);
	print_expected(out, key);
	fprintf(out, "; default: %s.%s\n", *key->def ? key->def : "empty",
		key->reloadable ? "" : " A change needs a restart.");
}

static void print_all(FILE *out, void (*print)(FILE *, const struct config_key *, bool))
{
	print_keys(out, config_keys, config_key_count, print);
	print_keys(out, config_vm_keys, config_vm_key_count, print);
}

void config_print_help(FILE *out)
{
	print_all(out, print_help_key);
}

void config_print_file(FILE *out)
{
	fputs("# memvirtd configuration; see memvirt.conf(5). Every key is shown with its default.\n", out);
	print_all(out, print_file_key);
}

void config_print_man(FILE *out)
{
	print_all(out, print_man_key);
}
