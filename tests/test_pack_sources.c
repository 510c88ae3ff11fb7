/* Packs of every kind of source. Catches: values that are taken without their outer scales or with
 * another block's, nibbles or interleaved rows in the wrong order, biases that are left behind, a
 * rotation that a GGUF file has otherwise than its config says, a part of a fused or split file
 * that is read from the wrong place, a format that `keep` changes, a streamed weight whose
 * checksum nobody looks at.
 *
 * What a pack of the type keep computes must be what its source computes, bit for bit, whole and
 * compressed; and from either the quantiser must make the same file. */
#include "tests/check.h"

#include <glob.h>
#include <jansson.h>
#include <sys/stat.h>
#include <unistd.h>

#include "models/family.h"
#include "runtime/base/f16.h"
#include "runtime/base/rng.h"
#include "runtime/engine.h"
#include "storage/safetensors_write.h"
#include "tests/support/cli.h"
#include "tests/support/gguf_small.h"
#include "tests/support/packs.h"

static tmp_dir dir;

static run wanted, got;

static void check_same(const char *what)
{
    bool same = pack_runs_equal(&wanted, &got);
    if (!same)
        printf("    %s: not what the source computes (\"%s\", \"%s\")\n", what, wanted.err.msg,
               got.err.msg);
    CHECK(same);
}

static void pack(const char *from, const char *to, const char *more)
{
    int code = cli_run("pack %s %s/%s --force -q %s", from, dir.path, to, more);
    CHECK_INT(code, 0);
    if (code)
        printf("    %s: %s", from, cli_said("stderr"));
}

static void one_source(const char *path)
{
    static const char types[] = "--experts q8_0 --resident q6_k";
    char kept[300], a[300], b[300];
    snprintf(kept, sizeof kept, "%s/kept.gguf", dir.path);
    snprintf(a, sizeof a, "%s/a.gguf", dir.path);
    snprintf(b, sizeof b, "%s/b.gguf", dir.path);
    pack_run(&wanted, path, false, 0);
    pack(path, "kept.gguf", "");
    pack_run(&got, kept, false, 0);
    check_same(path);
    pack(path, "a.gguf", "--zstd");
    pack_run(&got, a, true, 0);
    check_same(path);
    pack(path, "a.gguf", types);
    pack(kept, "b.gguf", types);
    if (!tmp_files_equal(a, b))
        printf("    %s: what the quantiser makes of it and of its pack differs\n", path);
    CHECK(tmp_files_equal(a, b));
    pack_run(&got, a, false, 0);
    CHECK_STR(got.err.msg, "");
}

/* ---- safetensors ---- */

static void stored_forms(void)
{
    static const char *const models[] = {
        "deepseek_v3_fp8",   "gpt_oss", "deepseek_v32", "longcat_ngram", "qwen3_next",
        "minimax",           "phimoe",  "grok2",        "dbrx",          "llama4_maverick",
        "longcat_flash_yarn"};
    for (size_t i = 0; i < sizeof models / sizeof *models; i += SANITIZED ? 4 : 1) {
        char path[200];
        snprintf(path, sizeof path, "tests/fixtures/models/%s", models[i]);
        one_source(path);
    }
}

static void floats_random(cf_rng *rng, float *v, uint64_t n, float about)
{
    for (uint64_t i = 0; i < n; i++)
        v[i] = about + 0.3f * (float)(cf_rng_unit(rng) - 0.5);
}

enum { INT4_TENSORS = 2000 };

/* A tensor as it is listed, or, where it is a matrix of an expert, as 4-bit codes in words, BF16
 * scales for 32 of them, and a shape. */
static uint32_t int4_specs(const cf_expected *t, cf_tensor_spec out[3])
{
    static const char *const ends[3] = {"_packed", "_scale", "_shape"};
    static const cf_format formats[3] = {CF_I32, CF_BF16, CF_I64};
    bool codes = t->n_dims == 2 && strstr(t->name, ".experts.");
    if (!codes) {
        out[0] = (cf_tensor_spec){.name = t->name, .format = CF_F32, .n_dims = t->n_dims};
        memcpy(out[0].shape, t->shape, sizeof t->shape);
        return 1;
    }
    for (int i = 0; i < 3; i++) {
        char *name = malloc(strlen(t->name) + 16);
        must(name != NULL);
        sprintf(name, "%s%s", t->name, ends[i]);
        out[i] = (cf_tensor_spec){.name = name, .format = formats[i], .n_dims = i < 2 ? 2 : 1};
        out[i].shape[0] = i < 2 ? t->shape[0] : 2;
        out[i].shape[1] = t->shape[1] / (i ? 32 : 8);
    }
    return 3;
}

static void int4_data(cf_safetensors_writer *w, cf_rng *rng, const cf_tensor_spec *spec,
                      const cf_expected *t)
{
    cf_err err = {0};
    uint64_t bytes;
    must(cf_tensor_spec_bytes(spec, &bytes));
    uint8_t *data = malloc(bytes);
    must(data != NULL);
    if (spec->format == CF_F32)
        floats_random(rng, (float *)(void *)data, bytes / 4, t->norm ? 1 : 0);
    for (uint64_t i = 0; spec->format == CF_I32 && i < bytes; i++)
        data[i] = (uint8_t)cf_rng_below(rng, 256);
    for (uint64_t i = 0; spec->format == CF_BF16 && i < bytes / 2; i++)
        ((uint16_t *)(void *)data)[i] = cf_f32_to_bf16((float)(0.01 + 0.05 * cf_rng_unit(rng)));
    if (spec->format == CF_I64)
        memcpy(data, (const int64_t[2]){(int64_t)t->shape[0], (int64_t)t->shape[1]}, bytes);
    must(cf_safetensors_append(w, data, bytes, &err) == 0);
    free(data);
}

static void int4_make(const char *to)
{
    static cf_tensor_spec specs[INT4_TENSORS];
    static const cf_expected *of[INT4_TENSORS];
    cf_expected *list = NULL;
    cf_safetensors_writer *w = NULL;
    cf_err err = {0};
    cf_rng rng = {.state = 11};
    uint64_t n = 0;
    uint32_t n_specs = 0;
    char path[400];
    json_t *config = json_load_file("tests/fixtures/models/deepseek_v3/config.json", 0, NULL);
    json_t *set = json_loads(
        "{\"hidden_size\": 64, \"intermediate_size\": 96, \"moe_intermediate_size\": 32,"
        "\"quantization_config\": {\"quant_method\": \"compressed-tensors\", \"format\":"
        "\"pack-quantized\", \"config_groups\": {\"group_0\": {\"targets\": [\"Linear\"],"
        "\"weights\": {\"num_bits\": 4, \"type\": \"int\", \"symmetric\": true, \"strategy\":"
        "\"group\", \"group_size\": 32}}}}}",
        0, NULL);
    must(config && set && json_object_update(config, set) == 0);
    must(cf_model_expected(config, to, &list, &n, &err) == 0);
    mkdir(to, 0700);
    for (uint64_t i = 0; i < n; i++) {
        must(n_specs + 3 <= INT4_TENSORS);
        uint32_t more = int4_specs(&list[i], &specs[n_specs]);
        while (more--)
            of[n_specs++] = &list[i];
    }
    snprintf(path, sizeof path, "%s/model.safetensors", to);
    must(cf_safetensors_create(&w, path, specs, n_specs, CF_DATA_ALIGNED_8, &err) == 0);
    for (uint32_t i = 0; i < n_specs; i++)
        int4_data(w, &rng, &specs[i], of[i]);
    must(cf_safetensors_commit(&w, &err) == 0);
    snprintf(path, sizeof path, "%s/config.json", to);
    must(json_dump_file(config, path, 0) == 0);
    for (uint32_t i = 0; i < n_specs; i++)
        if (specs[i].name != of[i]->name)
            free((char *)specs[i].name);
    cf_expected_free(list, n);
    json_decref(config);
    json_decref(set);
}

static void packed_integers(void)
{
    char path[300];
    snprintf(path, sizeof path, "%s/int4", dir.path);
    int4_make(path);
    one_source(path);
}

/* What keep makes of outer scales is said, and is what it says. */
static void scales_are_said(void)
{
    cf_model *m = NULL;
    cf_err err = {0};
    pack("tests/fixtures/models/deepseek_v3_fp8", "fp8.gguf", "");
    CHECK_HAS(cli_said("stdout"), "matrices whose scales are tensors of their own became f32");
    REQUIRE(cf_model_open(&m, tmp_path(&dir, "fp8.gguf"), &err) == 0);
    CHECK_INT(m->moe[0].pieces[CF_UP].dtype, CF_F32);
    cf_model_free(&m);
    pack("tests/fixtures/models/gpt_oss", "mx.gguf", "");
    CHECK(!strstr(cli_said("stdout"), "became f32"));
    REQUIRE(cf_model_open(&m, tmp_path(&dir, "mx.gguf"), &err) == 0);
    CHECK_INT(m->moe[0].pieces[CF_UP].dtype, CF_MXFP4);
    CHECK_INT(m->moe[0].biases[CF_DOWN].dtype, CF_F32);
    cf_model_free(&m);
}

/* An encoder, and experts of two matrices. */
static void encoder(void)
{
    char text[256], options[400];
    tmp_write(tmp_path(&dir, "ids"), "7 60 3 55 8", 11);
    snprintf(options, sizeof options, "--ids %s/ids -n 6 --device ref --print-ids -q", dir.path);
    CHECK_INT(cli_run("run tests/fixtures/models/switch_transformers %s", options), 0);
    snprintf(text, sizeof text, "%.250s", cli_said("stdout"));
    CHECK(strlen(text) > 4);
    pack("tests/fixtures/models/switch_transformers", "switch.gguf", "");
    CHECK_INT(cli_run("run %s/switch.gguf %s", dir.path, options), 0);
    CHECK_STR(cli_said("stdout"), text);
}

/* ---- GGUF ---- */

static void gguf_files(void)
{
    glob_t found = {0};
    glob("../shared/fixtures/gguf/*.gguf", 0, NULL, &found);
    glob("../shared/fixtures/gguf/split/*-00001-of-*.gguf", GLOB_APPEND, NULL, &found);
    size_t n = found.gl_pathc;
    for (size_t i = 0; i < n; i += SANITIZED ? 5 : 1)
        one_source(found.gl_pathv[i]);
    globfree(&found);
    if (n == 0)
        SKIP("there are no GGUF files beside the repository");
}

/* A matrix in NVFP4, with a scale for it or for each expert's. */
static void nvfp4_put(gguf_small *g, const char *name, uint32_t n_dims, const uint64_t *shape)
{
    char full[100];
    float scales[GGUF_SMALL_EXPERTS];
    uint64_t experts = n_dims > 2 ? shape[0] : 1, values = 1;
    for (uint32_t i = 0; i < n_dims; i++)
        values *= shape[i];
    uint64_t bytes = cf_format_row_bytes(CF_NVFP4, values);
    uint8_t *data = malloc(bytes);
    must(data != NULL);
    for (uint64_t i = 0; i < bytes; i++) /* four scales, then codes */
        data[i] = (uint8_t)(i % 36 < 4 ? 0x20 + cf_rng_below(&g->rng, 32)
                                       : cf_rng_below(&g->rng, 256));
    for (uint64_t e = 0; e < experts; e++)
        scales[e] = (float)(0.05 + 0.1 * cf_rng_unit(&g->rng));
    snprintf(full, sizeof full, "%s.weight", name);
    gguf_put_tensor(&g->out, full, CF_NVFP4, n_dims, shape, data, bytes);
    snprintf(full, sizeof full, "%s.scale", name);
    if (strcmp(name, "token_embd") != 0)
        gguf_put_tensor(&g->out, full, CF_F32, 1, &experts, scales, experts * sizeof *scales);
    free(data);
}

static void scaled_gguf(void)
{
    char path[300];
    gguf_small g = {.rng = {3}, .matrix = nvfp4_put};
    snprintf(path, sizeof path, "%s/nvfp4.gguf", dir.path);
    gguf_small_put(&g);
    gguf_write(&g.out, path);
    one_source(path);
}

/* A vocabulary in the metadata comes along. */
static void vocabulary(void)
{
    static const char path[] = "../shared/fixtures/gguf/qwen3_moe-q4_k_m.gguf";
    cf_model *a = NULL, *b = NULL;
    cf_err err = {0};
    cf_text x, y;
    if (access(path, F_OK) != 0)
        SKIP("there are no GGUF files beside the repository");
    pack(path, "words.gguf", "--experts q4_0");
    REQUIRE(cf_model_open(&a, path, &err) == 0);
    REQUIRE(cf_model_open(&b, tmp_path(&dir, "words.gguf"), &err) == 0);
    CHECK_STR(b->spec.name, a->spec.name);
    CHECK_INT(cf_gguf_string(a->gguf, "tokenizer.ggml.model", &x, &err), 1);
    REQUIRE(cf_gguf_string(b->gguf, "tokenizer.ggml.model", &y, &err) == 1);
    CHECK(x.bytes == y.bytes && memcmp(x.at, y.at, x.bytes) == 0);
    cf_model_free(&a);
    cf_model_free(&b);
}

/* ---- streamed dense weights ---- */

/* So little memory that dense weights are streamed: the same logits; and a flipped bit in one of
 * them is found when it is read. */
static void streamed_weights_are_checked(void)
{
    static const char from[] = "tests/fixtures/models/deepseek_v2";
    char path[300];
    cf_model *m = NULL;
    cf_err err = {0};
    uint64_t vram = 64u << 20, low = 0;
    snprintf(path, sizeof path, "%s/dense.gguf", dir.path);
    pack(from, "dense.gguf", "");
    pack_run(&wanted, from, false, 0);
    while (vram - low > 4096) {
        uint64_t middle = low + (vram - low) / 2;
        pack_run(&got, path, true, middle);
        *(got.rc < 0 ? &low : &vram) = middle;
    }
    pack_run(&got, path, true, vram);
    CHECK(got.streamed > 0);
    check_same("streamed");
    REQUIRE(cf_model_open(&m, path, &err) == 0);
    const cf_weight_def *w = NULL;
    for (uint32_t i = 0; i < m->n_weights; i++)
        if (strstr(m->weights[i].name, "layers.0.self_attn.o_proj"))
            w = &m->weights[i];
    REQUIRE(w != NULL);
    FILE *f = fopen(path, "r+b");
    REQUIRE(f != NULL);
    fseek(f, (long)(w->extent.off + w->extent.bytes / 2), SEEK_SET);
    int c = getc(f);
    fseek(f, -1, SEEK_CUR);
    putc(c ^ 4, f);
    fclose(f);
    pack_run(&got, path, true, vram);
    CHECK_INT(got.rc, CF_ECHANGED);
    CHECK(got.streamed > 0); /* it was open by then */
    CHECK_HAS(got.err.msg, "layers.0.self_attn.o_proj");
    CHECK_HAS(got.err.msg, "is damaged");
    cf_model_free(&m);
}

int main(void)
{
    if (!cli_begin(&dir))
        return 77;
    RUN(stored_forms);
    RUN(packed_integers);
    RUN(scales_are_said);
    RUN(encoder);
    RUN(gguf_files);
    RUN(scaled_gguf);
    RUN(vocabulary);
    RUN(streamed_weights_are_checked);
    tmp_dir_finish(&dir);
    return check_done();
}
