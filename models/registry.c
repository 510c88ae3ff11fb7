/* The families that catflap runs, and how a config finds its own. */
#include <stdio.h>
#include <string.h>

#include "models/family.h"

#define FAMILIES(X)                                                                                \
    X(longcat)                                                                                     \
    X(mixtral)                                                                                     \
    X(minimax_m2)                                                                                  \
    X(phimoe)                                                                                      \
    X(qwen2_moe)                                                                                   \
    X(qwen3_moe)                                                                                   \
    X(olmoe)                                                                                       \
    X(qwen3_next)                                                                                  \
    X(qwen3_5_moe)                                                                                 \
    X(deepseek_moe)                                                                                \
    X(deepseek_v2)                                                                                 \
    X(deepseek_v3)                                                                                 \
    X(deepseek_v32)                                                                                \
    X(glm4_moe)                                                                                    \
    X(glm_moe_dsa)                                                                                 \
    X(granite_moe)                                                                                 \
    X(ernie4_5_moe)                                                                                \
    X(minicpm_moe)                                                                                 \
    X(grok1)                                                                                       \
    X(grok2)                                                                                       \
    X(dbrx)                                                                                        \
    X(llama4)                                                                                      \
    X(gpt_oss)                                                                                     \
    X(minimax)                                                                                     \
    X(switch)

#define DECLARE(name) extern const cf_family cf_family_##name;
#define LIST(name)    &cf_family_##name,
FAMILIES(DECLARE)
const cf_family *const cf_families[] = {FAMILIES(LIST) NULL};

static bool list_has(const char *const *list, const char *name)
{
    for (; *list; list++)
        if (strcmp(*list, name) == 0)
            return true;
    return false;
}

static const cf_family *family_by(const char *name, bool by_architecture)
{
    for (const cf_family *const *f = cf_families; *f; f++)
        if (list_has(by_architecture ? (*f)->architectures : (*f)->model_types, name))
            return *f;
    return NULL;
}

const cf_family *cf_family_find(const json_t *config, const char *path, cf_err *err)
{
    const char *arch =
        json_string_value(json_array_get(json_object_get(config, "architectures"), 0));
    const char *type = json_string_value(json_object_get(config, "model_type"));
    const cf_family *found = arch ? family_by(arch, true) : NULL;
    /* Some releases lack one of the two. */
    if (!found && !arch && type)
        found = family_by(type, false);
    if (found)
        return found;
    if (!arch && !type) {
        CF_FAIL(err, CF_EFORMAT, "%s names neither \"architectures\" nor \"model_type\"", path);
        return NULL;
    }
    /* Families, not their architectures: a sentence has its bounds. */
    char known[1024] = "", text[100];
    for (const cf_family *const *f = cf_families; *f; f++) {
        size_t n = strlen(known);
        snprintf(known + n, sizeof known - n, "%s%s", n ? ", " : "", (*f)->name);
    }
    CF_FAIL(err, CF_EFORMAT, "%s: %s \"%s\" is unknown; known are %s", path,
            arch ? "architecture" : "model_type",
            cf_text_clean(arch ? arch : type, text, sizeof text), known);
    return NULL;
}
