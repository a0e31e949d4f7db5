#include "bench/lib/svg.h"

#include <math.h>
#include <stdbool.h>
#include <stdint.h>

#include "core/cleanup.h"

#define WIDTH 960.0
#define HEIGHT 560.0
#define LEFT 80.0
#define RIGHT 920.0
#define TOP 84.0
#define BOTTOM 420.0
#define LEGEND_TOP 490.0
#define LEGEND_ROW 18.0
#define LINES_MAX 16
/* From this ratio of slowest to fastest on, time is drawn on a logarithmic scale. */
#define LOG_RATIO 8.0

/* Okabe and Ito's colours, which colour-blind people can tell apart; the yellow is left out (too pale). */
static const char *const colours[] = { "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#555555" };

struct scale {
	bool log_x;
	double x_min, x_max, y_max;
};

static double to_x(const struct scale *s, double x)
{
	double share = x / s->x_max;

	if (s->log_x)
		share = x <= s->x_min ? 0 : log(x / s->x_min) / log(s->x_max / s->x_min);
	return LEFT + (RIGHT - LEFT) * fmin(fmax(share, 0), 1);
}

static double to_y(const struct scale *s, double y)
{
	return BOTTOM - (BOTTOM - TOP) * fmin(fmax(y / s->y_max, 0), 1);
}

static void put_text(FILE *out, const char *text)
{
	for (; *text; text++) {
		switch (*text) {
		case '<': fputs("&lt;", out); break;
		case '>': fputs("&gt;", out); break;
		case '&': fputs("&amp;", out); break;
		default: fputc(*text, out);
		}
	}
}

static void put_label(FILE *out, double x, double y, const char *attributes, const char *text)
{
	fprintf(out, "<text x=\"%.1f\" y=\"%.1f\" %s>", x, y, attributes);
	put_text(out, text);
	fputs("</text>\n", out);
}

/* 1, 2 or 5 times a power of ten, so that a step divides range into at most count parts. */
static double nice_step(double range, double count)
{
	double raw = range / count, power = pow(10, floor(log10(raw)));

	if (raw <= power)
		return power;
	if (raw <= 2 * power)
		return 2 * power;
	return raw <= 5 * power ? 5 * power : 10 * power;
}

static struct scale choose_scale(const struct svg_chart *c)
{
	struct scale s = { .x_min = INFINITY, .x_max = 0.001, .y_max = 1 };
	double step;

	for (size_t i = 0; i < c->line_count; i++) {
		const struct svg_line *l = &c->lines[i];
		double last = l->count > 0 ? l->points[l->count - 1].x : 0;

		s.x_max = fmax(s.x_max, last);
		if (isfinite(l->mark_x) && l->mark_x > 0)
			s.x_min = fmin(s.x_min, l->mark_x);
		for (size_t j = 0; j < l->count; j++)
			s.y_max = fmax(s.y_max, l->points[j].y);
	}
	if (isfinite(c->limit_y))
		s.y_max = fmax(s.y_max, c->limit_y);
	step = nice_step(s.y_max * 1.04, 10);
	s.y_max = ceil(s.y_max * 1.04 / step) * step;
	s.log_x = isfinite(s.x_min) && s.x_max / s.x_min > LOG_RATIO;
	s.x_min = s.log_x ? pow(10, floor(log10(s.x_min / 8))) : 0;
	return s;
}

static void draw_y_axis(FILE *out, const struct svg_chart *c, const struct scale *s)
{
	double step = nice_step(s->y_max, 10);
	char text[32];

	for (double y = 0; y <= s->y_max * 1.0001; y += step) {
		fprintf(out, "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"#ddd\"/>\n", LEFT,
			to_y(s, y), RIGHT, to_y(s, y));
		snprintf(text, sizeof(text), "%g", y);
		put_label(out, LEFT - 8, to_y(s, y) + 4, "text-anchor=\"end\"", text);
	}
	fprintf(out, "<text transform=\"translate(22 %.1f) rotate(-90)\" text-anchor=\"middle\">", (TOP + BOTTOM) / 2);
	put_text(out, c->y_label);
	fputs("</text>\n", out);
}

static void draw_x_tick(FILE *out, const struct scale *s, double x)
{
	char text[32];

	fprintf(out, "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"#333\"/>\n", to_x(s, x), BOTTOM,
		to_x(s, x), BOTTOM + 5);
	snprintf(text, sizeof(text), "%g", x);
	put_label(out, to_x(s, x), BOTTOM + 20, "text-anchor=\"middle\"", text);
}

static void draw_x_axis(FILE *out, const struct svg_chart *c, const struct scale *s)
{
	static const double in_decade[] = { 1, 2, 5 };
	double step = nice_step(s->x_max, 10);
	char text[128];

	fprintf(out, "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"#333\"/>\n", LEFT, BOTTOM, RIGHT,
		BOTTOM);
	if (s->log_x) {
		for (double decade = s->x_min; decade <= s->x_max; decade *= 10) {
			for (size_t i = 0; i < ARRAY_SIZE(in_decade); i++) {
				if (decade * in_decade[i] <= s->x_max)
					draw_x_tick(out, s, decade * in_decade[i]);
			}
		}
	} else {
		for (double x = 0; x <= s->x_max * 1.0001; x += step)
			draw_x_tick(out, s, x);
	}
	snprintf(text, sizeof(text), "%s%s", c->x_label, s->log_x ? ", logarithmic" : "");
	put_label(out, (LEFT + RIGHT) / 2, BOTTOM + 40, "text-anchor=\"middle\"", text);
}

/* Points closer than half a pixel to the last drawn one change nothing. */
static void draw_curve(FILE *out, const struct svg_line *l, const struct scale *s, const char *colour)
{
	double last_x = -1, last_y = -1, mark_y = 0;

	fprintf(out, "<polyline fill=\"none\" stroke=\"%s\" stroke-width=\"2.2\" stroke-linejoin=\"round\" points=\"",
		colour);
	for (size_t i = 0; i < l->count; i++) {
		double x = to_x(s, l->points[i].x), y = to_y(s, l->points[i].y);

		if (isfinite(l->mark_x) && l->points[i].x <= l->mark_x)
			mark_y = y;
		if (i + 1 < l->count && fabs(x - last_x) < 0.5 && fabs(y - last_y) < 0.5)
			continue;
		fprintf(out, "%.1f,%.1f ", x, y);
		last_x = x;
		last_y = y;
	}
	fputs("\"/>\n", out);
	if (isfinite(l->mark_x))
		fprintf(out, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"4.5\" fill=\"%s\" stroke=\"white\"/>\n",
			to_x(s, l->mark_x), mark_y, colour);
}

/* Each name stands right of its line where the line climbs, a little lower than the one before it: at
 * their ends the lines lie on each other. A white edge keeps names readable across lines. */
static void draw_names(FILE *out, const struct svg_chart *c, const struct scale *s, size_t lines)
{
	for (size_t i = 0; i < lines; i++) {
		const struct svg_line *l = &c->lines[i];
		double share = 0.8 - 0.6 * (double)i / (double)lines;
		char attributes[160];
		size_t at = 0;

		if (l->count == 0)
			continue;
		while (at + 1 < l->count && l->points[at].y < share * l->points[l->count - 1].y)
			at++;
		snprintf(attributes, sizeof(attributes),
			 "font-weight=\"bold\" fill=\"%s\" stroke=\"white\" stroke-width=\"4\" paint-order=\"stroke\"",
			 colours[i % ARRAY_SIZE(colours)]);
		put_label(out, to_x(s, l->points[at].x) + 9, to_y(s, l->points[at].y) + 5, attributes, l->name);
	}
}

static void draw_legend(FILE *out, const struct svg_chart *c, size_t lines)
{
	for (size_t i = 0; i < lines; i++) {
		double x = LEFT + (double)(i % 2) * 420, y = LEGEND_TOP + (double)(i / 2) * LEGEND_ROW;
		char text[256];

		fprintf(out, "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"%s\" stroke-width=\"3\"/>\n",
			x, y - 4, x + 22, y - 4, colours[i % ARRAY_SIZE(colours)]);
		snprintf(text, sizeof(text), "%s%s%s", c->lines[i].name, c->lines[i].note ? ": " : "",
			 c->lines[i].note ? c->lines[i].note : "");
		put_label(out, x + 30, y, "", text);
	}
}

void svg_draw(FILE *out, const struct svg_chart *chart)
{
	size_t lines = chart->line_count < LINES_MAX ? chart->line_count : LINES_MAX;
	struct scale s = choose_scale(chart);

	fprintf(out,
		"<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %.0f %.0f\" width=\"%.0f\" height=\"%.0f\" "
		"font-family=\"sans-serif\" font-size=\"13\" fill=\"#222\">\n"
		"<rect width=\"100%%\" height=\"100%%\" fill=\"white\"/>\n",
		WIDTH, HEIGHT, WIDTH, HEIGHT);
	put_label(out, LEFT, 32, "font-size=\"18\" font-weight=\"bold\"", chart->title);
	put_label(out, LEFT, 54, "fill=\"#555\"", chart->subtitle);
	draw_y_axis(out, chart, &s);
	draw_x_axis(out, chart, &s);
	if (isfinite(chart->limit_y)) {
		fprintf(out,
			"<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"#333\" "
			"stroke-dasharray=\"6 4\"/>\n",
			LEFT, to_y(&s, chart->limit_y), RIGHT, to_y(&s, chart->limit_y));
		put_label(out, LEFT + 6, to_y(&s, chart->limit_y) - 6, "", chart->limit_name);
	}
	for (size_t i = 0; i < lines; i++)
		draw_curve(out, &chart->lines[i], &s, colours[i % ARRAY_SIZE(colours)]);
	draw_names(out, chart, &s, lines);
	draw_legend(out, chart, lines);
	fputs("</svg>\n", out);
}
