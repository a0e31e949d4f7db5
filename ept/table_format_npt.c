#include "ept/table_format.h"

#define PRESENT (UINT64_C(1) << 0)
#define WRITABLE (UINT64_C(1) << 1)
#define USER (UINT64_C(1) << 2) /* the processor makes every access of a guest as a user's */
#define ACCESSED (UINT64_C(1) << 5)
#define DIRTY (UINT64_C(1) << 6)
#define LARGE (UINT64_C(1) << 7) /* above level 1; there it is PAT */
#define PAT_SMALL (UINT64_C(1) << 7)
#define GLOBAL (UINT64_C(1) << 8)
#define PAT_LARGE (UINT64_C(1) << 12)
#define NO_EXECUTE (UINT64_C(1) << 63)

#define READS (PRESENT | USER)
#define WRITES (READS | WRITABLE)

/* Of EXITINFO1, as in a page fault's error code. */
#define CODE_PRESENT 1u
#define CODE_WRITE 2u
#define CODE_USER 4u
#define CODE_RESERVED 8u
#define CODE_FETCH 16u

/* Where Linux puts the types into the PAT; the indices are PAT, PCD, PWT. */
static const uint8_t index_of_type[8] = { [TABLE_WB] = 0, [TABLE_WC] = 1, [TABLE_UC] = 3, [TABLE_WP] = 5, [TABLE_WT] = 7 };
/* UC- (2 and 6) is UC to whom no MTRR says otherwise. */
static const uint8_t type_of_index[8] = { TABLE_WB, TABLE_WC, TABLE_UC, TABLE_UC, TABLE_WB, TABLE_WP, TABLE_UC, TABLE_WT };

static uint64_t reserved(const struct table_options *o, unsigned level, bool leaf)
{
	if (!leaf)
		return level > TABLE_LEAF_LEVELS ? LARGE | GLOBAL : level == 3 ? GLOBAL : 0;
	if (level == 1)
		return 0;
	return table_bits(13, table_level_shift(level) - 1) | (level == 3 && !o->gib_pages ? LARGE : 0);
}

static void disallowed(const struct table_options *o, uint8_t *ret_low, uint8_t *ret_type)
{
	(void)o;
	*ret_low = *ret_type = 0;
}

static uint64_t encode(unsigned level, const struct table_leaf *leaf)
{
	uint64_t index = index_of_type[leaf->memory_type];

	return leaf->address | READS | (leaf->perms & TABLE_WRITE ? WRITABLE : 0) |
	       (leaf->perms & TABLE_EXECUTE ? 0 : NO_EXECUTE) | (index & 3) << 3 |
	       (index & 4 ? level > 1 ? PAT_LARGE : PAT_SMALL : 0) | (level > 1 ? LARGE : 0) |
	       (leaf->accessed ? ACCESSED : 0) | (leaf->dirty ? DIRTY : 0) | (uint64_t)leaf->tag << TABLE_TAG_SHIFT;
}

static unsigned perms(uint64_t granted)
{
	if ((granted & READS) != READS)
		return 0;
	return TABLE_READ | (granted & WRITABLE ? TABLE_WRITE : 0u) | (granted & NO_EXECUTE ? TABLE_EXECUTE : 0u);
}

static void decode(unsigned level, uint64_t entry, struct table_leaf *ret_leaf)
{
	bool pat = entry & (level > 1 ? PAT_LARGE : PAT_SMALL);

	*ret_leaf = (struct table_leaf){
		.address = entry & TABLE_ADDRESS_MASK & ~(table_level_bytes(level) - 1),
		.perms = (uint8_t)perms(entry ^ NO_EXECUTE),
		.memory_type = type_of_index[(entry >> 3 & 3) | (pat ? 4 : 0)],
		.accessed = entry & ACCESSED,
		.dirty = entry & DIRTY,
		.tag = entry >> TABLE_TAG_SHIFT & TABLE_TAG_MAX,
	};
}

static uint64_t fault_code(const struct table_walk *w)
{
	return CODE_USER | (w->access & TABLE_WRITE ? CODE_WRITE : 0u) | (w->access & TABLE_EXECUTE ? CODE_FETCH : 0u) |
	       (w->outcome == TABLE_MISCONFIGURED ? CODE_PRESENT | CODE_RESERVED :
		w->perms			  ? CODE_PRESENT :
						    0u);
}

static uint64_t root(const struct table_options *o, uint64_t address)
{
	(void)o;
	return address;
}

const struct table_format table_format_npt = {
	.name = "npt",
	.present = PRESENT,
	.inverted = NO_EXECUTE,
	.large = LARGE,
	.accessed = ACCESSED,
	.dirty = DIRTY,
	.table_entry = WRITES,
	.need = { 0, READS, WRITES, WRITES, READS | NO_EXECUTE, READS | NO_EXECUTE, WRITES | NO_EXECUTE,
		  WRITES | NO_EXECUTE },
	.readable_always = true,
	.reserved = reserved,
	.disallowed = disallowed,
	.encode = encode,
	.decode = decode,
	.perms = perms,
	.fault_code = fault_code,
	.root = root,
};
