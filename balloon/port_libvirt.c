#include "balloon/port_libvirt.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "balloon/libvirt_link.h"
#include "core/log.h"

/* Periods are put back, and the connection is closed, in less; a libvirtd that hangs takes for ever. */
#define FREE_NS (3 * NSEC_PER_SEC)
/* How long the error of a setting is told. */
#define SET_ERROR_NS (60 * NSEC_PER_SEC)
/* libvirt's, of qemu:///system. */
#define PID_FILE "/run/libvirt/qemu/%s.pid"

uint64_t libvirt_hang_ns = 10 * NSEC_PER_SEC;

struct port_libvirt {
	struct libvirt_hub *hub;
	const struct fsio *fs;
	const struct port_libvirt_ops *ops;
	void *userdata;
	sd_event_source *wake;
};

static int on_wake(sd_event_source *source, int fd, uint32_t revents, void *userdata)
{
	struct port_libvirt *p = userdata;
	uint64_t count;

	(void)source;
	(void)revents;
	if (read(fd, &count, sizeof(count)) == sizeof(count))
		p->ops->changed(p->userdata);
	return 0;
}

int port_libvirt_new(sd_event *loop, const char *uri, const struct fsio *fs, const struct port_libvirt_ops *ops,
		     void *userdata, struct port_libvirt **ret_port)
{
	struct port_libvirt *p = calloc(1, sizeof(*p));
	int r;

	if (!p)
		return -ENOMEM;
	p->fs = fs;
	p->ops = ops;
	p->userdata = userdata;
	r = libvirt_hub_new(uri, !fs->dry_run, &p->hub);
	if (r == 0)
		r = sd_event_add_io(loop, &p->wake, p->hub->wake_fd, EPOLLIN, on_wake, p);
	if (r < 0) {
		port_libvirt_free(p);
		return r;
	}
	*ret_port = p;
	return 0;
}

static void hub_stop(struct libvirt_hub *h)
{
	uint64_t end_ns = clock_mono_ns() + FREE_NS;
	const struct timespec end = { .tv_sec = (time_t)(end_ns / NSEC_PER_SEC), .tv_nsec = (long)(end_ns % NSEC_PER_SEC) };

	pthread_mutex_lock(&h->lock);
	h->stop = true;
	pthread_cond_broadcast(&h->changed);
	while (h->link && pthread_cond_timedwait(&h->changed, &h->lock, &end) == 0)
		;
	if (h->link)
		log_warning("libvirt uri=%s does not answer, ending without it", h->uri);
	pthread_mutex_unlock(&h->lock);
	libvirt_hub_unref(h);
}

struct port_libvirt *port_libvirt_free(struct port_libvirt *p)
{
	if (!p)
		return NULL;
	p->wake = sd_event_source_disable_unref(p->wake);
	if (p->hub)
		hub_stop(p->hub);
	free(p);
	return NULL;
}

/* ---- connecting ---- */

static bool call_hangs(const struct libvirt_link *l)
{
	return l->call && clock_mono_ns() - l->call_ns > libvirt_hang_ns;
}

/* A call that hangs is left to itself. Not while connecting: another try would hang as well, and this one ends when
 * libvirtd does. */
static void give_up_hung(struct libvirt_hub *h)
{
	struct libvirt_link *l = h->link;
	struct libvirt_domain *d;

	if (!l || l->ready_ns == 0 || !call_hangs(l) || h->hung >= LIBVIRT_HUNG_MAX)
		return;
	log_warning("libvirt uri=%s no answer in %llu s while %s%s%s, going on with another connection", h->uri,
		    (unsigned long long)((clock_mono_ns() - l->call_ns) / NSEC_PER_SEC), l->call,
		    l->call_uuid[0] ? " of domain uuid=" : "", l->call_uuid);
	d = libvirt_domains_find(&h->domains, l->call_uuid);
	if (d) {
		d->busy_ns = l->call_ns;
		d->set = LIBVIRT_SET_NONE;
	}
	h->link = NULL;
	h->hung++;
	h->ask = false;
	h->retry_ns = 0;
}

void port_libvirt_want(struct port_libvirt *p)
{
	struct libvirt_hub *h = p->hub;
	int r;

	pthread_mutex_lock(&h->lock);
	give_up_hung(h);
	if (!h->link && h->hung <= LIBVIRT_HUNG_MAX && clock_mono_ns() >= h->retry_ns) {
		r = libvirt_link_start(h);
		if (r < 0)
			snprintf(h->why, sizeof(h->why), "no thread for libvirt: %s", strerror(-r));
	}
	pthread_mutex_unlock(&h->lock);
}

void port_libvirt_ask(struct port_libvirt *p)
{
	struct libvirt_hub *h = p->hub;

	pthread_mutex_lock(&h->lock);
	if (h->link && h->link->ready_ns != 0 && !h->ask) {
		h->ask = true;
		pthread_cond_broadcast(&h->changed);
	}
	pthread_mutex_unlock(&h->lock);
}

/* ---- one domain ---- */

/* Asks libvirt's pid file, which only root writes. The lock is given up meanwhile; the domain may be gone after. */
static struct libvirt_domain *pid_read(const struct port_libvirt *p, const char *uuid)
{
	struct libvirt_hub *h = p->hub;
	struct libvirt_domain *d = libvirt_domains_find(&h->domains, uuid);
	char name[LIBVIRT_NAME_MAX];
	uint64_t pid = 0;

	memcpy(name, d->name, sizeof(name));
	pthread_mutex_unlock(&h->lock);
	if (fsio_read_u64(p->fs, &pid, PID_FILE, name) < 0 || pid > INT32_MAX)
		pid = 0;
	pthread_mutex_lock(&h->lock);
	d = libvirt_domains_find(&h->domains, uuid);
	if (!d || strcmp(d->name, name) != 0 || d->pid == (pid_t)pid)
		return d;
	if (d->pid != 0)
		libvirt_domain_forget(d);
	d->pid = (pid_t)pid;
	return d;
}

/* The domain of this process, or NULL and why. */
static struct libvirt_domain *find(const struct port_libvirt *p, const char *uuid, pid_t pid, char *why, size_t cap)
{
	const struct libvirt_hub *h = p->hub;
	struct libvirt_domain *d;

	if (!h->known) {
		snprintf(why, cap, "no connection to libvirt: %s",
			 h->link && call_hangs(h->link) ? "libvirtd does not answer" :
			 h->why[0]			? h->why :
							  "connecting");
		return NULL;
	}
	d = libvirt_domains_find(&h->domains, uuid);
	if (d && d->pid != pid)
		d = pid_read(p, uuid);
	if (d && d->pid == pid)
		return d;
	snprintf(why, cap, "%s",
		 d ? "libvirt's domain of this uuid is another process" : "libvirt knows no such domain");
	return NULL;
}

static void told_why(const struct libvirt_hub *h, const struct libvirt_domain *d, struct balloon_told *told)
{
	uint64_t now = clock_mono_ns();

	if (d->busy_ns != 0 && now - d->busy_ns > libvirt_hang_ns)
		snprintf(told->why, sizeof(told->why), "libvirt gets no answer from its VMM");
	else if (h->link && call_hangs(h->link))
		snprintf(told->why, sizeof(told->why), "libvirt does not answer: %u calls hang", h->hung + 1);
	else if (d->described && d->told.device == BALLOON_DEVICE_ABSENT)
		snprintf(told->why, sizeof(told->why), "the VM has no balloon device");
	else if (d->set_failed_ns != 0 && now - d->set_failed_ns < SET_ERROR_NS)
		snprintf(told->why, sizeof(told->why), "libvirt did not set its memory: %s", d->set_error);
}

bool port_libvirt_told(const struct port_libvirt *p, const char *uuid, pid_t pid, struct balloon_told *ret_told)
{
	const struct libvirt_domain *d;

	libvirt_told_clear(ret_told);
	pthread_mutex_lock(&p->hub->lock);
	d = find(p, uuid, pid, ret_told->why, sizeof(ret_told->why));
	if (d) {
		*ret_told = d->told;
		told_why(p->hub, d, ret_told);
	}
	pthread_mutex_unlock(&p->hub->lock);
	return d;
}

int port_libvirt_set(struct port_libvirt *p, const char *uuid, pid_t pid, uint64_t bytes)
{
	struct libvirt_hub *h = p->hub;
	struct libvirt_domain *d;
	char why[sizeof(h->why) + 64];
	int r = 0;

	if (!h->may_write)
		return -EROFS;
	pthread_mutex_lock(&h->lock);
	d = find(p, uuid, pid, why, sizeof(why));
	if (!h->known || !h->link || h->link->ready_ns == 0)
		r = -ENOTCONN;
	else if (!d)
		r = -ENOENT;
	else if (d->set != LIBVIRT_SET_NONE || d->busy_ns != 0)
		r = -EBUSY;
	if (r == 0) {
		d->set = LIBVIRT_SET_WAITS;
		d->set_bytes = bytes;
		pthread_cond_broadcast(&h->changed);
	}
	pthread_mutex_unlock(&h->lock);
	return r;
}
