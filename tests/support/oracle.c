/* Reference results: see oracle.h. */
#include "tests/support/oracle.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static float *floats_load(const char *stem, const char *name, size_t n)
{
    char path[1200];
    snprintf(path, sizeof path, "%s%s", stem, name);
    FILE *f = fopen(path, "rb");
    float *v = malloc(n * sizeof *v);
    if (!f || !v || fread(v, sizeof *v, n, f) != n) {
        printf("    cannot read %zu floats from %s\n", n, path);
        free(v);
        v = NULL;
    }
    if (f)
        fclose(f);
    return v;
}

static int32_t *ids_load(const json_t *list, uint32_t *n)
{
    *n = (uint32_t)json_array_size(list);
    int32_t *ids = calloc(*n + 1, sizeof *ids);
    for (uint32_t i = 0; ids && i < *n; i++)
        ids[i] = (int32_t)json_integer_value(json_array_get(list, i));
    return ids;
}

static void shape_read(const json_t *shape, uint32_t *dims)
{
    for (size_t i = 0; i < json_array_size(shape); i++)
        dims[i] = (uint32_t)json_integer_value(json_array_get(shape, i));
}

static void routing_load(oracle *o, const json_t *routing)
{
    o->n_moe = (uint32_t)json_array_size(routing);
    if (!o->n_moe)
        return;
    const json_t *first = json_object_get(json_array_get(routing, 0), "experts");
    o->k = (uint32_t)json_array_size(json_array_get(first, 0));
    size_t n = (size_t)o->n_moe * o->n_prompt * o->k;
    o->moe_layer = calloc(o->n_moe, sizeof *o->moe_layer);
    for (uint32_t i = 0; i < o->n_moe; i++)
        o->moe_layer[i] = (uint32_t)json_integer_value(
            json_object_get(json_array_get(routing, i), "layer"));
    o->experts = calloc(n, sizeof *o->experts);
    o->weights = calloc(n, sizeof *o->weights);
    for (size_t i = 0; i < n; i++) {
        size_t layer = i / o->k / o->n_prompt, row = i / o->k % o->n_prompt, j = i % o->k;
        const json_t *entry = json_array_get(routing, layer);
        const json_t *e = json_array_get(json_object_get(entry, "experts"), row);
        const json_t *w = json_array_get(json_object_get(entry, "weights"), row);
        o->experts[i] = (uint32_t)json_integer_value(json_array_get(e, j));
        o->weights[i] = (float)json_number_value(json_array_get(w, j));
    }
}

static size_t selected_size(const oracle *o)
{
    return (size_t)o->n_select * o->n_prompt * o->n_prompt;
}

static void selection_load(oracle *o, const json_t *dsa)
{
    o->n_select = (uint32_t)json_array_size(dsa);
    o->select_layer = calloc(o->n_select + 1, sizeof *o->select_layer);
    o->selected = calloc(selected_size(o) + 1, 1);
    for (uint32_t m = 0; m < o->n_select; m++) {
        const json_t *entry = json_array_get(dsa, m);
        o->select_layer[m] = (uint32_t)json_integer_value(json_object_get(entry, "layer"));
        for (uint32_t t = 0; t < o->n_prompt; t++) {
            const json_t *list = json_array_get(json_object_get(entry, "selected"), t);
            uint8_t *row = o->selected + ((size_t)m * o->n_prompt + t) * o->n_prompt;
            for (size_t i = 0; i < json_array_size(list); i++)
                row[json_integer_value(json_array_get(list, i))] = 1;
        }
    }
}

/* The results of `j`, which is released; the floats are in files that begin with stem. */
static oracle *oracle_make(json_t *j, const char *stem)
{
    oracle *o = calloc(1, sizeof *o);
    uint32_t logits_shape[4] = {0}, hidden_shape[4] = {0};
    const json_t *part = json_object_get(j, "logits"); /* the demo's form */
    if (part) {
        o->prompt = ids_load(json_object_get(part, "ids"), &o->n_prompt);
        shape_read(json_object_get(part, "shape"), logits_shape);
        shape_read(json_object_get(part, "hidden_shape"), hidden_shape);
        o->logits_std = json_number_value(json_object_get(part, "logits_std"));
    } else {
        const json_t *shapes = json_object_get(j, "shapes");
        o->prompt = ids_load(json_object_get(j, "prompt_ids"), &o->n_prompt);
        o->greedy = ids_load(json_object_get(j, "greedy_ids"), &o->n_greedy);
        shape_read(json_object_get(shapes, "logits.f32"), logits_shape);
        shape_read(json_object_get(shapes, "hidden.f32"), hidden_shape);
        o->logits_std = json_number_value(json_object_get(j, "logits_std"));
        routing_load(o, json_object_get(j, "routing"));
        selection_load(o, json_object_get(j, "dsa"));
    }
    o->vocab = logits_shape[1];
    o->layers = hidden_shape[0];
    o->hidden = hidden_shape[2];
    o->logits = floats_load(stem, "logits.f32", (size_t)o->n_prompt * o->vocab);
    o->hidden_state =
        floats_load(stem, "hidden.f32", (size_t)o->layers * o->n_prompt * o->hidden);
    json_decref(j);
    if (!o->prompt || !o->logits || !o->hidden_state) {
        oracle_free(o);
        return NULL;
    }
    return o;
}

oracle *oracle_load(const char *dir)
{
    static const char *const below[] = {"", "oracle/"};
    char stem[1024], path[1100];
    for (int i = 0; i < 2; i++) {
        snprintf(stem, sizeof stem, "%s/%s", dir, below[i]);
        snprintf(path, sizeof path, "%sexpected.json", stem);
        json_t *j = json_load_file(path, 0, NULL);
        if (j)
            return oracle_make(j, stem);
    }
    printf("    no expected.json in %s\n", dir);
    return NULL;
}

oracle *oracle_load_stem(const char *stem)
{
    char path[1100];
    snprintf(path, sizeof path, "%s.json", stem);
    json_t *j = json_load_file(path, 0, NULL);
    if (!j) {
        printf("    no %s\n", path);
        return NULL;
    }
    snprintf(path, sizeof path, "%s.", stem);
    return oracle_make(j, path);
}

void oracle_free(oracle *o)
{
    if (!o)
        return;
    free(o->prompt);
    free(o->greedy);
    free(o->logits);
    free(o->hidden_state);
    free(o->moe_layer);
    free(o->experts);
    free(o->weights);
    free(o->select_layer);
    free(o->selected);
    free(o);
}

/* ---- running ---- */

oracle_run *oracle_run_new(const oracle *o)
{
    oracle_run *r = calloc(1, sizeof *r);
    r->o = o;
    r->logits = calloc((size_t)o->n_prompt * o->vocab, sizeof *r->logits);
    r->hidden_state = calloc((size_t)o->layers * o->n_prompt * o->hidden, sizeof *r->hidden_state);
    size_t n = (size_t)o->n_moe * o->n_prompt * o->k;
    r->experts = calloc(n + 1, sizeof *r->experts);
    r->weights = calloc(n + 1, sizeof *r->weights);
    r->selected = calloc(selected_size(o) + 1, 1);
    return r;
}

void oracle_run_free(oracle_run *r)
{
    if (!r)
        return;
    free(r->logits);
    free(r->hidden_state);
    free(r->experts);
    free(r->weights);
    free(r->selected);
    free(r);
}

static void on_row(void *user, uint32_t position, const float *logits, const float *final_hidden)
{
    oracle_run *r = user;
    (void)final_hidden;
    if (position < r->o->n_prompt)
        memcpy(r->logits + (size_t)position * r->o->vocab, logits, r->o->vocab * sizeof *logits);
}

static void on_layer(void *user, uint32_t layer, uint32_t position, uint32_t n, const float *hidden)
{
    oracle_run *r = user;
    const oracle *o = r->o;
    if (layer < o->layers && position + n <= o->n_prompt)
        memcpy(r->hidden_state + ((size_t)layer * o->n_prompt + position) * o->hidden, hidden,
               (size_t)n * o->hidden * sizeof *hidden);
}

static void on_route(void *user, uint32_t layer, uint32_t position, const uint32_t *ids,
                     const float *weights, uint32_t k)
{
    oracle_run *r = user;
    const oracle *o = r->o;
    uint32_t m = 0;
    while (m < o->n_moe && o->moe_layer[m] != layer)
        m++;
    if (m == o->n_moe || position >= o->n_prompt || k != o->k)
        return;
    size_t at = ((size_t)m * o->n_prompt + position) * k;
    memcpy(r->experts + at, ids, k * sizeof *ids);
    memcpy(r->weights + at, weights, k * sizeof *weights);
}

static void on_select(void *user, uint32_t layer, uint32_t position, const uint32_t *positions,
                      uint32_t n)
{
    oracle_run *r = user;
    const oracle *o = r->o;
    uint32_t m = 0;
    while (m < o->n_select && o->select_layer[m] != layer)
        m++;
    if (m == o->n_select || position >= o->n_prompt)
        return;
    uint8_t *row = r->selected + ((size_t)m * o->n_prompt + position) * o->n_prompt;
    for (uint32_t i = 0; i < n; i++)
        if (positions[i] <= position)
            row[positions[i]] = 1;
}

int oracle_run_prompt(oracle_run *r, cf_session *s, uint32_t step, cf_err *err)
{
    const oracle *o = r->o;
    cf_outputs out = {.row = on_row, .layer = on_layer, .route = on_route, .select = on_select,
                      .user = r};
    for (uint32_t i = 0; i < o->n_prompt; i += step) {
        uint32_t n = o->n_prompt - i < step ? o->n_prompt - i : step;
        int rc = cf_session_extend(s, o->prompt + i, n, CF_PHASE_PROMPT, &out, err);
        if (rc < 0)
            return rc;
    }
    return 0;
}

uint32_t oracle_run_greedy(const oracle *o, cf_session *s, uint32_t vocab, cf_err *err)
{
    for (uint32_t i = 0; i < o->n_greedy; i++) {
        const float *logits = cf_session_logits(s);
        int32_t best = 0;
        for (uint32_t v = 1; logits && v < vocab; v++)
            if (logits[v] > logits[best])
                best = (int32_t)v;
        if (!logits || best != o->greedy[i])
            return i;
        if (cf_session_extend(s, &best, 1, CF_PHASE_DECODE, NULL, err) < 0)
            return i;
    }
    return o->n_greedy;
}

/* ---- comparing ---- */

double oracle_logits_error(const oracle *o, const oracle_run *r)
{
    double worst = 0;
    for (size_t i = 0; i < (size_t)o->n_prompt * o->vocab; i++) {
        double e = fabs((double)r->logits[i] - (double)o->logits[i]);
        if (!(e <= worst)) /* a NaN counts as worst */
            worst = isnan(e) ? INFINITY : e;
    }
    return worst / o->logits_std;
}

double oracle_hidden_error(const oracle *o, const oracle_run *r)
{
    double worst = 0;
    size_t per = (size_t)o->n_prompt * o->hidden;
    for (uint32_t l = 0; l < o->layers; l++) {
        const float *want = o->hidden_state + l * per, *got = r->hidden_state + l * per;
        double sum = 0, squares = 0, most = 0;
        for (size_t i = 0; i < per; i++) {
            double e = fabs((double)got[i] - (double)want[i]);
            most = e > most || isnan(e) ? (isnan(e) ? INFINITY : e) : most;
            sum += (double)want[i];
            squares += (double)want[i] * (double)want[i];
        }
        double mean = sum / (double)per, std = sqrt(squares / (double)per - mean * mean);
        worst = most / std > worst ? most / std : worst;
    }
    return worst;
}

uint32_t oracle_expert_differences(const oracle *o, const oracle_run *r)
{
    uint32_t n = 0;
    for (size_t i = 0; i < (size_t)o->n_moe * o->n_prompt; i++)
        n += memcmp(o->experts + i * o->k, r->experts + i * o->k, o->k * sizeof *o->experts) != 0;
    return n;
}

uint32_t oracle_selection_differences(const oracle *o, const oracle_run *r)
{
    uint32_t n = 0;
    for (size_t i = 0; i < (size_t)o->n_select * o->n_prompt; i++)
        n += memcmp(o->selected + i * o->n_prompt, r->selected + i * o->n_prompt, o->n_prompt) != 0;
    return n;
}
