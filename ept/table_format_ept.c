#include "ept/table_format.h"

#define RWX UINT64_C(7)
#define TYPE_SHIFT 3
#define IGNORE_PAT (UINT64_C(1) << 6)
#define LARGE (UINT64_C(1) << 7)
#define ACCESSED (UINT64_C(1) << 8)
#define DIRTY (UINT64_C(1) << 9)
/* Bit 63, suppress #VE, stays zero: nobody here has virtualization exceptions on. */

static uint64_t reserved(const struct table_options *o, unsigned level, bool leaf)
{
	if (!leaf)
		return level > TABLE_LEAF_LEVELS ? table_bits(3, 7) : table_bits(3, 6);
	if (level == 1)
		return 0;
	/* The address below the page, and bit 7 itself where the processor knows no such page. */
	return table_bits(12, table_level_shift(level) - 1) | (level == 3 && !o->gib_pages ? LARGE : 0);
}

static void disallowed(const struct table_options *o, uint8_t *ret_low, uint8_t *ret_type)
{
	/* Writable but not readable, in both forms; and execute-only where there is no such thing. */
	*ret_low = (uint8_t)(1u << 2 | 1u << 6 | (o->execute_only ? 0 : 1u << 4));
	*ret_type = 1u << 2 | 1u << 3 | 1u << 7;
}

static uint64_t encode(unsigned level, const struct table_leaf *leaf)
{
	return leaf->address | leaf->perms | (uint64_t)leaf->memory_type << TYPE_SHIFT |
	       (leaf->ignore_pat ? IGNORE_PAT : 0) | (level > 1 ? LARGE : 0) | (leaf->accessed ? ACCESSED : 0) |
	       (leaf->dirty ? DIRTY : 0) | (uint64_t)leaf->tag << TABLE_TAG_SHIFT;
}

static void decode(unsigned level, uint64_t entry, struct table_leaf *ret_leaf)
{
	*ret_leaf = (struct table_leaf){
		.address = entry & TABLE_ADDRESS_MASK & ~(table_level_bytes(level) - 1),
		.perms = entry & RWX,
		.memory_type = entry >> TYPE_SHIFT & 7,
		.ignore_pat = entry & IGNORE_PAT,
		.accessed = entry & ACCESSED,
		.dirty = entry & DIRTY,
		.tag = entry >> TABLE_TAG_SHIFT & TABLE_TAG_MAX,
	};
}

static unsigned perms(uint64_t granted)
{
	return granted & RWX;
}

/* SDM, "Exit qualification for EPT violations": what was tried, and what all entries allow. */
static uint64_t fault_code(const struct table_walk *w)
{
	return w->outcome == TABLE_VIOLATION ? w->access | w->perms << 3 : 0;
}

static uint64_t root(const struct table_options *o, uint64_t address)
{
	return address | (o->accessed_dirty ? UINT64_C(1) << 6 : 0) | (uint64_t)(o->levels - 1) << 3 | TABLE_WB;
}

const struct table_format table_format_ept = {
	.name = "ept",
	.present = RWX,
	.large = LARGE,
	.accessed = ACCESSED,
	.dirty = DIRTY,
	.table_entry = RWX,
	.need = { 0, 1, 2, 3, 4, 5, 6, 7 },
	.has_ignore_pat = true,
	.reserved = reserved,
	.disallowed = disallowed,
	.encode = encode,
	.decode = decode,
	.perms = perms,
	.fault_code = fault_code,
	.root = root,
};
