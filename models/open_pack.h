/* Opening packs. */
#ifndef CF_MODELS_OPEN_PACK_H
#define CF_MODELS_OPEN_PACK_H

#include "models/family.h"

/* Makes a model of what has been parsed, like cf_gguf_model_make: m->gguf is a pack's metadata, and
 * *cat, which is taken over, holds the file's tensors. */
int cf_pack_model_make(cf_model *m, cf_catalogue **cat, const char *path, cf_err *err);
/* Once the family has built its plan: where every expert lies in m->pack. */
int cf_pack_bind(cf_build *b, cf_err *err);

#endif
