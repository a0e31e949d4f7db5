/* balloon/port_qmp.h - the way to a VM's balloon through its QMP socket. Loop thread only; nothing blocks: answers come
 * from the loop, and a VMM that does not answer loses its connection (vmm/qmp.h). */
#ifndef BALLOON_PORT_QMP_H
#define BALLOON_PORT_QMP_H

#include "balloon/port.h"
#include "vmm/registry.h"

struct port_qmp;

/* vm is borrowed; the port ends after the VM's connection has, and before the VM. 0 or -ENOMEM. */
int port_qmp_new(struct vm *vm, struct port_qmp **ret_port);
struct port_qmp *port_qmp_free(struct port_qmp *p); /* NULL ok; gives NULL */

/* told() is called whenever the guest's statistics have come. */
void port_qmp_on_stats(struct port_qmp *p, void (*told)(struct vm *vm, void *userdata), void *userdata);

/* The VM is reached (again): looks for its balloon. */
void port_qmp_connected(struct port_qmp *p);

/* Has the VMM ask the guest for statistics at once, and then every so often: those are there a moment later. QEMU asks when
 * the period is set anew, and in no other way. */
void port_qmp_refresh(struct port_qmp *p, uint64_t period_s);
/* Asks the VMM what it knows. Both do nothing while the VM is not reached or has no balloon. */
void port_qmp_ask(struct port_qmp *p);
/* Borrowed. */
const struct balloon_told *port_qmp_told(const struct port_qmp *p);
/* 0, -ENOTCONN, or what qmp_command() gives. That the VMM refused is logged. */
int port_qmp_set(struct port_qmp *p, uint64_t bytes);

#endif
