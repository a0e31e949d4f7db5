/* agent/hooks.h - where a test may step in between two steps of the exchange, or stand in for the kernel.
 * Compiled in only with -DEXCHANGE_HOOKS; otherwise nothing of it is left. */
#ifndef AGENT_HOOKS_H
#define AGENT_HOOKS_H

#include <stddef.h>
#include <stdint.h>

enum exchange_op { OP_MOVE, OP_COPY, OP_REGISTER, OP_UNREGISTER, OP_WAKE, OP_MMAP, OP_MREMAP, OP_SCAN, OP_WP };

#ifdef EXCHANGE_HOOKS
struct exchange_hooks {
	void (*step)(uint32_t step); /* the journal was just set to this step */
	/* Not 0: the call is not made and this is its result. */
	int (*before)(enum exchange_op op, uint64_t addr, uint64_t len);
	/* Gives the result that the exchange shall see of the call that returned rc. */
	int (*after)(enum exchange_op op, uint64_t addr, uint64_t len, int rc);
};
extern struct exchange_hooks exchange_hooks;

static inline void hook_step(uint32_t step)
{
	if (exchange_hooks.step)
		exchange_hooks.step(step);
}

static inline int hook_before(enum exchange_op op, uint64_t addr, uint64_t len)
{
	return exchange_hooks.before ? exchange_hooks.before(op, addr, len) : 0;
}

static inline int hook_after(enum exchange_op op, uint64_t addr, uint64_t len, int rc)
{
	return exchange_hooks.after ? exchange_hooks.after(op, addr, len, rc) : rc;
}
#else
#define hook_step(step) ((void)0)
#define hook_before(op, addr, len) 0
#define hook_after(op, addr, len, rc) (rc)
#endif

#endif
