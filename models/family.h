/* Families: from a checkpoint's config.json to a cf_model.
 *
 * A family is one file: it checks the config, names the tensors it expects, by role and shape, and
 * emits the plan. It does so through a cf_build (models/build.h), which either binds the names to
 * a catalogue (opening a model) or only lists them (writing one: `catflap mkmodel`). */
#ifndef CF_MODELS_FAMILY_H
#define CF_MODELS_FAMILY_H

#include <jansson.h>

#include "runtime/model.h"

typedef struct cf_build cf_build;

typedef struct cf_family {
    const char *name;                  /* "longcat" */
    const char *const *architectures;  /* NULL-terminated; matched first */
    const char *const *model_types;    /* NULL-terminated; matched when no architecture is given */
    int (*build)(cf_build *b, cf_err *err);
} cf_family;

extern const cf_family *const cf_families[]; /* NULL-terminated; models/registry.c */

/* The family of a config, or NULL with a sentence that names what was asked and what is known. */
const cf_family *cf_family_find(const json_t *config, const char *path, cf_err *err);

/* A config from a file: a JSON object of bounded size. The caller owns it; NULL with a sentence. */
enum { CF_CONFIG_BYTES_MAX = 16 << 20, CF_CONFIG_VALUES_MAX = 1 << 20 };
json_t *cf_config_read(const char *path, cf_err *err);

/* Opens a model: config, catalogue, family, plan. A directory with config.json and safetensors, a
 * GGUF file (.gguf; of a split one the first part), or a directory with one. Prints nothing. */
int cf_model_open(cf_model **out, const char *path, cf_err *err);

/* What remains of opening once the files are known: `m` has dir and cat; its tensors get their
 * roles and the plan is made. path: of the config, for messages. */
int cf_model_bind(cf_model *m, const json_t *config, const char *path, cf_err *err);
/* The spec's name, from the last part of a path, and its architecture, as the config has it. */
void cf_spec_names(cf_spec *spec, const char *path, const json_t *config);

/* A tensor that a family expects, for writing a checkpoint. */
typedef struct cf_expected {
    char *name;
    uint32_t n_dims;
    uint64_t shape[CF_MAX_DIMS];
    bool f32;        /* stored in float32 whatever the rest is (routers) */
    bool norm;       /* a norm's weight: near 1 */
    bool bias;       /* a selection bias: near 0 */
} cf_expected;

/* Every tensor the config implies, in file order. The caller frees with cf_expected_free. */
int cf_model_expected(const json_t *config, const char *path, cf_expected **out, uint64_t *n,
                      cf_err *err);
void cf_expected_free(cf_expected *list, uint64_t n);

#endif
