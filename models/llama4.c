/* Llama 4 Scout and Maverick, the text model: three of four layers rotate and attend within chunks,
 * the fourth sees everything without positions, its queries sharpened with length. One routed expert
 * a token, its weight on the input, beside a shared one; fused transposed experts. */
#include "models/decoder.h"

static void names_set(cf_decoder_names *n)
{
    *n = cf_decoder_common_names;
    n->dense_gate = "model.layers.%u.feed_forward.gate_proj";
    n->dense_up = "model.layers.%u.feed_forward.up_proj";
    n->dense_down = "model.layers.%u.feed_forward.down_proj";
    n->shared_gate = "model.layers.%u.feed_forward.shared_expert.gate_proj";
    n->shared_up = "model.layers.%u.feed_forward.shared_expert.up_proj";
    n->shared_down = "model.layers.%u.feed_forward.shared_expert.down_proj";
    n->router = "model.layers.%u.feed_forward.router.weight";
    n->fused_gate_up = "model.layers.%u.feed_forward.experts.gate_up_proj";
    n->fused_down = "model.layers.%u.feed_forward.experts.down_proj";
}

enum { AUX_CHUNK, AUX_FLOOR, AUX_NOPE_STEP, AUX_NORM };

static bool layer_is_moe(const cf_decoder *d, uint32_t layer)
{
    return (layer + 1) % d->moe_step == 0;
}

static void layer_attention(const cf_decoder *d, uint32_t layer, cf_attn_def *attn)
{
    if ((layer + 1) % d->aux[AUX_NOPE_STEP] == 0) {
        attn->rope_def = CF_NO_ROPE;
        attn->tune_floor = d->aux[AUX_FLOOR];
        attn->tune_scale = (float)d->tune_scale;
        return;
    }
    attn->chunk = d->aux[AUX_CHUNK];
    if (d->aux[AUX_NORM])
        attn->qk = CF_QK_ROTATE_NORM;
}

static int text_build(cf_build *b, cf_err *err)
{
    int rc;
    bool tune, norm;
    cf_decoder d = {.rope_layout = CF_ROPE_INTERLEAVED, .is_moe = layer_is_moe,
                    .attn_layer = layer_attention, .fused = CF_FUSED_TRANSPOSED,
                    .weight_on_input = true, .router = {.score = CF_SCORE_SIGMOID}};
    names_set(&d.names);
    CF_TRY(cf_decoder_read(b, &d, err));
    CF_TRY(cf_config_only_bool(b, "attention_bias", false, err));
    CF_TRY(cf_decoder_read_experts(b, &d, "intermediate_size", "num_local_experts",
                                   "num_experts_per_tok", err));
    CF_TRY(cf_config_u32_or(b, "intermediate_size_mlp", 1, 1u << 20, d.ffn, &d.dense_ffn, err));
    CF_TRY(cf_config_u32_or(b, "interleave_moe_layer_step", 1, 1024, 1, &d.moe_step, err));
    CF_TRY(cf_config_u32_or(b, "no_rope_layer_interval", 1, 1024, 4, &d.aux[AUX_NOPE_STEP], err));
    CF_TRY(cf_config_u32_or(b, "attention_chunk_size", 1, 1u << 30, 8192, &d.aux[AUX_CHUNK], err));
    CF_TRY(cf_config_bool_or(b, "attn_temperature_tuning", true, &tune, err));
    CF_TRY(cf_config_bool_or(b, "use_qk_norm", true, &norm, err));
    if (tune)
        CF_TRY(cf_config_u32_or(b, "floor_scale", 1, 1u << 30, 8192, &d.aux[AUX_FLOOR], err));
    CF_TRY(cf_config_f64_or(b, "attn_scale", 0, 100, 0.1, &d.tune_scale, err));
    if (json_array_size(json_object_get(b->config, "no_rope_layers")))
        return CF_FAIL(err, CF_EFORMAT,
                       "%s: \"no_rope_layers\" is not empty; only an empty list is known", b->path);
    d.aux[AUX_NORM] = norm;
    d.shared_ffn = d.ffn;
    return cf_decoder_build(b, &d, err);
fail:
    return rc;
}

static int llama4_build(cf_build *b, cf_err *err)
{
    return cf_build_wrapped(b, text_build, err);
}

const cf_family cf_family_llama4 = {
    .name = "llama4",
    .architectures = (const char *const[]){"Llama4ForConditionalGeneration", NULL},
    .model_types = (const char *const[]){"llama4", NULL},
    .build = llama4_build,
};
