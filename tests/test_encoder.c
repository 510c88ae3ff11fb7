/* Catches: an encoder that does not see all of its input, a wrong bias by distance, an expert that
 * serves more than its capacity or a dropped token that is not left as it was, keys and values of
 * the encoder that the decoder misses, a decoder whose past depends on how it was fed, an input
 * that does not fit and is cut in silence, a cache size that moves a bit; on every device, against a reference's hidden states,
 * routing, logits and ids. */
#include <jansson.h>

#include "gpu/gpu.h"
#include "runtime/engine.h"
#include "tests/check.h"
#include "tests/support/devices.h"
#include "tests/support/sized.h"

static const char dir[] = "tests/fixtures/models/switch_transformers";
static const char *device;

enum { MAX_ROWS = 64, MAX_LAYERS = 8 };

/* What is expected, or what was computed: one stack, numbered from 0 layer by layer. */
struct stack {
    uint32_t n, layers;
    int32_t ids[MAX_ROWS];
    float *hidden;                        /* [layers, n, hidden] */
    int32_t expert[MAX_LAYERS][MAX_ROWS]; /* -1: none, -2: no router */
    float weight[MAX_LAYERS][MAX_ROWS];
};

static struct {
    struct stack in, out;
    float *logits, *output; /* [out.n, vocab]; the encoder's, [in.n, hidden] */
    uint32_t vocab, hidden;
    int32_t greedy[MAX_ROWS];
    uint32_t n_greedy;
    double logits_std;
} want;

static float *floats_read(const char *name, size_t n)
{
    char path[256];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    float *v = calloc(n, sizeof *v);
    FILE *f = fopen(path, "rb");
    if (!v || !f || fread(v, sizeof *v, n, f) != n)
        abort();
    fclose(f);
    return v;
}

static uint32_t ids_read(const json_t *j, const char *key, int32_t *ids)
{
    const json_t *list = json_object_get(j, key);
    uint32_t n = (uint32_t)json_array_size(list);
    for (uint32_t i = 0; i < n && i < MAX_ROWS; i++)
        ids[i] = (int32_t)json_integer_value(json_array_get(list, i));
    return n;
}

static uint32_t dim(const json_t *j, const char *name, size_t i)
{
    const json_t *shape = json_object_get(json_object_get(j, "shapes"), name);
    return (uint32_t)json_integer_value(json_array_get(shape, i));
}

static void stack_clear(struct stack *s)
{
    for (int l = 0; l < MAX_LAYERS; l++)
        for (int r = 0; r < MAX_ROWS; r++)
            s->expert[l][r] = -2;
}

static void routing_read(const json_t *routing)
{
    for (size_t m = 0; m < json_array_size(routing); m++) {
        const json_t *entry = json_array_get(routing, m), *e = json_object_get(entry, "experts");
        bool encoder = !strcmp(json_string_value(json_object_get(entry, "stack")), "encoder");
        struct stack *s = encoder ? &want.in : &want.out;
        json_int_t layer = json_integer_value(json_object_get(entry, "layer"));
        for (uint32_t r = 0; r < s->n; r++) {
            const json_t *one = json_array_get(json_array_get(e, r), 0);
            const json_t *w = json_array_get(json_object_get(entry, "weights"), r);
            s->expert[layer][r] = one ? (int32_t)json_integer_value(one) : -1;
            s->weight[layer][r] = (float)json_number_value(json_array_get(w, 0));
        }
    }
}

static void want_read(void)
{
    char path[256];
    snprintf(path, sizeof path, "%s/expected.json", dir);
    json_t *j = json_load_file(path, 0, NULL);
    if (!j)
        abort();
    stack_clear(&want.in);
    stack_clear(&want.out);
    want.in.n = ids_read(j, "prompt_ids", want.in.ids);
    want.out.n = ids_read(j, "decoder_ids", want.out.ids);
    want.n_greedy = ids_read(j, "greedy_ids", want.greedy);
    want.vocab = dim(j, "logits.f32", 1);
    want.hidden = dim(j, "hidden.f32", 2);
    want.in.layers = dim(j, "hidden.f32", 0);
    want.out.layers = dim(j, "decoder_hidden.f32", 0);
    want.logits_std = json_number_value(json_object_get(j, "logits_std"));
    want.in.hidden = floats_read("hidden.f32", (size_t)want.in.layers * want.in.n * want.hidden);
    want.out.hidden =
        floats_read("decoder_hidden.f32", (size_t)want.out.layers * want.out.n * want.hidden);
    want.output = floats_read("encoder_output.f32", (size_t)want.in.n * want.hidden);
    want.logits = floats_read("logits.f32", (size_t)want.out.n * want.vocab);
    routing_read(json_object_get(j, "routing"));
    json_decref(j);
}

/* ---- what an engine computes ---- */

struct got {
    struct stack *stack; /* being filled */
    uint32_t first;      /* layer of it */
    struct stack in, out;
    float *output, *logits;
};

static void on_layer(void *user, uint32_t layer, uint32_t position, uint32_t n, const float *hidden)
{
    struct got *g = user;
    uint32_t l = layer - g->first;
    float *to = g->stack->hidden + ((size_t)l * g->stack->n + position) * want.hidden;
    if (l == g->stack->layers) /* the encoder's output */
        to = g->output + (size_t)position * want.hidden;
    memcpy(to, hidden, (size_t)n * want.hidden * sizeof *to);
}

static void on_route(void *user, uint32_t layer, uint32_t position, const uint32_t *ids,
                     const float *weights, uint32_t k)
{
    struct got *g = user;
    g->stack->expert[layer - g->first][position] = k ? (int32_t)ids[0] : -1;
    g->stack->weight[layer - g->first][position] = k ? weights[0] : 0;
}

static void on_row(void *user, uint32_t position, const float *logits, const float *final_hidden)
{
    struct got *g = user;
    (void)final_hidden;
    if (position < want.out.n)
        memcpy(g->logits + (size_t)position * want.vocab, logits, want.vocab * sizeof *logits);
}

/* Largest error in units of the standard deviation of what is expected. */
static double error_of(const float *got, const float *expected, size_t n)
{
    double sum = 0, squares = 0, most = 0;
    for (size_t i = 0; i < n; i++) {
        double e = fabs((double)got[i] - (double)expected[i]);
        most = !(e <= most) ? (isnan(e) ? INFINITY : e) : most;
        sum += (double)expected[i];
        squares += (double)expected[i] * (double)expected[i];
    }
    return most / sqrt(squares / (double)n - sum / (double)n * (sum / (double)n));
}

static void stack_check(const struct stack *got, const struct stack *expected, double tolerance)
{
    size_t per = (size_t)expected->n * want.hidden;
    for (uint32_t l = 0; l < expected->layers; l++) {
        double e = error_of(got->hidden + l * per, expected->hidden + l * per, per);
        CHECK(e <= tolerance);
        for (uint32_t r = 0; r < expected->n; r++) {
            CHECK_INT(got->expert[l][r], expected->expert[l][r]);
            CHECK(fabs((double)got->weight[l][r] - (double)expected->weight[l][r]) <= 1e-4);
        }
    }
}

static void greedy_check(cf_session *s)
{
    cf_err err = {0};
    for (uint32_t i = 0; i < want.n_greedy; i++) {
        const float *logits = cf_session_logits(s);
        int32_t best = 0;
        for (uint32_t v = 1; v < want.vocab; v++)
            if (logits[v] > logits[best])
                best = (int32_t)v;
        CHECK_INT(best, want.greedy[i]);
        CHECK_INT(cf_session_extend(s, &best, 1, CF_PHASE_DECODE, NULL, &err), 0);
    }
}

static cf_options options_make(const char *kv, uint32_t chunk)
{
    cf_options o;
    cf_options_init(&o);
    o.device = device;
    o.kv = kv;
    o.ctx = 64;
    o.chunk = chunk;
    o.threads = 2;
    o.check = true;
    return o;
}

static cf_engine *engine_open(const char *kv, uint32_t chunk)
{
    cf_err err = {0};
    cf_engine *e = NULL;
    cf_options o = options_make(kv, chunk);
    o.vram_bytes = 256u << 20;
    o.ram_bytes = 64u << 20;
    CHECK_INT(cf_engine_open(&e, dir, &o, &err), 0);
    CHECK_STR(err.msg, "");
    return e;
}

/* The decoder is fed `step` ids at a time. */
static void run_one(const char *kv, uint32_t step, double tolerance, bool exact)
{
    cf_err err = {0};
    cf_session *s = NULL;
    cf_engine *e = engine_open(kv, 40);
    struct got g = {.in = {.n = want.in.n, .layers = want.in.layers},
                    .out = {.n = want.out.n, .layers = want.out.layers}};
    stack_clear(&g.in);
    stack_clear(&g.out);
    g.in.hidden = calloc((size_t)g.in.layers * g.in.n * want.hidden, sizeof(float));
    g.out.hidden = calloc((size_t)g.out.layers * g.out.n * want.hidden, sizeof(float));
    g.output = calloc((size_t)g.in.n * want.hidden, sizeof(float));
    g.logits = calloc((size_t)g.out.n * want.vocab, sizeof(float));
    cf_outputs outputs = {.row = on_row, .layer = on_layer, .route = on_route, .user = &g};
    REQUIRE(e && cf_session_create(&s, e, &err) == 0);
    g.stack = &g.in;
    CHECK_INT(cf_session_encode(s, want.in.ids, want.in.n, &outputs, &err), 0);
    g.stack = &g.out;
    g.first = want.in.layers;
    for (uint32_t i = 0; i < want.out.n; i += step) {
        uint32_t n = want.out.n - i < step ? want.out.n - i : step;
        CHECK_INT(cf_session_extend(s, want.out.ids + i, n, CF_PHASE_PROMPT, &outputs, &err), 0);
    }
    CHECK_STR(err.msg, "");
    double logits = 0;
    for (size_t i = 0; i < (size_t)want.out.n * want.vocab; i++)
        logits = fmax(logits, fabs((double)g.logits[i] - (double)want.logits[i]));
    logits /= want.logits_std;
    printf("    logits %.1e x std\n", logits);
    CHECK(logits <= tolerance);
    if (exact) {
        CHECK(error_of(g.output, want.output, (size_t)want.in.n * want.hidden) <= tolerance);
        stack_check(&g.in, &want.in, tolerance);
        stack_check(&g.out, &want.out, tolerance);
        greedy_check(s);
    }
    free(g.in.hidden);
    free(g.out.hidden);
    free(g.output);
    free(g.logits);
    cf_session_destroy(&s);
    cf_engine_close(&e);
}

static void row_keep(void *user, uint32_t position, const float *logits, const float *hidden)
{
    float *all = user;
    (void)hidden;
    memcpy(all + (size_t)position * want.vocab, logits, want.vocab * sizeof *logits);
}

/* The same bits with room for every expert, for half of them, and for what one token needs. */
static void same_at_three_sizes(void)
{
    cf_err err = {0};
    sized_model m;
    REQUIRE(sized_model_open(&m, dir));
    const uint32_t slots[3] = {m.all_slots, (m.min_slots + m.all_slots) / 2, m.min_slots};
    size_t n = (size_t)want.out.n * want.vocab;
    float *logits = calloc(3 * n, sizeof *logits);
    for (size_t i = 0; i < 3 && logits; i++) {
        cf_session *s = NULL;
        cf_options o = options_make("f32", 40);
        cf_engine *e = sized_open(&m, &o, slots[i], false);
        cf_outputs out = {.row = row_keep, .user = logits + i * n};
        CHECK(e && cf_session_create(&s, e, &err) == 0 &&
              cf_session_encode(s, want.in.ids, want.in.n, NULL, &err) == 0 &&
              cf_session_extend(s, want.out.ids, want.out.n, CF_PHASE_PROMPT, &out, &err) == 0);
        CHECK_STR(err.msg, "");
        CHECK(memcmp(logits + i * n, logits, n * sizeof *logits) == 0);
        cf_session_destroy(&s);
        cf_engine_close(&e);
    }
    free(logits);
    sized_model_close(&m);
}

static void refusals_name_the_number(void)
{
    cf_err err = {0};
    cf_session *s = NULL;
    cf_engine *e = engine_open("f32", 20);
    REQUIRE(e && cf_session_create(&s, e, &err) == 0);
    CHECK(cf_session_extend(s, want.out.ids, 1, CF_PHASE_PROMPT, NULL, &err) < 0);
    CHECK_HAS(err.msg, "encoder");
    err = (cf_err){0};
    CHECK_INT(cf_session_encode(s, want.in.ids, want.in.n, NULL, &err), CF_ELIMIT);
    CHECK_HAS(err.msg, "36");
    CHECK_HAS(err.msg, "20");
    err = (cf_err){0};
    CHECK(cf_session_encode(s, want.in.ids, 0, NULL, &err) < 0);
    err = (cf_err){0};
    CHECK_INT(cf_session_encode(s, want.in.ids, 20, NULL, &err), 0);
    CHECK_INT(cf_session_extend(s, want.out.ids, 3, CF_PHASE_PROMPT, NULL, &err), 0);
    CHECK_INT(cf_session_encode(s, want.in.ids, 7, NULL, &err), 0); /* begins anew */
    CHECK_INT(cf_session_length(s), 0);
    CHECK_STR(err.msg, "");
    cf_session_destroy(&s);
    cf_engine_close(&e);
}

int main(int argc, char **argv)
{
    devices d = {.only = devices_only(argc, argv)};
    char name[96];
    want_read();
    while (devices_next(&d)) {
        device = d.name;
        snprintf(name, sizeof name, "%s decoder at once", d.name);
        RUN_NAMED(name, run_one("f32", 64, 2e-3, true));
        snprintf(name, sizeof name, "%s decoder in chunks of 5", d.name);
        RUN_NAMED(name, run_one("f32", 5, 2e-3, true));
        snprintf(name, sizeof name, "%s decoder token by token", d.name);
        RUN_NAMED(name, run_one("f32", 1, 2e-3, true));
        snprintf(name, sizeof name, "%s f16 cache", d.name);
        RUN_NAMED(name, run_one("f16", 64, 2e-2, false));
        snprintf(name, sizeof name, "%s three cache sizes", d.name);
        RUN_NAMED(name, same_at_three_sizes());
        snprintf(name, sizeof name, "%s refusals name the number", d.name);
        RUN_NAMED(name, refusals_name_the_number());
    }
    free(want.in.hidden);
    free(want.out.hidden);
    free(want.output);
    free(want.logits);
    return check_done();
}
