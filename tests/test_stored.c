/* Catches: codes read with another's scales, or with none; a scale taken from the wrong block at an
 * edge; nibbles, interleaved rows or expert biases in the wrong order; a stored form that is half
 * there and opens all the same; a text model within another whose names are not found.
 *
 * A generated checkpoint is written twice: as codes and scales, and in F32 with the product of the
 * two. The same plan over both must give the same bits on the reference device; other devices are
 * held against it.
 *
 *     test_stored [BACKEND] */
#include <jansson.h>
#include <stdlib.h>

#include "models/family.h"
#include "runtime/base/align.h"
#include "runtime/base/f8.h"
#include "runtime/base/rng.h"
#include "runtime/engine.h"
#include "storage/catalogue_build.h"
#include "tests/check.h"
#include "tests/support/tmpfiles.h"

enum { FILE_BYTES = 16 << 20, TOKENS = 21, MAX_CODES = 256 };

typedef enum { PLAIN, FP8, FP8_E8M0, INT4, MXFP4 } form;
typedef form form_fn(const cf_expected *t);

/* What may be spoilt in the stored form: the text ends a tensor's name. */
typedef struct spoil {
    const char *suffix;
    bool leave_out;
    uint64_t dim0;    /* another first dimension; 0: as it is */
    cf_format format; /* another format; CF_FORMAT_COUNT: as it is */
} spoil;

/* A checkpoint being written: one file. */
struct store {
    cf_catalogue *cat;
    uint8_t *data;
    uint64_t bytes;
    cf_rng rng;
    bool expanded; /* F32 instead of codes and scales */
    const spoil *spoil;
    float e4m3[MAX_CODES]; /* the table of all codes, not made by this program */
    tmp_dir dir;
};

static float rng_normal(cf_rng *r)
{
    double sum = 0;
    for (int i = 0; i < 12; i++)
        sum += cf_rng_unit(r);
    return (float)(sum - 6);
}

static bool ends_with(const char *name, const char *suffix)
{
    size_t n = strlen(name), m = strlen(suffix);
    return n >= m && strcmp(name + n - m, suffix) == 0;
}

static void add(struct store *s, const char *name, cf_format f, const uint64_t *shape,
                uint32_t n_dims, const void *data)
{
    cf_err err = {0};
    cf_tensor t = {.name = name, .format = f, .n_dims = n_dims};
    memcpy(t.shape, shape, n_dims * sizeof *shape);
    if (s->spoil && ends_with(name, s->spoil->suffix)) {
        if (s->spoil->leave_out)
            return;
        t.shape[0] = s->spoil->dim0 ? s->spoil->dim0 : t.shape[0];
        t.format = s->spoil->format == CF_FORMAT_COUNT ? f : s->spoil->format;
        must(cf_tensor_bytes(&t, &t.extent.bytes));
        t.extent.bytes = 0; /* never read */
    } else {
        must(cf_tensor_bytes(&t, &t.extent.bytes));
    }
    t.extent.off = cf_align_up(s->bytes, 4) + 2; /* records must be settled */
    s->bytes = t.extent.off + t.extent.bytes;
    must(s->bytes <= FILE_BYTES);
    memcpy(s->data + t.extent.off, data, t.extent.bytes);
    must(cf_catalogue_add(s->cat, &t, &err) == 0);
}

static void add_suffixed(struct store *s, const char *name, const char *suffix, cf_format f,
                         const uint64_t *shape, uint32_t n_dims, const void *data)
{
    char full[300];
    snprintf(full, sizeof full, "%s%s", name, suffix);
    add(s, full, f, shape, n_dims, data);
}

static uint64_t product(const uint64_t *shape, uint32_t n_dims)
{
    uint64_t n = 1;
    for (uint32_t i = 0; i < n_dims; i++)
        n *= shape[i];
    return n;
}

static void plain_add(struct store *s, const cf_expected *t)
{
    uint64_t n = product(t->shape, t->n_dims), cols = t->shape[t->n_dims - 1];
    float *v = malloc(n * sizeof *v);
    for (uint64_t i = 0; i < n; i++) {
        float r = rng_normal(&s->rng);
        v[i] = t->norm                     ? 1 + 0.1f * r
               : t->bias || t->n_dims == 1 ? 0.05f * r
                                           : r / sqrtf((float)cols);
    }
    add(s, t->name, CF_F32, t->shape, t->n_dims, v);
    free(v);
}

/* ---- codes and scales ---- */

/* 128 x 128 values to a scale, of which neighbours differ by far. */
static void fp8_add(struct store *s, const cf_expected *t, bool powers)
{
    uint64_t rows = t->shape[0], cols = t->shape[1];
    uint64_t of[2] = {cf_ceil_div(rows, 128), cf_ceil_div(cols, 128)};
    uint8_t *codes = malloc(rows * cols);
    uint8_t *exponents = malloc(of[0] * of[1]);
    float *scales = malloc(of[0] * of[1] * sizeof *scales), *v = malloc(rows * cols * sizeof *v);
    for (uint64_t i = 0; i < of[0] * of[1]; i++) {
        scales[i] = (float)((0.3 + cf_rng_unit(&s->rng)) * 3e-4 * (1 + 3 * (double)(i % 3)));
        exponents[i] = (uint8_t)(127 - 11 + i % 3);
        if (powers)
            scales[i] = ldexpf(1, exponents[i] - 127);
    }
    for (uint64_t i = 0; i < rows * cols; i++) {
        do
            codes[i] = (uint8_t)cf_rng_below(&s->rng, MAX_CODES);
        while (isnan(s->e4m3[codes[i]]));
        v[i] = s->e4m3[codes[i]] * scales[i / cols / 128 * of[1] + i % cols / 128];
    }
    if (s->expanded) {
        add(s, t->name, CF_F32, t->shape, 2, v);
    } else {
        add(s, t->name, CF_F8_E4M3, t->shape, 2, codes);
        add_suffixed(s, t->name, "_scale_inv", powers ? CF_F8_E8M0 : CF_F32, of, 2,
                     powers ? (const void *)exponents : scales);
    }
    free(codes);
    free(exponents);
    free(scales);
    free(v);
}

/* Eight codes in a word, the first in its low bits; a code is the value plus 8. */
static void int4_add(struct store *s, const cf_expected *t)
{
    uint64_t rows = t->shape[0], cols = t->shape[1], pair = 2;
    uint64_t words_of[2] = {rows, cols / 8}, of[2] = {rows, cols / 32};
    uint32_t *words = calloc(rows * cols / 8, sizeof *words);
    uint16_t *scales = malloc(rows * cols / 32 * sizeof *scales);
    float *v = malloc(rows * cols * sizeof *v);
    const int64_t shape[2] = {(int64_t)rows, (int64_t)cols};
    for (uint64_t i = 0; i < rows * cols; i++) {
        if (i % 32 == 0)
            scales[i / 32] = cf_f32_to_bf16((float)(0.01 + 0.05 * cf_rng_unit(&s->rng)));
        uint32_t code = (uint32_t)cf_rng_below(&s->rng, 16);
        words[i / 8] |= code << (i % 8 * 4);
        v[i] = (float)((int)code - 8) * cf_bf16_to_f32(scales[i / 32]);
    }
    if (s->expanded) {
        add(s, t->name, CF_F32, t->shape, 2, v);
    } else {
        add_suffixed(s, t->name, "_packed", CF_I32, words_of, 2, words);
        add_suffixed(s, t->name, "_scale", CF_BF16, of, 2, scales);
        add_suffixed(s, t->name, "_shape", CF_I64, &pair, 1, shape);
    }
    free(words);
    free(scales);
    free(v);
}

/* The plain form [E, cols, rows] is transposed; blocks [E, rows, cols / 32, 16] are not. */
static void mxfp4_add(struct store *s, const cf_expected *t)
{
    static const float value[8] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
    uint64_t experts = t->shape[0], cols = t->shape[1], rows = t->shape[2],
             n = experts * rows * cols;
    uint64_t of[4] = {experts, rows, cols / 32, 16};
    uint8_t *blocks = calloc(n / 2, 1), *scales = malloc(n / 32);
    float *v = malloc(n * sizeof *v);
    for (uint64_t i = 0; i < n; i++) {
        if (i % 32 == 0)
            scales[i / 32] = (uint8_t)(121 + cf_rng_below(&s->rng, 4));
        uint32_t code = (uint32_t)cf_rng_below(&s->rng, 16);
        blocks[i / 2] |= (uint8_t)(code << (i % 2 * 4));
        uint64_t e = i / (rows * cols), o = i / cols % rows, k = i % cols;
        float x = ldexpf(value[code & 7], scales[i / 32] - 127);
        v[(e * cols + k) * rows + o] = code & 8 ? -x : x;
    }
    if (s->expanded) {
        add(s, t->name, CF_F32, t->shape, 3, v);
    } else {
        add_suffixed(s, t->name, "_blocks", CF_U8, of, 4, blocks);
        add_suffixed(s, t->name, "_scales", CF_U8, of, 3, scales);
    }
    free(blocks);
    free(scales);
    free(v);
}

/* ---- a model over it ---- */

static void store_fill(struct store *s, const json_t *config, form_fn *form_of)
{
    cf_err err = {0};
    cf_expected *list = NULL;
    uint64_t n = 0;
    must(cf_model_expected(config, "config.json", &list, &n, &err) == 0);
    for (uint64_t i = 0; i < n; i++) {
        switch (form_of(&list[i])) {
        case PLAIN:
            plain_add(s, &list[i]);
            break;
        case FP8:
        case FP8_E8M0:
            fp8_add(s, &list[i], form_of(&list[i]) == FP8_E8M0);
            break;
        case INT4:
            int4_add(s, &list[i]);
            break;
        case MXFP4:
            mxfp4_add(s, &list[i]);
            break;
        }
    }
    cf_expected_free(list, n);
}

static void store_init(struct store *s, bool expanded, const spoil *how)
{
    cf_err err = {0};
    *s = (struct store){.expanded = expanded, .spoil = how, .rng = {7}};
    FILE *f = fopen("tests/fixtures/quants/e4m3fn_all.f32", "rb");
    must(f && fread(s->e4m3, sizeof(float), MAX_CODES, f) == MAX_CODES);
    fclose(f);
    tmp_dir_init(&s->dir);
    s->data = calloc(FILE_BYTES, 1);
    must(s->data && cf_catalogue_create(&s->cat, &err) == 0);
    must(cf_catalogue_add_file(s->cat, tmp_path(&s->dir, "weights"), FILE_BYTES, &err) == 0);
}

static void store_finish(struct store *s)
{
    cf_catalogue_close(&s->cat);
    free(s->data);
    tmp_dir_finish(&s->dir);
}

static cf_model *model_bind(struct store *s, const json_t *config, cf_err *err)
{
    cf_model *m = calloc(1, sizeof *m);
    must(m);
    m->dir = strdup("stored");
    m->cat = s->cat;
    s->cat = NULL;
    if (cf_model_bind(m, config, "config.json", err) < 0)
        cf_model_free(&m);
    return m;
}

/* ---- a run ---- */

typedef struct result {
    float *logits;
    uint32_t vocab, rows;
} result;

static void on_row(void *user, uint32_t position, const float *logits, const float *hidden)
{
    result *r = user;
    (void)hidden;
    must(position < TOKENS);
    memcpy(r->logits + (size_t)position * r->vocab, logits, r->vocab * sizeof *logits);
    r->rows++;
}

/* *why: a device's refusal, which ends the run; NULL: there must be none. */
static result model_run(cf_model *m, const char *device, cf_err *why)
{
    cf_err err = {0};
    cf_engine *e = NULL;
    cf_session *s = NULL;
    cf_options o;
    int32_t ids[TOKENS];
    result r = {.vocab = m->spec.vocab};
    r.logits = calloc((size_t)TOKENS * r.vocab, sizeof *r.logits);
    cf_outputs out = {.row = on_row, .user = &r};
    cf_options_init(&o);
    o.device = device;
    o.kv = "f32";
    o.io = "pread";
    o.direct = false;
    o.threads = 2;
    o.ctx = 32;
    o.chunk = 8;
    o.vram_bytes = o.ram_bytes = 64u << 20;
    o.check = true;
    for (int32_t i = 0; i < TOKENS; i++)
        ids[i] = (i * 37 + 5) % (int32_t)r.vocab;
    int rc = cf_engine_create(&e, m, &o, &err);
    if (rc == 0)
        rc = cf_session_create(&s, e, &err);
    if (rc == 0)
        rc = cf_session_extend(s, ids, TOKENS, CF_PHASE_PROMPT, &out, &err);
    if (why && err.code == CF_EDEVICE) {
        *why = err;
    } else {
        CHECK_STR(err.msg, "");
        CHECK_INT(rc, 0);
    }
    cf_session_destroy(&s);
    if (!e)
        cf_model_free(&m);
    cf_engine_close(&e);
    return r;
}

static result stored_run(const json_t *config, form_fn *form_of, bool expanded, const char *device,
                         cf_err *why)
{
    cf_err err = {0};
    struct store s;
    store_init(&s, expanded, NULL);
    store_fill(&s, config, form_of);
    tmp_write(tmp_path(&s.dir, "weights"), s.data, FILE_BYTES);
    cf_model *m = model_bind(&s, config, &err);
    CHECK_STR(err.msg, "");
    must(m);
    uint32_t scaled = 0;
    for (uint32_t i = 0; i < m->n_moe; i++)
        scaled += m->moe[i].pieces[CF_DOWN].scale.rows > 0;
    CHECK_INT(scaled, expanded ? 0 : m->n_moe);
    result r = model_run(m, device, why);
    store_finish(&s);
    return r;
}

static void same_bits(const json_t *config, form_fn *form_of)
{
    result a = stored_run(config, form_of, false, "ref", NULL);
    result b = stored_run(config, form_of, true, "ref", NULL);
    size_t n = (size_t)TOKENS * a.vocab;
    double sum = 0, squares = 0;
    CHECK_INT(a.rows, TOKENS);
    CHECK_INT(b.rows, TOKENS);
    for (size_t i = 0; i < n; i++) {
        sum += (double)a.logits[i];
        squares += (double)a.logits[i] * (double)a.logits[i];
    }
    double variance = squares / (double)n - sum / (double)n * (sum / (double)n);
    CHECK(variance > 1e-2 && isfinite(variance)); /* there is something to compare */
    CHECK(memcmp(a.logits, b.logits, n * sizeof *a.logits) == 0);
    free(a.logits);
    free(b.logits);
}

/* ---- configs ---- */

#define LATENT(arch, hidden, dense, ffn, quant)                                                    \
    "{\"architectures\":[\"" arch "\"],\"bos_token_id\":0,\"eos_token_id\":1,\"vocab_size\":97,"   \
    "\"hidden_size\":" hidden ",\"num_hidden_layers\":2,\"num_attention_heads\":3,"                \
    "\"max_position_embeddings\":256,\"rms_norm_eps\":1e-6,\"rope_theta\":1e4,"                    \
    "\"intermediate_size\":" dense ",\"moe_intermediate_size\":" ffn ",\"n_routed_experts\":6,"    \
    "\"n_shared_experts\":1,\"num_experts_per_tok\":2,\"first_k_dense_replace\":1,"                \
    "\"norm_topk_prob\":true,\"q_lora_rank\":40,\"kv_lora_rank\":48,\"qk_nope_head_dim\":32,"      \
    "\"qk_rope_head_dim\":8,\"v_head_dim\":20,\"scoring_func\":\"sigmoid\","                       \
    "\"topk_method\":\"noaux_tc\"" quant "}"
#define FP8_CONFIG                                                                                 \
    ",\"quantization_config\":{\"quant_method\":\"fp8\",\"fmt\":\"e4m3\","                         \
    "\"weight_block_size\":[128,128]}"
#define INT4_CONFIG(bits)                                                                          \
    ",\"quantization_config\":{\"quant_method\":\"compressed-tensors\","                           \
    "\"format\":\"pack-quantized\",\"config_groups\":{\"group_0\":{\"targets\":[\"Linear\"],"      \
    "\"weights\":{\"num_bits\":" bits ",\"type\":\"int\",\"symmetric\":true,"                      \
    "\"strategy\":\"group\",\"group_size\":32}}}}"
/* An index beside latent attention: 12 heads of 136, so that blocks end within a matrix. */
#define INDEXED(arch)                                                                              \
    LATENT(arch, "136", "260", "144",                                                              \
           ",\"index_n_heads\":12,\"index_head_dim\":136,\"index_topk\":7" FP8_CONFIG)
#define MXFP4_MODEL                                                                                \
    "{\"architectures\":[\"GptOssForCausalLM\"],\"vocab_size\":97,\"hidden_size\":64,"             \
    "\"num_hidden_layers\":2,\"num_attention_heads\":4,\"num_key_value_heads\":2,"                 \
    "\"head_dim\":16,\"max_position_embeddings\":256,\"rms_norm_eps\":1e-5,\"rope_theta\":1e4,"    \
    "\"intermediate_size\":96,\"num_local_experts\":5,\"num_experts_per_tok\":2,"                  \
    "\"sliding_window\":4,\"quantization_config\":{\"quant_method\":\"mxfp4\"}}"

static json_t *parse(const char *text)
{
    json_t *config = json_loads(text, 0, NULL);
    must(config);
    return config;
}

static form fp8_linears(const cf_expected *t)
{
    return t->n_dims == 2 && strstr(t->name, "proj") ? FP8 : PLAIN;
}

/* As released: the index's projections too, but for the one that weighs its heads. */
static form fp8_indexed(const cf_expected *t)
{
    bool index = strstr(t->name, "indexer.wq_b.") || strstr(t->name, "indexer.wk.");
    return index ? FP8 : strstr(t->name, "weights_proj") ? PLAIN : fp8_linears(t);
}

static form fp8_by_powers(const cf_expected *t)
{
    return fp8_linears(t) == FP8 ? FP8_E8M0 : PLAIN;
}

static form int4_experts(const cf_expected *t)
{
    return t->n_dims == 2 && strstr(t->name, ".experts.") ? INT4 : PLAIN;
}

static form mxfp4_experts(const cf_expected *t)
{
    return t->n_dims == 3 ? MXFP4 : PLAIN;
}

/* ---- cases ---- */

static void fp8_same_bits(void)
{
    json_t *config = parse(LATENT("DeepseekV3ForCausalLM", "136", "260", "144", FP8_CONFIG));
    same_bits(config, fp8_linears);
    same_bits(config, fp8_by_powers);
    json_decref(config);
}

/* DeepSeek-V3.2 and GLM-5: 21 tokens, of which the index chooses 7. */
static void fp8_indexed_same_bits(void)
{
    static const char *const models[] = {INDEXED("DeepseekV32ForCausalLM"),
                                         INDEXED("GlmMoeDsaForCausalLM")};
    for (size_t i = 0; i < 2; i++) {
        json_t *config = parse(models[i]);
        same_bits(config, fp8_indexed);
        json_decref(config);
    }
}

static void int4_same_bits(void)
{
    json_t *config = parse(LATENT("DeepseekV3ForCausalLM", "96", "64", "32", INT4_CONFIG("4")));
    same_bits(config, int4_experts);
    json_decref(config);
}

static void mxfp4_same_bits(void)
{
    json_t *config = parse(MXFP4_MODEL);
    same_bits(config, mxfp4_experts);
    json_decref(config);
}

static const char *only; /* a backend; NULL: all */

/* Every device that takes a form, plain or not, gives what the reference gives. */
static void devices_agree(const char *model, form_fn *form_of, bool expanded)
{
    cf_gpu_info infos[16];
    char text[1024];
    json_t *config = parse(model);
    result want = stored_run(config, form_of, expanded, "ref", NULL);
    int n = cf_gpu_list(infos, 16, text, sizeof text);
    for (int i = 0; i < n; i++) {
        char device[32];
        cf_err why = {0};
        if (only && strcmp(only, infos[i].backend) != 0)
            continue;
        snprintf(device, sizeof device, "%.15s:%d", infos[i].backend, infos[i].index);
        result got = stored_run(config, form_of, expanded, device, &why);
        double worst = 0, most = 0;
        for (size_t k = 0; k < (size_t)TOKENS * want.vocab; k++) {
            worst = fmax(worst, fabs((double)got.logits[k] - (double)want.logits[k]));
            most = fmax(most, fabs((double)want.logits[k]));
        }
        if (why.msg[0])
            printf("    %s\n", why.msg);
        else if (!(worst <= 1e-3 * most))
            printf("    %s: logits of up to %g are off by %g\n", device, most, worst);
        bool ref = strcmp(infos[i].backend, "ref") == 0;
        CHECK(why.msg[0] ? !ref && !got.rows : worst <= 1e-3 * most);
        free(got.logits);
    }
    free(want.logits);
    json_decref(config);
}

static void interleaved_everywhere(void)
{
    devices_agree(MXFP4_MODEL, mxfp4_experts, true);
}

static void codes_everywhere(void)
{
    devices_agree(MXFP4_MODEL, mxfp4_experts, false);
    devices_agree(LATENT("DeepseekV3ForCausalLM", "96", "64", "32", INT4_CONFIG("4")), int4_experts,
                  false);
    devices_agree(LATENT("DeepseekV3ForCausalLM", "136", "260", "144", FP8_CONFIG), fp8_linears,
                  false);
}

/* Opening is refused with a sentence that has `text`. */
static void refused(const char *model, form_fn *form_of, const spoil *how, const char *text)
{
    cf_err err = {0};
    struct store s;
    json_t *config = parse(model);
    store_init(&s, false, how);
    store_fill(&s, config, form_of);
    cf_model *m = model_bind(&s, config, &err);
    CHECK(!m);
    CHECK_INT(err.code, CF_EFORMAT);
    CHECK_HAS(err.msg, text);
    cf_model_free(&m);
    store_finish(&s);
    json_decref(config);
}

static void halves_refused(void)
{
    const char *fp8 = LATENT("DeepseekV3ForCausalLM", "136", "260", "144", FP8_CONFIG);
    const char *int4 = LATENT("DeepseekV3ForCausalLM", "96", "64", "32", INT4_CONFIG("4"));
    refused(LATENT("DeepseekV3ForCausalLM", "136", "260", "144", ""), fp8_linears, NULL,
            "weight_block_size");
    refused(fp8, fp8_linears,
            &(spoil){"1.self_attn.kv_b_proj.weight_scale_inv", true, 0, CF_FORMAT_COUNT},
            "kv_b_proj.weight_scale_inv is missing");
    refused(fp8, fp8_linears, &(spoil){"3.up_proj.weight_scale_inv", false, 7, CF_FORMAT_COUNT},
            "3.up_proj.weight_scale_inv has shape [7, 2], the config implies [2, 2]");
    refused(fp8, fp8_linears, &(spoil){"0.down_proj.weight_scale_inv", false, 0, CF_I8},
            "has dtype I8; scales are F32, F16, BF16 or F8_E8M0");
    refused(fp8, fp8_linears, &(spoil){"1.down_proj.weight_scale_inv", false, 0, CF_BF16},
            "have dtype BF16, those of expert 0 have F32");
    refused(int4, int4_experts, &(spoil){"2.gate_proj.weight_scale", true, 0, CF_FORMAT_COUNT},
            "2.gate_proj.weight_scale is missing");
    refused(int4, int4_experts, &(spoil){"2.gate_proj.weight_packed", false, 0, CF_U32},
            "has dtype U32, must be I32");
    refused(int4, int4_experts, &(spoil){"2.gate_proj.weight_shape", false, 3, CF_FORMAT_COUNT},
            "has shape [3]");
    refused(MXFP4_MODEL, mxfp4_experts, &(spoil){"down_proj_scales", true, 0, CF_FORMAT_COUNT},
            "down_proj_scales is missing");
    refused(MXFP4_MODEL, mxfp4_experts, &(spoil){"gate_up_proj_blocks", false, 0, CF_I8},
            "has dtype I8, must be U8");
}

static void config_refused(const char *model, const char *text)
{
    cf_err err = {0};
    cf_expected *list = NULL;
    uint64_t n = 0;
    json_t *config = parse(model);
    CHECK_INT(cf_model_expected(config, "config.json", &list, &n, &err), CF_EFORMAT);
    CHECK_HAS(err.msg, text);
    json_decref(config);
}

#define WITH_QUANT(q)                                                                              \
    LATENT("DeepseekV3ForCausalLM", "96", "64", "32", ",\"quantization_config\":" q)

static void methods_refused(void)
{
    config_refused(WITH_QUANT("{\"quant_method\":\"awq\"}"), "\"awq\" is unknown; known: fp8");
    config_refused(WITH_QUANT("{\"quant_method\":\"fp8\"}"), "0 x 0 values");
    config_refused(WITH_QUANT("{\"quant_method\":\"fp8\",\"weight_block_size\":[128,100]}"),
                   "128 x 100 values");
    config_refused(WITH_QUANT("{\"quant_method\":\"compressed-tensors\",\"format\":\"float\"}"),
                   "only the format pack-quantized");
    config_refused(LATENT("DeepseekV3ForCausalLM", "96", "64", "32", INT4_CONFIG("8")),
                   "only symmetric 4-bit integers");
}

/* The text model of a multimodal checkpoint gives what it gives alone; its tower is left out. */
static void wrapped_same_bits(void)
{
    const uint64_t two = 2;
    const float zeros[2] = {0, 0};
    cf_err err = {0};
    result r[2];
    json_t *text = parse(LATENT("DeepseekV3ForCausalLM", "96", "64", "32", INT4_CONFIG("4")));
    json_t *top = parse("{\"architectures\":[\"KimiK25ForConditionalGeneration\"]}");
    json_object_set(top, "text_config", text);
    for (int wrapped = 0; wrapped < 2; wrapped++) {
        struct store s;
        const json_t *config = wrapped ? top : text;
        store_init(&s, false, NULL);
        store_fill(&s, config, int4_experts);
        if (wrapped)
            add(&s, "vision_tower.encoder.blocks.0.norm0.weight", CF_F32, &two, 1, zeros);
        tmp_write(tmp_path(&s.dir, "weights"), s.data, FILE_BYTES);
        cf_model *m = model_bind(&s, config, &err);
        CHECK_STR(err.msg, "");
        must(m);
        CHECK_INT(m->n_skipped, wrapped);
        CHECK_STR(m->skipped_what, wrapped ? "vision tower" : "");
        CHECK_INT(strncmp(m->weights[0].name, "language_model.", 15) == 0, wrapped);
        r[wrapped] = model_run(m, "ref", NULL);
        store_finish(&s);
    }
    CHECK(memcmp(r[0].logits, r[1].logits, (size_t)TOKENS * r[0].vocab * sizeof(float)) == 0);
    free(r[0].logits);
    free(r[1].logits);
    json_decref(text);
    json_decref(top);
}

int main(int argc, char **argv)
{
    only = argc > 1 ? argv[1] : NULL;
    RUN(fp8_same_bits);
    RUN(fp8_indexed_same_bits);
    RUN(int4_same_bits);
    RUN(mxfp4_same_bits);
    RUN(interleaved_everywhere);
    RUN(codes_everywhere);
    RUN(halves_refused);
    RUN(methods_refused);
    RUN(wrapped_same_bits);
    return check_done();
}
