/* GGUF architectures: which published class each is, and of which tables it is made. See gguf.h.
 * Whether that class has a family is the registry's to say. */
#include "models/gguf_tables.h"

#define KEYS(...)                                                                                  \
    {                                                                                              \
        __VA_ARGS__                                                                                \
    }
#define NAMES(...)                                                                                 \
    {                                                                                              \
        __VA_ARGS__                                                                                \
    }

/* Latent attention over the cells that an index chooses. */
#define INDEXED(called, class)                                                                     \
    {.name = called,                                                                               \
     .architecture = class,                                                                        \
     .keys = KEYS(cf_keys_common, cf_keys_latent, cf_keys_deepseek, cf_keys_indexer),              \
     .names = NAMES(cf_names_latent, cf_names_indexer, cf_names_common, cf_names_mlp,              \
                    cf_names_shared),                                                              \
     .latent = true,                                                                               \
     .finish = cf_gguf_dsa}

/* Two attention sub-layers a layer; of some the experts have a slice more. */
#define LONGCAT(called, spare)                                                                     \
    {.name = called,                                                                               \
     .keys = KEYS(cf_keys_latent, cf_keys_longcat, cf_keys_indexer),                               \
     .names = NAMES(cf_names_longcat, cf_names_sub_indexer),                                       \
     .paired = true,                                                                               \
     .latent = true,                                                                               \
     .spare_expert = spare,                                                                        \
     .finish = cf_gguf_longcat}

/* Grok-2. */
static const cf_gguf_arch grok_beside = {
    .name = "grok",
    .architecture = "Grok1ForCausalLM",
    .keys = KEYS(cf_keys_common, cf_keys_grouped, cf_keys_grok_beside, cf_keys_grok),
    .names = NAMES(cf_names_grok_beside, cf_names_common, cf_names_mlp),
    .never_yarn = true,
    .finish = cf_gguf_grok_beside};

const cf_gguf_arch cf_gguf_archs[] = {
    {.name = "llama",
     .architecture = "MixtralForCausalLM",
     .keys = KEYS(cf_keys_common, cf_keys_grouped, cf_keys_mixtral),
     .names = NAMES(cf_names_mixtral, cf_names_common),
     .adjacent = true,
     .finish = cf_gguf_softmax},
    {.name = "qwen2moe",
     .architecture = "Qwen2MoeForCausalLM",
     .keys = KEYS(cf_keys_common, cf_keys_grouped, cf_keys_qwen, cf_keys_qwen2),
     .names = NAMES(cf_names_qwen2, cf_names_common, cf_names_mlp),
     .finish = cf_gguf_qwen},
    {.name = "qwen3moe",
     .architecture = "Qwen3MoeForCausalLM",
     .keys = KEYS(cf_keys_common, cf_keys_grouped, cf_keys_qwen, cf_keys_renormalise),
     .names = NAMES(cf_names_common, cf_names_mlp),
     .finish = cf_gguf_qwen},
    /* The text of a model that sees: its positions are those of texts. */
    {.name = "qwen3vlmoe",
     .architecture = "Qwen3MoeForCausalLM",
     .keys = KEYS(cf_keys_common, cf_keys_grouped, cf_keys_qwen, cf_keys_renormalise),
     .names = NAMES(cf_names_common, cf_names_mlp),
     .finish = cf_gguf_qwen},
    {.name = "qwen3next",
     .architecture = "Qwen3NextForCausalLM",
     .keys = KEYS(cf_keys_common, cf_keys_grouped, cf_keys_qwen, cf_keys_qwen2, cf_keys_delta,
                  cf_keys_renormalise),
     .names = NAMES(cf_names_delta, cf_names_second_norm, cf_names_qwen2, cf_names_common,
                    cf_names_mlp),
     .partial_rotary = true,
     .finish = cf_gguf_delta},
    {.name = "qwen35moe",
     .architecture = "Qwen3_5MoeForCausalLM",
     .keys = KEYS(cf_keys_common, cf_keys_grouped, cf_keys_qwen, cf_keys_qwen2, cf_keys_delta,
                  cf_keys_delta_tiled, cf_keys_renormalise),
     .names = NAMES(cf_names_delta_gates, cf_names_delta, cf_names_second_norm, cf_names_qwen2,
                    cf_names_common, cf_names_mlp),
     .partial_rotary = true,
     .finish = cf_gguf_delta},
    {.name = "olmoe",
     .architecture = "OlmoeForCausalLM",
     .keys = KEYS(cf_keys_common, cf_keys_grouped, cf_keys_olmoe),
     .names = NAMES(cf_names_common, cf_names_mlp),
     .finish = cf_gguf_softmax},
    {.name = "dbrx",
     .architecture = "DbrxForCausalLM",
     .keys = KEYS(cf_keys_dbrx),
     .names = NAMES(cf_names_dbrx, cf_names_experts),
     .rope = "attn_config",
     .finish = cf_gguf_dbrx},
    {.name = "deepseek",
     .architecture = "DeepseekForCausalLM",
     .keys = KEYS(cf_keys_common, cf_keys_grouped, cf_keys_deepseek),
     .names = NAMES(cf_names_common, cf_names_mlp, cf_names_shared),
     .adjacent = true,
     .finish = cf_gguf_softmax},
    {.name = "deepseek2",
     .keys = KEYS(cf_keys_common, cf_keys_latent, cf_keys_deepseek),
     .names = NAMES(cf_names_latent, cf_names_common, cf_names_mlp, cf_names_shared),
     .latent = true,
     .finish = cf_gguf_deepseek2},
    INDEXED("deepseek32", "DeepseekV32ForCausalLM"),
    INDEXED("glm-dsa", "GlmMoeDsaForCausalLM"),
    {.name = "glm4moe",
     .architecture = "Glm4MoeForCausalLM",
     .keys = KEYS(cf_keys_common, cf_keys_grouped, cf_keys_deepseek, cf_keys_glm4),
     .names = NAMES(cf_names_second_norm, cf_names_common, cf_names_mlp, cf_names_shared),
     .partial_rotary = true,
     .finish = cf_gguf_glm4},
    {.name = "granitemoe",
     .architecture = "GraniteMoeForCausalLM",
     .keys = KEYS(cf_keys_common, cf_keys_grouped, cf_keys_mixtral, cf_keys_granite),
     .names = NAMES(cf_names_granite, cf_names_experts, cf_names_common),
     .adjacent = true,
     .finish = cf_gguf_softmax},
    {.name = "ernie4_5-moe",
     .architecture = "Ernie4_5_MoeForCausalLM",
     .keys = KEYS(cf_keys_common, cf_keys_grouped, cf_keys_ernie),
     .names = NAMES(cf_names_ernie, cf_names_common, cf_names_mlp, cf_names_shared),
     .finish = cf_gguf_softmax},
    {.name = "minicpm",
     .architecture = "MiniCPMForCausalLM",
     .keys = KEYS(cf_keys_common, cf_keys_grouped, cf_keys_minicpm),
     .names = NAMES(cf_names_minicpm, cf_names_common, cf_names_mlp),
     .adjacent = true,
     .finish = cf_gguf_minicpm},
    {.name = "grok",
     .architecture = "Grok1ModelForCausalLM",
     .keys = KEYS(cf_keys_common, cf_keys_grouped, cf_keys_grok),
     .names = NAMES(cf_names_grok, cf_names_common),
     .finish = cf_gguf_grok,
     .variant_has = "ffn_up.weight",
     .variant = &grok_beside},
    {.name = "llama4",
     .keys = KEYS(cf_keys_common, cf_keys_grouped, cf_keys_llama4),
     .names = NAMES(cf_names_llama4),
     .root = "text_config",
     .finish = cf_gguf_llama4},
    {.name = "minimax-m2",
     .architecture = "MiniMaxM2ForCausalLM",
     .keys = KEYS(cf_keys_common, cf_keys_grouped, cf_keys_mixtral, cf_keys_minimax),
     .names = NAMES(cf_names_mixtral, cf_names_common),
     .partial_rotary = true,
     .finish = cf_gguf_sigmoid},
    {.name = "gpt-oss",
     .architecture = "GptOssForCausalLM",
     .keys = KEYS(cf_keys_common, cf_keys_grouped, cf_keys_gpt_oss),
     .names = NAMES(cf_names_gpt_oss, cf_names_second_norm, cf_names_experts, cf_names_common),
     .yarn_exact = true,
     .finish = cf_gguf_gpt_oss},
    {.name = "phimoe",
     .architecture = "PhiMoEForCausalLM",
     .keys = KEYS(cf_keys_phimoe, cf_keys_common, cf_keys_grouped, cf_keys_mixtral),
     .names = NAMES(cf_names_mixtral, cf_names_longrope, cf_names_common),
     .finish = cf_gguf_softmax},
    LONGCAT("longcat-flash", true),
    LONGCAT("longcat-ngram", true),
    LONGCAT("longcat-flash-ngram", false),
    LONGCAT("longcat-flash-sparse", false),
};

const uint32_t cf_gguf_arch_count = sizeof cf_gguf_archs / sizeof *cf_gguf_archs;
