/* What a link asks of libvirt. */
#include "balloon/libvirt_link.h"

#include <inttypes.h>
#include <libvirt/virterror.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "balloon/libvirt_figures.h"
#include "balloon/libvirt_xml.h"
#include "core/log.h"

/* A domain that could not be looked at is tried again after this. */
#define DESCRIBE_NS (60 * NSEC_PER_SEC)
/* In which guests are asked where nobody has them asked. */
#define PERIOD_S 1

static void domain_free(virDomainPtr *dom)
{
	if (*dom)
		virDomainFree(*dom);
}
#define auto_domain __attribute__((cleanup(domain_free))) virDomainPtr

/* ---- all domains ---- */

/* Part of connecting, so that libvirtd hanging does not look like a domain that does. */
bool libvirt_link_list(struct libvirt_link *l)
{
	struct libvirt_hub *h = l->hub;
	virDomainPtr *doms = NULL;
	int count;

	libvirt_domains_mark(&h->domains);
	libvirt_call_begin(l, "listing domains", NULL);
	count = virConnectListAllDomains(l->conn, &doms, VIR_CONNECT_LIST_DOMAINS_ACTIVE);
	if (count < 0)
		log_debug("libvirt uri=%s lists no domains: %s", h->uri, virGetLastErrorMessage());
	libvirt_call_end(l);
	for (int i = 0; i < count; i++) {
		char uuid[VIR_UUID_STRING_BUFLEN];

		if (virDomainGetUUIDString(doms[i], uuid) == 0)
			libvirt_domains_see(&h->domains, uuid, virDomainGetName(doms[i]),
					    (int)virDomainGetID(doms[i]), "list");
		virDomainFree(doms[i]);
	}
	free(doms);
	if (count < 0) {
		snprintf(l->why, sizeof(l->why), "libvirt does not list its domains");
		return false;
	}
	libvirt_domains_sweep(&h->domains);
	l->ready_ns = clock_mono_ns();
	h->known = true;
	h->why[0] = '\0';
	log_info("libvirt uri=%s connected, domains=%zu", h->uri, h->domains.count);
	libvirt_hub_wake(h);
	return true;
}

static void figures_take(struct libvirt_link *l, const virDomainStatsRecord *record, uint64_t now_ns)
{
	char uuid[VIR_UUID_STRING_BUFLEN];
	struct libvirt_domain *d = NULL;

	if (virDomainGetUUIDString(record->dom, uuid) == 0)
		d = libvirt_domains_find(&l->hub->domains, uuid);
	/* One that is being started has figures, too. Its event comes when it can be talked to. */
	if (!d || d->id != (int)virDomainGetID(record->dom))
		return;
	d->missing = false;
	switch (libvirt_figures_take(record->params, record->nparams, now_ns, &d->told)) {
	case LIBVIRT_ANSWER_BUSY:
		if (d->busy_ns == 0)
			d->busy_ns = now_ns;
		break;
	case LIBVIRT_ANSWER_VMM:
	case LIBVIRT_ANSWER_NONE:
		d->busy_ns = 0;
		break;
	}
}

/* One call for all: of a domain that has another call out libvirt gives what it knows itself, and does not wait. */
static void ask(struct libvirt_link *l)
{
	struct libvirt_hub *h = l->hub;
	virDomainStatsRecordPtr *records = NULL;
	uint64_t now_ns = clock_mono_ns(); /* figures are at least as new */
	bool current;
	int count;

	libvirt_domains_mark(&h->domains);
	libvirt_call_begin(l, "asking for figures", NULL);
	count = virConnectGetAllDomainStats(l->conn, VIR_DOMAIN_STATS_BALLOON, &records,
					    VIR_CONNECT_GET_ALL_DOMAINS_STATS_ACTIVE |
						    VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT);
	if (count < 0)
		log_debug("libvirt uri=%s gives no figures: %s", h->uri, virGetLastErrorMessage());
	current = libvirt_call_end(l);
	if (current && count >= 0) {
		for (int i = 0; i < count; i++)
			figures_take(l, records[i], now_ns);
		libvirt_domains_sweep(&h->domains);
	}
	if (current) {
		h->ask = false;
		libvirt_hub_wake(h);
	}
	if (records)
		virDomainStatsRecordListFree(records);
}

/* ---- one domain; d is looked up anew after each call, for it may be gone or another run of it ---- */

/* Where the result of a call goes to; NULL: nowhere any more. */
static struct libvirt_domain *call_end(struct libvirt_link *l, const char *uuid, int id)
{
	struct libvirt_domain *d = libvirt_call_end(l) ? libvirt_domains_find(&l->hub->domains, uuid) : NULL;

	return d && d->id == id ? d : NULL;
}

static void describe(struct libvirt_link *l, const struct libvirt_domain *which)
{
	struct libvirt_domain key = *which, *d;
	struct libvirt_memballoon b = { 0 };
	char *xml = NULL;
	bool good;

	libvirt_call_begin(l, "reading the XML", key.uuid);
	{
		auto_domain dom = virDomainLookupByUUIDString(l->conn, key.uuid);

		if (dom)
			xml = virDomainGetXMLDesc(dom, 0);
	}
	good = xml && libvirt_xml_memballoon(xml, &b) == 0;
	free(xml);
	d = call_end(l, key.uuid, key.id);
	if (!d)
		return;
	d->described = good;
	d->describe_ns = clock_mono_ns() + DESCRIBE_NS;
	if (!good) {
		log_debug("libvirt domain=%s uuid=%s cannot be looked at, tried again later", d->name, d->uuid);
		return;
	}
	d->told.device = b.device;
	d->told.options_known = b.device == BALLOON_DEVICE_PRESENT;
	d->told.reporting = b.reporting;
	d->told.deflate_on_oom = b.deflate_on_oom;
	d->told.period_s = b.period_s;
	log_info("libvirt domain=%s uuid=%s id=%d found by=%s balloon=%s reporting=%s autodeflate=%s period=%" PRIu64 "s",
		 d->name, d->uuid, d->id, d->how, b.device == BALLOON_DEVICE_PRESENT ? "virtio" : "none",
		 b.reporting ? "on" : "off", b.deflate_on_oom ? "on" : "off", b.period_s);
	libvirt_hub_wake(l->hub);
}

static void period_set(struct libvirt_link *l, struct libvirt_domain *which, int period_s)
{
	struct libvirt_domain key, *d;
	bool good = false;

	which->period_tried = true;
	key = *which;
	libvirt_call_begin(l, "setting the statistics period", key.uuid);
	{
		auto_domain dom = virDomainLookupByUUIDString(l->conn, key.uuid);

		if (dom)
			good = virDomainSetMemoryStatsPeriod(dom, period_s, VIR_DOMAIN_AFFECT_LIVE) == 0;
	}
	log_line(good ? LOG_LEVEL_INFO : LOG_LEVEL_WARNING, "libvirt domain=%s uuid=%s period %" PRIu64 "->%d s%s%s", key.name,
		 key.uuid, key.told.period_s, period_s, good ? "" : " failed, ignoring: ",
		 good ? "" : virGetLastErrorMessage());
	d = call_end(l, key.uuid, key.id);
	if (d && good) {
		d->told.period_s = (uint64_t)period_s;
		d->period_ours = period_s != 0;
	}
}

/* False, and why: libvirt would make the call wait for a migration, a backup or a monitor. */
static bool is_free(virDomainPtr dom, char *why, size_t cap)
{
	virDomainControlInfo info;

	if (virDomainGetControlInfo(dom, &info, 0) < 0 || info.state == VIR_DOMAIN_CONTROL_OK)
		return true; /* where it cannot be told, the call will */
	snprintf(why, cap, "%s",
		 info.state == VIR_DOMAIN_CONTROL_ERROR ? "libvirt has lost its monitor" :
		 info.state == VIR_DOMAIN_CONTROL_JOB	? "libvirt has a job at work with it" :
							  "libvirt waits for its monitor");
	return false;
}

static void set_memory(struct libvirt_link *l, struct libvirt_domain *which)
{
	struct libvirt_domain key, *d;
	char why[sizeof(key.set_error)] = "";

	which->set = LIBVIRT_SET_OUT;
	key = *which;
	libvirt_call_begin(l, "setting the memory", key.uuid);
	{
		auto_domain dom = virDomainLookupByUUIDString(l->conn, key.uuid);

		if (!dom || (is_free(dom, why, sizeof(why)) &&
			     virDomainSetMemoryFlags(dom, key.set_bytes / 1024, VIR_DOMAIN_AFFECT_LIVE) < 0))
			snprintf(why, sizeof(why), "%.110s", virGetLastErrorMessage());
	}
	d = call_end(l, key.uuid, key.id);
	if (!d)
		return;
	if (*why && strcmp(why, key.set_error) != 0)
		log_warning("libvirt domain=%s uuid=%s memory not set to %" PRIu64 " MiB: %s", d->name, d->uuid,
			    key.set_bytes >> 20, why);
	else
		log_debug("libvirt domain=%s uuid=%s memory set to %" PRIu64 " MiB: %s", d->name, d->uuid,
			  key.set_bytes >> 20, *why ? why : "done");
	d->set = LIBVIRT_SET_NONE;
	memcpy(d->set_error, why, sizeof(why));
	d->set_failed_ns = *why ? clock_mono_ns() : 0;
	libvirt_hub_wake(l->hub);
}

/* ---- what there is to do ---- */

static bool domain_work(struct libvirt_link *l, struct libvirt_domain *d)
{
	if (d->set == LIBVIRT_SET_WAITS) {
		set_memory(l, d);
		return true;
	}
	if (!d->described && clock_mono_ns() >= d->describe_ns) {
		describe(l, d);
		return true;
	}
	/* Only of a domain whose VMM has just answered: one whose monitor hangs would make the call wait. */
	if (l->hub->may_write && d->described && d->told.device == BALLOON_DEVICE_PRESENT && d->told.period_s == 0 &&
	    !d->period_tried && d->busy_ns == 0 && d->told.stats_told_ns != 0) {
		period_set(l, d, PERIOD_S);
		return true;
	}
	return false;
}

bool libvirt_link_work(struct libvirt_link *l)
{
	const struct libvirt_domains *t = &l->hub->domains;

	if (l->hub->ask) {
		ask(l);
		return true;
	}
	for (size_t i = 0; i < t->count; i++)
		if (domain_work(l, t->sorted[i]))
			return true;
	return false;
}

void libvirt_link_put_back(struct libvirt_link *l)
{
	const struct libvirt_domains *t = &l->hub->domains;

	/* Events may change the table meanwhile; one that was passed over so keeps its period. */
	for (size_t i = 0; i < t->count; i++)
		if (t->sorted[i]->period_ours && t->sorted[i]->busy_ns == 0)
			period_set(l, t->sorted[i], 0);
}
