/* core/config.h - memvirt.conf and the *.conf files of policy.d: one table row per key.
 *
 * Checks, --help-config, the manual page's option list and the shipped memvirt.conf all come from the
 * table in config.c. A configuration is loaded whole or not at all. */
#ifndef CORE_CONFIG_H
#define CORE_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* As a setting; MERGE_ENGINE_AUTO .. OFF also say which engine a VM has got (OFF: none). */
enum merge_engine {
	MERGE_ENGINE_AUTO,
	MERGE_ENGINE_REMAP,
	MERGE_ENGINE_HINTED,
	MERGE_ENGINE_KERNEL,
	MERGE_ENGINE_OFF,
};

#define CONFIG_TEXT_MAX 256 /* longest text value, NUL included */

/* What a [vm GLOB] section can say about a VM. */
struct config_vm {
	char domain[CONFIG_TEXT_MAX]; /* empty: the VM is a domain of its own */
	char qmp[CONFIG_TEXT_MAX];    /* empty: found on the VMM's command line */
	bool merge;
	uint64_t engine; /* enum merge_engine; AUTO: as [merge] says */
	bool balloon;
	uint64_t reservation_bytes;
	uint64_t limit_bytes; /* 0: none */
	uint64_t shares;
};

struct config_rule; /* one [vm GLOB] section */

struct config {
	/* [daemon] */
	char control_socket[CONFIG_TEXT_MAX];
	char control_group[CONFIG_TEXT_MAX]; /* empty: root only */
	char agent_socket[CONFIG_TEXT_MAX];
	char agent_group[CONFIG_TEXT_MAX]; /* empty: VMMs of root only */
	char state_dir[CONFIG_TEXT_MAX];
	uint64_t tick_ms;
	uint64_t log_level; /* enum log_level */
	/* [vmm] */
	uint64_t discover_ms;
	uint64_t qmp_timeout_ms;
	char libvirt_uri[CONFIG_TEXT_MAX]; /* empty: libvirt is left alone */
	/* [host] */
	char host_cgroup[CONFIG_TEXT_MAX]; /* empty: all of the host's memory */
	uint64_t host_min_free_bytes;	   /* 0: by formula, ladder_min_free() */
	/* [balloon] */
	bool balloon_control;
	uint64_t balloon_idle_tax_percent;
	uint64_t balloon_max_percent;
	uint64_t balloon_step_percent;
	uint64_t balloon_keep_percent;
	uint64_t balloon_hold_ms;
	uint64_t balloon_stall_ms;
	uint64_t balloon_admit_ms;
	/* [scan] */
	uint64_t scan_workers; /* 0: one per CPU, at most 8 */
	uint64_t scan_cpu_percent;
	uint64_t scan_bytes_per_s; /* 0: no limit */
	uint64_t scan_interval_ms;
	uint64_t scan_rest_permille;
	/* [merge] */
	uint64_t merge_engine; /* enum merge_engine */
	uint64_t merge_min_gain_bytes;
	uint64_t merge_target_ms;
	uint64_t merge_cpu_percent;
	uint64_t merge_bytes_per_s;   /* 0: no limit */
	uint64_t merge_windows_per_s; /* the same */
	uint64_t merge_debt_percent;
	uint64_t merge_backoff_ms;

	struct config_rule *rules; /* owned; in file order, a later match wins */
	size_t rule_count;
};

struct config_error {
	char text[512]; /* "FILE:LINE: what was wrong, what was expected" */
};

/* Every key at its default, no rules. Cannot fail; pair with config_free(). */
void config_init(struct config *c);
void config_free(struct config *c);

/* Loads file and then every *.conf of policy_dir in name order (either NULL: not read; a policy_dir that
 * does not exist is empty). 0; -EINVAL for content, with ret_error filled; -errno for a file that cannot
 * be read, with ret_error filled; -ENOMEM. *ret_config is written only on 0 and freed by the caller. */
int config_load(const char *file, const char *policy_dir, struct config *ret_config,
		struct config_error *ret_error);

/* Same for a text in memory (tests, fuzzing); name stands for the file in errors. */
int config_load_text(const char *name, const char *text, size_t len, struct config *ret_config,
		     struct config_error *ret_error);

/* Copies the values that can change while running from "fresh" into c, rules included (taken from
 * fresh). Writes the names of changed keys that need a restart into ret_skipped, separated by blanks. */
void config_adopt(struct config *c, struct config *fresh, char *ret_skipped, size_t cap);

/* The settings of the VM with this name: defaults, then every matching section in file order. */
void config_for_vm(const struct config *c, const char *name, struct config_vm *ret_vm);

/* The largest reservation of any [vm GLOB] section, and of which (borrowed from c); 0, and ret_glob untouched: there is
 * none. */
uint64_t config_reservation_max(const struct config *c, const char **ret_glob);

/* The names of enum merge_engine. */
const char *config_engine_name(uint64_t engine);

/* The table for people: plain text, the shipped file with its defaults commented out, or roff. */
void config_print_help(FILE *out);
void config_print_file(FILE *out);
void config_print_man(FILE *out);

/* One section of a configuration with all its values, such that config_load_text() reads the same again. */
void config_print_section(FILE *out, const struct config *c, const char *section);

#endif
