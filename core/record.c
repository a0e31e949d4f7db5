#include "core/record.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/cleanup.h"

#define VMS_MAX 4096

enum field_kind { FIELD_U64, FIELD_PID, FIELD_BOOL, FIELD_ENUM, FIELD_TEXT, FIELD_TEXT_OR_NULL };

struct field {
	const char *key;
	enum field_kind kind;
	size_t offset;
	unsigned int max; /* of FIELD_ENUM */
};

/* A key is the member's name, so that a reader of a record finds it in core/snapshot.h. */
#define H(member, kind) { #member, FIELD_##kind, offsetof(struct host_snapshot, member), 0 }
#define V(member, kind) { #member, FIELD_##kind, offsetof(struct vm_snapshot, member), 0 }
#define VE(member, last) { #member, FIELD_ENUM, offsetof(struct vm_snapshot, member), last }

static const struct field host_fields[] = {
	H(taken_ns, U64),	     H(mem_total_bytes, U64),	H(mem_available_bytes, U64),
	H(swap_total_bytes, U64),    H(swap_free_bytes, U64),	H(pressure.known, BOOL),
	H(pressure.some_us, U64),    H(pressure.full_us, U64),	H(ksm.present, BOOL),
	H(ksm.run, U64),	     H(ksm.pages_to_scan, U64), H(ksm.sleep_ms, U64),
	H(ksm.pages_shared, U64),    H(ksm.pages_sharing, U64), H(ksm.zero_pages, U64),
	H(ksm.pages_scanned, U64),   H(ksm.full_scans, U64),	H(ksm.cow_pages, U64),
	H(ksm.cpu_ns, U64),	     H(cow_debt_bytes, U64),	H(admitted_bytes, U64),
};

static const struct field vm_fields[] = {
	V(name, TEXT),
	V(uuid, TEXT),
	V(domain, TEXT),
	V(pid, PID),
	V(start_ticks, U64),
	V(merge_allowed, BOOL),
	VE(engine, MERGE_ENGINE_OFF),
	V(mem_merge, BOOL),
	V(mem_lock, BOOL),
	V(migrating, BOOL),
	V(ram_bytes, U64),
	V(found_ns, U64),
	V(running, BOOL),
	V(balloon_allowed, BOOL),
	V(reservation_bytes, U64),
	V(limit_bytes, U64),
	V(shares, U64),
	V(balloon.driver, TEXT_OR_NULL),
	V(balloon.why, TEXT),
	VE(balloon.device, BALLOON_DEVICE_PRESENT),
	V(balloon.max_bytes, U64),
	V(balloon.actual_bytes, U64),
	V(balloon.told_ns, U64),
	V(balloon.resets, U64),
	VE(balloon.stats, GUEST_STATS_GOOD),
	V(balloon.stats_ns, U64),
	V(balloon.total_bytes, U64),
	V(balloon.free_bytes, U64),
	V(balloon.available_bytes, U64),
	V(balloon.cache_bytes, U64),
	V(balloon.swap_in_bytes, U64),
	V(balloon.swap_out_bytes, U64),
	V(balloon.major_faults, U64),
	V(balloon.oom_kills, U64),
	V(ram_resident_bytes, U64),
	V(ram_resident_ns, U64),
	V(pressure.known, BOOL),
	V(pressure.some_us, U64),
	V(pressure.full_us, U64),
	V(ksm_mergeable, BOOL),
	V(ksm_merging_pages, U64),
	V(rss_anon_bytes, U64),
	V(rss_shmem_bytes, U64),
};

/* A member more or less wants a row more or less above, and then this to be set right. */
_Static_assert(sizeof(struct host_snapshot) == 184 && sizeof(struct vm_snapshot) == 328, "see core/record.c");

/* ---- writing ---- */

static json_t *number_json(uint64_t value)
{
	return json_integer((json_int_t)value);
}

static json_t *field_json(const struct field *f, const void *base)
{
	const char *at = (const char *)base + f->offset;
	const char *text;
	uint64_t number = 0;

	switch (f->kind) {
	case FIELD_TEXT:
	case FIELD_TEXT_OR_NULL:
		memcpy(&text, at, sizeof(text));
		return text && *text ? json_string(text) : NULL;
	case FIELD_BOOL:
		return *(const bool *)at ? json_true() : NULL;
	case FIELD_U64:
		memcpy(&number, at, sizeof(number));
		break;
	case FIELD_PID:
	case FIELD_ENUM:
		number = *(const unsigned int *)at;
		break;
	}
	return number ? number_json(number) : NULL;
}

static json_t *fields_json(const struct field *fields, size_t count, const void *base)
{
	json_t *object = json_object();

	for (size_t i = 0; i < count; i++) {
		json_t *value = field_json(&fields[i], base);

		if (value && json_object_set_new(object, fields[i].key, value) < 0) {
			json_decref(object);
			return NULL;
		}
	}
	return object;
}

static void text_add(json_t *object, const char *key, const char *text)
{
	if (*text)
		json_object_set_new(object, key, json_string(text));
}

static json_t *decided_json(const struct record_decided *d)
{
	json_t *vms = json_array();

	for (size_t i = 0; i < d->vm_count; i++) {
		const struct record_vm *vm = &d->vms[i];
		json_t *object = json_object();

		if (vm->target_bytes)
			json_object_set_new(object, "target_bytes", number_json(vm->target_bytes));
		if (vm->not_done)
			json_object_set_new(object, "not_done", json_true());
		text_add(object, "block", vm->block);
		text_add(object, "veto", vm->veto);
		text_add(object, "why", vm->why);
		if (json_array_append_new(vms, object) < 0) {
			json_decref(vms);
			return NULL;
		}
	}
	return json_pack("{s:s, s:o}", "state", d->state, "vms", vms);
}

json_t *record_header_json(const char *version, const char *settings)
{
	return json_pack("{s:i, s:s, s:s}", "memvirt_record", RECORD_VERSION, "version", version, "settings", settings);
}

json_t *record_settings_json(const char *settings)
{
	return json_pack("{s:s}", "settings", settings);
}

json_t *record_tick_json(const struct host_snapshot *s, const struct record_decided *decided)
{
	json_t *vms = json_array(), *root;

	for (size_t i = 0; i < s->vm_count; i++) {
		json_t *vm = fields_json(vm_fields, ARRAY_SIZE(vm_fields), &s->vms[i]);

		if (!vm || json_array_append_new(vms, vm) < 0) {
			json_decref(vms);
			return NULL;
		}
	}
	root = json_pack("{s:o, s:o}", "host", fields_json(host_fields, ARRAY_SIZE(host_fields), s), "vms", vms);
	if (root && decided && json_object_set_new(root, "decided", decided_json(decided)) < 0) {
		json_decref(root);
		return NULL;
	}
	return root;
}

/* ---- reading ---- */

__attribute__((format(printf, 3, 4))) static int refuse(char *why, size_t cap, const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	vsnprintf(why, cap, fmt, args);
	va_end(args);
	return -EBADMSG;
}

static bool number_read(const struct field *f, const json_t *value, char *at)
{
	json_int_t number = json_integer_value(value);
	unsigned int small = (unsigned int)number;

	if (!json_is_integer(value))
		return false;
	if (f->kind == FIELD_U64) {
		memcpy(at, &(uint64_t){ (uint64_t)number }, sizeof(uint64_t));
		return true;
	}
	if (number < 0 || number > (f->kind == FIELD_ENUM ? (json_int_t)f->max : INT_MAX))
		return false;
	memcpy(at, &small, sizeof(small));
	return true;
}

static bool field_read(const struct field *f, const json_t *value, void *base)
{
	char *at = (char *)base + f->offset;
	const char *text = json_string_value(value);

	switch (f->kind) {
	case FIELD_TEXT:
	case FIELD_TEXT_OR_NULL:
		if (!text)
			return false;
		memcpy(at, &text, sizeof(text));
		return true;
	case FIELD_BOOL:
		if (!json_is_boolean(value))
			return false;
		*(bool *)at = json_is_true(value);
		return true;
	default:
		return number_read(f, value, at);
	}
}

/* Keys that no row has are left alone: they may come from a later version. */
static int fields_read(const struct field *fields, size_t count, const json_t *object, void *base, char *why, size_t cap)
{
	static const char *const empty = "";

	if (!json_is_object(object))
		return refuse(why, cap, "an object was expected");
	for (size_t i = 0; i < count; i++) {
		const json_t *value = json_object_get(object, fields[i].key);

		if (!value && fields[i].kind == FIELD_TEXT)
			memcpy((char *)base + fields[i].offset, &empty, sizeof(empty));
		else if (value && !field_read(&fields[i], value, base))
			return refuse(why, cap, "\"%s\" is of the wrong type or out of bounds", fields[i].key);
	}
	return 0;
}

static int vms_read(const json_t *array, struct host_snapshot *s, char *why, size_t cap)
{
	size_t count = json_array_size(array);

	if (!json_is_array(array) || count > VMS_MAX)
		return refuse(why, cap, "\"vms\" is no list of at most %d", VMS_MAX);
	s->vms = calloc(count ? count : 1, sizeof(*s->vms));
	if (!s->vms)
		return -ENOMEM;
	s->vm_count = count;
	for (size_t i = 0; i < count; i++) {
		int r;

		s->vms[i].pidfd = -1;
		r = fields_read(vm_fields, ARRAY_SIZE(vm_fields), json_array_get(array, i), &s->vms[i], why, cap);
		if (r < 0)
			return r;
	}
	return 0;
}

/* The text of a key that may be missing; NULL: it is something else. */
static const char *text_or_empty(const json_t *object, const char *key)
{
	const json_t *value = json_object_get(object, key);

	return value ? json_string_value(value) : "";
}

static int decided_read(const json_t *object, size_t vm_count, struct record_decided *d, char *why, size_t cap)
{
	const json_t *array = json_object_get(object, "vms");
	struct record_vm *vms;

	d->state = json_string_value(json_object_get(object, "state"));
	if (!d->state || !json_is_array(array) || json_array_size(array) != vm_count)
		return refuse(why, cap, "\"decided\" has no state, or not as many VMs as the tick");
	vms = calloc(vm_count ? vm_count : 1, sizeof(*vms));
	if (!vms)
		return -ENOMEM;
	d->vms = vms;
	d->vm_count = vm_count;
	for (size_t i = 0; i < vm_count; i++) {
		const json_t *vm = json_array_get(array, i), *target = json_object_get(vm, "target_bytes");

		vms[i] = (struct record_vm){ (uint64_t)json_integer_value(target),
					     json_is_true(json_object_get(vm, "not_done")), text_or_empty(vm, "block"),
					     text_or_empty(vm, "veto"), text_or_empty(vm, "why") };
		if (!json_is_object(vm) || (target && !json_is_integer(target)) || !vms[i].block || !vms[i].veto ||
		    !vms[i].why)
			return refuse(why, cap, "what was decided for VM %zu is not understood", i);
	}
	return 0;
}

static int tick_read(struct record_line *line, char *why, size_t cap)
{
	const json_t *decided = json_object_get(line->root, "decided");
	int r = fields_read(host_fields, ARRAY_SIZE(host_fields), json_object_get(line->root, "host"), &line->snapshot,
			    why, cap);

	line->kind = RECORD_TICK;
	if (r == 0)
		r = vms_read(json_object_get(line->root, "vms"), &line->snapshot, why, cap);
	if (r == 0 && decided)
		r = decided_read(decided, line->snapshot.vm_count, &line->decided, why, cap);
	line->has_decided = r == 0 && decided;
	return r;
}

static int line_read(struct record_line *line, char *why, size_t cap)
{
	const json_t *header = json_object_get(line->root, "memvirt_record");

	line->settings = json_string_value(json_object_get(line->root, "settings"));
	line->version = json_string_value(json_object_get(line->root, "version"));
	if (header) {
		line->kind = RECORD_HEADER;
		if (!json_is_integer(header) || json_integer_value(header) != RECORD_VERSION)
			return refuse(why, cap, "a record of another version; this is %d", RECORD_VERSION);
		return line->settings && line->version ? 0 : refuse(why, cap, "a header without version or settings");
	}
	if (line->settings) {
		line->kind = RECORD_SETTINGS;
		return 0;
	}
	return tick_read(line, why, cap);
}

int record_line_parse(const char *text, size_t len, struct record_line *ret_line, char *ret_why, size_t cap)
{
	struct record_line line = { 0 };
	json_error_t error;
	int r;

	if (len > RECORD_LINE_MAX_BYTES)
		return refuse(ret_why, cap, "longer than %u bytes", RECORD_LINE_MAX_BYTES);
	line.root = json_loadb(text, len, JSON_REJECT_DUPLICATES, &error);
	if (!line.root)
		return refuse(ret_why, cap, "not whole, or no JSON: %s", error.text);
	r = line_read(&line, ret_why, cap);
	if (r < 0) {
		record_line_free(&line);
		return r;
	}
	*ret_line = line;
	return 0;
}

void record_line_free(struct record_line *line)
{
	free(line->snapshot.vms);
	free((void *)(uintptr_t)line->decided.vms);
	json_decref(line->root);
	*line = (struct record_line){ 0 };
}
