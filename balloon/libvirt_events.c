/* libvirt's event loop: one for the process, which libvirt wants to be registered before the first connection and which
 * cannot be taken back. So its thread stays, waiting, once there was a connection. */
#include "balloon/libvirt_link.h"

#include <libvirt/virterror.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "core/cleanup.h"
#include "core/log.h"

static void *events_main(void *arg)
{
	(void)arg;
	while (virEventRunDefaultImpl() == 0)
		;
	log_error("libvirt's event loop ended: domains are not found any more: %s", virGetLastErrorMessage());
	return NULL;
}

/* libvirt prints its errors unless told otherwise; whoever made the call reports them here. */
static void on_error(void *userdata, virErrorPtr error)
{
	(void)userdata;
	log_debug("libvirt: %s", error && error->message ? error->message : "unknown error");
}

static void prepare_once(void)
{
	pthread_attr_t attr;
	sigset_t all, before;
	pthread_t thread;
	int r;

	virSetErrorFunc(NULL, on_error);
	if (virEventRegisterDefaultImpl() < 0) {
		log_error("libvirt has no event loop: domains are not found: %s", virGetLastErrorMessage());
		return;
	}
	sigfillset(&all);
	pthread_attr_init(&attr);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	r = pthread_create(&thread, &attr, events_main, NULL);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	pthread_attr_destroy(&attr);
	if (r != 0)
		log_error("no thread for libvirt's events, domains are not found: %s", strerror(r));
}

void libvirt_events_prepare(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, prepare_once);
}

/* ---- callbacks; on the event loop's thread ---- */

static void release(void *userdata)
{
	libvirt_link_unref(userdata);
}

static void on_closed(virConnectPtr conn, int reason, void *userdata)
{
	struct libvirt_link *l = userdata;

	(void)conn;
	pthread_mutex_lock(&l->hub->lock);
	l->closed = true;
	snprintf(l->why, sizeof(l->why), "%s",
		 reason == VIR_CONNECT_CLOSE_REASON_KEEPALIVE ? "libvirtd does not answer" :
		 reason == VIR_CONNECT_CLOSE_REASON_EOF	      ? "libvirtd went away" :
								"the connection to libvirtd broke");
	pthread_cond_broadcast(&l->hub->changed);
	pthread_mutex_unlock(&l->hub->lock);
}

static bool domain_uuid(virDomainPtr dom, char uuid[VIR_UUID_STRING_BUFLEN])
{
	return virDomainGetUUIDString(dom, uuid) == 0;
}

static void on_lifecycle(virConnectPtr conn, virDomainPtr dom, int event, int detail, void *userdata)
{
	struct libvirt_link *l = userdata;
	char uuid[VIR_UUID_STRING_BUFLEN];
	const char *name = virDomainGetName(dom);
	int id = (int)virDomainGetID(dom);

	(void)conn;
	(void)detail;
	if ((event != VIR_DOMAIN_EVENT_STARTED && event != VIR_DOMAIN_EVENT_STOPPED) || !domain_uuid(dom, uuid))
		return;
	pthread_mutex_lock(&l->hub->lock);
	if (!libvirt_link_is_stale(l)) {
		if (event == VIR_DOMAIN_EVENT_STARTED)
			libvirt_domains_see(&l->hub->domains, uuid, name, id, "event");
		else
			libvirt_domains_remove(&l->hub->domains, uuid);
		pthread_cond_broadcast(&l->hub->changed);
		libvirt_hub_wake(l->hub);
	}
	pthread_mutex_unlock(&l->hub->lock);
}

static void on_balloon(virConnectPtr conn, virDomainPtr dom, unsigned long long actual_kib, void *userdata)
{
	struct libvirt_link *l = userdata;
	char uuid[VIR_UUID_STRING_BUFLEN];
	struct libvirt_domain *d;

	(void)conn;
	if (!domain_uuid(dom, uuid) || actual_kib > UINT64_MAX / 1024)
		return;
	pthread_mutex_lock(&l->hub->lock);
	d = libvirt_link_is_stale(l) ? NULL : libvirt_domains_find(&l->hub->domains, uuid);
	if (d) {
		d->told.actual_bytes = actual_kib * 1024;
		d->told.told_ns = clock_mono_ns();
	}
	pthread_mutex_unlock(&l->hub->lock);
}

static void on_reboot(virConnectPtr conn, virDomainPtr dom, void *userdata)
{
	struct libvirt_link *l = userdata;
	char uuid[VIR_UUID_STRING_BUFLEN];
	struct libvirt_domain *d;

	(void)conn;
	if (!domain_uuid(dom, uuid))
		return;
	pthread_mutex_lock(&l->hub->lock);
	d = libvirt_link_is_stale(l) ? NULL : libvirt_domains_find(&l->hub->domains, uuid);
	if (d)
		d->told.resets++;
	pthread_mutex_unlock(&l->hub->lock);
}

static const struct {
	int id;
	virConnectDomainEventGenericCallback call;
} events[] = {
	{ VIR_DOMAIN_EVENT_ID_LIFECYCLE, VIR_DOMAIN_EVENT_CALLBACK(on_lifecycle) },
	{ VIR_DOMAIN_EVENT_ID_BALLOON_CHANGE, VIR_DOMAIN_EVENT_CALLBACK(on_balloon) },
	{ VIR_DOMAIN_EVENT_ID_REBOOT, VIR_DOMAIN_EVENT_CALLBACK(on_reboot) },
};
_Static_assert(ARRAY_SIZE(events) == LIBVIRT_EVENTS, "a link keeps the number of each");

static void link_ref(struct libvirt_link *l)
{
	pthread_mutex_lock(&l->hub->lock);
	l->refs++;
	pthread_mutex_unlock(&l->hub->lock);
}

/* What libvirt refused holds no reference. That a connection was closed is told by the connection itself, whose thread takes
 * the callback back before it ends; not every driver of libvirt would give a reference back. */
void libvirt_events_watch(struct libvirt_link *l)
{
	if (virConnectSetKeepAlive(l->conn, LIBVIRT_KEEPALIVE_INTERVAL_S, LIBVIRT_KEEPALIVE_COUNT) != 0)
		log_debug("libvirt uri=%s has no keepalive, ignoring", l->hub->uri);
	l->watches_close = virConnectRegisterCloseCallback(l->conn, on_closed, l, NULL) == 0;
	for (size_t i = 0; i < ARRAY_SIZE(events); i++) {
		link_ref(l);
		l->events[i] = virConnectDomainEventRegisterAny(l->conn, NULL, events[i].id, events[i].call, l, release);
		if (l->events[i] >= 0)
			continue;
		log_warning("libvirt uri=%s does not tell of its domains, ignoring: %s", l->hub->uri,
			    virGetLastErrorMessage());
		libvirt_link_unref(l);
	}
}

void libvirt_events_unwatch(struct libvirt_link *l)
{
	for (size_t i = 0; i < ARRAY_SIZE(events); i++)
		if (l->events[i] >= 0)
			virConnectDomainEventDeregisterAny(l->conn, l->events[i]);
	if (l->watches_close)
		virConnectUnregisterCloseCallback(l->conn, on_closed);
}
