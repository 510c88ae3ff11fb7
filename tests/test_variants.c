/* Catches: a release that stores a known model under other names, and is not recognised or computed
 * otherwise; a context beyond what is exact that opens all the same; rotations for long contexts
 * that are never used, or are used for short ones; layers of a kind that is not known.
 *
 * Fixtures are bound anew, with another config or other names, and must give the numbers that the
 * change implies. */
#include <jansson.h>
#include <stdlib.h>

#include "models/family.h"
#include "runtime/engine.h"
#include "storage/catalogue_build.h"
#include "storage/safetensors.h"
#include "tests/check.h"
#include "tests/support/oracle.h"
#include "tests/support/tmpfiles.h"

/* A tensor's other name, in buf; "" leaves it out. */
typedef void rename_fn(const char *name, char *buf, size_t size);

static json_t *config_load(const char *dir)
{
    char path[300];
    snprintf(path, sizeof path, "%s/config.json", dir);
    json_t *config = json_load_file(path, 0, NULL);
    must(config);
    return config;
}

static void set(json_t *object, const char *key, json_t *value)
{
    must(value && json_object_set_new(object, key, value) == 0);
}

/* The checkpoint's catalogue under other names (NULL: its own), and `extra` tensors of a few bytes
 * of its first file. */
static cf_catalogue *catalogue_make(const char *dir, rename_fn *rename, const char *const *extra)
{
    cf_err err = {0};
    cf_catalogue *from = NULL, *to = NULL;
    must(cf_safetensors_open(dir, &from, &err) == 0 && cf_catalogue_create(&to, &err) == 0);
    for (uint32_t i = 0; i < cf_catalogue_file_count(from); i++)
        must(cf_catalogue_add_file(to, cf_catalogue_path(from, i), cf_catalogue_file_bytes(from, i),
                                   &err) == 0);
    for (uint32_t i = 0; i < cf_catalogue_count(from); i++) {
        char name[200];
        cf_tensor t = *cf_catalogue_at(from, i);
        snprintf(name, sizeof name, "%s", t.name);
        if (rename)
            rename(t.name, name, sizeof name);
        t.name = name;
        if (name[0])
            must(cf_catalogue_add(to, &t, &err) == 0);
    }
    for (; extra && *extra; extra++) {
        cf_tensor t = {.name = *extra, .format = CF_BF16, .n_dims = 1, .shape = {4}};
        t.extent.bytes = 8;
        must(cf_catalogue_add(to, &t, &err) == 0);
    }
    cf_catalogue_close(&from);
    return to;
}

static cf_model *bind(cf_catalogue *cat, const json_t *config)
{
    cf_err err = {0};
    cf_model *m = calloc(1, sizeof *m);
    must(m);
    m->dir = strdup("variant");
    m->cat = cat;
    if (cf_model_bind(m, config, "config.json", &err) < 0)
        cf_model_free(&m);
    CHECK_STR(err.msg, "");
    must(m);
    return m;
}

/* Takes the model; with `why` the engine must not open, and say so. */
static oracle_run *run(const oracle *o, cf_model *m, uint32_t ctx, const char *why)
{
    cf_err err = {0};
    cf_engine *e = NULL;
    cf_session *s = NULL;
    cf_options options;
    cf_options_init(&options);
    options.device = "ref";
    options.kv = "f32";
    options.io = "pread";
    options.direct = false;
    options.threads = 2;
    options.ctx = ctx;
    options.chunk = 16;
    options.vram_bytes = options.ram_bytes = 64u << 20;
    options.check = true;
    oracle_run *r = oracle_run_new(o);
    int rc = cf_engine_create(&e, m, &options, &err);
    if (why) {
        CHECK(rc < 0);
        CHECK_HAS(err.msg, why);
    } else {
        if (rc == 0)
            rc = cf_session_create(&s, e, &err);
        if (rc == 0)
            rc = oracle_run_prompt(r, s, 16, &err);
        CHECK_STR(err.msg, "");
        CHECK_INT(rc, 0);
    }
    cf_session_destroy(&s);
    if (!e)
        cf_model_free(&m);
    cf_engine_close(&e);
    return r;
}

static bool same_logits(const oracle_run *a, const oracle_run *b)
{
    size_t n = (size_t)a->o->n_prompt * a->o->vocab;
    return memcmp(a->logits, b->logits, n * sizeof(float)) == 0;
}

/* ---- n-gram tables and an indexer under the names of a later release ---- */

static const char ngram[] = "tests/fixtures/models/longcat_ngram";

static void later_names(const char *name, char *buf, size_t size)
{
    unsigned t;
    if (sscanf(name, "model.ngram_embeddings.embedders.%u.weight", &t) == 1)
        snprintf(buf, size, "model.oe_embed_tokens%u.weight", t);
    else if (sscanf(name, "model.ngram_embeddings.post_projs.%u.weight", &t) == 1)
        snprintf(buf, size, "model.oe_embed_proj%u.weight", t);
}

static json_t *later_config(uint32_t top_k)
{
    json_t *c = config_load(ngram);
    set(c, "architectures", json_pack("[s]", "LongcatCausalLM"));
    set(c, "attention_method", json_string("LSA"));
    set(c, "index_topk", json_integer(top_k));
    set(json_object_get(c, "rope_scaling"), "rope_type", json_string("deepseek_yarn"));
    static const char *const keys[][2] = {{"ngram_vocab_size_ratio", "oe_vocab_size_ratio"},
                                          {"emb_neighbor_num", "oe_neighbor_num"},
                                          {"emb_split_num", "oe_split_num"}};
    for (size_t i = 0; i < 3; i++) {
        must(json_object_set(c, keys[i][1], json_object_get(c, keys[i][0])) == 0);
        json_object_del(c, keys[i][0]);
    }
    json_object_del(c, "model_type");
    return c;
}

static void longcat_later_names(void)
{
    static const char *const indexer[] = {"model.layers.0.self_attn.0.indexer.wk.weight",
                                          "model.layers.2.self_attn.0.indexer.k_norm.weight", NULL};
    oracle *o = oracle_load(ngram);
    must(o);
    json_t *config = later_config(64);
    cf_model *m = bind(catalogue_make(ngram, later_names, indexer), config);
    CHECK_INT(m->spec.ctx_max, 64);
    CHECK_HAS(m->skipped_what, "indexers of sparse attention");
    oracle_run *r = run(o, m, 64, NULL);
    CHECK(oracle_logits_error(o, r) <= 2e-3);
    CHECK_INT(oracle_expert_differences(o, r), 0);
    oracle_run_free(r);
    m = bind(catalogue_make(ngram, later_names, indexer), config);
    oracle_run_free(run(o, m, 65,
                        "--ctx 65 exceeds the model's 64 positions: beyond 64 of its 640 "
                        "positions attention is sparse"));
    json_decref(config);
    /* With as many to choose as there are positions, nothing is taken away. */
    config = later_config(640);
    m = bind(catalogue_make(ngram, later_names, indexer), config);
    CHECK_INT(m->spec.ctx_max, 640);
    CHECK_STR(m->spec.ctx_why, "");
    cf_model_free(&m);
    json_decref(config);
    oracle_free(o);
}

/* ---- rotations for long contexts ---- */

static const char longrope[] = "tests/fixtures/models/phimoe";

/* The fixture with its long factors and magnitude in the place of the short ones. */
static json_t *long_everywhere(void)
{
    json_t *c = config_load(longrope), *scaling = json_object_get(c, "rope_scaling");
    must(json_object_set(scaling, "short_factor", json_object_get(scaling, "long_factor")) == 0);
    set(scaling, "short_mscale", json_real(1.5));
    return c;
}

static void longrope_by_context(void)
{
    oracle *o = oracle_load(longrope);
    must(o);
    json_t *config = config_load(longrope), *other = long_everywhere();
    set(json_object_get(config, "rope_scaling"), "long_mscale", json_real(1.5));
    oracle_run *near = run(o, bind(catalogue_make(longrope, NULL, NULL), config), 64, NULL);
    oracle_run *far = run(o, bind(catalogue_make(longrope, NULL, NULL), config), 65, NULL);
    oracle_run *want = run(o, bind(catalogue_make(longrope, NULL, NULL), other), 64, NULL);
    CHECK(oracle_logits_error(o, near) <= 2e-3);
    CHECK(oracle_logits_error(o, far) > 0.1);
    CHECK(same_logits(far, want));
    CHECK(!same_logits(far, near));
    json_decref(config);
    json_decref(other);
    /* Without magnitudes of its own it has one that follows from how far it stretches. */
    config = config_load(longrope);
    json_t *scaling = json_object_get(config, "rope_scaling");
    json_object_del(scaling, "short_mscale");
    json_object_del(scaling, "long_mscale");
    cf_model *m = bind(catalogue_make(longrope, NULL, NULL), config);
    double amplitude = sqrt(1 + log(1024.0 / 64) / log(64.0));
    CHECK(fabs((double)m->ropes[0].amplitude - amplitude) < 1e-6);
    CHECK(fabs((double)m->ropes[0].far_amplitude - amplitude) < 1e-6);
    cf_model_free(&m);
    json_decref(config);
    oracle_run_free(near);
    oracle_run_free(far);
    oracle_run_free(want);
    oracle_free(o);
}

/* ---- windows and scores that change with the position ---- */

/* Beyond the limit a score is sharpened: without it, only what lies before stays as it was. */
static void sharpness_begins_there(void)
{
    static const char dir[] = "tests/fixtures/models/grok2";
    enum { FROM = 8 };
    oracle *o = oracle_load(dir);
    must(o);
    json_t *config = config_load(dir);
    oracle_run *with = run(o, bind(catalogue_make(dir, NULL, NULL), config), 64, NULL);
    json_object_del(config, "attn_temperature_len");
    oracle_run *without = run(o, bind(catalogue_make(dir, NULL, NULL), config), 64, NULL);
    size_t row = o->vocab * sizeof(float);
    CHECK(memcmp(with->logits, without->logits, (FROM + 1) * row) == 0);
    for (uint32_t r = FROM + 1; r < o->n_prompt; r++)
        CHECK(memcmp(with->logits + r * o->vocab, without->logits + r * o->vocab, row) != 0);
    json_decref(config);
    oracle_run_free(with);
    oracle_run_free(without);
    oracle_free(o);
}

static void layer_types_refused(void)
{
    cf_err err = {0};
    cf_expected *list = NULL;
    uint64_t n = 0;
    json_t *config = config_load("tests/fixtures/models/gpt_oss");
    set(config, "layer_types",
        json_pack("[sss]", "full_attention", "sliding_attention", "full_attention"));
    CHECK_INT(cf_model_expected(config, "config.json", &list, &n, &err), CF_EFORMAT);
    CHECK_HAS(err.msg, "layer 0 differs");
    json_decref(config);
}

int main(void)
{
    RUN(longcat_later_names);
    RUN(longrope_by_context);
    RUN(sharpness_begins_there);
    RUN(layer_types_refused);
    return check_done();
}
