/* core/text.h - text that others chose, made fit for fixed fields, JSON and logs. Pure. */
#ifndef CORE_TEXT_H
#define CORE_TEXT_H

#include <stdbool.h>
#include <stddef.h>

#define TEXT_UUID_MAX 37 /* with its NUL */

/* Copies len bytes of src into dst, at most cap - 1 and cut only between characters, and adds a NUL. Bytes
 * that are not UTF-8 become '?', so that a name can always be put into JSON; a NUL ends the text. */
void text_copy(char *dst, size_t cap, const char *src, size_t len);

/* Whether the NUL-terminated text is UTF-8 throughout. */
bool text_valid(const char *text);

/* Reads a UUID in its usual form, in either case, into dst[TEXT_UUID_MAX] in lower case. False, and dst
 * untouched, for anything else and for the all-zero UUID, with which QEMU means "none". */
bool text_uuid(char *dst, const char *src, size_t len);

#endif
