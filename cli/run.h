/* cli/run.h - "memvirtctl run": starts a VMM with the agent inside. */
#ifndef CLI_RUN_H
#define CLI_RUN_H

/* argv[0] is "run". Returns only if there is nothing to execute: the exit status. */
int run_command(int argc, char **argv);

#endif
