/* cli/audit.h - memvirtctl audit: does any VM map a frame that it must not? */
#ifndef CLI_AUDIT_H
#define CLI_AUDIT_H

#include "cli/connection.h"
#include "cli/flags.h"

/* The exit code: 0 no, all VMs were looked at; 1 yes; 2 error, or not all could be looked at. */
int audit_command(const struct connection_options *options, const char *none, const struct cli_flags *flags);

#endif
