/* balloon/port_libvirt.h - the way to the balloons of VMs whose monitor belongs to libvirt. Loop thread only, nothing
 * blocks.
 *
 * libvirt's calls do block, some for as long as a VMM's monitor hangs. So a thread of its own opens a connection and makes
 * the calls, one after the other; another runs libvirt's event loop, by which domains are found: nothing is polled for
 * them. Both leave what they learn in a table behind a lock. A call that takes longer than 10 s while libvirtd itself is
 * alive is given up: its thread may stay in it as long as it wants, whatever comes of it is dropped, and a new thread goes
 * on with a new connection. libvirt tells the figures of the other domains then (it does not wait for one that has a call
 * out), and the one that hangs is set aside with that as its reason till it answers again. At most 4 threads are given up
 * at a time; the fifth is waited for, and all domains have that as their reason meanwhile. */
#ifndef BALLOON_PORT_LIBVIRT_H
#define BALLOON_PORT_LIBVIRT_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <systemd/sd-event.h>

#include "balloon/port.h"
#include "core/fsio.h"

struct port_libvirt;

/* From the loop. */
struct port_libvirt_ops {
	void (*changed)(void *userdata); /* domains came or went, or fresh figures are in: a tick may look */
};

/* Borrows fs, ops and userdata. Connects at the first port_libvirt_want(). With fs->dry_run nothing of a domain is changed.
 * 0, or negative errno. Built without libvirt: a port that knows no domain and says why. */
int port_libvirt_new(sd_event *loop, const char *uri, const struct fsio *fs, const struct port_libvirt_ops *ops,
		     void *userdata, struct port_libvirt **ret_port);
/* NULL ok; gives NULL. Takes back what was set at domains (statistics periods). Waits for that at most 3 s: a thread that
 * hangs in libvirt is left to itself. */
struct port_libvirt *port_libvirt_free(struct port_libvirt *p);

/* There are VMs of libvirt. Connects when not connected: at once, after failures 1 to 60 s later. To be called in every
 * tick with such a VM: this is also what notices a call that hangs. */
void port_libvirt_want(struct port_libvirt *p);
/* Asks for fresh figures of all domains; no-op while it was asked and has not come, or is not connected. */
void port_libvirt_ask(struct port_libvirt *p);

/* What was told of the domain with this uuid. pid must be its real process by libvirt's own pid file, so that a process
 * that merely claims the uuid gets nobody's figures. False: not known, or not yet; ret_told->why has the reason. */
bool port_libvirt_told(const struct port_libvirt *p, const char *uuid, pid_t pid, struct balloon_told *ret_told);

/* Sets the guest's memory, in the background: KiB, rounded down. What came of it is logged; an error is told by why for a
 * minute. 0: taken on; -EBUSY: an earlier one is out, or the domain is set aside; -ENOTCONN; -ENOENT: no such domain;
 * -EROFS: dry run. */
int port_libvirt_set(struct port_libvirt *p, const char *uuid, pid_t pid, uint64_t bytes);

#endif
