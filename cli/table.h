/* cli/table.h - tables of text that fit a terminal: columns as wide as needed, the wide ones cut. */
#ifndef CLI_TABLE_H
#define CLI_TABLE_H

#include <stddef.h>
#include <stdio.h>

struct table;

/* titles is borrowed. A title that begins with '>' makes a right-aligned column; '*' one that may be cut. */
struct table *table_new(const char *const *titles, size_t columns); /* ends the program when out of memory */
struct table *table_free(struct table *t);
void table_add(struct table *t, const char *fmt, ...) __attribute__((format(printf, 2, 3))); /* next cell */
void table_print(const struct table *t, FILE *out);

#endif
