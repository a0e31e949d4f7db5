#include "balloon/libvirt_xml.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "core/cleanup.h"

/* Nothing of libvirt is nested deeper than about ten; metadata may be. */
#define DEPTH_MAX 1000
#define PERIOD_S_MAX UINT64_C(2147483647) /* libvirt's own, an int */

static const char blanks[] = " \t\r\n";
static const char *const way[] = { "domain", "devices", "memballoon", "stats" };
enum { LEVEL_MEMBALLOON = 2, LEVEL_STATS };

struct text {
	const char *at;
	size_t len;
};

static bool text_is(struct text t, const char *word)
{
	return strlen(word) == t.len && memcmp(t.at, word, t.len) == 0;
}

/* Takes a name; empty when there is none. */
static struct text take_name(const char **at)
{
	struct text name = { *at, strcspn(*at, " \t\r\n=/><'\"") };

	*at += name.len;
	return name;
}

/* 1: an attribute; 0: the element's end ("/>" or ">"), at which *at is left; -EBADMSG. */
static int take_attribute(const char **at, struct text *name, struct text *value)
{
	const char *end;
	char quote;

	*at += strspn(*at, blanks);
	if (**at == '>' || (**at == '/' && (*at)[1] == '>'))
		return 0;
	*name = take_name(at);
	*at += strspn(*at, blanks);
	if (name->len == 0 || **at != '=')
		return -EBADMSG;
	++*at;
	*at += strspn(*at, blanks);
	quote = **at;
	if (quote != '\'' && quote != '"')
		return -EBADMSG;
	end = strchr(*at + 1, quote);
	if (!end)
		return -EBADMSG;
	*value = (struct text){ *at + 1, (size_t)(end - *at - 1) };
	*at = end + 1;
	return 1;
}

static uint64_t period_of(struct text t)
{
	uint64_t value = 0;

	for (size_t i = 0; i < t.len; i++) {
		if (t.at[i] < '0' || t.at[i] > '9' || value > PERIOD_S_MAX)
			return 0;
		value = value * 10 + (uint64_t)(t.at[i] - '0');
	}
	return value > PERIOD_S_MAX ? 0 : value;
}

static void attribute_use(size_t level, struct text name, struct text value, struct libvirt_memballoon *b)
{
	static const char *const models[] = { "virtio", "virtio-transitional", "virtio-non-transitional" };

	if (level == LEVEL_STATS && text_is(name, "period"))
		b->period_s = period_of(value);
	if (level != LEVEL_MEMBALLOON)
		return;
	if (text_is(name, "freePageReporting"))
		b->reporting = text_is(value, "on");
	else if (text_is(name, "autodeflate"))
		b->deflate_on_oom = text_is(value, "on");
	else if (text_is(name, "model"))
		for (size_t i = 0; i < ARRAY_SIZE(models); i++)
			if (text_is(value, models[i]))
				b->device = BALLOON_DEVICE_PRESENT;
}

/* Leaps over what begins with "<!" or "<?"; at is behind the '<'. NULL: it has no end. */
static const char *leap(const char *at)
{
	static const struct {
		const char *begin, *end;
	} kinds[] = { { "!--", "-->" }, { "![CDATA[", "]]>" }, { "?", "?>" }, { "!", ">" } };

	for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
		size_t len = strlen(kinds[i].begin);
		const char *end;

		if (strncmp(at, kinds[i].begin, len) != 0)
			continue;
		end = strstr(at + len, kinds[i].end);
		return end ? end + strlen(kinds[i].end) : NULL;
	}
	return NULL;
}

/* How deep we are, and how much of that is the way. */
struct place {
	size_t depth, on_way;
};

static int element_open(const char **at, struct place *p, struct libvirt_memballoon *b)
{
	struct text name = take_name(at), key, value;
	bool here;
	int r;

	if (name.len == 0 || p->depth >= DEPTH_MAX)
		return -EBADMSG;
	here = p->on_way == p->depth && p->depth < ARRAY_SIZE(way) && text_is(name, way[p->depth]);
	while ((r = take_attribute(at, &key, &value)) > 0)
		if (here)
			attribute_use(p->depth, key, value, b);
	if (r < 0)
		return r;
	if (**at == '/') {
		*at += 2;
		return 0;
	}
	++*at;
	p->on_way += here;
	p->depth++;
	return 0;
}

static int element_close(const char **at, struct place *p)
{
	const char *end = strchr(*at, '>');

	if (!end || p->depth == 0)
		return -EBADMSG;
	*at = end + 1;
	p->depth--;
	if (p->on_way > p->depth)
		p->on_way = p->depth;
	return 0;
}

int libvirt_xml_memballoon(const char *xml, struct libvirt_memballoon *ret_balloon)
{
	struct libvirt_memballoon b = { .device = BALLOON_DEVICE_ABSENT };
	struct place place = { 0 };
	bool any = false;

	while ((xml = strchr(xml, '<'))) {
		int r = 0;

		xml++;
		if (*xml == '!' || *xml == '?') {
			xml = leap(xml);
			if (!xml)
				return -EBADMSG;
		} else if (*xml == '/') {
			r = element_close(&xml, &place);
		} else {
			r = element_open(&xml, &place, &b);
			any = true;
		}
		if (r < 0)
			return r;
	}
	if (!any || place.depth != 0)
		return -EBADMSG;
	*ret_balloon = b;
	return 0;
}
