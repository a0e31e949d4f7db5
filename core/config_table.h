/* core/config_table.h - the rows behind core/config.h, and how one value is read. Private to core/config*.c. */
#ifndef CORE_CONFIG_TABLE_H
#define CORE_CONFIG_TABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum config_type {
	CONFIG_NUMBER,	 /* plain decimal */
	CONFIG_PERCENT,	 /* "20" or "20%" */
	CONFIG_DURATION, /* kept in ms; a unit is required: ms, s, min, h */
	CONFIG_SIZE,	 /* kept in bytes; a unit is required: KiB, MiB, GiB; 0 needs none */
	CONFIG_BOOL,	 /* on/off, yes/no, true/false */
	CONFIG_CHOICE,	 /* one of choices[], kept as its index */
	CONFIG_TEXT,	 /* kept as it is, at most CONFIG_TEXT_MAX - 1 bytes */
};

struct config_key {
	const char *section, *name;
	enum config_type type;
	size_t offset; /* of the value in struct config, or in struct config_vm for section "vm" */
	uint64_t min, max;
	const char *const *choices; /* NULL-terminated, for CONFIG_CHOICE */
	const char *def;
	bool reloadable;
	const char *help;
};

extern const struct config_key config_keys[];
extern const size_t config_key_count;
extern const struct config_key config_vm_keys[];
extern const size_t config_vm_key_count;

/* Reads text into the row's place in base. 0, or -EINVAL with what was expected in ret_why. */
int config_value_parse(const struct config_key *key, const char *text, void *base, char *ret_why, size_t cap);
size_t config_value_size(const struct config_key *key);

#endif
