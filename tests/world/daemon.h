/* tests/world/daemon.h - the real memvirtd, one life after the other, and what its log says of each. */
#ifndef TESTS_WORLD_DAEMON_H
#define TESTS_WORLD_DAEMON_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct daemon_life {
	unsigned passes;	/* begun */
	unsigned rounds;	/* begun with VMs */
	unsigned rounds_merged; /* that merged something */
	bool in_round, in_pass;
};

struct chaos_daemon {
	char program[256], conf[256], policy[256], log[256];
	pid_t pid;	/* 0: none */
	int log_fd;	/* our own reading end of it */
	char line[4096]; /* what is there of a line that has not ended */
	size_t line_len;
	struct daemon_life life;
	/* Of all lives. */
	unsigned lives, lives_merged, rounds, adopted, warnings;
	uint64_t merged_mib, freed_frames;
	double cpu_seconds;
	char warning[256]; /* the last */
};

/* build: where memvirtd is; dir: for configuration and log. 0 or -errno. */
int daemon_open(struct chaos_daemon *d, const char *build, const char *dir);
void daemon_close(struct chaos_daemon *d); /* kills what is left */

int daemon_start(struct chaos_daemon *d);
/* Reads what it logged since. False: it ended by itself. */
bool daemon_watch(struct chaos_daemon *d);
/* SIGKILL, or SIGTERM and then -EIO when it did not end well within a minute. */
int daemon_stop(struct chaos_daemon *d, int signal_number);

#endif
