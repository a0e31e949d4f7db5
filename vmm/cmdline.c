#include "vmm/cmdline.h"

#include <ctype.h>
#include <jansson.h>
#include <string.h>

#include "core/cleanup.h"
#include "vmm/optstr.h"
#include "core/text.h"

#define MIB (UINT64_C(1) << 20)
#define RAM_BYTES_DEFAULT (128 * MIB)

/* A VM has one or two monitors; more than these are not looked at. */
#define MONITORS_MAX 8

/* QEMU's options that take no value, over all its versions. Every other option takes the argument behind it,
 * whatever that looks like, and "-append '... -m 5'" must not become an option. When an option is missing
 * here, the one argument behind it is overlooked. */
static const char *const options_without_value[] = {
	"h", "help", "version", "S", "s", "usb", "snapshot", "nographic", "portrait", "full-screen", "fullscreen",
	"daemonize", "enable-kvm", "enable-hax", "enable-nesting", "enable-fips", "no-kvm", "no-kvm-irqchip",
	"no-kvm-pit", "no-kvm-pit-reinjection", "nodefaults", "nodefconfig", "no-user-config", "nouserconfig",
	"no-reboot", "no-shutdown", "no-hpet", "no-acpi", "no-fd-bootchk", "no-quit", "no-frame", "alt-grab",
	"ctrl-grab", "sdl", "curses", "std-vga", "win2k-hack", "rtc-td-hack", "tdf", "localtime", "mem-prealloc",
	"audio-help", "singlestep", "preconfig", "only-migratable", "old-param", "semihosting", "async-teardown",
	"enable-sync-profile", "perfmap", "jitdump", "xen-attach", "xen-create", "xen-domid-restrict",
};

/* A monitor in control mode: "-qmp VALUE" or "-mon chardev=VALUE". */
struct monitor {
	struct slice value;
	bool by_chardev;
};

struct parse {
	struct vmm_cmdline out;
	struct slice args; /* everything behind argv[0] */
	struct monitor monitors[MONITORS_MAX];
	size_t monitor_count;
};

static bool next_arg(struct slice *args, struct slice *ret_arg)
{
	size_t len = 0;

	if (args->len == 0)
		return false;
	while (len < args->len && args->text[len] != '\0')
		len++;
	*ret_arg = (struct slice){ args->text, len };
	if (len < args->len)
		len++;
	args->text += len;
	args->len -= len;
	return true;
}

/* The next option that has a value; disk images without an option and options without a value are passed
 * over. One dash or two, as QEMU has it. */
static bool next_option(struct slice *args, struct slice *ret_name, struct slice *ret_value)
{
	struct slice arg;

	while (next_arg(args, &arg)) {
		bool has_value = true;

		if (arg.len < 2 || arg.text[0] != '-')
			continue;
		arg.text++;
		arg.len--;
		if (arg.text[0] == '-') {
			arg.text++;
			arg.len--;
		}
		for (size_t i = 0; i < ARRAY_SIZE(options_without_value) && has_value; i++)
			has_value = !slice_is(arg, options_without_value[i]);
		if (!has_value)
			continue;
		*ret_name = arg;
		return next_arg(args, ret_value);
	}
	return false;
}

static void parse_name(struct parse *p, struct slice value)
{
	struct optstr_item item;
	/* Room for the longest name in any spelling: what is cut here would be cut below. */
	char name[2 * VM_NAME_MAX];

	for (const char *implied = "guest"; optstr_next(&value, implied, &item); implied = NULL) {
		if (!slice_is(item.key, "guest"))
			continue;
		optstr_value(item.value, name, sizeof(name));
		text_copy(p->out.name, sizeof(p->out.name), name, strlen(name));
	}
}

static void parse_uuid(struct parse *p, struct slice value)
{
	text_uuid(p->out.uuid, value.text, value.len);
}

static void parse_machine(struct parse *p, struct slice value)
{
	struct optstr_item item;
	char machine[VM_MACHINE_MAX];

	if (value.len > 0 && value.text[0] == '{')
		return; /* no QEMU takes JSON here */
	for (const char *implied = "type"; optstr_next(&value, implied, &item); implied = NULL) {
		if (slice_is(item.key, "type")) {
			optstr_value(item.value, machine, sizeof(machine));
			text_copy(p->out.machine, sizeof(p->out.machine), machine, strlen(machine));
		} else {
			optstr_bool(&item, "mem-merge", &p->out.mem_merge);
		}
	}
}

/* "4096" (MiB), "4G", "1.5g", "4194304k". False for anything else and for what does not fit 64 bits. */
static bool parse_size(struct slice value, uint64_t *ret_bytes)
{
	static const char units[] = "bkmgtpe";
	uint64_t whole = 0, unit = MIB;
	double fraction = 0, digit = 0.1;
	size_t i = 0;

	for (; i < value.len && isdigit((unsigned char)value.text[i]); i++)
		if (__builtin_mul_overflow(whole, UINT64_C(10), &whole) ||
		    __builtin_add_overflow(whole, (uint64_t)(value.text[i] - '0'), &whole))
			return false;
	if (i == 0)
		return false;
	if (i < value.len && value.text[i] == '.')
		for (i++; i < value.len && isdigit((unsigned char)value.text[i]); i++, digit /= 10)
			fraction += digit * (value.text[i] - '0');
	if (i < value.len) {
		const char *u = memchr(units, tolower((unsigned char)value.text[i]), sizeof(units) - 1);

		if (!u || i + 1 != value.len)
			return false;
		unit = UINT64_C(1) << (10 * (u - units));
	}
	if (__builtin_mul_overflow(whole, unit, &whole) ||
	    __builtin_add_overflow(whole, (uint64_t)(fraction * (double)unit), &whole))
		return false;
	*ret_bytes = whole;
	return true;
}

static void parse_memory(struct parse *p, struct slice value)
{
	struct optstr_item item;
	uint64_t bytes;

	for (const char *implied = "size"; optstr_next(&value, implied, &item); implied = NULL)
		/* QEMU takes 0 for "the default". */
		if (slice_is(item.key, "size") && parse_size(item.value, &bytes) && bytes > 0)
			p->out.ram_bytes = bytes;
}

static void add_monitor(struct parse *p, struct slice value, bool by_chardev)
{
	if (p->monitor_count < MONITORS_MAX)
		p->monitors[p->monitor_count++] = (struct monitor){ value, by_chardev };
}

static bool slice_skip_word(struct slice *s, const char *word)
{
	size_t len = strlen(word);

	if (s->len < len || memcmp(s->text, word, len) != 0)
		return false;
	s->text += len;
	s->len -= len;
	return true;
}

static void parse_qmp(struct parse *p, struct slice value)
{
	if (slice_skip_word(&value, "chardev:"))
		add_monitor(p, value, true);
	else if (slice_skip_word(&value, "unix:"))
		add_monitor(p, value, false);
}

static void parse_mon(struct parse *p, struct slice value)
{
	struct slice chardev = { NULL, 0 };
	struct optstr_item item;
	bool control = false;

	for (const char *implied = "chardev"; optstr_next(&value, implied, &item); implied = NULL) {
		if (slice_is(item.key, "chardev"))
			chardev = item.value;
		else if (slice_is(item.key, "mode"))
			control = slice_is(item.value, "control");
	}
	if (control && chardev.len > 0)
		add_monitor(p, chardev, true);
}

/* What is looked for in a -chardev, in either of its two spellings. */
struct chardev {
	char id[64];
	char path[VM_PATH_MAX];
	bool socket, server, abstract;
};

static void copy_path(char *path, struct slice value)
{
	if (optstr_value(value, path, VM_PATH_MAX) >= VM_PATH_MAX)
		path[0] = '\0'; /* no socket address holds it */
}

/* {"id": X, "backend": {"type": "socket", "data": {"addr": {"type": "unix", "data": {"path": P}}, "server":
 * true}}}, as the machine protocol's chardev-add has it. Absent members read as NULL all the way down. */
static void chardev_from_json(struct slice value, struct chardev *c)
{
	json_t *root = json_loadb(value.text, value.len, 0, NULL);
	json_t *backend = json_object_get(root, "backend");
	json_t *data = json_object_get(backend, "data");
	json_t *addr = json_object_get(json_object_get(data, "addr"), "data");
	const char *id = json_string_value(json_object_get(root, "id"));
	const char *type = json_string_value(json_object_get(backend, "type"));
	const char *path = json_string_value(json_object_get(addr, "path"));
	json_t *server = json_object_get(data, "server");

	c->socket = type && strcmp(type, "socket") == 0;
	c->server = !server || json_is_true(server); /* the machine protocol's default is on */
	c->abstract = json_is_true(json_object_get(addr, "abstract"));
	if (id && strlen(id) < sizeof(c->id))
		memcpy(c->id, id, strlen(id) + 1);
	if (path && strlen(path) < sizeof(c->path))
		memcpy(c->path, path, strlen(path) + 1);
	json_decref(root);
}

static void chardev_parse(struct slice value, struct chardev *ret_chardev)
{
	struct chardev c = { .socket = false };
	struct optstr_item item;

	if (value.len > 0 && value.text[0] == '{') {
		chardev_from_json(value, &c);
		*ret_chardev = c;
		return;
	}
	for (const char *implied = "backend"; optstr_next(&value, implied, &item); implied = NULL) {
		if (slice_is(item.key, "backend"))
			c.socket = slice_is(item.value, "socket");
		else if (slice_is(item.key, "id") && item.value.len < sizeof(c.id))
			optstr_value(item.value, c.id, sizeof(c.id));
		else if (slice_is(item.key, "path"))
			copy_path(c.path, item.value);
		else if (!optstr_bool(&item, "server", &c.server))
			optstr_bool(&item, "abstract", &c.abstract);
	}
	*ret_chardev = c;
}

/* libvirt's own monitor has this id in every version; it serves one client, libvirt. */
static bool chardev_is_libvirt(const struct chardev *c)
{
	return c->socket && strcmp(c->id, "charmonitor") == 0;
}

static void parse_chardev(struct parse *p, struct slice value)
{
	struct chardev c;

	chardev_parse(value, &c);
	if (chardev_is_libvirt(&c))
		p->out.libvirt = true;
}

/* libvirt gives each VM a secret "masterKey0"; nobody else does. */
static void parse_object(struct parse *p, struct slice value)
{
	bool secret = false, master = false;
	struct optstr_item item;

	if (value.len > 0 && value.text[0] == '{') {
		json_t *root = json_loadb(value.text, value.len, 0, NULL);
		const char *type = json_string_value(json_object_get(root, "qom-type"));
		const char *id = json_string_value(json_object_get(root, "id"));

		secret = type && strcmp(type, "secret") == 0;
		master = id && strcmp(id, "masterKey0") == 0;
		json_decref(root);
	} else {
		for (const char *implied = "qom-type"; optstr_next(&value, implied, &item); implied = NULL) {
			if (slice_is(item.key, "qom-type"))
				secret = slice_is(item.value, "secret");
			else if (slice_is(item.key, "id"))
				master = slice_is(item.value, "masterKey0");
		}
	}
	if (secret && master)
		p->out.libvirt = true;
}

static void parse_overcommit(struct parse *p, struct slice value)
{
	struct optstr_item item;

	while (optstr_next(&value, NULL, &item)) {
		optstr_bool(&item, "mem-lock", &p->out.mem_lock);
		/* Locked as it is touched: locked for our purposes. */
		if (slice_is(item.key, "mem-lock") && slice_is(item.value, "on-fault"))
			p->out.mem_lock = true;
	}
}

static void parse_realtime(struct parse *p, struct slice value)
{
	struct optstr_item item;

	p->out.mem_lock = true; /* -realtime locks unless told otherwise */
	while (optstr_next(&value, NULL, &item))
		optstr_bool(&item, "mlock", &p->out.mem_lock);
}

static const struct {
	const char *name;
	void (*parse)(struct parse *p, struct slice value);
} options[] = {
	{ "name", parse_name },
	{ "uuid", parse_uuid },
	{ "machine", parse_machine },
	{ "M", parse_machine },
	{ "m", parse_memory },
	{ "qmp", parse_qmp },
	{ "qmp-pretty", parse_qmp },
	{ "mon", parse_mon },
	{ "chardev", parse_chardev },
	{ "object", parse_object },
	{ "overcommit", parse_overcommit },
	{ "realtime", parse_realtime },
};

static bool find_chardev(const struct parse *p, struct slice id, struct chardev *ret_chardev)
{
	struct slice args = p->args, name, value;
	struct chardev c;

	while (next_option(&args, &name, &value)) {
		if (!slice_is(name, "chardev"))
			continue;
		chardev_parse(value, &c);
		if (c.id[0] && slice_is(id, c.id)) {
			*ret_chardev = c;
			return true;
		}
	}
	return false;
}

/* The first monitor that is a listening socket on the file system and not libvirt's. Done last, because a
 * -mon may come before the -chardev it names. */
static void resolve_monitors(struct parse *p)
{
	for (size_t i = 0; i < p->monitor_count && p->out.qmp_path[0] == '\0'; i++) {
		struct slice value = p->monitors[i].value;
		struct chardev c = { .socket = true };
		struct optstr_item item;

		if (p->monitors[i].by_chardev) {
			if (!find_chardev(p, value, &c))
				continue;
		} else {
			for (const char *implied = "path"; optstr_next(&value, implied, &item); implied = NULL) {
				if (slice_is(item.key, "path"))
					copy_path(c.path, item.value);
				else if (!optstr_bool(&item, "server", &c.server))
					optstr_bool(&item, "abstract", &c.abstract);
			}
		}
		if (c.socket && c.server && !c.abstract && !chardev_is_libvirt(&c))
			memcpy(p->out.qmp_path, c.path, sizeof(c.path));
	}
}

bool vmm_cmdline_is_qemu(const char *program)
{
	static const char deleted[] = " (deleted)";
	const char *slash = strrchr(program, '/'), *base = slash ? slash + 1 : program;
	size_t len = strlen(base);

	if (len > sizeof(deleted) - 1 && strcmp(base + len - (sizeof(deleted) - 1), deleted) == 0)
		len -= sizeof(deleted) - 1;
	return (len > 12 && strncmp(base, "qemu-system-", 12) == 0) ||
	       slice_is((struct slice){ base, len }, "qemu-kvm") || slice_is((struct slice){ base, len }, "kvm");
}

void vmm_cmdline_parse_args(const char *cmdline, size_t len, struct vmm_cmdline *ret_cmdline)
{
	struct parse p = {
		.out = { .ram_bytes = RAM_BYTES_DEFAULT, .mem_merge = true },
		.args = { cmdline, len },
	};
	struct slice args, name, value;

	next_arg(&p.args, &name); /* argv[0] */
	args = p.args;
	while (next_option(&args, &name, &value))
		for (size_t i = 0; i < ARRAY_SIZE(options); i++)
			if (slice_is(name, options[i].name))
				options[i].parse(&p, value);
	resolve_monitors(&p);
	*ret_cmdline = p.out;
}

bool vmm_cmdline_parse(const char *cmdline, size_t len, struct vmm_cmdline *ret_cmdline)
{
	struct slice args = { cmdline, len }, program;
	char path[4096];

	if (!next_arg(&args, &program) || program.len >= sizeof(path))
		return false;
	memcpy(path, program.text, program.len);
	path[program.len] = '\0';
	if (!vmm_cmdline_is_qemu(path))
		return false;
	vmm_cmdline_parse_args(cmdline, len, ret_cmdline);
	return true;
}
