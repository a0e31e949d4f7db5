#include "vmm/optstr.h"

#include <string.h>

#include "core/cleanup.h"

bool slice_is(struct slice s, const char *word)
{
	return s.len == strlen(word) && memcmp(s.text, word, s.len) == 0;
}

/* The length of a value at the start of list: up to the first comma that is not doubled. */
static size_t value_len(struct slice list)
{
	size_t len = 0;

	while (len < list.len) {
		if (list.text[len] != ',') {
			len++;
			continue;
		}
		if (len + 1 == list.len || list.text[len + 1] != ',')
			break;
		len += 2;
	}
	return len;
}

static void slice_skip(struct slice *s, size_t len)
{
	s->text += len;
	s->len -= len;
}

bool optstr_next(struct slice *list, const char *implied, struct optstr_item *ret_item)
{
	struct optstr_item item = { .flag = false };
	size_t len = 0;

	if (list->len == 0)
		return false;
	while (len < list->len && list->text[len] != '=' && list->text[len] != ',')
		len++;
	if (len < list->len && list->text[len] == '=') {
		item.key = (struct slice){ list->text, len };
		slice_skip(list, len + 1);
		len = value_len(*list);
		item.value = (struct slice){ list->text, len };
	} else if (implied) {
		len = value_len(*list);
		item.key = (struct slice){ implied, strlen(implied) };
		item.value = (struct slice){ list->text, len };
	} else {
		item.key = (struct slice){ list->text, len };
		item.flag = true;
	}
	slice_skip(list, len);
	if (list->len > 0) /* the comma behind the item */
		slice_skip(list, 1);
	*ret_item = item;
	return true;
}

/* QEMU's words for true and false. */
static bool word_bool(struct slice value, bool *ret_on)
{
	static const char *const on[] = { "on", "yes", "true", "y" };
	static const char *const off[] = { "off", "no", "false", "n" };

	for (size_t i = 0; i < ARRAY_SIZE(on); i++) {
		if (slice_is(value, on[i]) || slice_is(value, off[i])) {
			*ret_on = slice_is(value, on[i]);
			return true;
		}
	}
	return false;
}

bool optstr_bool(const struct optstr_item *item, const char *key, bool *ret_on)
{
	if (slice_is(item->key, key)) {
		if (item->flag)
			*ret_on = true;
		else
			word_bool(item->value, ret_on);
		return true;
	}
	if (item->flag && item->key.len > 2 && memcmp(item->key.text, "no", 2) == 0 &&
	    slice_is((struct slice){ item->key.text + 2, item->key.len - 2 }, key)) {
		*ret_on = false;
		return true;
	}
	return false;
}

size_t optstr_value(struct slice value, char *out, size_t cap)
{
	size_t len = 0;

	for (size_t i = 0; i < value.len; i++, len++) {
		if (value.text[i] == ',' && i + 1 < value.len && value.text[i + 1] == ',')
			i++;
		if (len + 1 < cap)
			out[len] = value.text[i];
	}
	out[len < cap ? len : cap - 1] = '\0';
	return len;
}
