/* The config.json of a checkpoint to be written: see mkmodel_config.h.
 *
 * Full shapes are the published dimensions (LongCat-Flash technical report, arXiv 2509.01322, and
 * the published configs); the tiny ones have the same structure in a few megabytes. */
#include "tools/mkmodel_config.h"

#include <string.h>

/* What all of the family have in common. */
#define COMMON_KEYS                                                                                \
    "\"attention_bias\": false, \"attention_method\": \"MLA\", \"bos_token_id\": 1, "              \
    "\"eos_token_id\": 2, \"hidden_act\": \"silu\", \"mla_scale_q_lora\": true, "                  \
    "\"mla_scale_kv_lora\": true, \"zero_expert_type\": \"identity\", "                            \
    "\"norm_topk_prob\": false, \"router_bias\": false, \"rms_norm_eps\": 1e-05, "                 \
    "\"tie_word_embeddings\": false, \"torch_dtype\": \"bfloat16\""

#define FLASH                                                                                      \
    "\"architectures\": [\"LongcatFlashForCausalLM\"], \"model_type\": \"longcat_flash\", "
#define LITE                                                                                       \
    "\"architectures\": [\"LongcatFlashNgramForCausalLM\"], "                                      \
    "\"model_type\": \"longcat_flash_ngram\", "

static const struct {
    const char *name, *what, *json;
} shapes[] = {
    {"longcat-flash", "560B: 28 layers, 512 experts and 256 zero experts, top 12",
     "{" FLASH COMMON_KEYS ", \"vocab_size\": 131072, \"hidden_size\": 6144, \"num_layers\": 28, "
     "\"num_attention_heads\": 64, \"head_dim\": 64, \"q_lora_rank\": 1536, "
     "\"kv_lora_rank\": 512, \"qk_nope_head_dim\": 128, \"qk_rope_head_dim\": 64, "
     "\"v_head_dim\": 128, \"ffn_hidden_size\": 12288, \"expert_ffn_hidden_size\": 2048, "
     "\"n_routed_experts\": 512, \"zero_expert_num\": 256, \"moe_topk\": 12, "
     "\"routed_scaling_factor\": 6.0, \"rope_theta\": 10000000.0, "
     "\"max_position_embeddings\": 131072}"},
    {"longcat-flash-lite", "68.5B: 14 layers, 256 experts and 128 zero experts, n-gram tables",
     "{" LITE COMMON_KEYS ", \"vocab_size\": 131072, \"hidden_size\": 3072, \"num_layers\": 14, "
     "\"num_attention_heads\": 32, \"head_dim\": 64, \"q_lora_rank\": 1536, "
     "\"kv_lora_rank\": 512, \"qk_nope_head_dim\": 128, \"qk_rope_head_dim\": 64, "
     "\"v_head_dim\": 128, \"ffn_hidden_size\": 6144, \"expert_ffn_hidden_size\": 1024, "
     "\"n_routed_experts\": 256, \"zero_expert_num\": 128, \"moe_topk\": 12, "
     "\"routed_scaling_factor\": 6.0, \"rope_theta\": 5000000.0, "
     "\"max_position_embeddings\": 327680, \"ngram_vocab_size_ratio\": 78, "
     "\"emb_neighbor_num\": 4, \"emb_split_num\": 4}"},
    {"longcat-flash-tiny", "5M: 3 layers, 32 experts and 16 zero experts, top 4",
     "{" FLASH COMMON_KEYS ", \"vocab_size\": 1024, \"hidden_size\": 128, \"num_layers\": 3, "
     "\"num_attention_heads\": 4, \"head_dim\": 16, \"q_lora_rank\": 64, "
     "\"kv_lora_rank\": 32, \"qk_nope_head_dim\": 32, \"qk_rope_head_dim\": 16, "
     "\"v_head_dim\": 32, \"ffn_hidden_size\": 256, \"expert_ffn_hidden_size\": 96, "
     "\"n_routed_experts\": 32, \"zero_expert_num\": 16, \"moe_topk\": 4, "
     "\"routed_scaling_factor\": 6.0, \"rope_theta\": 10000.0, "
     "\"max_position_embeddings\": 2048}"},
    {"longcat-flash-lite-tiny", "7M: the same with 12 n-gram tables",
     "{" LITE COMMON_KEYS ", \"vocab_size\": 1024, \"hidden_size\": 192, \"num_layers\": 3, "
     "\"num_attention_heads\": 4, \"head_dim\": 16, \"q_lora_rank\": 64, "
     "\"kv_lora_rank\": 32, \"qk_nope_head_dim\": 32, \"qk_rope_head_dim\": 16, "
     "\"v_head_dim\": 32, \"ffn_hidden_size\": 256, \"expert_ffn_hidden_size\": 64, "
     "\"n_routed_experts\": 32, \"zero_expert_num\": 16, \"moe_topk\": 4, "
     "\"routed_scaling_factor\": 6.0, \"rope_theta\": 10000.0, "
     "\"max_position_embeddings\": 2048, \"ngram_vocab_size_ratio\": 8, "
     "\"emb_neighbor_num\": 4, \"emb_split_num\": 4}"},
};

enum { N_SHAPES = sizeof shapes / sizeof shapes[0] };

void cf_shape_list(FILE *out)
{
    for (int i = 0; i < N_SHAPES; i++)
        fprintf(out, "  %-24s  %s\n", shapes[i].name, shapes[i].what);
}

json_t *cf_shape_config(const char *name, cf_err *err)
{
    char names[256] = "";
    for (int i = 0; i < N_SHAPES; i++) {
        if (!strcmp(name, shapes[i].name)) {
            json_error_t e;
            json_t *config = json_loads(shapes[i].json, JSON_REJECT_DUPLICATES, &e);
            if (!config)
                CF_FAIL(err, -ENOMEM, "the config of %s cannot be made: %s", name, e.text);
            return config;
        }
        size_t n = strlen(names);
        snprintf(names + n, sizeof names - n, "%s%s", i ? ", " : "", shapes[i].name);
    }
    CF_FAIL(err, -EINVAL, "there is no shape \"%.80s\"; there are %s", name, names);
    return NULL;
}

/* ---- overrides ---- */

enum { MAX_KEYS = 4 };

static const struct {
    const char *dimension;
    const char *keys[MAX_KEYS];
} dimensions[] = {
    {"layers", {"num_layers", "num_hidden_layers"}},
    {"hidden", {"hidden_size"}},
    {"heads", {"num_attention_heads"}},
    {"experts", {"n_routed_experts", "num_experts", "num_local_experts"}},
    {"zero-experts", {"zero_expert_num"}},
    {"top-k", {"moe_topk", "num_experts_per_tok"}},
    {"ffn", {"ffn_hidden_size", "intermediate_size"}},
    {"expert-ffn", {"expert_ffn_hidden_size", "moe_intermediate_size"}},
    {"vocab", {"vocab_size"}},
    {"max-ctx", {"max_position_embeddings"}},
    {"ngram-ratio", {"ngram_vocab_size_ratio"}},
};

int cf_config_override(json_t *config, const char *dimension, json_t *value, cf_err *err)
{
    int rc = -EINVAL;
    for (size_t i = 0; i < sizeof dimensions / sizeof dimensions[0]; i++) {
        if (strcmp(dimension, dimensions[i].dimension) != 0)
            continue;
        for (int k = 0; k < MAX_KEYS && dimensions[i].keys[k] && rc < 0; k++)
            if (json_object_get(config, dimensions[i].keys[k]))
                rc = json_object_set(config, dimensions[i].keys[k], value) < 0 ? -ENOMEM : 0;
    }
    json_decref(value);
    return rc < 0 ? CF_FAIL(err, rc, "the config has no key that --%s could change", dimension) : 0;
}

int cf_config_assign(json_t *config, const char *text, cf_err *err)
{
    char key[128];
    const char *equals = strchr(text, '=');
    size_t n = equals ? (size_t)(equals - text) : 0;
    if (n == 0 || n >= sizeof key)
        return CF_FAIL(err, -EINVAL, "--set takes KEY=VALUE, not \"%.80s\"", text);
    memcpy(key, text, n);
    key[n] = 0;
    json_error_t e;
    json_t *value = json_loads(equals + 1, JSON_DECODE_ANY, &e);
    if (!value)
        return CF_FAIL(err, -EINVAL, "--set %s: \"%.80s\" is not JSON (%s)", key, equals + 1,
                       e.text);
    if (json_object_set_new(config, key, value) < 0)
        return CF_FAIL(err, -EINVAL, "--set %s: this key cannot be set", key);
    return 0;
}

/* ---- element types ---- */

static const struct {
    cf_format format;
    const char *name;
} elems[] = {{CF_BF16, "bfloat16"}, {CF_F16, "float16"}, {CF_F32, "float32"}};

enum { N_ELEMS = sizeof elems / sizeof elems[0] };

cf_format cf_config_elem(const json_t *config)
{
    const char *name = json_string_value(json_object_get(config, "torch_dtype"));
    if (!name)
        name = json_string_value(json_object_get(config, "dtype"));
    for (int i = 0; name && i < N_ELEMS; i++)
        if (!strcmp(name, elems[i].name))
            return elems[i].format;
    return CF_BF16;
}

int cf_config_elem_set(json_t *config, cf_format format)
{
    const char *key = json_object_get(config, "dtype") ? "dtype" : "torch_dtype";
    for (int i = 0; i < N_ELEMS; i++)
        if (elems[i].format == format)
            return json_object_set_new(config, key, json_string(elems[i].name)) < 0 ? -ENOMEM : 0;
    return -EINVAL;
}
