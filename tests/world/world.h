/* tests/world/world.h - VMMs under load and a daemon that merges them, on their own sockets; shared by chaos and soak.
 *
 * Whatever is wrong is printed, and counted in bad; who finds bad != 0 ends. One thread. */
#ifndef TESTS_WORLD_WORLD_H
#define TESTS_WORLD_WORLD_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "tests/world/daemon.h"
#include "tests/world/vmm.h"

#define WORLD_VMS 20u
#define WORLD_QUIET_SECONDS 60 /* a thread that does nothing for so long is blocked */

struct world_vm {
	pid_t pid; /* 0: none */
	unsigned number;
	char name[32]; /* its domain, and the number */
	struct chaos_page *page;
	uint32_t order;
	uint32_t beats[CHAOS_THREADS]; /* as last seen to change .. */
	uint64_t beat_ns[CHAOS_THREADS];
};

struct world {
	char build[200], dir[64];
	uint64_t random;
	struct chaos_daemon daemon;
	struct world_vm vms[WORLD_VMS];
	unsigned next_number, vm_kills;
	uint32_t epoch;
	uint64_t started_ns;
	uint64_t writes, checks, discards; /* of VMs that have ended */
	uint64_t bad;
};

/* Waits for its turn on this host; no VM, no daemon yet. 0; -errno, with *ret_why for a reason to skip. */
int world_open(struct world *w, uint64_t seed, const char **ret_why);
/* Ends all processes; removes what it made, unless something was wrong. */
void world_close(struct world *w);

uint64_t world_random(struct world *w, uint64_t below);
void world_wrong(struct world *w, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
double world_seconds(const struct world *w); /* since world_open() */

int world_vm_start(struct world *w, unsigned i);
void world_vm_kill(struct world *w, unsigned i);
void world_vm_end(struct world *w, unsigned i); /* in order */
/* Carried out by the time of world_await(); by all VMs. */
void world_order(struct world *w, enum chaos_order order);
void world_order_one(struct world *w, unsigned i, enum chaos_order order);
void world_await(struct world *w);
void world_shift(struct world *w); /* other contents are shared from now on */

/* Lets the world run for so long, or until() is true of it; reads the log, and looks after everybody. */
void world_run(struct world *w, double seconds, bool (*until)(struct world *w));
uint64_t world_checks(const struct world *w); /* pages compared, by all VMs */
/* What the daemon says; zeroes when it does not answer. */
void world_saved(const struct world *w, double *ret_saved_mib, double *ret_frames_mib);
void world_report(const struct world *w);     /* the last line */

#endif
