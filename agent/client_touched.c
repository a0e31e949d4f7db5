/* The ranges of guest RAM once more, for calls that have nothing to do with it and must not wait for a lock.
 *
 * A range is published when the VMM itself names it, in its own call: a thread that changes these mappings later has
 * either seen that call return, or races with it, which is the VMM's own mistake. When a range goes, a reader may
 * still see it, takes the lock and finds nothing; with a range half changed it may miss memory that is being
 * unmapped at this moment. */
#include "agent/client_internal.h"

static struct {
	_Atomic(uint64_t) start, end; /* end 0: free */
} touched[AGENT_SLOTS_MAX];
static atomic_uint touched_most; /* entries that were ever used */

bool client_ram_touched(uint64_t addr, uint64_t len)
{
	unsigned n = atomic_load_explicit(&touched_most, memory_order_acquire);
	uint64_t last = len > 0 ? addr + (len - 1) : addr;

	if (last < addr)
		last = UINT64_MAX;
	for (unsigned i = 0; i < n; i++) {
		uint64_t end = atomic_load_explicit(&touched[i].end, memory_order_acquire);

		if (addr < end && last >= atomic_load_explicit(&touched[i].start, memory_order_relaxed))
			return true;
	}
	return false;
}

void client_touched_set(unsigned i, uint64_t start, uint64_t end)
{
	atomic_store_explicit(&touched[i].end, 0, memory_order_release);
	atomic_store_explicit(&touched[i].start, start, memory_order_release);
	atomic_store_explicit(&touched[i].end, end, memory_order_release);
	if (i >= atomic_load(&touched_most))
		atomic_store(&touched_most, i + 1);
}

void client_touched_clear(void)
{
	for (unsigned i = 0; i < AGENT_SLOTS_MAX; i++)
		client_touched_set(i, 0, 0);
	atomic_store(&touched_most, 0);
}
