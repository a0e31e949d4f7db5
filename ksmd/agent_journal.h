/* ksmd/agent_journal.h - the journal that an agent shares, and the repair of what it says is open (SAFETY.md, R5).
 *
 * Journal and userfaultfd come from the VMM, which may be hostile: the file is taken only if it cannot shrink under
 * the mapping, its content is copied before it is looked at, and whatever it says, the repair can change nothing but
 * memory of processes whose userfaultfd this is. */
#ifndef KSMD_AGENT_JOURNAL_H
#define KSMD_AGENT_JOURNAL_H

#include <sys/types.h>

#include "agent/exchange.h"

/* fd is borrowed. 0; -EPROTO: no sealed memfd of at least a page; -errno. */
int agent_journal_map(int fd, struct exchange_journal **ret_journal);
void agent_journal_unmap(struct exchange_journal *j); /* NULL ok */
/* 0, or -EPROTO when fd is no userfaultfd. */
int agent_journal_check_uffd(int fd);

/* Finishes the window that is open if the thread that opened it is surely dead: not slow, not stopped, for if it went
 * on after the repair it would map frames over what the guest has written since. pidfd proves that pid is still
 * the process; freezer -1: its agent cannot un-merge. 1: repaired; 0: nothing is open, or its thread lives, or the process has ended; -errno. */
int agent_journal_repair(struct exchange_journal *j, pid_t pid, int pidfd, int uffd, int freezer);

/* Reads the messages of a freezer (agent/freezer.h), which may be -1. Waits for nothing. */
void agent_journal_drain(int freezer);

#endif
