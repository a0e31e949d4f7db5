/* ept/walk.h - guest page tables: guest-virtual to guest-physical, as the processor would, from outside. Pure.
 *
 * Intel SDM vol. 3A, chapter 4: 32-bit, PAE, 4-level and 5-level paging; AMD's formats are the same. The tables belong
 * to a guest that is not trusted and that may write them meanwhile: every entry is read once, and no walk takes more
 * steps than the mode has levels, whatever the entries say. */
#ifndef EPT_WALK_H
#define EPT_WALK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define WALK_LEVELS_MAX 5

/* What a virtual CPU goes by. The last three are properties of its model; the most that an architecture allows
 * (52, true, true) refuses the fewest entries. */
struct walk_regs {
	uint64_t cr0, cr3, cr4, efer;
	unsigned phys_bits; /* MAXPHYADDR */
	bool pse36;	    /* 4 MiB pages above 4 GiB */
	bool gib_pages;	    /* 1 GiB pages */
};

enum walk_mode { WALK_FLAT, WALK_32, WALK_PAE, WALK_4LEVEL, WALK_5LEVEL };

enum walk_fault {
	WALK_MAPPED,
	WALK_NOT_CANONICAL, /* the address has more bits than the mode; before any level */
	WALK_NOT_PRESENT,
	WALK_RESERVED, /* a bit is set that must not be */
	WALK_OUTSIDE,  /* a table lies where the guest has no memory */
	WALK_UNREADABLE, /* a table could not be read; no fault of the guest's */
};

/* Bits of an entry, in all modes. Those above 31 are in 8-byte entries only. */
#define WALK_PRESENT (UINT64_C(1) << 0)
#define WALK_WRITABLE (UINT64_C(1) << 1)
#define WALK_USER (UINT64_C(1) << 2)
#define WALK_PWT (UINT64_C(1) << 3)
#define WALK_PCD (UINT64_C(1) << 4)
#define WALK_ACCESSED (UINT64_C(1) << 5)
#define WALK_DIRTY (UINT64_C(1) << 6)
#define WALK_LARGE (UINT64_C(1) << 7)	   /* above the lowest level; there it is PAT */
#define WALK_GLOBAL (UINT64_C(1) << 8)
#define WALK_PAT_LARGE (UINT64_C(1) << 12) /* PAT of a large page */
#define WALK_NO_EXECUTE (UINT64_C(1) << 63)

/* One entry that was looked at. Level 1 is the lowest, whose entries map 4 KiB each. */
struct walk_step {
	uint64_t table; /* GPA of the table */
	uint64_t entry; /* its value; 0 if it could not be read */
	uint64_t bytes; /* that an entry of this level spans */
	uint16_t index;
	uint8_t level, entry_bytes;
};

struct walk {
	enum walk_mode mode;
	enum walk_fault fault;
	unsigned fault_level; /* of the last step; 0: none was made */
	uint64_t reserved;    /* WALK_RESERVED: the bits at fault */
	int error;	      /* WALK_UNREADABLE: what read() gave */
	struct walk_step steps[WALK_LEVELS_MAX];
	unsigned step_count;

	/* WALK_MAPPED: */
	uint64_t gpa;	     /* of the byte */
	uint64_t page_bytes; /* of the guest's page; 0 where paging is off */
	/* All levels taken together: */
	bool writable, user, executable;
	/* The page's own entry: */
	bool accessed, dirty, global;
	unsigned pat_index; /* PAT, PCD, PWT: which of the eight memory types */
};

/* Reads n bytes of guest-physical memory. 0; -ENXIO where the guest has none; -errno. */
typedef int (*walk_read_fn)(void *userdata, uint64_t gpa, void *buf, size_t n);

/* Fills *ret_walk in any case, unless: -EINVAL, no processor can have these registers; nothing is filled. 0: mapped;
 * -EFAULT: fault says why not. */
int walk_gva(const struct walk_regs *regs, walk_read_fn read, void *userdata, uint64_t gva, struct walk *ret_walk);

/* ---- what it is made of, for whoever looks through whole tables ---- */

/* The mode, and where the walk begins. 0 or -EINVAL as above. */
int walk_mode_of(const struct walk_regs *regs, enum walk_mode *ret_mode);
unsigned walk_levels(enum walk_mode mode);		    /* 0 for WALK_FLAT */
uint64_t walk_root(const struct walk_regs *regs, enum walk_mode mode);
unsigned walk_entry_bytes(enum walk_mode mode);
unsigned walk_entry_count(enum walk_mode mode, unsigned level);
uint64_t walk_level_bytes(enum walk_mode mode, unsigned level); /* that one entry spans */
unsigned walk_address_bits(enum walk_mode mode);

enum walk_entry_kind { WALK_ENTRY_NONE, WALK_ENTRY_BAD, WALK_ENTRY_TABLE, WALK_ENTRY_PAGE };

/* What an entry of this level says; *ret_gpa: of the next table or the page; WALK_ENTRY_BAD: the bits at fault. */
enum walk_entry_kind walk_entry(const struct walk_regs *regs, enum walk_mode mode, unsigned level, uint64_t entry,
				uint64_t *ret_gpa);

const char *walk_mode_name(enum walk_mode mode);
const char *walk_fault_name(enum walk_fault fault);
const char *walk_level_name(enum walk_mode mode, unsigned level); /* as the manuals call its entries: "PTE" */

#endif
