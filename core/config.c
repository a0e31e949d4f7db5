#include "core/config.h"

#include <errno.h>
#include <fnmatch.h>
#include <glob.h>
#include <ini.h>
#include <limits.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/un.h>

#include "core/cleanup.h"
#include "core/config_table.h"
#include "core/log.h"

#define SECTION_MAX 48 /* a section's name with its NUL; libinih keeps 50 bytes */
#define GLOB_MAX SECTION_MAX
#define RULES_MAX 4096
#define BYTE_ORDER_MARK "\xef\xbb\xbf"

struct config_rule {
	char glob[GLOB_MAX];
	struct config_vm values;
	uint64_t set_mask; /* bit i: config_vm_keys[i] was given */
};

struct loader {
	struct config *config;
	struct config_error *error;
	const char *file;
	unsigned line;
	int result;		 /* first failure; nothing is taken after it */
	uint64_t set_mask;	 /* keys of config_keys given in this file */
	FILE *stream;
	struct config_rule *rule; /* the section being filled; NULL: a global one */
};

/* ---- values ---- */

static void set_defaults(const struct config_key *keys, size_t count, void *base)
{
	char why[128];

	for (size_t i = 0; i < count; i++)
		if (config_value_parse(&keys[i], keys[i].def, base, why, sizeof(why)) < 0)
			abort(); /* the table contradicts itself: our own bug */
}

void config_init(struct config *c)
{
	memset(c, 0, sizeof(*c));
	set_defaults(config_keys, config_key_count, c);
}

void config_free(struct config *c)
{
	free(c->rules);
	c->rules = NULL;
	c->rule_count = 0;
}

/* ---- loading ---- */

__attribute__((format(printf, 3, 4))) static int fail(struct loader *l, int result, const char *fmt, ...)
{
	va_list args;
	int n;

	if (l->result < 0)
		return 0;
	l->result = result;
	n = snprintf(l->error->text, sizeof(l->error->text), "%s:%u: ", l->file, l->line);
	if (n > 0 && (size_t)n < sizeof(l->error->text)) {
		va_start(args, fmt);
		vsnprintf(l->error->text + n, sizeof(l->error->text) - (size_t)n, fmt, args);
		va_end(args);
	}
	return 0; /* what libinih calls a failure */
}

static const struct config_key *key_find(const struct config_key *keys, size_t count, const char *section,
					 const char *name)
{
	for (size_t i = 0; i < count; i++)
		if (strcmp(keys[i].section, section) == 0 && strcmp(keys[i].name, name) == 0)
			return &keys[i];
	return NULL;
}

static bool section_known(const char *section)
{
	for (size_t i = 0; i < config_key_count; i++)
		if (strcmp(config_keys[i].section, section) == 0)
			return true;
	return false;
}

/* Starts a rule for "vm GLOB". */
static int rule_begin(struct loader *l, const char *glob)
{
	struct config *c = l->config;
	struct config_rule *bigger;

	if (*glob == '\0')
		return fail(l, -EINVAL, "section [vm] has no name pattern; expected [vm GLOB], e.g. [vm web-*]");
	if (c->rule_count >= RULES_MAX)
		return fail(l, -EINVAL, "more than %d [vm] sections", RULES_MAX);
	bigger = reallocarray(c->rules, c->rule_count + 1, sizeof(*bigger));
	if (!bigger)
		return fail(l, -ENOMEM, "out of memory");
	c->rules = bigger;
	l->rule = &bigger[c->rule_count++];
	memset(l->rule, 0, sizeof(*l->rule));
	snprintf(l->rule->glob, sizeof(l->rule->glob), "%s", glob);
	return 1;
}

/* Takes the section header behind its '[': also one without keys must be known. */
static int section_begin(struct loader *l, const char *header)
{
	const char *end = strchr(header, ']');
	char section[SECTION_MAX];

	if (!end)
		return fail(l, -EINVAL, "section name has no closing bracket");
	if (end - header >= SECTION_MAX)
		return fail(l, -EINVAL, "section name is longer than %d bytes", SECTION_MAX - 1);
	memcpy(section, header, (size_t)(end - header));
	section[end - header] = '\0';
	l->rule = NULL;
	if (strncmp(section, "vm ", 3) == 0)
		return rule_begin(l, section + 3 + strspn(section + 3, " "));
	if (strcmp(section, "vm") == 0)
		return rule_begin(l, "");
	if (!section_known(section))
		return fail(l, -EINVAL, "unknown section [%s]; expected [daemon], [vmm], [host], [balloon], [scan], [merge] or "
			    "[vm GLOB]",
			    section);
	return 1;
}

static int on_key(void *user, const char *section, const char *name, const char *value)
{
	struct loader *l = user;
	const struct config_key *keys = config_keys, *key;
	size_t count = config_key_count;
	uint64_t *set_mask = &l->set_mask;
	void *base = l->config;
	char why[256];

	if (l->result < 0)
		return 0;
	if (*section == '\0')
		return fail(l, -EINVAL, "a key before the first [section]");
	if (l->rule) {
		keys = config_vm_keys;
		count = config_vm_key_count;
		set_mask = &l->rule->set_mask;
		base = &l->rule->values;
	}
	key = key_find(keys, count, l->rule ? "vm" : section, name);
	if (!key)
		return fail(l, -EINVAL, "unknown key \"%s\" in section [%s]; memvirtd --help-config lists all", name,
			    section);
	if (*set_mask & (UINT64_C(1) << (key - keys)))
		return fail(l, -EINVAL, "key \"%s\" given twice in section [%s]", name, section);
	if (config_value_parse(key, value, base, why, sizeof(why)) < 0)
		return fail(l, -EINVAL, "%s = %s: %s", name, value, why);
	if (l->rule && l->rule->values.domain[0] == '=')
		return fail(l, -EINVAL, "%s = %s: a domain's name cannot begin with '='", name, value);
	if (l->rule && l->rule->values.limit_bytes && l->rule->values.limit_bytes < l->rule->values.reservation_bytes)
		return fail(l, -EINVAL, "limit is less than reservation in section [%s]", section);
	*set_mask |= UINT64_C(1) << (key - keys);
	return 1;
}

/* libinih's reader: counts the lines it hands out, for error messages, refuses what would be cut, and begins
 * the sections: each header is a new one, so two equal [vm] sections are two rules. */
static char *read_line(char *buf, int cap, void *stream)
{
	struct loader *l = stream;
	const char *text = buf;
	size_t len;

	if (!fgets(buf, cap, l->stream))
		return NULL;
	l->line++;
	len = strlen(buf);
	if (len == 0 || (buf[len - 1] != '\n' && !feof(l->stream))) {
		fail(l, -EINVAL, "line is longer than %d bytes or holds a NUL", cap - 2);
		return NULL;
	}
	if (l->line == 1 && strncmp(text, BYTE_ORDER_MARK, strlen(BYTE_ORDER_MARK)) == 0)
		text += strlen(BYTE_ORDER_MARK);
	/* libinih would take an indented line as more of the value above it; here every line stands alone. */
	while (*text == ' ' || *text == '\t')
		text++;
	memmove(buf, text, strlen(text) + 1);
	if (buf[0] == '[' && !section_begin(l, buf + 1))
		return NULL;
	return buf;
}

static int load_stream(FILE *stream, const char *name, struct config *c, struct config_error *error)
{
	struct loader l = { .config = c, .error = error, .file = name, .stream = stream };
	int bad_line = ini_parse_stream(read_line, &l, on_key, &l);

	if (l.result < 0)
		return l.result;
	if (bad_line > 0) {
		l.line = (unsigned)bad_line;
		fail(&l, -EINVAL, "neither a [section], nor key = value, nor a comment");
	} else if (bad_line < 0) {
		fail(&l, -ENOMEM, "out of memory");
	} else if (ferror(stream)) {
		fail(&l, -EIO, "cannot be read");
	}
	return l.result;
}

/* Contradictions between keys, after all files. */
static int check(const struct config *c, const char *name, struct config_error *error)
{
	const char *why = NULL;

	if (c->control_socket[0] != '/' || strlen(c->control_socket) >= sizeof(((struct sockaddr_un *)0)->sun_path))
		why = "[daemon] control_socket: expected an absolute path of at most 107 bytes";
	else if (c->agent_socket[0] != '/' || strlen(c->agent_socket) >= sizeof(((struct sockaddr_un *)0)->sun_path))
		why = "[daemon] agent_socket: expected an absolute path of at most 107 bytes";
	else if (c->state_dir[0] != '/')
		why = "[daemon] state_dir: expected an absolute path";
	else if (c->host_cgroup[0] && c->host_cgroup[0] != '/')
		why = "[host] cgroup: expected a path as in /proc/PID/cgroup, such as /machine.slice";
	else if (c->scan_interval_ms < c->tick_ms)
		why = "[scan] interval is shorter than [daemon] tick; a pass can start only at a tick";
	else if (c->discover_ms < c->tick_ms)
		why = "[vmm] discover is shorter than [daemon] tick; VMs are looked for only at a tick";
	if (!why)
		return 0;
	snprintf(error->text, sizeof(error->text), "%s: %s", name, why);
	return -EINVAL;
}

static int load_file(const char *path, struct config *c, struct config_error *error)
{
	auto_fclose FILE *stream = fopen(path, "re");

	if (!stream) {
		int r = -errno;

		snprintf(error->text, sizeof(error->text), "%s: %s", path, strerror(-r));
		return r;
	}
	return load_stream(stream, path, c, error);
}

static int load_dir(const char *dir, struct config *c, struct config_error *error)
{
	char pattern[PATH_MAX];
	glob_t found;
	int r = 0;

	snprintf(pattern, sizeof(pattern), "%s/*.conf", dir);
	switch (glob(pattern, 0, NULL, &found)) {
	case 0:
		break;
	case GLOB_NOMATCH:
		return 0;
	case GLOB_NOSPACE:
		return -ENOMEM;
	default:
		snprintf(error->text, sizeof(error->text), "%s: cannot be listed", dir);
		return -EIO;
	}
	for (size_t i = 0; i < found.gl_pathc && r == 0; i++)
		r = load_file(found.gl_pathv[i], c, error);
	globfree(&found);
	return r;
}

int config_load(const char *file, const char *policy_dir, struct config *ret_config,
		struct config_error *ret_error)
{
	struct config fresh;
	int r = 0;

	config_init(&fresh);
	if (file)
		r = load_file(file, &fresh, ret_error);
	if (r == 0 && policy_dir)
		r = load_dir(policy_dir, &fresh, ret_error);
	if (r == 0)
		r = check(&fresh, file ? file : "configuration", ret_error);
	if (r < 0) {
		config_free(&fresh);
		return r;
	}
	*ret_config = fresh;
	return 0;
}

int config_load_text(const char *name, const char *text, size_t len, struct config *ret_config,
		     struct config_error *ret_error)
{
	auto_fclose FILE *stream = NULL;
	struct config fresh;
	int r;

	config_init(&fresh);
	if (len > 0) {
		stream = fmemopen((void *)(uintptr_t)text, len, "r");
		if (!stream)
			return -errno;
		r = load_stream(stream, name, &fresh, ret_error);
	} else {
		r = 0;
	}
	if (r == 0)
		r = check(&fresh, name, ret_error);
	if (r < 0) {
		config_free(&fresh);
		return r;
	}
	*ret_config = fresh;
	return 0;
}

/* ---- use ---- */

void config_adopt(struct config *c, struct config *fresh, char *ret_skipped, size_t cap)
{
	size_t len = 0;

	ret_skipped[0] = '\0';
	for (size_t i = 0; i < config_key_count; i++) {
		const struct config_key *key = &config_keys[i];
		char *mine = (char *)c + key->offset;
		const char *theirs = (const char *)fresh + key->offset;
		size_t size = config_value_size(key);

		if (memcmp(mine, theirs, size) == 0)
			continue;
		if (key->reloadable) {
			memcpy(mine, theirs, size);
		} else if (len < cap) {
			int n = snprintf(ret_skipped + len, cap - len, "%s%s.%s", len ? " " : "", key->section,
					 key->name);

			len += n > 0 ? (size_t)n : 0;
		}
	}
	free(c->rules);
	c->rules = take_ptr(fresh->rules);
	c->rule_count = fresh->rule_count;
	fresh->rule_count = 0;
}

void config_for_vm(const struct config *c, const char *name, struct config_vm *ret_vm)
{
	memset(ret_vm, 0, sizeof(*ret_vm));
	set_defaults(config_vm_keys, config_vm_key_count, ret_vm);
	for (size_t r = 0; r < c->rule_count; r++) {
		const struct config_rule *rule = &c->rules[r];

		if (fnmatch(rule->glob, name, 0) != 0)
			continue;
		for (size_t i = 0; i < config_vm_key_count; i++) {
			const struct config_key *key = &config_vm_keys[i];

			if (rule->set_mask & (UINT64_C(1) << i))
				memcpy((char *)ret_vm + key->offset, (const char *)&rule->values + key->offset,
				       config_value_size(key));
		}
	}
}

uint64_t config_reservation_max(const struct config *c, const char **ret_glob)
{
	uint64_t most = 0;

	for (size_t r = 0; r < c->rule_count; r++) {
		if (c->rules[r].values.reservation_bytes <= most)
			continue;
		most = c->rules[r].values.reservation_bytes;
		*ret_glob = c->rules[r].glob;
	}
	return most;
}
