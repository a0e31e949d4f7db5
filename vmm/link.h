/* vmm/link.h - keeps one VM reached by QMP: path, handshake, events, reconnects. Private to vmm/. */
#ifndef VMM_LINK_H
#define VMM_LINK_H

#include "vmm/entry.h"

/* Finds the VM's QMP socket. 0 and vm.qmp_path is set; or -ENOENT, it is empty, and why there is none. */
int link_path(struct vm_entry *e, const char **ret_why);
/* Connects to vm.qmp_path, as soon as the VMM is old enough; everything further comes from the loop. */
void link_start(struct vm_entry *e);
/* Drops the connection and any wait for the next; vm.state is left alone. */
void link_close(struct vm_entry *e);
/* Applies a changed vm.settings.qmp, and ends a wait for the next connection. */
void link_reopen(struct vm_entry *e);
/* Asks a ready VM how it is doing. */
void link_poll(struct vm_entry *e);

#endif
