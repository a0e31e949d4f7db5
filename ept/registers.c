#include "ept/registers.h"

#include <ctype.h>
#include <errno.h>
#include <stddef.h>
#include <string.h>

#define EFER_LMA (UINT64_C(1) << 10)

/* Reads up to 16 hexadecimal digits behind name, which text must begin with; NULL when it does not. */
static const char *take_hex(const char *text, const char *name, uint64_t *value, unsigned *digits)
{
	size_t len = strlen(name);
	const char *p = text + len;

	if (strncmp(text, name, len) != 0)
		return NULL;
	*value = 0;
	for (*digits = 0; isxdigit((unsigned char)*p) && *digits < 16; p++, ++*digits) {
		int c = tolower((unsigned char)*p);

		*value = *value << 4 | (uint64_t)(c <= '9' ? c - '0' : c - 'a' + 10);
	}
	return *digits == 0 || isxdigit((unsigned char)*p) ? NULL : p;
}

/* The line that begins with word; NULL if none does. */
static const char *find_line(const char *text, const char *word)
{
	while (text && strncmp(text, word, strlen(word)) != 0) {
		text = strchr(text, '\n');
		text = text ? text + 1 : NULL;
	}
	return text;
}

int registers_parse(const char *text, struct walk_regs *ret_regs, bool *ret_cut)
{
	const char *p = find_line(text, "CR0="), *efer_line = find_line(text, "EFER=");
	uint64_t cr0, cr2, cr3, cr4, efer;
	unsigned digits, cr3_digits = 0;

	if (!p || !efer_line)
		return -EBADMSG;
	p = take_hex(p, "CR0=", &cr0, &digits);
	if (p)
		p = take_hex(p, " CR2=", &cr2, &digits);
	if (p)
		p = take_hex(p, " CR3=", &cr3, &cr3_digits);
	if (p)
		p = take_hex(p, " CR4=", &cr4, &digits);
	if (!p || !take_hex(efer_line, "EFER=", &efer, &digits))
		return -EBADMSG;
	ret_regs->cr0 = cr0;
	ret_regs->cr3 = cr3;
	ret_regs->cr4 = cr4;
	ret_regs->efer = efer;
	*ret_cut = (efer & EFER_LMA) && cr3_digits < 16;
	return 0;
}
