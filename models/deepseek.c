/* DeepSeek-MoE (arXiv 2401.06066; plain attention), DeepSeek-V2 (arXiv 2405.04434) and V2-Lite,
 * DeepSeek-V3 (arXiv 2412.19437), R1, V3.1 and Kimi-K2, -K2.5 (latent attention), GLM-4.5 (grouped-query
 * attention): leading dense layers, then routed experts beside ungated shared ones. DeepSeek-V3.2 (arXiv
 * 2512.02556) and GLM-5 have DeepSeek-V3's shape and an index that chooses the cells attention sees. */
#include <string.h>

#include "models/decoder.h"

static bool layer_is_moe(const cf_decoder *d, uint32_t layer)
{
    return layer >= d->first_moe;
}

static int read_common(cf_build *b, cf_decoder *d, cf_err *err)
{
    int rc;
    uint32_t shared;
    double scale;
    d->names = cf_decoder_common_names;
    cf_decoder_names_dense(&d->names);
    cf_decoder_names_experts(&d->names);
    cf_decoder_names_shared(&d->names);
    d->is_moe = layer_is_moe;
    CF_TRY(cf_decoder_read(b, d, err));
    CF_TRY(cf_config_u32(b, "intermediate_size", 1, 1u << 20, &d->dense_ffn, err));
    CF_TRY(cf_decoder_read_experts(b, d, "moe_intermediate_size", "n_routed_experts",
                                   "num_experts_per_tok", err));
    CF_TRY(cf_config_u32_or(b, "n_shared_experts", 0, 64, 0, &shared, err));
    CF_TRY(cf_config_u32_or(b, "first_k_dense_replace", 0, 1024, 0, &d->first_moe, err));
    uint32_t every;
    CF_TRY(cf_config_u32_or(b, "moe_layer_freq", 1, 1, 1, &every, err));
    CF_TRY(cf_config_bool_or(b, "norm_topk_prob", false, &d->router.renormalise, err));
    CF_TRY(cf_config_f64_or(b, "routed_scaling_factor", 1e-6, 1e6, 1, &scale, err));
    CF_TRY(cf_config_u32_or(b, "n_group", 1, 64, 1, &d->router.n_groups, err));
    CF_TRY(cf_config_u32_or(b, "topk_group", 1, 64, 1, &d->router.top_groups, err));
    if (d->experts % d->router.n_groups || d->router.top_groups > d->router.n_groups)
        return CF_FAIL(err, CF_EFORMAT,
                       "%s: %u of %u groups of %u experts are not a possible choice", b->path,
                       d->router.top_groups, d->router.n_groups, d->experts);
    d->router.scale = (float)scale;
    d->shared_ffn = shared * d->ffn;
    return 0;
fail:
    return rc;
}

/* Sigmoid scores with a selection bias, groups by the sum of their two best. */
static void route_by_sigmoid(cf_decoder *d)
{
    d->router.score = CF_SCORE_SIGMOID;
    d->router.group_score = CF_GROUP_TOP2;
    d->names.router_bias = "model.layers.%u.mlp.gate.e_score_correction_bias";
}

static int latent_read(cf_build *b, cf_decoder *d, cf_err *err)
{
    int rc;
    CF_TRY(cf_config_u32_or(b, "q_lora_rank", 1, 1u << 16, 0, &d->rank_q, err));
    CF_TRY(cf_config_u32(b, "kv_lora_rank", 1, 1u << 14, &d->rank_kv, err));
    CF_TRY(cf_config_u32(b, "qk_nope_head_dim", 1, 4096, &d->nope, err));
    CF_TRY(cf_config_u32(b, "qk_rope_head_dim", 2, CF_MAX_ROT, &d->rot, err));
    CF_TRY(cf_config_u32(b, "v_head_dim", 1, 4096, &d->v, err));
    CF_TRY(cf_config_only_bool(b, "attention_bias", false, err));
    d->rope_layout = CF_ROPE_INTERLEAVED;
    d->names.q = "model.layers.%u.self_attn."; /* the prefix of its tensors */
    return 0;
fail:
    return rc;
}

static int v1_build(cf_build *b, cf_err *err)
{
    int rc;
    cf_decoder d = {.rope_layout = CF_ROPE_HALF};
    CF_TRY(read_common(b, &d, err));
    CF_TRY(cf_config_only_text(b, "scoring_func", "softmax", err));
    CF_TRY(cf_config_only_bool(b, "attention_bias", false, err));
    return cf_decoder_build(b, &d, err);
fail:
    return rc;
}

static int v2_build(cf_build *b, cf_err *err)
{
    int rc;
    cf_decoder d = {0};
    CF_TRY(read_common(b, &d, err));
    CF_TRY(latent_read(b, &d, err));
    CF_TRY(cf_config_only_text(b, "scoring_func", "softmax", err));
    const char *method = json_string_value(json_object_get(b->config, "topk_method"));
    if (!method || strcmp(method, "greedy") == 0)
        d.router.n_groups = d.router.top_groups = 1;
    else if (strcmp(method, "group_limited_greedy") != 0)
        return CF_FAIL(err, CF_EFORMAT, "%s: \"topk_method\" is \"%s\"; known: greedy, "
                       "group_limited_greedy", b->path, method);
    d.router.group_score = CF_GROUP_MAX;
    /* The vendor's code scales only what it does not renormalise. */
    if (d.router.renormalise)
        d.router.scale = 1;
    return cf_decoder_build(b, &d, err);
fail:
    return rc;
}

/* What DeepSeek-V3 and its successors share. */
static int v3_read(cf_build *b, cf_decoder *d, cf_err *err)
{
    int rc;
    CF_TRY(read_common(b, d, err));
    CF_TRY(latent_read(b, d, err));
    CF_TRY(cf_config_only_text(b, "scoring_func", "sigmoid", err));
    CF_TRY(cf_config_only_text(b, "topk_method", "noaux_tc", err));
    route_by_sigmoid(d);
    return 0;
fail:
    return rc;
}

static int v3_text_build(cf_build *b, cf_err *err)
{
    int rc;
    cf_decoder d = {0};
    CF_TRY(v3_read(b, &d, err));
    CF_TRY(cf_decoder_build(b, &d, err));
    cf_skip_layers_beyond(b);
    return 0;
fail:
    return rc;
}

/* Kimi-K2.5 has its text model within another. */
static int v3_build(cf_build *b, cf_err *err)
{
    if (json_object_get(b->config, "text_config"))
        return cf_build_wrapped(b, v3_text_build, err);
    return v3_text_build(b, err);
}

static int index_types_read(const cf_build *b, cf_decoder *d, cf_err *err)
{
    const json_t *types = json_object_get(b->config, "indexer_types");
    if (!types || json_is_null(types))
        return 0;
    if (json_array_size(types) != d->layers)
        return CF_FAIL(err, CF_EFORMAT, "%s: \"indexer_types\" has %zu entries for %u layers",
                       b->path, json_array_size(types), d->layers);
    for (uint32_t i = 0; i < d->layers; i++) {
        const char *type = json_string_value(json_array_get(types, i));
        bool shared = type && strcmp(type, "shared") == 0;
        if (!type || (!shared && strcmp(type, "full") != 0))
            return CF_FAIL(err, CF_EFORMAT,
                           "%s: \"indexer_types\" entry %u is neither \"full\" nor "
                           "\"shared\"",
                           b->path, i);
        if (shared && i == 0)
            return CF_FAIL(err, CF_EFORMAT,
                           "%s: \"indexer_types\" begins with \"shared\": there is "
                           "nothing before layer 0",
                           b->path);
    }
    d->index_types = types;
    return 0;
}

static int sparse_build(cf_build *b, bool interleaved, cf_err *err)
{
    int rc;
    cf_decoder d = {0};
    CF_TRY(v3_read(b, &d, err));
    CF_TRY(cf_config_u32(b, "index_n_heads", 1, 256, &d.index.heads, err));
    CF_TRY(cf_config_u32(b, "index_head_dim", 2, 512, &d.index.head, err));
    CF_TRY(cf_config_u32(b, "index_topk", 1, 1u << 20, &d.index.top_k, err));
    CF_TRY(cf_config_bool_or(b, "indexer_rope_interleave", interleaved, &interleaved, err));
    CF_TRY(index_types_read(b, &d, err));
    d.index.layout = interleaved ? CF_ROPE_INTERLEAVED : CF_ROPE_HALF;
    if (!d.rank_q || d.index.head < d.rot)
        return CF_FAIL(err, CF_EFORMAT,
                       "%s: an index of heads of %u wants a \"q_lora_rank\" and at "
                       "most as many rotary dimensions (%u)",
                       b->path, d.index.head, d.rot);
    CF_TRY(cf_decoder_build(b, &d, err));
    cf_skip_layers_beyond(b);
    return 0;
fail:
    return rc;
}

static int v32_build(cf_build *b, cf_err *err)
{
    return sparse_build(b, false, err);
}

static int glm_dsa_build(cf_build *b, cf_err *err)
{
    return sparse_build(b, true, err);
}

static int glm4_build(cf_build *b, cf_err *err)
{
    int rc;
    double part;
    bool qk_norm;
    cf_decoder d = {.rope_layout = CF_ROPE_HALF};
    CF_TRY(read_common(b, &d, err));
    CF_TRY(cf_config_bool_or(b, "attention_bias", false, &d.qkv_bias, err));
    CF_TRY(cf_config_bool_or(b, "use_qk_norm", false, &qk_norm, err));
    CF_TRY(cf_config_f64_or(b, "partial_rotary_factor", 0.01, 1, 0.5, &part, err));
    d.rot = (uint32_t)(d.head * part);
    if (qk_norm) {
        d.qk = CF_QK_NORM_HEAD;
        cf_decoder_names_qk_norms(&d.names);
    }
    route_by_sigmoid(&d);
    CF_TRY(cf_decoder_build(b, &d, err));
    cf_skip_layers_beyond(b);
    return 0;
fail:
    return rc;
}

const cf_family cf_family_deepseek_moe = {
    .name = "deepseek-moe",
    .architectures = (const char *const[]){"DeepseekForCausalLM", NULL},
    .model_types = (const char *const[]){"deepseek", NULL},
    .build = v1_build,
};

const cf_family cf_family_deepseek_v2 = {
    .name = "deepseek-v2",
    .architectures = (const char *const[]){"DeepseekV2ForCausalLM", NULL},
    .model_types = (const char *const[]){"deepseek_v2", NULL},
    .build = v2_build,
};

const cf_family cf_family_deepseek_v3 = {
    .name = "deepseek-v3",
    .architectures = (const char *const[]){"DeepseekV3ForCausalLM", "KimiK2ForCausalLM",
                                           "KimiK25ForConditionalGeneration", NULL},
    .model_types = (const char *const[]){"deepseek_v3", "kimi_k2", "kimi_k25", NULL},
    .build = v3_build,
};

const cf_family cf_family_deepseek_v32 = {
    .name = "deepseek-v3.2",
    .architectures = (const char *const[]){"DeepseekV32ForCausalLM", NULL},
    .model_types = (const char *const[]){"deepseek_v32", NULL},
    .build = v32_build,
};

const cf_family cf_family_glm_moe_dsa = {
    .name = "glm-moe-dsa",
    .architectures = (const char *const[]){"GlmMoeDsaForCausalLM", NULL},
    .model_types = (const char *const[]){"glm_moe_dsa", NULL},
    .build = glm_dsa_build,
};

const cf_family cf_family_glm4_moe = {
    .name = "glm4-moe",
    .architectures = (const char *const[]){"Glm4MoeForCausalLM", NULL},
    .model_types = (const char *const[]){"glm4_moe", NULL},
    .build = glm4_build,
};
