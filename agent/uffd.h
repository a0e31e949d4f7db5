/* agent/uffd.h - the userfaultfd calls of the exchange, and the probes that say whether a descriptor will do.
 *
 * All return 0 or -errno, take no lock, allocate nothing and may be used inside the window. */
#ifndef AGENT_UFFD_H
#define AGENT_UFFD_H

#include <stdbool.h>
#include <stdint.h>

/* Opens a userfaultfd that also sees faults in kernel mode, with the features MOVE and WP_ASYNC. From
 * /dev/userfaultfd if that can be opened, else by the system call (needs CAP_SYS_PTRACE). Descriptor or -errno. */
int uffd_open(void);
/* The handshake on a fresh descriptor, one received from the daemon for example. */
int uffd_setup(int fd);
/* The same for the descriptor that agent/freezer.h needs: writers wait (no WP_ASYNC), also in mappings of a memory file,
 * and a registered mapping stays so when it is moved. */
int uffd_open_freezer(void);
int uffd_setup_freezer(int fd);
/* R7, R14: moves a page, and lets the kernel itself fault on a missing page (a descriptor that was made with
 * UFFD_USER_MODE_ONLY fails here: KVM and read(2) would get EFAULT). Starts a thread; not for the window.
 * 0, or -errno and a reason (static string). */
int uffd_probe(int fd, const char **ret_why);

int uffd_register(int fd, uint64_t addr, uint64_t len, uint64_t mode);
int uffd_unregister(int fd, uint64_t addr, uint64_t len);
int uffd_wake(int fd, uint64_t addr, uint64_t len);
/* Never believe the result of a move that failed, see R1: ask the page tables. */
int uffd_move(int fd, uint64_t dst, uint64_t src, uint64_t len);
/* Copies without waking. *ret_done: bytes that are in place, also on failure. */
int uffd_copy(int fd, uint64_t dst, uint64_t src, uint64_t len, uint64_t *ret_done);
/* on: who writes waits. Off: they are woken. */
int uffd_writeprotect(int fd, uint64_t addr, uint64_t len, bool on);
int uffd_zeropage(int fd, uint64_t addr, uint64_t len);

#endif
