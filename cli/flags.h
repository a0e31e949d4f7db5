/* cli/flags.h - options that are not about the connection, and exit codes. */
#ifndef CLI_FLAGS_H
#define CLI_FLAGS_H

#include <stdbool.h>

/* The command line makes no sense; 1 is what a command that worked answers with "no". */
#define EXIT_USAGE 2

struct cli_flags {
	bool json;
	bool undo;	  /* unmerge */
	const char *node; /* admit; NULL: any */
	const char *gva, *gpa, *hva, *hpa, *cpu, *cr3; /* translate; NULL: not given */
};

#endif
