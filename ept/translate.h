/* ept/translate.h - one guest address on its whole way: GVA -> GPA -> HVA -> HPA, with every step, and what the way costs.
 *
 * The guest runs meanwhile and may change its tables; so may the host. What is told was true of each step when it was
 * looked at. Reads and waits as ept_target_read() does: not for the loop thread. */
#ifndef EPT_TRANSLATE_H
#define EPT_TRANSLATE_H

#include "ept/frame.h"
#include "ept/target.h"
#include "ept/walk.h"

/* Levels of the second-stage table: what KVM uses for guests of up to 48 bits of physical address. */
#define TRANSLATE_STAGE2_LEVELS 4

/* A guest-physical address on its way on. */
struct translate_place {
	uint64_t gpa;
	const struct ept_slot *slot; /* of the target; NULL: not in RAM, and nothing below is valid */
	uint64_t hva;
	struct frame frame;
	uint64_t stage2_bytes; /* the largest page that a second-stage entry can map here: the host's, if slot and alignment
				* allow it */
};

struct translation {
	bool gva_known, gpa_known;
	uint64_t gva;
	struct walk walk;			       /* if gva_known */
	struct translate_place tables[WALK_LEVELS_MAX]; /* where each step's entry lies */
	struct translate_place page;		       /* gpa is valid if gpa_known, hva and frame if slot is set */
	unsigned references; /* memory references of the two-dimensional walk; 0: the way has no end */
};

/* 0: the way leads to a page of guest RAM, which need not be present on the host. -EFAULT: it ends before, and *ret_t says
 * where. -EINVAL: impossible registers. -ENXIO (translate_hva() only): no RAM of this VM. -errno: could not look.
 * *ret_t borrows slots of the target. */
int translate_gva(const struct ept_target *target, const struct walk_regs *regs, uint64_t gva, struct translation *ret_t);
int translate_gpa(const struct ept_target *target, uint64_t gpa, struct translation *ret_t);
/* The GPA is the lowest where the guest sees the byte. */
int translate_hva(const struct ept_target *target, uint64_t hva, struct translation *ret_t);

/* For -EFAULT: why, in one line for people. */
void translate_why(const struct translation *t, char *buf, size_t cap);

/* What one entry of a table or a page of the guest costs on its way through the second stage. */
unsigned translate_stage2_references(uint64_t stage2_bytes);

#endif
