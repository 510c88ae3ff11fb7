/* The tables of gguf_archs.c in parts: keys (gguf_keys.c), names (gguf_names.c), and what tables
 * cannot say (gguf_rules.c). Private to models/gguf*.c. */
#ifndef CF_MODELS_GGUF_TABLES_H
#define CF_MODELS_GGUF_TABLES_H

#include "models/gguf.h"

extern const cf_gguf_key cf_keys_common[], cf_keys_grouped[], cf_keys_latent[], cf_keys_mixtral[],
    cf_keys_minimax[], cf_keys_qwen[], cf_keys_qwen2[], cf_keys_renormalise[], cf_keys_olmoe[],
    cf_keys_dbrx[], cf_keys_deepseek[], cf_keys_indexer[], cf_keys_glm4[], cf_keys_granite[],
    cf_keys_ernie[], cf_keys_minicpm[], cf_keys_grok[], cf_keys_grok_beside[], cf_keys_llama4[],
    cf_keys_longcat[], cf_keys_gpt_oss[], cf_keys_phimoe[], cf_keys_delta[], cf_keys_delta_tiled[];

extern const cf_gguf_name cf_names_common[], cf_names_latent[], cf_names_mlp[], cf_names_shared[],
    cf_names_mixtral[], cf_names_qwen2[], cf_names_experts[], cf_names_granite[], cf_names_ernie[],
    cf_names_minicpm[], cf_names_second_norm[], cf_names_indexer[], cf_names_gpt_oss[],
    cf_names_grok[], cf_names_grok_beside[], cf_names_dbrx[], cf_names_llama4[], cf_names_longcat[],
    cf_names_delta[], cf_names_delta_gates[], cf_names_longrope[], cf_names_sub_indexer[];

int cf_gguf_deepseek2(cf_gguf_source *s, cf_err *err);
int cf_gguf_latent(cf_gguf_source *s, cf_err *err);
int cf_gguf_dsa(cf_gguf_source *s, cf_err *err);
int cf_gguf_delta(cf_gguf_source *s, cf_err *err);
int cf_gguf_qwen(cf_gguf_source *s, cf_err *err);
int cf_gguf_softmax(cf_gguf_source *s, cf_err *err);
int cf_gguf_sigmoid(cf_gguf_source *s, cf_err *err);
int cf_gguf_glm4(cf_gguf_source *s, cf_err *err);
int cf_gguf_minicpm(cf_gguf_source *s, cf_err *err);
int cf_gguf_grok(cf_gguf_source *s, cf_err *err);
int cf_gguf_grok_beside(cf_gguf_source *s, cf_err *err);
int cf_gguf_dbrx(cf_gguf_source *s, cf_err *err);
int cf_gguf_llama4(cf_gguf_source *s, cf_err *err);
int cf_gguf_longcat(cf_gguf_source *s, cf_err *err);
int cf_gguf_gpt_oss(cf_gguf_source *s, cf_err *err);

#endif
