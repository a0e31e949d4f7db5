/* cli/unmerge.h - memvirtctl unmerge: asks for it and waits until it is over. */
#ifndef CLI_UNMERGE_H
#define CLI_UNMERGE_H

#include <stdbool.h>

#include "cli/connection.h"

#define EXIT_KEPT 2 /* a part stays merged */

/* Returns the exit status. undo: lets the VM be merged again, and that is all. */
int unmerge_command(const struct connection_options *options, const char *vm, bool undo, bool as_json);

#endif
