/* MiniMax-Text-01 and MiniMax-M1 (arXiv 2501.08313): layers of linear attention whose heads decay
 * at fixed rates (arXiv 2401.04658), with one of softmax attention every few; experts as Mixtral's.
 * The residual is the normed stream, weighed: x = alpha * norm(x) + beta * sublayer(norm(x)). */
#include <math.h>
#include <string.h>

#include "models/decoder.h"

enum { LINEAR, FULL, FFN, FACTORS }; /* whose alpha and beta; LINEAR and FULL as in the config */

struct minimax {
    const json_t *types; /* of each layer: LINEAR or FULL */
    double alpha[FACTORS], beta[FACTORS];
    cf_attn_decay_def def;
};

static uint32_t layer_type(const struct minimax *m, uint32_t layer)
{
    return (uint32_t)json_integer_value(json_array_get(m->types, layer));
}

static void layer_residual(const cf_decoder *d, uint32_t layer, bool ffn, double *alpha,
                           double *beta)
{
    const struct minimax *m = d->user;
    uint32_t which = ffn ? FFN : layer_type(m, layer);
    *alpha = m->alpha[which];
    *beta = m->beta[which];
}

/* A factor under the vendor's key, or under transformers'. */
static int factor_read(const cf_build *b, const char *key, const char *other, double *out,
                       cf_err *err)
{
    int rc = cf_config_f64_or(b, other, 0, 1e6, 1, out, err);
    return rc < 0 ? rc : cf_config_f64_or(b, key, 0, 1e6, *out, out, err);
}

static int factors_read(const cf_build *b, struct minimax *m, cf_err *err)
{
    int rc;
    static const char *const keys[FACTORS][4] = {
        {"layernorm_linear_attention_alpha", "linear_attn_alpha_factor",
         "layernorm_linear_attention_beta", "linear_attn_beta_factor"},
        {"layernorm_full_attention_alpha", "full_attn_alpha_factor",
         "layernorm_full_attention_beta", "full_attn_beta_factor"},
        {"layernorm_mlp_alpha", "mlp_alpha_factor", "layernorm_mlp_beta", "mlp_beta_factor"}};
    for (int i = 0; i < FACTORS; i++) {
        CF_TRY(factor_read(b, keys[i][0], keys[i][1], &m->alpha[i], err));
        CF_TRY(factor_read(b, keys[i][2], keys[i][3], &m->beta[i], err));
    }
    return 0;
fail:
    return rc;
}

static int types_read(const cf_build *b, struct minimax *m, uint32_t layers, cf_err *err)
{
    m->types = json_object_get(b->config, "attn_type_list");
    if (json_array_size(m->types) != layers)
        return CF_FAIL(err, CF_EFORMAT, "%s: \"attn_type_list\" has %zu entries for %u layers",
                       b->path, json_array_size(m->types), layers);
    for (uint32_t i = 0; i < layers; i++) {
        const json_t *type = json_array_get(m->types, i);
        if (!json_is_integer(type) || json_integer_value(type) < 0 || json_integer_value(type) > 1)
            return CF_FAIL(err, CF_EFORMAT, "%s: \"attn_type_list\" entry %u is neither 0 nor 1",
                           b->path, i);
    }
    return 0;
}

/* How much of its state each head keeps from one position to the next: e^-slope, the slopes being
 * ALiBi's for a power of two of heads, less steep the later the layer. */
static int decays_build(cf_build *b, const cf_decoder *d, uint32_t layer, uint32_t *out,
                        cf_err *err)
{
    double last = d->layers > 1 ? d->layers - 1 : 1, depth = 1 - layer / last + 1e-5;
    for (uint32_t h = 0; h < d->heads; h++) {
        uint32_t at;
        float keep = (float)exp(-exp2(-8.0 * (h + 1) / d->heads) * depth);
        int rc = cf_build_constants(b, &keep, 1, &at, err);
        if (rc < 0)
            return rc;
        *out = h ? *out : at;
    }
    return 0;
}

/* One linear layer; the softmax layers are the decoder's. */
static int layer_mixer(cf_build *b, const cf_decoder *d, uint32_t layer, cf_bufid src, cf_bufid dst,
                       cf_err *err)
{
    int rc;
    cf_step *s;
    const struct minimax *m = d->user;
    cf_attn_decay_def a = m->def;
    uint32_t all = a.heads * a.head;
    if (layer_type(m, layer) == FULL)
        return 0;
#define NAME(name) "model.layers.%u.self_attn." name, layer
    CF_TRY(cf_bind_weight(b, &a.qkv, 0, 3 * all, d->hidden, err, NAME("qkv_proj.weight")));
    CF_TRY(cf_bind_weight(b, &a.gate, 0, all, d->hidden, err, NAME("output_gate.weight")));
    CF_TRY(cf_bind_weight(b, &a.norm, CF_BIND_NORM, 0, all, err, NAME("norm.weight")));
    CF_TRY(cf_bind_weight(b, &a.out, 0, d->hidden, all, err, NAME("out_proj.weight")));
#undef NAME
    CF_TRY(decays_build(b, d, layer, &a.decay, err));
    CF_TRY(cf_build_state(b, a.heads * a.head, a.head, &a.state, err));
    CF_TRY(cf_build_step(b, CF_STEP_ATTN_DECAY, layer, src, dst, &s, err));
    s->u.decay = a;
    return 1;
fail:
    return rc;
}

static int minimax_build(cf_build *b, cf_err *err)
{
    int rc;
    uint32_t shared;
    struct minimax m = {0};
    cf_decoder d = {.mixer = layer_mixer, .residual = layer_residual, .user = &m};
    CF_TRY(cf_decoder_read_mixtral(b, &d, err));
    CF_TRY(types_read(b, &m, d.layers, err));
    CF_TRY(factors_read(b, &m, err));
    CF_TRY(cf_config_only_bool(b, "postnorm", true, err));
    CF_TRY(cf_config_u32_or(b, "shared_intermediate_size", 0, 0, 0, &shared, err));
    CF_TRY(cf_config_u32_or(b, "rotary_dim", 2, d.head, d.head, &d.rot, err));
    if (json_is_integer(json_object_get(b->config, "sliding_window")))
        return CF_FAIL(err, CF_EFORMAT, "%s: \"sliding_window\" is not known in this architecture",
                       b->path);
    m.def.heads = d.heads;
    m.def.head = d.head;
    m.def.norm_eps = 1e-6f; /* of transformers' code; the vendor's has 1e-5 */
    CF_TRY(cf_build_buf(b, "linear qkv", 3 * d.heads * d.head, &m.def.qkv_buf, err));
    CF_TRY(cf_build_buf(b, "linear gate", d.heads * d.head, &m.def.gate_buf, err));
    CF_TRY(cf_build_buf(b, "linear o", d.heads * d.head, &m.def.o_buf, err));
    return cf_decoder_build(b, &d, err);
fail:
    return rc;
}

const cf_family cf_family_minimax = {
    .name = "minimax",
    .architectures = (const char *const[]){"MiniMaxText01ForCausalLM", "MiniMaxM1ForCausalLM",
                                           "MiniMaxForCausalLM", NULL},
    .model_types = (const char *const[]){"minimax_text_01", "minimax_m1", "minimax", NULL},
    .build = minimax_build,
};
