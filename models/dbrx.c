/* DBRX: layer norms without bias, one tensor for q, k and v whose products are clamped, and experts
 * fused over the layer, the last matrix transposed. Its config is nested. */
#include "models/decoder.h"

static const cf_decoder_names names = {
    .embed = "transformer.wte.weight", .final_norm = "transformer.norm_f.weight", .head = "lm_head",
    .attn_norm = "transformer.blocks.%u.norm_attn_norm.norm_1.weight",
    .ffn_norm = "transformer.blocks.%u.norm_attn_norm.norm_2.weight",
    .qkv = "transformer.blocks.%u.norm_attn_norm.attn.Wqkv",
    .out = "transformer.blocks.%u.norm_attn_norm.attn.out_proj",
    .router = "transformer.blocks.%u.ffn.router.layer.weight",
    .fused_gate = "transformer.blocks.%u.ffn.experts.mlp.w1",
    .fused_up = "transformer.blocks.%u.ffn.experts.mlp.v1",
    .fused_down = "transformer.blocks.%u.ffn.experts.mlp.w2",
};

static int part_open(cf_build *b, const char *key, const json_t **out, cf_err *err)
{
    *out = json_object_get(b->config, key);
    if (!json_is_object(*out))
        return CF_FAIL(err, CF_EFORMAT, "%s: \"%s\" is not an object", b->path, key);
    return 0;
}

static int attention_read(cf_build *b, cf_decoder *d, cf_err *err)
{
    int rc;
    CF_TRY(cf_config_u32_or(b, "kv_n_heads", 1, 1024, d->heads, &d->kv_heads, err));
    CF_TRY(cf_config_f64_or(b, "clip_qkv", 1e-6, 1e6, 0, &d->clip, err));
    return 0;
fail:
    return rc;
}

static int experts_read(cf_build *b, cf_decoder *d, cf_err *err)
{
    int rc;
    uint32_t norm;
    CF_TRY(cf_config_u32(b, "ffn_hidden_size", 1, 1u << 20, &d->ffn, err));
    CF_TRY(cf_config_u32(b, "moe_num_experts", 1, CF_ROUTE_MAX_EXPERTS, &d->experts, err));
    CF_TRY(cf_config_u32(b, "moe_top_k", 1, CF_ROUTE_MAX_K, &d->top_k, err));
    /* The order of the norm that weights are divided by; they are positive, so 1 is their sum. */
    CF_TRY(cf_config_u32_or(b, "moe_normalize_expert_weights", 1, 1, 1, &norm, err));
    d->router.renormalise = true;
    return 0;
fail:
    return rc;
}

static int dbrx_build(cf_build *b, cf_err *err)
{
    int rc;
    cf_spec *s = &b->model->spec;
    cf_decoder d = {.names = names, .norm = CF_NORM_LAYER, .eps = 1e-5,
                    .rope_layout = CF_ROPE_HALF, .fused = CF_FUSED_FLAT};
    const json_t *top = b->config, *attention, *ffn;
    CF_TRY(cf_config_u32(b, "vocab_size", 1, 1u << 24, &s->vocab, err));
    CF_TRY(cf_config_u32(b, "d_model", 1, 1u << 16, &d.hidden, err));
    CF_TRY(cf_config_u32(b, "n_layers", 1, 1024, &d.layers, err));
    CF_TRY(cf_config_u32(b, "n_heads", 1, 1024, &d.heads, err));
    CF_TRY(cf_config_u32(b, "max_seq_len", 1, 1u << 30, &s->ctx_max, err));
    CF_TRY(cf_config_bool_or(b, "tie_word_embeddings", false, &d.tied, err));
    CF_TRY(cf_config_ends(b, err));
    CF_TRY(part_open(b, "attn_config", &attention, err));
    CF_TRY(part_open(b, "ffn_config", &ffn, err));
    b->config = attention;
    rc = attention_read(b, &d, err);
    b->config = ffn;
    rc = rc < 0 ? rc : experts_read(b, &d, err);
    b->config = top;
    if (rc < 0)
        return rc;
    if (d.heads % d.kv_heads || d.hidden % d.heads)
        return CF_FAIL(err, CF_EFORMAT, "%s: %u wide, %u heads and %u key-value heads do not fit",
                       b->path, d.hidden, d.heads, d.kv_heads);
    d.head = d.rot = d.hidden / d.heads;
    d.rope_config = attention;
    return cf_decoder_build(b, &d, err);
fail:
    return rc;
}

const cf_family cf_family_dbrx = {
    .name = "dbrx",
    .architectures = (const char *const[]){"DbrxForCausalLM", NULL},
    .model_types = (const char *const[]){"dbrx", NULL},
    .build = dbrx_build,
};
