/* cli/guest_processes.h - memvirtctl guest-processes: the address spaces of a guest as a table. */
#ifndef CLI_GUEST_PROCESSES_H
#define CLI_GUEST_PROCESSES_H

#include <jansson.h>

void show_guest_processes(const json_t *answer);

#endif
