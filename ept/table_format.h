/* ept/table_format.h - second-stage entries as processors have them, behind one interface. Pure.
 *
 * Intel: SDM vol. 3C, "The extended page table mechanism (EPT)". AMD: APM vol. 2, "Nested paging": the ordinary long-mode
 * format. A table is 4 KiB of 512 entries; level 1 is the lowest, whose entries map 4 KiB each. */
#ifndef EPT_TABLE_FORMAT_H
#define EPT_TABLE_FORMAT_H

#include <stdbool.h>
#include <stdint.h>

#define TABLE_LEVELS_MAX 5
#define TABLE_LEAF_LEVELS 3 /* 4 KiB, 2 MiB, 1 GiB */
#define TABLE_ENTRIES 512u
#define TABLE_TAG_MAX 15u

enum { TABLE_READ = 1, TABLE_WRITE = 2, TABLE_EXECUTE = 4 };

/* Intel's numbers; AMD's entries name one of eight by its place in the host's PAT. */
enum table_memory_type { TABLE_UC = 0, TABLE_WC = 1, TABLE_WT = 4, TABLE_WP = 5, TABLE_WB = 6 };

struct table_format;

struct table_options {
	const struct table_format *format;
	unsigned levels;     /* 4 or 5 */
	unsigned phys_bits;  /* MAXPHYADDR of the host: 36 to 52 */
	bool gib_pages;	     /* 1 GiB leaves */
	bool execute_only;   /* EPT: the processor has execute-only pages */
	bool accessed_dirty; /* EPT: these flags are switched on */
};

/* What an entry that maps a page says. */
struct table_leaf {
	uint64_t address; /* host-physical, aligned to its page */
	uint8_t perms;	  /* TABLE_READ and so on */
	uint8_t memory_type;
	bool ignore_pat; /* EPT only: the guest's PAT does not count */
	bool accessed, dirty;
	uint8_t tag; /* 0 to TABLE_TAG_MAX: the owner's, in bits that the processor ignores */
};

enum table_outcome { TABLE_MAPPED, TABLE_VIOLATION, TABLE_MISCONFIGURED };

/* How a walk for one access ended. */
struct table_walk {
	enum table_outcome outcome;
	unsigned access;     /* that was tried; 0: only looked */
	unsigned level;	     /* of the last entry that was read */
	unsigned references; /* entries read */
	uint64_t entry;	     /* the last one */
	uint64_t reserved;   /* TABLE_MISCONFIGURED: the bits at fault */
	unsigned perms;	     /* that all levels together grant; 0 where nothing is mapped */
	uint64_t address;    /* host-physical, of the byte; valid unless MISCONFIGURED or perms is 0 */
};

struct table_format {
	const char *name;
	uint64_t present;	   /* an entry with any of these bits is */
	uint64_t inverted;	   /* permission bits that take away when set */
	uint64_t large;		   /* above level 1: maps a page */
	uint64_t accessed, dirty;
	uint64_t table_entry;	   /* bits of an entry for a table, which leaves all permissions to the leaves */
	uint64_t need[8];	   /* by access: bits (the inverted ones turned round) that all levels must have */
	bool readable_always;	   /* no page without TABLE_READ */
	bool has_ignore_pat;
	/* Bits that must be zero in an entry of this level, those above the host's address width apart. */
	uint64_t (*reserved)(const struct table_options *o, unsigned level, bool leaf);
	/* Sets of three bits that are not allowed: bit i of *ret_low for bits 2:0 == i in any entry that is present, of
	 * *ret_type for bits 5:3 == i in one that maps a page. */
	void (*disallowed)(const struct table_options *o, uint8_t *ret_low, uint8_t *ret_type);
	/* Of valid members. */
	uint64_t (*encode)(unsigned level, const struct table_leaf *leaf);
	void (*decode)(unsigned level, uint64_t entry, struct table_leaf *ret_leaf);
	unsigned (*perms)(uint64_t granted); /* of bits as in need */
	/* What the processor tells the hypervisor about a walk that failed, as far as the walk decides it: bits 5:0 of EPT's
	 * exit qualification (0 for a misconfiguration, which has none); EXITINFO1 of a nested page fault. */
	uint64_t (*fault_code)(const struct table_walk *w);
	/* What the processor is given to find the table: EPTP, nCR3. */
	uint64_t (*root)(const struct table_options *o, uint64_t address);
};

#define TABLE_ADDRESS_MASK UINT64_C(0x000ffffffffff000)
#define TABLE_TAG_SHIFT 52

static inline unsigned table_level_shift(unsigned level)
{
	return 12 + 9 * (level - 1);
}

static inline uint64_t table_level_bytes(unsigned level)
{
	return UINT64_C(1) << table_level_shift(level);
}

/* Bits low to high, both included. */
static inline uint64_t table_bits(unsigned low, unsigned high)
{
	return (~UINT64_C(0) >> (63 - high)) & (~UINT64_C(0) << low);
}

extern const struct table_format table_format_ept, table_format_npt;

#endif
