/* ept/cpu_ask.h - asks a VMM by QMP for what a virtual CPU's page tables are walked with. Loop thread. */
#ifndef EPT_CPU_ASK_H
#define EPT_CPU_ASK_H

#include "ept/walk.h"
#include "vmm/qmp.h"

struct cpu_ask;

/* result 0: *regs, as it was just now. Else -ENOENT (no such CPU), -ENODATA (half of CR3 is not shown, see
 * registers_parse()), -EBADMSG, -EREMOTEIO or -ECONNRESET; why says it for people. Borrowed for the call. */
typedef void (*cpu_answer_fn)(int result, const struct walk_regs *regs, const char *why, void *userdata);

/* Asks for the CPU with this index; low_ram: the guest has none above 4 GiB, so that half of CR3 is all of it. answer is
 * called once, from the loop, and ends the asking; unless the connection is freed before: then the caller ends it by
 * cpu_ask_free(). 0, or what qmp_command() gave. */
int cpu_ask_start(struct qmp *q, unsigned cpu, bool low_ram, cpu_answer_fn answer, void *userdata,
		  struct cpu_ask **ret_ask);
/* Only where no answer can come any more. NULL ok; gives NULL. */
struct cpu_ask *cpu_ask_free(struct cpu_ask *a);

#endif
