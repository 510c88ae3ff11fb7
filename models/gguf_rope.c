/* Rotary embedding and the widths of heads in a GGUF file's keys: see gguf.h. What scales and
 * rotates in a way that is not known is refused, since it would only move numbers. */
#include <stdio.h>
#include <string.h>

#include "models/gguf.h"
#include "models/stored.h"
#include "runtime/base/log.h"

static int only_one(const cf_gguf_source *s, const char *key, cf_err *err)
{
    double v = 1;
    int rc = cf_source_f64(s, key, &v, err);
    if (rc == 1 && v != 1 && v != 0)
        return CF_FAIL(err, CF_EFORMAT, "%s: \"%s.%s\" is %g, only 1 is known", s->path,
                       s->arch->name, key, v);
    return rc < 0 ? rc : 0;
}

static int yarn_make(const cf_gguf_source *s, json_t *y, cf_err *err)
{
    static const char *const keys[][2] = {{"factor", "rope.scaling.factor"},
                                          {"beta_fast", "rope.scaling.yarn_beta_fast"},
                                          {"beta_slow", "rope.scaling.yarn_beta_slow"}};
    int rc;
    double v;
    uint32_t original;
    for (int i = 0; i < 3; i++) {
        if ((rc = cf_source_f64(s, keys[i][1], &v, err)) < 0)
            return rc;
        if (rc == 1)
            json_object_set_new(y, keys[i][0], json_real(v));
    }
    if ((rc = cf_source_u32(s, "rope.scaling.original_context_length", &original, err)) == 0)
        rc = cf_source_u32(s, "context_length", &original, err);
    if (rc < 0)
        return rc;
    if (rc == 1)
        json_object_set_new(y, "original_max_position_embeddings", json_integer(original));
    v = 0;
    if ((rc = cf_source_f64(s, "rope.scaling.yarn_log_multiplier", &v, err)) < 0)
        return rc;
    if (v != 0) { /* 0.1 * mscale_all_dim, and mscale was equal to it */
        json_object_set_new(y, "mscale", json_real(v * 10));
        json_object_set_new(y, "mscale_all_dim", json_real(v * 10));
    }
    return 0;
}

/* Both lists of LongRoPE's factors are tensors. */
static int factors_read(const cf_gguf_source *s, const char *tensor, json_t *to, const char *key,
                        cf_err *err)
{
    float v[CF_MAX_ROT / 2];
    int64_t at = cf_catalogue_find(s->cat, tensor);
    const cf_tensor *t = at < 0 ? NULL : cf_catalogue_at(s->cat, (uint32_t)at);
    if (!t || t->n_dims != 1 || t->shape[0] > CF_MAX_ROT / 2)
        return CF_FAIL(err, CF_EFORMAT,
                       "%s: tensor %s is missing or no vector of at most %d factors", s->path,
                       tensor, CF_MAX_ROT / 2);
    int rc = cf_stored_values(s->cat, t, v, err);
    json_t *list = json_array();
    for (uint64_t i = 0; i < t->shape[0] && rc == 0; i++)
        json_array_append_new(list, json_real((double)v[i]));
    if (json_object_set_new(to, key, list) < 0 && rc == 0)
        rc = CF_FAIL(err, -ENOMEM, "out of memory for the config of %s", s->path);
    return rc;
}

/* A file that has such tensors says no type; attn_factor is the magnitude. */
static int longrope_make(const cf_gguf_source *s, json_t *rope, cf_err *err)
{
    int rc;
    uint32_t original = 0;
    double magnitude = 1;
    json_t *l = json_pack("{s:s}", "rope_type", "longrope");
    if (!l || json_object_set_new(rope, "rope_scaling", l) < 0)
        return CF_FAIL(err, -ENOMEM, "out of memory for the config of %s", s->path);
    CF_TRY(factors_read(s, "rope_factors_short.weight", l, "short_factor", err));
    CF_TRY(factors_read(s, "rope_factors_long.weight", l, "long_factor", err));
    CF_TRY(cf_source_u32(s, "rope.scaling.original_context_length", &original, err));
    if (rc == 1)
        json_object_set_new(l, "original_max_position_embeddings", json_integer(original));
    CF_TRY(cf_source_f64(s, "rope.scaling.attn_factor", &magnitude, err));
    if (rc == 1)
        json_object_set_new(l, "attention_factor", json_real(magnitude));
    return 0;
fail:
    return rc;
}

static int linear_make(const cf_gguf_source *s, json_t *rope, double factor, cf_err *err)
{
    json_t *l = json_pack("{s:s, s:f}", "rope_type", "linear", "factor", factor);
    if (!l || json_object_set_new(rope, "rope_scaling", l) < 0)
        return CF_FAIL(err, -ENOMEM, "out of memory for the config of %s", s->path);
    return 0;
}

static int scaling_make(const cf_gguf_source *s, json_t *rope, cf_err *err)
{
    char full[CF_GGUF_MAX_KEY], clean[64], type[64] = "linear";
    cf_text text;
    double factor = 1;
    int rc;
    if (cf_catalogue_find(s->cat, "rope_factors_long.weight") >= 0)
        return longrope_make(s, rope, err);
    CF_TRY(only_one(s, "rope.scaling.attn_factor", err));
    CF_TRY(only_one(s, "rope.scaling.yarn_attn_factor", err));
    CF_TRY(only_one(s, "rope.scaling.yarn_ext_factor", err));
    CF_TRY(cf_gguf_string(s->meta, cf_source_key(s, "rope.scaling.type", full), &text, err));
    if (rc == 1)
        snprintf(type, sizeof type, "%.*s", text.bytes < 60 ? (int)text.bytes : 60, text.at);
    if (strcmp(type, "none") == 0)
        return 0;
    if (strcmp(type, "yarn") == 0 && s->arch->never_yarn) {
        cf_notice("%s: \"%s\" is \"yarn\", the release has \"original\": positions are not scaled",
                  s->path, full);
        return 0;
    }
    if (strcmp(type, "yarn") == 0) {
        json_t *y = json_pack("{s:s}", "rope_type", "yarn");
        if (!y || json_object_set_new(rope, "rope_scaling", y) < 0)
            return CF_FAIL(err, -ENOMEM, "out of memory for the config of %s", s->path);
        if (s->arch->yarn_exact)
            json_object_set_new(y, "truncate", json_false());
        return yarn_make(s, y, err);
    }
    CF_TRY(cf_source_f64(s, "rope.scaling.factor", &factor, err));
    if (rc == 0)
        CF_TRY(cf_source_f64(s, "rope.scale_linear", &factor, err));
    if (strcmp(type, "linear") != 0)
        return CF_FAIL(err, CF_EFORMAT, "%s: \"%s\" is \"%s\"; known: none, linear, yarn", s->path,
                       full, cf_text_clean(type, clean, sizeof clean));
    if (factor != 1 && factor != 0)
        return linear_make(s, rope, factor, err);
    return 0;
fail:
    return rc;
}

int cf_gguf_rope(cf_gguf_source *s, cf_err *err)
{
    double theta = 10000;
    int rc = cf_source_f64(s, "rope.freq_base", &theta, err);
    if (rc < 0)
        return rc;
    json_t *rope = s->arch->rope ? json_object_get(s->root, s->arch->rope) : s->root;
    if (!rope || json_object_set_new(rope, "rope_theta", json_real(theta)) < 0)
        return CF_FAIL(err, -ENOMEM, "out of memory for the config of %s", s->path);
    return scaling_make(s, rope, err);
}

/* Heads of keys and values are of one width, and rotated whole, where nothing else is known. */
int cf_gguf_heads_check(const cf_gguf_source *s, cf_err *err)
{
    int rc;
    uint32_t hidden = 0, heads = 0, head = 0, v, rot;
    if (s->arch->latent)
        return 0;
    CF_TRY(cf_source_u32(s, "embedding_length", &hidden, err));
    CF_TRY(cf_source_u32(s, "attention.head_count", &heads, err));
    CF_TRY(cf_source_u32(s, "attention.key_length", &head, err));
    if (rc == 0 && heads)
        head = hidden / heads;
    if (!head) /* the family says it better */
        return 0;
    v = rot = head;
    CF_TRY(cf_source_u32(s, "attention.value_length", &v, err));
    CF_TRY(cf_source_u32(s, "rope.dimension_count", &rot, err));
    if (v != head)
        return CF_FAIL(err, CF_EFORMAT,
                       "%s: \"%s.attention.value_length\" is %u, keys have %u; only equal ones are "
                       "known",
                       s->path, s->arch->name, v, head);
    if (rot != head && (rot > head || !s->arch->partial_rotary))
        return CF_FAIL(
            err, CF_EFORMAT,
            "%s: \"%s.rope.dimension_count\" is %u of a head of %u; only whole heads are "
            "known",
            s->path, s->arch->name, rot, head);
    return 0;
fail:
    return rc;
}
