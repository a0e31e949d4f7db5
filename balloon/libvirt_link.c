#include "balloon/libvirt_link.h"

#include <errno.h>
#include <libvirt/virterror.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "core/log.h"

#define BACKOFF_S_MAX 60
/* A connection that lasted this long was good: what ends it is news. */
#define GOOD_NS (60 * NSEC_PER_SEC)

/* ---- the hub ---- */

static int hub_cond_init(pthread_cond_t *cond)
{
	pthread_condattr_t attr;
	int r = pthread_condattr_init(&attr);

	if (r == 0) {
		r = pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
		if (r == 0)
			r = pthread_cond_init(cond, &attr);
		pthread_condattr_destroy(&attr);
	}
	return -r;
}

int libvirt_hub_new(const char *uri, bool may_write, struct libvirt_hub **ret_hub)
{
	struct libvirt_hub *h;
	int r;

	if (strlen(uri) >= sizeof(h->uri))
		return -ENAMETOOLONG;
	h = calloc(1, sizeof(*h));
	if (!h)
		return -ENOMEM;
	h->refs = 1;
	h->may_write = may_write;
	memcpy(h->uri, uri, strlen(uri) + 1);
	snprintf(h->why, sizeof(h->why), "libvirt was not asked yet");
	h->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (h->wake_fd < 0) {
		r = -errno;
		free(h);
		return r;
	}
	r = hub_cond_init(&h->changed);
	if (r < 0) {
		close(h->wake_fd);
		free(h);
		return r;
	}
	pthread_mutex_init(&h->lock, NULL);
	*ret_hub = h;
	return 0;
}

void libvirt_hub_unref(struct libvirt_hub *h)
{
	unsigned int left;

	pthread_mutex_lock(&h->lock);
	left = --h->refs;
	pthread_mutex_unlock(&h->lock);
	if (left > 0)
		return;
	libvirt_domains_clear(&h->domains);
	close(h->wake_fd);
	pthread_cond_destroy(&h->changed);
	pthread_mutex_destroy(&h->lock);
	free(h);
}

void libvirt_hub_wake(const struct libvirt_hub *h)
{
	uint64_t one = 1;

	/* Full means that the loop is awake already. */
	if (write(h->wake_fd, &one, sizeof(one)) < 0)
		return;
}

/* ---- a link ---- */

bool libvirt_link_is_stale(const struct libvirt_link *l)
{
	return l->hub->link != l;
}

void libvirt_link_unref(struct libvirt_link *l)
{
	struct libvirt_hub *h = l->hub;
	unsigned int left;

	pthread_mutex_lock(&h->lock);
	left = --l->refs;
	pthread_mutex_unlock(&h->lock);
	if (left > 0)
		return;
	free(l);
	libvirt_hub_unref(h);
}

void libvirt_call_begin(struct libvirt_link *l, const char *call, const char *uuid)
{
	l->call = call;
	l->call_ns = clock_mono_ns();
	snprintf(l->call_uuid, sizeof(l->call_uuid), "%s", uuid ? uuid : "");
	pthread_mutex_unlock(&l->hub->lock);
}

bool libvirt_call_end(struct libvirt_link *l)
{
	pthread_mutex_lock(&l->hub->lock);
	l->call = NULL;
	return !libvirt_link_is_stale(l);
}

static bool link_open(struct libvirt_link *l)
{
	libvirt_call_begin(l, "connecting", NULL);
	libvirt_events_prepare();
	l->conn = virConnectOpen(l->hub->uri);
	if (!l->conn) {
		snprintf(l->why, sizeof(l->why), "%.150s", virGetLastErrorMessage());
		libvirt_call_end(l);
		return false;
	}
	libvirt_events_watch(l);
	return libvirt_call_end(l) && libvirt_link_list(l);
}

static bool link_wanted(const struct libvirt_link *l)
{
	return !l->hub->stop && !l->closed && !libvirt_link_is_stale(l);
}

static void link_close(struct libvirt_link *l)
{
	if (!l->conn)
		return;
	libvirt_call_begin(l, "closing", NULL);
	libvirt_events_unwatch(l);
	virConnectClose(l->conn);
	libvirt_call_end(l);
}

/* The hub is without a link from now on. */
static void link_lost(struct libvirt_link *l)
{
	struct libvirt_hub *h = l->hub;
	uint64_t now = clock_mono_ns();
	bool good = l->ready_ns != 0 && now - l->ready_ns > GOOD_NS, news;

	h->backoff_s = good || h->backoff_s == 0 ? 1 : h->backoff_s * 2;
	if (h->backoff_s > BACKOFF_S_MAX)
		h->backoff_s = BACKOFF_S_MAX;
	h->retry_ns = now + h->backoff_s * NSEC_PER_SEC;
	h->known = h->ask = false;
	for (size_t i = 0; i < h->domains.count; i++)
		h->domains.sorted[i]->set = LIBVIRT_SET_NONE;
	news = l->ready_ns != 0 || strcmp(h->why, l->why) != 0;
	memcpy(h->why, l->why, sizeof(h->why));
	log_line(news && !h->stop ? LOG_LEVEL_WARNING : LOG_LEVEL_DEBUG, "libvirt uri=%s no connection, next try in %u s: %s",
		 h->uri, h->backoff_s, h->why);
}

static void *link_main(void *arg)
{
	struct libvirt_link *l = arg;
	struct libvirt_hub *h = l->hub;

	pthread_mutex_lock(&h->lock);
	if (link_open(l)) {
		while (link_wanted(l))
			if (!libvirt_link_work(l))
				pthread_cond_wait(&h->changed, &h->lock);
		if (h->stop && !l->closed && !libvirt_link_is_stale(l))
			libvirt_link_put_back(l);
	}
	if (!libvirt_link_is_stale(l)) {
		if (!h->stop)
			link_lost(l);
		/* Closing may block as well: it counts as a call that was given up, and only the end of all waits for it. */
		h->hung++;
		if (!h->stop)
			h->link = NULL;
		libvirt_hub_wake(h);
	}
	link_close(l);
	h->hung--;
	if (h->link == l)
		h->link = NULL;
	pthread_cond_broadcast(&h->changed);
	pthread_mutex_unlock(&h->lock);
	libvirt_link_unref(l);
	return NULL;
}

int libvirt_link_start(struct libvirt_hub *h)
{
	struct libvirt_link *l = calloc(1, sizeof(*l));
	pthread_attr_t attr;
	sigset_t all, before;
	pthread_t thread;
	int r;

	if (!l)
		return -ENOMEM;
	l->hub = h;
	l->refs = 1;
	/* On the books before its thread can ask whether it is still wanted: that waits for the lock. */
	h->link = l;
	h->refs++;
	sigfillset(&all);
	pthread_attr_init(&attr);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	r = pthread_create(&thread, &attr, link_main, l);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	pthread_attr_destroy(&attr);
	if (r == 0)
		return 0;
	h->link = NULL;
	h->refs--;
	free(l);
	return -r;
}
