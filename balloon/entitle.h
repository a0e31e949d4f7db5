/* balloon/entitle.h - shares out memory among VMs: reservation, limit, shares, idle tax. Pure: no I/O, clock or
 * globals. The formula, and an example worked by hand, are in README.md. */
#ifndef BALLOON_ENTITLE_H
#define BALLOON_ENTITLE_H

#include <stddef.h>
#include <stdint.h>

/* One VM that asks. */
struct claim {
	uint64_t min_bytes; /* never gets less */
	uint64_t max_bytes; /* never gets more; at least min_bytes */
	uint64_t active_bytes; /* in use; what it gets above is idle and taxed */
	uint64_t shares;	/* at least 1 */
};

/* Shares budget_bytes out: bytes[i] is for claims[i]. The result is where min-funding revocation (Waldspurger, "Memory
 * Resource Management in VMware ESX Server", 2002) comes to rest: memory goes from the VM that pays least for a page,
 *	rho = shares / (pages x (f + k (1 - f))), k = 1 / (1 - tax), f = active fraction,
 * to the one that pays most, until all pay the same or are at a bound. The sum is at most budget_bytes, and within one
 * byte for each claim of it unless all have their max_bytes.
 * tax_percent: 0 .. 99. Returns 0, or how many bytes are missing to give everybody min_bytes: everybody then gets
 * just that, and the sum exceeds the budget by them. */
uint64_t entitle(const struct claim *claims, size_t count, uint64_t budget_bytes, unsigned int tax_percent,
		 uint64_t *bytes);

#endif
