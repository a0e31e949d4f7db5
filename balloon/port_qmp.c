#include "balloon/port_qmp.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/cleanup.h"
#include "core/clock.h"
#include "core/log.h"
#include "core/text.h"

#define QOM_PATH_MAX 256
/* Where QEMU keeps devices that have an id, and those that have none. */
static const char *const shelves[] = { "/machine/peripheral", "/machine/peripheral-anon" };

/* A VM without a balloon is asked again after so long: devices can be plugged. */
#define ABSENT_NS (60 * NSEC_PER_SEC)
/* More than this is no size of a guest. */
#define BYTES_MAX (UINT64_C(1) << 52)

struct port_qmp {
	struct vm *vm;
	struct balloon_told told;
	char path[QOM_PATH_MAX]; /* of the device in QEMU's object tree; empty: not found */
	uint64_t searched_ns;	 /* when it was last looked for; 0: not on this connection */
	size_t shelf;		 /* being searched */
	bool asking;		 /* answers are to come */
	void (*stats_fn)(struct vm *vm, void *userdata); /* NULL: nobody waits for them */
	void *stats_userdata;
};

int port_qmp_new(struct vm *vm, struct port_qmp **ret_port)
{
	struct port_qmp *p = calloc(1, sizeof(*p));

	if (!p)
		return -ENOMEM;
	p->vm = vm;
	*ret_port = p;
	return 0;
}

void port_qmp_on_stats(struct port_qmp *p, void (*told)(struct vm *vm, void *userdata), void *userdata)
{
	p->stats_fn = told;
	p->stats_userdata = userdata;
}

struct port_qmp *port_qmp_free(struct port_qmp *p)
{
	free(p);
	return NULL;
}

const struct balloon_told *port_qmp_told(const struct port_qmp *p)
{
	return &p->told;
}

static bool is_reached(const struct port_qmp *p)
{
	return p->vm->qmp != NULL;
}

/* A full queue, or no memory: asked again at the next tick. */
static int get(struct port_qmp *p, const char *path, const char *property, qmp_reply_fn reply)
{
	return qmp_command(p->vm->qmp, "qom-get", json_pack("{s:s, s:s}", "path", path, "property", property), reply, p);
}

/* ---- numbers that a VMM tells ---- */

/* Of a size or a counter; VMMs say "all ones" for what the guest did not tell, which jansson gives as -1 or, when any number
 * of the message is that large, as a floating-point one. */
static uint64_t number_of(const json_t *value)
{
	double number = json_is_number(value) ? json_number_value(value) : -1;

	return number >= 0 && number < (double)INT64_MAX ? (uint64_t)number : BALLOON_UNTOLD;
}

static uint64_t member_of(const json_t *object, const char *key)
{
	return number_of(json_object_get(object, key));
}

/* ---- looking for the device ---- */

static void search(struct port_qmp *p);

/* It is looked for again after ABSENT_NS. */
static void device_absent(struct port_qmp *p, const char *why)
{
	p->path[0] = '\0';
	p->told.device = BALLOON_DEVICE_ABSENT;
	p->told.actual_bytes = 0;
	text_copy(p->told.why, sizeof(p->told.why), why, strlen(why));
}

static void on_flag(struct qmp *q, int result, const json_t *reply, bool *flag)
{
	(void)q;
	if (result == 0 && json_is_boolean(reply))
		*flag = json_is_true(reply);
}

static void on_reporting(struct qmp *q, int result, const json_t *reply, const char *error, void *userdata)
{
	struct port_qmp *p = userdata;

	(void)error;
	on_flag(q, result, reply, &p->told.reporting);
}

static void on_deflate(struct qmp *q, int result, const json_t *reply, const char *error, void *userdata)
{
	struct port_qmp *p = userdata;

	(void)error;
	on_flag(q, result, reply, &p->told.deflate_on_oom);
	p->told.options_known = result == 0;
}

static void on_period(struct qmp *q, int result, const json_t *reply, const char *error, void *userdata)
{
	struct port_qmp *p = userdata;
	uint64_t period_s = number_of(reply);

	(void)q;
	(void)error;
	if (result == 0)
		p->told.period_s = period_s != BALLOON_UNTOLD ? period_s : 0;
}

static bool is_balloon(const char *type)
{
	static const char prefix[] = "child<virtio-balloon"; /* -pci, -ccw, -device, -pci-transitional */

	return type && strncmp(type, prefix, sizeof(prefix) - 1) == 0;
}

static void device_found(struct port_qmp *p, const char *name)
{
	int n = snprintf(p->path, sizeof(p->path), "%s/%s", shelves[p->shelf], name);

	if (n < 0 || (size_t)n >= sizeof(p->path)) {
		device_absent(p, "the name of the balloon device is too long");
		return;
	}
	p->told.device = BALLOON_DEVICE_PRESENT;
	p->told.why[0] = '\0';
	get(p, p->path, "guest-stats-polling-interval", on_period);
	get(p, p->path, "free-page-reporting", on_reporting);
	get(p, p->path, "deflate-on-oom", on_deflate);
}

static void on_shelf(struct qmp *q, int result, const json_t *reply, const char *error, void *userdata)
{
	struct port_qmp *p = userdata;
	const json_t *item;
	size_t i;

	(void)q;
	(void)error;
	json_array_foreach(reply, i, item)
	{
		const char *name = json_string_value(json_object_get(item, "name"));

		if (name && is_balloon(json_string_value(json_object_get(item, "type")))) {
			device_found(p, name);
			return;
		}
	}
	/* An error is an older VMM without such a tree: none is found. */
	if (result == -ECONNRESET)
		return;
	if (++p->shelf < ARRAY_SIZE(shelves))
		search(p);
	else
		device_absent(p, "the VM has no balloon device");
}

static void search(struct port_qmp *p)
{
	qmp_command(p->vm->qmp, "qom-list", json_pack("{s:s}", "path", shelves[p->shelf]), on_shelf, p);
}

void port_qmp_connected(struct port_qmp *p)
{
	p->told.why[0] = '\0';
	p->path[0] = '\0';
	p->asking = false;
	p->shelf = 0;
	p->searched_ns = clock_mono_ns();
	search(p);
}

/* ---- asking ---- */

static void on_summary(struct qmp *q, int result, const json_t *reply, const char *error, void *userdata)
{
	struct port_qmp *p = userdata;
	uint64_t base = member_of(reply, "base-memory"), plugged = member_of(reply, "plugged-memory");

	(void)q;
	(void)error;
	if (result == 0 && base < BYTES_MAX)
		p->told.max_bytes = base + (plugged < BYTES_MAX ? plugged : 0);
}

static void on_actual(struct qmp *q, int result, const json_t *reply, const char *error, void *userdata)
{
	struct port_qmp *p = userdata;
	uint64_t actual = member_of(reply, "actual");

	(void)q;
	/* Unplugged, or of no use to this VMM. */
	if (result == -EREMOTEIO) {
		p->searched_ns = clock_mono_ns();
		device_absent(p, error);
	}
	if (result < 0 || actual > BYTES_MAX)
		return;
	p->told.actual_bytes = actual;
	p->told.told_ns = clock_mono_ns();
}

static void on_stats(struct qmp *q, int result, const json_t *reply, const char *error, void *userdata)
{
	struct port_qmp *p = userdata;
	const json_t *stats = json_object_get(reply, "stats");
	uint64_t updated = member_of(reply, "last-update");
	struct balloon_told *t = &p->told;

	(void)q;
	(void)error;
	p->asking = false;
	if (result < 0)
		return;
	t->last_update_s = updated != BALLOON_UNTOLD ? (int64_t)updated : 0;
	t->stats_told_ns = clock_mono_ns();
	t->total_bytes = member_of(stats, "stat-total-memory");
	t->free_bytes = member_of(stats, "stat-free-memory");
	t->available_bytes = member_of(stats, "stat-available-memory");
	t->cache_bytes = member_of(stats, "stat-disk-caches");
	t->swap_in_bytes = member_of(stats, "stat-swap-in");
	t->swap_out_bytes = member_of(stats, "stat-swap-out");
	t->major_faults = member_of(stats, "stat-major-faults");
	t->oom_kills = member_of(stats, "stat-oom-kills"); /* QEMU 9.0 and newer */
	if (p->stats_fn)
		p->stats_fn(p->vm, p->stats_userdata);
}

void port_qmp_ask(struct port_qmp *p)
{
	if (!is_reached(p) || p->asking)
		return;
	if (!*p->path) {
		if (p->told.device == BALLOON_DEVICE_ABSENT && clock_mono_ns() - p->searched_ns > ABSENT_NS)
			port_qmp_connected(p);
		return;
	}
	qmp_command(p->vm->qmp, "query-memory-size-summary", NULL, on_summary, p);
	qmp_command(p->vm->qmp, "query-balloon", NULL, on_actual, p);
	p->asking = get(p, p->path, "guest-stats", on_stats) == 0;
}

static void set_period(struct port_qmp *p, uint64_t period_s)
{
	json_t *arguments = json_pack("{s:s, s:s, s:I}", "path", p->path, "property", "guest-stats-polling-interval",
				      "value", (json_int_t)period_s);

	qmp_command(p->vm->qmp, "qom-set", arguments, NULL, NULL);
}

void port_qmp_refresh(struct port_qmp *p, uint64_t period_s)
{
	if (!is_reached(p) || !*p->path)
		return;
	set_period(p, 0);
	set_period(p, period_s);
	p->told.period_s = period_s;
}

static void on_set(struct qmp *q, int result, const json_t *reply, const char *error, void *userdata)
{
	const struct port_qmp *p = userdata;

	(void)q;
	(void)reply;
	if (result < 0)
		log_warning("balloon vm=%s cannot be set, ignoring: %s", p->vm->uuid, error);
}

int port_qmp_set(struct port_qmp *p, uint64_t bytes)
{
	if (!is_reached(p))
		return -ENOTCONN;
	return qmp_command(p->vm->qmp, "balloon", json_pack("{s:I}", "value", (json_int_t)bytes), on_set, p);
}
