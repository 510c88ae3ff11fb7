/* The plan of a model: see info_plan.h.
 *
 * A window is what the plan puts between a ROUTE, where the host learns which experts are needed,
 * and its EXPERTS, where they must be there. What a window computes, and how many bytes of weights
 * it touches, is what can hide the reads: with no guess. */
#include "tools/info_plan.h"

#include <stdarg.h>
#include <string.h>

#include "runtime/predict.h"
#include "tools/table.h"

typedef struct window {
    uint32_t steps;
    uint64_t weight_bytes;
} window;

/* The window that ends at step `index` (an EXPERTS), and where it began. */
static window window_before(const cf_model *m, uint32_t index, uint32_t *route)
{
    window w = {0};
    *route = index;
    for (uint32_t i = index; i-- > 0;) {
        const cf_step *s = &m->steps[i];
        if (s->kind == CF_STEP_ROUTE && s->u.route.moe == m->steps[index].u.experts.moe) {
            *route = i;
            return w;
        }
        w.steps++;
        w.weight_bytes += cf_step_bytes(m, s);
    }
    return (window){0};
}

void cf_info_least_window(const cf_model *m, uint32_t *steps, uint64_t *weight_bytes)
{
    bool any = false;
    *steps = 0;
    *weight_bytes = 0;
    for (uint32_t i = 0; i < m->n_steps; i++) {
        uint32_t route;
        if (m->steps[i].kind != CF_STEP_EXPERTS)
            continue;
        window w = window_before(m, i, &route);
        if (any && w.weight_bytes >= *weight_bytes)
            continue;
        *steps = w.steps;
        *weight_bytes = w.weight_bytes;
        any = true;
    }
}

/* True when step `index` lies between a ROUTE and its EXPERTS. */
static bool inside_window(const cf_model *m, uint32_t index)
{
    for (uint32_t i = index + 1; i < m->n_steps; i++) {
        uint32_t route;
        if (m->steps[i].kind != CF_STEP_EXPERTS)
            continue;
        window_before(m, i, &route);
        return route < index;
    }
    return false;
}

/* ---- for people ---- */

typedef struct line {
    char data[256];
    size_t len;
} line;

static void line_add(line *l, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void line_add(line *l, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int n = vsnprintf(l->data + l->len, sizeof l->data - l->len, format, args);
    va_end(args);
    if (n > 0)
        l->len += (size_t)n < sizeof l->data - l->len ? (size_t)n : sizeof l->data - l->len - 1;
}

static void line_weight(line *l, const cf_model *m, const char *what, cf_wid w)
{
    const cf_weight_def *d = &m->weights[w];
    line_add(l, "%s%s [", l->len ? "  " : "", what);
    if (d->rows > 1)
        line_add(l, "%u, ", d->rows);
    line_add(l, "%u]", d->cols);
}

static void line_table(line *l, const cf_table_def *t)
{
    line_add(l, "%s [%llu, %u] %s", t->name, (unsigned long long)t->rows, t->cols,
             cf_format_name(t->dtype));
}

/* What a step works with, by kind. One matrix is named; of several the shapes say more. */
typedef void describe_fn(line *l, const cf_model *m, const cf_step *s);

static void describe_matrix(line *l, const cf_model *m, const cf_step *s)
{
    cf_wid list[CF_STEP_WEIGHTS];
    if (cf_step_weights(s, list))
        line_weight(l, m, m->weights[list[0]].name, list[0]);
}

static void describe_embed(line *l, const cf_model *m, const cf_step *s)
{
    cf_wid list[CF_STEP_WEIGHTS];
    if (cf_step_weights(s, list) == 0)
        line_table(l, &m->tables[s->u.embed.table]);
    else
        describe_matrix(l, m, s);
}

static void describe_rows(line *l, const cf_model *m, const cf_step *s)
{
    line_table(l, &m->tables[s->u.rows.first_table]);
    line_add(l, " and %u more", s->u.rows.n_tables - 1);
}

static void describe_attn_latent(line *l, const cf_model *m, const cf_step *s)
{
    (void)m;
    line_add(l, "%u heads, query %u, latent %u + %u, kv slot %u", s->u.latent.heads,
             s->u.latent.rank_q, s->u.latent.rank_kv, s->u.latent.rope, s->u.latent.kv_slot);
    if (s->u.latent.select_k)
        line_add(l, ", %u cells %s", s->u.latent.select_k,
                 s->u.latent.indexed ? "chosen here" : "as chosen before");
}

static void describe_attn(line *l, const cf_model *m, const cf_step *s)
{
    (void)m;
    line_add(l, "%u heads of %u, %u for keys and values, kv slots %u and %u", s->u.attn.heads,
             s->u.attn.head, s->u.attn.kv_heads, s->u.attn.k_slot, s->u.attn.v_slot);
    if (s->u.attn.window)
        line_add(l, ", window %u", s->u.attn.window);
    if (s->u.attn.chunk)
        line_add(l, ", chunk %u", s->u.attn.chunk);
}

static void describe_attn_delta(line *l, const cf_model *m, const cf_step *s)
{
    (void)m;
    line_add(l, "delta rule, %u heads, state %u x %u each, keys of %u heads, %u taps",
             s->u.delta.heads, s->u.delta.d_k, s->u.delta.d_v, s->u.delta.k_heads,
             s->u.delta.taps);
}

static void describe_attn_decay(line *l, const cf_model *m, const cf_step *s)
{
    (void)m;
    line_add(l, "linear, %u heads, state %u x %u each", s->u.decay.heads, s->u.decay.head,
             s->u.decay.head);
}

static void describe_attn_bias(line *l, const cf_model *m, const cf_step *s)
{
    (void)m;
    line_add(l, "%u heads of %u, biased by distance, kv slots %u and %u", s->u.bias.heads,
             s->u.bias.head, s->u.bias.k_slot, s->u.bias.v_slot);
}

static void describe_cross_kv(line *l, const cf_model *m, const cf_step *s)
{
    (void)m;
    line_add(l, "kv slots %u and %u, for the decoder", s->u.cross_kv.k_slot, s->u.cross_kv.v_slot);
}

static void describe_attn_cross(line *l, const cf_model *m, const cf_step *s)
{
    (void)m;
    line_add(l, "%u heads of %u over the encoder's kv slots %u and %u", s->u.cross.heads,
             s->u.cross.head, s->u.cross.k_slot, s->u.cross.v_slot);
}

static void describe_dense(line *l, const cf_model *m, const cf_step *s)
{
    line_weight(l, m, s->u.dense.up == CF_NO_WEIGHT ? "gate" : "gate, up", s->u.dense.gate);
    line_weight(l, m, "down", s->u.dense.down);
}

static void describe_route(line *l, const cf_model *m, const cf_step *s)
{
    static const char *const picks[] = {[CF_PICK_TOP] = "top",
                                        [CF_PICK_HASH] = "by the token,",
                                        [CF_PICK_EXPERTS_CHOOSE] = "experts choose, of",
                                        [CF_PICK_BALANCED] = "balanced,"};
    if (s->u.route.classifier != CF_NO_WEIGHT)
        line_weight(l, m, "classifier", s->u.route.classifier);
    line_add(l, "  %s %u", picks[s->u.route.pick], m->moe[s->u.route.moe].top_k);
    if (s->u.route.capacity)
        line_add(l, ", an expert at most %u rows of a call", s->u.route.capacity);
}

static void describe_experts(line *l, const cf_model *m, const cf_step *s)
{
    const cf_moe_def *moe = &m->moe[s->u.experts.moe];
    line_add(l, "%u of %u", moe->top_k, moe->experts);
    if (moe->zero_experts)
        line_add(l, " (and %u zero)", moe->zero_experts);
    line_add(l, " x %s [%u, %u]  down [%u, %u]", moe->pieces[CF_UP].rows ? "gate, up" : "gate",
             moe->pieces[CF_GATE].rows, moe->pieces[CF_GATE].cols, moe->pieces[CF_DOWN].rows,
             moe->pieces[CF_DOWN].cols);
}

static void describe_scale(line *l, const cf_model *m, const cf_step *s)
{
    (void)m;
    line_add(l, "x %g", (double)s->u.scale.scale);
}

static describe_fn *const describe[CF_STEP_HEAD + 1] = {
    [CF_STEP_EMBED] = describe_embed,
    [CF_STEP_ROWS] = describe_rows,
    [CF_STEP_LINEAR] = describe_matrix,
    [CF_STEP_NORM] = describe_matrix,
    [CF_STEP_ATTN_LATENT] = describe_attn_latent,
    [CF_STEP_ATTN] = describe_attn,
    [CF_STEP_ATTN_DELTA] = describe_attn_delta,
    [CF_STEP_ATTN_DECAY] = describe_attn_decay,
    [CF_STEP_ATTN_BIAS] = describe_attn_bias,
    [CF_STEP_CROSS_KV] = describe_cross_kv,
    [CF_STEP_ATTN_CROSS] = describe_attn_cross,
    [CF_STEP_DENSE] = describe_dense,
    [CF_STEP_GATE] = describe_matrix,
    [CF_STEP_ROUTE] = describe_route,
    [CF_STEP_EXPERTS] = describe_experts,
    [CF_STEP_ADD] = describe_matrix,
    [CF_STEP_SCALE] = describe_scale,
    [CF_STEP_TAP] = describe_matrix,
    [CF_STEP_HEAD] = describe_matrix,
};

/* Where a step's rows come from and where they go. */
static void step_flow(const cf_model *m, const cf_step *s, cf_table *t)
{
    const char *src = m->bufs[s->src].name, *dst = m->bufs[s->dst].name;
    if (s->kind == CF_STEP_EMBED || s->kind == CF_STEP_ROWS)
        src = "ids";
    else if (s->kind == CF_STEP_ROUTE)
        dst = "choice";
    else if (s->kind == CF_STEP_TAP)
        dst = "out";
    else if (s->kind == CF_STEP_HEAD)
        dst = "logits";
    cf_table_cell(t, "%s -> %s", src, dst);
}

static void step_row(const cf_model *m, uint32_t index, cf_table *t)
{
    const cf_step *s = &m->steps[index];
    char bytes[32];
    line what = {0};
    cf_table_cell(t, "%u", index);
    cf_table_cell(t, "%u", s->layer);
    cf_table_cell(t, "%s", cf_step_name(s->kind));
    step_flow(m, s, t);
    uint64_t n = cf_step_bytes(m, s);
    cf_table_cell(t, "%s", n ? cf_bytes_text(n, bytes, sizeof bytes) : "");
    if (s->kind == CF_STEP_ROUTE)
        cf_table_cell(t, "+-");
    else if (s->kind == CF_STEP_EXPERTS)
        cf_table_cell(t, "+>");
    else
        cf_table_cell(t, "%s", inside_window(m, index) ? "|" : "");
    describe[s->kind](&what, m, s);
    cf_predict foreseen = {0};
    if (s->kind == CF_STEP_ROUTE)
        foreseen = cf_predict_find(m, index);
    if (foreseen.route)
        line_add(&what, "; foresees layer %u", foreseen.route->layer);
    if (s->kind == CF_STEP_EXPERTS) {
        uint32_t route;
        window w = window_before(m, index, &route);
        line_add(&what, "; window of %u steps, %s of weights", w.steps,
                 cf_bytes_text(w.weight_bytes, bytes, sizeof bytes));
    }
    cf_table_cell(t, "%s", what.data);
    cf_table_end_row(t);
}

void cf_info_plan_print(const cf_model *model, FILE *out)
{
    cf_table *t = cf_table_create("rrllrll");
    static const char *const heads[] = {"step",        "layer", "what", "from -> to",
                                        "bytes a row", "",      "with"};
    for (size_t i = 0; i < sizeof heads / sizeof heads[0]; i++)
        cf_table_cell(t, "%s", heads[i]);
    cf_table_end_row(t);
    cf_table_rule(t);
    for (uint32_t i = 0; i < model->n_steps; i++)
        step_row(model, i, t);
    fprintf(out, "\nThe plan. From ROUTE (+-) to EXPERTS (+>) reads run behind the steps marked |: "
                 "the prefetch window.\n\n");
    cf_table_print(t, out, 0);
    cf_table_destroy(&t);
}

/* ---- for programs ---- */

/* The tables a step takes rows from. */
static json_t *tables_json(const cf_model *m, const cf_step *s)
{
    json_t *list = json_array();
    uint32_t first = 0, n = 0;
    if (s->kind == CF_STEP_EMBED && s->u.embed.resident == CF_NO_WEIGHT) {
        first = s->u.embed.table;
        n = 1;
    } else if (s->kind == CF_STEP_ROWS) {
        first = s->u.rows.first_table;
        n = s->u.rows.n_tables;
    }
    for (uint32_t i = first; i < first + n; i++) {
        const cf_table_def *t = &m->tables[i];
        json_array_append_new(list, json_pack("{s:s, s:[II], s:s}", "name", t->name, "shape",
                                              (json_int_t)t->rows, (json_int_t)t->cols, "dtype",
                                              cf_format_name(t->dtype)));
    }
    return list;
}

static json_t *step_json(const cf_model *m, uint32_t index)
{
    const cf_step *s = &m->steps[index];
    cf_wid list[CF_STEP_WEIGHTS];
    uint32_t n = cf_step_weights(s, list);
    json_t *names = json_array();
    for (uint32_t i = 0; i < n; i++) {
        const cf_weight_def *w = &m->weights[list[i]];
        json_array_append_new(names, json_pack("{s:s, s:[II], s:s}", "name", w->name, "shape",
                                               (json_int_t)w->rows, (json_int_t)w->cols, "dtype",
                                               cf_format_name(w->dtype)));
    }
    json_t *o = json_pack("{s:i, s:i, s:s, s:s, s:s, s:I, s:b, s:o, s:o}", "step", (int)index,
                          "layer", (int)s->layer, "kind", cf_step_name(s->kind), "src",
                          m->bufs[s->src].name, "dst", m->bufs[s->dst].name, "bytes_per_row",
                          (json_int_t)cf_step_bytes(m, s), "in_window", inside_window(m, index),
                          "weights", names, "tables", tables_json(m, s));
    cf_predict foreseen = {0};
    if (s->kind == CF_STEP_ROUTE)
        foreseen = cf_predict_find(m, index);
    if (o && foreseen.route)
        json_object_set_new(o, "foresees_layer", json_integer((json_int_t)foreseen.route->layer));
    if (o && s->kind == CF_STEP_EXPERTS) {
        uint32_t route;
        window w = window_before(m, index, &route);
        json_object_set_new(o, "window",
                            json_pack("{s:i, s:i, s:I}", "from_step", (int)route, "steps",
                                      (int)w.steps, "weight_bytes", (json_int_t)w.weight_bytes));
    }
    return o;
}

json_t *cf_info_plan_json(const cf_model *model)
{
    json_t *list = json_array();
    for (uint32_t i = 0; list && i < model->n_steps; i++)
        if (json_array_append_new(list, step_json(model, i)) < 0) {
            json_decref(list);
            list = NULL;
        }
    return list;
}
