/* catflap bench MODEL --profile: see bench_profile.h.
 *
 * A sample decodes some tokens undisturbed and as many with every step submitted and waited for by
 * itself, behind the same prompt, in turning order. The parts of the second add up to its time;
 * what they exceed the first by is what overlap saves (and what waiting for each step costs). */
#include "tools/bench_profile.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/clock.h"
#include "runtime/engine.h"
#include "tools/progress.h"
#include "tools/table.h"
#include "tools/text_io.h"

enum { KINDS = CF_STEP_HEAD + 1 };

/* Of one sample; seconds are of all its tokens. */
typedef struct profile {
    double plain, total; /* undisturbed; each step by itself */
    double reads, copies, kinds[KINDS];
    uint64_t bytes[KINDS]; /* of weights */
    cf_step_time *times;   /* [n_steps] */
} profile;

typedef struct result {
    uint32_t context;
    profile samples[CF_BENCH_SAMPLES], *median;
} result;

typedef struct bench {
    const cf_bench_profile *p;
    const cf_model *model;
    uint32_t first; /* step of a token: behind those of an encoder */
    result results[CF_BENCH_LIST];
} bench;

static double other_of(const profile *f)
{
    double left = f->total - f->reads - f->copies;
    for (int k = 0; k < KINDS; k++)
        left -= f->kinds[k];
    return left > 0 ? left : 0;
}

static double share(double part, double of)
{
    return of > 0 ? part / of : 0;
}

/* ---- measuring ---- */

static int decode(const bench *b, const int32_t *ids, double *seconds, cf_err *err)
{
    int rc = 0;
    uint64_t begin = cf_clock_ns();
    for (uint32_t i = 0; i < b->p->n_decode && rc == 0; i++)
        rc = cf_session_extend(b->p->session, ids + i, 1, CF_PHASE_DECODE, NULL, err);
    *seconds = cf_seconds(cf_clock_ns() - begin);
    *b->p->decoded += rc == 0 ? b->p->n_decode : 0;
    return rc;
}

/* Weight bytes of the steps; of experts, of those that were looked up: [n_moe]. */
static void bytes_sum(const bench *b, profile *f, const uint64_t *lookups)
{
    const cf_model *m = b->model;
    for (uint32_t i = b->first; i < m->n_steps; i++) {
        const cf_step *s = &m->steps[i];
        bool experts = s->kind == CF_STEP_EXPERTS;
        f->bytes[s->kind] +=
            experts ? lookups[s->u.experts.moe] * cf_moe_record_bytes(&m->moe[s->u.experts.moe])
                    : cf_step_bytes(m, s) * b->p->n_decode;
    }
}

/* Decodes behind the prompt; each step by itself, or undisturbed. */
static int part_run(const bench *b, uint32_t context, bool apart, profile *f, cf_err *err)
{
    const cf_bench_profile *p = b->p;
    /* The same positions again; a recurrent state has none to return to. */
    uint32_t length = cf_session_rewind(p->session, context);
    int rc = 0;
    if (length < context)
        rc = cf_session_extend(p->session, p->ids + length, context - length, CF_PHASE_PROMPT, NULL,
                               err);
    if (rc < 0)
        return rc;
    cf_exec_profile(p->engine->exec, apart ? f->times : NULL);
    rc =
        decode(b, p->ids + context + (apart ? p->n_decode : 0), apart ? &f->total : &f->plain, err);
    cf_exec_profile(p->engine->exec, NULL);
    return rc;
}

static int sample_run(const bench *b, uint32_t context, bool apart_first, profile *f, cf_err *err)
{
    const cf_bench_profile *p = b->p;
    const cf_model *m = b->model;
    int rc = 0;
    uint64_t *lookups = calloc(m->n_moe + 1, sizeof *lookups);
    f->times = calloc(m->n_steps, sizeof *f->times);
    if (!lookups || !f->times)
        CF_TRY(CF_FAIL(err, -ENOMEM, "out of memory for the times of %u steps", m->n_steps));
    cf_session_rewind(p->session, 0);
    for (uint32_t i = 0; i < context + 2 * p->n_decode; i++)
        p->ids[i] = (int32_t)cf_rng_below(p->rng, p->vocab);
    for (int part = 0; part < 2; part++) {
        bool apart = apart_first == (part == 0);
        for (uint32_t i = 0; apart && i < m->n_moe; i++)
            lookups[i] = p->engine->counters.layers[i].lookups;
        CF_TRY(part_run(b, context, apart, f, err));
        for (uint32_t i = 0; apart && i < m->n_moe; i++)
            lookups[i] = p->engine->counters.layers[i].lookups - lookups[i];
    }
    for (uint32_t i = b->first; i < m->n_steps; i++) {
        f->kinds[m->steps[i].kind] += cf_seconds(f->times[i].ns);
        f->reads += cf_seconds(f->times[i].read_ns);
        f->copies += cf_seconds(f->times[i].copy_ns);
    }
    bytes_sum(b, f, lookups);
fail:
    free(lookups);
    return rc;
}

/* The sample whose profiled time is the median, so that its parts add up. */
static profile *median_of(profile *list, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        uint32_t before = 0;
        for (uint32_t j = 0; j < n; j++)
            before += list[j].total < list[i].total || (list[j].total == list[i].total && j < i);
        if (before == n / 2)
            return &list[i];
    }
    return list;
}

static int all_run(bench *b, cf_err *err)
{
    const cf_bench_profile *p = b->p;
    cf_progress bar;
    int rc = 0;
    profile warm = {0}; /* pipelines are compiled at their first use */
    rc = sample_run(b, 1, false, &warm, err);
    free(warm.times);
    cf_progress_begin_count(&bar, "measuring", (uint64_t)p->n_contexts * p->n_samples, "samples",
                            p->quiet);
    for (uint32_t i = 0; i < p->n_contexts && rc == 0; i++) {
        result *r = &b->results[i];
        r->context = (uint32_t)p->contexts[i];
        for (uint32_t j = 0; j < p->n_samples && rc == 0; j++) {
            rc = sample_run(b, r->context, j % 2, &r->samples[j], err);
            cf_progress_update(&bar, (uint64_t)i * p->n_samples + j + 1);
        }
        r->median = median_of(r->samples, p->n_samples);
    }
    cf_progress_end(&bar);
    return rc;
}

static double plain_median(const result *r, uint32_t n)
{
    double list[CF_BENCH_SAMPLES];
    for (uint32_t i = 0; i < n; i++)
        list[i] = r->samples[i].plain;
    return cf_bench_median(list, n);
}

/* ---- the result ---- */

static uint32_t kind_count(const bench *b, int kind)
{
    uint32_t n = 0;
    for (uint32_t i = b->first; i < b->model->n_steps; i++)
        n += (int)b->model->steps[i].kind == kind;
    return n;
}

/* A line; steps and bytes 0: not said. */
static void line_print(const bench *b, cf_table *t, const char *name, uint32_t steps,
                       double seconds, double total, uint64_t bytes)
{
    char text[32];
    uint32_t n = b->p->n_decode;
    cf_table_cell(t, "%s", name);
    if (steps)
        cf_table_cell(t, "%u", steps);
    else
        cf_table_cell(t, "-");
    cf_table_cell(t, "%.3f", seconds / n * 1e3);
    cf_table_cell(t, "%.1f %%", 100 * share(seconds, total));
    if (bytes) {
        cf_table_cell(t, "%s", cf_bytes_text(bytes / n, text, sizeof text));
        cf_table_cell(t, "%.2f", share((double)bytes * 1e-9, seconds));
    } else {
        cf_table_cell(t, "-");
        cf_table_cell(t, "-");
    }
    cf_table_end_row(t);
}

static void result_table(const bench *b, const result *r)
{
    static const char *const heads[] = {"step", "count", "ms", "share", "weights", "GB/s"};
    const profile *f = r->median;
    cf_table *t = cf_table_create("lrrrrr");
    for (size_t i = 0; i < sizeof heads / sizeof *heads; i++)
        cf_table_cell(t, "%s", heads[i]);
    cf_table_end_row(t);
    cf_table_rule(t);
    for (int k = 0; k < KINDS; k++)
        if (kind_count(b, k) && k != CF_STEP_TAP)
            line_print(b, t, cf_step_name((cf_step_kind)k), kind_count(b, k), f->kinds[k], f->total,
                       f->bytes[k]);
    line_print(b, t, "reads waited for", 0, f->reads, f->total, 0);
    line_print(b, t, "copies waited for", 0, f->copies, f->total, 0);
    line_print(b, t, "other", 0, other_of(f), f->total, 0);
    cf_table_rule(t);
    line_print(b, t, "each step by itself", 0, f->total, f->total, 0);
    line_print(b, t, "undisturbed", 0, plain_median(r, b->p->n_samples), f->total, 0);
    printf("\na token of decode behind %u (median of %u samples of %u)\n\n", r->context,
           b->p->n_samples, b->p->n_decode);
    cf_table_print(t, stdout, 2);
    cf_table_destroy(&t);
}

static json_t *kinds_json(const bench *b, const profile *f)
{
    json_t *list = json_array();
    for (int k = 0; k < KINDS; k++)
        if (kind_count(b, k))
            json_array_append_new(
                list,
                json_pack("{s:s s:I s:f s:f s:I}", "step", cf_step_name((cf_step_kind)k), "steps",
                          (json_int_t)kind_count(b, k), "seconds", f->kinds[k], "share",
                          share(f->kinds[k], f->total), "weight_bytes", (json_int_t)f->bytes[k]));
    return list;
}

/* Every step of the plan, in its order. */
static json_t *steps_json(const bench *b, const profile *f)
{
    json_t *list = json_array();
    for (uint32_t i = b->first; i < b->model->n_steps; i++) {
        const cf_step *s = &b->model->steps[i];
        const cf_step_time *t = &f->times[i];
        json_array_append_new(
            list, json_pack("{s:s s:I s:f s:f s:f}", "step", cf_step_name(s->kind), "layer",
                            (json_int_t)s->layer, "seconds", cf_seconds(t->ns), "reads",
                            cf_seconds(t->read_ns), "copies", cf_seconds(t->copy_ns)));
    }
    return list;
}

static int json_report(const bench *b)
{
    const cf_bench_profile *p = b->p;
    const cf_gpu_info *d = cf_gpu_get_info(p->engine->gpu);
    json_t *results = json_array();
    for (uint32_t i = 0; i < p->n_contexts; i++) {
        const result *r = &b->results[i];
        const profile *f = r->median;
        json_array_append_new(
            results, json_pack("{s:I s:I s:f s:f s:f s:f s:f s:f s:o s:o}", "context",
                               (json_int_t)r->context, "tokens", (json_int_t)p->n_decode, "seconds",
                               f->total, "undisturbed_seconds", plain_median(r, p->n_samples),
                               "reads", f->reads, "copies", f->copies, "other", other_of(f),
                               "named_share", 1 - share(other_of(f), f->total), "kinds",
                               kinds_json(b, f), "steps", steps_json(b, f)));
    }
    return cf_json_print(json_pack("{s:s s:s s:s s:o}", "model", p->model, "backend", d->backend,
                                   "device", d->name, "results", results));
}

static void csv_line(const bench *b, const result *r, const char *name, uint32_t steps,
                     double seconds, uint64_t bytes)
{
    uint32_t n = b->p->n_decode;
    printf("%u,%s,%u,%.9f,%.6f,%" PRIu64 "\n", r->context, name, steps, seconds / n,
           share(seconds, r->median->total), bytes / n);
}

static void csv_report(const bench *b)
{
    printf("context,part,steps,seconds_per_token,share,weight_bytes_per_token\n");
    for (uint32_t i = 0; i < b->p->n_contexts; i++) {
        const result *r = &b->results[i];
        const profile *f = r->median;
        for (int k = 0; k < KINDS; k++)
            if (kind_count(b, k))
                csv_line(b, r, cf_step_name((cf_step_kind)k), kind_count(b, k), f->kinds[k],
                         f->bytes[k]);
        csv_line(b, r, "reads", 0, f->reads, 0);
        csv_line(b, r, "copies", 0, f->copies, 0);
        csv_line(b, r, "other", 0, other_of(f), 0);
        csv_line(b, r, "total", 0, f->total, 0);
        csv_line(b, r, "undisturbed", 0, plain_median(r, b->p->n_samples), 0);
    }
}

static int report(const bench *b)
{
    const cf_bench_profile *p = b->p;
    if (p->form == CF_BENCH_JSON)
        return json_report(b);
    if (p->form == CF_BENCH_CSV) {
        csv_report(b);
        return 0;
    }
    const cf_gpu_info *d = cf_gpu_get_info(p->engine->gpu);
    printf("%s (%s) on %s (%s)\n", p->model, p->family, d->name, d->backend);
    for (uint32_t i = 0; i < p->n_contexts; i++)
        result_table(b, &b->results[i]);
    return 0;
}

int cf_bench_profile_run(const cf_bench_profile *p, cf_err *err)
{
    bench *b = calloc(1, sizeof *b);
    if (!b)
        return CF_FAIL(err, -ENOMEM, "out of memory for a profile");
    b->p = p;
    b->model = p->engine->model;
    b->first = b->model->n_encoder_steps;
    int rc = all_run(b, err);
    if (rc == 0 && report(b) != CF_EXIT_DONE)
        rc = CF_FAIL(err, -EIO, "the result cannot be printed");
    for (uint32_t i = 0; i < p->n_contexts; i++)
        for (uint32_t j = 0; j < p->n_samples; j++)
            free(b->results[i].samples[j].times);
    free(b);
    return rc;
}
