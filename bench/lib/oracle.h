/* bench/lib/oracle.h - exactly what merging could save in a set of captures, by comparing contents. */
#ifndef BENCH_ORACLE_H
#define BENCH_ORACLE_H

#include <stddef.h>
#include <stdint.h>

/* Pages. savable = zero + within + between. */
struct oracle {
	uint64_t guest_pages;	/* address space, holes included */
	uint64_t present;
	uint64_t zero;	  /* present and full of zeroes */
	uint64_t within;  /* copies of a page of the same guest, zero pages apart */
	uint64_t between; /* copies that only other guests have, beyond those */
	uint64_t savable;
	double seconds;
};

/* Groups pages by a 128-bit hash and compares every member of a group byte by byte with its first.
 * 0; -EILSEQ when two different pages have one hash; -ENOMEM; -errno. */
int oracle_run(char *const *json_paths, size_t count, struct oracle *ret_oracle);

#endif
