/* What the tables of GGUF architectures cannot say: values that follow from several keys, classes
 * that a key chooses, and keys of which only one value is known. See gguf.h. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "models/gguf_tables.h"

enum { GATING_SOFTMAX = 1, GATING_SIGMOID = 2, GATING_SELECTED = 3 };

static int architecture_set(cf_gguf_source *s, const char *name, cf_err *err)
{
    if (json_object_set_new(s->config, "architectures", json_pack("[s]", name)) < 0)
        return CF_FAIL(err, -ENOMEM, "out of memory for the config of %s", s->path);
    return 0;
}

/* The number of the gating function: `absent` when no key says it. */
static int gating_read(const cf_gguf_source *s, uint32_t absent, uint32_t *out, cf_err *err)
{
    *out = 0;
    int rc = cf_source_u32(s, "expert_gating_func", out, err);
    if (*out == 0)
        *out = absent;
    return rc < 0 ? rc : 0;
}

static int gating_only(const cf_gguf_source *s, uint32_t value, cf_err *err)
{
    uint32_t v;
    int rc = gating_read(s, value, &v, err);
    if (rc == 0 && v != value)
        return CF_FAIL(err, CF_EFORMAT, "%s: \"%s.expert_gating_func\" is %u, only %u is known",
                       s->path, s->arch->name, v, value);
    return rc;
}

/* A key whose presence, with another value than 0, means a model that is not known. */
static int only_zero(const cf_gguf_source *s, const char *key, cf_err *err)
{
    double v = 0;
    int rc = cf_source_f64(s, key, &v, err);
    if (rc == 1 && v != 0)
        return CF_FAIL(err, CF_EFORMAT, "%s: \"%s.%s\" is %g, only 0 is known", s->path,
                       s->arch->name, key, v);
    return rc < 0 ? rc : 0;
}

int cf_gguf_softmax(cf_gguf_source *s, cf_err *err)
{
    return gating_only(s, GATING_SOFTMAX, err);
}

int cf_gguf_sigmoid(cf_gguf_source *s, cf_err *err)
{
    return gating_only(s, GATING_SIGMOID, err);
}

int cf_gguf_gpt_oss(cf_gguf_source *s, cf_err *err)
{
    return gating_only(s, GATING_SELECTED, err);
}

/* Without a width of the experts: the dense one, divided by the experts at work. */
int cf_gguf_qwen(cf_gguf_source *s, cf_err *err)
{
    int rc;
    uint32_t ffn = 0, dense = 0, used = 0;
    CF_TRY(gating_only(s, GATING_SOFTMAX, err));
    CF_TRY(cf_source_u32(s, "expert_feed_forward_length", &ffn, err));
    CF_TRY(cf_source_u32(s, "feed_forward_length", &dense, err));
    CF_TRY(cf_source_u32(s, "expert_used_count", &used, err));
    if (ffn == 0 && used && dense)
        return cf_source_set(s, "moe_intermediate_size", json_integer(dense / used), err);
    return 0;
fail:
    return rc;
}

/* ---- latent attention ---- */

/* A head of keys is its part without positions and then the rotated one. Files without the keys of
 * their own for it have the widths of the heads themselves in key_length and value_length. */
int cf_gguf_latent(cf_gguf_source *s, cf_err *err)
{
    int rc;
    uint32_t key = 0, value = 0, rope = 0;
    const char *key_name = "attention.key_length_mla";
    CF_TRY(cf_source_u32(s, key_name, &key, err));
    if (rc == 0) {
        key_name = "attention.key_length";
        CF_TRY(cf_source_u32(s, key_name, &key, err));
    }
    CF_TRY(cf_source_u32(s, "attention.value_length_mla", &value, err));
    if (rc == 0)
        CF_TRY(cf_source_u32(s, "attention.value_length", &value, err));
    CF_TRY(cf_source_u32(s, "rope.dimension_count", &rope, err));
    if (key <= rope)
        return CF_FAIL(err, CF_EFORMAT,
                       "%s: \"%s.%s\" is %u, \"rope.dimension_count\" %u; keys must be wider",
                       s->path, s->arch->name, key_name, key, rope);
    CF_TRY(cf_source_set(s, "qk_nope_head_dim", json_integer(key - rope), err));
    return cf_source_set(s, "v_head_dim", json_integer(value), err);
fail:
    return rc;
}

int cf_gguf_deepseek2(cf_gguf_source *s, cf_err *err)
{
    int rc;
    uint32_t gating, groups = 0;
    CF_TRY(cf_gguf_latent(s, err));
    CF_TRY(only_zero(s, "attention.temperature_length", err)); /* scores that grow with positions */
    CF_TRY(only_zero(s, "attention.temperature_scale", err));
    CF_TRY(gating_read(s, GATING_SOFTMAX, &gating, err));
    CF_TRY(cf_source_u32(s, "expert_group_count", &groups, err));
    if (gating == GATING_SIGMOID)
        return architecture_set(s, "DeepseekV3ForCausalLM", err);
    if (gating != GATING_SOFTMAX)
        return CF_FAIL(err, CF_EFORMAT,
                       "%s: \"%s.expert_gating_func\" is %u, only 1 and 2 are known", s->path,
                       s->arch->name, gating);
    if (groups > 1)
        CF_TRY(cf_source_set(s, "topk_method", json_string("group_limited_greedy"), err));
    return architecture_set(s, "DeepseekV2ForCausalLM", err);
fail:
    return rc;
}

/* A list of what each layer is, by whether it has a tensor; the first `surely` layers are taken to
 * have it. */
static int layers_set(cf_gguf_source *s, const char *key, const char *tensor, uint32_t surely,
                      const char *with, const char *without, cf_err *err)
{
    json_t *kinds = json_array();
    for (uint32_t i = 0; i < s->layers; i++) {
        bool has = i < surely || cf_source_tensor(s, i, tensor) >= 0;
        json_array_append_new(kinds, json_string(has ? with : without));
    }
    return cf_source_set(s, key, kinds, err);
}

int cf_gguf_dsa(cf_gguf_source *s, cf_err *err)
{
    int rc = cf_gguf_latent(s, err);
    if (rc == 0)
        rc = layers_set(s, "indexer_types", "indexer.attn_k.weight", 1, "full", "shared", err);
    return rc < 0 ? rc : gating_only(s, GATING_SIGMOID, err);
}

/* ---- others ---- */

/* The rotated part of a head as a fraction: what the family makes of it is exactly that number. */
static int rotary_fraction(cf_gguf_source *s, cf_err *err)
{
    int rc;
    uint32_t rot = 0, head = 0, hidden = 0, heads = 0;
    CF_TRY(cf_source_u32(s, "embedding_length", &hidden, err));
    CF_TRY(cf_source_u32(s, "attention.head_count", &heads, err));
    CF_TRY(cf_source_u32(s, "attention.key_length", &head, err));
    if (!head && heads)
        head = hidden / heads;
    CF_TRY(cf_source_u32(s, "rope.dimension_count", &rot, err));
    if (!rot || rot >= head)
        return cf_source_set(s, "partial_rotary_factor", json_real(1), err);
    return cf_source_set(s, "partial_rotary_factor", json_real((rot + 0.5) / head), err);
fail:
    return rc;
}

int cf_gguf_glm4(cf_gguf_source *s, cf_err *err)
{
    int rc = gating_only(s, GATING_SIGMOID, err);
    return rc < 0 ? rc : rotary_fraction(s, err);
}

/* The values' width is that of all heads together. */
int cf_gguf_delta(cf_gguf_source *s, cf_err *err)
{
    int rc;
    uint32_t all = 0, heads = 0;
    CF_TRY(gating_only(s, GATING_SOFTMAX, err));
    CF_TRY(cf_source_u32(s, "ssm.inner_size", &all, err));
    CF_TRY(cf_source_u32(s, "ssm.time_step_rank", &heads, err));
    if (!heads || all % heads)
        return CF_FAIL(err, CF_EFORMAT,
                       "%s: \"%s.ssm.inner_size\" is %u, not divided by \"ssm.time_step_rank\" %u",
                       s->path, s->arch->name, all, heads);
    CF_TRY(cf_source_set(s, "linear_value_head_dim", json_integer(all / heads), err));
    /* Converters have written an interval, a list of all layers, and both: the tensors tell. */
    CF_TRY(layers_set(s, "layer_types", "ssm_out.weight", 0, "linear_attention", "full_attention",
                      err));
    return rotary_fraction(s, err);
fail:
    return rc;
}

/* What the file has multiplies residuals and divides logits. A file without it is from before these
 * keys, and of the one published size. */
int cf_gguf_minicpm(cf_gguf_source *s, cf_err *err)
{
    int rc;
    uint32_t hidden = 0;
    double residual = 0, logits = 0;
    CF_TRY(gating_only(s, GATING_SOFTMAX, err));
    CF_TRY(cf_source_f64(s, "residual_scale", &residual, err));
    CF_TRY(cf_source_f64(s, "logit_scale", &logits, err));
    CF_TRY(cf_source_u32(s, "embedding_length", &hidden, err));
    double depth = residual == 0 ? 1.4 : residual * sqrt((double)s->layers);
    CF_TRY(cf_source_set(s, "scale_depth", json_real(depth), err));
    return cf_source_set(s, "dim_model_base", json_real(logits == 0 ? 256 : hidden / logits), err);
fail:
    return rc;
}

int cf_gguf_grok(cf_gguf_source *s, cf_err *err)
{
    int rc;
    CF_TRY(gating_only(s, GATING_SOFTMAX, err));
    CF_TRY(only_zero(s, "final_logit_softcapping", err));
    CF_TRY(only_zero(s, "attention.temperature_length", err));
    return 0;
fail:
    return rc;
}

/* A head's scores are scaled as everywhere: no other factor is known. */
int cf_gguf_grok_beside(cf_gguf_source *s, cf_err *err)
{
    int rc;
    uint32_t head = 0, hidden = 0, heads = 0;
    double scale = 0;
    CF_TRY(gating_only(s, GATING_SOFTMAX, err));
    CF_TRY(cf_source_u32(s, "embedding_length", &hidden, err));
    CF_TRY(cf_source_u32(s, "attention.head_count", &heads, err));
    CF_TRY(cf_source_u32(s, "attention.key_length", &head, err));
    if (!head && heads)
        head = hidden / heads;
    CF_TRY(cf_source_f64(s, "attention.output_scale", &scale, err));
    double known = head ? 1 / sqrt((double)head) : 0;
    if (rc == 1 && !(fabs(scale - known) <= 1e-5 * known))
        return CF_FAIL(err, CF_EFORMAT, "%s: \"%s.attention.output_scale\" is %g, only %g is known",
                       s->path, s->arch->name, scale, known);
    return 0;
fail:
    return rc;
}

int cf_gguf_dbrx(cf_gguf_source *s, cf_err *err)
{
    double eps = 0;
    int rc = cf_source_f64(s, "attention.layer_norm_epsilon", &eps, err);
    if (rc < 0)
        return rc;
    if (rc == 1 && eps != 1e-5)
        return CF_FAIL(err, CF_EFORMAT,
                       "%s: \"%s.attention.layer_norm_epsilon\" is %g, only 1e-05 is known",
                       s->path, s->arch->name, eps);
    return gating_only(s, GATING_SOFTMAX, err);
}

/* The norms of q and k have no tensor: the model with 128 experts is the one without them. */
int cf_gguf_llama4(cf_gguf_source *s, cf_err *err)
{
    int rc = architecture_set(s, "Llama4ForConditionalGeneration", err);
    if (rc == 0)
        rc = cf_source_set(s, "use_qk_norm", json_boolean(s->experts != 128), err);
    return rc < 0 ? rc : gating_only(s, GATING_SIGMOID, err);
}

/* ---- LongCat ---- */

/* Whether a latent is scaled by sqrt(hidden / rank): the value in the file must be that, or 1. */
static int lora_scale(cf_gguf_source *s, const char *to, const char *key, const char *rank_key,
                      cf_err *err)
{
    int rc;
    uint32_t hidden = 0, rank = 0, zero;
    double scale = 0;
    CF_TRY(cf_source_u32(s, "embedding_length", &hidden, err));
    CF_TRY(cf_source_u32(s, rank_key, &rank, err));
    double full = rank ? sqrt((double)hidden / rank) : 0;
    CF_TRY(cf_source_f64(s, key, &scale, err));
    if (rc == 0) { /* one layout derives it, the other says it or does not scale */
        CF_TRY(cf_source_u32(s, "n_zero_experts", &zero, err));
        return cf_source_set(s, to, json_boolean(rc == 0), err);
    }
    if (scale == 0 || scale == 1)
        return cf_source_set(s, to, json_false(), err);
    if (!(fabs(scale - full) <= 1e-4 * full))
        return CF_FAIL(err, CF_EFORMAT, "%s: \"%s.%s\" is %g; only %g and 1 are known", s->path,
                       s->arch->name, key, scale, full);
    return cf_source_set(s, to, json_true(), err);
fail:
    return rc;
}

/* Rows of the first n-gram table, from what the layout says it by: a list, a ratio, the tensor. */
static int table_rows(cf_gguf_source *s, uint32_t vocab, double *ratio, cf_err *err)
{
    char key[160];
    cf_gguf_array sizes;
    cf_err ignored = {0};
    uint64_t first = 0, v = 0;
    snprintf(key, sizeof key, "%s.ngram.vocab_sizes", s->arch->name);
    if (cf_gguf_get_array(s->meta, key, &sizes, &ignored) == 1) {
        if (sizes.count != s->n_tables)
            return CF_FAIL(err, CF_EFORMAT, "%s: \"%s\" lists %" PRIu64 " tables, there are %u",
                           s->path, key, sizes.count, s->n_tables);
        for (uint64_t t = 0; t < sizes.count; t++) {
            bool is = cf_gguf_array_u64(&sizes, t, &v);
            first = t ? first : v;
            if (!is || v < 1 || v > UINT32_MAX || v != first + 2 * t)
                return CF_FAIL(err, CF_EFORMAT,
                               "%s: \"%s\": element %" PRIu64 " is %" PRIu64 ", expected %" PRIu64,
                               s->path, key, t, v, first + 2 * t);
        }
    } else {
        int rc = cf_source_f64(s, "ngram.vocab_size_ratio", ratio, err);
        if (rc != 0)
            return rc < 0 ? rc : 0;
        int64_t at = cf_catalogue_find(s->cat, "ngram_embd.0.weight");
        const cf_tensor *t = at < 0 ? NULL : cf_catalogue_at(s->cat, (uint32_t)at);
        if (!t || t->n_dims != 2 || t->shape[0] < 1 || t->shape[0] > UINT32_MAX)
            return CF_FAIL(err, CF_EFORMAT,
                           "%s: neither \"%s\" nor a tensor ngram_embd.0.weight says how many rows "
                           "the n-gram tables have",
                           s->path, key);
        first = t->shape[0];
    }
    *ratio = ((double)(first - 1) + 0.5) / vocab; /* what the family truncates */
    return 0;
}

static int ngram_count(const cf_gguf_source *s, const char *a, const char *b, uint32_t max,
                       uint32_t *out, cf_err *err)
{
    int rc = cf_source_u32(s, a, out, err);
    if (rc == 0)
        rc = cf_source_u32(s, b, out, err);
    if (rc == 1 && (*out < 1 || *out > max))
        return CF_FAIL(err, CF_EFORMAT, "%s: \"%s.%s\" is %u, must be 1 to %u", s->path,
                       s->arch->name, a, *out, max);
    return rc < 0 ? rc : 0;
}

int cf_gguf_longcat(cf_gguf_source *s, cf_err *err)
{
    int rc;
    uint32_t order = 0, splits = 0;
    double ratio = 0;
    CF_TRY(cf_gguf_latent(s, err));
    CF_TRY(gating_only(s, GATING_SOFTMAX, err));
    CF_TRY(
        lora_scale(s, "mla_scale_q_lora", "attention.q_lora_scale", "attention.q_lora_rank", err));
    CF_TRY(lora_scale(s, "mla_scale_kv_lora", "attention.kv_lora_scale", "attention.kv_lora_rank",
                      err));
    CF_TRY(ngram_count(s, "ngram.neighbor_count", "ngram.neighbor_num", CF_MAX_NGRAM, &order, err));
    CF_TRY(ngram_count(s, "ngram.split_count", "ngram.split_num", 64, &splits, err));
    bool ngram = order > 1 && splits > 0;
    CF_TRY(architecture_set(s, ngram ? "LongcatFlashNgramForCausalLM" : "LongcatFlashForCausalLM",
                            err));
    if (!ngram)
        return 0;
    s->n_tables = splits * (order - 1);
    json_int_t vocab = json_integer_value(json_object_get(s->root, "vocab_size"));
    if (vocab < 1)
        return CF_FAIL(err, CF_EFORMAT, "%s: \"%s.vocab_size\" is missing", s->path, s->arch->name);
    CF_TRY(table_rows(s, (uint32_t)vocab, &ratio, err));
    return cf_source_set(s, "ngram_vocab_size_ratio", json_real(ratio), err);
fail:
    return rc;
}
