/* tests/unit/fake_libvirt.h - stands in for libvirt's library: domains whose VMMs hang, a libvirtd that refuses, hangs or
 * dies, when the test says so. Linked before the real one, of which nothing is used then. */
#ifndef TESTS_UNIT_FAKE_LIBVIRT_H
#define TESTS_UNIT_FAKE_LIBVIRT_H

#include <libvirt/libvirt.h>
#include <libvirt/virterror.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/unit/unit.h"

#define FAKE_DOMAINS 8
#define FAKE_CALLBACKS 8
#define FAKE_QUEUE 256

struct fake_domain {
	char uuid[40], name[32], xml[1024];
	int id; /* negative: does not run */
	bool hangs; /* its VMM answers nobody */
	bool job;   /* a call waits for it */
	bool controlled; /* virDomainGetControlInfo() says that a job is at work */
	unsigned long long current_kib, maximum_kib, update_s;
	int period_s;
	unsigned int periods_set, xml_reads;
};

struct fake_callback {
	int id; /* of the event, 1000: close; -1: free */
	void (*call)(void);
	void *opaque;
	virFreeCallback release;
};

struct _virConnect {
	struct fake_callback callbacks[FAKE_CALLBACKS];
	bool dead;
};

struct _virDomain {
	struct fake_domain *domain;
	char uuid[40], name[32];
	int id;
};

#define FAKE_CLOSE 1000
enum fake_kind { FAKE_RELEASE, FAKE_LIFECYCLE, FAKE_BALLOON, FAKE_REBOOT, FAKE_CLOSED };

struct fake_event {
	enum fake_kind kind;
	virConnectPtr conn;
	int slot;
	struct fake_callback callback; /* RELEASE */
	struct _virDomain dom;
	int event;
	unsigned long long kib;
};

static struct {
	pthread_mutex_t lock;
	pthread_cond_t changed;
	struct fake_domain domains[FAKE_DOMAINS];
	virConnectPtr open[16]; /* connections */
	struct fake_event queue[FAKE_QUEUE];
	size_t queued;
	bool refuse, open_hangs, set_fails;
	virConnectPtr closing; /* its close callback runs */
	unsigned int opens, closes, stats_calls, hanging, sets, events_wrong;
	virErrorFunc error;
} fake = { .lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER };

static void fake_lock(void)
{
	pthread_mutex_lock(&fake.lock);
}

static void fake_unlock(void)
{
	pthread_cond_broadcast(&fake.changed);
	pthread_mutex_unlock(&fake.lock);
}

/* An expression about the fake, with its lock held. */
#define FAKE(expression)                              \
	__extension__({                               \
		fake_lock();                          \
		__typeof__(expression) fake_value_ = (expression); \
		fake_unlock();                        \
		fake_value_;                          \
	})

static unsigned int fake_open_count(void)
{
	unsigned int count = 0;

	for (size_t k = 0; k < ARRAY_SIZE(fake.open); k++)
		count += fake.open[k] != NULL;
	return count;
}

/* Waits while the test wants it to; the lock is held. */
static void fake_hang(const bool *flag)
{
	fake.hanging++;
	while (*(volatile const bool *)flag)
		pthread_cond_wait(&fake.changed, &fake.lock);
	fake.hanging--;
}

#include "tests/unit/fake_libvirt_loop.h"

/* ---- connections ---- */

void virSetErrorFunc(void *userData, virErrorFunc handler)
{
	(void)userData;
	fake.error = handler;
}

const char *virGetLastErrorMessage(void)
{
	return "fake error";
}

virConnectPtr virConnectOpen(const char *name)
{
	virConnectPtr conn = calloc(1, sizeof(*conn));
	size_t k = 0;

	unit_must(conn && name, "fake connection");
	fake_lock();
	fake.opens++;
	if (fake.open_hangs)
		fake_hang(&fake.open_hangs);
	if (fake.refuse) {
		free(conn);
		fake_unlock();
		return NULL;
	}
	while (k < ARRAY_SIZE(fake.open) && fake.open[k])
		k++;
	unit_must(k < ARRAY_SIZE(fake.open), "fake connections");
	fake.open[k] = conn;
	fake_unlock();
	return conn;
}

/* Not freed at once: an event may still name it. */
int virConnectClose(virConnectPtr conn)
{
	static virConnectPtr closed[256];

	fake_lock();
	for (size_t k = 0; k < ARRAY_SIZE(fake.open); k++)
		if (fake.open[k] == conn)
			fake.open[k] = NULL;
	unit_must(fake.closes < ARRAY_SIZE(closed), "fake closes");
	closed[fake.closes++] = conn;
	fake_unlock();
	return 0;
}

/* ---- domains ---- */

static virDomainPtr fake_ref(struct fake_domain *d)
{
	virDomainPtr dom = calloc(1, sizeof(*dom));

	unit_must(dom, "fake domain");
	dom->domain = d;
	memcpy(dom->uuid, d->uuid, sizeof(d->uuid));
	memcpy(dom->name, d->name, sizeof(d->name));
	dom->id = d->id;
	return dom;
}

int virDomainFree(virDomainPtr dom)
{
	free(dom);
	return 0;
}

int virDomainGetUUIDString(virDomainPtr dom, char *buf)
{
	memcpy(buf, dom->uuid, 37);
	return 0;
}

const char *virDomainGetName(virDomainPtr dom)
{
	return dom->name;
}

unsigned int virDomainGetID(virDomainPtr dom)
{
	return (unsigned int)dom->id;
}

int virConnectListAllDomains(virConnectPtr conn, virDomainPtr **domains, unsigned int flags)
{
	int count = 0;

	unit_must(flags == VIR_CONNECT_LIST_DOMAINS_ACTIVE, "running domains");
	fake_lock();
	*domains = calloc(FAKE_DOMAINS + 1, sizeof(**domains));
	for (size_t i = 0; i < FAKE_DOMAINS; i++)
		if (fake.domains[i].uuid[0] && fake.domains[i].id >= 0)
			(*domains)[count++] = fake_ref(&fake.domains[i]);
	if (conn->dead)
		count = -1;
	fake_unlock();
	return count;
}

virDomainPtr virDomainLookupByUUIDString(virConnectPtr conn, const char *uuid)
{
	virDomainPtr dom = NULL;

	fake_lock();
	for (size_t i = 0; i < FAKE_DOMAINS; i++)
		if (!conn->dead && strcmp(fake.domains[i].uuid, uuid) == 0)
			dom = fake_ref(&fake.domains[i]);
	fake_unlock();
	return dom;
}

char *virDomainGetXMLDesc(virDomainPtr dom, unsigned int flags)
{
	char *xml;

	(void)flags;
	fake_lock();
	dom->domain->xml_reads++;
	xml = strdup(dom->domain->xml);
	fake_unlock();
	return xml;
}

/* A call that needs the monitor; of one at a time. The lock is held. */
static void fake_monitor(struct fake_domain *d)
{
	if (!d->hangs)
		return;
	d->job = true;
	fake_hang(&d->hangs);
	d->job = false;
}

int virDomainGetControlInfo(virDomainPtr dom, virDomainControlInfoPtr info, unsigned int flags)
{
	(void)flags;
	fake_lock();
	info->state = dom->domain->controlled ? VIR_DOMAIN_CONTROL_JOB : VIR_DOMAIN_CONTROL_OK;
	fake_unlock();
	return 0;
}

int virDomainSetMemoryFlags(virDomainPtr dom, unsigned long memory, unsigned int flags)
{
	int r = -1;

	unit_must(flags == VIR_DOMAIN_AFFECT_LIVE, "live only");
	fake_lock();
	fake.sets++;
	fake_monitor(dom->domain);
	if (!fake.set_fails) {
		dom->domain->current_kib = memory;
		fake_emit(FAKE_BALLOON, VIR_DOMAIN_EVENT_ID_BALLOON_CHANGE, dom->domain, 0, memory);
		r = 0;
	}
	fake_unlock();
	return r;
}

int virDomainSetMemoryStatsPeriod(virDomainPtr dom, int period, unsigned int flags)
{
	unit_must(flags == VIR_DOMAIN_AFFECT_LIVE, "live only");
	fake_lock();
	fake_monitor(dom->domain);
	dom->domain->period_s = period;
	dom->domain->periods_set++;
	fake_unlock();
	return 0;
}

static void fake_param(virDomainStatsRecordPtr r, const char *field, unsigned long long value)
{
	virTypedParameterPtr p = &r->params[r->nparams++];

	snprintf(p->field, sizeof(p->field), "%s", field);
	p->type = VIR_TYPED_PARAM_ULLONG;
	p->value.ul = value;
}

static virDomainStatsRecordPtr fake_record(struct fake_domain *d, bool monitor)
{
	virDomainStatsRecordPtr r = calloc(1, sizeof(*r));

	unit_must(r, "fake record");
	r->dom = fake_ref(d);
	r->params = calloc(12, sizeof(*r->params));
	unit_must(r->params, "fake record");
	fake_param(r, "balloon.current", d->current_kib);
	fake_param(r, "balloon.maximum", d->maximum_kib);
	if (monitor) {
		fake_param(r, "balloon.available", d->current_kib - 1024);
		fake_param(r, "balloon.unused", 2048);
		fake_param(r, "balloon.last-update", ++d->update_s);
		fake_param(r, "balloon.rss", 4096);
	}
	return r;
}

int virConnectGetAllDomainStats(virConnectPtr conn, unsigned int stats, virDomainStatsRecordPtr **retStats,
				unsigned int flags)
{
	virDomainStatsRecordPtr *records = calloc(FAKE_DOMAINS + 1, sizeof(*records));
	int count = 0;

	unit_must(records && stats == VIR_DOMAIN_STATS_BALLOON && (flags & VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT),
		  "all balloons, without waiting");
	fake_lock();
	fake.stats_calls++;
	for (size_t i = 0; i < FAKE_DOMAINS && !conn->dead; i++) {
		struct fake_domain *d = &fake.domains[i];
		bool monitor = !d->job;

		if (!d->uuid[0] || d->id < 0)
			continue;
		if (monitor)
			fake_monitor(d);
		records[count++] = fake_record(d, monitor);
	}
	if (conn->dead)
		count = -1;
	fake_unlock();
	*retStats = records;
	return count;
}

void virDomainStatsRecordListFree(virDomainStatsRecordPtr *stats)
{
	for (size_t i = 0; stats[i]; i++) {
		virDomainFree(stats[i]->dom);
		free(stats[i]->params);
		free(stats[i]);
	}
	free(stats);
}

/* ---- what the test does ---- */

static void fake_domain_start(size_t i, const char *model, int period_s)
{
	static int last_id;
	struct fake_domain *d = &fake.domains[i];

	fake_lock();
	memset(d, 0, sizeof(*d));
	snprintf(d->uuid, sizeof(d->uuid), "11111111-2222-3333-4444-%012zu", i + 1);
	snprintf(d->name, sizeof(d->name), "dom%zu", i);
	d->id = ++last_id;
	d->current_kib = d->maximum_kib = 1 << 20;
	d->period_s = period_s;
	snprintf(d->xml, sizeof(d->xml),
		 "<domain type='qemu' id='%d'><metadata><x:memballoon xmlns:x='y' model='none'/></metadata><devices>"
		 "<memballoon model='%s' autodeflate='on' freePageReporting='on'><stats period='%d'/></memballoon></devices>"
		 "</domain>",
		 d->id, model, period_s);
	fake_emit(FAKE_LIFECYCLE, VIR_DOMAIN_EVENT_ID_LIFECYCLE, d, VIR_DOMAIN_EVENT_STARTED, 0);
	fake_unlock();
}

static void fake_domain_stop(size_t i)
{
	fake_lock();
	fake.domains[i].id = -1;
	fake_emit(FAKE_LIFECYCLE, VIR_DOMAIN_EVENT_ID_LIFECYCLE, &fake.domains[i], VIR_DOMAIN_EVENT_STOPPED, 0);
	fake_unlock();
}

/* libvirtd dies; a call that is out fails. */
static void fake_die(void)
{
	fake_lock();
	for (size_t k = 0; k < ARRAY_SIZE(fake.open); k++)
		if (fake.open[k])
			fake.open[k]->dead = true;
	fake_emit(FAKE_CLOSED, FAKE_CLOSE, NULL, VIR_CONNECT_CLOSE_REASON_EOF, 0);
	fake_unlock();
}

#endif
