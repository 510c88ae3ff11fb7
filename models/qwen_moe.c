/* Qwen1.5-MoE, Qwen2-MoE (biases on q, k, v; a shared expert behind a sigmoid), Qwen3-MoE (norms of
 * each head) and OLMoE (norms of whole projections; arXiv 2409.02060): grouped-query attention with
 * half-split rotation, softmax routing. */
#include "models/decoder.h"

static int read_common(cf_build *b, cf_decoder *d, const char *ffn_key, cf_err *err)
{
    int rc;
    d->names = cf_decoder_common_names;
    cf_decoder_names_dense(&d->names);
    cf_decoder_names_experts(&d->names);
    d->rope_layout = CF_ROPE_HALF;
    CF_TRY(cf_decoder_read(b, d, err));
    CF_TRY(cf_decoder_read_experts(b, d, ffn_key, "num_experts", "num_experts_per_tok", err));
    return cf_config_bool_or(b, "norm_topk_prob", false, &d->router.renormalise, err);
fail:
    return rc;
}

/* ---- Qwen ---- */

static bool layer_is_moe(const cf_decoder *d, uint32_t layer)
{
    return (layer + 1) % d->moe_step == 0;
}

static int qwen_read(cf_build *b, cf_decoder *d, cf_err *err)
{
    int rc;
    CF_TRY(read_common(b, d, "moe_intermediate_size", err));
    CF_TRY(cf_config_u32_or(b, "decoder_sparse_step", 1, 1024, 1, &d->moe_step, err));
    CF_TRY(cf_config_only_bool(b, "use_sliding_window", false, err));
    if (json_array_size(json_object_get(b->config, "mlp_only_layers")))
        return CF_FAIL(err, CF_EFORMAT,
                       "%s: \"mlp_only_layers\" is not empty; only an empty list is "
                       "known",
                       b->path);
    d->is_moe = layer_is_moe;
    if (d->moe_step > 1)
        CF_TRY(cf_config_u32(b, "intermediate_size", 1, 1u << 20, &d->dense_ffn, err));
    return 0;
fail:
    return rc;
}

static int qwen2_build(cf_build *b, cf_err *err)
{
    int rc;
    cf_decoder d = {0};
    CF_TRY(qwen_read(b, &d, err));
    CF_TRY(cf_config_bool_or(b, "qkv_bias", true, &d.qkv_bias, err));
    CF_TRY(cf_config_u32(b, "shared_expert_intermediate_size", 1, 1u << 20, &d.shared_ffn, err));
    cf_decoder_names_shared_switched(&d.names);
    return cf_decoder_build(b, &d, err);
fail:
    return rc;
}

static int qwen3_build(cf_build *b, cf_err *err)
{
    int rc;
    cf_decoder d = {.qk = CF_QK_NORM_HEAD};
    CF_TRY(qwen_read(b, &d, err));
    CF_TRY(cf_config_only_bool(b, "attention_bias", false, err));
    cf_decoder_names_qk_norms(&d.names);
    return cf_decoder_build(b, &d, err);
fail:
    return rc;
}

/* ---- OLMoE ---- */

static int olmoe_build(cf_build *b, cf_err *err)
{
    int rc;
    cf_decoder d = {.qk = CF_QK_NORM_WHOLE};
    CF_TRY(read_common(b, &d, "intermediate_size", err));
    CF_TRY(cf_config_only_bool(b, "attention_bias", false, err));
    CF_TRY(cf_config_f64_or(b, "clip_qkv", 1e-6, 1e6, 0, &d.clip, err));
    if (d.clip > 0)
        return CF_FAIL(err, CF_EFORMAT, "%s: \"clip_qkv\" after norms is not known", b->path);
    cf_decoder_names_qk_norms(&d.names);
    return cf_decoder_build(b, &d, err);
fail:
    return rc;
}

const cf_family cf_family_qwen2_moe = {
    .name = "qwen2-moe",
    .architectures = (const char *const[]){"Qwen2MoeForCausalLM", NULL},
    .model_types = (const char *const[]){"qwen2_moe", NULL},
    .build = qwen2_build,
};

const cf_family cf_family_qwen3_moe = {
    .name = "qwen3-moe",
    .architectures = (const char *const[]){"Qwen3MoeForCausalLM", NULL},
    .model_types = (const char *const[]){"qwen3_moe", NULL},
    .build = qwen3_build,
};

const cf_family cf_family_olmoe = {
    .name = "olmoe",
    .architectures = (const char *const[]){"OlmoeForCausalLM", NULL},
    .model_types = (const char *const[]){"olmoe", NULL},
    .build = olmoe_build,
};
