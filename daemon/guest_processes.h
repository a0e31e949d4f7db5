/* daemon/guest_processes.h - the address spaces of a guest that are asked for. QMP is asked on the loop, several times, which
 * tables its CPUs have; memory is looked at on a thread per request. */
#ifndef DAEMON_GUEST_PROCESSES_H
#define DAEMON_GUEST_PROCESSES_H

#include <jansson.h>

#include "ept/processes.h"

struct control_client;
struct daemon;
struct guest_processes;
struct vm;

int guest_processes_new(struct daemon *d, struct guest_processes **ret_processes); /* 0 or -ENOMEM */
struct guest_processes *guest_processes_free(struct guest_processes *p); /* waits for threads; NULL ok; gives NULL */

/* Answers the client, now or later. */
void guest_processes_request(struct daemon *d, struct control_client *client, const struct vm *vm);
/* client is going away. */
void guest_processes_abandon(struct daemon *d, struct control_client *client);
/* The VM's QMP connection is gone: what was asked of it will not be answered. */
void guest_processes_vm_lost(struct daemon *d, const struct vm *vm);

/* NULL when out of memory. */
json_t *render_guest_processes(const struct processes *p, unsigned cpus);

#endif
