/* cli/admit.h - memvirtctl admit: may a VM of some size start? */
#ifndef CLI_ADMIT_H
#define CLI_ADMIT_H

#include "cli/connection.h"
#include "cli/flags.h"

/* The exit code: 0 yes, 1 no, 2 error. */
int admit_command(const struct connection_options *options, const char *size, const struct cli_flags *flags);

#endif
