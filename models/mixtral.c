/* Mixtral 8x7B and 8x22B (arXiv 2401.04088), and those that keep its names: grouped-query attention
 * and experts w1 (gate), w3 (up), w2 (down). MiniMax-M2 norms whole projections of q and k, rotates a
 * part of a head, and routes by sigmoid scores with a selection bias. Phi-3.5-MoE (arXiv 2404.14219)
 * has layer norms and biases everywhere but in its experts, and routes by sparsemixer. */
#include "models/decoder.h"

int cf_decoder_read_mixtral(cf_build *b, cf_decoder *d, cf_err *err)
{
    int rc;
    d->names = cf_decoder_common_names;
    d->names.router = "model.layers.%u.block_sparse_moe.gate.weight";
    d->names.gate = "model.layers.%u.block_sparse_moe.experts.%u.w1.weight";
    d->names.up = "model.layers.%u.block_sparse_moe.experts.%u.w3.weight";
    d->names.down = "model.layers.%u.block_sparse_moe.experts.%u.w2.weight";
    d->rope_layout = CF_ROPE_HALF;
    d->router.renormalise = true;
    CF_TRY(cf_decoder_read(b, d, err));
    CF_TRY(cf_decoder_read_experts(b, d, "intermediate_size", "num_local_experts",
                                   "num_experts_per_tok", err));
    return 0;
fail:
    return rc;
}

static void layer_window(const cf_decoder *d, uint32_t layer, cf_attn_def *attn)
{
    (void)layer;
    attn->window = d->aux[0];
}

static int mixtral_build(cf_build *b, cf_err *err)
{
    int rc;
    cf_decoder d = {.attn_layer = layer_window};
    CF_TRY(cf_decoder_read_mixtral(b, &d, err));
    CF_TRY(cf_config_u32_or(b, "sliding_window", 1, 1u << 30, 0, &d.aux[0], err));
    return cf_decoder_build(b, &d, err);
fail:
    return rc;
}

static int minimax_m2_build(cf_build *b, cf_err *err)
{
    int rc;
    bool qk_norm, bias;
    cf_decoder d = {.qk = CF_QK_NORM_WHOLE};
    CF_TRY(cf_decoder_read_mixtral(b, &d, err));
    CF_TRY(cf_config_only_text(b, "scoring_func", "sigmoid", err));
    CF_TRY(cf_config_only_text(b, "qk_norm_type", "per_layer", err));
    CF_TRY(cf_config_u32_or(b, "rotary_dim", 2, d.head, d.head, &d.rot, err));
    CF_TRY(cf_config_bool_or(b, "use_qk_norm", true, &qk_norm, err));
    CF_TRY(cf_config_bool_or(b, "use_routing_bias", true, &bias, err));
    d.router.score = CF_SCORE_SIGMOID;
    if (qk_norm)
        cf_decoder_names_qk_norms(&d.names);
    else
        d.qk = CF_QK_PLAIN;
    if (bias)
        d.names.router_bias = "model.layers.%u.block_sparse_moe.e_score_correction_bias";
    CF_TRY(cf_decoder_build(b, &d, err));
    cf_skip_layers_beyond(b);
    return 0;
fail:
    return rc;
}

static int phimoe_build(cf_build *b, cf_err *err)
{
    int rc;
    double jitter;
    cf_decoder d = {.norm = CF_NORM_LAYER, .norm_bias = true, .attn_layer = layer_window};
    CF_TRY(cf_decoder_read_mixtral(b, &d, err));
    CF_TRY(cf_config_bool_or(b, "attention_bias", false, &d.qkv_bias, err));
    CF_TRY(cf_config_bool_or(b, "lm_head_bias", false, &d.head_bias, err));
    CF_TRY(cf_config_u32_or(b, "sliding_window", 1, 1u << 30, 0, &d.aux[0], err));
    CF_TRY(cf_config_f64_or(b, "router_jitter_noise", 0, 1, 0.01, &jitter, err));
    d.out_bias = d.qkv_bias;
    d.router = (cf_route_def){.score = CF_SCORE_SPARSEMIXER, .jitter = (float)jitter};
    return cf_decoder_build(b, &d, err);
fail:
    return rc;
}

const cf_family cf_family_phimoe = {
    .name = "phimoe",
    .architectures = (const char *const[]){"PhiMoEForCausalLM", "PhimoeForCausalLM", NULL},
    .model_types = (const char *const[]){"phimoe", NULL},
    .build = phimoe_build,
};

const cf_family cf_family_mixtral = {
    .name = "mixtral",
    .architectures = (const char *const[]){"MixtralForCausalLM", NULL},
    .model_types = (const char *const[]){"mixtral", NULL},
    .build = mixtral_build,
};

const cf_family cf_family_minimax_m2 = {
    .name = "minimax-m2",
    .architectures = (const char *const[]){"MiniMaxM2ForCausalLM", NULL},
    .model_types = (const char *const[]){"minimax_m2", NULL},
    .build = minimax_m2_build,
};
