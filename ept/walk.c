#include "ept/walk.h"

#include <errno.h>
#include <string.h>

#define CR0_PE (UINT64_C(1) << 0)
#define CR0_PG (UINT64_C(1) << 31)
#define CR4_PSE (UINT64_C(1) << 4)
#define CR4_PAE (UINT64_C(1) << 5)
#define CR4_LA57 (UINT64_C(1) << 12)
#define EFER_LME (UINT64_C(1) << 8)
#define EFER_NXE (UINT64_C(1) << 11)

/* Bits low .. high, both included; none if high < low. */
static uint64_t bits(unsigned high, unsigned low)
{
	return high < low || low > 63 ? 0 : (~UINT64_C(0) >> (63 - high)) & (~UINT64_C(0) << low);
}

/* ---- the modes ---- */

/* A geometry per mode: levels, entry size, index bits per level. PAE's highest level has four entries. */
static const struct {
	const char *name;
	unsigned levels, entry_bytes, index_bits, address_bits;
} modes[] = {
	[WALK_FLAT] = { "no paging", 0, 0, 0, 32 },
	[WALK_32] = { "32-bit", 2, 4, 10, 32 },
	[WALK_PAE] = { "PAE", 3, 8, 9, 32 },
	[WALK_4LEVEL] = { "4-level", 4, 8, 9, 48 },
	[WALK_5LEVEL] = { "5-level", 5, 8, 9, 57 },
};

int walk_mode_of(const struct walk_regs *regs, enum walk_mode *ret_mode)
{
	bool pae = regs->cr4 & CR4_PAE, long_mode = regs->efer & EFER_LME;

	if (!(regs->cr0 & CR0_PG))
		*ret_mode = WALK_FLAT;
	else if (!(regs->cr0 & CR0_PE) || (long_mode && !pae))
		return -EINVAL;
	else if (!pae)
		*ret_mode = WALK_32;
	else if (!long_mode)
		*ret_mode = WALK_PAE;
	else
		*ret_mode = regs->cr4 & CR4_LA57 ? WALK_5LEVEL : WALK_4LEVEL;
	return 0;
}

unsigned walk_levels(enum walk_mode mode)
{
	return modes[mode].levels;
}

unsigned walk_entry_bytes(enum walk_mode mode)
{
	return modes[mode].entry_bytes;
}

unsigned walk_address_bits(enum walk_mode mode)
{
	return modes[mode].address_bits;
}

unsigned walk_entry_count(enum walk_mode mode, unsigned level)
{
	return mode == WALK_PAE && level == 3 ? 4 : 1u << modes[mode].index_bits;
}

static unsigned level_shift(enum walk_mode mode, unsigned level)
{
	return 12 + (level - 1) * modes[mode].index_bits;
}

uint64_t walk_level_bytes(enum walk_mode mode, unsigned level)
{
	return UINT64_C(1) << level_shift(mode, level);
}

uint64_t walk_root(const struct walk_regs *regs, enum walk_mode mode)
{
	switch (mode) {
	case WALK_32:
		return regs->cr3 & bits(31, 12);
	case WALK_PAE:
		return regs->cr3 & bits(31, 5);
	case WALK_4LEVEL:
	case WALK_5LEVEL:
		return regs->cr3 & bits(51, 12);
	default:
		return 0;
	}
}

const char *walk_mode_name(enum walk_mode mode)
{
	return modes[mode].name;
}

const char *walk_fault_name(enum walk_fault fault)
{
	static const char *const names[] = {
		[WALK_MAPPED] = "mapped",
		[WALK_NOT_CANONICAL] = "not an address of this mode",
		[WALK_NOT_PRESENT] = "not present",
		[WALK_RESERVED] = "reserved bit set",
		[WALK_OUTSIDE] = "table outside of guest memory",
		[WALK_UNREADABLE] = "table not readable",
	};

	return names[fault];
}

const char *walk_level_name(enum walk_mode mode, unsigned level)
{
	static const char *const names[] = { "", "PTE", "PDE", "PDPTE", "PML4E", "PML5E" };

	return level <= modes[mode].levels ? names[level] : "";
}

/* ---- entries ---- */

static enum walk_entry_kind entry_32(const struct walk_regs *regs, unsigned level, uint64_t entry, uint64_t *ret_gpa)
{
	/* How many address bits above 31 a large entry has room for, from bit 13 on; the rest up to 21 must be 0. */
	unsigned m = regs->phys_bits < 40 ? regs->phys_bits : 40, high = regs->pse36 && m > 32 ? m - 32 : 0;
	uint64_t bad = bits(21, 13 + high);

	if (level == 1 || !(entry & WALK_LARGE) || !(regs->cr4 & CR4_PSE)) {
		*ret_gpa = entry & bits(31, 12);
		return level == 1 ? WALK_ENTRY_PAGE : WALK_ENTRY_TABLE;
	}
	if (entry & bad) {
		*ret_gpa = entry & bad;
		return WALK_ENTRY_BAD;
	}
	*ret_gpa = (entry & bits(31, 22)) | (high ? (entry & bits(12 + high, 13)) << 19 : 0);
	return WALK_ENTRY_PAGE;
}

/* The bits of an 8-byte entry that must be 0. */
static uint64_t reserved_bits(const struct walk_regs *regs, enum walk_mode mode, unsigned level, bool large)
{
	uint64_t bad = bits(51, regs->phys_bits);

	if (mode == WALK_PAE) {
		bad |= bits(62, 52);
		if (level == 3)
			return bad | WALK_NO_EXECUTE | bits(2, 1) | bits(8, 5);
	}
	if (!(regs->efer & EFER_NXE))
		bad |= WALK_NO_EXECUTE;
	if (level > 3 || (level == 3 && !regs->gib_pages))
		bad |= WALK_LARGE;
	if (large)
		bad |= bits(level_shift(mode, level) - 1, 13);
	return bad;
}

enum walk_entry_kind walk_entry(const struct walk_regs *regs, enum walk_mode mode, unsigned level, uint64_t entry,
				uint64_t *ret_gpa)
{
	bool large = level > 1 && level < 4 && (entry & WALK_LARGE) && !(mode == WALK_PAE && level == 3);
	uint64_t bad;

	if (!(entry & WALK_PRESENT))
		return WALK_ENTRY_NONE;
	if (mode == WALK_32)
		return entry_32(regs, level, entry, ret_gpa);
	bad = entry & reserved_bits(regs, mode, level, large);
	if (bad) {
		*ret_gpa = bad;
		return WALK_ENTRY_BAD;
	}
	*ret_gpa = entry & bits(51, large ? level_shift(mode, level) : 12);
	return large || level == 1 ? WALK_ENTRY_PAGE : WALK_ENTRY_TABLE;
}

/* ---- the walk ---- */

static bool canonical(enum walk_mode mode, uint64_t gva)
{
	unsigned n = modes[mode].address_bits;
	uint64_t upper;

	if (n == 32)
		return gva >> 32 == 0;
	upper = gva & bits(63, n - 1);
	return upper == 0 || upper == bits(63, n - 1);
}

static int walk_ends(struct walk *w, enum walk_fault fault)
{
	w->fault = fault;
	w->fault_level = w->step_count ? w->steps[w->step_count - 1].level : 0;
	w->gpa = 0;
	return -EFAULT;
}

static void rights_take(const struct walk_regs *regs, struct walk *w, const struct walk_step *s)
{
	if (w->mode == WALK_PAE && s->level == 3) /* has none */
		return;
	w->writable &= (s->entry & WALK_WRITABLE) != 0;
	w->user &= (s->entry & WALK_USER) != 0;
	if (s->entry_bytes == 8 && (regs->efer & EFER_NXE))
		w->executable &= !(s->entry & WALK_NO_EXECUTE);
}

static void page_take(struct walk *w, const struct walk_step *s, uint64_t page, uint64_t gva)
{
	uint64_t pat = s->level == 1 ? WALK_LARGE : WALK_PAT_LARGE;

	w->page_bytes = s->bytes;
	w->gpa = page | (gva & (s->bytes - 1));
	w->accessed = s->entry & WALK_ACCESSED;
	w->dirty = s->entry & WALK_DIRTY;
	w->global = s->entry & WALK_GLOBAL;
	w->pat_index = (s->entry & pat ? 4u : 0) | (s->entry & WALK_PCD ? 2u : 0) | (s->entry & WALK_PWT ? 1u : 0);
}

/* Little-endian, as the processor of both sides is. */
static int entry_read(walk_read_fn read, void *userdata, struct walk_step *s)
{
	uint64_t value = 0;
	int r = read(userdata, s->table + (uint64_t)s->index * s->entry_bytes, &value, s->entry_bytes);

	if (r == 0)
		s->entry = value;
	return r;
}

static struct walk_step *step_add(struct walk *w, unsigned level, uint64_t table, uint64_t gva)
{
	struct walk_step *s = &w->steps[w->step_count++];

	*s = (struct walk_step){
		.table = table,
		.bytes = walk_level_bytes(w->mode, level),
		.index = (uint16_t)(gva >> level_shift(w->mode, level) & (walk_entry_count(w->mode, level) - 1)),
		.level = (uint8_t)level,
		.entry_bytes = (uint8_t)modes[w->mode].entry_bytes,
	};
	return s;
}

int walk_gva(const struct walk_regs *regs, walk_read_fn read, void *userdata, uint64_t gva, struct walk *ret_walk)
{
	struct walk *w = ret_walk;
	enum walk_mode mode;
	uint64_t table;
	int r = walk_mode_of(regs, &mode);

	if (r < 0)
		return r;
	*w = (struct walk){ .mode = mode, .writable = true, .user = true, .executable = true };
	if (!canonical(mode, gva))
		return walk_ends(w, WALK_NOT_CANONICAL);
	w->gpa = gva;
	table = walk_root(regs, mode);
	for (unsigned level = modes[mode].levels; level > 0; level--) {
		struct walk_step *s = step_add(w, level, table, gva);
		enum walk_entry_kind kind;

		w->error = entry_read(read, userdata, s);
		if (w->error < 0)
			return walk_ends(w, w->error == -ENXIO ? WALK_OUTSIDE : WALK_UNREADABLE);
		kind = walk_entry(regs, mode, level, s->entry, &table);
		if (kind == WALK_ENTRY_NONE)
			return walk_ends(w, WALK_NOT_PRESENT);
		if (kind == WALK_ENTRY_BAD) {
			w->reserved = table;
			return walk_ends(w, WALK_RESERVED);
		}
		rights_take(regs, w, s);
		if (kind == WALK_ENTRY_PAGE) {
			page_take(w, s, table, gva);
			break;
		}
	}
	return 0;
}
