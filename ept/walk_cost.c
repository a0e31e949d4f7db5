#include "ept/walk_cost.h"

#define GUEST_LEVELS 4u

unsigned walk_cost_references(unsigned guest_levels, unsigned host_levels)
{
	return (guest_levels + 1) * (host_levels + 1) - 1;
}

static uint64_t pages_of(unsigned level)
{
	return table_level_bytes(level) / table_level_bytes(1);
}

static uint64_t smaller(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

void walk_cost_of(const uint64_t leaves[TABLE_LEAF_LEVELS], unsigned levels, unsigned guest_level, struct walk_cost *ret_cost)
{
	uint64_t pages = 0, steps = 0, small_entries = 0, gib_entries = 0;
	uint64_t small_room = WALK_COST_TLB_ENTRIES, reach = 0;
	struct walk_cost c = { .guest_levels = GUEST_LEVELS - (guest_level - 1) };

	for (unsigned level = TABLE_LEAF_LEVELS; level >= 1; level--) {
		uint64_t entry_pages = pages_of(level < guest_level ? level : guest_level);
		uint64_t held = leaves[level - 1] * pages_of(level), entries = held / entry_pages;
		unsigned depth = levels - (level - 1);

		c.uniform[level - 1] = walk_cost_references(c.guest_levels, depth);
		pages += held;
		steps += held * depth;
		if (entry_pages == pages_of(3)) {
			gib_entries += entries;
			reach += smaller(entries, WALK_COST_TLB_GIB_ENTRIES) * entry_pages;
			continue;
		}
		/* The largest first: what the TLB holds at most. */
		small_entries += entries;
		reach += smaller(entries, small_room) * entry_pages;
		small_room -= smaller(entries, small_room);
	}
	if (pages > 0)
		c.references = (double)(c.guest_levels + 1) * ((double)steps / (double)pages + 1) - 1;
	c.tlb_entries = small_entries + gib_entries;
	c.tlb_reach_pages = reach;
	*ret_cost = c;
}
