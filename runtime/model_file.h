/* The small files that belong to a model beside its tensors (tokenizer, chat template ...): out of
 * the pack that carries them, else from the directory that the model lies in. */
#ifndef CF_RUNTIME_MODEL_FILE_H
#define CF_RUNTIME_MODEL_FILE_H

#include "storage/pack.h"

#include <stddef.h>

/* The file `name`, whole, with a NUL behind it; the caller frees. meta: of a GGUF file, or NULL.
 * Returns 1 when there is none; more than max_bytes is refused. */
int cf_model_file_read(const char *dir, const cf_gguf *meta, const char *name, size_t max_bytes,
                       char **text, size_t *bytes, cf_err *err);
/* Whether a pack carries it; *text lives as long as meta. */
bool cf_model_file_packed(const cf_gguf *meta, const char *name, cf_text *text);

#endif
