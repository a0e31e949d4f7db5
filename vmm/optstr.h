/* vmm/optstr.h - QEMU's option lists, "first,key=value,flag,path=a,,b". Pure; nothing is copied. */
#ifndef VMM_OPTSTR_H
#define VMM_OPTSTR_H

#include <stdbool.h>
#include <stddef.h>

/* A piece of somebody else's text, not NUL-terminated. */
struct slice {
	const char *text;
	size_t len;
};

struct optstr_item {
	struct slice key;
	struct slice value; /* still with ",," for a comma; empty for a flag */
	bool flag;	    /* "key" alone: on; "nokey": off */
};

bool slice_is(struct slice s, const char *word);

/* Takes the next item off list. implied names the key of a first item without '=' (NULL: it is a flag);
 * pass NULL for all items but the first. False at the end. */
bool optstr_next(struct slice *list, const char *implied, struct optstr_item *ret_item);

/* True when the item is key as "key=on", "key", "key=off" or "nokey"; ret_on then says which. A value that
 * is no boolean leaves ret_on alone. */
bool optstr_bool(const struct optstr_item *item, const char *key, bool *ret_on);

/* The value with ",," made ",", cut to cap - 1 bytes and NUL-terminated. Returns its uncut length. */
size_t optstr_value(struct slice value, char *out, size_t cap);

#endif
