/* ept/table.h - a second-stage table in memory of our own: guest-physical to host-physical, in a processor's format.
 *
 * Tables are 4 KiB pages of one pool; the address in an entry for a table is its page's offset in the pool, where a
 * processor would have a host-physical address. A table that maps nothing is given back at once, so memory is 4 KiB for
 * each 2 MiB mapped in small pages, and little else. One writer; readers at the same time only while nobody writes.
 *
 * What changes a range is done whole or not at all. Table entries grant everything: permissions are the leaves'. */
#ifndef EPT_TABLE_H
#define EPT_TABLE_H

#include <stddef.h>
#include <stdint.h>

#include "ept/table_format.h"

struct ept_table;

/* 0; -EINVAL: no processor has such a table; -ENOMEM. */
int ept_table_new(const struct table_options *options, struct ept_table **ret_table);
struct ept_table *ept_table_free(struct ept_table *t); /* NULL ok; gives NULL */

/* Maps the page of that level (1 to 3) at gpa, in place of whatever is there. A larger page round it is split.
 * 0; -EINVAL: not aligned, too far up, or what the format cannot say; -ENOMEM. */
int ept_table_map(struct ept_table *t, uint64_t gpa, unsigned level, const struct table_leaf *leaf);

/* Of [gpa, gpa + bytes); pages that only partly lie in it are split first. 0; -EINVAL; -ENOMEM. */
int ept_table_unmap(struct ept_table *t, uint64_t gpa, uint64_t bytes);
int ept_table_protect(struct ept_table *t, uint64_t gpa, uint64_t bytes, unsigned perms);

/* Makes 512 pages of the one that maps gpa. 0; -ENOENT: nothing does, or a page of 4 KiB; -ENOMEM. */
int ept_table_split(struct ept_table *t, uint64_t gpa);
/* Makes one page of that level (2 or 3) of the 512 below it that gpa is in, when they follow each other and are alike;
 * accessed and dirty are those of any of them. 1: done; 0: they are not; -EINVAL. */
int ept_table_collapse(struct ept_table *t, uint64_t gpa, unsigned level);

/* Walks as the processor does, but changes nothing. access: TABLE_READ and so on; 0 asks for no permission. */
enum table_outcome ept_table_lookup(const struct ept_table *t, uint64_t gpa, unsigned access, struct table_walk *ret_walk);
/* The same, and marks what was used as accessed and dirty if the access is allowed. */
enum table_outcome ept_table_touch(struct ept_table *t, uint64_t gpa, unsigned access, struct table_walk *ret_walk);

/* Calls fn for each page of [start, end) that is mapped, ascending, with the first address of the page; one that is not 0
 * ends it and is returned. -EBADMSG: an entry there is misconfigured; -EINVAL. fn must not change the table. */
typedef int (*table_leaf_fn)(void *userdata, uint64_t gpa, unsigned level, const struct table_leaf *leaf);
int ept_table_each(const struct ept_table *t, uint64_t start, uint64_t end, table_leaf_fn fn, void *userdata);

/* The entry of that level on the way to gpa, to be read or spoilt; NULL when the way ends above. Until the next change. */
uint64_t *ept_table_entry(struct ept_table *t, uint64_t gpa, unsigned level);

const struct table_options *ept_table_options(const struct ept_table *t);
uint64_t ept_table_root(const struct ept_table *t);  /* EPTP or nCR3 */
size_t ept_table_count(const struct ept_table *t);   /* of tables, the root included */
size_t ept_table_bytes(const struct ept_table *t);   /* of memory, everything included */
uint64_t ept_table_limit(const struct ept_table *t); /* the first guest-physical address that is too far up */

#endif
