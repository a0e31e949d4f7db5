/* balloon/libvirt_link.h - the threads behind balloon/port_libvirt.h.
 *
 * The hub is what they and the loop share; its lock guards everything in it, in the links and in the table of domains. A
 * link is one connection and the thread that opens it, makes its calls and closes it. A callback of libvirt's event loop
 * only takes the lock and leaves what it was told; it calls nothing that could block. */
#ifndef BALLOON_LIBVIRT_LINK_H
#define BALLOON_LIBVIRT_LINK_H

#include <libvirt/libvirt.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "balloon/libvirt_domains.h"
#include "core/clock.h"
#include "core/config.h"

/* libvirtd's keepalive: one that is dead or stopped is noticed after (COUNT + 1) x INTERVAL, which must be less than
 * libvirt_hang_ns, so that a call that hangs longer hangs at a domain. */
#define LIBVIRT_KEEPALIVE_INTERVAL_S 2
#define LIBVIRT_KEEPALIVE_COUNT 3
extern uint64_t libvirt_hang_ns; /* 10 s; tests make it shorter */
/* Threads given up. libvirtd serves 20 calls at a time, of one client 5. */
#define LIBVIRT_HUNG_MAX 4

#define LIBVIRT_EVENTS 3 /* kinds that are listened to */

struct libvirt_hub {
	pthread_mutex_t lock;
	pthread_cond_t changed;
	unsigned int refs; /* the loop's, and one for each link */
	int wake_fd;	   /* an eventfd: there is something for the loop */
	char uri[CONFIG_TEXT_MAX];
	bool may_write;
	bool stop;
	bool ask; /* fresh figures are wanted and have not come */
	bool known; /* the table is that of a connection */
	struct libvirt_link *link; /* that is in use; NULL: none */
	unsigned int hung;	   /* threads given up, or closing, that have not come back */
	unsigned int backoff_s;
	uint64_t retry_ns;
	char why[160]; /* there is no connection */
	struct libvirt_domains domains;
};

struct libvirt_link {
	struct libvirt_hub *hub;
	unsigned int refs; /* its thread's, and one for each callback that libvirt holds */
	/* Its thread's. */
	virConnectPtr conn;
	int events[LIBVIRT_EVENTS]; /* numbers that libvirt gave; negative: none */
	bool watches_close;

	uint64_t ready_ns;  /* since when it is of use; 0: not yet */
	bool closed;	    /* libvirt says so */
	const char *call;   /* under way, since call_ns; NULL: none */
	uint64_t call_ns;
	char call_uuid[TEXT_UUID_MAX]; /* at this domain; empty: at all */
	char why[160];		       /* it ends */
};

int libvirt_hub_new(const char *uri, bool may_write, struct libvirt_hub **ret_hub);
void libvirt_hub_unref(struct libvirt_hub *h);
void libvirt_hub_wake(const struct libvirt_hub *h);
void libvirt_link_unref(struct libvirt_link *l); /* the last one drops its hub, too */

/* The rest wants the hub's lock to be held. */

int libvirt_link_start(struct libvirt_hub *h); /* 0, or negative errno: no thread could be made */
/* Not the hub's any more: ended, or given up. What it learns is dropped. */
bool libvirt_link_is_stale(const struct libvirt_link *l);

/* A call of libvirt's goes between these: begin gives the lock up, end takes it again. End is false when the link was given
 * up meanwhile. uuid: NULL, or text that lasts until begin has returned. */
void libvirt_call_begin(struct libvirt_link *l, const char *call, const char *uuid);
bool libvirt_call_end(struct libvirt_link *l);

/* balloon/libvirt_calls.c */
bool libvirt_link_list(struct libvirt_link *l); /* after connecting; false: the link is of no use, l->why says the reason */
bool libvirt_link_work(struct libvirt_link *l); /* one piece of work; false: there was none */
void libvirt_link_put_back(struct libvirt_link *l);

/* balloon/libvirt_events.c. Both without the lock, by the link's thread. */
void libvirt_events_prepare(void); /* before the first connection */
void libvirt_events_watch(struct libvirt_link *l);
void libvirt_events_unwatch(struct libvirt_link *l);

#endif
