/* daemon/daemon.h - everything that runs on the one loop thread, and how its parts reach each other. */
#ifndef DAEMON_DAEMON_H
#define DAEMON_DAEMON_H

#include <stdbool.h>
#include <systemd/sd-event.h>

#include "balloon/balloon.h"
#include "core/config.h"
#include "core/fsio.h"
#include "core/snapshot.h"
#include "ksmd/ksmd.h"
#include "vmm/registry.h"

struct control;
struct estimates;
struct guest_processes;
struct job;
struct recorder;
struct translations;

struct daemon_options {
	const char *config_file; /* NULL: none */
	bool config_optional;	 /* config_file need not exist */
	bool verbose;		 /* log at level debug, whatever the configuration says */
	const char *policy_dir;	 /* NULL: none */
	bool dry_run;
	const char *record_file; /* NULL: nothing is recorded */
	int oneshot_fd; /* >= 0: look only, serve this one connection and end with it */
};

struct daemon {
	struct daemon_options options;
	struct config config;
	struct fsio fs;
	sd_event *loop;
	struct vmm_registry *registry;
	struct ksmd *ksmd;
	struct balloon *balloon;
	struct control *control;
	struct estimates *estimates;
	struct job *jobs;
	struct recorder *recorder; /* NULL: nothing is recorded */
	struct translations *translations;
	struct guest_processes *guest_processes;

	sd_event_source *tick_timer, *pass_ready, *round_ready, *agents_ready;
	struct host_snapshot snapshot; /* of the last tick */
	bool cgroup_failed; /* [host] cgroup could not be read in the last tick */
	uint64_t started_ns, discovered_ns, ticks;
};

/* Loads the configuration that the options name; see config_load(). */
int daemon_config_load(const struct daemon_options *options, struct config *ret_config,
		       struct config_error *ret_error);
/* A daemon that is ready to run. 0 or -errno, after logging what was wrong. */
int daemon_new(const struct daemon_options *options, struct config *config, struct daemon **ret_daemon);
/* Runs until SIGTERM or SIGINT, or until the oneshot connection ends. 0 or -errno. */
int daemon_run(struct daemon *d);
/* Restores what was changed on the host. NULL ok; gives NULL. */
struct daemon *daemon_free(struct daemon *d);

/* Loads the configuration anew. 0; -errno with the reason in ret_error, and nothing changed. */
int daemon_reload(struct daemon *d, struct config_error *ret_error);

/* The picture of host and VMs as far as no module is needed for it. Names and descriptors are borrowed from the
 * VMs: not to be kept over a return to the loop without snapshot_drop_vm() when a VM goes. The caller ends it
 * with snapshot_free(). 0 or -errno. */
int snapshot_take(struct daemon *d, struct host_snapshot *ret_snapshot);
/* Only the host's memory. s is changed only on 0. */
int snapshot_host(struct daemon *d, struct host_snapshot *s);
void snapshot_drop_vm(struct host_snapshot *s, const struct vm *vm);
void snapshot_free(struct host_snapshot *s); /* leaves an empty one */

/* Whether every VM that was found is known as well as it will be soon: QMP answered or was given up. */
bool daemon_settled(const struct daemon *d);

#endif
