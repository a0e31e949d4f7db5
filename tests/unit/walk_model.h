/* tests/unit/walk_model.h - the guest's page tables once more, spelled out mode by mode from the tables of the manual
 * (SDM vol. 3A, 4-2 to 4-20), to check ept/walk.c against. Nothing is shared with it but its types. */
#ifndef TESTS_WALK_MODEL_H
#define TESTS_WALK_MODEL_H

#include <string.h>

#include "ept/walk.h"
#include "tests/unit/unit.h"

/* Guest memory from 0 on, and nothing else. */
struct world {
	uint8_t *bytes;
	uint64_t size;
	unsigned reads;
};

static inline int world_read(void *userdata, uint64_t gpa, void *buf, size_t n)
{
	struct world *w = userdata;

	w->reads++;
	if (gpa >= w->size || w->size - gpa < n)
		return -ENXIO;
	memcpy(buf, w->bytes + gpa, n);
	return 0;
}

static inline void world_put(struct world *w, uint64_t gpa, uint64_t value, size_t n)
{
	unit_must(gpa + n <= w->size, "world_put");
	memcpy(w->bytes + gpa, &value, n);
}

struct model {
	enum walk_fault fault;
	unsigned level, visited;
	uint64_t gpa, page_bytes;
	bool writable, user, executable;
};

/* An entry at this place; false where there is no memory. */
static inline bool model_entry(struct world *w, uint64_t at, unsigned n, uint64_t *value)
{
	*value = 0;
	if (at >= w->size || w->size - at < n)
		return false;
	for (unsigned i = 0; i < n; i++)
		*value |= (uint64_t)w->bytes[at + i] << 8 * i;
	return true;
}

static inline bool model_ends(struct model *m, enum walk_fault fault, unsigned level)
{
	m->fault = fault;
	m->level = level;
	return false;
}

static inline uint64_t model_low(unsigned n)
{
	return n >= 64 ? UINT64_MAX : (UINT64_C(1) << n) - 1;
}

/* A present entry without a bit of bad; its rights taken. */
static inline bool model_step(struct model *m, struct world *w, uint64_t at, unsigned n, unsigned level, uint64_t *e)
{
	m->visited++;
	if (!model_entry(w, at, n, e))
		return model_ends(m, WALK_OUTSIDE, level);
	if ((*e & 1) == 0)
		return model_ends(m, WALK_NOT_PRESENT, level);
	return true;
}

static inline bool model_good(struct model *m, const struct walk_regs *r, uint64_t e, uint64_t bad, unsigned level)
{
	bool nxe = r->efer >> 11 & 1;

	if (e & bad)
		return model_ends(m, WALK_RESERVED, level);
	m->writable &= e >> 1 & 1;
	m->user &= e >> 2 & 1;
	m->executable &= !(nxe && e >> 63);
	return true;
}

static inline void model_32(struct model *m, const struct walk_regs *r, struct world *w, uint64_t gva)
{
	uint64_t e, base;

	if (!model_step(m, w, (r->cr3 & 0xfffff000) + 4 * (gva >> 22 & 0x3ff), 4, 2, &e))
		return;
	if ((e >> 7 & 1) && (r->cr4 >> 4 & 1)) {
		unsigned extra = !r->pse36 || r->phys_bits <= 32 ? 0 : r->phys_bits >= 40 ? 8 : r->phys_bits - 32;
		uint64_t field = e >> 13 & 0x1ff; /* bits 13 .. 21 */

		if (field >> extra)
			model_ends(m, WALK_RESERVED, 2);
		else if (model_good(m, r, e & 0xffffffff, 0, 2)) {
			m->gpa = ((e & 0xffc00000) | (gva & 0x3fffff)) + (field << 32);
			m->page_bytes = 4u << 20;
		}
		return;
	}
	if (!model_good(m, r, e, 0, 2))
		return;
	base = e & 0xfffff000;
	if (model_step(m, w, base + 4 * (gva >> 12 & 0x3ff), 4, 1, &e) && model_good(m, r, e, 0, 1)) {
		m->gpa = (e & 0xfffff000) | (gva & 0xfff);
		m->page_bytes = 4096;
	}
}

/* The last two levels of 8-byte entries. high: the upper bits that must be 0 besides those of the address. */
static inline void model_low_levels(struct model *m, const struct walk_regs *r, struct world *w, uint64_t table,
				    uint64_t gva, uint64_t high)
{
	const uint64_t address = UINT64_C(0x000ffffffffff000);
	uint64_t e;

	if (!model_step(m, w, table + 8 * (gva >> 21 & 0x1ff), 8, 2, &e))
		return;
	if (e & 0x80) {
		if (model_good(m, r, e, high | 0x1fe000, 2)) {
			m->gpa = (e & address & ~model_low(21)) | (gva & model_low(21));
			m->page_bytes = 2u << 20;
		}
		return;
	}
	if (!model_good(m, r, e, high, 2))
		return;
	if (model_step(m, w, (e & address) + 8 * (gva >> 12 & 0x1ff), 8, 1, &e) && model_good(m, r, e, high, 1)) {
		m->gpa = (e & address) | (gva & 0xfff);
		m->page_bytes = 4096;
	}
}

static inline void model_pae(struct model *m, const struct walk_regs *r, struct world *w, uint64_t gva)
{
	const uint64_t above = UINT64_C(0x7fffffffffffffff) & ~model_low(r->phys_bits);
	uint64_t e, xd = r->efer >> 11 & 1 ? 0 : UINT64_C(1) << 63;

	if (!model_step(m, w, (r->cr3 & 0xffffffe0) + 8 * (gva >> 30 & 3), 8, 3, &e))
		return;
	if (e & (above | UINT64_C(1) << 63 | 0x1e6)) {
		model_ends(m, WALK_RESERVED, 3);
		return;
	}
	model_low_levels(m, r, w, e & UINT64_C(0x000ffffffffff000), gva, above | xd);
}

static inline void model_long(struct model *m, const struct walk_regs *r, struct world *w, uint64_t gva, unsigned levels)
{
	const uint64_t address = UINT64_C(0x000ffffffffff000), above = model_low(52) & ~model_low(r->phys_bits);
	uint64_t e, table = r->cr3 & address, high = above | (r->efer >> 11 & 1 ? 0 : UINT64_C(1) << 63);

	if (levels == 5) {
		if (!model_step(m, w, table + 8 * (gva >> 48 & 0x1ff), 8, 5, &e) || !model_good(m, r, e, high | 0x80, 5))
			return;
		table = e & address;
	}
	if (!model_step(m, w, table + 8 * (gva >> 39 & 0x1ff), 8, 4, &e) || !model_good(m, r, e, high | 0x80, 4) ||
	    !model_step(m, w, (e & address) + 8 * (gva >> 30 & 0x1ff), 8, 3, &e))
		return;
	if (e & 0x80) {
		if (!r->gib_pages)
			model_ends(m, WALK_RESERVED, 3);
		else if (model_good(m, r, e, high | 0x3fffe000, 3)) {
			m->gpa = (e & address & ~model_low(30)) | (gva & model_low(30));
			m->page_bytes = 1u << 30;
		}
		return;
	}
	if (model_good(m, r, e, high, 3))
		model_low_levels(m, r, w, e & address, gva, high);
}

static inline struct model model_walk(const struct walk_regs *r, struct world *w, uint64_t gva)
{
	struct model m = { .writable = true, .user = true, .executable = true };
	bool pg = r->cr0 >> 31 & 1, pae = r->cr4 >> 5 & 1, lme = r->efer >> 8 & 1, la57 = r->cr4 >> 12 & 1;
	int64_t sign = (int64_t)gva >> (la57 ? 56 : 47);

	if (pg && lme ? sign != 0 && sign != -1 : gva > 0xffffffff)
		m.fault = WALK_NOT_CANONICAL;
	else if (!pg)
		m.gpa = gva;
	else if (!pae)
		model_32(&m, r, w, gva);
	else if (!lme)
		model_pae(&m, r, w, gva);
	else
		model_long(&m, r, w, gva, la57 ? 5 : 4);
	return m;
}

#endif
