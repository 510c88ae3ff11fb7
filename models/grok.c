/* Grok-1 (the xAI release, under the names of its Hugging Face ports) and Grok-2: sandwich norms,
 * soft-capped attention, gelu experts, a router without renormalisation. Multipliers on embeddings,
 * scores and logits. Grok-2 adds a dense feed-forward beside the experts, caps on router logits and
 * logits, and scores that sharpen with the position. */
#include <math.h>
#include <string.h>

#include "models/decoder.h"

static const cf_decoder_names grok1_names = {
    .embed = "model.embed_tokens.weight", .final_norm = "model.norm.scale", .head = "lm_head",
    .attn_norm = "model.layers.%u.pre_attn_norm.scale",
    .ffn_norm = "model.layers.%u.pre_moe_norm.scale",
    .attn_post_norm = "model.layers.%u.post_attn_norm.scale",
    .ffn_post_norm = "model.layers.%u.post_moe_norm.scale",
    .q = "model.layers.%u.attn.q_proj", .k = "model.layers.%u.attn.k_proj",
    .v = "model.layers.%u.attn.v_proj", .out = "model.layers.%u.attn.o_proj",
    .router = "model.layers.%u.moe_block.gate.weight",
    .gate = "model.layers.%u.moe_block.experts.%u.linear.weight",
    .up = "model.layers.%u.moe_block.experts.%u.linear_v.weight",
    .down = "model.layers.%u.moe_block.experts.%u.linear_1.weight",
};

static bool is_head_copy(const cf_build *b, const char *name)
{
    (void)b;
    return strcmp(name, "lm_head.weight") == 0;
}

static int grok1_build(cf_build *b, cf_err *err)
{
    int rc;
    cf_decoder d = {.names = grok1_names, .rope_layout = CF_ROPE_HALF, .theta_absent = 10000,
                    .act = {.act = CF_ACT_GELU_TANH}};
    CF_TRY(cf_decoder_read(b, &d, err));
    CF_TRY(cf_config_u32(b, "intermediate_size", 1, 1u << 20, &d.ffn, err));
    CF_TRY(cf_config_u32(b, "num_experts", 1, CF_ROUTE_MAX_EXPERTS, &d.experts, err));
    CF_TRY(cf_config_u32(b, "num_experts_per_tok", 1, CF_ROUTE_MAX_K, &d.top_k, err));
    CF_TRY(cf_config_f64(b, "embedding_multiplier_scale", 1e-6, 1e6, &d.embed_scale, err));
    CF_TRY(cf_config_f64(b, "output_multiplier_scale", 1e-6, 1e6, &d.logits_scale, err));
    CF_TRY(cf_config_f64(b, "attn_output_multiplier", 1e-6, 1e6, &d.attn_scale, err));
    CF_TRY(cf_config_f64(b, "max_attn_value", 1e-6, 1e6, &d.attn_cap, err));
    CF_TRY(cf_decoder_build(b, &d, err));
    if (d.tied)
        cf_skip_tensors(b, is_head_copy, "a copy of the embedding");
    return 0;
fail:
    return rc;
}

const cf_family cf_family_grok1 = {
    .name = "grok-1",
    .architectures = (const char *const[]){"Grok1ModelForCausalLM", NULL},
    .model_types = (const char *const[]){"grok-1", NULL},
    .build = grok1_build,
};

/* ---- Grok-2 ---- */

static const cf_decoder_names grok2_names = {
    .embed = "model.embed_tokens.weight", .final_norm = "model.norm.weight", .head = "lm_head",
    .attn_norm = "model.layers.%u.pre_attn_norm.weight",
    .ffn_norm = "model.layers.%u.pre_moe_norm.weight",
    .attn_post_norm = "model.layers.%u.post_attn_norm.weight",
    .ffn_post_norm = "model.layers.%u.post_moe_norm.weight",
    .q = "model.layers.%u.self_attn.q_proj", .k = "model.layers.%u.self_attn.k_proj",
    .v = "model.layers.%u.self_attn.v_proj", .out = "model.layers.%u.self_attn.o_proj",
    .dense_gate = "model.layers.%u.mlp.gate_proj", .dense_up = "model.layers.%u.mlp.up_proj",
    .dense_down = "model.layers.%u.mlp.down_proj",
    .router = "model.layers.%u.block_sparse_moe.gate.weight",
    .gate = "model.layers.%u.block_sparse_moe.experts.%u.w1.weight",
    .up = "model.layers.%u.block_sparse_moe.experts.%u.w3.weight",
    .down = "model.layers.%u.block_sparse_moe.experts.%u.w2.weight",
};

enum { AUX_SHARP_FROM };

static void layer_sharpness(const cf_decoder *d, uint32_t layer, cf_attn_def *attn)
{
    (void)layer;
    attn->sharp_from = d->aux[AUX_SHARP_FROM];
}

static int grok2_build(cf_build *b, cf_err *err)
{
    int rc;
    double unused;
    cf_decoder d = {.names = grok2_names, .rope_layout = CF_ROPE_HALF,
                    .act = {.act = CF_ACT_GELU_TANH}, .attn_layer = layer_sharpness,
                    .beside_scale = sqrt(0.5)};
    CF_TRY(cf_decoder_read(b, &d, err));
    CF_TRY(cf_config_u32(b, "intermediate_size", 1, 1u << 20, &d.dense_ffn, err));
    CF_TRY(cf_config_u32(b, "moe_intermediate_size", 1, 1u << 20, &d.ffn, err));
    CF_TRY(cf_config_u32(b, "num_local_experts", 1, CF_ROUTE_MAX_EXPERTS, &d.experts, err));
    CF_TRY(cf_config_u32(b, "num_experts_per_tok", 1, CF_ROUTE_MAX_K, &d.top_k, err));
    CF_TRY(cf_config_bool_or(b, "residual_moe", false, &d.beside, err));
    CF_TRY(cf_config_f64_or(b, "embedding_multiplier_scale", 1e-6, 1e6, 1, &d.embed_scale, err));
    CF_TRY(cf_config_f64_or(b, "output_multiplier_scale", 1e-6, 1e6, 1, &d.logits_scale, err));
    CF_TRY(cf_config_f64_or(b, "attn_logit_softcapping", 0, 1e6, 30, &d.attn_cap, err));
    CF_TRY(cf_config_f64_or(b, "router_logit_softcapping", 0, 1e6, 30, &d.router_cap, err));
    CF_TRY(cf_config_f64_or(b, "final_logit_softcapping", 0, 1e6, 0, &d.logits_cap, err));
    CF_TRY(
        cf_config_u32_or(b, "attn_temperature_len", 2, 1u << 30, 0, &d.aux[AUX_SHARP_FROM], err));
    CF_TRY(cf_config_only_text(b, "rope_type", "original", err)); /* frequencies as they are */
    CF_TRY(cf_config_only_bool(b, "rope_rotate_half_dims", false, err));
    CF_TRY(cf_config_f64_or(b, "sliding_window_size", -1, -1, -1, &unused, err));
    return cf_decoder_build(b, &d, err);
fail:
    return rc;
}

const cf_family cf_family_grok2 = {
    .name = "grok-2",
    .architectures = (const char *const[]){"Grok1ForCausalLM", NULL},
    .model_types = (const char *const[]){"git", NULL},
    .build = grok2_build,
};
