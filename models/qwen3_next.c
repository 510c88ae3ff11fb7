/* Qwen3-Next and Qwen3.5-MoE (text): layers of gated delta-rule attention (arXiv 2412.06464) with one
 * of gated softmax attention every few; norms scale by 1 + w, but for the one of the delta rule's
 * output; routed experts beside one behind a sigmoid. What is cached per position belongs to the
 * softmax layers alone; the others carry a state. Qwen3.5 has the text model within another, the delta
 * rule's projections one by one and the experts of a layer fused. GGUF files have 1 + w for w, the
 * gates of the output apart, -exp(A_log), and of Qwen3.5 the value heads in another order: the first
 * of every key head, then the second. Multi-token-prediction tensors (mtp.*) are left out. */
#include <math.h>
#include <string.h>

#include "models/decoder.h"

/* The delta-rule layers: sizes, and the buffers that all of them use. */
struct delta {
    uint32_t interval;   /* every interval-th layer is softmax attention */
    const json_t *types; /* or: the kind of each layer, by name */
    bool z_apart;        /* the gates have a projection of their own */
    bool ba_apart;       /* beta and decay have one each */
    cf_attn_delta_def def;
};

static bool is_softmax(const struct delta *d, uint32_t layer)
{
    if (!d->types)
        return (layer + 1) % d->interval == 0;
    return strcmp(json_string_value(json_array_get(d->types, layer)), "full_attention") == 0;
}

static int types_read(const cf_build *b, struct delta *d, uint32_t layers, cf_err *err)
{
    int rc;
    CF_TRY(cf_config_u32_or(b, "full_attention_interval", 1, 1024, 4, &d->interval, err));
    const json_t *types = json_object_get(b->config, "layer_types");
    if (!types || json_is_null(types))
        return 0;
    if (json_array_size(types) != layers)
        return CF_FAIL(err, CF_EFORMAT, "%s: \"layer_types\" has %zu entries for %u layers",
                       b->path, json_array_size(types), layers);
    for (uint32_t i = 0; i < layers; i++) {
        const char *type = json_string_value(json_array_get(types, i));
        if (!type || (strcmp(type, "full_attention") && strcmp(type, "linear_attention")))
            return CF_FAIL(err, CF_EFORMAT,
                           "%s: \"layer_types\" entry %u is neither "
                           "\"full_attention\" nor \"linear_attention\"",
                           b->path, i);
    }
    d->types = types;
    return 0;
fail:
    return rc;
}

static int delta_read(cf_build *b, struct delta *d, const cf_decoder *dec, cf_err *err)
{
    int rc;
    cf_attn_delta_def *a = &d->def;
    CF_TRY(types_read(b, d, dec->layers, err));
    CF_TRY(cf_config_u32(b, "linear_num_key_heads", 1, 1024, &a->k_heads, err));
    CF_TRY(cf_config_u32(b, "linear_num_value_heads", 1, 1024, &a->heads, err));
    CF_TRY(cf_config_u32(b, "linear_key_head_dim", 1, 512, &a->d_k, err));
    CF_TRY(cf_config_u32(b, "linear_value_head_dim", 1, 4096, &a->d_v, err));
    CF_TRY(cf_config_u32(b, "linear_conv_kernel_dim", 2, 64, &a->taps, err));
    CF_TRY(cf_config_bool_or(b, "linear_value_heads_tiled", false, &a->k_tiled, err)); /* of GGUF */
    if (a->heads % a->k_heads)
        return CF_FAIL(err, CF_EFORMAT, "%s: %u linear value heads are not divided by %u key heads",
                       b->path, a->heads, a->k_heads);
    a->norm_eps = (float)dec->eps;
    a->l2_eps = 1e-6f; /* of the vendor's kernels, whatever the config says */
    uint32_t keys = a->k_heads * a->d_k, values = a->heads * a->d_v;
    CF_TRY(d->z_apart ? cf_build_buf(b, "qkv", 2 * keys + values, &a->in_buf, err)
                      : cf_build_buf(b, "qkvz", 2 * keys + 2 * values, &a->in_buf, err));
    CF_TRY(d->ba_apart ? cf_build_buf(b, "b", a->heads, &a->gates_buf, err)
                       : cf_build_buf(b, "beta and decay", 2 * a->heads, &a->gates_buf, err));
    if (d->z_apart)
        CF_TRY(cf_build_buf(b, "z", values, &a->z_buf, err));
    if (d->ba_apart)
        CF_TRY(cf_build_buf(b, "a", a->heads, &a->a_buf, err));
    CF_TRY(cf_build_buf(b, "convolved", 2 * keys + values, &a->conv_buf, err));
    CF_TRY(cf_build_buf(b, "decay", a->heads, &a->decay_buf, err));
    CF_TRY(cf_build_buf(b, "beta", a->heads, &a->beta_buf, err));
    return cf_build_buf(b, "linear o", values, &a->o_buf, err);
fail:
    return rc;
}

#define NAME(name) "model.layers.%u.linear_attn." name, layer

/* The decay's logarithm, or what files have that store minus its exponential. */
static int decay_bind(cf_build *b, cf_attn_delta_def *a, uint32_t layer, cf_err *err)
{
    int rc;
    float v[1024];
    if (!cf_bind_has(b, NAME("A")))
        return cf_bind_weight(b, &a->a_log, CF_BIND_BIAS, 0, a->heads, err, NAME("A_log"));
    a->a_log = CF_NO_WEIGHT;
    CF_TRY(cf_bind_values(b, v, a->heads, err, NAME("A")));
    for (uint32_t h = 0; h < a->heads; h++) {
        if (!(v[h] < 0))
            return CF_FAIL(err, CF_EFORMAT,
                           "%s: layer %u: the decay of head %u is %g, must be negative", b->path,
                           layer, h, (double)v[h]);
        v[h] = (float)log(-(double)v[h]);
    }
    return cf_build_constants(b, v, a->heads, &a->a_log_at, err);
fail:
    return rc;
}

static int projections_bind(cf_build *b, const struct delta *d, cf_attn_delta_def *a,
                            uint32_t layer, uint32_t hidden, cf_err *err)
{
    int rc;
    uint32_t keys = a->k_heads * a->d_k, values = a->heads * a->d_v;
    a->z = a->a = CF_NO_WEIGHT;
    if (d->z_apart) {
        CF_TRY(cf_bind_weight(b, &a->in, 0, 2 * keys + values, hidden, err,
                              NAME("in_proj_qkv.weight")));
        CF_TRY(cf_bind_weight(b, &a->z, 0, values, hidden, err, NAME("in_proj_z.weight")));
    } else {
        CF_TRY(cf_bind_weight(b, &a->in, 0, 2 * keys + 2 * values, hidden, err,
                              NAME("in_proj_qkvz.weight")));
    }
    if (!d->ba_apart)
        return cf_bind_weight(b, &a->gates, 0, 2 * a->heads, hidden, err,
                              NAME("in_proj_ba.weight"));
    CF_TRY(cf_bind_weight(b, &a->gates, 0, a->heads, hidden, err, NAME("in_proj_b.weight")));
    return cf_bind_weight(b, &a->a, 0, a->heads, hidden, err, NAME("in_proj_a.weight"));
fail:
    return rc;
}

/* One delta-rule layer; the softmax layers are the decoder's. */
static int layer_mixer(cf_build *b, const cf_decoder *d, uint32_t layer, cf_bufid src, cf_bufid dst,
                       cf_err *err)
{
    int rc;
    cf_step *s;
    const struct delta *delta = d->user;
    cf_attn_delta_def a = delta->def;
    if (is_softmax(delta, layer))
        return 0;
    uint32_t values = a.heads * a.d_v, channels = 2 * a.k_heads * a.d_k + values;
    CF_TRY(projections_bind(b, delta, &a, layer, d->hidden, err));
    CF_TRY(cf_bind_weight(b, &a.conv, CF_BIND_CONV, channels, a.taps, err, NAME("conv1d.weight")));
    CF_TRY(decay_bind(b, &a, layer, err));
    CF_TRY(cf_bind_weight(b, &a.dt_bias, CF_BIND_BIAS, 0, a.heads, err, NAME("dt_bias")));
    CF_TRY(cf_bind_weight(b, &a.norm, CF_BIND_NORM, 0, a.d_v, err, NAME("norm.weight")));
    CF_TRY(cf_bind_weight(b, &a.out, 0, d->hidden, values, err, NAME("out_proj.weight")));
    CF_TRY(cf_build_state(b, a.taps - 1, channels, &a.conv_state, err));
    CF_TRY(cf_build_state(b, a.heads * a.d_k, a.d_v, &a.state, err));
    CF_TRY(cf_build_step(b, CF_STEP_ATTN_DELTA, layer, src, dst, &s, err));
    s->u.delta = a;
    return 1;
fail:
    return rc;
}

#undef NAME

static bool is_mtp(const cf_build *b, const char *name)
{
    (void)b;
    return strncmp(name, "mtp.", strlen("mtp.")) == 0;
}

/* The rotated part of a head; newer configs have it among RoPE's keys. */
static int rotary_read(const cf_build *b, cf_decoder *d, cf_err *err)
{
    int rc;
    double part;
    cf_build rope = *b;
    rope.config = json_object_get(b->config, "rope_parameters");
    CF_TRY(cf_config_f64_or(b, "partial_rotary_factor", 0.01, 1, 0.25, &part, err));
    CF_TRY(cf_config_f64_or(&rope, "partial_rotary_factor", 0.01, 1, part, &part, err));
    d->rot = (uint32_t)(d->head * part);
    return 0;
fail:
    return rc;
}

static cf_decoder delta_decoder(struct delta *delta)
{
    cf_decoder d = {.names = cf_decoder_common_names,
                    .qk = CF_QK_NORM_HEAD,
                    .rope_layout = CF_ROPE_HALF,
                    .attn_gated = true,
                    .mixer = layer_mixer,
                    .user = delta};
    cf_decoder_names_experts(&d.names);
    return d;
}

static int delta_build(cf_build *b, struct delta *delta, cf_decoder *d, cf_err *err)
{
    int rc;
    uint32_t step;
    bool folded;
    cf_decoder_names_qk_norms(&d->names);
    cf_decoder_names_shared_switched(&d->names);
    CF_TRY(cf_decoder_read(b, d, err));
    CF_TRY(cf_decoder_read_experts(b, d, "moe_intermediate_size", "num_experts",
                                   "num_experts_per_tok", err));
    CF_TRY(cf_config_u32(b, "shared_expert_intermediate_size", 1, 1u << 20, &d->shared_ffn, err));
    CF_TRY(cf_config_bool_or(b, "norm_topk_prob", true, &d->router.renormalise, err));
    CF_TRY(cf_config_only_bool(b, "attention_bias", false, err));
    CF_TRY(cf_config_only_bool(b, "attn_output_gate", true, err));
    CF_TRY(cf_config_only_bool(b, "use_sliding_window", false, err));
    CF_TRY(cf_config_u32_or(b, "decoder_sparse_step", 1, 1, 1, &step, err));
    CF_TRY(cf_config_bool_or(b, "norms_hold_one", false, &folded, err)); /* of GGUF files */
    if (json_array_size(json_object_get(b->config, "mlp_only_layers")))
        return CF_FAIL(err, CF_EFORMAT,
                       "%s: \"mlp_only_layers\" is not empty; only an empty list is "
                       "known",
                       b->path);
    d->norm_unit_offset = !folded;
    CF_TRY(rotary_read(b, d, err));
    CF_TRY(delta_read(b, delta, d, err));
    CF_TRY(cf_decoder_build(b, d, err));
    cf_skip_tensors(b, is_mtp, "multi-token-prediction layers");
    return 0;
fail:
    return rc;
}

static int qwen3_next_build(cf_build *b, cf_err *err)
{
    struct delta delta = {.z_apart =
                              cf_bind_has(b, "model.layers.0.linear_attn.in_proj_qkv.weight")};
    cf_decoder d = delta_decoder(&delta);
    return delta_build(b, &delta, &d, err);
}

const cf_family cf_family_qwen3_next = {
    .name = "qwen3-next",
    .architectures = (const char *const[]){"Qwen3NextForCausalLM", NULL},
    .model_types = (const char *const[]){"qwen3_next", NULL},
    .build = qwen3_next_build,
};

/* ---- Qwen3.5 ---- */

static int qwen3_5_text_build(cf_build *b, cf_err *err)
{
    struct delta delta = {.z_apart = true, .ba_apart = true};
    cf_decoder d = delta_decoder(&delta);
    if (!cf_bind_has(b, "model.layers.0.mlp.experts.0.gate_proj.weight")) {
        d.fused = CF_FUSED_ROWS;
        d.names.fused_gate_up = "model.layers.%u.mlp.experts.gate_up_proj";
        d.names.fused_down = "model.layers.%u.mlp.experts.down_proj";
        d.names.gate = d.names.up = d.names.down = NULL;
    }
    return delta_build(b, &delta, &d, err);
}

static int qwen3_5_build(cf_build *b, cf_err *err)
{
    if (json_object_get(b->config, "text_config"))
        return cf_build_inside(b, qwen3_5_text_build, err);
    return qwen3_5_text_build(b, err);
}

const cf_family cf_family_qwen3_5_moe = {
    .name = "qwen3.5-moe",
    .architectures = (const char *const[]){"Qwen3_5MoeForConditionalGeneration",
                                           "Qwen3_5MoeForCausalLM", NULL},
    .model_types = (const char *const[]){"qwen3_5_moe", "qwen3_5_moe_text", NULL},
    .build = qwen3_5_build,
};
