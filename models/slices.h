/* Experts' matrices that are stored in slices (storage/safetensors_slices.h).
 *
 * The config says what shape a matrix has; n slices of [rows / n, cols] are its rows, n of [rows,
 * cols / n] its columns. Anything else is refused, as are outer scales, and layers of which some
 * matrices are in slices and others not. Untrusted; one thread. */
#ifndef CF_MODELS_SLICES_H
#define CF_MODELS_SLICES_H

#include "models/build.h"

/* The tensor that is there under this name in slices, or NULL. */
const cf_tensor *cf_slices_find(const cf_build *b, const char *name);
/* cf_bind_piece for such a tensor. */
int cf_slices_bind(cf_build *b, cf_moe_def *d, uint32_t expert, cf_piece_def *piece, uint32_t rows,
                   uint32_t cols, const cf_tensor *t, cf_err *err);

#endif
