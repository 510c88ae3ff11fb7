/* gpt-oss 120b and 20b (arXiv 2508.10925): grouped-query attention with sinks, every other layer in
 * a sliding window; biases everywhere; experts in MXFP4, gate and up rows interleaved, with a
 * clamped SwiGLU; a softmax over the selected logits. */
#include <string.h>

#include "models/decoder.h"

enum { AUX_WINDOW };

static bool layer_slides(const json_t *types, uint32_t layer)
{
    const char *type = json_string_value(json_array_get(types, layer));
    return type && strcmp(type, "sliding_attention") == 0;
}

/* Even layers slide; layer_types, where it is given, has been found to say so. */
static void layer_window(const cf_decoder *d, uint32_t layer, cf_attn_def *attn)
{
    attn->window = layer % 2 == 0 ? d->aux[AUX_WINDOW] : 0;
}

static int layer_types_check(const cf_build *b, const cf_decoder *d, cf_err *err)
{
    const json_t *types = json_object_get(b->config, "layer_types");
    for (uint32_t i = 0; json_is_array(types) && i < d->layers; i++)
        if (layer_slides(types, i) != (i % 2 == 0))
            return CF_FAIL(err, CF_EFORMAT,
                           "%s: \"layer_types\" is known only as sliding_attention in even layers "
                           "and full_attention in odd ones; layer %u differs",
                           b->path, i);
    return 0;
}

static int gpt_oss_build(cf_build *b, cf_err *err)
{
    int rc;
    double limit;
    bool biases;
    cf_decoder d = {.names = cf_decoder_common_names,
                    .rope_layout = CF_ROPE_HALF,
                    .attn_layer = layer_window,
                    .fused = CF_FUSED_TRANSPOSED,
                    .interleaved = true,
                    .router = {.renormalise = true}};
    d.names.router = "model.layers.%u.mlp.router.weight";
    d.names.router_logit_bias = "model.layers.%u.mlp.router.bias";
    d.names.sinks = "model.layers.%u.self_attn.sinks";
    d.names.fused_gate_up = "model.layers.%u.mlp.experts.gate_up_proj";
    d.names.fused_down = "model.layers.%u.mlp.experts.down_proj";
    d.names.fused_gate_up_bias = "model.layers.%u.mlp.experts.gate_up_proj_bias";
    d.names.fused_down_bias = "model.layers.%u.mlp.experts.down_proj_bias";
    CF_TRY(cf_decoder_read(b, &d, err));
    CF_TRY(cf_decoder_read_experts(b, &d, "intermediate_size", "num_local_experts",
                                   "num_experts_per_tok", err));
    CF_TRY(cf_config_bool_or(b, "attention_bias", true, &biases, err));
    CF_TRY(cf_config_u32_or(b, "sliding_window", 1, 1u << 30, 0, &d.aux[AUX_WINDOW], err));
    CF_TRY(cf_config_f64_or(b, "swiglu_limit", 1e-3, 1e6, 7, &limit, err));
    CF_TRY(layer_types_check(b, &d, err));
    d.qkv_bias = d.out_bias = biases;
    d.act = (cf_act_params){CF_ACT_SWIGLU_CLAMPED, (float)limit, 1.702f};
    return cf_decoder_build(b, &d, err);
fail:
    return rc;
}

const cf_family cf_family_gpt_oss = {
    .name = "gpt-oss",
    .architectures = (const char *const[]){"GptOssForCausalLM", NULL},
    .model_types = (const char *const[]){"gpt_oss", NULL},
    .build = gpt_oss_build,
};
