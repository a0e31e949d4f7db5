#include "core/text.h"

#include <ctype.h>
#include <string.h>

/* The length of the UTF-8 character at s, 0 when there is none. Strict, as jansson is: no overlong forms, no
 * surrogates, nothing above U+10FFFF. */
static size_t utf8_char_len(const unsigned char *s, size_t len)
{
	unsigned char min = 0x80, max = 0xbf; /* of the second byte */
	size_t need;

	if (s[0] < 0x80)
		return 1;
	if (s[0] < 0xc2 || s[0] > 0xf4)
		return 0;
	need = s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : 4;
	if (len < need)
		return 0;
	if (s[0] == 0xe0)
		min = 0xa0;
	else if (s[0] == 0xed)
		max = 0x9f;
	else if (s[0] == 0xf0)
		min = 0x90;
	else if (s[0] == 0xf4)
		max = 0x8f;
	if (s[1] < min || s[1] > max)
		return 0;
	for (size_t i = 2; i < need; i++)
		if ((s[i] & 0xc0) != 0x80)
			return 0;
	return need;
}

void text_copy(char *dst, size_t cap, const char *src, size_t len)
{
	size_t out = 0;

	for (size_t in = 0; in < len && src[in] != '\0';) {
		size_t n = utf8_char_len((const unsigned char *)src + in, len - in);

		if (out + (n ? n : 1) >= cap)
			break;
		if (n) {
			memcpy(dst + out, src + in, n);
			out += n;
			in += n;
		} else {
			dst[out++] = '?';
			in++;
		}
	}
	dst[out] = '\0';
}

bool text_valid(const char *text)
{
	size_t len = strlen(text);

	for (size_t at = 0; at < len;) {
		size_t n = utf8_char_len((const unsigned char *)text + at, len - at);

		if (n == 0)
			return false;
		at += n;
	}
	return true;
}

bool text_uuid(char *dst, const char *src, size_t len)
{
	char uuid[TEXT_UUID_MAX];
	bool zero = true;

	if (len != TEXT_UUID_MAX - 1)
		return false;
	for (size_t i = 0; i < len; i++) {
		bool dash = i == 8 || i == 13 || i == 18 || i == 23;
		unsigned char c = (unsigned char)src[i];

		if (dash ? c != '-' : !isxdigit(c))
			return false;
		zero = zero && (dash || c == '0');
		uuid[i] = (char)tolower(c);
	}
	if (zero)
		return false;
	uuid[len] = '\0';
	memcpy(dst, uuid, sizeof(uuid));
	return true;
}
