/* bench/lib/svg.h - a line chart over time, as an SVG file. */
#ifndef BENCH_SVG_H
#define BENCH_SVG_H

#include <stddef.h>
#include <stdio.h>

struct svg_point {
	double x, y;
};

struct svg_line {
	const char *name; /* at the end of the line, and in the legend */
	const char *note; /* behind the name in the legend; may be NULL */
	const struct svg_point *points;
	size_t count;
	double mark_x; /* a dot on the line here; NAN: none */
};

struct svg_chart {
	const char *title, *subtitle, *x_label, *y_label;
	const struct svg_line *lines;
	size_t line_count;
	double limit_y; /* a dashed horizontal line; NAN: none */
	const char *limit_name;
};

/* Draws to out, which the caller closes; errors show in ferror(out). */
void svg_draw(FILE *out, const struct svg_chart *chart);

#endif
