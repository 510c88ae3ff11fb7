/* Catches: NVFP4 of GGUF files computed without its scale, with that of another expert or matrix,
 * or with a scale that belongs to the activations; codes of the two halves of 16 values swapped; a
 * scale of a wrong shape or format that is taken all the same, or one that no matrix asks for.
 *
 * A small model is written twice: as NVFP4 with scales beside it, and in F32 with their product.
 * The same plan over both must give the same bits on the reference device; others are held against
 * it.
 *
 *     test_gguf_scales [BACKEND] */
#include <math.h>
#include <stdlib.h>

#include "models/family.h"
#include "runtime/engine.h"
#include "tests/check.h"
#include "tests/support/gguf_small.h"
#include "tests/support/tmpfiles.h"

enum { TOKENS = 19, SUB = 16, BLOCK = 64, BLOCK_BYTES = 36 };

/* How a file is written. */
typedef struct form {
    bool expanded, fused;
    bool bare;         /* no scales: they are 1 */
    const char *spoil; /* the name of a scale that is put otherwise, as `how` says */
    enum { LONGER, HALF } how;
    bool norm; /* a norm has a scale */
} form;

static tmp_dir dir;
static float e4m3[256]; /* a table of all codes, not made by this program */

/* 64 values: four scales, then pairs of codes at a distance of 8. */
static void block_make(cf_rng *rng, uint8_t *block, float *values)
{
    static const float e2m1[8] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
    for (int s = 0; s < BLOCK / SUB; s++) {
        block[s] = (uint8_t)(0x28 + cf_rng_below(rng, 0x20));
        for (int i = 0; i < SUB; i++) {
            uint32_t code = (uint32_t)cf_rng_below(rng, 16);
            uint8_t *at = &block[4 + 8 * s + i % 8];
            *at = (uint8_t)(i < 8 ? code : *at | code << 4);
            values[SUB * s + i] = e4m3[block[s]] * (code & 8 ? -e2m1[code & 7] : e2m1[code & 7]);
        }
    }
}

static void named_put(gguf_small *g, const char *name, const char *suffix, cf_format f,
                      uint32_t n_dims, const uint64_t *shape, const void *data, size_t n)
{
    char full[128];
    snprintf(full, sizeof full, "%s%s", name, suffix);
    gguf_put_tensor(&g->out, full, f, n_dims, shape, data, n);
}

/* The scales of a matrix, or of each expert's, as the form has them. */
static void scales_put(gguf_small *g, const char *name, uint64_t n, const float *scales)
{
    const form *how = g->user;
    const float ones[GGUF_SMALL_EXPERTS + 1] = {1, 1, 1, 1, 1, 1};
    bool spoilt = how->spoil && strcmp(name, how->spoil) == 0;
    uint64_t longer = n + 1;
    if (spoilt && how->how == LONGER)
        named_put(g, name, ".scale", CF_F32, 1, &longer, ones, longer * sizeof *ones);
    else if (spoilt)
        named_put(g, name, ".scale", CF_F16, 1, &n, ones, n * 2);
    else
        named_put(g, name, ".scale", CF_F32, 1, &n, scales, n * sizeof *scales);
    named_put(g, name, ".input_scale", CF_F32, 1, &n, ones, n * sizeof *ones);
}

static void matrix_put(gguf_small *g, const char *name, uint32_t n_dims, const uint64_t *shape)
{
    const form *how = g->user;
    uint64_t experts = n_dims > 2 ? shape[0] : 1;
    uint64_t each = shape[n_dims - 2] * shape[n_dims - 1], n = experts * each;
    float scales[GGUF_SMALL_EXPERTS], *v = malloc(n * sizeof *v);
    uint8_t *blocks = malloc(n / BLOCK * BLOCK_BYTES);
    bool plain = strcmp(name, "token_embd") == 0 || strstr(name, "gate_inp");
    if (plain)
        gguf_small_values(&g->rng, v, n, shape[n_dims - 1]);
    for (uint64_t i = 0; i < n / BLOCK && !plain; i++)
        block_make(&g->rng, blocks + i * BLOCK_BYTES, v + i * BLOCK);
    for (uint64_t e = 0; e < experts; e++)
        scales[e] = (float)(0.05 * (0.4 + cf_rng_unit(&g->rng)));
    for (uint64_t i = 0; i < n && !plain && !how->bare; i++)
        v[i] *= scales[i / each];
    if (plain || how->expanded)
        named_put(g, name, ".weight", CF_F32, n_dims, shape, v, n * sizeof *v);
    else
        named_put(g, name, ".weight", CF_NVFP4, n_dims, shape, blocks, n / BLOCK * BLOCK_BYTES);
    if (!plain && !how->expanded && !how->bare)
        scales_put(g, name, experts, scales);
    free(blocks);
    free(v);
}

static const char *model_write(const form *how)
{
    const char *path = tmp_path(&dir, "scales.gguf");
    const uint64_t one = 1;
    const float two = 2;
    gguf_small g = {.rng = {11}, .fused = how->fused, .matrix = matrix_put, .user = how};
    gguf_small_put(&g);
    if (how->norm)
        gguf_put_tensor(&g.out, "blk.0.attn_norm.scale", CF_F32, 1, &one, &two, sizeof two);
    gguf_write(&g.out, path);
    return path;
}

/* ---- a run ---- */

static void on_row(void *user, uint32_t position, const float *logits, const float *hidden)
{
    (void)hidden;
    memcpy((float *)user + (size_t)position * GGUF_SMALL_VOCAB, logits,
           GGUF_SMALL_VOCAB * sizeof *logits);
}

/* All logits of a text, whose owner is the caller. */
static float *logits_of(const form *how, const char *device)
{
    float *logits = calloc((size_t)TOKENS * GGUF_SMALL_VOCAB, sizeof *logits);
    cf_outputs out = {.row = on_row, .user = logits};
    cf_err err = {0};
    cf_engine *e = NULL;
    cf_session *s = NULL;
    cf_options o;
    int32_t ids[TOKENS];
    for (int32_t i = 0; i < TOKENS; i++)
        ids[i] = (i * 11 + 5) % GGUF_SMALL_VOCAB;
    cf_options_init(&o);
    o.device = device;
    o.kv = "f32";
    o.threads = 2;
    o.ctx = 32;
    o.chunk = 7;
    o.vram_bytes = o.ram_bytes = 64u << 20;
    o.check = true;
    int rc = cf_engine_open(&e, model_write(how), &o, &err);
    if (rc == 0)
        rc = cf_session_create(&s, e, &err);
    if (rc == 0)
        rc = cf_session_extend(s, ids, TOKENS, CF_PHASE_PROMPT, &out, &err);
    CHECK_STR(err.msg, "");
    CHECK_INT(rc, 0);
    cf_session_destroy(&s);
    cf_engine_close(&e);
    return logits;
}

/* ---- cases ---- */

static void same_bits(bool fused, bool bare)
{
    const form stored = {.fused = fused, .bare = bare};
    const form expanded = {.expanded = true, .fused = fused, .bare = bare};
    float *a = logits_of(&stored, "ref"), *b = logits_of(&expanded, "ref");
    size_t n = (size_t)TOKENS * GGUF_SMALL_VOCAB;
    double most = 0;
    for (size_t i = 0; i < n; i++)
        most = fmax(most, fabs((double)a[i]));
    CHECK(most > 0.5 && isfinite(most)); /* there is something to compare */
    CHECK(memcmp(a, b, n * sizeof *a) == 0);
    free(a);
    free(b);
}

static void stored_as_expanded(void)
{
    same_bits(false, false);
    same_bits(true, false);
    same_bits(false, true);
}

static const char *only; /* a backend; NULL: all */

static void every_device(void)
{
    static const form forms[] = {{.fused = false}, {.fused = true}};
    cf_gpu_info infos[16];
    int n = cf_gpu_list(infos, 16, NULL, 0);
    for (int k = 0; k < 2; k++) {
        float *want = logits_of(&forms[k], "ref");
        for (int i = 0; i < n; i++) {
            char device[32];
            if (strcmp(infos[i].backend, "ref") == 0 ||
                (only && strcmp(only, infos[i].backend) != 0))
                continue;
            snprintf(device, sizeof device, "%.15s:%d", infos[i].backend, infos[i].index);
            float *got = logits_of(&forms[k], device);
            double worst = 0, most = 0;
            for (size_t j = 0; j < (size_t)TOKENS * GGUF_SMALL_VOCAB; j++) {
                worst = fmax(worst, fabs((double)got[j] - (double)want[j]));
                most = fmax(most, fabs((double)want[j]));
            }
            printf("    %s: logits of up to %.2g are off by %.1e\n", device, most, worst);
            CHECK(worst <= 1e-4 * most);
            free(got);
        }
        free(want);
    }
}

/* Each matrix has its scale, where it lies; the others are counted and named. */
static void bound(void)
{
    cf_err err = {0};
    cf_model *m = NULL;
    CHECK_INT(cf_model_open(&m, model_write(&(form){0}), &err), 0);
    CHECK_STR(err.msg, "");
    REQUIRE(m);
    uint32_t scaled = 0;
    for (uint32_t i = 0; i < m->n_weights; i++)
        scaled += m->weights[i].scale.rows > 0;
    CHECK_INT(scaled, 2 * 4 + 1); /* of attention, and the head */
    for (uint32_t i = 0; i < m->n_moe; i++)
        for (int p = 0; p < CF_EXPERT_PIECES; p++)
            CHECK_INT(m->moe[i].pieces[p].scale.rows, 64);
    CHECK_INT(m->moe[0].n_extents, 6);
    CHECK_INT(m->n_skipped, 2 * 4 + 1 + 2 * 3);
    CHECK_STR(m->skipped_what, "scales of integer activations");
    cf_model_free(&m);
}

static void refused(const form *how, const char *text)
{
    cf_err err = {0};
    cf_model *m = NULL;
    CHECK_INT(cf_model_open(&m, model_write(how), &err), CF_EFORMAT);
    CHECK_HAS(err.msg, text);
    cf_model_free(&m);
}

static void otherwise_refused(void)
{
    refused(&(form){.spoil = "blk.1.ffn_up_exps", .how = LONGER},
            "tensor blk.1.ffn_up_exps.scale has shape [6], expected [5]");
    refused(&(form){.spoil = "blk.0.attn_v", .how = LONGER},
            "tensor blk.0.attn_v.scale has shape [2], expected [1]");
    refused(&(form){.spoil = "blk.1.ffn_gate_up_exps", .how = HALF, .fused = true},
            "tensor blk.1.ffn_gate_up_exps.scale has dtype F16, must be F32");
    refused(&(form){.norm = true}, "does not know tensor blk.0.attn_norm.scale");
}

int main(int argc, char **argv)
{
    only = argc > 1 ? argv[1] : NULL;
    tmp_dir_init(&dir);
    FILE *f = fopen("tests/fixtures/quants/e4m3fn_all.f32", "rb");
    if (!f || fread(e4m3, sizeof *e4m3, 256, f) != 256)
        return 1;
    fclose(f);
    RUN(stored_as_expanded);
    RUN(bound);
    RUN(otherwise_refused);
    RUN(every_device);
    tmp_dir_finish(&dir);
    return check_done();
}
