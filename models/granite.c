/* Granite-MoE, ERNIE-4.5-MoE and MiniCPM-MoE: tied embeddings, and multipliers on the way.
 *
 * Granite fuses an expert's gate and up in one tensor; ERNIE routes by softmax with a selection bias
 * and rotates interleaved pairs; MiniCPM scales embeddings, residuals and logits by its depth and
 * width. */
#include <math.h>

#include "models/decoder.h"

static int granite_build(cf_build *b, cf_err *err)
{
    int rc;
    double divisor;
    cf_decoder d = {
        .names = cf_decoder_common_names, .rope_layout = CF_ROPE_HALF, .fused = CF_FUSED_ROWS};
    d.names.router = "model.layers.%u.block_sparse_moe.router.layer.weight";
    d.names.fused_gate_up = "model.layers.%u.block_sparse_moe.input_linear.weight";
    d.names.fused_down = "model.layers.%u.block_sparse_moe.output_linear.weight";
    CF_TRY(cf_decoder_read(b, &d, err));
    CF_TRY(cf_config_only_bool(b, "attention_bias", false, err));
    CF_TRY(cf_decoder_read_experts(b, &d, "intermediate_size", "num_local_experts",
                                   "num_experts_per_tok", err));
    CF_TRY(cf_config_f64(b, "attention_multiplier", 1e-6, 1e6, &d.attn_scale, err));
    CF_TRY(cf_config_f64(b, "embedding_multiplier", 1e-6, 1e6, &d.embed_scale, err));
    CF_TRY(cf_config_f64(b, "residual_multiplier", 1e-6, 1e6, &d.residual_scale, err));
    CF_TRY(cf_config_f64(b, "logits_scaling", 1e-6, 1e6, &divisor, err));
    d.logits_scale = 1 / divisor;
    /* A softmax over the selected logits alone. */
    d.router.renormalise = true;
    return cf_decoder_build(b, &d, err);
fail:
    return rc;
}

/* ---- ERNIE ---- */

static bool ernie_is_moe(const cf_decoder *d, uint32_t layer)
{
    return layer >= d->first_moe && layer <= d->aux[0] && (layer + 1) % d->moe_step == 0;
}

static int ernie_build(cf_build *b, cf_err *err)
{
    int rc;
    uint32_t shared;
    cf_decoder d = {.names = cf_decoder_common_names,
                    .rope_layout = CF_ROPE_INTERLEAVED,
                    .is_moe = ernie_is_moe,
                    .router_f32 = true,
                    .router_bias_row = true};
    cf_decoder_names_dense(&d.names);
    cf_decoder_names_experts(&d.names);
    cf_decoder_names_shared(&d.names);
    d.names.router_bias = "model.layers.%u.mlp.moe_statics.e_score_correction_bias";
    CF_TRY(cf_decoder_read(b, &d, err));
    CF_TRY(cf_config_only_bool(b, "use_bias", false, err));
    CF_TRY(cf_config_u32(b, "intermediate_size", 1, 1u << 20, &d.dense_ffn, err));
    CF_TRY(
        cf_decoder_read_experts(b, &d, "moe_intermediate_size", "moe_num_experts", "moe_k", err));
    CF_TRY(cf_config_u32_or(b, "moe_num_shared_experts", 0, 64, 0, &shared, err));
    CF_TRY(cf_config_u32_or(b, "moe_layer_start_index", 0, 1024, 0, &d.first_moe, err));
    CF_TRY(cf_config_u32_or(b, "moe_layer_interval", 1, 1024, 1, &d.moe_step, err));
    d.aux[0] = d.layers - 1;
    /* -1 means the last layer. */
    const json_t *end = json_object_get(b->config, "moe_layer_end_index");
    if (json_integer_value(end) >= 0)
        CF_TRY(cf_config_u32_or(b, "moe_layer_end_index", 0, 1024, d.aux[0], &d.aux[0], err));
    d.shared_ffn = shared * d.ffn;
    d.router.renormalise = true;
    return cf_decoder_build(b, &d, err);
fail:
    return rc;
}

/* ---- MiniCPM ---- */

static int minicpm_build(cf_build *b, cf_err *err)
{
    int rc;
    double depth, base;
    cf_decoder d = {
        .names = cf_decoder_common_names, .rope_layout = CF_ROPE_HALF, .theta_absent = 10000};
    d.names.router = "model.layers.%u.mlp.gate.weight";
    d.names.gate = "model.layers.%u.mlp.experts.%u.w1.weight";
    d.names.up = "model.layers.%u.mlp.experts.%u.w3.weight";
    d.names.down = "model.layers.%u.mlp.experts.%u.w2.weight";
    CF_TRY(cf_decoder_read(b, &d, err));
    CF_TRY(cf_config_only_bool(b, "attention_bias", false, err));
    CF_TRY(cf_decoder_read_experts(b, &d, "intermediate_size", "num_experts",
                                   "num_experts_per_tok", err));
    CF_TRY(cf_config_f64(b, "scale_emb", 1e-6, 1e6, &d.embed_scale, err));
    CF_TRY(cf_config_f64(b, "scale_depth", 1e-6, 1e6, &depth, err));
    CF_TRY(cf_config_f64(b, "dim_model_base", 1, 1e6, &base, err));
    d.residual_scale = depth / sqrt((double)d.layers);
    d.logits_scale = base / d.hidden;
    d.router.renormalise = true;
    return cf_decoder_build(b, &d, err);
fail:
    return rc;
}

const cf_family cf_family_granite_moe = {
    .name = "granite-moe",
    .architectures = (const char *const[]){"GraniteMoeForCausalLM", NULL},
    .model_types = (const char *const[]){"granitemoe", NULL},
    .build = granite_build,
};

const cf_family cf_family_ernie4_5_moe = {
    .name = "ernie4.5-moe",
    .architectures = (const char *const[]){"Ernie4_5_MoeForCausalLM", NULL},
    .model_types = (const char *const[]){"ernie4_5_moe", NULL},
    .build = ernie_build,
};

const cf_family cf_family_minicpm_moe = {
    .name = "minicpm-moe",
    .architectures = (const char *const[]){"MiniCPMForCausalLM", NULL},
    .model_types = (const char *const[]){"minicpm", NULL},
    .build = minicpm_build,
};
