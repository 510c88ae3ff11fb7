/* Catches: a release that holds a known model's matrices in another order or in other pieces, rows or
 * experts of which are then taken from the wrong place; a text model within another whose names are
 * not found.
 *
 * Qwen3.5-MoE is Qwen3-Next with the delta rule's projections one by one, the experts of a layer in two
 * tensors, and all of it within a model that sees. The fixture of Qwen3-Next is rewritten that way, and
 * must give what its own oracle says, on every device.
 *
 *     test_regrouped [BACKEND] */
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <jansson.h>

#include "models/family.h"
#include "runtime/engine.h"
#include "storage/safetensors.h"
#include "storage/safetensors_write.h"
#include "tests/check.h"
#include "tests/support/devices.h"
#include "tests/support/oracle.h"
#include "tests/support/tmpfiles.h"

static const char from[] = "tests/fixtures/models/qwen3_next";

enum { MAX_TENSORS = 256, MAX_NAME = 200 };

/* A checkpoint being written, in memory. */
static struct {
    cf_tensor_spec specs[MAX_TENSORS];
    char names[MAX_TENSORS][MAX_NAME];
    uint8_t *data[MAX_TENSORS];
    uint32_t n;
} to;

static uint32_t number(const json_t *config, const char *key)
{
    return (uint32_t)json_integer_value(json_object_get(config, key));
}

static uint8_t *tensor_read(const cf_catalogue *cat, const cf_tensor *t)
{
    uint8_t *data = malloc(t->extent.bytes);
    int fd = open(cf_catalogue_path(cat, t->extent.file), O_RDONLY);
    must(data && fd >= 0 &&
         pread(fd, data, t->extent.bytes, (off_t)t->extent.off) == (ssize_t)t->extent.bytes);
    close(fd);
    return data;
}

/* Returns where its bytes go. */
static uint8_t *tensor_add(const char *name, const cf_tensor *like, uint32_t n_dims, uint64_t a,
                           uint64_t b, uint64_t c)
{
    uint64_t bytes;
    cf_tensor_spec *s = &to.specs[to.n];
    must(to.n < MAX_TENSORS);
    snprintf(to.names[to.n], MAX_NAME, "%s", name);
    *s = (cf_tensor_spec){.name = to.names[to.n], .format = like->format, .n_dims = n_dims,
                          .shape = {a, b, c}};
    must(cf_tensor_spec_bytes(s, &bytes));
    must(to.data[to.n] = calloc(bytes, 1));
    return to.data[to.n++];
}

/* Key head by key head its parts lie side by side: one part of all heads becomes rows of their own. */
static void part_copy(uint8_t *out, const uint8_t *data, uint32_t heads, uint32_t head,
                      uint32_t first, uint32_t n, size_t row)
{
    for (uint32_t h = 0; h < heads; h++)
        memcpy(out + h * n * row, data + (h * head + first) * row, n * row);
}

/* q, k, v and z of each key head, or beta and decay. False: another tensor. */
static bool projection_add(const cf_tensor *t, const char *name, const uint8_t *data,
                           const json_t *config)
{
    char part[MAX_NAME + 8];
    const char *end = strstr(name, "in_proj_");
    uint32_t heads = number(config, "linear_num_key_heads");
    uint32_t per = number(config, "linear_num_value_heads") / heads;
    uint32_t d_k = number(config, "linear_key_head_dim");
    uint32_t v = per * number(config, "linear_value_head_dim"), head = 2 * d_k + 2 * v;
    size_t row = t->extent.bytes / t->shape[0];
    if (!end)
        return false;
    bool gates = strncmp(end, "in_proj_ba", 10) == 0;
    const char *const names[2] = {gates ? "in_proj_b" : "in_proj_qkv",
                                  gates ? "in_proj_a" : "in_proj_z"};
    uint32_t rows[2] = {gates ? heads * per : heads * (2 * d_k + v), heads * (gates ? per : v)};
    uint8_t *out[2];
    for (int i = 0; i < 2; i++) {
        snprintf(part, sizeof part, "%.*s%s.weight", (int)(end - name), name, names[i]);
        out[i] = tensor_add(part, t, 2, rows[i], t->shape[1], 0);
    }
    if (gates) {
        part_copy(out[0], data, heads, 2 * per, 0, per, row);
        part_copy(out[1], data, heads, 2 * per, per, per, row);
        return true;
    }
    part_copy(out[0], data, heads, head, 0, d_k, row);
    part_copy(out[0] + heads * d_k * row, data, heads, head, d_k, d_k, row);
    part_copy(out[0] + 2 * heads * d_k * row, data, heads, head, 2 * d_k, v, row);
    part_copy(out[1], data, heads, head, 2 * d_k + v, v, row);
    return true;
}

/* An expert's matrix goes into its layer's tensor, which its first expert makes. */
static bool expert_add(const cf_tensor *t, const char *name, const uint8_t *data, uint32_t experts)
{
    static const char *const pieces[] = {"gate_proj", "up_proj", "down_proj"};
    unsigned layer, expert;
    char piece[32], full[MAX_NAME];
    uint32_t at = 0;
    if (sscanf(name, "model.language_model.layers.%u.mlp.experts.%u.%31[a-z_].weight", &layer,
               &expert, piece) != 3)
        return false;
    bool down = strcmp(piece, pieces[2]) == 0, up = strcmp(piece, pieces[1]) == 0;
    snprintf(full, sizeof full, "model.language_model.layers.%u.mlp.experts.%s", layer,
             down ? "down_proj" : "gate_up_proj");
    while (at < to.n && strcmp(to.names[at], full) != 0)
        at++;
    if (at == to.n)
        tensor_add(full, t, 3, experts, t->shape[0] * (down ? 1 : 2), t->shape[1]);
    memcpy(to.data[at] + (expert * (down ? 1u : 2u) + up) * t->extent.bytes, data,
           t->extent.bytes);
    return true;
}

static void tensor_rewrite(const cf_catalogue *cat, const cf_tensor *t, const json_t *config)
{
    char name[MAX_NAME];
    bool inside = strncmp(t->name, "model.", 6) == 0;
    snprintf(name, sizeof name, "%s%s", inside ? "model.language_model." : "",
             t->name + (inside ? 6 : 0));
    uint8_t *data = tensor_read(cat, t);
    if (!projection_add(t, name, data, config) &&
        !expert_add(t, name, data, number(config, "num_experts")))
        memcpy(tensor_add(name, t, t->n_dims, t->shape[0], t->shape[1], t->shape[2]), data,
               t->extent.bytes);
    free(data);
}

/* The text model's keys within; RoPE's among themselves, as newer configs have them. */
static void config_write(const char *path, json_t *text)
{
    json_t *rope = json_pack("{s:s, s:b, s:[i,i,i]}", "rope_type", "default", "mrope_interleaved",
                             1, "mrope_section", 1, 1, 0);
    static const char *const moved[] = {"rope_theta", "partial_rotary_factor"};
    for (int i = 0; i < 2; i++) {
        must(json_object_set(rope, moved[i], json_object_get(text, moved[i])) == 0);
        json_object_del(text, moved[i]);
    }
    json_object_del(text, "architectures");
    must(json_object_set_new(text, "model_type", json_string("qwen3_5_moe_text")) == 0);
    must(json_object_set_new(text, "rope_parameters", rope) == 0);
    must(json_object_set_new(text, "attn_output_gate", json_true()) == 0);
    json_t *all = json_pack("{s:[s], s:s, s:O}", "architectures",
                            "Qwen3_5MoeForConditionalGeneration", "model_type", "qwen3_5_moe",
                            "text_config", text);
    must(all && json_dump_file(all, path, 0) == 0);
    json_decref(all);
}

static void rewrite(const char *dir)
{
    cf_err err = {0};
    char path[600];
    cf_catalogue *cat = NULL;
    cf_safetensors_writer *w = NULL;
    uint64_t bytes;
    must(mkdir(dir, 0700) == 0);
    snprintf(path, sizeof path, "%s/config.json", from);
    json_t *config = json_load_file(path, 0, NULL);
    must(config && cf_safetensors_open(from, &cat, &err) == 0);
    for (uint32_t i = 0; i < cf_catalogue_count(cat); i++)
        tensor_rewrite(cat, cf_catalogue_at(cat, i), config);
    cf_tensor like = {.format = CF_BF16};
    tensor_add("model.visual.patch_embed.proj.weight", &like, 2, 2, 3, 0);
    tensor_add("mtp.fc.weight", &like, 2, 2, 3, 0);
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    must(cf_safetensors_create(&w, path, to.specs, to.n, CF_DATA_ALIGNED_8, &err) == 0);
    for (uint32_t i = 0; i < to.n; i++) {
        must(cf_tensor_spec_bytes(&to.specs[i], &bytes) &&
             cf_safetensors_append(w, to.data[i], bytes, &err) == 0);
        free(to.data[i]);
    }
    must(cf_safetensors_commit(&w, &err) == 0);
    snprintf(path, sizeof path, "%s/config.json", dir);
    config_write(path, config);
    json_decref(config);
    cf_catalogue_close(&cat);
}

/* *vram: the budget, 0: plenty. Leaves the least in it. */
static void numbers(const char *dir, const char *device, const oracle *o, uint64_t *vram)
{
    cf_err err = {0};
    cf_engine *e = NULL;
    cf_session *s = NULL;
    cf_options options;
    oracle_run *r = oracle_run_new(o);
    cf_options_init(&options);
    options.device = device;
    options.kv = "f32";
    options.ctx = 64;
    options.chunk = 16;
    options.vram_bytes = options.ram_bytes = 64u << 20;
    options.threads = 2;
    options.check = true;
    bool least = *vram > 0;
    options.vram_bytes = least ? *vram : options.vram_bytes;
    int rc = cf_engine_open(&e, dir, &options, &err);
    if (rc == 0) {
        *vram = e->plan.vram_min;
        CHECK((e->plan.dense.n_streamed > 0) == least);
    }
    if (rc == 0)
        rc = cf_session_create(&s, e, &err);
    if (rc == 0)
        rc = oracle_run_prompt(r, s, 5, &err);
    CHECK_STR(err.msg, "");
    CHECK_INT(rc, 0);
    double logits = oracle_logits_error(o, r), hidden = oracle_hidden_error(o, r);
    printf("    logits %.1e x std, hidden %.1e x std\n", logits, hidden);
    CHECK(logits <= 2e-3 && hidden <= 2e-3);
    CHECK_INT(oracle_expert_differences(o, r), 0);
    if (rc == 0)
        CHECK_INT(oracle_run_greedy(o, s, o->vocab, &err), o->n_greedy);
    cf_session_destroy(&s);
    cf_engine_close(&e);
    oracle_run_free(r);
}

static void what_is_left_out(const char *dir)
{
    cf_err err = {0};
    cf_model *m = NULL;
    CHECK_INT(cf_model_open(&m, dir, &err), 0);
    CHECK_STR(err.msg, "");
    REQUIRE(m);
    CHECK_INT(m->n_skipped, 2);
    CHECK_HAS(m->skipped_what, "vision tower");
    CHECK_HAS(m->skipped_what, "multi-token-prediction");
    cf_model_free(&m);
}

int main(int argc, char **argv)
{
    devices d = {.only = devices_only(argc, argv)};
    char dir[300], name[96];
    tmp_dir tmp;
    tmp_dir_init(&tmp);
    snprintf(dir, sizeof dir, "%s", tmp_path(&tmp, "inside"));
    rewrite(dir);
    oracle *o = oracle_load(from);
    must(o);
    RUN_NAMED("what is left out", what_is_left_out(dir));
    while (devices_next(&d)) {
        snprintf(name, sizeof name, "%s projections one by one, fused experts", d.name);
        uint64_t vram = 0;
        RUN_NAMED(name, numbers(dir, d.name, o, &vram));
        snprintf(name, sizeof name, "%s streamed, with the least budget", d.name);
        RUN_NAMED(name, numbers(dir, d.name, o, &vram));
    }
    oracle_free(o);
    tmp_dir_finish(&tmp);
    return check_done();
}
