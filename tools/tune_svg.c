/* tune: miss ratio over cache size as a plot. See tune.h. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tools/text_io.h"
#include "tools/tune.h"

enum { WIDTH = 760, HEIGHT = 460, LEFT = 64, RIGHT = 132, TOP = 48, BOTTOM = 60 };

static const char *const colours[] = {"#888888", "#1f77b4", "#2ca02c", "#d62728",
                                      "#9467bd", "#ff7f0e", "#8c564b", "#17becf"};

typedef struct plot {
    const cf_tune *t;
    FILE *out;
    double x_max, y_max;
} plot;

double cf_tune_share(const cf_tune *t, uint32_t size)
{
    const cf_routing *r = t->traces[0];
    double n = (double)cf_tune_resolve(&t->sizes[size].slots, r) +
               cf_tune_resolve(&t->sizes[size].slabs, r);
    double share = 100 * n / cf_tune_records(r);
    return share < 100 ? share : 100;
}

static double x_of(const plot *p, double share)
{
    return LEFT + share / p->x_max * (WIDTH - LEFT - RIGHT);
}

static double y_of(const plot *p, double miss)
{
    return TOP + (1 - miss / p->y_max) * (HEIGHT - TOP - BOTTOM);
}

static double miss_of(const plot *p, uint32_t curve, uint32_t size)
{
    const cf_replay_counts *c = cf_tune_sum(p->t, curve, size);
    return cf_tune_percent(c->misses, c->lookups);
}

/* A step of 1, 2 or 5 times a power of ten that cuts `range` into at most ten. */
static double step_of(double range)
{
    double step = 0.01;
    for (int i = 0; range / step > 10; i++)
        step *= i % 3 == 1 ? 2.5 : 2;
    return step;
}

static void text_escape(FILE *out, const char *s)
{
    for (; *s; s++) {
        unsigned char c = (unsigned char)*s;
        if (c == '<')
            fputs("&lt;", out);
        else if (c == '&')
            fputs("&amp;", out);
        else if (c == '"')
            fputs("&quot;", out);
        else
            fputc(c < 0x20 || c >= 0x7f ? '?' : c, out);
    }
}

static void axes_draw(const plot *p)
{
    double bottom = y_of(p, 0), right = x_of(p, p->x_max), step = step_of(p->x_max);
    for (double x = 0; x <= p->x_max * 1.0001; x += step)
        fprintf(p->out,
                "<line class=\"grid\" x1=\"%.1f\" y1=\"%d\" x2=\"%.1f\" y2=\"%.1f\"/>"
                "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">%g</text>\n",
                x_of(p, x), TOP, x_of(p, x), bottom, x_of(p, x), bottom + 18, x);
    step = step_of(p->y_max);
    for (double y = 0; y <= p->y_max * 1.0001; y += step)
        fprintf(p->out,
                "<line class=\"grid\" x1=\"%d\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\"/>"
                "<text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%g</text>\n",
                LEFT, y_of(p, y), right, y_of(p, y), LEFT - 8, y_of(p, y) + 4, y);
    fprintf(p->out,
            "<line class=\"axis\" x1=\"%d\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\"/>"
            "<line class=\"axis\" x1=\"%d\" y1=\"%d\" x2=\"%d\" y2=\"%.1f\"/>\n",
            LEFT, bottom, right, bottom, LEFT, TOP, LEFT, bottom);
    fprintf(p->out,
            "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">cache size, percent of all expert "
            "records</text>\n"
            "<text transform=\"translate(18 %.1f) rotate(-90)\" text-anchor=\"middle\">misses, "
            "percent of lookups</text>\n",
            (LEFT + right) / 2, bottom + 42, (TOP + bottom) / 2);
}

static const char *curve_colour(const plot *p, uint32_t curve)
{
    return curve == p->t->n_policies ? "#000000" : colours[curve % 8];
}

static const char *curve_dash(const plot *p, uint32_t curve)
{
    return curve == p->t->n_policies ? "stroke-dasharray=\"6 4\"" : "";
}

static void curve_draw(const plot *p, uint32_t curve)
{
    fprintf(p->out, "<polyline fill=\"none\" stroke-width=\"2\" stroke=\"%s\" %s points=\"",
            curve_colour(p, curve), curve_dash(p, curve));
    for (uint32_t s = 0; s < p->t->n_sizes; s++)
        fprintf(p->out, "%s%.1f,%.1f", s ? " " : "", x_of(p, cf_tune_share(p->t, s)),
                y_of(p, miss_of(p, curve, s)));
    fputs("\"/>\n", p->out);
    for (uint32_t s = 0; s < p->t->n_sizes; s++) {
        const cf_tune_size *size = &p->t->sizes[s];
        fprintf(p->out, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3\" fill=\"%s\"><title>",
                x_of(p, cf_tune_share(p->t, s)), y_of(p, miss_of(p, curve, s)),
                curve_colour(p, curve));
        text_escape(p->out, cf_tune_curve_name(p->t, curve));
        fprintf(p->out, ": %.2f %% at %.1f %%, %u slots", miss_of(p, curve, s),
                cf_tune_share(p->t, s), cf_tune_resolve(&size->slots, p->t->traces[0]));
        fputs("</title></circle>\n", p->out);
    }
}

static void legend_draw(const plot *p)
{
    double x = WIDTH - RIGHT + 16;
    for (uint32_t c = 0; c <= p->t->n_policies; c++) {
        double y = TOP + 10 + 22 * (double)c;
        fprintf(p->out,
                "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke-width=\"2\" "
                "stroke=\"%s\" %s/><text x=\"%.1f\" y=\"%.1f\">",
                x, y, x + 26, y, curve_colour(p, c), curve_dash(p, c), x + 34, y + 4);
        text_escape(p->out, cf_tune_curve_name(p->t, c));
        fputs("</text>\n", p->out);
    }
}

/* Where the recommendation lies. */
static void mark_draw(const plot *p)
{
    double x = x_of(p, cf_tune_share(p->t, p->t->best_size));
    double y = y_of(p, miss_of(p, p->t->best_policy, p->t->best_size));
    fprintf(p->out,
            "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"7\" fill=\"none\" stroke=\"%s\" "
            "stroke-width=\"1.5\"><title>recommended</title></circle>\n",
            x, y, curve_colour(p, p->t->best_policy));
}

static void plot_draw(const plot *p)
{
    const cf_tune *t = p->t;
    fprintf(p->out,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" width=\"%d\" "
            "height=\"%d\" font-family=\"sans-serif\" font-size=\"13\">\n"
            "<style>.grid{stroke:#ddd}.axis{stroke:#333}</style>\n"
            "<rect width=\"%d\" height=\"%d\" fill=\"#fff\"/>\n"
            "<text x=\"%d\" y=\"26\" font-size=\"15\">",
            WIDTH, HEIGHT, WIDTH, HEIGHT, WIDTH, HEIGHT, LEFT);
    if (t->n_traces == 1)
        text_escape(p->out, t->traces[0]->header.model);
    else
        fprintf(p->out, "%u traces together", t->n_traces);
    fputs("</text>\n", p->out);
    axes_draw(p);
    for (uint32_t c = 0; c <= t->n_policies; c++)
        curve_draw(p, c);
    mark_draw(p);
    legend_draw(p);
    fputs("</svg>\n", p->out);
}

int cf_tune_svg(const cf_tune *t, const char *path, cf_err *err)
{
    char *text = NULL;
    size_t bytes = 0;
    plot p = {.t = t};
    for (uint32_t s = 0; s < t->n_sizes; s++) {
        p.x_max = fmax(p.x_max, cf_tune_share(t, s));
        for (uint32_t c = 0; c <= t->n_policies; c++)
            p.y_max = fmax(p.y_max, miss_of(&p, c, s));
    }
    p.y_max = fmax(p.y_max, 0.1);
    p.y_max = ceil(p.y_max / step_of(p.y_max)) * step_of(p.y_max);
    p.x_max = ceil(p.x_max / step_of(p.x_max)) * step_of(p.x_max);
    p.out = open_memstream(&text, &bytes);
    if (!p.out)
        return CF_FAIL(err, -ENOMEM, "out of memory for the plot");
    plot_draw(&p);
    bool lost = ferror(p.out) != 0;
    lost |= fclose(p.out) != 0;
    int rc = lost ? CF_FAIL(err, -ENOMEM, "out of memory for the plot")
                  : cf_output_write(path, text, bytes, err);
    free(text);
    return rc;
}
