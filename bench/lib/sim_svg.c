/* The simulator's picture: for each trace one bar for each policy, as high as it has VMs. */
#include <inttypes.h>
#include <math.h>

#include "bench/lib/sim_report.h"
#include "core/cleanup.h"

#define WIDTH 1100.0
#define HEIGHT 520.0
#define LEFT 70.0
#define RIGHT 1080.0
#define TOP 84.0
#define BOTTOM 410.0
#define LEGEND_Y 465.0

/* Okabe and Ito's colours, which colour-blind people can tell apart. */
static const char *const colours[SIM_POLICIES_MAX] = { "#0072b2", "#d55e00", "#009e73", "#cc79a7",
						       "#777777", "#56b4e9", "#e69f00", "#8fcfb8" };

static double top_of(const struct sim_report *r)
{
	double most = 1, step;

	for (int t = 0; t < TRACES; t++)
		for (size_t p = 0; p < sim_policy_count; p++)
			most = fmax(most, (double)r->cells[t][p].best.vms);
	step = pow(10, floor(log10(most)));
	return ceil(most * 1.05 / step * 2) * step / 2;
}

static void draw_axis(double top, FILE *out)
{
	for (int i = 0; i <= 5; i++) {
		double y = BOTTOM - (BOTTOM - TOP) * i / 5;

		fprintf(out,
			"<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"#ddd\"/>\n"
			"<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"end\">%g</text>\n",
			LEFT, y, RIGHT, y, LEFT - 8, y + 4, top * i / 5);
	}
	fprintf(out, "<text transform=\"translate(20 %.1f) rotate(-90)\" text-anchor=\"middle\">VMs</text>\n",
		(TOP + BOTTOM) / 2);
}

static void draw_trace(const struct sim_report *r, int t, double left, double width, double top, FILE *out)
{
	double bar = width * 0.86 / (double)sim_policy_count;

	for (size_t p = 0; p < sim_policy_count; p++) {
		double vms = (double)r->cells[t][p].best.vms, high = (BOTTOM - TOP) * vms / top;
		double x = left + width * 0.07 + bar * (double)p;

		if (!r->cells[t][p].wanted)
			continue;
		fprintf(out,
			"<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" fill=\"%s\"/>\n"
			"<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\" font-size=\"9\">%.0f</text>\n",
			x, BOTTOM - high, bar - 1, high, colours[p], x + bar / 2, BOTTOM - high - 4, vms);
	}
	fprintf(out, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">%s</text>\n", left + width / 2, BOTTOM + 20,
		sim_traces[t].name);
}

void sim_report_svg(const struct sim_report *r, FILE *out)
{
	const struct sim_options *o = &r->options;
	double width = (RIGHT - LEFT) / TRACES, top = top_of(r);

	fprintf(out,
		"<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %.0f %.0f\" width=\"%.0f\" height=\"%.0f\" "
		"font-family=\"sans-serif\" font-size=\"13\" fill=\"#222\">\n"
		"<rect width=\"100%%\" height=\"100%%\" fill=\"white\"/>\n"
		"<text x=\"%.1f\" y=\"32\" font-size=\"18\" font-weight=\"bold\">VMs on a simulated host of %.0f "
		"GiB</text>\n"
		"<text x=\"%.1f\" y=\"54\" fill=\"#555\">Nobody killed, guests stand still for at most %g %% of the "
		"time; seed %" PRIu64 "</text>\n",
		WIDTH, HEIGHT, WIDTH, HEIGHT, LEFT, o->host_mib / 1024, LEFT, 100 * o->stall_limit, o->seed);
	draw_axis(top, out);
	for (int t = 0; t < TRACES; t++)
		draw_trace(r, t, LEFT + width * t, width, top, out);
	fprintf(out, "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"#333\"/>\n", LEFT, BOTTOM, RIGHT,
		BOTTOM);
	for (size_t p = 0; p < sim_policy_count; p++) {
		double x = LEFT + 250 * (double)(p % 4), y = LEGEND_Y + 22 * (double)(p / 4);

		fprintf(out,
			"<rect x=\"%.1f\" y=\"%.1f\" width=\"12\" height=\"12\" fill=\"%s\"/>\n"
			"<text x=\"%.1f\" y=\"%.1f\">%s</text>\n",
			x, y - 10, colours[p], x + 18, y, sim_policies[p].name);
	}
	fputs("</svg>\n", out);
}
