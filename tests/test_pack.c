/* Packs. Catches: an expert that comes out of a fused or transposed source in another order, a
 * format that is not the one asked for, a block that is not the quantiser's, a checksum that is not
 * held against some read, a compressed record that decodes to something else or writes beyond its
 * place, a damaged file that gives a token, a killed or failed pack that leaves something which
 * opens, memory that grows with the model, and a file that other readers of GGUF refuse.
 *
 * Packs are made by the built binary (support/cli.h) from small random models and
 * opened by the library. The reference for a pack is its source with every tensor replaced by what
 * the quantiser's blocks hold, along the dimension that is multiplied: no code of the packer. */
#include "tests/check.h"

#include <fcntl.h>
#include <jansson.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "gpu/formats.h"
#include "models/family.h"
#include "runtime/base/align.h"
#include "runtime/base/rng.h"
#include "runtime/engine.h"
#include "runtime/quantise.h"
#include "storage/safetensors.h"
#include "storage/safetensors_write.h"
#include "tests/support/cli.h"
#include "tests/support/packs.h"
#include "tests/support/reseal.h"

static tmp_dir dir;

/* ---- models ---- */

typedef struct source {
    const char *name, *fixture, *text; /* text: the object that dimensions are in, or NULL */
    const char *set;                   /* JSON object: what is changed in it */
} source;

/* Widths that have blocks of 256, and of each kind of source one: single matrices with tables read
 * by rows, single matrices, fused and half transposed, fused, interleaved and transposed. */
static const source sources[] = {
    {"longcat", "longcat_ngram", NULL,
     "{\"hidden_size\": 768, \"expert_ffn_hidden_size\": 256, \"ffn_hidden_size\": 256, "
     "\"n_routed_experts\": 4, \"zero_expert_num\": 2, \"moe_topk\": 2, \"num_layers\": 2}"},
    {"mixtral", "mixtral", NULL, "{\"hidden_size\": 256, \"intermediate_size\": 256}"},
    {"dbrx", "dbrx", NULL,
     "{\"d_model\": 256, \"n_heads\": 4, \"ffn_config\": {\"ffn_hidden_size\": 256, "
     "\"moe_num_experts\": 3, \"moe_top_k\": 2}}"},
    {"llama4", "llama4_scout", "text_config",
     "{\"hidden_size\": 256, \"intermediate_size\": 256, \"intermediate_size_mlp\": 256}"},
};
enum { N_SOURCES = sizeof sources / sizeof *sources };

static void model_make(const source *s)
{
    char path[300];
    snprintf(path, sizeof path, "tests/fixtures/models/%s/config.json", s->fixture);
    json_t *config = json_load_file(path, 0, NULL), *set = json_loads(s->set, 0, NULL);
    must(config && set);
    json_t *at = s->text ? json_object_get(config, s->text) : config;
    must(json_object_update(at, set) == 0);
    char *text = json_dumps(config, 0);
    tmp_write(tmp_path(&dir, "config"), text, strlen(text));
    free(text);
    json_decref(config);
    json_decref(set);
    int code = cli_run("mkmodel %s/%s --config %s/config", dir.path, s->name, dir.path);
    if (code)
        printf("    %s", cli_said("stderr"));
    must(code == 0);
}

static void models_make(void)
{
    static bool made;
    for (int i = 0; i < N_SOURCES && !made; i++)
        model_make(&sources[i]);
    made = true;
}

/* ---- the reference: a source of what the blocks hold ---- */

static bool has(const char *name, const char *part)
{
    return strstr(name, part) != NULL;
}

static bool is_expert(const cf_tensor *t)
{
    return has(t->name, ".experts.") && !has(t->name, "shared");
}

/* Stored with the dimension that is multiplied outermost of an expert. */
static bool is_transposed(const cf_tensor *t)
{
    return has(t->name, "experts.gate_up_proj") || has(t->name, "experts.down_proj") ||
           has(t->name, "experts.mlp.w2");
}

static bool is_router(const cf_tensor *t)
{
    return has(t->name, "router") || has(t->name, ".gate.weight");
}

/* The rule that `pack --help` states. */
static cf_format rule(cf_format f, uint64_t cols)
{
    if (f == CF_Q6_K && cols % 256)
        f = CF_Q8_0;
    if (f == CF_Q5_K && cols % 256)
        f = CF_Q5_1;
    if (f == CF_Q4_K && cols % 256)
        f = CF_Q5_0;
    return cols % cf_formats[f].block_values ? CF_F16 : f;
}

/* n values at a distance of `step`, as the blocks of f have them. */
static void blocks_round(cf_format f, float *at, uint64_t n, uint64_t step)
{
    static float row[1 << 16];
    static uint8_t blocks[1 << 18];
    must(n <= sizeof row / sizeof *row);
    for (uint64_t i = 0; i < n; i++)
        row[i] = at[i * step];
    f = rule(f, n);
    must(cf_quantise_row(f, row, n, blocks) == -1);
    cf_ref_format_decode(f, blocks, 0, n, row);
    for (uint64_t i = 0; i < n; i++)
        at[i * step] = row[i];
}

/* What a pack in these formats holds of a tensor. CF_FORMAT_COUNT: what it was. */
static void tensor_round(const cf_tensor *t, float *v, uint64_t n, cf_format experts,
                         cf_format resident, uint64_t n_experts)
{
    uint64_t cols = t->shape[t->n_dims - 1];
    cf_format f = is_expert(t) ? experts : resident;
    if (t->n_dims == 1 || is_router(t) || f == CF_FORMAT_COUNT)
        return;
    if (is_transposed(t)) {
        uint64_t deep = n / n_experts / cols; /* values that lie below each other */
        for (uint64_t e = 0; e < n_experts; e++)
            for (uint64_t c = 0; c < cols; c++)
                blocks_round(f, v + e * deep * cols + c, deep, cols);
        return;
    }
    for (uint64_t r = 0; r < n / cols; r++)
        blocks_round(f, v + r * cols, cols, 1);
}

static float *tensor_values(const cf_catalogue *cat, const cf_tensor *t, uint64_t *n)
{
    uint8_t *raw = malloc(t->extent.bytes);
    int fd = open(cf_catalogue_path(cat, t->extent.file), O_RDONLY);
    *n = 1;
    for (uint32_t i = 0; i < t->n_dims; i++)
        *n *= t->shape[i];
    float *v = malloc(*n * sizeof *v);
    must(raw && v && fd >= 0);
    must(pread(fd, raw, t->extent.bytes, (off_t)t->extent.off) == (ssize_t)t->extent.bytes);
    cf_ref_format_decode(t->format, raw, 0, *n, v);
    close(fd);
    free(raw);
    return v;
}

/* dir/ref: the model `name` in F32, with the values of its blocks. */
static void reference_make(const char *name, cf_format experts, cf_format resident)
{
    char from[300], to[300], path[400];
    cf_err err = {0};
    cf_catalogue *cat = NULL;
    cf_model *m = NULL;
    cf_safetensors_writer *w = NULL;
    snprintf(from, sizeof from, "%s/%s", dir.path, name);
    snprintf(to, sizeof to, "%s/ref", dir.path);
    mkdir(to, 0700);
    must(cf_model_open(&m, from, &err) == 0 && cf_safetensors_open(from, &cat, &err) == 0);
    uint32_t n = cf_catalogue_count(cat);
    cf_tensor_spec *specs = calloc(n, sizeof *specs);
    must(specs != NULL);
    for (uint32_t i = 0; i < n; i++) {
        const cf_tensor *t = cf_catalogue_at(cat, i);
        specs[i] = (cf_tensor_spec){.name = t->name, .format = CF_F32, .n_dims = t->n_dims};
        memcpy(specs[i].shape, t->shape, sizeof specs[i].shape);
    }
    snprintf(path, sizeof path, "%s/model.safetensors", to);
    must(cf_safetensors_create(&w, path, specs, n, CF_DATA_ALIGNED_8, &err) == 0);
    for (uint32_t i = 0; i < n; i++) {
        uint64_t values;
        const cf_tensor *t = cf_catalogue_at(cat, i);
        float *v = tensor_values(cat, t, &values);
        tensor_round(t, v, values, experts, resident, m->moe[0].experts);
        must(cf_safetensors_append(w, v, values * sizeof *v, &err) == 0);
        free(v);
    }
    must(cf_safetensors_commit(&w, &err) == 0);
    snprintf(path, sizeof path, "%s/config.json", to);
    tmp_write(path, m->config, strlen(m->config));
    free(specs);
    cf_catalogue_close(&cat);
    cf_model_free(&m);
}

static void check_ran(const run *r)
{
    CHECK_STR(r->err.msg, "");
    CHECK_INT(r->rc, 0);
}

/* ---- what a pack computes ---- */

static const struct {
    const char *name;
    cf_format format;
} types[] = {
    {"keep", CF_FORMAT_COUNT}, {"q8_0", CF_Q8_0}, {"q6_k", CF_Q6_K},     {"q5_k", CF_Q5_K},
    {"q4_k", CF_Q4_K},         {"q4_0", CF_Q4_0}, {"iq4_nl", CF_IQ4_NL}, {"mxfp4", CF_MXFP4},
    {"bf16", CF_BF16},         {"f16", CF_F16}};
enum { N_TYPES = sizeof types / sizeof *types };

static run wanted, got;

static void one_type(const source *s, int type)
{
    char path[300];
    int other = (type + 1) % N_TYPES; /* so that experts and residents cannot be mixed up */
    snprintf(path, sizeof path, "%s/ref", dir.path);
    reference_make(s->name, types[type].format, types[other].format);
    pack_run(&wanted, path, false, 0);
    check_ran(&wanted);
    snprintf(path, sizeof path, "%s/p.gguf", dir.path);
    for (int zstd = 0; zstd < 2; zstd++) {
        int code = cli_run("pack %s/%s %s --force --experts %s --resident %s %s", dir.path, s->name,
                           path, types[type].name, types[other].name, zstd ? "--zstd" : "");
        CHECK_INT(code, 0);
        if (code)
            printf("    %s", cli_said("stderr"));
        for (int discrete = 0; discrete < 2; discrete++) {
            pack_run(&got, path, discrete, 0);
            check_ran(&got);
            if (!pack_runs_equal(&wanted, &got))
                printf("    %s, experts %s, resident %s, zstd %d, discrete %d\n", s->name,
                       types[type].name, types[other].name, zstd, discrete);
            CHECK(pack_runs_equal(&wanted, &got));
        }
    }
}

static void logits_are_those_of_the_blocks(void)
{
    models_make();
    for (int i = 0; i < N_SOURCES; i++)
        for (int type = i % 2; type < N_TYPES; type += i == 0 && !SANITIZED ? 1
                                                       : SANITIZED          ? N_TYPES
                                                                            : 4)
            one_type(&sources[i], type);
}

/* Blocks were really written: another format moves the logits. */
static void formats_are_what_was_asked_for(void)
{
    static const cf_format experts[] = {CF_Q4_K, CF_Q4_K, CF_Q4_K};
    cf_model *m = NULL;
    cf_err err = {0};
    char path[300];
    models_make();
    snprintf(path, sizeof path, "%s/f.gguf", dir.path);
    CHECK_INT(cli_run("pack %s/longcat %s --experts q4_k --resident q6_k --json", dir.path, path),
              0);
    CHECK_HAS(cli_said("stdout"), "\"experts\": \"Q4_K\"");
    CHECK_HAS(cli_said("stdout"), "\"resident\": \"Q6_K\"");
    REQUIRE(cf_model_open(&m, path, &err) == 0);
    uint32_t q6 = 0, q8 = 0, f16 = 0, f32 = 0;
    for (uint32_t i = 0; i < m->n_weights; i++) {
        const cf_weight_def *w = &m->weights[i];
        CHECK((w->rows == 1 || w->must_be_finite) == (w->dtype == CF_F32));
        q6 += w->dtype == CF_Q6_K;
        q8 += w->dtype == CF_Q8_0;
        f16 += w->dtype == CF_F16;
        f32 += w->dtype == CF_F32;
    }
    CHECK(q6 > 0 && q8 > 0 && f16 > 0 && f32 > 0); /* widths of 768, 32, 48, and vectors */
    for (int p = 0; p < CF_EXPERT_PIECES; p++)
        CHECK_INT(m->moe[0].pieces[p].dtype, experts[p]);
    CHECK_STR(m->spec.name, "longcat");
    cf_model_free(&m);
}

/* ---- what a pack is ---- */

static void *file_load(const char *path, uint64_t *bytes)
{
    struct stat st;
    FILE *f = fopen(path, "rb");
    must(f != NULL && stat(path, &st) == 0);
    *bytes = (uint64_t)st.st_size;
    void *data = malloc(*bytes + 1);
    must(data && fread(data, 1, *bytes, f) == *bytes);
    fclose(f);
    return data;
}

static uint64_t number_at(const uint8_t *p, uint32_t n)
{
    uint64_t v = 0;
    for (uint32_t i = n; i--;)
        v = v << 8 | p[i];
    return v;
}

/* What strict readers demand beyond what ours does: names below 64 bytes, the order of the infos,
 * no gaps, the data begins at the alignment, all of it there. */
static void strictly_valid(const char *path)
{
    uint64_t bytes, want = 0;
    cf_catalogue *cat = NULL;
    cf_gguf *meta = NULL;
    cf_err err = {0};
    uint32_t alignment = 0;
    uint8_t *file = file_load(path, &bytes);
    REQUIRE(cf_gguf_open(path, &cat, &meta, &err) == 0);
    CHECK_INT(number_at(file + 4, 4), 3);
    CHECK_INT(number_at(file + 8, 8), cf_catalogue_count(cat));
    CHECK_INT(number_at(file + 16, 8), cf_gguf_count(meta));
    CHECK_INT(cf_gguf_u32(meta, "general.alignment", &alignment, &err), 1);
    CHECK_INT(alignment, 4096);
    want = cf_catalogue_at(cat, 0)->extent.off;
    CHECK_INT(want % alignment, 0);
    for (uint32_t i = 0; i < cf_catalogue_count(cat); i++) {
        const cf_tensor *t = cf_catalogue_at(cat, i);
        CHECK(strlen(t->name) < 64 && t->n_dims >= 1 && t->n_dims <= 4);
        CHECK_INT(t->extent.off, want);
        want = cf_align_up(t->extent.off + t->extent.bytes, alignment);
    }
    CHECK_INT(want, bytes);
    free(file);
    cf_gguf_close(&meta);
    cf_catalogue_close(&cat);
}

static void others_can_list_it(void)
{
    models_make();
    for (int i = 0; i < 2 * N_SOURCES; i++) {
        char path[300];
        snprintf(path, sizeof path, "%s/v.gguf", dir.path);
        CHECK_INT(cli_run("pack %s/%s %s --force %s", dir.path, sources[i / 2].name, path,
                          i % 2 ? "--zstd --experts q8_0" : ""),
                  0);
        strictly_valid(path);
    }
}

/* Threads do not matter; a pack of a pack that changes nothing is the same file, compressed or
 * not on the way. */
static void same_bytes_every_time(void)
{
    char a[300], b[300];
    models_make();
    snprintf(a, sizeof a, "%s/a.gguf", dir.path);
    snprintf(b, sizeof b, "%s/b.gguf", dir.path);
    CHECK_INT(cli_run("pack %s/llama4 %s --experts q5_k --jobs 1", dir.path, a), 0);
    CHECK_INT(cli_run("pack %s/llama4 %s --experts q5_k --jobs 7", dir.path, b), 0);
    CHECK(tmp_files_equal(a, b));
    CHECK_INT(cli_run("pack %s %s --force", a, b), 0);
    CHECK(tmp_files_equal(a, b));
    CHECK_INT(cli_run("pack %s %s/z.gguf --zstd=1", a, dir.path), 0);
    CHECK_INT(cli_run("pack %s/z.gguf %s --force", dir.path, b), 0);
    CHECK(tmp_files_equal(a, b));
}

/* A record is one aligned read. */
static void records_are_one_read(void)
{
    cf_model *m = NULL;
    cf_err err = {0};
    char path[300];
    models_make();
    snprintf(path, sizeof path, "%s/one.gguf", dir.path);
    CHECK_INT(cli_run("pack %s/dbrx %s --experts q6_k", dir.path, path), 0);
    REQUIRE(cf_model_open(&m, path, &err) == 0);
    for (uint32_t i = 0; i < m->n_moe; i++)
        for (uint32_t e = 0; e < m->moe[i].experts; e++) {
            cf_layout l;
            cf_moe_layout(&m->moe[i], e, 4096, &l);
            CHECK_INT(l.n_runs, 1);
            CHECK(!cf_layout_unsettled(&l));
            CHECK_INT(l.runs[0].file_off, m->moe[i].extents[e * m->moe[i].n_extents].off);
        }
    cf_model_free(&m);
}

static void files_come_along(void)
{
    char path[300];
    cf_tokenizer *tok = NULL;
    cf_err err = {0};
    int32_t ids[64];
    size_t n = 0;
    snprintf(path, sizeof path, "%s/demo.gguf", dir.path);
    CHECK_INT(cli_run("pack models/demo %s --experts q8_0", path), 0);
    cf_model *m = NULL;
    REQUIRE(cf_model_open(&m, path, &err) == 0);
    const cf_tokenizer_place place = cf_model_tokenizer_place(m);
    REQUIRE(cf_tokenizer_open(&place, &tok, NULL, &err) == 0 && tok);
    cf_model_free(&m);
    CHECK_INT(cf_tokenizer_encode(tok, "Once upon a time", 16, 0, ids, 64, &n, &err), 0);
    CHECK(n > 0 && n < 16);
    cf_tokenizer_close(&tok);
    CHECK_INT(cli_run("run %s -p Once -n 3 --device ref -q", path), 0);
    CHECK_INT(cli_run("verify %s", path), 0);
    CHECK_HAS(cli_said("stdout"), "checksums");
    CHECK_INT(cli_run("info %s --device ref", path), 0);
    CHECK_HAS(cli_said("stdout"), "checksums");
    CHECK_INT(cli_run("info models/demo --device ref"), 0);
    CHECK_HAS(cli_said("stdout"), "no checksums");
}

/* ---- damage ---- */

static void byte_flip(const char *path, uint64_t off, uint8_t bits)
{
    uint8_t v = 0;
    int fd = open(path, O_RDWR);
    must(fd >= 0 && pread(fd, &v, 1, (off_t)off) == 1);
    v ^= bits;
    must(pwrite(fd, &v, 1, (off_t)off) == 1);
    close(fd);
}

static bool part_of_padding(const cf_model *m, uint64_t off)
{
    for (uint32_t i = 0; i < cf_catalogue_count(m->cat); i++) {
        const cf_tensor *t = cf_catalogue_at(m->cat, i);
        if (off >= t->extent.off && off < t->extent.off + t->extent.bytes)
            return false;
    }
    return true;
}

enum { FLIPS = SANITIZED ? 9 : 48 };

/* One flipped bit anywhere: an error with a sentence, or (where nothing reads it) the same logits;
 * and verify finds it wherever it is. */
static void flips(const char *path, uint64_t seed)
{
    cf_err err = {0};
    cf_model *m = NULL;
    cf_rng rng = {.state = seed};
    uint32_t failed = 0, opened = 0;
    REQUIRE(cf_model_open(&m, path, &err) == 0);
    uint64_t bytes = cf_catalogue_file_bytes(m->cat, 0);
    uint64_t header = cf_catalogue_at(m->cat, 0)->extent.off;
    pack_run(&wanted, path, false, 0);
    check_ran(&wanted);
    for (int i = 0; i < FLIPS; i++) {
        uint64_t off = i % 3 ? cf_rng_below(&rng, bytes) : cf_rng_below(&rng, header);
        byte_flip(path, off, (uint8_t)(1u << (i % 8)));
        pack_run(&got, path, i & 1, 0);
        if (got.rc < 0) {
            failed++;
            CHECK(got.err.msg[0] != 0);
        } else {
            opened++;
            CHECK(pack_runs_equal(&wanted, &got));
        }
        if (i < 6 && !part_of_padding(m, off))
            CHECK_INT(cli_run("verify %s", path), 1);
        byte_flip(path, off, (uint8_t)(1u << (i % 8)));
    }
    CHECK(failed >
          FLIPS / 2); /* a header's is always found; experts that are not chosen are not read */
    (void)opened;
    pack_run(&got, path, false, 0);
    CHECK(pack_runs_equal(&wanted, &got));
    cf_model_free(&m);
}

static void one_flipped_bit_is_never_a_token(void)
{
    char path[300];
    models_make();
    snprintf(path, sizeof path, "%s/flip.gguf", dir.path);
    for (int zstd = 0; zstd < 2; zstd++) {
        CHECK_INT(cli_run("pack %s/longcat %s --force --experts q4_0 --resident q8_0 %s", dir.path,
                          path, zstd ? "--zstd" : ""),
                  0);
        flips(path, 1 + (uint64_t)zstd);
    }
}

/* A flip in this tensor is found by opening or running, and by verify, with its name. */
static void named(const char *path, const char *tensor)
{
    cf_catalogue *cat = NULL;
    cf_gguf *meta = NULL;
    cf_err err = {0};
    REQUIRE(cf_gguf_open(path, &cat, &meta, &err) == 0);
    int64_t at = cf_catalogue_find(cat, tensor);
    REQUIRE(at >= 0);
    const cf_extent *e = &cf_catalogue_at(cat, (uint32_t)at)->extent;
    uint64_t off = e->off + e->bytes / 2;
    byte_flip(path, off, 0x10);
    CHECK_INT(cli_run("verify %s", path), 1);
    CHECK_HAS(cli_said("stderr"), "is damaged");
    CHECK_HAS(cli_said("stderr"), has(tensor, ".ffn_up.") ? "blk.1.ffn_gate.1.weight" : tensor);
    byte_flip(path, off, 0x10);
    cf_gguf_close(&meta);
    cf_catalogue_close(&cat);
}

static void damage_is_named(void)
{
    char path[300];
    models_make();
    snprintf(path, sizeof path, "%s/named.gguf", dir.path);
    CHECK_INT(cli_run("pack %s/mixtral %s", dir.path, path), 0);
    named(path, "model.layers.0.self_attn.q_proj.weight");
    named(path, "model.embed_tokens.weight");
    named(path, "blk.1.ffn_up.1.weight"); /* a record goes by its first piece */
    byte_flip(path, 40, 1);
    CHECK_INT(cli_run("verify %s", path), 1);
    byte_flip(path, 40, 1);
    /* All experts of a layer: whichever is chosen. */
    cf_catalogue *cat = NULL;
    cf_gguf *meta = NULL;
    REQUIRE(cf_gguf_open(path, &cat, &meta, NULL) == 0);
    for (uint32_t e = 0; e < 6; e++) {
        char name[64];
        snprintf(name, sizeof name, "blk.0.ffn_down.%u.weight", e);
        byte_flip(path, cf_catalogue_at(cat, (uint32_t)cf_catalogue_find(cat, name))->extent.off,
                  1);
    }
    pack_run(&got, path, false, 0);
    CHECK_INT(got.rc, CF_ECHANGED);
    CHECK_HAS(got.err.msg, "blk.0.ffn_gate.");
    CHECK_HAS(got.err.msg, "is damaged");
    cf_gguf_close(&meta);
    cf_catalogue_close(&cat);
}

/* Behind the checksums: whatever a frame holds, the record fails or decodes, and nothing else. */
enum { ROUNDS = SANITIZED ? 4 : 24 };

static void bad_frames(void)
{
    char path[300], copy[300];
    models_make();
    snprintf(path, sizeof path, "%s/frames.gguf", dir.path);
    snprintf(copy, sizeof copy, "%s/copied.gguf", dir.path);
    CHECK_INT(cli_run("pack %s/mixtral %s --zstd --experts q4_0", dir.path, path), 0);
    uint64_t bytes;
    void *data = file_load(path, &bytes);
    cf_rng rng = {.state = 5};
    uint32_t failed = 0;
    for (int round = 0; round < ROUNDS; round++) {
        cf_model *m = NULL;
        tmp_write(copy, data, bytes);
        REQUIRE(cf_model_open(&m, copy, NULL) == 0);
        for (uint32_t i = 0; i < m->n_moe; i++)
            for (uint32_t e = 0; e < m->moe[i].experts; e++) {
                const cf_extent *x = &m->moe[i].extents[e];
                for (int k = 0; k < 1 + round % 4; k++)
                    byte_flip(copy, x->off + cf_rng_below(&rng, round % 2 ? 32 : x->bytes),
                              (uint8_t)(1 + cf_rng_below(&rng, 255)));
            }
        cf_model_free(&m);
        REQUIRE(reseal_pack(copy));
        pack_run(&got, copy, round & 1, 0);
        failed += got.rc < 0;
        if (got.rc < 0)
            CHECK_HAS(got.err.msg, "layer ");
    }
    CHECK(failed > ROUNDS / 3);
    free(data);
}

/* ---- pack that fails or dies ---- */

static bool opens(const char *name)
{
    cf_model *m = NULL;
    bool ok = cf_model_open(&m, tmp_path(&dir, name), NULL) == 0;
    cf_model_free(&m);
    return ok;
}

static void killed_at_any_moment(void)
{
    char line[700];
    cf_rng rng = {.state = 3};
    uint32_t early = 0;
    models_make();
    snprintf(line, sizeof line, "pack %s/longcat %s/k.gguf --experts q6_k --jobs 2", dir.path,
             dir.path);
    for (int i = 0; i < (SANITIZED ? 4 : 20); i++) {
        pid_t pid = cli_start(line, -1, -1, 0);
        usleep((useconds_t)cf_rng_below(&rng, 40000));
        kill(pid, SIGKILL);
        cli_wait(pid);
        char part[300];
        snprintf(part, sizeof part, "%s/k.gguf.part", dir.path);
        rename(part, tmp_path(&dir, "left.gguf"));
        CHECK(!opens("left.gguf"));
        if (cli_exists("k.gguf")) /* it was through */
            CHECK_INT(cli_run("verify %s/k.gguf", dir.path), 0);
        else
            early++;
        unlink(tmp_path(&dir, "k.gguf"));
    }
    CHECK(early > 0);
    CHECK_INT(cli_wait(cli_start(line, -1, -1, 0)), 0);
    CHECK(opens("k.gguf") && !cli_exists("k.gguf.part"));
    /* Ctrl-C winds up: nothing is left. */
    unlink(tmp_path(&dir, "k.gguf"));
    for (int i = 0; i < 3; i++) {
        pid_t pid = cli_start(line, -1, -1, 0);
        while (!cli_exists("k.gguf.part") && !cli_exists("k.gguf"))
            usleep(200);
        kill(pid, SIGINT);
        int code = cli_wait(pid);
        CHECK(code == 130 || code == 0);
        CHECK(!cli_exists("k.gguf.part") && cli_exists("k.gguf") == (code == 0));
        unlink(tmp_path(&dir, "k.gguf"));
    }
}

static void a_full_drive(void)
{
    char line[700];
    models_make();
    snprintf(line, sizeof line, "pack %s/mixtral %s/full.gguf", dir.path, dir.path);
    for (uint64_t limit = 4096; limit < (4u << 20); limit *= 16) {
        CHECK_INT(cli_wait(cli_start(line, -1, -1, limit)), 1);
        CHECK_HAS(cli_said("stderr"), "full.gguf");
        CHECK_HAS(cli_said("stderr"), "File too large");
        CHECK(!cli_exists("full.gguf") && !cli_exists("full.gguf.part"));
    }
}

static void refusals(void)
{
    char d[260];
    models_make();
    snprintf(d, sizeof d, "%s", dir.path);
    CHECK_INT(cli_run("pack %s/mixtral %s/there.gguf", d, d), 0);
    CHECK_INT(cli_run("pack %s/mixtral %s/there.gguf", d, d), 1);
    CHECK_HAS(cli_said("stderr"), "--force");
    CHECK_INT(cli_run("pack %s/mixtral %s/there.gguf --force --experts f16", d, d), 0);
    CHECK_INT(cli_run("pack %s/mixtral %s", d, d), 2);
    CHECK_HAS(cli_said("stderr"), "does not end in .gguf");
    CHECK_INT(cli_run("pack %s/mixtral", d), 2);
    CHECK_INT(cli_run("pack %s/mixtral %s/x.gguf --experts q3_k", d, d), 2);
    CHECK_HAS(cli_said("stderr"), "\"q3_k\"");
    CHECK_INT(cli_run("pack %s/mixtral %s/x.gguf --zstd=0", d, d), 2);
    CHECK_INT(cli_run("pack %s/mixtral %s/x.gguf --jobs 0", d, d), 2);
    CHECK_INT(cli_run("pack %s/none %s/x.gguf", d, d), 1);
    CHECK_INT(cli_run("pack %s/mixtral %s/no/x.gguf", d, d), 1);
    CHECK(!cli_exists("x.gguf") && !cli_exists("x.gguf.part"));
    CHECK_INT(truncate(tmp_path(&dir, "there.gguf"), 100000), 0);
    CHECK(!opens("there.gguf"));
}

/* A value that a format cannot hold is refused by its name. */
static void values_that_do_not_fit(void)
{
    cf_err err = {0};
    cf_model *m = NULL;
    models_make();
    CHECK_INT(cli_run("mkmodel %s/hurt --copy %s/mixtral", dir.path, dir.path), 0);
    REQUIRE(cf_model_open(&m, tmp_path(&dir, "hurt"), &err) == 0);
    static const uint16_t bf16_nan = 0x7fc0, bf16_large = 0x4800; /* 131072 */
    const cf_extent *e = &m->moe[1].extents[4 * m->moe[1].n_extents + CF_UP];
    const char *path = cf_catalogue_path(m->cat, e->file);
    for (int i = 0; i < 2; i++) {
        int fd = open(path, O_WRONLY);
        REQUIRE(fd >= 0);
        REQUIRE(pwrite(fd, i ? &bf16_large : &bf16_nan, 2, (off_t)e->off + 2 * (256 * 3 + 5)) == 2);
        close(fd);
        CHECK_INT(
            cli_run("pack %s/hurt %s/h.gguf --experts %s", dir.path, dir.path, i ? "f16" : "q4_k"),
            1);
        CHECK_HAS(cli_said("stderr"), "layer 1, expert 4, up: element [3, 5]");
        CHECK(!cli_exists("h.gguf") && !cli_exists("h.gguf.part"));
    }
    CHECK_INT(cli_run("pack %s/hurt %s/h.gguf --experts bf16", dir.path, dir.path), 0);
    cf_model_free(&m);
}

/* A model of 190 MiB through a few MiB. */
static void memory_is_bounded(void)
{
    char line[900];
    struct rusage used;
    int status;
    if (SANITIZED)
        SKIP("a sanitizer's own memory is in the way");
    CHECK_INT(
        cli_run("mkmodel %s/big --shape longcat-flash-tiny --layers 2 --hidden 512 --experts 64 "
                "--expert-ffn 1024 --vocab 4096",
                dir.path),
        0);
    snprintf(line, sizeof line, "pack %s/big %s/big.gguf --experts q8_0 --jobs 2 -q", dir.path,
             dir.path);
    pid_t pid = cli_start(line, -1, -1, 0);
    REQUIRE(wait4(pid, &status, 0, &used) == pid);
    CHECK_INT(WEXITSTATUS(status), 0);
    struct stat st;
    REQUIRE(stat(tmp_path(&dir, "big.gguf"), &st) == 0);
    if (used.ru_maxrss > 64 << 10)
        printf("    %ld KiB for a pack of %lld KiB\n", used.ru_maxrss, (long long)st.st_size >> 10);
    CHECK(st.st_size > 96 << 20);
    CHECK(used.ru_maxrss <= 64 << 10);
    unlink(tmp_path(&dir, "big.gguf"));
}

int main(void)
{
    if (!cli_begin(&dir))
        return 77;
    RUN(logits_are_those_of_the_blocks);
    RUN(formats_are_what_was_asked_for);
    RUN(others_can_list_it);
    RUN(same_bytes_every_time);
    RUN(records_are_one_read);
    RUN(files_come_along);
    RUN(one_flipped_bit_is_never_a_token);
    RUN(damage_is_named);
    RUN(bad_frames);
    RUN(killed_at_any_moment);
    RUN(a_full_drive);
    RUN(refusals);
    RUN(values_that_do_not_fit);
    RUN(memory_is_bounded);
    tmp_dir_finish(&dir);
    return check_done();
}
