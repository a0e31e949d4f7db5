/* cli/translate.h - memvirtctl translate: one guest address on its way to the host's frame, or a frame on its way back. */
#ifndef CLI_TRANSLATE_H
#define CLI_TRANSLATE_H

#include "cli/connection.h"
#include "cli/flags.h"

/* Whether one is given that is this command's own. */
bool translate_flags_any(const struct cli_flags *flags);
/* The exit code: 0, 1 the address leads nowhere, 2 error. vm NULL: none was named. */
int translate_command(const struct connection_options *options, const char *vm, const struct cli_flags *flags);

#endif
