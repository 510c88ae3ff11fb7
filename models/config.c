/* Config readers: see build.h. The config is untrusted; every value has a range. */
#include <math.h>
#include <string.h>

#include "models/build.h"

static const json_t *config_get(const cf_build *b, const char *key)
{
    const json_t *v = json_object_get(b->config, key);
    return v && !json_is_null(v) ? v : NULL;
}

static int number_read(const cf_build *b, const json_t *v, const char *key, double min, double max,
                       double *out, cf_err *err)
{
    if (!json_is_number(v))
        return CF_FAIL(err, CF_EFORMAT, "%s: \"%s\" is not a number", b->path, key);
    double d = json_number_value(v);
    if (!(d >= min && d <= max))
        return CF_FAIL(err, CF_EFORMAT, "%s: \"%s\" is %.17g, must be %.17g to %.17g", b->path, key,
                       d, min, max);
    *out = d;
    return 0;
}

int cf_config_f64(const cf_build *b, const char *key, double min, double max, double *out,
                  cf_err *err)
{
    const json_t *v = config_get(b, key);
    if (!v)
        return CF_FAIL(err, CF_EFORMAT, "%s: \"%s\" is missing", b->path, key);
    return number_read(b, v, key, min, max, out, err);
}

int cf_config_f64_or(const cf_build *b, const char *key, double min, double max, double absent,
                     double *out, cf_err *err)
{
    *out = absent;
    return config_get(b, key) ? cf_config_f64(b, key, min, max, out, err) : 0;
}

int cf_config_u32(const cf_build *b, const char *key, uint32_t min, uint32_t max, uint32_t *out,
                  cf_err *err)
{
    double d;
    int rc = cf_config_f64(b, key, min, max, &d, err);
    if (rc < 0)
        return rc;
    if (d != floor(d))
        return CF_FAIL(err, CF_EFORMAT, "%s: \"%s\" is %.17g, must be a whole number", b->path, key,
                       d);
    *out = (uint32_t)d;
    return 0;
}

int cf_config_u32_or(const cf_build *b, const char *key, uint32_t min, uint32_t max,
                     uint32_t absent, uint32_t *out, cf_err *err)
{
    *out = absent;
    return config_get(b, key) ? cf_config_u32(b, key, min, max, out, err) : 0;
}

int cf_config_bool_or(const cf_build *b, const char *key, bool absent, bool *out, cf_err *err)
{
    const json_t *v = config_get(b, key);
    *out = absent;
    if (!v)
        return 0;
    if (!json_is_boolean(v))
        return CF_FAIL(err, CF_EFORMAT, "%s: \"%s\" is neither true nor false", b->path, key);
    *out = json_is_true(v);
    return 0;
}

int cf_config_only_text(const cf_build *b, const char *key, const char *value, cf_err *err)
{
    const json_t *v = config_get(b, key);
    const char *text = json_string_value(v);
    if (!v || (text && strcmp(text, value) == 0))
        return 0;
    if (!text)
        return CF_FAIL(err, CF_EFORMAT, "%s: \"%s\" is not a text, only \"%s\" is known", b->path,
                       key, value);
    char clean[100];
    return CF_FAIL(err, CF_EFORMAT, "%s: \"%s\" is \"%s\", only \"%s\" is known", b->path, key,
                   cf_text_clean(text, clean, sizeof clean), value);
}

int cf_config_only_bool(const cf_build *b, const char *key, bool value, cf_err *err)
{
    bool v;
    int rc = cf_config_bool_or(b, key, value, &v, err);
    if (rc < 0)
        return rc;
    if (v != value)
        return CF_FAIL(err, CF_EFORMAT, "%s: \"%s\" is %s, only %s is known", b->path, key,
                       v ? "true" : "false", value ? "true" : "false");
    return 0;
}

static int token_id_read(const cf_build *b, const json_t *v, const char *key, int32_t *out,
                         cf_err *err)
{
    double d = 0;
    int rc = number_read(b, v, key, 0, (double)b->model->spec.vocab - 1, &d, err);
    *out = (int32_t)d;
    return rc;
}

int cf_config_tokens(cf_build *b, cf_err *err)
{
    int rc = cf_config_u32(b, "max_position_embeddings", 1, 1u << 30, &b->model->spec.ctx_max, err);
    return rc < 0 ? rc : cf_config_ends(b, err);
}

int cf_config_ends(cf_build *b, cf_err *err)
{
    int rc;
    cf_spec *s = &b->model->spec;
    s->bos = -1;
    const json_t *bos = config_get(b, "bos_token_id");
    if (bos && (rc = token_id_read(b, bos, "bos_token_id", &s->bos, err)) < 0)
        return rc;
    const json_t *eos = config_get(b, "eos_token_id");
    size_t n = !eos ? 0 : json_is_array(eos) ? json_array_size(eos) : 1;
    if (n > CF_MAX_EOS)
        return CF_FAIL(err, CF_EFORMAT, "%s: \"eos_token_id\" lists %zu ids, at most %d are known",
                       b->path, n, CF_MAX_EOS);
    for (size_t i = 0; i < n; i++) {
        const json_t *v = json_is_array(eos) ? json_array_get(eos, i) : eos;
        if ((rc = token_id_read(b, v, "eos_token_id", &s->eos[i], err)) < 0)
            return rc;
    }
    s->n_eos = (uint32_t)n;
    return 0;
}

/* ---- RoPE ---- */

typedef struct yarn {
    double factor, original, beta_fast, beta_slow, mscale, mscale_all_dim;
    bool truncate; /* the ramp begins and ends at whole dimensions */
} yarn;

/* The magnitude correction m(s, k) of YaRN. */
static double yarn_magnitude(double factor, double k)
{
    return factor <= 1 ? 1 : 0.1 * k * log(factor) + 1;
}

/* The rotary dimension that turns r times within the original context. */
static double yarn_dim(double r, double n_rot, double original, double base)
{
    return n_rot * log(original / (2 * M_PI * r)) / (2 * log(base));
}

static void yarn_apply(cf_rope_def *rope, const yarn *y, double base)
{
    double n = rope->n_rot;
    double low = yarn_dim(y->beta_fast, n, y->original, base);
    double high = yarn_dim(y->beta_slow, n, y->original, base);
    low = fmax(y->truncate ? floor(low) : low, 0);
    high = fmin(y->truncate ? ceil(high) : high, n - 1);
    if (low == high)
        high += 0.001;
    for (uint32_t i = 0; i < rope->n_rot / 2; i++) {
        double ramp = fmin(fmax(((double)i - low) / (high - low), 0), 1);
        double theta = pow(base, -2.0 * i / n);
        rope->inv_freq[i] = (float)(theta * (1 - ramp) + theta / y->factor * ramp);
    }
}

static int yarn_read(const cf_build *b, yarn *y, cf_err *err)
{
    int rc = cf_config_f64(b, "factor", 1, 1e6, &y->factor, err);
    if (rc >= 0)
        rc = cf_config_f64(b, "original_max_position_embeddings", 1, 1e9, &y->original, err);
    if (rc >= 0)
        rc = cf_config_f64_or(b, "beta_fast", 1e-3, 1e6, 32, &y->beta_fast, err);
    if (rc >= 0)
        rc = cf_config_f64_or(b, "beta_slow", 1e-3, 1e6, 1, &y->beta_slow, err);
    if (rc >= 0)
        rc = cf_config_bool_or(b, "truncate", true, &y->truncate, err);
    if (rc >= 0)
        rc = cf_config_f64_or(b, "mscale", 0, 100, 0, &y->mscale, err);
    if (rc >= 0)
        rc = cf_config_f64_or(b, "mscale_all_dim", 0, 100, 0, &y->mscale_all_dim, err);
    return rc;
}

/* Wavelengths beyond the original context are stretched, short ones kept, those between blended
 * (the Llama 3 release). */
static int llama3_apply(const cf_build *b, cf_rope_def *rope, cf_err *err)
{
    double factor, low, high, original;
    int rc = cf_config_f64(b, "factor", 1, 1e6, &factor, err);
    if (rc >= 0)
        rc = cf_config_f64(b, "low_freq_factor", 1e-3, 1e6, &low, err);
    if (rc >= 0)
        rc = cf_config_f64(b, "high_freq_factor", 1e-3, 1e6, &high, err);
    if (rc >= 0)
        rc = cf_config_f64(b, "original_max_position_embeddings", 1, 1e9, &original, err);
    if (rc < 0)
        return rc;
    for (uint32_t i = 0; i < rope->n_rot / 2; i++) {
        double theta = (double)rope->inv_freq[i], wave = 2 * M_PI / theta;
        if (wave > original / low)
            theta /= factor;
        else if (wave > original / high) {
            double smooth = (original / wave - low) / (high - low);
            theta = (1 - smooth) * theta / factor + smooth * theta;
        }
        rope->inv_freq[i] = (float)theta;
    }
    return 0;
}

/* One factor for each pair of the rotation. */
static int factors_apply(const cf_build *b, const char *key, uint32_t n_rot, float *inv_freq,
                         cf_err *err)
{
    const json_t *list = config_get(b, key);
    if (json_array_size(list) != n_rot / 2)
        return CF_FAIL(err, CF_EFORMAT, "%s: \"%s\" has %zu factors, must be %u", b->path, key,
                       json_array_size(list), n_rot / 2);
    for (uint32_t i = 0; i < n_rot / 2; i++) {
        double factor;
        int rc = number_read(b, json_array_get(list, i), key, 1e-3, 1e6, &factor, err);
        if (rc < 0)
            return rc;
        inv_freq[i] = (float)((double)inv_freq[i] / factor);
    }
    return 0;
}

/* LongRoPE (arXiv 2402.13753). An engine of a context (--ctx, or what it takes by itself) of at most
 * original_max_position_embeddings divides the frequencies by the short factors, any larger one by the
 * long factors, from the first position on and however short its texts are: keys that are cached were
 * rotated once and cannot change. The references switch by the length of the text instead, and then
 * compute it anew. Magnitudes are short_mscale and long_mscale, else attention_factor, else the paper's.
 * `sub` is the scaling's view of the config `b`. */
static int longrope_apply(const cf_build *b, const cf_build *sub, cf_rope_def *rope, cf_err *err)
{
    int rc;
    double amplitude, near, far;
    const char *original_key = "original_max_position_embeddings";
    const cf_build *from = config_get(sub, original_key) ? sub : b;
    memcpy(rope->far_inv_freq, rope->inv_freq, sizeof rope->inv_freq);
    CF_TRY(cf_config_u32(from, original_key, 2, 1u << 30, &rope->near_ctx, err));
    CF_TRY(factors_apply(sub, "short_factor", rope->n_rot, rope->inv_freq, err));
    CF_TRY(factors_apply(sub, "long_factor", rope->n_rot, rope->far_inv_freq, err));
    double stretch = (double)b->model->spec.ctx_max / rope->near_ctx;
    amplitude = stretch > 1 ? sqrt(1 + log(stretch) / log((double)rope->near_ctx)) : 1;
    CF_TRY(cf_config_f64_or(sub, "attention_factor", 1e-3, 1e3, amplitude, &amplitude, err));
    CF_TRY(cf_config_f64_or(sub, "short_mscale", 1e-3, 1e3, amplitude, &near, err));
    CF_TRY(cf_config_f64_or(sub, "long_mscale", 1e-3, 1e3, amplitude, &far, err));
    rope->amplitude = (float)near;
    rope->far_amplitude = (float)far;
    return 0;
fail:
    return rc;
}

int cf_config_rope(cf_build *b, uint32_t n_rot, cf_rope_layout layout, double theta_absent,
                   uint32_t *index, float *score_scale, cf_err *err)
{
    const json_t *params = config_get(b, "rope_parameters");
    const json_t *scaling = params ? params : config_get(b, "rope_scaling");
    if (scaling && !json_is_object(scaling))
        return CF_FAIL(err, CF_EFORMAT, "%s: \"%s\" is not an object", b->path,
                       params ? "rope_parameters" : "rope_scaling");
    /* A view of the config whose keys are the scaling's. */
    cf_build sub = *b;
    sub.config = scaling;
    double base;
    bool in_params = params && json_object_get(params, "rope_theta");
    const cf_build *from = in_params ? &sub : b;
    int rc = theta_absent > 0 ? cf_config_f64_or(from, "rope_theta", 1.0001, 1e12, theta_absent,
                                                 &base, err)
                              : cf_config_f64(from, "rope_theta", 1.0001, 1e12, &base, err);
    if (rc < 0)
        return rc;
    if (n_rot < 2 || n_rot > CF_MAX_ROT || n_rot % 2)
        return CF_FAIL(err, CF_EFORMAT, "%s: %u rotary dimensions, must be even, 2 to %d", b->path,
                       n_rot, CF_MAX_ROT);
    cf_rope_def rope = {.n_rot = n_rot, .layout = layout, .amplitude = 1};
    for (uint32_t i = 0; i < n_rot / 2; i++)
        rope.inv_freq[i] = (float)pow(base, -2.0 * i / n_rot);
    *score_scale = 1;

    const char *type = json_string_value(json_object_get(scaling, "rope_type"));
    if (!type)
        type = json_string_value(json_object_get(scaling, "type"));
    if (type && (strcmp(type, "yarn") == 0 || strcmp(type, "deepseek_yarn") == 0)) {
        yarn y;
        if ((rc = yarn_read(&sub, &y, err)) < 0)
            return rc;
        yarn_apply(&rope, &y, base);
        double all = yarn_magnitude(y.factor, y.mscale_all_dim);
        rope.amplitude =
            (float)(y.mscale > 0 && y.mscale_all_dim > 0 ? yarn_magnitude(y.factor, y.mscale) / all
                                                         : yarn_magnitude(y.factor, 1));
        if (y.mscale_all_dim > 0)
            *score_scale = (float)(all * all);
    } else if (type && strcmp(type, "llama3") == 0) {
        if ((rc = llama3_apply(&sub, &rope, err)) < 0)
            return rc;
    } else if (type && strcmp(type, "linear") == 0) {
        double factor;
        if ((rc = cf_config_f64(&sub, "factor", 1e-3, 1e6, &factor, err)) < 0)
            return rc;
        for (uint32_t i = 0; i < n_rot / 2; i++)
            rope.inv_freq[i] = (float)(pow(base, -2.0 * i / n_rot) / factor);
    } else if (type && strcmp(type, "longrope") == 0) {
        if ((rc = longrope_apply(b, &sub, &rope, err)) < 0)
            return rc;
    } else if (type && strcmp(type, "default") != 0) {
        char clean[100];
        return CF_FAIL(err, CF_EFORMAT,
                       "%s: rope type \"%s\" is unknown; known: default, linear, yarn, "
                       "deepseek_yarn, llama3, longrope",
                       b->path, cf_text_clean(type, clean, sizeof clean));
    } else if (scaling && !params && !type) {
        return CF_FAIL(err, CF_EFORMAT, "%s: \"rope_scaling\" names no \"rope_type\"", b->path);
    }

    cf_model *m = b->model;
    cf_rope_def *grown = realloc(m->ropes, (m->n_ropes + 1) * sizeof *grown);
    if (!grown)
        return CF_FAIL(err, -ENOMEM, "out of memory for rotary tables");
    m->ropes = grown;
    m->ropes[m->n_ropes] = rope;
    *index = m->n_ropes++;
    return 0;
}
