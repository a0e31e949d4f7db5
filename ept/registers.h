/* ept/registers.h - a virtual CPU's paging registers out of QEMU's "info registers". Pure. */
#ifndef EPT_REGISTERS_H
#define EPT_REGISTERS_H

#include <stdbool.h>

#include "ept/walk.h"

/* Fills cr0, cr3, cr4, efer; the rest of *ret_regs is left alone. *ret_cut: the CPU is at 32-bit code in long mode, of
 * which QEMU shows CR3 without its upper half. 0; -EBADMSG for text of another shape, and nothing is filled. */
int registers_parse(const char *text, struct walk_regs *ret_regs, bool *ret_cut);

#endif
