/* cli/unmerge.h - memvirtctl unmerge: asks for it and waits until it is over. */
#ifndef CLI_UNMERGE_H
#define CLI_UNMERGE_H

#include "cli/connection.h"
#include "cli/flags.h"

#define EXIT_KEPT 3 /* a part stays merged */

/* Returns the exit status. With --undo it lets the VM be merged again, and that is all. */
int unmerge_command(const struct connection_options *options, const char *vm, const struct cli_flags *flags);

#endif
