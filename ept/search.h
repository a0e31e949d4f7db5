/* ept/search.h - the way back: which VMs have a frame of the host mapped, and where. From their page tables, as they are. */
#ifndef EPT_SEARCH_H
#define EPT_SEARCH_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct ept_target;

struct search_hit {
	size_t target; /* index of it */
	uint64_t hva;  /* of the byte */
};

/* A search that another thread watches. Zero it, set what it says, and leave it alone until search_run() is back. */
struct search {
	struct ept_target *const *targets; /* borrowed */
	size_t target_count;
	uint64_t hpa;
	struct search_hit *hits; /* the caller's; the first cap are kept */
	size_t cap;

	_Atomic bool cancel;			    /* by the watcher */
	_Atomic uint64_t done_pages, total_pages; /* for the watcher */
	uint64_t found;				    /* in all, those that were not kept included */
	uint64_t lost;				    /* VMs that ended meanwhile or could not be looked at */
};

/* Looks at every page of RAM of every target. 0; -ECANCELED; -EPERM: frame numbers are hidden from this process. */
int search_run(struct search *s);

#endif
