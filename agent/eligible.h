/* agent/eligible.h - may this memory be merged (R8), and which attributes must its new mappings get. */
#ifndef AGENT_ELIGIBLE_H
#define AGENT_ELIGIBLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What a mapping over guest RAM loses unless it is applied again. */
struct ram_attrs {
	bool dontfork, dontdump, mergeable, hugepage, nohugepage, noreserve;
	int policy;		 /* MPOL_*; MPOL_DEFAULT: none */
	unsigned long nodes[16]; /* of the policy */
};

/* Looks [addr, addr+len) up in /proc/self/smaps. 0, or -EOPNOTSUPP, -EBUSY .. and the reason (a static string).
 * registered: it carries a userfaultfd registration of the caller's own. */
int eligible_check(uint64_t addr, size_t len, bool registered, struct ram_attrs *ret_attrs, const char **ret_why);
/* R13, and mlockall: may this process be worked on now? */
int eligible_process(const char **ret_why);

/* Gives new mappings in [addr, addr+len) the attributes. Returns how many were refused. Usable in the window. */
unsigned ram_attrs_apply(const struct ram_attrs *a, uint64_t addr, size_t len);

/* Lines of /proc/self/maps: the mappings of this process. No allocation. 0 if it cannot be read. */
size_t mappings_count(void);
size_t mappings_limit(void); /* vm.max_map_count */

#endif
