/* cli/doctor.h - memvirtctl doctor: what do VMs lack for their balloons? */
#ifndef CLI_DOCTOR_H
#define CLI_DOCTOR_H

#include "cli/connection.h"
#include "cli/flags.h"

/* The exit code: 0 nothing is missing, 1 something is, 2 error. */
int doctor_command(const struct connection_options *options, const char *none, const struct cli_flags *flags);

#endif
