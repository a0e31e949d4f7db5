#include "cli/table.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define GAP 2
#define CUT_MIN 8 /* a column that may be cut stays at least so wide */

struct table {
	const char *const *titles;
	size_t columns, cells, cap;
	char **text;
};

static void *must(void *p)
{
	if (!p) {
		fputs("memvirtctl: out of memory\n", stderr);
		exit(EXIT_FAILURE);
	}
	return p;
}

struct table *table_new(const char *const *titles, size_t columns)
{
	struct table *t = must(calloc(1, sizeof(*t)));

	t->titles = titles;
	t->columns = columns;
	return t;
}

struct table *table_free(struct table *t)
{
	for (size_t i = 0; t && i < t->cells; i++)
		free(t->text[i]);
	if (t)
		free(t->text);
	free(t);
	return NULL;
}

/* What a terminal would act on is shown as '?'. */
static void make_printable(char *text)
{
	for (; *text; text++) {
		if ((unsigned char)*text < 0x20 || *text == 0x7f)
			*text = '?';
		else if ((unsigned char)*text == 0xc2 && (unsigned char)text[1] >= 0x80 && (unsigned char)text[1] < 0xa0)
			text[1] = (char)0xbf; /* U+0080 to U+009F become an inverted question mark */
	}
}

void table_add(struct table *t, const char *fmt, ...)
{
	va_list args;
	char *text;

	if (t->cells == t->cap) {
		t->cap = t->cap ? t->cap * 2 : 64;
		t->text = must(reallocarray(t->text, t->cap, sizeof(*t->text)));
	}
	va_start(args, fmt);
	if (vasprintf(&text, fmt, args) < 0)
		text = NULL;
	va_end(args);
	make_printable(must(text));
	t->text[t->cells++] = text;
}

/* Characters, not bytes: UTF-8 continuation bytes take no place. */
static size_t text_width(const char *text)
{
	size_t width = 0;

	for (; *text; text++)
		width += ((unsigned char)*text & 0xc0) != 0x80;
	return width;
}

static const char *title_text(const char *title)
{
	return title + (*title == '>' || *title == '*');
}

/* Prints one cell in its width, cut where it is too long. */
static void print_cell(FILE *out, const char *text, size_t width, char align, int last)
{
	size_t have = text_width(text), bytes = strlen(text);

	if (have > width) {
		size_t left = width - 1; /* a place for the sign that something is missing */

		for (bytes = 0; text[bytes] && (left > 0 || ((unsigned char)text[bytes] & 0xc0) == 0x80); bytes++)
			left -= ((unsigned char)text[bytes] & 0xc0) != 0x80;
		have = width;
	}
	if (align == '>')
		fprintf(out, "%*s", (int)(width - have), "");
	fprintf(out, "%.*s%s", (int)bytes, text, text[bytes] ? "+" : "");
	if (align != '>' && !last)
		fprintf(out, "%*s", (int)(width - have), "");
	if (!last)
		fprintf(out, "%*s", GAP, "");
}

/* The terminal's width; files and pipes have room for everything. */
static size_t room(FILE *out)
{
	struct winsize size;

	if (!isatty(fileno(out)) || ioctl(fileno(out), TIOCGWINSZ, &size) < 0 || size.ws_col == 0)
		return SIZE_MAX;
	return size.ws_col;
}

static void widths_fit(const struct table *t, size_t *widths, size_t limit)
{
	size_t sum = 0;

	for (size_t c = 0; c < t->columns; c++)
		sum += widths[c] + (c ? GAP : 0);
	for (size_t c = 0; c < t->columns && sum > limit; c++) {
		size_t over = sum - limit, give;

		if (t->titles[c][0] != '*' || widths[c] <= CUT_MIN)
			continue;
		give = widths[c] - CUT_MIN < over ? widths[c] - CUT_MIN : over;
		widths[c] -= give;
		sum -= give;
	}
}

void table_print(const struct table *t, FILE *out)
{
	size_t *widths = must(calloc(t->columns, sizeof(*widths)));

	for (size_t c = 0; c < t->columns; c++)
		widths[c] = text_width(title_text(t->titles[c]));
	for (size_t i = 0; i < t->cells; i++)
		if (text_width(t->text[i]) > widths[i % t->columns])
			widths[i % t->columns] = text_width(t->text[i]);
	widths_fit(t, widths, room(out));
	for (size_t c = 0; c < t->columns; c++)
		print_cell(out, title_text(t->titles[c]), widths[c], t->titles[c][0], c + 1 == t->columns);
	fputc('\n', out);
	for (size_t i = 0; i < t->cells; i++) {
		size_t c = i % t->columns;

		print_cell(out, t->text[i], widths[c], t->titles[c][0], c + 1 == t->columns);
		if (c + 1 == t->columns)
			fputc('\n', out);
	}
	free(widths);
}
