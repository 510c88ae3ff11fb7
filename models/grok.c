/* Grok-1 (the xAI release, under the names of its Hugging Face ports): sandwich norms, soft-capped
 * attention, gelu experts, a router without renormalisation. Multipliers on embeddings, scores and
 * logits. */
#include <string.h>

#include "models/decoder.h"

static const cf_decoder_names names = {
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
    cf_decoder d = {.names = names, .rope_layout = CF_ROPE_HALF, .theta_absent = 10000,
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
